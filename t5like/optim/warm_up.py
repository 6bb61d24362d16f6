"""The first steps of a model made of another one's weights, in which only what is fresh is trained."""
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from t5like.config import adaptation, trainable
from t5like.config.adaptation import WARM_UP
from t5like.config.values import show
from t5like.config_type import Config
from t5like.errors import ConfigError
from t5like.optim.optimizers import Path, map_with_path, path_name
from t5like.parameters import Param

Hold = Callable[[Any, jax.Array], Any]  # (a tree like the parameters, step) -> the same, 0 where nothing is trained


def hold_nothing(tree: Any, step: jax.Array) -> Any:
  """The hold where everything is trained from the first step on."""
  return tree


def make_hold(config: Config, parameters: dict[str, Param]) -> Hold:
  """Returns hold(tree, step), which sets gradients or updates of what is not trained yet to 0.

  It is a function of the step, which checkpoints hold: a run that resumes within these steps needs nothing else.

  Args:
    config: its `adapt` and `optimizer` are read.
    parameters: `model.parameters`.

  Raises:
    ConfigError: for patterns that match nothing, or if nothing would be trained in these steps.
  """
  steps = config.adapt.warm_up_steps
  if not steps:
    return hold_nothing
  trained = masks(config, parameters)

  def hold(tree: Any, step: jax.Array) -> Any:
    is_early = step < steps

    def held(path: Path, x: jax.Array) -> jax.Array:
      mask = trained[path_name(path)]
      if mask.all():
        return x
      is_held = is_early & ~_spread(mask, x)
      return jnp.where(is_held, jnp.zeros_like(x), x)

    return map_with_path(held, tree)

  return hold


def masks(config: Config, parameters: dict[str, Param]) -> dict[str, np.ndarray]:
  """{path: bool [layers] or [1]}: what is trained in the first steps, if not frozen. Errors as of `make_hold`."""
  rates = trainable.rates(config.optimizer, parameters)
  arrays = {}
  is_any = False
  for path, layers in adaptation.warmed_up(config, parameters).items():
    arrays[path] = np.array(layers, bool)
    is_any = is_any or bool((arrays[path] & (np.array(rates[path]) > 0)).any())
  if not is_any:
    raise ConfigError(f'adapt.{WARM_UP[0]}={config.adapt.warm_up_steps}: all that would be trained in these steps is '
                      f'frozen by optimizer.freeze={show(config.optimizer.freeze)}. Take something out of it.')
  return arrays


def _spread(mask: np.ndarray, x: jax.Array) -> jax.Array:
  """A mask, numpy [L] or [1], as an array that goes with x [L, ..]."""
  other_axes = [1] * (x.ndim - 1)
  return jnp.asarray(mask.reshape(len(mask), *other_axes))
