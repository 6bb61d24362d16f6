"""Vocabularies: text to token ids and back. Made by `prepare`, stored beside the tokens.

All three kinds answer to the same names:

  size                  number of ids
  pad_id eos_id unk_id  int, or None where the vocabulary has no such id
  num_sentinels         number of ids that stand for a corrupted span: <extra_id_0>, ...
  sentinel(k)           id of <extra_id_k>
  encode(text)          int32 [n]: no end-of-document, never a sentinel whatever the text says
  encode_batch(texts)   list of int32 [n]
  decode(ids)           text; padding and end-of-document vanish, sentinels show as <extra_id_k>
  pieces(ids)           one readable string per id
  fingerprint           sha256, differs when any text would get other ids
  save(path)            writes what `load` reads
"""

import hashlib
import heapq
import json
import os
import pathlib
import random
import re

import numpy as np

from t5like.errors import ConfigError, DataError

UNKNOWN = ' ⁇ '  # what the unknown id decodes to, as SentencePiece has it
SPACE = '\u2581'  # how SentencePiece writes a space inside pieces
PIECE = 1000  # characters; SentencePiece silently drops training sentences above 4,192 bytes
# The vocabulary that SentencePiece finds depends on its number of threads: this is not a knob.
THREADS = 4


class _Vocabulary:
  """What the kinds share: a table with a name and with the UTF-8 bytes of each id."""

  name = ''

  def _fill(self, names, surfaces, special, sentinels, content):
    """`special`: (pad, eos, unk) ids; `sentinels`: their ids in order; `content`: file bytes."""
    self._names, self._surfaces, self.content = names, surfaces, content
    self.pad_id, self.eos_id, self.unk_id = special
    self._sentinels = sentinels
    self.size, self.num_sentinels = len(names), len(sentinels)
    for k, i in enumerate(sentinels):
      names[i] = f'<extra_id_{k}>'
      surfaces[i] = names[i].encode()
    kind = f'{self.name} {self.num_sentinels}\n'.encode()
    self.fingerprint = hashlib.sha256(kind + content).hexdigest()

  def sentinel(self, k):
    """Returns the id of <extra_id_k>; ConfigError when there are not that many."""
    if not 0 <= k < self.num_sentinels:
      raise ConfigError(f'<extra_id_{k}> is not in the vocabulary, which has {self.num_sentinels} '
                        f'sentinels: vocabulary.sentinels must be at least {k + 1}, then prepare '
                        'the data again.')
    return self._sentinels[k]

  def encode(self, text):
    """Returns int32 [n], the ids of `text`."""
    return self.encode_batch([text])[0]

  def decode(self, ids):
    """Returns the text of a sequence of ids; ValueError for an id outside the vocabulary."""
    return b''.join([self._surfaces[i] for i in self._checked(ids)]).decode('utf-8', 'replace')

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


class SentencePiece(_Vocabulary):
  """Sub-words from a SentencePiece model, trained here or imported (T5's, Llama's, ...).

  Models trained here hold their sentinels. For a model that has none, such as T5's, `sentinels`
  ids are added above its own, <extra_id_0> being the highest, as T5 does.
  """

  name = 'sentencepiece'

  def __init__(self, model, sentinels=0):
    """`model`: bytes of the .model file. RuntimeError when it is not one."""
    import sentencepiece
    self._model = sp = sentencepiece.SentencePieceProcessor(model_proto=model)
    n = sp.vocab_size()
    names = [sp.id_to_piece(i).replace('\n', '\\n') for i in range(n)]
    inside = []
    while not sp.is_unknown(i := sp.piece_to_id(f'<extra_id_{len(inside)}>')):
      inside.append(i)
    added = 0 if inside else sentinels
    special = [i if i >= 0 else None for i in (sp.pad_id(), sp.eos_id(), sp.unk_id())]
    self._fill(names + [''] * added, [self._surface(i) for i in range(n)] + [b''] * added, special,
               inside or [n + added - 1 - k for k in range(added)], model)
    # Some models put a space before the text, which decoding takes away again.
    self._prefix = b' ' if sp.encode_as_pieces('a')[0].startswith(SPACE) else b''
    underscore = [sp.piece_to_id(f'<0x{byte:02X}>') for byte in SPACE.encode()]
    exact = not self._prefix and sp.unk_id() not in underscore
    self._underscore = underscore if exact else None

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
    arrays = [np.asarray(ids, np.int32) for ids in self._model.encode(texts)]
    if self._underscore:
      for i, text in enumerate(texts):
        if SPACE in text:  # it would come back as a space; spelt in bytes it stays itself
          parts = self._model.encode(text.split(SPACE))
          ids = parts[0] + [i for part in parts[1:] for i in self._underscore + part]
          arrays[i] = np.asarray(ids, np.int32)
    return arrays

  def decode(self, ids):
    text = super().decode(ids)
    return text[1:] if self._prefix and text.startswith(' ') else text


class Bytes(_Vocabulary):
  """UTF-8 bytes: pad 0, eos 1, unk 2, bytes 3 to 258, then sentinels."""

  name = 'bytes'

  def __init__(self, sentinels=0):
    surfaces = [b'', b'', UNKNOWN.encode()] + [bytes([b]) for b in range(256)] + [b''] * sentinels
    names = ['<pad>', '</s>', '<unk>'] + [
        chr(b) if 32 <= b < 127 else '\\n' if b == 10 else f'<0x{b:02X}>' for b in range(256)]
    content = json.dumps(dict(kind=self.name, sentinels=sentinels)).encode()
    self._fill(names + [''] * sentinels, surfaces, (0, 1, 2), list(range(259, 259 + sentinels)),
               content)

  def encode_batch(self, texts):
    """Returns a list of int32 [n], one per text."""
    return [np.frombuffer(text.encode(), np.uint8).astype(np.int32) + 3 for text in texts]


class Characters(_Vocabulary):
  """The distinct characters of a text, sorted.

  With `specials`, ids 0 to 2 are padding, end of document and unknown. Without, ids start at the
  first character, documents run into each other, and a character that is not there is an error.
  """

  name = 'characters'

  def __init__(self, characters, specials=True):
    characters = ''.join(sorted(set(characters)))
    names = ['<pad>', '</s>', '<unk>'] if specials else []
    surfaces = [b'', b'', UNKNOWN.encode()] if specials else []
    self._first = len(names)
    self._codes = _codes(characters)
    content = json.dumps(dict(kind=self.name, characters=characters, specials=specials)).encode()
    self._fill(names + [c if c != '\n' else '\\n' for c in characters],
               surfaces + [c.encode() for c in characters],
               (0, 1, 2) if specials else (None, None, None), [], content)

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


def _codes(text):
  return np.frombuffer(text.encode('utf-32-le'), np.uint32)


def train(spec, texts, path):
  """Makes the vocabulary that `spec` (a config's `vocabulary` section) asks for.

  `texts` is an iterable of str, read only if needed. Writes the file `path` atomically and returns
  the vocabulary. ConfigError for a size that the text cannot fill, or a `path` that is not there;
  DataError for no text.
  """
  if spec.name == 'bytes':
    Bytes(spec.sentinels).save(path)
  elif spec.name == 'characters':
    characters = set().union(*texts)
    if not characters:
      raise DataError('There is no text to collect the characters of the vocabulary from.')
    Characters(characters, spec.specials).save(path)
  elif spec.name == 'sentencepiece' and spec.path:
    if not os.path.isfile(spec.path):
      raise ConfigError(f'vocabulary.path={spec.path!r} is not a file: give the path of a '
                        "SentencePiece .model file, or '' to train one.")
    load(spec, spec.path).save(path)
  elif spec.name == 'sentencepiece':
    write_file(path, _train_sentencepiece(spec, _sample(texts, spec.train_characters)))
  return load(spec, path)


def load(spec, path):
  """Returns the vocabulary in the file `path`; reads `spec.name` and `spec.sentinels` only.

  DataError when the file is missing or holds something else.
  """
  from etils import epath  # a trained model's vocabulary may lie on gs://
  if spec.name not in ('sentencepiece', 'bytes', 'characters'):
    raise ConfigError(f'vocabulary.name={spec.name!r} is unknown; it may be sentencepiece, bytes '
                      'or characters.')
  try:
    content = epath.Path(path).read_bytes()
    if spec.name == 'sentencepiece':
      return SentencePiece(content, spec.sentinels)
    fields = json.loads(content)
    if fields.pop('kind') != spec.name:
      raise ValueError('of another kind')
    return Bytes(**fields) if spec.name == 'bytes' else Characters(**fields)
  except OSError as error:
    raise DataError(f'The vocabulary file {path} cannot be read ({error.strerror}); '
                    'run prepare again.') from error
  except (RuntimeError, ValueError, KeyError, TypeError, AttributeError) as error:
    raise DataError(f'{path} is not a vocabulary of kind vocabulary.name={spec.name!r}, or is '
                    f'damaged ({str(error)[:200]}).') from error


def write_file(path, content):
  """Writes bytes so that `path` is never seen half-written, even after a power cut."""
  temporary = pathlib.Path(f'{path}.tmp')
  with open(temporary, 'wb') as f:
    f.write(content)
    f.flush()
    os.fsync(f.fileno())
  os.replace(temporary, path)


def _sample(texts, characters):
  """Cuts texts into pieces of up to PIECE characters, at spaces, and returns an even sample.

  Each piece draws a number and the pieces with the smallest stay, so one pass over texts of
  unknown length gives every piece the same chance, in memory for `characters` characters.
  """
  draw, heap, total = random.Random(0).random, [], 0
  cut = re.compile(rf'(?s).{{1,{PIECE}}}(?!\S)|.{{1,{PIECE}}}')
  for index, piece in enumerate(piece for text in texts for piece in cut.findall(text)):
    heapq.heappush(heap, (-draw(), index, piece))
    total += len(piece)
    while total > characters and len(heap) > 1:
      total -= len(heapq.heappop(heap)[2])
  return [piece for _, _, piece in sorted(heap, key=lambda entry: entry[1])]


def _train_sentencepiece(spec, pieces):
  import io

  import sentencepiece
  if not any(piece.strip() for piece in pieces):
    raise DataError('There is no text to train the SentencePiece vocabulary on.')
  exact = spec.normalization == 'identity'
  # Newlines must be pieces of their own to survive, and runs of spaces should be single pieces:
  # on Python source this takes 3.0 instead of 1.9 bytes per token at 2,048 pieces.
  keep_spaces = dict(user_defined_symbols=['\n'], remove_extra_whitespaces=False,
                     add_dummy_prefix=False, allow_whitespace_only_pieces=True) if exact else {}
  model = io.BytesIO()
  try:
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(pieces), model_writer=model, vocab_size=spec.size,
        model_type=spec.algorithm, normalization_rule_name=spec.normalization, byte_fallback=True,
        # Control symbols: a literal <extra_id_0> in the text cannot become the sentinel.
        control_symbols=[f'<extra_id_{k}>' for k in range(spec.sentinels)],
        pad_id=0, eos_id=1, unk_id=2, bos_id=-1, num_threads=THREADS, minloglevel=4, **keep_spaces)
  except (RuntimeError, ValueError, OSError) as error:
    raise _training_error(spec, sum(map(len, pieces)), str(error)) from error
  return model.getvalue()


def _training_error(spec, characters, message):
  if most := re.search(r'too high .*<= (\d+)', message):
    return ConfigError(f'vocabulary.size={spec.size} is more than the {characters} characters of '
                       f'training text can fill: set it to at most {most[1]}, or give more text.')
  if least := re.search(r'smaller than required_chars. \d+ vs (\d+)', message):
    return ConfigError(f'vocabulary.size={spec.size} is too small: 256 bytes, '
                       f'vocabulary.sentinels={spec.sentinels} sentinels and the characters of the '
                       f'text need {least[1]}, so set it above {least[1]}.')
  return ConfigError('SentencePiece cannot train with '
                     f'vocabulary.algorithm={spec.algorithm!r} (unigram or bpe), '
                     f'vocabulary.normalization={spec.normalization!r} (nmt_nfkc or identity), '
                     f'vocabulary.size={spec.size}: {message[:300]}')
