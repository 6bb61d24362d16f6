"""Reading text files: plain and JSON lines, compressed or not, with errors that say where."""

import difflib
import glob
import gzip
import json
import os
import pathlib
import zlib

from t5like.errors import DataError


def find(name, pattern):
  """Returns the sorted paths of the files that match a glob; DataError when there is none."""
  pattern = os.path.expanduser(pattern)
  paths = [pathlib.Path(path) for path in sorted(glob.glob(pattern, recursive=True))]
  paths = [path for path in paths if path.is_file()]
  if not paths:
    raise DataError(f'data.source={name!r}: no file matches {pattern}; {_nearby(pattern)}.')
  return paths


def read_text(path):
  """Yields (record, id) of the one document that a text file is, dict(text=str); DataError."""
  yield dict(text=decode(b''.join(_chunks(path)), path)), str(path)


def read_jsonl(path):
  """Yields (record, id) of each line that is not empty: its JSON object as a dict; DataError."""
  offset = 0
  for number, line in enumerate(_lines(_chunks(path)), 1):
    if line.strip():
      yield _record(decode(line, path, offset), path, number), f'{path}:{number}'
    offset += len(line) + 1


def decode(content, where, offset=0):
  """Returns the text of UTF-8 bytes that start at `offset` of `where`; DataError."""
  try:
    return content.decode('utf-8')
  except UnicodeDecodeError as error:
    at = error.start
    raise DataError(f'{where} is not UTF-8: byte 0x{content[at]:02X} at offset {offset + at} of '
                    'its text; convert it, for instance with iconv -t utf-8.') from error


def _nearby(pattern):
  path = pathlib.Path(pattern).absolute()
  folder = next(p for p in path.parents if p.is_dir() and not glob.has_magic(str(p)))
  names = sorted(p.name for p in folder.iterdir())
  close = difflib.get_close_matches(path.relative_to(folder).parts[0], names, 3, 0.5) or names[:3]
  others = ', ...' if len(names) > len(close) else ''
  return f'{folder} holds {", ".join(close) or "nothing"}{others}'


def _chunks(path):
  """Yields the bytes of a file, uncompressed by its ending, a MB or so at a time."""
  try:
    if path.suffix == '.zst':
      yield from _zst_chunks(path)
    else:
      with (gzip.open if path.suffix == '.gz' else open)(path, 'rb') as f:
        yield from iter(lambda: f.read(1 << 20), b'')
  except (OSError, EOFError, zlib.error) as error:
    raise DataError(f'{path} cannot be read: {error}.') from error


def _zst_chunks(path):
  try:
    import zstandard
  except ImportError as error:
    raise DataError(f'Reading {path} needs: pip install zstandard') from error
  stream = None
  with open(path, 'rb') as f:
    while data := f.read(1 << 20):
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


def _lines(chunks):
  rest = b''
  for chunk in chunks:
    *lines, rest = (rest + chunk).split(b'\n')
    yield from lines
  if rest:
    yield rest


def _record(line, path, number):
  try:
    record = json.loads(line)
  except ValueError as error:
    raise DataError(f'{path} line {number} is not JSON: {error}.') from error
  if not isinstance(record, dict):
    raise DataError(f'{path} line {number} is {type(record).__name__}, not an object with named fields: write '
                    '{"text": "..."}.')
  return record
