"""How each kind of model is asked: questions, as ids, to rows in which the model predicts the answer.

A kind has a Manner: `Continued` for text in one direction or behind a prefix, `Masked` for text with masks, `Paired`
for inputs and targets. The style of a config's prompts (t5like/objectives/prompts.py) and its objective's way of asking
(t5like/objectives/asking.py) say which.
"""
import dataclasses

from t5like.config_type import Config
from t5like.decoding import decode
from t5like.errors import ConfigError
from t5like.objectives import lengths, table
from t5like.objectives.asking import Asking, CannotBeAsked, Question
from t5like.objectives.prompts import STYLES, Style
from t5like.vocabulary.kinds import Vocabulary

Ids = list[int]


@dataclasses.dataclass
class Row:
  """A row to be scored: what the model reads, and what it predicts where.

  Attributes:
    inputs: ids.
    predict: positions of `inputs`.
    targets: the ids that are predicted there.
    prefix: how many inputs see each other.
    encoder: ids that an encoder reads, or None.
    cut: how many tokens of the question did not fit, all from its left.
  """
  inputs: Ids
  predict: Ids
  targets: Ids
  prefix: int = 0
  encoder: Ids | None = None
  cut: int = 0


@dataclasses.dataclass(frozen=True)
class Setting:
  """What a Manner knows beside questions.

  Attributes:
    vocabulary: of the model.
    style: of its prompts.
    room: tokens of a row, of the encoder where there is one.
    target_room: tokens of a decoder's row behind an encoder.
    ends: the ids that end inputs.
  """
  vocabulary: Vocabulary
  style: Style
  room: int
  target_room: int
  ends: Ids


class Manner:
  """How models are asked. `marks`: tokens of inputs beside the mode and the texts of a prompt."""
  marks = 0

  def __init__(self, setting: Setting, mode: Ids):
    """`mode`: ids that stand before everything else."""
    self.setting = setting
    self.mode = mode
    self.vocabulary = setting.vocabulary
    self.room = setting.room

  def rows(
      self,
      before: Ids,
      answer: Ids,
      after: Ids,
  ) -> list[Row]:
    """The rows whose log p, added up, is that of the answer, which has a token."""
    raise NotImplementedError

  def window(self) -> tuple[int, int]:
    """(tokens that are asked for at once, tokens before them that the model sees) where a text has several rows."""
    raise NotImplementedError

  def parts(self, before: Ids, after: Ids) -> tuple[Ids, Ids]:
    """(lead, source) of a prompt: ids that are never cut, and those after them, which lose their beginning."""
    return [], [*before, *after]

  def kept(self, tokens: int) -> int:
    """Tokens of a row that a prompt leaves to an answer of at most `tokens` tokens, and to what stands around it."""
    return 3 + min(tokens, self.room // 2)

  def _shifted(
      self,
      start: Ids,
      before: Ids,
      answer: Ids,
      room: int,
  ) -> Row:
    """The row of start + before + answer, the answer being predicted; what is too long is cut from `before`."""
    read = len(start) + len(before) + len(answer) - 1  # the last token is only predicted
    cut = max(0, read - room)
    rest = (before + answer)[cut:]
    left_before = max(0, len(before) - cut)
    first = len(start) + left_before - 1  # predicts the first token of the answer
    if first < 0:
      first = 0
      cut += 1
    text = start + rest
    inputs = text[:-1]
    return Row(
        inputs=inputs,
        predict=list(range(first, len(inputs))),
        targets=text[first + 1:],
        cut=cut,
    )


class Continued(Manner):
  """The answer continues the text before it; text after the answer is predicted too."""

  def rows(
      self,
      before: Ids,
      answer: Ids,
      after: Ids,
  ) -> list[Row]:
    start = self._start(before)
    row = self._shifted(start, before, answer + after, self.room)
    if self.setting.style.sees_itself:
      row.prefix = row.predict[0] + 1
    return [row]

  def _start(self, before: Ids) -> Ids:
    """What a row begins with."""
    if self.setting.style.begins:
      return [_needed(self.vocabulary.bos_id)]
    if before:
      return []
    if self.vocabulary.begin_id is None:
      raise ConfigError('this model knows no beginning of documents (vocabulary.specials=False), so the first token '
                        'of a text has no probability: give a prompt to begin with.')
    return [self.vocabulary.begin_id]

  def window(self) -> tuple[int, int]:
    return _halves(self.room)


class Masked(Manner):
  """Each token of the answer is masked by itself, all others are seen: a row for each."""

  def __init__(self, setting: Setting, mode: Ids):
    super().__init__(setting, mode)
    self.begin: Ids = []
    self.end: Ids = []
    if setting.style.framed:
      self.begin = [_needed(self.vocabulary.cls_id)]
      self.end = [_needed(self.vocabulary.sep_id)]

  def rows(
      self,
      before: Ids,
      answer: Ids,
      after: Ids,
  ) -> list[Row]:
    length = len(before) + len(answer) + len(after)
    cut = max(0, length - self._room_of_text())
    left = min(cut, len(before))
    right = min(cut - left, len(after))
    before = before[left:]
    after = after[:len(after) - right]
    answer = answer[cut - left - right:]
    lead = [*self.begin, *before]
    text = [*lead, *answer, *after, *self.end]
    first = len(lead)
    rows = []
    for position in range(first, first + len(answer)):
      inputs = list(text)
      inputs[position] = _needed(self.vocabulary.mask_id)
      target = text[position]
      rows.append(Row(inputs, [position], [target]))
    rows[0].cut = cut
    return rows

  def blank(
      self,
      before: Ids,
      answer: Ids,
      after: Ids,
  ) -> tuple[Ids, Ids]:
    """(ids with masks in place of an answer, where they are) for `masks.fill`, without what frames the row."""
    rows = self.rows(before, answer, after)
    inputs = rows[0].inputs
    start = len(self.begin)
    stop = len(inputs) - len(self.end)
    text = inputs[start:stop]
    masked = [row.predict[0] - start for row in rows]
    for position in masked:
      text[position] = _needed(self.vocabulary.mask_id)
    return text, masked

  def window(self) -> tuple[int, int]:
    return self._room_of_text(), 0

  def _room_of_text(self) -> int:
    """Tokens of a row between those that frame it."""
    return self.room - len(self.begin) - len(self.end)


class Paired(Manner):
  """Inputs, in an encoder or at the beginning of a decoder's row, and targets; `way` says what stands where."""

  def __init__(
      self,
      setting: Setting,
      mode: Ids,
      way: Asking,
  ):
    super().__init__(setting, mode)
    self.way = way
    lead, source = way.prompt([], [], self.vocabulary.sentinel)
    self.marks = len(lead) + len(source)

  def rows(
      self,
      before: Ids,
      answer: Ids,
      after: Ids,
  ) -> list[Row]:
    question = self.way.question(
        before,
        answer,
        after,
        self.vocabulary.sentinel,
    )
    if self.setting.style.in_encoder:
      return [self._two_rows(question, answer)]
    return [self._one_row(question, answer)]

  def _two_rows(self, question: Question, answer: Ids) -> Row:
    """Inputs in an encoder, targets in a decoder."""
    lead = [*self.mode, *question.lead]
    source = question.source
    length = len(lead) + len(source) + 1
    cut = max(0, length - self.room)
    start_id = _needed(self.vocabulary.start_id)
    row = self._shifted(
        start=[start_id, *question.begin],
        before=list(question.known),
        answer=answer,
        room=self.setting.target_room,
    )
    row.encoder = [*lead, *source[cut:], *self.setting.ends]
    row.cut += cut
    return row

  def _one_row(self, question: Question, answer: Ids) -> Row:
    """Inputs, then targets, in a decoder."""
    first = _needed(self.vocabulary.bos_id)
    lead = [first, *self.mode, *question.lead]
    ends = self.setting.ends
    targets = [*question.begin, *question.known, *answer]
    source = question.source
    never_cut = len(lead) + len(ends) + len(targets) - 1
    overlong = max(0, never_cut + len(source) - self.room)
    cut = min(len(source), overlong)
    inputs = [*lead, *source[cut:], *ends]
    row = self._shifted(
        start=[*inputs, *question.begin],
        before=list(question.known),
        answer=answer,
        room=self.room,
    )
    row.prefix = len(inputs)
    row.cut += cut
    return row

  def window(self) -> tuple[int, int]:
    way = self.way
    room = self.room - len(self.mode)
    if not self.setting.style.in_encoder:
      size = room - way.added
      if way.twice:
        size //= 2
      return _halves(size)
    target_room = self.setting.target_room - len(self.mode)
    size = min(room, target_room) - way.added
    seen = room - 1 - way.in_inputs
    if way.twice:
      half = min(size, seen) // 2
      return half, half
    return size, seen

  def parts(self, before: Ids, after: Ids) -> tuple[Ids, Ids]:
    return self.way.prompt(before, after, self.vocabulary.sentinel)

  def kept(self, tokens: int) -> int:
    if self.setting.style.in_encoder:
      return 1
    return super().kept(tokens)


def _needed(token: int | None) -> int:
  """A special token that models of this kind cannot be trained without."""
  if token is None:
    raise ConfigError('this vocabulary lacks a special token that rows of this model need.')
  return token


def _halves(room: int) -> tuple[int, int]:
  """(tokens that a row asks for, tokens before them) of a row with room for that many."""
  size = max(1, room // 2)
  return size, room - size


def way_of(config: Config) -> tuple[Asking | None, str]:
  """(how models of pairs are asked for answers, the mode that goes before it); (None, '') for those of one text.

  Raises:
    ConfigError: models of this objective cannot be asked.
  """
  style = STYLES[decode.style_of(config)]
  if style.fills or style.continues:
    return None, ''
  entry = table.of(config)
  way, mode = entry.asking(config.objective)
  if isinstance(way, CannotBeAsked):
    raise ConfigError(f"objective.name={entry.name!r}: such a model {way.why}, and cannot be asked for its "
                      "probability. Evaluate one of 'span_corruption', 'prefix_lm' or 'seq2seq'.")
  return way, mode


def manner_of(config: Config, vocabulary: Vocabulary) -> Manner:
  """How the model of a config is asked. ConfigError as `way_of`."""
  way, mode = way_of(config)
  style = STYLES[decode.style_of(config)]
  ends: Ids = []
  if vocabulary.eos_id is not None:
    ends = [vocabulary.eos_id]
  setting = Setting(
      vocabulary=vocabulary,
      style=style,
      room=config.data.seq_len,
      target_room=lengths.shapes(config).targets,
      ends=ends,
  )
  if way is not None:
    mode_ids: Ids = []
    if mode:
      mode_ids = list(vocabulary.encode(mode))
    return Paired(setting, mode_ids, way)
  if style.fills:
    return Masked(setting, [])
  return Continued(setting, [])
