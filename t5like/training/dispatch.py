"""Steps, dispatched one ahead: the metrics of a step are fetched while the devices compute the next one."""
import collections
import dataclasses
import time
from collections.abc import Iterator

from t5like.batches import pipeline
from t5like.errors import DataError, Failure
from t5like.training.hooks import Hooks, Step
from t5like.training.parts import Parts
from t5like.training.progress import Progress
from t5like.training.trainer import Batch, fetch


class Dispatcher:
  """Reads batches and dispatches their steps; holds those whose metrics are still on the devices."""

  def __init__(self, parts: Parts, hooks: Hooks):
    self.parts = parts
    self.hooks = hooks
    self.turns = 0  # steps since the process started
    self.pending: collections.deque[Step] = collections.deque()  # oldest first

  def step(self, batches: Iterator[Batch], progress: Progress) -> tuple[Progress, Batch]:
    """Dispatches the step after `progress`; returns the progress after it, and its batch as global arrays."""
    parts = self.parts
    plan = parts.plan
    is_first = self.turns == 0
    began = time.perf_counter()
    parts.phases.enter('data', 'start' if is_first else 'data')
    rows, batch = self._read(batches, progress)
    data_wait = time.perf_counter() - began
    if is_first:
      parts.phases.enter('compile', 'start')
    else:
      parts.phases.enter('step')
    metrics = parts.trainer.step(batch)
    self.turns += 1
    position = progress.examples_seen
    first_row = pipeline.after(progress.skipped, position, 0)
    next_row = pipeline.after(progress.skipped, position, plan.config.batch_size)
    progress = progress.after_step(plan.tokens_per_step, next_row)
    step = Step(progress, metrics, rows, first_row, data_wait)
    self.pending.append(step)
    return progress, batch

  def _read(self, batches: Iterator[Batch], progress: Progress) -> tuple[Batch, Batch]:
    """This host's rows (numpy), and the global batch."""
    number = progress.step + 1
    folder = self.parts.store.folder
    try:
      rows = next(batches)
      batch = self.parts.trainer.place(rows)
    except Failure:
      raise
    except Exception as error:
      raise DataError(
          f'reading the batch of step {number:,} from {folder} failed: {type(error).__name__}: {error}') from error
    return rows, batch

  def collect(self, but: int = 0) -> None:
    """Fetches the metrics of all steps but the newest `but`, and passes them to the hooks. May raise BadSteps."""
    while len(self.pending) > but:
      step = self.pending.popleft()
      metrics = fetch(step.metrics)
      measured = dataclasses.replace(step, metrics=metrics)
      self.hooks.measured(measured)

  def drop(self) -> None:
    """Forgets the newest steps, which a rewind undoes."""
    self.pending.clear()
