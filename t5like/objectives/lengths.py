"""How many tokens objectives take and give: arithmetic of configs alone, before any data is there.

A config may ask for several datasets and objectives at once; `components` lists them, each as a
config of its own.
"""
import dataclasses
import fractions
import re
from typing import Any

from t5like.config_type import Config
from t5like.errors import ConfigError
from t5like.objectives import table
from t5like.objectives.spec import Lengths, Mixture, OneStack, Pair


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
  def objective(self) -> Any:
    """The entry of its objective, an Objective."""
    return table.of(self.config)

  @property
  def layout(self) -> OneStack | Pair:
    """How its rows are made."""
    return self.objective.layout(self.config.model.name, self.mode)


def components(config, weights=()):
  """All components of a config, a plain one being its own only component. Raises ConfigError.

  `weights`: a dict of the mixture's names, whose weights take the place of the config's.
  """
  weights_of = lambda name: {'weight': weights[name]} if name in weights else {}
  mixed = [(name, float({'weight': 1, **parts, **weights_of(name)}['weight']), _changed(config, parts))
           for name, parts in config.data.mixture.to_dict().items()] or [('', 1.0, config)]
  found = []
  for name, weight, part in mixed:
    entry = table.of(part)
    if not isinstance(entry, Mixture):
      found.append(Component(name, weight, part))
      continue
    denoisers = entry.parts(entry.read(part.objective))
    rates = sum(denoiser.rate for denoiser in denoisers)
    for denoiser in denoisers:
      found.append(Component(f'{name} {denoiser.label}'.strip(), weight * denoiser.rate / rates,
                             _changed(part, dict(objective=denoiser.changes)), denoiser.mode))
  total = sum(c.weight for c in found) or 1  # all 0 is refused by objective_rules
  return [dataclasses.replace(c, weight=c.weight / total) for c in found]


def stages(config):
  """[(tokens, [weight of each component])]: from so many tokens on, these are the weights. Raises ConfigError."""
  changed, found = {}, [(0, [c.weight for c in components(config)])]
  given = [(whole_number(str(stage['tokens'])), stage['weights']) for stage in config.data.stages.to_dict().values()]
  for tokens, weights in sorted(given, key=lambda stage: stage[0]):
    changed.update(weights)
    found.append((tokens, [c.weight for c in components(config, changed)]))
  return found


def skipped(text):
  """[(start, stop)], sorted and disjoint, of 'start:stop,start:stop' in rows. Raises ConfigError."""
  found = []
  for window in filter(None, (part.strip() for part in text.split(','))):
    ends = [whole_number(end) for end in window.split(':')]
    if len(ends) != 2 or None in ends or not 0 <= ends[0] < ends[1]:
      raise ConfigError(f"data.skip_rows={text!r}: {window!r} is no window of rows. Write the first row and the one "
                        "after the last, as in '128000:153600' or '128K:154K'.")
    found.append(tuple(ends))
  return merged(found)


def merged(windows):
  """Pairs (start, stop), sorted, those that touch made one."""
  found = []
  for start, stop in sorted(map(tuple, windows)):
    if found and start <= found[-1][1]:
      found[-1] = (found[-1][0], max(stop, found[-1][1]))
    else:
      found.append((start, stop))
  return found


def whole_number(text):
  """12000 from '12_000', '12K' or '1.2e4'; None when a text is no whole number."""
  m = re.fullmatch(r'([+-]?[0-9_.]*[0-9](?:e[+-]?[0-9]{1,2})?)\s*([kmbt]?)', text.strip().lower())
  try:
    n = fractions.Fraction(m[1].replace('_', '')) * 1000 ** ' kmbt'.index(m[2] or ' ')
  except (TypeError, ValueError):
    return None
  return int(n) if n.denominator == 1 else None


def _changed(config, parts):
  config = config.copy_and_resolve_references()
  with config.unlocked():
    config.data.mixture, config.data.stages = {}, {}
    for section in ('data', 'objective'):
      config[section].update(parts.get(section, {}))
  return config


def of(component: Component, mode: int = 0) -> Lengths:
  """Lengths of a Component whose mode token takes `mode` tokens of its inputs."""
  data, layout = component.config.data, component.layout
  keys = component.objective.read(component.config.objective)
  if isinstance(layout, OneStack):
    return layout.lengths(keys, data)
  room = data.seq_len - mode
  if component.config.model.name == 'decoder':
    fit = layout.one_row(keys, room)
    return Lengths(fit.raw, 0, data.seq_len, spans=fit.spans)
  fit = layout.two_rows(keys, room, data.target_len, mode)
  return Lengths(fit.raw, data.seq_len, fit.targets, spans=fit.spans)


def are_known(config: Config) -> bool:
  """Whether `shapes` can say them; what else is wrong with objectives, objective_rules says."""
  try:
    return all(part.config.model.name in part.objective.architectures for part in components(config))
  except ConfigError:
    return False


def shapes(config):
  """Lengths of the rows of a batch of a config: the longest of its components; `raw` is the most."""
  all_of = [of(c) for c in components(config)]
  return Lengths(*(max(getattr(n, f.name) for n in all_of) for f in dataclasses.fields(Lengths)))
