"""What a run does about steps that went bad: keeps their batches, goes back to a checkpoint, leaves rows out."""
from collections.abc import Callable
from typing import Any

import jax
from jax.experimental import multihost_utils

from t5like.batches import bad_batches
from t5like.errors import BadSteps, CheckpointError, NumericsError
from t5like.files import plain_json, writing
from t5like.storage import checksums, rewinds as rewinds_lib
from t5like.storage.checkpoint import Checkpoints
from t5like.training.phases import Phases
from t5like.training.progress import Progress
from t5like.training.trainer import Batch, State, Trainer

MOST_DUMPS = 32  # batches kept by one start of a run


class Rewinds:
  """How often a run went back, and why (rewinds.py).

  A rewind is written down before the run continues, so that one that is killed meanwhile does the same again; on a
  full disk it waits in memory.
  """

  def __init__(self, workdir: str, budget: int, writes: writing.Guarded, say: Callable[[str], None]):
    """budget: guard.rewinds."""
    self.workdir = workdir
    self.budget = budget
    self.writes = writes
    self.say = say
    self.records = rewinds_lib.read_rewinds(workdir)

  def add(self, error: BadSteps, progress: Progress, checkpoints: Checkpoints) -> None:
    """Decides that the run goes back to a checkpoint after `error`, and records it.

    The rows from there to the newest batch are left out from now on. Raises `error`, with why, when guard.rewinds are
    spent or there is nothing to go back to.
    """
    try:
      checkpoints.wait()
    except CheckpointError as failed:
      self.say(f'WARNING: {failed}')
    counts = rewinds_lib.happened(self.records)
    steps = [step for step in checkpoints.steps if counts(step, checkpoints.meta(step))]
    to_step = rewinds_lib.target(steps, self.records)
    if len(self.records) >= self.budget:
      raise BadSteps(f'{error} The run has gone back {len(self.records)} times (guard.rewinds={self.budget}).')
    if to_step is None:
      raise BadSteps(f'{error} There is no checkpoint to go back to.')
    first, stop = checkpoints.meta(to_step)['examples_seen'], progress.examples_seen
    self._write(dict(from_step=progress.step, to_step=to_step, rows=[first, stop], why=str(error)))
    self.say(f'{error} Going back to step {to_step:,} and leaving out rows {first:,} to {stop - 1:,} '
             f'(rewind {len(self.records)} of at most {self.budget}, guard.rewinds).')

  def _write(self, record: rewinds_lib.Record) -> None:
    records = [*self.records, record]
    if jax.process_index() == 0:
      self.writes.replace(f'{self.workdir}/rewinds.json', plain_json.dumps(records, indent=2) + '\n')
      self.writes.flush()
    if jax.process_count() > 1:
      multihost_utils.sync_global_devices('rewind')
    self.records = records


class BadBatches:
  """Keeps this host's part of batches whose steps were bad, for `main.py inspect --batch=FILE`."""

  def __init__(self, workdir: str, writes: writing.Guarded, say: Callable[[str], None]):
    self.workdir = workdir
    self.writes = writes
    self.say = say
    self.count = 0

  def keep(self, batch: Batch, values: dict[str, float], step: int, first_row: int) -> None:
    """Writes one of the first MOST_DUMPS.

    Args:
      batch: numpy.
      values: the step's metrics.
      step: its number.
      first_row: of the whole batch, in the endless sequence.
    """
    if self.count >= MOST_DUMPS:
      return
    self.count += 1
    host = '' if jax.process_count() == 1 else f'.host_{jax.process_index()}'
    path = f'{self.workdir}/bad_steps/step_{step:08}{host}.npz'
    about = dict(values, step=step, first_row=first_row, host=jax.process_index(), hosts=jax.process_count())
    self.writes.replace(path, bad_batches.pack(batch, about))
    self.say(f'Step {step:,} changed nothing: loss {values["loss"]:.4g}, gradient norm '
             f'{values["grad_norm"]:.4g}. Its batch is in {path}')


def check_model(trainer: Trainer, phases: Phases, step: int) -> None:
  """`Trainer.check`, as a phase of the run."""
  if trainer.needs_check:
    with phases.during('eval', 'start'):  # the first time may compile
      trainer.check(step)


def compare_devices(state: State, mesh: jax.sharding.Mesh, step: int) -> None:
  """NumericsError when a device no longer holds what those with the same piece of the state hold."""
  arrays: dict[str, Any] = {name: state[name] for name in ('params', 'opt_state')}
  wrong = checksums.differing_replicas(arrays, mesh)
  if wrong:
    array, device = wrong[0]
    raise NumericsError(
        f'After step {step:,} device {device.id} ({device.device_kind}, host {device.process_index}) holds '
        f'other values of {array} than the devices that should hold the same ({len(wrong)} differences in all, '
        'guard.compare_every): its memory or arithmetic is at fault. Nothing of this was saved. Take that host '
        'out and start again; the newest checkpoint is from before.')
