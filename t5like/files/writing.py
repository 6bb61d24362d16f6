"""Files and streams that may fail to be written: a full disk or a closed pipe costs a line of warning, not the run.

Everything that a run writes beside its checkpoints goes through here: `write_file` for files that are whole or not at
all, `Guarded` for files that grow while the run trains, `Steady` for lines for people.
"""
import collections
import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterable
from typing import Any

from etils import epath

RETRY = 1.0  # seconds after a failure before the next attempt
BETWEEN_UPLOADS = 30.0  # seconds, to an object store
MOST = 20_000  # lines of a file that wait in memory; older ones are lost


def is_remote(path: Any) -> bool:
  """Whether a path is the URL of an object store."""
  return '://' in str(path)


def write_file(path: Any, content: bytes | str, suffix: str = 'tmp') -> None:
  """Writes a file so that it is never seen half-written, even after a power cut. OSError leaves the old one.

  Args:
    path: of the file.
    content: text, or bytes.
    suffix: of its temporary name; different for processes that may write the same file at the same time.
  """
  if isinstance(content, str):
    content = content.encode()
  if is_remote(path):
    epath.Path(path).write_bytes(content)  # an object is there when it is whole
    return
  temporary = f'{path}.{suffix}'
  try:
    with open(temporary, 'wb') as f:
      f.write(content)
      f.flush()
      os.fsync(f.fileno())
    os.replace(temporary, path)
  except OSError:
    with contextlib.suppress(OSError):  # half a file would keep a full disk full
      os.unlink(temporary)
    raise


def append(path: str, content: bytes) -> None:
  """Adds to a local file all of `content`, or on OSError nothing."""
  size = 0
  if os.path.exists(path):
    size = os.path.getsize(path)
  try:
    with open(path, 'ab', buffering=0) as f:
      rest = memoryview(content)
      while rest:
        rest = rest[f.write(rest):]
  except OSError:
    with contextlib.suppress(OSError):
      os.truncate(path, size)
    raise


class Guarded:
  """Writes of a run that wait in memory while they cannot be done, and are done once they can be.

  One line is said when writing begins to fail, and one when all that waited is written. Object stores cannot append:
  files there are kept in memory and uploaded whole, now and then and by `flush`.
  """

  def __init__(self, say: Callable[[str], None] = print) -> None:
    self.say = say
    self.lines: dict[str, collections.deque[bytes]] = {}  # by path: wait to be added
    self.files: dict[str, bytes | str] = {}  # by path: wait to be written whole
    self.remote: dict[str, bytearray] = {}  # by path: the whole files on object stores
    self.uploaded: dict[str, float] = {}  # by path: monotonic seconds
    self.failed: float | None = None  # monotonic seconds of the newest failure
    self.failing_since: float | None = None  # and of the first one
    self.lost = 0  # lines that did not fit in memory

  def append(self, path: Any, content: bytes | str) -> None:
    """Adds `content` to a file; a line when it is text."""
    if isinstance(content, str):
      content = f'{content}\n'.encode()
    lines = self.lines.setdefault(str(path), collections.deque(maxlen=MOST))
    if len(lines) == MOST:
      self.lost += 1
    lines.append(content)
    self._write(at_once=False)

  def replace(self, path: Any, content: bytes | str) -> None:
    """Writes a file whole."""
    self.files[str(path)] = content
    self._write(at_once=False)

  def keep(self, path: Any, wanted: Callable[[bytes], bool] | None = None) -> None:
    """Removes the lines of a file for which `wanted(line)` is false (None: none), and one that a crash has cut off.

    They are nearly always the last ones: then the file is only truncated, which also works on a full disk.
    """
    try:
      before = _content(path)
      lines = before.split(b'\n')[:-1]
      if wanted is not None:
        lines = [line for line in lines if wanted(line)]
      kept = b''.join(line + b'\n' for line in lines)
      if is_remote(path):
        self.remote[str(path)] = bytearray(kept)
      elif kept == before:
        return
      elif before.startswith(kept):
        os.truncate(path, len(kept))
      else:
        write_file(path, kept)
    except Exception as error:  # object stores have errors of their own
      self._fails(path, error)

  def flush(self) -> None:
    """Tries to write everything that waits."""
    self._write(at_once=True)

  def _write(self, at_once: bool) -> None:
    if self.failed is not None and not at_once and time.monotonic() - self.failed < RETRY:
      return
    path = ''
    try:
      for path in [*self.lines]:
        self._add(path, at_once)
      for path in [*self.files]:
        _make_folder(path)
        write_file(path, self.files[path])
        del self.files[path]
    except Exception as error:  # object stores have errors of their own
      self._fails(path, error)
      return
    if self.failing_since is not None:
      self._works_again(self.failing_since)

  def _add(self, path: str, at_once: bool) -> None:
    """Writes the lines that wait for a file."""
    if not is_remote(path):
      _make_folder(path)
      append(path, b''.join(self.lines[path]))
      del self.lines[path]
      return
    if path not in self.remote:
      self.keep(path)
    since_upload = time.monotonic() - self.uploaded.get(path, -BETWEEN_UPLOADS)
    if at_once or since_upload >= BETWEEN_UPLOADS:
      content = self.remote[path] + b''.join(self.lines[path])
      write_file(path, bytes(content))
      self.remote[path] = content
      self.uploaded[path] = time.monotonic()
      del self.lines[path]

  def _fails(self, path: Any, error: Exception) -> None:
    self.failed = time.monotonic()
    if self.failing_since is not None:
      return
    self.failing_since = self.failed
    reason = f'{type(error).__name__}: {error}'
    if isinstance(error, OSError) and error.strerror:
      reason = str(error.strerror)
    self.say(f'WARNING: {path} cannot be written ({" ".join(reason.split())[:300]}). Training continues; what is to be '
             'written waits in memory.')

  def _works_again(self, failing_since: float) -> None:
    seconds = time.monotonic() - failing_since
    lost = ''
    if self.lost:
      lost = f' {self.lost} lines are lost, which was more than fits in memory.'
    self.failed = None
    self.failing_since = None
    self.lost = 0
    self.say(f'Files can be written again, after {seconds:.0f} s; all waiting lines are written.{lost}')


def _content(path: Any) -> bytes:
  """The bytes of a file; none where it does not exist."""
  file = epath.Path(path)
  if not file.exists():
    return b''
  return file.read_bytes()


def _make_folder(path: str) -> None:
  if not is_remote(path):
    os.makedirs(os.path.dirname(path) or '.', exist_ok=True)


class Steady:
  """A text stream for people whose disk may be full or whose reader may have gone: texts that fail are dropped."""

  def __init__(self, stream: Any) -> None:
    self.stream = stream

  def write(self, text: str) -> int:
    """Writes text, or drops it."""
    with contextlib.suppress(OSError, ValueError):  # ValueError: of a closed file
      self.stream.write(text)
    return len(text)

  def writelines(self, lines: Iterable[str]) -> None:
    """Writes texts, or drops them."""
    for line in lines:
      self.write(line)

  def flush(self) -> None:
    """Flushes the stream, if it can be."""
    with contextlib.suppress(OSError, ValueError):
      self.stream.flush()

  def __getattr__(self, name: str) -> Any:
    return getattr(self.stream, name)


def steady(stream: Any) -> Any:
  """A Steady of a stream; None and streams that are steady already stay as they are."""
  if stream is None or isinstance(stream, Steady):
    return stream
  return Steady(stream)


def steady_streams() -> None:
  """Replaces standard output and error by a Steady: lines for people must not end the run."""
  sys.stdout = steady(sys.stdout)
  sys.stderr = steady(sys.stderr)


def say(text: str) -> None:
  """Prints a line; one that cannot be printed is dropped."""
  print(text, file=steady(sys.stdout), flush=True)


def open_streams() -> None:
  """Replaces by /dev/null standard streams that are closed, and of those that are None.

  Else the next file to be opened, a checkpoint say, would get the number of standard error, and libraries would write
  their warnings into it.
  """
  for number in range(3):
    try:
      os.fstat(number)
    except OSError:
      os.open(os.devnull, os.O_RDWR)
  for name in ('stdout', 'stderr'):
    if getattr(sys, name) is None:
      setattr(sys, name, open(os.devnull, 'w'))
      setattr(sys, f'__{name}__', getattr(sys, name))
