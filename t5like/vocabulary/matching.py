"""Which tokens two vocabularies share: by their text, and special ones by what they are for."""
import dataclasses
from typing import NamedTuple

import numpy as np

from t5like.config.values import show
from t5like.vocabulary.kinds import Vocabulary

NONE = -1  # in place of an id
# What a token is for. One with several roles is the other vocabulary's token of the first of them that it has.
ROLES = ('eos', 'bos', 'start', 'cls', 'sep', 'mask', 'unk', 'pad')
SHOWN = 4  # tokens that a description names
LONGEST = 24  # characters of such a token


class Text(NamedTuple):
  """What a token stands for: the bytes that it decodes to within a text, and how it is written."""
  surface: bytes
  name: str


@dataclasses.dataclass(frozen=True, eq=False)
class Match:
  """Which token of another vocabulary each of ours is.

  Attributes:
    ids: int32 [size of ours], NONE where the other has no such token.
    special: how many of those that it has are special.
  """
  ids: np.ndarray
  special: int

  @property
  def count(self) -> int:
    """How many it has."""
    return int((self.ids != NONE).sum())


def match(ours: Vocabulary, theirs: Vocabulary) -> Match:
  """The tokens of `theirs` that those of `ours` are.

  A token of text is one that decodes to the same bytes; of several, the one that is written the same way, else the
  first. A special token is one of the same role; <extra_id_k> is <extra_id_k>.
  """
  by_name, by_surface = _texts(theirs)
  special = set(ours.special_ids.tolist())
  ids = np.full(ours.size, NONE, np.int32)
  for i in range(ours.size):
    if i in special:
      continue
    text = _text(ours, i)
    ids[i] = by_name.get(text, by_surface.get(text.surface, NONE))
  for i in special:
    ids[i] = _of_role(ours, theirs, i)
  count = int((ids[sorted(special)] != NONE).sum())
  return Match(ids, count)


def _texts(vocabulary: Vocabulary) -> tuple[dict[Text, int], dict[bytes, int]]:
  """({what a token stands for: its id}, {bytes: the first id that decodes to them}) of tokens that texts can have."""
  special = set(vocabulary.special_ids.tolist())
  by_name: dict[Text, int] = {}
  by_surface: dict[bytes, int] = {}
  for i in range(vocabulary.size):
    text = _text(vocabulary, i)
    if i in special or not text.surface:
      continue
    by_name.setdefault(text, i)
    by_surface.setdefault(text.surface, i)
  return by_name, by_surface


def _text(vocabulary: Vocabulary, i: int) -> Text:
  return Text(vocabulary.surface(i), vocabulary.pieces([i])[0])


def _of_role(ours: Vocabulary, theirs: Vocabulary, i: int) -> int:
  """The token of theirs with the first of the roles of our special token i that theirs has; else NONE."""
  for k in range(min(ours.num_sentinels, theirs.num_sentinels)):
    if ours.sentinel(k) == i:
      return theirs.sentinel(k)
  for role in ROLES:
    other = getattr(theirs, f'{role}_id')
    if getattr(ours, f'{role}_id') == i and other is not None:
      return other
  return NONE


def describe(ours: Vocabulary, theirs: Vocabulary, matched: Match) -> str:
  """'Vocabulary: 300 of 512 tokens are in both, ..', for people."""
  shared = np.flatnonzero(matched.ids != NONE)
  fresh = np.flatnonzero(matched.ids == NONE)
  texts = np.setdiff1d(shared, ours.special_ids)
  examples = texts[matched.ids[texts] != texts]
  if not examples.size:
    examples = texts
  line = (f'Vocabulary: {matched.count:,} of {ours.size:,} tokens are among the {theirs.size:,} of the weights, '
          f'{matched.count - matched.special:,} by their text{_such(_pairs(ours, matched, examples))}, and '
          f'{matched.special:,} special ones by their role; ')
  names = [_shown(ours, i) for i in _spread(fresh)]
  return line + f'{len(fresh):,} are fresh{_such(names)}.'


def _pairs(ours: Vocabulary, matched: Match, ids: np.ndarray) -> list[str]:
  pairs = []
  for i in _spread(ids):
    pairs.append(f'{_shown(ours, i)} ({i} here, {matched.ids[i]} there)')
  return pairs


def _spread(ids: np.ndarray) -> list[int]:
  """A few ids, from all over the vocabulary."""
  step = max(1, len(ids) // SHOWN)
  return ids[::step][:SHOWN].tolist()


def _shown(vocabulary: Vocabulary, i: int) -> str:
  return show(vocabulary.pieces([i])[0][:LONGEST])


def _such(names: list[str]) -> str:
  if not names:
    return ''
  return f', such as {", ".join(names)}'
