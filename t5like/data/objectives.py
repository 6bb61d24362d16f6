"""Objectives: functions of tokens that return what a model reads and predicts. Numpy only.

A batch is a dict of [B, T] arrays: `inputs`, `targets`, `positions`, `segments` (int32; segment 0 is
padding) and `weights` (float32, 0 where there is nothing to predict). Objectives with two texts return
pairs (inputs, targets), which `packing` lays out in rows. What is random comes from the generators that
are passed in, one per row, so that a row depends on nothing else.
"""
import numpy as np

from t5like import lengths

BOS = 0  # the padding id starts every segment, as T5's decoders do
MISSING = -1  # the store marks with it what lies beyond the last token


# --- Rows for one stack -----------------------------------------------------------------------------


def causal(tokens_BT, *, document_mask, eos_id):
  """Next-token prediction on windows cut from a stream of documents, each ended by EOS.

  document_mask: segments end with their EOS and do not see each other; each is predicted whole, its
    first input being BOS, never the EOS of the segment before (seqio's LMFeatureConverter).
  otherwise: windows hold one token more, input t predicts token t + 1, and text runs on over the
    ends of documents (GPT-2).
  """
  if document_mask:
    return _shifted(tokens_BT, _starts(tokens_BT, eos_id))
  inputs, targets = tokens_BT[:, :-1], tokens_BT[:, 1:]
  there = targets != MISSING
  return dict(
      inputs=np.where(inputs == MISSING, BOS, inputs), targets=np.where(there, targets, 0),
      weights=there.astype(np.float32),
      positions=np.broadcast_to(np.arange(inputs.shape[1], dtype=np.int32), inputs.shape).copy(),
      segments=there.astype(np.int32))


def _starts(tokens_BT, eos_id):
  """True where a segment begins: in the first column and after each EOS."""
  starts = np.ones(tokens_BT.shape, bool)
  starts[:, 1:] = tokens_BT[:, :-1] == eos_id
  return starts


def _shifted(tokens_BT, starts):
  """Every token a target, its input the token before it, or BOS where a segment starts."""
  there = tokens_BT != MISSING
  before = np.zeros_like(tokens_BT)
  before[:, 1:] = tokens_BT[:, :-1]
  positions, segments = _places(starts, there)
  return dict(inputs=np.where(starts | ~there, BOS, before), targets=np.where(there, tokens_BT, 0),
              weights=there.astype(np.float32), positions=positions, segments=segments)


def _places(starts, there):
  """(positions, segments) of segments that begin where `starts` is True."""
  index_T = np.arange(starts.shape[1], dtype=np.int32)
  first = np.maximum.accumulate(np.where(starts, index_T, 0), axis=1)
  segments = np.where(there, np.cumsum(starts, axis=1, dtype=np.int32), 0)
  return (index_T - first).astype(np.int32), segments.astype(np.int32)


def prefix_lm(tokens_BT, random, *, document_mask, eos_id):
  """As `causal` with BOS, but tokens before a random split see each other and are not predicted.

  The split is uniform on 1 .. n - 1 for the n tokens of a row, or with document_mask of each segment
  (one of a single token has no prefix). `prefix` [B, T] is True on the inputs up to the split and on
  the one more that holds the prefix's last token (T5's pack_prefix_lm_decoder_only).
  """
  starts = _starts(tokens_BT, eos_id if document_mask else MISSING - 1)
  batch = _shifted(tokens_BT, starts)
  B, T = tokens_BT.shape
  there = batch['segments'] > 0
  split = np.zeros((B, T), np.int32)
  for row, generator in enumerate(random):
    begins = np.flatnonzero(starts[row] & there[row])
    sizes = np.diff(np.append(begins, there[row].sum()))
    splits = 1 + (generator.random(len(sizes)) * (sizes - 1)).astype(np.int32)
    split[row, there[row]] = np.repeat(np.where(sizes > 1, splits, 0), sizes)
  batch['prefix'] = there & (batch['positions'] <= split) & (split > 0)
  batch['weights'] = (there & (batch['positions'] >= split)).astype(np.float32)
  return batch


def masked_lm(tokens_BT, random, *, density, masking, whole_word, predictions, cls_sep, document_mask, eos_id,
              mask_id, cls_id, vocab_size, special_ids, begins_word):
  """Masked language modelling; `targets` and `weights` are [B, P] for the positions `predict` [B, P].

  masking, how many of a row's n tokens (cls and sep included) are chosen, never special ones:
    bert       min(P, max(1, round(density n)))                (Devlin et al. 2018, released code)
    roberta    density n, rounded up or down by chance        (Liu et al. 2019, fairseq)
    bernoulli  each by itself; of more than P a random choice  (Hugging Face's collator)
  Of the chosen 80 % are read as the mask, 10 % as a random id and 10 % as they are: each token by
  itself, for roberta's whole words all pieces alike. Random ids are from all of the vocabulary, for
  roberta without special ones. whole_word: all pieces of a word or none; words that do not fit are
  passed over; begins_word [V] says which ids begin one.
  """
  inputs_BT, there, starts = _rows(tokens_BT, cls_sep, cls_id, eos_id, document_mask)
  B, T = inputs_BT.shape
  P = predictions
  allowed = np.ones(vocab_size, bool)
  allowed[special_ids] = False
  ordinary = np.flatnonzero(allowed)
  candidates = there & allowed[inputs_BT]
  draws = np.stack([g.random(T + 2 * P + 1) for g in random])
  keys_BT, kind_BP, other_BP = draws[:, :T], draws[:, T:T + P], draws[:, T + P:T + 2 * P]
  size_B = there.sum(1)
  if whole_word:
    picked = [_pick_words(*row, density, masking, P, allowed, begins_word)
              for row in zip(inputs_BT, candidates, keys_BT, draws[:, -1], size_B)]
    predict_BP, chosen_BP, first_BP = map(np.stack, zip(*picked))
    if masking == 'roberta':
      kind_BP = np.take_along_axis(kind_BP, first_BP, 1)
  else:
    keys_BT = np.where(candidates, keys_BT, 2.0)
    n_B = dict(
        bert=lambda: np.maximum(1, np.round(size_B * density)),
        roberta=lambda: np.floor(size_B * density + draws[:, -1]),
        bernoulli=lambda: (keys_BT < density).sum(1))[masking]()
    predict_BP, chosen_BP = _smallest(keys_BT, np.minimum(n_B, P), P)
  targets_BP = np.where(chosen_BP, np.take_along_axis(inputs_BT, predict_BP, 1), 0)
  others = ordinary if masking == 'roberta' else np.arange(vocab_size)
  random_BP = others[(other_BP * len(others)).astype(np.int64)]
  read_BP = np.where(kind_BP < 0.8, mask_id, np.where(kind_BP < 0.9, random_BP, targets_BP))
  rows, at = np.nonzero(chosen_BP)
  inputs_BT[rows, predict_BP[rows, at]] = read_BP[rows, at]
  positions, segments = _places(starts, there)
  return dict(inputs=inputs_BT, positions=positions, segments=segments, predict=predict_BP,
              targets=targets_BP.astype(np.int32), weights=chosen_BP.astype(np.float32))


def _rows(tokens_BT, cls_sep, cls_id, eos_id, document_mask):
  """(inputs with 0 for what is missing, where there are tokens, where segments start)."""
  there = tokens_BT != MISSING
  starts = _starts(tokens_BT, eos_id if document_mask else MISSING - 1)
  inputs = np.where(there, tokens_BT, 0).astype(np.int32)
  if not cls_sep:
    return inputs, there, starts
  B, T = tokens_BT.shape
  wide = lambda x, before: np.concatenate([np.full((B, 1), before, x.dtype), x, np.zeros((B, 1), x.dtype)], 1)
  inputs, there, starts = wide(inputs, cls_id), wide(there, True), wide(starts, True)
  starts[:, 1] = False  # cls belongs to the first segment, sep to the last
  end = there.sum(1)
  inputs[np.arange(B), end], there[np.arange(B), end] = eos_id, True
  starts[np.arange(B), end] = False
  return inputs, there, starts


def _smallest(keys_BT, n_B, P):
  """(positions [B, P] of the n_B smallest keys below 1, ascending, unused ones 0; which are used)."""
  B, T = keys_BT.shape
  at = np.argpartition(keys_BT, P - 1, axis=1)[:, :P] if P < T else np.broadcast_to(np.arange(T), (B, T))
  keys = np.take_along_axis(keys_BT, at, 1)
  at = np.take_along_axis(at, np.argsort(keys, axis=1), 1)
  used = (np.arange(P) < n_B[:, None]) & (np.take_along_axis(keys_BT, at, 1) < 1)
  at = np.sort(np.where(used, at, T), axis=1)
  used = at < T
  return np.where(used, at, 0).astype(np.int32), used


def _pick_words(tokens_T, candidates, keys_T, chance, size, density, masking, P, allowed, begins_word):
  """(predict [P], used [P], index [P] of the draw of its word) of one row, by whole words."""
  begins = candidates.copy()
  begins[1:] &= begins_word[tokens_T[1:]] | ~allowed[tokens_T[:-1]]
  first = np.flatnonzero(begins)
  number_T = np.where(candidates, np.cumsum(begins) - 1, -1)
  words = [[] for _ in first]
  for t in np.flatnonzero(candidates):
    words[number_T[t]].append(t)
  keys = keys_T[first]
  if masking == 'bert':
    room, most = min(P, max(1, round(size * density))), len(words)
  else:
    room = P
    most = int(len(words) * density + chance) if masking == 'roberta' else int((keys < density).sum())
  taken, origin = [], []
  for w in np.argsort(keys, kind='stable')[:most]:
    if len(taken) + len(words[w]) <= room:
      origin += [len(taken)] * len(words[w])
      taken += words[w]
  order = np.argsort(taken, kind='stable') if taken else np.zeros(0, int)
  predict, used, draw = np.zeros(P, np.int32), np.zeros(P, bool), np.arange(P)
  predict[:len(taken)] = np.array(taken, np.int32)[order]
  draw[:len(taken)] = np.array(origin, int)[order]
  used[:len(taken)] = True
  return predict, used, draw


# --- Pairs of texts ---------------------------------------------------------------------------------


def span_corruption(tokens_BL, random, *, density, mean_span, roll, sentinels, eos_id):
  """(inputs_BI, targets_BJ) of complete rows: spans of tokens replaced by sentinels, and those spans.

  Raffel et al. 2020, section 3.1.4: `lengths.span_counts` tokens in so many spans, all ways to cut them
  up equally likely; rows begin with what is kept and end with what is not. roll: the mask is rotated
  by a random distance, so a span may wrap around and lengths differ by one (MISSING pads).
  """
  B, L = tokens_BL.shape
  noise, spans = lengths.span_counts(L, density, mean_span)
  keep = L - noise
  draws = np.stack([g.random(L) for g in random])
  begin_noise = _compositions(draws[:, :noise - 1], spans)
  begin_keep = _compositions(draws[:, noise - 1:L - 2], spans)
  sizes = lambda begins, n: np.diff(np.concatenate([begins, np.full((B, 1), n)], 1), axis=1)
  # In order: keep, noise, keep, noise, ..; a noise span starts after all kept spans up to it.
  start_BK = begin_noise + np.cumsum(sizes(begin_keep, keep), 1)
  edges = np.zeros((B, L + 1), np.int8)
  rows = np.arange(B)[:, None]
  edges[rows, start_BK] = 1
  edges[rows, start_BK + sizes(begin_noise, noise)] = -1
  mask = np.cumsum(edges[:, :L], 1, dtype=np.int8).astype(bool)
  if roll:
    mask = np.stack([np.roll(m, int(d * L)) for m, d in zip(mask, draws[:, -1])])
    pairs = [(_with_sentinels(t, m, sentinels), _with_sentinels(t, ~m, sentinels)) for t, m in zip(tokens_BL, mask)]
    return tuple(_padded([np.append(side, eos_id) for side in sides]) for sides in zip(*pairs))
  first_noise = np.zeros((B, L), bool)
  first_noise[rows, start_BK] = True
  first_keep = edges[:, :L] == -1
  first_keep[:, 0] = True
  end = np.full((B, 1), eos_id, np.int32)
  sides = []
  for gone, first in ((mask, first_noise), (~mask, first_keep)):
    marked = np.where(first, sentinels[np.cumsum(first, 1, dtype=np.int32) - 1], tokens_BL)
    sides.append(np.concatenate([marked[~gone | first].reshape(B, -1), end], 1).astype(np.int32))
  return tuple(sides)


def _compositions(keys_BM, k):
  """[B, k] where the k parts of M + 1 things begin, all ways to part them equally likely."""
  B, M = keys_BM.shape
  if k == 1:
    return np.zeros((B, 1), np.int64)
  at = np.argpartition(keys_BM, k - 2, axis=1)[:, :k - 1] if k - 1 < M else np.argsort(keys_BM, axis=1)
  return np.concatenate([np.zeros((B, 1), np.int64), np.sort(at, axis=1) + 1], 1)


def _with_sentinels(tokens, gone, sentinels):
  """The tokens with each run of those that are `gone` replaced by a sentinel, the k-th by the k-th."""
  first = gone.copy()
  first[1:] &= ~gone[:-1]
  return np.where(first, sentinels[np.cumsum(first) - 1], tokens)[~gone | first]


def _padded(arrays):
  out = np.full((len(arrays), max(map(len, arrays))), MISSING, np.int32)
  for row, a in zip(out, arrays):
    row[:len(a)] = a
  return out


def prefix_split(tokens, random, *, eos_id, split=None):
  """(prefix, rest), each ended; the split is uniform on 1 .. n - 1 (T5's prefix_lm, for an encoder)."""
  split = int(random.integers(1, max(2, len(tokens)))) if split is None else split
  return _ended(tokens[:split], eos_id), _ended(tokens[split:], eos_id)


def prefix_pair(tokens, random, *, eos_id):
  """Two halves of L tokens, split at s and at L - s: [(inputs, targets), (inputs, targets)].

  Each split is uniform on 1 .. L - 1, and together the inputs take L + 2, as the targets do, so that
  rows of both stacks are full.
  """
  half = len(tokens) // 2
  split = int(random.integers(1, half))
  return [prefix_split(tokens[:half], None, eos_id=eos_id, split=split),
          prefix_split(tokens[half:], None, eos_id=eos_id, split=half - split)]


def pair(name, tokens, random, *, objective, sentinels, eos_id, vocab_size, special_ids):
  """(inputs, targets) of one text [n] under the objective `name`, both ended by EOS.

  objective: `config.objective`. The ways to spoil a text that Raffel et al. 2020 compare (section 3.3):
    span_corruption  spans become sentinels, which in the targets stand before their tokens
    iid_denoising    likewise for runs of tokens that are each corrupted by themselves
    drop             such tokens are left out, and are the targets
    mass             each becomes the first sentinel; the targets are all of the text
    bert_style       likewise, one in ten becoming a random id instead
    deshuffling      the inputs are in random order; the targets are the text
    lm               no inputs; the targets are the text
  Where runs outnumber sentinels, the last ones stay as they are.
  """
  if name == 'span_corruption':
    inputs, targets = span_corruption(
        tokens[None], [random], density=objective.noise_density, mean_span=objective.mean_span,
        roll=objective.roll, sentinels=sentinels, eos_id=eos_id)
    return inputs[0], targets[0]
  text = _ended(tokens, eos_id)
  if name == 'lm':
    return _ended(tokens[:0], eos_id), text
  if name == 'deshuffling':
    return _ended(random.permutation(tokens), eos_id), text
  noise = random.random(len(tokens)) < objective.noise_density
  if name == 'drop':
    return _ended(tokens[~noise], eos_id), _ended(tokens[noise], eos_id)
  if name == 'iid_denoising':
    noise &= _run_numbers(noise) < len(sentinels) - 1  # the targets' runs may be one more
    return (_ended(_with_sentinels(tokens, noise, sentinels), eos_id),
            _ended(_with_sentinels(tokens, ~noise, sentinels), eos_id))
  spoilt = np.full(len(tokens), sentinels[0], np.int32)
  if name == 'bert_style':
    ordinary = np.setdiff1d(np.arange(vocab_size, dtype=np.int32), special_ids)
    as_random = random.random(len(tokens)) < 0.1
    spoilt = np.where(as_random, ordinary[random.integers(0, len(ordinary), len(tokens))], spoilt)
  return _ended(np.where(noise, spoilt, tokens), eos_id), text


def _ended(tokens, eos_id):
  return np.append(tokens, eos_id).astype(np.int32)


def _run_numbers(noise):
  """For each token the number of runs of noise that began before it or at it, less one."""
  first = noise.copy()
  first[1:] &= ~noise[:-1]
  return np.cumsum(first) - 1
