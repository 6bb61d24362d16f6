"""Text from models: prompts in one pass, then one token at a time with a key-value cache; or masks filled in."""
import functools

import jax
import jax.numpy as jnp
import numpy as np

from t5like.data.objectives import BOS
from t5like.sharding import in_use, spread_rows


def filter_logits(logits_BV, top_k=0, top_p=1.0):
  """-inf outside the top_k likeliest tokens and the fewest that hold top_p of the probability.

  Nucleus sampling: Holtzman et al. 2019, arXiv 1904.09751. 0 and 1.0 switch the filters off. The
  likeliest token always stays.
  """
  V = logits_BV.shape[-1]
  if 0 < top_k < V:
    least_BK = jax.lax.top_k(logits_BV, top_k)[0]
    logits_BV = jnp.where(logits_BV < least_BK[:, -1:], -jnp.inf, logits_BV)
  if top_p < 1:
    sorted_BV = jnp.sort(logits_BV, axis=-1, descending=True)
    p_BV = jax.nn.softmax(sorted_BV, axis=-1)
    inside_BV = jnp.cumsum(p_BV, axis=-1) - p_BV < top_p  # probability of all likelier ones
    least_B1 = jnp.min(jnp.where(inside_BV, sorted_BV, jnp.inf), axis=-1, keepdims=True)
    logits_BV = jnp.where(logits_BV < least_B1, -jnp.inf, logits_BV)
  return logits_BV


def pick(logits_BV, key, temperature, top_k, top_p):
  """One token id per row, [B] int32; the likeliest one when temperature is 0."""
  if not temperature:
    return jnp.argmax(logits_BV, axis=-1).astype(jnp.int32)
  logits_BV = filter_logits(logits_BV / temperature, top_k, top_p)
  return jax.random.categorical(key, logits_BV, axis=-1).astype(jnp.int32)


@functools.partial(jax.jit, static_argnums=(0, 4, 5, 6, 7, 8, 9))
def _sample(model, params, prompt, key, new_tokens, temperature, top_k, top_p, eos_id, banned):
  """[B, new_tokens] ids after prompts that end in the same column (padding, segment 0, is on the left)."""
  B, P = prompt['inputs'].shape
  slots = P + new_tokens
  prompt = spread_rows(prompt)
  cache = model.cache(params, prompt, slots)
  prompt = {k: v for k, v in prompt.items() if k != 'encoder'}
  last_B1 = prompt['positions'][:, -1:]
  # Cache slots of tokens to come have later positions, so causality hides them until they are there.
  ahead = spread_rows(last_B1 + jnp.arange(1, new_tokens + 1, dtype=jnp.int32)[None, :])
  keys = dict(positions=jnp.concatenate([prompt['positions'], ahead], axis=1),
              segments=jnp.concatenate([prompt['segments'], spread_rows(jnp.ones_like(ahead))], axis=1))
  later = dict(segments=jnp.ones_like(last_B1))  # what holds for every new token
  if 'prefix' in prompt:
    keys['prefix'] = jnp.concatenate([prompt['prefix'], spread_rows(jnp.zeros_like(ahead, bool))], axis=1)
    later['prefix'] = jnp.zeros_like(last_B1, bool)

  def choose(logits_BV, key):
    logits_BV = jax.sharding.reshard(logits_BV, in_use('B_'))  # sorting needs a whole row
    if banned:
      out = np.zeros(logits_BV.shape[-1], bool)
      out[list(banned)] = True
      logits_BV = jnp.where(out[None, :], -jnp.inf, logits_BV)
    return pick(logits_BV, key, temperature, top_k, top_p)

  logits_BTV, cache = model.extend(params, prompt, keys, cache, 0)
  first_B = choose(logits_BTV[:, -1], jax.random.fold_in(key, 0))

  def one(carry, i):
    token_B, done_B, cache = carry
    done_B |= token_B == eos_id
    batch = dict(later, inputs=token_B[:, None], positions=last_B1 + i)
    logits_BTV, cache = model.extend(params, batch, keys, cache, P + i - 1)
    next_B = jnp.where(done_B, eos_id, choose(logits_BTV[:, 0], jax.random.fold_in(key, i)))
    return (next_B, done_B, cache), token_B
  done_B = spread_rows(jnp.zeros_like(first_B, bool))
  steps = jnp.arange(1, new_tokens + 1, dtype=jnp.int32)
  return jnp.moveaxis(jax.lax.scan(one, (first_B, done_B, cache), steps)[1], 0, 1)


def _padded(contexts, left):
  """inputs, positions and segments, [B, P] int32; rows all end in the last column, or begin in the first."""
  P = -(-max(map(len, contexts)) // 16) * 16  # few distinct shapes, so few compilations
  prompt = {name: np.zeros((len(contexts), P), np.int32) for name in ('inputs', 'positions', 'segments')}
  for row, ids in enumerate(contexts):
    at = slice(P - len(ids), P) if left else slice(len(ids))
    prompt['inputs'][row, at] = ids
    prompt['positions'][row, at] = np.arange(len(ids))
    prompt['segments'][row, at] = 1
  return prompt


def style_of(config):
  """How a model of a config takes prompts: see `generate`."""
  o, architecture = config.objective.name, config.model.name
  if architecture != 'decoder':
    fill = 'fill_row' if config.objective.cls_sep else 'fill'
    return dict(encoder=fill, encoder_decoder='encoder')[architecture]
  if o == 'causal':
    return 'document' if config.data.document_mask else 'stream'
  return 'prefix' if o == 'prefix_lm' else 'pair'


def generate(model, params, vocabulary, prompts, *, style, context, targets=0, tokens=128, temperature=0.8,
             top_k=40, top_p=1.0, seed=0):
  """Continues or answers each prompt by at most `tokens` tokens, up to an end of document; returns strings.

  style: what the model was trained on, which is how it finds prompts
    document  documents that begin with BOS; so do prompts       stream  text without beginnings
    prefix    as document, the prompt being a prefix             pair    inputs, their end, then targets
    encoder   inputs in an encoder, of at most `context` tokens; `targets` is the longest answer
    fill      text with <mask>, which comes back filled in (sampling does not apply)
    fill_row  likewise, between <cls> and the end-of-document token
  `context` is the length the model was trained on; documents and streams that grow beyond it go on from
  its last half. A stream needs a prompt or an end of document to follow: ValueError if the vocabulary
  has none.
  """
  if style.startswith('fill'):
    return _fill(model, params, vocabulary, prompts, context, ends=style == 'fill_row')
  ids = asked_ids = _prompt_ids(vocabulary, prompts, style)
  encoder = None
  if style == 'encoder':
    ids = [[*i[:context - 1], vocabulary.eos_id] for i in ids]
    encoder = jax.device_put(_padded(ids, left=False))
    ids, context = [[BOS] for _ in ids], targets + 1
  slides = style in ('document', 'stream')
  if not slides:
    room = context - max(map(len, ids))
    if room < 1:
      raise ValueError(f'a prompt of {max(map(len, ids))} tokens leaves no room for an answer in the {context} '
                       'that this model was trained on: give a shorter one.')
    tokens = min(tokens, room)
  banned = tuple(i for i in range(model.config.vocab_size)
                 if i >= vocabulary.size or i in (vocabulary.pad_id, vocabulary.unk_id))
  eos_id = -1 if vocabulary.eos_id is None else vocabulary.eos_id
  out = [[] for _ in prompts]
  while len(out[0]) < tokens:
    texts = [i + o for i, o in zip(ids, out)]
    if slides and max(map(len, texts)) >= context:
      texts = [([BOS] if style == 'document' else []) + t[-(context // 2):] for t in texts]
    new = min(tokens - len(out[0]), context - max(map(len, texts)))
    ended = [eos_id in o for o in out]
    key = jax.random.fold_in(jax.random.key(seed), len(out[0]))
    prompt = _padded(texts, left=True)
    if style in ('prefix', 'pair'):
      prompt['prefix'] = prompt['segments'] > 0
    prompt = jax.device_put(prompt) | (dict(encoder=encoder) if encoder else {})
    more = _sample(model, params, prompt, key, new, temperature, top_k, top_p, eos_id, banned)
    for o, row, end in zip(out, np.asarray(more).tolist(), ended):
      o.extend([eos_id] * new if end else row)
  ends = [{eos_id}.union(_later_sentinels(vocabulary, asked)) for asked in asked_ids]
  return [vocabulary.decode(o[:next((n for n, i in enumerate(o) if i in end), len(o))]) for o, end in zip(out, ends)]


def _later_sentinels(vocabulary, ids):
  """Sentinels that come after those of a prompt: where an answer that restores its spans is over."""
  sentinels = [vocabulary.sentinel(k) for k in range(vocabulary.num_sentinels)]
  last = max((k for k, sentinel in enumerate(sentinels) if sentinel in ids), default=len(sentinels))
  return sentinels[last + 1:]


def _prompt_ids(vocabulary, prompts, style):
  if style == 'stream':
    ids = [list(vocabulary.encode(prompt)) for prompt in prompts]
    if not all(ids) and vocabulary.eos_id is None:
      raise ValueError('this model knows no beginning of documents: give a prompt.')
    return [i or [vocabulary.eos_id] for i in ids]
  if style == 'document':
    return [[BOS, *vocabulary.encode(prompt)] for prompt in prompts]
  ids = [list(vocabulary.encode_marked(prompt)) for prompt in prompts]
  if style == 'encoder':
    return ids
  return [[BOS, *i, *([vocabulary.eos_id] if style == 'pair' else [])] for i in ids]


def _fill(model, params, vocabulary, prompts, context, ends):
  """The prompts with each <mask> replaced by a token, the surest first, seen by those that follow it."""
  rows = [list(vocabulary.encode_marked(prompt))[:context - 2 * ends] for prompt in prompts]
  if ends:
    rows = [[vocabulary.cls_id, *row, vocabulary.eos_id] for row in rows]
  for i, row in enumerate(rows):
    if vocabulary.mask_id not in row:
      raise ValueError(f'this model fills in what is masked, and the prompt {prompts[i]!r} has no <mask>.')
  banned = np.zeros(model.config.vocab_size, bool)
  banned[vocabulary.size:] = True
  banned[vocabulary.special_ids] = True
  while any(vocabulary.mask_id in row for row in rows):
    batch = jax.device_put(_padded(rows, left=False))
    logits_BTV = np.where(banned, -np.inf, np.asarray(_logits(model, params, batch)))
    for row, logits_TV in zip(rows, logits_BTV):
      masks = [t for t, i in enumerate(row) if i == vocabulary.mask_id]
      if masks:
        p_MV = np.exp(logits_TV[masks] - logits_TV[masks].max(-1, keepdims=True))
        surest = int((p_MV.max(-1) / p_MV.sum(-1)).argmax())
        row[masks[surest]] = int(p_MV[surest].argmax())
  return [vocabulary.decode(row[1:-1] if ends else row) for row in rows]


@functools.partial(jax.jit, static_argnums=0)
def _logits(model, params, batch):
  return jax.sharding.reshard(model.apply(params, batch), in_use('B__'))
