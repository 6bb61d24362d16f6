"""One run at a time in a workdir: two would overwrite each other's checkpoints.

workdir/lease.json names the process that runs there and is renewed every few seconds. Clocks of different machines are
never compared: a process that finds a lease watches whether it is renewed. A process that has ended on this machine is
recognised immediately, and so is a lease that came with a copy of the folder: it names another folder.
"""
import contextlib
import os
import pathlib
import platform
import threading
import time
import uuid
from collections.abc import Callable
from typing import Any

from etils import epath

from t5like.errors import CheckpointError
from t5like.files import plain_json, schema, writing
from t5like.files.schema import Object, Text, Whole

BEAT = 10.0  # seconds between renewals
PATIENCE = 3.5 * BEAT  # a lease not renewed for this long has expired
FIELDS = dict(id=Text(100), host=Text(1000), pid=Whole(), machine=Text(1000))
LEASE = Object(FIELDS, tuple(FIELDS))
HELD, UNKNOWN, GONE = 'held', 'unknown', 'gone'
ENDED_STATES = ('Z', 'X')  # of a process that has ended, before its parent has read how
Values = dict[str, Any]  # of a lease


class Lease:
  """Holds a workdir until `close`. CheckpointError when another run has it."""

  def __init__(self, workdir: Any, say: Callable[[str], None] = print) -> None:
    self.path = epath.Path(workdir) / 'lease.json'
    self.workdir = workdir
    self.own = dict(
        id=uuid.uuid4().hex,
        host=platform.node(),
        pid=os.getpid(),
        machine=_machine(),
        began=_began(os.getpid()),
        folder=_folder(workdir))
    self.beats = 0
    self.stop = threading.Event()
    self._refuse(say)
    self._renew()
    self.check()
    self.thread = threading.Thread(target=self._beat, name='lease', daemon=True)
    self.thread.start()

  def _refuse(self, say: Callable[[str], None]) -> None:
    """CheckpointError if another run holds the lease."""
    lease = self._read()
    holder = _holder(lease, self.path)
    if lease is None or holder == GONE:
      return
    if holder == UNKNOWN:
      say(f'{self.path} is of process {lease["pid"]} on {lease["host"]}; watching for {PATIENCE:.0f} s whether it '
          'lives.')
      if not self._is_renewed():
        return
    raise CheckpointError(
        f'--workdir={self.workdir}: process {lease["pid"]} on {lease["host"]} is training there now, and two runs in '
        'one folder would overwrite each other. Wait for it, stop it, or give another --workdir.')

  def _is_renewed(self) -> bool:
    """Watches the lease for PATIENCE seconds; False if its holder has ended or does not renew it."""
    before = self._last_renewal()
    end = time.monotonic() + PATIENCE
    while self._last_renewal() == before:
      if time.monotonic() > end:
        return False
      time.sleep(BEAT / 4)
    return self._read() is not None

  def _read(self) -> Values | None:
    """The values of the file, or None where it holds no lease."""
    try:
      return schema.parse(schema.content(self.path), LEASE)
    except (OSError, schema.Invalid):
      return None

  def _last_renewal(self) -> tuple[Values | None, int | None]:
    """A value that changes with every renewal."""
    changed = None
    if not writing.is_remote(self.path):
      with contextlib.suppress(OSError):
        changed = os.stat(self.path).st_mtime_ns
    return self._read(), changed

  def _renew(self) -> None:
    self.beats += 1
    content = plain_json.dumps(dict(self.own, beats=self.beats))
    try:
      self.path.parent.mkdir(parents=True, exist_ok=True)
      writing.write_file(self.path, content, f'{self.own["id"]}.tmp')
    except OSError as e:
      raise CheckpointError(f'--workdir: cannot write {self.path} ({e}). Give a folder that this user may write '
                            'to, with room on its disk.') from e

  def _beat(self) -> None:
    while not self.stop.wait(BEAT):
      if self._other() is not None:
        return  # `check` reports it
      try:
        self._renew()
      except Exception:  # a full disk, or one of the errors of object stores: the checkpoints report it
        with contextlib.suppress(OSError):  # a renewal that needs no space
          os.utime(self.path)

  def _other(self) -> Values | None:
    """The lease, if it is another run's."""
    lease = self._read()
    if lease is None or lease['id'] == self.own['id']:
      return None
    return lease

  def check(self) -> None:
    """CheckpointError if another run has taken the workdir over (this one having been suspended, say)."""
    lease = self._other()
    if lease is not None:
      raise CheckpointError(f'--workdir={self.workdir}: process {lease["pid"]} on {lease["host"]} has taken this '
                            'folder over, because this run showed no sign of life. It ends here, and saved no more.')

  def close(self) -> None:
    """Gives the workdir back."""
    self.stop.set()
    self.thread.join()
    lease = self._read()
    if lease is not None and lease['id'] == self.own['id']:
      with contextlib.suppress(OSError):
        self.path.unlink(missing_ok=True)


def _folder(workdir: Any) -> str:
  """The name of a workdir on this machine, without links."""
  if writing.is_remote(workdir):
    return str(workdir).rstrip('/')
  return os.path.realpath(workdir)


def _holder(lease: Values | None, path: Any) -> str:
  """State of the process of a lease at `path`.

  HELD if it lives on this machine and trains in that folder, GONE if it does not, UNKNOWN if that cannot be seen from
  here.
  """
  if not lease:
    return GONE
  if lease['machine'] != _machine():
    return UNKNOWN
  if not _lives(lease):
    return GONE
  folder = lease.get('folder')
  if not isinstance(folder, str):
    return HELD  # of an older version
  if folder == _folder(path.parent):
    return HELD
  if writing.is_remote(path) or writing.is_remote(folder):
    return UNKNOWN
  try:
    is_same = os.path.samefile(folder, path.parent)
  except OSError:  # the folder was moved, with its run in it
    return UNKNOWN
  return HELD if is_same else GONE  # a copy, unless both names lead to one folder


def _machine() -> str:
  """A name for what processes can see each other by: this boot of this machine, and the container.

  Where that is not known, the network card's number as well as the name, which another machine may have too. A
  machine without a card gets another random number in each process: whether one lives is then seen by renewals.
  """
  try:
    boot = pathlib.Path('/proc/sys/kernel/random/boot_id').read_text().strip()
    return f'{boot} {os.readlink("/proc/self/ns/pid")}'
  except OSError:
    return f'{platform.node()} {uuid.getnode():x}'


def _began(pid: int) -> int | None:
  """When a process began, in ticks since the machine did, for numbers are reused; None if that is not known."""
  _, began = _status(pid)
  return began


def _status(pid: int) -> tuple[str | None, int | None]:
  """(state, such as 'R' or 'Z', and when it began) of a process, from Linux; (None, None) elsewhere."""
  try:
    fields = pathlib.Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()
    return fields[0], int(fields[19])
  except (OSError, ValueError, IndexError):
    return None, None


def _lives(lease: Values) -> bool:
  """Whether the process of a lease of this machine still exists."""
  if lease['pid'] <= 0:
    return False
  try:
    os.kill(lease['pid'], 0)
  except PermissionError:
    pass  # another user's, who may hide when it began
  except (OSError, OverflowError):
    return False
  state, began = _status(lease['pid'])
  if state in ENDED_STATES:
    return False
  return began is None or lease.get('began') in (None, began)
