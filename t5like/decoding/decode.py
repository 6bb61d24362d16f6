"""Text from models: the meaning of prompts to each kind of model, and the way from text to text.

Prompts become rows in `prompt_rows.py`. Tokens are made in `sampling.py` (greedily or randomly) and `beam.py`; models
that see both sides fill in masks (`masks.py`).
"""
import dataclasses
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np

from t5like.config_type import Config
from t5like.decoding import beam, masks, prompt_rows, sampling
from t5like.decoding.prompt_rows import Batch, Ids, PromptError
from t5like.errors import ConfigError
from t5like.model.transformer import Model
from t5like.objectives import table
from t5like.objectives.prompts import STYLES
from t5like.sharding import place
from t5like.vocabulary.kinds import Vocabulary

PIECE = 16  # tokens between two looks at the text that is being made
MOST_BEAMS = 1000
MOST_TOKENS = 2 ** 31 - 1
MOST_ALPHA = 5  # above, penalties of long answers exceed fp32
LARGEST = sys.float_info.max


@dataclasses.dataclass(frozen=True)
class Bounds:
  """The values that an argument takes, and the same in words; `above`: the least itself is refused."""
  least: float
  most: float
  words: str
  above: bool = False

  def fit(self, value: float) -> bool:
    """Whether a value is within them; NaN is not."""
    if self.above and value == self.least:
      return False
    return self.least <= value <= self.most


BOUNDS = dict(  # of arguments of `stream`
    tokens=Bounds(1, MOST_TOKENS, f'from 1 to {MOST_TOKENS}'),
    temperature=Bounds(0, LARGEST, 'a finite number, at least 0'),
    top_k=Bounds(0, LARGEST, 'at least 1, or 0 for all tokens'),
    top_p=Bounds(0, 1, 'above 0 and at most 1', above=True),
    seed=Bounds(0, 2 ** 32 - 1, 'from 0 to 4294967295'),
    beams=Bounds(1, MOST_BEAMS, f'from 1 to {MOST_BEAMS}'),
    alpha=Bounds(0, MOST_ALPHA, f'from 0 to {MOST_ALPHA}'))


def check_numbers(**values: float) -> None:
  """ConfigError, naming the argument, for arguments of `stream` that are out of their bounds."""
  for name, value in values.items():
    if not BOUNDS[name].fit(value):
      raise ConfigError(f'{name}={value} must be {BOUNDS[name].words}.')


def style_of(config: Config) -> str:
  """How a model of a config takes prompts: a key of `prompts.STYLES`."""
  return table.of(config).style(config)


def generate(
    model: Model,
    params: Any,
    vocabulary: Vocabulary,
    prompts: Sequence[str | Ids],
    **options: Any,
) -> list[str]:
  """The texts that `stream` ends with; its arguments."""
  *_, texts = stream(model, params, vocabulary, prompts, **options)
  return texts


def stream(model: Model, params: Any, vocabulary: Vocabulary, prompts: Sequence[str | Ids], *, style: str, context: int,
           targets: int = 0, tokens: int = 128, temperature: float = 0.8, top_k: int = 40, top_p: float = 1.0,
           seed: int = 0, seeds: Sequence[int] | None = None, beams: int = 1,
           alpha: float = 0.6) -> Iterator[list[str]]:
  """Continues or answers each prompt, up to an end of document.

  Works on the mesh in force, whose axis context is 1.

  Args:
    model: a `t5like.model.transformer` model.
    params: nested dict of arrays.
    vocabulary: of the model.
    prompts: texts, or lists of ids; any number.
    style: a key of `prompts.STYLES`, by the objective that the model was trained on.
    context: the length that the model was trained on. An encoder reads at most this many tokens; documents and streams
      that grow beyond it continue from its last half.
    targets: the longest answer of an encoder-decoder.
    tokens: of each answer, at most.
    temperature: see `sampling.Options`; sampling does not apply where masks are filled in.
    top_k: see `sampling.Options`.
    top_p: see `sampling.Options`.
    seed: of the batch.
    seeds: one for each prompt; an answer depends on these two alone, not on the other prompts.
    beams: above 1, beam search, which does not sample and stops at `context`.
    alpha: length penalty of beam search, see beam.py.

  Yields:
    All texts so far, one for each prompt, every few tokens.

  Raises:
    ConfigError: for numbers out of their bounds.
    PromptError: for prompts that are too long or that the model cannot read.
  """
  check_numbers(tokens=tokens, temperature=temperature, top_k=top_k, top_p=top_p, seed=seed, beams=beams, alpha=alpha)
  if not prompts:
    yield []
    return
  way = STYLES[style]
  if way.fills:
    yield masks.filled(model, params, vocabulary, prompts, way, context)
    return
  ids_of_prompts = prompt_rows.prompt_ids(vocabulary, prompts, way)
  batch = prompt_rows.batch_of(vocabulary, ids_of_prompts, way, context, targets)
  if not way.slides or beams > 1:
    tokens = min(tokens, prompt_rows.room_of(batch))
  options = _sampling_options(model, vocabulary, temperature, top_k, top_p)
  ends = [_ends(vocabulary, ids) for ids in ids_of_prompts]
  if beams > 1:
    answers = _searched(model, params, options, batch, tokens, beams, alpha)
    yield _texts(vocabulary, answers, ends)
    return
  key = jax.random.key(seed)
  seeds_B = _seeds_of_rows(batch, seeds)
  for answers in _sampled(model, params, options, batch, tokens, key, seeds_B):
    yield _texts(vocabulary, answers, ends)


def _seeds_of_rows(batch: Batch, seeds: Sequence[int] | None) -> np.ndarray:
  """int32 [B] of the seeds of prompts; by default their numbers."""
  if seeds is None:
    seeds = range(len(batch.ids))
  seeds_of_prompts = np.asarray(seeds, np.int32)
  # Rows beyond the prompts have seeds of others, which do not matter.
  return np.resize(seeds_of_prompts, batch.rows)


def check_prompts(
    vocabulary: Vocabulary,
    prompts: Sequence[str | Ids],
    style: str,
    context: int,
) -> None:
  """PromptError or ConfigError for prompts that `stream` would refuse, as far as a vocabulary shows it; see there."""
  way = STYLES[style]
  if way.fills:
    room = context - 2 * way.framed
    for prompt in prompts:
      ids_of_prompt = prompt_rows.ids_of(vocabulary.encode_marked, prompt)
      if vocabulary.mask_id not in ids_of_prompt[:room]:
        raise PromptError(f'this model fills in masks, and the first {room} tokens of the prompt {prompt!r} '
                          'have no <mask>.')
    return
  ids = prompt_rows.prompt_ids(vocabulary, prompts, way)
  longest = max(map(len, ids), default=0)
  if way.sees_itself and longest >= context:
    raise PromptError(f'a prompt of {longest} tokens leaves no room for an answer in the {context} that this model is '
                      'trained on: give a shorter one.')


# --- Answers --------------------------------------------------------------------------------------


def banned(vocab_size: int, vocabulary: Vocabulary) -> tuple[int, ...]:
  """Ids that are never generated: padding and unknown, or those an imported model names; all beyond the vocabulary."""
  suppressed = [i for i in vocabulary.suppressed if i < vocab_size]
  beyond = range(vocabulary.size, vocab_size)
  return tuple(sorted({*suppressed, *beyond}))


def _sampling_options(
    model: Model,
    vocabulary: Vocabulary,
    temperature: float,
    top_k: int,
    top_p: float,
) -> sampling.Options:
  stops = vocabulary.stop_ids
  eos_id = -1
  if stops:
    eos_id = stops[0]
  return sampling.Options(
      temperature=temperature,
      top_k=top_k,
      top_p=top_p,
      eos_id=eos_id,
      banned=banned(model.config.vocab_size, vocabulary),
      stops=stops[1:],
  )


def _sampled(
    model: Model,
    params: Any,
    options: sampling.Options,
    batch: Batch,
    tokens: int,
    key: jax.Array,
    seeds_B: np.ndarray,
) -> Iterator[list[Ids]]:
  """Yields the ids generated so far, a list for each prompt, every few tokens."""
  answers: list[Ids] = [[] for _ in batch.ids]
  seeds = place(prompt_rows.mesh_in_force(), seeds_B)
  slots = 0
  while len(answers[0]) < tokens:
    before = len(answers[0])
    texts = _texts_so_far(batch, answers)
    longest = max(map(len, texts))
    new = min(tokens - before, batch.context - longest)
    ended = _have_ended(answers, options)
    prompt = batch.place(texts)
    _, P = prompt['inputs'].shape
    slots = max(slots, P + new)  # one size of caches, so that nothing is compiled again where texts slide
    state = sampling.start(model, params, prompt, slots - P)
    said = 0
    while said < new:
      n = min(PIECE, new - said)
      piece_BN, state = sampling.more(
          model,
          options,
          PIECE,
          params,
          state,
          key,
          seeds,
          before,
          n,
      )
      new_ids = np.asarray(piece_BN)[:, :n].tolist()
      _extend(answers, new_ids, ended, options.eos_id)
      said += n
      yield answers
      if all(_have_ended(answers, options)):
        return


def _searched(
    model: Model,
    params: Any,
    options: sampling.Options,
    batch: Batch,
    tokens: int,
    beams: int,
    alpha: float,
) -> list[Ids]:
  """The ids of the best answer to each prompt."""
  prompt = batch.place(batch.ids)
  answers_BKN, _ = beam.search(
      model,
      params,
      prompt,
      tokens,
      beams,
      alpha,
      options.eos_id,
      options.banned,
      options.stops,
  )
  rows = len(batch.ids)
  best_BN = np.asarray(answers_BKN)[:rows, 0]
  return best_BN.tolist()


def _texts_so_far(batch: Batch, answers: list[Ids]) -> list[Ids]:
  """Prompts with their answers; the last half of the context where they have grown beyond it."""
  texts = [prompt + answer for prompt, answer in zip(batch.ids, answers)]
  longest = max(map(len, texts))
  if not batch.way.slides or longest < batch.context:
    return texts
  half = batch.context // 2
  return [batch.begins + text[-half:] for text in texts]


def _have_ended(answers: list[Ids], options: sampling.Options) -> list[bool]:
  """Whether each of the answers has ended."""
  stops = {options.eos_id, *options.stops}
  return [not stops.isdisjoint(answer) for answer in answers]


def _extend(
    answers: list[Ids],
    rows: list[Ids],
    ended: list[bool],
    eos_id: int,
) -> None:
  """Adds new tokens to answers; eos_id to those that had ended before."""
  for answer, row, has_ended in zip(answers, rows, ended):
    if has_ended:
      answer.extend([eos_id] * len(row))
    else:
      answer.extend(row)


def _ends(vocabulary: Vocabulary, prompt: Ids) -> set[int]:
  """Ids that end the answer to a prompt.

  Among them are the sentinels that come after those of the prompt: they end an answer that restores its spans.
  """
  ends = {*vocabulary.stop_ids, -1}
  numbers = range(vocabulary.num_sentinels)
  sentinels = list(map(vocabulary.sentinel, numbers))
  while sentinels and sentinels[-1] not in prompt:
    ends.add(sentinels.pop())
  if not sentinels:  # a prompt without spans
    return {*vocabulary.stop_ids, -1}
  return ends


def _texts(
    vocabulary: Vocabulary,
    answers: list[Ids],
    ends: list[set[int]],
) -> list[str]:
  """The texts of answers, each up to the first of its ends; unknown tokens are left out, as special ones are."""
  texts = []
  for answer, ends_of_answer in zip(answers, ends):
    ids = []
    for i in answer:
      if i in ends_of_answer:
        break
      if i != vocabulary.unk_id:
        ids.append(i)
    texts.append(vocabulary.decode(ids))
  return texts
