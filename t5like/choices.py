"""The names that keys of a config may have, and the facts about each that rules and readers of configs ask for.

There is no JAX here, since configs are checked before it starts. The functions and modules behind the names are in
tables of their own, each beside the code that calls them and each compared with its names by `implement` when it is
imported: a name without an implementation is an error then, never the behaviour of another name.
"""
import dataclasses
from collections.abc import Collection, Mapping
from typing import TypeVar

from t5like import rate_schedules

Implementation = TypeVar('Implementation')


def implement(key: str, names: Collection[str],
              implementations: Mapping[str, Implementation]) -> Mapping[str, Implementation]:
  """Returns the implementations of the names that a config key may have.

  Args:
    key: of a config, such as 'model.norm'.
    names: its choices, one of the tables below.
    implementations: what computes each of them, by name.

  Raises:
    NotImplementedError: a name has no implementation, or an implementation no name.
  """
  missing = [name for name in names if name not in implementations]
  if missing:
    raise NotImplementedError(f'{key}={missing[0]!r} is a choice in t5like/choices.py, but nothing implements it.')
  unnamed = [name for name in implementations if name not in names]
  if unnamed:
    raise NotImplementedError(f'{key}={unnamed[0]!r} is implemented, but it is no choice in t5like/choices.py.')
  return implementations


# --- Data -----------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Packing:
  """Which texts share a row.

  windows: rows are windows of all documents joined, which begin and end anywhere in them; otherwise a row holds whole
    texts, whose ends have to be marked.
  planned: which texts share a row is planned from their lengths, so these must be known.
  """
  windows: bool = False
  planned: bool = False


PACKINGS = dict(concat_split=Packing(windows=True), best_fit=Packing(planned=True), none=Packing())
EMPTY = ('drop', 'error')
OVERLONG = ('truncate', 'drop', 'error')


@dataclasses.dataclass(frozen=True)
class MixtureRates:
  """by_examples: rates depend on how many examples each dataset has, which only the prepared data tells."""
  by_examples: bool


MIXTURE_RATES = dict(weights=MixtureRates(by_examples=False), examples=MixtureRates(by_examples=True))

# What follows the kind in data.source: nothing, any text, or a number of letters of the alphabet.
SOURCES = {'python_docs': '', 'python_functions': '', 'shakespeare': '', 'text': 'GLOB', 'jsonl': 'GLOB',
           'parquet': 'GLOB', 'tfds': 'NAME', 'markov': 'STATES', 'iid': 'SYMBOLS', 'copy': 'SYMBOLS',
           'reverse': 'SYMBOLS'}

VOCABULARIES = ('sentencepiece', 'bytes', 'characters', 'huggingface')
ALGORITHMS = ('unigram', 'bpe')


@dataclasses.dataclass(frozen=True)
class Normalization:
  """keeps_spaces: spaces and newlines come back exactly as they were."""
  keeps_spaces: bool


NORMALIZATIONS = dict(nmt_nfkc=Normalization(keeps_spaces=False), identity=Normalization(keeps_spaces=True))
TRACKERS = ('tensorboard', 'wandb', 'mlflow')

SCHEDULES = rate_schedules.SCHEDULES  # shapes of the learning rate are plain arithmetic, facts and function at once
