"""One token after another, with a key-value cache: prompts in one pass, then pieces of text as they come.

`start` reads prompts, `more` makes up to n tokens and returns; calling it again continues, so text can be shown while
it is made and ends when every row has ended. The answer of a row depends on its seed, not on the rows beside it.
"""
import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import PartitionSpec

from t5like.model.transformer import Model
from t5like.sharding import in_use, platform, spread_rows

ROUNDING = 1e-6  # relative, of sums of probabilities in fp32: .5 + .3 holds .8
State = dict[str, Any]  # see `start`
Carry = tuple[Array, Array, State]  # number of the next token, tokens [B, n], state


@dataclasses.dataclass(frozen=True)
class Options:
  """How the next token is chosen.

  Attributes:
    temperature: 0 takes the likeliest.
    top_k: sample from the k likeliest tokens; 0: from all.
    top_p: sample from the fewest likeliest tokens that hold this probability; 1: from all.
    eos_id: ends a row, and fills it up from there; -1: none does.
    banned: ids that no row holds.
    stops: further ids that end a row.
  """
  temperature: float = 0.8
  top_k: int = 40
  top_p: float = 1.0
  eos_id: int = -1
  banned: tuple[int, ...] = ()
  stops: tuple[int, ...] = ()


def filter_logits(
    logits_BV: Array,
    top_k: int = 0,
    top_p: float = 1.0,
) -> Array:
  """-inf outside the top_k likeliest tokens and the fewest that hold top_p of the probability.

  Nucleus sampling: Holtzman et al. 2019, arXiv 1904.09751. 0 and 1.0 switch the filters off. Tokens are counted by
  rank, of equals the first one being the likelier. The likeliest token always stays.
  """
  V = logits_BV.shape[-1]
  if 0 < top_k < V:
    best_BK, _ = jax.lax.top_k(logits_BV, top_k)
    least_B1 = best_BK[:, -1:]
    logits_BV = _likeliest(logits_BV, least_B1, top_k)
  if top_p < 1:
    logits_BV = _nucleus(logits_BV, top_p)
  return logits_BV


def _nucleus(logits_BV: Array, top_p: float) -> Array:
  """-inf outside the fewest likeliest tokens that hold top_p of the probability."""
  V = logits_BV.shape[-1]
  sorted_BV = jnp.sort(logits_BV, axis=-1, descending=True)
  p_BV = jax.nn.softmax(sorted_BV, axis=-1)
  held_BV = jnp.cumsum(p_BV, axis=-1)
  # A token stays if the likelier ones do not hold top_p yet.
  likelier_BV = held_BV[:, :-1]
  enough = top_p * (1 - ROUNDING)
  stays_BV = likelier_BV < enough
  count_B1 = 1 + jnp.sum(stays_BV, axis=-1, keepdims=True)
  is_inside_BV = jnp.arange(V)[None, :] < count_B1
  inside_BV = jnp.where(is_inside_BV, sorted_BV, jnp.inf)
  least_B1 = jnp.min(inside_BV, axis=-1, keepdims=True)
  return _likeliest(logits_BV, least_B1, count_B1)


def _likeliest(
    logits_BV: Array,
    least_B1: Array,
    count: int | Array,
) -> Array:
  """-inf outside the `count` likeliest tokens, the last of which has the logit `least`."""
  above_BV = logits_BV > least_B1
  equal_BV = logits_BV == least_B1
  count_above_B1 = jnp.sum(above_BV, axis=-1, keepdims=True)
  room_B1 = count - count_above_B1
  is_early_BV = jnp.cumsum(equal_BV, axis=-1) <= room_B1
  stays_BV = above_BV | equal_BV & is_early_BV
  return jnp.where(stays_BV, logits_BV, -jnp.inf)


def allowed(logits_BV: Array, banned: tuple[int, ...]) -> Array:
  """fp32 logits whose rows are whole on their devices (sorting needs that), -inf for the ids `banned`."""
  logits_BV = jax.sharding.reshard(logits_BV, in_use('B_'))
  if not banned:
    return logits_BV
  V = logits_BV.shape[-1]
  is_banned_V = np.zeros(V, bool)
  is_banned_V[list(banned)] = True
  return jnp.where(is_banned_V[None, :], -jnp.inf, logits_BV)


def _divided(logits_BV: Array, temperature: float) -> Array:
  """logits / temperature, less a constant by which the largest is 0, so that no temperature is too small."""
  least = float(jnp.finfo(logits_BV.dtype).tiny)
  largest_B1 = jnp.max(logits_BV, axis=-1, keepdims=True)
  return (logits_BV - largest_B1) / max(temperature, least)


def pick(
    logits_BV: Array,
    options: Options,
    key: Array,
    seeds_B: Array,
    t: Array,
) -> Array:
  """Chooses one token per row.

  Args:
    logits_BV: fp32.
    options: static.
    key: of the whole batch.
    seeds_B: int32, of each row.
    t: number of the token in its answer; together with key and seed it determines the random choice.

  Returns:
    Token ids [B], int32.
  """
  logits_BV = allowed(logits_BV, options.banned)
  if not options.temperature:
    likeliest_B = jnp.argmax(logits_BV, axis=-1)
    return likeliest_B.astype(jnp.int32)
  logits_BV = _divided(logits_BV, options.temperature)
  logits_BV = filter_logits(logits_BV, options.top_k, options.top_p)
  whole = PartitionSpec()
  rows = in_use('B')
  sample = jax.shard_map(
      _sample,
      in_specs=(whole, whole, rows, in_use('B_')),
      out_specs=rows,
      check_vma=False,
  )
  token_B = sample(key, t, seeds_B, logits_BV)
  return token_B.astype(jnp.int32)


def _sample(
    key: Array,
    t: Array,
    seeds_B: Array,
    logits_BV: Array,
) -> Array:
  """Token ids of the rows of one device."""
  def one_row(seed: Array, logits_V: Array) -> Array:
    key_of_row = jax.random.fold_in(key, seed)
    key_of_token = jax.random.fold_in(key_of_row, t)
    return jax.random.categorical(key_of_token, logits_V)

  return jax.vmap(one_row)(seeds_B, logits_BV)


@functools.partial(jax.jit, static_argnums=(0, 3))
def start(
    model: Model,
    params: Any,
    prompt: dict[str, Any],
    new_tokens: int,
) -> State:
  """The state after prompts that all end in the last column (padding, segment 0, is on their left).

  It holds logits [B, V] of the next token, the cache with room for `new_tokens` more, and the inputs of `extend`. On
  CPUs these include layers cut out of params: their matrix products take no slices, so that each token would copy all
  weights. Elsewhere slices cost nothing, and copies memory.

  Args:
    model: static.
    params: nested dict of arrays.
    prompt: inputs, positions and segments [B, P], int32; for some models `prefix` [B, P], bool, and `encoder`.
    new_tokens: static.
  """
  P = prompt['inputs'].shape[1]
  prompt = spread_rows(prompt)
  cache = model.cache(params, prompt, P + new_tokens)
  prompt = dict(prompt)
  prompt.pop('encoder', None)  # it is read into the cache
  last_B1 = prompt['positions'][:, -1:]
  keys = _keys(prompt, last_B1, new_tokens)
  layers = None
  if platform() == 'cpu':
    layers = model.layers(params)
  logits_BTV, cache = model.extend(
      params,
      prompt,
      keys,
      cache,
      0,
      True,
      layers,
  )
  none_done = jnp.zeros(last_B1.shape[0], bool)
  return dict(
      logits=logits_BTV[:, 0],
      cache=cache,
      keys=keys,
      layers=layers,
      last=last_B1,
      said=jnp.int32(0),
      at=jnp.int32(P),
      done=jax.sharding.reshard(none_done, in_use('B')),
  )


def _keys(
    prompt: dict[str, Array],
    last_B1: Array,
    new_tokens: int,
) -> dict[str, Array]:
  """Positions, segments and prefix [B, P + new_tokens] of all keys in the cache."""
  # Cache slots of tokens to come have later positions, so causality hides them until they are filled.
  offsets_N = jnp.arange(1, new_tokens + 1, dtype=jnp.int32)
  ahead_BN = spread_rows(last_B1 + offsets_N[None, :])
  ones_BN = spread_rows(jnp.ones_like(ahead_BN))
  keys = dict(
      positions=jnp.concatenate([prompt['positions'], ahead_BN], axis=1),
      segments=jnp.concatenate([prompt['segments'], ones_BN], axis=1),
  )
  if 'prefix' in prompt:
    outside_BN = spread_rows(jnp.zeros_like(ahead_BN, bool))
    keys['prefix'] = jnp.concatenate([prompt['prefix'], outside_BN], axis=1)
  return keys


def step(
    model: Model,
    params: Any,
    state: State,
    token_B: Array,
) -> State:
  """The state after one more token of each row."""
  last_B1 = state['last']
  batch = dict(
      inputs=token_B[:, None],
      positions=last_B1 + state['said'] + 1,
      segments=jnp.ones_like(last_B1),
  )
  if 'prefix' in state['keys']:
    batch['prefix'] = jnp.zeros_like(last_B1, bool)
  logits_BTV, cache = model.extend(
      params,
      batch,
      state['keys'],
      state['cache'],
      state['at'],
      layers=state['layers'],
  )
  return dict(
      state,
      logits=logits_BTV[:, 0],
      cache=cache,
      said=state['said'] + 1,
      at=state['at'] + 1,
  )


@functools.partial(jax.jit, static_argnums=(0, 1, 2), donate_argnums=4)
def more(
    model: Model,
    options: Options,
    n: int,
    params: Any,
    state: State,
    key: Array,
    seeds_B: Array,
    before: Array | int,
    most: Array | int | None = None,
) -> tuple[Array, State]:
  """Makes up to n tokens of each row; stops when all rows have ended.

  Args:
    model: static.
    options: static.
    n: static.
    params: nested dict of arrays.
    state: of `start` or of `more`; donated.
    key: see `pick`.
    seeds_B: see `pick`.
    before: tokens of the answers that `start` has read already.
    most: tokens to make, at most n; other numbers do not compile it again. None: n.

  Returns:
    (tokens_BN int32, eos_id from where a row has ended; state).
  """
  B = state['done'].shape[0]
  if most is None:
    most = n

  def continues(carry: Carry) -> Array:
    i, _, state = carry
    all_done = jnp.all(state['done'])
    return (i < most) & ~all_done

  def one_token(carry: Carry) -> Carry:
    i, tokens_BN, state = carry
    number = before + state['said']
    picked_B = pick(state['logits'], options, key, seeds_B, number)
    token_B = jnp.where(state['done'], options.eos_id, picked_B)
    token_B1 = token_B[:, None]
    tokens_BN = jax.lax.dynamic_update_slice(tokens_BN, token_B1, (0, i))
    ended_B = token_B == options.eos_id
    for stop in options.stops:
      ended_B |= token_B == stop
    done_B = state['done'] | ended_B
    state = step(model, params, dict(state, done=done_B), token_B)
    return i + 1, tokens_BN, state

  blank_BN = jnp.full((B, n), options.eos_id, jnp.int32)
  tokens_BN = jax.sharding.reshard(blank_BN, in_use('B_'))
  first = (jnp.int32(0), tokens_BN, state)
  _, tokens_BN, state = jax.lax.while_loop(continues, one_token, first)
  whole = PartitionSpec()
  return jax.sharding.reshard(tokens_BN, whole), state
