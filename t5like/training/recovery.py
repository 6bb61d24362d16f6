"""What a run does about bad steps: keeps their batches, rewinds to a checkpoint, skips rows."""
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
  """The rewinds of a run, and their reasons (rewinds.py).

  A rewind is recorded before the run continues, so that a run which is killed meanwhile does the same again. While the
  disk is full, the record stays in memory.
  """

  def __init__(self, workdir: str, budget: int, writes: writing.Guarded, say: Callable[[str], None]):
    """budget: guard.rewinds."""
    self.workdir = workdir
    self.budget = budget
    self.writes = writes
    self.say = say
    self.records = rewinds_lib.read_rewinds(workdir)

  def add(self, error: BadSteps, progress: Progress, checkpoints: Checkpoints) -> None:
    """Decides to which checkpoint the run is rewound after `error`, and records it.

    The rows from there to the newest batch are skipped from now on. Raises `error`, with the reason, when guard.rewinds
    are spent or there is no checkpoint.
    """
    to_step = self._target(checkpoints)
    done = len(self.records)
    if done >= self.budget:
      raise BadSteps(f'{error} The run was rewound {done} times (guard.rewinds={self.budget}).')
    if to_step is None:
      raise BadSteps(f'{error} There is no checkpoint to rewind to.')
    meta = checkpoints.meta(to_step)
    first = meta['examples_seen']
    stop = progress.examples_seen
    record = dict(
        from_step=progress.step,
        to_step=to_step,
        rows=[first, stop],
        why=str(error),
    )
    self._write(record)
    self.say(
        f'{error} Rewinding to step {to_step:,} and skipping rows {first:,} to {stop - 1:,} '
        f'(rewind {len(self.records)} of at most {self.budget}, guard.rewinds).')

  def _target(self, checkpoints: Checkpoints) -> int | None:
    """The step of the checkpoint to rewind to, if there is one."""
    try:
      checkpoints.wait()
    except CheckpointError as failed:
      self.say(f'WARNING: {failed}')
    counts = rewinds_lib.happened(self.records)
    steps = []
    for step in checkpoints.steps:
      meta = checkpoints.meta(step)
      if counts(step, meta):
        steps.append(step)
    return rewinds_lib.target(steps, self.records)

  def _write(self, record: rewinds_lib.Record) -> None:
    records = [*self.records, record]
    if jax.process_index() == 0:
      content = plain_json.dumps(records, indent=2)
      self.writes.replace(f'{self.workdir}/rewinds.json', content + '\n')
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
    host = jax.process_index()
    hosts = jax.process_count()
    suffix = '' if hosts == 1 else f'.host_{host}'
    path = f'{self.workdir}/bad_steps/step_{step:08}{suffix}.npz'
    facts = dict(
        values,
        step=step,
        first_row=first_row,
        host=host,
        hosts=hosts,
    )
    content = bad_batches.pack(batch, facts)
    self.writes.replace(path, content)
    self.say(
        f'Step {step:,} changed nothing: loss {values["loss"]:.4g}, gradient norm {values["grad_norm"]:.4g}. Its '
        f'batch is in {path}')


def check_model(trainer: Trainer, phases: Phases, step: int) -> None:
  """`Trainer.check`, as a phase of the run."""
  if not trainer.needs_check:
    return
  with phases.during('eval', 'start'):  # the first time may compile
    trainer.check(step)


def compare_devices(state: State, mesh: jax.sharding.Mesh, step: int) -> None:
  """NumericsError when replicas of the state differ."""
  arrays: dict[str, Any] = {name: state[name] for name in ('params', 'opt_state', 'ema') if name in state}
  differing = checksums.differing_replicas(arrays, mesh)
  if not differing:
    return
  array, device = differing[0]
  raise NumericsError(
      f'After step {step:,} device {device.id} ({device.device_kind}, host {device.process_index}) holds '
      f'other values of {array} than its replicas ({len(differing)} differences in all, guard.compare_every): its '
      'memory or arithmetic is faulty. The state of this step is not saved. Exclude that host and start again; the '
      'newest checkpoint is older than the fault.')
