"""A source of documents, and the request that a config makes for one."""
import dataclasses
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from t5like.config_type import Config
from t5like.errors import DataError
from t5like.files import mirror

Record = dict[str, Any]
Records = Iterator[tuple[Record | DataError, str]]  # with their ids


@dataclasses.dataclass(frozen=True)
class Request:
  """A source as the config describes it.

  Attributes:
    name: the config's `data.source`, such as 'jsonl:folder/*.jsonl'.
    argument: the part of it after the kind and the colon, '' for kinds without.
    data: the config's section.
    split: of a TFDS dataset, where it takes the place of `data.split`.
  """
  name: str
  argument: str
  data: Config
  split: str | None = None


class Source:
  """Documents by item.

  Attributes:
    name: the config's `data.source`.
    num_items: how many items there are.
    num_bytes: of text, an estimate.
    fingerprint: a dict for JSON that differs when the text may have changed.
    licence: of the text, '' if unknown.
    left_out: number of files that `without` removed.
  """

  def __init__(
      self,
      name: str,
      items: Sequence[Any],
      read: Callable[[Any], Records],
      num_bytes: float,
      fingerprint: dict[str, Any],
      licence: str = '',
  ):
    """`read(item)` yields the records of one item as pairs (dict, id)."""
    self.name = name
    self.num_bytes = int(num_bytes)
    self.num_items = len(items)
    self.fingerprint = fingerprint
    self.licence = licence
    self.left_out = 0
    self._items = items
    self._read = read

  def documents(self, start: int = 0, stop: int | None = None) -> Records:
    """Yields (record, id), a dict and a str, of the records in items `start` to `stop`.

    In place of a damaged record comes a DataError, not raised, that names it; the next record follows. A file
    that cannot be read any further raises one. Ids are unique: PATH for a text file, PATH@OFFSET (bytes of
    text before it) for a JSON line, PATH#ROW for parquet, 'plays/1.0.0 train record 12' for TFDS.
    """
    for item in self._items[start:stop]:
      yield from self._read(item)

  def without(self, other: 'Source') -> 'Source':
    """This Source without the files that another one reads too; itself if they share no file.

    Validation text must not be trained on. DataError when nothing is left.
    """
    files_of_other = {_same_file(path) for path, *_ in other._files()}
    own = self._files()
    shared = {path for path, *_ in own if _same_file(path) in files_of_other}
    if not shared:
      return self
    if len(shared) == len(own):
      raise DataError(f'data.source={self.name!r}: all of its {len(own):,} files are validation files '
                      f'(data.validation={other.name!r}), so nothing is left to train on.')
    kept = [file for file in own if file[0] not in shared]
    items = [item for item in self._items if _path_of(item) not in shared]
    own_size = max(1, _total_size(own))
    share = _total_size(kept) / own_size
    rest = Source(
        self.name,
        items,
        self._read,
        num_bytes=self.num_bytes * share,
        fingerprint=dict(files=kept),
        licence=self.licence,
    )
    rest.left_out = len(shared)
    return rest

  def _files(self) -> list[list[Any]]:
    """[[path, size, stamp]] of a source that reads files, else []."""
    return self.fingerprint.get('files', [])


def _same_file(path: str) -> str:
  """The same text for all names of one file, which links and paths through other folders may lead to."""
  if mirror.is_remote(path):
    return path
  return os.path.realpath(path)


def _path_of(item: Any) -> str:
  """The file of an item of files.py or parquet.py."""
  if isinstance(item, str):
    return item
  return item[0]


def _total_size(listed: Sequence[Sequence[Any]]) -> int:
  """Bytes of files, [[path, size, stamp]]."""
  total = 0
  for _, size, _ in listed:
    total += size
  return total
