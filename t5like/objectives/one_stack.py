"""Objectives of one text in one stack: causal, masked_lm."""
from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from t5like import choices
from t5like.config_type import Section
from t5like.objectives.spans import likely
from t5like.objectives.spec import NO_SENTINELS, Lengths, Objective, OneStack, Role, Setting

if TYPE_CHECKING:  # configs are checked without numpy
  import numpy as np

# --- causal: each next token ------------------------------------------------------------------------


def _causal_lengths(keys: Any, data: Section) -> Lengths:
  T = data.seq_len
  if data.document_mask:
    return Lengths(T, 0, T)
  return Lengths(T + 1, 0, T)


def _causal_rows(
    tokens_BT: np.ndarray,
    random: Sequence[np.random.Generator],
    setting: Setting,
) -> dict[str, np.ndarray]:
  from t5like.objectives import functions
  ids = setting.ids
  return functions.causal(
      tokens_BT,
      document_mask=setting.document_mask,
      eos_id=ids.eos,
      bos_id=ids.begin,
  )


def _causal_style(keys: Any, data: Section) -> str:
  return 'document' if data.document_mask else 'stream'


def _has_documents(data: Section) -> bool:
  return data.document_mask


def _last_token_is_read_again(data: Section) -> int:
  """A window of a stream predicts all its tokens but the first, which the window before has predicted."""
  return int(not data.document_mask)


CAUSAL = Objective(
    name='causal',
    architectures=('decoder',),
    keys=(),
    sentinels=NO_SENTINELS,
    predicts_each_token=True,
    stack=OneStack(
        architecture='decoder',
        lengths=_causal_lengths,
        rows=_causal_rows,
        style=_causal_style,
        styles=('document', 'stream'),
        begins=_has_documents,
        overlap=_last_token_is_read_again,
        streams=True,
    ))


# --- masked_lm: tokens that are masked (BERT, RoBERTa) ----------------------------------------------


def _most_of_bert(n: int, density: float) -> int:
  return max(1, round(n * density))


def _most_of_roberta(n: int, density: float) -> int:
  return int(n * density) + 1


# (tokens of a row, density) -> the most that are masked
MOST = choices.implement('objective.masking', choices.MASKINGS, dict(
    bert=_most_of_bert,
    roberta=_most_of_roberta,
    bernoulli=likely,
))


def _masked_lengths(keys: Any, data: Section) -> Lengths:
  T = data.seq_len
  most = MOST[keys.masking](T, keys.noise_density)
  predictions = min(keys.predictions or most, most)
  return Lengths(T - 2 * keys.cls_sep, 0, T, predictions)


def _masked_rows(
    tokens_BT: np.ndarray,
    random: Sequence[np.random.Generator],
    setting: Setting,
) -> dict[str, np.ndarray]:
  from t5like.objectives import masking
  keys = setting.keys
  ids = setting.ids
  options = masking.Options(
      density=keys.noise_density,
      masking=keys.masking,
      whole_word=keys.whole_word,
      predictions=setting.lengths.predictions,
      cls_sep=keys.cls_sep,
      document_mask=setting.document_mask,
      eos_id=ids.eos,
      mask_id=ids.token('mask'),
      cls_id=ids.cls,
      vocab_size=ids.vocab_size,
      special_ids=ids.special,
      begins_word=ids.begins_word if keys.whole_word else None,
      sep_id=ids.sep,
  )
  return masking.masked_lm(tokens_BT, random, options)


def _masked_style(keys: Any, data: Section) -> str:
  return 'fill_row' if keys.cls_sep else 'fill'


def _rows_have_no_beginning(data: Section) -> bool:
  return False


MASK = Role('mask', 'that stands for what is masked', 'the mask', 1)
CLS = Role('cls', 'that rows begin with (objective.cls_sep=True)', '<cls>', 2)
SEP = Role('sep', 'that rows end with (objective.cls_sep=True)')


def _masked_roles(keys: Any) -> tuple[Role, ...]:
  if keys.cls_sep:
    return MASK, CLS, SEP
  return (MASK,)


MASKED_LM = Objective(
    name='masked_lm',
    architectures=('encoder',),
    keys=('noise_density', 'masking', 'whole_word', 'cls_sep', 'predictions'),
    sentinels=NO_SENTINELS,
    roles=_masked_roles,
    example='def <mask>(self):',
    stack=OneStack(
        architecture='encoder',
        lengths=_masked_lengths,
        rows=_masked_rows,
        style=_masked_style,
        styles=('fill', 'fill_row'),
        begins=_rows_have_no_beginning,
    ))
