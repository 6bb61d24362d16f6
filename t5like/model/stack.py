"""Blocks, and the stack of them that every architecture is made of."""
import jax
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from t5like.model.attention import Attention, bias_for, choose_kernel, pieces, platform
from t5like.model.layers import MLP, Norm, RelativeBias, dropout


class Block(nnx.Module):
  """Attention, cross-attention if there is an encoder, MLP; `model.block` says where the norms are."""

  def __init__(self, c, key, causal, cross=False):
    k_attention, k_cross, k_mlp = jax.random.split(key, 3)
    self.c, self.is_crossed = c, cross
    self.attention_norm, self.attention = Norm(c), Attention(c, k_attention, causal)
    if cross:
      self.cross_norm, self.cross = Norm(c), Attention(c, k_cross, causal=False, cross=True)
    self.mlp_norm, self.mlp = Norm(c), MLP(c, k_mlp)

  def __call__(self, x_BTD, view, random=None, cache=None, at=0):
    """Returns (x_BTD, kv). `view`: see Stack. With a cache (self_kv, cross_kv), pairs of [B, S, K, H], x sees what is
    there and its own keys and values, which are returned, to be put in it at slot `at`; else kv is None."""
    c = self.c
    r = [None] * 6 if random is None else jax.random.split(random, 6)
    before = lambda x, norm: norm(x) if c.block in ('pre_norm', 'parallel') else x

    def add(x, y, norm, random):
      y = dropout(norm(y) if c.block == 'output_norm' else y, c, random)
      return norm(x + y) if c.block == 'post_norm' else x + y

    y = before(x_BTD, self.attention_norm)
    kv = self.attention.keys_values(y, view['query']['positions'])
    new = None
    if cache is not None:
      new = tuple(x.astype(old.dtype) for old, x in zip(cache[0], kv))
      kv = tuple(jax.lax.dynamic_update_slice(old, x, (0, at, 0, 0)) for old, x in zip(cache[0], new))
    y = self.attention(y, kv, view['query'], view['keys'], view['bias'], r[0])
    after = add(x_BTD, y, self.attention_norm, r[1])
    if self.is_crossed:
      kv = cache[1] if cache is not None else self.remember(view['memory'])
      y = self.cross(before(after, self.cross_norm), kv, view['query'], view['memory'], None, r[2])
      after = add(after, y, self.cross_norm, r[3])
    after = checkpoint_name(after, 'middle')
    y = self.mlp(before(x_BTD if c.block == 'parallel' else after, self.mlp_norm), r[4])
    return add(after, y, self.mlp_norm, r[5]), new

  def remember(self, memory):
    """Keys and values of the encoder's output, for this block's cross-attention."""
    return self.cross.keys_values(memory['x'], memory['positions'])


POLICIES = jax.checkpoint_policies
REMAT = dict(  # what the backward pass finds saved; the rest it computes again
    full=POLICIES.nothing_saveable,
    minimal=POLICIES.save_only_these_names('qkv', 'context', 'middle', 'mlp'),
    # Gathered once a step instead of twice, for as much memory as the parameters need in `model.dtype`.
    weights=POLICIES.save_only_these_names('qkv', 'context', 'middle', 'mlp', 'weights'),
)


class Stack(nnx.Module):
  """L blocks whose parameters are stacked on a leading axis, run by one `scan`, then a norm."""

  def __init__(self, c, key, causal, cross=False, num_layers=0):
    k_blocks, k_bias = jax.random.split(key)
    self.c, self.num_layers = c, num_layers or c.num_layers
    make = lambda key: Block(c, key, causal, cross)
    self.blocks = jax.vmap(make)(jax.random.split(k_blocks, self.num_layers))
    self.has_bias, self.has_norm = c.position == 'relative', c.block != 'post_norm'
    if self.has_bias:
      self.relative = RelativeBias(c, not causal, k_bias)
    if self.has_norm:
      self.norm = Norm(c)

  def __call__(self, x_BTD, query, keys, memory=None, random=None, cache=None, at=0):
    """Returns (x_BTD, cache). `query`, `keys`: positions and segments of x and of what it attends to;
    `memory`: those of the encoder's output, and x, that output [B, S, D] (not needed with a cache)."""
    c = self.c
    T, S = x_BTD.shape[1], keys['positions'].shape[1]
    bias = None
    if self.has_bias:
      kernel, _ = choose_kernel(c.attention, platform(), not self.relative.bidirectional, T, S, True,
                                bool(random is not None and c.dropout), pieces())
      bias = bias_for(kernel, self.relative(T, S, at), T, S)
    view = dict(query=query, keys=keys, memory=memory, bias=bias)

    def body(x, block_random_cache):
      block, random, cache = block_random_cache
      return block(x, view, random, cache, at)
    if c.remat != 'none':
      body = jax.checkpoint(body, policy=REMAT[c.remat], prevent_cse=not c.scan_layers)
    r_blocks, r_last = (None, None) if random is None else jax.random.split(random)
    r_L = None if random is None else jax.random.split(r_blocks, self.num_layers)
    # `unroll` copies the body instead of looping over it; parameters stay stacked either way.
    x_BTD, new = jax.lax.scan(body, x_BTD, (self.blocks, r_L, cache), unroll=1 if c.scan_layers else self.num_layers)
    if cache is not None:
      # Here, in one piece: layers that returned their caches would copy all of them for each token.
      cache = (tuple(jax.lax.dynamic_update_slice(old, x, (0, 0, at, 0, 0)) for old, x in zip(cache[0], new)), cache[1])
    if self.has_norm:
      x_BTD = self.norm(x_BTD)
    return dropout(x_BTD, c, r_last) if c.dropout_style == 't5' else x_BTD, cache
