"""Learning-rate schedules, optimizers by name, ours or optax's, with the settings of `config.optimizer`, and what
they leave as it is."""
import difflib
import inspect
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax

from t5like import optimizers, trained
from t5like.errors import ConfigError
from t5like.optimizers import map_with_path, path_name


def schedule(spec, learning_rate, total_steps):
  """Function of the step (int, from 0) that gives the learning rate; `spec` is config.schedule.

  All begin with a linear warm-up, `learning_rate * (step + 1) / warmup_steps`. Then, with t the share
  of the remaining steps that are done and f = final_scale:
    constant  1                   cosine  f + (1 - f) (1 + cos(pi t)) / 2    linear  1 - (1 - f) t
    wsd       1, falling linearly to f over the last decay_fraction of all steps
    rsqrt     sqrt(timescale / max(step, timescale))  (T5: timescale 10,000, no warm-up, peak 0.01)
    rsqrt_decay  the same, times what wsd is (Mesh TensorFlow's ramp: the last 0.1 of the steps to f = 0;
                 Shazeer 2020, arXiv 2002.05202)
  """
  warmup, f = spec.warmup_steps, spec.final_scale
  decay_steps = max(1, round(spec.decay_fraction * total_steps))
  at_the_end = lambda step: f + (1 - f) * jnp.clip((total_steps - step) / decay_steps, 0, 1)
  rsqrt = lambda step: jnp.sqrt(spec.timescale / jnp.maximum(step, spec.timescale))

  def shape(step):
    t = jnp.clip((step - warmup) / max(1, total_steps - warmup), 0, 1)
    if spec.name == 'cosine':
      return f + (1 - f) * (1 + jnp.cos(jnp.pi * t)) / 2
    if spec.name == 'linear':
      return 1 - (1 - f) * t
    if spec.name == 'wsd':
      return at_the_end(step)
    if spec.name == 'rsqrt':
      return rsqrt(step)
    if spec.name == 'rsqrt_decay':
      return rsqrt(step) * at_the_end(step)
    return jnp.float32(1)

  def value(step):
    step = jnp.asarray(step, jnp.float32)
    return learning_rate * shape(step) * jnp.minimum(1, (step + 1) / max(1, warmup))
  return value


def decay_mask(pattern):
  """Function of params that marks which decay: those whose path matches the regex."""
  def mask(params):
    return jax.tree_util.tree_map_with_path(
        lambda path, _: bool(re.search(pattern, path_name(path))), params)
  return mask


def build(spec, learning_rate):
  """optax transformation of `config.optimizer`; `learning_rate` is a number or a schedule.

  A name means what `t5like/optimizers.py` makes of it, else what optax does. weight_decay is handed on to
  optimizers that take it, b1, b2 and eps to those of Adam's kind (which take b1; eps means other things to
  others), and `extra` to whichever is named. Adafactor decays by `extra` only: T5 has no weight decay.
  Gradients arrive clipped: `step.py` does that, which needs the norm anyway.
  """
  names = {n: f for module in (optax.contrib, optax, optimizers) for n, f in vars(module).items()
           if inspect.isfunction(f) and 'learning_rate' in inspect.signature(f).parameters}
  if spec.name not in names:
    near = difflib.get_close_matches(spec.name, names, n=1)
    raise ConfigError(f'optimizer.name={spec.name!r}: there is no such optimizer, here or in optax.'
                      + (f' Did you mean {near[0]!r}?' if near else '')
                      + f' There is {", ".join(sorted(names))}.')
  make = names[spec.name]
  takes = inspect.signature(make).parameters
  extra = dict(spec.extra)
  for key in extra:
    if key not in takes:
      near = difflib.get_close_matches(key, takes, n=1)
      raise ConfigError(f'optimizer.extra.{key}: {spec.name} has no such argument.'
                        + (f' Did you mean {near[0]!r}?' if near else '')
                        + f' It takes {", ".join(takes)}.')
  handed_on = ('b1', 'b2', 'eps', 'weight_decay') if 'b1' in takes else ('weight_decay',)
  if spec.name == 'adafactor':
    handed_on = ()
  kwargs = {k: spec[k] for k in handed_on if k in takes}
  for key in ('mask', 'weight_decay_mask'):  # optax has two names for it
    if key in takes:
      kwargs[key] = decay_mask(spec.decay_mask)
  return make(learning_rate, **{**kwargs, **extra})


# --- Parameters that are frozen, or learn at a rate of their own ----------------------------------


def rates(spec, params):
  """`trained.rates` of a tree of parameters (or of their shapes), as fp32 arrays; `spec` is config.optimizer."""
  shapes = {path_name(path): x.shape for path, x in jax.tree_util.tree_leaves_with_path(params)}
  return {path: np.float32(rate) for path, rate in trained.rates(spec, shapes).items()}


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

  def update(grads, state, params=None):
    updates, state = tx.update(only(grads), state, None if params is None else only(params))
    found = {path_name(path): u for path, u in jax.tree_util.tree_leaves_with_path(updates)}

    def times_rate(path, g):
      rate = rates[path_name(path)]
      # Where rather than a product: a frozen layer's update may be 0 / 0.
      return jnp.where(_spread(rate, g) == 0, 0, found[path_name(path)] * _spread(rate, g)) if rate.any() else (
          jnp.zeros_like(g))
    return map_with_path(times_rate, grads), state
  return optax.GradientTransformation(lambda params: tx.init(only(params)), update)


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
