"""Runs compared: `python main.py compare RUN RUN ..`.

Runs whose configs differ in the seed alone are one variant. Each variant is compared with that of the first run where
both have come equally far in tokens: runs of the same seed are a pair, and the mean of the pairs' differences gets an
interval and a p-value by Student's t; without two pairs, Welch's test of both variants' runs.
"""
import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath
from scipy import stats

from t5like import config as config_lib
from t5like.config import stages
from t5like.errors import ConfigError
from t5like.observe import metrics, report
from t5like.storage import workdir as workdir_lib

VALIDATION = 'validation nll'
TRAINING = 'training loss'
TAIL = 0.1  # of the tokens: training loss is the mean over this last part
ROWS = 12  # of the table of validations
CONFIDENCE = 0.95
# Keys that say where a run is kept and read, and change nothing that it computes.
ELSEWHERE = ('data.directory', 'data.cache', 'data.tfds_dir', 'compile.cache', 'log.trackers', 'allow_changed')


@dataclasses.dataclass(frozen=True)
class Run:
  """The numbers of a run.

  folder: its workdir.
  seed: of its config.
  keys: {key of the config: its value, as Python writes it}, without the seed.
  losses: {step: training loss}.
  tokens: {step: tokens so far}.
  validations: {tokens so far: validation nll}.
  """
  folder: str
  seed: int
  keys: Mapping[str, str]
  losses: Mapping[int, float]
  tokens: Mapping[int, int]
  validations: Mapping[int, float]

  def loss_until(self, tokens: int) -> float:
    """The mean training loss over the last TAIL of so many tokens; NaN where none was logged."""
    first = (1 - TAIL) * tokens
    tail = []
    for step, loss in self.losses.items():
      if first < self.tokens[step] <= tokens:
        tail.append(loss)
    if not tail:
      return math.nan
    return float(np.mean(tail))


@dataclasses.dataclass(frozen=True)
class Difference:
  """By how much a number of a variant is above that of the first one.

  mean: of the differences.
  low, high: an interval of CONFIDENCE; infinite where there are too few runs.
  p: of the hypothesis that there is no difference; NaN where there are too few runs.
  pairs: of runs with the same seed; 0: runs are not paired.
  """
  mean: float
  low: float
  high: float
  p: float
  pairs: int


def read(folder: str) -> Run:
  """The numbers of the run in a folder; ConfigError where it holds none."""
  config = workdir_lib.read_config(folder)
  keys = {key: repr(value) for key, value, _ in config_lib.describe(config)}
  seed = config.seed
  lines = report.read_lines(epath.Path(folder) / 'metrics.jsonl', metrics.NUMBERS)
  points = report.Points(lines, stages.pace(config))
  losses: dict[int, float] = {}
  tokens: dict[int, int] = {}
  validations: dict[int, float] = {}
  for line in report.with_number(report.training_steps(lines), 'loss'):
    losses[line['step']] = line['loss']
    tokens[line['step']] = line['tokens']
  for line in report.with_number(lines, 'validation/nll'):
    validations[points.tokens_at(line)] = line['validation/nll']
  if not losses:
    raise ConfigError(f'{folder}: nothing was measured there yet; metrics.jsonl has no step.')
  for key in ('seed', *ELSEWHERE):
    keys.pop(key, None)
  return Run(folder, seed, keys, losses, tokens, validations)


def compare(folders: Sequence[str]) -> dict[str, Any]:
  """All that is known of the differences between runs, as JSON.

  Args:
    folders: workdirs, two or more.

  Returns:
    tokens: that all runs have reached. metrics: {'validation nll': at how many tokens, 'training loss': ..}. keys:
    {key: [value of each variant]} of what differs. variants: [{runs, seeds, and for each metric `values` of the runs,
    `mean` and, but for the first, `difference`}]. rows: [[tokens, mean validation nll of each variant]]. first_steps:
    [{runs, step, of}]: of each run and the first variant's run of its seed the first logged step with another loss,
    None where all are equal, and how many were compared.

  Raises:
    ConfigError: for fewer than two folders, one that is named twice, or one that holds no measured run.
  """
  if len(folders) < 2:
    raise ConfigError('main.py compare needs two runs or more: python main.py compare runs/a runs/b')
  if len(set(folders)) < len(folders):
    raise ConfigError(f'main.py compare {" ".join(folders)}: a run is named twice.')
  runs = [read(folder) for folder in folders]
  variants = _variants(runs)
  tokens = min(max(run.tokens.values()) for run in runs)
  validated = set(runs[0].validations)
  for run in runs:
    validated &= set(run.validations)
  points = {}
  if validated:
    points[VALIDATION] = max(validated)
  points[TRAINING] = tokens
  return dict(
      tokens=tokens,
      metrics=points,
      keys=_differing_keys(variants),
      variants=[_described(variant, variants[0], points) for variant in variants],
      rows=_rows(variants, sorted(validated)),
      first_steps=_first_steps(variants))


def _rows(variants: list[list[Run]], validated: list[int]) -> list[list[float]]:
  """[tokens, mean validation nll of each variant] after some of these numbers of tokens."""
  rows: list[list[float]] = []
  for tokens in _thinned(validated):
    row: list[float] = [tokens]
    for variant in variants:
      nlls = _values(VALIDATION, variant, tokens)
      row.append(float(np.mean(nlls)))
    rows.append(row)
  return rows


def _variants(runs: list[Run]) -> list[list[Run]]:
  """Runs by their configs but for the seed, in the order of their first runs."""
  variants: dict[tuple[tuple[str, str], ...], list[Run]] = {}
  for run in runs:
    identity = tuple(sorted(run.keys.items()))
    variants.setdefault(identity, []).append(run)
  return list(variants.values())


def _differing_keys(variants: list[list[Run]]) -> dict[str, list[str]]:
  """{key: [value of each variant]} of keys that differ between variants; '' where one lacks the key."""
  tables = [variant[0].keys for variant in variants]
  differing = {}
  for key in sorted(set().union(*tables)):
    values = [table.get(key, '') for table in tables]
    if len(set(values)) > 1:
      differing[key] = values
  return differing


def _described(variant: list[Run], first: list[Run], points: Mapping[str, int]) -> dict[str, Any]:
  facts: dict[str, Any] = dict(runs=[run.folder for run in variant], seeds=_seeds(variant))
  for metric, tokens in points.items():
    values = _values(metric, variant, tokens)
    facts[metric] = dict(values=values, mean=float(np.mean(values)))
    if variant is not first:
      of_first = _values(metric, first, tokens)
      result = difference(_seeds(first), _seeds(variant), of_first, values)
      facts[metric]['difference'] = dataclasses.asdict(result)
  return facts


def _seeds(variant: list[Run]) -> list[int]:
  return [run.seed for run in variant]


def _values(metric: str, variant: list[Run], tokens: int) -> list[float]:
  """A metric of each run of a variant after so many tokens."""
  values = []
  for run in variant:
    value = run.validations[tokens] if metric == VALIDATION else run.loss_until(tokens)
    values.append(value)
  return values


def difference(
    first_seeds: Sequence[int],
    second_seeds: Sequence[int],
    first: Sequence[float],
    second: Sequence[float],
) -> Difference:
  """The difference between a number of two variants, that of the second less that of the first.

  Args:
    first_seeds: of the first variant's runs.
    second_seeds: of the second's.
    first: the number of each of the first variant's runs.
    second: of each of the second's.
  """
  if _are_pairs(first_seeds, second_seeds):
    by_seed = dict(zip(first_seeds, first))
    partners = [by_seed[seed] for seed in second_seeds]
    mean = float(np.mean(np.subtract(second, partners)))
    return _tested(mean, stats.ttest_rel(second, partners), len(partners))
  mean = float(np.mean(second) - np.mean(first))
  if min(len(first), len(second)) < 2:
    return Difference(mean, -math.inf, math.inf, math.nan, 0)
  return _tested(mean, stats.ttest_ind(second, first, equal_var=False), 0)


def _are_pairs(first_seeds: Sequence[int], second_seeds: Sequence[int]) -> bool:
  """Whether two variants have the same seeds, two at least and each once."""
  seeds = set(first_seeds)
  is_once = len(seeds) == len(first_seeds) == len(second_seeds)
  return is_once and len(seeds) > 1 and seeds == set(second_seeds)


def _tested(mean: float, test: Any, pairs: int) -> Difference:
  """A Difference of a result of scipy.stats."""
  low, high = test.confidence_interval(CONFIDENCE)
  return Difference(mean, float(low), float(high), float(test.pvalue), pairs)


def _thinned(tokens: list[int]) -> list[int]:
  """At most ROWS of the numbers, evenly spread, the last one among them."""
  count = min(ROWS, len(tokens))
  places = np.linspace(len(tokens) - 1, 0, count).round().astype(int)
  return [tokens[place] for place in sorted(set(places.tolist()))]


def _first_steps(variants: list[list[Run]]) -> list[dict[str, Any]]:
  """Of each run of another variant and the first variant's run of its seed, where their losses part."""
  first = {run.seed: run for run in variants[0]}
  parted = []
  for variant in variants[1:]:
    for run in variant:
      if run.seed in first:
        parted.append(_parting(first[run.seed], run))
  return parted


def _parting(first: Run, second: Run) -> dict[str, Any]:
  """The first step, among those that both have logged, at which two runs have another loss; None: there is none."""
  common = sorted(set(first.losses) & set(second.losses))
  parting = None
  for step in common:
    if first.losses[step] != second.losses[step]:
      parting = step
      break
  return dict(runs=[first.folder, second.folder], step=parting, of=len(common))


# --- For people -------------------------------------------------------------------------------------


def show(result: Mapping[str, Any], console: Any = None) -> None:
  """Prints the result of `compare`."""
  from rich.console import Console
  console = console or Console(highlight=False, soft_wrap=True)
  names = [chr(ord('A') + number) for number in range(len(result['variants']))]
  for name, variant in zip(names, result['variants']):
    seeds = ', '.join(map(str, variant['seeds']))
    console.print(f'{name}: {", ".join(variant["runs"])} (seed {seeds})', markup=False)
  for key, values in result['keys'].items():
    of_each = '  '.join(map(' '.join, zip(names, values)))
    console.print(f'  {key}: {of_each}', markup=False)
  if result['rows']:
    _show_rows(console, names, result['rows'])
  for metric, tokens in result['metrics'].items():
    console.print(f'\n{metric} after {metrics.short(tokens)} tokens', style='bold')
    for name, variant in zip(names, result['variants']):
      console.print(f'  {name} {_in_words(variant[metric])}', markup=False)
  console.print()
  for pair in result['first_steps']:
    console.print(_parting_in_words(pair), markup=False)


def _show_rows(console: Any, names: Sequence[str], rows: Sequence[Sequence[float]]) -> None:
  from rich.table import Table
  table = Table('tokens', *[f'{VALIDATION}, {name}' for name in names], box=None, pad_edge=False)
  for tokens, *values in rows:
    table.add_row(metrics.short(int(tokens)), *map('{:.4f}'.format, values))
  console.print()
  console.print(table)


def _in_words(numbers: Mapping[str, Any]) -> str:
  text = f'{numbers["mean"]:.4f}'
  if len(numbers['values']) > 1:
    of_runs = ', '.join(map('{:.4f}'.format, numbers['values']))
    text += f' ({of_runs})'
  if 'difference' not in numbers:
    return text
  result = numbers['difference']
  text += f'  {result["mean"]:+.4f} against A'
  if math.isnan(result['p']):
    return f'{text}: two seeds or more of each would give an interval'
  interval = f'{CONFIDENCE:.0%} interval {result["low"]:+.4f} to {result["high"]:+.4f}'
  how = 'unpaired seeds'
  if result['pairs']:
    how = f'{result["pairs"]} pairs of the same seed'
  return f'{text}, {interval}, p = {result["p"]:.2g} ({how})'


def _parting_in_words(pair: Mapping[str, Any]) -> str:
  first, second = pair['runs']
  if not pair['of']:
    return f'{first} and {second} have no logged step in common.'
  if pair['step'] is None:
    return f'{first} and {second}: the loss is the same at all {pair["of"]:,} logged steps.'
  return f'{first} and {second}: the loss differs from step {pair["step"]:,} on, of the {pair["of"]:,} logged in both.'


def write_page(folders: Sequence[str], out: str) -> Any:
  """Writes the report page of the first run with the curves of all; returns its path."""
  path, _ = report.write(folders[0], out, folders[1:])
  return path
