"""Files of text and JSON lines, on disk or wherever fsspec reads, as the content of a Source.

`text` and `jsonl`, and `parquet.read`, return a Content. Items can be read independently: a range of bytes of
a JSON lines file, a row group of a parquet file, else a whole file. In place of a damaged record comes a DataError; a
damaged file raises one.
"""
import dataclasses
import functools
import glob
import json
import os
import pathlib
import posixpath
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, BinaryIO

from t5like.errors import DataError
from t5like.files import mirror, paths, schema
from t5like.nearest import nearest
from t5like.sources import encodings, reading

RANGE = 64 << 20  # bytes of a JSON lines file in an item
COUNTED = 8 << 30  # bytes up to which lines are counted to report the number of a damaged one
LINE = 1 << 30  # most bytes of a line: memory is not endless
LONG = 16 << 20  # bytes of a line from which its values are counted
VALUES = 4_000_000  # most values of such a line
PACKED_SHARE = 3  # compressed text is about three times as long as its file
UTF8_MARK = b'\xef\xbb\xbf'
# Values that differ between versions of a remote file, by the names that fsspec's filesystems give them.
STAMPS = 'blob_id generation etag ETag md5Hash mtime LastModified last_modified updated created'.split()

Record = dict[str, Any]
Records = Iterator[tuple[Record | DataError, str]]  # with their ids


class File(typing.NamedTuple):
  path: str  # with its protocol if it is remote
  size: int  # bytes
  stamp: int | str  # another one when the file was changed


class Range(typing.NamedTuple):
  """An item of JSON lines: those that start in a range of bytes."""
  path: str
  start: int
  stop: int | None  # None: the whole file
  size: int  # of the file, in bytes


@dataclasses.dataclass(frozen=True)
class Content:
  """A Source without its name; see `source.Source`."""
  items: Sequence[Any]
  read: Callable[[Any], Records]
  num_bytes: float
  fingerprint: dict[str, Any]
  licence: str = ''


def find(name: str, pattern: str) -> list[File]:
  """Returns the files that match a glob, by path.

  Args:
    name: the config's `data.source`, for errors.
    pattern: a glob on disk or of a URL; '**' matches folders at any depth.

  Raises:
    DataError: no file matches, or the remote store fails.
  """
  pattern = paths.expand(pattern)
  if mirror.is_remote(pattern):
    matches, nearby = mirror.within(f'data.source={name!r}', pattern, lambda: _find_remote(pattern))
  else:
    matches, nearby = _find_local(pattern)
  if not matches:
    raise DataError(f'data.source={name!r}: no file matches {pattern}; {nearby}.')
  return matches


def _find_local(pattern: str) -> tuple[list[File], str]:
  """(files, what is nearby where there are none)."""
  matches = []
  for path in sorted(glob.glob(pattern, recursive=True)):
    if os.path.isfile(path):
      status = os.stat(path)
      matches.append(File(path, status.st_size, status.st_mtime_ns))
  if matches:
    return matches, ''
  return [], _nearby(pattern)


def _find_remote(pattern: str) -> tuple[list[File], str]:
  """(files, what is nearby where there are none)."""
  store, inside = mirror.filesystem(pattern)
  matches = []
  for path, info in sorted(store.glob(inside, detail=True).items()):
    if info.get('type') == 'file':
      url = store.unstrip_protocol(path)
      matches.append(File(url, info.get('size') or 0, _stamp(info)))
  if matches:
    return matches, ''
  return [], _nearby_remote(store, inside)


def _stamp(info: Mapping[str, Any]) -> str:
  for key in STAMPS:
    if info.get(key):
      return str(info[key])
  return ''


def _nearby(pattern: str) -> str:
  """What the nearest folder above a glob without matches holds, as the end of a sentence."""
  if os.path.isdir(pattern):
    folder = pattern.rstrip('/')
    return f'it is a folder: write {folder}/* for its files, or {folder}/**/* for all below it'
  path = pathlib.Path(pattern).absolute()
  folder = _nearest_folder(path)
  names = []
  if os.access(folder, os.R_OK):
    names = sorted(os.listdir(folder))
  return _holds(str(folder), names, path.relative_to(folder).parts[0])


def _nearest_folder(path: pathlib.Path) -> pathlib.Path:
  """The lowest folder above a path that exists and is not a glob."""
  for parent in path.parents:
    if parent.is_dir() and not glob.has_magic(str(parent)):
      return parent
  return pathlib.Path('/')


def _nearby_remote(store: Any, pattern: str) -> str:
  """The same in an fsspec filesystem; pattern: without the protocol."""
  folder = posixpath.dirname(pattern)
  while folder.strip('/'):
    names = _list_remote(store, folder)
    if names is not None:
      wanted = pattern[len(folder):].strip('/').split('/')[0]
      return _holds(store.unstrip_protocol(folder), names, wanted)
    folder = posixpath.dirname(folder)
  return 'nor is there a folder of that name'


def _list_remote(store: Any, folder: str) -> list[str] | None:
  """Sorted names in a folder; None where it does not exist, or is a glob."""
  if glob.has_magic(folder):
    return None
  try:
    # A glob takes a folder without permission to read for an empty one; `ls` raises.
    listed = store.ls(folder, detail=False)
  except (FileNotFoundError, NotADirectoryError):
    return None
  return sorted(posixpath.basename(path.rstrip('/')) for path in listed)


def _holds(folder: str, names: Sequence[str], wanted: str) -> str:
  shown = nearest(wanted, names, most=3, close=0.5) or names[:3]
  listed = ', '.join(shown) or 'nothing'
  if len(names) > len(shown):
    listed = f'{listed}, ...'
  return f'{folder} holds {listed}'


# --- Text and JSON lines ------------------------------------------------------------------------


def text(name: str, pattern: str, max_bad_records: int = 0) -> Content:
  """A record dict(text=str) per file; its id is the path.

  Args:
    name: the config's `data.source`, for errors.
    pattern: a glob.
    max_bad_records: where it is 0, a file whose name says that it is not text is refused before it is read.

  Raises:
    DataError: there is no such file, or one is refused.
  """
  matches = find(name, pattern)
  if not max_bad_records:  # else it counts as a damaged record
    _refuse_names(name, matches)
  return _content(matches, [file.path for file in matches], _read_text)


def jsonl(name: str, pattern: str) -> Content:
  """A record, a JSON object as a dict, per line that is not empty.

  Its id is PATH@OFFSET: bytes of (uncompressed) text before the line, from 0.

  Args:
    name: the config's `data.source`, for errors.
    pattern: a glob.

  Raises:
    DataError: there is no such file, or the name of one says that it is not text.
  """
  matches = find(name, pattern)
  _refuse_names(name, matches)
  items = []
  for file in matches:
    items += _ranges(file)
  return _content(matches, items, _read_jsonl)


def _ranges(file: File) -> list[Range]:
  is_whole = reading.is_packed(file.path) or not file.size  # some web servers do not report the size of a file
  if is_whole:
    return [Range(file.path, 0, None, 0)]
  ranges = []
  for start in range(0, file.size, RANGE):
    ranges.append(Range(file.path, start, start + RANGE, file.size))
  return ranges


def _refuse_names(name: str, matches: Iterable[File]) -> None:
  for file in matches:
    try:
      encodings.refuse_name(file.path)
    except DataError as error:
      raise DataError(f'data.source={name!r}: {error}') from error


def _content(
    matches: Sequence[File],
    items: Sequence[Any],
    read: Callable[[Any], Records],
) -> Content:
  size = 0
  for file in matches:
    if reading.is_packed(file.path):
      size += file.size * PACKED_SHARE
    else:
      size += file.size
  return Content(items, read, size, fingerprint(matches))


def fingerprint(matches: Iterable[File]) -> dict[str, Any]:
  """A dict for JSON that differs when files have changed."""
  return dict(files=[list(file) for file in matches])


def _read_text(path: str) -> Records:
  try:
    encodings.refuse_name(path)
  except DataError as error:
    yield error, path
    return
  content = b''.join(reading.chunks(path))
  try:
    record = dict(text=encodings.decode(content, path))
  except DataError as error:
    yield error, path
    return
  yield record, path


def _read_jsonl(item: Range) -> Records:
  if item.start == 0:
    _refuse_no_lines(item.path)
  first_offset = None
  number = 0  # of lines before, in this item
  for offset, line in _lines(item):
    if first_offset is None:
      first_offset = offset
    if line.strip():
      if offset == 0:
        line = line.removeprefix(UTF8_MARK)
      name = f'{item.path}@{offset}'
      try:
        record = _record(line)
      except schema.Invalid as error:
        place = _place(item, first_offset, number, offset)
        record = DataError(f'{item.path}{place} of the text, {error}')
      yield record, name
    number += 1


def _lines(item: Range) -> Iterator[tuple[int, bytes]]:
  """Pairs (offset, line) of an item."""
  if item.stop is None:
    return _split(reading.chunks(item.path))
  return _lines_of_range(item.path, item.start, item.stop, item.size)


def _place(item: Range, first_offset: int, number: int, offset: int) -> str:
  """Which line of a file is damaged, for an error.

  Args:
    item: that the line belongs to.
    first_offset: of the item's first line.
    number: of lines of the item before it.
    offset: of the line.
  """
  before = _newlines(item.path, first_offset, item.size)
  if before is None:
    return f' at byte {offset}'
  return f' line {before + number + 1}, which starts at byte {offset}'


def _refuse_no_lines(path: str) -> None:
  """DataError for a file that is not text, or not in UTF-8."""
  first_chunk = next(reading.chunks(path), b'')
  head = first_chunk[:encodings.HEAD]
  encodings.refuse_content(head, path)
  _, encoding = encodings.mark_of(head)
  if encoding not in ('', 'utf-8'):
    raise DataError(f'{path} is in {encoding.upper()}, and JSON lines are read in UTF-8: convert it, for instance with '
                    f'iconv -f {encoding[:6].upper()} -t UTF-8.')


def _record(line: bytes) -> Record:
  """The object of a line; Invalid, with the end of a sentence for people, for anything else."""
  if len(line) > LONG and _most_values(line) > VALUES:
    raise schema.Invalid(f'holds more than {VALUES:,} values, which take more memory than a document is worth.')
  try:
    decoded = line.decode()
  except UnicodeDecodeError as error:
    raise schema.Invalid(f'is not UTF-8: it has byte 0x{line[error.start]:02X} after {error.start} bytes; '
                         f'{encodings.CONVERT}') from error
  try:
    record = json.loads(decoded)
    if schema.ESCAPED_SURROGATE.search(decoded):
      schema.refuse_surrogates(record)
  except schema.Invalid as error:
    raise schema.Invalid(f'{error}: remove it.') from error
  except json.JSONDecodeError as error:
    raise schema.Invalid(_not_json(f'{error.msg} at character {error.pos + 1}')) from error
  except (ValueError, RecursionError) as error:
    raise schema.Invalid(_not_json(str(error))) from error
  if not isinstance(record, dict):
    raise schema.Invalid(f'is {type(record).__name__}, not an object with named fields: write {{"text": "..."}}.')
  return record


def _most_values(line: bytes) -> int:
  """An upper bound of the values of a JSON text."""
  return line.count(b',') + line.count(b'{') + line.count(b'[')


def _not_json(reason: str) -> str:
  return f'is not JSON: {reason}. Each line must be a whole JSON object.'


def _lines_of_range(
    path: str,
    start: int,
    stop: int,
    size: int,
) -> Iterator[tuple[int, bytes]]:
  """Yields (offset, line) of the lines that start in a range of bytes; size: of the file when it was listed."""
  position = max(0, start - 1)
  try:
    with reading.open_binary(path) as file:
      _check_size(file, size)
      file.seek(position)
      if start > 0:
        position = _skip_line(file, position, stop)
      while position < stop and (line := file.readline(LINE + 1)):
        if len(line) > LINE:
          raise OSError(f'a line of more than {LINE:,} bytes starts there, so this is no file of JSON lines')
        yield position, line.removesuffix(b'\n')
        position += len(line)
  except reading.errors(path) as error:
    raise reading.unreadable(path, error, f'beyond byte {position}') from error


def _check_size(file: BinaryIO, size: int) -> None:
  current_size = file.seek(0, os.SEEK_END)
  if current_size != size:
    raise OSError(f'it has {current_size} bytes and had {size} when it was found')


def _skip_line(file: BinaryIO, position: int, stop: int) -> int:
  """Reads to the end of a line, or to `stop`; returns the position then. In pieces: the line may be very long."""
  while position < stop:
    piece = file.readline(reading.CHUNK)
    if not piece:
      break
    position += len(piece)
    if piece.endswith(b'\n'):
      break
  return position


def _split(chunks: Iterable[bytes]) -> Iterator[tuple[int, bytes]]:
  """Yields (offset, line) of text that comes in pieces."""
  position = 0
  waiting = []  # pieces of a line whose end has not come yet
  for chunk in chunks:
    *lines, rest = chunk.split(b'\n')
    for end in lines:
      line = b''.join([*waiting, end])
      waiting = []
      yield position, line
      position += len(line) + 1
    waiting.append(rest)
    if len(waiting) % 256 == 0 and sum(map(len, waiting)) > LINE:
      raise DataError(f'a line of more than {LINE:,} bytes starts at byte {position} of the text: this is no file of '
                      'JSON lines.')
  if any(waiting):
    yield position, b''.join(waiting)


def _newlines(path: str, stop: int, size: int) -> int | None:
  """How many lines end in the first `stop` bytes of a file; None if counting would take long."""
  if stop > COUNTED:
    return None
  total = 0
  for start in range(0, stop, RANGE):
    total += _block(path, start, min(stop, start + RANGE), size)
  return total


@functools.lru_cache(4096)  # damaged lines are seldom alone
def _block(path: str, start: int, stop: int, size: int) -> int:
  """How many lines end in a range of bytes; size: of the file, so that a changed one is counted again."""
  total = 0
  with reading.open_binary(path) as file:
    file.seek(start)
    for position in range(start, stop, reading.CHUNK):
      chunk = file.read(min(reading.CHUNK, stop - position))
      total += chunk.count(b'\n')
  return total
