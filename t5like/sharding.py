"""Where every array lives: the alphabet of dimensions, the mesh, and the rules that join them.

A letter names a dimension everywhere: in variable suffixes (`q_BTNH`), in einsum strings and in the
rules below.

  B batch          T query / decoder positions   S key / encoder positions   D model
  N query heads    K key-value heads             H head size                 F feed-forward
  V vocabulary     L layers               R rank of LoRA

Meshes have explicit axes: an array's sharding is part of its type, so `jax.eval_shape` knows it and
a layout that cannot work is an error while tracing, on any machine.
"""
import contextlib
import functools
import math
import os
import re

import jax
import jax.numpy as jnp
from jax._src import distributed
from jax.experimental import mesh_utils
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P

from t5like.errors import ConfigError, Failure, PeerLost

# slice: TPU slices, joined by a network slower than a slice's own (data parallel between them)
# data, fsdp: rows of the batch; fsdp: parameters and optimizer state too    context: positions of a row
# tensor: heads, features and vocabulary
AXES = ('slice', 'data', 'fsdp', 'context', 'tensor')
HEARTBEAT = 30.0  # seconds without a sign of life after which a process counts as gone; in training watchdog.peers
ROWS = ('slice', 'data', 'fsdp')
STORED = ('fsdp', 'context')

# The mesh axis of each dimension; a letter that is not listed is on every device in full.
WEIGHTS = {'N': 'tensor', 'K': 'tensor', 'F': 'tensor', 'V': 'tensor'}
AT_REST = {**WEIGHTS, 'D': STORED}
IN_USE = {**WEIGHTS, 'B': ROWS, 'T': 'context', 'S': 'context'}


def at_rest(dims):
  """PartitionSpec of stored parameters and optimizer state: spread over fsdp and context too."""
  return P(*map(AT_REST.get, dims))


def in_use(dims):
  """PartitionSpec of activations."""
  return P(*map(IN_USE.get, dims))


def weights(dims):
  """PartitionSpec of parameters while a layer works with them."""
  return P(*map(WEIGHTS.get, dims))


def gather(w, dims, dtype):
  """A stored parameter as its layer needs it: cast first, so that fewer bytes travel."""
  return jax.sharding.reshard(w.astype(dtype), weights(dims))


def gather_factor(w, dims, dtype):
  """`gather` for a factor of a product over positions: its gradient stays in partial sums until it is stored.

  P's `reduced` says so. The sums are first spread over the axes that store the parameter and then added over the
  others; without it every device would get the whole gradient, to keep a piece of it.
  """
  summed = {*ROWS, 'context'}
  w = jax.sharding.reshard(w.astype(dtype), P(*map(AT_REST.get, dims), reduced=summed - {*STORED}))
  return jax.sharding.reshard(w, P(*map(WEIGHTS.get, dims), reduced=summed))


def everywhere(x, dims):
  """An activation whose letters that are '_' in `dims` are on every device in full: keys and values, say."""
  return jax.sharding.reshard(x, in_use(dims))


def einsum(equation, x, w, **kwargs):
  """`jnp.einsum` whose result is laid out as the letters after `->` say."""
  # jnp.einsum sums over letters in alphabetical order, for which a CPU turns weights [N, H, D] round every time.
  found = dict.fromkeys(c for c in equation if c.isalpha())
  renamed = equation.translate({ord(c): chr(ord('a') + i) for i, c in enumerate(found)})
  return jnp.einsum(renamed, x, w, out_sharding=in_use(equation.split('->')[1]), **kwargs)


def spread_rows(batch):
  """A batch whose rows (and positions) are spread as in use, wherever they came from."""
  pieces = jax.sharding.get_abstract_mesh().shape['context']
  return jax.tree.map(lambda x: jax.sharding.reshard(x, row_spec(x, pieces)), batch)


def row_spec(x, pieces):
  """PartitionSpec of an array [B, ..] or [B, T] of a batch; `pieces`: the size of the axis context.

  What context cannot cut evenly, as the predictions of a masked LM, of which there may be any number, is on all of its
  devices in full.
  """
  is_cut = x.ndim > 1 and x.shape[1] % pieces == 0
  return P(ROWS, 'context') if is_cut else P(ROWS)


def make_mesh(mesh, devices=None):
  """Mesh of the sizes in `config.mesh`, an axis that it lacks being 1. ConfigError when they do not fit the devices."""
  devices = jax.devices() if devices is None else devices
  sizes = [mesh[axis] if axis in mesh else 1 for axis in AXES]
  given = math.prod(s for s in sizes if s != -1)
  asked = ' '.join(f'mesh.{axis}={size}' for axis, size in zip(AXES, sizes))
  if -1 in sizes:
    if len(devices) % given:
      raise ConfigError(f'{asked}: {len(devices)} devices are present, which {given} does not '
                        f'divide. Give sizes whose product divides {len(devices)}.')
    sizes[sizes.index(-1)] = len(devices) // given
  elif given != len(devices):
    raise ConfigError(f'{asked} makes {given} devices, but {len(devices)} are present '
                      f'({jax.process_count()} processes). Set one of them to -1 to use them all.')
  slices = len({d.slice_index if hasattr(d, 'slice_index') else 0 for d in devices})
  if slices > 1 and sizes[0] not in (1, slices):
    raise ConfigError(f'{asked}: the devices are in {slices} slices. Set mesh.slice={slices}.')
  # An axis may have a part of a side of the slice, which jax.make_mesh allows on some TPUs only.
  split = dict(allow_split_physical_axes=True)
  if slices > 1 and sizes[0] == slices:
    array = mesh_utils.create_hybrid_device_mesh((1, *sizes[1:]), (slices, *[1] * len(sizes[1:])), devices, **split)
  else:
    array = mesh_utils.create_device_mesh(sizes, devices, **split)
  return jax.sharding.Mesh(array, AXES, axis_types=(AxisType.Explicit,) * len(AXES))


def without_context(mesh):
  """A mesh of the same devices for rows that cannot be cut: those of context go to fsdp, so parameters stay where
  they are (AT_REST spreads them over both)."""
  if mesh.shape['context'] == 1:
    return mesh
  sizes = [mesh.shape[axis] for axis in AXES]
  sizes[2:4] = [sizes[2] * sizes[3], 1]
  return jax.sharding.Mesh(mesh.devices.reshape(sizes), AXES, axis_types=(AxisType.Explicit,) * len(AXES))


def batch_shards(mesh):
  """Number of pieces that the batch dimension is cut into."""
  return math.prod(mesh.shape[axis] for axis in ROWS)


MOST_REPLICATED = 0.02  # share of parameter bytes that may be, without a word


def replicated(params, mesh):
  """[(path, bytes)] of abstract parameters that lie on every device of fsdp and context in full; [] without these."""
  spread = {axis for axis in ('fsdp', 'context') if mesh.shape[axis] > 1}
  named = jax.tree_util.tree_leaves_with_path(params)
  axes_of = lambda x: {a for part in x.sharding.spec for a in (part if isinstance(part, tuple) else (part,))}
  return [(jax.tree_util.keystr(path, simple=True, separator='/'), x.size * x.dtype.itemsize)
          for path, x in named if spread and not spread & axes_of(x)]


@functools.lru_cache(maxsize=8)
def _shards_of_host(mesh):
  """Which of the `batch_shards` pieces of the rows lie on devices of this process, in order."""
  pieces = NamedSharding(mesh, P(ROWS)).addressable_devices_indices_map((batch_shards(mesh),))
  return sorted({index[0].indices(batch_shards(mesh))[0] for index in pieces.values()})


def rows_of_host(mesh, batch_size):
  """Which rows of a batch this process has to read, in order: those that its devices hold, or hold pieces of.

  Hosts read the same rows where context or tensor spread a row over devices of several hosts.
  """
  size = batch_size // batch_shards(mesh)
  return [row for shard in _shards_of_host(mesh) for row in range(shard * size, (shard + 1) * size)]


def to_global(mesh, batch):
  """The rows of `rows_of_host` (numpy, in full) to global arrays [B, ...] on the mesh."""
  pieces, shards = mesh.shape['context'], _shards_of_host(mesh)

  def spread(x):
    size = len(x) // len(shards)

    def piece(index):
      start, stop, _ = index[0].indices(size * batch_shards(mesh))
      first = shards.index(start // size) * size
      return x[(slice(first, first + stop - start), *index[1:])]
    shape = (size * batch_shards(mesh), *x.shape[1:])
    return jax.make_array_from_callback(shape, NamedSharding(mesh, row_spec(x, pieces)), piece)
  return jax.tree.map(spread, batch)


def place(mesh, batch):
  """A batch (numpy, [B, ...]) that all processes have in full, as global arrays on the mesh."""
  pieces = mesh.shape['context']
  return jax.tree.map(lambda x: jax.device_put(x, NamedSharding(mesh, row_spec(x, pieces))), batch)


def start_processes(coordinator='', num_processes=0, process_id=0, heartbeat=HEARTBEAT):
  """Joins the processes of this run; call before anything touches a device.

  TPU pods and SLURM describe themselves; elsewhere give coordinator='host:port', num_processes and process_id. A
  single process stays out of JAX's coordination service: by the wall clock it aborts whoever gave no sign of life
  for `heartbeat` seconds, which a suspended process did not, nor one whose clock was set.
  """
  if jax.distributed.is_initialized() or num_processes == 1:
    return
  # Peers of a process that is gone are ended after so long, by JAX and not by Python; its default is 100 s.
  initialize = functools.partial(jax.distributed.initialize, heartbeat_timeout_seconds=math.ceil(heartbeat))
  if coordinator:
    initialize(coordinator, num_processes, process_id, cluster_detection_method='deactivate')
    return
  try:
    initialize()  # a cluster that describes itself
  except ValueError:  # there is none
    return
  except RuntimeError as e:
    if 'before any JAX' in str(e):  # a notebook that has used JAX already
      return
    raise
  if distributed.global_state.num_processes == 1:  # jax.process_count() would start the devices meanwhile
    jax.distributed.shutdown()


def blame_peers(error):
  """PeerLost if an error, or what is behind it, is how a process finds that another of its run is gone."""
  seen = 'gloo|connection (reset|closed|refused)|unavailable|deadline.exceeded|heartbeat|barrier'
  while error and jax.process_count() > 1:
    if re.search(seen, str(error), re.I):
      raise PeerLost(f'another process of this run is gone or cannot be reached ({" ".join(str(error).split())[:200]}).'
                     ' Start all of them again: the same command goes on from the newest checkpoint.') from error
    error = error.__cause__ or error.__context__


@contextlib.contextmanager
def peers_blamed():
  """Errors of the runtime inside become PeerLost where that is what they are."""
  try:
    yield
  except Failure:
    raise
  except Exception as error:
    blame_peers(error)
    raise


def virtual_devices(n):
  """Lets this process see n CPU devices; call before JAX is imported by anyone (tests, notebooks)."""
  flags = os.environ.get('XLA_FLAGS', '')
  os.environ['XLA_FLAGS'] = f'{flags} --xla_force_host_platform_device_count={n}'.strip()


def abstract(fn, mesh):
  """What `fn()` would return, as shapes, dtypes and shardings; nothing is computed."""
  def with_mesh(x):
    spec = x.sharding.spec if x.sharding is not None else P()  # scalars carry none
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(mesh, spec))
  return jax.tree.map(with_mesh, jax.eval_shape(fn))
