"""Plans of rows, and the rows: golden examples of seqio's converters (specs/objectives.md 1a, 1d, 1f), properties."""
import collections
import gzip
import json

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from t5like.batches import packing
from tests.conftest import ROOT

quick = settings(max_examples=60, deadline=None)
TEXT = st.lists(st.integers(2, 99), max_size=12).map(lambda t: np.array([*t, 1], np.int32))
PAIRS = st.lists(st.lists(st.tuples(TEXT, TEXT), max_size=4), min_size=1, max_size=4)


def ids(*tokens):
  return np.array(tokens, np.int32)


def golden(batch, **rows):
  for key, want in rows.items():
    assert batch[key][0].astype(int).tolist() == want, key


# --- Plans ------------------------------------------------------------------------------------------


def filled(needs, members, starts):
  """Tokens in each row [rows, features]."""
  needs = np.asarray(needs).reshape(len(members), -1)
  return np.stack([needs[members[a:b]].sum(0) for a, b in zip(starts, starts[1:])])


@quick
@given(st.lists(st.integers(0, 40), max_size=60), st.integers(40, 60), st.integers(0, 9))
def test_plan_of_one_need(needs, capacity, seed):
  members, starts = packing.plan(needs, capacity, seed)
  assert sorted(members) == list(range(len(needs))) and starts[0] == 0 and starts[-1] == len(needs)
  assert (np.diff(starts) > 0).all()
  if needs:
    tokens = filled(needs, members, starts)
    assert tokens.max() <= capacity
    assert packing.efficiency(needs, members, starts, capacity) == pytest.approx(tokens.mean() / capacity)
  again = packing.plan(np.array(needs, np.int32), capacity, seed)
  assert (again[0] == members).all() and (again[1] == starts).all()


@quick
@given(st.lists(st.tuples(st.integers(0, 40), st.integers(0, 9)), min_size=1, max_size=60), st.integers(40, 50),
       st.integers(9, 70))
def test_plan_of_two_needs(needs, S, T):
  members, starts = packing.plan(needs, (S, T), 0)
  tokens = filled(needs, members, starts)
  assert sorted(members) == list(range(len(needs))) and (tokens <= [S, T]).all()
  np.testing.assert_allclose(packing.efficiency(needs, members, starts, (S, T)), tokens.mean(0) / [S, T])


def test_rounding_of_two_needs_costs_nothing():
  """Sides of different widths: needs in proportion are planned as those of the wider side alone."""
  needs = np.random.default_rng(0).integers(1, 9, 400) * 7
  wide = packing.plan(needs, 70, 3)
  for other in (needs // 7, needs * 0):
    both = packing.plan(np.stack([needs, other], 1), (70, 10), 3)
    assert all(map(np.array_equal, both, wide))


@quick
@given(st.lists(st.integers(1, 30), min_size=1, max_size=60), st.integers(0, 9))
def test_plan_is_best_fit(needs, seed):
  """The same rows as of a loop that looks at every row for every text, in the plan's order."""
  order = np.random.default_rng([seed, len(needs)]).permutation(len(needs)).tolist()
  rows, room = [], []
  for text in order:
    fits = [r for r in range(len(rows)) if room[r] >= needs[text]]
    if fits:  # among rows alike, that which became so last
      least = min(room[r] for r in fits)
      r = max((r for r in fits if room[r] == least), key=lambda r: order.index(rows[r][-1]))
    else:
      r = len(rows)
      rows.append([])
      room.append(30)
    rows[r].append(text)
    room[r] -= needs[text]
  members, starts = packing.plan(needs, 30, seed)
  assert [members[a:b].tolist() for a, b in zip(starts, starts[1:])] == rows


def test_order_of_plans_depends_on_the_seed_alone():
  needs = np.random.default_rng(0).integers(1, 200, 500)
  plans = [packing.plan(needs, 256, seed)[0].tolist() for seed in (0, 0, 1)]
  assert plans[0] == plans[1] != plans[2]
  members, starts = packing.plan(needs, 256, 0)
  assert np.abs(np.corrcoef(np.arange(500), members)[0, 1]) < .15  # rows are in no order of the texts


def documents():
  """Lengths of sentences, [n, 2]: words of English and of German help texts, or alike without the file."""
  file = ROOT.parent / 'shared/data/libreoffice_help_en_de.jsonl.gz'
  if not file.exists():
    both = np.random.default_rng(0).lognormal(3, .8, (20_000, 1))
    return np.minimum(2 + both * [1.3, 1.6], 250).astype(int)
  records = map(json.loads, gzip.open(file, 'rt', encoding='utf-8'))
  return np.array([[min(250, 2 + len(r[k]) // 4) for k in ('en', 'de')] for r in records])


def test_real_documents_leave_little_room():
  needs = documents()
  for n, capacity in ((needs[:, 0], 512), (needs[:, 1], 256)):
    assert packing.efficiency(n, *packing.plan(n, capacity, 0), capacity) >= .98
  for capacity in ((512, 512), (256, 512), (1024, 256)):  # the fuller side; the other follows from the texts
    assert packing.efficiency(needs, *packing.plan(needs, capacity, 0), capacity).max() >= .98


def test_two_needs_make_up_for_each_other():
  """What is left of a row is known for both sides: more fits than if the greater needs were added up."""
  needs = np.random.default_rng(0).lognormal(4, .8, (5000, 2)).clip(1, 512).astype(int)
  exact, added = (packing.efficiency(needs, *packing.plan(n, c, 0), 512)
                  for n, c in ((needs, (512, 512)), (needs.max(1), 512)))
  assert (exact > .75).all() and (exact > 1.1 * added).all()


@pytest.mark.parametrize('needs', [np.zeros(0, int), np.zeros((0, 2), int)])
def test_no_texts(needs):
  members, starts = packing.plan(needs, 8, 0)
  assert not len(members) and starts.tolist() == [0]
  assert np.all(packing.efficiency(needs, members, starts, 8) == 0)


def test_what_no_row_can_hold():
  with pytest.raises(ValueError, match=r'needs \[3, 9\] of the \[5, 8\]'):
    packing.plan([(3, 9), (2, 2)], (5, 8), 0)


@quick
@given(st.lists(st.integers(0, 50), max_size=20), st.integers(1, 12))
def test_pieces(sizes, capacity):
  found = collections.defaultdict(list)
  for number, start, size in zip(*packing.pieces(sizes, capacity)):
    assert start == sum(found[number]) and size <= capacity
    found[number].append(size)
  assert [sum(found[k]) for k in range(len(sizes))] == sizes
  assert all(n == capacity for parts in found.values() for n in parts[:-1])
  assert all(size == 0 or min(found[k]) > 0 for k, size in enumerate(sizes))


# --- Rows -------------------------------------------------------------------------------------------


def test_pair_rows_golden():
  """make_autoregressive_inputs of seqio: BOS at each segment, never the end of the one before."""
  row = [(ids(7, 8, 1), ids(3, 8, 1)), (ids(5, 1), ids(9, 1)), (ids(6, 6, 6, 1), ids(5, 4, 1))]
  b = packing.pair_rows([row], 10, 10)
  golden(b, targets=[3, 8, 1, 9, 1, 5, 4, 1, 0, 0], segments=[1, 1, 1, 2, 2, 3, 3, 3, 0, 0],
         inputs=[0, 3, 8, 0, 9, 0, 5, 4, 0, 0], weights=[1, 1, 1, 1, 1, 1, 1, 1, 0, 0],
         positions=[0, 1, 2, 0, 1, 0, 1, 2, 0, 0])
  golden(b['encoder'], inputs=[7, 8, 1, 5, 1, 6, 6, 6, 1, 0], segments=[1, 1, 1, 2, 2, 3, 3, 3, 3, 0],
         positions=[0, 1, 2, 0, 1, 0, 1, 2, 3, 0])


def test_concatenated_rows_golden():
  """PrefixLMFeatureConverter of seqio."""
  row = [(ids(7, 8, 5, 1), ids(3, 9, 1)), (ids(8, 4, 9, 3, 1), ids(4, 1))]
  golden(packing.concatenated_rows([row], 15), targets=[7, 8, 5, 1, 3, 9, 1, 8, 4, 9, 3, 1, 4, 1, 0],
         inputs=[0, 7, 8, 5, 1, 3, 9, 0, 8, 4, 9, 3, 1, 4, 0], weights=[0, 0, 0, 0, 1, 1, 1, 0, 0, 0, 0, 0, 1, 1, 0],
         prefix=[1, 1, 1, 1, 1, 0, 0, 1, 1, 1, 1, 1, 1, 0, 0], positions=[0, 1, 2, 3, 4, 5, 6, 0, 1, 2, 3, 4, 5, 6, 0],
         segments=[1] * 7 + [2] * 7 + [0])


def test_what_is_too_long_keeps_its_end():
  """append_eos_after_trim of T5: len - 1 tokens, then the last. Of a concatenated pair inputs give way."""
  b = packing.pair_rows([[(ids(5, 6, 7, 8, 1), ids(2, 3, 4, 1))]], 4, 3)
  golden(b, targets=[2, 3, 1], inputs=[0, 2, 3], weights=[1, 1, 1])
  golden(b['encoder'], inputs=[5, 6, 7, 1], segments=[1, 1, 1, 1])
  pair = [(ids(5, 6, 7, 8, 1), ids(2, 3, 4, 1))]
  golden(packing.concatenated_rows([pair], 7), targets=[5, 6, 1, 2, 3, 4, 1], weights=[0, 0, 0, 1, 1, 1, 1],
         prefix=[1, 1, 1, 1, 0, 0, 0])
  golden(packing.concatenated_rows([pair], 4), targets=[2, 3, 4, 1], weights=[1, 1, 1, 1], inputs=[0, 2, 3, 4])
  golden(packing.concatenated_rows([pair], 3), targets=[2, 3, 1], weights=[1, 1, 1])


def check_shift(b):
  """Inputs are the targets one later within a segment, and there is nothing in padding."""
  for t in range(b['targets'].shape[1]):
    same = (b['segments'][:, t] == b['segments'][:, t - 1]) & (t > 0) & (b['segments'][:, t] > 0)
    np.testing.assert_array_equal(b['inputs'][:, t], np.where(same, b['targets'][:, t - 1], 0))
    np.testing.assert_array_equal(b['positions'][:, t], np.where(same, b['positions'][:, t - 1] + 1, 0))
  for key in ('targets', 'weights', 'positions'):
    assert not b[key][b['segments'] == 0].any()
  assert {k: v.dtype for k, v in b.items() if k not in ('encoder', 'prefix', 'weights')} == dict.fromkeys(
      ('inputs', 'targets', 'positions', 'segments'), np.int32) and b['weights'].dtype == np.float32


@quick
@given(PAIRS)
def test_rows_hold_every_pair(rows):
  S, T = (max(sum(len(p[k]) for p in row) for row in rows) + 1 for k in (0, 1))
  both, one = packing.pair_rows(rows, S, T), packing.concatenated_rows(rows, S + T)
  check_shift(both)
  check_shift(one)
  assert both['encoder']['inputs'].shape == (len(rows), S) and both['inputs'].shape == (len(rows), T)
  np.testing.assert_array_equal(both['weights'], both['segments'] > 0)
  for r, row in enumerate(rows):
    assert both['segments'][r].max() == both['encoder']['segments'][r].max() == one['segments'][r].max() == len(row)
    for s, (inputs, targets) in enumerate(row, 1):
      here = both['encoder']['segments'][r] == s
      assert both['encoder']['inputs'][r, here].tolist() == inputs.tolist()
      assert both['encoder']['positions'][r, here].tolist() == list(range(len(inputs)))
      assert both['targets'][r, both['segments'][r] == s].tolist() == targets.tolist()
      here, i, n = one['segments'][r] == s, len(inputs), len(inputs) + len(targets)
      assert one['targets'][r, here].tolist() == [*inputs, *targets]
      assert one['weights'][r, here].tolist() == [0] * i + [1] * (n - i)
      assert one['prefix'][r, here].tolist() == [t <= i for t in range(n)]
  assert not one['prefix'][one['segments'] == 0].any()


@quick
@given(PAIRS, st.integers(1, 20), st.integers(1, 20))
def test_rows_of_any_width_are_well_formed(rows, S, T):
  both, one = packing.pair_rows(rows, S, T), packing.concatenated_rows(rows, T)
  check_shift(both)
  check_shift(one)
  for b in (both, both['encoder'], one):
    n = (b['segments'] > 0).sum(1)
    assert all((row[:k] > 0).all() and (np.diff(row[:k]) >= 0).all() for row, k in zip(b['segments'], n))
  assert not one['weights'][one['segments'] == 0].any() and not one['prefix'][one['segments'] == 0].any()
  for r, row in enumerate(rows):
    if row:  # the first pair is trimmed only as much as the width asks for
      assert (one['segments'][r] == 1).sum() == min(T, sum(map(len, row[0])))
      assert ((one['segments'][r] == 1) & (one['weights'][r] > 0)).sum() == min(T, len(row[0][1]))
      assert one['targets'][r, one['segments'][r] == 1][-1] == 1


@quick
@given(st.integers(1, 4), st.integers(1, 9), st.integers(1, 9), st.integers(0, 3))
def test_pairs_of_one_length_at_once(B, I, J, more):
  inputs, targets = (np.random.default_rng([B, n]).integers(2, 99, (B, n)).astype(np.int32) for n in (I, J))
  a = packing.one_pair_rows(inputs, targets, I + more, J + more)
  b = packing.pair_rows([[pair] for pair in zip(inputs, targets)], I + more, J + more)
  for got, want in ((a, b), (a['encoder'], b['encoder'])):
    for key in set(want) - {'encoder'}:
      np.testing.assert_array_equal(got[key], want[key])
