"""What a run does about steps that went bad: keeps their batches, goes back to a checkpoint, leaves rows out.

workdir/rewinds.json lists how often a run went back and why. It is written before the run continues, so that one that
is killed meanwhile does the same again; on a full disk it waits in memory. A checkpoint knows how many rewinds there
had been when it was saved; one that a later rewind went back behind is of a past that did not happen, and is not
taken.
"""
import math

import jax
from etils import epath
from jax.experimental import multihost_utils

from t5like import checksums, plain_json, sharding, workdir as workdir_lib
from t5like.data import kept
from t5like.errors import BadSteps, CheckpointError, NumericsError
from t5like.schema import List, Object, Text, Whole

REWIND = dict(from_step=Whole(), to_step=Whole(), rows=List(Whole(), 2, 2), why=Text())
REWINDS = List(Object(REWIND, tuple(REWIND)))
MOST_DUMPS = 32  # batches kept by one start of a run


def read_rewinds(workdir):
  """[{from_step, to_step, rows: [start, stop], why}], oldest first."""
  return workdir_lib.read_json(epath.Path(workdir) / 'rewinds.json', REWINDS) or []


def happened(rewinds):
  """Function of (step, meta) of a checkpoint: whether it is of the past that the run has now."""
  return lambda step, meta: not any(r['to_step'] < step for r in rewinds[meta['rewinds']:])


def windows(rewinds, examples_seen):
  """The rows that rewinds leave out, [(start, stop)], of a run that has seen so many rows."""
  return [(max(start, examples_seen), stop) for start, stop in (r['rows'] for r in rewinds) if stop > examples_seen]


def target(steps, rewinds):
  """The step to go back to, or None: the newest, or, where the last rewind led nowhere, the one before it."""
  if rewinds and steps and steps[-1] <= rewinds[-1]['to_step']:
    steps = [step for step in steps if step < rewinds[-1]['to_step']]
  return steps[-1] if steps else None


def rewind(run, error):
  """Decides that `run` (a loop.Run) goes back to a checkpoint after the BadSteps `error`, and records it.

  The rows from there to the newest batch are left out from now on. Raises `error` when guard.rewinds are spent or
  there is nothing to go back to.
  """
  budget = run.config.guard.rewinds
  try:
    run.checkpoints.wait()
  except CheckpointError as e:
    run.screen.say(f'WARNING: {e}')
  steps = [step for step in run.checkpoints.steps if happened(run.rewinds)(step, run.checkpoints.meta(step))]
  to_step = target(steps, run.rewinds)
  if len(run.rewinds) >= budget or to_step is None:
    why = (f'The run has gone back {len(run.rewinds)} times (guard.rewinds={budget}).' if len(run.rewinds) >= budget
           else 'There is no checkpoint to go back to.')
    raise BadSteps(f'{error} {why}')
  meta = run.checkpoints.meta(to_step)
  record = dict(from_step=run.step, to_step=to_step, rows=[meta['examples_seen'], run.examples_seen], why=str(error))
  if jax.process_index() == 0:
    run.writes.replace(f'{run.workdir}/rewinds.json', plain_json.dumps([*run.rewinds, record], indent=2) + '\n')
    run.writes.flush()
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices('rewind')
  run.rewinds.append(record)
  first, stop = record['rows']
  run.screen.say(f'{error} Going back to step {to_step:,} and leaving out rows {first:,} to {stop - 1:,} '
                 f'(rewind {len(run.rewinds)} of at most {budget}, guard.rewinds).')


def dump(run, batch, values, step, first_row):
  """Keeps this host's part of a batch whose step was bad, for `main.py inspect --batch=FILE`.

  batch: numpy; values: the step's metrics; first_row: of the whole batch, in the endless sequence.
  """
  if run.dumped >= MOST_DUMPS:
    return
  run.dumped += 1
  host = '' if jax.process_count() == 1 else f'.host_{jax.process_index()}'
  path = f'{run.workdir}/bad_steps/step_{step:08}{host}.npz'
  about = dict(values, step=step, first_row=first_row, host=jax.process_index(), hosts=jax.process_count())
  run.writes.replace(path, kept.pack(batch, about))
  run.screen.say(f'Step {step:,} changed nothing: loss {values["loss"]:.4g}, gradient norm '
                 f'{values["grad_norm"]:.4g}. Its batch is in {path}')


def check_model(run):
  """BadSteps when the newest parameters of a loop.Run give a loss that is not finite: no checkpoint may hold them.

  The step that made them was judged by its own numbers, which are of the parameters before its update: that may be
  finite, and nothing after it. Judged by a forward pass over the newest batch whose step counted.
  """
  if run.good_batch is None or run.sound_step == run.step:
    return
  run.now('eval', 'start')  # the first time may compile
  sums = run.eval_step(run.state['params'], sharding.to_global(run.mesh, run.good_batch))
  loss = jax.device_get(sums['loss']).item()
  run.now('step')
  if not math.isfinite(loss):
    raise BadSteps(
        f'After step {run.step:,} the loss is {loss} on a batch on which it was finite before: an update whose numbers '
        'were finite made a model whose are not. This state is not saved. A lower optimizer.learning_rate, a longer '
        'schedule.warmup_steps or a larger optimizer.eps often help.')
  run.sound_step = run.step


def compare_devices(state, mesh, step):
  """NumericsError when a device no longer holds what those with the same piece of the state hold."""
  wrong = checksums.differing_replicas({k: state[k] for k in ('params', 'opt_state')}, mesh)
  if wrong:
    array, device = wrong[0]
    raise NumericsError(
        f'After step {step:,} device {device.id} ({device.device_kind}, host {device.process_index}) holds '
        f'other values of {array} than the devices that should hold the same ({len(wrong)} differences in all, '
        'guard.compare_every): its memory or arithmetic is at fault. Nothing of this was saved. Take that host '
        'out and start again; the newest checkpoint is from before.')
