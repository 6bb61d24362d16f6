"""Bytes of files on disk or wherever fsspec reads, uncompressed; how a file that cannot be read is reported."""
import bz2
import contextlib
import gzip
import io
import lzma
import posixpath
import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, BinaryIO

from t5like.errors import DataError
from t5like.files import mirror
from t5like.sources.encodings import LFS

# A compressed file is abandoned where it has more text than BOMB bytes and than RATIO times its own bytes: gzip of one
# letter repeated is 1,000 times shorter, of text that people wrote 2 to 10 times.
BOMB = 256 << 20
RATIO = 100
PACKED = ('.gz', '.zst', '.bz2', '.xz')
CHUNK = 1 << 20  # bytes per read


def is_packed(path: str) -> bool:
  """Whether a file is compressed, by its name."""
  return path.lower().endswith(PACKED)


def open_binary(path: str) -> BinaryIO:
  """Opens a local or remote file for reading bytes."""
  if not mirror.is_remote(path):
    return open(path, 'rb')
  store, inside = mirror.filesystem(path)
  return io.BufferedReader(store.open(inside, 'rb'), CHUNK)  # fsspec's own readline is slow


def chunks(path: str) -> Iterator[bytes]:
  """Yields the bytes of a file, uncompressed by its ending, a MB or so at a time."""
  position = 0
  try:
    with open_binary(path) as file:
      for chunk in _unpacked(path, file):
        position += len(chunk)
        is_large = is_packed(path) and position > BOMB
        if is_large and position > RATIO * file.tell():
          raise OSError(f'it unpacks to more than {RATIO} times its size, as no text does')
        yield chunk
  except errors(path) as error:
    raise unreadable(path, error, f'beyond byte {position} of its text') from error


def _unpacked(path: str, file: BinaryIO) -> Iterator[bytes]:
  ending = posixpath.splitext(path.lower())[1]
  if ending == '.zst':
    return _zst_chunks(file)
  if ending in OPENERS:
    return _read_chunks(OPENERS[ending](file))
  return _read_chunks(file)


OPENERS: Mapping[str, Callable[[BinaryIO], Any]] = {
    '.gz': gzip.open,
    '.bz2': bz2.open,
    '.xz': lzma.open,
}


def _read_chunks(file: Any) -> Iterator[bytes]:
  while chunk := file.read1(CHUNK):  # read1: yields all bytes before damage, then raises
    yield chunk


def _zst_chunks(file: BinaryIO) -> Iterator[bytes]:
  import zstandard
  stream = None
  while data := file.read(4096):  # which may be 128 MiB of text
    while data:  # a file may hold several frames
      if stream is None:
        stream = zstandard.ZstdDecompressor().decompressobj()
      try:
        yield stream.decompress(data)
      except zstandard.ZstdError as error:
        raise OSError(error) from error
      data = stream.unused_data
      if stream.eof:
        stream = None
  if stream:  # zstandard's own reader would take this for the end
    raise EOFError('the file ends early')


def errors(path: str) -> tuple[type[Exception], ...]:
  """The exceptions that reading a file may raise."""
  if mirror.is_remote(path):
    return (Exception,)
  return (OSError, EOFError, zlib.error, lzma.LZMAError)


def _is_pointer(path: str) -> bool:
  """Whether a local file is a pointer of Git LFS, in place of a file that was not fetched."""
  if mirror.is_remote(path):
    return False
  with contextlib.suppress(OSError), open(path, 'rb') as file:
    return file.read(len(LFS)) == LFS
  return False


def unreadable(path: str, error: Exception, where: str) -> DataError:
  """A DataError for a file; `where`: how far it was read."""
  if isinstance(error, DataError):
    return error
  fix = 'copy or make that file again'
  if isinstance(error, FileNotFoundError):
    fix = 'it was there a moment ago: put it back'
  elif isinstance(error, PermissionError):
    fix = 'let this user read it'
  elif _is_pointer(path):
    fix = 'it is a pointer of Git LFS to a file that was not fetched: git lfs pull'
  return DataError(f'{path} cannot be read {where}: {error}; {fix}.')
