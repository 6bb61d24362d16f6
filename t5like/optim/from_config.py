"""Schedules and optimizers from a config: by name, ours or optax's; what is frozen, and rates of single parameters."""
import inspect
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Set
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from t5like import rate_schedules
from t5like.config import optimizer_rules, resolved, trainable
from t5like.config_type import Section
from t5like.errors import ConfigError
from t5like.optim import layers, optimizers
from t5like.optim.optimizers import Mask, Path, Transform, map_with_path, path_name
from t5like.parameters import Param

Rates = Mapping[str, np.ndarray]  # {path: fp32, a factor of the updates for each layer, or one; 0: frozen}
Sums = Callable[..., dict[str, jax.Array]]  # of (params, batch, key), see model/loss.py
WITH_BETAS = ('b1', 'b2', 'eps', 'weight_decay')  # keys of config.optimizer for optimizers of Adam's kind


def schedule(
    spec: Section,
    learning_rate: float,
    total_steps: int,
    first_step: int = 0,
) -> Callable[[Any], jax.Array]:
  """Function of the step (int, from 0) that gives the learning rate, fp32 [].

  All begin with a linear warm-up, `learning_rate * (step + 1) / warmup_steps`. Then, with t the share
  of the remaining steps that are done and f = final_scale:
    constant  1                   cosine  f + (1 - f) (1 + cos(pi t)) / 2    linear  1 - (1 - f) t
    wsd       1, falling linearly to f over the last decay_fraction of all steps
    rsqrt     sqrt(timescale / max(step, timescale))  (T5: timescale 10,000, no warm-up, peak 0.01)
    rsqrt_decay  the same, times what wsd is (Mesh TensorFlow's ramp: the last 0.1 of the steps to f = 0;
                 Shazeer 2020, arXiv 2002.05202)
  Warm-up and decay that are longer than the run are shortened, as `resolved.phases` says.

  Args:
    spec: config.schedule.
    learning_rate: the peak.
    total_steps: from its first step on.
    first_step: of the run, at which it begins; it is not called before.
  """
  phases = resolved.phases(spec, total_steps)
  entry = rate_schedules.SCHEDULES[spec.name]
  decay_at_end = None
  if entry.ends_in_decay:
    decay_at_end = float(phases.decay)
  span = rate_schedules.Span(
      total=float(total_steps),
      warmup=float(phases.warmup),
      decay_at_end=decay_at_end,
      final_scale=spec.final_scale,
      timescale=float(spec.timescale),
  )
  shape = entry.shape
  warmup_steps = max(1.0, span.warmup)

  def value(step: Any) -> jax.Array:
    if first_step:
      step = step - first_step
    step = jnp.asarray(step, jnp.float32)
    rate = learning_rate * shape(step, span, jnp)
    warmup = jnp.minimum(1, (step + 1) / warmup_steps)
    return rate * warmup

  return value


def decay_mask(pattern: str) -> Mask:
  """Function of params that marks which decay: those whose path matches the regex."""

  def decays(path: Path, _: Any) -> bool:
    return re.search(pattern, path_name(path)) is not None

  def mask(params: optax.Params) -> Any:
    return map_with_path(decays, params)

  return mask


def build(
    spec: Section,
    learning_rate: optax.ScalarOrSchedule,
    parameters: Mapping[str, Param] | None = None,
) -> optax.GradientTransformationExtraArgs:
  """optax transformation of `config.optimizer`.

  Args:
    spec: config.optimizer.
    learning_rate: a number or a schedule, a function of the step.
    parameters: `model.parameters`, what each array is, for optimizers to which that matters.

  A name means the function of `t5like/optim/optimizers.py`, else that of optax. weight_decay is passed to
  optimizers that take it, b1, b2 and eps to those of Adam's kind (which take b1; eps means other things to
  others), and `extra` to all. Adafactor decays by `extra` only: T5 has no weight decay.
  Gradients arrive clipped: `step.py` does that, which needs the norm anyway.

  update(grads, state, params, step=n) takes the learning rate of step n. An optimizer's own count is not the number
  of steps: it stands still where a step is bad and changes nothing.

  Raises:
    ConfigError: for what `optimizer_rules` refuses, and where an optimizer needs `parameters` and they are missing.
  """
  for problem in optimizer_rules.problems(spec):
    raise ConfigError(problem)
  function = FUNCTIONS[spec.name]
  arguments = _arguments(function, spec, parameters)

  def make(rate: optax.ScalarOrSchedule) -> Transform:
    tx = function(rate, **arguments)
    if spec.name in optimizer_rules.LAYER_BY_LAYER:
      return layers.layer_by_layer(tx, parameters, spec.name)
    return tx

  def update_at_rate(
      updates: Any,
      state: Any,
      params: Any = None,
      *,
      rate: Any = None,
      **_: Any,
  ) -> Any:
    if rate is None:
      at_rate = make(learning_rate)
    else:
      at_rate = make(_constant_rate(rate))
    return at_rate.update(updates, state, params)

  tx = optax.GradientTransformationExtraArgs(make(learning_rate).init, update_at_rate)
  if spec.name in optimizer_rules.LAYOUTS_BY_XLA:
    tx = optimizers.anywhere(tx)
  tx = _with_router_biases(tx, spec.router_bias_rate, parameters or {})
  return _at_rate_of_step(tx, learning_rate)


def _with_router_biases(
    tx: optax.GradientTransformationExtraArgs,
    rate: float,
    parameters: Mapping[str, Param],
) -> optax.GradientTransformationExtraArgs:
  """tx for all but numbers of `model.router_bias`, which move by `rate` against the sign of their gradients.

  Wang et al. 2024, arXiv 2408.15664, algorithm 1.
  """
  biases = {path for path, param in parameters.items() if (param.role, param.kind) == ('router', 'bias')}
  if not biases:
    return tx
  others = parameters.keys() - biases

  def init(params: Any) -> Any:
    return tx.init(_part(params, others))

  def update(
      updates: Any,
      state: Any,
      params: Any = None,
      **extra_args: Any,
  ) -> Any:
    part, state = tx.update(_part(updates, others), state, _part(params, others), **extra_args)
    by_path = {path_name(path): u for path, u in jax.tree_util.tree_leaves_with_path(part)}

    def moved(path: Path, g: jax.Array) -> jax.Array:
      name = path_name(path)
      if name in biases:
        return -rate * jnp.sign(g)
      return by_path[name]

    return map_with_path(moved, updates), state

  return optax.GradientTransformationExtraArgs(init, update)


def _at_rate_of_step(
    tx: optax.GradientTransformationExtraArgs,
    learning_rate: optax.ScalarOrSchedule,
) -> optax.GradientTransformationExtraArgs:
  """tx, whose update takes `rate`, with one that takes `step`."""

  def update(
      updates: Any,
      state: Any,
      params: Any = None,
      *,
      step: Any = None,
      **_: Any,
  ) -> Any:
    if step is None or not callable(learning_rate):
      return tx.update(updates, state, params)
    rate = learning_rate(step)
    return tx.update(updates, state, params, rate=rate)

  return optax.GradientTransformationExtraArgs(tx.init, update)


def _constant_rate(rate: jax.Array) -> optax.Schedule:
  def schedule(count: Any) -> jax.Array:
    return rate

  return schedule


def _function(name: str) -> Callable[..., Transform]:
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


def _arguments(
    function: Callable[..., Transform],
    spec: Section,
    parameters: Mapping[str, Param] | None,
) -> dict[str, Any]:
  """The arguments of the function that makes the optimizer of a spec, but for the learning rate."""
  takes = inspect.signature(function).parameters
  arguments: dict[str, Any] = {}
  for key in _shared_keys(spec.name, takes):
    if key in takes:
      arguments[key] = spec[key]
  for key in ('mask', 'weight_decay_mask'):  # optax has two names for it
    if key in takes:
      arguments[key] = decay_mask(spec.decay_mask)
  if 'parameters' in takes:
    arguments['parameters'] = parameters
  extra = dict(spec.extra)
  if 'seed' in extra and 'key' in takes:  # optax's newer name for it
    extra['key'] = extra.pop('seed')
  return {**arguments, **extra}


def _shared_keys(name: str, takes: Mapping[str, Any]) -> tuple[str, ...]:
  """Keys of config.optimizer that an optimizer gets if it takes them: all but `extra` and the mask."""
  if name == 'adafactor':
    return ()
  if 'b1' in takes:
    return WITH_BETAS
  return ('weight_decay',)


# --- Parameters that are frozen, or learn at a rate of their own ----------------------------------


def rates(spec: Section, parameters: Mapping[str, Param]) -> dict[str, np.ndarray]:
  """`trainable.rates` of `model.parameters` as fp32 arrays, [layers] or [1].

  Args:
    spec: config.optimizer.
    parameters: `model.parameters`.
  """
  arrays = {}
  for path, rate in trainable.rates(spec, parameters).items():
    arrays[path] = np.array(rate, np.float32)
  return arrays


def at_rates(tx: Transform, rates: Rates, stateful: Set[str] | None = None) -> Transform:
  """tx with the updates of each parameter (and layer) times its rate; no state for what is wholly frozen.

  Args:
    tx: of all parameters.
    rates: of each.
    stateful: paths of those that have state though they may be frozen, all that are trained among them; None: those.
  """
  are_alike = all((rate == 1).all() for rate in rates.values())
  if are_alike:
    return tx
  inner = optax.with_extra_args_support(tx)
  trained = stateful or trained_paths(rates)

  def init(params: Any) -> Any:
    return inner.init(_part(params, trained))

  def update(
      updates: Any,
      state: Any,
      params: Any = None,
      **extra_args: Any,
  ) -> Any:
    trained_params = None
    if params is not None:
      trained_params = _part(params, trained)
    trained_updates = _part(updates, trained)
    part, state = inner.update(
        trained_updates,
        state,
        trained_params,
        **extra_args,
    )
    by_path = {}
    for path, u in jax.tree_util.tree_leaves_with_path(part):
      by_path[path_name(path)] = u

    def times_rate(path: Path, g: jax.Array) -> jax.Array:
      name = path_name(path)
      if name not in trained:
        return jnp.zeros_like(g)
      u = by_path[name]
      rate = _spread(rates[name], g)
      # Where rather than a product: a frozen layer's update may be 0 / 0.
      return jnp.where(rate == 0, 0, u * rate)

    return map_with_path(times_rate, updates), state

  return optax.GradientTransformationExtraArgs(init, update)


def trained_paths(rates: Rates) -> set[str]:
  """Paths of the parameters that are not wholly frozen."""
  return {path for path, rate in rates.items() if rate.any()}


def stateful_paths(specs: Iterable[Section], parameters: Mapping[str, Param]) -> frozenset[str]:
  """Paths of the parameters that any of several stages trains: the optimizer has state of them in all.

  Args:
    specs: config.optimizer of each.
    parameters: `model.parameters`.
  """
  paths: set[str] = set()
  for spec in specs:
    of_stage = rates(spec, parameters)
    paths |= trained_paths(of_stage)
  return frozenset(paths)


def _part(tree: Any, paths: Collection[str]) -> dict[str, Any]:
  """The nested dict of the arrays of a tree that have these paths."""
  part: dict[str, Any] = {}
  for path, x in jax.tree_util.tree_leaves_with_path(tree):
    if path_name(path) not in paths:
      continue
    *parents, last = (entry.key for entry in path)
    folder = part
    for key in parents:
      folder = folder.setdefault(key, {})
    folder[last] = x
  return part


def without_frozen(sums: Sums, rates: Rates) -> Sums:
  """sums(params, ..) with no gradient, nor the work for one, towards what is frozen."""
  if all(rate.all() for rate in rates.values()):
    return sums

  def stopped(path: Path, p: jax.Array) -> jax.Array:
    rate = rates[path_name(path)]
    if rate.all():
      return p
    constant = jax.lax.stop_gradient(p)
    if not rate.any():
      return constant
    is_trained = _spread(rate, p) > 0
    return jnp.where(is_trained, p, constant)

  def sums_of_trained(params: Any, *rest: Any) -> dict[str, jax.Array]:
    return sums(map_with_path(stopped, params), *rest)

  return sums_of_trained


def _spread(rate: np.ndarray, x: jax.Array) -> jax.Array:
  """A rate, numpy [L] or [1], as an array that multiplies x [L, ..]."""
  other_axes = [1] * (x.ndim - 1)
  spread = rate.reshape(len(rate), *other_axes)
  return jnp.asarray(spread, x.dtype)
