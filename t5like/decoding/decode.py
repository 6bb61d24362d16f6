"""Text from models: the meaning of prompts to each kind of model, and the way from text to text.

Tokens are made in `sampling.py` (greedily or randomly) and `beam.py`; models that see both sides fill in masks.
"""
import dataclasses
import functools
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from t5like.config_type import Config
from t5like.decoding import beam, sampling
from t5like.errors import ConfigError
from t5like.model.transformer import Model
from t5like.objectives import table
from t5like.objectives.prompts import STYLES, Style
from t5like.sharding import batch_shards, place
from t5like.vocabulary.kinds import Vocabulary

PIECE = 16  # tokens between two looks at the text that is being made
ROUND = 16  # lengths of prompts are multiples of it: few distinct shapes, so few compilations
MOST_BEAMS = 1000
MOST_TOKENS = 2 ** 31 - 1
MOST_ALPHA = 5  # above, penalties of long answers exceed fp32
LARGEST = sys.float_info.max
Ids = list[int]


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


class PromptError(ValueError):
  """A prompt that the model cannot take."""


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
    yield _filled(model, params, vocabulary, prompts, way, context)
    return
  prompt_ids = _prompt_ids(vocabulary, prompts, way)
  batch = _batch_of(vocabulary, prompt_ids, way, context, targets)
  if not way.slides or beams > 1:
    tokens = min(tokens, _room(batch))
  options = _sampling_options(model, vocabulary, temperature, top_k, top_p)
  ends = [_ends(vocabulary, ids) for ids in prompt_ids]
  if beams > 1:
    answers = _searched(model, params, options, batch, tokens, beams, alpha)
    yield _texts(vocabulary, answers, ends)
    return
  if seeds is None:
    seeds = range(len(prompts))
  # Rows beyond the prompts have seeds of others, which do not matter.
  seeds_B = np.resize(np.asarray(seeds, np.int32), batch.rows)
  for answers in _sampled(model, params, options, batch, tokens, jax.random.key(seed), seeds_B):
    yield _texts(vocabulary, answers, ends)


def check_prompts(vocabulary: Vocabulary, prompts: Sequence[str | Ids], style: str, context: int) -> None:
  """PromptError or ConfigError for prompts that `stream` would refuse, as far as a vocabulary shows it; see there."""
  way = STYLES[style]
  if way.fills:
    room = context - 2 * way.framed
    for prompt in prompts:
      if vocabulary.mask_id not in _ids(vocabulary.encode_marked, prompt)[:room]:
        raise PromptError(f'this model fills in masks, and the first {room} tokens of the prompt {prompt!r} '
                          'have no <mask>.')
    return
  ids = _prompt_ids(vocabulary, prompts, way)
  longest = max(map(len, ids), default=0)
  if way.sees_itself and longest >= context:
    raise PromptError(f'a prompt of {longest} tokens leaves no room for an answer in the {context} that this model is '
                      'trained on: give a shorter one.')


# --- Prompts --------------------------------------------------------------------------------------


def _ids(encode: Callable[[str], np.ndarray], prompt: str | Ids) -> Ids:
  if not isinstance(prompt, str):
    return list(prompt)
  try:
    prompt.encode()
  except UnicodeEncodeError as error:
    raise PromptError(f'the prompt {prompt!r} holds {prompt[error.start]!r}, half of a surrogate pair, which is no '
                      'character.') from error
  return list(encode(prompt))


def _prompt_ids(vocabulary: Vocabulary, prompts: Sequence[str | Ids], way: Style) -> list[Ids]:
  """Ids of prompts, with the tokens that stand around them in a decoder."""
  encode = vocabulary.encode_marked if way.marked else vocabulary.encode
  rows = []
  for prompt in prompts:
    ids = _ids(encode, prompt)
    if way.slides:
      ids += vocabulary.after  # some tokenizers end texts too, and so prompts
    rows.append(_framed(vocabulary, ids, way))
  return rows


def _framed(vocabulary: Vocabulary, ids: Ids, way: Style) -> Ids:
  if way.slides and not way.begins:
    return _not_empty(vocabulary, ids)
  if way.in_encoder:
    return ids
  framed = [vocabulary.bos_id, *ids]
  if way.ends:
    framed.append(vocabulary.eos_id)
  return framed


def _not_empty(vocabulary: Vocabulary, ids: Ids) -> Ids:
  """The beginning of a document in place of no ids."""
  if ids:
    return ids
  if vocabulary.begin_id is None:
    raise PromptError('this model knows no beginning of documents: give a prompt.')
  return [vocabulary.begin_id]


@dataclasses.dataclass(frozen=True)
class _Batch:
  """Prompts of a decoder.

  Attributes:
    ids: of each prompt in the decoder.
    way: their style.
    context: the longest text in the decoder.
    rows: of the batch on the devices, a multiple of the mesh's pieces.
    begins: tokens that a text begins with when it slides.
    encoder: the batch of the encoder, on the devices.
  """
  ids: list[Ids]
  way: Style
  context: int
  rows: int
  begins: Ids
  encoder: dict[str, jax.Array] | None = None

  def place(self, texts: list[Ids]) -> dict[str, Any]:
    """The batch of these texts, on the devices."""
    prompt = _padded(texts, True, self.rows)
    if self.way.sees_itself:
      prompt['prefix'] = prompt['segments'] > 0
    placed = place(_mesh(), prompt)
    if self.encoder is not None:
      placed['encoder'] = self.encoder
    return placed


def _batch_of(vocabulary: Vocabulary, prompt_ids: list[Ids], way: Style, context: int, targets: int) -> _Batch:
  rows = _rows(len(prompt_ids))
  if not way.in_encoder:
    begins: Ids = []
    if way.begins and vocabulary.bos_id is not None:
      begins = [vocabulary.bos_id]
    return _Batch(prompt_ids, way, context, rows, begins)
  inputs = []
  starts = []
  for ids in prompt_ids:
    inputs.append([*ids[:context - 1], vocabulary.eos_id])
    starts.append([vocabulary.start_id])
  encoder = place(_mesh(), _padded(inputs, False, rows))
  return _Batch(starts, way, targets + 1, rows, [], encoder)


def _rows(count: int) -> int:
  """The next multiple of the mesh's pieces."""
  pieces = batch_shards(_mesh())
  return -(-count // pieces) * pieces


def _room(batch: _Batch) -> int:
  """How many tokens an answer may have. PromptError if there is no room."""
  longest = max(map(len, batch.ids))
  room = batch.context - longest
  if room < 1:
    raise PromptError(f'a prompt of {longest} tokens leaves no room for an answer in the {batch.context} that this '
                      'model was trained on: give a shorter one.')
  return room


def _padded(texts: list[Ids], left: bool, rows: int) -> dict[str, np.ndarray]:
  """inputs, positions and segments, [rows, P] int32; texts all end in the last column, or begin in the first.

  Rows beyond the texts repeat the last of them.
  """
  longest = max(map(len, texts))
  P = -(-longest // ROUND) * ROUND
  prompt = {}
  for name in ('inputs', 'positions', 'segments'):
    prompt[name] = np.zeros((rows, P), np.int32)
  for row in range(rows):
    ids = texts[min(row, len(texts) - 1)]
    span = slice(P - len(ids), P) if left else slice(len(ids))
    prompt['inputs'][row, span] = ids
    prompt['positions'][row, span] = np.arange(len(ids))
    prompt['segments'][row, span] = 1
  return prompt


def _mesh() -> jax.sharding.Mesh:
  return jax.sharding.get_mesh()


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
  return sampling.Options(
      temperature=temperature,
      top_k=top_k,
      top_p=top_p,
      eos_id=stops[0] if stops else -1,
      banned=banned(model.config.vocab_size, vocabulary),
      stops=stops[1:],
  )


def _sampled(
    model: Model,
    params: Any,
    options: sampling.Options,
    batch: _Batch,
    tokens: int,
    key: jax.Array,
    seeds_B: np.ndarray,
) -> Iterator[list[Ids]]:
  """Yields the ids generated so far, a list for each prompt, every few tokens."""
  answers: list[Ids] = [[] for _ in batch.ids]
  seeds = place(_mesh(), seeds_B)
  while len(answers[0]) < tokens:
    before = len(answers[0])
    texts = _texts_so_far(batch, answers)
    longest = max(map(len, texts))
    new = min(tokens - before, batch.context - longest)
    ended = _have_ended(answers, options)
    state = sampling.start(model, params, batch.place(texts), new)
    said = 0
    while said < new:
      n = min(PIECE, new - said)
      piece_BN, state = sampling.more(model, options, n, params, state, key, seeds, before)
      _extend(answers, np.asarray(piece_BN).tolist(), ended, options.eos_id)
      said += n
      yield answers
      if all(_have_ended(answers, options)):
        return


def _searched(
    model: Model,
    params: Any,
    options: sampling.Options,
    batch: _Batch,
    tokens: int,
    beams: int,
    alpha: float,
) -> list[Ids]:
  """The ids of the best answer to each prompt."""
  prompt = batch.place(batch.ids)
  best_BKN, _ = beam.search(
      model, params, prompt, tokens, beams, alpha, options.eos_id, options.banned, options.stops)
  rows = len(batch.ids)
  return np.asarray(best_BKN)[:rows, 0].tolist()


def _texts_so_far(batch: _Batch, answers: list[Ids]) -> list[Ids]:
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


def _extend(answers: list[Ids], rows: list[Ids], ended: list[bool], eos_id: int) -> None:
  """Adds new tokens to answers; eos_id to those that had ended before."""
  for answer, row, has_ended in zip(answers, rows, ended):
    answer.extend([eos_id] * len(row) if has_ended else row)


def _ends(vocabulary: Vocabulary, prompt: Ids) -> set[int]:
  """Ids that end the answer to a prompt.

  Among them are the sentinels that come after those of the prompt: they end an answer that restores its spans.
  """
  ends = {*vocabulary.stop_ids, -1}
  sentinels = list(map(vocabulary.sentinel, range(vocabulary.num_sentinels)))
  while sentinels and sentinels[-1] not in prompt:
    ends.add(sentinels.pop())
  if not sentinels:  # a prompt without spans
    return {*vocabulary.stop_ids, -1}
  return ends


def _texts(vocabulary: Vocabulary, answers: list[Ids], ends: list[set[int]]) -> list[str]:
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


# --- Masks ----------------------------------------------------------------------------------------


def _filled(
    model: Model,
    params: Any,
    vocabulary: Vocabulary,
    prompts: Sequence[str | Ids],
    way: Style,
    context: int,
) -> list[str]:
  """Texts of prompts with their masks filled in."""
  room = context - 2 * way.framed
  rows = [_ids(vocabulary.encode_marked, prompt)[:room] for prompt in prompts]
  return [vocabulary.decode(row) for row in fill(model, params, vocabulary, rows, way.framed, prompts)]


def fill(
    model: Model,
    params: Any,
    vocabulary: Vocabulary,
    rows: Sequence[Ids],
    ends: bool,
    prompts: Sequence[Any] | None = None,
) -> list[Ids]:
  """Replaces masks by tokens, the surest first, which the following ones see.

  Args:
    model: an encoder.
    params: nested dict of arrays.
    vocabulary: of the model.
    rows: ids of texts with masks.
    ends: whether rows stand between <cls> and <sep>.
    prompts: the texts of rows, for errors.

  Raises:
    PromptError: for a row without masks.
  """
  for row, prompt in zip(rows, prompts or rows):
    if vocabulary.mask_id not in row:
      raise PromptError(f'this model fills in masks, and the prompt {prompt!r} has no <mask>.')
  texts = []
  for row in rows:
    text = list(row)
    if ends:
      text = [vocabulary.cls_id, *row, vocabulary.sep_id]
    texts.append(text)
  never_V = np.zeros(model.config.vocab_size, bool)
  never_V[vocabulary.size:] = True
  never_V[vocabulary.special_ids] = True
  while any(vocabulary.mask_id in text for text in texts):
    batch = place(_mesh(), _padded(texts, False, _rows(len(texts))))
    logits_BTV = np.where(never_V, -np.inf, np.asarray(_logits(model, params, batch)))
    for text, logits_TV in zip(texts, logits_BTV):
      _fill_surest(text, logits_TV, vocabulary.mask_id)
  if not ends:
    return texts
  return [text[1:-1] for text in texts]


def _fill_surest(text: Ids, logits_TV: np.ndarray, mask_id: int | None) -> None:
  """Replaces the mask whose token is the surest, if there is one."""
  masks = [t for t, i in enumerate(text) if i == mask_id]
  if not masks:
    return
  logits_MV = logits_TV[masks]
  p_MV = np.exp(logits_MV - logits_MV.max(-1, keepdims=True))
  surest = int((p_MV.max(-1) / p_MV.sum(-1)).argmax())
  text[masks[surest]] = int(p_MV[surest].argmax())


@functools.partial(jax.jit, static_argnums=0)
def _logits(model: Model, params: Any, batch: dict[str, jax.Array]) -> jax.Array:
  logits_BTV = model.apply(params, batch)
  return jax.sharding.reshard(logits_BTV, jax.sharding.PartitionSpec())
