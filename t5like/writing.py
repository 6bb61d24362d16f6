"""Files and streams that may fail to be written: a full disk or a closed pipe costs a line of warning, not the run.

All that a run writes beside its checkpoints goes through here: `write_file` for files that are whole or not at all,
`Guarded` for what a run adds to while it trains, `Steady` for what people read.
"""
import collections
import contextlib
import os
import sys
import time

from etils import epath

RETRY = 1.0  # seconds after a failure before the next attempt
BETWEEN_UPLOADS = 30.0  # seconds, to an object store
MOST = 20_000  # lines of a file that wait in memory; older ones are lost


def is_remote(path) -> bool:
  return '://' in str(path)


def write_file(path, content: bytes | str, suffix: str = 'tmp') -> None:
  """Writes a file so that it is never seen half-written, even after a power cut. OSError leaves the old one.

  suffix: of the name it has meanwhile; for writers that may be at work on the same file at the same time.
  """
  content = content.encode() if isinstance(content, str) else content
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


def append(path, content: bytes) -> None:
  """Adds to a local file all of `content`, or on OSError nothing."""
  size = os.path.getsize(path) if os.path.exists(path) else 0
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

  def __init__(self, say=print):
    self.say = say
    self.lines = {}  # {path: deque of bytes} that wait to be added
    self.files = {}  # {path: bytes} that wait to be written whole
    self.remote = {}  # {path: bytearray}: the whole files on object stores
    self.uploaded = {}  # {path: monotonic seconds}
    self.failed = self.failing_since = None  # monotonic seconds of the newest and the first failure
    self.lost = 0  # lines that found no room in memory

  def append(self, path, content: bytes | str) -> None:
    """Adds `content` to a file; a line when it is text."""
    lines = self.lines.setdefault(str(path), collections.deque(maxlen=MOST))
    self.lost += len(lines) == MOST
    lines.append(f'{content}\n'.encode() if isinstance(content, str) else content)
    self._write(at_once=False)

  def replace(self, path, content: bytes | str) -> None:
    """Writes a file whole."""
    self.files[str(path)] = content
    self._write(at_once=False)

  def keep(self, path, wanted=lambda line: True) -> None:
    """Takes the lines of a file away for which `wanted(line)` is false, and one that a crash has cut off.

    They are nearly always the last ones: then the file is only cut, which also works on a full disk.
    """
    try:
      before = epath.Path(path).read_bytes() if epath.Path(path).exists() else b''
      kept = b''.join(line + b'\n' for line in before.split(b'\n')[:-1] if wanted(line))
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
    """Tries to write all that waits."""
    self._write(at_once=True)

  def _write(self, at_once):
    if self.failed is not None and not at_once and time.monotonic() - self.failed < RETRY:
      return
    path = None
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
      self._works_again()

  def _add(self, path, at_once):
    if not is_remote(path):
      _make_folder(path)
      append(path, b''.join(self.lines[path]))
      del self.lines[path]
      return
    if path not in self.remote:
      self.keep(path)
    if at_once or time.monotonic() - self.uploaded.get(path, -BETWEEN_UPLOADS) >= BETWEEN_UPLOADS:
      content = self.remote[path] + b''.join(self.lines[path])
      write_file(path, bytes(content))
      self.remote[path], self.uploaded[path] = content, time.monotonic()
      del self.lines[path]

  def _fails(self, path, error):
    self.failed = time.monotonic()
    if self.failing_since is None:
      self.failing_since = self.failed
      why = error.strerror if isinstance(error, OSError) and error.strerror else f'{type(error).__name__}: {error}'
      self.say(f'WARNING: {path} cannot be written ({" ".join(str(why).split())[:300]}). Training continues; what is '
               'to be written waits in memory.')

  def _works_again(self):
    seconds = time.monotonic() - self.failing_since
    lost = f' {self.lost} lines are lost, which was more than fits in memory.' if self.lost else ''
    self.failed = self.failing_since = None
    self.lost = 0
    self.say(f'Files can be written again, after {seconds:.0f} s; what waited is written.{lost}')


def _make_folder(path):
  if not is_remote(path):
    os.makedirs(os.path.dirname(path) or '.', exist_ok=True)


class Steady:
  """A text stream for people whose disk may be full, or whose reader may have gone: what it cannot take is dropped."""

  def __init__(self, stream):
    self.stream = stream

  def write(self, text: str) -> int:
    with contextlib.suppress(OSError, ValueError):  # ValueError: of a closed file
      self.stream.write(text)
    return len(text)

  def writelines(self, lines) -> None:
    for line in lines:
      self.write(line)

  def flush(self) -> None:
    with contextlib.suppress(OSError, ValueError):
      self.stream.flush()

  def __getattr__(self, name):
    return getattr(self.stream, name)


def steady(stream):
  """A Steady of a stream; None and what is steady already stay as they are."""
  return stream if stream is None or isinstance(stream, Steady) else Steady(stream)


def steady_streams() -> None:
  """Puts a Steady in the place of standard output and error: what is said is not what the work is done for."""
  sys.stdout, sys.stderr = steady(sys.stdout), steady(sys.stderr)


def say(text: str) -> None:
  """Prints a line; one that cannot be printed is dropped."""
  stream = steady(sys.stdout)
  print(text, file=stream, flush=True)


def open_streams() -> None:
  """Puts /dev/null in the place of standard streams that are closed, and of those that are None.

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
