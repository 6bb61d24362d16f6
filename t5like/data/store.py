"""The prepared dataset on disk: checks that it is whole, and reads any window of tokens.

`prepare` cuts the tokens of each shard into blocks of `manifest['block']` tokens, one record each,
all full but the last. A record is a tf.train.Example that TFDS can read; the tokens are its last
bytes (see shards.py), so that reading one is a slice and costs no parsing.
"""

import bisect
import functools
import hashlib
import pathlib
import types

import numpy as np

from t5like.data import manifests, vocabulary
from t5like.errors import DataError

NAMES = 1 << 30  # most bytes of the names of the documents of a shard


def open_store(folder):
  """Returns the Store in `folder` (str or path); DataError when anything is missing."""
  return Store(pathlib.Path(folder), manifests.read(folder))


class Store:
  """A prepared dataset.

  manifest: the content of manifest.json        splits: names, such as ['train', 'validation']
  fingerprint: sha256 of tokens and vocabulary  vocabulary: the Vocabulary that made the tokens
  """

  def __init__(self, folder, manifest):
    self.folder, self.manifest = folder, manifest
    self.fingerprint = manifest['fingerprint']
    self.splits = list(manifest['splits'])

  @functools.cached_property
  def vocabulary(self):
    made = self.manifest['vocabulary']
    spec = types.SimpleNamespace(name=made['name'], sentinels=made['num_sentinels'])
    loaded = vocabulary.load(spec, self.folder / made['file'])
    if loaded.fingerprint != made['fingerprint']:
      raise DataError(f'{self.folder / made["file"]} is not the vocabulary that made the tokens '
                      'beside it: delete the folder and run prepare again.')
    return loaded

  def __getstate__(self):
    return {k: v for k, v in self.__dict__.items() if k != 'vocabulary'}

  def windows(self, split, length, stride=None, tail=False):
    """Returns the Windows of `length` tokens, `stride` (default: `length`) apart, of a split.

    Windows do not cross shards. With `tail`, tokens after a shard's last window make one more, if
    it has a token that no window before it has (and that is not only a target: `length - stride`
    tokens are shared by neighbours), padded with -1. DataError for an unknown split, or one too
    small for a window.
    """
    tokens = self.tokens(split)
    windows = Windows(tokens, length, stride or length, tail)
    if not len(windows):
      sizes = ' + '.join(map(str, tokens.sizes))
      raise DataError(f'The split {split!r} of {self.folder} has {sizes} tokens: not one window of '
                      f'{length}. Lower data.seq_len, give more text, or '
                      + ('raise data.validation_fraction.' if split == 'validation' else
                         'lower data.shards.'))
    return windows

  def examples(self, split):
    """Returns the Examples of a split; DataError for an unknown one, or lengths that are damaged."""
    shards = self._shards(split)
    files = [(str(self.folder / shard['lengths']['file']), shard['lengths']['sha256']) for shard in shards]
    return Examples(self.tokens(split), files, [shard['documents'] for shard in shards], self.manifest['texts'])

  def names(self, split, start, size):
    """[(id, first, count)] of the documents that hold tokens start ..< start + size of a split.

    All shards are counted through; `first` and `count` are tokens of the document.
    """
    import zstandard
    shards, tokens = self._shards(split), self.tokens(split)
    number = bisect.bisect_right(tokens.bases, start) - 1
    shard, start = shards[number], start - tokens.bases[number]
    path = self.folder / shard['lengths']['file']
    ends = np.cumsum(_read_lengths(path, shard['lengths']['sha256'], self.manifest['texts']).sum(1, dtype=np.int64))
    content = (self.folder / shard['names']['file']).read_bytes()
    try:
      if zstandard.frame_content_size(content) > NAMES:  # what it says is allocated at once
        raise ValueError(f'it holds more than {NAMES:,} bytes')
      names = zstandard.ZstdDecompressor().decompress(content, max_output_size=NAMES).decode().split('\n')
    except (zstandard.ZstdError, ValueError) as error:
      raise DataError(f'{self.folder / shard["names"]["file"]} is damaged ({error}): delete it and run prepare again, '
                      'the others are kept.') from error
    found = []
    for i in range(np.searchsorted(ends, start, 'right'), np.searchsorted(ends, start + size, 'left') + 1):
      begin = int(ends[i - 1]) if i else 0
      first = max(start, begin)
      found.append((names[i], first - begin, min(start + size, int(ends[i])) - first))
    return found

  def of(self, component):
    """The Store of a component of the config (`lengths.components`), which here is this one."""
    return self

  def _shards(self, split):
    if split not in self.manifest['splits']:
      raise DataError(f'{self.folder} has no split {split!r}; it has {", ".join(self.splits)}.')
    return self.manifest['splits'][split]['shards']

  def tokens(self, split):
    """Returns the Tokens of a split; DataError for an unknown one."""
    shards = self._shards(split)
    return Tokens([str(self.folder / shard['file']) for shard in shards], [shard['tokens'] for shard in shards],
                  self.manifest['block'], self.manifest['dtype'])


class Stores:
  """The prepared datasets of a mixture, with one vocabulary; what holds of all of them, as in Store.

  The manifest has only the sums: ['splits'][split]['documents'], ['tokens'] and ['bytes'].
  """

  def __init__(self, stores):
    """`stores`: {component name: Store}. DataError when their vocabularies differ."""
    self._stores = stores
    distinct = list({str(store.folder): store for store in stores.values()}.values())
    if len({store.manifest['vocabulary']['fingerprint'] for store in distinct}) > 1:
      raise DataError('The datasets of data.mixture were made with different vocabularies: delete the folders '
                      f'{", ".join(str(store.folder) for store in distinct)} and run prepare again.')
    self.vocabulary = distinct[0].vocabulary
    self.folder = ', '.join(str(store.folder) for store in distinct)
    self.fingerprint = hashlib.sha256(' '.join(store.fingerprint for store in distinct).encode()).hexdigest()
    self.splits = list(dict.fromkeys(split for store in distinct for split in store.splits))
    held = {name: [store.manifest['splits'][name] for store in distinct if name in store.splits]
            for name in self.splits}
    self.manifest = dict(splits={
        name: {key: sum(split[key] for split in splits) for key in ('documents', 'tokens', 'bytes')}
        for name, splits in held.items()})

  def of(self, component):
    """The Store of a component of the config (`lengths.components`)."""
    return self._stores[component.name]


class Tokens:
  """Random access to the tokens of shards. Thread-safe, pickles small."""

  def __init__(self, paths, tokens, block, dtype):
    """`paths`, `tokens`: file and number of tokens of each shard."""
    self._paths, self.sizes = paths, tokens
    self.bases = np.cumsum([0, *tokens]).tolist()  # tokens before each shard
    self._stamps = [pathlib.Path(path).stat().st_mtime_ns for path in paths]
    self._block, self._dtype = block, np.dtype(dtype).newbyteorder('<')

  def read(self, shard, start, stop, out):
    """Fills out[:stop - start] (int32) with tokens of a shard; DataError for a damaged record."""
    done = start
    while done < stop:
      record, offset = divmod(done, self._block)
      tokens = self._record(shard, record)[offset:offset + stop - done]
      out[done - start:done - start + len(tokens)] = tokens
      done += len(tokens)

  def span(self, start, size):
    """Tokens start ..< start + size of one shard, all shards counted through: int32 [size]."""
    shard, out = bisect.bisect_right(self.bases, start) - 1, np.empty(size, np.int32)
    self.read(shard, start - self.bases[shard], start - self.bases[shard] + size, out)
    return out

  def _record(self, shard, record):
    path = self._paths[shard]
    try:
      content = _reader(path, self._stamps[shard]).read([record])[0]
      size = self._block * self._dtype.itemsize
      return np.frombuffer(content, self._dtype, self._block, len(content) - size)
    except (RuntimeError, ValueError, IndexError) as error:
      raise DataError(f'Record {record} of {path} is damaged ({str(error)[:200]}): delete this '
                      'shard and run prepare again, the others are kept.') from error


class Windows:
  """Random access to windows of tokens: w[i] is int32 [length]. Thread-safe, pickles small."""

  def __init__(self, tokens, length, stride, tail):
    """`tokens`: of a split (Tokens)."""
    self._tokens, self._length, self._stride = tokens, length, stride
    self._ends = np.cumsum([self._count(n, tail) for n in tokens.sizes]).tolist()

  def _count(self, tokens, tail):
    full = max(0, (tokens - self._length) // self._stride + 1)
    left = tokens - full * self._stride
    return full + (tail and left > max(0, self._length - self._stride))

  def __len__(self):
    return self._ends[-1]

  def __getitem__(self, i):
    """Returns int32 [length]; DataError for a damaged record."""
    shard, start, stop = self._place(i)
    window = np.full(self._length, -1, np.int32)
    self._tokens.read(shard, start, stop, window)
    return window

  def span(self, i):
    """(start, size) of window i: tokens of the split, all its shards counted through."""
    shard, start, stop = self._place(i)
    return self._tokens.bases[shard] + start, stop - start

  def _place(self, i):
    if not 0 <= i < self._ends[-1]:
      raise IndexError(f'window {i} of {self._ends[-1]}')
    shard = bisect.bisect_right(self._ends, i)
    start = (int(i) - (self._ends[shard - 1] if shard else 0)) * self._stride
    return shard, start, min(start + self._length, self._tokens.sizes[shard])

  def _getitems(self, indices):
    """Returns a list of int32 [length]. Grain asks for whole batches by this name."""
    # One record at a time: in array_record 0.8.6, reading 20 of them in one call takes up to 5
    # times as long per record (6 us against 5 to 30, local disk).
    return [self[i] for i in indices]


class Examples:
  """Random access to whole examples: e[i] is a tuple of int32 arrays, one per text, ends included.

  lengths: int32 [n, texts], their numbers of tokens. Thread-safe; pickles small, without its lengths.
  """

  def __init__(self, tokens, files, counts, texts):
    """`tokens`: of a split (Tokens); `files`, `counts`: of each shard, the file of its lengths with that file's
    sha256, and its number of examples; `texts`: in an example. DataError for a file that is damaged.
    """
    self._tokens, self._files, self._texts = tokens, files, texts
    self._ends = np.cumsum(counts).tolist()
    self.starts  # noqa: B018  read now, so that damage is found before training

  @functools.cached_property
  def lengths(self):
    return np.concatenate([_read_lengths(path, sha256, self._texts) for path, sha256 in self._files])

  @functools.cached_property
  def starts(self):
    """Tokens of the split before each example, and before the end: int64 [n + 1]."""
    return np.concatenate([[0], np.cumsum(self.lengths.sum(1, dtype=np.int64))])

  def __getstate__(self):
    return {k: v for k, v in self.__dict__.items() if k not in ('lengths', 'starts')}

  def __len__(self):
    return self._ends[-1]

  def __getitem__(self, i):
    """Returns a tuple of int32 [m]; DataError for a damaged record."""
    first, last = self._span(i)
    return tuple(np.split(self.read(i, 0, last - first), np.cumsum(self.lengths[i])[:-1]))

  def read(self, i, start, stop):
    """Tokens start ..< stop of example i, all its texts joined: int32 [stop - start]."""
    first, last = self._span(i)
    if not 0 <= start <= stop <= last - first:
      raise IndexError(f'tokens {start} to {stop} of {last - first} in example {i}')
    return self._tokens.span(first + start, stop - start)

  def _span(self, i):
    if not 0 <= i < self._ends[-1]:
      raise IndexError(f'example {i} of {self._ends[-1]}')
    return int(self.starts[i]), int(self.starts[i + 1])


def _read_lengths(path, sha256, texts):
  content = pathlib.Path(path).read_bytes()
  if hashlib.sha256(content).hexdigest() != sha256:
    raise DataError(f'{path} is damaged: delete it and run prepare again, the others are kept.')
  return np.frombuffer(content, '<i4').astype(np.int32).reshape(-1, texts)


@functools.lru_cache(128)
def _reader(path, stamp):  # `stamp`: a file that was made again needs a new reader
  from array_record.python import array_record_module
  return array_record_module.ArrayRecordReader(path, 'readahead_buffer_size:0,max_parallelism:0')
