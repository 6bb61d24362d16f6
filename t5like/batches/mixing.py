"""Which component of a mixture each row belongs to: exact shares everywhere, any row at once."""
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
Documents = Sequence[int]  # how many each dataset has for training


def _by_weights(documents: Documents, data: Section) -> np.ndarray:
  return np.ones(len(documents))


def _by_examples(documents: Documents, data: Section) -> np.ndarray:
  examples = np.array(documents, np.float64)
  cap = data.mixture_cap or np.inf
  capped = np.minimum(examples, cap)
  exponent = 1 / data.mixture_temperature
  return capped ** exponent


# What the weights of datasets are multiplied by: (their Documents, config.data) -> float [n].
Rates = Callable[[Documents, Section], np.ndarray]

_RATES: dict[str, Rates] = dict(
    weights=_by_weights,
    examples=_by_examples,
)
RATES = choices.implement('data.mixture_rates', choices.MIXTURE_RATES, _RATES)


class Mixture:
  """Rows 0, 1, .. dealt out to components by constant weights. Pickles small.

  In each round of WINDOW rows, most places belong to the same component as in the round before. Where
  shares are no multiples of 1 / WINDOW, some places change hands: a component that has one more row
  than in other rounds keeps it in one place until it gives it away. So in any WINDOW consecutive rows,
  wherever they begin, its count is its quota rounded down or up. After WINDOW rounds every component
  has had its share to a millionth, and the rounds come in the opposite order, and so on.
  """

  def __init__(self, weights: Weights):
    self._counts = apportion(weights, WINDOW ** 2)
    always, extra = np.divmod(self._counts, WINDOW)
    num_components = len(always)
    components = np.arange(num_components)
    owners = _owners(extra)
    _, num_changing = owners.shape
    changing = num_components  # stands for a place that changes hands
    places = _spread([*always, num_changing])
    rounds = np.tile(places, (WINDOW, 1))
    is_changing = rounds == changing
    rounds[is_changing] = owners.ravel()
    self._rounds = rounds
    is_owner = owners[:, :, None] == components
    in_round = always + is_owner.sum(1)
    none = np.zeros_like(in_round[:1])
    counts = np.concatenate([none, in_round])
    self._before = np.cumsum(counts, axis=0)

  def _place(self, row: int) -> tuple[np.ndarray, np.ndarray, int]:
    """(rows of each component before the round of `row`, components of that round, place in it)."""
    there_and_back, place = divmod(row, 2 * WINDOW ** 2)
    number, place = divmod(place, WINDOW)
    if number < WINDOW:
      before = self._before[number]
    else:
      number = 2 * WINDOW - 1 - number
      from_the_end = self._before[number + 1]
      before = 2 * self._counts - from_the_end
    of_whole_cycles = 2 * there_and_back * self._counts
    return of_whole_cycles + before, self._rounds[number], place

  def __getitem__(self, row: int) -> tuple[int, int]:
    """(component, how many rows of that component come before), ints, of a row."""
    before, components, place = self._place(row)
    component = int(components[place])
    is_same = components[:place] == component
    in_this_round = int(np.count_nonzero(is_same))
    return component, int(before[component]) + in_this_round

  def counts(self, rows: int) -> np.ndarray:
    """How many of the first `rows` rows each component has: int64 [components]."""
    before, components, place = self._place(rows)
    components_before = components[:place]
    in_this_round = np.bincount(components_before, minlength=len(before))
    return before + in_this_round


def apportion(weights: Weights, total: int) -> np.ndarray:
  """Whole numbers in proportion to weights that add up to `total` (largest remainders): int64 [n].

  ConfigError for a weight so small that its number would be 0.
  """
  weights_N = np.asarray(weights, np.float64)
  shares_N = weights_N / weights_N.sum()
  exact_N = shares_N * total
  rounded_down_N = np.floor(exact_N + 1e-6)
  counts_N = rounded_down_N.astype(np.int64)
  by_remainder = np.argsort(counts_N - exact_N, kind='stable')
  left = total - counts_N.sum()
  rounded_up = by_remainder[:left]
  counts_N[rounded_up] += 1
  is_lost = (weights_N > 0) & (counts_N == 0)
  if is_lost.any():
    first = int(is_lost.argmax())
    raise ConfigError(f'data.mixture: component {first + 1} of {len(weights_N)} would have a share of '
                      f'{shares_N[first]:.1g} of all rows, which is below {SMALLEST:g}: raise its '
                      'weight or leave it out (data.mixture_temperature evens shares out).')
  return counts_N


def _spread(counts: Sequence[int]) -> np.ndarray:
  """Each k counts[k] times, evenly spread: int16 [sum(counts)]."""
  places = []
  for count in counts:
    middles = np.arange(count) + 0.5
    places.append(middles / max(1, count))
  joined = np.concatenate(places)
  order = np.argsort(joined, kind='stable')
  numbers = np.arange(len(counts), dtype=np.int16)
  repeated = np.repeat(numbers, counts)
  return repeated[order]


def _owners(extra: np.ndarray) -> np.ndarray:
  """Component at each changing place of each round: int [WINDOW, sum(extra) / WINDOW].

  Component k is in extra[k] of the rounds, at one place. The draw is systematic (Madow 1949) with the
  starting points 0 .. WINDOW - 1 in an order that spreads any component's rounds.
  """
  ends = np.cumsum([0, *extra])
  num_places = ends[-1] // WINDOW
  shape = (WINDOW, num_places)
  owners = np.zeros(shape, np.int64)
  for number in range(WINDOW):
    start = number * STRIDE % WINDOW
    draws_before = (ends + start) // WINDOW
    chosen = np.flatnonzero(np.diff(draws_before))
    row = owners[number]
    if number == 0:
      row[:] = chosen
      continue
    row[:] = owners[number - 1]
    gives_way = ~np.isin(row, chosen)
    row[gives_way] = np.setdiff1d(chosen, row)
  return owners
