"""Which component of a mixture each row belongs to: exact shares everywhere, any row at once."""
import bisect
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from t5like import choices
from t5like.config_type import Section
from t5like.errors import ConfigError

WINDOW = 1000  # rows of a round; in every stretch of so many rows all components have their share
SMALLEST = 1 / WINDOW ** 2  # shares are multiples of this
STRIDE = 377  # of the starting points of rounds; 377 / 1000 is near the golden ratio's, without a common divisor

Weights = npt.ArrayLike  # numbers from 0, of each component
Stage = tuple[int, Weights]  # its first row, and the weights from there on


def _by_weights(documents: Sequence[int], data: Section) -> np.ndarray:
  return np.ones(len(documents))


def _by_examples(documents: Sequence[int], data: Section) -> np.ndarray:
  examples = np.array(documents, np.float64)
  capped = np.minimum(examples, data.mixture_cap or np.inf)
  return capped ** (1 / data.mixture_temperature)


_RATES: dict[str, Callable[[Sequence[int], Section], np.ndarray]] = dict(
    weights=_by_weights,
    examples=_by_examples,
)
# What the weights of datasets are multiplied by: (how many documents each has for training; config.data) -> float [n].
RATES = choices.implement('data.mixture_rates', choices.MIXTURE_RATES, _RATES)


class Mixture:
  """Rows 0, 1, .. dealt out to components whose weights may change at certain rows. Pickles small."""

  def __init__(self, stages: Sequence[Stage]):
    """`stages`: pairs (first row, weight of each component), the first row of the first being 0."""
    self._firsts: list[int] = []
    self._dealers: list[_Dealer] = []
    self._before: list[np.ndarray] = []  # rows of each component before each stage: int64 [components]
    for first, weights in stages:
      before = np.zeros(np.shape(weights), np.int64)
      if self._dealers:
        before = self._before[-1] + self._dealers[-1].counts(first - self._firsts[-1])
      self._firsts.append(first)
      self._dealers.append(_Dealer(weights))
      self._before.append(before)

  def __getitem__(self, row: int) -> tuple[int, int]:
    """(component, how many rows of that component come before), ints, of a row."""
    stage = bisect.bisect_right(self._firsts, row) - 1
    component, rank = self._dealers[stage].deal(row - self._firsts[stage])
    return component, rank + int(self._before[stage][component])

  def counts(self, rows: int) -> np.ndarray:
    """How many of the first `rows` rows each component has: int64 [components]."""
    stage = bisect.bisect_right(self._firsts, rows) - 1
    return self._before[stage] + self._dealers[stage].counts(rows - self._firsts[stage])


class _Dealer:
  """Rows by constant weights.

  In each round of WINDOW rows, most places belong to the same component as in the round before. Where
  shares are no multiples of 1 / WINDOW, some places change hands: a component that has one more row
  than in other rounds keeps it in one place until it gives it away. So in any WINDOW consecutive rows,
  wherever they begin, its count is its quota rounded down or up. After WINDOW rounds every component
  has had its share to a millionth, and the rounds come in the opposite order, and so on.
  """

  def __init__(self, weights: Weights):
    self._counts = apportion(weights, WINDOW ** 2)
    always, extra = np.divmod(self._counts, WINDOW)
    components = np.arange(len(always))
    owners = _owners(extra)
    self._rounds = np.tile(_spread([*always, owners.shape[1]]), (WINDOW, 1))
    self._rounds[self._rounds == len(always)] = owners.ravel()
    in_round = always + (owners[:, :, None] == components).sum(1)
    none = np.zeros((1, len(always)), in_round.dtype)
    self._before = np.cumsum(np.concatenate([none, in_round]), 0)

  def _place(self, row: int) -> tuple[np.ndarray, np.ndarray, int]:
    """(rows of each component before the round of `row`, components of that round, place in it)."""
    there_and_back, place = divmod(row, 2 * WINDOW ** 2)
    number, place = divmod(place, WINDOW)
    if number < WINDOW:
      before = self._before[number]
    else:
      number = 2 * WINDOW - 1 - number
      before = 2 * self._counts - self._before[number + 1]
    return 2 * there_and_back * self._counts + before, self._rounds[number], place

  def deal(self, row: int) -> tuple[int, int]:
    """(component, how many rows of that component come before) of a row."""
    before, components, place = self._place(row)
    component = int(components[place])
    in_this_round = np.count_nonzero(components[:place] == component)
    return component, int(before[component]) + int(in_this_round)

  def counts(self, rows: int) -> np.ndarray:
    """How many of the first `rows` rows each component has: int64 [components]."""
    before, components, place = self._place(rows)
    return before + np.bincount(components[:place], minlength=len(before))


def apportion(weights: Weights, total: int) -> np.ndarray:
  """Whole numbers in proportion to weights that add up to `total` (largest remainders): int64 [n].

  ConfigError for a weight so small that its number would be 0.
  """
  weights_N = np.asarray(weights, np.float64)
  exact_N = weights_N / weights_N.sum() * total
  counts_N = np.floor(exact_N + 1e-6).astype(np.int64)
  by_remainder = np.argsort(counts_N - exact_N, kind='stable')
  counts_N[by_remainder[:total - counts_N.sum()]] += 1
  lost = np.flatnonzero((weights_N > 0) & (counts_N == 0))
  if len(lost):
    share = weights_N[lost[0]] / weights_N.sum()
    raise ConfigError(f'data.mixture: component {lost[0] + 1} of {len(weights_N)} would have a share of '
                      f'{share:.1g} of all rows, which is below {SMALLEST:g}: raise its '
                      'weight or leave it out (data.mixture_temperature evens shares out).')
  return counts_N


def _spread(counts: Sequence[int]) -> np.ndarray:
  """Each k counts[k] times, evenly spread: int16 [sum(counts)]."""
  places = [(np.arange(n) + 0.5) / max(1, n) for n in counts]
  order = np.argsort(np.concatenate(places), kind='stable')
  numbers = np.arange(len(counts), dtype=np.int16)
  return np.repeat(numbers, counts)[order]


def _owners(extra: np.ndarray) -> np.ndarray:
  """Component at each changing place of each round: int [WINDOW, sum(extra) / WINDOW].

  Component k is in extra[k] of the rounds, at one place. The draw is systematic (Madow 1949) with the
  starting points 0 .. WINDOW - 1 in an order that spreads any component's rounds.
  """
  ends = np.cumsum([0, *extra])
  owners = np.zeros((WINDOW, ends[-1] // WINDOW), np.int64)
  for number in range(WINDOW):
    start = number * STRIDE % WINDOW
    chosen = np.flatnonzero(np.diff((ends + start) // WINDOW))
    row = owners[number]
    row[:] = chosen if number == 0 else owners[number - 1]
    row[~np.isin(row, chosen)] = np.setdiff1d(chosen, row)
  return owners
