"""Log-likelihoods of answers, in batches of few shapes, on all devices of a mesh.

Rows of like lengths share a batch whose width is one of few (`ask.width`), so that few programs are compiled;
what a row gets does not depend on the rows beside it.
"""
import collections
import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from t5like import sharding
from t5like.evals import ask
from t5like.model import loss as loss_lib
from t5like.sharding import everywhere

ROWS, TOKENS = 64, 8192  # most rows, and positions, of a batch per piece that the mesh cuts batches into


@dataclasses.dataclass(frozen=True)
class Score:
  """Of one answer: logp, its log-likelihood in nats; tokens, how many it has; greedy, whether each of them is
  the likeliest where it stands; cut, how many tokens of the question did not fit."""
  logp: float
  tokens: int
  greedy: bool
  cut: int = 0


@functools.partial(jax.jit, static_argnums=(0, 1))
def _predictions(model, chunks, params, batch):
  """(nll_BP, hit_BP) at positions `predict` [B, P] of a batch, on every device: nats, and whether likeliest."""
  batch = dict(batch)
  at_BP, targets_BP = (batch.pop(name) for name in ('predict', 'targets'))
  x_BTD, _ = model.hidden(params, batch)
  x_BTD = everywhere(x_BTD, 'B_D')
  x_BPD = everywhere(jnp.take_along_axis(x_BTD, everywhere(at_BP, 'B_')[:, :, None], axis=1), 'BTD')

  def some(_, piece):
    nll_BP, _, hit_BP = loss_lib.cross_entropy(model.logits(params, piece[0]), piece[1])
    return None, (nll_BP, hit_BP)
  if chunks == 1:
    nll_BP, hit_BP = some(None, (x_BPD, targets_BP))[1]
  else:
    pieces = tuple(loss_lib.split(x, 1, chunks) for x in (x_BPD, targets_BP))
    # Piece i has positions i, i + n, ..: back in order, each beside its neighbours.
    nll_BP, hit_BP = (jnp.moveaxis(y, 0, -1).reshape(at_BP.shape, out_sharding=sharding.in_use('BT'))
                      for y in jax.lax.scan(some, None, pieces)[1])
  whole = jax.sharding.PartitionSpec()
  return jax.sharding.reshard(nll_BP, whole), jax.sharding.reshard(hit_BP, whole)


class Scorer:
  """Scores answers by the model of a config. Call it under no mesh or its own; all processes alike.

  asker: how questions become rows (ask.py); tick: called after each batch.
  """

  def __init__(self, model, params, vocabulary, config, mesh, tick=lambda: None):
    self.model, self.params, self.mesh, self.tick = model, params, mesh, tick
    self.asker = ask.Asker(config, vocabulary)
    self.shards, self.platform = sharding.batch_shards(mesh), mesh.devices.flat[0].platform

  def score(self, questions):
    """[Score] of questions (before, answer, after), texts; `after` may be left out. DataError: as `Asker.apart`."""
    return self.score_rows([self.asker.rows(*question) for question in questions])

  def score_choices(self, groups):
    """A list of Scores for each list of questions (before, answer, after) that are compared with each other."""
    scores = iter(self.score_rows([rows for group in groups for rows in self.asker.rows_of_choices(group)]))
    return [[next(scores) for _ in group] for group in groups]

  def score_text(self, texts):
    """[Score] of whole texts, in as many rows as each needs (see `ask.windows`)."""
    rows = lambda ids: [row for window in ask.windows(self.asker, ids) for row in self.asker.rows_of_ids(*window)]
    encode = self.asker.vocabulary.encode_batch
    # What a window's text lacks on its left is meant to be missing.
    return [dataclasses.replace(s, cut=0) for s in self.score_rows([rows(ids) for ids in encode(texts)])]

  def score_rows(self, rows_of):
    """[Score], one for each list of rows."""
    flat = [row for rows in rows_of for row in rows]
    found = iter(self.predictions(flat))
    scores = []
    for rows in rows_of:
      parts = [next(found) for _ in rows]
      nll, hit = (np.concatenate([part[k] for part in parts] or [np.zeros(0)]) for k in (0, 1))
      greedy = len(hit) > 0 and bool(hit.all())
      scores.append(Score(-float(nll.sum(dtype=np.float64)), len(nll), greedy, sum(row.cut for row in rows)))
    return scores

  def predictions(self, rows):
    """[(nll, hit)] of each row: arrays over the positions that it predicts."""
    pieces, asker = self.mesh.shape['context'], self.asker
    buckets = collections.defaultdict(list)
    for i, row in enumerate(rows):
      widths = (ask.width(len(row.inputs), asker.room if row.encoder is None else asker.target_room, pieces),
                ask.width(len(row.predict), 1, pieces) if len(row.predict) > 1 else pieces,
                ask.width(len(row.encoder), asker.room, pieces) if row.encoder is not None else 0)
      buckets[widths].append(i)
    found = [None] * len(rows)
    for (inputs, predictions, sources), members in sorted(buckets.items()):
      most = max(1, min(ROWS, TOKENS // (inputs + sources)))
      for start in range(0, len(members), most * self.shards):
        some = members[start:start + most * self.shards]
        count = next(n for n in (max(1, most // 16), max(1, most // 4), most) if n * self.shards >= len(some))
        made = ask.batch([rows[i] for i in some], count * self.shards, inputs, predictions, sources)
        for i, result in zip(some, self._run(made)):
          found[i] = result
    return found

  def _run(self, batch):
    count, width = batch['predict'].shape
    vocab = self.model.config.vocab_size // self.mesh.shape['tensor']
    pieces = width // self.mesh.shape['context']
    chunks = loss_lib.num_chunks(0, pieces, count // self.shards, vocab, self.platform) if pieces > 1 else 1
    weights = batch.pop('weights') > 0
    with jax.set_mesh(self.mesh):
      nll_BP, hit_BP = jax.device_get(_predictions(self.model, chunks, self.params, sharding.place(self.mesh, batch)))
    self.tick()
    return [(nll[there], hit[there]) for nll, hit, there in zip(nll_BP, hit_BP, weights)]
