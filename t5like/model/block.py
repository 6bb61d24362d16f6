"""Blocks: attention, cross-attention and MLP, with norms where `model.block` says."""
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from t5like import choices
from t5like.model import side_values
from t5like.model.attention import ALONE, Attention, KeysValues, Matrices
from t5like.model.attention_kernels import Info
from t5like.model.config import ModelConfig
from t5like.model.experts import Experts
from t5like.model.initial import place
from t5like.model.layers import MLP, Norm, dropout, split_keys
from t5like.model.positions import POSITIONS
from t5like.model.side_values import Sums

Slot = int | jax.Array  # of a cache
FEED_FORWARD = {False: 'mlp', True: 'experts'}  # is a block sparse? -> its attribute


class LayerCache(NamedTuple):
  """Keys and values of a layer, heads first: of its own tokens, and of the encoder's output if there is one."""
  own: KeysValues
  cross: KeysValues | None


class View(NamedTuple):
  """What all layers of a stack share.

  query: positions and segments of x.
  keys: those of the tokens that x sees in its own stack.
  memory: those of the encoder's output, and x, that output [B, S, D]; None where there is no encoder.
  bias: of attention logits, as the kernel takes it.
  kind: of the layer.
  bias_of: makes the bias of a layer that has a module for it.
  """
  query: Info
  keys: Info
  memory: Info | None
  bias: jax.Array | None
  kind: choices.LayerKind
  bias_of: Callable[[Any], jax.Array] | None = None


class BlockResult(NamedTuple):
  """Output of a block, [B, T, D], the cache with x, and side values by name (`side_values.py`)."""
  x_BTD: jax.Array
  cache: LayerCache | None
  side: dict[str, Sums]


class Block(nnx.Module):
  """Attention, cross-attention if there is an encoder, MLP or experts; `model.block` says where the norms are."""
  mlp: MLP
  experts: Experts

  def __init__(
      self,
      c: ModelConfig,
      key: jax.Array,
      causal: bool,
      cross: bool = False,
      sparse: bool | None = False,
  ) -> None:
    """Makes the parameters.

    Args:
      c: the ModelConfig.
      key: of jax.random.
      causal: tokens see no later ones.
      cross: whether it reads an encoder's output.
      sparse: whether it has experts instead of an MLP; None: it has neither, yet.
    """
    k_attention, k_cross, _ = jax.random.split(key, 3)
    position = choices.POSITIONS[c.position]
    self.c = c
    self.kind = choices.BLOCKS[c.block]
    self.is_crossed = cross
    self.attention_norm = place(Norm(c), layer='attention_norm')
    attention = Attention(c, k_attention, causal)
    self.attention = place(attention, layer='attention')
    if cross:
      self.cross_norm = place(Norm(c), layer='cross_norm')
      reader = Attention(c, k_cross, causal=False, cross=True)
      self.cross = place(reader, layer='cross')
    self.mlp_norm = place(Norm(c), layer='mlp_norm')
    if sparse is not None:
      setattr(self, FEED_FORWARD[sparse], feed_forward(c, key, sparse))
    self.has_own_bias = position.biased and position.per_layer
    if self.has_own_bias:
      k_bias = jax.random.fold_in(key, 1)
      self.relative = relative_bias(c, causal, k_bias)
    # Of what a part writes, where another norm is of what it reads.
    if self.kind.has_two:
      self.attention_out_norm = place(Norm(c), layer='attention_out_norm')
      self.mlp_out_norm = place(Norm(c), layer='mlp_out_norm')
    if self.kind.has_two and cross:
      self.cross_out_norm = place(Norm(c), layer='cross_out_norm')

  def __call__(
      self,
      x_BTD: jax.Array,
      view: View,
      random: jax.Array | None = None,
      cache: LayerCache | None = None,
      at: Slot = 0,
      bare: jax.Array | None = None,
  ) -> BlockResult:
    """One block.

    Args:
      x_BTD: its input.
      view: what all layers share.
      random: key of dropout; None: there is none.
      cache: of earlier tokens, in decoding: x sees what is there and its own keys and values, which are written to it.
      at: slot of the cache of the first token of x.
      bare: bool [], whether attention reads x as it is; None: it does not.
    """
    r = split_keys(random, 6)
    side = side_values.Collector(view.query['segments'])
    y = self._before(x_BTD, self.attention_norm)
    if bare is not None:
      y = jnp.where(bare, x_BTD, y)
    decoding = cache is not None
    matrices = ALONE if decoding else self.attention.matrices()
    kv = self.attention.keys_values(y, view.query['positions'], view.kind, matrices)
    if cache is not None:
      kv = _written(cache.own, kv, at)
      cache = cache._replace(own=kv)
    bias = view.bias
    if self.has_own_bias:
      assert view.bias_of is not None, 'a stack with biases makes them for layers that have a module'
      bias = view.bias_of(self.relative)
    y = self.attention(y, kv, view.query, view.keys, bias, r[0], decoding, view.kind, matrices)
    y = side.take(y)
    after = self._add(x_BTD, y, 'attention', r[1])
    if self.is_crossed:
      matrices = ALONE if decoding else self.cross.matrices()
      memory, kv = self._memory(view, cache, matrices)
      read = self._before(after, self.cross_norm)
      y = self.cross(read, kv, view.query, memory, None, r[2], decoding, matrices=matrices)
      y = side.take(y)
      after = self._add(after, y, 'cross', r[3])
    after = checkpoint_name(after, 'middle')
    read = after
    if self.kind.parallel:
      read = x_BTD
    read = self._before(read, self.mlp_norm)
    if hasattr(self, FEED_FORWARD[True]):
      y = self.experts(read, view.query['segments'], r[4])
    else:
      y = self.mlp(read, r[4])
    y = side.take(y)
    x_BTD = self._add(after, y, 'mlp', r[5])
    return BlockResult(x_BTD, cache, side.sums)

  def _memory(self, view: View, cache: LayerCache | None, matrices: Matrices) -> tuple[Info, KeysValues]:
    """(tokens of the encoder's output, its keys and values), which decoding has in the cache."""
    assert view.memory is not None, 'cross-attention reads the output of an encoder'
    if cache is None:
      return view.memory, self.remember(view.memory, matrices)
    assert cache.cross is not None, 'the cache of a decoder with an encoder has keys and values of its output'
    return view.memory, cache.cross

  def _before(self, x: jax.Array, norm: Norm) -> jax.Array:
    """What attention or the MLP reads of x."""
    if self.kind.norm_input:
      return norm(x)
    return x

  def _add(
      self,
      x: jax.Array,
      y: jax.Array,
      part: str,
      random: jax.Array | None,
  ) -> jax.Array:
    """x with y, which a part of the block, 'attention', 'cross' or 'mlp', has made of it."""
    name = f'{part}_norm'
    if self.kind.has_two:
      name = f'{part}_out_norm'
    norm = getattr(self, name)
    if self.kind.norm_output:
      y = norm(y)
    y = dropout(y, self.c, random)
    if self.kind.norm_sum:
      return norm(x + y)
    return x + y

  def remember(self, memory: Info, matrices: Matrices = ALONE) -> KeysValues:
    """Keys and values of the encoder's output, for this block's cross-attention."""
    return self.cross.keys_values(memory['x'], memory['positions'], matrices=matrices)


def feed_forward(c: ModelConfig, key: jax.Array, sparse: bool) -> Any:
  """The MLP of a block, or if it is sparse its experts; `key`: that of the block."""
  _, _, k_mlp = jax.random.split(key, 3)
  if sparse:
    return place(Experts(c, k_mlp), layer='experts')
  return place(MLP(c, k_mlp), layer='mlp')


def relative_bias(c: ModelConfig, causal: bool, key: jax.Array) -> Any:
  """The module of a scheme that biases attention logits, of a stack or of one of its layers."""
  make = POSITIONS[c.position].bias
  assert make is not None, 'choices.implement compares schemes with their facts'
  module = make(c, not causal, key)
  return place(module, layer='relative')


def heads_first(kv: KeysValues) -> KeysValues:
  """Keys and values [B, S, K, H] as [B, K, S, H], which is how caches hold them."""
  keys = jnp.swapaxes(kv.keys, 1, 2)
  values = jnp.swapaxes(kv.values, 1, 2)
  return KeysValues(keys, values)


def _written(cache: KeysValues, kv: KeysValues, at: Slot) -> KeysValues:
  """A cache [B, K, S, H] with keys and values [B, T, K, H] from slot `at` on."""
  start = (0, 0, at, 0)
  updated = []
  for old, new in zip(cache, heads_first(kv)):
    new = new.astype(old.dtype)
    written = jax.lax.dynamic_update_slice(old, new, start)
    updated.append(written)
  return KeysValues(*updated)
