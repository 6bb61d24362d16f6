"""Objectives: golden examples of the papers' code (specs/objectives.md 1a to 1g), statistics, properties."""
import dataclasses
import math
import types

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from t5like.config import base
from t5like.objectives import functions, lengths, masking, spans as spans_lib
from t5like.objectives.spec import Ids, Lengths, Setting
from t5like.objectives.table import OBJECTIVES

M = functions.MISSING
EOS, MASK, CLS, V = 1, 31_999, 31_998, 32_000
SPECIAL = np.r_[0:3, 31_900:V]
SENTINELS = np.arange(V - 1, 31_899, -1, dtype=np.int32)
quick = settings(max_examples=60, deadline=None)
SEEDS = st.integers(0, 2 ** 32)


def generator(*key):
  return np.random.default_rng(key)


def text(n, *key, start=10, stop=31_900):
  return generator(n, *key).integers(start, stop, n).astype(np.int32)


class Given:
  """Stands in for a generator: `random(n)` returns the numbers it was made with."""

  def __init__(self, *draws):
    self.draws = list(draws)

  def random(self, n):
    assert len(self.draws[0]) == n
    return np.array(self.draws.pop(0), float)


# --- Lengths (1c) -----------------------------------------------------------------------------------


@pytest.mark.parametrize('S, density, mean_span, raw, targets, noise, spans', [
    (512, .15, 3, 568, 114, 85, 28), (1024, .15, 3, 1137, 229, 171, 57), (256, .15, 3, 284, 58, 43, 14),
    (128, .15, 3, 141, 29, 21, 7), (64, .15, 3, 70, 14, 10, 3), (64, .2, 2, 70, 22, 14, 7),
    (64, .2, 1, 63, 27, 13, 13), (512, .15, 8, 588, 100, 88, 11), (512, .5, 3, 766, 512, 383, 128),
    (512, .5, 8, 908, 512, 454, 57), (512, .15, 64, 600, 92, 90, 1), (512, .5, 64, 1006, 512, 503, 8)])
def test_lengths_of_the_papers(S, density, mean_span, raw, targets, noise, spans):
  """T5's random_spans_helper, mT5's and UL2's configurations; and rows really have these lengths."""
  c = base()
  c.model.name, c.data.seq_len = 'encoder_decoder', S
  c.objective.update(name='span_corruption', noise_density=density, mean_span=float(mean_span))
  n = lengths.of(lengths.Component('', 1.0, c))
  assert (n.raw, n.inputs, n.targets, n.spans) == (raw, S, targets, spans)
  assert spans_lib.span_counts(raw, density, mean_span) == (noise, spans)
  inputs, outputs = spanned(text(raw)[None], [generator(S)], density=density, mean_span=mean_span,
                            sentinels=np.arange(40_000, 39_800, -1))
  assert inputs.shape == (1, S) and outputs.shape == (1, targets)


def test_one_rounding_for_lengths_and_masks():
  """T5's own two, in single and double precision, disagree at 18 lengths up to 2048."""
  differ = [n for n in range(2, 2049) if round(n * .15) != round(float(np.float32(n) * np.float32(.15)))]
  assert differ[:10] == [190, 350, 390, 670, 710, 750, 790, 830, 1310, 1350] and len(differ) == 18
  for n in differ:
    inputs, targets = spanned(text(n)[None], [generator(n)], sentinels=np.arange(40_000, 39_800, -1))
    assert (inputs.shape[1], targets.shape[1]) == spans_lib.span_lengths(n, .15, 3.0)
  assert spans_lib.span_counts(190, .15, 3.0) == (28, 9)


@pytest.mark.parametrize('S, symbols, optimum', [(512, 256, 4.576), (64, 16, 2.2364)])
def test_optimum_of_tokens_without_structure(S, symbols, optimum):
  """Noise tokens cost log(V) each, and all ways to cut them into spans are equally likely."""
  n = spans_lib.span_raw(lambda i, t: i <= S, .15, 3.0)
  noise, spans = spans_lib.span_counts(n, .15, 3.0)
  ways = math.log(math.comb(noise - 1, spans - 1))
  assert S != 512 or round(ways, 2) == 50.37
  assert (noise * math.log(symbols) + ways) / spans_lib.span_lengths(n, .15, 3.0)[1] == pytest.approx(optimum, abs=5e-4)


# --- Prefix LM (1d) ---------------------------------------------------------------------------------


def test_prefix_lm_golden():
  """T5's pack_prefix_lm_decoder_only: the prefix is t <= split, predicted is t >= split."""
  row = np.array([[5, 6, 7, 8, 1, M, M]], np.int32)
  got = functions.prefix_lm(row, [Given([.3])], document_mask=False, eos_id=EOS)  # 1 + int(.3 * 4) = 2
  assert got.pop('positions')[0, :5].tolist() == [0, 1, 2, 3, 4]
  assert {k: v[0].astype(int).tolist() for k, v in got.items()} == dict(
      inputs=[0, 5, 6, 7, 8, 0, 0], targets=[5, 6, 7, 8, 1, 0, 0], weights=[0, 0, 1, 1, 1, 0, 0],
      prefix=[1, 1, 1, 0, 0, 0, 0], segments=[1, 1, 1, 1, 1, 0, 0])
  assert got['prefix'].dtype == bool and got['weights'].dtype == np.float32


def test_prefix_lm_has_a_split_per_document():
  row = np.array([[5, 6, 1, 1, 7, 1]], np.int32)
  got = functions.prefix_lm(row, [Given([.99, .5, 0])], document_mask=True, eos_id=EOS)
  assert {k: v[0].astype(int).tolist() for k, v in got.items()} == dict(
      inputs=[0, 5, 6, 0, 0, 7], targets=[5, 6, 1, 1, 7, 1], weights=[0, 0, 1, 1, 0, 1],
      prefix=[1, 1, 1, 0, 1, 1], positions=[0, 1, 2, 0, 0, 1], segments=[1, 1, 1, 2, 3, 3])


@quick
@given(st.lists(st.integers(1, 5), max_size=30), st.integers(0, 4), st.booleans(), SEEDS)
def test_prefix_lm_properties(tokens, padding, document_mask, seed):
  row = np.array([tokens + [M] * (padding or not tokens)], np.int32)
  b = functions.prefix_lm(row, [generator(seed)], document_mask=document_mask, eos_id=EOS)
  b, n = {k: v[0] for k, v in b.items()}, len(tokens)
  assert not b['weights'][n:].any() and not b['prefix'][n:].any() and not b['segments'][n:].any()
  assert b['targets'][:n].tolist() == tokens
  for s in range(1, b['segments'].max(initial=0) + 1):
    here = b['segments'] == s
    size, hidden = here.sum(), int((b['weights'][here] == 0).sum())
    assert document_mask or size == n
    assert hidden == 0 if size == 1 else 1 <= hidden <= size - 1
    assert b['weights'][here].tolist() == [0] * hidden + [1] * (size - hidden)
    assert b['prefix'][here].tolist() == [hidden > 0 and t <= hidden for t in range(size)]


def test_prefix_lm_splits_are_uniform():
  rows = np.tile(text(9), (8000, 1))
  b = functions.prefix_lm(rows, [generator(k) for k in range(8000)], document_mask=True, eos_id=EOS)
  counts = np.bincount((b['weights'] == 0).sum(1).astype(int), minlength=10)
  assert counts[0] == counts[9] == 0 and chi_square(counts[1:9]) < 30  # 7 degrees of freedom: p 1e-4


def chi_square(counts):
  return ((counts - counts.mean()) ** 2 / counts.mean()).sum()


# --- Masked LM (1b) ---------------------------------------------------------------------------------


def masked(tokens, random, **changes):
  options = masking.Options(
      density=.15, masking='bert', whole_word=False, predictions=77, cls_sep=False, document_mask=True, eos_id=EOS,
      mask_id=MASK, cls_id=CLS, vocab_size=V, special_ids=SPECIAL, begins_word=None)
  return masking.masked_lm(tokens, random, dataclasses.replace(options, **changes))


@pytest.mark.parametrize('T, most, n', [(128, 20, 19), (512, 77, 77), (512, 76, 76), (3, 5, 1), (30, 9, 4), (50, 9, 8)])
def test_bert_masks_a_fixed_number(T, most, n):
  """round() is half to even: 30 x 0.15 = 4.5 gives 4, 50 x 0.15 = 7.5 gives 8."""
  b = masked(np.stack([text(T, k) for k in range(4)]), [generator(k) for k in range(4)], predictions=min(most, T))
  assert (b['weights'].sum(1) == n).all() and b['predict'].shape == (4, min(most, T))


def test_masked_rows_with_cls_and_sep():
  tokens = np.array([[20, 1, 30, 40], [20, 30, M, M]], np.int32)
  b = masked(tokens, [generator(0), generator(1)], cls_sep=True, predictions=1, density=.2)
  restored = restore(b)
  assert restored.tolist() == [[CLS, 20, 1, 30, 40, 1], [CLS, 20, 30, 1, 0, 0]]
  assert b['segments'].tolist() == [[1, 1, 1, 2, 2, 2], [1, 1, 1, 1, 0, 0]]
  assert [p[s > 0].tolist() for p, s in zip(b['positions'], b['segments'])] == [[0, 1, 2, 0, 1, 2], [0, 1, 2, 3]]
  assert masked(tokens, [generator(0)] * 2, cls_sep=True, predictions=1, document_mask=False)['segments'].max() == 1
  assert {k: v.dtype for k, v in b.items()} == {k: np.float32 if k == 'weights' else np.int32 for k in b}


def restore(b):
  """Inputs with what was masked put back."""
  inputs, (rows, at) = b['inputs'].copy(), np.nonzero(b['weights'])
  inputs[rows, b['predict'][rows, at]] = b['targets'][rows, at]
  return inputs


@quick
@given(st.lists(st.integers(0, 12), min_size=8, max_size=40), st.integers(0, 6), st.integers(1, 48), SEEDS,
       st.sampled_from(['bert', 'roberta', 'bernoulli']), st.booleans(), st.booleans(), st.floats(.05, .6))
def test_masked_properties(tokens, padding, most, seed, masking, whole_word, cls_sep, density):
  """Ids 0 to 2 and 12 are special; even ids begin a word."""
  row = np.array([tokens + [M] * padding], np.int32)
  most = min(most, row.size)
  b = masked(row, [generator(seed)], masking=masking, whole_word=whole_word, cls_sep=cls_sep, density=density,
             predictions=most, mask_id=12, cls_id=2, vocab_size=13, special_ids=np.array([0, 1, 2, 12]),
             begins_word=np.arange(13) % 2 == 0)
  b = {k: v[0] for k, v in b.items()}
  original = np.array([2, *tokens, 1] if cls_sep else tokens)
  n, used = len(original), int(b['weights'].sum())
  assert b['weights'].tolist() == [1] * used + [0] * (most - used)
  assert (np.diff(b['predict'][:used]) > 0).all() and not b['predict'][used:].any() and not b['targets'][used:].any()
  chosen = set(b['predict'][:used].tolist())
  assert b['targets'][:used].tolist() == [original[t] for t in sorted(chosen)]
  assert all(2 < original[t] < 12 for t in chosen)
  assert all(b['inputs'][t] == original[t] for t in range(n) if t not in chosen) and not b['inputs'][n:].any()
  candidates = [t for t in range(n) if 2 < original[t] < 12]
  room = min(most, max(1, round(n * density)))
  if masking == 'bert' and not whole_word:
    assert used == min(room, len(candidates))
  if whole_word:
    words = []
    for t in candidates:
      if t - 1 not in candidates or original[t] % 2 == 0:
        words.append([])
      words[-1].append(t)
    taken = [chosen.issuperset(w) for w in words]
    assert sum(len(w) for w, yes in zip(words, taken) if yes) == used  # no word in part
    if masking == 'bert':  # a word is passed over only if it would not have fit
      assert used <= room and all(used + len(w) > room for w, yes in zip(words, taken) if not yes)
    if masking == 'roberta' and most >= len(candidates):
      assert sum(taken) - int(len(words) * density) in (0, 1)


@pytest.mark.parametrize('masking, most', [('bert', 77), ('roberta', 77), ('bernoulli', 117)])
def test_what_a_million_tokens_become(masking, most):
  """80 % masked, 10 % random, 10 % kept; random ids of all the vocabulary, or for RoBERTa of text's."""
  ids, kinds, n = np.arange(3, 40), np.zeros(3), []
  seen = np.zeros(40, int)
  for k in range(32):
    tokens = generator(k).choice(ids, (64, 512)).astype(np.int32)
    b = masked(tokens, [generator(k, r) for r in range(64)], masking=masking, predictions=most, vocab_size=43,
               special_ids=np.r_[0:3, 40:43], mask_id=40)
    there = b['weights'] > 0
    read = np.take_along_axis(b['inputs'], b['predict'], 1)[there]
    want = b['targets'][there]
    kinds += [(read == 40).sum(), (read == want).sum(), ((read != 40) & (read != want)).sum()]
    others = read[(read != want) & (read < 40)]
    seen += np.bincount(others, minlength=40)
    n.append(there.sum(1))
  n, ordinary = np.concatenate(n), 43 if masking != 'roberta' else 37
  of_random = .1 / ordinary  # a random id is now and then the mask or the token itself
  shares = [.8 + of_random * (masking != 'roberta'), .1 + of_random, .1 - of_random * (1 + (masking != 'roberta'))]
  np.testing.assert_allclose(kinds / kinds.sum(), shares, atol=.005)
  assert (seen[:3] > 0).all() == (masking != 'roberta') and (seen[3:] > 0).all()
  if masking == 'roberta':  # 512 x .15 = 76.8, rounded up or down by chance
    assert set(n) == {76, 77} and n.mean() == pytest.approx(76.8, abs=.05)
  if masking == 'bernoulli':
    assert n.mean() == pytest.approx(76.8, abs=.8) and n.std() == pytest.approx(math.sqrt(512 * .15 * .85), rel=.06)


@pytest.mark.parametrize('masking, most', [('bert', 5), ('bernoulli', 5)])
def test_all_positions_are_masked_alike(masking, most):
  """Also where more tokens are drawn than there are predictions: a random part of them stays."""
  b = masked(np.tile(text(20), (4000, 1)), [generator(k) for k in range(4000)], masking=masking, predictions=most,
             density=.25 if masking == 'bert' else .6)
  counts = np.bincount(b['predict'][b['weights'] > 0], minlength=20)
  assert b['weights'].sum() >= 19_900 and chi_square(counts) < 52  # 19 degrees of freedom: p 1e-4


@pytest.mark.parametrize('masking', ['bert', 'roberta'])
def test_whole_words_draw_their_fate(masking):
  """BERT: each piece for itself. RoBERTa: once per word."""
  tokens = np.stack([text(512, k, start=10, stop=30_000) for k in range(32)])
  tokens[:, ::4] += tokens[:, ::4] % 2  # even ids begin words, here of four pieces
  for offset in (1, 2, 3):
    tokens[:, offset::4] |= 1
  b = masked(tokens, [generator(k) for k in range(32)], masking=masking, whole_word=True,
             begins_word=np.arange(V) % 2 == 0)
  masks = np.zeros(tokens.shape, int)
  rows, at = np.nonzero(b['weights'])
  masks[rows, b['predict'][rows, at]] = 1 + (b['inputs'][rows, b['predict'][rows, at]] == MASK)
  words = masks.reshape(32, 128, 4)
  chosen = words[words.any(2)]
  assert (chosen > 0).all() and len(chosen) == (32 * 19 if masking == 'bert' else pytest.approx(32 * 19.2, abs=16))
  mixed = (chosen.min(1) != chosen.max(1)).mean()
  assert mixed == 0 if masking == 'roberta' else mixed == pytest.approx(1 - .8 ** 4 - .2 ** 4, abs=.08)


@pytest.mark.parametrize('whole_word', [True, False])
@pytest.mark.parametrize('masking', ['bert', 'roberta', 'bernoulli'])
def test_masked_rows_depend_on_their_generator_alone(masking, whole_word):
  tokens = np.tile(text(64), (3, 1))
  rules = dict(masking=masking, whole_word=whole_word, begins_word=np.arange(V) % 3 == 0, predictions=20)
  b = masked(tokens, [generator(k) for k in (4, 5, 4)], **rules)
  alone = masked(tokens[1:2], [generator(5)], **rules)
  for key, value in b.items():
    np.testing.assert_array_equal(value[0], value[2])
    np.testing.assert_array_equal(value[1], alone[key][0])
  assert (b['inputs'][0] != b['inputs'][1]).any()


# --- Pairs (1c, 1d, 1g) -----------------------------------------------------------------------------


def spanned(tokens, random, **changes):
  return functions.span_corruption(tokens, random, **dict(dict(
      density=.15, mean_span=3.0, roll=False, sentinels=SENTINELS, eos_id=EOS), **changes))


def pair(name, tokens, random, density=.15, mean_span=3.0, roll=False, sentinels=SENTINELS, eos_id=EOS):
  keys = types.SimpleNamespace(noise_density=density, mean_span=mean_span, roll=roll)
  ids = Ids(eos=eos_id, begin=0, vocab_size=V, sentinels=sentinels, special=SPECIAL)
  setting = Setting(keys, ids, Lengths(len(tokens), 0, 0), document_mask=True, has_encoder=True)
  return functions.of_text(OBJECTIVES[name].pair, tokens, random, setting)


def assemble(inputs, targets, sentinels=SENTINELS):
  """The text of a corrupted pair, read run by run: no sentinel twice, all in order on either side."""
  assert inputs[-1] == targets[-1] == EOS
  number = {s: k for k, s in enumerate(np.asarray(sentinels).tolist())}
  sides = []
  for side in (inputs[:-1].tolist(), targets[:-1].tolist()):
    runs, marks = [], 0
    for token in side:
      if token in number:
        assert number[token] == marks
        marks += 1
        runs.append(None)
      elif runs and runs[-1] is not None:
        runs[-1].append(token)
      else:
        runs.append([token])
    sides.append(runs)
  kept, gone = ([r for r in runs if r is not None] for runs in sides)
  out, order = [], sides[0]
  assert [r is None for r in order] == [r is not None for r in sides[1]]  # what one side has, the other marks
  for run in order:
    out += gone.pop(0) if run is None else kept.pop(0)
  return out


def test_sentinels_golden():
  """T5's tests: noise_span_to_unique_sentinel of [10 .. 15]; targets of `The quick brown fox.`"""
  inputs, targets = pair('iid_denoising', np.arange(10, 16), Given([0, 0, 1, 1, 0, 1]), density=.5,
                         sentinels=np.arange(999, 900, -1))
  assert inputs.tolist() == [999, 12, 13, 998, 15, EOS] and targets.tolist() == [10, 11, 999, 14, 998, EOS]
  fox = np.array([3, 2, *range(4, 16), 22, 3, 2, 7, 2])  # kept ones are made up: the targets do not show them
  draws = [1, 0] + [1] * 12 + [0] * 5
  inputs, targets = pair('iid_denoising', fox, Given(draws), density=.5, sentinels=np.arange(25, 20, -1), eos_id=0)
  assert targets.tolist() == [25, 2, 24, 22, 3, 2, 7, 2, 0] and inputs.tolist() == [3, 25, *range(4, 16), 24, 0]


@quick
@given(st.integers(2, 300), st.floats(.02, .9), st.floats(1, 20), st.booleans(), SEEDS)
def test_spans_assemble(L, density, mean_span, roll, seed):
  tokens = np.stack([text(L, seed % 99, k) for k in range(3)])
  noise, spans = spans_lib.span_counts(L, density, mean_span)
  sentinels = np.arange(40_000, 40_000 + spans + roll)  # as many as are needed
  random = lambda: [generator(seed, k) for k in (0, 1, 0)]
  rules = dict(density=density, mean_span=mean_span, roll=roll, sentinels=sentinels)
  inputs, targets = spanned(tokens, random(), **rules)
  assert inputs.dtype == targets.dtype == np.int32
  for k, (a, b, t) in enumerate(zip(inputs, targets, tokens)):
    a, b = a[a != M], b[b != M]
    assert assemble(a, b, sentinels) == t.tolist()
    assert (b < 40_000).sum() - 1 == noise
    one = pair('span_corruption', t, random()[k], density, mean_span, roll, sentinels)
    assert all(map(np.array_equal, one, (a, b)))
    if roll:
      assert {len(a), len(b)} <= {n + d for n in spans_lib.span_lengths(L, density, mean_span) for d in (0, 1)}
    else:  # begins with what is kept, ends with what is not: the last sentinel of the paper's figure is missing
      assert (len(a), len(b)) == spans_lib.span_lengths(L, density, mean_span)
      assert a[0] == t[0] and b[-2] == t[-1] and a[-2] == sentinels[spans - 1]


def test_spans_of_the_paper_use_28_numbered_sentinels():
  tokens = np.stack([text(568, k) for k in range(200)])
  inputs, targets = spanned(tokens, [generator(k) for k in range(200)])
  for a, b, t in zip(inputs, targets, tokens):
    assert a[a >= 31_900].tolist() == b[b >= 31_900].tolist() == SENTINELS[:28].tolist()
    assert assemble(a, b) == t.tolist()


def gone(inputs, tokens):
  """Bool [B, L]: which tokens of rows (all different, ascending) are not in the inputs."""
  return np.stack([~np.isin(t, a) for a, t in zip(inputs, tokens)])


@pytest.mark.parametrize('kept', [True, False])
def test_spans_are_cut_in_every_way_equally_often(kept):
  """The 35 compositions of (8, 4), of noise and of what lies between."""
  B, tokens = 14_000, np.tile(np.arange(10, 26, dtype=np.int32), (14_000, 1))
  inputs, _ = spanned(tokens, [generator(k) for k in range(B)], density=.5, mean_span=2.0)
  mask = gone(inputs, tokens)
  assert not mask[:, 0].any() and mask[:, -1].all() and (mask.sum(1) == 8).all()
  edges = np.diff(mask, prepend=False, append=False, axis=1)
  rows, at = np.nonzero(edges)
  sizes = np.diff(np.concatenate([np.zeros((B, 1), int), at.reshape(B, 8)], 1), axis=1)
  _, counts = np.unique(sizes[:, 0 if kept else 1::2], axis=0, return_counts=True)
  assert len(counts) == math.comb(7, 3) and chi_square(counts) < 74  # 34 degrees of freedom: p 1e-4


def test_where_spans_fall_with_and_without_roll():
  """The first token is never corrupted and the last one always is, unless the mask is rotated."""
  tokens = np.tile(np.arange(10, 578, dtype=np.int32), (10_000, 1))
  for roll in (False, True):
    inputs, targets = spanned(tokens, [generator(roll, k) for k in range(10_000)], roll=roll)
    share = gone(inputs, tokens).mean(0)
    assert share.mean() == pytest.approx(85 / 568)
    if roll:
      np.testing.assert_allclose(share, 85 / 568, atol=.022)
      size = (inputs != M).sum(1) + (targets != M).sum(1)
      assert set(size) == {512 + 114, 512 + 115} and inputs.shape[1] == 513 and targets.shape[1] == 115
    else:
      np.testing.assert_allclose(share[:3], [0, .05, .09], atol=.015)
      np.testing.assert_allclose(share[-5:], [.27, .35, .48, .68, 1], atol=.015)
      np.testing.assert_allclose(share[50:-50], 85 / 568, atol=.022)
      assert share[0] == 0 and share[-1] == 1


def test_roll_is_uniform():
  tokens = np.tile(np.arange(10, 30, dtype=np.int32), (6000, 1))
  inputs, _ = spanned(tokens, [generator(k) for k in range(6000)], mean_span=3.0, roll=True)  # one span of three
  mask = gone(inputs, tokens)
  _, begins = np.nonzero(mask & ~np.roll(mask, 1, axis=1))
  assert len(begins) == 6000 and chi_square(np.bincount(begins, minlength=20)) < 52


@pytest.mark.parametrize('roll', [False, True])
@pytest.mark.parametrize('sentinels', [1, 2, 3, 6])
def test_spans_beyond_the_sentinels_stay(sentinels, roll):
  """T5's code took ordinary ids instead: UL2's 128 spans of 766 tokens, with 100 sentinels."""
  sentinels, tokens = np.arange(40_000, 40_000 + sentinels), text(40)
  inputs, targets = spanned(tokens[None], [generator(5)], density=.5, sentinels=sentinels, roll=roll)
  assert assemble(inputs[0], targets[0], sentinels) == tokens.tolist()
  assert assemble(*pair('iid_denoising', tokens, generator(5), density=.5, sentinels=sentinels),
                  sentinels) == tokens.tolist()
  full = spanned(tokens[None], [generator(5)], density=.5, roll=roll)[0][0]
  assert (inputs[0] < 40_000).sum() > (full < 31_900).sum()


def test_rows_depend_on_their_generator_alone():
  tokens = np.tile(text(100), (3, 1))
  inputs, targets = spanned(tokens, [generator(k) for k in (4, 5, 4)])
  assert (inputs[0] == inputs[2]).all() and (targets[0] == targets[2]).all() and (inputs[0] != inputs[1]).any()
  assert (inputs[1] == spanned(tokens[:1], [generator(5)])[0][0]).all()


NAMES = ['span_corruption', 'iid_denoising', 'drop', 'mass', 'bert_style', 'deshuffling', 'lm']
WHOLE = NAMES[3:]  # their targets are all of the text


@quick
@given(st.sampled_from(NAMES), st.integers(1, 200), st.floats(.05, .9), SEEDS)
def test_pairs_hold_the_text(name, n, density, seed):
  tokens = generator(seed).permutation(np.arange(100, 100 + n, dtype=np.int32))
  inputs, targets = pair(name, tokens, generator(seed, 1), density)
  for side in (inputs, targets):
    assert side.dtype == np.int32 and side[-1] == EOS and EOS not in side[:-1]
  once = inputs, targets
  inputs, targets = inputs[:-1], targets[:-1]
  if name in WHOLE:
    assert targets.tolist() == tokens.tolist()
  if name in ('span_corruption', 'iid_denoising'):
    assert assemble(*once) == tokens.tolist()
  if name == 'drop':
    assert [t for t in tokens if t in inputs] == inputs.tolist() and [t for t in tokens if t in targets] == \
        targets.tolist() and sorted([*inputs, *targets]) == sorted(tokens)
  if name == 'deshuffling':
    assert sorted(inputs) == sorted(tokens)
  if name == 'lm':
    assert not inputs.size
  if name in ('mass', 'bert_style'):
    spoilt = inputs[inputs != tokens]
    assert len(inputs) == n and (name == 'bert_style' or (spoilt == SENTINELS[0]).all())


@pytest.mark.parametrize('name', NAMES)
def test_pairs_depend_on_their_generator(name):
  once, again, other = (pair(name, text(200), generator(k), roll=True) for k in (3, 3, 4))
  assert all(map(np.array_equal, once, again)) and np.array_equal(once[0], other[0]) == (name == 'lm')


@pytest.mark.parametrize('name', NAMES)
def test_an_end_that_is_there_already_is_not_text(name):
  tokens = text(50)
  for a, b in zip(pair(name, np.append(tokens, EOS), generator(1)), pair(name, tokens, generator(1))):
    np.testing.assert_array_equal(a, b)
  cut = np.append(tokens[:20], [EOS, *tokens[20:]])  # one document ends, another begins: that is text
  inputs, targets = pair(name, cut, generator(1))
  assert (np.append(inputs, targets) == EOS).sum() == 3 + (name in WHOLE and name != 'lm')


def test_a_text_of_one_token():
  """As T5's code, which makes a mask for two tokens and cuts it."""
  inputs, targets = pair('span_corruption', np.array([50, EOS]), generator(0))
  assert (inputs.tolist(), targets.tolist()) == ([50, EOS], [SENTINELS[0], EOS])
  assert [x.tolist() for x in pair('prefix_lm', np.array([50]), generator(0))] == [[50, EOS], [EOS]]


def test_shares_of_what_is_corrupted():
  """15 % of tokens by themselves; BERT-style 90 % sentinel and 10 % random ids of text."""
  tokens = text(250_000)
  kept, lost = (len(side) - 1 for side in pair('drop', tokens, generator(1)))
  assert kept + lost == 250_000 and lost / 250_000 == pytest.approx(.15, abs=.003)
  for name, of_random in (('mass', 0), ('bert_style', .1)):
    tokens = text(1_000_000)
    inputs = pair(name, tokens, generator(2))[0][:-1]
    changed = inputs != tokens
    assert changed.mean() == pytest.approx(.15, abs=.002)
    assert (inputs[changed] == SENTINELS[0]).mean() == pytest.approx(1 - of_random, abs=.005)
    assert not np.isin(inputs[changed], SPECIAL[SPECIAL != SENTINELS[0]]).any()


def test_prefix_splits_are_uniform():
  tokens, sizes = text(9), np.zeros(9, int)
  for k in range(6000):
    prefix, rest = pair('prefix_lm', np.append(tokens, EOS), generator(k))
    assert [*prefix[:-1], *rest] == [*tokens, EOS] and prefix[-1] == EOS and prefix.dtype == np.int32
    sizes[len(prefix) - 1] += 1
  assert sizes[0] == 0 and chi_square(sizes[1:]) < 30


def test_pairs_of_prefixes_fill_both_sides():
  tokens, sizes = text(18), np.zeros((2, 9), int)
  for k in range(6000):
    pairs = functions.prefix_pair(tokens, generator(k), eos_id=EOS)
    assert [len(inputs) + len(other) for inputs, other in zip(*pairs)] == [11, 11]
    assert [t for a, b in pairs for t in [*a[:-1], *b[:-1]]] == tokens.tolist()
    for count, (inputs, _) in zip(sizes, pairs):
      count[len(inputs) - 1] += 1
  assert not sizes[:, 0].any() and all(chi_square(count[1:]) < 30 for count in sizes)
