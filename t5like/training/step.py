"""The only training step. Knows batches, not architectures or optimizers.

Gradients are of sums over tokens (`loss.py`), divided once after micro-batches and devices are added up.
"""
import jax
import jax.numpy as jnp
import optax

from t5like.model import side_values
from t5like.model.loss import split
from t5like.optim import guard as guard_lib


def init_state(model, tx, seed, params=None):
  """{params, opt_state, step, guard}: all that a step reads and writes, all arrays; `params` random if None."""
  params = model.init(jax.random.key(seed)) if params is None else params
  return dict(params=params, opt_state=tx.init(params), step=jnp.int32(0),
              guard=guard_lib.start())


def make_gradients(sums, microbatches=1):
  """Returns gradients(params, batch, key) -> (of the summed loss, like params; sums), micro-batch after micro-batch."""
  def loss_sum(params, batch, key):
    s = sums(params, batch, key)
    return s['loss'], s
  grad = jax.value_and_grad(loss_sum, has_aux=True)

  def gradients(params, batch, key):
    if microbatches == 1:
      (_, s), grads = grad(params, batch, key)
      return grads, s

    def add(total, i_batch):
      i, piece = i_batch
      (_, s), grads = grad(params, piece, jax.random.fold_in(key, i))
      return jax.tree.map(jnp.add, total, (grads, s)), None
    pieces = jax.tree.map(lambda x: split(x, 0, microbatches), batch)
    first, rest = jax.tree.map(lambda x: x[0], pieces), jax.tree.map(lambda x: x[1:], pieces)
    (_, s), grads = grad(params, first, jax.random.fold_in(key, 0))
    # A loop of one turn is none to the compiler, which would then have the activations of both pieces at once.
    rest, done = jax.lax.optimization_barrier((rest, (grads, s)))
    return jax.lax.scan(add, done, (jnp.arange(1, microbatches), rest))[0]
  return gradients


def make_train_step(gradients, tx, *, seed, clip_norm=0.0, spike_loss=0.0, spike_norm=0.0):
  """Returns train_step(state, batch) -> (state, metrics), to be jitted with the state donated.

  A step whose loss, gradient, update or parameters after it are not finite, or that is a spike (guard.judge), changes
  nothing but `guard`. metrics: loss, nll (nats per token), accuracy, weights, grad_norm (before clipping), update_norm,
  param_norm (after the update), means of side values and the guard's counters, fp32 or int32 scalars.
  """
  tx = optax.with_extra_args_support(tx)

  def train_step(state, batch):
    params, opt_state = state['params'], state['opt_state']
    key = jax.random.fold_in(jax.random.key(seed), state['step'])
    grads, s = gradients(params, batch, key)
    with jax.named_scope('optimizer'):
      count = jnp.maximum(s['weights'], 1)
      grad_norm = optax.global_norm(grads) / count
      scale = jnp.minimum(1, clip_norm / jnp.maximum(grad_norm, 1e-30)) if clip_norm else 1
      grads = jax.tree.map(lambda g: g * (scale / count).astype(g.dtype), grads)
      # Read without a sign, the 32 bits of the step last twice as long.
      updates, new_opt_state = tx.update(grads, opt_state, params, step=state['step'].astype(jnp.uint32))
      update_norm = optax.global_norm(updates)
      new_params = optax.apply_updates(params, updates)
      param_norm = optax.global_norm(new_params)  # also judged: finite updates may add up to what is not
      # Judged before anything is multiplied by it: 0 * NaN is NaN, so bad values are never blended in.
      norms_finite = jnp.isfinite(grad_norm) & jnp.isfinite(update_norm) & jnp.isfinite(param_norm)
      finite = jnp.isfinite(s['loss']) & norms_finite
      ok, guard = guard_lib.judge(state['guard'], finite, s['loss'] / count, grad_norm, spike_loss, spike_norm)
      keep = lambda new, old: jax.tree.map(lambda n, o: jnp.where(ok, n, o), new, old)
      new_state = dict(params=keep(new_params, params),
                       opt_state=keep(new_opt_state, opt_state), step=state['step'] + 1, guard=guard)
    metrics = dict(loss=s['loss'] / count, nll=s['nll'] / count, accuracy=s['hits'] / count,
                   weights=s['weights'], grad_norm=grad_norm, update_norm=update_norm, param_norm=param_norm,
                   **side_values.means(s), **guard_lib.counters(guard))
    return new_state, metrics
  return train_step
