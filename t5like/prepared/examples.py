"""Examples of a dataset: the texts of records that are not empty, and the split that each belongs to."""
import hashlib
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from t5like import choices
from t5like.config import templates
from t5like.config_type import Config
from t5like.errors import ConfigError, DataError
from t5like.sources.registry import Source

Texts = tuple[str, ...]  # of an example: one, or inputs and targets
Example = tuple[Texts, str]  # with its id
Count = dict[str, Any]  # see `new_count`
Part = Mapping[str, Any]  # see parts.py

NAMED = 20  # damaged records whose messages are kept
HASHES = 2**64  # hash numbers are below this


def new_count() -> Count:
  """Numbers of documents: all, without text, repeated, above data.max_document_tokens, damaged; and messages."""
  return dict(
      documents=0,
      dropped=0,
      repeated=0,
      overlong=0,
      bad=0,
      damage=[],
  )


def examples(config: Config, source: Source, part: Part, count: Count) -> Iterator[Example]:
  """Yields (texts, id) of the examples that are not empty; texts is a tuple of one, or of inputs and targets.

  Args:
    config: of the dataset.
    source: of its text.
    part: `start` and `stop`, items of the source, and `last`, how many records of the last of them to take
      (None: all).
    count: of `new_count`; documents are counted there, and the messages of the first damaged ones added.

  Raises:
    DataError: more than data.max_bad_records records are damaged.
  """
  without_text = EMPTY[config.data.empty]
  for record, name in _records(source, part['start'], part['stop'], part['last']):
    count['documents'] += 1
    try:
      texts = _texts(config.data, record, name)
    except DataError as error:
      _count_damage(config, count, error)
      continue
    if _is_empty(texts[-1]):
      without_text(name, count)
    else:
      yield texts, name


def _is_empty(text: str) -> bool:
  return not text or text.isspace()


def _drop_empty(name: str, count: Count) -> None:
  count['dropped'] += 1


def _refuse_empty(name: str, count: Count) -> None:
  raise DataError(f"{name} has no text. data.empty='drop' leaves such documents out, and counts them.")


# data.empty -> function of (the document's name, counts of documents) for a document without text
EMPTY: Mapping[str, Callable[[str, Count], None]] = choices.implement(
    'data.empty', choices.EMPTY, dict(drop=_drop_empty, error=_refuse_empty))


def _records(
    source: Source,
    start: int,
    stop: int,
    last: int | None,
) -> Iterator[tuple[Any, str]]:
  if last is None:
    return source.documents(start, stop)
  whole_items = source.documents(start, stop - 1)
  last_item = source.documents(stop - 1, stop)
  return itertools.chain(whole_items, itertools.islice(last_item, last))


def _texts(data: Config, record: dict[str, Any] | DataError, name: str) -> Texts:
  if isinstance(record, DataError):
    raise record
  texts = templates.texts(data, record, name)
  for text in texts:
    try:
      text.encode()
    except UnicodeEncodeError as error:
      raise DataError(f'{name} holds {text[error.start]!r}, half of a surrogate pair, which is not a '
                      'character: remove it.') from error
  return texts


def _count_damage(config: Config, count: Count, error: DataError) -> None:
  """Counts a damaged record; DataError when there are too many."""
  most = config.data.max_bad_records
  count['bad'] += 1
  if len(count['damage']) < NAMED:
    count['damage'] = [*count['damage'], str(error)]
  if count['bad'] <= most:
    return
  fix = ': raise it to leave some out)'
  if most:
    fix = f', this is number {most + 1})'
  raise DataError(f'{error} (data.max_bad_records={most} allows {most} such records{fix}') from error


# --- Splits -----------------------------------------------------------------------------------------


def split_example(
    texts: Texts,
    name: str,
    config: Config,
    held: Mapping[str, Any] | None = None,
) -> list[tuple[str, Texts]]:
  """The pieces of an example as pairs (split, texts).

  Args:
    texts: of the example.
    name: of its source, 'train' or 'validation'.
    config: of the dataset.
    held: the result of `held_out.find` for text whose hashes leave a split without documents; None: nothing.

  Raises:
    ConfigError: inputs and targets would have to be cut.
  """
  if config.data.validation == 'hash':  # so that identical examples land on one side
    return _by_hash(texts, config.data.validation_fraction, held)
  if config.data.validation == 'tail':
    share = 1 - config.data.validation_fraction
    return _cut(texts, int(len(texts[0]) * share))
  return [(name, texts)]


def hash_number(texts: Sequence[str]) -> int:
  """The first 8 bytes of the SHA-256 of an example, 0 to 2^64 - 1: below validation_fraction x 2^64 it validates."""
  joined = '\0'.join(texts)
  digest = hashlib.sha256(joined.encode()).digest()
  return int.from_bytes(digest[:8], 'big')


def _by_hash(
    texts: Texts,
    fraction: float,
    held: Mapping[str, Any] | None,
) -> list[tuple[str, Texts]]:
  if held and 'cut' in held:
    return _cut(texts, held['cut'])
  number = hash_number(texts)
  if held and number == held['number']:
    return [(held['split'], texts)]
  if number / HASHES < fraction:
    return [('validation', texts)]
  return [('train', texts)]


def _cut(texts: Texts, place: int) -> list[tuple[str, Texts]]:
  """The characters before `place` are trained on, the rest validates."""
  text = texts[0]
  if len(texts) > 1:
    raise ConfigError("data.validation='tail' cuts texts in two, which examples of data.inputs and data.targets "
                      "cannot be: set data.validation='hash'.")
  pieces = []
  for split, piece in (('train', text[:place]), ('validation', text[place:])):
    if piece:
      pieces.append((split, (piece,)))
  return pieces


def held_by(part: Part) -> Mapping[str, Any] | None:
  """What a part of a plan says of documents that are held out in spite of their hash, or None."""
  return part.get('held')
