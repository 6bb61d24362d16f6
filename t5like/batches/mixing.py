"""Which component of a mixture each row belongs to: exact shares everywhere, any row at once."""
import bisect

import numpy as np

from t5like import choices
from t5like.errors import ConfigError

WINDOW = 1000  # rows of a round; in every stretch of so many rows all components have their share
SMALLEST = 1 / WINDOW ** 2  # shares are multiples of this


def _by_weights(documents, data):
  return np.ones(len(documents))


def _by_examples(documents, data):
  examples = np.array(documents, np.float64)
  return np.minimum(examples, data.mixture_cap or np.inf) ** (1 / data.mixture_temperature)


# What the weights of datasets are multiplied by: (how many documents each has for training; config.data) -> float [n].
RATES = choices.implement('data.mixture_rates', choices.MIXTURE_RATES, dict(
    weights=_by_weights, examples=_by_examples))


class Mixture:
  """Rows 0, 1, .. dealt out to components whose weights may change at certain rows. Pickles small."""

  def __init__(self, stages):
    """`stages`: pairs (first row, weight of each component), the first row of the first being 0."""
    self._firsts = [first for first, _ in stages]
    self._dealers = [_Dealer(weights) for _, weights in stages]
    self._before = [np.zeros(len(stages[0][1]), np.int64)]  # rows of each component before each stage
    for k in range(1, len(stages)):
      self._before.append(self._before[-1] + self._dealers[k - 1].counts(self._firsts[k] - self._firsts[k - 1]))

  def __getitem__(self, row):
    """(component, how many rows of that component come before), ints, of a row."""
    stage = bisect.bisect_right(self._firsts, row) - 1
    component, rank = self._dealers[stage].deal(row - self._firsts[stage])
    return component, rank + int(self._before[stage][component])

  def counts(self, rows):
    """How many of the first `rows` rows each component has: int64 [components]."""
    stage = bisect.bisect_right(self._firsts, rows) - 1
    return self._before[stage] + self._dealers[stage].counts(rows - self._firsts[stage])


class _Dealer:
  """Rows by constant weights.

  In each round of WINDOW rows, most places belong to the same component as in the round before. Where
  shares are no multiples of 1 / WINDOW, some places change hands: a component that has one more row
  than in other rounds keeps it in one place until it gives it away. So in any WINDOW rows in a row,
  wherever they begin, its count is its quota rounded down or up. After WINDOW rounds every component
  has had its share to a millionth, and the rounds come in the opposite order, and so on.
  """

  def __init__(self, weights):
    self._counts = apportion(weights, WINDOW ** 2)
    always, extra = np.divmod(self._counts, WINDOW)
    owners = _owners(extra)
    self._rounds = np.tile(_spread([*always, owners.shape[1]]), (WINDOW, 1))
    self._rounds[self._rounds == len(always)] = owners.ravel()
    of_round = always + (owners[:, :, None] == np.arange(len(always))).sum(1)
    self._before = np.cumsum(np.concatenate([[np.zeros_like(always)], of_round]), 0)

  def _place(self, row):
    """(rows of each component before the round of `row`, components of that round, place in it)."""
    there_and_back, place = divmod(row, 2 * WINDOW ** 2)
    number, place = divmod(place, WINDOW)
    if number < WINDOW:
      before = self._before[number]
    else:
      number = 2 * WINDOW - 1 - number
      before = 2 * self._counts - self._before[number + 1]
    return 2 * there_and_back * self._counts + before, self._rounds[number], place

  def deal(self, row):
    before, components, place = self._place(row)
    component = int(components[place])
    return component, int(before[component]) + int(np.count_nonzero(components[:place] == component))

  def counts(self, rows):
    before, components, place = self._place(rows)
    return before + np.bincount(components[:place], minlength=len(before))


def apportion(weights, total):
  """Whole numbers in proportion to weights that add up to `total` (largest remainders): int64 [n].

  ConfigError for a weight so small that its number would be 0.
  """
  weights = np.asarray(weights, np.float64)
  exact = weights / weights.sum() * total
  counts = np.floor(exact + 1e-6).astype(np.int64)
  largest = np.argsort(counts - exact, kind='stable')[:total - counts.sum()]
  counts[largest] += 1
  lost = np.flatnonzero((weights > 0) & (counts == 0))
  if len(lost):
    raise ConfigError(f'data.mixture: component {lost[0] + 1} of {len(weights)} would have a share of '
                      f'{weights[lost[0]] / weights.sum():.1g} of all rows, which is below {SMALLEST:g}: raise its '
                      'weight or leave it out (data.mixture_temperature evens shares out).')
  return counts


def _spread(counts):
  """Each k counts[k] times, evenly spread: int16 [sum(counts)]."""
  at = np.concatenate([(np.arange(n) + 0.5) / max(1, n) for n in counts])
  return np.repeat(np.arange(len(counts), dtype=np.int16), counts)[np.argsort(at, kind='stable')]


def _owners(extra):
  """Component at each changing place of each round: int [WINDOW, sum(extra) / WINDOW].

  Component k is in extra[k] of the rounds, at one place. The draw is systematic (Madow 1949) with the
  starting points 0 .. WINDOW - 1 in an order that spreads any component's rounds.
  """
  ends = np.cumsum([0, *extra])
  owners = np.zeros((WINDOW, ends[-1] // WINDOW), np.int64)
  for number in range(WINDOW):
    start = number * 377 % WINDOW  # 377 / 1000: near the golden ratio's, and without a common divisor
    chosen = np.flatnonzero(np.diff((ends + start) // WINDOW))
    row = owners[number]
    row[:] = owners[number - 1] if number else chosen
    row[~np.isin(row, chosen)] = np.setdiff1d(chosen, row)
  return owners
