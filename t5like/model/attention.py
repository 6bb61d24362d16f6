"""Attention: masks from positions and segments, and the one place that picks a kernel."""
import jax
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from t5like.model.layers import Dense, Norm, rope
from t5like.sharding import in_use


def make_mask(query, key, causal):
  """[B, T, S] bool: which keys each query may see.

  `query` and `key` hold `positions` and `segments`, [B, T] and [B, S]; segment 0 is padding.
  """
  mask = query['segments'][:, :, None] == key['segments'][:, None, :]
  mask &= key['segments'][:, None, :] > 0
  if causal:
    mask &= query['positions'][:, :, None] >= key['positions'][:, None, :]
  return mask


def dot_product(q_BTNH, k_BSKH, v_BSKH, query, key, causal=True):
  """softmax(q k / sqrt(H)) v, logits in fp32, N / K queries to each key-value head.

  `query` and `key` are those of `make_mask`. Batch and heads never mix, so each device works alone on
  what it has.
  """
  def attend(q, k, v, query, key):
    # Made here, in every layer: fused into the softmax it costs less than reading a stored mask.
    return jax.nn.dot_product_attention(q, k, v, mask=make_mask(query, key, causal)[:, None])
  dims = dict(positions='BT', segments='BT')
  in_specs = (in_use('BTNH'), in_use('BSKH'), in_use('BSKH'), *[{k: in_use(d) for k, d in dims.items()}] * 2)
  of = lambda info: {k: info[k] for k in dims}
  return jax.shard_map(attend, in_specs=in_specs, out_specs=in_specs[0])(
      q_BTNH, k_BSKH, v_BSKH, of(query), of(key))


class Attention(nnx.Module):
  """Multi-head attention with grouped key-value heads (Ainslie et al. 2023, arXiv 2305.13245)."""

  def __init__(self, c, key):
    k_q, k_k, k_v, k_o = jax.random.split(key, 4)
    self.c = c
    self.q = Dense(c, 'BTD,DNH->BTNH', k_q)
    self.k = Dense(c, 'BSD,DKH->BSKH', k_k)
    self.v = Dense(c, 'BSD,DKH->BSKH', k_v)
    self.o = Dense(c, 'BTNH,NHD->BTD', k_o, scale=c.residual_scale)
    if c.qk_norm:
      self.q_norm, self.k_norm = Norm(c, 'H'), Norm(c, 'H')

  def __call__(self, x_BTD, query, key, cache=None, at=0):
    """Returns (out_BTD, cache). A cache (k_BSKH, v_BSKH) takes the new keys and values at slot `at`.

    `query` and `key` hold positions and segments, of x and of all that is attended to.
    """
    c, positions_BT = self.c, query['positions']
    q, k, v = self.q(x_BTD), self.k(x_BTD), self.v(x_BTD)
    if c.qk_norm:
      q, k = self.q_norm(q), self.k_norm(k)
    if c.position == 'rope':
      q, k = rope(q, positions_BT, c.rope_theta), rope(k, positions_BT, c.rope_theta)
    q, k, v = (checkpoint_name(t, 'qkv') for t in (q, k, v))
    if cache is not None:
      k, v = cache = tuple(jax.lax.dynamic_update_slice(old, new.astype(old.dtype), (0, at, 0, 0))
                           for old, new in zip(cache, (k, v)))
    out_BTNH = checkpoint_name(dot_product(q, k, v, query, key), 'context')
    return self.o(out_BTNH), cache
