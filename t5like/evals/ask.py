"""How each kind of model is asked for the probability of an answer, as rows of tokens.

A question is three texts: what stands before the answer, the answer, and what stands after it ('' for
most). What is measured is log p(answer | before, after), in the way in which the model was trained:

  causal, stream     log p(answer + after | before): what follows is predicted too
  prefix_lm          the same, `before` being the prefix
  masked_lm          each token of the answer masked by itself, all others seen, and their log p added up:
                     the pseudo-log-likelihood of Salazar et al. 2020, arXiv 1910.14659
  span_corruption    a sentinel stands for the answer in the inputs, and the targets say what it is
  seq2seq            `before` and `after` are the inputs, the answer the targets

An answer is cut into tokens together with the text around it, as in training, but for seq2seq, whose
targets are texts by themselves. A piece may reach over the end of `before`; then all of it belongs to the answer, and
to those of the other choices, so that choices are compared as whole texts would be (see `Asker.apart`).
"""
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from t5like.config_type import Config
from t5like.errors import DataError
from t5like.evals import manners
from t5like.evals.manners import Ids, Row
from t5like.objectives import table
from t5like.vocabulary.kinds import Vocabulary

TextQuestion = tuple[str, str, str]  # before, answer, after
IdsQuestion = tuple[Ids, Ids, Ids]


class Asker:
  """Makes rows of questions for the model of a config; knows no parameters.

  Attributes:
    manner: how the model is asked.
    style: of its prompts.
    vocabulary: of the model.
    room: tokens of a row, of the encoder where there is one.
    target_room: tokens of a decoder's row behind an encoder.
    is_given: whether the data has inputs and targets, texts by themselves.
  """

  def __init__(self, config: Config, vocabulary: Vocabulary):
    """ConfigError: models of this objective cannot be asked."""
    self.manner = manners.manner_of(config, vocabulary)
    setting = self.manner.setting
    self.style = setting.style
    self.vocabulary = vocabulary
    self.room = setting.room
    self.target_room = setting.target_room
    self.ends = setting.ends
    self.is_given: bool = table.of(config).given

  def ids(
      self,
      before: str,
      answer: str,
      after: str = '',
  ) -> IdsQuestion:
    """(before, answer, after) as lists of ids: `apart` of one question."""
    question = (before, answer, after)
    (ids,) = self.apart([question])
    return ids

  def apart(self, questions: Sequence[TextQuestion]) -> list[IdsQuestion]:
    """[(before, answer, after)], lists of ids, of questions whose answers are compared with each other.

    Together they are the ids of the whole text. They are cut where the ids of `before` and of all whole texts that
    begin with it first differ, and from the right where those of the whole texts that end with `after` do.

    Args:
      questions: texts (before, answer, after), such as the choices of one question.

    Raises:
      DataError: an answer has no tokens.
    """
    if self.is_given:
      parts = [self._alone(question) for question in questions]
    else:
      parts = self._cut_apart(questions)
    for question, ids in zip(questions, parts):
      before, answer, _ = question
      _, answer_ids, _ = ids
      if not answer_ids:
        raise DataError(f'the answer {answer!r} after {before[-40:]!r} has no tokens in this vocabulary, so it has no '
                        'probability. Give an answer with a letter or a sign.')
    return parts

  def _alone(self, question: TextQuestion) -> IdsQuestion:
    """The ids of three texts, each by itself."""
    before, answer, after = question
    return (
        self._encode(before.rstrip()),
        self._encode(answer.strip()),
        self._encode(after),
    )

  def _cut_apart(self, questions: Sequence[TextQuestion]) -> list[IdsQuestion]:
    texts = [''.join(question) for question in questions]
    wholes = list(map(list, self.vocabulary.encode_batch(texts)))
    lefts = self._lefts(questions, wholes)
    rights = self._rights(questions, wholes)
    return list(map(_cut, wholes, lefts, rights))

  def _lefts(
      self,
      questions: Sequence[TextQuestion],
      wholes: Sequence[Ids],
  ) -> list[int]:
    """How many ids at the beginning of each whole text are those of its `before`, the same of all that begin alike."""
    # Pieces begin with spaces, so those at the end of `before` belong to the answer.
    stripped = [before.rstrip() for before, _, _ in questions]
    ids_before = self._encoded(stripped)
    counts = map(shared, ids_before, wholes)
    return _smallest(stripped, counts)

  def _encode(self, text: str) -> Ids:
    return list(self.vocabulary.encode(text))

  def _encoded(self, texts: Sequence[str]) -> list[Ids]:
    """Ids of texts; equal texts are encoded once."""
    unique = list(dict.fromkeys(texts))
    encoded = self.vocabulary.encode_batch(unique)
    ids_of = {}
    for text, ids in zip(unique, encoded):
      ids_of[text] = list(ids)
    return [ids_of[text] for text in texts]

  def _rights(
      self,
      questions: Sequence[TextQuestion],
      wholes: Sequence[Ids],
  ) -> list[int]:
    """How many ids at the end of each whole text are those of its `after`, the same of all that end alike."""
    inners = []
    afters = []
    for before, answer, after in questions:
      inners.append(before + answer)
      afters.append(after)
    if not any(afters):
      return [0] * len(questions)
    ids_inner = self._encoded(inners)
    ids_after = self._encoded(afters)
    counts = map(_count_after, ids_inner, ids_after, wholes)
    smallest = _smallest(afters, counts)
    first_of: dict[str, Ids] = {}
    alike = []
    for after, whole in zip(afters, wholes):
      first = first_of.setdefault(after, whole)
      alike.append(_shared_end(first, whole))
    return _smallest(afters, map(min, smallest, alike))

  def prompt(
      self,
      before: str,
      after: str,
      tokens: int,
  ) -> Ids:
    """Ids of a prompt for `decode.generate` that leaves room for an answer of `tokens` tokens."""
    before_ids = self._encode(before)
    if self.style.slides:
      half = self.room // 2
      room = self.room - 1 - min(tokens, half)
      return before_ids[-room:]
    after_ids = self._ids_after(before, before_ids, after)
    lead, source = self.manner.parts(before_ids, after_ids)
    never_cut = [*self.manner.mode, *lead]
    room = self.room - len(never_cut) - self.manner.kept(tokens)
    return [*never_cut, *source[-room:]]

  def _ids_after(
      self,
      before: str,
      before_ids: Ids,
      after: str,
  ) -> Ids:
    """The ids of a text behind another: those that it has there, unless a piece would reach from one into the other."""
    whole = self._encode(before + after)
    length = len(before_ids)
    if shared(before_ids, whole) < length:
      return self._encode(after)
    return whole[length:]

  def cut_of_prompt(self, before: str, prompt: Ids) -> int:
    """How many tokens `prompt`, made without text after the answer, lost of the text before it."""
    manner = self.manner
    before_ids = self._encode(before)
    whole = len(manner.mode) + manner.marks + len(before_ids)
    return max(0, whole - len(prompt))

  def blank(
      self,
      before: str,
      answer: str,
      after: str,
  ) -> tuple[Ids, Ids]:
    """(ids with masks in place of an answer, where they are) for `masks.fill`. Only of models that fill in masks."""
    if not isinstance(self.manner, manners.Masked):
      raise TypeError('this model fills in no masks')
    question = self.ids(before, answer, after)
    return self.manner.blank(*question)

  def rows(
      self,
      before: str,
      answer: str,
      after: str = '',
  ) -> list[Row]:
    """The rows of a question of three texts; their log p, added up, is its answer's."""
    question = self.ids(before, answer, after)
    return self.rows_of_ids(*question)

  def rows_of_choices(self, questions: Sequence[TextQuestion]) -> list[list[Row]]:
    """A list of Rows for each of several questions of three texts that are compared with each other."""
    choices = self.apart(questions)
    return [self.rows_of_ids(*ids) for ids in choices]

  def rows_of_ids(
      self,
      before: Iterable[int],
      answer: Iterable[int],
      after: Iterable[int] = (),
  ) -> list[Row]:
    """The rows of a question of ids. DataError for an answer without tokens."""
    answer = list(answer)
    if not answer:
      raise DataError('an answer without tokens has no probability.')
    return self.manner.rows(list(before), answer, list(after))


def shared(one: Sequence[int], other: Sequence[int]) -> int:
  """How many ids two lists begin with alike."""
  count = 0
  for a, b in zip(one, other):
    if a != b:
      break
    count += 1
  return count


def _shared_end(one: Sequence[int], other: Sequence[int]) -> int:
  """How many ids two lists end with alike."""
  from_end = one[::-1]
  other_from_end = other[::-1]
  return shared(from_end, other_from_end)


def _count_after(
    inner: Ids,
    after: Ids,
    whole: Ids,
) -> int:
  """How many ids at the end of a whole text are those of `after`; inner: the ids of what stands before it."""
  length = len(inner)
  if shared(inner, whole) == length:
    return len(whole) - length
  return _shared_end(after, whole)


def _smallest(keys: Sequence[str], numbers: Iterable[int]) -> list[int]:
  """Of each key, the smallest number of all that have the same key."""
  least = {}
  for key, number in zip(keys, numbers):
    least_yet = least.get(key, number)
    least[key] = min(number, least_yet)
  return [least[key] for key in keys]


def _cut(
    ids: Ids,
    left: int,
    right: int,
) -> IdsQuestion:
  """(the first `left` ids, those between, the last `right` ids, of which the first ones may have taken some)."""
  end = max(left, len(ids) - right)
  return (
      ids[:left],
      ids[left:end],
      ids[end:],
  )


def windows(
    asker: Asker,
    ids: Iterable[int],
) -> Iterator[tuple[Ids, Ids]]:
  """Yields pairs (before, answer) of ids that together ask for every token of a text once.

  Decoders see at least half of a row before each token, but at the beginning of the text; an
  encoder-decoder sees the text of the row before. Masked language models see the row that the token is in.
  """
  text = list(ids)
  size, seen = asker.manner.window()
  size = max(1, size)
  for start in range(0, len(text), size):
    first_seen = max(0, start - seen)
    before = text[first_seen:start]
    answer = text[start:start + size]
    yield before, answer


# --- Batches --------------------------------------------------------------------------------------


def width(
    count: int,
    most: int,
    pieces: int = 1,
) -> int:
  """The least of few widths that holds `count`: 16, 24, 32, 48, 64, 96, .. and `most`; multiples of `pieces`."""
  size = 16
  while size < count:
    is_power_of_2 = size & (size - 1) == 0
    if is_power_of_2:
      size = size * 3 // 2
    else:
      size = size * 4 // 3
  size = min(size, max(most, count))
  return -(-size // pieces) * pieces


def batch(
    rows: Sequence[Row],
    count: int,
    inputs: int,
    predictions: int,
    sources: int = 0,
) -> dict[str, Any]:
  """A batch of rows, numpy arrays of `count` rows, of which those after `rows` are padding.

  Args:
    rows: at most `count`.
    count: B.
    inputs: width T of `inputs`, `positions`, `segments` and, where rows have one, `prefix`.
    predictions: width P of `predict`, `targets` and `weights`.
    sources: width S of the encoder's arrays; 0 without one.
  """
  arrays: dict[str, Any] = _blank(count, inputs)
  shape_BP = (count, predictions)
  arrays['predict'] = np.zeros(shape_BP, np.int32)
  arrays['targets'] = np.zeros(shape_BP, np.int32)
  arrays['weights'] = np.zeros(shape_BP, np.float32)
  if any(row.prefix for row in rows):
    arrays['prefix'] = np.zeros((count, inputs), bool)
  if sources:
    arrays['encoder'] = _blank(count, sources)
  for number, row in enumerate(rows):
    _put(arrays, number, row.inputs)
    predicted = slice(len(row.predict))
    arrays['predict'][number, predicted] = row.predict
    arrays['targets'][number, predicted] = row.targets
    arrays['weights'][number, predicted] = 1
    if row.prefix:
      arrays['prefix'][number, :row.prefix] = True
    if row.encoder is not None:
      _put(arrays['encoder'], number, row.encoder)
  return arrays


def _blank(count: int, width: int) -> dict[str, Any]:
  """Inputs, positions and segments of `count` rows without tokens."""
  blank = {}
  for name in ('inputs', 'positions', 'segments'):
    blank[name] = np.zeros((count, width), np.int32)
  return blank


def _put(
    arrays: dict[str, Any],
    number: int,
    ids: Ids,
) -> None:
  """Puts ids into a row."""
  length = len(ids)
  arrays['inputs'][number, :length] = ids
  arrays['positions'][number, :length] = np.arange(length)
  arrays['segments'][number, :length] = 1
