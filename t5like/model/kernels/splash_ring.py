"""Splash attention in a ring (ring.py): JAX's kernels, called for one lot of keys after the other.

The library's kernels take from arrays which blocks they visit and at which slots queries are. So one kernel serves all
steps of all devices, each with arrays of its own, which `prepare` makes.
"""
import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.pallas.ops.tpu.splash_attention import (
    splash_attention_kernel as library,
    splash_attention_mask_info as mask_info,
)
from jax.sharding import PartitionSpec

from t5like.model.context import Cut
from t5like.model.kernels import ring, splash
from t5like.model.kernels.ring import Attended, Gradients, Lot, Queries, Results
from t5like.model.kernels.splash import LANES, PADDING, Reach, Span, Tokens, Window
from t5like.model.kernels.visits import Visits

EVERYTHING = 2 ** 30  # slot of a query that sees all keys of a block that is visited
HEADS_FIRST = library.QKVLayout.HEAD_DIM_MINOR
Tables = list[dict[str, Any]]  # of each View: arrays [devices, steps, ..]; inside the ring without these axes


@dataclasses.dataclass(frozen=True)
class View:
  """Keys of a lot that one call of a kernel attends to: those from a place on; all of them where one call is enough."""
  start: int
  size: int


@dataclasses.dataclass(frozen=True)
class Plan:
  """Calls of one step.

  reach: what queries see.
  views: one for each call.
  block_q, block_k: sizes of blocks.
  pairs: of blocks that a device visits in all calls of all steps.
  calls: how many these are.
  """
  reach: Reach
  views: tuple[View, ...]
  block_q: int
  block_k: int
  pairs: int
  calls: int


def plan_of(queries: Cut, keys: Cut, reach: Reach) -> Plan:
  """How rows are attended to in a ring; of masks, queries and keys are the same."""
  plan, _ = _planned(queries, keys, reach)
  return plan


def prepare(
    queries: Cut,
    keys: Cut,
    causal: bool,
    has_prefix: bool,
    window: Window | None,
) -> tuple[dict[str, Tables], Any]:
  """({call: tables}, their specs for `shard_map`); the calls are those of `splash.reaches`."""
  tables = {}
  for call, reach in splash.reaches(causal, has_prefix, window, keys.length).items():
    _, tables[call] = _planned(queries, keys, reach)
  tables = jax.tree.map(jnp.asarray, tables)
  specs = jax.tree.map(lambda x: PartitionSpec(ring.AXIS), tables)
  return jax.tree.map(jax.sharding.reshard, tables, specs), specs


@functools.lru_cache(maxsize=32)
def _planned(queries: Cut, keys: Cut, reach: Reach) -> tuple[Plan, Tables]:
  T = splash.padded_length(queries.tokens * queries.pieces)
  if reach.is_whole:
    S = keys.tokens * keys.pieces
    padded = splash.padded_length(S)
    block_q = splash.block_size(T, reach)
    block_k = splash.block_size(padded, reach)
    pairs = (T // block_q) * (padded // block_k)
    return Plan(reach, (View(0, S),), block_q, block_k, pairs, 1), [{}]
  block_q, _ = splash.block_sizes(queries, queries.length, reach)
  is_aligned = queries.tokens % LANES == 0
  views = []
  if reach == splash.CAUSAL and queries.is_balanced and is_aligned:
    # Of two pieces of different devices one sees the other whole or not at all.
    views.append(View(0, 2 * queries.tokens))
    block_k = block_q
  else:
    for piece in range(queries.pieces):
      views.append(View(piece * queries.tokens, queries.tokens))
    block_k = splash.block_size(splash.padded_length(queries.tokens), reach)
  tables = []
  visited = 0
  for view in views:
    table = _table(queries, view, reach, block_q, block_k)
    tables.append(table)
    visited = visited + table['blocks'].sum((2, 3, 4))
  # At each step all wait for the device that visits most.
  pairs = int(np.max(visited, 0).sum())
  return Plan(reach, tuple(views), block_q, block_k, pairs, queries.devices * len(views)), tables


def _table(cut: Cut, view: View, reach: Reach, block_q: int, block_k: int) -> dict[str, np.ndarray]:
  """Arrays of a call [devices, steps, ..]: blocks that are visited, those that are fetched next, slots of queries."""
  slots = cut.slots()
  padded_slots = splash.with_padding(slots)
  is_split = view.size <= cut.tokens
  devices = []
  for device in range(cut.devices):
    steps = []
    for step in range(cut.devices):
      owner = ring.owner_at(device, step, cut.devices)
      slots_S = slots[owner, view.start:view.start + view.size]
      blocks = _blocks(padded_slots[device], slots_S, reach, block_q, block_k)
      if is_split:
        seen_from = padded_slots[device] - slots_S[0]
      elif step == 0:
        seen_from = np.arange(len(padded_slots[device]))
      else:
        seen_from = np.full(len(padded_slots[device]), EVERYTHING)
      steps.append(dict(
          blocks=blocks[None],
          next_keys=_next(blocks)[None],
          next_queries=_next(blocks.T).T[None],
          seen_from=seen_from.astype(np.int32),
      ))
    devices.append(_stacked(steps))
  return _stacked(devices)


def _stacked(tables: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
  out = {}
  for name in tables[0]:
    arrays = [table[name] for table in tables]
    out[name] = np.stack(arrays)
  return out


def _blocks(
    slots_T: np.ndarray,
    slots_S: np.ndarray,
    reach: Reach,
    block_q: int,
    block_k: int,
) -> np.ndarray:
  """int32 [blocks of queries, blocks of keys]: 1 where one sees the other, at least in part."""
  keys = splash.with_padding(slots_S[None])[0]
  blocks = np.zeros((len(slots_T) // block_q, len(keys) // block_k), np.int32)
  for i, of_queries in enumerate(slots_T.reshape(-1, block_q)):
    for j, of_keys in enumerate(keys.reshape(-1, block_k)):
      one = Span(int(of_queries[0]), int(of_queries[-1]))
      other = Span(int(of_keys[0]), int(of_keys[-1]))
      blocks[i, j] = splash.is_seen_in_part(one, other, reach)
  return blocks


def _next(blocks: np.ndarray) -> np.ndarray:
  """At each block, row by row, the column of the first that is visited from there on; after the last that of the first.
  """
  rows, columns = blocks.shape
  visited = np.flatnonzero(blocks)
  if not len(visited):
    return np.zeros_like(blocks)
  after = np.searchsorted(visited, np.arange(rows * columns)) % len(visited)
  return (visited[after] % columns).reshape(rows, columns).astype(np.int32)


@dataclasses.dataclass(frozen=True)
class SplashParts:
  """See ring.Parts; ids are segments, tables those of `prepare`."""
  plan: Plan
  softcap: float
  interpret: bool

  def forward(self, queries: Queries, lot: Lot, owner: Any, table: Tables) -> Attended:
    """Values."""
    total = None
    for view, of_view in zip(self.plan.views, table):
      attended = self._forward(queries, _seen(lot, view), of_view)
      if total is None:
        total = attended
      else:
        total = ring.joined(total, attended)
    assert total is not None
    return total

  def _forward(self, queries: Queries, lot: Lot, table: dict[str, jax.Array]) -> Attended:
    function = _mask_function(self.plan.reach)
    info = _info(table, 'next_keys')
    sizes = library.BlockSizes(
        block_q=self.plan.block_q,
        block_kv=self.plan.block_k,
        block_kv_compute=self.plan.block_k,
    )

    def of_row(q_NTH: jax.Array, k_KSH: jax.Array, v_KSH: jax.Array, segments: Any) -> tuple[jax.Array, jax.Array]:
      out_NTH, (lse_NT,) = library._splash_attention_forward(
          info,
          q_NTH,
          k_KSH,
          v_KSH,
          segments,
          None,
          library.DEFAULT_MASK_VALUE,
          False,
          sizes,
          None,
          True,
          function,
          self.softcap or None,
          self.interpret,
      )
      return out_NTH, lse_NT

    segments = library.SegmentIds(queries.ids, lot.ids)
    return Attended(*self._scoped(queries, jax.vmap(of_row))(queries.q_BNTH, lot.k_BKSH, lot.v_BKSH, segments))

  def backward(self, queries: Queries, lot: Lot, owner: Any, table: Tables, results: Results) -> Gradients:
    """Gradients."""
    dq: Any = 0
    dks = []
    dvs = []
    for view, of_view in zip(self.plan.views, table):
      dq_BNTH, dk_BKSH, dv_BKSH = self._backward(queries, _seen(lot, view), of_view, results)
      dq = dq + dq_BNTH
      dks.append(dk_BKSH[:, :, :view.size])
      dvs.append(dv_BKSH[:, :, :view.size])
    return Gradients(dq, jnp.concatenate(dks, 2), jnp.concatenate(dvs, 2), None)

  def add_bias(self, total: Any, dbias: Any, owner: Any) -> Any:
    """There is none."""
    return total

  def _backward(
      self,
      queries: Queries,
      lot: Lot,
      table: dict[str, jax.Array],
      results: Results,
  ) -> tuple[jax.Array, jax.Array, jax.Array]:
    function = _mask_function(self.plan.reach)
    info = _info(table, 'next_queries')

    def of_row(q_NTH: jax.Array, k_KSH: jax.Array, v_KSH: jax.Array, segments: Any, results: Results) -> Any:
      return library._splash_attention_bwd_dkv(
          q_NTH,
          k_KSH,
          v_KSH,
          segments,
          None,
          results.lse_BNT,
          results.do_BNTH,
          results.di_BNT,
          bq=self.plan.block_q,
          bkv=self.plan.block_k,
          bkv_compute=self.plan.block_k,
          is_mqa=False,
          mask_info=info,
          mask_value=library.DEFAULT_MASK_VALUE,
          attn_logits_soft_cap=self.softcap or None,
          use_fused_bwd_kernel=True,
          q_layout=HEADS_FIRST,
          k_layout=HEADS_FIRST,
          v_layout=HEADS_FIRST,
          mask_function=function,
          interpret=self.interpret,
      )

    segments = library.SegmentIds(queries.ids, lot.ids)
    return self._scoped(queries, jax.vmap(of_row))(queries.q_BNTH, lot.k_BKSH, lot.v_BKSH, segments, results)

  def _scoped(self, queries: Queries, call: Any) -> Any:
    """A call whose label says what it visits."""
    B, N, _, H = queries.q_BNTH.shape
    plan = self.plan
    label = Visits(plan.reach.name, B, N, H, plan.block_q, plan.block_k, plan.pairs, plan.calls).label

    def scoped(*arrays: Any) -> Any:
      with jax.named_scope(label):
        return call(*arrays)

    return scoped


def _seen(lot: Lot, view: View) -> Lot:
  """Keys of a View, padded to a multiple of LANES."""
  end = view.start + view.size
  padding = -view.size % LANES
  k_BKSH = lot.k_BKSH[:, :, view.start:end]
  v_BKSH = lot.v_BKSH[:, :, view.start:end]
  segments_BS = lot.ids[:, view.start:end]
  if not padding:
    return Lot(k_BKSH, v_BKSH, segments_BS)
  of_keys = [(0, 0), (0, 0), (0, padding), (0, 0)]
  return Lot(
      jnp.pad(k_BKSH, of_keys),
      jnp.pad(v_BKSH, of_keys),
      jnp.pad(segments_BS, [(0, 0), (0, padding)], constant_values=PADDING),
  )


def _mask_function(reach: Reach) -> Any:
  """(slots of queries, places of keys) -> bool, those of queries being counted from the first of the keys."""
  if reach.is_whole:
    return None

  def is_not_late(query: jax.Array, key: jax.Array) -> jax.Array:
    if not reach.after:
      return key <= query
    return key <= query + reach.after

  def is_not_early(query: jax.Array, key: jax.Array) -> jax.Array:
    assert reach.before is not None
    return key >= query - reach.before

  def is_in_window(query: jax.Array, key: jax.Array) -> jax.Array:
    return is_not_late(query, key) & is_not_early(query, key)

  if reach.before is None:
    return is_not_late
  if reach.after is None:
    return is_not_early
  return is_in_window


def _info(table: dict[str, Any], following: str) -> mask_info.MaskInfo:
  if not table:
    return mask_info.MaskInfo(None, None, None, None, None)
  return mask_info.MaskInfo(table[following], None, table['blocks'], None, table['seen_from'])


def attention(
    queries: Cut,
    keys: Cut,
    tables: Mapping[str, Tables],
    q_BTNH: jax.Array,
    k_BSKH: jax.Array,
    v_BSKH: jax.Array,
    query: Tokens,
    key: Tokens,
    scale: float,
    window: Window | None,
    softcap: float,
    interpret: bool,
) -> jax.Array:
  """softmax(scale q k) v, [B, T, N, H], of the queries of this device and the keys of all.

  Args:
    queries, keys: how rows are cut.
    tables: of `prepare`, the part of this device, [1, steps, ..].
    q_BTNH, k_BSKH, v_BSKH: of this device.
    query, key: see `splash.attention`.
    scale: of logits.
    window: of `prepare`.
    softcap: logits are softcap tanh(logits / softcap); 0: they are not.
    interpret: not on a TPU.
  """
  T = q_BTNH.shape[1]
  has_both = 'causal' in tables and 'both' in tables
  reach_of = splash.reaches('causal' in tables, has_both, window, keys.length)
  q_BNTH = splash.padded(q_BTNH * scale).swapaxes(1, 2)
  k_BKSH = k_BSKH.swapaxes(1, 2)
  v_BKSH = v_BSKH.swapaxes(1, 2)
  query_ids = splash.padded(query['segments'])

  def run(call: str, key_ids: jax.Array) -> jax.Array:
    parts = SplashParts(plan_of(queries, keys, reach_of[call]), softcap, interpret)
    own_tables = jax.tree.map(lambda x: x[0], tables[call])
    out_BNTH: Any = ring.attend(parts, q_BNTH, k_BKSH, v_BKSH, None, query_ids, key_ids, own_tables)
    return out_BNTH.swapaxes(1, 2)[:, :T]

  if not has_both:
    call, = tables
    return run(call, key['segments'])
  of_prefix = jnp.where(key['prefix'], key['segments'], PADDING)
  in_prefix_BT11 = query['prefix'][:, :, None, None]
  return jnp.where(in_prefix_BT11, run('both', of_prefix), run('causal', key['segments']))
