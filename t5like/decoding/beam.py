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
from t5like.model.block import LayerCache
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
  ends: tuple[int, ...] = ()
  if eos_id >= 0:
    ends = (eos_id, *stops)

  def continues(search: Search) -> Array:
    likeliest_B = search.alive_BK[:, 0]
    best_B = likeliest_B / penalty(new_tokens, alpha)  # of the answers still to come: longer is never worse
    worst_B = search.ended_BK[:, -1]
    has_room = search.length < new_tokens
    return has_room & jnp.any(best_B > worst_B)

  def one_token(search: Search) -> Search:
    next_BKV = _next(search, banned)
    ended_BK, answers_BKN, next_BKV = _end(search, next_BKV, ends, alpha)
    longer = _lengthen(model, params, search, next_BKV)
    return longer._replace(ended_BK=ended_BK, answers_BKN=answers_BKN)

  start = _start(model, params, prompt, new_tokens, beams, eos_id)
  last = jax.lax.while_loop(continues, one_token, start)
  tokens_BKN, scores_BK = _best(last, new_tokens, alpha)
  whole = P()
  tokens_BKN = jax.sharding.reshard(tokens_BKN, whole)
  scores_BK = jax.sharding.reshard(scores_BK, whole)
  return tokens_BKN, scores_BK


def _best(
    search: Search,
    new_tokens: int,
    alpha: float,
) -> tuple[Array, Array]:
  """(tokens [B, K, N], scores [B, K]) of the best answers at the end of a search.

  Beginnings that were cut off at new_tokens are answers too.
  """
  K = search.ended_BK.shape[1]
  final_BK = search.alive_BK / penalty(new_tokens, alpha)
  is_cut = search.length == new_tokens
  cut_BK = jnp.where(is_cut, final_BK, LOWEST)
  scores = jnp.concatenate([search.ended_BK, cut_BK], axis=1)
  tokens = jnp.concatenate([search.answers_BKN, search.said_BKN], axis=1)
  scores_BK, which_BK = _top(scores, K)
  return _choose(tokens, which_BK), scores_BK


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

  def repeat_rows(array: Array) -> Array:
    return _repeat(array, K, 0)

  def repeat_cache(array: Array, dims: str) -> Array:
    return _repeat(array, K, dims.index('B'))

  for name in EACH_BEAM:
    state[name] = jax.tree.map(repeat_rows, state[name])
  state['cache'] = _each_cache(repeat_cache, state['cache'])
  # At first all beams are alike: only one counts.
  is_first_K = jnp.arange(K) == 0
  zeros_BK = jnp.zeros((B, K), jnp.float32)
  alive_BK = jnp.where(is_first_K[None], zeros_BK, LOWEST)
  shape_BKN = (B, K, new_tokens)
  blank_BKN = jnp.full(shape_BKN, eos_id, jnp.int32)
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
  B, K = search.alive_BK.shape
  V = logits.shape[-1]
  logp_BKV = logp.reshape((B, K, V), out_sharding=SPEC_BKN)
  finite_BKV = jnp.maximum(logp_BKV, LOWEST)
  return search.alive_BK[:, :, None] + finite_BKV


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
    is_same_BKK = best_BK[:, :, None] == ends_K[None, None, :]
    is_among_BK = jnp.any(is_same_BKK, axis=1)
    score_BK = next_BKV[:, :, end] / divisor
    scores.append(jnp.where(is_among_BK, score_BK, LOWEST))
    answers.append(_ended(search, end, ends[0]))
    is_end_V = jnp.arange(V)[None, None] == end
    next_BKV = jnp.where(is_end_V, 2 * LOWEST, next_BKV)
  all_scores = jnp.concatenate(scores, axis=1)
  all_answers = jnp.concatenate(answers, axis=1)
  ended_BK, which_BK = _top(all_scores, K)
  answers_BKN = _choose(all_answers, which_BK)
  return ended_BK, answers_BKN, next_BKV


def _ended(
    search: Search,
    end: int,
    eos_id: int,
) -> Array:
  """The tokens so far, then an end; eos_id fills up rows, so that one is there already."""
  said_BKN = search.said_BKN
  if end == eos_id:
    return said_BKN
  end_BK1 = jnp.full_like(said_BKN[:, :, :1], end)
  return _put(said_BKN, end_BK1, search.length)


def _put(
    said_BKN: Array,
    token_BK1: Array,
    position: Array,
) -> Array:
  """Tokens with another at a position."""
  corner = (0, 0, position)
  return jax.lax.dynamic_update_slice(said_BKN, token_BK1, corner)


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
  state = dict(state, cache=cache)
  token = token_BK.reshape(token_BK.size, out_sharding=in_use('B'))
  return sampling.step(model, params, state, token)


def _lengthen(
    model: Model,
    params: Any,
    search: Search,
    next_BKV: Array,
) -> Search:
  """A search whose beginnings are the K likeliest of `next_BKV`, each with one token more."""
  K = search.alive_BK.shape[1]
  V = next_BKV.shape[-1]
  alive_BK, flat_BK = _top(_flat(next_BKV), K)
  parent_BK = flat_BK // V
  token_BK = flat_BK % V
  said_BKN = _choose(search.said_BKN, parent_BK)
  said_BKN = _put(said_BKN, token_BK[:, :, None], search.length)
  return search._replace(
      length=search.length + 1,
      state=_advance(model, params, search.state, parent_BK, token_BK),
      alive_BK=alive_BK,
      said_BKN=said_BKN,
  )


def _flat(x_BKV: Array) -> Array:
  B, K, V = x_BKV.shape
  return x_BKV.reshape(B, K * V, out_sharding=SPEC_BK)


def _on_each_device(
    function: Callable[..., Any],
    in_specs: Any,
    out_specs: Any,
) -> Callable[..., Any]:
  """A function of arrays that each device calls with its own rows."""
  return jax.shard_map(
      function,
      in_specs=in_specs,
      out_specs=out_specs,
      check_vma=False,
  )


def _top(x_BM: Array, k: int) -> tuple[Array, Array]:
  """The k largest of each row and their indices; ties go to the first."""
  def top(x: Array) -> tuple[Array, Array]:
    values, indices = jax.lax.top_k(x, k)
    return values, indices

  top_of_rows = _on_each_device(top, SPEC_BK, (SPEC_BK, SPEC_BK))
  return top_of_rows(x_BM)


def _choose(x_BMN: Array, which_BK: Array) -> Array:
  """x[b, which[b, k]], [B, K, N]."""
  def take(x: Array, which: Array) -> Array:
    indices = which[:, :, None]
    return jnp.take_along_axis(x, indices, axis=1)

  take_in_rows = _on_each_device(take, (SPEC_BKN, SPEC_BK), SPEC_BKN)
  return take_in_rows(x_BMN, which_BK)


def _repeat(
    array: Array,
    K: int,
    axis: int,
) -> Array:
  """Each row K times, one after another; each device repeats its own."""
  spec = jax.typeof(array).sharding.spec

  def repeat(x: Array) -> Array:
    return jnp.repeat(x, K, axis)

  repeat_rows = _on_each_device(repeat, spec, spec)
  return repeat_rows(array)


def _reorder(
    array: Array,
    parent_BK: Array,
    dims: str,
) -> Array:
  """A cache whose beams are those of `parent` [B, K]; each device reorders its own rows."""
  axis = dims.index('B')
  spec = P(*map(IN_USE.get, dims))

  def local(x: Array, parent: Array) -> Array:
    B, K = parent.shape
    first_of_row = jnp.arange(B)[:, None] * K
    rows = first_of_row + parent
    return jnp.take(x, rows.reshape(-1), axis=axis)

  reorder_rows = _on_each_device(local, (spec, SPEC_BK), spec)
  return reorder_rows(array, parent_BK)


def _each_cache(
    function: CacheFunction,
    cache: dict[str, Any],
) -> dict[str, Any]:
  """function(array, dims) of all arrays of a cache."""
  layers = []
  for layer in cache['layers']:
    own = _pair(function, layer.own)
    cross = layer.cross
    if cross is not None:
      cross = _pair(function, cross)
    layers.append(LayerCache(own, cross))
  changed: dict[str, Any] = dict(layers=tuple(layers))
  if 'memory' in cache:
    memory = {}
    for name, array in cache['memory'].items():
      memory[name] = function(array, 'BS')
    changed['memory'] = memory
  return changed


def _each_own_cache(
    function: CacheFunction,
    cache: dict[str, Any],
) -> dict[str, Any]:
  """function(array, dims) of those arrays of a cache that differ between the beams of a row."""
  layers = []
  for layer in cache['layers']:
    own = _pair(function, layer.own)
    layers.append(LayerCache(own, layer.cross))
  return dict(cache, layers=tuple(layers))


def _pair(function: CacheFunction, kv: KeysValues) -> KeysValues:
  """function of keys and values [B, K, S, H]."""
  keys = function(kv.keys, 'BKSH')
  values = function(kv.values, 'BKSH')
  return KeysValues(keys, values)
