"""Which meshes fit a config, as far as it says how many devices there are."""
from collections.abc import Iterator

from t5like.config.values import SECTIONS, divisors, either, up
from t5like.config_type import Config, Section
from t5like.objectives import lengths

ALL_THAT_ARE_LEFT = -1  # devices of an axis
OVER_HEADS = ('num_heads', 'num_kv_heads', 'd_ff', 'expert_d_ff', 'vocab_size')  # sizes that mesh.tensor shards


def check_mesh(config: Config, resolved: Section) -> Iterator[str]:
  """Yields what is wrong with `config.mesh` and batch_size; `resolved`: the model section with its zeros filled in."""
  yield from _axes(config.mesh)
  yield from _sizes(config.mesh, resolved)
  yield from _context(config)
  yield from _rows(config)


def _axes(mesh: Section) -> Iterator[str]:
  left = []
  for axis in SECTIONS['mesh']:
    size = mesh[axis]
    if size == ALL_THAT_ARE_LEFT:
      left.append(f'mesh.{axis}=-1')
    elif size < 1:
      yield f'mesh.{axis}={size}: must be at least 1, or -1 for all devices that are left.'
  if len(left) > 1:
    yield f'{", ".join(left)}: only one axis can take the devices that are left. Give all others a number.'


def _sizes(mesh: Section, resolved: Section) -> Iterator[str]:
  """Sizes of parameters that are sharded over devices."""
  for key in OVER_HEADS:
    if not resolved[key]:
      continue
    is_replicated = key == 'num_kv_heads' and resolved.num_kv_heads == resolved.num_heads  # num_heads is reported
    if not is_replicated:
      yield from _divides('tensor', mesh.tensor, key, resolved[key])
  spread = 1
  names = []
  for axis in ('fsdp_outer', 'fsdp', 'expert', 'context'):
    spread *= max(mesh[axis], 1)
    if axis == 'fsdp' or mesh[axis] > 1:
      names.append(axis)
  name = ' x mesh.'.join(names)
  yield from _divides(name, spread, 'd_model', resolved.d_model)


def _divides(axis: str, devices: int, key: str, size: int) -> Iterator[str]:
  if devices > 1 and size % devices:
    yield (f'mesh.{axis}={devices}: must divide model.{key}={size}. '
           f'Use mesh.{axis}={divisors(devices, size)}, or model.{key}={up(size, devices)}.')


def _context(config: Config) -> Iterator[str]:
  """Lengths of rows that are cut over devices."""
  devices = config.mesh.context
  if devices <= 1 or not lengths.are_known(config):
    return
  shapes = lengths.shapes(config)
  for rows, length in (('rows of the encoder', shapes.inputs), ('rows of targets', shapes.targets)):
    if length % devices:
      yield (f'mesh.context={devices}: must divide the {length} tokens of {rows} (data.seq_len={config.data.seq_len}, '
             f'data.target_len={config.data.target_len}). Use {divisors(devices, length)}.')


def _rows(config: Config) -> Iterator[str]:
  """Rows of a batch, which are dealt out to micro-batches and devices."""
  mesh = config.mesh
  shards = 1
  names = []
  for axis in ('slice', 'data', 'fsdp_outer', 'fsdp', 'expert'):
    shards *= max(mesh[axis], 1)
    if axis in ('data', 'fsdp') or mesh[axis] > 1:
      names.append(f'mesh.{axis}')
  unit = config.microbatches * shards
  size = config.batch_size
  if size % unit == 0:
    return
  factors = ['microbatches']
  if shards > 1:
    factors += names
  nearest_sizes = {max(size // unit, 1) * unit, up(size, unit)}
  yield (f'batch_size={size}: must be divisible by {" x ".join(factors)} = {unit}. '
         f'Use {either(sorted(nearest_sizes))}.')
