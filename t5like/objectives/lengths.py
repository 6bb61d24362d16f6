"""How many tokens objectives take and give: arithmetic of configs alone, before any data is there.

A config may name several datasets and objectives at once; `components` lists them, each as a
config of its own.
"""
import dataclasses
import fractions
import re
from collections.abc import Iterable, Mapping
from typing import Any

from t5like.choices import ARCHITECTURES
from t5like.config_type import Config
from t5like.errors import ConfigError
from t5like.objectives import table
from t5like.objectives.spec import Lengths, Mixture, Objective, OneStack, Pair

Window = tuple[int, int]  # rows: the first, and the one after the last

NUMBER = re.compile(r'([+-]?[0-9_.]*[0-9](?:e[+-]?[0-9]{1,2})?)\s*([kmbt]?)')
UNITS = {'': 1, 'k': 1000, 'm': 1000 ** 2, 'b': 1000 ** 3, 't': 1000 ** 4}


@dataclasses.dataclass(frozen=True)
class Component:
  """One dataset with one objective; `weight` is its share of rows, all weights together being 1.

  `config` has no mixture any more, of datasets or of objectives; `mode` is text that goes before inputs ('' for none).
  """
  name: str
  weight: float
  config: Config
  mode: str = ''

  @property
  def objective(self) -> Objective:
    """The entry of its objective."""
    entry = table.of(self.config)
    if isinstance(entry, Mixture):
      raise TypeError(f'a component has an objective of its own, not the mixture {entry.name!r}')
    return entry

  @property
  def layout(self) -> OneStack | Pair:
    """How its rows are made."""
    return self.objective.layout(self.config.model.name, self.mode)

  @property
  def has_prefix(self) -> bool:
    """Whether its batches say which inputs see each other."""
    if not ARCHITECTURES[self.config.model.name].decoder_only:
      return False
    layout = self.layout
    return isinstance(layout, Pair) or layout.has_prefix


def components(config: Config) -> list[Component]:
  """All components of a config, a plain one being its own only component; its stages do not count.

  ConfigError for wrong values of objective.denoisers.
  """
  listed = []
  for dataset in _datasets(config):
    listed += _by_objectives(dataset)
  total = sum(component.weight for component in listed) or 1  # all 0 is refused by objective_rules
  normalized = []
  for component in listed:
    share = component.weight / total
    normalized.append(dataclasses.replace(component, weight=share))
  return normalized


def _datasets(config: Config) -> list[Component]:
  """A Component for each dataset of a config, whose objective may still be a mixture."""
  mixture = config.data.mixture.to_dict()
  if not mixture:
    return [Component('', 1.0, config)]
  datasets = []
  for name, changes in mixture.items():
    weight = float(changes.get('weight', 1))
    own_config = _changed(config, changes)
    datasets.append(Component(name, weight, own_config))
  return datasets


def _by_objectives(dataset: Component) -> list[Component]:
  """The components of a dataset, one for each part of its objective."""
  entry = table.of(dataset.config)
  if not isinstance(entry, Mixture):
    return [dataset]
  keys = entry.read(dataset.config.objective)
  parts = entry.parts(keys)
  rates = sum(part.rate for part in parts)
  listed = []
  for part in parts:
    name = f'{dataset.name} {part.label}'.strip()
    weight = dataset.weight * part.rate / rates
    config = _changed(dataset.config, dict(objective=part.changes))
    listed.append(Component(name, weight, config, part.mode))
  return listed


def skipped(text: str) -> list[Window]:
  """[(start, stop)], sorted and disjoint, of 'start:stop,start:stop' in rows. Raises ConfigError."""
  windows = []
  for part in map(str.strip, text.split(',')):
    if part:
      windows.append(_window(part, text))
  return merged(windows)


def _window(part: str, text: str) -> Window:
  """The window that one part of data.skip_rows=`text` says."""
  start, _, stop = part.partition(':')
  first = whole_number(start)
  last = whole_number(stop)
  if first is None or last is None or not 0 <= first < last:
    raise ConfigError(f"data.skip_rows={text!r}: {part!r} is no window of rows. Write the first row and the one "
                      "after the last, as in '128000:153600' or '128K:154K'.")
  return first, last


def merged(windows: Iterable[Iterable[int]]) -> list[Window]:
  """Pairs (start, stop), sorted, those that touch made one."""
  disjoint: list[Window] = []
  for start, stop in sorted(map(tuple, windows)):
    if not disjoint:
      disjoint.append((start, stop))
      continue
    first, last = disjoint[-1]
    if start <= last:
      disjoint[-1] = (first, max(stop, last))
    else:
      disjoint.append((start, stop))
  return disjoint


def whole_number(text: str) -> int | None:
  """12000 from '12_000', '12K' or '1.2e4'; None when a text is no whole number."""
  match = NUMBER.fullmatch(text.strip().lower())
  if match is None:
    return None
  digits, unit = match.groups()
  digits = digits.replace('_', '')
  try:
    number = fractions.Fraction(digits) * UNITS[unit]
  except ValueError:
    return None
  if number.denominator != 1:
    return None
  return int(number)


def _changed(config: Config, changes: Mapping[str, Any]) -> Config:
  """A copy without mixtures of datasets, whose sections data and objective are changed."""
  config = config.copy_and_resolve_references()
  with config.unlocked():
    config.stages = ()
    config.data.mixture = {}
    config.data.stages = {}
    for name in ('data', 'objective'):
      section = config[name]
      section.update(changes.get(name, {}))
  return config


def of(component: Component, mode: int = 0) -> Lengths:
  """Lengths of a Component whose mode token takes `mode` tokens of its inputs."""
  config = component.config
  data = config.data
  layout = component.layout
  keys = component.objective.read(config.objective)
  if isinstance(layout, OneStack):
    return layout.lengths(keys, data)
  room = data.seq_len - mode
  if ARCHITECTURES[config.model.name].has_encoder:
    fit = layout.two_rows(keys, room, data.target_len, mode)
    inputs = data.seq_len
    targets = fit.targets
  else:
    fit = layout.one_row(keys, room)
    inputs = 0
    targets = data.seq_len
  return Lengths(
      raw=fit.raw,
      inputs=inputs,
      targets=targets,
      spans=fit.spans,
  )


def are_known(config: Config) -> bool:
  """Whether `shapes` can say them; what else is wrong with objectives, objective_rules says."""
  try:
    listed = components(config)
  except ConfigError:
    return False
  for component in listed:
    if component.config.model.name not in component.objective.architectures:
      return False
  return True


def shapes(config: Config) -> Lengths:
  """Lengths of the rows of a batch of a config: the longest of its components; `raw` is the most."""
  return longest(components(config))


def longest(listed: Iterable[Component]) -> Lengths:
  """The most of each length that components have."""
  rows = [dataclasses.astuple(of(component)) for component in listed]
  columns = zip(*rows)
  return Lengths(*map(max, columns))
