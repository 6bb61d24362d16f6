"""Attention on TPUs: JAX's splash kernel, which makes no [T, S] array and skips blocks that a mask empties.

It runs on what one device holds, inside `shard_map`. Prefixes, which splash has no mask for, take two
calls: one for the queries of prefixes, which see the prefix whole, one causal for the others.
"""
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as library, splash_attention_mask
from jax.sharding import NamedSharding, PartitionSpec

from t5like.model.kernels.visits import Visits

LANES = 128  # lengths are padded to a multiple of it
PADDING = -1  # segment of padding among keys: no query is in it
# Blocks of queries and keys: the largest that fit the compiler's share of VMEM on every TPU at a head size
# of 128. With short sequences a causal mask wastes part of the blocks on the diagonal: smaller ones then.
LARGEST = 1024

Tokens = Mapping[str, jax.Array]  # segments: int [B, length]; perhaps prefix: bool [B, length]


def prepare(
    q_BTNH: jax.Array,
    k_BSKH: jax.Array,
    causal: bool,
    has_prefix: bool,
    interpret: bool,
) -> tuple[dict[str, Any], dict[str, Any]]:
  """Kernels for arrays that are spread over a mesh.

  The masks that `attention` needs are 'causal', 'full' or, with prefixes under a causal mask, both. What the backward
  pass needs is named 'context', for `jax.checkpoint` policies.

  Args:
    q_BTNH: queries, which may be spread over 'context'.
    k_BSKH: keys, which are not.
    causal: whether queries see no later keys.
    has_prefix: whether there are prefixes, whose tokens see each other.
    interpret: not on a TPU.

  Returns:
    ({mask: kernel}, {mask: its specs for `shard_map`}).
  """
  mesh = jax.sharding.get_abstract_mesh()
  pieces = 1
  heads = q_BTNH.shape[2]
  if not mesh.empty:
    pieces = mesh.shape['context']
    heads //= mesh.shape['tensor']
  T = q_BTNH.shape[1] // pieces
  S = k_BSKH.shape[1]
  kernels = {}
  if causal:
    kernels['causal'] = _kernel(CausalPieces(T, S, pieces), heads, pieces, interpret)
  if has_prefix or not causal:
    # Every piece of the queries sees all keys, so that one piece's kernel is that of all. (The library's own way to
    # cut kernels into pieces does not take masks without a block that is masked in part.)
    mask = splash_attention_mask.FullMask((_padded_length(T), _padded_length(S)))
    kernels['full'] = _kernel(mask, heads, 1, interpret)
  if mesh.empty:
    return kernels, {}
  specs = {mask: _specs(mask, kernel) for mask, kernel in kernels.items()}
  return jax.tree.map(jax.sharding.reshard, kernels, specs), specs


def _specs(mask: str, kernel: Any) -> Any:
  """PartitionSpecs of a kernel's arrays: by pieces of the queries where these differ, else on every device in full."""
  if mask == 'causal':
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
) -> jax.Array:
  """softmax(scale q k) v, [B, T, N, H], of one device.

  Args:
    kernels: of `prepare`; under a causal mask all T = S, or T is this device's piece of S.
    q_BTNH: queries.
    k_BSKH: keys.
    v_BSKH: values.
    query: of the queries' tokens, see `make_mask` of model/attention.py.
    key: of the keys' tokens.
    scale: of logits.
  """
  B, T, N, H = q_BTNH.shape
  S = k_BSKH.shape[1]

  def under(mask: str, key: Tokens) -> jax.Array:
    block_q, block_k, pairs = visits(T, S, mask == 'causal')
    # Readers of compiled programs know by the label what the call computes.
    label = Visits(mask, B, N, H, block_q, block_k, pairs).label
    with jax.named_scope(label):
      return _call(kernels[mask], q_BTNH * scale, k_BSKH, v_BSKH, query, key)

  if 'causal' not in kernels:
    return under('full', key)
  if 'full' not in kernels:
    return under('causal', key)
  segments = jnp.where(key['prefix'], key['segments'], PADDING)
  in_prefix_BT11 = query['prefix'][:, :, None, None]
  of_prefix_BTNH = under('full', {**key, 'segments': segments})
  return jnp.where(in_prefix_BT11, of_prefix_BTNH, under('causal', key))


class CausalPieces(splash_attention_mask.CausalMask):
  """The causal mask of `pieces` x T queries on S keys, each piece padded to a multiple of LANES.

  Rows of padding see what the last query of their piece sees.
  """

  def __init__(self, T: int, S: int, pieces: int):
    padded = _padded_length(T)
    super().__init__((pieces * padded, _padded_length(S)))
    place = np.minimum(np.arange(padded), T - 1)
    first = np.arange(pieces) * T
    places = first[:, None] + place[None]
    self.q_sequence = places.reshape(-1).astype(np.int32)

  def __getitem__(self, rows_columns: tuple[slice, slice]) -> np.ndarray:
    # The library asks for every block of the mask, several times. Of those that are all seen, or not at all, one
    # element says as much, and a mask of 131,072 x 131,072 takes a second instead of a minute.
    rows, columns = rows_columns
    first = self.q_sequence[rows.start]
    last = self.q_sequence[rows.stop - 1]
    if first >= columns.stop - 1:
      return np.ones((1, 1), bool)
    if last < columns.start:
      return np.zeros((1, 1), bool)
    return super().__getitem__(rows_columns)


def visits(T: int, S: int, causal: bool) -> tuple[int, int, int]:
  """(block of queries, block of keys, pairs of blocks) of a device that has T queries and all S keys.

  Of the pieces of a row that is spread over devices the last sees most: the pairs are those of its forward pass, and
  of its backward pass, for one head and row.
  """
  queries = _padded_length(T)
  keys = _padded_length(S)
  block_q = block_size(queries, causal)
  block_k = block_size(keys, causal)
  if not causal:
    pairs = (queries // block_q) * (keys // block_k)
    return block_q, block_k, pairs
  pairs = 0
  for end in range(keys - queries + block_q, keys + 1, block_q):
    pairs += -(-end // block_k)
  return block_q, block_k, pairs


def block_size(length: int, causal: bool) -> int:
  """The largest block that divides a length: at most LARGEST, and a quarter of the length under a causal mask."""
  most = LARGEST
  if causal:
    most = min(LARGEST, max(LANES, length // 4))
  largest = LANES
  for block in range(LANES, most + 1, LANES):
    if length % block == 0:
      largest = block
  return largest


def _call(
    kernel: Any,
    q_BTNH: jax.Array,
    k_BSKH: jax.Array,
    v_BSKH: jax.Array,
    query: Tokens,
    key: Tokens,
) -> jax.Array:
  T = q_BTNH.shape[1]
  q_BNTH = _padded(q_BTNH).swapaxes(1, 2)
  k_BKSH = _padded(k_BSKH).swapaxes(1, 2)
  v_BKSH = _padded(v_BSKH).swapaxes(1, 2)
  segments = library.SegmentIds(
      _padded(query['segments']),
      _padded(key['segments'], PADDING),
  )
  out_BNTH = jax.vmap(kernel)(q_BNTH, k_BKSH, v_BKSH, segments)
  return out_BNTH.swapaxes(1, 2)[:, :T]


def _padded_length(length: int) -> int:
  return -(-length // LANES) * LANES


def _padded(x: jax.Array, value: int = 0) -> jax.Array:
  """An array [B, length, ..] whose length is padded."""
  missing = -x.shape[1] % LANES
  if not missing:
    return x
  widths = [(0, 0)] * x.ndim
  widths[1] = (0, missing)
  return jnp.pad(x, widths, constant_values=value)


def _kernel(mask: Any, heads: int, pieces: int, interpret: bool) -> Any:
  """The library's kernel for a mask of the queries of all pieces, [queries, keys]."""
  causal = isinstance(mask, CausalPieces)
  queries, keys = mask.shape
  block_q = block_size(queries // pieces, causal)
  block_k = block_size(keys, causal)
  block_sizes = library.BlockSizes(
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
      q_seq_shards=pieces,
      block_sizes=block_sizes,
      residual_checkpoint_name='context',
      interpret=interpret,
  )
