"""Products of activations and matrices with 8-bit operands (`model.quantization`), as AQT and TransformerEngine do.

    y = (x / s_x) (w / s_w) s_x s_w      s_x: one for each position, s_w: one for each output, of absolute maxima

in int8 (sums in int32) or float8_e4m3fn (sums in float32). Scales are dynamic: of the very numbers that are multiplied.
The gradient of x is such a product too, of the gradient of y; that of w is computed in full precision, since weights
sum over many positions what rounding gets wrong. Gradients use e4m3 too, with a scale for each position, as DeepSeek-V3
does (arXiv 2412.19437, section 3.3). qwix rounds; which operands, and how their products lie on the mesh, is here.
"""
import functools
from typing import Any

import jax
import jax.numpy as jnp

from t5like import choices
from t5like.sharding import einsum, weights

# {name: (dtype of the operands, dtype of the sums)}
QUANTIZATIONS = choices.implement('model.quantization', choices.QUANTIZATIONS, dict(
    none=None,
    int8=(jnp.int8, jnp.int32),
    fp8=(jnp.float8_e4m3fn, jnp.float32),
))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def product(name: str, equation: str, x: jax.Array, w: jax.Array) -> jax.Array:
  """einsum(equation, x, w) with 8-bit operands, laid out as `sharding.einsum` does; dtype of x.

  Args:
    name: a key of QUANTIZATIONS other than 'none'.
    equation: such as 'BTD,DNH->BTNH': the letters of x and w, and of the result.
    x: activations, whose first two letters are of rows and positions.
    w: the matrix, as `gathering.gather_factor` returns it.
  """
  x_dims, w_dims, out_dims = _letters(equation)
  return _rounded(name, x_dims, w_dims, out_dims, x, w)


def _letters(equation: str) -> tuple[str, str, str]:
  """Of x, of w and of the result."""
  inputs, out_dims = equation.split('->')
  x_dims, w_dims = inputs.split(',')
  return x_dims, w_dims, out_dims


def _forward(
    name: str,
    equation: str,
    x: jax.Array,
    w: jax.Array,
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
  return product(name, equation, x, w), (x, w)


def _backward(
    name: str,
    equation: str,
    saved: tuple[jax.Array, jax.Array],
    g: jax.Array,
) -> tuple[jax.Array, jax.Array]:
  """The gradients that the docstring of this module describes."""
  x, w = saved
  x_dims, w_dims, out_dims = _letters(equation)
  of_x = _rounded(name, out_dims, w_dims, x_dims, g, w)

  def in_full(w: jax.Array) -> jax.Array:
    return einsum(equation, x, w)

  _, pull_back = jax.vjp(in_full, w)
  of_w, = pull_back(g)
  return of_x, of_w


product.defvjp(_forward, _backward)


def _rounded(
    name: str,
    x_dims: str,
    w_dims: str,
    out_dims: str,
    x: jax.Array,
    w: jax.Array,
) -> jax.Array:
  """The product of x and w, each rounded along the letters that the product sums over."""
  quantized = QUANTIZATIONS[name]
  if quantized is None:
    raise ValueError(f'model.quantization={name!r} has no 8-bit products.')
  dtype, sum_dtype = quantized
  w = jax.sharding.reshard(w, weights(w_dims))  # without the mark of `gathering`, which qwix does not read
  x_values, x_scale = _quantize(x, x_dims, out_dims, dtype)
  w_values, w_scale = _quantize(w, w_dims, out_dims, dtype)
  sums = einsum(
      f'{x_dims},{w_dims}->{out_dims}',
      x_values,
      w_values,
      preferred_element_type=sum_dtype,
  )
  y = sums.astype(jnp.float32) * x_scale * w_scale
  return y.astype(x.dtype)


def _quantize(x: jax.Array, dims: str, out_dims: str, dtype: Any) -> tuple[jax.Array, jax.Array]:
  """(values in `dtype` with the dimensions `dims`, their fp32 scales with those of the result, or 1)."""
  import qwix  # takes a second; few models need it
  kept = [axis for axis, letter in enumerate(dims) if letter in out_dims]
  quantized = qwix.quantize(x.astype(jnp.float32), dtype, channelwise_axes=kept)
  summed = [axis for axis in range(len(dims)) if axis not in kept]
  scale = jnp.squeeze(quantized.scale, summed)
  missing = [axis for axis, letter in enumerate(out_dims) if letter not in dims]
  return quantized.qvalue, jnp.expand_dims(scale, missing)
