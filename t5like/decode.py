"""Text generation: prompts in one pass, then one token at a time with a key-value cache."""
import functools

import jax
import jax.numpy as jnp
import numpy as np

from t5like.data.objectives import BOS
from t5like.model.transformer import empty_cache
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
  last_B1 = prompt['positions'][:, -1:]
  # Cache slots of tokens to come have later positions, so causality hides them until they are there.
  ahead = spread_rows(last_B1 + jnp.arange(1, new_tokens + 1, dtype=jnp.int32)[None, :])
  keys = dict(positions=jnp.concatenate([prompt['positions'], ahead], axis=1),
              segments=jnp.concatenate([prompt['segments'], spread_rows(jnp.ones_like(ahead))], axis=1))

  def choose(logits_BV, key):
    logits_BV = jax.sharding.reshard(logits_BV, in_use('B_'))  # sorting needs a whole row
    if banned:
      out = np.zeros(logits_BV.shape[-1], bool)
      out[list(banned)] = True
      logits_BV = jnp.where(out[None, :], -jnp.inf, logits_BV)
    return pick(logits_BV, key, temperature, top_k, top_p)

  cache = empty_cache(model.config, B, slots)
  logits_BTV, cache = model.extend(params, prompt, keys, cache, 0)
  first_B = choose(logits_BTV[:, -1], jax.random.fold_in(key, 0))

  def one(carry, i):
    token_B, done_B, cache = carry
    done_B |= token_B == eos_id
    batch = dict(inputs=token_B[:, None], positions=last_B1 + i,
                 segments=jnp.ones_like(last_B1))
    logits_BTV, cache = model.extend(params, batch, keys, cache, P + i - 1)
    next_B = jnp.where(done_B, eos_id, choose(logits_BTV[:, 0], jax.random.fold_in(key, i)))
    return (next_B, done_B, cache), token_B
  done_B = spread_rows(jnp.zeros_like(first_B, bool))
  steps = jnp.arange(1, new_tokens + 1, dtype=jnp.int32)
  return jnp.moveaxis(jax.lax.scan(one, (first_B, done_B, cache), steps)[1], 0, 1)


def _left_padded(contexts):
  """inputs, positions and segments, [B, P] int32, whose rows all end in the last column."""
  P = -(-max(map(len, contexts)) // 16) * 16  # few distinct shapes, so few compilations
  prompt = {name: np.zeros((len(contexts), P), np.int32) for name in ('inputs', 'positions', 'segments')}
  for row, ids in enumerate(contexts):
    n = len(ids)
    prompt['inputs'][row, P - n:] = ids
    prompt['positions'][row, P - n:] = np.arange(n)
    prompt['segments'][row, P - n:] = 1
  return prompt


def generate(model, params, vocabulary, prompts, *, context, document_mask, tokens=128,
             temperature=0.8, top_k=40, top_p=1.0, seed=0):
  """Continues each prompt by at most `tokens` tokens, up to an end of document; returns strings.

  `context` is the length the model was trained on; beyond it, text goes on from its last half.
  With document_mask the model knows documents to begin with BOS, so contexts do. Without it an empty
  prompt needs an end of document to follow: ValueError if the vocabulary has none.
  """
  start = [BOS] if document_mask else []
  ids = [start + list(vocabulary.encode(prompt)) for prompt in prompts]
  if not all(ids):
    if vocabulary.eos_id is None:
      raise ValueError('this model knows no beginning of documents: give a prompt.')
    ids = [i or [vocabulary.eos_id] for i in ids]
  banned = tuple(i for i in range(model.config.vocab_size)
                 if i >= vocabulary.size or i in (vocabulary.pad_id, vocabulary.unk_id))
  eos_id = -1 if vocabulary.eos_id is None else vocabulary.eos_id
  out = [[] for _ in prompts]
  while len(out[0]) < tokens:
    texts = [i + o for i, o in zip(ids, out)]
    if max(map(len, texts)) >= context:
      texts = [start + t[-(context // 2):] for t in texts]
    new = min(tokens - len(out[0]), context - max(map(len, texts)))
    ended = [eos_id in o for o in out]
    key = jax.random.fold_in(jax.random.key(seed), len(out[0]))
    more = _sample(model, params, jax.device_put(_left_padded(texts)), key, new, temperature, top_k,
                   top_p, eos_id, banned)
    for o, row, end in zip(out, np.asarray(more).tolist(), ended):
      o.extend([eos_id] * new if end else row)
  return [vocabulary.decode(o[:o.index(eos_id)] if eos_id in o else o) for o in out]
