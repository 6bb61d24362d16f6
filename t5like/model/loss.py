"""The loss: cross-entropy of a batch as sums over tokens, in as many pieces as memory needs.

Sums are divided once, after micro-batches and devices are added up: every token of the global batch weighs the same
however the batch is cut.
"""
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from t5like.model import side_values
from t5like.model.transformer import Model
from t5like.sharding import everywhere

# Of fp32 logits per device; larger ones are made in pieces. Accelerators lose more by pieces than by size.
LOGITS_BYTES = dict(cpu=2 ** 27, gpu=2 ** 31, tpu=2 ** 31)


def cross_entropy(logits_BTV: jax.Array, targets_BT: jax.Array, label_smoothing: float = 0.0,
                  z_loss: float = 0.0) -> tuple[jax.Array, jax.Array, jax.Array]:
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


def num_chunks(chunks: int, seq_len: int, rows: int, vocab_size: int, platform: str = 'cpu') -> int:
  """Pieces of the sequence whose logits are made at once; `rows` and `vocab_size` per device.

  `chunks`: loss.chunks; 0: the fewest that divide seq_len and keep fp32 logits within LOGITS_BYTES.
  """
  if chunks:
    return chunks
  for n in range(1, seq_len):
    size = rows * (seq_len // n) * vocab_size * 4
    if seq_len % n == 0 and size <= LOGITS_BYTES[platform]:
      return n
  return seq_len


def make_sums(model: Model, loss: Any, chunks: int = 1) -> Callable[..., dict[str, jax.Array]]:
  """Returns sums(params, batch, key) -> dict of fp32 scalars: loss, nll, hits, weights, and those of side values.

  All are sums over the batch's predictions, each times its weight (weights: the plain sum); the loss has what side
  values add to it (`side_values.py`), which are sums over all tokens. A batch with `predict`, positions [B, P], has
  targets and weights for these alone, and only they reach the vocabulary (BERT's gather_indexes).

  Args:
    loss: config.loss.
    chunks: pieces of the sequence whose logits are made one after the other.
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


def _whole_pieces(x_BP: jax.Array) -> jax.Array:
  """Predictions [B, P], on all devices of 'context', with as many zeros behind them as make P divide by that axis."""
  x_BP = everywhere(x_BP, 'B_')
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty:
    return x_BP
  missing = -x_BP.shape[1] % mesh.shape['context']
  return jnp.pad(x_BP, [(0, 0), (0, missing)]) if missing else x_BP


def split(x: jax.Array, axis: int, n: int) -> jax.Array:
  """[.., m * n, ..] -> [n, .., m, ..]: piece i takes i, i + n, ..., so nothing changes its device."""
  shape = (*x.shape[:axis], x.shape[axis] // n, n, *x.shape[axis + 1:])
  spec = None
  if not jax.sharding.get_abstract_mesh().empty:
    layout = jax.typeof(x).sharding.spec
    spec = jax.sharding.PartitionSpec(*layout[:axis + 1], None, *layout[axis + 1:])
  return jnp.moveaxis(jnp.reshape(x, shape, out_sharding=spec), axis + 1, 0)
