"""Blocks, and the stack of them that every architecture is made of."""
import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from t5like import choices
from t5like.model import side_values
from t5like.model.attention import Attention, bias_for, platform
from t5like.model.attention_kernels import choose_kernel, spec_of
from t5like.model.layers import MLP, POSITIONS, Norm, declare, dropout, place
from t5like.parameters import of_layers


class Block(nnx.Module):
  """Attention, cross-attention if there is an encoder, MLP; `model.block` says where the norms are."""

  def __init__(self, c, key, causal, cross=False):
    k_attention, k_cross, k_mlp = jax.random.split(key, 3)
    self.c, self.kind, self.is_crossed = c, choices.BLOCKS[c.block], cross
    self.attention_norm = place(Norm(c), layer='attention_norm')
    self.attention = place(Attention(c, k_attention, causal), layer='attention')
    if cross:
      self.cross_norm = place(Norm(c), layer='cross_norm')
      self.cross = place(Attention(c, k_cross, causal=False, cross=True), layer='cross')
    self.mlp_norm = place(Norm(c), layer='mlp_norm')
    self.mlp = place(MLP(c, k_mlp), layer='mlp')

  def __call__(self, x_BTD, view, random=None, cache=None, at=0):
    """Returns (x_BTD, cache, side values by name: see `side_values.py`). `view`: see Stack. With a cache (self_kv,
    cross_kv), pairs of [B, K, S, H], x sees what is there and its own keys and values, which are put in it at slot
    `at`; else it is None."""
    decoding = cache is not None
    r = [None] * 6 if random is None else jax.random.split(random, 6)
    y = self._before(x_BTD, self.attention_norm)
    kv = self.attention.keys_values(y, view['query']['positions'])
    if decoding:
      kv = tuple(jax.lax.dynamic_update_slice(old, x.astype(old.dtype), (0, 0, at, 0))
                 for old, x in zip(cache[0], heads_first(kv)))
      cache = (kv, cache[1])
    side = side_values.Collector(view['query']['segments'])
    y = side.take(self.attention(y, kv, view['query'], view['keys'], view['bias'], r[0], decoding))
    after = self._add(x_BTD, y, self.attention_norm, r[1])
    if self.is_crossed:
      kv = cache[1] if decoding else self.remember(view['memory'])
      read = self._before(after, self.cross_norm)
      y = side.take(self.cross(read, kv, view['query'], view['memory'], None, r[2], decoding))
      after = self._add(after, y, self.cross_norm, r[3])
    after = checkpoint_name(after, 'middle')
    read = x_BTD if self.kind.parallel else after
    y = side.take(self.mlp(self._before(read, self.mlp_norm), r[4]))
    return self._add(after, y, self.mlp_norm, r[5]), cache, side.sums

  def _before(self, x, norm):
    """What attention or the MLP reads of x."""
    return norm(x) if self.kind.norm_input else x

  def _add(self, x, y, norm, random):
    """x with y, which attention or the MLP has made of it."""
    if self.kind.norm_output:
      y = norm(y)
    y = dropout(y, self.c, random)
    return norm(x + y) if self.kind.norm_sum else x + y

  def remember(self, memory):
    """Keys and values of the encoder's output, for this block's cross-attention."""
    return self.cross.keys_values(memory['x'], memory['positions'])


def heads_first(kv):
  """Keys and values [B, S, K, H] as [B, K, S, H], which is how caches hold them."""
  return tuple(jnp.swapaxes(x, 1, 2) for x in kv)


POLICIES = jax.checkpoint_policies
# What the backward pass finds saved; the rest it computes again. None: everything is saved.
REMAT = choices.implement('model.remat', choices.REMAT, dict(
    none=None,
    full=POLICIES.nothing_saveable,
    minimal=POLICIES.save_only_these_names('qkv', 'context', 'middle', 'mlp'),
    # Gathered once a step instead of twice, for as much memory as the parameters need in `model.dtype`.
    weights=POLICIES.save_only_these_names('qkv', 'context', 'middle', 'mlp', 'weights'),
))


class Stack(nnx.Module):
  """L blocks whose parameters are stacked on a leading axis, run by one `scan`, then a norm.

  `name`: what the declarations of its parameters call it.
  """

  def __init__(self, c, key, causal, cross=False, num_layers=0, name='stack'):
    k_blocks, k_bias = jax.random.split(key)
    self.c, self.num_layers = c, num_layers or c.num_layers
    make = lambda key: Block(c, key, causal, cross)
    self.blocks = jax.vmap(make)(jax.random.split(k_blocks, self.num_layers))
    declare(self.blocks, of_layers)
    self.has_bias = choices.POSITIONS[c.position].biased
    self.has_norm = not choices.BLOCKS[c.block].norm_sum
    if self.has_bias:
      self.relative = place(POSITIONS[c.position].bias(c, not causal, k_bias), layer='relative')
    if self.has_norm:
      self.norm = place(Norm(c), layer='last_norm')
    place(self, stack=name)

  def __call__(self, x_BTD, query, memory=None, random=None):
    """(x_BTD, side values by name, {} where no layer has any). `query`: positions and segments of x; `memory`: those of
    the encoder's output, and x, that output [B, S, D]."""
    c = self.c
    view = self._view(x_BTD, query, query, memory, random is not None and c.dropout)

    def body(x, block_random):
      block, random = block_random
      x, _, side = block(x, view, random)
      return x, side
    policy = REMAT[c.remat]
    if policy is not None:
      body = jax.checkpoint(body, policy=policy, prevent_cse=not c.scan_layers)
    r_blocks, r_last = (None, None) if random is None else jax.random.split(random)
    r_L = None if random is None else jax.random.split(r_blocks, self.num_layers)
    # `unroll` copies the body instead of looping over it; parameters stay stacked either way.
    x_BTD, side_L = jax.lax.scan(body, x_BTD, (self.blocks, r_L), unroll=1 if c.scan_layers else self.num_layers)
    if self.has_norm:
      x_BTD = self.norm(x_BTD)
    if choices.DROPOUT_STYLES[c.dropout_style].everywhere:
      x_BTD = dropout(x_BTD, c, r_last)
    return x_BTD, side_values.over_layers(side_L)

  def layers(self):
    """[Block], L of them, each with its part of the parameters."""
    return [jax.tree.map(lambda x: x[n], self.blocks) for n in range(self.num_layers)]

  def extend(self, layers, x_BTD, query, keys, memory, cache, at):
    """(x_BTD, cache) of some more tokens. `layers`: those of `layers`; `keys`: positions and segments of all slots of
    the cache, whose parts are those of `Block`, one for each layer; `memory`: see __call__, x is not needed."""
    view, new = self._view(x_BTD, query, keys, memory, False, at), []
    for block, part in zip(layers, cache):
      x_BTD, part, _ = block(x_BTD, view, None, part, at)
      new.append(part)
    return self.norm(x_BTD) if self.has_norm else x_BTD, tuple(new)

  def _view(self, x_BTD, query, keys, memory, drops, at=0):
    """What all layers share."""
    T, S, bias = x_BTD.shape[1], keys['positions'].shape[1], None
    if self.has_bias:
      spec = spec_of(self.c, not self.relative.bidirectional, T, S, bias=True, dropout=bool(drops))
      kernel, _ = choose_kernel(self.c.attention, platform(), spec)
      bias = bias_for(kernel, self.relative(T, S, at), T, S)
    return dict(query=query, keys=keys, memory=memory, bias=bias)
