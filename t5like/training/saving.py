"""When and how a run saves its state."""
import importlib.metadata
import time
from typing import Any

import jax

from t5like import config as config_lib
from t5like.errors import CheckpointError, NumericsError, PeerLost, Preempted
from t5like.training import recovery
from t5like.training.hooks import Hook, Step, Turn
from t5like.training.parts import Parts
from t5like.training.progress import Progress

TRIES = 24  # times that the last save of a run is tried
PAUSE = 5.0  # seconds between them: time to make room on a disk
PACKAGES = ('jax', 'flax', 'optax', 'grain')
# After these the state itself is suspected, or the folder belongs to another run.
NEVER_RESCUED = (CheckpointError, NumericsError, PeerLost, Preempted)


def meta(parts: Parts, progress: Progress) -> dict[str, Any]:
  """The content of a checkpoint beside its arrays, as JSON."""
  store = parts.store
  versions = {package: importlib.metadata.version(package) for package in PACKAGES}
  return dict(
      progress.to_meta(),
      rows=parts.rows.used(progress.examples_seen, progress.skipped),
      config=config_lib.to_json(parts.plan.requested),
      data=store.fingerprint,
      vocabulary=store.vocabulary.fingerprint,
      versions=versions,
  )


def can_rescue(error: Exception) -> bool:
  """Whether the state may be saved after an error; not by one of several processes: all of them have to save."""
  if jax.process_count() > 1:
    return False
  return not isinstance(error, NEVER_RESCUED)


class Save(Hook):
  """Saves the state every `checkpoint.every` steps and at the end.

  After a bad step, which did not change parameters and optimizer, the next good step is saved instead, unless the run
  ends before it.
  """
  saved_step = -1
  is_late = False  # a save that waits for a good step
  last_was_bad = False

  def reset(self, progress: Progress) -> None:
    is_saved = progress.step in self.parts.checkpoints.steps
    self.saved_step = progress.step if is_saved else -1
    self.is_late = False
    self.last_was_bad = False

  def start(self, turn: Turn) -> None:
    """A branch keeps the checkpoint that it begins with: the run that it is of may delete its own."""
    progress = turn.progress
    is_branch = bool(self.parts.plan.requested.branch_from) and not self.parts.checkpoints.steps
    if is_branch and progress.step:
      self.save(progress)

  def measured(self, step: Step) -> None:
    self.last_was_bad = bool(step.metrics['bad_in_a_row'])

  def is_due(self, step: int) -> bool:
    return self.is_late or super().is_due(step)

  def act(self, turn: Turn) -> None:
    if turn.reason:  # it is saved when the run has finished
      return
    self.is_late = self.last_was_bad
    if not self.is_late:
      self.save(turn.progress)

  def leave(self, progress: Progress) -> None:
    self.save_for_good(progress)

  def finish(self, turn: Turn) -> None:
    self.save_for_good(turn.progress)

  def rescue(self, progress: Progress) -> str:
    if self.saved_step == progress.step:
      self.parts.checkpoints.wait()
    else:
      self.save_for_good(progress, tries=1)
    return f'The state of step {progress.step:,} is saved: once this is fixed, the same command resumes there.'

  def save(self, progress: Progress) -> None:
    """Starts to save the newest step, if it is not saved yet. BadSteps when its parameters are not finite."""
    step = progress.step
    if self.saved_step == step:
      return
    parts = self.parts
    recovery.check_model(parts.trainer, parts.phases, step)
    if parts.lease:
      parts.lease.check()
    with parts.phases.during('save'):
      is_started = parts.checkpoints.save(step, parts.trainer.state, meta(parts, progress))
      if is_started:
        self.saved_step = step

  def save_for_good(self, progress: Progress, tries: int = TRIES) -> None:
    """Saves the newest step, and waits until it is on the disk. CheckpointError when all `tries` fail."""
    parts = self.parts
    most_left = tries - 1
    for left in reversed(range(tries)):
      if self._is_on_disk(progress):
        return
      if not left:
        break
      if left == most_left:
        parts.output.say(
            f'The last checkpoint is tried again every {PAUSE:g} s, {left} times at most: free space for it.')
      parts.phases.watchdog.arm('save')
      time.sleep(PAUSE)
    raise CheckpointError(
        f'{parts.checkpoints.error} The last checkpoint, of step {progress.step:,}, could not be saved in {tries} '
        'attempts.')

  def _is_on_disk(self, progress: Progress) -> bool:
    """Tries to save the newest step now."""
    self.is_late = False
    self.save(progress)
    self.parts.phases.enter('save')
    if not self.parts.checkpoints.wait():
      self.saved_step = -1
    return self.saved_step == progress.step
