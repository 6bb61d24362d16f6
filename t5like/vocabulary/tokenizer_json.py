"""Vocabularies of Hugging Face models: a tokenizer.json, read by their library tokenizers."""
import contextlib
import functools
import json
import operator
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from t5like.errors import ConfigError, DataError
from t5like.files import schema
from t5like.vocabulary import special_tokens
from t5like.vocabulary.kinds import MARK, SPACE, Ids, Table, Vocabulary, cut, spelling
from t5like.vocabulary.special_tokens import Special

# Files that older versions kept have no special tokens with them: tokens of these names were taken for special, the
# first that existed, and models that were trained with such a file are read in the same way.
OLDER = dict(
    pad=('[PAD]', '<pad>'),
    eos=('[SEP]', '</s>', '<|endoftext|>', '<|end_of_text|>', '<eos>'),
    unk=('[UNK]', '<unk>'),
    mask=('[MASK]', '<mask>'),
    cls=('[CLS]', '<s>'),
)
MOST = 1 << 21  # ids; XLM-V's vocabulary, the largest we know, has 901,629
SHOWN = 300  # characters of an error of the library
FILE = schema.Object(dict(model=schema.Object()), needs=('model',))  # shape of a tokenizer.json
# First characters of pieces that begin a word, and such pieces of bytes: space, newline, tab, return.
BYTE_LEVEL_STARTS = ('Ġ', 'Ċ', 'ĉ', 'č')
STARTS = ('▁', ' ', '\n', '\t', '\r')
START_BYTES = ('<0x20>', '<0x0A>', '<0x09>', '<0x0D>')


# An added token that is recognised anywhere, as it is written.
PLAIN = dict(
    id=0,
    content='',
    single_word=False,
    lstrip=False,
    rstrip=False,
    normalized=False,
)


class HuggingFace(Vocabulary):
  """The vocabulary of a tokenizer.json; its sentinels are its own tokens <extra_id_0>, ..., if any.

  Attributes:
    file: bytes of the tokenizer.json.
    own: its own content, a special_tokens.Tokenizer.
  """

  name = 'huggingface'
  _more = 'this tokenizer.json cannot be used for it. Take one that can, or vocabulary.name="sentencepiece".'

  def __init__(self, content: bytes):
    """`content`: bytes of a tokenizer.json, or of a vocabulary file made of one.

    ConfigError without the library, ValueError for something else.
    """
    self.file, special = special_tokens.unwrap(self.name, content)
    library()
    fields = _fields(self.file)
    self._model = _library_tokenizer(self.file)
    self.own = _own(fields, self._model)
    is_older = special is None
    if special is None:
      special = _by_name(self.own.ids)
    table = _table(fields, self.own, special, is_older)
    super().__init__(table, content)
    if not is_older:
      self._take(special)
    self._take_marks(special)
    is_unknown = self.special_ids == self.unk_id
    self._never = self.special_ids[~is_unknown]  # ids that no text is encoded as
    never = self._never.tolist()
    self._texts = {i: text for text, i in self.own.ids.items()}
    self._added = {*self.own.added}
    self._spelling = _spelling(fields)
    names = [self._texts.get(i, '') for i in never]
    self._spelt = spelling(names)
    shown = {*self._sentinels, self.mask_id}
    self._hidden = set(never) - shown  # ids that decoding leaves out
    self._marks: dict[tuple[int, ...], Any] = {}

  def token(self, i: int) -> str:
    """The text under which tokenizer.json has an id."""
    return self._texts[i]

  def surface(self, i: int) -> bytes:
    """See Vocabulary."""
    text = self._texts.get(i, '')
    if text in self._added:
      return text.encode()  # as it stands, whatever the kind of tokenizer
    return self._spelling(text)

  def encode_batch(self, texts: Iterable[str]) -> list[np.ndarray]:
    """Returns a list of int32 [n], one per text."""
    texts = list(texts)
    with _explained(DataError, '. Is the tokenizer.json whole, and made for such text?'):
      encodings = self._model.encode_batch_fast(texts, add_special_tokens=False)
    arrays = []
    for text, encoding in zip(texts, encodings):
      ids = self._without(self._never, self._model, text, encoding.ids)
      arrays.append(ids)
    return arrays

  def encode_marked(self, text: str) -> np.ndarray:
    """Returns int32 [n], as `encode`, but each <mask> is `mask_id` and <extra_id_k> is `sentinel(k)`.

    Whether a mark takes the spaces beside it, or counts only as a word by itself, is what its added token in
    tokenizer.json says (lstrip, rstrip, single_word, normalized). ConfigError for a mark that has no id.
    """
    parts = MARK.split(text)
    ids = [self._marked(mark) for mark in parts[1::2]]
    if not ids:
      return self.encode(text)
    parts[1::2] = [self._texts[i] for i in ids]
    text = ''.join(parts)
    distinct = tuple(sorted(set(ids)))
    model = self._reading(distinct)
    is_mark = np.isin(self._never, ids)
    never = self._never[~is_mark]
    encoding = model.encode(text, add_special_tokens=False)
    return self._without(never, model, text, encoding.ids)

  def _reading(self, ids: tuple[int, ...]) -> Any:
    """The library's tokenizer to which these ids are no longer special, so that it recognises them in texts."""
    if ids not in self._marks:
      content = self._with_ordinary(ids)
      self._marks[ids] = _library_tokenizer(content)
    return self._marks[ids]

  def _with_ordinary(self, ids: Iterable[int]) -> bytes:
    """tokenizer.json with these ids as added tokens that are not special."""
    fields = json.loads(self.file)
    added = {}
    for token in fields.get('added_tokens') or ():
      added[token['content']] = token
    for i in ids:
      text = self._texts[i]
      token = added.get(text)
      if token is None:
        token = dict(PLAIN, id=i, content=text)
      added[text] = dict(token, special=False)
    by_id = operator.itemgetter('id')
    fields['added_tokens'] = sorted(added.values(), key=by_id)
    return json.dumps(fields).encode()

  def _without(
      self,
      never: np.ndarray,
      model: Any,
      text: str,
      encoded: Sequence[int],
  ) -> np.ndarray:
    """The ids of a text without those of `never`.

    Where one of them is among the ids, the text is encoded again with its name cut in two: such a name is a piece
    too, as <extra_id_0> is one of T5's.

    Args:
      never: int32 [n], ids that the text must not have.
      model: the library's tokenizer.
      text: to be encoded.
      encoded: its ids by the model.

    Returns:
      int32 [n].
    """
    ids = np.asarray(encoded, np.int32)
    is_never = np.isin(ids, never)
    if not is_never.any():
      return ids
    allowed = [self._texts[i] for i in self._never if i not in never]
    places = []
    for match in self._spelt.finditer(text):
      if match[0] not in allowed:
        places.append(match.start() + 1)
    again = []
    for part in cut(text, places):
      encoding = model.encode(part, add_special_tokens=False)
      again += encoding.ids
    ids = np.asarray(again, np.int32)
    is_never = np.isin(ids, never)  # those that normalisation made
    return ids[~is_never]

  def decode(self, ids: Ids) -> str:
    """Returns the text of a sequence of ids, as the library decodes them; ValueError for an id outside."""
    checked = self._checked(ids)
    shown = [i for i in checked if i not in self._hidden]
    return self._model.decode(shown, skip_special_tokens=False)


def _fields(content: bytes) -> dict[str, Any]:
  return schema.parse(content, FILE, special_tokens.LARGE)


def library() -> Any:
  """The package tokenizers; ConfigError without it."""
  try:
    import tokenizers
  except ImportError as error:
    raise ConfigError("vocabulary.name='huggingface' needs the package tokenizers; run: "
                      "pip install -e '.[hf]'") from error
  return tokenizers


@contextlib.contextmanager
def _explained(failure: type[Exception], advice: str = '') -> Iterator[None]:
  """Turns the errors of the library, which have no specific types, into `failure`."""
  try:
    yield
  except (KeyboardInterrupt, SystemExit, MemoryError):
    raise
  except BaseException as error:  # a panic of Rust is not an Exception
    words = str(error).split()
    message = ' '.join(words)[:SHOWN]
    raise failure(f'the library tokenizers says: {message}{advice}') from error


def _library_tokenizer(content: bytes) -> Any:
  with _explained(ValueError):
    text = content.decode()
    model = library().Tokenizer.from_str(text)
  model.no_truncation()
  model.no_padding()
  model.encode_special_tokens = True  # the letters of a special token in a text are only letters
  return model


def _table(
    fields: Mapping[str, Any],
    own: special_tokens.Tokenizer,
    special: Special,
    is_older: bool,
) -> Table:
  """The ids of the vocabulary.

  Args:
    fields: of tokenizer.json.
    own: its content.
    special: its special tokens.
    is_older: whether an older version kept the file, without special tokens.
  """
  names = _names(own.ids)
  control: list[int | None] = [own.ids[text] for text in own.special]
  control += [special.mask, special.cls, special.sep, special.start]
  control += special.stops
  if not is_older:
    control.append(special.bos)
  unk = special.unk
  if unk in (special.bos, special.eos, special.pad):
    unk = None
  return Table(
      names,
      surfaces=[b''] * len(names),
      begins_word=_begins_word(fields, names),
      pad=special.pad,
      eos=special.eos,
      unk=unk,
      sentinels=special_tokens.sentinels(own.ids, own.special),
      control=control,
  )


def _own(
    fields: Mapping[str, Any],
    model: Any,
) -> special_tokens.Tokenizer:
  """The content of a tokenizer.json: its fields, and the library's tokenizer made of it."""
  ids = model.get_vocab(with_added_tokens=True)
  added = list(model.get_added_tokens_decoder().values())
  special = [token.content for token in added if token.special]
  before, after = _around(model)
  return special_tokens.Tokenizer(
      ids,
      special,
      own=_roles(fields, ids),
      before=before,
      after=after,
      byte_level=_is_byte_level(fields),
      added=[token.content for token in added],
  )


def _around(model: Any) -> tuple[special_tokens.Ids, special_tokens.Ids]:
  """Ids that a tokenizer of the library puts before and after a text."""
  with _explained(ValueError):
    encoding = model.encode('a')
  ids = tuple(encoding.ids)
  is_text = ~np.asarray(encoding.special_tokens_mask, bool)
  places = np.flatnonzero(is_text)
  if not places.size:
    return ids, ()
  start = places[0]
  stop = places[-1] + 1
  return ids[:start], ids[stop:]


def _roles(
    fields: Mapping[str, Any],
    ids: Mapping[str, int],
) -> dict[str, int]:
  """{role: id} of the tokens to which tokenizer.json gives a role; ids: {token: id}."""
  model = fields['model']
  texts = dict(unk=model.get('unk_token'))
  for part in _processors(fields.get('post_processor')):
    for role in ('sep', 'cls'):  # BertProcessing, RobertaProcessing
      token = part.get(role)
      if isinstance(token, list) and token:
        texts[role] = token[0]
  roles = {}
  for role, text in texts.items():
    if isinstance(text, str) and text in ids:
      roles[role] = ids[text]
  unk_id = model.get('unk_id')  # of unigram models
  if isinstance(unk_id, int) and 0 <= unk_id < len(ids):
    roles['unk'] = unk_id
  return roles


def _processors(part: Any) -> list[dict[str, Any]]:
  """The post-processors of tokenizer.json, which may be one or a sequence."""
  if not isinstance(part, dict):
    return []
  inner = part.get('processors')
  if not isinstance(inner, list):
    return [part]
  return [one for one in inner if isinstance(one, dict)]


def _is_byte_level(fields: Mapping[str, Any]) -> bool:
  parts = [fields.get('pre_tokenizer'), fields.get('decoder')]
  return 'ByteLevel' in json.dumps(parts)


def _names(ids: Mapping[str, int]) -> list[str]:
  largest = max(ids.values(), default=-1)
  size = largest + 1
  if not 0 < size <= MOST:
    raise ValueError(f'its ids go up to {largest:,}')
  names = [''] * size
  for name, i in ids.items():
    names[i] = name
  return names


def _by_name(ids: Mapping[str, int]) -> Special:
  """The special tokens of a file that an older version kept; ids: {token: id}."""
  roles: dict[str, Any] = {}
  for role, names in OLDER.items():
    existing = [name for name in names if name in ids]
    if existing:
      first = existing[0]
      roles[role] = ids[first]
  return Special(**roles)


def _spelling(fields: Mapping[str, Any]) -> Callable[[str], bytes]:
  """Function that gives the bytes that a piece stands for within a text, as the kind of tokenizer writes them."""
  model = fields['model']
  if model.get('type') == 'WordPiece':
    inside = model.get('continuing_subword_prefix', '##')
    return functools.partial(_of_word_piece, inside)
  if _is_byte_level(fields):
    return _of_byte_level
  return _of_spaced


def _of_word_piece(inside: str, name: str) -> bytes:
  if name.startswith(inside):
    return name.removeprefix(inside).encode()
  return f' {name}'.encode()


def _of_byte_level(name: str) -> bytes:
  codes = [BYTE_OF_LETTER.get(letter) for letter in name]
  if None in codes:
    return name.encode()
  return bytes(code for code in codes if code is not None)


def _of_spaced(name: str) -> bytes:
  if BYTE_PIECE.fullmatch(name):
    return bytes([int(name[1:-1], 16)])
  return name.replace(SPACE, ' ').encode()


def _letters_of_bytes() -> dict[str, int]:
  """{letter: byte} of byte-level tokenizers: bytes that can be seen are themselves, others letters from 256 on."""
  visible = {*range(ord('!'), ord('~') + 1), *range(0xA1, 0xAC + 1), *range(0xAE, 0xFF + 1)}
  letters = {}
  hidden = 0
  for byte in range(256):
    code = byte
    if byte not in visible:
      code = 256 + hidden
      hidden += 1
    letters[chr(code)] = byte
  return letters


BYTE_OF_LETTER = _letters_of_bytes()
BYTE_PIECE = re.compile('<0x[0-9A-F]{2}>')


def _begins_word(
    fields: Mapping[str, Any],
    names: Sequence[str],
) -> list[bool]:
  """Whether each piece begins a word, by the way in which the kind of tokenizer marks them."""
  model = fields['model']
  if model.get('type') == 'WordPiece':
    inside = model.get('continuing_subword_prefix', '##')
    return [not name.startswith(inside) for name in names]
  if _is_byte_level(fields):
    return [name.startswith(BYTE_LEVEL_STARTS) for name in names]
  starts = []
  for name in names:
    is_byte = name in START_BYTES
    starts.append(is_byte or name.startswith(STARTS))
  return starts
