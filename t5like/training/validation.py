"""Loss on text that a model was not trained on."""
import collections
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import jax

from t5like import sharding
from t5like.batches import pipeline
from t5like.config_type import Config
from t5like.objectives import table
from t5like.observe import metrics
from t5like.training import stop
from t5like.training.hooks import Hook, Turn
from t5like.training.progress import Progress
from t5like.training.trainer import Trainer

SUMS = ('nll', 'hits', 'weights')
OF_A_PART = ('nll', 'perplexity', 'accuracy', 'tokens')


def measure(store: Any, trainer: Trainer, alive: Callable[[], None]) -> dict[str, float]:
  """{nll (nats), perplexity, accuracy, bits_per_byte, ...} of the validation set, of a mixture's parts as 'part/nll'.

  alive: called after each batch.
  """
  config = trainer.plan.config
  on_devices = []
  mine = sharding.rows_of_host(trainer.plan.mesh, config.batch_size)
  for name, rows in pipeline.evaluation_batches(store, config, 'validation', mine):
    on_devices.append((name, trainer.evaluate(trainer.place(rows))))
    alive()
  whole = collections.Counter()
  by_part = collections.defaultdict(collections.Counter)
  for name, sums in jax.device_get(on_devices):
    for key in SUMS:
      whole[key] += sums[key].item()
      by_part[name][key] += sums[key].item()
  values = metrics.summary(whole, _bytes_per_token(store, config))
  if len(by_part) > 1:
    for name, sums in by_part.items():
      part = metrics.summary(sums, 0)
      values.update({f'{name}/{key}': part[key] for key in OF_A_PART})
  return values


def lines(values: dict[str, float], step: int) -> Iterator[str]:
  """What is said of the values of `measure`."""
  yield f'step {step:,}  {metrics.describe(values)}'
  for name in [key.removesuffix('/nll') for key in values if key.endswith('/nll')]:
    part = {key.removeprefix(f'{name}/'): value for key, value in values.items() if key.startswith(f'{name}/')}
    yield f'  {name}: {metrics.describe(part)}'


def _bytes_per_token(store: Any, config: Config) -> float:
  """Of validation text, where each token of it is predicted once; else 0."""
  if not table.of(config).predicts_each_token or config.data.mixture:
    return 0
  split = store.manifest['splits']['validation']
  return split['bytes'] / split['tokens']


class Validate(Hook):
  """Validates, and says when that is a reason to stop.

  A validation that a signal cut short is done when the run resumes, before its first step.
  """

  def start(self, turn: Turn) -> Turn | None:
    progress = turn.progress
    if not progress.step or not self.parts.plan.steps_left(progress):
      return None
    if progress.is_validated or not self.is_due(progress.step):
      return None
    return self.act(turn)

  def act(self, turn: Turn) -> Turn:
    progress = self._validated(turn.progress)
    if progress.validation is None:
      raise RuntimeError('a validation has left no metrics')
    patience, reason = stop.after_validation(self.parts.plan.config.stop, progress.patience, progress.validation)
    progress = dataclasses.replace(progress, patience=patience)
    return dataclasses.replace(turn, progress=progress, reason=reason)

  def finish(self, turn: Turn) -> Turn:
    return dataclasses.replace(turn, progress=self._validated(turn.progress))

  def result(self, progress: Progress) -> dict[str, Any]:
    return dict(validation=progress.validation)

  def _validated(self, progress: Progress) -> Progress:
    """`progress` with the metrics of this step's validation."""
    if progress.is_validated:
      return progress
    with self.parts.phases.during('eval', 'step'):
      values = measure(self.parts.store, self.parts.trainer, lambda: self.parts.phases.alive('step'))
      for line in lines(values, progress.step):
        self.parts.output.say(line)
      self.parts.output.write(
          progress.step, {f'validation/{name}': value for name, value in values.items()}, flush=True)
    return dataclasses.replace(progress, validation=dict(values, step=progress.step))
