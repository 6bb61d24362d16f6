"""Parameters as they are made: their initial values, layouts and declarations."""
import dataclasses
import math
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx

from t5like import choices
from t5like.model.config import ModelConfig
from t5like.parameters import Param
from t5like.sharding import at_rest, weights

Module = TypeVar('Module', bound=nnx.Module)
Std = tuple[float, bool]  # a standard deviation, and whether the distribution is cut at two of them


def _fan_in(c: ModelConfig, role: str, fan_in: int) -> Std:
  """Outputs of blocks are scaled as by gpt2."""
  if role == 'positions':
    return 0.02, False
  inputs = c.d_model if role == 'embed' else fan_in
  std = _output_scale(c, role) * inputs ** -0.5
  return std, False


def _gpt2(c: ModelConfig, role: str, fan_in: int) -> Std:
  """Radford et al. 2019, section 2.3: outputs of blocks are smaller, because 2 L of them are summed."""
  std = 0.02 * _output_scale(c, role)
  return std, False


def _output_scale(c: ModelConfig, role: str) -> float:
  return c.residual_scale if role in OUTPUTS else 1.0


def _bert(c: ModelConfig, role: str, fan_in: int) -> Std:
  """Devlin et al. 2018, released code."""
  return 0.02, True


def _t5(c: ModelConfig, role: str, fan_in: int) -> Std:
  """T5X, whose query matrices carry the 1 / sqrt(head_dim) that its attention lacks."""
  if role in ('up', 'gate', 'down', 'head'):
    # A normal cut at two deviations has 0.8796 of its own: T5X makes up for it.
    std = fan_in ** -0.5 / 0.87962566103423978
    return std, True
  if role in ('embed', 'positions'):
    return 1.0, False
  if role == 'q':
    std = (fan_in * c.head_dim) ** -0.5
    return std, False
  return fan_in ** -0.5, False


def _neox(c: ModelConfig, role: str, fan_in: int) -> Std:
  """Black et al. 2022, section 2.1: small_init, and wang_init for outputs of blocks."""
  if role in OUTPUTS:
    std = 2 / c.num_layers * c.d_model ** -0.5
    return std, False
  std = math.sqrt(2 / (5 * c.d_model))
  return std, False


OUTPUTS = ('o', 'down')  # roles of matrices whose products are added to the residual stream
INITS = choices.implement('model.init', choices.INITS, dict(
    fan_in=_fan_in,
    gpt2=_gpt2,
    bert=_bert,
    t5=_t5,
    neox=_neox,
))


def initial_std(c: ModelConfig, role: str, fan_in: int) -> Std:
  """(standard deviation, cut at two of them?) of a matrix in its role, by the family of `model.init`."""
  family = INITS[c.init]
  return family(c, role, fan_in)


def normal(
    key: jax.Array,
    c: ModelConfig,
    declared: Param,
    std: float,
    cut: bool = False,
) -> nnx.Param[jax.Array]:
  """A random parameter, laid out as at rest.

  Args:
    key: of jax.random.
    c: the ModelConfig, which knows the size of each letter.
    declared: what it is; its `dims` say its shape and layout.
    std: of N(0, std^2), from which it is drawn.
    cut: whether the distribution ends at 2 std.
  """
  shape = tuple(map(c.size, declared.dims))
  layout = at_rest(declared.dims)
  if cut:
    x = jax.random.truncated_normal(
        key,
        lower=-2,
        upper=2,
        shape=shape,
        out_sharding=layout,
    )
  else:
    x = jax.random.normal(key, shape, out_sharding=layout)
  return nnx.Param(std * x, declared=declared)


def constant(value: float, c: ModelConfig, declared: Param) -> nnx.Param[jax.Array]:
  """A parameter of fp32 numbers that are all `value` at first."""
  shape = tuple(map(c.size, declared.dims))
  layout = weights(declared.dims)
  x = jnp.full(shape, value, jnp.float32, out_sharding=layout)
  return nnx.Param(x, declared=declared)


def declare(module: nnx.Module, change: Callable[[Param], Param]) -> None:
  """Replaces the declaration of every parameter in a module by `change` of it."""

  def is_variable(x: Any) -> bool:
    return isinstance(x, nnx.Variable)

  variables = jax.tree.leaves(module, is_leaf=is_variable)
  for variable in variables:
    metadata = variable.get_metadata()
    if 'declared' in metadata:
      changed = change(metadata['declared'])
      variable.set_metadata(declared=changed)


def place(module: Module, **fields: Any) -> Module:
  """The module, whose parameters are declared to be in this `layer` or `stack`, or of these `owners`."""

  def placed(declared: Param) -> Param:
    return dataclasses.replace(declared, **fields)

  declare(module, placed)
  return module
