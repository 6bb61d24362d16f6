"""Histograms of each parameter and its gradient, layer by layer; counted on the devices."""
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from t5like.optim.optimizers import path_name
from t5like.parameters import Param

BINS = 64
Counted = dict[str, Any]  # edges [BINS + 1, ..], below [BINS - 1, ..], mean [..], square [..]; numpy once fetched


class Histogram(NamedTuple):
  """The distribution of the numbers of an array.

  Attributes:
    edges: [BINS + 1], from the least number to the greatest.
    counts: [BINS], numbers between two edges, the greatest in the last.
    total: all numbers.
    mean: their mean.
    square: their mean square.
  """
  edges: np.ndarray
  counts: np.ndarray
  total: int
  mean: float
  square: float


def make(gradients: Callable[..., Any], parameters: Mapping[str, Param]) -> Callable[..., dict[str, Counted]]:
  """Returns histograms(params, batch, key) -> counts on the device of all parameters and gradients, for `named`.

  The gradients are those of the mean loss of the batch. Stacked parameters keep their axis of layers.

  Args:
    gradients: as of `step.make_gradients`.
    parameters: `model.parameters`.
  """

  def histograms(params: Any, batch: Any, key: jax.Array) -> dict[str, Counted]:
    grads, sums = gradients(params, batch, key)
    tokens = jnp.maximum(sums['weights'], 1)

    def mean(g: jax.Array) -> jax.Array:
      divisor = tokens.astype(g.dtype)
      return g / divisor

    trees = dict(
        parameters=params,
        gradients=jax.tree.map(mean, grads),
    )
    counted = {}
    for kind, tree in trees.items():
      for path, x in jax.tree_util.tree_leaves_with_path(tree):
        name = path_name(path)
        declared = parameters[name]
        counted[f'{kind}/{name}'] = _count(x, declared.is_stacked)
    return counted

  return histograms


def _count(x: jax.Array, is_stacked: bool) -> Counted:
  """The counts of an array, see Counted; .. is its first axis if that is layers, else nothing."""
  x = x.astype(jnp.float32)
  first_axis = int(is_stacked)
  axes = tuple(range(first_axis, x.ndim))
  low = jnp.min(x, axes, keepdims=True)
  high = jnp.max(x, axes, keepdims=True)
  # Comparing with each edge is one fused pass without scattered writes, whichever way x is laid out on devices.
  edges = _inner_edges(low, high)
  is_below = jnp.expand_dims(x, 0) < edges
  axes_of_edges = tuple(axis + 1 for axis in axes)
  below = jnp.sum(is_below, axes_of_edges, dtype=jnp.int32)
  layers = x.shape[:first_axis]
  all_edges = [y.reshape((-1, *layers)) for y in (low, edges, high)]
  return dict(
      edges=jnp.concatenate(all_edges),
      below=below,
      mean=jnp.mean(x, axes),
      square=jnp.mean(x * x, axes),
  )


def _inner_edges(low: jax.Array, high: jax.Array) -> jax.Array:
  """The edges between `low` and `high`, [BINS - 1, *low.shape]."""
  numbers = jnp.arange(1, BINS, dtype=jnp.float32)
  ones = (1,) * low.ndim
  share = numbers.reshape((BINS - 1,) + ones) / BINS
  return jnp.expand_dims(low, 0) * (1 - share) + jnp.expand_dims(high, 0) * share


def named(counted: Mapping[str, Counted], parameters: Mapping[str, Param]) -> dict[str, Histogram]:
  """{name: Histogram} from the counts of `make`, on the host; a name for each layer, such as '.../q/w[3]'.

  Args:
    counted: fetched. Arrays with numbers that are not finite are skipped.
    parameters: `model.parameters`.
  """
  histograms = {}
  for name, counts in counted.items():
    _, _, path = name.partition('/')
    param = parameters[path]
    for suffix, of_layer in _by_layer(counts, param.numbers):
      is_finite = np.isfinite(of_layer['edges']).all()
      if not is_finite:
        continue
      total = param.size // param.num_layers
      histograms[name + suffix] = _histogram(of_layer, total)
  return histograms


def _by_layer(counts: Counted, numbers: Sequence[int]) -> Iterator[tuple[str, Counted]]:
  """(suffix of its name, its counts in fp64) of each layer by its number, or of the only array."""
  arrays = {}
  for key, x in counts.items():
    arrays[key] = np.asarray(x, np.float64)
  if not arrays['mean'].ndim:
    yield '', arrays
    return
  for place, number in enumerate(numbers):
    of_layer = {}
    for key, x in arrays.items():
      of_layer[key] = x[..., place]
    yield f'[{number}]', of_layer


def _histogram(counts: Counted, total: int) -> Histogram:
  below = counts['below']
  cumulative = np.concatenate([[0], below, [total]])
  return Histogram(
      edges=counts['edges'],
      counts=np.diff(cumulative),
      total=total,
      mean=float(counts['mean']),
      square=float(counts['square']),
  )
