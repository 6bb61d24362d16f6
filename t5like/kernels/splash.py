"""Attention on TPUs: JAX's splash kernel, which makes no [T, S] array and skips blocks that a mask empties.

It runs on what one device holds, inside `shard_map`. Prefixes, which splash has no mask for, take two
calls: one for the queries of prefixes, which see the prefix whole, one causal for the others.
"""
import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as library, splash_attention_mask

LANES = 128  # lengths are padded to a multiple of it
PADDING = -1  # segment of padding among keys: no query is in it
# Blocks of queries and keys: the largest that fit the compiler's share of VMEM on every TPU at a head size
# of 128. With short sequences a causal mask wastes part of the blocks on the diagonal: smaller ones then.
LARGEST = 1024


def prepare(q_BTNH, k_BSKH, causal, interpret):
  """(kernels, their specs for `shard_map`) for arrays that are spread over a mesh; `interpret`: not on a TPU.

  Queries may be spread over 'context'; keys are not. What the backward pass needs is named 'context', for
  `jax.checkpoint` policies.
  """
  mesh = jax.sharding.get_abstract_mesh()
  pieces = 1 if mesh.empty else mesh.shape['context']
  heads = q_BTNH.shape[2] // (1 if mesh.empty else mesh.shape['tensor'])
  T, S = q_BTNH.shape[1], k_BSKH.shape[1]
  length = lambda n, pieces: -(-n // (LANES * pieces)) * LANES * pieces
  kernels = [_kernel(length(T, pieces), length(S, 1), heads, kind, pieces, interpret)
             for kind in (False, True)[:1 + causal]]
  if mesh.empty:
    return kernels, []
  rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(None, 'context'))
  specs = [kernel.manual_sharding_spec(rows) for kernel in kernels]
  return jax.tree.map(jax.sharding.reshard, kernels, specs), specs


def attention(kernels, q_BTNH, k_BSKH, v_BSKH, query, key, causal, scale):
  """softmax(scale q k) v, [B, T, N, H], of one device; `query`, `key`: see `make_mask` of model/attention.py.

  kernels: of `prepare`. Under `causal` all T = S, or T is this device's piece of S.
  """
  full, *rest = kernels
  whole = lambda kernel, key: _call(kernel, q_BTNH * scale, k_BSKH, v_BSKH, query, key)
  if not causal:
    return whole(full, key)
  (masked,) = rest
  if 'prefix' not in query:
    return whole(masked, key)
  prefix = dict(key, segments=jnp.where(key['prefix'], key['segments'], PADDING))
  return jnp.where(query['prefix'][:, :, None, None], whole(full, prefix), whole(masked, key))


def _call(kernel, q_BTNH, k_BSKH, v_BSKH, query, key):
  T = q_BTNH.shape[1]
  q_BNTH = _padded(q_BTNH, 1).swapaxes(1, 2)
  k_BKSH, v_BKSH = (_padded(x, 1).swapaxes(1, 2) for x in (k_BSKH, v_BSKH))
  segments = library.SegmentIds(_padded(query['segments'], 1), _padded(key['segments'], 1, PADDING))
  return jax.vmap(kernel)(q_BNTH, k_BKSH, v_BKSH, segments).swapaxes(1, 2)[:, :T]


def _padded(x, axis, value=0):
  missing = -x.shape[axis] % LANES
  return jnp.pad(x, [(0, missing * (a == axis)) for a in range(x.ndim)], constant_values=value) if missing else x


def _kernel(T, S, heads, causal, pieces, interpret):
  mask = splash_attention_mask.CausalMask((T, S)) if causal else splash_attention_mask.FullMask((T, S))
  q, kv = block_size(T // pieces, causal), block_size(S, causal)
  sizes = library.BlockSizes(block_q=q, block_kv=kv, block_kv_compute=kv, block_q_dkv=q, block_kv_dkv=kv,
                             block_kv_dkv_compute=kv, use_fused_bwd_kernel=True)
  return library.make_splash_mha(
      splash_attention_mask.MultiHeadMask([mask] * heads), head_shards=1, q_seq_shards=pieces, block_sizes=sizes,
      residual_checkpoint_name='context', interpret=interpret)


def block_size(length, causal):
  """The largest block that divides a length: at most LARGEST, and a quarter of the length under a causal mask."""
  most = min(LARGEST, max(LANES, length // 4)) if causal else LARGEST
  return max(b for b in range(LANES, most + 1, LANES) if length % b == 0)
