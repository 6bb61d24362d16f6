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
  """Why the process has to end though the work is not done, or None. All hosts agree.

  turns: steps since the process started, of which JAX's preemption service knows.
  """
  received = parts.signals.received
  if jax.process_count() > 1:
    if multihost_utils.reached_preemption_sync_point(turns):
      return signals.WHY[signals.SIGTERM]
  elif received:
    return signals.WHY[received]
  if parts.plan.steps_left(progress) and parts.deadline.is_over():
    return f'stop.wall_time={parts.plan.config.stop.wall_time:g} s is over'
  return None


def left(why: str, progress: Progress, workdir: str) -> Preempted | Interrupted:
  """What is raised when a run was left, with its state saved if there was a step."""
  kind = Interrupted if why == signals.WHY[signals.SIGINT] else Preempted
  if not progress.step:
    return kind(f'{why}: ended before the first step. The same command begins again.')
  return kind(f'{why}: stopped after step {progress.step:,} with the state of this step saved in {workdir}. The same '
              'command resumes there.')


def finished(parts: Parts, progress: Progress, reason: str, results: dict[str, Any]) -> dict[str, Any]:
  """Records that a run is done; returns what `loop.train` returns. results: of the hooks."""
  step, tokens, screen = progress.step, progress.tokens, parts.output.screen
  result: dict[str, Any] = dict(reason=reason, step=step, tokens=tokens, **results)
  if jax.process_index() == 0:
    workdir_lib.write_result(parts.request.workdir, parts.plan.config, **result)
  screen.end(step, tokens)
  screen.close()
  screen.say(f'Done: {reason} after {step:,} steps, {metrics.short(tokens)} tokens. '
             f'Validation nll {result["validation"]["nll"]:.4f}.')
  return result
