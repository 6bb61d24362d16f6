"""Attention on TPUs: JAX's splash kernel, which makes no [T, S] array and skips blocks that a mask empties.

It runs on what one device holds, inside `shard_map`. Prefixes, which splash has no mask for, take two
calls: one for the queries of prefixes, which see the prefix whole, one causal for the others.
"""
import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as library, splash_attention_mask
from jax.sharding import NamedSharding, PartitionSpec

from t5like.kernels.visits import Visits

LANES = 128  # lengths are padded to a multiple of it
PADDING = -1  # segment of padding among keys: no query is in it
# Blocks of queries and keys: the largest that fit the compiler's share of VMEM on every TPU at a head size
# of 128. With short sequences a causal mask wastes part of the blocks on the diagonal: smaller ones then.
LARGEST = 1024


def prepare(q_BTNH, k_BSKH, causal, has_prefix, interpret):
  """({mask: kernel}, {mask: its specs for `shard_map`}) for arrays that are spread over a mesh.

  The masks that `attention` needs are 'causal', 'full' or, with prefixes under a causal mask, both. Queries may be
  spread over 'context'; keys are not. What the backward pass needs is named 'context', for `jax.checkpoint` policies.
  `interpret`: not on a TPU.
  """
  mesh = jax.sharding.get_abstract_mesh()
  pieces = 1 if mesh.empty else mesh.shape['context']
  heads = q_BTNH.shape[2] // (1 if mesh.empty else mesh.shape['tensor'])
  T, S = q_BTNH.shape[1] // pieces, k_BSKH.shape[1]
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
  by_rows = NamedSharding(mesh, PartitionSpec(None, 'context'))
  specs = {mask: kernel.manual_sharding_spec(by_rows) if mask == 'causal' else
           jax.tree.map(lambda x: PartitionSpec(), kernel) for mask, kernel in kernels.items()}
  return jax.tree.map(jax.sharding.reshard, kernels, specs), specs


def attention(kernels, q_BTNH, k_BSKH, v_BSKH, query, key, scale):
  """softmax(scale q k) v, [B, T, N, H], of one device; `query`, `key`: see `make_mask` of model/attention.py.

  kernels: of `prepare`; under a causal mask all T = S, or T is this device's piece of S.
  """
  (B, T, N, H), S = q_BTNH.shape, k_BSKH.shape[1]

  def under(mask, key):
    # Readers of compiled programs know by the label what the call computes.
    label = Visits(mask, B, N, H, *visits(T, S, mask == 'causal')).label
    with jax.named_scope(label):
      return _call(kernels[mask], q_BTNH * scale, k_BSKH, v_BSKH, query, key)
  if 'causal' not in kernels:
    return under('full', key)
  if 'full' not in kernels:
    return under('causal', key)
  prefix = dict(key, segments=jnp.where(key['prefix'], key['segments'], PADDING))
  return jnp.where(query['prefix'][:, :, None, None], under('full', prefix), under('causal', key))


class CausalPieces(splash_attention_mask.CausalMask):
  """The causal mask of `pieces` x T queries on S keys, each piece padded to a multiple of LANES.

  Rows of padding see what the last query of their piece sees.
  """

  def __init__(self, T, S, pieces):
    padded = _padded_length(T)
    super().__init__((pieces * padded, _padded_length(S)))
    place = np.minimum(np.arange(padded), T - 1)
    self.q_sequence = (np.arange(pieces)[:, None] * T + place[None]).reshape(-1).astype(np.int32)

  def __getitem__(self, rows_columns):
    # The library asks for every block of the mask, several times. Of those that are all seen, or not at all, one
    # element tells as much, and a mask of 131,072 x 131,072 takes a second instead of a minute.
    rows, columns = rows_columns
    first, last = self.q_sequence[rows.start], self.q_sequence[rows.stop - 1]
    if first >= columns.stop - 1:
      return np.ones((1, 1), bool)
    if last < columns.start:
      return np.zeros((1, 1), bool)
    return super().__getitem__(rows_columns)


def visits(T, S, causal):
  """(block of queries, block of keys, pairs of blocks) of a device that has T queries and all S keys.

  Of the pieces of a row that is spread over devices the last sees most: the pairs are those of its forward pass, and
  of its backward pass, for one head and row.
  """
  T, S = _padded_length(T), _padded_length(S)
  block_q, block_kv = block_size(T, causal), block_size(S, causal)
  pairs = 0
  for end in range(S - T + block_q, S + 1, block_q):
    pairs += -(-end // block_kv) if causal else S // block_kv
  return block_q, block_kv, pairs


def _call(kernel, q_BTNH, k_BSKH, v_BSKH, query, key):
  T = q_BTNH.shape[1]
  q_BNTH = _padded(q_BTNH, 1).swapaxes(1, 2)
  k_BKSH, v_BKSH = (_padded(x, 1).swapaxes(1, 2) for x in (k_BSKH, v_BSKH))
  segments = library.SegmentIds(_padded(query['segments'], 1), _padded(key['segments'], 1, PADDING))
  return jax.vmap(kernel)(q_BNTH, k_BKSH, v_BKSH, segments).swapaxes(1, 2)[:, :T]


def _padded_length(n):
  return -(-n // LANES) * LANES


def _padded(x, axis, value=0):
  missing = -x.shape[axis] % LANES
  return jnp.pad(x, [(0, missing * (a == axis)) for a in range(x.ndim)], constant_values=value) if missing else x


def _kernel(mask, heads, pieces, interpret):
  causal = isinstance(mask, CausalPieces)
  rows, columns = mask.shape
  q, kv = block_size(rows // pieces, causal), block_size(columns, causal)
  sizes = library.BlockSizes(block_q=q, block_kv=kv, block_kv_compute=kv, block_q_dkv=q, block_kv_dkv=kv,
                             block_kv_dkv_compute=kv, use_fused_bwd_kernel=True)
  return library.make_splash_mha(
      splash_attention_mask.MultiHeadMask([mask] * heads), head_shards=1, q_seq_shards=pieces, block_sizes=sizes,
      residual_checkpoint_name='context', interpret=interpret)


def block_size(length, causal):
  """The largest block that divides a length: at most LARGEST, and a quarter of the length under a causal mask."""
  most = min(LARGEST, max(LANES, length // 4)) if causal else LARGEST
  return max(b for b in range(LANES, most + 1, LANES) if length % b == 0)
