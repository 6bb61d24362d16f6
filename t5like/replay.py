"""Steps done twice from one checkpoint: state that no other device holds can only be judged so.

`guard.compare_every` finds a device that is wrong where another holds the same. What is sharded over all devices has
no double; but the same steps from the same state give the same bits, unless memory or arithmetic is at fault.
"""
import tempfile

import jax

from t5like import build, checksums, loop, sharding, workdir as workdir_lib
from t5like.checkpoint import Checkpoints
from t5like.data import pipeline
from t5like.errors import CheckpointError, ConfigError, NumericsError
from t5like.watchdog import Watchdog


def replay(workdir, steps=10, devices=None, say=print):
  """Does the steps after the newest checkpoint twice and compares all that comes out; nothing of the run is changed.

  Returns the number of arrays and losses compared. NumericsError when anything differs, naming the first step and the
  arrays; CheckpointError when there is no checkpoint. On a pod, all hosts call it.
  """
  config = workdir_lib.read_config(workdir)
  store, mesh, found = build.open_data(config, say), sharding.make_mesh(config.mesh, devices), []
  if steps < 1:
    raise ConfigError(f'--steps={steps}: at least one.')
  for _ in range(2):
    watchdog = Watchdog(config.watchdog)
    with tempfile.TemporaryDirectory() as aside, jax.set_mesh(mesh), Checkpoints(workdir) as checkpoints:
      if not checkpoints.steps:
        raise CheckpointError(f'--workdir={workdir} has no checkpoint yet to begin from.')
      run = loop.Run(config, store, aside, 'replay', mesh, checkpoints, None, watchdog, '')
      first, seen = run.step, []
      mine = sharding.rows_of_host(mesh, run.config.batch_size)
      with pipeline.train_batches(run.rows, run.config, run.examples_seen, mine, run.skipped) as batches:
        for _ in range(steps):
          run._step(batches)
          run.collect()
          seen.append({**run.last, **checksums.of_tree(run.state)})
      run.close()
      watchdog.close()
      found.append(seen)
  for n, (one, other) in enumerate(zip(*found), 1):
    wrong = [key for key in one if not _same(one[key], other[key])]
    if wrong:
      raise NumericsError(
          f'Step {first + n:,}, done twice from the checkpoint of step {first:,}, gave different bits in {len(wrong)} '
          f'of {len(one)} numbers and arrays, first {", ".join(wrong[:3])}: memory or arithmetic of a device is at '
          'fault. Run it again on fewer hosts to find which; the checkpoint is as it was saved (its checksums agree).')
  return steps * len(found[0][0])


def _same(a, b):
  """Whether two numbers or checksums are the same; NaN is the same as NaN only."""
  return a == b or a != a and b != b
