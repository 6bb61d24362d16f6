"""Optimizers that treat each layer of a stack as an array of its own, made of those that know nothing of stacks."""
from collections.abc import Callable
from typing import Any

import jax
import optax

from t5like.errors import ConfigError
from t5like.optim.optimizers import Declared, Path, Transform, map_with_path, path_name, required
from t5like.parameters import with_path_of


def layer_by_layer(
    tx: Transform,
    parameters: Declared | None,
    name: str = 'It',
) -> Transform:
  """tx, which takes the norm or another number of each array, with every layer of a stack as an array of its own.

  What it keeps of a stack is kept of each layer, on a leading axis. It must not mix arrays with one another.

  Args:
    tx: an optimizer.
    parameters: `model.parameters`.
    name: of tx, for errors.

  Raises:
    ConfigError: for arrays that hold more than one matrix in a layer, which tx would mix.
  """
  parameters = required(parameters, name)
  for path, param in parameters.items():
    if param.batch:
      raise ConfigError(f'optimizer.name={name!r} takes one norm of {path}, which has a matrix for each of the axes '
                        f'{param.batch!r} in each layer. adamw, adafactor and muon treat each by itself.')

  def init(params: optax.Params) -> optax.OptState:
    make = tx.init
    for stack in _stacks(params, parameters):
      like = jax.eval_shape(tx.init, params)
      make = _for_each_layer(make, stack, like, parameters)
    return make(params)

  def one_layer(updates: Any, state: Any, params: Any) -> tuple[Any, Any]:
    return tx.update(updates, state, params)

  def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
    step: Callable[..., tuple[Any, Any]] = one_layer
    for stack in _stacks(params, parameters):
      step = _for_each_layer(step, stack, (updates, state), parameters)
    return step(updates, state, params)

  return optax.GradientTransformation(init, update)


def _stacks(params: optax.Params, parameters: Declared) -> list[str]:
  """Names of the stacks whose layers are in a tree of parameters: each may have another number of layers."""
  stacks = set()
  for path, _ in jax.tree_util.tree_leaves_with_path(params):
    param = parameters[path_name(path)]
    if param.is_stacked:
      stacks.add(param.stack)
  return sorted(stacks)


def _for_each_layer(
    fn: Callable[..., Any],
    stack: str,
    like: Any,
    parameters: Declared,
) -> Callable[..., Any]:
  """fn of trees, done for each layer of one stack; `like` has the structure of its result."""

  def axis(path: Path, _: Any) -> int | None:
    param = with_path_of(path_name(path), parameters)
    if param is None or not param.is_stacked:
      return None
    if param.stack != stack:
      return None
    return 0

  def axes(tree: Any) -> Any:
    return map_with_path(axis, tree)

  def mapped(*trees: Any) -> Any:
    in_axes = tuple(map(axes, trees))
    for_each_layer = jax.vmap(fn, in_axes=in_axes, out_axes=axes(like))
    return for_each_layer(*trees)

  return mapped
