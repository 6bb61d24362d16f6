"""How the numbers of each parameter and its gradient are spread, layer by layer; counted on the devices."""
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from t5like.optim.optimizers import path_name
from t5like.parameters import Param

BINS = 64


class Histogram(NamedTuple):
  edges: np.ndarray  # [BINS + 1], from the least number to the greatest
  counts: np.ndarray  # [BINS], how many lie between two edges, the greatest number in the last
  count: int
  mean: float
  square: float  # mean square


def make(gradients: Callable, parameters: Mapping[str, Param]) -> Callable:
  """Returns histograms(params, batch, key) -> counts on the device of all parameters and gradients, for `named`.

  The gradients are those of the mean loss of the batch. One axis in front, that of layers, is kept where parameters
  are in layers.

  Args:
    gradients: as of `step.make_gradients`.
    parameters: `model.parameters`.
  """
  def histograms(params, batch, key):
    grads, sums = gradients(params, batch, key)
    grads = jax.tree.map(lambda g: g / jnp.maximum(sums['weights'], 1).astype(g.dtype), grads)
    counted = {}
    for kind, tree in (('parameters', params), ('gradients', grads)):
      for path, x in jax.tree_util.tree_leaves_with_path(tree):
        name = path_name(path)
        counted[f'{kind}/{name}'] = _count(x, parameters[name].is_stacked)
    return counted
  return histograms


def _count(x, layered):
  """{edges [.., BINS + 1], counts, mean, square} of an array; .. is its first axis if `layered`, else nothing."""
  x, axes = x.astype(jnp.float32), tuple(range(layered, x.ndim))
  low, high = jnp.min(x, axes, keepdims=True), jnp.max(x, axes, keepdims=True)
  # Comparing with each edge is one fused pass without scattered writes, whichever way x is laid out on devices.
  at = jnp.arange(1, BINS, dtype=jnp.float32).reshape((BINS - 1,) + (1,) * x.ndim) / BINS
  edges = jnp.expand_dims(low, 0) * (1 - at) + jnp.expand_dims(high, 0) * at
  below = jnp.sum(jnp.expand_dims(x, 0) < edges, tuple(a + 1 for a in axes), dtype=jnp.int32)
  flat = lambda y: y.reshape((-1, *x.shape[:layered]))
  return dict(edges=jnp.concatenate([flat(low), flat(edges), flat(high)]), below=below,
              mean=jnp.mean(x, axes), square=jnp.mean(x * x, axes))


def named(counted, sizes):
  """{name: Histogram} from the counts of `make`, on the host; a name for each layer, such as '.../q/w[3]'.

  sizes: {path: how many numbers the parameter has}. Those with numbers that are not finite are left out.
  """
  found = {}
  for name, c in counted.items():
    layers = c['mean'].shape[0] if c['mean'].ndim else 0
    for layer in range(layers) if layers else (None,):
      pick = lambda x: np.asarray(x, np.float64)[..., layer] if layers else np.asarray(x, np.float64)
      edges, count = pick(c['edges']), sizes[name.partition('/')[2]] // max(layers, 1)
      if np.isfinite(edges).all():
        counts = np.diff(np.concatenate([[0], pick(c['below']), [count]]))
        found[f'{name}[{layer}]' if layers else name] = Histogram(
            edges, counts, count, float(pick(c['mean'])), float(pick(c['square'])))
  return found
