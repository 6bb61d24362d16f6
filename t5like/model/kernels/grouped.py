"""Products of rows that lie in groups, one group after the other, with the matrix of their group: what experts compute.

    product(x_RD, w_XDF, sizes_X)[r] = x_RD[r] @ w_XDF[group of r]      rows behind the last group: zeros

R rows, X groups; see `t5like/sharding.py` for other letters. It runs on what one device holds, inside `shard_map`. TPUs
have megablox (Gale et al. 2022, arXiv 2211.15841) from JAX, which visits rows of groups only; GPUs have the ragged
product of XLA. On CPUs XLA would multiply all rows with the matrices of all groups: there, blocks of rows are
multiplied one after the other.
"""
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.megablox import ops as megablox

TILE = 128  # rows of a tile of megablox are a multiple of this
MOST_ROWS = 512  # of a tile
MOST_COLUMNS = 1024
BLOCK = 64  # rows of a block on CPUs
LEAST_BLOCK = 8

Product = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]


def product(platform: str, x_RD: jax.Array, w_XDF: jax.Array, sizes_X: jax.Array) -> jax.Array:
  """[R, F], dtype of x.

  Args:
    platform: a key of PRODUCTS.
    x_RD: rows in groups.
    w_XDF: a matrix for each group, dtype of x.
    sizes_X: int32, how many rows each group has; they add up to R or less.
  """
  rows_R1 = jnp.arange(len(x_RD))[:, None]
  is_used_R1 = rows_R1 < jnp.sum(sizes_X)
  # What a kernel leaves in rows that it does not visit may be anything: neither it nor its gradient may get out.
  x_RD = jnp.where(is_used_R1, x_RD, 0)
  multiply = PRODUCTS[platform]
  y_RF = multiply(x_RD, w_XDF, sizes_X)
  return jnp.where(is_used_R1, y_RF, 0)


# --- TPUs -----------------------------------------------------------------------------------------


def _on_tpu(x_RD: jax.Array, w_XDF: jax.Array, sizes_X: jax.Array, interpret: bool = False) -> jax.Array:
  _, D, F = w_XDF.shape
  R = len(x_RD)
  x_RD = _padded(x_RD, -R % TILE)
  tiles = (
      _tile(len(x_RD)),
      min(D, MOST_COLUMNS),
      min(F, MOST_COLUMNS),
  )
  y_RF = megablox.gmm(
      x_RD,
      w_XDF,
      sizes_X,
      x_RD.dtype,
      tiles,
      interpret=interpret,
  )
  return y_RF[:R]


def _padded(x_RD: jax.Array, rows: int) -> jax.Array:
  """With so many rows of zeros behind."""
  if not rows:
    return x_RD
  return jnp.pad(x_RD, ((0, rows), (0, 0)))


def _tile(rows: int) -> int:
  """The most rows of a tile that divide all rows, a multiple of TILE."""
  size = MOST_ROWS
  while rows % size:
    size -= TILE
  return size


# --- CPUs -----------------------------------------------------------------------------------------


class _Block(NamedTuple):
  """Rows of one group: number of the first, which of the block's are meant, [size, 1], and the group."""
  first: jax.Array
  is_meant: jax.Array
  group: jax.Array


class _Blocks(NamedTuple):
  """Groups cut into blocks, of which the last of a group may reach into the next one.

  size: rows of a block.
  count: of blocks, traced.
  last_X: number of the first block behind each group.
  starts_X: first row of each group.
  ends_X: first row behind each group.
  """
  size: int
  count: jax.Array
  last_X: jax.Array
  starts_X: jax.Array
  ends_X: jax.Array

  def at(self, number: jax.Array) -> _Block:
    is_behind_X = self.last_X <= number
    group = jnp.sum(is_behind_X, dtype=jnp.int32)
    first_of_group = jnp.where(group > 0, self.last_X[group - 1], 0)
    number_in_group = number - first_of_group
    first = self.starts_X[group] + number_in_group * self.size
    rows = first + jnp.arange(self.size)
    is_meant = rows < self.ends_X[group]
    return _Block(first, is_meant[:, None], group)


def _blocks(rows: int, sizes_X: jax.Array) -> _Blocks:
  size = BLOCK
  while size > LEAST_BLOCK and size * len(sizes_X) > rows:
    size //= 2
  ends_X = jnp.cumsum(sizes_X)
  starts_X = ends_X - sizes_X
  blocks_X = -(-sizes_X // size)
  last_X = jnp.cumsum(blocks_X)
  return _Blocks(
      size,
      last_X[-1],
      last_X,
      starts_X,
      ends_X,
  )


def _rows_at(x_RD: jax.Array, block: _Block) -> jax.Array:
  size = len(block.is_meant)
  rows = jax.lax.dynamic_slice_in_dim(x_RD, block.first, size)
  return jnp.where(block.is_meant, rows, 0)


@jax.custom_vjp
def _on_cpu(x_RD: jax.Array, w_XDF: jax.Array, sizes_X: jax.Array) -> jax.Array:
  *_, F = w_XDF.shape
  return _rows_times('rd,df->rf', x_RD, w_XDF, sizes_X, F)


def _rows_times(
    equation: str,
    x_RD: jax.Array,
    w_XDF: jax.Array,
    sizes_X: jax.Array,
    columns: int,
) -> jax.Array:
  """Rows times the matrices of their groups, or with 'rf,df->rd' times these turned over."""
  R = len(x_RD)
  blocks = _blocks(R, sizes_X)
  x_RD = _padded(x_RD, blocks.size)  # the last block may reach beyond
  y_RF = jnp.zeros((len(x_RD), columns), x_RD.dtype)

  def add(number: jax.Array, y_RF: jax.Array) -> jax.Array:
    # Rows that a block has of the next group are zeros until the next block writes them.
    block = blocks.at(number)
    x_rd = _rows_at(x_RD, block)
    w_DF = w_XDF[block.group]
    y_rf = jnp.einsum(equation, x_rd, w_DF)
    return jax.lax.dynamic_update_slice_in_dim(
        y_RF,
        y_rf,
        block.first,
        axis=0,
    )

  y_RF = jax.lax.fori_loop(0, blocks.count, add, y_RF)
  return y_RF[:R]


def _forward(x_RD: jax.Array, w_XDF: jax.Array, sizes_X: jax.Array) -> tuple[jax.Array, Any]:
  return _on_cpu(x_RD, w_XDF, sizes_X), (x_RD, w_XDF, sizes_X)


def _backward(kept: Any, dy_RF: jax.Array) -> tuple[jax.Array, jax.Array, None]:
  x_RD, w_XDF, sizes_X = kept
  _, D, _ = w_XDF.shape
  dx_RD = _rows_times('rf,df->rd', dy_RF, w_XDF, sizes_X, D)
  blocks = _blocks(len(x_RD), sizes_X)
  x_RD = _padded(x_RD, blocks.size)
  dy_RF = _padded(dy_RF, blocks.size)

  def add(number: jax.Array, dw_XDF: jax.Array) -> jax.Array:
    block = blocks.at(number)
    of_block = jnp.einsum(
        'rd,rf->df',
        _rows_at(x_RD, block),
        _rows_at(dy_RF, block),
        preferred_element_type=jnp.float32,
    )
    return dw_XDF.at[block.group].add(of_block)

  dw_XDF = jnp.zeros(w_XDF.shape, jnp.float32)
  dw_XDF = jax.lax.fori_loop(0, blocks.count, add, dw_XDF)
  return dx_RD, dw_XDF.astype(w_XDF.dtype), None


_on_cpu.defvjp(_forward, _backward)

PRODUCTS: dict[str, Product] = dict(
    tpu=_on_tpu,
    gpu=jax.lax.ragged_dot,
    cpu=_on_cpu,
)
