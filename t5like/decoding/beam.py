"""Beam search: the likeliest answers, of those that are the likeliest so far at every length.

Scores are log p / ((5 + length) / 6) ** alpha, the length penalty of Wu et al. 2016 (arXiv 1609.08144,
equation 14), the end of text being counted; alpha 0: log p alone.
"""
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import PartitionSpec as P

from t5like.decoding import sampling
from t5like.model.attention import KeysValues
from t5like.model.stack import LayerCache
from t5like.model.transformer import Model
from t5like.sharding import IN_USE, ROWS, in_use

LOWEST = -1e9  # a score that no answer has; finite, for infinities minus themselves are no numbers
SPEC_BK = P(ROWS, None)
SPEC_BKN = P(ROWS, None, None)
EACH_BEAM = ('logits', 'keys', 'last', 'done')  # parts of sampling's state with a row per beam, beside the cache
CacheFunction = Callable[[Array, str], Array]


class Search(NamedTuple):
  """Where a search is.

  Attributes:
    length: how many tokens the beginnings have.
    state: of `sampling.start`, with K beams per row.
    alive_BK: log p of the beginnings that continue, the likeliest first.
    said_BKN: their tokens.
    ended_BK: scores of the best answers that have ended, the best first.
    answers_BKN: their tokens.
  """
  length: Array
  state: sampling.State
  alive_BK: Array
  said_BKN: Array
  ended_BK: Array
  answers_BKN: Array


def penalty(length: int | Array, alpha: float) -> float | Array:
  """The divisor of the score of an answer with this many tokens."""
  return ((5.0 + length) / 6.0) ** alpha


@functools.partial(jax.jit, static_argnums=(0, 3, 4, 5, 6, 7, 8))
def search(
    model: Model,
    params: Any,
    prompt: dict[str, Any],
    new_tokens: int,
    beams: int,
    alpha: float,
    eos_id: int,
    banned: tuple[int, ...],
    stops: tuple[int, ...] = (),
) -> tuple[Array, Array]:
  """Finds the K = `beams` best answers.

  Each step keeps the K likeliest beginnings that continue and the K best answers that have ended (which must have been
  among the K likeliest continuations, as in fairseq and transformers); it stops when no beginning can become better
  than those, or at new_tokens. All arguments but params and prompt are static.

  Args:
    model: a `t5like.model.transformer` model.
    params: nested dict of arrays.
    prompt: see `sampling.start`; the number of rows is a multiple of the mesh's pieces.
    new_tokens: the longest answer.
    beams: K.
    alpha: of the length penalty.
    eos_id: ends an answer, and fills up its row; -1: answers only end at new_tokens.
    banned: ids that no answer holds.
    stops: further ids that end an answer.

  Returns:
    (tokens [B, K, new_tokens] int32, scores [B, K]), best first.
  """
  ends = (eos_id, *stops) if eos_id >= 0 else ()

  def continues(search: Search) -> Array:
    likeliest_B = search.alive_BK[:, 0]
    best_B = likeliest_B / penalty(new_tokens, alpha)  # of the answers still to come: longer is never worse
    worst_B = search.ended_BK[:, -1]
    return (search.length < new_tokens) & jnp.any(best_B > worst_B)

  def one_token(search: Search) -> Search:
    next_BKV = _next(search, banned)
    ended_BK, answers_BKN, next_BKV = _end(search, next_BKV, ends, alpha)
    V = next_BKV.shape[-1]
    alive_BK, flat_BK = _top(_flat(next_BKV), beams)
    parent_BK = flat_BK // V
    token_BK = flat_BK % V
    said_BKN = _choose(search.said_BKN, parent_BK)
    said_BKN = _put(said_BKN, token_BK[:, :, None], search.length)
    state = _advance(model, params, search.state, parent_BK, token_BK)
    return Search(search.length + 1, state, alive_BK, said_BKN, ended_BK, answers_BKN)

  start = _start(model, params, prompt, new_tokens, beams, eos_id)
  last = jax.lax.while_loop(continues, one_token, start)
  # Beginnings that were cut off at new_tokens are answers too.
  final_BK = last.alive_BK / penalty(new_tokens, alpha)
  cut_BK = jnp.where(last.length == new_tokens, final_BK, LOWEST)
  scores_BK, which_BK = _top(jnp.concatenate([last.ended_BK, cut_BK], axis=1), beams)
  tokens_BKN = jnp.concatenate([last.answers_BKN, last.said_BKN], axis=1)
  tokens_BKN = _choose(tokens_BKN, which_BK)
  return jax.sharding.reshard(tokens_BKN, P()), jax.sharding.reshard(scores_BK, P())


def _start(
    model: Model,
    params: Any,
    prompt: dict[str, Any],
    new_tokens: int,
    K: int,
    eos_id: int,
) -> Search:
  """A search after the prompts."""
  state = sampling.start(model, params, prompt, new_tokens)
  B = state['done'].shape[0]

  def repeat_cache(array: Array, dims: str) -> Array:
    return _repeat(array, K, dims.index('B'))

  for name in EACH_BEAM:
    state[name] = jax.tree.map(lambda array: _repeat(array, K, 0), state[name])
  state['cache'] = _each_cache(repeat_cache, state['cache'])
  # At first all beams are alike: only one counts.
  is_first_K = jnp.arange(K) == 0
  alive_BK = jnp.where(is_first_K[None], jnp.zeros((B, K), jnp.float32), LOWEST)
  blank_BKN = jnp.full((B, K, new_tokens), eos_id, jnp.int32)
  blank_BKN = jax.sharding.reshard(blank_BKN, SPEC_BKN)
  lowest_BK = jnp.full((B, K), LOWEST, jnp.float32)
  return Search(
      length=jnp.int32(0),
      state=state,
      alive_BK=jax.sharding.reshard(alive_BK, SPEC_BK),
      said_BKN=blank_BKN,
      ended_BK=jax.sharding.reshard(lowest_BK, SPEC_BK),
      answers_BKN=blank_BKN,
  )


def _next(search: Search, banned: tuple[int, ...]) -> Array:
  """Log-probabilities [B, K, V] of the beginnings with each next token."""
  logits = sampling.allowed(search.state['logits'], banned)
  logp = jax.nn.log_softmax(logits, axis=-1)
  shape_BKV = (*search.alive_BK.shape, logits.shape[-1])
  logp_BKV = logp.reshape(shape_BKV, out_sharding=SPEC_BKN)
  return search.alive_BK[:, :, None] + jnp.maximum(logp_BKV, LOWEST)


def _end(
    search: Search,
    next_BKV: Array,
    ends: tuple[int, ...],
    alpha: float,
) -> tuple[Array, Array, Array]:
  """Takes the answers that end with the next token among the K best, and those ends out of the continuations.

  Only ends that are among the K likeliest continuations count: else, with a small alpha, ends that are never likely
  would win by being short.

  Args:
    search: where it is.
    next_BKV: of `_next`.
    ends: ids that end an answer.
    alpha: of the length penalty.

  Returns:
    (scores of the best answers [B, K], their tokens [B, K, N], continuations [B, K, V]).
  """
  K = search.ended_BK.shape[1]
  V = next_BKV.shape[-1]
  divisor = penalty(search.length + 1, alpha)
  scores = [search.ended_BK]
  answers = [search.answers_BKN]
  # By rank: an end that is as likely as the last of them, but comes after it, is none of the K.
  _, best_BK = _top(_flat(next_BKV), K)
  for end in ends:
    ends_K = jnp.arange(K) * V + end
    among_BK = jnp.any(best_BK[:, :, None] == ends_K[None, None, :], axis=1)
    scores.append(jnp.where(among_BK, next_BKV[:, :, end] / divisor, LOWEST))
    answers.append(_ended(search, end, ends[0]))
    is_end_V = jnp.arange(V)[None, None] == end
    next_BKV = jnp.where(is_end_V, 2 * LOWEST, next_BKV)
  ended_BK, which_BK = _top(jnp.concatenate(scores, axis=1), K)
  answers_BKN = _choose(jnp.concatenate(answers, axis=1), which_BK)
  return ended_BK, answers_BKN, next_BKV


def _ended(search: Search, end: int, eos_id: int) -> Array:
  """The tokens so far, then an end; eos_id fills up rows, so that one is there already."""
  said_BKN = search.said_BKN
  if end == eos_id:
    return said_BKN
  end_BK1 = jnp.full_like(said_BKN[:, :, :1], end)
  return _put(said_BKN, end_BK1, search.length)


def _put(said_BKN: Array, token_BK1: Array, position: Array) -> Array:
  """Tokens with another at a position."""
  return jax.lax.dynamic_update_slice(said_BKN, token_BK1, (0, 0, position))


def _advance(
    model: Model,
    params: Any,
    state: sampling.State,
    parent_BK: Array,
    token_BK: Array,
) -> sampling.State:
  """The state after one more token of each beam, which continues that of its parent."""
  def reorder(array: Array, dims: str) -> Array:
    return _reorder(array, parent_BK, dims)

  cache = _each_own_cache(reorder, state['cache'])
  token = token_BK.reshape(token_BK.size, out_sharding=in_use('B'))
  return sampling.step(model, params, dict(state, cache=cache), token)


def _flat(x_BKV: Array) -> Array:
  B, K, V = x_BKV.shape
  return x_BKV.reshape(B, K * V, out_sharding=SPEC_BK)


def _top(x_BM: Array, k: int) -> tuple[Array, Array]:
  """The k largest of each row and their indices; ties go to the first."""
  def top(x: Array) -> tuple[Array, Array]:
    values, indices = jax.lax.top_k(x, k)
    return values, indices

  return jax.shard_map(top, in_specs=SPEC_BK, out_specs=(SPEC_BK, SPEC_BK), check_vma=False)(x_BM)


def _choose(x_BMN: Array, which_BK: Array) -> Array:
  """x[b, which[b, k]], [B, K, N]."""
  def take(x: Array, which: Array) -> Array:
    return jnp.take_along_axis(x, which[:, :, None], axis=1)

  return jax.shard_map(take, in_specs=(SPEC_BKN, SPEC_BK), out_specs=SPEC_BKN, check_vma=False)(x_BMN, which_BK)


def _repeat(array: Array, K: int, axis: int) -> Array:
  """Each row K times, one after another; each device repeats its own."""
  spec = jax.typeof(array).sharding.spec

  def repeat(x: Array) -> Array:
    return jnp.repeat(x, K, axis)

  return jax.shard_map(repeat, in_specs=spec, out_specs=spec, check_vma=False)(array)


def _reorder(array: Array, parent_BK: Array, dims: str) -> Array:
  """A cache whose beams are those of `parent` [B, K]; each device reorders its own rows."""
  axis = dims.index('B')
  spec = P(*map(IN_USE.get, dims))

  def local(x: Array, parent: Array) -> Array:
    first_of_row = jnp.arange(parent.shape[0])[:, None] * parent.shape[1]
    rows = first_of_row + parent
    return jnp.take(x, rows.reshape(-1), axis=axis)

  return jax.shard_map(local, in_specs=(spec, SPEC_BK), out_specs=spec, check_vma=False)(array, parent_BK)


def _each_cache(function: CacheFunction, cache: dict[str, Any]) -> dict[str, Any]:
  """function(array, dims) of all arrays of a cache."""
  layers = []
  for layer in cache['layers']:
    cross = layer.cross
    if cross is not None:
      cross = _pair(function, cross)
    layers.append(LayerCache(_pair(function, layer.own), cross))
  changed: dict[str, Any] = dict(layers=tuple(layers))
  if 'memory' in cache:
    changed['memory'] = {name: function(array, 'BS') for name, array in cache['memory'].items()}
  return changed


def _each_own_cache(function: CacheFunction, cache: dict[str, Any]) -> dict[str, Any]:
  """function(array, dims) of those arrays of a cache that differ between the beams of a row."""
  layers = []
  for layer in cache['layers']:
    layers.append(LayerCache(_pair(function, layer.own), layer.cross))
  return dict(cache, layers=tuple(layers))


def _pair(function: CacheFunction, kv: KeysValues) -> KeysValues:
  """function of keys and values [B, K, S, H]."""
  return KeysValues(function(kv.keys, 'BKSH'), function(kv.values, 'BKSH'))
