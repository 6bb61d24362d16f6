"""How layers get the matrices that they multiply by, which are stored spread over devices, and how gradients go back.

Forward, a matrix is cast, so that fewer bytes travel, and gathered over all axes that store it at once: a collective
of all devices has all links. Backward, its gradient stays in partial sums (`unreduced` of PartitionSpec) until they are
spread over the axes that store it, one after the other, and are then added over those that do not. Otherwise every
device would get the whole gradient, to keep a piece of it; and sums over a part of the devices the compiler of TPUs
makes while it computes, which it does not do with sums over all of them.
"""
import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from t5like.sharding import ROWS, STORED, STORED_FIRST, WEIGHTS, at_rest, on_one_cpu, weights

ADDED = frozenset(ROWS) | {'context'}  # axes over whose devices gradients of parameters are added up
MODEL = 'D'  # the dimension that is spread
# Bytes of a matrix: larger ones are gathered well alone, and cutting them out again would cost more. The compiler of
# TPUs gathers up to 16 MiB by adding up zeros, which sends them twice; on v5e, with fewer collectives, it also computes
# while it reduces.
SMALL = 2 ** 24
SMALL_ON = {'TPU v5 lite': 2 ** 25, 'TPU v5e': 2 ** 25}


def gather_factor(w: jax.Array, dims: str, dtype: Any) -> jax.Array:
  """A factor of a product over positions, as its layer needs it; w: as stored, or gathered already.

  Args:
    w: the parameter.
    dims: letters of its dimensions.
    dtype: of the product.
  """
  if is_gathered(w):
    return w
  matrix, = gather_together([w], [dims], dtype)
  return matrix


def is_gathered(w: jax.Array) -> bool:
  """Whether an array comes from here."""
  layout = jax.typeof(w).sharding
  return bool(layout.spec.reduced)


def gather_together(ws: Sequence[jax.Array], all_dims: Sequence[str], dtype: Any) -> tuple[jax.Array, ...]:
  """Several factors, those that are SMALL by one collective.

  Args:
    ws: as stored.
    all_dims: letters of the dimensions of each.
    dtype: of the products.
  """
  stored = []
  for w, dims in zip(ws, all_dims):
    layout = at_rest(dims)
    if jax.typeof(w).sharding.spec != layout:  # initial weights from elsewhere: their gradients go back as they lie
      w = jax.sharding.reshard(w, layout)
    stored.append(w)
  return _gathered(tuple(all_dims), jnp.dtype(dtype).name, tuple(stored))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _gathered(all_dims: tuple[str, ...], dtype: str, ws: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
  """Stored arrays in a dtype and gathered."""
  casts = []
  for w in ws:
    cast = w.astype(dtype)
    casts.append(cast)
  joined = _joined(casts)
  gathered = {}
  for number, (cast, dims) in enumerate(zip(casts, all_dims)):
    if number not in joined:
      whole = jax.sharding.reshard(cast, weights(dims))
      gathered[number] = _marked(whole, dims)
  if joined:
    dims_of_joined = [all_dims[number] for number in joined]
    small = [casts[number] for number in joined]
    by_one = _gathered_by_one(dims_of_joined, small)
    gathered.update(zip(joined, by_one))
  return tuple(gathered[number] for number in range(len(ws)))


def _joined(ws: Sequence[jax.Array]) -> list[int]:
  """The numbers of the matrices that are gathered together: small, needed in full, and not on every device already."""
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty:
    return []
  are_cut = any(mesh.shape[axis] > 1 for axis in WEIGHTS.values())
  are_spread = any(mesh.shape[axis] > 1 for axis in STORED)
  if are_cut or not are_spread:
    return []
  most = SMALL
  device = mesh.abstract_device
  if device:
    most = SMALL_ON.get(device.device_kind, SMALL)
  small = []
  for number, w in enumerate(ws):
    if w.size * w.dtype.itemsize <= most:
      small.append(number)
  if len(small) == 1:
    return []
  return small


def _marked(w: jax.Array, dims: str) -> jax.Array:
  """A gathered matrix whose type says that its gradient comes in partial sums; one CPU has whole ones only."""
  if on_one_cpu():
    return w
  return jax.sharding.reshard(w, P(*weights(dims), reduced=ADDED))


def _gathered_by_one(all_dims: Sequence[str], ws: Sequence[jax.Array]) -> tuple[jax.Array, ...]:
  """Stored arrays, gathered side by side."""
  columns = []
  for w, dims in zip(ws, all_dims):
    first = jnp.moveaxis(w, dims.index(MODEL), 0)
    flat = first.reshape(first.shape[0], -1)
    columns.append(flat)
  joined = jnp.concatenate(columns, 1)
  whole = jax.sharding.reshard(joined, P(None, None))
  gathered = []
  start = 0
  for w, dims in zip(ws, all_dims):
    axis = dims.index(MODEL)
    others = w.shape[:axis] + w.shape[axis + 1:]
    size = math.prod(others)
    flat = jax.lax.slice_in_dim(whole, start, start + size, axis=1)
    first = flat.reshape(w.shape[axis], *others)
    matrix = jnp.moveaxis(first, 0, axis)
    gathered.append(_marked(matrix, dims))
    start += size
  return tuple(gathered)


def _forward(
    all_dims: tuple[str, ...],
    dtype: str,
    ws: tuple[jax.Array, ...],
) -> tuple[tuple[jax.Array, ...], tuple[jax.Array, ...]]:
  """(`_gathered`, of what is stored empty arrays of the same dtypes)."""
  empty = tuple(jnp.zeros((0,), w.dtype) for w in ws)
  return _gathered(all_dims, dtype, ws), empty


def _backward(
    all_dims: tuple[str, ...],
    dtype: str,
    empty: tuple[jax.Array, ...],
    gradients: tuple[jax.Array, ...],
) -> tuple[tuple[jax.Array, ...]]:
  """Gradients as they are stored, each reduced alone: where its product is made, so that both can be one operation."""
  stored = []
  for dims, like, gradient in zip(all_dims, empty, gradients):
    layout = at_rest(dims)
    if MODEL in dims and not on_one_cpu():
      first_axes = {**WEIGHTS, MODEL: STORED_FIRST}
      first = P(*map(first_axes.get, dims), unreduced=ADDED.difference(STORED_FIRST))
      gradient = jax.sharding.reshard(gradient, first)
      gradient = jax.sharding.reshard(gradient, P(*layout, unreduced=ADDED.difference(STORED)))
    gradient = jax.sharding.reshard(gradient, layout)
    stored.append(gradient.astype(like.dtype))
  return (tuple(stored),)


_gathered.defvjp(_forward, _backward)
