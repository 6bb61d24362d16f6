"""Attention on TPUs: JAX's splash kernel, which makes no [T, S] array and skips blocks that a mask empties.

It runs on what one device holds, inside `shard_map`. Prefixes, which splash has no mask for, take two
calls: one for the queries of prefixes, which see the prefix whole, one causal for the others.
"""
import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernel, splash_attention_mask

LANES = 128  # lengths are padded to a multiple of it
PADDING = -1  # segment of padding among keys: no query is in it
# Blocks of queries and keys: the largest that fit the compiler's share of VMEM on every TPU at a head size
# of 128. With short sequences a causal mask wastes part of the blocks on the diagonal: smaller ones then.
LARGEST = 1024


def attention(q_BTNH, k_BSKH, v_BSKH, query, key, causal, scale, interpret=False):
  """softmax(scale q k) v, [B, T, N, H]; `query`, `key`: see `make_mask` of model/attention.py.

  Under `causal`, T = S. On TPUs, or anywhere with `interpret`, which is slow. What the backward pass needs
  is named 'context', for `jax.checkpoint` policies.
  """
  whole = lambda causal, key: _call(q_BTNH * scale, k_BSKH, v_BSKH, query, key, causal, interpret)
  if not causal or 'prefix' not in query:
    return whole(causal, key)
  prefix = dict(key, segments=jnp.where(key['prefix'], key['segments'], PADDING))
  return jnp.where(query['prefix'][:, :, None, None], whole(False, prefix), whole(True, key))


def _call(q_BTNH, k_BSKH, v_BSKH, query, key, causal, interpret):
  T, N = q_BTNH.shape[1:3]
  q_BNTH = _padded(q_BTNH, 1).swapaxes(1, 2)
  k_BKSH, v_BKSH = (_padded(x, 1).swapaxes(1, 2) for x in (k_BSKH, v_BSKH))
  segments = kernel.SegmentIds(_padded(query['segments'], 1), _padded(key['segments'], 1, PADDING))
  attend = _kernel(q_BNTH.shape[2], k_BKSH.shape[2], N, causal, interpret)
  out_BNTH = jax.vmap(attend)(q_BNTH, k_BKSH, v_BKSH, segments)
  return out_BNTH.swapaxes(1, 2)[:, :T]


def _padded(x, axis, value=0):
  missing = -x.shape[axis] % LANES
  return jnp.pad(x, [(0, missing * (a == axis)) for a in range(x.ndim)], constant_values=value) if missing else x


def _kernel(T, S, heads, causal, interpret):
  mask = splash_attention_mask.CausalMask((T, S)) if causal else splash_attention_mask.FullMask((T, S))
  q, kv = block_size(T, causal), block_size(S, causal)
  sizes = kernel.BlockSizes(block_q=q, block_kv=kv, block_kv_compute=kv, block_q_dkv=q, block_kv_dkv=kv,
                            block_kv_dkv_compute=kv, use_fused_bwd_kernel=True)
  return kernel.make_splash_mha(
      splash_attention_mask.MultiHeadMask([mask] * heads), head_shards=1, q_seq_shards=1, block_sizes=sizes,
      residual_checkpoint_name='context', interpret=interpret)


def block_size(length, causal):
  """The largest block that divides a length: at most LARGEST, and a quarter of the length under a causal mask."""
  most = min(LARGEST, max(LANES, length // 4)) if causal else LARGEST
  return max(b for b in range(LANES, most + 1, LANES) if length % b == 0)
