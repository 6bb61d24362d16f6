"""How each kind of model is asked for the probability of an answer, as rows of tokens.

A question is three texts: what stands before the answer, the answer, and what stands after it ('' for
most). What is measured is log p(answer | before, after), in the way in which the model was trained:

  causal, stream     log p(answer + after | before): what follows is predicted too
  prefix_lm          likewise, `before` being the prefix
  masked_lm          each token of the answer masked by itself, all others seen, and their log p added up:
                     the pseudo-log-likelihood of Salazar et al. 2020, arXiv 1910.14659
  span_corruption    a sentinel stands for the answer in the inputs, and the targets say what it is
  seq2seq            `before` and `after` are the inputs, the answer the targets

An answer is cut into tokens together with the text around it, as in training, but for seq2seq, whose
targets are texts by themselves. A piece may reach over the end of `before`; then all of it belongs to the answer, and
to those of the other choices, so that choices are compared as whole texts would be (see `Asker.apart`).
"""
import dataclasses
from collections.abc import Sequence

import numpy as np

from t5like.config_type import Config
from t5like.decoding import decode
from t5like.errors import ConfigError, DataError
from t5like.objectives import lengths, table
from t5like.objectives.asking import Asking, CannotBeAsked
from t5like.objectives.prompts import STYLES


@dataclasses.dataclass
class Row:
  """A row to be scored: what the model reads, and what is predicted at which of its positions.

  inputs, predict, targets: lists of ids, positions, ids; prefix: how many inputs see each other;
  encoder: ids, or None; cut: tokens of the question that did not fit, all from its left.
  """
  inputs: list
  predict: list
  targets: list
  prefix: int = 0
  encoder: list | None = None
  cut: int = 0


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


class Asker:
  """Makes rows of questions for the model of a config; knows no parameters.

  manner: the style of prompts of models of one text, or how those of pairs are asked (`way`).
  """

  def __init__(self, config, vocabulary):
    self.way, mode = way_of(config)
    self.style, self.vocabulary = decode.style_of(config), vocabulary
    self.manner = self.style if self.way is None else self.way.name
    self.mode, shapes = list(vocabulary.encode(mode)) if mode else [], lengths.shapes(config)
    self.room, self.target_room = config.data.seq_len, shapes.targets
    self.ends = [] if vocabulary.eos_id is None else [vocabulary.eos_id]
    self.is_given = table.of(config).given

  @property
  def marks(self) -> int:
    """Tokens that inputs have beside the mode and the texts of a prompt."""
    if self.way is None:
      return 0
    return sum(map(len, self.way.prompt([], [], self.vocabulary.sentinel)))

  def ids(self, before, answer, after=''):
    """(before, answer, after) as lists of ids: `apart` of one question."""
    return self.apart([(before, answer, after)])[0]

  def apart(self, questions: Sequence[tuple[str, str, str]]) -> list[tuple[list[int], list[int], list[int]]]:
    """[(before, answer, after)], lists of ids, of questions whose answers are compared with each other.

    Together they are the ids of the whole text. They are cut where the ids of `before` and of all whole texts that
    begin with it first differ, and from the right where those of the whole texts that end with `after` do.

    Args:
      questions: texts (before, answer, after), such as the choices of one question.

    Raises:
      DataError: an answer has no tokens.
    """
    if self.is_given:
      parts = [[list(self.vocabulary.encode(text)) for text in (before.rstrip(), answer.strip(), after)]
               for before, answer, after in questions]
    else:
      # Pieces begin with spaces, so those at the end of `before` belong to the answer.
      stripped = [before.rstrip() for before, _, _ in questions]
      wholes = [list(ids) for ids in self.vocabulary.encode_batch([''.join(question) for question in questions])]
      lefts = _smallest(stripped, map(shared, self._encoded(stripped), wholes))
      rights = self._rights(questions, wholes)
      parts = [_cut(whole, left, right) for whole, left, right in zip(wholes, lefts, rights)]
    for (before, answer, _), (_, answer_ids, _) in zip(questions, parts):
      if not answer_ids:
        raise DataError(f'the answer {answer!r} after {before[-40:]!r} has no tokens in this vocabulary, so it has no '
                        'probability. Give an answer with a letter or a sign.')
    return parts

  def _encoded(self, texts):
    """Lists of ids of texts; equal texts are encoded once."""
    unique = list(dict.fromkeys(texts))
    ids_of = dict(zip(unique, map(list, self.vocabulary.encode_batch(unique))))
    return [ids_of[text] for text in texts]

  def _rights(self, questions, wholes):
    """How many ids at the end of each whole text are those of its `after`, the same of all that end alike."""
    afters = [after for _, _, after in questions]
    if not any(afters):
      return [0] * len(questions)
    counts = []
    for inner, after, whole in zip(self._encoded([before + answer for before, answer, _ in questions]),
                                   self._encoded(afters), wholes):
      ends_there = shared(inner, whole) == len(inner)
      counts.append(len(whole) - len(inner) if ends_there else shared(after[::-1], whole[::-1]))
    counts = _smallest(afters, counts)
    first_of = dict(zip(reversed(afters), reversed(wholes)))
    alike = [shared(first_of[after][::-1], whole[::-1]) for after, whole in zip(afters, wholes)]
    return _smallest(afters, map(min, counts, alike))

  def prompt(self, before, after, tokens):
    """Ids of a prompt for `decode.generate` that leaves room for an answer of so many tokens."""
    v = self.vocabulary
    before_ids = list(v.encode(before))
    if self.manner in ('document', 'stream'):
      return before_ids[-(self.room - 1 - min(tokens, self.room // 2)):]
    whole = list(v.encode(before + after))
    merged = shared(before_ids, whole) < len(before_ids)  # a piece would reach from the one into the other
    after_ids = list(v.encode(after)) if merged else whole[len(before_ids):]
    if self.way is None:
      lead, source = [], [*before_ids, *after_ids]
    else:
      lead, source = self.way.prompt(before_ids, after_ids, v.sentinel)
    own = 1 if self.style == 'encoder' else 3 + min(tokens, self.room // 2)
    room = self.room - len(self.mode) - len(lead) - own
    return [*self.mode, *lead, *source[-room:]]

  def blank(self, before, answer, after):
    """(ids with masks in place of an answer, where they are) for `decode.fill`."""
    rows = self.rows(before, answer, after)
    skip = int(self.manner == 'fill_row')
    at = [row.predict[0] - skip for row in rows]
    text = rows[0].inputs[skip:len(rows[0].inputs) - skip]
    return [self.vocabulary.mask_id if t in at else i for t, i in enumerate(text)], at

  def rows(self, before, answer, after=''):
    """[Row] of a question of three texts; their log p, added up, is its answer's."""
    return self.rows_of_ids(*self.ids(before, answer, after))

  def rows_of_choices(self, questions):
    """A list of Rows for each of several questions of three texts that are compared with each other."""
    return [self.rows_of_ids(*ids) for ids in self.apart(questions)]

  def rows_of_ids(self, before, answer, after=()):
    before, answer, after = list(before), list(answer), list(after)
    if not answer:
      raise DataError('an answer without tokens has no probability.')
    if self.manner in ('fill', 'fill_row'):
      return self._masked(before, answer, after)
    if self.manner in ('document', 'stream', 'prefix'):
      return [self._continued(before, answer + after)]
    return [self._paired(before, answer, after)]

  def _continued(self, before, answer):
    start = [self.vocabulary.bos_id] if self.manner != 'stream' else []
    if self.manner == 'stream' and not before:
      if self.vocabulary.begin_id is None:
        raise ConfigError('this model knows no beginning of documents (vocabulary.specials=False), so the first token '
                          'of a text has no probability: give a prompt to begin with.')
      start = [self.vocabulary.begin_id]
    return self._shifted(start, before, answer, self.room, prefix=self.manner == 'prefix')

  def _shifted(self, start, before, answer, room, prefix=False, encoder=None):
    """The row of start + before + answer, the answer being predicted; what is too long goes from `before`."""
    cut = max(0, len(start) + len(before) + len(answer) - 1 - room)
    kept = (before + answer)[cut:]
    first = len(start) + max(0, len(before) - cut) - 1  # predicts the first token of the answer
    if first < 0:
      first, cut = 0, cut + 1
    text = start + kept
    return Row(text[:-1], list(range(first, len(text) - 1)), text[first + 1:], (first + 1) * prefix, encoder, cut)

  def _masked(self, before, answer, after):
    begin, end = ([self.vocabulary.cls_id], [self.vocabulary.sep_id]) if self.manner == 'fill_row' else ([], [])
    cut = max(0, len(before) + len(answer) + len(after) - (self.room - len(begin) - len(end)))
    left = min(cut, len(before))
    right = min(cut - left, len(after))
    before, after = before[left:], after[:len(after) - right]
    answer = answer[cut - left - right:]
    text, first, rows = [*begin, *before, *answer, *after, *end], len(begin) + len(before), []
    for at in range(first, first + len(answer)):
      seen = [*text[:at], self.vocabulary.mask_id, *text[at + 1:]]
      rows.append(Row(seen, [at], [text[at]], cut=cut if at == first else 0))
    return rows

  def _paired(self, before, answer, after):
    asked = self.way.question(before, answer, after, self.vocabulary.sentinel)
    lead, begin, known = list(asked.lead), list(asked.begin), list(asked.known)
    if self.style == 'encoder':
      cut = max(0, len(self.mode) + len(lead) + len(asked.source) + 1 - self.room)
      row = self._shifted([self.vocabulary.start_id, *begin], known, answer, self.target_room,
                          encoder=[*self.mode, *lead, *asked.source[cut:], *self.ends])
    else:
      least = 1 + len(self.mode) + len(lead) + len(self.ends) + len(begin) + len(known) + len(answer) - 1
      cut = min(len(asked.source), max(0, len(asked.source) + least - self.room))
      start = [self.vocabulary.bos_id, *self.mode, *lead, *asked.source[cut:], *self.ends]
      row = self._shifted([*start, *begin], known, answer, self.room)
      row.prefix = len(start)
    row.cut += cut
    return row


def shared(one: Sequence[int], other: Sequence[int]) -> int:
  """How many ids two lists begin with alike."""
  pairs = zip(one, other)
  return next((n for n, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))


def _smallest(keys, numbers):
  """Of each key, the smallest number of all that have the same key."""
  numbers, least = list(numbers), {}
  for key, number in zip(keys, numbers):
    least[key] = min(number, least.get(key, number))
  return [least[key] for key in keys]


def _cut(ids, left, right):
  """(the first `left` ids, those between, the last `right` ids, of which the first ones may have taken some)."""
  end = max(left, len(ids) - right)
  return ids[:left], ids[left:end], ids[end:]


def _halves(room):
  """(tokens that a row asks for, tokens before them) of a row with room for so many."""
  size = max(1, room // 2)
  return size, room - size


def windows(asker, ids):
  """Pairs (before, answer) of ids that together ask for every token of a text once.

  Decoders see at least half of a row before each token, but at the beginning of the text; an
  encoder-decoder sees the text of the row before. Masked language models see the row that the token is in.
  """
  ids, way = list(ids), asker.way
  if asker.manner in ('fill', 'fill_row'):
    size, seen = asker.room - 2 * (asker.manner == 'fill_row'), 0
  elif way is None:
    size, seen = _halves(asker.room)
  elif asker.style == 'encoder':
    size = min(asker.room, asker.target_room) - len(asker.mode) - way.added
    seen = asker.room - len(asker.mode) - 1 - way.in_inputs
    if way.twice:
      size = seen = min(size, seen) // 2
  else:
    room = asker.room - len(asker.mode) - way.added
    size, seen = _halves(room // 2 if way.twice else room)
  size = max(1, size)
  for start in range(0, len(ids), size):
    yield ids[max(0, start - seen):start], ids[start:start + size]


def width(n, most, pieces=1):
  """The least of few widths that holds n: 16, 24, 32, 48, 64, 96, .. and `most`; multiples of `pieces`."""
  size = 16
  while size < n:
    size = size * 3 // 2 if size & (size - 1) == 0 else size * 4 // 3
  return -(-min(size, max(most, n)) // pieces) * pieces


def batch(rows, count, inputs, predictions, sources=0):
  """A batch of `count` rows, those after the given ones being padding, of the widths given (ints)."""
  widths = dict(inputs=inputs, positions=inputs, segments=inputs, predict=predictions, targets=predictions,
                weights=predictions)
  out = {k: np.zeros((count, n), np.float32 if k == 'weights' else np.int32) for k, n in widths.items()}
  if any(row.prefix for row in rows):
    out['prefix'] = np.zeros((count, inputs), bool)
  if sources:
    out['encoder'] = {k: np.zeros((count, sources), np.int32) for k in ('inputs', 'positions', 'segments')}
  for i, row in enumerate(rows):
    _put(out, i, row.inputs)
    n = len(row.predict)
    out['predict'][i, :n], out['targets'][i, :n], out['weights'][i, :n] = row.predict, row.targets, 1
    if row.prefix:
      out['prefix'][i, :row.prefix] = True
    if sources:
      _put(out['encoder'], i, row.encoder)
  return out


def _put(out, i, ids):
  n = len(ids)
  out['inputs'][i, :n], out['positions'][i, :n], out['segments'][i, :n] = ids, np.arange(n), 1
