"""What the kernels of relative_bias_attention.py do with one block of queries and one of keys, in VMEM.

Forward blocks of logits are [queries, keys], backward ones [keys, queries]: what changes at every visit is then
always a row in memory, and never a column. "rows" and "columns" below are those of a block.

A vector of values by distance becomes 128 rows, each one lane further to the right than the last, once for a head.
All blocks on all diagonals are in them: rows 128 .. 255 of a block are the same 128 rows read 128 lanes to the left,
which costs nothing. Sums along diagonals, which the gradient needs, are the same steps backwards.
"""
import dataclasses

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

SUBLANES, LANES = 8, 128
MASKED = -1e30
EMPTY = -0.5e30  # where maxima begin: of queries that see nothing all weights are exp(MASKED - EMPTY) = 0
NOBODY = -1  # segment of keys that no query is in


@dataclasses.dataclass(frozen=True)
class Form:
  """What a kernel is compiled for."""
  causal: bool
  scale: float
  softcap: float  # 0: none
  block_q: int
  block_k: int
  queries: int  # a multiple of block_q
  keys: int  # likewise, of block_k
  interpret: bool


# --- Vectors and diagonals ------------------------------------------------------------------------


def skew(row_1W):
  """[128, W]: row r is row_1W rotated right by r lanes, W a multiple of 128.

  8 rows, the sublanes of a register, by rotating by 1, 2 and 4 lanes those whose number has that bit; the others by
  rotating all 8 by 8, 16, .. 120 lanes. Every TPU can do that (v4 has no rotation that differs by sublane).
  """
  x = jnp.broadcast_to(row_1W, (SUBLANES, row_1W.shape[1]))
  r = jax.lax.broadcasted_iota(jnp.int32, x.shape, 0)
  for step in (1, 2, 4):
    x = jnp.where(r & step != 0, pltpu.roll(x, step, 1), x)
  return jnp.concatenate([x] + [pltpu.roll(x, r, 1) for r in range(SUBLANES, LANES, SUBLANES)], 0)


def unskewed_sum(x_128W):
  """[1, W]: the sum of 128 rows, row r rotated left by r lanes; the transpose of `skew`."""
  W = x_128W.shape[1]
  x = x_128W[:SUBLANES] + sum(pltpu.roll(x_128W[r:r + SUBLANES], W - r, 1) for r in range(SUBLANES, LANES, SUBLANES))
  r = jax.lax.broadcasted_iota(jnp.int32, x.shape, 0)
  for step in (1, 2, 4):
    x = jnp.where(r & step != 0, pltpu.roll(x, W - step, 1), x)
  return jnp.sum(x, 0, keepdims=True)


def skew_all(vector, skewed):
  """Fills `skewed` [128, R] with the rows of `vector` [1, R], lane x of row r being its element x - r, x >= 128."""
  @pl.loop(1, skewed.shape[1] // LANES)
  def _(p):
    rows = skew(vector[:, pl.ds(pl.multiple_of((p - 1) * LANES, LANES), 2 * LANES)])
    skewed[:, pl.ds(pl.multiple_of(p * LANES, LANES), LANES)] = rows[:, LANES:]


def sum_all(diagonals, vector):
  """Likewise back: `vector` [1, R] gets the sums of elements x + r of rows r of `diagonals` [128, R + 128]."""
  @pl.loop(0, vector.shape[1] // LANES)
  def _(p):
    at = pl.multiple_of(p * LANES, LANES)
    vector[:, pl.ds(at, LANES)] = unskewed_sum(diagonals[:, pl.ds(at, 2 * LANES)])[:, :LANES]


def window(first, rows, columns, c):
  """Lanes of skewed rows where rows c .. c + 127 of a block are, of whose vector `first` is the first element.

  Element (r, x) of the block is element first + rows + x - r of the vector.
  """
  return pl.ds(pl.multiple_of(first + (rows - c), LANES), columns)


# --- A pair of blocks -----------------------------------------------------------------------------


def _product(a, b, contracting):
  """a b in fp32, over these axes of both; fp32 operands are multiplied as such."""
  precision = jax.lax.Precision.HIGHEST if a.dtype == jnp.float32 else None
  return jax.lax.dot_general(a, b, (contracting, ((), ())), precision=precision, preferred_element_type=jnp.float32)


def _wide(x, n):
  """[rows, n] of [rows, 128] whose lanes are all the same: a row's number, where a product or a sum needs it."""
  return jnp.concatenate([x] * -(-n // LANES), 1)[:, :n]


def _turn(ids, columns):
  """Ids of tokens, rows in memory because a column takes 128 times the room, as columns [ids, tokens, 128]."""
  for n in range(ids.shape[0]):
    columns[n] = jnp.broadcast_to(ids[n:n + 1], (LANES, ids.shape[1])).T


def _logits(form, a, b, skewed, first, row_ids, column_ids, ahead, queries_are_rows):
  """[rows, columns] fp32 of rows a and columns b, MASKED where nothing is seen.

  first: see `window`. _ids: segments and, if there are any, prefixes. ahead: slots from column 0 to row 0.
  """
  s = _product(a[...], b[...], ((1,), (1,)))
  rows, columns = s.shape
  if form.scale != 1:
    s *= form.scale
  s += jnp.concatenate([skewed[:, window(first, rows, columns, c)] for c in range(0, rows, LANES)], 0)
  if form.softcap:
    s = form.softcap * jnp.tanh(s / form.softcap)
  same = lambda n: _wide(row_ids[n], columns) == column_ids[n:n + 1]
  seen = same(0)
  if form.causal:
    row = _wide(jax.lax.broadcasted_iota(jnp.int32, (rows, LANES), 0) + ahead, columns)
    column = jax.lax.broadcasted_iota(jnp.int32, (1, columns), 1)
    seen &= row >= column if queries_are_rows else row <= column
    seen = seen | same(1) if column_ids.shape[0] > 1 else seen
  return jnp.where(seen, s, MASKED)


def _visible(form, first_query, first_key, ids):
  """Whether a query of a block may see a key of another; lists of visits leave out what they can of the rest."""
  return first_query + form.block_q > first_key if form.causal and ids.shape[0] == 1 else True


def forward(rows, cols, start, q, k, v, bias, query_ids, key_ids, out, lse, top, total, weighted, skewed, ids, *, form):
  """Visit n: what queries of block rows[n] take from keys of block cols[n] is added to what they have.

  Visits of a row follow each other. start: [1], slot of the first query. bias: [1, R], element s - t + T of key s and
  query t. top, total: [block_q, 128], largest logit and sum of weights; weighted: [block_q, H], of values; all fp32.
  """
  n, last = pl.program_id(2), pl.num_programs(2) - 1
  i, j = rows[n], cols[n]
  first_query, first_key = start[0] + i * form.block_q, j * form.block_k

  @pl.when(n == 0)
  def _():
    skew_all(bias, skewed)

  @pl.when((n == 0) | (rows[jnp.maximum(n - 1, 0)] != i))
  def _():
    top[...] = jnp.full_like(top, EMPTY)
    total[...] = jnp.zeros_like(total)
    weighted[...] = jnp.zeros_like(weighted)
    _turn(query_ids, ids)

  @pl.when(_visible(form, first_query, first_key, query_ids))
  def _():
    first = first_key - (i + 1) * form.block_q + form.queries
    s = _logits(form, q, k, skewed, first, ids, key_ids, first_query - first_key, queries_are_rows=True)
    before = top[...]
    most = jnp.maximum(before, jnp.max(s, 1, keepdims=True))
    p, shrunk = jnp.exp(s - _wide(most, s.shape[1])), jnp.exp(before - most)
    top[...] = most
    total[...] = shrunk * total[...] + jnp.sum(p, 1, keepdims=True)
    weighted[...] = _wide(shrunk, v.shape[1]) * weighted[...] + _product(p.astype(v.dtype), v[...], ((1,), (0,)))

  @pl.when((n == last) | (rows[jnp.minimum(n + 1, last)] != i))
  def _():
    share = jnp.where(total[...] > 0, total[...], 1)
    out[...] = (weighted[...] / _wide(share, out.shape[1])).astype(out.dtype)
    lse[...] = (top[...] + jnp.log(share)).T[:1]


def backward(rows, cols, written, start, q, k, v, do, k_HS, bias, query_ids, key_ids, lse, di, dq, dk, dv, dbias,
             dq_sum, dk_sum, dv_sum, skewed, diagonals, ids, *, form):
  """Visit n: gradients from queries of block rows[n] to keys, values and distances of block cols[n], and back.

  Visits of a column follow each other. bias, dbias: [1, R], element t - s + S of query t and key s. dq_sum: [all rows,
  H, block_q]; dk_sum, dv_sum: [block_k, H]; diagonals: [128, R + 128], all fp32. written: the block of queries whose
  gradient is done at this visit, or else at the next at which one is, so that none leaves VMEM before that.
  """
  n, last = pl.program_id(2), pl.num_programs(2) - 1
  i, j = rows[n], cols[n]
  first_query, first_key = start[0] + i * form.block_q, j * form.block_k

  @pl.when(n == 0)
  def _():
    skew_all(bias, skewed)

    @pl.loop(0, diagonals.shape[1] // LANES)
    def _(p):
      diagonals[:, pl.ds(pl.multiple_of(p * LANES, LANES), LANES)] = jnp.zeros((LANES, LANES), jnp.float32)

  @pl.when((n == 0) | (cols[jnp.maximum(n - 1, 0)] != j))
  def _():
    dk_sum[...] = jnp.zeros_like(dk_sum)
    dv_sum[...] = jnp.zeros_like(dv_sum)
    _turn(key_ids, ids)

  @pl.when(j == 0)  # which all queries may see
  def _():
    dq_sum[i] = jnp.zeros_like(dq_sum[i])

  @pl.when(_visible(form, first_query, first_key, query_ids))
  def _():
    first = i * form.block_q - (j + 1) * form.block_k + form.keys
    s = _logits(form, k, q, skewed, first, ids, query_ids, first_key - first_query, queries_are_rows=False)
    p = jnp.exp(s - lse[...])
    dv_sum[...] += _product(p.astype(do.dtype), do[...], ((1,), (0,)))
    ds = p * (_product(v[...], do[...], ((1,), (1,))) - di[...])
    if form.softcap:
      ds *= jnp.where(s > MASKED, 1 - jnp.square(s / form.softcap), 0)
    for x in range(-form.block_k + LANES, form.block_q, LANES):
      # Squares of 128 x 128 that go to the same lanes are summed before: memory is written a few times less.
      squares = [ds[c:c + LANES, x + c:x + c + LANES] for c in range(0, form.block_k, LANES)
                 if 0 <= x + c < form.block_q]
      diagonals[:, window(first + x, form.block_k, LANES, 0)] += sum(squares)
    ds = ds.astype(q.dtype)
    dk_sum[...] += _product(ds, q[...], ((1,), (0,)))
    dq_sum[i] += _product(k_HS[...], ds, ((1,), (0,)))

  @pl.when(written[n] == i)
  def _():
    dq[...] = (form.scale * dq_sum[i]).T.astype(dq.dtype)

  @pl.when((n == last) | (cols[jnp.minimum(n + 1, last)] != j))
  def _():
    dk[...] = (form.scale * dk_sum[...]).astype(dk.dtype)
    dv[...] = dv_sum[...].astype(dv.dtype)

  @pl.when(n == last)
  def _():
    sum_all(diagonals, dbias)
