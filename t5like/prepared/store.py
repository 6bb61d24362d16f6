"""The prepared dataset on disk: checks that it is complete, and reads any window of tokens.

`prepare` cuts the tokens of each shard into blocks of `manifest['block']` tokens, one record each,
all full but the last. A record is a tf.train.Example that TFDS can read; the tokens are its last
bytes (see shards.py), so that reading one is a slice and costs no parsing.
"""

import bisect
import functools
import hashlib
import os
import pathlib
import types
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from t5like.errors import DataError
from t5like.prepared import manifests
from t5like.vocabulary import loading
from t5like.vocabulary.kinds import Vocabulary

NAMES = 1 << 30  # most bytes of the names of the documents of a shard
SUMS = ('documents', 'tokens', 'bytes')  # of a split

Document = tuple[str, int, int]  # id, first token, number of tokens
ShardEntry = dict[str, Any]  # of a manifest


def open_store(folder: str | os.PathLike[str]) -> 'Store':
  """Returns the Store in a folder; DataError when anything is missing."""
  return Store(pathlib.Path(folder), manifests.read(folder))


class Store:
  """A prepared dataset.

  Attributes:
    folder: of its files.
    manifest: the content of manifest.json.
    splits: names, such as ['train', 'validation'].
    fingerprint: sha256 of tokens and vocabulary.
    vocabulary: the Vocabulary that made the tokens.
  """

  def __init__(self, folder: pathlib.Path, manifest: manifests.Manifest):
    """`manifest`: of the folder, see manifests.py."""
    self.folder = folder
    self.manifest = manifest
    self.fingerprint: str = manifest['fingerprint']
    self.splits: list[str] = list(manifest['splits'])

  @functools.cached_property
  def vocabulary(self) -> Vocabulary:
    """DataError when it is damaged, or another one."""
    entry = self.manifest['vocabulary']
    path = self.folder / entry['file']
    spec = types.SimpleNamespace(name=entry['name'], sentinels=entry['num_sentinels'])
    loaded = loading.load(spec, path)
    if loaded.fingerprint != entry['fingerprint']:
      raise DataError(
          f'{path} is not the vocabulary that made the tokens beside it: delete the folder and run prepare again.')
    return loaded

  def __getstate__(self) -> dict[str, Any]:
    return _without(self.__dict__, 'vocabulary')

  def windows(
      self,
      split: str,
      length: int,
      stride: int | None = None,
      tail: bool = False,
  ) -> 'Windows':
    """Returns the windows of tokens of a split. Windows do not cross shards.

    Args:
      split: one of `splits`.
      length: tokens of a window.
      stride: tokens from the start of a window to that of the next; None: `length`.
      tail: tokens after a shard's last window make one more, padded with -1, if it has a token that no window
        before it has (and that is not only a target: `length - stride` tokens are shared by neighbours).

    Raises:
      DataError: the split is unknown, or too small for a window.
    """
    tokens = self.tokens(split)
    windows = Windows(tokens, length, stride or length, tail)
    if not len(windows):
      raise DataError(self._too_small(split, tokens.sizes, length))
    return windows

  def _too_small(self, split: str, sizes: Sequence[int], length: int) -> str:
    numbers = [str(size) for size in sizes]
    listed = ' + '.join(numbers)
    fix = 'lower data.shards'
    if split == 'validation':
      fix = 'raise data.validation_fraction'
    return (f'The split {split!r} of {self.folder} has {listed} tokens: not one window of {length}. Lower '
            f'data.seq_len, give more text, or {fix}.')

  def examples(self, split: str) -> 'Examples':
    """Returns the Examples of a split; DataError for an unknown one, or lengths that are damaged."""
    files = []
    counts = []
    for shard in self._shards(split):
      entry = shard['lengths']
      path = str(self.folder / entry['file'])
      files.append((path, entry['sha256']))
      counts.append(shard['documents'])
    tokens = self.tokens(split)
    return Examples(tokens, files, counts, self.manifest['texts'])

  def names(self, split: str, start: int, size: int) -> list[Document]:
    """The documents that hold tokens start ..< start + size of a split, all its shards counted through.

    The tokens must lie in one shard. The numbers of a Document are tokens of the document.
    """
    tokens = self.tokens(split)
    number = bisect.bisect_right(tokens.bases, start) - 1
    shard = self._shards(split)[number]
    start -= tokens.bases[number]
    stop = start + size
    ends = self._ends(shard)
    names = self._names(shard)
    first_document = np.searchsorted(ends, start, 'right')
    last_document = np.searchsorted(ends, stop, 'left')
    documents = []
    for i in range(first_document, last_document + 1):
      document_start = 0
      if i > 0:
        document_start = int(ends[i - 1])
      document_end = int(ends[i])
      first = max(start, document_start)
      last = min(stop, document_end)
      document = (names[i], first - document_start, last - first)
      documents.append(document)
    return documents

  def _ends(self, shard: ShardEntry) -> np.ndarray:
    """Tokens of a shard up to the end of each of its documents: int64 [n]."""
    entry = shard['lengths']
    path = self.folder / entry['file']
    lengths = _read_lengths(path, entry['sha256'], self.manifest['texts'])
    of_documents = lengths.sum(1, dtype=np.int64)
    return np.cumsum(of_documents)

  def _names(self, shard: ShardEntry) -> list[str]:
    """Ids of the documents of a shard."""
    import zstandard
    path = self.folder / shard['names']['file']
    content = path.read_bytes()
    try:
      if zstandard.frame_content_size(content) > NAMES:  # zstandard allocates that size immediately
        raise ValueError(f'it holds more than {NAMES:,} bytes')
      decompressor = zstandard.ZstdDecompressor()
      names = decompressor.decompress(content, max_output_size=NAMES)
      return names.decode().split('\n')
    except (zstandard.ZstdError, ValueError) as error:
      raise DataError(f'{path} is damaged ({error}): delete it and run prepare again, the others are kept.') from error

  def of(self, component: Any) -> 'Store':
    """The Store of a component of the config (`lengths.components`): this one."""
    return self

  def _shards(self, split: str) -> list[ShardEntry]:
    splits = self.manifest['splits']
    if split not in splits:
      raise DataError(f'{self.folder} has no split {split!r}; it has {", ".join(self.splits)}.')
    return splits[split]['shards']

  def tokens(self, split: str) -> 'Tokens':
    """Returns the Tokens of a split; DataError for an unknown one."""
    paths = []
    sizes = []
    for shard in self._shards(split):
      path = self.folder / shard['file']
      paths.append(str(path))
      sizes.append(shard['tokens'])
    manifest = self.manifest
    return Tokens(paths, sizes, manifest['block'], manifest['dtype'])


class Stores:
  """The prepared datasets of a mixture, with one vocabulary; attributes as of Store, for all of them together.

  The manifest has only the sums: ['splits'][split]['documents'], ['tokens'] and ['bytes'].
  """

  def __init__(self, stores: Mapping[str, Store]):
    """`stores`: {component name: Store}. DataError when their vocabularies differ."""
    self._stores = stores
    by_folder = {str(store.folder): store for store in stores.values()}
    distinct = list(by_folder.values())
    self.folder = ', '.join(by_folder)
    self._check_vocabularies(distinct)
    self.vocabulary = distinct[0].vocabulary
    fingerprints = [store.fingerprint for store in distinct]
    joined = ' '.join(fingerprints)
    self.fingerprint = hashlib.sha256(joined.encode()).hexdigest()
    splits = _sums(distinct)
    self.splits = list(splits)
    self.manifest = dict(splits=splits)

  def _check_vocabularies(self, stores: Iterable[Store]) -> None:
    fingerprints = set()
    for store in stores:
      entry = store.manifest['vocabulary']
      fingerprints.add(entry['fingerprint'])
    if len(fingerprints) > 1:
      raise DataError(
          'The datasets of data.mixture were made with different vocabularies: delete the folders '
          f'{self.folder} and run prepare again.')

  def of(self, component: Any) -> Store:
    """The Store of a component of the config (`lengths.components`)."""
    return self._stores[component.name]


def _sums(stores: Iterable[Store]) -> dict[str, dict[str, int]]:
  """{split: {one of SUMS: sum over the stores that have the split}}."""
  splits: dict[str, dict[str, int]] = {}
  for store in stores:
    for name, split in store.manifest['splits'].items():
      zeros: dict[str, int] = dict.fromkeys(SUMS, 0)
      total = splits.setdefault(name, zeros)
      for key in SUMS:
        total[key] += split[key]
  return splits


def _without(attributes: Mapping[str, Any], *names: str) -> dict[str, Any]:
  """The attributes of an object to pickle: all but `names`."""
  kept = {}
  for name, value in attributes.items():
    if name not in names:
      kept[name] = value
  return kept


class Tokens:
  """Random access to the tokens of shards. Thread-safe, pickles small.

  Attributes:
    sizes: number of tokens of each shard.
    bases: tokens before each shard, and of all.
  """

  def __init__(
      self,
      paths: Sequence[str],
      sizes: Sequence[int],
      block: int,
      dtype: str,
  ):
    """`paths`: of the shards; `block`: tokens of a record; `dtype`: of the tokens, 'uint16' or 'int32'."""
    self.sizes = sizes
    self.bases: list[int] = np.cumsum([0, *sizes]).tolist()
    self._paths = paths
    self._stamps = [pathlib.Path(path).stat().st_mtime_ns for path in paths]
    self._block = block
    self._dtype = np.dtype(dtype).newbyteorder('<')

  def read(
      self,
      shard: int,
      start: int,
      stop: int,
      out: np.ndarray,
  ) -> None:
    """Fills out[:stop - start] (int32) with tokens of a shard; DataError for a damaged record."""
    position = start
    while position < stop:
      record, offset = divmod(position, self._block)
      left = stop - position
      tokens = self._record(shard, record)
      tokens = tokens[offset:offset + left]
      place = position - start
      out[place:place + len(tokens)] = tokens
      position += len(tokens)

  def span(self, start: int, size: int) -> np.ndarray:
    """Tokens start ..< start + size of one shard, all shards counted through: int32 [size]."""
    shard = bisect.bisect_right(self.bases, start) - 1
    first = start - self.bases[shard]
    out = np.empty(size, np.int32)
    self.read(shard, first, first + size, out)
    return out

  def _record(self, shard: int, record: int) -> np.ndarray:
    """The tokens of a record, without padding."""
    path = self._paths[shard]
    size = self._block * self._dtype.itemsize
    try:
      reader = _reader(path, self._stamps[shard])
      content = reader.read([record])[0]
      start = len(content) - size
      return np.frombuffer(content, self._dtype, self._block, start)
    except (RuntimeError, ValueError, IndexError) as error:
      message = str(error)[:200]
      raise DataError(
          f'Record {record} of {path} is damaged ({message}): delete this shard and run prepare again, the others are '
          'kept.') from error


class Windows:
  """Random access to windows of tokens: w[i] is int32 [length]. Thread-safe, pickles small."""

  def __init__(
      self,
      tokens: Tokens,
      length: int,
      stride: int,
      tail: bool,
  ):
    """`tokens`: of a split; the others as of `Store.windows`."""
    self._tokens = tokens
    self._length = length
    self._stride = stride
    counts = [self._count(size, tail) for size in tokens.sizes]
    self._ends: list[int] = np.cumsum(counts).tolist()

  def _count(self, tokens: int, tail: bool) -> int:
    """The number of windows in a shard of this many tokens."""
    after_first = (tokens - self._length) // self._stride
    full = max(0, after_first + 1)
    rest = tokens - full * self._stride
    shared = max(0, self._length - self._stride)
    if tail and rest > shared:
      return full + 1
    return full

  def __len__(self) -> int:
    return self._ends[-1]

  def __getitem__(self, i: int) -> np.ndarray:
    """Returns int32 [length]; DataError for a damaged record."""
    shard, start, stop = self._place(i)
    window = np.full(self._length, -1, np.int32)
    self._tokens.read(shard, start, stop, window)
    return window

  def span(self, i: int) -> tuple[int, int]:
    """(start, size) of window i: tokens of the split, all its shards counted through."""
    shard, start, stop = self._place(i)
    base = self._tokens.bases[shard]
    return base + start, stop - start

  def _place(self, i: int) -> tuple[int, int, int]:
    """(shard, start, stop) of window i, tokens of the shard."""
    count = self._ends[-1]
    if not 0 <= i < count:
      raise IndexError(f'window {i} of {count}')
    shard = bisect.bisect_right(self._ends, i)
    number = int(i)  # in the shard
    if shard > 0:
      number -= self._ends[shard - 1]
    start = number * self._stride
    stop = min(start + self._length, self._tokens.sizes[shard])
    return shard, start, stop

  def _getitems(self, indices: Iterable[int]) -> list[np.ndarray]:
    """Returns a list of int32 [length]. Grain reads whole batches by this name."""
    # One record at a time: in array_record 0.8.6, reading 20 of them in one call takes up to 5
    # times as long per record (6 us against 5 to 30, local disk).
    return [self[i] for i in indices]


class Examples:
  """Random access to whole examples: e[i] is a tuple of int32 arrays, one per text, ends included.

  Thread-safe; pickles small, without its lengths.
  """

  def __init__(
      self,
      tokens: Tokens,
      files: Sequence[tuple[str, str]],
      counts: Sequence[int],
      texts: int,
  ):
    """Reads the lengths of all examples.

    Args:
      tokens: of a split.
      files: of each shard, the file of its lengths and that file's sha256.
      counts: of each shard, its number of examples.
      texts: in an example.

    Raises:
      DataError: a file is damaged.
    """
    self._tokens = tokens
    self._files = files
    self._texts = texts
    self._ends: list[int] = np.cumsum(counts).tolist()
    self.starts  # noqa: B018  read now, so that damage is found before training

  @functools.cached_property
  def lengths(self) -> np.ndarray:
    """Tokens of each text of each example: int32 [n, texts]."""
    shards = [_read_lengths(path, sha256, self._texts) for path, sha256 in self._files]
    return np.concatenate(shards)

  @functools.cached_property
  def starts(self) -> np.ndarray:
    """Tokens of the split before each example, and before the end: int64 [n + 1]."""
    sizes = self.lengths.sum(1, dtype=np.int64)
    ends = np.cumsum(sizes)
    return np.concatenate([[0], ends])

  def __getstate__(self) -> dict[str, Any]:
    return _without(self.__dict__, 'lengths', 'starts')

  def __len__(self) -> int:
    return self._ends[-1]

  def __getitem__(self, i: int) -> tuple[np.ndarray, ...]:
    """Returns a tuple of int32 [m]; DataError for a damaged record."""
    start, stop = self._span(i)
    tokens = self.read(i, 0, stop - start)
    ends = np.cumsum(self.lengths[i])
    texts = np.split(tokens, ends[:-1])
    return tuple(texts)

  def read(self, i: int, start: int, stop: int) -> np.ndarray:
    """Tokens start ..< stop of example i, all its texts joined: int32 [stop - start]."""
    example_start, example_stop = self._span(i)
    length = example_stop - example_start
    if not 0 <= start <= stop <= length:
      raise IndexError(f'tokens {start} to {stop} of {length} in example {i}')
    size = stop - start
    return self._tokens.span(example_start + start, size)

  def _span(self, i: int) -> tuple[int, int]:
    """Tokens of the split before and up to the end of example i."""
    count = self._ends[-1]
    if not 0 <= i < count:
      raise IndexError(f'example {i} of {count}')
    start = int(self.starts[i])
    stop = int(self.starts[i + 1])
    return start, stop


def _read_lengths(
    path: str | os.PathLike[str],
    sha256: str,
    texts: int,
) -> np.ndarray:
  """Tokens of each text of the examples of a shard: int32 [n, texts]."""
  content = pathlib.Path(path).read_bytes()
  digest = hashlib.sha256(content).hexdigest()
  if digest != sha256:
    raise DataError(f'{path} is damaged: delete it and run prepare again, the others are kept.')
  lengths = np.frombuffer(content, '<i4').astype(np.int32)
  return lengths.reshape(-1, texts)


@functools.lru_cache(128)
def _reader(path: str, stamp: int) -> Any:
  """array_record's reader of a file; `stamp`: a file that was made again needs a new reader."""
  from array_record.python import array_record_module  # pyright: ignore[reportAttributeAccessIssue]
  return array_record_module.ArrayRecordReader(path, 'readahead_buffer_size:0,max_parallelism:0')
