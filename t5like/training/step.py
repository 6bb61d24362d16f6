"""The only training step. Knows batches, not architectures or optimizers.

Gradients are of sums over tokens (`loss.py`), divided once after micro-batches and devices are added up.
"""
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from t5like.model import side_values
from t5like.model.loss import split
from t5like.model.transformer import Model
from t5like.optim import guard as guard_lib, warm_up
from t5like.optim.warm_up import Hold

State = dict[str, Any]  # params, opt_state, step, guard; ema: averaged parameters, of runs that keep them
Params = dict[str, Any]  # nested dicts of arrays
Batch = dict[str, Any]  # arrays [B, ..], and dicts of them
Sums = dict[str, jax.Array]  # see model/loss.py
Metrics = dict[str, jax.Array]
SumsFunction = Callable[..., Sums]  # of (params, batch, key)
Gradients = Callable[[Params, Batch, jax.Array], tuple[Params, Sums]]
TrainStep = Callable[[State, Batch], tuple[State, Metrics]]


def init_state(
    model: Model,
    tx: optax.GradientTransformation,
    seed: int,
    params: Params | None = None,
    ema: float = 0.0,
) -> State:
  """{params, opt_state, step, guard}: all that a step reads and writes, all arrays; `params` random if None.

  Where `ema`, config.optimizer.ema, is not 0, there is `ema` too: parameters averaged over steps, at first the same.
  """
  if params is None:
    key = jax.random.key(seed)
    params = model.init(key)
  state = dict(
      params=params,
      opt_state=tx.init(params),
      step=jnp.int32(0),
      guard=guard_lib.start(),
  )
  if ema:
    state['ema'] = jax.tree.map(jnp.copy, params)
  return state


def make_gradients(sums: SumsFunction, microbatches: int = 1) -> Gradients:
  """Returns gradients(params, batch, key) -> (of the summed loss, like params; sums), micro-batch after micro-batch."""

  def loss_sum(params: Params, batch: Batch, key: jax.Array) -> tuple[jax.Array, Sums]:
    sums_of_batch = sums(params, batch, key)
    return sums_of_batch['loss'], sums_of_batch

  value_and_grad = jax.value_and_grad(loss_sum, has_aux=True)

  def of_piece(params: Params, batch: Batch, key: jax.Array) -> tuple[Params, Sums]:
    value, grads = value_and_grad(params, batch, key)
    _, sums_of_piece = value
    return grads, sums_of_piece

  if microbatches == 1:
    return of_piece

  def gradients(params: Params, batch: Batch, key: jax.Array) -> tuple[Params, Sums]:

    def add(total: Any, numbered: tuple[jax.Array, Batch]) -> tuple[Any, None]:
      number, piece = numbered
      key_of_piece = jax.random.fold_in(key, number)
      of_this = of_piece(params, piece, key_of_piece)
      total = jax.tree.map(jnp.add, total, of_this)
      return total, None

    pieces = jax.tree.map(lambda x: split(x, 0, microbatches), batch)
    first = jax.tree.map(lambda x: x[0], pieces)
    rest = jax.tree.map(lambda x: x[1:], pieces)
    first_key = jax.random.fold_in(key, 0)
    of_first = of_piece(params, first, first_key)
    # The compiler unrolls a loop of one turn, and would then keep the activations of both pieces at once.
    rest, of_first = jax.lax.optimization_barrier((rest, of_first))
    numbers = jnp.arange(1, microbatches)
    total, _ = jax.lax.scan(add, of_first, (numbers, rest))
    return total

  return gradients


def make_train_step(
    gradients: Gradients,
    tx: optax.GradientTransformation,
    *,
    seed: int,
    clip_norm: float = 0.0,
    spike_loss: float = 0.0,
    spike_norm: float = 0.0,
    hold: Hold = warm_up.hold_nothing,
    ema: float = 0.0,
) -> TrainStep:
  """Returns train_step(state, batch) -> (state, metrics), to be jitted with the state donated.

  A step whose loss, gradient, update or parameters after it are not finite, or that is a spike (guard.judge), changes
  nothing but `guard`. metrics: loss, nll (nats per token), accuracy, weights, grad_norm (before clipping), update_norm,
  param_norm (after the update), means of side values and the guard's counters, fp32 or int32 scalars.

  Args:
    gradients: of `make_gradients`.
    tx: the optimizer.
    seed: of dropout.
    clip_norm: the largest norm of gradients; 0: they are not clipped.
    spike_loss: see guard.judge.
    spike_norm: see guard.judge.
    hold: of `warm_up.make_hold`: what the first steps do not train.
    ema: config.optimizer.ema: what averaged parameters keep of themselves in a step; 0: there are none.
  """
  optimizer = optax.with_extra_args_support(tx)

  def train_step(state: State, batch: Batch) -> tuple[State, Metrics]:
    params = state['params']
    root = jax.random.key(seed)
    key = jax.random.fold_in(root, state['step'])
    grads, sums = gradients(params, batch, key)
    with jax.named_scope('optimizer'):
      count = jnp.maximum(sums['weights'], 1)
      grads = hold(grads, state['step'])
      grad_norm = optax.global_norm(grads) / count
      grads = _clipped(grads, grad_norm, count, clip_norm)
      # Read without a sign, the 32 bits of the step last twice as long.
      step = state['step'].astype(jnp.uint32)
      updates, new_opt_state = optimizer.update(grads, state['opt_state'], params, step=step)
      updates = hold(updates, state['step'])  # what decays moves without a gradient
      update_norm = optax.global_norm(updates)
      new_params = optax.apply_updates(params, updates)
      param_norm = optax.global_norm(new_params)  # also judged: finite updates may add up to what is not
      # Judged before anything is multiplied by it: 0 * NaN is NaN, so bad values are never blended in.
      norms_finite = jnp.isfinite(grad_norm) & jnp.isfinite(update_norm) & jnp.isfinite(param_norm)
      finite = jnp.isfinite(sums['loss']) & norms_finite
      loss = sums['loss'] / count
      good, guard = guard_lib.judge(state['guard'], finite, loss, grad_norm, spike_loss, spike_norm)
      new = dict(params=new_params, opt_state=new_opt_state)
      if ema:
        new['ema'] = _averaged(state['ema'], new_params, ema, state['step'])
      new_state = {name: _new_if(good, tree, state[name]) for name, tree in new.items()}
      new_state.update(step=state['step'] + 1, guard=guard)
    norms = dict(grad_norm=grad_norm, update_norm=update_norm, param_norm=param_norm)
    return new_state, _means(sums, count) | norms | side_values.means(sums) | guard_lib.counters(guard)

  return train_step


def _averaged(average: Params, params: Any, ema: float, step: jax.Array) -> Params:
  """The moving average after one more step, whose first parameters have no more weight than later ones.

  In step n, from 0, it keeps min(ema, (1 + n) / (10 + n)) of itself, as TensorFlow's ExponentialMovingAverage does.
  """
  n = step.astype(jnp.float32)
  kept = jnp.minimum(ema, (1 + n) / (10 + n))

  def moved(x: jax.Array, y: jax.Array) -> jax.Array:
    share = (1 - kept).astype(x.dtype)
    return x + share * (y - x)

  return jax.tree.map(moved, average, params)


def _new_if(good: jax.Array, new: Any, old: Any) -> Any:
  """The new tree after a good step, else the old one."""

  def kept(new_x: jax.Array, old_x: jax.Array) -> jax.Array:
    return jnp.where(good, new_x, old_x)

  return jax.tree.map(kept, new, old)


def _means(sums: Sums, count: jax.Array) -> Metrics:
  """Over the tokens of a batch."""
  return dict(
      loss=sums['loss'] / count,
      nll=sums['nll'] / count,
      accuracy=sums['hits'] / count,
      weights=sums['weights'],
  )


def _clipped(grads: Params, norm: jax.Array, count: jax.Array, clip_norm: float) -> Params:
  """Gradients of sums, divided by their number of tokens and scaled to a norm of at most clip_norm."""
  factor = 1
  if clip_norm:
    divisor = jnp.maximum(norm, 1e-30)
    factor = jnp.minimum(1, clip_norm / divisor)

  def scaled(g: jax.Array) -> jax.Array:
    scale = factor / count
    return g * scale.astype(g.dtype)

  return jax.tree.map(scaled, grads)
