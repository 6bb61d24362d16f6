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
from collections.abc import Callable
from typing import Any

import numpy as np

KEPT = 100_000  # texts; smaller plans are made anew each time, in less than 0.1 s
FORMAT = 1  # raise it when the same key would give another plan
STORED = ('rows', 'starts', 'sizes')  # read slice by slice, where a plan lies on disk

Arrays = dict[str, np.ndarray]


class _Stored:
  """The array in a .npy file, read slice by slice: a memory map would count as this process's memory."""

  def __init__(self, path: pathlib.Path):
    array = np.load(path, mmap_mode='r')
    self.shape = array.shape
    self._dtype = array.dtype
    self._offset = array.offset
    row_size = int(np.prod(array.shape[1:], dtype=np.int64))
    self._row_bytes = row_size * array.dtype.itemsize
    self._file = open(path, 'rb')  # closed with this object

  def __len__(self) -> int:
    return self.shape[0]

  def __getitem__(self, span: slice) -> np.ndarray:
    start, stop, _ = span.indices(len(self))
    num_bytes = (stop - start) * self._row_bytes
    offset = self._offset + start * self._row_bytes
    content = os.pread(self._file.fileno(), num_bytes, offset)
    flat = np.frombuffer(content, self._dtype)
    return flat.reshape(-1, *self.shape[1:])


class Plan:
  """The arrays above; of one that lies on disk, slices can be had. It pickles as its path."""

  def __init__(
      self,
      arrays: Arrays | None = None,
      folder: pathlib.Path | None = None,
  ):
    """One of both: the arrays, or the folder that holds them."""
    self._arrays: dict[str, Any] | None = arrays
    self._folder = folder

  @property
  def rows(self) -> np.ndarray | _Stored:
    return self._array('rows')

  @property
  def starts(self) -> np.ndarray | _Stored:
    return self._array('starts')

  @property
  def sizes(self) -> np.ndarray | _Stored:
    return self._array('sizes')

  @property
  def fill(self) -> np.ndarray:
    return self._array('fill')

  def _array(self, name: str) -> Any:
    if self._arrays is None:
      self._arrays = _open(self._folder)
    return self._arrays[name]

  def __getstate__(self) -> dict[str, Any]:
    if self._folder is not None:
      return dict(_folder=self._folder, _arrays=None)
    return dict(_folder=None, _arrays=self._arrays)

  def __len__(self) -> int:
    return len(self.rows) - 1


def _open(folder: pathlib.Path | None) -> dict[str, Any]:
  if folder is None:
    raise ValueError('a plan needs its arrays, or the folder that holds them')
  arrays: dict[str, Any] = {}
  for name in STORED:
    arrays[name] = _Stored(folder / f'{name}.npy')
  arrays['fill'] = np.load(folder / 'fill.npy')
  return arrays


def plan(
    folder: str | pathlib.Path,
    key: Any,
    texts: int,
    make: Callable[[], Arrays],
) -> Plan:
  """The Plan of `make()`, a dict of arrays, or what it made before for the same `key`.

  A folder that cannot be written to does no harm.

  Args:
    folder: of the prepared dataset.
    key: all that the plan depends on, for JSON.
    texts: how many there are, about.
    make: makes the arrays.
  """
  if texts < KEPT:
    return Plan(make())
  kept = pathlib.Path(folder) / 'plans' / _digest(key)
  if not kept.is_dir():
    arrays = make()
    if not _keep(arrays, kept):
      return Plan(arrays)
  return Plan(folder=kept)


def _digest(key: Any) -> str:
  text = json.dumps([FORMAT, key], sort_keys=True, allow_nan=False)
  digest = hashlib.sha256(text.encode())
  return digest.hexdigest()[:16]


def _keep(arrays: Arrays, kept: pathlib.Path) -> bool:
  """Writes arrays as the folder `kept`, whole or not at all; whether it exists now."""
  host = os.uname().nodename
  process = os.getpid()
  new = kept.with_name(f'{kept.name}.{host}.{process}.tmp')
  try:
    new.mkdir(parents=True, exist_ok=True)
    for name, array in arrays.items():
      _write(new / f'{name}.npy', array)
    os.rename(new, kept)
  except OSError:  # no room, no permission, or another process was first
    shutil.rmtree(new, ignore_errors=True)
  return kept.is_dir()


def _write(path: pathlib.Path, array: np.ndarray) -> None:
  """Writes a .npy file that a crash of the machine does not lose."""
  with open(path, 'wb') as file:
    np.save(file, array)
    file.flush()
    os.fsync(file.fileno())
