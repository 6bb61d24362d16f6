"""The kinds of vocabularies made of a table of pieces: SentencePiece, bytes, characters.

What they answer to is in vocabulary.py, which makes and loads them.
"""
import hashlib
import multiprocessing
import re
import unicodedata

import numpy as np

from t5like import plain_json
from t5like.data import special_tokens
from t5like.errors import ConfigError, DataError
from t5like.writing import write_file

UNKNOWN = ' ⁇ '  # what the unknown id decodes to, as SentencePiece has it
SPACE = '\u2581'  # how SentencePiece writes a space inside pieces
# Threads that tokenise: all cores, or one in each of many processes (SentencePiece's -1 means all).
THREADS = 1 if multiprocessing.parent_process() else -1
MARK = re.compile(r'(<mask>|<extra_id_\d+>)')


class Vocabulary:
  """What the kinds share: a table with a name and with the UTF-8 bytes of each id."""

  name = ''
  _prefix = b''  # what encoding puts before each text
  _more = 'vocabulary.sentinels must be at least {}, then prepare the data again.'

  def _fill(self, names, surfaces, special, sentinels, content, begins, control=()):
    """`special`: (pad, eos, unk) ids; `sentinels`: their ids in order; `content`: file bytes.

    `begins`: bool per id, whether it begins a word; `control`: further ids that text cannot have.
    """
    self._names, self._surfaces, self.content = names, surfaces, content
    self.pad_id, self.eos_id, self.unk_id = special
    self.bos_id = self.start_id = 0  # rows of our own begin with the padding id, as T5's decoders do
    self.sep_id = self.eos_id
    self.stop_ids = () if self.eos_id is None else (self.eos_id,)
    self.suppressed = tuple(i for i in (self.pad_id, self.unk_id) if i is not None)
    self.before = self.after = ()
    self.is_imported = False  # whether its special tokens are those of another program's tokenizer
    self._sentinels = sentinels
    self.size, self.num_sentinels = len(names), len(sentinels)
    for k, i in enumerate(sentinels):
      names[i] = f'<extra_id_{k}>'
      surfaces[i] = names[i].encode()
    self.mask_id = sentinels[0] if sentinels else None
    self.cls_id = sentinels[1] if len(sentinels) > 1 else None
    found = {i for i in (*special, *sentinels, *control) if i is not None}
    self.special_ids = np.asarray(sorted(found), np.int32)
    self.begins_word = np.asarray(begins, bool)
    self.begins_word[self.special_ids] = False
    kind = f'{self.name} {self.num_sentinels}\n'.encode()
    self.fingerprint = hashlib.sha256(kind + content).hexdigest()

  def _take(self, special):
    """Takes the `special_tokens.Special` of an imported tokenizer; ValueError for ids that it does not have."""
    self.is_imported = True
    self._check_ids([special.bos, special.eos, special.start, special.sep, *special.stops, *special.before,
                     *special.after])
    self.bos_id = special.bos
    self.start_id = special.pad if special.start is None else special.start
    self.sep_id = self.eos_id if special.sep is None else special.sep
    self.stop_ids = special.stops
    if special.suppress is not None:
      self.suppressed = special.suppress
    self.suppressed = tuple(i for i in self.suppressed if i not in (*special.stops, special.eos))
    self.before, self.after = special.before, special.after

  @property
  def begin_id(self):
    """What a text may begin with that has no beginning of its own: an end of document, as before any other text."""
    return self.bos_id if self.is_imported and self.bos_id is not None else self.eos_id

  def _check_ids(self, ids):
    wrong = [i for i in ids if i is not None and not 0 <= i < self.size]
    if wrong:
      raise ValueError(f'special token {wrong[0]} of {self.size} tokens')

  def special(self):
    """{role: id} of the special tokens that there are, for people; stops: a list of ids."""
    ids = dict(bos=self.bos_id, eos=self.eos_id, pad=self.pad_id, unk=self.unk_id, mask=self.mask_id, cls=self.cls_id,
               sep=None if self.cls_id is None else self.sep_id, start=self.start_id)
    others = [i for i in self.stop_ids if i != self.eos_id]
    return {role: int(i) for role, i in ids.items() if i is not None} | (dict(stops=others) if others else {})

  def sentinel(self, k):
    """Returns the id of <extra_id_k>; ConfigError when there are not that many."""
    if not 0 <= k < self.num_sentinels:
      raise ConfigError(f'<extra_id_{k}> is not in the vocabulary, which has {self.num_sentinels} sentinels: '
                        + self._more.format(k + 1))
    return self._sentinels[k]

  def encode(self, text):
    """Returns int32 [n], the ids of `text`."""
    return self.encode_batch([text])[0]

  def encode_marked(self, text):
    """Returns int32 [n], as `encode`, but each <mask> is `mask_id` and <extra_id_k> is `sentinel(k)`.

    The text after a mark is encoded by itself. ConfigError for a mark that has no id.
    """
    found = [np.zeros(0, np.int32)]
    for i, part in enumerate(MARK.split(text)):
      if i % 2:
        found.append(np.asarray([self._marked(part)], np.int32))
      elif part:  # where encoding puts a space before each text, the text after a mark has its own
        found.append(self.encode(part.removeprefix(' ') if i and self._prefix else part))
    return np.concatenate(found)

  def _marked(self, mark):
    if mark != '<mask>':
      return self.sentinel(int(re.sub(r'\D', '', mark)))
    if self.mask_id is None:
      raise ConfigError('<mask> is not in the vocabulary, which has no id for it: ' + self._more.format(1))
    return self.mask_id

  def decode(self, ids):
    """Returns the text of a sequence of ids; ValueError for an id outside the vocabulary."""
    return b''.join([self._surfaces[i] for i in self._checked(ids)]).decode('utf-8', 'replace')

  def token(self, i):
    """The text under which a tokenizer's file has an id."""
    return self.pieces([i])[0]

  def pieces(self, ids):
    """Returns a list with one readable string per id; ValueError as in `decode`."""
    return [self._names[i] for i in self._checked(ids)]

  def save(self, path):
    """Writes the vocabulary to the file `path`, atomically."""
    write_file(path, self.content)

  def _checked(self, ids):
    ids = np.asarray(ids, np.int64).reshape(-1)
    wrong = ids[(ids < 0) | (ids >= self.size)]
    if wrong.size:
      raise ValueError(f'token id {wrong[0]} is not in the vocabulary of {self.size} ids')
    return ids.tolist()


class SentencePiece(Vocabulary):
  """Sub-words from a SentencePiece model, trained here or imported (T5's, Llama's, ...).

  Models trained here hold their sentinels. For a model that has none, such as T5's, `sentinels`
  ids are added above its own, <extra_id_0> being the highest, as T5 does.
  """

  name = 'sentencepiece'

  def __init__(self, content, sentinels=0):
    """`content`: bytes of a .model file, or of a vocabulary file made of one. RuntimeError for something else."""
    import sentencepiece
    self.file, special = special_tokens.unwrap(self.name, content)
    self._model = sp = sentencepiece.SentencePieceProcessor(model_proto=self.file)
    n = sp.vocab_size()
    pieces = [sp.id_to_piece(i) for i in range(n)]
    inside = special_tokens.sentinels(
        {piece: i for i, piece in enumerate(pieces)}, {piece for i, piece in enumerate(pieces) if sp.is_control(i)})
    added = 0 if inside else sentinels
    self.own = own = self.own_roles(sp)
    ids = [own.get(role) if special is None else getattr(special, role) for role in ('pad', 'eos', 'unk')]
    surfaces = [self._surface(i) for i in range(n)] + [b''] * added
    control = [i for i in range(n) if sp.is_control(i)]
    more = [] if special is None else [special.bos, special.start, special.mask, special.cls, special.sep]
    self._fill([piece.replace('\n', '\\n') for piece in pieces] + [''] * added, surfaces, ids,
               inside or [n + added - 1 - k for k in range(added)], content,
               [surface[:1].isspace() for surface in surfaces], [*control, *more])
    if special is not None:
      self._take(special)
      self.mask_id = self.mask_id if special.mask is None else special.mask
      self.cls_id = self.cls_id if special.cls is None else special.cls
    unknown = {*control, sp.unk_id(), *range(n, n + added)}  # what no text is encoded as
    self._reachable = np.asarray([i for i in self.special_ids if i not in unknown], np.int32)
    self._spelt = spelling([pieces[i].strip(SPACE) for i in self._reachable])
    # Some models put a space before the text, which decoding takes away again.
    self._prefix = b' ' if sp.encode_as_pieces('a')[0].startswith(SPACE) else b''
    underscore = [sp.piece_to_id(f'<0x{byte:02X}>') for byte in SPACE.encode()]
    exact = not self._prefix and sp.unk_id() not in underscore
    self._underscore = underscore if exact else None

  @staticmethod
  def own_roles(model):
    """{role: id} that a SentencePiece processor says itself."""
    ids = dict(bos=model.bos_id(), eos=model.eos_id(), pad=model.pad_id(), unk=model.unk_id())
    return {role: i for role, i in ids.items() if i >= 0}

  def _surface(self, i):
    sp = self._model
    if sp.is_control(i):
      return b''
    if sp.is_unknown(i):
      return UNKNOWN.encode()
    piece = sp.id_to_piece(i)
    return bytes([int(piece[1:-1], 16)]) if sp.is_byte(i) else piece.replace(SPACE, ' ').encode()

  def encode_batch(self, texts):
    """Returns a list of int32 [n], one per text."""
    texts = list(texts)
    arrays = [np.asarray(ids, np.int32) for ids in self._model.encode(texts, num_threads=THREADS)]
    if self._reachable.size:
      arrays = [self._without_special(text, ids) for text, ids in zip(texts, arrays)]
    if self._underscore:
      for i, text in enumerate(texts):
        if SPACE in text:  # it would come back as a space; spelt in bytes it stays itself
          parts = self._model.encode(text.split(SPACE))
          ids = parts[0] + [i for part in parts[1:] for i in self._underscore + part]
          arrays[i] = np.asarray(ids, np.int32)
    return arrays

  def _without_special(self, text, ids):
    """`ids`, or where a special token is a piece that text can have, those of the text with its name cut in two."""
    if not np.isin(ids, self._reachable).any():
      return ids
    cuts = [0, *(match.start() + 1 for match in self._spelt.finditer(text)), len(text)]
    parts = [self._model.encode(text[a:b]) for a, b in zip(cuts, cuts[1:])]
    ids = np.asarray([i for part in parts for i in part], np.int32)
    return ids[~np.isin(ids, self._reachable)]

  def decode(self, ids):
    text = super().decode(ids)
    return text[1:] if self._prefix and text.startswith(' ') else text


class Bytes(Vocabulary):
  """UTF-8 bytes: pad 0, eos 1, unk 2, bytes 3 to 258, then sentinels."""

  name = 'bytes'

  def __init__(self, sentinels=0):
    surfaces = [b'', b'', UNKNOWN.encode()] + [bytes([b]) for b in range(256)] + [b''] * sentinels
    names = ['<pad>', '</s>', '<unk>'] + [
        chr(b) if 32 <= b < 127 else '\\n' if b == 10 else f'<0x{b:02X}>' for b in range(256)]
    content = plain_json.dumps(dict(kind=self.name, sentinels=sentinels)).encode()
    # Bytes of characters beyond ASCII go with what is before them, as most are of letters.
    begins = [False] * 3 + [b < 128 and not _in_word(chr(b)) for b in range(256)] + [False] * sentinels
    self._fill(names + [''] * sentinels, surfaces, (0, 1, 2), list(range(259, 259 + sentinels)), content, begins)

  def encode_batch(self, texts):
    """Returns a list of int32 [n], one per text."""
    return [np.frombuffer(text.encode(), np.uint8).astype(np.int32) + 3 for text in texts]


class Characters(Vocabulary):
  """The distinct characters of a text, sorted.

  With `specials`, ids 0 to 2 are padding, end of document and unknown, and the last ones are sentinels.
  Without, ids start at the first character, there are no sentinels, documents run into each other, and
  a character that is not there is an error.
  """

  name = 'characters'

  def __init__(self, characters, specials=True, sentinels=0):
    characters = ''.join(sorted(set(characters)))
    sentinels = sentinels if specials else 0
    names = ['<pad>', '</s>', '<unk>'] if specials else []
    surfaces = [b'', b'', UNKNOWN.encode()] if specials else []
    self._first = len(names)
    self._codes = _codes(characters)
    fields = dict(kind=self.name, characters=characters, specials=specials)
    content = plain_json.dumps(fields | (dict(sentinels=sentinels) if sentinels else {})).encode()
    end = len(names) + len(characters)
    self._fill(names + [c if c != '\n' else '\\n' for c in characters] + [''] * sentinels,
               surfaces + [c.encode() for c in characters] + [b''] * sentinels,
               (0, 1, 2) if specials else (None, None, None), list(range(end, end + sentinels)), content,
               [False] * self._first + [not _in_word(c) for c in characters] + [False] * sentinels)
    if not specials:
      self.bos_id = self.start_id = None

  def encode_batch(self, texts):
    """Returns a list of int32 [n], one per text; DataError for an unknown character."""
    return [self._encode(text) for text in texts]

  def _encode(self, text):
    codes = _codes(text)
    at = np.minimum(np.searchsorted(self._codes, codes), len(self._codes) - 1)
    unknown = self._codes[at] != codes
    ids = (at + self._first).astype(np.int32)
    if unknown.any():
      if self.unk_id is None:
        raise DataError(f'The character {chr(codes[unknown.argmax()])!r} is not among the '
                        f'{self.size} characters of the vocabulary, which has no id for unknown '
                        'ones: leave it out of the text, or set vocabulary.specials=True.')
      ids[unknown] = self.unk_id
    return ids


def _in_word(character):
  """Whether it is a letter, digit or underscore, or a mark above or below one."""
  return character.isalnum() or character == '_' or unicodedata.category(character)[0] == 'M'


def _codes(text):
  return np.frombuffer(text.encode('utf-32-le'), np.uint32)


def spelling(names):
  """A pattern that finds any of these texts."""
  return re.compile('|'.join(re.escape(name) for name in names if name) or '(?!)')
