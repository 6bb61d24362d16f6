"""Log-likelihoods of answers, in batches of few shapes, on all devices of a mesh.

Rows of like lengths share a batch whose width is one of few (`ask.width`), so that few programs are compiled;
what a row gets does not depend on the rows beside it.
"""
import collections
import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from t5like import sharding
from t5like.config_type import Config
from t5like.evals import ask
from t5like.evals.manners import Row
from t5like.model import loss as loss_lib
from t5like.model.transformer import Model
from t5like.sharding import everywhere
from t5like.vocabulary.kinds import Vocabulary

ROWS = 64  # most rows of a batch per piece that the mesh cuts batches into
TOKENS = 8192  # most positions of the same

Prediction = tuple[np.ndarray, np.ndarray]  # nll [P] in nats, and whether each target is the likeliest, bool [P]


@dataclasses.dataclass(frozen=True)
class Score:
  """Of one answer.

  Attributes:
    logp: its log-likelihood in nats.
    tokens: how many it has.
    greedy: whether each of them is the likeliest where it stands.
    cut: how many tokens of the question did not fit.
  """
  logp: float
  tokens: int
  greedy: bool
  cut: int = 0


@functools.partial(jax.jit, static_argnums=(0, 1))
def _predictions(
    model: Model,
    chunks: int,
    params: Any,
    batch: dict[str, Any],
) -> tuple[jax.Array, jax.Array]:
  """(nll_BP, hit_BP) at positions `predict` [B, P] of a batch, on every device: nats, and whether likeliest."""
  batch = dict(batch)
  predict_BP = batch.pop('predict')
  targets_BP = batch.pop('targets')
  x_BTD, _ = model.hidden(params, batch)
  x_BPD = _at_positions(x_BTD, predict_BP)

  def of_piece(
      carry: None,
      piece: tuple[jax.Array, jax.Array],
  ) -> tuple[None, tuple[jax.Array, jax.Array]]:
    x_BPD, targets_BP = piece
    logits_BPV = model.logits(params, x_BPD)
    nll_BP, _, hit_BP = loss_lib.cross_entropy(logits_BPV, targets_BP)
    return carry, (nll_BP, hit_BP)

  def in_order(pieces: jax.Array) -> jax.Array:
    # Piece i has positions i, i + n, ..: back in order, each beside its neighbours.
    neighbours = jnp.moveaxis(pieces, 0, -1)
    return neighbours.reshape(
        predict_BP.shape,
        out_sharding=sharding.in_use('BT'),
    )

  if chunks == 1:
    _, (nll_BP, hit_BP) = of_piece(None, (x_BPD, targets_BP))
  else:
    x_pieces = loss_lib.split(x_BPD, 1, chunks)
    targets_pieces = loss_lib.split(targets_BP, 1, chunks)
    _, (nll, hit) = jax.lax.scan(of_piece, None, (x_pieces, targets_pieces))
    nll_BP = in_order(nll)
    hit_BP = in_order(hit)
  whole = jax.sharding.PartitionSpec()
  nll_BP = jax.sharding.reshard(nll_BP, whole)
  hit_BP = jax.sharding.reshard(hit_BP, whole)
  return nll_BP, hit_BP


def _at_positions(x_BTD: jax.Array, predict_BP: jax.Array) -> jax.Array:
  """Hidden states [B, P, D] at the positions `predict` of each row."""
  x_BTD = everywhere(x_BTD, 'B_D')
  predict_BP = everywhere(predict_BP, 'B_')
  predict_BP1 = predict_BP[:, :, None]
  x_BPD = jnp.take_along_axis(x_BTD, predict_BP1, axis=1)
  return everywhere(x_BPD, 'BTD')


def no_tick() -> None:
  """Called after each batch where nobody waits for signs of life."""


class Scorer:
  """Scores answers by the model of a config. Call it under no mesh or its own; all processes alike.

  Attributes:
    asker: how questions become rows (ask.py).
    tick: called after each batch.
  """

  def __init__(
      self,
      model: Model,
      params: Any,
      vocabulary: Vocabulary,
      config: Config,
      mesh: jax.sharding.Mesh,
      tick: Callable[[], None] = no_tick,
  ):
    self.model = model
    self.params = params
    self.mesh = mesh
    self.tick = tick
    self.asker = ask.Asker(config, vocabulary)
    self.shards = sharding.batch_shards(mesh)
    self.platform: str = mesh.devices.flat[0].platform

  def score(self, questions: Iterable[tuple[str, ...]]) -> list[Score]:
    """[Score] of questions (before, answer, after), texts; `after` may be left out. DataError: as `Asker.apart`."""
    rows_of_answers = [self.asker.rows(*question) for question in questions]
    return self.score_rows(rows_of_answers)

  def score_choices(
      self,
      groups: Sequence[Sequence[ask.TextQuestion]],
  ) -> list[list[Score]]:
    """A list of Scores for each list of questions (before, answer, after) that are compared with each other."""
    rows_of_answers: list[list[Row]] = []
    for group in groups:
      rows_of_answers += self.asker.rows_of_choices(group)
    scores = iter(self.score_rows(rows_of_answers))
    by_group = []
    for group in groups:
      of_group = itertools.islice(scores, len(group))
      by_group.append(list(of_group))
    return by_group

  def score_text(self, texts: Iterable[str]) -> list[Score]:
    """[Score] of whole texts, in as many rows as each needs (see `ask.windows`)."""
    rows_of_texts = []
    for ids in self.asker.vocabulary.encode_batch(texts):
      rows: list[Row] = []
      for before, answer in ask.windows(self.asker, ids):
        rows += self.asker.rows_of_ids(before, answer)
      rows_of_texts.append(rows)
    scores = self.score_rows(rows_of_texts)
    # What a window's text lacks on its left is meant to be missing.
    return [dataclasses.replace(score, cut=0) for score in scores]

  def score_rows(
      self,
      rows_of_answers: Sequence[Sequence[Row]],
  ) -> list[Score]:
    """[Score], one for each list of rows."""
    flat: list[Row] = []
    for rows in rows_of_answers:
      flat += rows
    predictions = iter(self.predictions(flat))
    scores = []
    for rows in rows_of_answers:
      of_answer = itertools.islice(predictions, len(rows))
      scores.append(_score(rows, list(of_answer)))
    return scores

  def predictions(self, rows: Sequence[Row]) -> list[Prediction]:
    """(nll, hit) of each row: arrays over the positions that it predicts."""
    buckets = collections.defaultdict(list)
    for number, row in enumerate(rows):
      widths = self._widths(row)
      buckets[widths].append(number)
    of_row: dict[int, Prediction] = {}
    for widths, members in sorted(buckets.items()):
      most = self._most_rows(widths)
      size = most * self.shards
      for start in range(0, len(members), size):
        numbers = members[start:start + size]
        together = [rows[number] for number in numbers]
        count = self._count(len(numbers), most)
        batch = ask.batch(together, count, *widths)
        predictions = self._run(batch)
        of_row.update(zip(numbers, predictions))
    return [of_row[number] for number in range(len(rows))]

  def _most_rows(self, widths: tuple[int, int, int]) -> int:
    """The most rows of a batch of these widths, per shard."""
    inputs, _, sources = widths
    most = TOKENS // (inputs + sources)
    return max(1, min(ROWS, most))

  def _widths(self, row: Row) -> tuple[int, int, int]:
    """Widths of the batch that a row goes into: of inputs, predictions and the encoder's inputs (0 without one)."""
    pieces = self.mesh.shape['context']
    room = self.asker.room
    predictions = pieces
    if len(row.predict) > 1:
      predictions = ask.width(len(row.predict), 1, pieces)
    if row.encoder is None:
      inputs = ask.width(len(row.inputs), room, pieces)
      return inputs, predictions, 0
    inputs = ask.width(len(row.inputs), self.asker.target_room, pieces)
    sources = ask.width(len(row.encoder), room, pieces)
    return inputs, predictions, sources

  def _count(self, needed: int, most: int) -> int:
    """Rows of the batch that `needed` rows go into, one of three sizes; `most`: of rows per shard."""
    for rows in (most // 16, most // 4):
      count = max(1, rows) * self.shards
      if count >= needed:
        return count
    return most * self.shards

  def _run(self, batch: dict[str, Any]) -> list[Prediction]:
    """(nll, hit) of each row of a batch (see `ask.batch`)."""
    count, width = batch['predict'].shape
    chunks = self._chunks(count, width)
    is_predicted_BP = batch.pop('weights') > 0
    with jax.set_mesh(self.mesh):
      placed = sharding.place(self.mesh, batch)
      on_devices = _predictions(self.model, chunks, self.params, placed)
      nll_BP, hit_BP = jax.device_get(on_devices)
    self.tick()
    predictions = []
    for nll, hit, is_predicted in zip(nll_BP, hit_BP, is_predicted_BP):
      prediction = (nll[is_predicted], hit[is_predicted])
      predictions.append(prediction)
    return predictions

  def _chunks(self, count: int, width: int) -> int:
    """Pieces that logits of `count` rows with `width` predictions are computed in."""
    width_of_shard = width // self.mesh.shape['context']
    if width_of_shard <= 1:
      return 1
    vocab = self.model.config.vocab_size // self.mesh.shape['tensor']
    return loss_lib.num_chunks(
        0,
        width_of_shard,
        count // self.shards,
        vocab,
        self.platform,
    )


def _score(
    rows: Sequence[Row],
    predictions: Sequence[Prediction],
) -> Score:
  """The Score of an answer whose rows have these predictions; 0 tokens without rows."""
  nlls = [np.zeros(0, np.float32)]
  hits = [np.zeros(0, bool)]
  for nll, hit in predictions:
    nlls.append(nll)
    hits.append(hit)
  nll = np.concatenate(nlls)
  hit = np.concatenate(hits)
  total = nll.sum(dtype=np.float64)
  is_greedy = len(hit) > 0 and bool(hit.all())
  return Score(
      logp=-float(total),
      tokens=len(nll),
      greedy=is_greedy,
      cut=sum(row.cut for row in rows),
  )
