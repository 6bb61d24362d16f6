"""Vocabularies: text to token ids and back. Made by `prepare`, stored beside the tokens.

All kinds have the same interface:

  size                  number of ids
  pad_id eos_id unk_id  int, or None where the vocabulary has no such id
  bos_id start_id       first id of the texts of a decoder, and of those of an encoder-decoder's decoder: 0 in
                        vocabularies of our own; begin_id: first id of a text without a beginning
  stop_ids suppressed   ids that end generated text, ids that are never generated
  before after          ids that an imported tokenizer puts around a text
  num_sentinels         number of ids that stand for a corrupted span: <extra_id_0>, ...
  sentinel(k)           id of <extra_id_k>
  mask_id cls_id        ids that masked LMs put in place of a token, and first in a row: sentinels 0 and 1,
                        or an imported tokenizer's own; None where there is none
  sep_id                id that ends a row that begins with cls_id: eos_id, or a tokenizer's own
  special_ids           int32, sorted: all of the above and other ids that text never has
  begins_word           bool [size]: pieces that begin with whitespace; of bytes and characters those
                        that are not a letter, digit or underscore; never special ids. A token begins a
                        word if this says so, or the token before it is special: ' fox' is a word
  encode(text)          int32 [n]: no end-of-document, never a sentinel, whatever the text
  encode_batch(texts)   list of int32 [n]
  encode_marked(text)   int32 [n], as encode, but <mask> and <extra_id_0>.. in the text become ids
  decode(ids)           text; padding and end-of-document vanish, sentinels show as <extra_id_k>
  pieces(ids)           one readable string per id
  fingerprint           sha256, differs when any text would get other ids
  save(path)            writes a file for `load`
  special()             its special tokens, {role: id}

Special tokens of imported tokenizers are those that their folder names: see special_tokens.py.
"""

import dataclasses
import heapq
import io
import operator
import os
import pathlib
import random
import re
import types
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from t5like import choices
from t5like.config.values import either
from t5like.errors import ConfigError, DataError
from t5like.files import mirror, schema
from t5like.files.writing import write_file
from t5like.vocabulary import special_tokens
from t5like.vocabulary.kinds import Bytes, Characters, Vocabulary
from t5like.vocabulary.sentence_pieces import SentencePiece
from t5like.vocabulary.special_tokens import Special
from t5like.vocabulary.tokenizer_json import HuggingFace

Spec = Any  # a config's section `vocabulary`, or an object with the attributes of it that are read
Path = str | os.PathLike[str]

PIECE = 1000  # characters; SentencePiece silently drops training sentences above 4,192 bytes
# The vocabulary that SentencePiece makes depends on its number of threads: this is not a knob.
THREADS = 4
# Kinds of vocabulary.path.
FILES = dict(
    sentencepiece="a SentencePiece .model file, or '' to train one",
    characters="the vocabulary of a prepared dataset, or '' to collect the characters of the text",
    huggingface='a tokenizer.json',
)
# Shapes of the files of those kinds that are JSON.
SENTINELS = schema.Whole(0, 1_000_000)
BYTES = dict(
    kind=schema.OneOf(('bytes',)),
    sentinels=SENTINELS,
)
CHARACTERS = dict(
    kind=schema.OneOf(('characters',)),
    sentinels=SENTINELS,
    specials=schema.Flag(),
    characters=schema.Text(0x110000),
)
KINDS = dict(
    bytes=schema.Object(
        BYTES,
        needs=('kind', 'sentinels'),
        rest=None,
    ),
    characters=schema.Object(
        CHARACTERS,
        needs=('kind', 'characters', 'specials'),
        rest=None,
    ),
)
OURS = 'vocabulary'  # name of the vocabulary files that t5like keeps
TOO_LARGE = re.compile(r'too high .*<= (\d+)')  # SentencePiece's message for a size that the text cannot fill
TOO_SMALL = re.compile(r'smaller than required_chars. \d+ vs (\d+)')
SHOWN = 300  # characters of an error of a library


def train(spec: Spec, texts: Iterable[str], path: Path) -> Vocabulary:
  """Makes the vocabulary that `spec` describes, writes it to a file atomically and returns it.

  Args:
    spec: a config's section `vocabulary`.
    texts: read only if needed.
    path: of the file.

  Raises:
    ConfigError: the text cannot fill a vocabulary of that size, or `spec.path` does not exist.
    DataError: there is no text, or a file is not a vocabulary.
  """
  make = MAKERS[spec.name]
  if spec.path and spec.name in FILES:
    make = _import
  make(spec, texts, path)
  return load(spec, path)


def _import(
    spec: Spec,
    texts: Iterable[str],
    path: Path,
) -> None:
  check_path(spec)
  vocabulary = imported(spec, spec.path)
  of_a_run(vocabulary).save(path)


def _make_bytes(
    spec: Spec,
    texts: Iterable[str],
    path: Path,
) -> None:
  vocabulary = Bytes(spec.sentinels)
  vocabulary.save(path)


def _make_characters(
    spec: Spec,
    texts: Iterable[str],
    path: Path,
) -> None:
  characters = set().union(*texts)
  if not characters:
    raise DataError('There is no text to collect the characters of the vocabulary from.')
  vocabulary = Characters(characters, spec.specials, spec.sentinels)
  vocabulary.save(path)


def _make_sentencepiece(
    spec: Spec,
    texts: Iterable[str],
    path: Path,
) -> None:
  pieces = sample(texts, spec.train_characters)
  model = _train_sentencepiece(spec, pieces)
  write_file(path, model)


# Functions of `train` that write a vocabulary to a file.
Maker = Callable[[Spec, Iterable[str], Path], None]
MAKERS: Mapping[str, Maker] = choices.implement('vocabulary.name', choices.VOCABULARIES, dict(
    sentencepiece=_make_sentencepiece,
    bytes=_make_bytes,
    characters=_make_characters,
    huggingface=_import,
))


def check_path(spec: Spec) -> None:
  """ConfigError where `spec.path` is not a file."""
  if not mirror.is_file(spec.path):
    raise ConfigError(f'vocabulary.path={spec.path!r} is not a file: give the path of {FILES[spec.name]}.')


def load(spec: Spec, path: Path) -> Vocabulary:
  """Returns the vocabulary in a file.

  Args:
    spec: a config's section `vocabulary`; only `spec.name` and `spec.sentinels` are read.
    path: of the file.

  Raises:
    DataError: the file is missing or holds something else.
    ConfigError: a package is missing.
  """
  if spec.name not in LOADERS:
    raise ConfigError(f'vocabulary.name={spec.name!r} is unknown; it may be {either(LOADERS)}.')
  content = _content(path)
  return _loaded(spec, path, content)


def _content(path: Path) -> bytes:
  try:
    return mirror.read_bytes(path)
  except OSError as error:
    raise DataError(f'The vocabulary file {path} cannot be read ({error.strerror}); '
                    'run prepare again.') from error


def _fields(content: bytes, kind: str) -> dict[str, Any]:
  fields = schema.parse(content, KINDS[kind])
  del fields['kind']
  return fields


def _load_sentencepiece(content: bytes, spec: Spec) -> Vocabulary:
  return SentencePiece(content, spec.sentinels)


def _load_bytes(content: bytes, spec: Spec) -> Vocabulary:
  return Bytes(**_fields(content, 'bytes'))


def _load_characters(content: bytes, spec: Spec) -> Vocabulary:
  return Characters(**_fields(content, 'characters'))


def _load_huggingface(content: bytes, spec: Spec) -> Vocabulary:
  return HuggingFace(content)


Loader = Callable[[bytes, Spec], Vocabulary]
LOADERS: Mapping[str, Loader] = choices.implement('vocabulary.name', choices.VOCABULARIES, dict(
    sentencepiece=_load_sentencepiece,
    bytes=_load_bytes,
    characters=_load_characters,
    huggingface=_load_huggingface,
))


def _loaded(
    spec: Spec,
    path: Path,
    content: bytes,
) -> Any:
  try:
    return LOADERS[spec.name](content, spec)
  except (RuntimeError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
    raise DataError(f'{path} is not a vocabulary of kind vocabulary.name={spec.name!r}, or is '
                    f'damaged ({str(error)[:200]}).') from error


# --- Vocabularies of other programs ---------------------------------------------------------------


def imported(spec: Spec, path: Path) -> Vocabulary:
  """The vocabulary of a tokenizer's file, with the special tokens that the files beside it name.

  Args:
    spec: a config's section `vocabulary`, whose `special` comes first.
    path: of the tokenizer's file; one that t5like made holds its own special tokens.

  Raises:
    ConfigError: the tokenizer does not have a special token, or a package is missing.
    DataError: the file is missing or holds something else.
  """
  content = _content(path)
  vocabulary = _loaded(spec, path, content)
  chosen = dict(getattr(spec, 'special', {}))
  is_ours = pathlib.PurePath(str(path)).name == OURS or content.startswith(special_tokens.FIRST)
  if spec.name not in IMPORTED:
    return vocabulary
  if is_ours and not chosen:
    return vocabulary
  files = {}
  if not is_ours:
    files = _beside(path)
  tokenizer = IMPORTED[spec.name](vocabulary)
  special = special_tokens.read(tokenizer, files, chosen, path)
  if spec.name == 'sentencepiece' and _is_plain(vocabulary, special):
    vocabulary.before = special.before
    return vocabulary
  wrapped = special_tokens.wrap(spec.name, special, vocabulary.file)
  return _loaded(spec, path, wrapped)


def _beside(path: Path) -> dict[str, dict[str, Any]]:
  """The values of the files beside a tokenizer."""
  folder = str(path).rpartition('/')[0] or '.'
  contents = {}
  for name in special_tokens.FILES:
    file = f'{folder}/{name}'
    if mirror.is_file(file):
      contents[name] = mirror.read_bytes(file)
  return special_tokens.parse_files(contents, folder)


def _tokenizer_of_sentencepiece(vocabulary: Any) -> special_tokens.Tokenizer:
  all_ids = range(vocabulary.size)
  pieces = vocabulary.pieces(all_ids)
  ids = dict(zip(pieces, all_ids))
  special = {pieces[i] for i in vocabulary.special_ids}
  return special_tokens.Tokenizer(ids, special, vocabulary.own)


def _tokenizer_of_huggingface(vocabulary: Any) -> special_tokens.Tokenizer:
  return vocabulary.own


# Kinds of vocabularies that other programs make, and functions that return the content of their files.
IMPORTED: Mapping[str, Callable[[Any], special_tokens.Tokenizer]] = dict(
    sentencepiece=_tokenizer_of_sentencepiece,
    huggingface=_tokenizer_of_huggingface,
)


def _is_plain(vocabulary: Any, special: Special) -> bool:
  """Whether a SentencePiece model has the tokens `special` by default, as T5's and those trained here do."""
  begins_with_0 = special.bos == 0
  if special.bos is None:
    begins_with_0 = 0 in (special.start, special.pad)
  if not begins_with_0 or special.start not in (None, 0):
    return False
  own = (vocabulary.eos_id, vocabulary.pad_id, vocabulary.unk_id)
  if (special.eos, special.pad, special.unk) != own:
    return False
  if special.mask not in (None, vocabulary.mask_id):
    return False
  if special.cls not in (None, vocabulary.cls_id):
    return False
  if special.sep not in (None, vocabulary.eos_id):
    return False
  if not set(special.stops) <= {vocabulary.eos_id}:
    return False
  return _suppresses_default(vocabulary, special)


def _suppresses_default(vocabulary: Any, special: Special) -> bool:
  if special.suppress is None:
    return True
  suppressed = {i for i in special.suppress if i < vocabulary.size}
  return suppressed == set(vocabulary.suppressed)


def of_a_run(vocabulary: Any) -> Vocabulary:
  """An imported vocabulary as a run keeps it: documents end with eos, so generated text ends there too."""
  eos_id = vocabulary.eos_id
  if vocabulary.name not in IMPORTED or eos_id is None:
    return vocabulary
  if eos_id in vocabulary.stop_ids:
    return vocabulary
  file, special = special_tokens.unwrap(vocabulary.name, vocabulary.content)
  assert special is not None  # a vocabulary without special tokens stops at eos
  stops = (*special.stops, eos_id)
  special = dataclasses.replace(special, stops=stops)
  spec = types.SimpleNamespace(
      name=vocabulary.name,
      sentinels=vocabulary.num_sentinels,
  )
  wrapped = special_tokens.wrap(vocabulary.name, special, file)
  return _loaded(spec, OURS, wrapped)


# --- Training SentencePiece -----------------------------------------------------------------------


def sample(texts: Iterable[str], characters: int) -> list[str]:
  """Cuts texts into pieces of up to PIECE characters, at spaces, and returns an even sample.

  Each piece draws a number and the pieces with the smallest stay, so one pass over texts of
  unknown length gives every piece the same chance, in memory for `characters` characters.
  """
  draw = random.Random(0).random
  heap: list[tuple[float, int, str]] = []
  total = 0
  for index, piece in enumerate(_pieces(texts)):
    heapq.heappush(heap, (-draw(), index, piece))
    total += len(piece)
    while total > characters and len(heap) > 1:
      _, _, dropped = heapq.heappop(heap)
      total -= len(dropped)
  by_index = operator.itemgetter(1)
  heap.sort(key=by_index)
  return [piece for _, _, piece in heap]


def _pieces(texts: Iterable[str]) -> Iterator[str]:
  cut = re.compile(rf'(?s).{{1,{PIECE}}}(?!\S)|.{{1,{PIECE}}}')
  for text in texts:
    yield from cut.findall(text)


def _train_sentencepiece(spec: Spec, pieces: Sequence[str]) -> bytes:
  """The bytes of a model of `spec.size` pieces, or of as many as the text fills."""
  if not any(piece.strip() for piece in pieces):
    raise DataError('There is no text to train the SentencePiece vocabulary on.')
  try:
    try:
      return _train_model(spec, pieces, spec.size)
    except (RuntimeError, ValueError, OSError) as error:
      largest = TOO_LARGE.search(str(error))
      if not largest:
        raise
    return _train_model(spec, pieces, int(largest[1]))
  except (RuntimeError, ValueError, OSError) as error:
    characters = sum(map(len, pieces))
    raise _training_error(spec, characters, str(error)) from error


def _train_model(
    spec: Spec,
    pieces: Sequence[str],
    size: int,
) -> bytes:
  """The bytes of a model of `size` pieces. RuntimeError, ValueError or OSError."""
  import sentencepiece
  spaces: dict[str, Any] = {}
  if choices.NORMALIZATIONS[spec.normalization].keeps_spaces:
    # Newlines must be pieces of their own to survive, and runs of spaces should be single pieces:
    # on Python source this takes 3.0 instead of 1.9 bytes per token at 2,048 pieces.
    spaces = dict(
        user_defined_symbols=['\n'],
        remove_extra_whitespaces=False,
        add_dummy_prefix=False,
        allow_whitespace_only_pieces=True,
    )
  model = io.BytesIO()
  sentencepiece.SentencePieceTrainer.train(
      sentence_iterator=iter(pieces),
      model_writer=model,
      vocab_size=size,
      model_type=spec.algorithm,
      normalization_rule_name=spec.normalization,
      byte_fallback=True,
      # Control symbols: a literal <extra_id_0> in the text cannot become the sentinel.
      control_symbols=[f'<extra_id_{k}>' for k in range(spec.sentinels)],
      pad_id=0,
      eos_id=1,
      unk_id=2,
      bos_id=-1,
      num_threads=THREADS,
      minloglevel=4,
      **spaces,
  )
  return model.getvalue()


def _training_error(
    spec: Spec,
    characters: int,
    message: str,
) -> ConfigError:
  """SentencePiece's error as one for people; characters: of the training text."""
  largest = TOO_LARGE.search(message)
  if largest:
    return ConfigError(f'vocabulary.size={spec.size} is more than the {characters} characters of '
                       f'training text can fill: set it to at most {largest[1]}, or give more text.')
  least = TOO_SMALL.search(message)
  if least:
    return ConfigError(f'vocabulary.size={spec.size} is too small: 256 bytes, '
                       f'vocabulary.sentinels={spec.sentinels} sentinels and the characters of the '
                       f'text need {least[1]}, so set it above {least[1]}.')
  return ConfigError('SentencePiece cannot train with '
                     f'vocabulary.algorithm={spec.algorithm!r} (unigram or bpe), '
                     f'vocabulary.normalization={spec.normalization!r} (nmt_nfkc or identity), '
                     f'vocabulary.size={spec.size}: {message[:SHOWN]}')
