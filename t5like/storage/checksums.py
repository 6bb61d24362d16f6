"""Checksums of arrays: in a checkpoint, and on devices that hold replicas."""
import collections
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, PartitionSpec as P

LARGE = 2 ** 20  # elements
MIX = 0x9E3779B1  # of an element's place: 2^32 over the golden ratio
SHIFT = 15
BITS = {  # by the bytes of an element
    1: jnp.uint8,
    2: jnp.uint16,
    4: jnp.uint32,
}


def of_array(x: jax.Array) -> jax.Array:
  """Sum of an array's bits, each element's times an odd number made of its place; uint32 [], modulo 2^32.

  It does not depend on how the array is sharded. One changed bit always changes it, because an odd factor moves it to
  another multiple of a power of two; two elements that change places nearly always do.
  """
  if x.dtype == jnp.bool_:
    x = x.astype(jnp.uint8)
  is_large = x.ndim > 1 and x.size > LARGE
  if is_large and not jax.typeof(x).sharding.spec[0]:
    return _sum_of_rows(x)
  first = jnp.uint32(0)
  return _sum(x, first)


def _sum_of_rows(x: jax.Array) -> jax.Array:
  """`of_array` row by row: CPUs make a temporary array as large as the summed one."""
  rows = x.shape[0]
  size = x.size // rows
  numbers = jnp.arange(rows, dtype=jnp.uint32)

  def add(total: jax.Array, number_row: Any) -> tuple[jax.Array, None]:
    number, row = number_row
    size_in_32_bits = jnp.uint32(size & 0xFFFFFFFF)
    first = number * size_in_32_bits
    return total + _sum(row, first), None

  zero = jnp.uint32(0)
  total, _ = jax.lax.scan(add, zero, (numbers, x))
  return total


def _sum(x: jax.Array, first: jax.Array) -> jax.Array:
  """Of a piece of an array whose first element has the place `first`."""
  bits = jax.lax.bitcast_convert_type(x, BITS[x.dtype.itemsize])
  place = jnp.zeros_like(bits, jnp.uint32)
  for axis, size in enumerate(x.shape):
    shape = [1] * x.ndim
    shape[axis] = size
    along = jnp.arange(size, dtype=jnp.uint32).reshape(shape)
    place = place * jnp.uint32(size) + along
  mixed = (first + place) * jnp.uint32(MIX)
  factors = (mixed ^ (mixed >> SHIFT)) | 1
  products = bits.astype(jnp.uint32) * factors
  return jnp.sum(products, dtype=jnp.uint32)


_of_array = jax.jit(of_array)


def of_tree(tree: Any) -> dict[str, int]:
  """{'params/embed/w': number} of all arrays of a tree on the devices; waits for them.

  One after the other, so that the temporary arrays of all do not add up.
  """
  sums = {}
  for path, x in jax.tree.leaves_with_path(tree):
    number = jax.device_get(_of_array(x))
    name = path_name(path)
    sums[name] = int(number)
  return sums


def path_name(path: Any) -> str:
  """'params/embed/w' of a path of JAX's."""
  return jax.tree_util.keystr(path, simple=True, separator='/')


def differing_replicas(tree: Any, mesh: Mesh) -> list[tuple[str, Any]]:
  """Devices that differ from the majority of their replicas; waits for all hosts.

  Arrays without replicas cannot be compared.

  Returns:
    [(array's path, device)]; where there is no majority, all devices with that piece.
  """
  with_replicas = {}
  for path, x in jax.tree.leaves_with_path(tree):
    if _has_replicas(x, mesh):
      name = path_name(path)
      with_replicas[name] = x
  if not with_replicas:
    return []
  arrays = tuple(with_replicas.values())
  sums = _sums_of_devices(arrays, mesh)
  differing = []
  for number, (name, x) in enumerate(with_replicas.items()):
    for devices in _replicas(x):
      sums_of_piece = {device: int(sums[device][number]) for device in devices}
      for device in _outliers(sums_of_piece):
        differing.append((name, device))
  return differing


def _replicas(x: jax.Array) -> list[list[Any]]:
  """For each piece of an array the devices that hold it."""
  devices_of = collections.defaultdict(list)
  pieces = x.sharding.devices_indices_map(x.shape)
  for device, index in pieces.items():
    piece = str(index)
    devices_of[piece].append(device)
  return list(devices_of.values())


def _outliers(sums: dict[Any, int]) -> list[Any]:
  """Devices whose sum is not that of more than half of them."""
  counts = collections.Counter(sums.values())
  most_common, count = counts.most_common(1)[0]
  has_majority = 2 * count > len(sums)
  if not has_majority:
    return list(sums)
  return [device for device, value in sums.items() if value != most_common]


def _sums_of_devices(arrays: tuple[Any, ...], mesh: Mesh) -> dict[Any, np.ndarray]:
  """{device: uint32 [arrays], sums of its own pieces}, of the devices of all hosts."""
  specs = tuple(x.sharding.spec for x in arrays)
  sum_pieces = _sums_of_pieces(mesh, specs)
  sums = sum_pieces(*arrays)
  if not sums.is_fully_addressable:
    sums = multihost_utils.process_allgather(sums, tiled=True)
  return dict(zip(mesh.devices.flat, np.asarray(sums)))


@functools.cache
def _sums_of_pieces(mesh: Mesh, specs: tuple[P, ...]) -> Callable[..., jax.Array]:
  """Function of arrays in these layouts: uint32 [devices, arrays], each device's sums of its own pieces."""

  def local(*arrays: jax.Array) -> jax.Array:
    sums = [of_array(x) for x in arrays]
    stacked = jnp.stack(sums)
    return stacked[None]

  mapped = jax.shard_map(
      local,
      mesh=mesh,
      in_specs=specs,
      out_specs=P(mesh.axis_names),
      check_vma=False,
  )
  return jax.jit(mapped)


def _has_replicas(x: jax.Array, mesh: Mesh) -> bool:
  """Whether two devices hold the same piece of it."""
  pieces = 1
  shape_of_piece = x.sharding.shard_shape(x.shape)
  for size, piece in zip(x.shape, shape_of_piece):
    pieces *= size // piece
  return pieces != mesh.size
