"""The kernels of relative_bias_attention.py: what they do with one block of queries and one of keys, in VMEM.

Forward blocks of logits are [queries, keys], backward ones [keys, queries]: what changes at every visit is then
always a row in memory, and never a column. "rows" and "columns" below are those of a block.

A vector of values by distance becomes 128 rows, each one lane further to the right than the last, once for a head.
All blocks on all diagonals are in them: rows 128 .. 255 of a block are the same 128 rows read 128 lanes to the left,
which costs nothing. Sums along diagonals, which the gradient needs, are the same steps backwards.
"""
import dataclasses
import functools
import operator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

SUBLANES = 8
LANES = 128
MASKED = -1e30
EMPTY = -0.5e30  # where maxima begin: of queries that see nothing all weights are exp(MASKED - EMPTY) = 0
NOBODY = -1  # segment of keys that no query is in

Ref = Any  # an array in memory that a kernel reads and writes
Contracting = tuple[tuple[int, ...], tuple[int, ...]]  # axes of both operands of a product that are summed over
ALONG_ROWS = ((1,), (1,))  # a b^T
MATRICES = ((1,), (0,))  # a b


@dataclasses.dataclass(frozen=True)
class Form:
  """What a kernel is compiled for."""
  causal: bool
  scale: float
  softcap: float  # 0: none
  block_q: int
  block_k: int
  queries: int  # a multiple of block_q
  keys: int  # a multiple of block_k
  interpret: bool
  before: int | None = None  # keys before its own slot that a query sees at most; None: all
  after: int | None = None  # keys after it, as far as the mask lets it see those
  share: float = 1.0  # of the pairs of blocks that a call visits, those that it computes; for the cost that it states


# --- Vectors and diagonals ------------------------------------------------------------------------


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


# --- A pair of blocks -----------------------------------------------------------------------------


def _product(a: jax.Array, b: jax.Array, contracting: Contracting) -> jax.Array:
  """a b in fp32, over these axes of both; fp32 operands are multiplied as such."""
  precision = None
  if a.dtype == jnp.float32:
    precision = jax.lax.Precision.HIGHEST
  without_batch = ((), ())
  return jax.lax.dot_general(
      a,
      b,
      (contracting, without_batch),
      precision=precision,
      preferred_element_type=jnp.float32,
  )


def _wide(x: jax.Array, n: int) -> jax.Array:
  """[rows, n] of [rows, 128] whose lanes are all the same: a row's number, where a product or a sum needs it."""
  copies = -(-n // LANES)
  return jnp.concatenate([x] * copies, 1)[:, :n]


def _turn(ids: Ref, columns: Ref) -> None:
  """Ids of tokens, rows in memory because a column takes 128 times the room, as columns [ids, tokens, 128]."""
  for n in range(ids.shape[0]):
    row = ids[n:n + 1]
    columns[n] = jnp.broadcast_to(row, (LANES, ids.shape[1])).T


def _logits(
    form: Form,
    a: Ref,
    b: Ref,
    skewed: Ref,
    first: jax.Array,
    row_ids: Ref,
    column_ids: Ref,
    ahead: jax.Array,
    queries_are_rows: bool,
) -> jax.Array:
  """Logits of a pair of blocks.

  Args:
    form: of the kernel.
    a: queries or keys, [rows, H].
    b: keys or queries, [columns, H].
    skewed: the bias, see `skew_all`.
    first: element of the vector of the bias, see `window`.
    row_ids: segments and, if there are any, prefixes of a, as columns.
    column_ids: the same of b, as rows.
    ahead: slots from column 0 to row 0.
    queries_are_rows: else keys are.

  Returns:
    [rows, columns] fp32, MASKED where nothing is seen.
  """
  s = _product(a[...], b[...], ALONG_ROWS)
  rows, columns = s.shape
  if form.scale != 1:
    s *= form.scale
  s += _bias(skewed, first, rows, columns)
  if form.softcap:
    s = form.softcap * jnp.tanh(s / form.softcap)
  is_seen = _is_same(row_ids, column_ids, 0)
  query, key = _slots(rows, columns, ahead, queries_are_rows)
  if form.causal:
    is_seen &= query >= key
    if column_ids.shape[0] > 1:
      is_seen = is_seen | _is_same(row_ids, column_ids, 1)
  if form.before is not None or form.after is not None:
    is_seen &= _is_near(form, query, key)
  return jnp.where(is_seen, s, MASKED)


def _bias(skewed: Ref, first: jax.Array, rows: int, columns: int) -> jax.Array:
  """[rows, columns] of the bias."""
  parts = []
  for c in range(0, rows, LANES):
    part = skewed[:, window(first, rows, columns, c)]
    parts.append(part)
  return jnp.concatenate(parts, 0)


def _is_same(row_ids: Ref, column_ids: Ref, n: int) -> jax.Array:
  """[rows, columns] bool: whether the nth ids are the same."""
  columns = column_ids.shape[1]
  return _wide(row_ids[n], columns) == column_ids[n:n + 1]


def _slots(
    rows: int,
    columns: int,
    ahead: jax.Array,
    queries_are_rows: bool,
) -> tuple[jax.Array, jax.Array]:
  """(slots of the queries, of the keys) of a pair of blocks, counted from column 0; see `_logits`."""
  row_number = jax.lax.broadcasted_iota(jnp.int32, (rows, LANES), 0)
  row = _wide(row_number + ahead, columns)
  column = jax.lax.broadcasted_iota(jnp.int32, (1, columns), 1)
  if queries_are_rows:
    return row, column
  return column, row


def _is_near(form: Form, query: jax.Array, key: jax.Array) -> jax.Array:
  """[rows, columns] bool: whether the key is in the window of the query."""
  conditions = []
  if form.before is not None:
    conditions.append(query - key <= form.before)
  if form.after is not None:
    conditions.append(key - query <= form.after)
  return functools.reduce(operator.and_, conditions)


def sees(
    form: Form,
    first_query: Any,
    first_key: Any,
    has_prefix: bool,
) -> Any:
  """Whether some query of a block may see some key of another.

  Args:
    form: of the kernel.
    first_query: slot of the block's first query: a number, or an array of those of several blocks.
    first_key: the same of the block of keys.
    has_prefix: whether there are prefixes, whose tokens see each other under a causal mask, too.
  """
  conditions = []
  if form.causal and not has_prefix:
    conditions.append(first_query + form.block_q > first_key)
  if form.before is not None:
    conditions.append(first_key + form.block_k + form.before > first_query)
  if form.after is not None:
    conditions.append(first_query + form.block_q + form.after > first_key)
  if not conditions:
    return True
  return functools.reduce(operator.and_, conditions)


def _begins(blocks: Ref, n: jax.Array, block: jax.Array) -> jax.Array:
  """Whether visit n is the first of those to its block that follow each other."""
  is_first = n == 0
  before = blocks[jnp.maximum(n - 1, 0)]
  return is_first | (before != block)


def _ends(blocks: Ref, n: jax.Array, last: Any, block: jax.Array) -> jax.Array:
  """Whether visit n is the last of those to its block that follow each other; `last`: number of the last visit."""
  is_last = n == last
  after = blocks[jnp.minimum(n + 1, last)]
  return is_last | (after != block)


# --- The forward kernel ---------------------------------------------------------------------------


class ForwardRefs(NamedTuple):
  """What `forward` reads and writes."""
  rows: Ref  # int [visits], block of queries
  cols: Ref  # int [visits], block of keys
  start: Ref  # int [1], slot of the first query
  q: Ref  # [block_q, H]
  k: Ref  # [block_k, H]
  v: Ref  # [block_k, H]
  bias: Ref  # fp32 [1, R], element s - t + T of key s and query t
  query_ids: Ref  # int [1 or 2, block_q]
  key_ids: Ref  # int [1 or 2, block_k]
  out: Ref  # [block_q, H]
  lse: Ref  # fp32 [1, block_q], logarithm of the sum of weights
  top: Ref  # fp32 [block_q, 128], largest logit
  total: Ref  # fp32 [block_q, 128], sum of weights
  weighted: Ref  # fp32 [block_q, H], sum of values times weights
  skewed: Ref  # fp32 [128, R]
  ids: Ref  # int [1 or 2, block_q, 128]


def forward(*refs: Ref, form: Form) -> None:
  """Visit n: what queries of block rows[n] take from keys of block cols[n] is added to what they have.

  Visits of a row follow each other.

  Args:
    refs: those of ForwardRefs.
    form: of the kernel.
  """
  r = ForwardRefs(*refs)
  n = pl.program_id(2)
  last = pl.num_programs(2) - 1
  i = r.rows[n]
  j = r.cols[n]
  first_query = r.start[0] + i * form.block_q
  first_key = j * form.block_k

  @pl.when(n == 0)
  def _():
    skew_all(r.bias, r.skewed)

  @pl.when(_begins(r.rows, n, i))
  def _():
    r.top[...] = jnp.full_like(r.top, EMPTY)
    r.total[...] = jnp.zeros_like(r.total)
    r.weighted[...] = jnp.zeros_like(r.weighted)
    _turn(r.query_ids, r.ids)

  @pl.when(sees(form, first_query, first_key, r.query_ids.shape[0] > 1))
  def _():
    first = first_key - (i + 1) * form.block_q + form.queries
    ahead = first_query - first_key
    _add_values(form, r, first, ahead)

  @pl.when(_ends(r.rows, n, last, i))
  def _():
    share = jnp.where(r.total[...] > 0, r.total[...], 1)
    out = r.weighted[...] / _wide(share, r.out.shape[1])
    r.out[...] = out.astype(r.out.dtype)
    r.lse[...] = (r.top[...] + jnp.log(share)).T[:1]


def _add_values(
    form: Form,
    r: ForwardRefs,
    first: jax.Array,
    ahead: jax.Array,
) -> None:
  """Adds to the values of a block of queries those of a block of keys; first, ahead: see `_logits`."""
  s = _logits(form, r.q, r.k, r.skewed, first, r.ids, r.key_ids, ahead, queries_are_rows=True)
  before = r.top[...]
  most = jnp.maximum(before, jnp.max(s, 1, keepdims=True))
  p = jnp.exp(s - _wide(most, s.shape[1]))
  shrunk = jnp.exp(before - most)
  r.top[...] = most
  r.total[...] = shrunk * r.total[...] + jnp.sum(p, 1, keepdims=True)
  kept = _wide(shrunk, r.v.shape[1]) * r.weighted[...]
  r.weighted[...] = kept + _product(p.astype(r.v.dtype), r.v[...], MATRICES)


# --- The backward kernel --------------------------------------------------------------------------


class BackwardRefs(NamedTuple):
  """What `backward` reads and writes."""
  rows: Ref  # int [visits], block of queries
  cols: Ref  # int [visits], block of keys
  written: Ref  # int [visits], block of queries whose gradient is done at this visit, or else at the
                # next at which one is, so that none leaves VMEM before that
  begun: Ref  # int [visits], whether this visit is the first to its block of queries
  start: Ref  # int [1], slot of the first query
  q: Ref  # [block_q, H]
  k: Ref  # [block_k, H]
  v: Ref  # [block_k, H]
  do: Ref  # [block_q, H]
  k_HS: Ref  # [H, block_k]
  bias: Ref  # fp32 [1, R], element t - s + S of query t and key s
  query_ids: Ref  # int [1 or 2, block_q]
  key_ids: Ref  # int [1 or 2, block_k]
  lse: Ref  # fp32 [1, block_q], of the forward pass
  di: Ref  # fp32 [1, block_q], sums of out times do
  dq: Ref  # [block_q, H]
  dk: Ref  # [block_k, H]
  dv: Ref  # [block_k, H]
  dbias: Ref  # fp32 [1, R]
  dq_sum: Ref  # fp32 [all rows, H, block_q]
  dk_sum: Ref  # fp32 [block_k, H]
  dv_sum: Ref  # fp32 [block_k, H]
  skewed: Ref  # fp32 [128, R]
  diagonals: Ref  # fp32 [128, R + 128]
  ids: Ref  # int [1 or 2, block_k, 128]


def backward(*refs: Ref, form: Form) -> None:
  """Visit n: gradients from queries of block rows[n] to keys, values and distances of block cols[n], and back.

  Visits of a column follow each other.

  Args:
    refs: those of BackwardRefs.
    form: of the kernel.
  """
  r = BackwardRefs(*refs)
  n = pl.program_id(2)
  last = pl.num_programs(2) - 1
  i = r.rows[n]
  j = r.cols[n]
  first_query = r.start[0] + i * form.block_q
  first_key = j * form.block_k

  @pl.when(n == 0)
  def _():
    skew_all(r.bias, r.skewed)
    _clear(r.diagonals)

  @pl.when(_begins(r.cols, n, j))
  def _():
    r.dk_sum[...] = jnp.zeros_like(r.dk_sum)
    r.dv_sum[...] = jnp.zeros_like(r.dv_sum)
    _turn(r.key_ids, r.ids)

  @pl.when(r.begun[n] == 1)
  def _():
    r.dq_sum[i] = jnp.zeros_like(r.dq_sum[i])

  @pl.when(sees(form, first_query, first_key, r.query_ids.shape[0] > 1))
  def _():
    first = i * form.block_q - (j + 1) * form.block_k + form.keys
    ahead = first_key - first_query
    _add_gradients(form, r, i, first, ahead)

  @pl.when(r.written[n] == i)
  def _():
    dq = (form.scale * r.dq_sum[i]).T
    r.dq[...] = dq.astype(r.dq.dtype)

  @pl.when(_ends(r.cols, n, last, j))
  def _():
    dk = form.scale * r.dk_sum[...]
    r.dk[...] = dk.astype(r.dk.dtype)
    r.dv[...] = r.dv_sum[...].astype(r.dv.dtype)

  @pl.when(n == last)
  def _():
    sum_all(r.diagonals, r.dbias)


def _add_gradients(
    form: Form,
    r: BackwardRefs,
    i: jax.Array,
    first: jax.Array,
    ahead: jax.Array,
) -> None:
  """Adds the gradients of a pair of blocks, queries of block i; first, ahead: see `_logits`."""
  s = _logits(form, r.k, r.q, r.skewed, first, r.ids, r.query_ids, ahead, queries_are_rows=False)
  p = jnp.exp(s - r.lse[...])
  r.dv_sum[...] += _product(p.astype(r.do.dtype), r.do[...], MATRICES)
  ds = p * (_product(r.v[...], r.do[...], ALONG_ROWS) - r.di[...])
  if form.softcap:
    ds *= jnp.where(s > MASKED, 1 - jnp.square(s / form.softcap), 0)
  _add_diagonals(form, ds, r.diagonals, first)
  ds = ds.astype(r.q.dtype)
  r.dk_sum[...] += _product(ds, r.q[...], MATRICES)
  r.dq_sum[i] += _product(r.k_HS[...], ds, MATRICES)


def _clear(diagonals: Ref) -> None:
  @pl.loop(0, diagonals.shape[1] // LANES)
  def _(p):
    zeros = jnp.zeros((LANES, LANES), jnp.float32)
    here = pl.multiple_of(p * LANES, LANES)
    diagonals[:, pl.ds(here, LANES)] = zeros


def _add_diagonals(
    form: Form,
    ds: jax.Array,
    diagonals: Ref,
    first: jax.Array,
) -> None:
  """Adds gradients of logits, fp32 [keys, queries] of a pair of blocks, to where their distances are."""
  for x in range(-form.block_k + LANES, form.block_q, LANES):
    # Squares of 128 x 128 that go to the same lanes are summed before: memory is written a few times less.
    squares = []
    for c in range(0, form.block_k, LANES):
      column = x + c
      if 0 <= column < form.block_q:
        squares.append(ds[c:c + LANES, column:column + LANES])
    diagonals[:, window(first + x, form.block_k, LANES, 0)] += sum(squares)
