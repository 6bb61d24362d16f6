"""How the numbers of each parameter and its gradient are spread, layer by layer; counted on the devices."""
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from t5like.optim.optimizers import path_name
from t5like.parameters import Param

BINS = 64
Counted = dict[str, Any]  # edges [.., BINS + 1], below, mean, square; numpy once fetched


class Histogram(NamedTuple):
  """How numbers are spread.

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

  The gradients are those of the mean loss of the batch. One axis in front, that of layers, is kept where parameters
  are in layers.

  Args:
    gradients: as of `step.make_gradients`.
    parameters: `model.parameters`.
  """

  def histograms(params: Any, batch: Any, key: jax.Array) -> dict[str, Counted]:
    grads, sums = gradients(params, batch, key)
    tokens = jnp.maximum(sums['weights'], 1)

    def mean(g: jax.Array) -> jax.Array:
      return g / tokens.astype(g.dtype)

    counted = {}
    for kind, tree in (('parameters', params), ('gradients', jax.tree.map(mean, grads))):
      for path, x in jax.tree_util.tree_leaves_with_path(tree):
        name = path_name(path)
        counted[f'{kind}/{name}'] = _count(x, parameters[name].is_stacked)
    return counted

  return histograms


def _count(x: jax.Array, is_stacked: bool) -> Counted:
  """{edges [.., BINS + 1], below, mean, square} of an array; .. is its first axis if that is layers, else nothing."""
  x = x.astype(jnp.float32)
  axes = tuple(range(int(is_stacked), x.ndim))
  low = jnp.min(x, axes, keepdims=True)
  high = jnp.max(x, axes, keepdims=True)
  # Comparing with each edge is one fused pass without scattered writes, whichever way x is laid out on devices.
  share = jnp.arange(1, BINS, dtype=jnp.float32).reshape((BINS - 1,) + (1,) * x.ndim) / BINS
  edges = jnp.expand_dims(low, 0) * (1 - share) + jnp.expand_dims(high, 0) * share
  is_below = jnp.expand_dims(x, 0) < edges
  below = jnp.sum(is_below, tuple(axis + 1 for axis in axes), dtype=jnp.int32)
  layers = x.shape[:int(is_stacked)]
  all_edges = [y.reshape((-1, *layers)) for y in (low, edges, high)]
  return dict(
      edges=jnp.concatenate(all_edges),
      below=below,
      mean=jnp.mean(x, axes),
      square=jnp.mean(x * x, axes),
  )


def named(counted: Mapping[str, Counted], sizes: Mapping[str, int]) -> dict[str, Histogram]:
  """{name: Histogram} from the counts of `make`, on the host; a name for each layer, such as '.../q/w[3]'.

  Args:
    counted: fetched.
    sizes: {path: how many numbers the parameter has}. Those with numbers that are not finite are left out.
  """
  histograms = {}
  for name, counts in counted.items():
    _, _, path = name.partition('/')
    for suffix, of_layer, num_layers in _by_layer(counts):
      if np.isfinite(of_layer['edges']).all():
        histograms[name + suffix] = _histogram(of_layer, sizes[path] // num_layers)
  return histograms


def _by_layer(counts: Counted) -> Iterator[tuple[str, Counted, int]]:
  """(suffix of its name, its counts in fp64, number of layers) of each layer, or of the only array."""
  arrays = {}
  for key, x in counts.items():
    arrays[key] = np.asarray(x, np.float64)
  if not arrays['mean'].ndim:
    yield '', arrays, 1
    return
  num_layers = len(arrays['mean'])
  for layer in range(num_layers):
    of_layer = {key: x[..., layer] for key, x in arrays.items()}
    yield f'[{layer}]', of_layer, num_layers


def _histogram(counts: Counted, total: int) -> Histogram:
  cumulative = np.concatenate([[0], counts['below'], [total]])
  return Histogram(
      edges=counts['edges'],
      counts=np.diff(cumulative),
      total=total,
      mean=float(counts['mean']),
      square=float(counts['square']),
  )
