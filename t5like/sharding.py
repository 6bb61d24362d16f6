"""Where every array lives: the alphabet of dimensions, the mesh, and the rules that join them.

A letter names a dimension everywhere: in variable suffixes (`q_BTNH`), in einsum strings and in the
rules below.

  B batch          T query / decoder positions   S key / encoder positions   D model
  N query heads    K key-value heads             H head size                 F feed-forward
  V vocabulary     L layers               R rank of LoRA           X experts

Meshes have explicit axes: an array's sharding is part of its type, so `jax.eval_shape` knows it and
a layout that cannot work is an error while tracing, on any machine.
"""
import contextlib
import functools
import math
import os
import re
import string
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax._src import distributed
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec as P

from t5like.errors import ConfigError, Failure, PeerLost

# slice: TPU slices, joined by a network slower than a slice's own (data parallel between them)
# data, fsdp_outer, fsdp: rows of the batch; fsdp and fsdp_outer: parameters and optimizer state too
# expert: rows of the batch, and experts; parameters that are not experts' are stored over it as over fsdp
# context: positions of a row    tensor: heads, features and vocabulary
AXES = ('slice', 'data', 'fsdp_outer', 'fsdp', 'expert', 'context', 'tensor')
HEARTBEAT = 30.0  # seconds without a sign of life after which a process counts as gone; in training watchdog.peers
ROWS = ('slice', 'data', 'fsdp_outer', 'fsdp', 'expert')
STORED_FIRST = ('fsdp', 'expert', 'context')  # over which gradients of parameters are added up first
STORED = (*STORED_FIRST, 'fsdp_outer')
EXPERTS = 'X'  # the letter of experts
STORED_OF_EXPERTS = tuple(axis for axis in STORED if axis != 'expert')

# The mesh axis of each dimension; a letter that is not listed is on every device in full.
WEIGHTS = {
    'N': 'tensor',
    'K': 'tensor',
    'F': 'tensor',
    'V': 'tensor',
}
AT_REST = {
    **WEIGHTS,
    'D': STORED,
}
IN_USE = {
    **WEIGHTS,
    'B': ROWS,
    'T': 'context',
    'S': 'context',
}


def platform() -> str:
  """'tpu', 'gpu' or 'cpu': of the mesh in force, which may be one of devices that are not here."""
  device = jax.sharding.get_abstract_mesh().abstract_device
  if device:
    return device.platform
  return jax.default_backend()


def on_one_cpu() -> bool:
  """Whether the mesh in force is one CPU, whose compiler needs help that those for accelerators do not.

  What such a machine alone needs asks this: `flat_product`, kernels/cpu_blocks.py and unrolled stacks.
  """
  mesh = jax.sharding.get_abstract_mesh()
  return mesh.size == 1 and platform() == 'cpu'


def options_of_one_run() -> dict[str, Any] | None:
  """Options of the compiler (compiler_options of `jax.jit`) for a program that runs once, of the mesh in force.

  On CPUs such a program takes longer to compile than to run: at the first level of optimisation, which computes the
  same bits, a third as long. A level that XLA_FLAGS sets stays.
  """
  level = 'xla_backend_optimization_level'
  if platform() != 'cpu' or level in os.environ.get('XLA_FLAGS', ''):
    return None
  return {level: '1'}


def at_rest(dims: str) -> P:
  """PartitionSpec of stored parameters and optimizer state: spread over fsdp and context too."""
  axes = AT_REST
  if EXPERTS in dims:
    axes = {**WEIGHTS, EXPERTS: 'expert', 'D': STORED_OF_EXPERTS}
  return P(*map(axes.get, dims))


def in_use(dims: str) -> P:
  """PartitionSpec of activations."""
  return P(*map(IN_USE.get, dims))


def weights(dims: str) -> P:
  """PartitionSpec of parameters while a layer works with them."""
  return P(*map(WEIGHTS.get, dims))


def gather(w: jax.Array, dims: str, dtype: Any) -> jax.Array:
  """A stored parameter as its layer needs it: cast first, so that fewer bytes travel."""
  cast = w.astype(dtype)
  return jax.sharding.reshard(cast, weights(dims))


def everywhere(x: jax.Array, dims: str) -> jax.Array:
  """An activation whose letters that are '_' in `dims` are on every device in full: keys and values, say."""
  return jax.sharding.reshard(x, in_use(dims))


def einsum(
    equation: str,
    x: jax.Array,
    w: jax.Array,
    **kwargs: Any,
) -> jax.Array:
  """`jnp.einsum` whose result is laid out as the letters after `->` say."""
  if on_one_cpu() and x.dtype == jnp.float32:
    return flat_product(equation, x, w, **kwargs)
  # jnp.einsum sums over letters in alphabetical order, for which a CPU turns weights [N, H, D] round every time.
  letters = dict.fromkeys(filter(str.isalpha, equation))
  alphabetical = dict(zip(letters, string.ascii_lowercase))
  renamed = equation.translate(str.maketrans(alphabetical))
  _, _, out_dims = equation.partition('->')
  return jnp.einsum(
      renamed,
      x,
      w,
      out_sharding=in_use(out_dims),
      **kwargs,
  )


def flat_product(
    equation: str,
    x: jax.Array,
    w: jax.Array,
    preferred_element_type: Any = None,
    precision: Any = None,
) -> jax.Array:
  """`einsum` of activations and a matrix on one device, as one product of two matrices.

  XLA's CPU compiler calls its fastest product for matrices only, and half as fast a one for arrays of three or four
  dimensions; the compilers for accelerators make matrices of these by themselves.

  Args:
    equation: of letters that the product sums over, which are last in x and either first or last in w.
    x: [.., letters summed over].
    w: the matrix.
    preferred_element_type: in which products are summed up and returned; None: x's dtype.
    precision: see `jax.lax.dot_general`.
  """
  letters, _, out_dims = equation.partition('->')
  x_dims, w_dims = letters.split(',')
  summed = ''.join(letter for letter in x_dims if letter not in out_dims)
  rows = x_dims.removesuffix(summed)
  is_first = w_dims.startswith(summed)
  made = w_dims.removeprefix(summed) if is_first else w_dims.removesuffix(summed)
  if out_dims != rows + made:
    raise NotImplementedError(f'einsum {equation!r} is not of activations [.., summed] and a matrix.')
  everywhere_in_full = P()
  x = jax.sharding.reshard(x, everywhere_in_full)
  w = jax.sharding.reshard(w, everywhere_in_full)
  sizes = dict(zip(x_dims + w_dims, x.shape + w.shape))
  inputs = math.prod(sizes[letter] for letter in summed)
  outputs = math.prod(sizes[letter] for letter in made)
  x_RI = x.reshape(-1, inputs)
  if is_first:
    matrix = w.reshape(inputs, outputs)
    summed_axis = 0
  else:
    matrix = w.reshape(outputs, inputs)
    summed_axis = 1
  product_RO = jax.lax.dot_general(
      x_RI,
      matrix,
      dimension_numbers=(((1,), (summed_axis,)), ((), ())),
      precision=precision,
      preferred_element_type=preferred_element_type,
  )
  out_shape = [sizes[letter] for letter in out_dims]
  return jax.sharding.reshard(product_RO.reshape(out_shape), in_use(out_dims))


def spread_rows(batch: Any) -> Any:
  """A batch (tree of arrays [B, ..]) whose rows (and positions) are spread as in use, wherever they came from."""
  pieces = jax.sharding.get_abstract_mesh().shape['context']

  def spread(x: jax.Array) -> jax.Array:
    spec = row_spec(x, pieces)
    return jax.sharding.reshard(x, spec)

  return jax.tree.map(spread, batch)


def row_spec(x: Any, pieces: int) -> P:
  """PartitionSpec of an array [B, ..] or [B, T] of a batch; `pieces`: the size of the axis context.

  What context cannot cut evenly, as the predictions of a masked LM, of which there may be any number, is on all of its
  devices in full.
  """
  if x.ndim > 1 and x.shape[1] % pieces == 0:
    return P(ROWS, 'context')
  return P(ROWS)


# --- Meshes ---------------------------------------------------------------------------------------


def make_mesh(
    mesh: Mapping[str, int],
    devices: Sequence[Any] | None = None,
) -> Mesh:
  """The mesh of a config.

  Args:
    mesh: {axis: size}, as `config.mesh`; an axis that it lacks is 1, and one may be -1, for all devices that are left.
    devices: None for all of them.

  Raises:
    ConfigError: the sizes do not fit the devices.
  """
  if devices is None:
    devices = jax.devices()
  sizes = _sizes(mesh, len(devices))
  slices = _count_slices(devices)
  if slices > 1 and sizes[0] not in (1, slices):
    raise ConfigError(f'{_flags(mesh)}: the devices are in {slices} slices. Set mesh.slice={slices}.')
  # An axis may have a part of a side of the slice, which jax.make_mesh allows on some TPUs only.
  if slices > 1 and sizes[0] == slices:
    per_slice = [1, *sizes[1:]]
    between = [slices] + [1] * len(sizes[1:])
    array = mesh_utils.create_hybrid_device_mesh(
        per_slice,
        between,
        devices,
        allow_split_physical_axes=True,
    )
  else:
    array = mesh_utils.create_device_mesh(
        sizes,
        devices,
        allow_split_physical_axes=True,
    )
  return _mesh(array)


def _mesh(devices: np.ndarray) -> Mesh:
  """Of an array of devices, [size of each of AXES]."""
  explicit = (AxisType.Explicit,) * len(AXES)
  return Mesh(devices, AXES, axis_types=explicit)


def _flags(mesh: Mapping[str, int]) -> str:
  """'mesh.slice=1 mesh.data=2 ..', for errors."""
  return ' '.join(f'mesh.{axis}={mesh.get(axis, 1)}' for axis in AXES)


def _sizes(mesh: Mapping[str, int], devices: int) -> list[int]:
  """The sizes of AXES on this number of devices, -1 resolved."""
  sizes = [mesh.get(axis, 1) for axis in AXES]
  fixed_sizes = [size for size in sizes if size != -1]
  product = math.prod(fixed_sizes)
  if len(fixed_sizes) == len(AXES):
    if product != devices:
      raise ConfigError(f'{_flags(mesh)} makes {product} devices, but {devices} are present '
                        f'({jax.process_count()} processes). Set one of them to -1 to use them all.')
    return sizes
  if devices % product:
    raise ConfigError(f'{_flags(mesh)}: {devices} devices are present, which {product} does not '
                      f'divide. Give sizes whose product divides {devices}.')
  sizes[sizes.index(-1)] = devices // product
  return sizes


def _count_slices(devices: Sequence[Any]) -> int:
  slices = {getattr(device, 'slice_index', 0) for device in devices}
  return len(slices)


def without_context(mesh: Mesh) -> Mesh:
  """A mesh of the same devices for rows that cannot be cut.

  The devices of context go to fsdp, so parameters stay where they are (AT_REST spreads them over both).
  """
  if mesh.shape['context'] == 1:
    return mesh
  sizes = dict(mesh.shape)
  sizes['fsdp'] *= sizes['context']
  sizes['context'] = 1
  shape = [sizes[axis] for axis in AXES]
  return _mesh(mesh.devices.reshape(shape))


def batch_shards(mesh: Mesh) -> int:
  """Number of pieces that the batch dimension is cut into."""
  size = 1
  for axis in ROWS:
    size *= mesh.shape[axis]
  return size


MOST_REPLICATED = 0.02  # share of parameter bytes that may be, without a word


def replicated(params: Any, mesh: Mesh) -> list[tuple[str, int]]:
  """[(path, bytes)] of abstract parameters that lie on every device of fsdp and context in full.

  [] on meshes where these axes are 1.
  """
  spread = {axis for axis in STORED if mesh.shape[axis] > 1}
  if not spread:
    return []
  result = []
  for path, x in jax.tree_util.tree_leaves_with_path(params):
    axes = _axes_of(x.sharding.spec)
    if axes & spread:
      continue
    name = jax.tree_util.keystr(path, simple=True, separator='/')
    num_bytes = x.size * x.dtype.itemsize
    result.append((name, num_bytes))
  return result


def _axes_of(spec: P) -> set[str]:
  """The axes that an array is spread over."""
  axes = set()
  for part in spec:
    if isinstance(part, tuple):
      axes.update(part)
    elif part is not None:
      axes.add(part)
  return axes


# --- Batches --------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=8)
def _shards_of_host(mesh: Mesh) -> list[int]:
  """Which of the `batch_shards` pieces of the rows lie on devices of this process, in order."""
  shards = batch_shards(mesh)
  by_rows = NamedSharding(mesh, P(ROWS))
  pieces: Mapping[Any, Any] = by_rows.addressable_devices_indices_map((shards,))
  numbers = set()
  for rows, *_ in pieces.values():
    first, _, _ = rows.indices(shards)
    numbers.add(first)
  return sorted(numbers)


def rows_of_host(mesh: Mesh, batch_size: int) -> list[int]:
  """Which rows of a batch this process has to read, in order: those that its devices hold, or hold pieces of.

  Hosts read the same rows where context or tensor spread a row over devices of several hosts.
  """
  size = batch_size // batch_shards(mesh)
  rows = []
  for shard in _shards_of_host(mesh):
    first = shard * size
    rows += range(first, first + size)
  return rows


def to_global(mesh: Mesh, batch: Any) -> Any:
  """The rows of `rows_of_host` (tree of numpy arrays, in full) as global arrays [B, ...] on the mesh."""
  pieces = mesh.shape['context']
  shards = _shards_of_host(mesh)

  def spread(x: np.ndarray) -> jax.Array:
    size = len(x) // len(shards)
    rows = size * batch_shards(mesh)

    def piece(index: Any) -> np.ndarray:  # a tuple of slices
      rows_of_piece, *others = index
      start, stop, _ = rows_of_piece.indices(rows)
      first = shards.index(start // size) * size
      here = slice(first, first + stop - start)
      return x[(here, *others)]

    shape = (rows, *x.shape[1:])
    sharding = NamedSharding(mesh, row_spec(x, pieces))
    return jax.make_array_from_callback(shape, sharding, piece)

  return jax.tree.map(spread, batch)


def place(mesh: Mesh, batch: Any) -> Any:
  """A batch (tree of numpy arrays [B, ...]) that all processes have in full, as global arrays on the mesh."""
  pieces = mesh.shape['context']

  def put(x: np.ndarray) -> jax.Array:
    sharding = NamedSharding(mesh, row_spec(x, pieces))
    return jax.device_put(x, sharding)

  return jax.tree.map(put, batch)


# --- Processes ------------------------------------------------------------------------------------


def start_processes(
    coordinator: str = '',
    num_processes: int = 0,
    process_id: int = 0,
    heartbeat: float = HEARTBEAT,
) -> None:
  """Joins the processes of this run; call before anything touches a device.

  TPU pods and SLURM describe themselves; elsewhere set the first three arguments. A single process stays out of JAX's
  coordination service: by the wall clock this aborts a process that gave no sign of life for `heartbeat` seconds, which
  a suspended process did not, nor one whose clock was set.

  Args:
    coordinator: 'host:port' of process 0.
    num_processes: of the run.
    process_id: of this process.
    heartbeat: seconds without a sign of life after which a process counts as gone.
  """
  if jax.distributed.is_initialized() or num_processes == 1:
    return
  # Peers of a process that is gone are ended after this time, by JAX and not by Python; its default is 100 s.
  seconds = math.ceil(heartbeat)
  initialize = functools.partial(jax.distributed.initialize, heartbeat_timeout_seconds=seconds)
  if coordinator:
    initialize(
        coordinator,
        num_processes,
        process_id,
        cluster_detection_method='deactivate',
    )
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


# What the runtime says when another process is gone.
GONE = re.compile('gloo|connection (reset|closed|refused)|unavailable|deadline.exceeded|heartbeat|barrier', re.I)


def blame_peers(error: BaseException | None) -> None:
  """Raises PeerLost if an error, or its cause, is how a process finds that another of its run is gone."""
  if jax.process_count() == 1:
    return
  while error:
    text = ' '.join(str(error).split())
    if GONE.search(str(error)):
      raise PeerLost(f'another process of this run is gone or cannot be reached ({text[:200]}).'
                     ' Start all of them again: the same command resumes from the newest checkpoint.') from error
    error = error.__cause__ or error.__context__


@contextlib.contextmanager
def peers_blamed() -> Iterator[None]:
  """Errors of the runtime inside become PeerLost where that is what they are."""
  try:
    yield
  except Failure:
    raise
  except Exception as error:
    blame_peers(error)
    raise


def virtual_devices(n: int) -> None:
  """Lets this process see n CPU devices; call before JAX is imported by anyone (tests, notebooks)."""
  flags = os.environ.get('XLA_FLAGS', '')
  os.environ['XLA_FLAGS'] = f'{flags} --xla_force_host_platform_device_count={n}'.strip()


def abstract(fn: Callable[[], Any], mesh: Mesh) -> Any:
  """What `fn()` would return, as shapes, dtypes and shardings; nothing is computed."""

  def with_mesh(x: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    spec = P()
    if x.sharding is not None:  # scalars do not carry one
      spec = x.sharding.spec
    sharding = NamedSharding(mesh, spec)
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

  shapes = jax.eval_shape(fn)
  return jax.tree.map(with_mesh, shapes)
