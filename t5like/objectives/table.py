"""The table of objectives: config.objective.name is a key of it. All that depends on an objective is in its entry."""
from t5like.config_type import Config
from t5like.objectives import mixtures, one_stack, pairs
from t5like.objectives.spec import Mixture, Objective

MODULES = (one_stack, pairs, mixtures)


def _entries() -> dict[str, Objective | Mixture]:
  """{name: entry} of all that the modules hold."""
  entries = {}
  for module in MODULES:
    for entry in vars(module).values():
      if not isinstance(entry, (Objective, Mixture)):
        continue
      first = entries.setdefault(entry.name, entry)
      if first is not entry:
        raise TypeError(f'two objectives are named {entry.name!r}')
  return entries


OBJECTIVES = _entries()


def of(config: Config) -> Objective | Mixture:
  """The entry of a config's objective."""
  return OBJECTIVES[config.objective.name]


def trains(architecture: str) -> list[str]:
  """Names of the objectives on which an architecture can be trained."""
  names = []
  for name, entry in OBJECTIVES.items():
    if architecture in entry.architectures:
      names.append(name)
  return names
