"""Prompts as rows of tokens: what stands around them, and batches of them on the devices."""
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from t5like.objectives.prompts import Style
from t5like.sharding import batch_shards, place
from t5like.vocabulary.kinds import Vocabulary

ROUND = 16  # lengths of prompts are multiples of it: few distinct shapes, so few compilations
Ids = list[int]


class PromptError(ValueError):
  """A prompt that the model cannot take."""


def ids_of(
    encode: Callable[[str], np.ndarray],
    prompt: str | Ids,
) -> Ids:
  """The ids of a prompt. PromptError for a text that has none."""
  if not isinstance(prompt, str):
    return list(prompt)
  try:
    prompt.encode()
  except UnicodeEncodeError as error:
    raise PromptError(f'the prompt {prompt!r} holds {prompt[error.start]!r}, half of a surrogate pair, which is no '
                      'character.') from error
  return list(encode(prompt))


def prompt_ids(
    vocabulary: Vocabulary,
    prompts: Sequence[str | Ids],
    way: Style,
) -> list[Ids]:
  """Ids of prompts, with the tokens that stand around them in a decoder."""
  encode = vocabulary.encode
  if way.marked:
    encode = vocabulary.encode_marked
  rows = []
  for prompt in prompts:
    ids = ids_of(encode, prompt)
    if way.slides:
      ids += vocabulary.after  # some tokenizers end texts too, and so prompts
    rows.append(_framed(vocabulary, ids, way))
  return rows


def _framed(vocabulary: Vocabulary, ids: Ids, way: Style) -> Ids:
  if way.slides and not way.begins:
    return _not_empty(vocabulary, ids)
  if way.in_encoder:
    return ids
  framed = [vocabulary.bos_id, *ids]
  if way.ends:
    framed.append(vocabulary.eos_id)
  return framed


def _not_empty(vocabulary: Vocabulary, ids: Ids) -> Ids:
  """The beginning of a document in place of no ids."""
  if ids:
    return ids
  if vocabulary.begin_id is None:
    raise PromptError('this model knows no beginning of documents: give a prompt.')
  return [vocabulary.begin_id]


@dataclasses.dataclass(frozen=True)
class Batch:
  """Prompts of a decoder.

  Attributes:
    ids: of each prompt in the decoder.
    way: their style.
    context: the longest text in the decoder.
    rows: of the batch on the devices, a multiple of the mesh's pieces.
    begins: tokens that a text begins with when it slides.
    encoder: the batch of the encoder, on the devices.
  """
  ids: list[Ids]
  way: Style
  context: int
  rows: int
  begins: Ids
  encoder: dict[str, jax.Array] | None = None

  def place(self, texts: list[Ids]) -> dict[str, Any]:
    """The batch of these texts, on the devices."""
    prompt = padded(texts, True, self.rows)
    if self.way.sees_itself:
      prompt['prefix'] = prompt['segments'] > 0
    placed = place(mesh_in_force(), prompt)
    if self.encoder is not None:
      placed['encoder'] = self.encoder
    return placed


def batch_of(
    vocabulary: Vocabulary,
    ids: list[Ids],
    way: Style,
    context: int,
    targets: int,
) -> Batch:
  """Prompts of a decoder, or of an encoder whose decoder begins with `start_id`.

  Args:
    vocabulary: of the model.
    ids: of prompts, see `prompt_ids`.
    way: their style.
    context: the length that the model was trained on.
    targets: the longest answer of an encoder-decoder.
  """
  rows = row_count(len(ids))
  if not way.in_encoder:
    begins: Ids = []
    if way.begins and vocabulary.bos_id is not None:
      begins = [vocabulary.bos_id]
    return Batch(ids, way, context, rows, begins)
  inputs = []
  starts = []
  for source in ids:
    inputs.append([*source[:context - 1], vocabulary.eos_id])
    starts.append([vocabulary.start_id])
  return Batch(
      ids=starts,
      way=way,
      context=targets + 1,
      rows=rows,
      begins=[],
      encoder=place(mesh_in_force(), padded(inputs, False, rows)),
  )


def row_count(count: int) -> int:
  """The next multiple of the mesh's pieces."""
  pieces = batch_shards(mesh_in_force())
  return -(-count // pieces) * pieces


def room_of(batch: Batch) -> int:
  """How many tokens an answer may have. PromptError if there is no room."""
  longest = max(map(len, batch.ids))
  room = batch.context - longest
  if room < 1:
    raise PromptError(f'a prompt of {longest} tokens leaves no room for an answer in the {batch.context} that this '
                      'model was trained on: give a shorter one.')
  return room


def padded(
    texts: list[Ids],
    left: bool,
    rows: int,
) -> dict[str, np.ndarray]:
  """inputs, positions and segments, [rows, P] int32; texts all end in the last column (`left`), or begin in the first.

  Rows beyond the texts repeat the last of them.
  """
  longest = max(map(len, texts))
  P = -(-longest // ROUND) * ROUND
  prompt = {}
  for name in ('inputs', 'positions', 'segments'):
    prompt[name] = np.zeros((rows, P), np.int32)
  for row in range(rows):
    ids = texts[min(row, len(texts) - 1)]
    length = len(ids)
    span = slice(length)
    if left:
      span = slice(P - length, P)
    prompt['inputs'][row, span] = ids
    prompt['positions'][row, span] = np.arange(length)
    prompt['segments'][row, span] = 1
  return prompt


def mesh_in_force() -> jax.sharding.Mesh:
  """That of `jax.set_mesh`."""
  return jax.sharding.get_mesh()
