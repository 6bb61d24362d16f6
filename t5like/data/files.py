"""Files of text and JSON lines, on disk or wherever fsspec reads, as what a Source is made of.

`text` and `jsonl`, and `parquet.read`, return the arguments of `sources.Source` but its name. Items are what can be
read apart: a range of bytes of a JSON lines file, a row group of a parquet file, else a whole file. A
record that is damaged comes as a DataError in its place; a file that is raises one.
"""
import bz2
import functools
import glob
import gzip
import io
import json
import lzma
import os
import pathlib
import posixpath
import typing
import zlib

from t5like import paths, schema
from t5like.data import encodings, mirror
from t5like.errors import DataError
from t5like.nearest import nearest

RANGE = 64 << 20  # bytes of a JSON lines file in an item
COUNTED = 8 << 30  # bytes up to which lines are counted to say which one is damaged
LINE = 1 << 30  # most bytes of a line: memory is not endless
LONG, VALUES = 16 << 20, 4_000_000  # bytes of a line from which its values are counted; how many there may be then
# A compressed file is given up where it has more text than this, and than so many times its own bytes: gzip of one
# letter repeated is 1,000 times shorter, of text that people wrote 2 to 10 times.
BOMB, RATIO = 256 << 20, 100
PACKED = ('.gz', '.zst', '.bz2', '.xz')
# What tells versions of a remote file apart, by the names that fsspec's filesystems give it.
STAMPS = 'blob_id generation etag ETag md5Hash mtime LastModified last_modified updated created'.split()


class File(typing.NamedTuple):
  path: str  # with its protocol if it is remote
  size: int
  stamp: int | str  # another one when the file was changed


def find(name, pattern):
  """Returns the Files that match the glob of `data.source=name`, by path; DataError when there is none."""
  pattern = paths.expand(pattern)
  if mirror.is_remote(pattern):
    found, nearby = mirror.within(f'data.source={name!r}', pattern, lambda: _find_remote(pattern))
  else:
    names = [path for path in sorted(glob.glob(pattern, recursive=True)) if os.path.isfile(path)]
    found = [File(path, s.st_size, s.st_mtime_ns) for path, s in zip(names, map(os.stat, names))]
    nearby = '' if found else _nearby(pattern)
  if not found:
    raise DataError(f'data.source={name!r}: no file matches {pattern}; {nearby}.')
  return found


def _find_remote(pattern):
  store, inside = mirror.filesystem(pattern)
  infos = {path: info for path, info in store.glob(inside, detail=True).items() if info.get('type') == 'file'}
  found = [File(store.unstrip_protocol(path), info.get('size') or 0, _stamp(info))
           for path, info in sorted(infos.items())]
  folder = '' if found else posixpath.dirname(inside)
  while folder.strip('/'):
    try:
      if not glob.has_magic(folder):  # glob takes a folder that may not be read for an empty one; this does not
        names = sorted(posixpath.basename(path.rstrip('/')) for path in store.ls(folder, detail=False))
        return [], _holds(store.unstrip_protocol(folder), names, inside[len(folder):].strip('/').split('/')[0])
    except (FileNotFoundError, NotADirectoryError):
      pass
    folder = posixpath.dirname(folder)
  return found, 'nor is there a folder of that name'


def _stamp(info):
  return next((str(info[key]) for key in STAMPS if info.get(key)), '')


def _nearby(pattern):
  if os.path.isdir(pattern):
    folder = pattern.rstrip('/')
    return f'it is a folder: write {folder}/* for its files, or {folder}/**/* for all below it'
  path = pathlib.Path(pattern).absolute()
  folder = next(p for p in path.parents if p.is_dir() and not glob.has_magic(str(p)))
  names = sorted(os.listdir(folder)) if os.access(folder, os.R_OK) else []
  return _holds(folder, names, path.relative_to(folder).parts[0])


def _holds(folder, names, wanted):
  close = nearest(wanted, names, most=3, close=0.5) or names[:3]
  return f'{folder} holds {", ".join(close) or "nothing"}{", ..." if len(names) > len(close) else ""}'


# --- Text and JSON lines ------------------------------------------------------------------------


def text(name, pattern, max_bad_records=0):
  """A record dict(text=str) per file; its id is the path. DataError for one that is no text by its name."""
  found = find(name, pattern)
  if not max_bad_records:  # else it is a damaged record among others
    _refuse_names(name, found)
  return _parts(found, [file.path for file in found], _read_text)


def jsonl(name, pattern):
  """A record, a JSON object as a dict, per line that is not empty.

  Its id is PATH@OFFSET: bytes of (uncompressed) text before the line, from 0.
  """
  found, items = find(name, pattern), []
  _refuse_names(name, found)
  for path, size, _ in found:
    whole = is_packed(path) or not size  # some web servers do not say how long a file is
    items += [(path, 0, None, 0)] if whole else [(path, start, start + RANGE, size) for start in range(0, size, RANGE)]
  return _parts(found, items, _read_jsonl)


def _refuse_names(name, found):
  for file in found:
    try:
      encodings.refuse_name(file.path)
    except DataError as error:
      raise DataError(f'data.source={name!r}: {error}') from error


def is_packed(path):
  """Whether a file is compressed, by its name."""
  return path.lower().endswith(PACKED)


def _parts(found, items, read):
  # Compressed text is about three times as long as its file.
  size = sum(file.size * (3 if is_packed(file.path) else 1) for file in found)
  return dict(items=items, read=read, num_bytes=size, fingerprint=fingerprint(found))


def fingerprint(found):
  """A dict for JSON that differs when Files have changed."""
  return dict(files=[list(file) for file in found])


def _read_text(path):
  try:
    encodings.refuse_name(path)
  except DataError as error:
    yield error, path
    return
  content = b''.join(_chunks(path))
  try:
    record = dict(text=encodings.decode(content, path))
  except DataError as error:
    record = error
  yield record, path


def _read_jsonl(item):
  path, start, stop, size = item
  if start == 0:
    _refuse_no_lines(path)
  lines = _split(_chunks(path)) if stop is None else _range(path, start, stop, size)
  first = before = None
  for number, (offset, line) in enumerate(lines, 1):
    first = offset if first is None else first
    record = _record(line.removeprefix(b'\xef\xbb\xbf') if offset == 0 else line) if line.strip() else None
    if isinstance(record, str):  # what is wrong; only now its number matters
      before = _newlines(path, first, size) if before is None else before
      place = f' line {before + number}, which starts at byte {offset}' if before >= 0 else f' at byte {offset}'
      record = DataError(f'{path}{place} of the text, {record}')
    if record is not None:
      yield record, f'{path}@{offset}'


def _refuse_no_lines(path):
  """DataError for a file that is no text, or not in UTF-8."""
  head = next(_chunks(path), b'')[:encodings.HEAD]
  encodings.refuse_content(head, path)
  _, encoding = encodings.mark_of(head)
  if encoding not in ('', 'utf-8'):
    raise DataError(f'{path} is in {encoding.upper()}, and JSON lines are read in UTF-8: convert it, for instance with '
                    f'iconv -f {encoding[:6].upper()} -t UTF-8.')


def _record(line):
  """A dict, or what is wrong with a line, for people."""
  if len(line) > LONG and line.count(b',') + line.count(b'{') + line.count(b'[') > VALUES:
    return f'holds more than {VALUES:,} values, which take more memory than a document is worth.'
  try:
    record = json.loads(line.decode())
    if schema.ESCAPED_SURROGATE.search(line.decode()):
      schema.refuse_surrogates(record)
  except schema.Invalid as error:
    return f'{error}: remove it.'
  except UnicodeDecodeError as error:
    return f'is not UTF-8: it has byte 0x{line[error.start]:02X} after {error.start} bytes; {encodings.CONVERT}'
  except (ValueError, RecursionError) as error:
    where = f' at character {error.pos + 1}' if isinstance(error, json.JSONDecodeError) else ''
    return f'is not JSON: {getattr(error, "msg", error)}{where}. Each line must be a JSON object of its own.'
  if not isinstance(record, dict):
    return f'is {type(record).__name__}, not an object with named fields: write {{"text": "..."}}.'
  return record


def _range(path, start, stop, size):
  """Yields (offset, line) of the lines that start in a range of bytes."""
  position = max(0, start - 1)
  try:
    with open_binary(path) as f:
      found = f.seek(0, os.SEEK_END)
      if found != size:
        raise OSError(f'it has {found} bytes and had {size} when it was found')
      f.seek(position)
      line = b'\n' if start == 0 else b''
      while not line.endswith(b'\n') and position < stop:  # in pieces: the line before may be very long
        line = f.readline(1 << 20)
        position += len(line)
        if not line:
          return
      while position < stop and (line := f.readline(LINE + 1)):
        if len(line) > LINE:
          raise OSError(f'a line of more than {LINE:,} bytes starts there, so this is no file of JSON lines')
        yield position, line.removesuffix(b'\n')
        position += len(line)
  except errors(path) as error:
    raise unreadable(path, error, f'beyond byte {position}') from error


def _split(chunks):
  """Yields (offset, line) of text that comes in pieces."""
  position, waiting = 0, []
  for chunk in chunks:
    *lines, rest = chunk.split(b'\n')
    for line in lines:
      line, waiting = b''.join([*waiting, line]), []
      yield position, line
      position += len(line) + 1
    waiting.append(rest)
    if len(waiting) % 256 == 0 and sum(map(len, waiting)) > LINE:
      raise DataError(f'a line of more than {LINE:,} bytes starts at byte {position} of the text: this is no file of '
                      'JSON lines.')
  if any(waiting):
    yield position, b''.join(waiting)


def _newlines(path, stop, size):
  """How many lines end in the first `stop` bytes of a file; a negative number if it would take long to count."""
  if stop > COUNTED:
    return -1
  return sum(_block(path, start, min(stop, start + RANGE), size) for start in range(0, stop, RANGE))


@functools.lru_cache(4096)  # as damage is seldom alone
def _block(path, start, stop, size):
  with open_binary(path) as f:
    f.seek(start)
    return sum(f.read(min(1 << 20, stop - i)).count(b'\n') for i in range(start, stop, 1 << 20))


def open_binary(path):
  """Opens a local or remote file for reading bytes."""
  if not mirror.is_remote(path):
    return open(path, 'rb')
  store, inside = mirror.filesystem(path)
  return io.BufferedReader(store.open(inside, 'rb'), 1 << 20)  # fsspec's own readline is slow


def _chunks(path):
  """Yields the bytes of a file, uncompressed by its ending, a MB or so at a time."""
  position = 0
  try:
    with open_binary(path) as f:
      for chunk in _unpacked(path, f):
        position += len(chunk)
        if is_packed(path) and position > BOMB and position > RATIO * f.tell():
          raise OSError(f'it unpacks to more than {RATIO} times its size, as no text does')
        yield chunk
  except errors(path) as error:
    raise unreadable(path, error, f'beyond byte {position} of its text') from error


def _unpacked(path, f):
  ending = posixpath.splitext(path.lower())[1]
  if ending == '.zst':
    yield from _zst_chunks(f)
    return
  if ending in OPENERS:
    f = OPENERS[ending](f)
  # read1: what comes before damage is had before the error
  yield from iter(lambda: f.read1(1 << 20), b'')


OPENERS = {'.gz': gzip.open, '.bz2': bz2.open, '.xz': lzma.open}


def _zst_chunks(f):
  import zstandard
  stream = None
  while data := f.read(4096):  # which may be 128 MiB of text
    while data:  # a file may hold several frames
      stream = stream or zstandard.ZstdDecompressor().decompressobj()
      try:
        yield stream.decompress(data)
      except zstandard.ZstdError as error:
        raise OSError(error) from error
      data = stream.unused_data
      stream = None if stream.eof else stream
  if stream:  # zstandard's own reader would take this for the end
    raise EOFError('the file ends early')


def errors(path):
  """The exceptions that reading a file may raise, a tuple."""
  return (Exception,) if mirror.is_remote(path) else (OSError, EOFError, zlib.error, lzma.LZMAError)


def unreadable(path, error, where):
  """A DataError for a file; `where`: how far it was read."""
  fix = ('it was there a moment ago: put it back' if isinstance(error, FileNotFoundError) else
         'let this user read it' if isinstance(error, PermissionError) else 'copy or make that file again')
  return error if isinstance(error, DataError) else DataError(f'{path} cannot be read {where}: {error}; {fix}.')
