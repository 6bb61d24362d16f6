"""Functions of tokens that return what a model reads and predicts, which entries of the table call. Numpy only.

A batch is a dict of [B, T] arrays: `inputs`, `targets`, `positions`, `segments` (int32; segment 0 is
padding) and `weights` (float32, 0 where there is nothing to predict). Objectives with two texts return
pairs (inputs, targets), which `packing` lays out in rows. What is random comes from the generators that
are passed in, one per row, so that a row depends on nothing else. Masked language models are in `masking`.
"""
from collections.abc import Sequence
from typing import Any

import numpy as np

from t5like.objectives import spans as spans_lib
from t5like.objectives.spec import Pair, Setting

PADDING = 0  # where there is no token
MISSING = -1  # the store marks with it what lies beyond the last token
NO_TOKEN = -2  # no id, nor MISSING: nothing ends a segment where documents are not kept apart

Batch = dict[str, Any]  # {name: array, or a dict of arrays for the encoder}
Tokens = np.ndarray  # int32 [n], of one text
TokenPair = tuple[Tokens, Tokens]  # inputs, targets
Generators = Sequence[np.random.Generator]  # one for each row

# --- Rows for one stack -----------------------------------------------------------------------------


def causal(
    tokens_BT: np.ndarray,
    *,
    document_mask: bool,
    eos_id: int | None,
    bos_id: int | None = 0,
) -> Batch:
  """Next-token prediction on windows cut from a stream of documents, each ended by EOS.

  Args:
    tokens_BT: int32, MISSING beyond the last token.
    document_mask: segments end with their EOS and do not see each other; each is predicted whole, its first input
      being `bos_id`, never the EOS of the segment before (seqio's LMFeatureConverter). Otherwise windows hold one
      token more, input t predicts token t + 1, and text runs on over the ends of documents (GPT-2).
    eos_id: the token that ends documents; only document_mask needs it.
    bos_id: the token that segments begin with; only document_mask needs it.
  """
  if document_mask:
    if bos_id is None:
      raise LookupError('documents need a token that they begin with, which the vocabulary lacks')
    starts_BT = segment_starts(tokens_BT, eos_id)
    return shifted(tokens_BT, starts_BT, bos_id)
  return _next_tokens(tokens_BT)


def _next_tokens(windows_BW: np.ndarray) -> Batch:
  """The batch of windows [B, T + 1] in which input t predicts token t + 1."""
  inputs_BT = windows_BW[:, :-1]
  targets_BT = windows_BW[:, 1:]
  is_missing = inputs_BT == MISSING
  is_target = targets_BT != MISSING
  T = inputs_BT.shape[1]
  positions_T = np.arange(T, dtype=np.int32)
  positions_BT = np.broadcast_to(positions_T, inputs_BT.shape)
  return dict(
      inputs=np.where(is_missing, PADDING, inputs_BT),
      targets=np.where(is_target, targets_BT, 0),
      weights=is_target.astype(np.float32),
      positions=positions_BT.copy(),
      segments=is_target.astype(np.int32),
  )


def segment_starts(tokens_BT: np.ndarray, eos_id: int | None) -> np.ndarray:
  """Bool [B, T], True where a segment begins: in the first column and after each EOS."""
  previous_BT = tokens_BT[:, :-1]
  starts_BT = np.ones(tokens_BT.shape, bool)
  starts_BT[:, 1:] = previous_BT == eos_id
  return starts_BT


def shifted(
    tokens_BT: np.ndarray,
    starts_BT: np.ndarray,
    bos_id: int,
) -> Batch:
  """The batch in which every token is a target, its input the token before it, or `bos_id` where a segment starts."""
  is_token = tokens_BT != MISSING
  previous_BT = np.zeros_like(tokens_BT)
  previous_BT[:, 1:] = tokens_BT[:, :-1]
  begun_BT = np.where(starts_BT, bos_id, previous_BT)
  inputs_BT = np.where(is_token, begun_BT, PADDING)
  targets_BT = np.where(is_token, tokens_BT, 0)
  positions_BT, segments_BT = positions_and_segments(starts_BT, is_token)
  return dict(
      inputs=inputs_BT.astype(tokens_BT.dtype),
      targets=targets_BT,
      weights=is_token.astype(np.float32),
      positions=positions_BT,
      segments=segments_BT,
  )


def positions_and_segments(
    starts_BT: np.ndarray,
    is_token: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
  """(positions, segments), int32 [B, T], of segments that begin where `starts_BT` is True."""
  T = starts_BT.shape[1]
  index_T = np.arange(T, dtype=np.int32)
  start_or_0_BT = np.where(starts_BT, index_T, 0)
  first_BT = np.maximum.accumulate(start_or_0_BT, axis=1)
  positions_BT = index_T - first_BT
  numbers_BT = np.cumsum(starts_BT, axis=1, dtype=np.int32)
  segments_BT = np.where(is_token, numbers_BT, 0)
  return positions_BT.astype(np.int32), segments_BT.astype(np.int32)


def prefix_lm(
    tokens_BT: np.ndarray,
    random: Generators,
    *,
    document_mask: bool,
    eos_id: int | None,
    bos_id: int = 0,
) -> Batch:
  """As `causal` with a beginning, but tokens before a random split see each other and are not predicted.

  The split is uniform on 1 .. n - 1 for the n tokens of a row, or with document_mask of each segment
  (one of a single token has no prefix). `prefix` [B, T] is True on the inputs up to the split and on
  the one more that holds the prefix's last token (T5's pack_prefix_lm_decoder_only).
  """
  last_of_segment = eos_id if document_mask else NO_TOKEN
  starts_BT = segment_starts(tokens_BT, last_of_segment)
  batch = shifted(tokens_BT, starts_BT, bos_id)
  positions_BT = batch['positions']
  is_token = batch['segments'] > 0
  split_BT = np.zeros(tokens_BT.shape, np.int32)
  for row, generator in enumerate(random):
    sizes = _segment_sizes(starts_BT[row], is_token[row])
    splits = _random_splits(sizes, generator)
    split_BT[row, is_token[row]] = np.repeat(splits, sizes)
  has_prefix = split_BT > 0
  is_seen = positions_BT <= split_BT
  is_predicted = is_token & (positions_BT >= split_BT)
  batch['prefix'] = is_token & is_seen & has_prefix
  batch['weights'] = is_predicted.astype(np.float32)
  return batch


def _segment_sizes(starts_T: np.ndarray, is_token: np.ndarray) -> np.ndarray:
  """int [segments]: the tokens of each segment of a row."""
  begins = np.flatnonzero(starts_T & is_token)
  num_tokens = is_token.sum()
  edges = np.append(begins, num_tokens)
  return np.diff(edges)


def _random_splits(sizes: np.ndarray, random: np.random.Generator) -> np.ndarray:
  """int32 [segments]: tokens before the split of each, uniform on 1 .. n - 1; 0 for a segment of a single token."""
  shares = random.random(len(sizes))
  offsets = (shares * (sizes - 1)).astype(np.int32)
  return np.where(sizes > 1, 1 + offsets, 0)


# --- Pairs of texts ---------------------------------------------------------------------------------


def span_corruption(
    tokens_BL: np.ndarray,
    random: Generators,
    *,
    density: float,
    mean_span: float,
    roll: bool,
    sentinels: np.ndarray,
    eos_id: int,
) -> tuple[np.ndarray, np.ndarray]:
  """(inputs [B, I], targets [B, J]) of complete rows: spans of tokens replaced by sentinels, and those spans.

  Raffel et al. 2020, section 3.3.4: `spans_lib.span_counts` says how many tokens in how many spans; all ways to cut
  them up are equally likely. Rows begin with what is kept and end with what is not.

  Args:
    tokens_BL: int32, without missing ones.
    random: a generator for each row.
    density: share of tokens that are corrupted.
    mean_span: tokens of a span, on average.
    roll: whether the mask is rotated by a random distance, so that a span may wrap around and lengths differ by one
      (MISSING pads).
    sentinels: int32, ids of <extra_id_0> and on.
    eos_id: the token that ends both sides.
  """
  B, L = tokens_BL.shape
  noise_BL = _span_masks((B, L), random, density, mean_span, roll)
  _, num_spans = spans_lib.span_counts(L, density, mean_span)
  if roll or num_spans > len(sentinels):
    return _pairs_of_different_lengths(tokens_BL, noise_BL, sentinels, eos_id)
  inputs, targets = sentinel_pair(tokens_BL, noise_BL, sentinels)
  inputs_BI = _ended_rows(inputs, B, eos_id)
  targets_BJ = _ended_rows(targets, B, eos_id)
  return inputs_BI, targets_BJ


def _pairs_of_different_lengths(
    tokens_BL: np.ndarray,
    noise_BL: np.ndarray,
    sentinels: np.ndarray,
    eos_id: int,
) -> tuple[np.ndarray, np.ndarray]:
  inputs = []
  targets = []
  for tokens_L, noise_L in zip(tokens_BL, noise_BL):
    source, target = sentinel_pair(tokens_L, noise_L, sentinels)
    inputs.append(_ended(source, eos_id))
    targets.append(_ended(target, eos_id))
  inputs_BI = _padded(inputs)
  targets_BJ = _padded(targets)
  return inputs_BI, targets_BJ


def _ended_rows(tokens: np.ndarray, B: int, eos_id: int) -> np.ndarray:
  """int32 [B, n + 1] of the tokens [B * n] of rows of the same length."""
  rows = tokens.reshape(B, -1)
  ends = np.full((B, 1), eos_id, np.int32)
  return np.concatenate([rows.astype(np.int32), ends], axis=1)


def _span_masks(
    shape: tuple[int, ...],
    random: Generators,
    density: float,
    mean_span: float,
    roll: bool,
) -> np.ndarray:
  """Bool [B, L], True in the spans to be corrupted; a text of one token has none."""
  B, L = shape
  n = max(L, 2)
  num_noise, num_spans = spans_lib.span_counts(n, density, mean_span)
  num_kept = n - num_noise
  draws = np.stack([generator.random(n) for generator in random])
  noise_keys = draws[:, :num_noise - 1]
  kept_keys = draws[:, num_noise - 1:n - 2]
  noise_begins_BK = _compositions(noise_keys, num_spans)
  kept_begins_BK = _compositions(kept_keys, num_spans)
  # In order: keep, noise, keep, noise, ..; a noise span starts after all kept spans up to it.
  kept_sizes_BK = _sizes(kept_begins_BK, num_kept)
  starts_BK = noise_begins_BK + np.cumsum(kept_sizes_BK, axis=1)
  stops_BK = starts_BK + _sizes(noise_begins_BK, num_noise)
  edges = np.zeros((B, n + 1), np.int8)
  rows = np.arange(B)[:, None]
  edges[rows, starts_BK] = 1
  edges[rows, stops_BK] = -1
  depth_BL = np.cumsum(edges[:, :L], axis=1, dtype=np.int8)
  mask_BL = depth_BL.astype(bool)
  if not roll:
    return mask_BL
  return _rolled(mask_BL, draws[:, -1])


def _rolled(mask_BL: np.ndarray, distances_B: np.ndarray) -> np.ndarray:
  """Each row rotated by its distance, a share of its length."""
  L = mask_BL.shape[1]
  rows = []
  for mask_L, distance in zip(mask_BL, distances_B):
    places = int(distance * L)
    rows.append(np.roll(mask_L, places))
  return np.stack(rows)


def _compositions(keys_BM: np.ndarray, k: int) -> np.ndarray:
  """[B, k] where the k parts of M + 1 things begin, all ways to part them equally likely."""
  B, M = keys_BM.shape
  zeros = np.zeros((B, 1), np.int64)
  if k == 1:
    return zeros
  if k - 1 < M:
    smallest_first = np.argpartition(keys_BM, k - 2, axis=1)
    cuts = smallest_first[:, :k - 1]
  else:
    cuts = np.argsort(keys_BM, axis=1)
  ascending = np.sort(cuts, axis=1)
  return np.concatenate([zeros, ascending + 1], axis=1)


def _sizes(begins_BK: np.ndarray, total: int) -> np.ndarray:
  """[B, K] sizes of the parts of `total` things that begin at these places."""
  B = len(begins_BK)
  ends = np.full((B, 1), total)
  edges = np.concatenate([begins_BK, ends], axis=1)
  return np.diff(edges, axis=1)


def _run_numbers(mask: np.ndarray) -> np.ndarray:
  """For each token, along the last axis, the number of runs of `mask` that began at it or before, less one."""
  counts = np.cumsum(_firsts(mask), axis=-1, dtype=np.int32)
  return counts - 1


def _firsts(mask: np.ndarray) -> np.ndarray:
  """Where a run of True begins."""
  before = mask[..., :-1]
  first = mask.copy()
  first[..., 1:] &= ~before
  return first


def sentinel_pair(
    tokens: np.ndarray,
    noise: np.ndarray,
    sentinels: np.ndarray,
) -> TokenPair:
  """(inputs, targets): the k-th run of noise, or in the targets of what is not, becomes sentinel k.

  Args:
    tokens: int [n], or [B, n] where every row has as many runs of either kind; results are of all rows joined.
    noise: bool of that shape.
    sentinels: int32, ids.
  """
  if noise.ndim == 1 and noise.size:
    noise = _within_sentinels(noise, len(sentinels))
  inputs = _with_sentinels(tokens, noise, sentinels)
  targets = _with_sentinels(tokens, ~noise, sentinels)
  return inputs, targets


def _within_sentinels(noise: np.ndarray, num_sentinels: int) -> np.ndarray:
  """Noise [n] without its last runs, where it or the rest has more runs than there are sentinels."""
  last = num_sentinels - 1
  runs = _run_numbers(noise)
  runs_of_rest = _run_numbers(~noise)
  if runs[-1] <= last and runs_of_rest[-1] <= last:
    return noise
  return noise & (runs < last)  # and what follows is one run for the targets


def _with_sentinels(
    tokens: np.ndarray,
    gone: np.ndarray,
    sentinels: np.ndarray,
) -> np.ndarray:
  """Tokens, each run of those that are gone being one sentinel."""
  firsts = _firsts(gone)
  sentinel_of_run = sentinels[_run_numbers(gone)]
  replaced = np.where(firsts, sentinel_of_run, tokens)
  is_left = ~gone | firsts
  return replaced[is_left]


def _padded(arrays: Sequence[Tokens]) -> np.ndarray:
  """int32 [B, longest], MISSING beyond the end of each."""
  longest = max(map(len, arrays))
  shape = (len(arrays), longest)
  rows = np.full(shape, MISSING, np.int32)
  for row, array in zip(rows, arrays):
    row[:len(array)] = array
  return rows


def prefix_pair(
    tokens: Tokens,
    random: np.random.Generator,
    *,
    eos_id: int,
) -> list[TokenPair]:
  """Two halves of L tokens, split at s and at L - s: [(inputs, targets), (inputs, targets)].

  Each split is uniform on 1 .. L - 1, and together the inputs take L + 2, as the targets do, so that
  rows of both stacks are full.
  """
  half = len(tokens) // 2
  split = int(random.integers(1, max(2, half)))
  first = _split_at(tokens[:half], split, eos_id)
  second = _split_at(tokens[half:], half - split, eos_id)
  return [first, second]


def _split_at(text: Tokens, split: int, eos_id: int) -> TokenPair:
  inputs = _ended(text[:split], eos_id)
  targets = _ended(text[split:], eos_id)
  return inputs, targets


def of_text(
    pair: Pair,
    tokens: Tokens,
    random: np.random.Generator,
    setting: Setting,
) -> TokenPair:
  """(inputs, targets) of one text [n] under an entry of pairs, both int32 and ended by EOS.

  An EOS that ends the text already is no part of it. `random`, `setting`: as of `spec.Pair.make`.
  """
  eos_id = setting.ids.token('eos')
  if len(tokens) and tokens[-1] == eos_id:
    tokens = tokens[:-1]
  inputs, targets = pair.make(tokens, random, setting)
  return _ended(inputs, eos_id), _ended(targets, eos_id)


def noise(
    text: Tokens,
    random: np.random.Generator,
    density: float,
) -> np.ndarray:
  """Bool [n]: tokens that are corrupted, each by itself."""
  return random.random(len(text)) < density


def spans(
    text: Tokens,
    random: np.random.Generator,
    setting: Setting,
) -> TokenPair:
  """`span_corruption` of one text [n], without ends, of any length."""
  keys = setting.keys
  masks_1L = _span_masks(
      (1, len(text)),
      [random],
      keys.noise_density,
      keys.mean_span,
      keys.roll,
  )
  return sentinel_pair(text, masks_1L[0], setting.ids.sentinels)


def span_sizes(
    sizes: np.ndarray,
    density: float,
    mean_span: float,
    more: int,
) -> TokenPair:
  """(inputs, targets), int64 [n]: `spans.span_lengths` of texts of these sizes, and `more` tokens on either side."""
  longest = int(sizes.max(initial=0))
  lengths = [spans_lib.span_lengths(size, density, mean_span) for size in range(longest + 1)]
  table = more + np.array(lengths)
  inputs, targets = table[sizes].T
  return inputs, targets


def masked(
    text: Tokens,
    random: np.random.Generator,
    setting: Setting,
) -> Tokens:
  """int32 [n]: a text whose corrupted tokens are the first sentinel."""
  corrupted = noise(text, random, setting.keys.noise_density)
  return np.where(corrupted, setting.ids.sentinels[0], text)


def bert_style(
    text: Tokens,
    random: np.random.Generator,
    setting: Setting,
) -> Tokens:
  """As `masked`, one in ten becoming a random id instead."""
  n = len(text)
  ids = setting.ids
  corrupted = noise(text, random, setting.keys.noise_density)
  is_ordinary = ordinary_ids(ids.vocab_size, ids.special)
  ordinary = np.flatnonzero(is_ordinary)
  draws = random.integers(0, len(ordinary), n)
  random_ids = ordinary[draws]
  is_random = random.random(n) < 0.1
  replacements = np.where(is_random, random_ids, ids.sentinels[0])
  return np.where(corrupted, replacements, text)


def ordinary_ids(vocab_size: int, special_ids: Sequence[int] | np.ndarray) -> np.ndarray:
  """Bool [V], False for special ids."""
  is_ordinary = np.ones(vocab_size, bool)
  is_ordinary[special_ids] = False
  return is_ordinary


def _ended(tokens: Tokens, eos_id: int) -> Tokens:
  ended = np.append(tokens, eos_id)
  return ended.astype(np.int32)
