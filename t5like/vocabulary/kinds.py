"""The kinds of vocabularies made of a table of pieces: SentencePiece, bytes, characters.

Their interface is described in loading.py, which makes and loads them.
"""
import dataclasses
import hashlib
import re
import unicodedata
from collections.abc import Collection, Iterable, Sequence
from typing import Any, ClassVar

import numpy as np

from t5like.errors import ConfigError, DataError
from t5like.files import plain_json
from t5like.files.writing import write_file
from t5like.vocabulary import special_tokens

UNKNOWN = ' ⁇ '  # text that the unknown id decodes to, as in SentencePiece
SPACE = '\u2581'  # how SentencePiece writes a space inside pieces
MARK = re.compile('(<mask>|<extra_id_[0-9]+>)')
MOST_SENTINELS = 10 ** 9  # no vocabulary has as many
NEWLINE = '\\n'  # how a newline is shown
BYTES = 256
SPECIALS = ('<pad>', '</s>', '<unk>')  # ids 0, 1 and 2 of our own vocabularies
SPECIAL_SURFACES = (b'', b'', UNKNOWN.encode())

Ids = np.ndarray | Sequence[int]


@dataclasses.dataclass(frozen=True)
class Table:
  """The ids of a vocabulary.

  Attributes:
    names: readable name of each id.
    surfaces: UTF-8 bytes that each id decodes to.
    begins_word: bool of each id, whether it begins a word.
    pad: id, or None.
    eos: id, or None.
    unk: id, or None.
    sentinels: ids of <extra_id_0>, <extra_id_1>, ...; their names and surfaces are filled in.
    control: further ids that text cannot have; those that are None are ignored.
  """
  names: list[str]
  surfaces: list[bytes]
  begins_word: Sequence[bool]
  pad: int | None
  eos: int | None
  unk: int | None
  sentinels: Sequence[int]
  control: Sequence[int | None] = ()


class Vocabulary:
  """The common part of all kinds: a table with a name and with the UTF-8 bytes of each id.

  Its attributes are described in loading.py.
  """

  name: ClassVar[str] = ''
  _prefix = b''  # put before each text by encoding
  _more = 'vocabulary.sentinels must be at least {}, then prepare the data again.'

  def __init__(self, table: Table, content: bytes):
    """`table`: of the ids, which this changes; `content`: of the vocabulary's file."""
    for k, i in enumerate(table.sentinels):
      table.names[i] = f'<extra_id_{k}>'
      table.surfaces[i] = table.names[i].encode()
    self.content = content
    self.size = len(table.names)
    self._names = table.names
    self._surfaces = table.surfaces
    self.pad_id = table.pad
    self.eos_id = table.eos
    self.unk_id = table.unk
    self.bos_id: int | None = 0  # rows of our own begin with the padding id, as T5's decoders do
    self.start_id: int | None = 0
    self.sep_id = table.eos
    self.stop_ids = _present(table.eos)
    self.suppressed = _present(table.pad, table.unk)
    self.before: tuple[int, ...] = ()
    self.after: tuple[int, ...] = ()
    self.is_imported = False  # whether its special tokens are those of another program's tokenizer
    self._sentinels = table.sentinels
    self.num_sentinels = len(table.sentinels)
    self.mask_id = _item(table.sentinels, 0)
    self.cls_id = _item(table.sentinels, 1)
    roles = (table.pad, table.eos, table.unk)
    special = _present(*roles, *table.sentinels, *table.control)
    self.special_ids = np.asarray(sorted(set(special)), np.int32)
    self.begins_word = np.asarray(table.begins_word, bool)
    self.begins_word[self.special_ids] = False
    kind = f'{self.name} {self.num_sentinels}\n'.encode()
    digest = hashlib.sha256(kind + content)
    self.fingerprint = digest.hexdigest()

  def _take(self, special: special_tokens.Special) -> None:
    """Takes the special tokens of an imported tokenizer; ValueError for ids that it does not have."""
    self._check_ids(special.bos, special.eos, special.start, special.sep)
    self._check_ids(*special.stops, *special.before, *special.after)
    self.is_imported = True
    self.bos_id = special.bos
    self.start_id = special.pad
    if special.start is not None:
      self.start_id = special.start
    self.sep_id = self.eos_id
    if special.sep is not None:
      self.sep_id = special.sep
    self.stop_ids = special.stops
    if special.suppress is not None:
      self.suppressed = special.suppress
    ends = (*special.stops, special.eos)
    self.suppressed = tuple(i for i in self.suppressed if i not in ends)
    self.before = special.before
    self.after = special.after

  def _take_marks(self, special: special_tokens.Special) -> None:
    """Takes the tokens of masked language models where an imported tokenizer has them."""
    if special.mask is not None:
      self.mask_id = special.mask
    if special.cls is not None:
      self.cls_id = special.cls

  @property
  def begin_id(self) -> int | None:
    """The token before a text without a beginning: an end of document, as before any other text."""
    if self.is_imported and self.bos_id is not None:
      return self.bos_id
    return self.eos_id

  def _check_ids(self, *ids: int | None) -> None:
    for i in ids:
      if i is not None and not 0 <= i < self.size:
        raise ValueError(f'special token {i} of {self.size} tokens')

  def special(self) -> dict[str, Any]:
    """{role: id} of the special tokens of this vocabulary, for people; stops: a list of ids."""
    roles: dict[str, Any] = {}
    for role in special_tokens.KEYS:
      i = getattr(self, f'{role}_id')
      if i is not None:
        roles[role] = int(i)
    if self.cls_id is None:
      roles.pop('sep', None)
    others = [i for i in self.stop_ids if i != self.eos_id]
    if others:
      roles['stops'] = others
    return roles

  def sentinel(self, k: int) -> int:
    """Returns the id of <extra_id_k>; ConfigError when there are not that many."""
    if not 0 <= k < self.num_sentinels:
      raise ConfigError(f'<extra_id_{k}> is not in the vocabulary, which has {self.num_sentinels} sentinels: '
                        + self._more.format(k + 1))
    return self._sentinels[k]

  def encode(self, text: str) -> np.ndarray:
    """Returns int32 [n], the ids of `text`."""
    (ids,) = self.encode_batch([text])
    return ids

  def encode_batch(self, texts: Iterable[str]) -> list[np.ndarray]:
    """Returns a list of int32 [n], one per text."""
    raise NotImplementedError

  def encode_marked(self, text: str) -> np.ndarray:
    """Returns int32 [n], as `encode`, but each <mask> is `mask_id` and <extra_id_k> is `sentinel(k)`.

    The text after a mark is encoded separately. ConfigError for a mark that has no id.
    """
    ids = [np.zeros(0, np.int32)]
    is_first = True
    for part in MARK.split(text):
      if MARK.fullmatch(part):
        marked = self._marked(part)
        ids.append(np.asarray([marked], np.int32))
      elif part:
        if self._prefix and not is_first:
          # Encoding puts a space before each text, so the text after a mark already has its own.
          part = part.removeprefix(' ')
        ids.append(self.encode(part))
      is_first = False
    return np.concatenate(ids)

  def _marked(self, mark: str) -> int:
    if mark != '<mask>':
      k = sentinel_number(mark)
      return self.sentinel(k)
    if self.mask_id is None:
      raise ConfigError('<mask> is not in the vocabulary, which has no id for it: ' + self._more.format(1))
    return self.mask_id

  def decode(self, ids: Ids) -> str:
    """Returns the text of a sequence of ids; ValueError for an id outside the vocabulary."""
    surfaces = [self._surfaces[i] for i in self._checked(ids)]
    content = b''.join(surfaces)
    return content.decode('utf-8', 'replace')

  def token(self, i: int) -> str:
    """The text under which a tokenizer's file has an id."""
    (piece,) = self.pieces([i])
    return piece

  def surface(self, i: int) -> bytes:
    """The bytes that an id decodes to within a text, in UTF-8, its space included; b'' of most special tokens."""
    return self._surfaces[i]

  def pieces(self, ids: Ids) -> list[str]:
    """Returns a list with one readable string per id; ValueError as in `decode`."""
    return [self._names[i] for i in self._checked(ids)]

  def save(self, path: Any) -> None:
    """Writes the vocabulary to the file `path` (str or path), atomically."""
    write_file(path, self.content)

  def _checked(self, ids: Ids) -> list[int]:
    array = np.asarray(ids, np.int64).reshape(-1)
    is_wrong = (array < 0) | (array >= self.size)
    wrong = array[is_wrong]
    if wrong.size:
      raise ValueError(f'token id {wrong[0]} is not in the vocabulary of {self.size} ids')
    return array.tolist()


class Bytes(Vocabulary):
  """UTF-8 bytes: pad 0, eos 1, unk 2, bytes 3 to 258, then sentinels."""

  name = 'bytes'

  def __init__(self, sentinels: int = 0):
    """`sentinels`: how many ids for <extra_id_0>, ... there are."""
    first = len(SPECIALS)
    names = [*SPECIALS]
    surfaces = [*SPECIAL_SURFACES]
    begins_word = [False] * first
    for byte in range(BYTES):
      names.append(_name_of_byte(byte))
      surfaces.append(bytes([byte]))
      # Bytes of characters beyond ASCII belong to the word before them, as most are of letters.
      begins_word.append(byte < 128 and not _in_word(chr(byte)))
    end = first + BYTES
    names += [''] * sentinels
    surfaces += [b''] * sentinels
    begins_word += [False] * sentinels
    table = Table(
        names=names,
        surfaces=surfaces,
        begins_word=begins_word,
        pad=0,
        eos=1,
        unk=2,
        sentinels=range(end, end + sentinels),
    )
    fields = dict(kind=self.name, sentinels=sentinels)
    content = plain_json.dumps(fields).encode()
    super().__init__(table, content)

  def encode_batch(self, texts: Iterable[str]) -> list[np.ndarray]:
    """Returns a list of int32 [n], one per text."""
    arrays = []
    for text in texts:
      values = np.frombuffer(text.encode(), np.uint8)
      arrays.append(values.astype(np.int32) + len(SPECIALS))
    return arrays


def _name_of_byte(byte: int) -> str:
  if byte == ord('\n'):
    return NEWLINE
  if 32 <= byte < 127:  # printable ASCII
    return chr(byte)
  return f'<0x{byte:02X}>'


class Characters(Vocabulary):
  """The distinct characters of a text, sorted.

  With `specials`, ids 0 to 2 are padding, end of document and unknown, and the last ones are sentinels.
  Without, ids start at the first character, there are no sentinels, documents run into each other, and
  a character that is not in the vocabulary is an error.
  """

  name = 'characters'

  def __init__(
      self,
      characters: Collection[str],
      specials: bool = True,
      sentinels: int = 0,
  ):
    """`characters`: in any order, repeated or not; `sentinels`: how many there are, if `specials`."""
    distinct = sorted(set(characters))
    characters = ''.join(distinct)
    if not specials:
      sentinels = 0
    self._codes = _codes(characters)
    self._first = 0
    if specials:
      self._first = len(SPECIALS)
    table = _table_of_characters(characters, specials, sentinels)
    content = self._content(characters, specials, sentinels)
    super().__init__(table, content)
    if not specials:
      self.bos_id = None
      self.start_id = None

  def _content(
      self,
      characters: str,
      specials: bool,
      sentinels: int,
  ) -> bytes:
    fields: dict[str, Any] = dict(
        kind=self.name,
        characters=characters,
        specials=specials,
    )
    if sentinels:
      fields['sentinels'] = sentinels
    return plain_json.dumps(fields).encode()

  def encode_batch(self, texts: Iterable[str]) -> list[np.ndarray]:
    """Returns a list of int32 [n], one per text; DataError for an unknown character."""
    return [self._encode(text) for text in texts]

  def _encode(self, text: str) -> np.ndarray:
    codes = _codes(text)
    last = len(self._codes) - 1
    insertions = np.searchsorted(self._codes, codes)
    places = np.minimum(insertions, last)
    ids = (places + self._first).astype(np.int32)
    unknown = self._codes[places] != codes
    if not unknown.any():
      return ids
    if self.unk_id is None:
      first_unknown = codes[unknown.argmax()]
      raise DataError(f'The character {chr(first_unknown)!r} is not among the '
                      f'{self.size} characters of the vocabulary, which has no id for unknown '
                      'ones: leave it out of the text, or set vocabulary.specials=True.')
    ids[unknown] = self.unk_id
    return ids


def _table_of_characters(
    characters: str,
    specials: bool,
    sentinels: int,
) -> Table:
  names = []
  surfaces = []
  begins_word = []
  pad = None
  eos = None
  unk = None
  if specials:
    names += SPECIALS
    surfaces += SPECIAL_SURFACES
    begins_word += [False] * len(SPECIALS)
    pad, eos, unk = range(len(SPECIALS))
  for character in characters:
    names.append(character.replace('\n', NEWLINE))
    surfaces.append(character.encode())
    begins_word.append(not _in_word(character))
  end = len(names)
  names += [''] * sentinels
  surfaces += [b''] * sentinels
  begins_word += [False] * sentinels
  return Table(
      names=names,
      surfaces=surfaces,
      begins_word=begins_word,
      pad=pad,
      eos=eos,
      unk=unk,
      sentinels=range(end, end + sentinels),
  )


def _present(*ids: int | None) -> tuple[int, ...]:
  return tuple(i for i in ids if i is not None)


def _item(ids: Sequence[int], k: int) -> int | None:
  if k < len(ids):
    return ids[k]
  return None


def _in_word(character: str) -> bool:
  """Whether it is a letter, digit or underscore, or a mark above or below one."""
  if character.isalnum() or character == '_':
    return True
  category = unicodedata.category(character)
  return category.startswith('M')


def _codes(text: str) -> np.ndarray:
  """The code points of a text, uint32 [n]."""
  content = text.encode('utf-32-le')
  return np.frombuffer(content, np.uint32)


def spelling(names: Iterable[str]) -> re.Pattern[str]:
  """A pattern that matches any of these texts."""
  alternatives = [re.escape(name) for name in names if name]
  if not alternatives:
    return re.compile('(?!)')  # matches nothing
  return re.compile('|'.join(alternatives))


def sentinel_number(mark: str) -> int:
  """The number k of a mark <extra_id_k>; MOST_SENTINELS, which no vocabulary has, for one that is still larger."""
  digits = mark.removeprefix('<extra_id_').removesuffix('>')
  most_digits = len(str(MOST_SENTINELS))
  if len(digits) > most_digits:
    return MOST_SENTINELS
  return int(digits)


def cut(text: str, places: Sequence[int]) -> list[str]:
  """The parts of a text that is cut before each of `places`."""
  starts = [0, *places]
  stops = [*places, len(text)]
  return [text[start:stop] for start, stop in zip(starts, stops)]
