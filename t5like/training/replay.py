"""Steps done twice from one checkpoint: the only check of state that has no replica.

`guard.compare_every` finds a faulty device where another holds a replica. State that is sharded over all devices does
not have any; but the same steps from the same state give the same bits, unless memory or arithmetic is faulty.
"""
import contextlib
from collections.abc import Callable
from typing import Any

import jax

from t5like import sharding
from t5like.batches import pipeline
from t5like.batches.train_rows import TrainRows
from t5like.config_type import Config
from t5like.errors import CheckpointError, ConfigError, NumericsError
from t5like.prepared import opening
from t5like.storage import checksums, rewinds, workdir as workdir_lib
from t5like.storage.checkpoint import Checkpoints
from t5like.training import course as course_lib, resume
from t5like.training.stages import Stages
from t5like.training.trainer import Trainer, fetch
from t5like.training.watchdog import Watchdog

Observations = list[dict[str, Any]]  # of each step {metric: number, array's path: checksum}


def replay(
    workdir: str,
    steps: int = 10,
    devices: Any = None,
    say: Callable[[str], None] = print,
) -> int:
  """Does the steps after the newest checkpoint twice and compares their results; the run is not changed.

  On a pod, all hosts call it.

  Args:
    workdir: of the run.
    steps: how many.
    devices: those to use; None: all.
    say: called with lines for people.

  Returns:
    The number of arrays and metrics compared.

  Raises:
    NumericsError: anything differs; names the first step and the arrays.
    CheckpointError: there is no checkpoint.
  """
  config = workdir_lib.read_config(workdir)
  store = opening.open_data(config, say)
  mesh = sharding.make_mesh(config.mesh, devices)
  if steps < 1:
    raise ConfigError(f'--steps={steps}: at least one.')
  start, first_pass = _observe(config, store, mesh, workdir, steps, say)
  _, second_pass = _observe(config, store, mesh, workdir, steps, say)
  for number, (first, second) in enumerate(zip(first_pass, second_pass), 1):
    differing = _differing(first, second)
    if differing:
      names = ', '.join(differing[:3])
      raise NumericsError(
          f'Step {start + number:,}, done twice from the checkpoint of step {start:,}, gave different bits in '
          f'{len(differing)} of {len(first)} numbers and arrays, first {names}: memory or arithmetic of a device is '
          'faulty. Run it again on fewer hosts to find which; the checkpoint is as it was saved (its checksums agree).')
  return steps * len(first_pass[0])


def _observe(
    config: Config,
    store: Any,
    mesh: jax.sharding.Mesh,
    workdir: str,
    steps: int,
    say: Callable[[str], None],
) -> tuple[int, Observations]:
  """(the checkpoint's step, metrics and checksums of each step after it)."""
  with contextlib.ExitStack() as ends:
    watchdog = Watchdog(config.watchdog)
    ends.callback(watchdog.close)
    ends.enter_context(jax.set_mesh(mesh))
    checkpoints = ends.enter_context(Checkpoints(workdir))
    if not checkpoints.steps:
      raise CheckpointError(f'--workdir={workdir} does not have a checkpoint yet.')
    course = course_lib.make(config, store.vocabulary, mesh)
    records = rewinds.read_rewinds(workdir)
    state, progress = resume.start(course, store, checkpoints, workdir, records, say)
    trainer = Trainer(course.plan(progress), state)
    del state  # the first step takes its memory
    rows = TrainRows(store, config)
    stages = Stages(course, rows, trainer, say=say)
    stages.resume(progress)
    start = progress.step
    observations = []
    with pipeline.train_batches(
        rows,
        trainer.plan.config,
        progress.examples_seen,
        skipped=progress.skipped,
        stretches=stages.stretches(),
    ) as batches:
      for _ in range(steps):
        if stages.is_next_due(progress):
          progress = stages.begin(progress)
        progress = progress.after_step(trainer.plan.tokens_per_step, 0)
        batch = trainer.place(next(batches))
        metrics = fetch(trainer.step(batch))
        sums = checksums.of_tree(trainer.state)
        observations.append({**metrics, **sums})
        watchdog.arm('step')
    return start, observations


def _differing(first: dict[str, Any], second: dict[str, Any]) -> list[str]:
  """Names of the metrics and arrays that are not the same in two observations of a step."""
  differing = []
  for name, value in first.items():
    if not _same(value, second[name]):
      differing.append(name)
  return differing


def _same(first: float, second: float) -> bool:
  """Whether two numbers or checksums are the same; NaN is the same as NaN only."""
  if first == second:
    return True
  return first != first and second != second
