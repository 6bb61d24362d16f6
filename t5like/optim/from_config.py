"""Learning-rate schedules, optimizers by name, ours or optax's, with the settings of `config.optimizer`, and what
they leave as it is."""
import inspect
import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from t5like import rate_schedules
from t5like.config import optimizer_rules, resolved, trainable
from t5like.errors import ConfigError
from t5like.optim import optimizers
from t5like.optim.optimizers import map_with_path, path_name
from t5like.parameters import Param


def schedule(spec, learning_rate, total_steps):
  """Function of the step (int, from 0) that gives the learning rate; `spec` is config.schedule.

  All begin with a linear warm-up, `learning_rate * (step + 1) / warmup_steps`. Then, with t the share
  of the remaining steps that are done and f = final_scale:
    constant  1                   cosine  f + (1 - f) (1 + cos(pi t)) / 2    linear  1 - (1 - f) t
    wsd       1, falling linearly to f over the last decay_fraction of all steps
    rsqrt     sqrt(timescale / max(step, timescale))  (T5: timescale 10,000, no warm-up, peak 0.01)
    rsqrt_decay  the same, times what wsd is (Mesh TensorFlow's ramp: the last 0.1 of the steps to f = 0;
                 Shazeer 2020, arXiv 2002.05202)
  Warm-up and decay that are longer than the run are cut, as `resolved.phases` says.
  """
  phases = resolved.phases(spec, total_steps)
  entry = rate_schedules.SCHEDULES[spec.name]
  span = rate_schedules.Span(
      total=float(total_steps), warmup=float(phases.warmup),
      decay_at_end=float(phases.decay) if entry.ends_in_decay else None,
      final_scale=spec.final_scale, timescale=float(spec.timescale))
  shape = entry.shape

  def value(step):
    step = jnp.asarray(step, jnp.float32)
    return learning_rate * shape(step, span, jnp) * jnp.minimum(1, (step + 1) / max(1.0, span.warmup))
  return value


def decay_mask(pattern):
  """Function of params that marks which decay: those whose path matches the regex."""
  def mask(params):
    return jax.tree_util.tree_map_with_path(
        lambda path, _: bool(re.search(pattern, path_name(path))), params)
  return mask


def build(spec: Any, learning_rate: Any, parameters: Mapping[str, Param] | None = None
          ) -> optax.GradientTransformationExtraArgs:
  """optax transformation of `config.optimizer`.

  Args:
    spec: config.optimizer.
    learning_rate: a number or a schedule, a function of the step.
    parameters: `model.parameters`, what each array is, for optimizers to which that matters.

  A name means what `t5like/optim/optimizers.py` makes of it, else what optax does. weight_decay is handed on to
  optimizers that take it, b1, b2 and eps to those of Adam's kind (which take b1; eps means other things to
  others), and `extra` to whichever is named. Adafactor decays by `extra` only: T5 has no weight decay.
  Gradients arrive clipped: `step.py` does that, which needs the norm anyway.

  update(grads, state, params, step=n) takes the learning rate of step n. An optimizer's own count is not the number
  of steps: it stands still where a step is bad and changes nothing.

  Raises:
    ConfigError: for what `optimizer_rules` refuses, and where an optimizer needs `parameters` and they are missing.
  """
  for problem in optimizer_rules.problems(spec):
    raise ConfigError(problem)
  named, arguments = _named(spec, parameters)

  def make(rate):
    tx = named(rate, **arguments)
    if spec.name in optimizer_rules.LAYER_BY_LAYER:
      return optimizers.layer_by_layer(tx, parameters, spec.name)
    return tx

  def at_rate(grads, state, params=None, *, rate=None):
    tx = make(learning_rate) if rate is None else make(lambda count: rate)
    return tx.update(grads, state, params)

  tx = optax.GradientTransformationExtraArgs(make(learning_rate).init, at_rate)
  if spec.name in optimizer_rules.LAYOUTS_BY_XLA:
    tx = optimizers.anywhere(tx)

  def update(grads, state, params=None, *, step=None, **_):
    if step is None or not callable(learning_rate):
      return tx.update(grads, state, params)
    return tx.update(grads, state, params, rate=learning_rate(step))
  return optax.GradientTransformationExtraArgs(tx.init, update)


def _function(name: str) -> Callable[..., Any]:
  """What makes an optimizer. NotImplementedError where nothing does, or not with the arguments of the table."""
  for module in (optimizers, optax, optax.contrib):
    if hasattr(module, name):
      function = getattr(module, name)
      break
  else:
    raise NotImplementedError(f'optimizer.name={name!r} is in t5like/config/optimizer_rules.py, but neither '
                              't5like/optim/optimizers.py nor optax has it.')
  takes = inspect.signature(function).parameters
  for argument in optimizer_rules.OPTIMIZERS[name]:
    if argument not in takes:
      raise NotImplementedError(f'optimizer.name={name!r} takes {argument} by t5like/config/optimizer_rules.py, but '
                                f'the function takes {", ".join(takes)}.')
  return function


FUNCTIONS = {name: _function(name) for name in optimizer_rules.OPTIMIZERS}


def _named(spec, parameters):
  """(function of the learning rate that makes the optimizer of a spec, its other arguments)."""
  named = FUNCTIONS[spec.name]
  takes = inspect.signature(named).parameters
  extra = dict(spec.extra)
  if 'seed' in extra and 'key' in takes:  # optax's newer name for it
    extra['key'] = extra.pop('seed')
  handed_on = ('b1', 'b2', 'eps', 'weight_decay') if 'b1' in takes else ('weight_decay',)
  if spec.name == 'adafactor':
    handed_on = ()
  arguments = {k: spec[k] for k in handed_on if k in takes}
  for key in ('mask', 'weight_decay_mask'):  # optax has two names for it
    if key in takes:
      arguments[key] = decay_mask(spec.decay_mask)
  if 'parameters' in takes:
    arguments['parameters'] = parameters
  return named, {**arguments, **extra}


# --- Parameters that are frozen, or learn at a rate of their own ----------------------------------


def rates(spec: Any, parameters: Mapping[str, Param]) -> dict[str, np.ndarray]:
  """`trained.rates` of `model.parameters` as fp32 arrays; `spec` is config.optimizer."""
  return {path: np.float32(rate) for path, rate in trainable.rates(spec, parameters).items()}


def at_rates(tx, rates):
  """tx with the updates of each parameter (and layer) times its rate; none of its state for what is wholly frozen."""
  if all((rate == 1).all() for rate in rates.values()):
    return tx
  kept = {path for path, rate in rates.items() if rate.any()}

  def only(tree):
    part = {}
    for path, x in jax.tree_util.tree_leaves_with_path(tree):
      if path_name(path) in kept:
        *parents, last = (key.key for key in path)
        folder = part
        for key in parents:
          folder = folder.setdefault(key, {})
        folder[last] = x
    return part

  def update(grads, state, params=None, **more):
    updates, state = tx.update(only(grads), state, None if params is None else only(params), **more)
    found = {path_name(path): u for path, u in jax.tree_util.tree_leaves_with_path(updates)}

    def times_rate(path, g):
      rate = rates[path_name(path)]
      # Where rather than a product: a frozen layer's update may be 0 / 0.
      return jnp.where(_spread(rate, g) == 0, 0, found[path_name(path)] * _spread(rate, g)) if rate.any() else (
          jnp.zeros_like(g))
    return map_with_path(times_rate, grads), state
  return optax.GradientTransformationExtraArgs(lambda params: tx.init(only(params)), update)


def without_frozen(sums, rates):
  """sums(params, ..) with no gradient, nor the work for one, towards what is frozen."""
  def held(path, p):
    rate = rates[path_name(path)]
    if rate.all():
      return p
    still = jax.lax.stop_gradient(p)
    return jnp.where(_spread(rate, p) > 0, p, still) if rate.any() else still
  if all(rate.all() for rate in rates.values()):
    return sums
  return lambda params, *rest: sums(map_with_path(held, params), *rest)


def _spread(rate, x):
  """A rate, numpy [L] or [1], as an array that multiplies x [L, ..]."""
  return jnp.asarray(rate.reshape(len(rate), *[1] * (x.ndim - 1)), x.dtype)
