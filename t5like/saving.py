"""When and how a run saves its state."""
import importlib.metadata

from t5like import config as config_lib, recovery
from t5like.errors import CheckpointError


def meta(run):
  """What a checkpoint of a loop.Run remembers beside its arrays, as JSON."""
  versions = {p: importlib.metadata.version(p) for p in ('jax', 'flax', 'optax', 'grain')}
  return dict(step=run.step, tokens=run.tokens, examples_seen=run.examples_seen, skipped=run.skipped,
              rewinds=len(run.rewinds), rows=run.rows.used(run.examples_seen, run.skipped),
              validation=run.validation, stopper=run.stopper.to_meta(), config=config_lib.to_json(run.asked),
              data=run.store.fingerprint, vocabulary=run.store.vocabulary.fingerprint, versions=versions)


def save(run):
  """Starts to save the newest step of a loop.Run, unless it was not finite: then the next finite one."""
  run.save_late = bool(run.last and run.last['bad_in_a_row'])
  if run.save_late or run.saved_step == run.step:
    return
  recovery.check_model(run)
  if run.lease:
    run.lease.check()
  run.now('save')
  if run.checkpoints.save(run.step, run.state, meta(run)):
    run.saved_step = run.step
  run.now('step')


def save_for_good(run):
  """Saves, and waits until the newest step that can be saved is on disk; a save that fails is tried once more."""
  save(run)
  run.now('save')
  try:
    run.checkpoints.wait()
  except CheckpointError as error:
    run.screen.say(f'WARNING: {error} Trying again.')
    run.saved_step = -1
  if run.saved_step < run.step and not run.save_late:
    save(run)
    run.now('save')
    run.checkpoints.wait()
    if run.saved_step < run.step:
      raise CheckpointError(f'the last checkpoint, of step {run.step:,}, could not be saved; see above.')
