"""One token after another, with a key-value cache: prompts in one pass, then pieces of text as they come.

`start` reads prompts, `more` says up to n tokens and returns; calling it again goes on, so text can be shown while
it is made and ends when every row has ended. What a row says depends on its seed, not on the rows beside it.
"""
import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from t5like.model import attention
from t5like.sharding import in_use, spread_rows


@dataclasses.dataclass(frozen=True)
class How:
  """How the next token is chosen: temperature 0 takes the likeliest; top_k 0 and top_p 1 keep all. Rows end with
  eos_id (-1: never), which fills them up, or one of the ids `stops`, and never hold one of `banned` (tuples of ids)."""
  temperature: float = 0.8
  top_k: int = 40
  top_p: float = 1.0
  eos_id: int = -1
  banned: tuple = ()
  stops: tuple = ()


ROUNDING = 1e-6  # relative, of sums of probabilities in fp32: .5 + .3 holds .8


def filter_logits(logits_BV, top_k=0, top_p=1.0):
  """-inf outside the top_k likeliest tokens and the fewest that hold top_p of the probability.

  Nucleus sampling: Holtzman et al. 2019, arXiv 1904.09751. 0 and 1.0 switch the filters off. Tokens are counted by
  rank, of equals the first one being the likelier. The likeliest token always stays.
  """
  V = logits_BV.shape[-1]
  if 0 < top_k < V:
    best_BK = jax.lax.top_k(logits_BV, top_k)[0]
    logits_BV = _likeliest(logits_BV, best_BK[:, -1:], top_k)
  if top_p < 1:
    sorted_BV = jnp.sort(logits_BV, axis=-1, descending=True)
    held_BV = jnp.cumsum(jax.nn.softmax(sorted_BV, axis=-1), axis=-1)
    # A token stays if the likelier ones do not hold top_p yet.
    count_B1 = 1 + jnp.sum(held_BV[:, :-1] < top_p * (1 - ROUNDING), axis=-1, keepdims=True)
    inside_BV = jnp.arange(V)[None, :] < count_B1
    least_B1 = jnp.min(jnp.where(inside_BV, sorted_BV, jnp.inf), axis=-1, keepdims=True)
    logits_BV = _likeliest(logits_BV, least_B1, count_B1)
  return logits_BV


def _likeliest(logits_BV, least_B1, count):
  """-inf outside the `count` likeliest tokens, the last of which has the logit `least`."""
  above_BV, equal_BV = logits_BV > least_B1, logits_BV == least_B1
  room_B1 = count - jnp.sum(above_BV, axis=-1, keepdims=True)
  return jnp.where(above_BV | equal_BV & (jnp.cumsum(equal_BV, axis=-1) <= room_B1), logits_BV, -jnp.inf)


def allowed(logits_BV, banned):
  """fp32 logits whose rows are whole on their devices (sorting needs that), -inf for the ids `banned`."""
  logits_BV = jax.sharding.reshard(logits_BV, in_use('B_'))
  if not banned:
    return logits_BV
  out = np.zeros(logits_BV.shape[-1], bool)
  out[list(banned)] = True
  return jnp.where(out[None, :], -jnp.inf, logits_BV)


def _divided(logits_BV, temperature):
  """logits / temperature but for a constant, by which the largest is 0, so that no temperature is too small."""
  least = float(jnp.finfo(logits_BV.dtype).tiny)
  return (logits_BV - jnp.max(logits_BV, axis=-1, keepdims=True)) / max(temperature, least)


def pick(logits_BV, how, key, seeds_B, t):
  """One token id per row, [B] int32. `seeds_B`, int32, and `t`, the number of the token, choose its chances."""
  logits_BV = allowed(logits_BV, how.banned)
  if not how.temperature:
    return jnp.argmax(logits_BV, axis=-1).astype(jnp.int32)
  logits_BV = filter_logits(_divided(logits_BV, how.temperature), how.top_k, how.top_p)

  def local(key, t, seeds_B, logits_BV):
    one = lambda seed, logits_V: jax.random.categorical(jax.random.fold_in(jax.random.fold_in(key, seed), t), logits_V)
    return jax.vmap(one)(seeds_B, logits_BV)
  whole, rows = jax.sharding.PartitionSpec(), in_use('B')
  sample = jax.shard_map(local, in_specs=(whole, whole, rows, in_use('B_')), out_specs=rows, check_vma=False)
  return sample(key, t, seeds_B, logits_BV).astype(jnp.int32)


@functools.partial(jax.jit, static_argnums=(0, 3))
def start(model, params, prompt, new_tokens):
  """The state after prompts that all end in the last column (padding, segment 0, is on their left).

  It holds logits [B, V] of what comes next, the cache with room for `new_tokens` more, and what `extend` needs. On
  CPUs that are also layers cut out of params: their matrix products take no slices, so that each token would copy all
  weights. Elsewhere slices cost nothing, and copies memory.
  """
  P = prompt['inputs'].shape[1]
  prompt = spread_rows(prompt)
  cache = model.cache(params, prompt, P + new_tokens)
  prompt = {k: v for k, v in prompt.items() if k != 'encoder'}
  last_B1 = prompt['positions'][:, -1:]
  # Cache slots of tokens to come have later positions, so causality hides them until they are there.
  ahead = spread_rows(last_B1 + jnp.arange(1, new_tokens + 1, dtype=jnp.int32)[None, :])
  keys = dict(positions=jnp.concatenate([prompt['positions'], ahead], axis=1),
              segments=jnp.concatenate([prompt['segments'], spread_rows(jnp.ones_like(ahead))], axis=1))
  if 'prefix' in prompt:
    keys['prefix'] = jnp.concatenate([prompt['prefix'], spread_rows(jnp.zeros_like(ahead, bool))], axis=1)
  layers = model.layers(params) if attention.platform() == 'cpu' else None
  logits_BTV, cache = model.extend(params, prompt, keys, cache, 0, True, layers)
  return dict(logits=logits_BTV[:, 0], cache=cache, keys=keys, layers=layers, last=last_B1, said=jnp.int32(0),
              at=jnp.int32(P), done=jax.sharding.reshard(jnp.zeros(last_B1.shape[0], bool), in_use('B')))


def step(model, params, state, token_B):
  """The state after one more token of each row."""
  batch = dict(inputs=token_B[:, None], positions=state['last'] + state['said'] + 1,
               segments=jnp.ones_like(state['last']))
  if 'prefix' in state['keys']:
    batch['prefix'] = jnp.zeros_like(state['last'], bool)
  logits_BTV, cache = model.extend(params, batch, state['keys'], state['cache'], state['at'], layers=state['layers'])
  return dict(state, logits=logits_BTV[:, 0], cache=cache, said=state['said'] + 1, at=state['at'] + 1)


@functools.partial(jax.jit, static_argnums=(0, 1, 2), donate_argnums=4)
def more(model, how, n, params, state, key, seeds_B, before):
  """(tokens_BN, state): up to n tokens of each row, eos_id from where it has ended; stops when all have.

  `before`: tokens that rows had said when `start` read them.
  """
  B = state['done'].shape[0]

  def one(carry):
    i, tokens_BN, state = carry
    token_B = jnp.where(state['done'], how.eos_id, pick(state['logits'], how, key, seeds_B, before + state['said']))
    tokens_BN = jax.lax.dynamic_update_slice(tokens_BN, token_B[:, None], (0, i))
    ended = token_B == how.eos_id
    for stop in how.stops:
      ended |= token_B == stop
    state = step(model, params, dict(state, done=state['done'] | ended), token_B)
    return i + 1, tokens_BN, state
  tokens_BN = jax.sharding.reshard(jnp.full((B, n), how.eos_id, jnp.int32), in_use('B_'))
  goes_on = lambda carry: (carry[0] < n) & ~jnp.all(carry[2]['done'])
  _, tokens_BN, state = jax.lax.while_loop(goes_on, one, (jnp.int32(0), tokens_BN, state))
  return jax.sharding.reshard(tokens_BN, jax.sharding.PartitionSpec()), state
