"""The parts of a transformer block. Each layer takes its sizes from one ModelConfig `c`.

Suffixes and einsum letters: see `t5like/sharding.py`. Positions are in `positions.py`.
"""
import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from t5like import choices, parameters
from t5like.config.trainable import PROJECTIONS
from t5like.model import eight_bit
from t5like.model.config import ModelConfig
from t5like.model.gathering import gather_factor, gather_together
from t5like.model.initial import constant, initial_std, normal
from t5like.sharding import einsum, gather, in_use

Axes = tuple[int, ...]


def expand(w: jax.Array, x: jax.Array) -> jax.Array:
  """w with leading axes of size 1 up to x's rank (implicit rank promotion is an error in tests)."""
  missing = range(x.ndim - w.ndim)
  return jnp.expand_dims(w, tuple(missing))


@dataclasses.dataclass(frozen=True)
class Equation:
  """The letters of an einsum 'BTD,DNH->BTNH' of activations with a matrix."""
  x: str
  w: str
  out: str

  @property
  def fan_in(self) -> str:
    """Letters of the matrix that the product sums over."""
    return ''.join(d for d in self.w if d not in self.out)

  @property
  def made(self) -> str:
    """Letters of the matrix that the result has."""
    return ''.join(d for d in self.w if d in self.out)


def _parsed(equation: str) -> Equation:
  inputs, out = equation.split('->')
  x, w = inputs.split(',')
  return Equation(x, w, out)


class Dense(nnx.Module):
  """einsum(equation, x, w) + b. The equation fixes the shape, initial scale and layout of w and b."""

  def __init__(
      self,
      c: ModelConfig,
      equation: str,
      key: jax.Array,
      role: str,
      use_bias: bool | None = None,
      result_dtype: Any = None,
  ) -> None:
    """Makes the parameters.

    Args:
      c: the ModelConfig.
      equation: of x and w.
      key: of jax.random.
      role: of w, one of parameters.ROLES.
      use_bias: None: as `model.use_bias` says.
      result_dtype: in which products are summed up and returned; None: x's dtype.
    """
    self.c = c
    self.equation = equation
    self.result_dtype = result_dtype
    letters = _parsed(equation)
    self.dims = letters.w
    self.fan_dims = letters.fan_in
    self.bias_dims = letters.made
    fan_in = math.prod(c.size(d) for d in letters.fan_in if d in letters.x)
    std, cut = initial_std(c, role, fan_in)
    matrix = parameters.matrix(letters.w, letters.fan_in, role)
    self.w = normal(key, c, matrix, std, cut)
    self.use_bias = c.use_bias if use_bias is None else use_bias
    if self.use_bias:
      bias = parameters.vector(letters.made, role, 'bias')
      self.b = constant(0, c, bias)
    self.quantization = c.quantization if role in PROJECTIONS else 'none'
    self.adapted = c.lora_rank > 0 and role in c.lora_projections
    if self.adapted:
      self._make_adapter(key, role, letters, fan_in)

  def _make_adapter(
      self,
      key: jax.Array,
      role: str,
      letters: Equation,
      fan_in: int,
  ) -> None:
    """Factors of LoRA; not nnx.LoRA's, plain matrices on one device, of one input and one output axis."""
    first = parameters.matrix(f'{letters.fan_in}R', letters.fan_in, role, 'lora_a')
    second = parameters.matrix(f'R{letters.made}', 'R', role, 'lora_b')
    key_a = jax.random.fold_in(key, 1)
    self.lora_a = normal(key_a, self.c, first, fan_in ** -0.5)
    self.lora_b = normal(key, self.c, second, 0.0)  # nothing is added yet

  def __call__(self, x: jax.Array, w: jax.Array | None = None) -> jax.Array:
    """The product.

    Args:
      x: activations.
      w: the matrix, gathered; None: it is gathered here.
    """
    dtype = self.c.dtype
    if w is None:
      w = self._gathered()
    y = self._product(x, w)
    if self.adapted:
      y += self._of_adapter(x)
    if self.use_bias:
      bias = gather(self.b[...], self.bias_dims, dtype)
      y += expand(bias, y)
    return y

  def _gathered(self) -> jax.Array:
    gathered = gather_factor(self.w[...], self.dims, self.c.dtype)
    return checkpoint_name(gathered, 'weights')

  def _product(self, x: jax.Array, w: jax.Array) -> jax.Array:
    if self.quantization != 'none':
      return eight_bit.product(self.quantization, self.equation, x, w)
    return einsum(
        self.equation,
        x,
        w,
        preferred_element_type=self.result_dtype,
    )

  def _of_adapter(self, x: jax.Array) -> jax.Array:
    """What the factors of LoRA add to the product."""
    letters = _parsed(self.equation)
    dtype = self.c.dtype
    a_dims = f'{self.fan_dims}R'
    b_dims = f'R{self.bias_dims}'
    low_dims = f'{letters.out[:2]}R'
    a = gather_factor(self.lora_a[...], a_dims, dtype)
    b = gather_factor(self.lora_b[...], b_dims, dtype)
    low = einsum(f'{letters.x},{a_dims}->{low_dims}', x, a)
    product = einsum(f'{low_dims},{b_dims}->{letters.out}', low, b)
    strength = self.c.lora_alpha / self.c.lora_rank
    return strength * product


def _as_it_is(y: jax.Array, axes: Axes) -> jax.Array:
  return y


def _centred(y: jax.Array, axes: Axes) -> jax.Array:
  mean = jnp.mean(y, axes, keepdims=True)
  return y - mean


# What is divided by its root mean square: (y, fp32; axes) -> array like y.
NORMS = choices.implement('model.norm', choices.NORMS, dict(
    rmsnorm=_as_it_is,
    rmsnorm_unit=_as_it_is,
    layernorm=_centred,
    layernorm_plain=_centred,
))


class Norm(nnx.Module):
  """RMSNorm (Zhang & Sennrich 2019) or LayerNorm (Ba et al. 2016) over the dimensions `dims`, fp32."""

  def __init__(self, c: ModelConfig, dims: str = 'D') -> None:
    self.c = c
    self.dims = dims
    facts = choices.NORMS[c.norm]
    self.has_scale = facts.scale
    self.has_bias = facts.bias and c.use_bias
    self.offset = facts.offset
    if self.has_scale:
      first = 1 - facts.offset
      scale = parameters.vector(dims, 'norm', 'scale')
      self.scale = constant(first, c, scale)
    if self.has_bias:
      bias = parameters.vector(dims, 'norm', 'bias')
      self.b = constant(0, c, bias)

  def __call__(self, x: jax.Array) -> jax.Array:
    """An array like x."""
    axes = tuple(range(-len(self.dims), 0))
    prepared = NORMS[self.c.norm]
    exact = x.astype(jnp.float32)
    y = prepared(exact, axes)
    square = jnp.square(y)
    mean_square = jnp.mean(square, axes, keepdims=True)
    y *= jax.lax.rsqrt(mean_square + self.c.norm_eps)
    if self.has_scale:
      scale = gather(self.scale[...], self.dims, jnp.float32)
      if self.offset:
        scale += self.offset
      y *= expand(scale, y)
    if self.has_bias:
      bias = gather(self.b[...], self.dims, jnp.float32)
      y += expand(bias, y)
    return y.astype(x.dtype)


class Embed(nnx.Module):
  """Token table [V, D]; read forwards it embeds, read backwards it predicts."""

  def __init__(self, c: ModelConfig, key: jax.Array) -> None:
    self.c = c
    std, cut = initial_std(c, 'embed', c.d_model)
    declared = parameters.matrix('VD', 'V', 'embed')
    self.w = normal(key, c, declared, std, cut)

  def encode(self, tokens_BT: jax.Array) -> jax.Array:
    """[B, T, D] in model.dtype."""
    stored_VD = self.w[...]
    table_VD = gather(stored_VD, 'VD', self.c.dtype)
    layout = in_use('BTD')
    return table_VD.at[tokens_BT].get(out_sharding=layout)

  def decode(self, x_BTD: jax.Array) -> jax.Array:
    """Logits [B, T, V], fp32."""
    stored_VD = self.w[...]
    table_VD = gather_factor(stored_VD, 'VD', self.c.dtype)
    return einsum(
        'BTD,VD->BTV',
        x_BTD,
        table_VD,
        preferred_element_type=jnp.float32,
    )


def gathered_together(layers: Sequence[Dense]) -> list[jax.Array]:
  """The matrices of several layers that are needed at the same time, for `Dense.__call__`."""
  first, *_ = layers
  stored = [layer.w[...] for layer in layers]
  all_dims = [layer.dims for layer in layers]
  matrices = []
  for gathered in gather_together(stored, all_dims, first.c.dtype):
    w = checkpoint_name(gathered, 'weights')
    matrices.append(w)
  return matrices


# --- Feed-forward, dropout ----------------------------------------------------------------------


def _exact_gelu(x: jax.Array) -> jax.Array:
  return jax.nn.gelu(x, approximate=False)


def identity(x: jax.Array) -> jax.Array:
  return x


ACTIVATIONS = choices.implement('model.activation', choices.ACTIVATIONS, dict(
    relu=jax.nn.relu,
    gelu=_exact_gelu,
    gelu_tanh=jax.nn.gelu,
    swish=jax.nn.silu,
    glu=jax.nn.sigmoid,
    bilinear=identity,
    reglu=jax.nn.relu,
    geglu=jax.nn.gelu,  # tanh form, as T5 v1.1
    geglu_exact=_exact_gelu,
    swiglu=jax.nn.silu,
))


class MLP(nnx.Module):
  """down(act(up(x))), or down(act(gate(x)) * up(x)) for gated activations."""

  def __init__(self, c: ModelConfig, key: jax.Array) -> None:
    k_up, k_gate, k_down = jax.random.split(key, 3)
    self.c = c
    self.act = ACTIVATIONS[c.activation]
    facts = choices.ACTIVATIONS[c.activation]
    self.gated = facts.gated
    self.up = Dense(c, 'BTD,DF->BTF', k_up, 'up')
    if self.gated:
      self.gate = Dense(c, 'BTD,DF->BTF', k_gate, 'gate')
    self.down = Dense(c, 'BTF,FD->BTD', k_down, 'down')

  @jax.named_scope('mlp')
  def __call__(
      self,
      x_BTD: jax.Array,
      key: jax.Array | None = None,
  ) -> jax.Array:
    """[B, T, D]. `key`: of dropout; None: there is none."""
    up_BTF = self.up(x_BTD)
    up_BTF = checkpoint_name(up_BTF, 'up')
    if self.gated:
      gate_BTF = self.gate(x_BTD)
      gate_BTF = checkpoint_name(gate_BTF, 'gate')
      x_BTF = self.act(gate_BTF) * up_BTF
    else:
      x_BTF = self.act(up_BTF)
    style = choices.DROPOUT_STYLES[self.c.dropout_style]
    if style.everywhere:
      x_BTF = dropout(x_BTF, self.c, key)
    return self.down(x_BTF)


def keep_share(shape: tuple[int, ...], rate: float, key: jax.Array, layout: Any) -> jax.Array:
  """Array of `shape`, fp32, that is 0 with probability `rate`, else 1 / (1 - rate)."""
  # Uniform numbers rather than `bernoulli`, because they can be asked for in a layout.
  numbers = jax.random.uniform(key, shape, out_sharding=layout)
  is_kept = numbers >= rate
  return is_kept / (1 - rate)


def split_keys(random: jax.Array | None, n: int) -> Any:
  """n keys of jax.random from one, or n times None."""
  if random is None:
    return [None] * n
  return jax.random.split(random, n)


def dropout(x_BTD: jax.Array, c: ModelConfig, key: jax.Array | None) -> jax.Array:
  """Zeroes a share c.dropout of x and scales the rest up; the identity when key is None.

  In T5's style all positions of a row lose the same features.
  """
  if key is None or not c.dropout:
    return x_BTD
  shape = x_BTD.shape
  layout = jax.typeof(x_BTD).sharding
  style = choices.DROPOUT_STYLES[c.dropout_style]
  if style.shared:
    B, _, D = shape
    shape = (B, 1, D)
  keep = keep_share(shape, c.dropout, key, layout)
  keep = keep.astype(x_BTD.dtype)
  return x_BTD * keep
