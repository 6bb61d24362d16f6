"""The endless training sequence: row i is f(seed, config, i), stage after stage.

A stage reads what a run of its config alone would read, from where its components are: each continues where the one of
its name was in the stage before, in the same place of its epoch where it has another number of rows.
"""
import bisect
import dataclasses
import fractions
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import grain
import numpy as np

from t5like.batches import frames, mixing
from t5like.batches.rows import Rows
from t5like.config import stages
from t5like.config_type import Config, Section
from t5like.objectives import lengths
from t5like.objectives.functions import Batch
from t5like.prepared.store import Store, Stores

Windows = Sequence[lengths.Window]  # of rows that are left out, sorted and disjoint


class StageRows:
  """Random access to rows as one stage of a run reads them.

  Attributes:
    parts: the Rows of each component.
    orders: of each component, Grain's order of its rows, without end.
    names: of components.
    mixture: which component rows belong to; None if there is only one.
    first: the row of the sequence that it begins with.
    ranks: of each component, its rows that the stages before have read.
  """

  def __init__(
      self,
      components: Sequence[lengths.Component],
      parts: list[Rows],
      config: Config,
  ):
    """config: of the stage, whose components have these Rows."""
    self.parts = parts
    self.orders: list[Any] = []
    for k, rows in enumerate(parts):
      seed = _seed_of_order(config.seed, k)
      in_order = grain.MapDataset.range(len(rows)).seed(seed)
      self.orders.append(in_order.shuffle().repeat())
    self.names: list[str] = []
    weights: list[float] = []
    for component in components:
      self.names.append(component.name)
      weights.append(component.weight)
    self.frame = frames.frame(components)
    self.mixture: mixing.Mixture | None = None
    if len(components) > 1:
      scale = self._scale(config.data)
      scaled = np.array(weights) * scale
      self.mixture = mixing.Mixture(scaled)
    self.first = 0
    self.ranks = [0] * len(parts)

  def _scale(self, data: Section) -> np.ndarray:
    """What weights are multiplied by: see data.mixture_rates."""
    documents = []
    for part in self.parts:
      split = part.store.manifest['splits']['train']
      documents.append(split['documents'])
    rates = mixing.RATES[data.mixture_rates]
    return rates(documents, data)

  def begin(self, first: int, before: 'StageRows') -> None:
    """It begins with this row of the sequence, and its components where they are after the stage before."""
    self.first = first
    for k, part in enumerate(self.parts):
      epochs = before.epochs(self.names[k], part, first)
      self.ranks[k] = math.ceil(epochs * len(part))

  def epochs(self, name: str, part: Rows, row: int) -> fractions.Fraction:
    """Epochs that were read before a row by the component of a name, else by all those of the dataset of a part."""
    counts = self.counts(self.first, row)
    total = fractions.Fraction(0)
    for k, own in enumerate(self.parts):
      if name in self.names:
        counted = self.names[k] == name
      else:
        counted = own.store.folder == part.store.folder
      if counted:
        rank = self.ranks[k] + int(counts[k])
        total += fractions.Fraction(rank, len(own))
    return total

  def is_alike(self, other: 'StageRows') -> bool:
    """Whether two stages deal out the same rows, in whatever shares."""
    has_same_names = self.names == other.names
    has_same_rows = self.parts == other.parts
    return has_same_names and has_same_rows

  def counts(self, start: int, stop: int) -> np.ndarray:
    """How many of rows `start` ..< `stop` of the sequence each component has, in the order of `names`: int64."""
    if self.mixture is None:
      return np.array([stop - start])
    before = self.mixture.counts(start - self.first)
    behind = self.mixture.counts(stop - self.first)
    return behind - before

  def describe(self, counts: Sequence[int]) -> Iterator[str]:
    """What so many rows of each component are, a line for each."""
    rows = sum(counts)
    for part, name, count in zip(self.parts, self.names, counts):
      size = len(part)
      epochs = count / size
      line = f'{epochs:.3g} epochs of {size:,} rows from {part.store.folder}'
      if name:
        share = count / rows
        line = f'{name}: {share:.1%} of rows, {line}'
      if not part.is_windows:
        shares = [f'{share:.1%}' for share in part.plan.fill]
        words = ' and '.join(shares)
        line += f', of whose positions text takes {words}'
      if 'validation' not in part.store.splits:
        line += ', which has no text to validate on'
      yield line

  def component(self, i: int) -> tuple[int, int, int]:
    """(component, its row, epoch) of row i of the sequence."""
    k = 0
    rank = i - self.first
    if self.mixture is not None:
      k, rank = self.mixture[rank]
    rank += self.ranks[k]
    number = int(self.orders[k][rank])
    epoch = rank // len(self.parts[k])
    return k, number, epoch

  def batch(self, rows: Iterable[int]) -> Batch:
    """Batch of `rows` of the sequence: numpy arrays."""
    numbers: list[list[int]] = [[] for _ in self.parts]  # of each component: its rows
    epochs: list[list[int]] = [[] for _ in self.parts]
    places: list[list[int]] = [[] for _ in self.parts]  # where they are in the batch
    size = 0
    for place, i in enumerate(rows):
      k, number, epoch = self.component(i)
      numbers[k].append(number)
      epochs[k].append(epoch)
      places[k].append(place)
      size += 1
    out = None
    for k, part in enumerate(self.parts):
      if not places[k]:
        continue
      made = part.batch(numbers[k], epochs[k])
      is_whole = len(places[k]) == size
      if is_whole and self.frame.holds(made):
        return made
      if out is None:
        out = self.frame.blank(size)
      frames.put(out, made, places[k])
    return out or self.frame.blank(0)


@dataclasses.dataclass
class _Group:
  """Stages, one after the other, that are alike: the first of them, its row, and rows of each component in all."""
  stage: StageRows
  first: int
  counts: np.ndarray


class TrainRows:
  """Random access to batches of rows of the endless training sequence.

  Attributes:
    stages: the StageRows of each stage of the run.
  """

  def __init__(self, store: Store | Stores, config: Config):
    """`store`: what `opening.open_data` returns. Stages begin with the rows at which an undisturbed run has them."""
    listed = stages.of(config)
    self._opened: dict[str, Rows] = {}
    self.stages: list[StageRows] = []
    for stage in listed:
      components = lengths.components(stage.config)
      parts = []
      for k, component in enumerate(components):
        part = self._open(store, component, k)
        parts.append(part)
      rows = StageRows(components, parts, stage.config)
      self.stages.append(rows)
    firsts = []
    for stretch in stages.course(listed):
      firsts.append(stretch.row)
    self.place(firsts)

  def _open(self, store: Store | Stores, component: lengths.Component, number: int) -> Rows:
    """The Rows of a component, which stages share where they read it alike."""
    config = component.config
    data = config.data.to_dict()
    objective = config.objective.to_dict()
    key = repr((number, component.name, component.mode, data, objective))
    if key not in self._opened:
      self._opened[key] = Rows(store, component, 'train', config.seed, number)
    return self._opened[key]

  def place(self, firsts: Sequence[int]) -> None:
    """Stages begin with these rows, the first one with row 0."""
    self._firsts = list(firsts)
    for number in range(1, len(self.stages)):
      stage = self.stages[number]
      before = self.stages[number - 1]
      stage.begin(firsts[number], before)

  @property
  def parts(self) -> list[Rows]:
    """The Rows of each component of the first stage."""
    return self.stages[0].parts

  @property
  def names(self) -> list[str]:
    """The names of the components of the first stage."""
    return self.stages[0].names

  def stage(self, row: int) -> StageRows:
    """The stage that a row belongs to."""
    number = bisect.bisect_right(self._firsts, row) - 1
    return self.stages[number]

  def describe(self, rows: int) -> Iterator[str]:
    """What the first `rows` rows are made of, a line per component; stages with other rows by themselves."""
    groups: list[_Group] = []
    for stage, start, stop in self._pieces(0, rows):
      counts = stage.counts(start, stop)
      if groups and groups[-1].stage.is_alike(stage):
        groups[-1].counts = groups[-1].counts + counts
        continue
      group = _Group(
          stage=stage,
          first=start,
          counts=counts,
      )
      groups.append(group)
    for group in groups:
      counts = group.counts.tolist()
      prefix = ''
      if len(groups) > 1:
        prefix = f'From row {group.first:,}: '
      for line in group.stage.describe(counts):
        yield prefix + line

  def counts(self, rows: int) -> dict[str, int]:
    """How many of the first `rows` rows each component has, by its name."""
    return self._counts(0, rows)

  def used(self, examples_seen: int, skipped: Windows) -> dict[str, int]:
    """{'rows/NAME': rows of that component that training has read}; {} if there is only one component."""
    counts = self._counts(0, examples_seen)
    for start, stop in skipped:
      if start >= examples_seen:
        continue
      last = min(stop, examples_seen)
      for name, count in self._counts(start, last).items():
        counts[name] -= count
    used = {}
    for name, count in counts.items():
      if name:
        used[f'rows/{name}'] = count
    return used

  def _counts(self, start: int, stop: int) -> dict[str, int]:
    """How many of rows `start` ..< `stop` each component has, by its name."""
    total: dict[str, int] = {}
    for stage in self.stages:
      zeros = dict.fromkeys(stage.names, 0)
      total.update(zeros)
    for stage, first, last in self._pieces(start, stop):
      counts = stage.counts(first, last)
      for name, count in zip(stage.names, counts.tolist()):
        total[name] += count
    return total

  def _pieces(self, start: int, stop: int) -> Iterator[tuple[StageRows, int, int]]:
    """(stage, first row, the one after the last) of the stages that have any of rows `start` ..< `stop`."""
    ends = [*self._firsts[1:], stop]
    for number, stage in enumerate(self.stages):
      first = max(start, self._firsts[number])
      end = min(stop, ends[number])
      if first < end:
        yield stage, first, end

  def component(self, i: int) -> tuple[int, int, int]:
    """(component of its stage, its row, epoch) of row i."""
    return self.stage(i).component(i)

  def batch(self, rows: Iterable[int]) -> Batch:
    """Batch of `rows` of the sequence, all of one stage: numpy arrays."""
    numbers = list(rows)
    first = numbers[0] if numbers else 0
    return self.stage(first).batch(numbers)


def _seed_of_order(seed: int, component: int) -> int:
  """The seed of the order of a component's rows; that of the first, which usually is the only one, is the run's."""
  if component == 0:
    return seed
  sequence = np.random.SeedSequence([seed, component])
  (own_seed,) = sequence.generate_state(1)
  return int(own_seed)
