"""The kernel for a bias by distance on rows that are cut over devices (model/context.py); inside `shard_map`."""
import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from t5like.model.context import Cut
from t5like.model.kernels import relative_bias_attention, ring
from t5like.model.kernels.relative_bias_attention import Drop, Starts, ids_of, round_up, share_of, without_padding
from t5like.model.kernels.relative_bias_blocks import NOBODY, Form
from t5like.model.kernels.relative_bias_calls import Arrays
from t5like.model.kernels.ring import Attended, Gradients, Lot, Queries, Results

Tokens = Mapping[str, jax.Array]  # segments: int [B, length]; perhaps prefix: bool [B, length]


def attention(
    cut: Cut,
    q_BTNH: jax.Array,
    k_BSKH: jax.Array,
    v_BSKH: jax.Array,
    bias_NR: jax.Array | None,
    query: Tokens,
    key: Tokens,
    causal: bool,
    scale: float,
    softcap: float = 0.0,
    interpret: bool = False,
    window: tuple[int, int] | None = None,
    drop: Drop | None = None,
) -> jax.Array:
  """`relative_bias_attention.attention` of the queries of one device and all keys, in order: a call for each piece.

  Args:
    cut: of rows of queries.
    q_BTNH: queries of this device.
    k_BSKH: keys.
    v_BSKH: values.
    bias_NR: fp32, values by distance of all queries; None: there is no bias.
    query: of the tokens of q.
    key: of the tokens of k.
    causal, scale, softcap, interpret, window, drop: as there.
  """
  starts_of_devices = [cut.starts(device) for device in range(cut.devices)]
  distances = cut.tokens + k_BSKH.shape[1]
  outs = []
  for number, start in enumerate(cut.starts_here()):
    first = number * cut.tokens
    piece = slice(first, first + cut.tokens)
    starts = [of_device[number] for of_device in starts_of_devices]
    of_piece = None
    if bias_NR is not None:
      of_piece = jax.lax.dynamic_slice_in_dim(bias_NR, start, distances, axis=1)
    out_BTNH = relative_bias_attention.attention(
        q_BTNH[:, piece],
        k_BSKH,
        v_BSKH,
        of_piece,
        {name: x_BT[:, piece] for name, x_BT in query.items()},
        key,
        causal,
        scale,
        softcap=softcap,
        start=start,
        interpret=interpret,
        window=window,
        starts=Starts(starts, cut.is_balanced),
        drop=drop,
    )
    outs.append(out_BTNH)
  if len(outs) == 1:
    return outs[0]
  return jnp.concatenate(outs, 1)


# --- In a ring ------------------------------------------------------------------------------------


def in_ring(
    queries: Cut,
    keys: Cut,
    q_BTNH: jax.Array,
    k_BSKH: jax.Array,
    v_BSKH: jax.Array,
    bias_NR: jax.Array,
    query: Tokens,
    key: Tokens,
    causal: bool,
    scale: float,
    softcap: float = 0.0,
    interpret: bool = False,
    window: tuple[int, int] | None = None,
) -> jax.Array:
  """`attention` where k and v are those of this device, in a ring (ring.py)."""
  has_prefix = causal and 'prefix' in query
  before, after = window or (None, None)
  block_q = relative_bias_attention.block_size(queries.tokens, causal, before)
  block_k = relative_bias_attention.block_size(keys.tokens, causal, before)
  form = Form(
      causal,
      float(scale),
      float(softcap),
      block_q,
      block_k,
      round_up(queries.tokens, block_q),
      round_up(keys.tokens, block_k),
      interpret,
      before,
      after,
  )
  out_BNTH: Any = ring.attend(
      BiasParts(form, queries, keys, has_prefix),
      q_BTNH.swapaxes(1, 2),
      k_BSKH.swapaxes(1, 2),
      v_BSKH.swapaxes(1, 2),
      bias_NR.astype(jnp.float32),
      ids_of(query, 0, 0, has_prefix),
      ids_of(dict(key, segments=without_padding(key['segments'])), 0, NOBODY, has_prefix),
      None,
  )
  return out_BNTH.swapaxes(1, 2)


class Pair(NamedTuple):
  """A piece of the queries of a device and one of a lot of keys.

  query, key: their numbers among the pieces.
  ahead: slots from the first key to the first query, traced.
  """
  query: int
  key: int
  ahead: Any


@dataclasses.dataclass(frozen=True)
class BiasParts:
  """See ring.Parts; ids are those of `ids_of`, not padded.

  form: of a pair of pieces.
  queries, keys: how rows are cut.
  has_prefix: whether tokens of prefixes see each other under a causal mask.
  """
  form: Form
  queries: Cut
  keys: Cut
  has_prefix: bool

  def forward(self, queries: Queries, lot: Lot, owner: Any, table: Any) -> Attended:
    """Values."""
    outs = []
    sums = []
    for number, pairs in enumerate(self._pairs(owner)):
      total = None
      for pair in pairs:
        form, arrays = self._arrays(pair, queries, lot)
        out_BNTH, lse_BN1T = relative_bias_attention.forward_in_pieces(form, None, arrays)
        attended = Attended(
            out_BNTH[:, :, :self.queries.tokens],
            lse_BN1T[:, :, 0, :self.queries.tokens],
        )
        total = attended if total is None else ring.joined(total, attended)
      assert total is not None, f'piece {number} sees some keys'
      outs.append(total.out_BNTH)
      sums.append(total.lse_BNT)
    return Attended(jnp.concatenate(outs, 2), jnp.concatenate(sums, 2))

  def backward(self, queries: Queries, lot: Lot, owner: Any, table: Any, results: Results) -> Gradients:
    """Gradients."""
    dqs: list[Any] = [None] * self.queries.pieces
    dks: list[Any] = [None] * self.keys.pieces
    dvs: list[Any] = [None] * self.keys.pieces
    dbiases = []
    for pairs in self._pairs(owner):
      for pair in pairs:
        form, arrays = self._arrays(pair, queries, lot)
        more = form.queries - self.queries.tokens
        dq, dk, dv, dbias = relative_bias_attention.backward_in_pieces(
            form,
            None,
            arrays,
            _padded(self._of_query(results.do_BNTH, pair), 2, more),
            _padded(self._of_query(results.lse_BNT, pair), 2, more)[:, :, None],
            _padded(self._of_query(results.di_BNT, pair), 2, more)[:, :, None],
        )
        dqs[pair.query] = _added(dqs[pair.query], dq[:, :, :self.queries.tokens])
        dks[pair.key] = _added(dks[pair.key], dk[:, :, :self.keys.tokens])
        dvs[pair.key] = _added(dvs[pair.key], dv[:, :, :self.keys.tokens])
        dbiases.append(dbias)
    return Gradients(
        jnp.concatenate(dqs, 2),
        jnp.concatenate(dks, 2),
        jnp.concatenate(dvs, 2),
        dbiases,
    )

  def add_bias(self, total: Any, dbias: Any, owner: Any) -> Any:
    """With gradients of values by distance, [N, R] of each pair."""
    in_order = iter(dbias)
    for pairs in self._pairs(owner):
      for pair in pairs:
        total = self._with_distances(total, next(in_order), pair)
    return total

  def _pairs(self, owner: Any) -> list[list[Pair]]:
    """For each piece of the queries of this device those with pieces of a lot of keys, of which it may see some."""
    starts = self.keys.starts(owner)
    pairs = []
    for query, query_start in enumerate(self.queries.starts_here()):
      of_query = []
      for key, key_start in enumerate(starts):
        if self._is_ever_seen(query, key):
          of_query.append(Pair(query, key, query_start - key_start))
      pairs.append(of_query)
    return pairs

  def _is_ever_seen(self, query: int, key: int) -> bool:
    """Whether on any device; first pieces, from the beginning of a row, see none of the second ones behind them."""
    return query >= key or not self.form.causal or self.has_prefix

  def _share(self, pair: Pair) -> float:
    """The share of pairs of blocks that a call computes, in the mean of all steps."""
    devices = self.queries.devices
    total = 0.0
    for step in range(devices):
      ahead = []
      for device in range(devices):
        owner = ring.owner_at(device, step, devices)
        slots = self.queries.starts(device)[pair.query] - self.keys.starts(owner)[pair.key]
        ahead.append(slots)
      total += share_of(self.form, Starts(ahead, self.queries.is_balanced), self.has_prefix)
    return total / devices

  def _arrays(self, pair: Pair, queries: Queries, lot: Lot) -> tuple[Form, Arrays]:
    """What the kernels read of a pair."""
    form = dataclasses.replace(self.form, share=self._share(pair))
    more_queries = form.queries - self.queries.tokens
    more_keys = form.keys - self.keys.tokens
    distances = self.queries.tokens + self.keys.tokens
    first = pair.ahead + self.keys.length - self.keys.tokens
    bias_NR = jax.lax.dynamic_slice_in_dim(queries.bias, first, distances, axis=1)
    return form, Arrays(
        q_BNTH=_padded(self._of_query(queries.q_BNTH, pair), 2, more_queries),
        k_BKSH=_padded(self._of_key(lot.k_BKSH, pair), 2, more_keys),
        v_BKSH=_padded(self._of_key(lot.v_BKSH, pair), 2, more_keys),
        bias_NR=jnp.pad(bias_NR, [(0, 0), (more_keys, more_queries)]),
        # Tokens of padding are in segments that no others are in.
        query_ids=_padded(self._of_query(queries.ids, pair), 2, more_queries, NOBODY - 2),
        key_ids=_padded(self._of_key(lot.ids, pair), 2, more_keys, NOBODY),
        start=jnp.full((1,), pair.ahead, jnp.int32),
        origin=jnp.zeros((4,), jnp.int32),
    )

  def _with_distances(self, total_NR: jax.Array, dbias_NR: jax.Array, pair: Pair) -> jax.Array:
    """Gradients of values by distance, with those of a pair."""
    more_keys = self.form.keys - self.keys.tokens
    distances = self.queries.tokens + self.keys.tokens
    first = pair.ahead + self.keys.length - self.keys.tokens
    before = jax.lax.dynamic_slice_in_dim(total_NR, first, distances, axis=1)
    after = before + dbias_NR[:, more_keys:more_keys + distances]
    return jax.lax.dynamic_update_slice_in_dim(total_NR, after, first, axis=1)

  def _of_query(self, x: jax.Array, pair: Pair) -> jax.Array:
    """Of an array whose third axis are the queries of a device."""
    start = pair.query * self.queries.tokens
    return x[:, :, start:start + self.queries.tokens]

  def _of_key(self, x: jax.Array, pair: Pair) -> jax.Array:
    start = pair.key * self.keys.tokens
    return x[:, :, start:start + self.keys.tokens]


def _added(total: jax.Array | None, gradient: jax.Array) -> jax.Array:
  """In fp32; the only gradient stays as the kernel has written it, so that nothing follows the kernel (ring.py)."""
  if total is None:
    return gradient
  return total.astype(jnp.float32) + gradient.astype(jnp.float32)


def _padded(x: jax.Array, axis: int, n: int, value: int = 0) -> jax.Array:
  """An array with n more elements along an axis."""
  if not n:
    return x
  widths = [(0, 0)] * x.ndim
  widths[axis] = (0, n)
  return jnp.pad(x, widths, constant_values=value)
