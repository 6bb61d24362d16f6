"""Objectives of inputs and targets: prefix_lm, those that corrupt a text (Raffel et al. 2020, section 3.3), seq2seq.

They are made of a text, which is what `data.field` holds, or, for seq2seq, given by the data.
"""
from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from t5like.config_type import Section
from t5like.objectives import asking
from t5like.objectives.spans import likely, run_starts, span_counts, span_lengths, span_raw
from t5like.objectives.spec import NO_SENTINELS, Filled, Fit, Lengths, Objective, OneStack, Pair, Sentinels, Setting

if TYPE_CHECKING:  # configs are checked without numpy
  import numpy as np

  Sides = tuple[np.ndarray, np.ndarray]  # inputs, targets

BOTH = ('decoder', 'encoder_decoder')


def _text_and_two_ends(keys: Any, room: int) -> Fit:
  """Inputs and targets part the text between them, and each has an end."""
  return Fit(room - 2)


def _text_twice(keys: Any, room: int) -> Fit:
  """Inputs and targets each hold the whole text and an end."""
  return Fit((room - 2) // 2)


def _whole_on_both_sides(keys: Any, sizes: np.ndarray) -> Sides:
  return sizes + 1, sizes + 1


def _text_is_the_targets(keys: Any, S: int, T: int, mode: int) -> Fit:
  targets = T or S
  return Fit(targets - 1, targets)


def _text_is_on_both_sides(keys: Any, S: int, T: int, mode: int) -> Fit:
  targets = T or S
  return Fit(min(S, targets) - 1, targets)


def _one(keys: Any, lengths: Lengths) -> int:
  return 1


def _one_per_span(keys: Any, lengths: Lengths) -> int:
  return max(1, lengths.spans)


def _for_spans(count: int) -> str:
  return f'its corrupted spans, {count} in a row' if count > 1 else 'corrupted tokens'


SENTINEL_PER_SPAN = Sentinels(_one_per_span, _for_spans, 'one for each corrupted span of a row')
ONE_SENTINEL = Sentinels(_one, _for_spans, 'for what is corrupted in a row')


# --- prefix_lm: the rest of a text, after a prefix that is seen whole --------------------------------


def _prefix_lengths(keys: Any, data: Section) -> Lengths:
  return Lengths(data.seq_len, 0, data.seq_len)


def _prefix_rows(
    tokens_BT: np.ndarray,
    random: Sequence[np.random.Generator],
    setting: Setting,
) -> dict[str, np.ndarray]:
  from t5like.objectives import functions
  ids = setting.ids
  return functions.prefix_lm(
      tokens_BT,
      random,
      document_mask=setting.document_mask,
      eos_id=ids.eos,
      bos_id=ids.token('begin'),
  )


def _prefix_style(keys: Any, data: Section) -> str:
  return 'prefix'


def _rows_begin(data: Section) -> bool:
  return True


def _split(
    text: np.ndarray,
    random: np.random.Generator,
    setting: Setting,
) -> Sides:
  """(prefix, rest); the split is uniform on 1 .. n - 1 (T5's prefix_lm, for an encoder)."""
  split = int(random.integers(1, max(2, len(text))))
  return text[:split], text[split:]


def _two_halves(keys: Any, S: int, T: int, mode: int) -> Fit:
  """Two texts of L tokens: together their prefixes take L, their rests L."""
  targets = T or S
  half = min(S - mode, targets) - 2
  return Fit(2 * half, targets)


def _pairs_of_halves(
    tokens: np.ndarray,
    random: np.random.Generator,
    setting: Setting,
) -> list[Sides] | None:
  from t5like.objectives import functions
  if not setting.has_encoder:
    return None
  if len(tokens) == setting.lengths.raw:
    return functions.prefix_pair(tokens, random, eos_id=setting.ids.token('eos'))
  if len(tokens) <= setting.lengths.raw // 2:
    return None
  half = len(tokens) // 2
  first = functions.of_text(PREFIX, tokens[:half], random, setting)
  second = functions.of_text(PREFIX, tokens[half:], random, setting)
  return [first, second]


PREFIX = Pair(
    make=_split,
    sizes=_whole_on_both_sides,
    one_row=_text_and_two_ends,
    two_rows=_two_halves,
    style='pair',
    ask=asking.INPUTS,
    of_window=_pairs_of_halves,
)

PREFIX_LM = Objective(
    name='prefix_lm',
    architectures=BOTH,
    keys=(),
    sentinels=NO_SENTINELS,
    by_chance=('encoder_decoder',),
    stack=OneStack(
        architecture='decoder',
        lengths=_prefix_lengths,
        rows=_prefix_rows,
        style=_prefix_style,
        styles=('prefix',),
        begins=_rows_begin,
        has_prefix=True,
    ),
    pair=PREFIX)


# --- span_corruption: spans become sentinels, which in the targets stand before their tokens ----------


def _spans(
    text: np.ndarray,
    random: np.random.Generator,
    setting: Setting,
) -> Sides:
  from t5like.objectives import functions
  return functions.spans(text, random, setting)


def _all_spans(
    windows_BL: np.ndarray,
    random: Sequence[np.random.Generator],
    setting: Setting,
) -> Sides | None:
  from t5like.objectives import functions
  keys = setting.keys
  if keys.roll:
    return None
  return functions.span_corruption(
      windows_BL,
      random,
      density=keys.noise_density,
      mean_span=keys.mean_span,
      roll=False,
      sentinels=setting.ids.sentinels,
      eos_id=setting.ids.token('eos'),
  )


def _span_sizes(keys: Any, sizes: np.ndarray) -> Sides:
  from t5like.objectives import functions
  return functions.span_sizes(sizes, keys.noise_density, keys.mean_span, int(keys.roll))


def _spans_of(keys: Any, raw: int) -> int:
  _, spans = span_counts(raw, keys.noise_density, keys.mean_span)
  # A mask that is rolled may cut a span in two, which adds a sentinel to one side or the other.
  return spans + keys.roll


def _spans_in_one_row(keys: Any, room: int) -> Fit:
  def fits(inputs: int, targets: int) -> bool:
    return inputs + targets + keys.roll <= room
  raw = span_raw(fits, keys.noise_density, keys.mean_span)
  return Fit(raw, spans=_spans_of(keys, raw))


def _spans_in_two_rows(keys: Any, S: int, T: int, mode: int) -> Fit:
  def fits(inputs: int, targets: int) -> bool:
    if T and targets + keys.roll > T:
      return False
    return inputs + keys.roll <= S
  raw = span_raw(fits, keys.noise_density, keys.mean_span)
  if T:
    return Fit(raw, T, _spans_of(keys, raw))
  if keys.noise_density == 0.5 and _span_targets(keys, raw) > S:
    raw -= 1  # as T5's random_spans_helper: no longer targets than inputs at a half
  return Fit(raw, _span_targets(keys, raw) + keys.roll, _spans_of(keys, raw))


def _span_targets(keys: Any, raw: int) -> int:
  """Tokens of the targets of so much text, where spans are not rolled."""
  _, targets = span_lengths(raw, keys.noise_density, keys.mean_span)
  return targets


def _spans_that_fill(keys: Any, S: int, raw: int) -> Filled:
  def fits(inputs: int, targets: int) -> bool:
    return inputs <= S
  text = span_raw(fits, keys.noise_density, keys.mean_span)
  inputs, _ = span_lengths(raw, keys.noise_density, keys.mean_span)
  return Filled(text, _span_targets(keys, text), inputs)


SPAN_CORRUPTION = Objective(
    name='span_corruption',
    architectures=BOTH,
    keys=('noise_density', 'mean_span', 'roll'),
    sentinels=dataclasses.replace(
        SENTINEL_PER_SPAN,
        depends=('objective.noise_density', 'objective.mean_span', 'data.seq_len'),
    ),
    example='def <extra_id_0>(self):',
    pair=Pair(
        make=_spans,
        sizes=_span_sizes,
        one_row=_spans_in_one_row,
        two_rows=_spans_in_two_rows,
        style='pair',
        ask=asking.SENTINEL,
        whole_windows=_all_spans,
        filled=_spans_that_fill,
    ))


# --- iid_denoising: the same for runs of tokens that are each corrupted by themselves -----------------


def _runs(
    text: np.ndarray,
    random: np.random.Generator,
    setting: Setting,
) -> Sides:
  from t5like.objectives import functions
  corrupted = functions.noise(text, random, setting.keys.noise_density)
  return functions.sentinel_pair(text, corrupted, setting.ids.sentinels)


def _likely_runs(keys: Any, raw: int, deviations: float = 5) -> int:
  return likely(raw, run_starts(keys.noise_density), deviations)


def _runs_in_one_row(keys: Any, room: int) -> Fit:
  raw = room - 2
  while raw > 0:
    needs = raw + 2 * _likely_runs(keys, raw) + 2  # inputs and targets both hold the sentinels, and end
    if needs <= room:
      break
    raw -= 1
  return Fit(raw, spans=_likely_runs(keys, raw, 3))


def _runs_in_two_rows(keys: Any, S: int, T: int, mode: int) -> Fit:
  raw = S - 1
  likely_targets = likely(raw, keys.noise_density) + _likely_runs(keys, raw) + 1
  targets = T or min(likely_targets, S)
  return Fit(raw, targets, spans=_likely_runs(keys, raw, 3))


IID_DENOISING = Objective(
    name='iid_denoising',
    architectures=BOTH,
    keys=('noise_density',),
    sentinels=SENTINEL_PER_SPAN,
    by_chance=BOTH,
    example='def <extra_id_0>(self):',
    pair=Pair(
        make=_runs,
        sizes=_whole_on_both_sides,
        one_row=_runs_in_one_row,
        two_rows=_runs_in_two_rows,
        style='pair',
        ask=asking.SENTINEL,
    ))


# --- mass: corrupted tokens become the first sentinel; the targets are all of the text ----------------


def _masked(
    text: np.ndarray,
    random: np.random.Generator,
    setting: Setting,
) -> Sides:
  from t5like.objectives import functions
  return functions.masked(text, random, setting), text


MASS = Objective(
    name='mass',
    architectures=BOTH,
    keys=('noise_density',),
    sentinels=ONE_SENTINEL,
    pair=Pair(
        make=_masked,
        sizes=_whole_on_both_sides,
        one_row=_text_twice,
        two_rows=_text_is_on_both_sides,
        style='pair',
        ask=asking.CORRUPTED,
    ))


# --- bert_style: the same, one in ten becoming a random id instead ------------------------------------


def _bert_style(
    text: np.ndarray,
    random: np.random.Generator,
    setting: Setting,
) -> Sides:
  from t5like.objectives import functions
  return functions.bert_style(text, random, setting), text


BERT_STYLE = Objective(
    name='bert_style',
    architectures=BOTH,
    keys=('noise_density',),
    sentinels=ONE_SENTINEL,
    pair=Pair(
        make=_bert_style,
        sizes=_whole_on_both_sides,
        one_row=_text_twice,
        two_rows=_text_is_on_both_sides,
        style='pair',
        ask=asking.CORRUPTED,
    ))


# --- deshuffling: the inputs are in random order; the targets are the text ----------------------------


def _shuffled(
    text: np.ndarray,
    random: np.random.Generator,
    setting: Setting,
) -> Sides:
  return random.permutation(text), text


DESHUFFLING = Objective(
    name='deshuffling',
    architectures=BOTH,
    keys=(),
    sentinels=NO_SENTINELS,
    pair=Pair(
        make=_shuffled,
        sizes=_whole_on_both_sides,
        one_row=_text_twice,
        two_rows=_text_is_on_both_sides,
        style='pair',
        ask=asking.CannotBeAsked('is given the answer in another order'),
    ))


# --- drop: tokens that are each left out by themselves are the targets --------------------------------


def _dropped(
    text: np.ndarray,
    random: np.random.Generator,
    setting: Setting,
) -> Sides:
  from t5like.objectives import functions
  gone = functions.noise(text, random, setting.keys.noise_density)
  return text[~gone], text[gone]


def _most_dropped(keys: Any, S: int, T: int, mode: int) -> Fit:
  raw = S - 1
  likely_targets = likely(raw, keys.noise_density) + 1
  return Fit(raw, T or min(likely_targets, S))


DROP = Objective(
    name='drop',
    architectures=BOTH,
    keys=('noise_density',),
    sentinels=NO_SENTINELS,
    by_chance=BOTH,
    pair=Pair(
        make=_dropped,
        sizes=_whole_on_both_sides,
        one_row=_text_and_two_ends,
        two_rows=_most_dropped,
        style='pair',
        ask=asking.INPUTS,
    ))


# --- lm: no inputs; the targets are the text ------------------------------------------------------------


def _no_inputs(
    text: np.ndarray,
    random: np.random.Generator,
    setting: Setting,
) -> Sides:
  return text[:0], text


def _an_end_and_the_text(keys: Any, sizes: np.ndarray) -> Sides:
  return 0 * sizes + 1, sizes + 1


LM = Objective(
    name='lm',
    architectures=BOTH,
    keys=(),
    sentinels=NO_SENTINELS,
    pair=Pair(
        make=_no_inputs,
        sizes=_an_end_and_the_text,
        one_row=_text_and_two_ends,
        two_rows=_text_is_the_targets,
        style='pair',
        ask=asking.TARGETS_ALONE,
    ))


# --- seq2seq: the targets of data.inputs and data.targets ----------------------------------------------

SEQ2SEQ = Objective(
    name='seq2seq',
    architectures=BOTH,
    keys=(),
    sentinels=NO_SENTINELS,
    pair=Pair(
        given=True,
        one_row=_text_and_two_ends,
        two_rows=_text_is_the_targets,
        style='pair',
        ask=asking.INPUTS,
    ))
