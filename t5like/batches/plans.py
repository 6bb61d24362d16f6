"""Plans of rows that hold whole texts: made once from all lengths, kept on disk, read without loading.

A plan lists texts in the order of the rows that hold them. `rows` int64 [R + 1]: row r holds texts rows[r]
..< rows[r + 1]; `starts` int64 [P]: the first token of each in its split, all shards counted through;
`sizes` int32 [P, texts]: its tokens, of each of its texts; `fill` float [needs]: the share of positions of
all rows that text takes.
"""
import hashlib
import json
import os
import pathlib
import shutil

import numpy as np

KEPT = 100_000  # texts; smaller plans are made anew each time, in less than 0.1 s
ARRAYS = ('rows', 'starts', 'sizes', 'fill')
FORMAT = 1  # raise it when the same key would give another plan


class _Stored:
  """The array in a .npy file, read slice by slice: a memory map would count as this process's memory."""

  def __init__(self, path):
    array = np.load(path, mmap_mode='r')
    self.shape, self._dtype, self._offset = array.shape, array.dtype, array.offset
    self._row = int(np.prod(array.shape[1:], dtype=np.int64)) * array.dtype.itemsize
    self._file = open(path, 'rb')  # closed with this object

  def __len__(self):
    return self.shape[0]

  def __getitem__(self, span):
    start, stop, _ = span.indices(len(self))
    content = os.pread(self._file.fileno(), (stop - start) * self._row, self._offset + start * self._row)
    return np.frombuffer(content, self._dtype).reshape(-1, *self.shape[1:])


class Plan:
  """The arrays above; of one that lies on disk, slices can be had. It pickles as its path."""

  def __init__(self, arrays=None, folder=None):
    self._arrays, self._folder = arrays, folder

  def __getattr__(self, name):
    if name.startswith('_') or name not in ARRAYS:
      raise AttributeError(name)
    if self._arrays is None:
      self._arrays = {k: _Stored(self._folder / f'{k}.npy') for k in ARRAYS[:3]}
      self._arrays['fill'] = np.load(self._folder / 'fill.npy')
    return self._arrays[name]

  def __getstate__(self):
    return dict(_folder=self._folder, _arrays=None if self._folder else self._arrays)

  def __len__(self):
    return len(self.rows) - 1


def plan(folder, key, texts, make):
  """The Plan of `make()`, a dict of arrays, or what it made before for the same `key` (for JSON).

  `folder`: of the prepared dataset; `texts`: how many there are, about. A folder that cannot be written
  to does no harm.
  """
  if texts < KEPT:
    return Plan(make())
  name = hashlib.sha256(json.dumps([FORMAT, key], sort_keys=True, allow_nan=False).encode()).hexdigest()[:16]
  kept = pathlib.Path(folder) / 'plans' / name
  if not kept.is_dir():
    arrays = make()
    if not _keep(arrays, kept):
      return Plan(arrays)
  return Plan(folder=kept)


def _keep(arrays, kept):
  """Writes arrays as the folder `kept`, whole or not at all; whether it is there now."""
  new = kept.with_name(f'{kept.name}.{os.uname().nodename}.{os.getpid()}.tmp')
  try:
    new.mkdir(parents=True, exist_ok=True)
    for name, array in arrays.items():
      with open(new / f'{name}.npy', 'wb') as f:
        np.save(f, array)
        f.flush()
        os.fsync(f.fileno())
    os.rename(new, kept)
  except OSError:  # no room, no permission, or another process was first
    shutil.rmtree(new, ignore_errors=True)
  return kept.is_dir()
