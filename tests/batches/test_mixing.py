"""Rows dealt out to components: exact in every window, one formula for any row."""
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from t5like.batches import mixing
from t5like.errors import ConfigError

WEIGHTS = st.lists(st.floats(0.1, 1000), min_size=1, max_size=12)


def sequence(mixture, start, stop):
  return np.array([mixture[i][0] for i in range(start, stop)])


@settings(max_examples=25, deadline=None)
@given(WEIGHTS, st.integers(0, 10 ** 12))
def test_every_window_has_its_quota_to_a_row(weights, start):
  """Of any 1,000 rows in a row, wherever they begin, and over the turns of the cycle."""
  quota = 1000 * np.array(weights) / sum(weights)
  mixture = mixing.Mixture(weights)
  for begin in (start, 10 ** 6 - 1500, 2 * 10 ** 6 - 1500):
    dealt = sequence(mixture, begin, begin + 3000)
    for k, share in enumerate(quota):
      counts = np.cumsum(np.concatenate([[0], dealt == k]))
      assert np.abs(counts[1000:] - counts[:-1000] - share).max() < 1.01  # shares are kept to a millionth


@settings(max_examples=25, deadline=None)
@given(WEIGHTS, st.integers(0, 5 * 10 ** 6))
def test_ranks_count_up_from_nothing(weights, start):
  mixture = mixing.Mixture(weights)
  ranks = mixture.counts(start).tolist()
  assert sum(ranks) == start
  exact = start * np.array(weights) / sum(weights)
  assert np.abs(ranks - exact).max() < 10 + start * 1e-6
  for i in range(start, start + 300):
    component, rank = mixture[i]
    assert rank == ranks[component]
    ranks[component] += 1
  assert mixture.counts(start + 300).tolist() == ranks


def test_shares_are_exact_in_the_long_run():
  weights = [1, 1.618, 0.01, 0.0003]
  counts = mixing.Mixture(weights).counts(10 ** 12) / 10 ** 12
  np.testing.assert_allclose(counts, np.array(weights) / sum(weights), atol=1e-6)


def test_weights_that_are_thousandths_repeat_every_thousand_rows():
  mixture = mixing.Mixture([700, 250, 50])
  dealt = sequence(mixture, 0, 5000)
  assert all((dealt[i:i + 1000] == dealt[:1000]).all() for i in range(0, 5000, 1000))
  assert np.bincount(dealt[:1000]).tolist() == [700, 250, 50]
  gaps = np.diff(np.flatnonzero(dealt == 2))
  assert gaps.min() >= 18 and gaps.max() <= 22  # evenly spread, too


def test_shares_that_are_too_small():
  with pytest.raises(ConfigError, match='component 2 of 2 would have a share of 1e-07 of all rows'):
    mixing.Mixture([1, 1e-7])


@given(st.lists(st.floats(0.01, 10), min_size=1, max_size=30), st.integers(100_000, 10 ** 6))
def test_apportioned_numbers_add_up(weights, total):
  counts = mixing.apportion(weights, total)
  assert counts.sum() == total
  assert np.abs(counts - np.array(weights) / sum(weights) * total).max() < 1 + 1e-6
