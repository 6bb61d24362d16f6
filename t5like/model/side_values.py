"""Values that layers return beside their output: auxiliary losses and metrics, as sums with their weights.

    return With(y_BTD, dict(router_z=Value(jnp.square(log_z_BT), coefficient=1e-3)))

A layer of a block may return this instead of y_BTD alone. Values are of tokens, so that they add up: over the layers
of a stack, over stacks, micro-batches and devices; padding does not count. The loss of a step is the sum over predicted
tokens of their loss, plus each coefficient times the sum of its values, divided once by the number of predicted tokens.
The log has their means, `side/router_z`. What decodes ignores them.
"""
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from t5like.sharding import everywhere

MEAN = 'side/'  # before a name, among sums and metrics
WEIGHT = 'side_weight/'


class Value(NamedTuple):
  """A value of each token.

  Attributes:
    values_BT: any float dtype. A value of a whole row is repeated for each of its tokens.
    coefficient: its factor in the loss; 0: a metric alone.
  """
  values_BT: jax.Array
  coefficient: float = 0.0


class Sums(NamedTuple):
  """fp32 scalars: the sum of values, how many there are, and what they add to the summed loss."""
  total: jax.Array
  weight: jax.Array
  loss: jax.Array


class With(NamedTuple):
  """A layer's output, and its side values by name: of each token, or summed up already."""
  output: jax.Array
  values: Mapping[str, Value | Sums]


class Collector:
  """Gathers the side values of the layers of one block.

  segments_BT: of the tokens that they are of, 0 for padding.
  """

  def __init__(self, segments_BT: jax.Array) -> None:
    self.segments_BT = segments_BT
    self.sums: dict[str, Sums] = {}

  def take(self, result: Any) -> jax.Array:
    """The output of a layer, whose side values are added to `sums`."""
    if not isinstance(result, With):
      return result
    for name, value in result.values.items():
      sums = _summed(value, self.segments_BT) if isinstance(value, Value) else value
      self.sums = added(self.sums, {name: sums})
    return result.output


def _summed(value: Value, segments_BT: jax.Array) -> Sums:
  real_BT = segments_BT > 0
  values_BT = value.values_BT.astype(jnp.float32)
  values_BT = everywhere(values_BT, 'BT')
  values_BT = jnp.where(real_BT, values_BT, 0)
  total = jnp.sum(values_BT)
  weights_BT = real_BT.astype(jnp.float32)
  weight = jnp.sum(weights_BT)
  if value.coefficient:
    loss = value.coefficient * total
  else:  # not 0 times a metric, which need not be finite
    loss = jnp.zeros_like(weight)
  return Sums(total, weight, loss)


def added(a: dict[str, Sums], b: dict[str, Sums]) -> dict[str, Sums]:
  """Side values of two parts of a model: those of one name are added up."""
  out = dict(a)
  for name, sums in b.items():
    if name in a:
      sums = jax.tree.map(jnp.add, a[name], sums)
    out[name] = sums
  return out


def over_layers(stacked: dict[str, Sums]) -> dict[str, Sums]:
  """Sums over the axis of layers, [L]."""

  def total(x_L: jax.Array) -> jax.Array:
    return jnp.sum(x_L, 0)

  return jax.tree.map(total, stacked)


def with_side(sums: dict[str, jax.Array], side: dict[str, Sums]) -> dict[str, jax.Array]:
  """The sums of `loss_lib.make_sums` with what side values add to the loss, and their sums and weights by name."""
  out = dict(sums)
  for name, value in side.items():
    out['loss'] += value.loss
    out[MEAN + name] = value.total
    out[WEIGHT + name] = value.weight
  return out


def means(sums: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
  """The side values among the sums of a step as metrics: {'side/NAME': mean, 'side_weight/NAME': of how many}."""
  out = {}
  for name in _names(sums):
    total = sums[MEAN + name]
    weight = sums[WEIGHT + name]
    divisor = jnp.maximum(weight, 1)
    out[MEAN + name] = total / divisor
    out[WEIGHT + name] = weight
  return out


def weighted(metrics: Mapping[str, float]) -> dict[str, float]:
  """Of a step's metrics what adds up over steps, again as sums: the reverse of `means`."""
  out = {}
  for name in _names(metrics):
    mean = metrics[MEAN + name]
    weight = metrics[WEIGHT + name]
    out[MEAN + name] = mean * weight
    out[WEIGHT + name] = weight
  return out


def logged(window: Mapping[str, float]) -> dict[str, float]:
  """{'side/NAME': mean} over several steps, of sums of `weighted`."""
  out = {}
  for name in _names(window):
    total = window[MEAN + name]
    weight = max(window[WEIGHT + name], 1.0)
    out[MEAN + name] = total / weight
  return out


def keys(values: Mapping[str, Any]) -> set[str]:
  """The keys of side values among metrics or sums."""
  out = set()
  for name in _names(values):
    out.add(MEAN + name)
    out.add(WEIGHT + name)
  return out


def _names(values: Mapping[str, Any]) -> list[str]:
  names = []
  for key in values:
    if key.startswith(WEIGHT):
      name = key.removeprefix(WEIGHT)
      names.append(name)
  return names
