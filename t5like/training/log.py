"""The numbers of the steps, on the screen and in metrics.jsonl."""
import collections
import time

from t5like.model import side_values
from t5like.observe import environment, metrics, profiling
from t5like.training.hooks import Hook, Step, Turn
from t5like.training.parts import Parts
from t5like.training.progress import Progress

MEANS = ('loss', 'nll', 'accuracy')  # over the predictions of all steps since the line before
NEWEST = ('grad_norm', 'update_norm', 'param_norm', 'bad_steps', 'spikes')  # of the newest step
UNWRITTEN = ('weights', 'bad_in_a_row')


class Log(Hook):
  """A line every so many steps, of means since the one before, and one for the rest where the run ends between two.

  Steps that changed nothing are in no mean. Side values of layers are written as means over the tokens that they are
  of, metrics that a step has beyond those that every step has as means over its predictions.
  """

  def __init__(self, parts: Parts, every: int):
    super().__init__(parts, every)
    self.rate = metrics.Rate()
    self.window: collections.Counter[str] = collections.Counter()  # sums since the line before
    self.data_wait = 0.0  # seconds since then
    self.newest: Step | None = None
    self.started = 0.0
    self.first_step: profiling.FirstStep | None = None  # until the first step is measured

  def reset(self, progress: Progress) -> None:
    self.window = collections.Counter()
    self.data_wait = 0.0
    self.newest = None
    self.rate.pause()

  def start(self, turn: Turn) -> None:
    self.started = time.monotonic()
    self.first_step = profiling.FirstStep()

  def measured(self, step: Step) -> None:
    values = step.metrics
    self.newest = step
    self.rate.add(self.parts.plan.tokens_per_step)
    self.data_wait += step.data_wait
    if not values['bad_in_a_row']:
      weights = values['weights']
      self.window['weights'] += weights
      for name in self._averaged(values):
        self.window[name] += weights * values[name]
      self.window.update(side_values.weighted(values))
    if self.is_due(step.progress.step):
      self._write()
    if self.first_step:
      self.parts.output.say(
          f'First step: {time.monotonic() - self.started:.1f} s, of which {self.first_step}, waiting for data '
          f'{step.data_wait:.1f} s')
      self.first_step = None
      self.rate.start()

  def pause(self) -> None:
    self.rate.pause()

  def leave(self, progress: Progress) -> None:
    self._write()

  def finish(self, turn: Turn) -> None:
    self._write()

  def _averaged(self, values: dict[str, float]) -> list[str]:
    others = {*NEWEST, *UNWRITTEN, *side_values.keys(values)}
    return [name for name in values if name not in others]

  def _write(self) -> None:
    """A line for the steps since the one before, if one of them counted."""
    if self.newest is None or not self.window['weights']:
      return
    plan = self.parts.plan
    values = self.newest.metrics
    progress = self.newest.progress
    means = {name: self.window[name] / self.window['weights'] for name in self._averaged(values)}
    rate = self.rate.take()
    mfu = rate * plan.flops_per_token / self.parts.peak_flops
    speed = dict(tokens_per_second=rate, mfu=mfu)
    self.parts.output.screen.show(progress.step, progress.tokens, dict(means, **speed))
    rows = self.parts.rows.used(progress.examples_seen, progress.skipped)
    usual = {name: means[name] for name in MEANS}
    side = {name: value for name, value in means.items() if name not in MEANS}
    side |= side_values.logged(self.window)
    self.parts.output.write(progress.step, dict(
        tokens=progress.tokens, examples_seen=progress.examples_seen, **rows, **usual, **speed,
        grad_norm=values['grad_norm'], update_norm=values['update_norm'], param_norm=values['param_norm'],
        learning_rate=float(plan.learning_rate(progress.step - 1)), bad_steps=values['bad_steps'],
        spikes=values['spikes'], data_wait=self.data_wait, **side, **environment.memory()))
    self.window = collections.Counter()
    self.data_wait = 0.0
    self.parts.ledger.flush(progress.step)
