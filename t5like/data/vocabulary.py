"""Vocabularies: text to token ids and back. Made by `prepare`, stored beside the tokens.

All kinds answer to the same names:

  size                  number of ids
  pad_id eos_id unk_id  int, or None where the vocabulary has no such id
  bos_id start_id       what the texts of a decoder begin with, and those of an encoder-decoder's decoder: 0 in
                        vocabularies of our own; begin_id: what a text without beginning may begin with
  stop_ids suppressed   ids that end generated text, ids that are never generated
  before after          ids that an imported tokenizer puts around a text
  num_sentinels         number of ids that stand for a corrupted span: <extra_id_0>, ...
  sentinel(k)           id of <extra_id_k>
  mask_id cls_id        what masked LMs put in place of a token, and first in a row: sentinels 0 and 1,
                        or an imported tokenizer's own; None where there is none
  sep_id                what ends a row that begins with cls_id: eos_id, or a tokenizer's own
  special_ids           int32, sorted: all of the above and other ids that text never has
  begins_word           bool [size]: pieces that begin with whitespace; of bytes and characters those
                        that are no letter, digit or underscore; never special ids. A token begins a
                        word if this says so, or the token before it is special: ' fox' is a word
  encode(text)          int32 [n]: no end-of-document, never a sentinel whatever the text says
  encode_batch(texts)   list of int32 [n]
  encode_marked(text)   int32 [n], likewise, but <mask> and <extra_id_0>.. in the text become ids
  decode(ids)           text; padding and end-of-document vanish, sentinels show as <extra_id_k>
  pieces(ids)           one readable string per id
  fingerprint           sha256, differs when any text would get other ids
  save(path)            writes what `load` reads
  special()             the special tokens that there are, {role: id}

Special tokens of imported tokenizers are those that their folder names: see special_tokens.py.
"""

import dataclasses
import heapq
import pathlib
import random
import re
import types

from t5like import choices, schema
from t5like.config_values import either
from t5like.data import mirror, special_tokens
from t5like.data.tokenizer_json import HuggingFace
from t5like.data.vocabulary_kinds import Bytes, Characters, SentencePiece
from t5like.errors import ConfigError, DataError
from t5like.writing import write_file

PIECE = 1000  # characters; SentencePiece silently drops training sentences above 4,192 bytes
# The vocabulary that SentencePiece finds depends on its number of threads: this is not a knob.
THREADS = 4
# What vocabulary.path may be.
FILES = {'sentencepiece': "a SentencePiece .model file, or '' to train one",
         'characters': "the vocabulary of a prepared dataset, or '' to collect the characters of the text",
         'huggingface': 'a tokenizer.json'}
# Files of those kinds that are JSON.
SENTINELS = schema.Whole(0, 1_000_000)
KINDS = dict(
    bytes=schema.Object(dict(kind=schema.OneOf(('bytes',)), sentinels=SENTINELS), ('kind', 'sentinels'), None),
    characters=schema.Object(dict(kind=schema.OneOf(('characters',)), sentinels=SENTINELS, specials=schema.Flag(),
                                  characters=schema.Text(0x110000)), ('kind', 'characters', 'specials'), None))
OURS = 'vocabulary'  # name of the vocabulary files that t5like keeps


def train(spec, texts, path):
  """Makes the vocabulary that `spec` (a config's `vocabulary` section) asks for.

  `texts` is an iterable of str, read only if needed. Writes the file `path` atomically and returns
  the vocabulary. ConfigError for a size that the text cannot fill, or a `spec.path` that is not there;
  DataError for no text, or a file that is no vocabulary.
  """
  if spec.path and spec.name in FILES:
    _import(spec, texts, path)
  else:
    MAKERS[spec.name](spec, texts, path)
  return load(spec, path)


def _import(spec, texts, path):
  check_path(spec)
  of_a_run(imported(spec, spec.path)).save(path)


def _make_bytes(spec, texts, path):
  Bytes(spec.sentinels).save(path)


def _make_characters(spec, texts, path):
  characters = set().union(*texts)
  if not characters:
    raise DataError('There is no text to collect the characters of the vocabulary from.')
  Characters(characters, spec.specials, spec.sentinels).save(path)


def _make_sentencepiece(spec, texts, path):
  write_file(path, _train_sentencepiece(spec, sample(texts, spec.train_characters)))


# Functions of `train` that write a vocabulary to a file.
MAKERS = choices.implement('vocabulary.name', choices.VOCABULARIES, dict(
    sentencepiece=_make_sentencepiece, bytes=_make_bytes, characters=_make_characters, huggingface=_import))


def check_path(spec):
  """ConfigError where `spec.path` is no file."""
  if not mirror.is_file(spec.path):
    raise ConfigError(f'vocabulary.path={spec.path!r} is not a file: give the path of {FILES[spec.name]}.')


def load(spec, path):
  """Returns the vocabulary in the file `path`; reads `spec.name` and `spec.sentinels` only.

  DataError when the file is missing or holds something else, ConfigError for a missing package.
  """
  if spec.name not in LOADERS:
    raise ConfigError(f'vocabulary.name={spec.name!r} is unknown; it may be {either(LOADERS)}.')
  return _loaded(spec, path, _content(path))


def _content(path):
  try:
    return mirror.read_bytes(path)
  except OSError as error:
    raise DataError(f'The vocabulary file {path} cannot be read ({error.strerror}); '
                    'run prepare again.') from error


def _fields(content, kind):
  fields = schema.parse(content, KINDS[kind])
  del fields['kind']
  return fields


def _load_sentencepiece(content, spec):
  return SentencePiece(content, spec.sentinels)


def _load_bytes(content, spec):
  return Bytes(**_fields(content, 'bytes'))


def _load_characters(content, spec):
  return Characters(**_fields(content, 'characters'))


def _load_huggingface(content, spec):
  return HuggingFace(content)


LOADERS = choices.implement('vocabulary.name', choices.VOCABULARIES, dict(
    sentencepiece=_load_sentencepiece, bytes=_load_bytes, characters=_load_characters, huggingface=_load_huggingface))


def _loaded(spec, path, content):
  try:
    return LOADERS[spec.name](content, spec)
  except (RuntimeError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
    raise DataError(f'{path} is not a vocabulary of kind vocabulary.name={spec.name!r}, or is '
                    f'damaged ({str(error)[:200]}).') from error


def imported(spec, path):
  """The vocabulary of a tokenizer's file, with the special tokens that the files beside it name.

  `spec`: a config's vocabulary section, whose `special` comes first. A file that t5like made holds its own. Errors as
  `load`; ConfigError for a special token that the tokenizer does not have.
  """
  content = _content(path)
  vocabulary = _loaded(spec, path, content)
  chosen = dict(getattr(spec, 'special', {}))
  made_here = pathlib.PurePath(str(path)).name == OURS or content.startswith(special_tokens.FIRST)
  if spec.name not in IMPORTED or (made_here and not chosen):
    return vocabulary
  special = special_tokens.read(IMPORTED[spec.name](vocabulary), {} if made_here else _beside(path), chosen, path)
  if spec.name == 'sentencepiece' and _is_plain(vocabulary, special):
    vocabulary.before = special.before
    return vocabulary
  return _loaded(spec, path, special_tokens.wrap(spec.name, special, vocabulary.file))


def _beside(path):
  folder = str(path).rpartition('/')[0] or '.'
  names = [name for name in special_tokens.FILES if mirror.is_file(f'{folder}/{name}')]
  return special_tokens.parse_files({name: mirror.read_bytes(f'{folder}/{name}') for name in names}, folder)


def _of_sentencepiece(vocabulary):
  ids = {name: i for i, name in enumerate(vocabulary.pieces(range(vocabulary.size)))}
  return special_tokens.Tokenizer(ids, {vocabulary.pieces([i])[0] for i in vocabulary.special_ids}, vocabulary.own)


def _of_tokenizer_json(vocabulary):
  return vocabulary.own


IMPORTED = dict(sentencepiece=_of_sentencepiece, huggingface=_of_tokenizer_json)


def _is_plain(vocabulary, special):
  """Whether a SentencePiece model is read as `special` says without being told: as T5's, and those trained here."""
  begins = special.bos == 0 or (special.bos is None and 0 in (special.start, special.pad))
  roles = dict(eos=vocabulary.eos_id, pad=vocabulary.pad_id, unk=vocabulary.unk_id)
  same = all(getattr(special, role) == i for role, i in roles.items())
  marks = special.mask in (None, vocabulary.mask_id) and special.cls in (None, vocabulary.cls_id)
  never = special.suppress is None or {i for i in special.suppress if i < vocabulary.size} == {*vocabulary.suppressed}
  ends = set(special.stops) <= {vocabulary.eos_id} and special.sep in (None, vocabulary.eos_id)
  return begins and special.start in (None, 0) and same and marks and never and ends


def of_a_run(vocabulary):
  """An imported vocabulary as a run keeps it: documents end with eos, so generated text ends there too."""
  content = vocabulary.content
  if vocabulary.name not in IMPORTED or vocabulary.eos_id in (None, *vocabulary.stop_ids):
    return vocabulary
  file, special = special_tokens.unwrap(vocabulary.name, content)
  special = dataclasses.replace(special, stops=(*special.stops, vocabulary.eos_id))
  made = types.SimpleNamespace(name=vocabulary.name, sentinels=vocabulary.num_sentinels)
  return _loaded(made, 'vocabulary', special_tokens.wrap(vocabulary.name, special, file))


def sample(texts, characters):
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


def _train_sentencepiece(spec, pieces, size=0):
  """The bytes of a model of `spec.size` pieces, or of as many as the text fills; size: try no more than this."""
  import io

  import sentencepiece
  if not any(piece.strip() for piece in pieces):
    raise DataError('There is no text to train the SentencePiece vocabulary on.')
  exact = choices.NORMALIZATIONS[spec.normalization].keeps_spaces
  # Newlines must be pieces of their own to survive, and runs of spaces should be single pieces:
  # on Python source this takes 3.0 instead of 1.9 bytes per token at 2,048 pieces.
  keep_spaces = dict(user_defined_symbols=['\n'], remove_extra_whitespaces=False,
                     add_dummy_prefix=False, allow_whitespace_only_pieces=True) if exact else {}
  model = io.BytesIO()
  try:
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(pieces), model_writer=model, vocab_size=size or spec.size,
        model_type=spec.algorithm, normalization_rule_name=spec.normalization, byte_fallback=True,
        # Control symbols: a literal <extra_id_0> in the text cannot become the sentinel.
        control_symbols=[f'<extra_id_{k}>' for k in range(spec.sentinels)],
        pad_id=0, eos_id=1, unk_id=2, bos_id=-1, num_threads=THREADS, minloglevel=4, **keep_spaces)
  except (RuntimeError, ValueError, OSError) as error:
    most = re.search(r'too high .*<= (\d+)', str(error))
    if most and not size:
      return _train_sentencepiece(spec, pieces, int(most[1]))
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
