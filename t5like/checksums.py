"""Numbers that tell whether arrays are what they were: in a checkpoint, and on devices that hold the same."""
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import PartitionSpec as P

LARGE = 2 ** 20  # elements
MIX, SHIFT = 0x9E3779B1, 15  # of an element's place: 2^32 over the golden ratio


def of_array(x):
  """Sum of an array's bits, each element's times an odd number made of its place; uint32 [], modulo 2^32.

  It does not depend on how the array is spread. One changed bit always changes it, for an odd factor moves it to
  another multiple of a power of two; two elements that change places nearly always do.
  """
  x = x.astype(jnp.uint8) if x.dtype == jnp.bool_ else x
  if x.ndim > 1 and x.size > LARGE and not jax.typeof(x).sharding.spec[0]:
    # Piece by piece: CPUs make a temporary array as large as what is summed.
    rest = x.size // x.shape[0]
    add = lambda total, n_row: (total + _sum(n_row[1], n_row[0] * jnp.uint32(rest & 0xFFFFFFFF)), None)
    return jax.lax.scan(add, jnp.uint32(0), (jnp.arange(x.shape[0], dtype=jnp.uint32), x))[0]
  return _sum(x, jnp.uint32(0))


def _sum(x, first):
  """Of a piece of an array whose first element has the place `first`."""
  bits = jax.lax.bitcast_convert_type(x, {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}[x.dtype.itemsize])
  place = jnp.zeros_like(bits, jnp.uint32)
  for axis, size in enumerate(x.shape):
    along = jnp.arange(size, dtype=jnp.uint32)
    along = jnp.expand_dims(along, tuple(a for a in range(x.ndim) if a != axis))
    place = place * jnp.uint32(size) + along
  mixed = (first + place) * jnp.uint32(MIX)
  return jnp.sum(bits.astype(jnp.uint32) * ((mixed ^ (mixed >> SHIFT)) | 1), dtype=jnp.uint32)


_of_array = jax.jit(of_array)


def of_tree(tree):
  """{'params/embed/w': number} of all arrays of a tree on the devices; waits for them.

  One after the other, so that the temporary arrays of all do not add up.
  """
  return {path_name(path): int(jax.device_get(_of_array(x))) for path, x in jax.tree.leaves_with_path(tree)}


def path_name(path):
  return jax.tree_util.keystr(path, simple=True, separator='/')


def differing_replicas(tree, mesh):
  """[(array's path, device)] of devices that do not hold what most of those with the same piece hold.

  Where there is no majority, all of them. Arrays of which every device has a piece of its own cannot be judged so.
  Waits for all hosts.
  """
  named = jax.tree.leaves_with_path(tree)
  shared = [(path, x) for path, x in named if not _is_whole(x, mesh)]
  if not shared:
    return []
  sums = _of_pieces(mesh, tuple(x.sharding.spec for _, x in shared))(*[x for _, x in shared])
  sums = sums if sums.is_fully_addressable else multihost_utils.process_allgather(sums, tiled=True)
  by_device = dict(zip(mesh.devices.flat, np.asarray(sums)))
  wrong = []
  for n, (path, x) in enumerate(shared):
    pieces = {}
    for device, index in x.sharding.devices_indices_map(x.shape).items():
      pieces.setdefault(str(index), []).append(device)
    for devices in pieces.values():
      found = [int(by_device[d][n]) for d in devices]
      usual = next((value for value in found if 2 * found.count(value) > len(found)), None)
      wrong += [(path_name(path), device) for device, value in zip(devices, found) if value != usual]
  return wrong


@functools.cache
def _of_pieces(mesh, specs):
  """Function of arrays that are spread so: [devices, arrays], each device's numbers of its own pieces."""
  local = lambda *arrays: jnp.stack([of_array(x) for x in arrays])[None]
  return jax.jit(jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=P(mesh.axis_names), check_vma=False))


def _is_whole(x, mesh):
  """Whether no two devices have the same piece of it."""
  return np.prod([s // p for s, p in zip(x.shape, x.sharding.shard_shape(x.shape))], dtype=int) == mesh.size
