"""Attention on TPUs: JAX's splash kernel, which makes no [T, S] array and skips blocks that a mask empties.

It runs on what one device holds, inside `shard_map`. Prefixes, which splash has no mask for, take two
calls: one for the queries of prefixes, which see later tokens too, one causal for the others.
"""
import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as library, splash_attention_mask
from jax.sharding import NamedSharding, PartitionSpec

from t5like.model.context import Cut
from t5like.model.kernels.visits import Visits

LANES = 128  # lengths are padded to a multiple of it
PADDING = -1  # segment of padding among keys: no query is in it
# Blocks of queries and keys: the largest that fit the compiler's share of VMEM on every TPU at a head size
# of 128. With short sequences a causal mask wastes part of the blocks on the diagonal: smaller ones then.
LARGEST = 1024
SMALLEST = 256

Tokens = Mapping[str, jax.Array]  # segments: int [B, length]; perhaps prefix: bool [B, length]
Window = tuple[int, int]


@dataclasses.dataclass(frozen=True)
class Reach:
  """How many keys before its own slot a query sees, and how many after it; None: all."""
  before: int | None = None
  after: int | None = None

  @property
  def is_whole(self) -> bool:
    """Whether all queries see all keys."""
    return self.before is None and self.after is None

  @property
  def name(self) -> str:
    """For labels."""
    if self.is_whole:
      return 'full'
    return 'causal' if self.before is None else 'window'


CAUSAL = Reach(None, 0)


def reaches(causal: bool, has_prefix: bool, window: Window | None, keys: int) -> dict[str, Reach]:
  """What queries see, by the call of `attention` that they are in: 'causal', 'both' ways or, with prefixes, either.

  Args:
    causal: whether queries see no later keys, but in prefixes.
    has_prefix: whether there are prefixes.
    window: (keys before its own slot, keys after it) that a query sees at most; None: all.
    keys: S, from which on a window leaves nothing out.
  """
  before, after = window if window else (keys, keys)
  before = before if before < keys - 1 else None
  after = after if after < keys - 1 else None
  out = {}
  if causal:
    out['causal'] = Reach(before, 0)
  if has_prefix or not causal:
    out['both'] = Reach(before, after)
  return out


def prepare(
    q_BTNH: jax.Array,
    k_BSKH: jax.Array,
    causal: bool,
    has_prefix: bool,
    interpret: bool,
    window: Window | None = None,
    softcap: float = 0.0,
    is_balanced: bool = False,
) -> tuple[dict[str, Any], dict[str, Any]]:
  """Kernels for arrays that are spread over a mesh, one for each of the `reaches`.

  What the backward pass needs is named 'context', for `jax.checkpoint` policies.

  Args:
    q_BTNH: queries, which may be spread over 'context'.
    k_BSKH: keys, all of them, in order.
    causal: whether queries see no later keys.
    has_prefix: whether there are prefixes, whose tokens see each other.
    interpret: not on a TPU.
    window: see `reaches`.
    softcap: logits are softcap tanh(logits / softcap); 0: they are not.
    is_balanced: each device has queries from both ends of a row, see model/context.py.

  Returns:
    ({call: kernel}, {call: its specs for `shard_map`}).
  """
  mesh = jax.sharding.get_abstract_mesh()
  pieces = 1
  heads = q_BTNH.shape[2]
  if not mesh.empty:
    pieces = mesh.shape['context']
    heads //= mesh.shape['tensor']
  cut = Cut(q_BTNH.shape[1], pieces, is_balanced)
  S = k_BSKH.shape[1]
  kernels = {}
  is_cut = {}
  for call, reach in reaches(causal, has_prefix, window, S).items():
    # Where all see all, one piece's kernel is that of every piece. (The library's own way to cut kernels into pieces
    # does not take masks without a block that is masked in part.)
    is_cut[call] = not reach.is_whole
    kernels[call] = _kernel(reach, cut, S, heads, interpret, softcap)
  if mesh.empty:
    return kernels, {}
  specs = {call: _specs(kernel, is_cut[call]) for call, kernel in kernels.items()}
  return jax.tree.map(jax.sharding.reshard, kernels, specs), specs


def _specs(kernel: Any, is_cut: bool) -> Any:
  """PartitionSpecs of a kernel's arrays: by pieces of the queries where these differ, else on every device in full."""
  if is_cut:
    by_rows = NamedSharding(jax.sharding.get_abstract_mesh(), PartitionSpec(None, 'context'))
    return kernel.manual_sharding_spec(by_rows)
  return jax.tree.map(lambda x: PartitionSpec(), kernel)


def attention(
    kernels: Mapping[str, Any],
    q_BTNH: jax.Array,
    k_BSKH: jax.Array,
    v_BSKH: jax.Array,
    query: Tokens,
    key: Tokens,
    scale: float,
    window: Window | None = None,
    is_balanced: bool = False,
    sinks_N: jax.Array | None = None,
) -> jax.Array:
  """softmax(scale q k) v, [B, T, N, H], of one device.

  Args:
    kernels: of `prepare`; under a mask all T = S, or T is this device's part of S.
    q_BTNH: queries.
    k_BSKH: keys.
    v_BSKH: values.
    query: of the queries' tokens, see `make_mask` of model/attention_kernels.py.
    key: of the keys' tokens.
    scale: of logits.
    window: of `prepare`.
    is_balanced: of `prepare`.
    sinks_N: a logit for each head that joins the softmax, fp32; None: there are none.
  """
  B, T, N, H = q_BTNH.shape
  S = k_BSKH.shape[1]
  has_both = 'causal' in kernels and 'both' in kernels
  reach_of = reaches('causal' in kernels, has_both, window, S)

  def run(call: str, key: Tokens) -> jax.Array:
    reach = reach_of[call]
    block_q, block_k, pairs = visits(T, S, reach, is_balanced)
    # Readers of compiled programs know by the label what the call computes.
    label = Visits(reach.name, B, N, H, block_q, block_k, pairs).label
    with jax.named_scope(label):
      return _call(kernels[call], q_BTNH * scale, k_BSKH, v_BSKH, query, key, sinks_N)

  if not has_both:
    call, = kernels
    return run(call, key)
  segments = jnp.where(key['prefix'], key['segments'], PADDING)
  in_prefix_BT11 = query['prefix'][:, :, None, None]
  of_prefix_BTNH = run('both', {**key, 'segments': segments})
  return jnp.where(in_prefix_BT11, of_prefix_BTNH, run('causal', key))


class Pieces(splash_attention_mask.LocalMask):
  """The mask of queries at these slots on S keys, those of each device padded to a multiple of LANES.

  Rows of padding see what the last query of their device sees.
  """

  def __init__(self, slots: np.ndarray, S: int, reach: Reach):
    padded = with_padding(slots)
    shape = (padded.size, padded_length(S))
    super().__init__(shape, (reach.before, reach.after), 0)
    self.q_sequence = padded.reshape(-1)
    self.reach = reach
    if reach == CAUSAL:  # the same with an addition less
      self.mask_function = splash_attention_mask.CausalMask(shape).mask_function

  def __getitem__(self, rows_columns: tuple[slice, slice]) -> np.ndarray:
    # The library asks for every block of the mask, several times. Of those that are all seen, or not at all, one
    # element says as much, and a mask of 131,072 x 131,072 takes a second instead of a minute.
    rows, columns = rows_columns
    # Slots of a device only grow, so that the first and the last query of a block see what all others do, and more.
    queries = Span(int(self.q_sequence[rows.start]), int(self.q_sequence[rows.stop - 1]))
    keys = Span(columns.start, columns.stop - 1)
    if not is_seen_in_part(queries, keys, self.reach):
      return np.zeros((1, 1), bool)
    if _is_seen_whole(queries, keys, self.reach):
      return np.ones((1, 1), bool)
    return super().__getitem__(rows_columns)


@dataclasses.dataclass(frozen=True)
class Span:
  """Slots from the first to the last, both included."""
  first: int
  last: int


def is_seen_in_part(queries: Span, keys: Span, reach: Reach) -> bool:
  """Whether some query sees some key."""
  is_too_early = reach.before is not None and keys.last < queries.first - reach.before
  is_too_late = reach.after is not None and keys.first > queries.last + reach.after
  return not is_too_early and not is_too_late


def _is_seen_whole(queries: Span, keys: Span, reach: Reach) -> bool:
  """Whether all queries see all keys."""
  sees_first = reach.before is None or keys.first >= queries.last - reach.before
  sees_last = reach.after is None or keys.last <= queries.first + reach.after
  return sees_first and sees_last


def visits(
    T: int,
    S: int,
    reach: Reach,
    is_balanced: bool = False,
) -> tuple[int, int, int]:
  """(block of queries, block of keys, pairs of blocks) of a device that has T queries and all S keys.

  Of the devices that a row is spread over, the one that sees most: the pairs are those of its forward pass,
  and of its backward pass, for one head and row.
  """
  queries = padded_length(T)
  keys = padded_length(S)
  if reach.is_whole:
    block_q = block_size(queries, reach)
    block_k = block_size(keys, reach)
    pairs = (queries // block_q) * (keys // block_k)
    return block_q, block_k, pairs
  cut = Cut(S, S // T, is_balanced)
  block_q, block_k = block_sizes(cut, S, reach)
  pairs = 0
  for slots_T in with_padding(cut.slots()):
    pairs = max(pairs, _pairs(slots_T, keys, block_q, block_k, reach))
  return block_q, block_k, pairs


def _pairs(
    slots_T: np.ndarray,
    keys: int,
    block_q: int,
    block_k: int,
    reach: Reach,
) -> int:
  """Pairs of blocks of which one sees the other in part, of queries at these slots."""
  pairs = 0
  for block in slots_T.reshape(-1, block_q):
    seen: set[int] = set()
    gaps = np.flatnonzero(np.diff(block) > 1)
    for piece in np.split(block, gaps + 1):
      first = int(piece[0])
      last = int(piece[-1])
      first_key = 0 if reach.before is None else max(0, first - reach.before)
      last_key = keys - 1 if reach.after is None else min(keys - 1, last + reach.after)
      seen.update(range(first_key // block_k, last_key // block_k + 1))
    pairs += len(seen)
  return pairs


def block_sizes(cut: Cut, S: int, reach: Reach) -> tuple[int, int]:
  """Blocks of the queries of a device, which if possible lie in one of its pieces, and of S keys."""
  queries = padded_length(cut.tokens * cut.pieces)
  unit = queries
  if cut.tokens % LANES == 0:
    unit = cut.tokens
  return block_size(queries, reach, unit), block_size(padded_length(S), reach)


def block_size(length: int, reach: Reach, unit: int = 0) -> int:
  """The largest block that divides a length.

  At most LARGEST; under a mask at most a quarter of the length, and half of a window, but no less than SMALLEST for it:
  smaller blocks take longer to begin than to compute. `unit`: what it divides instead.
  """
  most = LARGEST
  if not reach.is_whole:
    most = min(LARGEST, max(LANES, length // 4))
  if reach.before is not None:
    most = min(most, max(SMALLEST, (reach.before + 1) // 2))
  divided = unit or length
  largest = LANES
  for block in range(LANES, most + 1, LANES):
    if divided % block == 0:
      largest = block
  return largest


def _call(
    kernel: Any,
    q_BTNH: jax.Array,
    k_BSKH: jax.Array,
    v_BSKH: jax.Array,
    query: Tokens,
    key: Tokens,
    sinks_N: jax.Array | None,
) -> jax.Array:
  T = q_BTNH.shape[1]
  q_BNTH = padded(q_BTNH).swapaxes(1, 2)
  k_BKSH = padded(k_BSKH).swapaxes(1, 2)
  v_BKSH = padded(v_BSKH).swapaxes(1, 2)
  segments = library.SegmentIds(
      padded(query['segments']),
      padded(key['segments'], PADDING),
  )
  of_rows = jax.vmap(kernel, in_axes=(0, 0, 0, 0, None))
  out_BNTH = of_rows(q_BNTH, k_BKSH, v_BKSH, segments, sinks_N)
  return out_BNTH.swapaxes(1, 2)[:, :T]


def padded_length(length: int) -> int:
  return -(-length // LANES) * LANES


def with_padding(slots: np.ndarray) -> np.ndarray:
  """Slots [devices, T] of queries, those of padding being the last."""
  T = slots.shape[1]
  places = np.minimum(np.arange(padded_length(T)), T - 1)
  return slots[:, places]


def padded(x: jax.Array, value: int = 0) -> jax.Array:
  """An array [B, length, ..] whose length is padded."""
  missing = -x.shape[1] % LANES
  if not missing:
    return x
  widths = [(0, 0)] * x.ndim
  widths[1] = (0, missing)
  return jnp.pad(x, widths, constant_values=value)


def _kernel(
    reach: Reach,
    cut: Cut,
    S: int,
    heads: int,
    interpret: bool,
    softcap: float,
) -> Any:
  """The library's kernel for the mask of the queries of all devices on S keys."""
  T = cut.tokens * cut.pieces
  shards = cut.devices
  mask: Any = None
  if reach.is_whole:
    queries = padded_length(T)
    keys = padded_length(S)
    mask = splash_attention_mask.FullMask((queries, keys))
    block_q = block_size(queries, reach)
    block_k = block_size(keys, reach)
    shards = 1
  else:
    mask = Pieces(cut.slots(), S, reach)
    block_q, block_k = block_sizes(cut, S, reach)
  sizes = library.BlockSizes(
      block_q=block_q,
      block_kv=block_k,
      block_kv_compute=block_k,
      block_q_dkv=block_q,
      block_kv_dkv=block_k,
      block_kv_dkv_compute=block_k,
      use_fused_bwd_kernel=True,
  )
  return library.make_splash_mha(
      splash_attention_mask.MultiHeadMask([mask] * heads),
      head_shards=1,
      q_seq_shards=shards,
      block_sizes=sizes,
      residual_checkpoint_name='context',
      attn_logits_soft_cap=softcap or None,
      interpret=interpret,
  )
