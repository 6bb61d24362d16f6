"""The kernels of relative_bias_attention.py: what they do with one block of queries and one of keys, in VMEM.

Forward blocks of logits are [queries, keys], backward ones [keys, queries]: what changes at every visit is then
always a row in memory, and never a column. "rows" and "columns" below are those of a block.

The bias of a block comes from a vector of values by distance, by relative_bias_diagonals.py; which probabilities are
dropped is said by dropped.py.
"""
import dataclasses
import functools
import operator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl

from t5like.model.kernels import dropped, relative_bias_diagonals as diagonals
from t5like.model.kernels.relative_bias_diagonals import LANES, window

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
  rate: float = 0.0  # of probabilities that are dropped
  alike: bool = False  # all queries of a row drop the same keys
  biased: bool = True  # else the bias is not read, and its gradient is 0
  share: float = 1.0  # of the pairs of blocks that a call visits, those that it computes; for the cost that it states


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
  if form.biased:
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


class Place(NamedTuple):
  """Where in the whole batch a call is: the number of its row and head (dropped.py), the slot of its first key."""
  of_head: Any
  first_key: Any


def _place(form: Form, origin: Ref) -> Place | None:
  """The Place of a visit; origin: see Arrays. None: nothing is dropped."""
  if not form.rate:
    return None
  row = origin[1] + pl.program_id(0)
  head = origin[2] + pl.program_id(1)
  return Place(dropped.of_head(origin[0], row, head), origin[3])


def _kept(
    form: Form,
    place: Place,
    first_row: jax.Array,
    first_column: jax.Array,
    shape: tuple[int, ...],
    queries_are_rows: bool,
) -> jax.Array:
  """[rows, columns] fp32: what probabilities of a pair of blocks are multiplied by.

  Args:
    form: of the kernel.
    place: of the blocks.
    first_row: slot of row 0, counted from the first key of the call.
    first_column: slot of column 0, counted likewise.
    shape: of the pair.
    queries_are_rows: else keys are.
  """
  rows, columns = shape
  row_number = jax.lax.broadcasted_iota(jnp.int32, (rows, LANES), 0)
  row_slot = row_number + (first_row + place.first_key)
  column_number = jax.lax.broadcasted_iota(jnp.int32, (1, columns), 1)
  column_slot = column_number + (first_column + place.first_key)
  if queries_are_rows:
    row_part = row_slot * _of_queries(form)
    column_part = column_slot * dropped.KEY
  else:
    row_part = row_slot * dropped.KEY
    column_part = column_slot * _of_queries(form)
  number = dropped.of_place(place.of_head, _wide(row_part, columns), column_part)
  return jnp.where(dropped.is_kept(number, form.rate), 1 / (1 - form.rate), 0.0)


def _of_queries(form: Form) -> Any:
  """The factor of the slots of queries in the number of a place."""
  if form.alike:
    return np.int32(0)
  return dropped.QUERY


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
  origin: Ref  # int [4], see Arrays
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
  place = _place(form, r.origin)

  if form.biased:
    @pl.when(n == 0)
    def _():
      diagonals.skew_all(r.bias, r.skewed)

  @pl.when(_begins(r.rows, n, i))
  def _():
    r.top[...] = jnp.full_like(r.top, EMPTY)
    r.total[...] = jnp.zeros_like(r.total)
    r.weighted[...] = jnp.zeros_like(r.weighted)
    _turn(r.query_ids, r.ids)

  @pl.when(sees(form, first_query, first_key, r.query_ids.shape[0] > 1))
  def _():
    first = first_key - (i + 1) * form.block_q + form.queries
    _add_values(form, r, first, first_query, first_key, place)

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
    first_query: jax.Array,
    first_key: jax.Array,
    place: Place | None,
) -> None:
  """Adds to the values of a block of queries those of a block of keys; first: see `_logits`, place: see `_place`."""
  ahead = first_query - first_key
  s = _logits(form, r.q, r.k, r.skewed, first, r.ids, r.key_ids, ahead, queries_are_rows=True)
  before = r.top[...]
  most = jnp.maximum(before, jnp.max(s, 1, keepdims=True))
  p = jnp.exp(s - _wide(most, s.shape[1]))
  shrunk = jnp.exp(before - most)
  r.top[...] = most
  r.total[...] = shrunk * r.total[...] + jnp.sum(p, 1, keepdims=True)
  if place is not None:
    p *= _kept(form, place, first_query, first_key, p.shape, queries_are_rows=True)
  before = _wide(shrunk, r.v.shape[1]) * r.weighted[...]
  r.weighted[...] = before + _product(p.astype(r.v.dtype), r.v[...], MATRICES)


# --- The backward kernel --------------------------------------------------------------------------


class BackwardRefs(NamedTuple):
  """What `backward` reads and writes."""
  rows: Ref  # int [visits], block of queries
  cols: Ref  # int [visits], block of keys
  written: Ref  # int [visits], block of queries whose gradient is done at this visit, or else at the
                # next at which one is, so that none leaves VMEM before that
  begun: Ref  # int [visits], whether this visit is the first to its block of queries
  start: Ref  # int [1], slot of the first query
  origin: Ref  # int [4], see Arrays
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
  place = _place(form, r.origin)

  if form.biased:
    @pl.when(n == 0)
    def _():
      diagonals.skew_all(r.bias, r.skewed)
      diagonals.clear(r.diagonals)

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
    _add_gradients(form, r, i, first, first_query, first_key, place)

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
    if form.biased:
      diagonals.sum_all(r.diagonals, r.dbias)
    else:
      r.dbias[...] = jnp.zeros_like(r.dbias)


def _add_gradients(
    form: Form,
    r: BackwardRefs,
    i: jax.Array,
    first: jax.Array,
    first_query: jax.Array,
    first_key: jax.Array,
    place: Place | None,
) -> None:
  """Adds the gradients of a pair of blocks, queries of block i; first: see `_logits`, place: see `_place`."""
  ahead = first_key - first_query
  s = _logits(form, r.k, r.q, r.skewed, first, r.ids, r.query_ids, ahead, queries_are_rows=False)
  p = jnp.exp(s - r.lse[...])
  dp = _product(r.v[...], r.do[...], ALONG_ROWS)
  weights = p
  if place is not None:
    kept = _kept(form, place, first_key, first_query, p.shape, queries_are_rows=False)
    weights = p * kept
    dp *= kept
  r.dv_sum[...] += _product(weights.astype(r.do.dtype), r.do[...], MATRICES)
  ds = p * (dp - r.di[...])
  if form.softcap:
    ds *= jnp.where(s > MASKED, 1 - jnp.square(s / form.softcap), 0)
  if form.biased:
    diagonals.add(ds, r.diagonals, first)
  ds = ds.astype(r.q.dtype)
  r.dk_sum[...] += _product(ds, r.q[...], MATRICES)
  r.dq_sum[i] += _product(r.k_HS[...], ds, MATRICES)
