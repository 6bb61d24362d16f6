"""Tokenizers of Hugging Face folders: SentencePiece models, tokenizer.json, and ByT5's, which need no file."""
import dataclasses
import json
from typing import Any, cast

from etils import epath

from t5like.config.values import base
from t5like.errors import ConfigError, DataError
from t5like.vocabulary import loading as vocabulary_lib, special_tokens, tokenizer_export
from t5like.vocabulary.kinds import Bytes, Vocabulary
from t5like.vocabulary.tokenizer_json import HuggingFace

Tree = dict[str, Any]  # values of JSON files, or of config.vocabulary
PIECES = ('spiece.model', 'tokenizer.model')  # names of SentencePiece models
ROLES = ('eos_id', 'pad_id', 'unk_id', 'stop_ids')
T5_SENTINELS = 100  # of a T5 whose tokenizer_config.json does not say
T5_TYPES = ('t5', 'mt5', 'umt5')  # values of model_type
BYT5_SENTINELS = 125


@dataclasses.dataclass(frozen=True)
class FolderTokenizer:
  """A folder's tokenizer.

  Attributes:
    spec: values of config.vocabulary.
    vocabulary: made of it.
    begins: whether it puts vocabulary.bos_id before texts.
  """
  spec: Tree
  vocabulary: Vocabulary
  begins: bool


def find_vocabulary(folder: Any, chosen: Tree | None = None) -> tuple[Tree, Vocabulary | None]:
  """(values of config.vocabulary, vocabulary) of a Hugging Face folder; ({}, None) where it has none."""
  tokenizer = find_tokenizer(folder, chosen)
  if tokenizer is None:
    return {}, None
  return tokenizer.spec, tokenizer.vocabulary


def find_tokenizer(folder: Any, chosen: Tree | None = None) -> FolderTokenizer | None:
  """The tokenizer of a Hugging Face folder, None where it has none.

  A SentencePiece model comes before a tokenizer.json that was made from it and holds the same; else the tokenizer.json,
  which is what transformers reads.

  Args:
    folder: the folder.
    chosen: config.vocabulary.special.

  Raises:
    ConfigError: where one id is two different pieces, for tokens named by other files that the tokenizer cannot have,
      and as `vocabulary.imported`.
  """
  folder = epath.Path(folder)
  pieces = _pieces_file(folder)
  whole = folder / 'tokenizer.json'
  if pieces is None and not whole.exists():
    return _bytes_of(folder)
  if pieces is None:
    return _load(whole, 'huggingface', chosen)
  if not whole.exists():
    sentinels = _count_sentinels(folder)
    _check_added(folder, pieces, sentinels)
    return _load(pieces, 'sentencepiece', chosen, sentinels)
  theirs = _load(whole, 'huggingface', chosen)
  sentinels = _check_same(folder, pieces, cast(HuggingFace, theirs.vocabulary))
  if sentinels is None:
    return theirs
  ours = _load(pieces, 'sentencepiece', chosen, sentinels)
  if tokenizer_export.difference(ours.vocabulary, theirs.vocabulary):
    return theirs
  if not _same_roles(ours.vocabulary, theirs.vocabulary):
    return theirs
  return dataclasses.replace(ours, begins=theirs.begins)


def _pieces_file(folder: Any) -> Any:
  for name in PIECES:
    if (folder / name).exists():
      return folder / name
  return None


def _load(path: Any, kind: str, chosen: Tree | None, sentinels: int = 0) -> FolderTokenizer:
  spec: Any = base().vocabulary
  spec.update(name=kind, path=str(path), sentinels=sentinels, special=dict(chosen or {}))
  vocabulary = vocabulary_lib.imported(spec, spec.path)
  begins = vocabulary.bos_id is not None and tuple(vocabulary.before) == (vocabulary.bos_id,)
  return FolderTokenizer(spec.to_dict(), vocabulary, begins)


def _bytes_of(folder: Any) -> FolderTokenizer | None:
  """The vocabulary of a ByT5, which needs no file; None for another."""
  tokenizer_class = _settings(folder).get('tokenizer_class') or ''
  if tokenizer_class.removesuffix('Fast') != 'ByT5Tokenizer':
    return None
  spec: Any = base().vocabulary
  spec.update(name='bytes', path='', sentinels=_count_sentinels(folder, BYT5_SENTINELS))
  return FolderTokenizer(spec.to_dict(), Bytes(spec.sentinels), False)


def _settings(folder: Any, name: str = 'tokenizer_config.json') -> Tree:
  """The values of one of special_tokens.FILES, {} where a folder does not have it."""
  path = folder / name
  if not path.exists():
    return {}
  return special_tokens.parse_files({name: path.read_bytes()}, folder)[name]


def _count_sentinels(folder: Any, default: int = 0) -> int:
  """How many <extra_id_0>, ... lie above a SentencePiece model, as T5's do; `default`: where no file says."""
  settings = _settings(folder)
  named = settings.get('additional_special_tokens') or settings.get('extra_special_tokens') or []
  count = sum('<extra_id_' in json.dumps(token) for token in named)
  if count:
    return count
  extra_ids = settings.get('extra_ids')
  if extra_ids is not None:
    return extra_ids
  if default:
    return default
  if _settings(folder, 'config.json').get('model_type') in T5_TYPES:
    return T5_SENTINELS
  return 0


def _check_added(folder: Any, path: Any, sentinels: int) -> None:
  """ConfigError where tokens were added that a SentencePiece model cannot have."""
  texts = list(_settings(folder, 'added_tokens.json'))
  added = _settings(folder).get('added_tokens_decoder') or {}
  for token in added.values():
    texts.append(token['content'])
  vocabulary = _read_pieces(path, sentinels)
  pieces = set(vocabulary.pieces(range(vocabulary.size)))
  missing = [text for text in texts if text not in pieces]
  if missing:
    raise ConfigError(f'{folder} adds {len(missing)} tokens to {path.name}, such as {missing[0]!r}, which only a '
                      'tokenizer.json can hold. Save its tokenizer there first: AutoTokenizer.from_pretrained(...)'
                      '.save_pretrained(...).')


def _read_pieces(path: Any, sentinels: int = 0) -> Vocabulary:
  spec: Any = base().vocabulary
  spec.update(name='sentencepiece', path=str(path), sentinels=sentinels)
  return vocabulary_lib.load(spec, spec.path)


def _check_same(folder: Any, path: Any, theirs: HuggingFace) -> int | None:
  """How many sentinels lie above a SentencePiece model that holds all that the tokenizer.json beside it does.

  None where tokenizer.json has more, or the file is no such model (tiktoken's too are called tokenizer.model).
  ConfigError where they are of two tokenizers: an id is one piece here, another there, added tokens apart.
  """
  try:
    ours = _read_pieces(path)
  except DataError:
    return None
  added = {theirs.own.ids[text] for text in theirs.own.added}
  for i in range(min(ours.size, theirs.size)):
    our_piece = ours.pieces([i])[0]
    their_piece = theirs.pieces([i])[0].replace('\n', '\\n')
    if our_piece != their_piece and i not in added and i not in ours.special_ids:
      raise ConfigError(f'{folder} holds two tokenizers that contradict each other: id {i} is {our_piece!r} in '
                        f'{path.name}, {their_piece!r} in tokenizer.json. Delete the file that does not belong to the '
                        'model.')
  sentinels = sum(theirs.sentinel(k) >= ours.size for k in range(theirs.num_sentinels))
  if theirs.size > ours.size + sentinels:
    return None
  return sentinels


def _same_roles(ours: Vocabulary, theirs: Vocabulary) -> bool:
  """Whether two vocabularies have the same special tokens."""
  for role in ROLES:
    if getattr(ours, role) != getattr(theirs, role):
      return False
  if theirs.bos_id not in (None, ours.bos_id):
    return False
  return _suppressed(ours, theirs.size) == _suppressed(theirs, theirs.size)


def _suppressed(vocabulary: Vocabulary, size: int) -> set[int]:
  return {i for i in vocabulary.suppressed if i < size}
