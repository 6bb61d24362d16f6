"""Vocabularies: text to token ids and back. Made by `prepare`, stored beside the tokens.

All kinds answer to the same names:

  size                  number of ids
  pad_id eos_id unk_id  int, or None where the vocabulary has no such id
  num_sentinels         number of ids that stand for a corrupted span: <extra_id_0>, ...
  sentinel(k)           id of <extra_id_k>
  mask_id cls_id        what masked LMs put in place of a token, and first in a row: sentinels 0 and 1,
                        or a Hugging Face tokenizer's own; None where there is none
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
"""

import heapq
import json
import random
import re

from t5like.data import mirror
from t5like.data.tokenizer_json import HuggingFace
from t5like.data.vocabulary_kinds import Bytes, Characters, SentencePiece, write_file
from t5like.errors import ConfigError, DataError

PIECE = 1000  # characters; SentencePiece silently drops training sentences above 4,192 bytes
# The vocabulary that SentencePiece finds depends on its number of threads: this is not a knob.
THREADS = 4
# What vocabulary.path may be.
FILES = {'sentencepiece': "a SentencePiece .model file, or '' to train one",
         'characters': "the vocabulary of a prepared dataset, or '' to collect the characters of the text",
         'huggingface': 'a tokenizer.json'}


def train(spec, texts, path):
  """Makes the vocabulary that `spec` (a config's `vocabulary` section) asks for.

  `texts` is an iterable of str, read only if needed. Writes the file `path` atomically and returns
  the vocabulary. ConfigError for a size that the text cannot fill, or a `spec.path` that is not there;
  DataError for no text, or a file that is no vocabulary.
  """
  if spec.name == 'bytes':
    Bytes(spec.sentinels).save(path)
  elif spec.name in FILES and (spec.path or spec.name == 'huggingface'):
    if not mirror.is_file(spec.path):
      raise ConfigError(f'vocabulary.path={spec.path!r} is not a file: give the path of {FILES[spec.name]}.')
    load(spec, spec.path).save(path)
  elif spec.name == 'characters':
    characters = set().union(*texts)
    if not characters:
      raise DataError('There is no text to collect the characters of the vocabulary from.')
    Characters(characters, spec.specials, spec.sentinels).save(path)
  elif spec.name == 'sentencepiece':
    write_file(path, _train_sentencepiece(spec, sample(texts, spec.train_characters)))
  return load(spec, path)


def load(spec, path):
  """Returns the vocabulary in the file `path`; reads `spec.name` and `spec.sentinels` only.

  DataError when the file is missing or holds something else, ConfigError for a missing package.
  """
  if spec.name not in ('sentencepiece', 'bytes', 'characters', 'huggingface'):
    raise ConfigError(f'vocabulary.name={spec.name!r} is unknown; it may be sentencepiece, bytes, characters or '
                      'huggingface.')
  try:
    content = mirror.read_bytes(path)
    if spec.name == 'sentencepiece':
      return SentencePiece(content, spec.sentinels)
    if spec.name == 'huggingface':
      return HuggingFace(content)
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
  exact = spec.normalization == 'identity'
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
