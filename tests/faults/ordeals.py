"""Stops, clocks, full disks and thousands of steps: a run comes through, and is bit for bit what it would have been."""
import contextlib
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

from tests.faults import forks, runs

LIMIT = 600  # seconds for a run that is not disturbed any more
SLOW = 0.15  # seconds that each step takes at least, so that something can happen meanwhile
FAKETIME = sorted(pathlib.Path('/usr/lib').glob('*/faketime/libfaketimeMT.so.1'))


def _start(kind, workdir, slow=SLOW, log=None):
  """A child that trains, a little slower."""
  def work():
    from t5like.training.trainer import Trainer
    real = Trainer.step

    def step(self, batch):
      time.sleep(slow)
      return real(self, batch)
    Trainer.step = step
    forks.run_main(*kind.argv(workdir))
  return forks.Child(work, log or kind.folder / 'log')


def _lines(workdir):
  log = workdir / 'metrics.jsonl'
  return log.read_bytes().count(b'\n') if log.exists() else 0


def _until(child, done, seconds=LIMIT):
  """Waits for `done()`; AssertionError when the child ends before."""
  end = time.monotonic() + seconds
  while not done():
    if child.poll() is not None or time.monotonic() > end:
      raise AssertionError(f'{child.log}: ended with {child.code} too early:\n{child.log.read_text()[-3000:]}')
    time.sleep(0.01)


def stops(arm, seconds):
  """{stops, stopped, lost, mismatches} of one run that is stopped in the middle (SIGSTOP) for so many seconds."""
  kind, facts, _ = arm
  workdir = kind.folder / 'stopped'
  child = _start(kind, workdir)
  _until(child, lambda: _lines(workdir) >= runs.STEPS // 3)
  os.kill(child.pid, signal.SIGSTOP)
  time.sleep(seconds)
  os.kill(child.pid, signal.SIGCONT)
  code = child.wait(LIMIT)
  same = not code and kind.facts(workdir) == facts
  return dict(stops=1, stopped=float(seconds), lost=int(code != 0), mismatches=int(not same),
              notes=[f'exit code {code}: {child.log.read_text()[-500:]}'] if code else [])


def clocks(arm):
  """{jumps, lost, mismatches, wrong} of one run whose clock goes an hour forwards, then two back.

  Every clock but the monotonic one, of Python and of all libraries, by libfaketime; wrong: phases of the ledger that
  have negative seconds or more than there were.
  """
  if not FAKETIME:
    raise SystemExit('python -m tests.faults --only=clocks needs libfaketime: apt-get install libfaketime')
  kind, facts, _ = arm
  workdir, offset = kind.folder / 'clock', kind.folder / 'offset'
  offset.write_text('+0\n')
  log = kind.folder / 'log.clock'
  environment = dict(
      os.environ, LD_PRELOAD=str(FAKETIME[0]), FAKETIME_TIMESTAMP_FILE=str(offset), FAKETIME_CACHE_DURATION='1',
      DONT_FAKE_MONOTONIC='1', FAKETIME_DONT_FAKE_MONOTONIC='1', JAX_PLATFORMS='cpu')
  # Python's sleep is an absolute one, which libfaketime does not know.
  code = (f'import sys, select; sys.path.insert(0, {str(forks.ROOT)!r})\n'
          'from t5like.training.trainer import Trainer\n'
          f'real = Trainer.step\ndef step(self, batch):\n  select.select([], [], [], {4 * SLOW})\n'
          '  return real(self, batch)\n'
          'Trainer.step = step\nimport main\nmain.main(sys.argv)')
  started = time.monotonic()
  with open(log, 'wb') as out:
    command = [sys.executable, '-c', code, *kind.argv(workdir)]
    process = subprocess.Popen(command, env=environment, stdout=out, stderr=out)
  jumps = ((runs.STEPS // 4, '+3600'), (runs.STEPS // 2, '-3600'))
  for lines, value in jumps:
    while _lines(workdir) < lines and process.poll() is None and time.monotonic() - started < LIMIT:
      time.sleep(0.01)
    offset.write_text(f'{value}\n')
  ended = process.wait(LIMIT)
  took = time.monotonic() - started
  lines = [json.loads(x)['seconds'] for x in (workdir / 'ledger.jsonl').read_text().split('\n') if x]
  wrong = [s for seconds in lines for s in seconds.values() if not 0 <= s <= took]
  same = not ended and kind.facts(workdir) == facts
  return dict(jumps=len(jumps), lost=int(ended != 0), mismatches=int(not same), wrong=len(wrong),
              notes=[f'exit code {ended}: {log.read_text(errors="replace")[-500:]}'] if ended else [])


@contextlib.contextmanager
def _small_disk(folder, size):
  """A tmpfs of so many bytes there. Needs root."""
  folder.mkdir(parents=True, exist_ok=True)
  subprocess.run(['mount', '-t', 'tmpfs', '-o', f'size={size}', 'tmpfs', folder], check=True)
  try:
    yield
  finally:
    subprocess.run(['umount', '-l', folder], check=True)


def _fill(folder):
  """Takes all room on a disk; returns the file that has it."""
  filler = folder / 'filler'
  with contextlib.suppress(OSError), open(filler, 'wb', buffering=0) as f:
    for piece in (2 ** 20, 2 ** 12, 1):
      with contextlib.suppress(OSError):
        while True:
          f.write(bytes(piece))
  return filler


def disks(arm, seconds):
  """{full, warnings, lost, mismatches, damaged} of a run whose disk, standard output on it too, is full for a while.

  damaged: lines of metrics.jsonl, ledger.jsonl and the like that are not whole.
  """
  kind, facts, _ = arm
  disk = kind.folder / 'disk'
  with _small_disk(disk, 2 ** 26):
    workdir = disk / 'run'
    child = _start(kind, workdir, max(SLOW, 2 * seconds / runs.STEPS), disk / 'log')
    _until(child, lambda: _lines(workdir) >= runs.STEPS // 4)
    filler = _fill(disk)
    time.sleep(seconds)
    full = shutil.disk_usage(disk).free == 0
    filler.unlink()
    code = child.wait(LIMIT)
    said = (disk / 'log').read_text(errors='replace')
    same = not code and kind.facts(workdir) == facts
    damaged = 0
    for path in workdir.glob('*.json*'):
      for line in path.read_text().split('\n') if path.suffix == '.jsonl' else [path.read_text()]:
        with contextlib.suppress(ValueError):
          damaged += not (line == '' or json.loads(line) is not None)
          continue
        damaged += 1
    left = [p.name for p in workdir.rglob('*.tmp')]
  return dict(full=float(seconds), warnings=said.count('WARNING'), lost=int(code != 0 or not full),
              mismatches=int(not same), damaged_lines=damaged, partial=len(left),
              notes=[f'exit code {code}: {said[-800:]}'] if code else [])


def prepares(arm):
  """{full, crashed, mismatches} of a `prepare` on a disk that is too small, which is then made larger."""
  kind, facts, _ = arm
  disk = kind.folder / 'small'
  codes = []
  with _small_disk(disk, 2 ** 26):
    filler = _fill(disk)
    for room in (0, 2 ** 12, 2 ** 14, 2 ** 15, 2 ** 16, 2 ** 26):
      with contextlib.suppress(OSError):
        os.truncate(filler, max(0, os.path.getsize(filler) - room))
      child = forks.Child(lambda: forks.run_main('prepare', *kind.argv(kind.folder / 'none', disk / 'prepared')),
                          kind.folder / 'log.prepare')
      codes.append(child.wait(LIMIT))
    argv = kind.argv(kind.folder / 'after', disk / 'prepared')
    child = forks.Child(lambda: forks.run_main(*argv), kind.folder / 'log')
    last = child.wait(LIMIT)
    same = not last and kind.facts(kind.folder / 'after') == facts
  wrong = [code for code in codes[:-1] if code not in (0, 3, 4)] + [code for code in codes[-1:] if code]
  return dict(full=len(codes) - codes.count(0), crashed=len(wrong), mismatches=int(not same),
              notes=[f'exit codes {codes}: {(kind.folder / "log.prepare").read_text()[-500:]}'] if wrong else [])


def saves(arm, steps, count):
  """{steps, saves, descriptors, threads, megabytes, grown} of one long run: what it holds after a tenth of it, and how
  much more in the end; grown: whether that is more than noise."""
  kind, _, _ = arm
  path = kind.folder / 'held.json'

  def work():
    import threading

    from t5like.training import saving
    real, seen = saving.Save.save, []

    def save(hook, progress):
      real(hook, progress)
      hook.parts.checkpoints.wait()
      pages = int(pathlib.Path('/proc/self/statm').read_text().split()[1])
      seen.append((len(os.listdir('/proc/self/fd')), threading.active_count(), pages * os.sysconf('SC_PAGESIZE') / 1e6))
      path.write_text(json.dumps(seen))
    saving.Save.save = save
    argv = [a for a in kind.argv(kind.folder / 'long') if 'stop.tokens' not in a and 'checkpoint.every' not in a]
    forks.run_main(*argv, f'--config.stop.tokens={steps * 8 * 32}', f'--config.checkpoint.every={steps // count}',
                   '--config.evaluate.every=0', '--config.log.every=10', '--config.guard.compare_every=0')
  child = forks.Child(work, kind.folder / 'log.long')
  code = child.wait(7200)
  seen = json.loads(path.read_text())
  early, late = seen[len(seen) // 10], seen[-1]
  grown = late[0] > early[0] + 5 or late[1] > early[1] + 3 or late[2] > early[2] * 1.1
  return dict(steps=steps, saves=len(seen), descriptors=f'{early[0]} -> {late[0]}', threads=f'{early[1]} -> {late[1]}',
              megabytes=f'{early[2]:.0f} -> {late[2]:.0f}', grown=int(grown), lost=int(code != 0),
              notes=[child.log.read_text()[-500:]] if code else [])
