"""Which meshes fit a config, as far as it says how many devices there are."""
from t5like.config.values import SECTIONS, divisors, either, up
from t5like.objectives import lengths


def check(c, r):
  """Yields what is wrong with `config.mesh` and batch_size; `r`: the model section with its zeros filled in."""
  yield from _axes(c)
  yield from _sizes(c, r)
  yield from _context(c)
  yield from _rows(c)


def _axes(c):
  sizes = {f'mesh.{axis}': c.mesh[axis] for axis in SECTIONS['mesh']}
  for key, n in sizes.items():
    if n < 1 and n != -1:
      yield f'{key}={n}: must be at least 1, or -1 for all devices that are left.'
  left = [key for key, n in sizes.items() if n == -1]
  if len(left) > 1:
    yield (f'{"=-1, ".join(left)}=-1: only one axis can take the devices that are left. '
           'Give all others a number.')


def _sizes(c, r):
  m = c.mesh
  spread = max(m.fsdp, 1) * max(m.context, 1)
  for axis, n, keys in (('tensor', m.tensor, 'num_heads num_kv_heads d_ff vocab_size'),
                        ('fsdp' + ' x mesh.context' * (m.context > 1), spread, 'd_model')):
    for key in keys.split():
      if n > 1 and r[key] % n and (key, r.num_kv_heads) != ('num_kv_heads', r.num_heads):
        yield (f'mesh.{axis}={n}: must divide model.{key}={r[key]}. '
               f'Use mesh.{axis}={divisors(n, r[key])}, or model.{key}={up(r[key], n)}.')


def _context(c):
  n = c.mesh.context
  if n <= 1 or not lengths.are_known(c):
    return
  shapes = lengths.shapes(c)
  for what, length in (('rows of the encoder', shapes.inputs), ('rows of targets', shapes.targets)):
    if length % n:
      yield (f'mesh.context={n}: must divide the {length} tokens of {what} (data.seq_len={c.data.seq_len}, '
             f'data.target_len={c.data.target_len}). Use {divisors(n, length)}.')


def _rows(c):
  b, m = c.batch_size, c.microbatches
  named = [f'mesh.{axis}' for axis in ('slice', 'data', 'fsdp') if axis != 'slice' or c.mesh.slice > 1]
  shards = max(c.mesh.slice, 1) * max(c.mesh.data, 1) * max(c.mesh.fsdp, 1)
  if b % m or b // m % shards:
    unit = m * shards
    by = ' x '.join(['microbatches', *(named if shards > 1 else ())])
    yield (f'batch_size={b}: must be divisible by {by} = {unit}. '
           f'Use {either(sorted({max(b // unit, 1) * unit, up(b, unit)}))}.')
