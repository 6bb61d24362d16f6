"""One run at a time in a workdir: two would overwrite each other's checkpoints.

workdir/lease.json says who runs there and is renewed every few seconds. Clocks of different machines are never
compared: whoever finds a lease watches whether it is renewed. A process that is no more on this machine is known at
once, and so is a lease that came with a copy of the folder: the one whose folder it names is another.
"""
import contextlib
import os
import pathlib
import platform
import threading
import time
import uuid

from etils import epath

from t5like import plain_json, schema, writing
from t5like.errors import CheckpointError
from t5like.schema import Object, Text, Whole

BEAT = 10.0  # seconds between renewals
PATIENCE = 3.5 * BEAT  # a lease that was not renewed for so long is nobody's
FIELDS = dict(id=Text(100), host=Text(1000), pid=Whole(), machine=Text(1000))
LEASE = Object(FIELDS, tuple(FIELDS))
HELD, UNKNOWN, GONE = 'held', 'unknown', 'gone'


class Lease:
  """Holds a workdir until `close`. CheckpointError when another run has it."""

  def __init__(self, workdir, say=print):
    self.path, self.workdir = epath.Path(workdir) / 'lease.json', workdir
    self.own = dict(id=uuid.uuid4().hex, host=platform.node(), pid=os.getpid(), machine=_machine(),
                    began=_began(os.getpid()), folder=_folder(workdir))
    self.beats, self.stop = 0, threading.Event()
    self._refuse(say)
    self._renew()
    self.check()
    self.thread = threading.Thread(target=self._beat, name='lease', daemon=True)
    self.thread.start()

  def _refuse(self, say):
    """CheckpointError if the lease that is there is somebody's."""
    lease = self._read()
    holder = _holder(lease, self.path)
    if holder == GONE:
      return
    if holder == UNKNOWN:
      say(f'{self.path} is of process {lease["pid"]} on {lease["host"]}; watching for {PATIENCE:.0f} s whether it '
          'lives.')
      sign = self._sign()
      end = time.monotonic() + PATIENCE
      while self._sign() == sign:
        if time.monotonic() > end:
          return
        time.sleep(BEAT / 4)
      if not self._read():  # it has ended meanwhile
        return
    raise CheckpointError(
        f'--workdir={self.workdir}: process {lease["pid"]} on {lease["host"]} is training there now, and two runs in '
        'one folder would overwrite each other. Wait for it, stop it, or give another --workdir.')

  def _read(self):
    """What the file says, or None where it says nothing that could be a lease."""
    try:
      return schema.parse(schema.content(self.path), LEASE)
    except (OSError, schema.Invalid):
      return None

  def _sign(self):
    """What changes with every renewal."""
    changed = None
    if not writing.is_remote(self.path):
      with contextlib.suppress(OSError):
        changed = os.stat(self.path).st_mtime_ns
    return self._read(), changed

  def _renew(self):
    self.beats += 1
    try:
      self.path.parent.mkdir(parents=True, exist_ok=True)
      writing.write_file(self.path, plain_json.dumps(dict(self.own, beats=self.beats)), f'{self.own["id"]}.tmp')
    except OSError as e:
      raise CheckpointError(f'--workdir: cannot write {self.path} ({e}). Give a folder that this user may write '
                            'to, with room on its disk.') from e

  def _beat(self):
    while not self.stop.wait(BEAT):
      lease = self._read()
      if lease and lease['id'] != self.own['id']:
        return  # `check` reports it
      try:
        self._renew()
      except Exception:  # a full disk, or one of the errors of object stores, is the checkpoints' matter
        with contextlib.suppress(OSError):  # a sign of life that needs no room
          os.utime(self.path)

  def check(self):
    """CheckpointError if another run has taken the workdir over (this one having been suspended, say)."""
    lease = self._read()
    if lease and lease['id'] != self.own['id']:
      raise CheckpointError(f'--workdir={self.workdir}: process {lease["pid"]} on {lease["host"]} has taken this '
                            'folder over, because this run showed no sign of life. It ends here, and saved no more.')

  def close(self):
    self.stop.set()
    self.thread.join()
    lease = self._read()
    if lease and lease['id'] == self.own['id']:
      with contextlib.suppress(OSError):
        self.path.unlink(missing_ok=True)


def _folder(workdir):
  """What a workdir is called on this machine, without links."""
  return str(workdir).rstrip('/') if writing.is_remote(workdir) else os.path.realpath(workdir)


def _holder(lease, path):
  """HELD if the process of a lease found at `path` lives on this machine and trains in that folder, GONE if it does
  not, UNKNOWN if that is not to be seen from here."""
  if not lease:
    return GONE
  if lease['machine'] != _machine():
    return UNKNOWN
  if not _lives(lease):
    return GONE
  if not isinstance(lease.get('folder'), str):
    return HELD  # of an older version
  if lease['folder'] == _folder(path.parent):
    return HELD
  if writing.is_remote(path) or writing.is_remote(lease['folder']):
    return UNKNOWN
  try:  # a copy, unless both names lead to one folder
    return HELD if os.path.samefile(lease['folder'], path.parent) else GONE
  except OSError:  # the folder was moved, with its run in it
    return UNKNOWN


def _machine():
  """What processes can see each other by: this boot of this machine, and the container.

  Where that is not known, the network card's number as well as the name, which another machine may have too. A
  machine without a card gets another random number in each process: whoever lives is then to be seen by renewals.
  """
  try:
    boot = pathlib.Path('/proc/sys/kernel/random/boot_id').read_text().strip()
    return f'{boot} {os.readlink("/proc/self/ns/pid")}'
  except OSError:
    return f'{platform.node()} {uuid.getnode():x}'


def _began(pid):
  """When a process began, in ticks since the machine did, for numbers are given again; None if that is not known."""
  return _status(pid)[1]


def _status(pid):
  """(state, such as 'R' or 'Z', and when it began) of a process, from Linux; (None, None) elsewhere."""
  try:
    fields = pathlib.Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()
    return fields[0], int(fields[19])
  except (OSError, ValueError, IndexError):
    return None, None


def _lives(lease):
  """Whether the process of a lease of this machine is still there."""
  if lease['pid'] <= 0:
    return False
  try:
    os.kill(lease['pid'], 0)
  except PermissionError:
    pass  # another user's, who may hide when it began
  except (OSError, OverflowError):
    return False
  state, began = _status(lease['pid'])
  if state in ('Z', 'X'):  # it has ended, and its parent has not asked how
    return False
  return began is None or lease.get('began') in (None, began)
