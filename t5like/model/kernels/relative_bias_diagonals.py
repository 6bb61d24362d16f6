"""Vectors of values by distance as the diagonals of blocks, in VMEM; part of relative_bias_blocks.py.

A vector becomes 128 rows, each one lane further to the right than the last, once for a head. All blocks on all
diagonals are in them: rows 128 .. 255 of a block are the same 128 rows read 128 lanes to the left, which costs nothing.
Sums along diagonals, which the gradient needs, are the same steps backwards.
"""
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

SUBLANES = 8
LANES = 128

Ref = Any  # an array in memory that a kernel reads and writes


def skew(row_1W: jax.Array) -> jax.Array:
  """[128, W]: row r is row_1W rotated right by r lanes, W a multiple of 128.

  8 rows, the sublanes of a register, by rotating by 1, 2 and 4 lanes those whose number has that bit; the others by
  rotating all 8 by 8, 16, .. 120 lanes. Every TPU can do that (v4 has no rotation that differs by sublane).
  """
  W = row_1W.shape[1]
  x_8W = jnp.broadcast_to(row_1W, (SUBLANES, W))
  number_8W = jax.lax.broadcasted_iota(jnp.int32, x_8W.shape, 0)
  for step in (1, 2, 4):
    has_bit = number_8W & step != 0
    x_8W = jnp.where(has_bit, pltpu.roll(x_8W, step, 1), x_8W)
  rows = [x_8W]
  for first in range(SUBLANES, LANES, SUBLANES):
    rows.append(pltpu.roll(x_8W, first, 1))
  return jnp.concatenate(rows, 0)


def unskewed_sum(x_128W: jax.Array) -> jax.Array:
  """[1, W]: the sum of 128 rows, row r rotated left by r lanes; the transpose of `skew`."""
  W = x_128W.shape[1]
  first_rows = x_128W[:SUBLANES]
  others = 0
  for first in range(SUBLANES, LANES, SUBLANES):
    rows = x_128W[first:first + SUBLANES]
    others += pltpu.roll(rows, W - first, 1)
  x_8W = first_rows + others
  number_8W = jax.lax.broadcasted_iota(jnp.int32, x_8W.shape, 0)
  for step in (1, 2, 4):
    has_bit = number_8W & step != 0
    x_8W = jnp.where(has_bit, pltpu.roll(x_8W, W - step, 1), x_8W)
  return jnp.sum(x_8W, 0, keepdims=True)


def skew_all(vector: Ref, skewed: Ref) -> None:
  """Fills `skewed` [128, R] with the rows of `vector` [1, R], lane x of row r being its element x - r, x >= 128."""
  @pl.loop(1, skewed.shape[1] // LANES)
  def _(p):
    before = pl.multiple_of((p - 1) * LANES, LANES)
    rows = skew(vector[:, pl.ds(before, 2 * LANES)])[:, LANES:]
    here = pl.multiple_of(p * LANES, LANES)
    skewed[:, pl.ds(here, LANES)] = rows


def sum_all(diagonals: Ref, vector: Ref) -> None:
  """Transpose of `skew_all`: the sums of elements x + r of rows r of `diagonals` [128, R + 128], to `vector` [1, R]."""
  @pl.loop(0, vector.shape[1] // LANES)
  def _(p):
    here = pl.multiple_of(p * LANES, LANES)
    sums = unskewed_sum(diagonals[:, pl.ds(here, 2 * LANES)])
    vector[:, pl.ds(here, LANES)] = sums[:, :LANES]


def window(
    first: Any,
    rows: int,
    columns: int,
    c: int,
) -> Any:
  """Lanes of skewed rows where rows c .. c + 127 of a block are, of whose vector `first` is the first element.

  Element (r, x) of the block is element first + rows + x - r of the vector.
  """
  start = pl.multiple_of(first + (rows - c), LANES)
  return pl.ds(start, columns)


def clear(diagonals: Ref) -> None:
  @pl.loop(0, diagonals.shape[1] // LANES)
  def _(p):
    zeros = jnp.zeros((LANES, LANES), jnp.float32)
    here = pl.multiple_of(p * LANES, LANES)
    diagonals[:, pl.ds(here, LANES)] = zeros


def add(ds: jax.Array, diagonals: Ref, first: jax.Array) -> None:
  """Adds gradients of logits, fp32 [keys, queries] of a pair of blocks, to where their distances are."""
  keys, queries = ds.shape
  for x in range(-keys + LANES, queries, LANES):
    # Squares of 128 x 128 that go to the same lanes are summed before: memory is written a few times less.
    squares = []
    for c in range(0, keys, LANES):
      column = x + c
      if 0 <= column < queries:
        squares.append(ds[c:c + LANES, column:column + LANES])
    diagonals[:, window(first + x, keys, LANES, 0)] += sum(squares)
