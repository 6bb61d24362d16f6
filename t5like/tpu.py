"""What TPUs are: sizes, speeds and how slices are named. Sources: Google Cloud's TPU pages and libtpu's own limits."""
import dataclasses
import math
import re

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


# Networks: the bandwidth of the data center network (DCN) that Google's pages of these TPUs give, of a pod of 256 chips
# (v5e: 6.4 Tbps, v6e: 25.6 Tbps) or of a chip (v5p: 50 Gbps, TPU7x: 100 Gbps). The page of v4 gives none.
GENERATIONS = {g.name: g for g in (
    Generation('v4', 275e12, 1228e9, 45e9, 3, 1, 30.75, 4096, 4, True, 0.0),
    Generation('v5e', 197e12, 819e9, 45e9, 2, 1, 15.75, 256, 4, False, 6.4e12 / 8 / 256),
    Generation('v5p', 459e12, 2765e9, 90e9, 3, 1, 95.73, 8960, 4, True, 50e9 / 8),
    Generation('v6e', 918e12, 1640e9, 90e9, 2, 1, 31.24, 256, 4, False, 25.6e12 / 8 / 256),
    Generation('tpu7x', 1153.5e12, 3690e9, 90e9, 3, 2, 94.74, 9216, 4, True, 100e9 / 8 / 2))}
ALIASES = {'7x': 'tpu7x', 'v5litepod': 'v5e', 'v5lite': 'v5e', 'v5': 'v5p', 'ironwood': 'tpu7x', 'trillium': 'v6e'}
# Shapes of slices as Google Cloud offers them, by chips.
FLAT = {1: (1, 1), 4: (2, 2), 8: (2, 4), 16: (4, 4), 32: (4, 8), 64: (8, 8), 128: (8, 16), 256: (16, 16)}


@dataclasses.dataclass(frozen=True)
class Topology:
  """`slices` slices of a generation, each `shape` chips."""
  generation: Generation
  shape: tuple
  slices: int = 1

  @property
  def devices(self):
    return math.prod(self.shape) * self.slices * self.generation.cores

  @property
  def chips(self):
    return math.prod(self.shape) * self.slices

  @property
  def hosts(self):
    return max(1, self.chips // self.generation.chips_per_host)

  @property
  def wrap(self):
    """Along which dimensions the links of a slice close a ring."""
    if self.generation.dims == 2:
      return [n == 16 for n in self.shape] + [False]
    return [min(self.shape) >= 4] * 3

  @property
  def name(self):
    size = math.prod(self.shape) * (2 if self.generation.counts_cores else 1)
    return f'{f"{self.slices}x" if self.slices > 1 else ""}{self.generation.name}-{size}'

  def arguments(self):
    """Of `jax.experimental.topologies.get_topology_desc`."""
    kwargs = dict(topology_name=f'{self.generation.name}:{"x".join(map(str, self.shape))}', wrap=self.wrap)
    if self.slices > 1:
      kwargs['num_slices'] = self.slices
    if self.generation.name == 'v4':
      kwargs['chip_config_name'] = 'megacore'  # one device per chip, as jobs see it
    return kwargs


def parse(text):
  """Topology of 'v5e-256', '2xv5e-256' (slices) or 'v5p:4x4x8' (chips along each dimension); ConfigError."""
  match = re.fullmatch(r'(?:(\d+)x)?([a-z0-9]+?)(?:-(\d+)|:(\d+(?:x\d+)+))', text.lower())
  known = ', '.join(GENERATIONS)
  if not match:
    raise ConfigError(f'--topology={text}: write generation and size, such as v5e-256, 2xv5e-256 (slices) or '
                      f'v5p:4x4x8. There are {known}.')
  slices, name, size, shape = match.groups()
  name = ALIASES.get(name, name)
  if name not in GENERATIONS:
    raise ConfigError(f'--topology={text}: there is no TPU generation {match[2]!r} here. There are {known}.')
  generation = GENERATIONS[name]
  if shape:
    sizes = tuple(map(int, shape.split('x')))
    if len(sizes) != generation.dims:
      raise ConfigError(f'--topology={text}: slices of {name} have {generation.dims} dimensions, such as '
                        f'{name}:{"x".join("4" * generation.dims)}.')
  else:
    chips = int(size) // 2 if generation.counts_cores else int(size)
    sizes = FLAT.get(chips) if generation.dims == 2 else _cube(chips)
    if not sizes or generation.counts_cores and int(size) % 2:
      sizes_there = [n for n in FLAT] if generation.dims == 2 else [2 * n ** 3 for n in (2, 4, 8, 12)]
      raise ConfigError(f'--topology={text}: no slice of {name} has that size. Use {name}-N with N one of '
                        f'{", ".join(map(str, sizes_there))}' + ('' if generation.dims == 2 else
                        f', or any shape of multiples of 4, as in {name}:4x4x8') + '.')
  if math.prod(sizes) > generation.largest:
    raise ConfigError(f'--topology={text}: {math.prod(sizes)} chips, a slice of {name} has at most '
                      f'{generation.largest}. Ask for several slices, as in 2x{name}-{generation.largest}.')
  return Topology(generation, sizes, int(slices or 1))


def _cube(chips):
  """The shape nearest to a cube of so many chips, of powers of two (v5p: 4x4x4 is 64, 4x4x8 is 128)."""
  if chips < 4 or chips & (chips - 1):
    root = round(chips ** (1 / 3))
    return (root,) * 3 if root ** 3 == chips and root % 4 == 0 else None
  power = chips.bit_length() - 1
  return tuple(sorted(2 ** ((power + i) // 3) for i in range(3)))
