"""TPUs: sizes, speeds and how slices are named. Sources: Google Cloud's TPU pages and libtpu's own limits."""
import dataclasses
import math
import re
from typing import Any

from t5like import choices
from t5like.config.values import cut
from t5like.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class Generation:
  """Of one JAX device, which is a chip, or a core where `cores` is 2."""
  name: str  # as libtpu calls it
  flops: float  # bf16, per second
  bandwidth: float  # of HBM, bytes per second
  link: float  # of ICI, bytes per second, one link, one direction
  dims: int  # of the torus
  cores: int  # devices per chip
  hbm: float  # GiB that the compiler lets a program use
  largest: int  # chips of a slice
  chips_per_host: int
  counts_cores: bool  # v5p-128 is a slice of 128 cores, v5e-256 one of 256 chips
  network: float  # to other slices, bytes per second; 0: Google gives no figure
  int8: float = 1.0  # how many times as many products of int8 as of bf16 a second
  fp8: float = 1.0

  def rate(self, dtype: str) -> float:
    """Multiplications and additions a second of operands of a type of HLO. Other types take as long as bf16.

    1 means that Google publishes no higher rate; operands that the matrix units do not know are converted.
    """
    if dtype in ('s8', 'u8'):
      return self.int8 * self.flops
    if dtype in ('f8e4m3fn', 'f8e5m2'):
      return self.fp8 * self.flops
    return self.flops

  def fastest(self, quantization: str) -> float:
    """The highest rate of the products of a program with this `model.quantization`."""
    return self.rate(OPERANDS[quantization])


# Networks: the bandwidth of the data center network (DCN) that Google's pages of these TPUs give, of a pod of 256 chips
# (v5e: 6.4 Tbps, v6e: 25.6 Tbps) or of a chip (v5p: 50 Gbps, TPU7x: 100 Gbps). The page of v4 gives none.
_ALL = (
    Generation(
        name='v4',
        flops=275e12,
        bandwidth=1228e9,
        link=45e9,
        dims=3,
        cores=1,
        hbm=30.75,
        largest=4096,
        chips_per_host=4,
        counts_cores=True,
        network=0.0,
    ),
    Generation(
        name='v5e',
        flops=197e12,
        bandwidth=819e9,
        link=45e9,
        dims=2,
        cores=1,
        hbm=15.75,
        largest=256,
        chips_per_host=4,
        counts_cores=False,
        network=6.4e12 / 8 / 256,
        int8=2.0,
    ),
    Generation(
        name='v5p',
        flops=459e12,
        bandwidth=2765e9,
        link=90e9,
        dims=3,
        cores=1,
        hbm=95.73,
        largest=8960,
        chips_per_host=4,
        counts_cores=True,
        network=50e9 / 8,
        int8=2.0,
    ),
    Generation(
        name='v6e',
        flops=918e12,
        bandwidth=1640e9,
        link=90e9,
        dims=2,
        cores=1,
        hbm=31.24,
        largest=256,
        chips_per_host=4,
        counts_cores=False,
        network=25.6e12 / 8 / 256,
        int8=2.0,
    ),
    Generation(
        name='tpu7x',
        flops=1153.5e12,
        bandwidth=3690e9,
        link=90e9,
        dims=3,
        cores=2,
        hbm=94.74,
        largest=9216,
        chips_per_host=4,
        counts_cores=True,
        network=100e9 / 8 / 2,
        fp8=2.0,
    ),
)
GENERATIONS = {generation.name: generation for generation in _ALL}
ALIASES = {'7x': 'tpu7x', 'v5litepod': 'v5e', 'v5lite': 'v5e', 'v5': 'v5p', 'ironwood': 'tpu7x', 'trillium': 'v6e'}
# Shapes of slices as Google Cloud offers them, by chips.
FLAT = {1: (1, 1), 4: (2, 2), 8: (2, 4), 16: (4, 4), 32: (4, 8), 64: (8, 8), 128: (8, 16), 256: (16, 16)}
KNOWN = ', '.join(GENERATIONS)
# Operands of products by model.quantization, as HLO writes them.
OPERANDS = choices.implement('model.quantization', choices.QUANTIZATIONS, dict(none='bf16', int8='s8', fp8='f8e4m3fn'))
MOST_SLICES = 1024
# Slices, generation, size or shape; numbers without zeros before them.
NUMBER = '[1-9][0-9]{0,8}'
PATTERN = re.compile(f'(?:({NUMBER})x)?([a-z0-9]+?)(?:-([0-9]{{1,9}})|:({NUMBER}(?:x{NUMBER})+))')


@dataclasses.dataclass(frozen=True)
class Topology:
  """`slices` slices of a generation; `shape`: chips along each dimension of one slice."""
  generation: Generation
  shape: tuple[int, ...]
  slices: int = 1

  @property
  def devices(self) -> int:
    return self.chips * self.generation.cores

  @property
  def chips(self) -> int:
    return math.prod(self.shape) * self.slices

  @property
  def hosts(self) -> int:
    return max(1, self.chips // self.generation.chips_per_host)

  @property
  def wrap(self) -> list[bool]:
    """For each of three dimensions, whether the links of a slice close a ring along it."""
    if self.generation.dims == 2:
      return [size == 16 for size in self.shape] + [False]
    is_closed = min(self.shape) >= 4
    return [is_closed] * 3

  @property
  def name(self) -> str:
    """As `parse` reads it: '2xv5e-256'."""
    size = math.prod(self.shape)
    if self.generation.counts_cores:
      size *= 2
    name = f'{self.generation.name}-{size}'
    if self.slices > 1:
      return f'{self.slices}x{name}'
    return name

  def arguments(self) -> dict[str, Any]:
    """Keyword arguments of `jax.experimental.topologies.get_topology_desc`."""
    shape = 'x'.join(map(str, self.shape))
    arguments: dict[str, Any] = {'topology_name': f'{self.generation.name}:{shape}', 'wrap': self.wrap}
    if self.slices > 1:
      arguments['num_slices'] = self.slices
    if self.generation.name == 'v4':
      arguments['chip_config_name'] = 'megacore'  # one device per chip, as jobs see it
    return arguments


def parse(text: str) -> Topology:
  """The topology that a command line names.

  Args:
    text: 'v5e-256', '2xv5e-256' (slices) or 'v5p:4x4x8' (chips along each dimension).

  Raises:
    ConfigError: for another form, an unknown generation, or a size that no slice has.
  """
  match = PATTERN.fullmatch(text.lower())
  if not match:
    raise ConfigError(f'--topology={cut(text)}: write generation and size, such as v5e-256, 2xv5e-256 (slices) or '
                      f'v5p:4x4x8. There are {KNOWN}.')
  slices, name, size, shape = match.groups()
  name = ALIASES.get(name, name)
  if name not in GENERATIONS:
    raise ConfigError(f'--topology={cut(text)}: there is no TPU generation {cut(match[2])!r} here. There are {KNOWN}.')
  generation = GENERATIONS[name]
  if shape:
    sides = _parse_shape(text, generation, shape)
  else:
    sides = _shape_of_size(text, generation, int(size))
  chips = math.prod(sides)
  if chips > generation.largest:
    raise ConfigError(f'--topology={cut(text)}: {chips} chips, but a slice of {name} has at most {generation.largest}. '
                      f'Use several slices, as in 2x{name}-{generation.largest}.')
  number_of_slices = int(slices or 1)
  if number_of_slices > MOST_SLICES:
    raise ConfigError(f'--topology={cut(text)}: at most {MOST_SLICES:,} slices.')
  return Topology(generation, sides, number_of_slices)


def _parse_shape(
    text: str,
    generation: Generation,
    shape: str,
) -> tuple[int, ...]:
  """Of '4x4x8'."""
  sides = tuple(map(int, shape.split('x')))
  if len(sides) != generation.dims:
    example = 'x'.join('4' * generation.dims)
    raise ConfigError(f'--topology={cut(text)}: slices of {generation.name} have {generation.dims} dimensions, such as '
                      f'{generation.name}:{example}.')
  return sides


def _shape_of_size(
    text: str,
    generation: Generation,
    size: int,
) -> tuple[int, ...]:
  """The shape of a slice of this size, which counts chips or cores."""
  chips = size
  if generation.counts_cores:
    chips, odd = divmod(size, 2)
    if odd:
      raise _no_such_size(text, generation)
  if generation.dims == 2:
    shape = FLAT.get(chips)
  else:
    shape = _cube(chips)
  if shape is None:
    raise _no_such_size(text, generation)
  return shape


def _no_such_size(text: str, generation: Generation) -> ConfigError:
  name = generation.name
  if generation.dims == 2:
    sizes = list(FLAT)
    alternative = ''
  else:
    sizes = [2 * side ** 3 for side in (2, 4, 8, 12)]
    alternative = f', or any shape of multiples of 4, as in {name}:4x4x8'
  listed = ', '.join(map(str, sizes))
  return ConfigError(f'--topology={cut(text)}: no slice of {name} has that size. Use {name}-N with N one of '
                     f'{listed}{alternative}.')


def _cube(chips: int) -> tuple[int, ...] | None:
  """The shape nearest to a cube: of powers of two (v5p: 4x4x4 is 64, 4x4x8 is 128), or an exact cube of multiples of 4.

  None where there is neither.
  """
  is_power_of_two = chips >= 4 and chips & (chips - 1) == 0
  if is_power_of_two:
    power = chips.bit_length() - 1
    sides = [2 ** ((power + dimension) // 3) for dimension in range(3)]
    return tuple(sorted(sides))
  side = round(chips ** (1 / 3))
  if side ** 3 == chips and side % 4 == 0:
    return (side, side, side)
  return None
