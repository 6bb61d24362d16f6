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
  """What a checkpoint remembers beside its arrays, as JSON."""
  versions = {package: importlib.metadata.version(package) for package in PACKAGES}
  return dict(
      progress.to_meta(), rows=parts.rows.used(progress.examples_seen, progress.skipped),
      config=config_lib.to_json(parts.plan.requested), data=parts.store.fingerprint,
      vocabulary=parts.store.vocabulary.fingerprint, versions=versions)


def can_rescue(error: Exception) -> bool:
  """Whether the state may be saved after an error; not by one of several processes: the others would have to help."""
  return jax.process_count() == 1 and not isinstance(error, NEVER_RESCUED)


class Save(Hook):
  """Saves the state, now and then and at the end.

  After a bad step, which left parameters and optimizer as they were, the next good step is saved instead, unless there
  may be none.
  """
  saved_step = -1
  is_late = False  # a save that waits for a good step
  last_was_bad = False

  def reset(self, progress: Progress) -> None:
    self.saved_step = progress.step if progress.step in self.parts.checkpoints.steps else -1
    self.is_late = False
    self.last_was_bad = False

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
    return f'The state of step {progress.step:,} is saved: once this is mended, the same command resumes there.'

  def save(self, progress: Progress) -> None:
    """Starts to save the newest step, if it is not saved yet. BadSteps when its parameters are not finite."""
    if self.saved_step == progress.step:
      return
    recovery.check_model(self.parts.trainer, self.parts.phases, progress.step)
    if self.parts.lease:
      self.parts.lease.check()
    with self.parts.phases.during('save'):
      if self.parts.checkpoints.save(progress.step, self.parts.trainer.state, meta(self.parts, progress)):
        self.saved_step = progress.step

  def save_for_good(self, progress: Progress, tries: int = 0) -> None:
    """Saves the newest step, and waits until it is on the disk. CheckpointError after so many `tries` (0: TRIES)."""
    tries = tries or TRIES
    for left in reversed(range(tries)):
      if self._is_on_disk(progress):
        return
      if left == tries - 1 > 0:
        self.parts.output.say(
            f'The last checkpoint is tried again every {PAUSE:g} s, {left} times at most: make room for it.')
      if left:
        self.parts.phases.watchdog.arm('save')
        time.sleep(PAUSE)
    raise CheckpointError(f'{self.parts.checkpoints.error} The last checkpoint, of step {progress.step:,}, could not '
                          f'be saved in {tries} attempts.')

  def _is_on_disk(self, progress: Progress) -> bool:
    """Tries to save the newest step now."""
    self.is_late = False
    self.save(progress)
    self.parts.phases.enter('save')
    if not self.parts.checkpoints.wait():
      self.saved_step = -1
    return self.saved_step == progress.step
