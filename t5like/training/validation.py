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

EMA = 'ema'  # what comes before names of metrics of the moving average
SUMS = ('nll', 'hits', 'weights')
OF_A_DATASET = ('nll', 'perplexity', 'accuracy', 'tokens')


def measure(store: Any, trainer: Trainer, alive: Callable[[], None]) -> dict[str, float]:
  """Metrics of the validation set.

  Args:
    store: the prepared dataset.
    trainer: of the run.
    alive: called after each batch.

  Returns:
    {nll (nats), perplexity, accuracy, bits_per_byte, ...}; of the datasets of a mixture also as 'NAME/nll', of the
    moving average of parameters (optimizer.ema) as 'ema/nll'.
  """
  values = _measured(store, trainer, trainer.params, alive)
  if trainer.averaged is not None:
    of_average = _measured(store, trainer, trainer.averaged, alive)
    for key in OF_A_DATASET:
      values[f'{EMA}/{key}'] = of_average[key]
  return values


def _measured(
    store: Any,
    trainer: Trainer,
    params: Any,
    alive: Callable[[], None],
) -> dict[str, float]:
  """Metrics of the validation set, those of the datasets of a mixture too; arguments as of `measure`."""
  config = trainer.plan.config
  whole = collections.Counter()
  by_dataset = collections.defaultdict(collections.Counter)
  for dataset, sums in _sums_of_batches(store, trainer, params, alive):
    for key in SUMS:
      value = sums[key].item()
      whole[key] += value
      by_dataset[dataset][key] += value
  values = metrics.summary(whole, _bytes_per_token(store, config))
  if len(by_dataset) == 1:
    return values
  for dataset, sums in by_dataset.items():
    summary = metrics.summary(sums, 0)
    for key in OF_A_DATASET:
      values[f'{dataset}/{key}'] = summary[key]
  return values


def _sums_of_batches(
    store: Any,
    trainer: Trainer,
    params: Any,
    alive: Callable[[], None],
) -> list[tuple[str, dict[str, Any]]]:
  """[(name of the dataset, sums)] of all batches, numpy; fetched once all are dispatched."""
  plan = trainer.plan
  rows_of_host = sharding.rows_of_host(plan.mesh, plan.config.batch_size)
  batches = pipeline.evaluation_batches(store, plan.config, 'validation', rows_of_host)
  on_devices = []
  for dataset, rows in batches:
    batch = trainer.place(rows)
    sums = trainer.evaluate(batch, params)
    on_devices.append((dataset, sums))
    alive()
  return jax.device_get(on_devices)


def lines(values: dict[str, float], step: int) -> Iterator[str]:
  """The values of `measure` as lines for people."""
  yield f'step {step:,}  {metrics.describe(values)}'
  for key in values:
    if not key.endswith('/nll'):
      continue
    dataset = key.removesuffix('/nll')
    of_dataset = _with_prefix(values, f'{dataset}/')
    yield f'  {dataset}: {metrics.describe(of_dataset)}'


def _with_prefix(values: dict[str, float], prefix: str) -> dict[str, float]:
  """The values whose names begin with a prefix, by the rest of their names."""
  selected = {}
  for name, value in values.items():
    if name.startswith(prefix):
      rest = name.removeprefix(prefix)
      selected[rest] = value
  return selected


def _bytes_per_token(store: Any, config: Config) -> float:
  """Of validation text, where each token of it is predicted once; else 0."""
  objective = table.of(config)
  if config.data.mixture or not objective.predicts_each_token:
    return 0
  split = store.manifest['splits']['validation']
  return split['bytes'] / split['tokens']


class Validate(Hook):
  """Validates, and reports when that is a reason to stop.

  A validation that a signal interrupted is done when the run resumes, before its first step.
  """

  def start(self, turn: Turn) -> Turn | None:
    progress = turn.progress
    is_between_steps = progress.step and self.parts.plan.steps_left(progress)
    if not is_between_steps:
      return None
    if progress.is_validated:
      return None
    if not self.is_due(progress.step):
      return None
    return self.act(turn)

  def act(self, turn: Turn) -> Turn:
    limits = self.parts.plan.config.stop
    progress = self._validated(turn.progress)
    if progress.validation is None:
      raise RuntimeError('a validation has left no metrics')
    patience, reason = stop.after_validation(limits, progress.patience, progress.validation)
    progress = dataclasses.replace(progress, patience=patience)
    return dataclasses.replace(turn, progress=progress, reason=reason)

  def finish(self, turn: Turn) -> Turn:
    progress = self._validated(turn.progress)
    return dataclasses.replace(turn, progress=progress)

  def result(self, progress: Progress) -> dict[str, Any]:
    return dict(validation=progress.validation)

  def _validated(self, progress: Progress) -> Progress:
    """`progress` with the metrics of this step's validation."""
    if progress.is_validated:
      return progress
    step = progress.step
    parts = self.parts
    with parts.phases.during('eval', 'step'):
      values = measure(parts.store, parts.trainer, self._alive)
      for line in lines(values, step):
        parts.output.say(line)
      logged = {f'validation/{name}': value for name, value in values.items()}
      parts.output.write(step, logged, flush=True)
    validation = dict(values, step=step)
    return dataclasses.replace(progress, validation=validation)

  def _alive(self) -> None:
    self.parts.phases.alive('step')
