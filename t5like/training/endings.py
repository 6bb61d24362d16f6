"""How a run ends: left before it is done, or finished."""
from typing import Any

import jax
from jax.experimental import multihost_utils

from t5like.errors import Interrupted, Preempted
from t5like.observe import metrics
from t5like.storage import workdir as workdir_lib
from t5like.training import signals
from t5like.training.parts import Parts
from t5like.training.progress import Progress


def why_now(parts: Parts, progress: Progress, turns: int) -> str | None:
  """Why the process has to end though the run is not done, or None. All hosts agree.

  turns: steps since the process started, by which JAX's preemption service counts.
  """
  number = _signal(parts, turns)
  if number:
    return signals.WHY[number]
  if not parts.plan.steps_left(progress):
    return None
  if parts.deadline.is_over():
    seconds = parts.plan.config.stop.wall_time
    return f'stop.wall_time={seconds:g} s is over'
  return None


def _signal(parts: Parts, turns: int) -> signals.Signal | None:
  """The signal that asks the run to end after this step, if there was one."""
  if jax.process_count() == 1:
    return parts.signals.received
  if multihost_utils.reached_preemption_sync_point(turns):
    return signals.SIGTERM
  return None


def left(why: str, progress: Progress, workdir: str) -> Preempted | Interrupted:
  """The error that ends a run before it is done; its state is saved if there was a step."""
  is_interrupt = why == signals.WHY[signals.SIGINT]
  kind = Interrupted if is_interrupt else Preempted
  step = progress.step
  if not step:
    return kind(f'{why}: ended before the first step. The same command starts again.')
  return kind(
      f'{why}: stopped after step {step:,} with the state of this step saved in {workdir}. The same command resumes '
      'there.')


def finished(parts: Parts, progress: Progress, reason: str, results: dict[str, Any]) -> dict[str, Any]:
  """Records that a run is done; returns what `loop.train` returns. results: of the hooks."""
  step = progress.step
  tokens = progress.tokens
  screen = parts.output.screen
  result: dict[str, Any] = dict(
      reason=reason,
      step=step,
      tokens=tokens,
      **results,
  )
  if jax.process_index() == 0:
    workdir_lib.write_result(parts.request.workdir, parts.plan.config, **result)
  screen.end(step, tokens)
  screen.close()
  nll = result['validation']['nll']
  screen.say(
      f'Done: {reason} after {step:,} steps, {metrics.short(tokens)} tokens. Validation nll {nll:.4f}.')
  return result
