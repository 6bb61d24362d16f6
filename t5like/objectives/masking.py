"""Masked language modelling: which tokens of a row are to be predicted, and what the model reads in their places."""
import dataclasses
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from t5like import choices
from t5like.objectives.functions import (
  MISSING,
  NO_TOKEN,
  Batch,
  Generators,
  ordinary_ids,
  positions_and_segments,
  segment_starts,
)

NOT_A_CANDIDATE = 2.0  # above every random number
READ_AS_MASK = 0.8  # share of chosen tokens
READ_AS_MASK_OR_RANDOM = 0.9


# (tokens of each row, a number in [0, 1) for each token, one for each row, density) -> how many of a row are masked
CountTokens = Callable[[np.ndarray, np.ndarray, np.ndarray, float], np.ndarray]


def _tokens_of_bert(
    size_B: np.ndarray,
    keys_BT: np.ndarray,
    chance_B: np.ndarray,
    density: float,
) -> np.ndarray:
  rounded_B = np.round(size_B * density)
  return np.maximum(1, rounded_B)


def _tokens_of_roberta(
    size_B: np.ndarray,
    keys_BT: np.ndarray,
    chance_B: np.ndarray,
    density: float,
) -> np.ndarray:
  expected_B = size_B * density
  return np.floor(expected_B + chance_B)


def _tokens_of_bernoulli(
    size_B: np.ndarray,
    keys_BT: np.ndarray,
    chance_B: np.ndarray,
    density: float,
) -> np.ndarray:
  is_masked = keys_BT < density
  return is_masked.sum(1)


_TOKENS: dict[str, CountTokens] = dict(
    bert=_tokens_of_bert,
    roberta=_tokens_of_roberta,
    bernoulli=_tokens_of_bernoulli,
)
MASKED_TOKENS = choices.implement('objective.masking', choices.MASKINGS, _TOKENS)

# (tokens of a row, a number for each of its words, one for the row, density) -> (most tokens, most words)
CountWords = Callable[[int, np.ndarray, float, float], tuple[int, int]]


def _words_of_bert(
    size: int,
    keys: np.ndarray,
    chance: float,
    density: float,
) -> tuple[int, int]:
  most_tokens = max(1, round(size * density))
  return most_tokens, len(keys)


def _words_of_roberta(
    size: int,
    keys: np.ndarray,
    chance: float,
    density: float,
) -> tuple[int, int]:
  expected = len(keys) * density
  return size, int(expected + chance)


def _words_of_bernoulli(
    size: int,
    keys: np.ndarray,
    chance: float,
    density: float,
) -> tuple[int, int]:
  is_masked = keys < density
  return size, int(is_masked.sum())


_WORDS: dict[str, CountWords] = dict(
    bert=_words_of_bert,
    roberta=_words_of_roberta,
    bernoulli=_words_of_bernoulli,
)
MASKED_WORDS = choices.implement('objective.masking', choices.MASKINGS, _WORDS)


class _Rows(NamedTuple):
  """Rows before they are masked: int32 [B, T] with 0 for what is missing, and bool [B, T]."""
  inputs_BT: np.ndarray
  is_token: np.ndarray
  starts_BT: np.ndarray  # where segments start


class _Draws(NamedTuple):
  """Random numbers in [0, 1): of each token, of each prediction (how it is read, as which id), and of each row."""
  keys_BT: np.ndarray
  kind_BP: np.ndarray
  other_BP: np.ndarray
  chance_B: np.ndarray


class _Chosen(NamedTuple):
  """Positions to predict, int32 [B, P], ascending; which of them are used, bool [B, P]."""
  predict_BP: np.ndarray
  is_used: np.ndarray


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
  """How rows are masked, and the tokens that this takes.

  Attributes:
    density: share of tokens to choose.
    masking: how many of a row's n tokens (cls and sep included) are chosen, never special ones:
      bert       min(P, max(1, round(density n)))                (Devlin et al. 2018, released code)
      roberta    density n, rounded up or down by chance        (Liu et al. 2019, fairseq)
      bernoulli  each by itself; of more than P a random choice  (the collator of transformers)
    whole_word: all pieces of a word are chosen or none; words that do not fit are skipped.
    predictions: P, the most tokens of a row that are chosen.
    cls_sep: whether `cls_id` stands before each row and `sep_id` behind it.
    document_mask: whether documents are segments that do not see each other.
    eos_id: the token that ends documents; only document_mask needs it.
    mask_id, cls_id, sep_id: ids of these tokens; without a `sep_id`, `eos_id` is it.
    vocab_size: V.
    special_ids: ids that are never chosen.
    begins_word: bool [V], which ids begin a word; only whole_word needs it.
  """
  density: float
  masking: str
  whole_word: bool
  predictions: int
  cls_sep: bool
  document_mask: bool
  eos_id: int | None
  mask_id: int
  cls_id: int | None
  vocab_size: int
  special_ids: Sequence[int] | np.ndarray
  begins_word: np.ndarray | None
  sep_id: int | None = None


def masked_lm(
    tokens_BT: np.ndarray,
    random: Generators,
    options: Options,
) -> Batch:
  """Masked language modelling; `targets` and `weights` are [B, P] for the positions `predict` [B, P].

  Of the chosen tokens 80 % are read as the mask, 10 % as a random id and 10 % as they are: each token by itself, for
  roberta's whole words all pieces alike. Random ids are from all of the vocabulary, for roberta without special ones.

  Args:
    tokens_BT: int32, MISSING beyond the last token.
    random: a generator for each row.
    options: how rows are masked.
  """
  rows = _rows(tokens_BT, options)
  inputs_BT = rows.inputs_BT
  is_ordinary = ordinary_ids(options.vocab_size, options.special_ids)
  draws = _draws(random, inputs_BT.shape[1], options.predictions)
  if options.whole_word:
    chosen, draws = _choose_words(rows, draws, options, is_ordinary)
  else:
    chosen = _choose_tokens(rows, draws, options, is_ordinary)
  tokens_BP = np.take_along_axis(inputs_BT, chosen.predict_BP, axis=1)
  targets_BP = np.where(chosen.is_used, tokens_BP, 0)
  if choices.MASKINGS[options.masking].any_id:
    replacements = np.arange(options.vocab_size)
  else:
    replacements = np.flatnonzero(is_ordinary)
  read_BP = _read(targets_BP, draws, replacements, options.mask_id)
  row, prediction = np.nonzero(chosen.is_used)
  position = chosen.predict_BP[row, prediction]
  inputs_BT[row, position] = read_BP[row, prediction]
  positions_BT, segments_BT = positions_and_segments(rows.starts_BT, rows.is_token)
  return dict(
      inputs=inputs_BT,
      positions=positions_BT,
      segments=segments_BT,
      predict=chosen.predict_BP,
      targets=targets_BP.astype(np.int32),
      weights=chosen.is_used.astype(np.float32),
  )


def _rows(tokens_BT: np.ndarray, options: Options) -> _Rows:
  """Rows, between cls and sep where these belong to them."""
  is_token = tokens_BT != MISSING
  inputs_BT = np.where(is_token, tokens_BT, 0)
  last_of_segment = options.eos_id if options.document_mask else NO_TOKEN
  starts_BT = segment_starts(tokens_BT, last_of_segment)
  rows = _Rows(inputs_BT.astype(np.int32), is_token, starts_BT)
  if not options.cls_sep:
    return rows
  sep_id = options.sep_id
  if sep_id is None:
    sep_id = options.eos_id
  return _framed(rows, options.cls_id, sep_id)


def _framed(rows: _Rows, cls_id: int | None, sep_id: int | None) -> _Rows:
  """Rows between cls, which belongs to the first segment, and sep, which belongs to the last."""
  inputs_BT = _widened(rows.inputs_BT, cls_id)
  is_token = _widened(rows.is_token, True)
  starts_BT = _widened(rows.starts_BT, True)
  starts_BT[:, 1] = False
  row = np.arange(len(inputs_BT))
  end = is_token.sum(1)
  inputs_BT[row, end] = sep_id
  is_token[row, end] = True
  starts_BT[row, end] = False
  return _Rows(inputs_BT, is_token, starts_BT)


def _widened(x_BT: np.ndarray, first: int | bool | None) -> np.ndarray:
  """[B, T + 2]: a column of `first` before, one of zeros behind."""
  column = (len(x_BT), 1)
  before = np.full(column, first, x_BT.dtype)
  behind = np.zeros(column, x_BT.dtype)
  return np.concatenate([before, x_BT, behind], axis=1)


def _draws(random: Generators, T: int, P: int) -> _Draws:
  size = T + 2 * P + 1
  draws = np.stack([generator.random(size) for generator in random])
  keys_BT, kind_BP, other_BP, chance_B1 = np.split(draws, [T, T + P, T + 2 * P], axis=1)
  return _Draws(
      keys_BT=keys_BT,
      kind_BP=kind_BP,
      other_BP=other_BP,
      chance_B=chance_B1[:, 0],
  )


def _read(
    targets_BP: np.ndarray,
    draws: _Draws,
    replacements: np.ndarray,
    mask_id: int,
) -> np.ndarray:
  """Ids [B, P] that the model reads where it predicts `targets_BP`."""
  scaled_BP = draws.other_BP * len(replacements)
  random_BP = replacements[scaled_BP.astype(np.int64)]
  is_mask = draws.kind_BP < READ_AS_MASK
  is_mask_or_random = draws.kind_BP < READ_AS_MASK_OR_RANDOM
  random_or_same_BP = np.where(is_mask_or_random, random_BP, targets_BP)
  return np.where(is_mask, mask_id, random_or_same_BP)


# --- Single tokens ------------------------------------------------------------------------------------


def _choose_tokens(
    rows: _Rows,
    draws: _Draws,
    options: Options,
    is_ordinary: np.ndarray,
) -> _Chosen:
  candidates = rows.is_token & is_ordinary[rows.inputs_BT]
  keys_BT = np.where(candidates, draws.keys_BT, NOT_A_CANDIDATE)
  P = options.predictions
  size_B = rows.is_token.sum(1)
  count_tokens = MASKED_TOKENS[options.masking]
  count_B = count_tokens(size_B, keys_BT, draws.chance_B, options.density)
  return _smallest(keys_BT, np.minimum(count_B, P), P)


def _smallest(keys_BT: np.ndarray, count_B: np.ndarray, P: int) -> _Chosen:
  """The positions [B, P] of the `count_B` smallest keys below 1, ascending; unused ones are 0."""
  B, T = keys_BT.shape
  if P < T:
    smallest_first = np.argpartition(keys_BT, P - 1, axis=1)
    places = smallest_first[:, :P]
  else:
    places = np.broadcast_to(np.arange(T), (B, T))
  keys = np.take_along_axis(keys_BT, places, axis=1)
  order = np.argsort(keys, axis=1)
  places = np.take_along_axis(places, order, axis=1)
  is_candidate = np.take_along_axis(keys_BT, places, axis=1) < 1
  is_counted = np.arange(P) < count_B[:, None]
  used_or_T = np.where(is_counted & is_candidate, places, T)
  ascending = np.sort(used_or_T, axis=1)
  is_used = ascending < T
  predict_BP = np.where(is_used, ascending, 0)
  return _Chosen(predict_BP.astype(np.int32), is_used)


# --- Whole words --------------------------------------------------------------------------------------


def _choose_words(
    rows: _Rows,
    draws: _Draws,
    options: Options,
    is_ordinary: np.ndarray,
) -> tuple[_Chosen, _Draws]:
  """The chosen tokens, and the draws by which they are read."""
  P = options.predictions
  count_words = MASKED_WORDS[options.masking]
  index_P = np.arange(P)
  predict = []
  is_used = []
  first = []
  for row, inputs_T in enumerate(rows.inputs_BT):
    is_token = rows.is_token[row]
    candidates = is_token & is_ordinary[inputs_T]
    begins = _word_begins(inputs_T, candidates, is_ordinary, options.begins_word)
    keys = draws.keys_BT[row][begins]
    size = is_token.sum()
    most_tokens, most_words = count_words(size, keys, draws.chance_B[row], options.density)
    by_key = np.argsort(keys, kind='stable')
    order = by_key[:most_words].tolist()
    tokens = np.flatnonzero(candidates).tolist()
    first_tokens = np.flatnonzero(begins[candidates]).tolist()
    edges = [*first_tokens, len(tokens)]
    room = min(P, most_tokens)
    positions, firsts = _fill(tokens, edges, order, room)
    predict.append(_extended(positions, P))
    first.append(_extended(firsts, P))
    is_used.append(index_P < len(positions))
  chosen = _Chosen(np.stack(predict), np.stack(is_used))
  if choices.MASKINGS[options.masking].words_alike:
    kind_of_word_BP = np.take_along_axis(draws.kind_BP, np.stack(first), axis=1)
    draws = draws._replace(kind_BP=kind_of_word_BP)
  return chosen, draws


def _word_begins(
    inputs_T: np.ndarray,
    candidates: np.ndarray,
    is_ordinary: np.ndarray,
    begins_word: np.ndarray | None,
) -> np.ndarray:
  """Bool [T]: candidates that begin a word, as those behind a special token do."""
  assert begins_word is not None, 'whole words need a vocabulary that says where words begin'
  starts_word = begins_word[inputs_T[1:]]
  follows_special = ~is_ordinary[inputs_T[:-1]]
  begins = candidates.copy()
  begins[1:] &= starts_word | follows_special
  return begins


def _fill(
    tokens: list[int],
    edges: list[int],
    order: list[int],
    room: int,
) -> tuple[list[int], list[int]]:
  """Takes words in an order, skipping those that do not fit.

  Args:
    tokens: positions of all candidates.
    edges: word k is tokens[edges[k]:edges[k + 1]].
    order: of words.
    room: the most tokens to take.

  Returns:
    Positions of the tokens, ascending, and for each the number of tokens that were taken before its word.
  """
  taken: list[tuple[int, int]] = []
  for number in order:
    word = tokens[edges[number]:edges[number + 1]]
    before = len(taken)
    if before + len(word) > room:
      continue
    for position in word:
      taken.append((position, before))
  taken.sort()
  positions = [position for position, _ in taken]
  firsts = [before for _, before in taken]
  return positions, firsts


def _extended(numbers: list[int], P: int) -> np.ndarray:
  """int32 [P], zeros behind the numbers."""
  extended = np.zeros(P, np.int32)
  extended[:len(numbers)] = numbers
  return extended
