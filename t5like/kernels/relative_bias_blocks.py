"""What the kernels of relative_bias_attention.py do with one block of queries and one of keys, in VMEM.

Blocks of logits are kept as [keys, queries]: maxima and sums over keys are then sums of registers, and what
there is one number of for each query (maximum, sum, logsumexp) is a row.

A row becomes a diagonal block in three steps, each the cheapest that a TPU has: 8 rows, the sublanes of a register,
by rotating by 1, 2 and 4 lanes those whose number has that bit; 128 rows by rotating all 8 by 8, 16, .. 120 lanes;
all others by reading those 128 some multiple of 128 lanes further on, which costs nothing. Sums along diagonals,
which the gradient needs, are the same steps backwards.
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
  keys: int  # a multiple of block_k
  interpret: bool

  @property
  def window(self):
    """Distances between the queries and the keys of two blocks, the unused one at its beginning included."""
    return self.block_q + self.block_k


# --- Rows and diagonals --------------------------------------------------------------------------


def skew(row_1W):
  """[128, W]: row r is row_1W rotated right by r lanes, W a multiple of 128."""
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


def diagonal_block(window_1W, block_q, block_k):
  """[keys, queries] of the values by distance in a window: element (c, r) is window[block_k + r - c]."""
  x = skew(window_1W)
  return jnp.concatenate([x[:, block_k - c:block_k - c + block_q] for c in range(0, block_k, LANES)], 0)


# --- A pair of blocks -----------------------------------------------------------------------------


def _product(a, b, contracting):
  """a b in fp32, over these axes of both; fp32 operands are multiplied as such."""
  precision = jax.lax.Precision.HIGHEST if a.dtype == jnp.float32 else None
  return jax.lax.dot_general(a, b, (contracting, ((), ())), precision=precision, preferred_element_type=jnp.float32)


def _window(form, i, j):
  """Where the distances between query block i and key block j lie in the vector of all of them."""
  return pl.ds(pl.multiple_of(i * form.block_q - (j + 1) * form.block_k + form.keys, LANES), form.window)


def _logits(form, q, k, window_1W, query_ids, key_ids, first_query, first_key):
  """[keys, queries] fp32, MASKED where nothing is seen. `_ids`: rows of segments and, if there are any, of prefixes."""
  s = _product(k, q, ((1,), (1,)))
  if form.scale != 1:
    s *= form.scale
  s += diagonal_block(window_1W, form.block_q, form.block_k)
  if form.softcap:
    s = form.softcap * jnp.tanh(s / form.softcap)

  def same(n):
    # Ids of keys lie in memory as a row, for a column would take 128 times the room: they are turned here.
    column = jnp.broadcast_to(key_ids[n:n + 1], (LANES, form.block_k)).T
    return jnp.concatenate([column] * (form.block_q // LANES), 1) == query_ids[n:n + 1]
  seen = same(0)
  if form.causal:
    slot = [jax.lax.broadcasted_iota(jnp.int32, s.shape, axis) for axis in (0, 1)]
    seen &= slot[1] - slot[0] >= first_key - first_query
    seen = seen | same(1) if query_ids.shape[0] > 1 else seen
  return jnp.where(seen, s, MASKED)


def _visible(form, first_query, first_key, ids):
  """Whether a query of a block may see a key of another; lists of visits leave out what they can of the rest."""
  return first_query + form.block_q > first_key if form.causal and ids.shape[0] == 1 else True


def forward(rows, cols, start, q, k, v_HS, bias, query_ids, key_ids, out, lse, top, total, weighted, *, form):
  """Visit n: what queries of block rows[n] take from keys of block cols[n] is added to what they have.

  Visits of a row follow each other. start: [1], slot of the first query; top, total: [1, block_q], largest logit
  and sum of weights; weighted: [H, block_q], of values; all fp32.
  """
  n, last = pl.program_id(2), pl.num_programs(2) - 1
  i, j = rows[n], cols[n]
  first_query, first_key = start[0] + i * form.block_q, j * form.block_k

  @pl.when((n == 0) | (rows[jnp.maximum(n - 1, 0)] != i))
  def _():
    top[...] = jnp.full_like(top, EMPTY)
    total[...] = jnp.zeros_like(total)
    weighted[...] = jnp.zeros_like(weighted)

  @pl.when(_visible(form, first_query, first_key, query_ids))
  def _():
    s = _logits(form, q[...], k[...], bias[:, _window(form, i, j)], query_ids[...], key_ids[...], first_query,
                first_key)
    before, most = top[...], jnp.maximum(top[...], jnp.max(s, 0, keepdims=True))
    p, shrunk = jnp.exp(s - most), jnp.exp(before - most)
    top[...] = most
    total[...] = shrunk * total[...] + jnp.sum(p, 0, keepdims=True)
    weighted[...] = shrunk * weighted[...] + _product(v_HS[...], p.astype(v_HS.dtype), ((1,), (0,)))

  @pl.when((n == last) | (rows[jnp.minimum(n + 1, last)] != i))
  def _():
    share = jnp.where(total[...] > 0, total[...], 1)
    out[...] = (weighted[...] / share).T.astype(out.dtype)
    lse[...] = top[...] + jnp.log(share)


def backward(rows, cols, heads, written, start, q, do, k, v, k_HS, bias, query_ids, key_ids, lse, di, dq, dk, dv, dbias,
             dq_sum, dk_sum, dv_sum, diagonals, *, form):
  """Visit n: gradients from queries of block rows[n] of head heads[n], of those that share keys, to block cols[n].

  Visits of a column follow each other. dq_sum: [heads x rows, H, block_q], dk_sum, dv_sum: [block_k, H],
  diagonals: [128, window], all fp32. written: the block of queries whose gradient is done at this visit, or else
  at the next at which one is, so that none leaves VMEM before that.
  """
  n, last = pl.program_id(2), pl.num_programs(2) - 1
  i, j, head = rows[n], cols[n], heads[n]
  block = head * (dq_sum.shape[0] // bias.shape[0]) + i
  first_query, first_key = start[0] + i * form.block_q, j * form.block_k

  @pl.when(n == 0)
  def _():
    dbias[...] = jnp.zeros_like(dbias)

  @pl.when((n == 0) | (cols[jnp.maximum(n - 1, 0)] != j))
  def _():
    dk_sum[...] = jnp.zeros_like(dk_sum)
    dv_sum[...] = jnp.zeros_like(dv_sum)

  @pl.when(j == 0)  # which all queries may see
  def _():
    dq_sum[block] = jnp.zeros_like(dq_sum[block])

  @pl.when(_visible(form, first_query, first_key, query_ids))
  def _():
    window = _window(form, i, j)
    s = _logits(form, q[...], k[...], bias[head, :, window], query_ids[...], key_ids[...], first_query, first_key)
    p = jnp.exp(s - lse[...])
    dv_sum[...] += _product(p.astype(do.dtype), do[...], ((1,), (0,)))
    ds = p * (_product(v[...], do[...], ((1,), (1,))) - di[...])
    if form.softcap:
      ds *= jnp.where(s > MASKED, 1 - jnp.square(s / form.softcap), 0)
    # Diagonals of the block run along rows of `diagonals`, each turned by its number.
    diagonals[...] = jnp.zeros_like(diagonals)
    for c in range(0, form.block_k, LANES):
      diagonals[:, form.block_k - c:form.window - c] += ds[c:c + LANES]
    dbias[head, :, window] += unskewed_sum(diagonals[...])
    ds = ds.astype(q.dtype)
    dk_sum[...] += _product(ds, q[...], ((1,), (0,)))
    dq_sum[block] += _product(k_HS[...], ds, ((1,), (0,)))

  @pl.when(written[n] == block)
  def _():
    dq[...] = (form.scale * dq_sum[block]).T.astype(dq.dtype)

  @pl.when((n == last) | (cols[jnp.minimum(n + 1, last)] != j))
  def _():
    dk[...] = (form.scale * dk_sum[...]).astype(dk.dtype)
    dv[...] = dv_sum[...].astype(dv.dtype)
