"""The loss: cross-entropy of a batch as sums over tokens, in as many pieces as memory needs.

Sums are divided once, after micro-batches and devices are added up: every token of the global batch weighs the same
however the batch is cut.
"""
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from t5like import choices
from t5like.config_type import Section
from t5like.model import context, side_values
from t5like.model.transformer import Batch, Model, Params
from t5like.sharding import everywhere

Sums = dict[str, jax.Array]  # fp32 scalars

# Of fp32 logits per device; larger ones are made in pieces. Accelerators lose more by pieces than by size.
LOGITS_BYTES = dict(cpu=2 ** 27, gpu=2 ** 31, tpu=2 ** 31)


def cross_entropy(
    logits_BTV: jax.Array,
    targets_BT: jax.Array,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """(nll_BT, loss_BT, hit_BT) from fp32 logits; nats, nats and bool.

  A hit is a target that is the argmax: of several symbols with the largest logit, the first.

  nll is -log p(target). The loss adds z_loss * log(Z)^2 and smooths the target (probability
  1 - label_smoothing, the rest shared by the other symbols), less the entropy of that smoothed
  distribution, so that its least value is 0 (T5X, losses.py; Szegedy et al. 2016).
  """
  V = logits_BTV.shape[-1]
  log_z_BT = jax.nn.logsumexp(logits_BTV, -1)
  # A masked sum, not a gather: the vocabulary may be spread over devices.
  symbols_V = jnp.arange(V)
  symbols_11V = symbols_V[None, None, :]
  is_target_BTV = targets_BT[:, :, None] == symbols_11V
  masked_BTV = jnp.where(is_target_BTV, logits_BTV, 0)
  target_BT = jnp.sum(masked_BTV, -1)
  nll_BT = log_z_BT - target_BT
  loss_BT = nll_BT
  if label_smoothing:
    high = 1 - label_smoothing
    low = label_smoothing / (V - 1)
    of_target = high * jnp.log(high)
    of_others = (V - 1) * low * jnp.log(low + 1e-20)
    entropy = -(of_target + of_others)
    all_BT = jnp.sum(logits_BTV, -1)
    others_BT = all_BT - target_BT
    smoothed_BT = log_z_BT - high * target_BT - low * others_BT
    loss_BT = smoothed_BT - entropy
  if z_loss:
    square_BT = jnp.square(log_z_BT)
    loss_BT = loss_BT + z_loss * square_BT
  # Not argmax, which would be a pass over the logits of its own: these two are made beside those of logsumexp.
  most_BT = jnp.max(logits_BTV, -1)
  is_smaller_BTV = logits_BTV < most_BT[:, :, None]
  is_later_BTV = symbols_11V >= targets_BT[:, :, None]
  is_behind_BTV = is_smaller_BTV | is_later_BTV
  no_earlier_BT = jnp.all(is_behind_BTV, -1)
  is_largest_BT = target_BT >= most_BT
  hit_BT = is_largest_BT & no_earlier_BT
  return nll_BT, loss_BT, hit_BT


def num_chunks(
    chunks: int,
    seq_len: int,
    rows: int,
    vocab_size: int,
    platform: str = 'cpu',
) -> int:
  """Pieces of the sequence whose logits are made at once.

  Args:
    chunks: loss.chunks; 0: the fewest that divide seq_len and keep fp32 logits within LOGITS_BYTES.
    seq_len: predicted tokens of a row, per device.
    rows: of a micro-batch, per device.
    vocab_size: per device.
    platform: 'cpu', 'gpu' or 'tpu'.
  """
  if chunks:
    return chunks
  most = LOGITS_BYTES[platform]
  for n in range(1, seq_len):
    piece = seq_len // n
    size = rows * piece * vocab_size * 4
    if seq_len % n == 0 and size <= most:
      return n
  return seq_len


def make_sums(
    model: Model,
    loss: Section,
    chunks: int = 1,
) -> Callable[..., Sums]:
  """Returns sums(params, batch, key=None) -> fp32 scalars: loss, nll, hits, weights, and those of side values.

  All are sums over the batch's predictions, each times its weight (weights: the plain sum); the loss has what side
  values add to it (`side_values.py`), which are sums over all tokens. A batch with `predict`, positions [B, P], has
  targets and weights for these alone, and only they reach the vocabulary (BERT's gather_indexes).

  Args:
    model: of `transformer.build`.
    loss: config.loss.
    chunks: pieces of the sequence whose logits are made one after the other.
  """
  sums_of_hidden = functools.partial(_sums_of_hidden, model, loss)
  is_causal = choices.ARCHITECTURES[model.config.name].causal

  def sums(
      params: Params,
      batch: Batch,
      key: jax.Array | None = None,
  ) -> Sums:
    if is_causal:
      batch = context.arranged(batch)
    x_BTD, side = model.hidden(params, batch, key)
    targets_BT = batch['targets']
    weights_BT = batch['weights']
    if 'predict' in batch:
      x_BTD, targets_BT, weights_BT = _predictions(
          x_BTD,
          batch['predict'],
          targets_BT,
          weights_BT,
      )
    if chunks == 1:
      total = sums_of_hidden(params, x_BTD, targets_BT, weights_BT)
      return side_values.with_side(total, side)

    @jax.checkpoint  # logits are made again in the backward pass, so only one piece exists at a time
    def add_chunk(
        total: Sums,
        chunk: tuple[jax.Array, ...],
    ) -> tuple[Sums, None]:
      added = sums_of_hidden(params, *chunk)
      total = jax.tree.map(jnp.add, total, added)
      return total, None

    zero = jnp.float32(0)
    zeros: Sums = dict(loss=zero, nll=zero, hits=zero, weights=zero)
    pieces = (
        split(x_BTD, 1, chunks),
        split(targets_BT, 1, chunks),
        split(weights_BT, 1, chunks),
    )
    total, _ = jax.lax.scan(add_chunk, zeros, pieces)
    return side_values.with_side(total, side)

  return sums


@jax.named_scope('loss')
def _sums_of_hidden(
    model: Model,
    loss: Section,
    params: Params,
    x_BTD: jax.Array,
    targets_BT: jax.Array,
    weights_BT: jax.Array,
) -> Sums:
  """The sums of predictions from what the last layer gives, side values aside."""
  logits_BTV = model.logits(params, x_BTD)
  nll_BT, loss_BT, hit_BT = cross_entropy(
      logits_BTV,
      targets_BT,
      label_smoothing=loss.label_smoothing,
      z_loss=loss.z_loss,
  )
  return dict(
      loss=jnp.sum(loss_BT * weights_BT),
      nll=jnp.sum(nll_BT * weights_BT),
      hits=jnp.sum(hit_BT * weights_BT),
      weights=jnp.sum(weights_BT),
  )


def _predictions(
    x_BTD: jax.Array,
    positions_BP: jax.Array,
    targets_BP: jax.Array,
    weights_BP: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """(x, targets, weights) of the predicted positions of rows alone, spread over devices.

  Positions may be anywhere in a row, pieces of which are on different devices: what is predicted is spread anew.
  """
  positions_BP = _whole_pieces(positions_BP)
  targets_BP = _whole_pieces(targets_BP)
  weights_BP = _whole_pieces(weights_BP)
  whole_BTD = everywhere(x_BTD, 'B_D')
  positions_BP1 = positions_BP[:, :, None]
  x_BPD = jnp.take_along_axis(whole_BTD, positions_BP1, axis=1)
  return (
      everywhere(x_BPD, 'BTD'),
      everywhere(targets_BP, 'BT'),
      everywhere(weights_BP, 'BT'),
  )


def _whole_pieces(x_BP: jax.Array) -> jax.Array:
  """Predictions [B, P], on all devices of 'context', padded with zeros until that axis divides P."""
  x_BP = everywhere(x_BP, 'B_')
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty:
    return x_BP
  _, predictions = x_BP.shape
  missing = -predictions % mesh.shape['context']
  if not missing:
    return x_BP
  no_rows = (0, 0)
  at_the_end = (0, missing)
  return jnp.pad(x_BP, [no_rows, at_the_end])


def split(x: jax.Array, axis: int, n: int) -> jax.Array:
  """[.., m * n, ..] -> [n, .., m, ..]: piece i takes i, i + n, ..., so nothing changes its device."""
  after = axis + 1
  shape = (
      *x.shape[:axis],
      x.shape[axis] // n,
      n,
      *x.shape[after:],
  )
  spec = None
  mesh = jax.sharding.get_abstract_mesh()
  if not mesh.empty:
    layout = jax.typeof(x).sharding.spec
    spec = jax.sharding.PartitionSpec(
        *layout[:after],
        None,
        *layout[after:],
    )
  cut = jnp.reshape(x, shape, out_sharding=spec)
  return jnp.moveaxis(cut, after, 0)
