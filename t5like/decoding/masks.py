"""Masks in texts, filled in by models that see both sides of them."""
import functools
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from t5like.decoding import prompt_rows
from t5like.decoding.prompt_rows import Ids, PromptError
from t5like.model.transformer import Model
from t5like.objectives.prompts import Style
from t5like.sharding import place
from t5like.vocabulary.kinds import Vocabulary


def filled(
    model: Model,
    params: Any,
    vocabulary: Vocabulary,
    prompts: Sequence[str | Ids],
    way: Style,
    context: int,
) -> list[str]:
  """Texts of prompts with their masks filled in."""
  room = context - 2 * way.framed
  rows = []
  for prompt in prompts:
    ids = prompt_rows.ids_of(vocabulary.encode_marked, prompt)
    rows.append(ids[:room])
  filled_rows = fill(
      model,
      params,
      vocabulary,
      rows,
      way.framed,
      prompts,
  )
  return [vocabulary.decode(row) for row in filled_rows]


def fill(
    model: Model,
    params: Any,
    vocabulary: Vocabulary,
    rows: Sequence[Ids],
    ends: bool,
    prompts: Sequence[Any] | None = None,
) -> list[Ids]:
  """Replaces masks by tokens, the surest first, which the following ones see.

  Args:
    model: an encoder.
    params: nested dict of arrays.
    vocabulary: of the model.
    rows: ids of texts with masks.
    ends: whether rows stand between <cls> and <sep>.
    prompts: the texts of rows, for errors.

  Raises:
    PromptError: for a row without masks.
  """
  for row, prompt in zip(rows, prompts or rows):
    if vocabulary.mask_id not in row:
      raise PromptError(f'this model fills in masks, and the prompt {prompt!r} has no <mask>.')
  texts = []
  for row in rows:
    text = list(row)
    if ends:
      text = [vocabulary.cls_id, *row, vocabulary.sep_id]
    texts.append(text)
  never_V = _never_filled_in(model, vocabulary)
  while any(vocabulary.mask_id in text for text in texts):
    count = prompt_rows.row_count(len(texts))
    batch = prompt_rows.padded(texts, False, count)
    placed = place(prompt_rows.mesh_in_force(), batch)
    logits = np.asarray(_logits(model, params, placed))
    logits_BTV = np.where(never_V, -np.inf, logits)
    for text, logits_TV in zip(texts, logits_BTV):
      _fill_surest(text, logits_TV, vocabulary.mask_id)
  if not ends:
    return texts
  return [text[1:-1] for text in texts]


def _never_filled_in(model: Model, vocabulary: Vocabulary) -> np.ndarray:
  """Which ids replace no mask, bool [V]: special ones, and those beyond the vocabulary."""
  never_V = np.zeros(model.config.vocab_size, bool)
  never_V[vocabulary.size:] = True
  never_V[vocabulary.special_ids] = True
  return never_V


def _fill_surest(
    text: Ids,
    logits_TV: np.ndarray,
    mask_id: int | None,
) -> None:
  """Replaces the mask whose token is the surest, if there is one."""
  positions_M = [t for t, i in enumerate(text) if i == mask_id]
  if not positions_M:
    return
  logits_MV = logits_TV[positions_M]
  largest_M1 = logits_MV.max(-1, keepdims=True)
  unnormalised_MV = np.exp(logits_MV - largest_M1)
  sum_M = unnormalised_MV.sum(-1)
  likeliest_M = unnormalised_MV.max(-1) / sum_M
  surest = int(likeliest_M.argmax())
  token = unnormalised_MV[surest].argmax()
  text[positions_M[surest]] = int(token)


@functools.partial(jax.jit, static_argnums=0)
def _logits(
    model: Model,
    params: Any,
    batch: dict[str, jax.Array],
) -> jax.Array:
  logits_BTV = model.apply(params, batch)
  whole = jax.sharding.PartitionSpec()
  return jax.sharding.reshard(logits_BTV, whole)
