"""The numbers of the steps, on the screen and in metrics.jsonl."""
import collections
import time

from t5like.model import side_values
from t5like.observe import environment, metrics, profiling
from t5like.training.hooks import Hook, Step, Turn
from t5like.training.parts import Parts
from t5like.training.progress import Progress
from t5like.training.trainer import Metrics

MEANS = ('loss', 'nll', 'accuracy')  # over the predictions of all steps since the previous line
NEWEST = ('grad_norm', 'update_norm', 'param_norm', 'bad_steps', 'spikes')  # of the newest step
UNWRITTEN = ('weights', 'bad_in_a_row')


class Log(Hook):
  """A line every `log.every` steps, of means since the previous one, and one for the rest where the run ends.

  Steps that changed nothing count in no mean. Side values of layers are means over their tokens; metrics that only
  some objectives have are means over predictions.
  """

  def __init__(self, parts: Parts, every: int):
    super().__init__(parts, every)
    self.rate = metrics.Rate()
    self.window: collections.Counter[str] = collections.Counter()  # sums since the previous line
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
    self.newest = step
    self.rate.add(self.parts.plan.tokens_per_step)
    self.data_wait += step.data_wait
    if not step.metrics['bad_in_a_row']:
      self._add(step.metrics)
    if self.is_due(step.progress.step):
      self._write()
    if self.first_step:
      seconds = time.monotonic() - self.started
      self.parts.output.say(
          f'First step: {seconds:.1f} s, of which {self.first_step}, waiting for data {step.data_wait:.1f} s')
      self.first_step = None
      self.rate.start()

  def before_stage(self, progress: Progress) -> None:
    self._write()

  def pause(self) -> None:
    self.rate.pause()

  def leave(self, progress: Progress) -> None:
    self._write()

  def finish(self, turn: Turn) -> None:
    self._write()

  def _add(self, values: Metrics) -> None:
    """Adds the metrics of a step to the sums of the next line."""
    weights = values['weights']
    self.window['weights'] += weights
    for name in _averaged(values):
      self.window[name] += weights * values[name]
    weighted = side_values.weighted(values)
    self.window.update(weighted)

  def _write(self) -> None:
    """A line for the steps since the previous one, if any of them counted."""
    if self.newest is None:
      return
    if not self.window['weights']:
      return
    parts = self.parts
    progress = self.newest.progress
    means = self._means(self.newest.metrics)
    speed = self._speed()
    parts.output.screen.show(progress.step, progress.tokens, {**means, **speed})
    line = self._line(self.newest, means, speed)
    parts.output.write(progress.step, line)
    self.window = collections.Counter()
    self.data_wait = 0.0
    parts.ledger.flush(progress.step)

  def _means(self, values: dict[str, float]) -> dict[str, float]:
    weights = self.window['weights']
    means = {}
    for name in _averaged(values):
      means[name] = self.window[name] / weights
    return means

  def _speed(self) -> dict[str, float]:
    rate = self.rate.take()
    flops = rate * self.parts.plan.flops_per_token
    return dict(tokens_per_second=rate, mfu=flops / self.parts.peak_flops)

  def _line(self, step: Step, means: dict[str, float], speed: dict[str, float]) -> dict[str, float]:
    """The numbers of a line of metrics.jsonl, in their order."""
    progress = step.progress
    values = step.metrics
    learning_rate = self.parts.plan.learning_rate(progress.step - 1)
    usual = {name: means[name] for name in MEANS}
    others = {name: value for name, value in means.items() if name not in MEANS}
    line: dict[str, float] = dict(tokens=progress.tokens, examples_seen=progress.examples_seen)
    if len(self.parts.stages.course.stages) > 1:
      line['stage'] = len(progress.stages)
    line |= self.parts.rows.used(progress.examples_seen, progress.skipped)
    line |= usual
    line |= speed
    line['grad_norm'] = values['grad_norm']
    line['update_norm'] = values['update_norm']
    line['param_norm'] = values['param_norm']
    line['learning_rate'] = float(learning_rate)
    line['bad_steps'] = values['bad_steps']
    line['spikes'] = values['spikes']
    line['data_wait'] = self.data_wait
    line |= others
    line |= side_values.logged(self.window)
    line |= environment.memory()
    return line


def _averaged(values: dict[str, float]) -> list[str]:
  """Names of the metrics that are means over predictions."""
  excluded = {*NEWEST, *UNWRITTEN, *side_values.keys(values)}
  return [name for name in values if name not in excluded]
