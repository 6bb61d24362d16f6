"""When and how a run saves its state."""
import contextlib
import importlib.metadata
import time

import jax

from t5like import config as config_lib, recovery
from t5like.errors import CheckpointError, NumericsError, PeerLost, Preempted

TRIES = 24  # times that the last save of a run is tried
PAUSE = 5.0  # seconds between them: time to make room on a disk


def meta(run):
  """What a checkpoint of a loop.Run remembers beside its arrays, as JSON."""
  versions = {p: importlib.metadata.version(p) for p in ('jax', 'flax', 'optax', 'grain')}
  return dict(step=run.step, tokens=run.tokens, examples_seen=run.examples_seen, skipped=run.skipped,
              rewinds=len(run.rewinds), rows=run.rows.used(run.examples_seen, run.skipped),
              validation=run.validation, stopper=run.stopper.to_meta(), config=config_lib.to_json(run.asked),
              data=run.store.fingerprint, vocabulary=run.store.vocabulary.fingerprint, versions=versions)


def save(run, now=False):
  """Starts to save the newest step of a loop.Run.

  After a bad step, which left parameters and optimizer as they were, the next good step is saved instead, unless
  there may be none: `now`.
  """
  run.save_late = not now and bool(run.last and run.last['bad_in_a_row'])
  if run.save_late or run.saved_step == run.step:
    return
  recovery.check_model(run)
  if run.lease:
    run.lease.check()
  run.now('save')
  if run.checkpoints.save(run.step, run.state, meta(run)):
    run.saved_step = run.step
  run.now('step')


def save_for_good(run, tries=None):
  """Saves the newest step, and waits until it is on the disk. CheckpointError after so many `tries` (None: TRIES)."""
  tries = tries or TRIES
  for left in reversed(range(tries)):
    if _saved(run):
      return
    if left == tries - 1 > 0:
      run.screen.say(f'The last checkpoint is tried again every {PAUSE:g} s, {left} times at most: make room for it.')
    if left:
      run.watchdog.arm('save')
      time.sleep(PAUSE)
  raise CheckpointError(f'{run.checkpoints.error} The last checkpoint, of step {run.step:,}, could not be saved in '
                        f'{tries} attempts.')


def _saved(run):
  """Tries to save the newest step now; whether it is on the disk."""
  save(run, now=True)
  run.now('save')
  if not run.checkpoints.wait():
    run.saved_step = -1
  return run.saved_step == run.step


def rescue(run, error):
  """Saves the newest step of a loop.Run that `error` ends, where that can still be done; returns a sentence.

  Not after errors of which the state itself is suspected, or that leave the folder to another run; and not one of
  several processes, for the others would have to save with it.
  """
  if isinstance(error, (CheckpointError, NumericsError, PeerLost, Preempted)) or jax.process_count() > 1:
    return ''
  with contextlib.suppress(Exception):  # `error` is what the run ends with; arrays of a step that failed are gone
    run.collect()
    if run.step == run.saved_step:
      run.checkpoints.wait()
    else:
      save_for_good(run, tries=1)
    return f'The state of step {run.step:,} is saved: once this is mended, the same command resumes there.'
  return ''
