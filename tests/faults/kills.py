"""kill -9 and SIGTERM at random moments: what is resumed is bit for bit what was not interrupted."""
import random
import shutil
import signal
import time

from tests.faults import runs

PEER_LIMIT = 45  # seconds after which the peers of a killed process must have ended: heartbeat, and slack


def kills(arm, count, seed=0):
  """{kills, runs, mismatches, lost, partial, slowest_peer, notes} of `count` kills of runs of `arm` (see runs.kind).

  mismatches: completed runs that differ from the undisturbed one in any loss, norm, weight or row; lost: kills after
  which a checkpoint that had been there before was gone although nothing newer was; partial: starts that found a
  damaged checkpoint. Every fourth run also prepares its data, so that is interrupted too.
  """
  kind, facts, seconds = arm
  rng, found = random.Random(seed), dict(kills=0, runs=0, mismatches=0, lost=0, partial=0, slowest_peer=0.0, notes=[])
  while found['kills'] < count:
    workdir = kind.folder / f'run-{found["runs"]}'
    own = found['runs'] % 4 == 3 and kind.processes == 1
    prepared = kind.folder / f'prepared-{found["runs"]}' if own else None
    in_this_run = 0
    while True:
      newest = max(runs.committed(workdir), default=0)
      children = kind.start(workdir, prepared)
      if found['kills'] < count and in_this_run < 10:
        _kill_one(rng, children, rng.uniform(0, seconds), found)
        in_this_run += any(child.poll() == -9 for child in children)
      codes = [child.wait(300) for child in children]
      said = kind.said()
      if 'Trying the one before it' in said:
        found['partial'] += 1
        found['notes'].append(next(line for line in said.splitlines() if 'Trying the one before it' in line)[:400])
      found['lost'] += max(runs.committed(workdir), default=0) < newest
      if not any(codes):
        break
      if -9 not in codes:
        raise AssertionError(f'{kind.name}: ended with {codes} by itself:\n{said[-4000:]}')
    found['runs'] += 1
    same = kind.facts(workdir) == facts
    found['mismatches'] += not same
    if same:
      shutil.rmtree(workdir)
      if prepared:
        shutil.rmtree(prepared)
  return found


def _kill_one(rng, children, after, found):
  """Kills one of the processes after so many seconds, if it still runs; its peers end by themselves."""
  end = time.monotonic() + after
  while time.monotonic() < end:
    if any(child.poll() is not None for child in children):
      return
    time.sleep(0.005)
  victim = rng.choice(children)
  victim.kill()
  if victim.code != -9:
    return
  found['kills'] += 1
  before = time.monotonic()
  for child in children:
    child.wait(PEER_LIMIT + 30)
  if len(children) > 1:
    found['slowest_peer'] = max(found['slowest_peer'], time.monotonic() - before)


def sigterms(arm, count, seed=0, number=signal.SIGTERM, code=75):
  """{signals, unsaved, mismatches, runs, slowest} of `count` signals at random moments between first step and end.

  Each must end all processes with `code`. unsaved: those that left no checkpoint of the very step at which all stopped;
  slowest: seconds from the signal to the end.
  """
  kind, facts, _ = arm
  rng, found = random.Random(seed), dict(signals=0, unsaved=0, mismatches=0, runs=0, slowest=0.0)
  while found['signals'] < count:
    if found['runs'] > 10 * count:
      raise AssertionError(f'{kind.name}: {found["runs"]} runs went to their end whatever was sent to them')
    workdir = kind.folder / f'term-{found["runs"]}'
    while True:
      children = kind.start(workdir)
      signalled = found['signals'] < count and _signal_one(rng, kind, workdir, children, number)
      before = time.monotonic()
      codes = [child.wait(300) for child in children]
      if not any(codes):
        break  # it came when everything was done
      if not signalled or set(codes) != {code}:
        raise AssertionError(f'{kind.name}: ended with {codes}:\n{kind.said()[-4000:]}')
      found['signals'] += 1
      found['slowest'] = max(found['slowest'], time.monotonic() - before)
      stopped = int(kind.said().split('stopped after step ')[1].split()[0].replace(',', ''))
      found['unsaved'] += max(runs.committed(workdir), default=0) != stopped
    found['runs'] += 1
    found['mismatches'] += kind.facts(workdir) != facts
  return found


def _signal_one(rng, kind, workdir, children, number):
  """A signal to one of the processes once this start has made some steps; whether it was sent."""
  log, wanted = workdir / 'metrics.jsonl', rng.randint(1, runs.STEPS // 4)
  lines = lambda: log.read_text().count('\n') if log.exists() else 0
  while 'First step' not in kind.said():
    if any(child.poll() is not None for child in children):
      return False
    time.sleep(0.005)
  first = lines()
  while lines() < first + wanted:
    if any(child.poll() is not None for child in children):
      return False
    time.sleep(0.005)
  rng.choice(children).kill(number)
  return True
