"""One run at a time in a workdir: two would overwrite each other's checkpoints.

workdir/lease.json says who runs there and is renewed every few seconds. Clocks of different machines are never
compared: whoever finds a lease watches whether it is renewed. A process that is no more on this machine is known at
once.
"""
import json
import os
import pathlib
import platform
import threading
import time
import uuid

from etils import epath

from t5like import plain_json
from t5like.errors import CheckpointError

BEAT = 10.0  # seconds between renewals
PATIENCE = 3.5 * BEAT  # a lease that was not renewed for so long is nobody's


class Lease:
  """Holds a workdir until `close`. CheckpointError when another run has it."""

  def __init__(self, workdir, say=print):
    self.path, self.workdir = epath.Path(workdir) / 'lease.json', workdir
    self.own = dict(id=uuid.uuid4().hex, host=platform.node(), pid=os.getpid(), machine=_machine(),
                    began=_began(os.getpid()))
    self.beats, self.stop = 0, threading.Event()
    self._refuse(say)
    self._renew()
    self.check()
    self.thread = threading.Thread(target=self._beat, daemon=True)
    self.thread.start()

  def _refuse(self, say):
    """CheckpointError if the lease that is there is somebody's."""
    found = self._read()
    if not found or _is_gone(found):
      return
    if found['machine'] != self.own['machine']:
      say(f'{self.path} is of process {found["pid"]} on {found["host"]}; seeing for {PATIENCE:.0f} s whether it lives.')
      end = time.monotonic() + PATIENCE
      while self._read() == found:
        if time.monotonic() > end:
          return
        time.sleep(BEAT / 4)
    raise CheckpointError(
        f'--workdir={self.workdir}: process {found["pid"]} on {found["host"]} is training there now, and two runs in '
        'one folder would overwrite each other. Wait for it, stop it, or give another --workdir.')

  def _read(self):
    try:
      return json.loads(self.path.read_text())
    except (OSError, ValueError):
      return None

  def _renew(self):
    self.beats += 1
    new = self.path.parent / f'lease.json.{self.own["id"]}.tmp'
    try:
      self.path.parent.mkdir(parents=True, exist_ok=True)
      new.write_text(plain_json.dumps(dict(self.own, beats=self.beats)))
      new.replace(self.path)
    except OSError as e:
      raise CheckpointError(f'--workdir: cannot write {self.path} ({e}). Give a folder that this user may write '
                            'to.') from e

  def _beat(self):
    while not self.stop.wait(BEAT):
      found = self._read()
      if found and found['id'] != self.own['id']:
        return  # `check` tells
      try:
        self._renew()
      except CheckpointError:
        pass  # a full disk is the checkpoints' matter

  def check(self):
    """CheckpointError if another run has taken the workdir over (this one having been suspended, say)."""
    found = self._read()
    if found and found['id'] != self.own['id']:
      raise CheckpointError(f'--workdir={self.workdir}: process {found["pid"]} on {found["host"]} has taken this '
                            'folder over, because this run showed no sign of life. It ends here, and saved no more.')

  def close(self):
    self.stop.set()
    self.thread.join()
    found = self._read()
    if found and found['id'] == self.own['id']:
      self.path.unlink(missing_ok=True)


def _machine():
  """What processes can see each other by: this boot of this machine, and the container."""
  try:
    boot = pathlib.Path('/proc/sys/kernel/random/boot_id').read_text().strip()
    return f'{boot} {os.readlink("/proc/self/ns/pid")}'
  except OSError:
    return platform.node()


def _began(pid):
  """When a process began, in ticks since the machine did, for numbers are given again; None if it is no more."""
  try:
    return int(pathlib.Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()[19])
  except (OSError, ValueError, IndexError):
    return None


def _is_gone(found):
  """Whether the process of a lease is known to be no more."""
  if found.get('machine') != _machine():
    return False
  if not pathlib.Path('/proc').exists():
    try:
      os.kill(found['pid'], 0)
      return False
    except OSError:
      return True
  return _began(found['pid']) != found['began']
