"""The parts of a transformer block. Each layer takes its sizes from one ModelConfig `c`.

Suffixes and einsum letters: see `t5like/sharding.py`.
"""
import math

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from t5like.sharding import at_rest, einsum, gather, in_use


def normal(key, c, dims, std):
  """Parameter of the sizes that `dims` name, N(0, std^2), laid out as at rest."""
  shape = tuple(c.size(d) for d in dims)
  return nnx.Param(std * jax.random.normal(key, shape, c.param_dtype, out_sharding=at_rest(dims)))


def constant(value, c, dims):
  shape = tuple(c.size(d) for d in dims)
  return nnx.Param(jnp.full(shape, value, c.param_dtype, out_sharding=at_rest(dims)))


def expand(w, x):
  """w with leading axes of size 1 up to x's rank (implicit rank promotion is an error in tests)."""
  return jnp.expand_dims(w, tuple(range(x.ndim - w.ndim)))


class Dense(nnx.Module):
  """einsum(equation, x, w) + b. The equation fixes the shape, initial scale and layout of w and b.

  Initial weights are N(0, scale^2 / inputs) for init='fan_in', N(0, (0.02 scale)^2) for 'gpt2'.
  """

  def __init__(self, c, equation, key, scale=1.0):
    inputs, out = equation.split('->')
    x_dims, self.dims = inputs.split(',')
    fan_in = math.prod(c.size(d) for d in self.dims if d in x_dims and d not in out)
    std = fan_in ** -0.5 if c.init == 'fan_in' else 0.02
    self.c, self.equation = c, equation
    self.bias_dims = ''.join(d for d in self.dims if d in out)
    self.w = normal(key, c, self.dims, scale * std)
    if c.use_bias:
      self.b = constant(0, c, self.bias_dims)

  def __call__(self, x):
    y = einsum(self.equation, x, gather(self.w[...], self.dims, self.c.dtype))
    if self.c.use_bias:
      y += expand(gather(self.b[...], self.bias_dims, self.c.dtype), y)
    return y


class Norm(nnx.Module):
  """RMSNorm (Zhang & Sennrich 2019) or LayerNorm (Ba et al. 2016) over the last dimension, fp32."""

  def __init__(self, c, dims='D'):
    self.c, self.dims, self.scale = c, dims, constant(1, c, dims)
    if c.norm == 'layernorm' and c.use_bias:
      self.b = constant(0, c, dims)

  def __call__(self, x):
    c, y = self.c, x.astype(jnp.float32)
    if c.norm == 'layernorm':
      y -= jnp.mean(y, -1, keepdims=True)
    y *= jax.lax.rsqrt(jnp.mean(jnp.square(y), -1, keepdims=True) + c.norm_eps)
    y *= expand(gather(self.scale[...], self.dims, jnp.float32), y)
    if c.norm == 'layernorm' and c.use_bias:
      y += expand(gather(self.b[...], self.dims, jnp.float32), y)
    return y.astype(x.dtype)


class Embed(nnx.Module):
  """Token table [V, D]; read forwards it embeds, read backwards it predicts."""

  def __init__(self, c, key):
    self.c = c
    self.w = normal(key, c, 'VD', c.d_model ** -0.5 if c.init == 'fan_in' else 0.02)

  def encode(self, tokens_BT):
    table_VD = gather(self.w[...], 'VD', self.c.dtype)
    return table_VD.at[tokens_BT].get(out_sharding=in_use('BTD'))

  def decode(self, x_BTD):
    return einsum('BTD,VD->BTV', x_BTD, gather(self.w[...], 'VD', self.c.dtype),
                  preferred_element_type=jnp.float32)


class LearnedPositions(nnx.Module):
  """A vector for each position 0 <= p < max_positions, added to the token embedding."""

  def __init__(self, c, key):
    self.c, self.w = c, normal(key, c, 'TD', 0.02)

  def __call__(self, positions_BT):
    table_TD = gather(self.w[...], 'TD', self.c.dtype)
    return table_TD.at[positions_BT].get(out_sharding=in_use('BTD'))


ACTIVATIONS = dict(  # name -> (function, gated); gated units: Shazeer 2020, arXiv 2002.05202
    swiglu=(jax.nn.silu, True),
    geglu=(jax.nn.gelu, True),  # tanh form, as T5 v1.1
    gelu=(lambda x: jax.nn.gelu(x, approximate=False), False),
    gelu_tanh=(jax.nn.gelu, False),
    relu=(jax.nn.relu, False),
)


class MLP(nnx.Module):
  """down(act(up(x))), or down(act(gate(x)) * up(x)) for gated activations."""

  def __init__(self, c, key):
    k_up, k_gate, k_down = jax.random.split(key, 3)
    self.act, self.gated = ACTIVATIONS[c.activation]
    self.up = Dense(c, 'BTD,DF->BTF', k_up)
    if self.gated:
      self.gate = Dense(c, 'BTD,DF->BTF', k_gate)
    self.down = Dense(c, 'BTF,FD->BTD', k_down, scale=c.residual_scale)

  def __call__(self, x_BTD):
    up_BTF = checkpoint_name(self.up(x_BTD), 'mlp')
    if self.gated:
      gate_BTF = checkpoint_name(self.gate(x_BTD), 'mlp')
      return self.down(self.act(gate_BTF) * up_BTF)
    return self.down(self.act(up_BTF))


def rope(x_BTNH, positions_BT, theta):
  """Rotary positions (Su et al. 2021, arXiv 2104.09864), halves convention: pairs (i, i + H/2)."""
  half = x_BTNH.shape[-1] // 2
  wavelengths = theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
  angle_BT1h = positions_BT[..., None, None].astype(jnp.float32) * wavelengths[None, None, None]
  sin, cos = jnp.sin(angle_BT1h), jnp.cos(angle_BT1h)
  a, b = jnp.split(x_BTNH.astype(jnp.float32), 2, -1)
  return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], -1).astype(x_BTNH.dtype)


def dropout(x, rate, key):
  """Zeroes a share `rate` of x and scales the rest up; the identity when key is None."""
  if key is None or not rate:
    return x
  # Uniform numbers rather than `bernoulli`, because they can be asked for in x's own layout.
  keep = jax.random.uniform(key, x.shape, out_sharding=jax.typeof(x).sharding) < 1 - rate
  return jnp.where(keep, x / (1 - rate), 0)
