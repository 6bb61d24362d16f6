"""Architectures. `build` turns a ModelConfig into plain functions of plain nested dicts.

Flax NNX lives on this side of the seam only: modules are made and taken apart inside `init`,
`hidden`, `logits` and `extend`, and everybody else sees a nested dict of arrays.
"""
import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from t5like.model.attention import Attention
from t5like.model.layers import MLP, Dense, Embed, LearnedPositions, Norm, dropout
from t5like.sharding import in_use, spread_rows


@dataclasses.dataclass(frozen=True)
class ModelConfig:
  """`config.model`, with every size known. Keys are explained in `configs/base.py`."""
  name: str
  vocab_size: int
  d_model: int
  num_layers: int
  num_heads: int
  num_kv_heads: int
  head_dim: int
  d_ff: int
  activation: str
  norm: str
  norm_eps: float
  use_bias: bool
  position: str
  rope_theta: float
  max_positions: int
  tie_embeddings: bool
  qk_norm: bool
  logit_softcap: float
  dropout: float
  init: str
  dtype: str
  param_dtype: str
  attention: str
  scan_layers: bool
  remat: str

  def size(self, dim):
    """Size of a dimension by its letter; T is the number of learned positions."""
    return dict(V=self.vocab_size, D=self.d_model, L=self.num_layers, N=self.num_heads,
                K=self.num_kv_heads, H=self.head_dim, F=self.d_ff, T=self.max_positions)[dim]

  @property
  def residual_scale(self):
    """Projections into the residual stream start smaller, for 2 L of them add up (GPT-2)."""
    return (2 * self.num_layers) ** -0.5


class Block(nnx.Module):
  """x + attention(norm(x)), then x + mlp(norm(x)): pre-norm."""

  def __init__(self, c, key):
    k_attention, k_mlp = jax.random.split(key)
    self.c = c
    self.attention_norm, self.attention = Norm(c), Attention(c, k_attention)
    self.mlp_norm, self.mlp = Norm(c), MLP(c, k_mlp)

  def __call__(self, x_BTD, query, keys, key=None, cache=None, at=0):
    k_attention, k_mlp = (None, None) if key is None else jax.random.split(key)
    y, cache = self.attention(self.attention_norm(x_BTD), query, keys, cache, at)
    x_BTD += dropout(y, self.c.dropout, k_attention)
    x_BTD = checkpoint_name(x_BTD, 'middle')
    x_BTD += dropout(self.mlp(self.mlp_norm(x_BTD)), self.c.dropout, k_mlp)
    return x_BTD, cache


POLICIES = jax.checkpoint_policies
REMAT = dict(  # what the backward pass finds saved; the rest it computes again
    full=POLICIES.nothing_saveable,
    minimal=POLICIES.save_only_these_names('qkv', 'context', 'middle', 'mlp'),
)


class Stack(nnx.Module):
  """L blocks whose parameters are stacked on a leading axis, run by one `scan`, then a norm."""

  def __init__(self, c, key):
    self.c, self.norm = c, Norm(c)
    self.blocks = jax.vmap(functools.partial(Block, c))(jax.random.split(key, c.num_layers))

  def __call__(self, x_BTD, query, keys, key=None, cache=None, at=0):
    """Returns (x_BTD, cache). `query`, `keys`: positions and segments of x and of what it attends to."""
    def body(x, block_key_cache):
      block, key, cache = block_key_cache
      return block(x, query, keys, key, cache, at)
    c = self.c
    if c.remat != 'none':
      body = jax.checkpoint(body, policy=REMAT[c.remat], prevent_cse=not c.scan_layers)
    random_L = None if key is None else jax.random.split(key, c.num_layers)
    # `unroll` copies the body instead of looping over it; parameters stay stacked either way.
    x_BTD, cache = jax.lax.scan(body, x_BTD, (self.blocks, random_L, cache),
                                unroll=1 if c.scan_layers else c.num_layers)
    return self.norm(x_BTD), cache


class Decoder(nnx.Module):
  """Causal language model: embed, stack, predict."""

  def __init__(self, c, key):
    k_embed, k_positions, k_stack, k_head = jax.random.split(key, 4)
    self.c, self.embed, self.stack = c, Embed(c, k_embed), Stack(c, k_stack)
    if c.position == 'learned':
      self.positions = LearnedPositions(c, k_positions)
    if not c.tie_embeddings:
      self.head = Dense(dataclasses.replace(c, use_bias=False), 'BTD,DV->BTV', k_head)

  def hidden(self, batch, key=None, keys=None, cache=None, at=0):
    """Returns (x_BTD, cache). `keys` are the positions and segments of what the cache holds."""
    k_embed, k_stack = (None, None) if key is None else jax.random.split(key)
    x_BTD = self.embed.encode(batch['inputs'])
    if self.c.position == 'learned':
      x_BTD += self.positions(batch['positions'])
    x_BTD = dropout(x_BTD, self.c.dropout, k_embed)
    return self.stack(x_BTD, batch, batch if keys is None else keys, k_stack, cache, at)

  def logits(self, x_BTD):
    """[B, T, V] fp32."""
    logits_BTV = (self.embed.decode if self.c.tie_embeddings else self.head)(x_BTD)
    logits_BTV = logits_BTV.astype(jnp.float32)
    cap = self.c.logit_softcap
    return cap * jnp.tanh(logits_BTV / cap) if cap else logits_BTV


ARCHITECTURES = dict(decoder=Decoder)


@dataclasses.dataclass(frozen=True)
class Model:
  """An architecture as functions of `params`, a nested dict of arrays. Call them inside `jit`.

  init(key) -> params
  hidden(params, batch, key) -> x_BTD, the last layer's output; key None: no dropout
  logits(params, x_BTD) -> logits_BTV, fp32
  extend(params, batch, keys, cache, at) -> (logits_BTV, cache), for decoding: `batch` holds the new
    tokens (inputs, positions, segments, [B, T]), written to cache slots at .. at + T; `keys` the
    positions and segments of all S slots, those of the new tokens included
  """
  config: ModelConfig
  init: Callable[..., Any]
  hidden: Callable[..., Any]
  logits: Callable[..., Any]
  extend: Callable[..., Any]

  def apply(self, params, batch, key=None):
    """logits_BTV, fp32."""
    return self.logits(params, self.hidden(params, batch, key))


def build(c):
  """Model of a ModelConfig; needs a mesh in force (`jax.set_mesh`)."""
  make = ARCHITECTURES[c.name]
  graph, _ = nnx.split(nnx.eval_shape(lambda: make(c, jax.random.key(0))))

  def init(key):
    return nnx.to_pure_dict(nnx.state(make(c, key)))

  def hidden(params, batch, key=None):
    return nnx.merge(graph, params).hidden(spread_rows(batch), key)[0]

  def logits(params, x_BTD):
    return nnx.merge(graph, params).logits(x_BTD)

  def extend(params, batch, keys, cache, at):
    model = nnx.merge(graph, params)
    x_BTD, cache = model.hidden(spread_rows(batch), keys=spread_rows(keys), cache=cache, at=at)
    return model.logits(x_BTD), cache

  return Model(c, init, hidden, logits, extend)


def empty_cache(c, batch_size, slots):
  """(keys, values), each [L, B, S, K, H]."""
  shape = (c.num_layers, batch_size, slots, c.num_kv_heads, c.head_dim)
  return tuple(jnp.zeros(shape, c.dtype, out_sharding=in_use('LBSKH')) for _ in 'kv')


def count_params(model):
  """Exact number of parameters, without making them."""
  return sum(x.size for x in jax.tree.leaves(jax.eval_shape(model.init, jax.random.key(0))))


def flops_per_token(c, num_params, seq_len):
  """Multiplications and additions of one training token, forward and backward.

  The convention of PaLM (Chowdhery et al. 2022, appendix B): 6 per parameter that multiplies, plus
  12 L N H T for attention, uncut by the causal mask. Tables that are only looked up do not count.
  """
  lookups = (0 if c.tie_embeddings else c.vocab_size * c.d_model)
  lookups += c.max_positions * c.d_model if c.position == 'learned' else 0
  return 6 * (num_params - lookups) + 12 * c.num_layers * c.num_heads * c.head_dim * seq_len
