"""Documents to shards of tokens: array_record files of fixed blocks, which TFDS reads too."""

import contextlib
import hashlib
import os
import pathlib
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import zstandard

from t5like import choices
from t5like.config_type import Config
from t5like.errors import DataError
from t5like.files.writing import write_file
from t5like.prepared import examples
from t5like.prepared.examples import Count, Example, Part, Texts
from t5like.sources.registry import Source
from t5like.vocabulary.kinds import Vocabulary

Piece = tuple[str, Texts, str]  # split, texts, id of the example
Arrays = list[np.ndarray]  # int32 [n] each, of the texts of an example

BLOCK = 4096  # tokens per record
BUFFERED = 64 * BLOCK  # tokens from which blocks are written
BATCH = 1 << 20  # characters that the vocabulary encodes in one call
TEMPLATE = '{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}'  # TFDS's, of the names of shards


def write_part(
    config: Config,
    target: pathlib.Path,
    source: Source,
    part: Part,
    vocab: Vocabulary,
    repeats: np.ndarray | None = None,
    bar: bool = False,
) -> dict[str, Any]:
  """Writes the shards of a part.

  Args:
    config: of the dataset.
    target: the folder.
    source: of its text.
    part: see parts.py.
    vocab: makes the tokens.
    repeats: bool [examples], those to leave out because their text occurred before; None: none.
    bar: whether to show a progress bar.

  Returns:
    The manifest's entry for the part, for JSON.
  """
  count = examples.new_count()
  items = part['stop'] - part['start']
  size = source.num_bytes * items / max(1, source.num_items)
  writers = {}
  for split, file in part['files'].items():
    writers[split] = Shard(target / file, dtype(vocab))
  read = examples.examples(config, source, part, count)
  shown = _with_bar(read, size, bar)
  distinct = _without_repeats(shown, repeats, count)
  for batch in _batches(distinct):
    pieces = _pieces(config, part, batch)
    texts_of_batch = _all_texts(pieces)
    encoded = iter(vocab.encode_batch(texts_of_batch))
    for split, texts, name in pieces:
      ids = [_with_end(config, vocab, next(encoded)) for _ in texts]
      ids = _limited(config, ids, name, count)
      if ids:
        writers[split].add(ids, _num_bytes(texts), name)
  marks = {}
  for split, writer in writers.items():
    marks[split] = writer.close()
  return dict(count, shards=marks)


def _pieces(
    config: Config,
    part: Part,
    batch: Iterable[Example],
) -> list[Piece]:
  """(split, texts, id) of the pieces of examples."""
  held = examples.held_by(part)
  pieces = []
  for texts, name in batch:
    for split, piece in examples.split_example(texts, part['source'], config, held):
      pieces.append((split, piece, name))
  return pieces


def _all_texts(pieces: Iterable[Piece]) -> Iterator[str]:
  for _, texts, _ in pieces:
    yield from texts


def _num_bytes(texts: Texts) -> int:
  return sum(len(text.encode()) for text in texts)


def _with_end(config: Config, vocab: Vocabulary, ids: np.ndarray) -> np.ndarray:
  if not config.data.append_eos or vocab.eos_id is None:
    return ids
  end = np.int32(vocab.eos_id)
  return np.append(ids, end)


def _without_repeats(
    read: Iterable[Example],
    repeats: np.ndarray | None,
    count: Count,
) -> Iterator[Example]:
  if repeats is None:
    yield from read
    return
  for example, is_repeated in zip(read, repeats.tolist()):
    if is_repeated:
      count['repeated'] += 1
    else:
      yield example


def _limited(config: Config, ids: Arrays, name: str, count: Count) -> Arrays:
  """Ids of the texts of an example within data.max_document_tokens; [] for one to leave out."""
  too_long = OVERLONG[config.data.overlong]
  most = config.data.max_document_tokens
  longest = max(map(len, ids))
  if not most or longest <= most:
    return ids
  limited = too_long(config.data, ids, name)
  count['overlong'] += 1
  return limited


def _truncate(data: Config, ids: Arrays, name: str) -> Arrays:
  return [_truncate_text(data, text_ids) for text_ids in ids]


def _truncate_text(data: Config, ids: np.ndarray) -> np.ndarray:
  most = data.max_document_tokens
  if len(ids) <= most:
    return ids
  if data.append_eos:  # a text that was cut still ends
    return np.append(ids[:most - 1], ids[-1:])
  return ids[:most]


def _drop_overlong(data: Config, ids: Arrays, name: str) -> Arrays:
  return []


def _refuse_overlong(data: Config, ids: Arrays, name: str) -> Arrays:
  longest = max(map(len, ids))
  raise DataError(
      f'{name} has {longest:,} tokens, above data.max_document_tokens={data.max_document_tokens:,}. Raise that, or set '
      "data.overlong to 'truncate' or 'drop'.")


# Ids of an example with a text above data.max_document_tokens: (config.data; ids of its texts; its name).
Overlong = Callable[[Config, Arrays, str], Arrays]
OVERLONG: Mapping[str, Overlong] = choices.implement('data.overlong', choices.OVERLONG, dict(
    truncate=_truncate,
    drop=_drop_overlong,
    error=_refuse_overlong,
))


def _batches(read: Iterable[Example]) -> Iterator[list[Example]]:
  """Lists of examples of BATCH characters or a little more; the last one may be shorter, or empty."""
  batch = []
  size = 0
  for example in read:
    batch.append(example)
    size += _num_characters(example)
    if size >= BATCH:
      yield batch
      batch = []
      size = 0
  yield batch


def _num_characters(example: Example) -> int:
  texts, _ = example
  return sum(map(len, texts))


def _with_bar(read: Iterable[Example], size: float, is_wanted: bool) -> Iterator[Example]:
  """Passes examples on, with a progress bar if a person is watching; size: characters of all of them, an estimate."""
  if not is_wanted or not sys.stdout.isatty():
    yield from read
    return
  import rich.progress
  with rich.progress.Progress(transient=True) as progress:
    task = progress.add_task('tokens', total=size)
    for example in read:
      yield example
      progress.advance(task, _num_characters(example))


def dtype(vocab: Vocabulary) -> str:
  """Returns the name of the NumPy type that holds the ids of a vocabulary."""
  if vocab.size <= 1 << 16:
    return 'uint16'
  return 'int32'


# --- Files ------------------------------------------------------------------------------------------


class Shard:
  """One array_record file, and the lengths and names of its examples, under other names until `close`."""

  def __init__(self, path: pathlib.Path, dtype: str):
    """`path`: of the file; `dtype`: of the tokens, 'uint16' or 'int32'."""
    from array_record.python import array_record_module  # pyright: ignore[reportAttributeAccessIssue]
    self.path = path
    self.temporary = f'{path}.tmp'
    self.dtype = dtype
    # Uncompressed: reading a record takes 6 us instead of 13, in 2.1 bytes per token, not 1.5.
    self.writer: Any = array_record_module.ArrayRecordWriter(self.temporary, 'group_size:1,uncompressed')
    self.waiting: list[np.ndarray] = []  # tokens that are not written yet
    self.num_waiting = 0
    self.lengths: list[list[int]] = []
    self.names: list[str] = []
    self.mark: dict[str, Any] = dict(
        documents=0,
        tokens=0,
        bytes=0,
        blocks=0,
        max_id=-1,
    )

  def add(self, texts: Sequence[np.ndarray], num_bytes: int, name: str) -> None:
    """Appends an example.

    Args:
      texts: int32 [n] each.
      num_bytes: of the text that the tokens were made of.
      name: id of the example.
    """
    lengths = [len(ids) for ids in texts]
    self.names.append(name.replace('\n', ' '))
    self.lengths.append(lengths)
    self.waiting += texts
    self.num_waiting += sum(lengths)
    self.mark['documents'] += 1
    self.mark['bytes'] += num_bytes
    if self.num_waiting >= BUFFERED:
      rest = self.num_waiting % BLOCK
      self._write(self.num_waiting - rest)

  def _write(self, stop: int) -> None:
    """Writes the first `stop` tokens that wait."""
    tokens = np.concatenate(self.waiting)
    with _system_errors():
      for start in range(0, stop, BLOCK):
        end = min(start + BLOCK, stop)
        record = _record(tokens[start:end], self.dtype)
        self.writer.write(record)
        self.mark['blocks'] += 1
    self.mark['tokens'] += stop
    largest = int(tokens.max())
    self.mark['max_id'] = max(self.mark['max_id'], largest)
    rest = tokens[stop:]
    self.waiting = [rest]
    self.num_waiting = len(rest)

  def close(self) -> dict[str, Any]:
    """Finishes the file; returns a dict for JSON that describes it."""
    if self.num_waiting:
      self._write(self.num_waiting)
    with _system_errors():
      self.writer.close()
    with open(self.temporary, 'rb') as file:
      os.fsync(file.fileno())
    os.replace(self.temporary, self.path)
    # Little-endian int32 [examples, texts]: tokens of each text, its end included.
    lengths = np.array(self.lengths, '<i4').tobytes()
    # Names of the examples, a line each. No time of day inside, so the same bytes every time.
    lines = '\n'.join(self.names)
    compressor = zstandard.ZstdCompressor()
    names = compressor.compress(lines.encode())
    return dict(
        self.mark,
        **_file_mark(self.path),
        lengths=_beside(self.path, 'lengths-', 'bin', lengths),
        names=_beside(self.path, 'names-', 'zst', names),
    )


@contextlib.contextmanager
def _system_errors() -> Iterator[None]:
  """Turns array_record's errors for a disk that is full or cannot be written to into OSError."""
  try:
    yield
  except RuntimeError as error:
    raise OSError(f'{str(error)[:300]}') from error


def _beside(
    path: pathlib.Path,
    start: str,
    ending: str,
    content: bytes,
) -> dict[str, Any]:
  """Writes 'lengths-train-00000-of-00002.bin' beside 'tokens-train.array_record-00000-of-00002'; its mark."""
  name = path.name.replace('tokens-', start)
  name = name.replace('.array_record-', '-')
  file = path.with_name(f'{name}.{ending}')
  write_file(file, content)
  return _file_mark(file)


def _file_mark(path: pathlib.Path) -> dict[str, Any]:
  return dict(
      file=path.name,
      size=path.stat().st_size,
      sha256=file_sha256(path),
  )


def _record(tokens: np.ndarray, dtype: str) -> bytes:
  """Returns the bytes of a tf.train.Example: up to BLOCK tokens, padded with 0, and how many."""
  from tensorflow_datasets.proto import tf_example_pb2
  proto: Any = tf_example_pb2
  padding = BLOCK - len(tokens)
  padded = np.pad(tokens.astype(dtype), (0, padding))
  payload = padded.tobytes()
  example = proto.Example()
  features = example.features.feature
  features['n'].int64_list.value.append(len(tokens))
  features['tokens'].bytes_list.value.append(payload)
  # Without deterministic=True the order of the two features differs from process to process (and
  # TFDS's own serializer does without). Sorted by name, the tokens come last.
  record = example.SerializeToString(deterministic=True)
  assert record.endswith(payload)
  return record


def write_tfds_metadata(folder: pathlib.Path, manifest: Mapping[str, Any]) -> None:
  """Makes `tfds.builder_from_directory(folder).as_data_source('train')` work."""
  import tensorflow_datasets as tfds
  library: Any = tfds
  infos = []
  for name, split in manifest['splits'].items():
    info = _split_info(library, folder, name, split['shards'])
    infos.append(info)
  block_dtype = np.dtype(manifest['dtype']).type
  tokens = library.features.Tensor(
      shape=(manifest['block'],),
      dtype=block_dtype,
      encoding='bytes',
  )
  number = library.features.Scalar(np.int32)
  features = library.features.FeaturesDict(dict(tokens=tokens, n=number))
  library.folder_dataset.write_metadata(
      data_dir=folder,
      features=features,
      split_infos=infos,
      filename_template=TEMPLATE,
      check_data=False,
  )


def _split_info(
    library: Any,
    folder: pathlib.Path,
    name: str,
    shards: Sequence[Mapping[str, Any]],
) -> Any:
  """TFDS's SplitInfo of a split; library: tensorflow_datasets; shards: of the manifest."""
  template = library.core.ShardedFileTemplate(
      data_dir=folder,
      dataset_name='tokens',
      split=name,
      filetype_suffix='array_record',
      template=TEMPLATE,
  )
  lengths = [shard['blocks'] for shard in shards]
  num_bytes = sum(shard['size'] for shard in shards)
  return library.core.SplitInfo(
      name=name,
      shard_lengths=lengths,
      num_bytes=num_bytes,
      filename_template=template,
  )


def sha256(content: bytes) -> str:
  """Returns the sha256 of bytes, in hex."""
  return hashlib.sha256(content).hexdigest()


def file_sha256(path: str | os.PathLike[str]) -> str:
  """Returns the sha256 of a file, in hex."""
  with open(path, 'rb') as file:
    return hashlib.file_digest(file, 'sha256').hexdigest()
