"""Functions of tokens that return what a model reads and predicts, which entries of the table call. Numpy only.

A batch is a dict of [B, T] arrays: `inputs`, `targets`, `positions`, `segments` (int32; segment 0 is
padding) and `weights` (float32, 0 where there is nothing to predict). Objectives with two texts return
pairs (inputs, targets), which `packing` lays out in rows. What is random comes from the generators that
are passed in, one per row, so that a row depends on nothing else.
"""
import numpy as np

from t5like import choices
from t5like.objectives import spans as spans_lib

PADDING = 0  # where there is no token
MISSING = -1  # the store marks with it what lies beyond the last token


# --- Rows for one stack -----------------------------------------------------------------------------


def causal(tokens_BT, *, document_mask, eos_id, bos_id=0):
  """Next-token prediction on windows cut from a stream of documents, each ended by EOS.

  document_mask: segments end with their EOS and do not see each other; each is predicted whole, its
    first input being `bos_id`, never the EOS of the segment before (seqio's LMFeatureConverter).
  otherwise: windows hold one token more, input t predicts token t + 1, and text runs on over the
    ends of documents (GPT-2).
  """
  if document_mask:
    return _shifted(tokens_BT, _starts(tokens_BT, eos_id), bos_id)
  inputs, targets = tokens_BT[:, :-1], tokens_BT[:, 1:]
  there = targets != MISSING
  return dict(
      inputs=np.where(inputs == MISSING, PADDING, inputs), targets=np.where(there, targets, 0),
      weights=there.astype(np.float32),
      positions=np.broadcast_to(np.arange(inputs.shape[1], dtype=np.int32), inputs.shape).copy(),
      segments=there.astype(np.int32))


def _starts(tokens_BT, eos_id):
  """True where a segment begins: in the first column and after each EOS."""
  starts = np.ones(tokens_BT.shape, bool)
  starts[:, 1:] = tokens_BT[:, :-1] == eos_id
  return starts


def _shifted(tokens_BT, starts, bos_id):
  """Every token a target, its input the token before it, or `bos_id` where a segment starts."""
  there = tokens_BT != MISSING
  before = np.zeros_like(tokens_BT)
  before[:, 1:] = tokens_BT[:, :-1]
  positions, segments = _places(starts, there)
  inputs = np.where(there, np.where(starts, bos_id, before), PADDING).astype(tokens_BT.dtype)
  return dict(inputs=inputs, targets=np.where(there, tokens_BT, 0),
              weights=there.astype(np.float32), positions=positions, segments=segments)


def _places(starts, there):
  """(positions, segments) of segments that begin where `starts` is True."""
  index_T = np.arange(starts.shape[1], dtype=np.int32)
  first = np.maximum.accumulate(np.where(starts, index_T, 0), axis=1)
  segments = np.where(there, np.cumsum(starts, axis=1, dtype=np.int32), 0)
  return (index_T - first).astype(np.int32), segments.astype(np.int32)


def prefix_lm(tokens_BT, random, *, document_mask, eos_id, bos_id=0):
  """As `causal` with a beginning, but tokens before a random split see each other and are not predicted.

  The split is uniform on 1 .. n - 1 for the n tokens of a row, or with document_mask of each segment
  (one of a single token has no prefix). `prefix` [B, T] is True on the inputs up to the split and on
  the one more that holds the prefix's last token (T5's pack_prefix_lm_decoder_only).
  """
  starts = _starts(tokens_BT, eos_id if document_mask else MISSING - 1)
  batch = _shifted(tokens_BT, starts, bos_id)
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


# (tokens of each row, a number in [0, 1) for each token, one for each row, density) -> how many of a row are masked


def _tokens_of_bert(size_B, keys_BT, chance_B, density):
  return np.maximum(1, np.round(size_B * density))


def _tokens_of_roberta(size_B, keys_BT, chance_B, density):
  return np.floor(size_B * density + chance_B)


def _tokens_of_bernoulli(size_B, keys_BT, chance_B, density):
  return (keys_BT < density).sum(1)


MASKED_TOKENS = choices.implement('objective.masking', choices.MASKINGS, dict(
    bert=_tokens_of_bert, roberta=_tokens_of_roberta, bernoulli=_tokens_of_bernoulli))

# (tokens of a row, a number for each of its words, one for the row, density) -> (most tokens, most words)


def _words_of_bert(size, keys, chance, density):
  return max(1, round(size * density)), len(keys)


def _words_of_roberta(size, keys, chance, density):
  return size, int(len(keys) * density + chance)


def _words_of_bernoulli(size, keys, chance, density):
  return size, int((keys < density).sum())


MASKED_WORDS = choices.implement('objective.masking', choices.MASKINGS, dict(
    bert=_words_of_bert, roberta=_words_of_roberta, bernoulli=_words_of_bernoulli))


def masked_lm(tokens_BT, random, *, density, masking, whole_word, predictions, cls_sep, document_mask, eos_id,
              mask_id, cls_id, vocab_size, special_ids, begins_word, sep_id=None):
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
  sep_id = eos_id if sep_id is None else sep_id
  inputs_BT, there, starts = _rows(tokens_BT, cls_sep, cls_id, sep_id, eos_id, document_mask)
  B, T = inputs_BT.shape
  P = predictions
  allowed = _ordinary(vocab_size, special_ids)
  candidates = there & allowed[inputs_BT]
  draws = np.stack([g.random(T + 2 * P + 1) for g in random])
  keys_BT, kind_BP, other_BP = draws[:, :T], draws[:, T:T + P], draws[:, T + P:T + 2 * P]
  size_B = there.sum(1)
  if whole_word:
    picked = [_pick_words(*row, density, masking, P, allowed, begins_word)
              for row in zip(inputs_BT, candidates, keys_BT, draws[:, -1], size_B)]
    predict_BP, chosen_BP, first_BP = map(np.stack, zip(*picked))
    if choices.MASKINGS[masking].words_alike:
      kind_BP = np.take_along_axis(kind_BP, first_BP, 1)
  else:
    keys_BT = np.where(candidates, keys_BT, 2.0)
    n_B = MASKED_TOKENS[masking](size_B, keys_BT, draws[:, -1], density)
    predict_BP, chosen_BP = _smallest(keys_BT, np.minimum(n_B, P), P)
  targets_BP = np.where(chosen_BP, np.take_along_axis(inputs_BT, predict_BP, 1), 0)
  others = np.arange(vocab_size) if choices.MASKINGS[masking].any_id else np.flatnonzero(allowed)
  random_BP = others[(other_BP * len(others)).astype(np.int64)]
  read_BP = np.where(kind_BP < 0.8, mask_id, np.where(kind_BP < 0.9, random_BP, targets_BP))
  rows, at = np.nonzero(chosen_BP)
  inputs_BT[rows, predict_BP[rows, at]] = read_BP[rows, at]
  positions, segments = _places(starts, there)
  return dict(inputs=inputs_BT, positions=positions, segments=segments, predict=predict_BP,
              targets=targets_BP.astype(np.int32), weights=chosen_BP.astype(np.float32))


def _rows(tokens_BT, cls_sep, cls_id, sep_id, eos_id, document_mask):
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
  inputs[np.arange(B), end], there[np.arange(B), end] = sep_id, True
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
  at, keys = np.flatnonzero(candidates).tolist(), keys_T[begins]
  edges = [*np.flatnonzero(begins[candidates]).tolist(), len(at)]
  room, most = MASKED_WORDS[masking](size, keys, chance, density)
  room = min(P, room)
  taken, origin = [], []
  for w in np.argsort(keys, kind='stable')[:most].tolist():
    word = at[edges[w]:edges[w + 1]]
    if len(taken) + len(word) <= room:
      origin += [len(taken)] * len(word)
      taken += word
  both = np.zeros((2, P), np.int32)
  both[:, :len(taken)] = np.array(sorted(zip(taken, origin)), np.int32).reshape(-1, 2).T
  return both[0], np.arange(P) < len(taken), both[1]


# --- Pairs of texts ---------------------------------------------------------------------------------


def span_corruption(tokens_BL, random, *, density, mean_span, roll, sentinels, eos_id):
  """(inputs_BI, targets_BJ) of complete rows: spans of tokens replaced by sentinels, and those spans.

  Raffel et al. 2020, section 3.3.4: `spans_lib.span_counts` tokens in so many spans, all ways to cut them
  up equally likely; rows begin with what is kept and end with what is not. roll: the mask is rotated
  by a random distance, so a span may wrap around and lengths differ by one (MISSING pads).
  """
  noise_BL = _spans(tokens_BL.shape, random, density, mean_span, roll)
  if roll or spans_lib.span_counts(tokens_BL.shape[1], density, mean_span)[1] > len(sentinels):
    pairs = [sentinel_pair(t, noise, sentinels) for t, noise in zip(tokens_BL, noise_BL)]
    return tuple(_padded([_ended(side, eos_id) for side in sides]) for sides in zip(*pairs))
  end = np.full((len(tokens_BL), 1), eos_id, np.int32)
  return tuple(np.concatenate([side.reshape(len(end), -1).astype(np.int32), end], 1)
               for side in sentinel_pair(tokens_BL, noise_BL, sentinels))


def _spans(shape, random, density, mean_span, roll):
  """Bool [B, L], True in the spans to be corrupted; a text of one token has none."""
  B, L = shape
  n = max(L, 2)
  noise, spans = spans_lib.span_counts(n, density, mean_span)
  draws = np.stack([g.random(n) for g in random])
  begin_noise = _compositions(draws[:, :noise - 1], spans)
  begin_keep = _compositions(draws[:, noise - 1:n - 2], spans)
  sizes = lambda begins, m: np.diff(np.concatenate([begins, np.full((B, 1), m)], 1), axis=1)
  # In order: keep, noise, keep, noise, ..; a noise span starts after all kept spans up to it.
  start_BK = begin_noise + np.cumsum(sizes(begin_keep, n - noise), 1)
  edges = np.zeros((B, n + 1), np.int8)
  rows = np.arange(B)[:, None]
  edges[rows, start_BK] = 1
  edges[rows, start_BK + sizes(begin_noise, noise)] = -1
  mask = np.cumsum(edges[:, :L], 1, dtype=np.int8).astype(bool)
  return np.stack([np.roll(m, int(d * L)) for m, d in zip(mask, draws[:, -1])]) if roll else mask


def _compositions(keys_BM, k):
  """[B, k] where the k parts of M + 1 things begin, all ways to part them equally likely."""
  B, M = keys_BM.shape
  if k == 1:
    return np.zeros((B, 1), np.int64)
  at = np.argpartition(keys_BM, k - 2, axis=1)[:, :k - 1] if k - 1 < M else np.argsort(keys_BM, axis=1)
  return np.concatenate([np.zeros((B, 1), np.int64), np.sort(at, axis=1) + 1], 1)


def _run_numbers(mask):
  """For each token, along the last axis, the number of runs of `mask` that began at it or before, less one."""
  return np.cumsum(_firsts(mask), axis=-1, dtype=np.int32) - 1


def _firsts(mask):
  first = mask.copy()
  first[..., 1:] &= ~mask[..., :-1]
  return first


def sentinel_pair(tokens, noise, sentinels):
  """(inputs, targets): the k-th run of noise, or in the targets of what is not, becomes sentinel k."""
  most = len(sentinels)
  if noise.ndim == 1 and noise.size and max(_run_numbers(noise)[-1], _run_numbers(~noise)[-1]) >= most:
    noise = noise & (_run_numbers(noise) < most - 1)  # and what follows is one run for the targets
  return tuple(np.where(_firsts(gone), sentinels[_run_numbers(gone)], tokens)[~gone | _firsts(gone)]
               for gone in (noise, ~noise))


def _padded(arrays):
  out = np.full((len(arrays), max(map(len, arrays))), MISSING, np.int32)
  for row, a in zip(out, arrays):
    row[:len(a)] = a
  return out


def prefix_pair(tokens, random, *, eos_id):
  """Two halves of L tokens, split at s and at L - s: [(inputs, targets), (inputs, targets)].

  Each split is uniform on 1 .. L - 1, and together the inputs take L + 2, as the targets do, so that
  rows of both stacks are full.
  """
  half = len(tokens) // 2
  split = int(random.integers(1, max(2, half)))
  return [(_ended(text[:at], eos_id), _ended(text[at:], eos_id))
          for text, at in ((tokens[:half], split), (tokens[half:], half - split))]


def of_text(entry, tokens, random, setting):
  """(inputs, targets) of one text [n] under an entry of pairs, both int32 and ended by EOS.

  An EOS that ends the text already is no part of it. `random`, `setting`: as of `spec.Pair.make`.
  """
  eos = setting.ids.eos
  text = tokens[:-1] if len(tokens) and tokens[-1] == eos else tokens
  return tuple(_ended(side, eos) for side in entry.make(text, random, setting))


def noise(text, random, density):
  """Bool [n]: tokens that are corrupted, each by itself."""
  return random.random(len(text)) < density


def spans(text, random, setting):
  """`span_corruption` of one text [n], without ends, of any length."""
  o = setting.keys
  noise_L = _spans((1, len(text)), [random], o.noise_density, o.mean_span, o.roll)[0]
  return sentinel_pair(text, noise_L, setting.ids.sentinels)


def span_sizes(text, density, mean_span, more):
  """(inputs, targets), int64 [n]: `spans.span_lengths` of texts of so many tokens, and `more` on either side."""
  table = more + np.array([spans_lib.span_lengths(n, density, mean_span) for n in range(int(text.max(initial=0)) + 1)])
  return table[text].T


def masked(text, random, setting):
  """int32 [n]: a text whose corrupted tokens are the first sentinel."""
  return np.where(noise(text, random, setting.keys.noise_density), setting.ids.sentinels[0], text)


def bert_style(text, random, setting):
  """As `masked`, one in ten becoming a random id instead."""
  ids = setting.ids
  corrupted = noise(text, random, setting.keys.noise_density)
  ordinary = np.flatnonzero(_ordinary(ids.vocab_size, ids.special))
  anything = ordinary[random.integers(0, len(ordinary), len(text))]
  return np.where(corrupted, np.where(random.random(len(text)) < 0.1, anything, ids.sentinels[0]), text)


def _ordinary(vocab_size, special_ids):
  """Bool [V], False for special ids."""
  ordinary = np.ones(vocab_size, bool)
  ordinary[special_ids] = False
  return ordinary


def _ended(tokens, eos_id):
  return np.append(tokens, eos_id).astype(np.int32)
