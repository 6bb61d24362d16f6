"""The loss, and the only training step. Knows batches, not architectures or optimizers.

A loss is made of sums over tokens and divided once, after micro-batches and devices are added up:
every token of the global batch weighs the same however the batch is cut.
"""
import jax
import jax.numpy as jnp
import optax

from t5like import guard as guard_lib, side_values
from t5like.sharding import everywhere

# Of fp32 logits per device; larger ones are made in pieces. Accelerators lose more by pieces than by size.
LOGITS_BYTES = dict(cpu=2 ** 27, gpu=2 ** 31, tpu=2 ** 31)


def cross_entropy(logits_BTV, targets_BT, label_smoothing=0.0, z_loss=0.0):
  """(nll_BT, loss_BT, hit_BT) from fp32 logits; nats, nats and bool.

  A hit is a target that is the argmax: of several symbols with the largest logit, the first.

  nll is -log p(target). The loss adds z_loss * log(Z)^2 and smooths the target (probability
  1 - label_smoothing, the rest shared by the other symbols), less the entropy of that smoothed
  distribution, so that its least value is 0 (T5X, losses.py; Szegedy et al. 2016).
  """
  V = logits_BTV.shape[-1]
  log_z_BT = jax.nn.logsumexp(logits_BTV, -1)
  # A masked sum, not a gather: the vocabulary may be spread over devices.
  symbols_11V = jnp.arange(V)[None, None, :]
  is_target_BTV = targets_BT[:, :, None] == symbols_11V
  target_BT = jnp.sum(jnp.where(is_target_BTV, logits_BTV, 0), -1)
  nll_BT = loss_BT = log_z_BT - target_BT
  if label_smoothing:
    high, low = 1 - label_smoothing, label_smoothing / (V - 1)
    entropy = -(high * jnp.log(high) + (V - 1) * low * jnp.log(low + 1e-20))
    others_BT = jnp.sum(logits_BTV, -1) - target_BT
    loss_BT = log_z_BT - high * target_BT - low * others_BT - entropy
  if z_loss:
    loss_BT = loss_BT + z_loss * jnp.square(log_z_BT)
  # Not argmax, which would be a pass over the logits of its own: these two are made beside those of logsumexp.
  most_BT = jnp.max(logits_BTV, -1)
  no_earlier_BT = jnp.all((logits_BTV < most_BT[:, :, None]) | (symbols_11V >= targets_BT[:, :, None]), -1)
  return nll_BT, loss_BT, (target_BT >= most_BT) & no_earlier_BT


def num_chunks(asked, seq_len, rows, vocab_size, platform='cpu'):
  """Pieces of the sequence whose logits are made at once; `rows` and `vocab_size` per device.

  asked 0: the fewest that divide seq_len and keep fp32 logits within LOGITS_BYTES.
  """
  if asked:
    return asked
  fits = lambda n: rows * (seq_len // n) * vocab_size * 4 <= LOGITS_BYTES[platform]
  return next((n for n in range(1, seq_len) if seq_len % n == 0 and fits(n)), seq_len)


def make_sums(model, loss, chunks=1):
  """Returns sums(params, batch, key) -> dict of fp32 scalars: loss, nll, hits, weights, and those of side values.

  All are sums over the batch's predictions, each times its weight (weights: the plain sum); the loss has what side
  values add to it (`side_values.py`), which are sums over all tokens. A batch
  with `predict`, positions [B, P], has targets and weights for these alone, and only they reach the
  vocabulary (BERT's gather_indexes).
  """
  @jax.named_scope('loss')
  def of_hidden(params, x_BTD, targets_BT, weights_BT):
    nll_BT, loss_BT, hit_BT = cross_entropy(
        model.logits(params, x_BTD), targets_BT, loss.label_smoothing, loss.z_loss)
    return dict(loss=jnp.sum(loss_BT * weights_BT), nll=jnp.sum(nll_BT * weights_BT),
                hits=jnp.sum(hit_BT * weights_BT), weights=jnp.sum(weights_BT))

  def sums(params, batch, key=None):
    x_BTD, side = model.hidden(params, batch, key)
    targets_BT, weights_BT = batch['targets'], batch['weights']
    if 'predict' in batch:
      # Positions may be anywhere in a row, pieces of which are on different devices; what is predicted is spread anew.
      at_BP, targets_BT, weights_BT = (_whole_pieces(x) for x in (batch['predict'], targets_BT, weights_BT))
      x_BPD = jnp.take_along_axis(everywhere(x_BTD, 'B_D'), at_BP[:, :, None], axis=1)
      x_BTD, targets_BT, weights_BT = (everywhere(x, dims) for x, dims in (
          (x_BPD, 'BTD'), (targets_BT, 'BT'), (weights_BT, 'BT')))
    if chunks == 1:
      return side_values.with_side(of_hidden(params, x_BTD, targets_BT, weights_BT), side)

    @jax.checkpoint  # logits are made again in the backward pass, so only one piece exists at a time
    def add_chunk(total, chunk):
      return jax.tree.map(jnp.add, total, of_hidden(params, *chunk)), None
    zero = dict.fromkeys(('loss', 'nll', 'hits', 'weights'), jnp.float32(0))
    pieces = tuple(split(x, 1, chunks) for x in (x_BTD, targets_BT, weights_BT))
    return side_values.with_side(jax.lax.scan(add_chunk, zero, pieces)[0], side)
  return sums


def _whole_pieces(x_BP):
  """Predictions [B, P], on all devices of 'context', with as many zeros behind them as make P divide by that axis."""
  x_BP = everywhere(x_BP, 'B_')
  mesh = jax.sharding.get_abstract_mesh()
  missing = 0 if mesh.empty else -x_BP.shape[1] % mesh.shape['context']
  return jnp.pad(x_BP, [(0, 0), (0, missing)]) if missing else x_BP


def split(x, axis, n):
  """[.., m * n, ..] -> [n, .., m, ..]: piece i takes i, i + n, ..., so nothing changes its device."""
  shape, spec = (*x.shape[:axis], x.shape[axis] // n, n, *x.shape[axis + 1:]), None
  if not jax.sharding.get_abstract_mesh().empty:
    given = jax.typeof(x).sharding.spec
    spec = jax.sharding.PartitionSpec(*given[:axis + 1], None, *given[axis + 1:])
  return jnp.moveaxis(jnp.reshape(x, shape, out_sharding=spec), axis + 1, 0)


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
