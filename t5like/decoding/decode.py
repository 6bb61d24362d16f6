"""Text from models: what prompts are to each kind of model, and the way from text to text.

Tokens are made in `sampling.py` (greedily or by chance) and `beam.py`; models that see both sides fill in masks.
"""
import functools
import math

import jax
import numpy as np

from t5like.decoding import beam, sampling
from t5like.errors import ConfigError
from t5like.objectives import table
from t5like.objectives.prompts import STYLES
from t5like.sharding import batch_shards, place

PIECE = 16  # tokens between two looks at the text that is being made
MOST_BEAMS = 1000
# What `stream` takes: {argument: (test, in words)}.
BOUNDS = dict(
    tokens=(lambda n: 1 <= n < 2 ** 31, 'at least 1'),
    temperature=(lambda x: 0 <= x < math.inf, 'a finite number, at least 0'),
    top_k=(lambda n: n >= 0, 'at least 1, or 0 for all tokens'),
    top_p=(lambda x: 0 < x <= 1, 'above 0 and at most 1'),
    seed=(lambda n: 0 <= n < 2 ** 32, 'from 0 to 4294967295'),
    beams=(lambda n: 1 <= n <= MOST_BEAMS, f'from 1 to {MOST_BEAMS}'),
    alpha=(lambda x: 0 <= x < math.inf, 'a finite number, at least 0'))


class PromptError(ValueError):
  """A prompt that the model cannot take."""


def check_numbers(**values):
  """Refuses arguments of `stream` that mean nothing. ConfigError, naming the argument."""
  for name, value in values.items():
    fits, words = BOUNDS[name]
    if not fits(value):
      raise ConfigError(f'{name}={value} must be {words}.')


def _padded(contexts, left, rows):
  """inputs, positions and segments, [rows, P] int32; texts all end in the last column, or begin in the first.

  Rows beyond the texts repeat the last of them.
  """
  P = -(-max(map(len, contexts)) // 16) * 16  # few distinct shapes, so few compilations
  prompt = {name: np.zeros((rows, P), np.int32) for name in ('inputs', 'positions', 'segments')}
  for row in range(rows):
    ids = contexts[min(row, len(contexts) - 1)]
    at = slice(P - len(ids), P) if left else slice(len(ids))
    prompt['inputs'][row, at] = ids
    prompt['positions'][row, at] = np.arange(len(ids))
    prompt['segments'][row, at] = 1
  return prompt


def style_of(config):
  """How a model of a config takes prompts: see `stream`."""
  return table.of(config).style(config)


def generate(model, params, vocabulary, prompts, **how):
  """The texts that `stream` ends with; its arguments."""
  *_, texts = stream(model, params, vocabulary, prompts, **how)
  return texts


def stream(model, params, vocabulary, prompts, *, style, context, targets=0, tokens=128, temperature=0.8,
           top_k=40, top_p=1.0, seed=0, seeds=None, beams=1, alpha=0.6):
  """Continues or answers each prompt by at most `tokens` tokens, up to an end of document.

  Yields lists of strings, one for each prompt: all the text so far, every few tokens. Prompts are texts, or lists
  of ids. Works on the mesh in force, whose axis context is 1; any number of prompts.

  style: what the model was trained on, which is how it finds prompts: a key of `prompts.STYLES`. An encoder reads at
  most `context` tokens, and `targets` is the longest answer; sampling does not apply where masks are filled in.
  `context` is the length the model was trained on; documents and streams that grow beyond it go on from
  its last half. beams above 1: beam search with the length penalty `alpha` (see beam.py), which does not sample
  and stops at `context`. `seeds`: an int for each prompt, beside `seed`; what a prompt gives depends on these two
  alone, not on the others. A stream needs a prompt or an end of document to follow: PromptError if the vocabulary
  has none.
  """
  check_numbers(tokens=tokens, temperature=temperature, top_k=top_k, top_p=top_p, seed=seed, beams=beams, alpha=alpha)
  if not prompts:
    yield []
    return
  way = STYLES[style]
  if way.fills:
    rows = [_ids(vocabulary.encode_marked, prompt)[:context - 2 * way.framed] for prompt in prompts]
    yield [vocabulary.decode(row) for row in fill(model, params, vocabulary, rows, way.framed, prompts)]
    return
  ids = asked_ids = _prompt_ids(vocabulary, prompts, way)
  rows = -(-len(prompts) // batch_shards(_mesh())) * batch_shards(_mesh())
  encoder = None
  if way.in_encoder:
    ids = [[*i[:context - 1], vocabulary.eos_id] for i in ids]
    encoder = place(_mesh(), _padded(ids, False, rows))
    ids, context = [[vocabulary.start_id] for _ in ids], targets + 1
  if not way.slides or beams > 1:
    room = context - max(map(len, ids))
    if room < 1:
      raise PromptError(f'a prompt of {max(map(len, ids))} tokens leaves no room for an answer in the {context} '
                       'that this model was trained on: give a shorter one.')
    tokens = min(tokens, room)
  stops = vocabulary.stop_ids
  how = sampling.How(temperature, top_k, top_p, stops[0] if stops else -1,
                     banned(model.config.vocab_size, vocabulary), stops[1:])
  ends = [{*stops, -1}.union(_later_sentinels(vocabulary, asked)) for asked in asked_ids]
  text = functools.partial(_answer, vocabulary)
  ask = functools.partial(_ask, style=way, encoder=encoder, rows=rows)
  if beams > 1:
    best, _ = beam.search(model, params, ask(ids), tokens, beams, alpha, how.eos_id, how.banned, how.stops)
    yield [text(out, end) for out, end in zip(np.asarray(best)[:len(prompts), 0].tolist(), ends)]
    return
  seeds = np.resize(np.asarray(range(len(prompts)) if seeds is None else seeds, np.int32), rows)
  begins = [vocabulary.bos_id] if way.begins else []
  for out in _sampled(model, params, how, ids, ask, tokens, context, jax.random.key(seed), seeds, way.slides, begins):
    yield [text(*pair) for pair in zip(out, ends)]


def _answer(vocabulary, ids, ends):
  """The text of an answer, up to the first of its ends; unknown tokens are passed over, as special ones are."""
  end = next((n for n, i in enumerate(ids) if i in ends), len(ids))
  return vocabulary.decode([i for i in ids[:end] if i != vocabulary.unk_id])


def _sampled(model, params, how, ids, ask, tokens, context, key, seeds, slides, begins):
  """Yields the ids generated so far, a list for each prompt, every few tokens.

  slides: whether texts may grow beyond the context; what is left of them begins with `begins` then.
  """
  out, stops = [[] for _ in ids], {how.eos_id, *how.stops}
  seeds = place(_mesh(), seeds)
  while len(out[0]) < tokens:
    before, texts = len(out[0]), [i + o for i, o in zip(ids, out)]
    if slides and max(map(len, texts)) >= context:
      texts = [begins + text[-(context // 2):] for text in texts]
    new = min(tokens - before, context - max(map(len, texts)))
    ended = [not stops.isdisjoint(o) for o in out]
    state, said = sampling.start(model, params, ask(texts), new), 0
    while said < new:
      n = min(PIECE, new - said)
      piece, state = sampling.more(model, how, n, params, state, key, seeds, before)
      for o, row, end in zip(out, np.asarray(piece).tolist(), ended):
        o.extend([how.eos_id] * n if end else row)
      said += n
      yield out
      if all(not stops.isdisjoint(o) for o in out):
        return


def _mesh():
  return jax.sharding.get_mesh()


def _ask(texts, style, encoder, rows):
  """A batch of prompts, on the devices."""
  prompt = _padded(texts, True, rows)
  if style.sees_itself:
    prompt['prefix'] = prompt['segments'] > 0
  return place(_mesh(), prompt) | (dict(encoder=encoder) if encoder else {})


def banned(vocab_size, vocabulary):
  """Ids that are never generated: padding and unknown, or those an imported model names; all beyond the vocabulary."""
  never = {i for i in vocabulary.suppressed if i < vocab_size}
  return tuple(sorted(never.union(range(vocabulary.size, vocab_size))))


def _ids(encode, prompt):
  if not isinstance(prompt, str):
    return list(prompt)
  try:
    prompt.encode()
  except UnicodeEncodeError as error:
    raise PromptError(f'the prompt {prompt!r} holds {prompt[error.start]!r}, half of a surrogate pair, which is no '
                      'character.') from error
  return list(encode(prompt))


def _later_sentinels(vocabulary, ids):
  """Sentinels that come after those of a prompt: where an answer that restores its spans is over."""
  sentinels = [vocabulary.sentinel(k) for k in range(vocabulary.num_sentinels)]
  last = max((k for k, sentinel in enumerate(sentinels) if sentinel in ids), default=len(sentinels))
  return sentinels[last + 1:]


def _prompt_ids(vocabulary, prompts, style):
  encode = vocabulary.encode_marked if style.marked else vocabulary.encode
  ids = [_ids(encode, prompt) for prompt in prompts]
  if style.slides:
    # Some tokenizers end texts too, and so prompts.
    ids = [i + list(vocabulary.after) for i in ids]
  if style.slides and not style.begins:
    if not all(ids) and vocabulary.begin_id is None:
      raise PromptError('this model knows no beginning of documents: give a prompt.')
    return [i or [vocabulary.begin_id] for i in ids]
  if style.in_encoder:
    return ids
  end = [vocabulary.eos_id] if style.ends else []
  return [[vocabulary.bos_id, *i, *end] for i in ids]


def check_prompts(vocabulary, prompts, style, context):
  """PromptError or ConfigError for prompts that `stream` would refuse, as far as a vocabulary shows it; see there."""
  way = STYLES[style]
  if way.fills:
    room = context - 2 * way.framed
    for prompt in prompts:
      if vocabulary.mask_id not in _ids(vocabulary.encode_marked, prompt)[:room]:
        raise PromptError(f'this model fills in what is masked, and the first {room} tokens of the prompt {prompt!r} '
                          'have no <mask>.')
    return
  ids = _prompt_ids(vocabulary, prompts, way)
  longest = max(map(len, ids), default=0)
  if way.sees_itself and longest >= context:
    raise PromptError(f'a prompt of {longest} tokens leaves no room for an answer in the {context} that this model is '
                      'trained on: give a shorter one.')


def fill(model, params, vocabulary, rows, ends, prompts=None):
  """Lists of ids with each mask replaced by a token, the surest first, seen by those that follow it.

  `ends`: rows stand between <cls> and <sep>; `prompts`: what to call them in errors.
  """
  for i, row in enumerate(rows):
    if vocabulary.mask_id not in row:
      raise PromptError(f'this model fills in what is masked, and the prompt {(prompts or rows)[i]!r} has no <mask>.')
  if ends:
    rows = [[vocabulary.cls_id, *row, vocabulary.sep_id] for row in rows]
  rows, count = [list(row) for row in rows], -(-len(rows) // batch_shards(_mesh())) * batch_shards(_mesh())
  banned = np.zeros(model.config.vocab_size, bool)
  banned[vocabulary.size:] = True
  banned[vocabulary.special_ids] = True
  while any(vocabulary.mask_id in row for row in rows):
    batch = place(_mesh(), _padded(rows, False, count))
    logits_BTV = np.where(banned, -np.inf, np.asarray(_logits(model, params, batch)))
    for row, logits_TV in zip(rows, logits_BTV):
      masks = [t for t, i in enumerate(row) if i == vocabulary.mask_id]
      if masks:
        p_MV = np.exp(logits_TV[masks] - logits_TV[masks].max(-1, keepdims=True))
        surest = int((p_MV.max(-1) / p_MV.sum(-1)).argmax())
        row[masks[surest]] = int(p_MV[surest].argmax())
  return [row[1:-1] if ends else row for row in rows]


@functools.partial(jax.jit, static_argnums=0)
def _logits(model, params, batch):
  return jax.sharding.reshard(model.apply(params, batch), jax.sharding.PartitionSpec())
