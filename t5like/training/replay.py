"""Steps done twice from one checkpoint: state that no other device holds can only be judged so.

`guard.compare_every` finds a device that is wrong where another holds the same. What is sharded over all devices has
no double; but the same steps from the same state give the same bits, unless memory or arithmetic is at fault.
"""
import contextlib
from collections.abc import Callable
from typing import Any

import jax

from t5like import sharding
from t5like.batches import pipeline
from t5like.config_type import Config
from t5like.errors import CheckpointError, ConfigError, NumericsError
from t5like.prepared import opening
from t5like.storage import checksums, rewinds, workdir as workdir_lib
from t5like.storage.checkpoint import Checkpoints
from t5like.training import plan as plan_lib, resume
from t5like.training.trainer import Trainer, fetch
from t5like.training.watchdog import Watchdog

Observations = list[dict[str, Any]]  # of each step {metric: number, array's path: checksum}


def replay(workdir: str, steps: int = 10, devices: Any = None, say: Callable[[str], None] = print) -> int:
  """Does the steps after the newest checkpoint twice and compares all that comes out; nothing of the run is changed.

  Returns the number of arrays and losses compared. NumericsError when anything differs, naming the first step and the
  arrays; CheckpointError when there is no checkpoint. On a pod, all hosts call it.
  """
  config = workdir_lib.read_config(workdir)
  store = opening.open_data(config, say)
  mesh = sharding.make_mesh(config.mesh, devices)
  if steps < 1:
    raise ConfigError(f'--steps={steps}: at least one.')
  start, once = _observe(config, store, mesh, workdir, steps, say)
  _, again = _observe(config, store, mesh, workdir, steps, say)
  for number, (one, other) in enumerate(zip(once, again), 1):
    wrong = [key for key in one if not _same(one[key], other[key])]
    if wrong:
      raise NumericsError(
          f'Step {start + number:,}, done twice from the checkpoint of step {start:,}, gave different bits in '
          f'{len(wrong)} of {len(one)} numbers and arrays, first {", ".join(wrong[:3])}: memory or arithmetic of a '
          'device is at fault. Run it again on fewer hosts to find which; the checkpoint is as it was saved (its '
          'checksums agree).')
  return steps * len(once[0])


def _observe(config: Config, store: Any, mesh: jax.sharding.Mesh, workdir: str, steps: int,
             say: Callable[[str], None]) -> tuple[int, Observations]:
  """(the checkpoint's step, what comes out of each step after it)."""
  with contextlib.ExitStack() as ends:
    watchdog = Watchdog(config.watchdog)
    ends.callback(watchdog.close)
    ends.enter_context(jax.set_mesh(mesh))
    checkpoints = ends.enter_context(Checkpoints(workdir))
    if not checkpoints.steps:
      raise CheckpointError(f'--workdir={workdir} has no checkpoint yet to begin from.')
    plan = plan_lib.make(config, store.vocabulary, mesh)
    state, progress = resume.start(plan, store, checkpoints, workdir, rewinds.read_rewinds(workdir), say)
    trainer = Trainer(plan.continued(progress), state)
    del state  # the first step takes its memory
    mine = sharding.rows_of_host(mesh, plan.config.batch_size)
    observations = []
    with pipeline.train_batches(
        pipeline.TrainRows(store, plan.config), plan.config, progress.examples_seen, mine,
        progress.skipped) as batches:
      for _ in range(steps):
        metrics = fetch(trainer.step(trainer.place(next(batches))))
        observations.append({**metrics, **checksums.of_tree(trainer.state)})
        watchdog.arm('step')
    return progress.step, observations


def _same(one: float, other: float) -> bool:
  """Whether two numbers or checksums are the same; NaN is the same as NaN only."""
  both_nan = one != one and other != other
  return one == other or both_nan
