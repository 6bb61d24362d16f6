"""Beam search: the likeliest answers, of those that are the likeliest so far at every length.

Scores are log p / ((5 + length) / 6) ** alpha, the length penalty of Wu et al. 2016 (arXiv 1609.08144,
equation 14), the end of text being counted; alpha 0: log p alone.
"""
import functools

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from t5like import sampling
from t5like.sharding import IN_USE, ROWS, in_use

LOWEST = -1e9  # a score that no answer has; finite, for infinities minus themselves are no numbers


def penalty(length, alpha):
  return ((5.0 + length) / 6.0) ** alpha


@functools.partial(jax.jit, static_argnums=(0, 3, 4, 5, 6, 7, 8))
def search(model, params, prompt, new_tokens, beams, alpha, eos_id, banned, stops=()):
  """(tokens [B, K, new_tokens] int32, scores [B, K]) of the K = `beams` best answers, best first.

  Answers end with eos_id, which fills up their rows, or one of `stops`, or have new_tokens tokens. Each step keeps
  the K likeliest beginnings that go on and the K best answers that have ended (which must have been among the K
  likeliest ways to go on, as fairseq and transformers have it); it stops when no beginning can become better than
  those, or at new_tokens. Prompts: see `sampling.start`; their number is a multiple of the mesh's pieces.
  """
  K = beams
  ends = (eos_id, *stops) if eos_id >= 0 else ()
  state = sampling.start(model, params, prompt, new_tokens)
  B, V = state['logits'].shape
  state = dict(state, **_repeated({k: state[k] for k in ('logits', 'keys', 'last', 'done')}, K),
               cache=_each_cache(lambda x, dims: _repeat(x, K, dims.index('B')), state['cache']))
  rows = P(ROWS, None)
  put = lambda x: jax.sharding.reshard(x, P(ROWS, *[None] * (x.ndim - 1)))
  # At first all beams are alike: only one counts.
  alive_BK = put(jnp.where(jnp.arange(K)[None] > 0, LOWEST, jnp.zeros((B, K), jnp.float32)))
  blank_BKN = put(jnp.full((B, K, new_tokens), eos_id, jnp.int32))
  carry = (jnp.int32(0), state, alive_BK, blank_BKN, put(jnp.full((B, K), LOWEST, jnp.float32)), blank_BKN)

  def goes_on(carry):
    i, _, alive_BK, _, ended_BK, _ = carry
    best_B = alive_BK[:, 0] / penalty(new_tokens, alpha)  # of what can still come: longer is never worse
    return (i < new_tokens) & jnp.any(best_B > ended_BK[:, -1])

  def one(carry):
    i, state, alive_BK, said_BKN, ended_BK, answers_BKN = carry
    logits = sampling.allowed(state['logits'], banned)
    logp_BKV = jax.nn.log_softmax(logits, axis=-1).reshape(B, K, V, out_sharding=P(ROWS, None, None))
    logp_BKV = jnp.maximum(logp_BKV, LOWEST)
    # Answers that end here, if they are among the K likeliest ways to go on at all (else, with a small alpha, ends
    # that nobody would say win by being short); and the K best beginnings that do not end.
    goes_BKV = alive_BK[:, :, None] + logp_BKV
    scores, answers = [ended_BK], [answers_BKN]
    # By rank: an end that is as likely as the last of them, but comes after it, is none of the K.
    best_BK = _top(goes_BKV.reshape(B, K * V, out_sharding=rows), K)[1] if ends else None
    for end in ends:
      ends_K = jnp.arange(K) * V + end
      among_BK = jnp.any(best_BK[:, :, None] == ends_K[None, None, :], axis=1)
      scores.append(jnp.where(among_BK, goes_BKV[:, :, end] / penalty(i + 1, alpha), LOWEST))
      answers.append(_ended(said_BKN, i, end, eos_id))
      goes_BKV = jnp.where(jnp.arange(V)[None, None] == end, 2 * LOWEST, goes_BKV)
    alive_BK, flat_BK = _top(goes_BKV.reshape(B, K * V, out_sharding=rows), K)
    parent_BK, token_BK = flat_BK // V, flat_BK % V
    # The answers so far and those that end now; the best K of all.
    ended_BK, which_BK = _top(jnp.concatenate(scores, axis=1), K)
    answers_BKN = _choose(jnp.concatenate(answers, axis=1), which_BK)
    said_BKN = jax.lax.dynamic_update_slice(_choose(said_BKN, parent_BK), token_BK[:, :, None], (0, 0, i))
    cache = _each_cache(lambda x, dims: _reorder(x, parent_BK, dims), state['cache'], own=True)
    token = token_BK.reshape(B * K, out_sharding=in_use('B'))
    state = sampling.step(model, params, dict(state, cache=cache), token)
    return i + 1, state, alive_BK, said_BKN, ended_BK, answers_BKN
  i, _, alive_BK, said_BKN, ended_BK, answers_BKN = jax.lax.while_loop(goes_on, one, carry)
  # Beginnings that were cut off at new_tokens are answers too.
  cut_BK = jnp.where(i == new_tokens, alive_BK / penalty(new_tokens, alpha), LOWEST)
  scores_BK, which_BK = _top(jnp.concatenate([ended_BK, cut_BK], axis=1), K)
  tokens_BKN = _choose(jnp.concatenate([answers_BKN, said_BKN], axis=1), which_BK)
  return jax.sharding.reshard(tokens_BKN, P()), jax.sharding.reshard(scores_BK, P())


def _ended(said_BKN, i, end, eos_id):
  """What was said, with an end as its token i; eos_id fills up what was said, so that one is there already."""
  if end == eos_id:
    return said_BKN
  return jax.lax.dynamic_update_slice(said_BKN, jnp.full_like(said_BKN[:, :, :1], end), (0, 0, i))


def _top(x_BM, k):
  """The k largest of each row and where they are; ties go to the first."""
  spec = P(ROWS, None)
  top = lambda x: tuple(jax.lax.top_k(x, k))
  return jax.shard_map(top, in_specs=spec, out_specs=(spec, spec), check_vma=False)(x_BM)


def _choose(x_BMN, which_BK):
  """x[b, which[b, k]], [B, K, N]."""
  specs = (P(ROWS, None, None), P(ROWS, None))
  take = lambda x, which: jnp.take_along_axis(x, which[:, :, None], axis=1)
  return jax.shard_map(take, in_specs=specs, out_specs=specs[0], check_vma=False)(x_BMN, which_BK)


def _repeated(tree, K):
  return jax.tree.map(lambda x: _repeat(x, K, 0), tree)


def _repeat(x, K, axis):
  """Each row K times in a row, each device those that it has."""
  spec = jax.typeof(x).sharding.spec
  return jax.shard_map(lambda x: jnp.repeat(x, K, axis), in_specs=spec, out_specs=spec, check_vma=False)(x)


def _reorder(x, parent_BK, dims):
  """A cache whose beams are those of `parent` [B, K], each device turning its own rows round."""
  axis, spec = dims.index('B'), P(*map(IN_USE.get, dims))

  def local(x, parent):
    rows = jnp.arange(parent.shape[0])[:, None] * parent.shape[1] + parent
    return jnp.take(x, rows.reshape(-1), axis=axis)
  return jax.shard_map(local, in_specs=(spec, P(ROWS, None)), out_specs=spec, check_vma=False)(x, parent_BK)


def _each_cache(fn, cache, own=False):
  """fn(array, dims) of a cache's arrays; `own`: only of those that differ between the beams of a row."""
  pair = lambda kv: kv and tuple(fn(x, 'BKSH') for x in kv)
  if own:
    return dict(cache, layers=tuple((pair(mine), cross) for mine, cross in cache['layers']))
  found = dict(layers=tuple((pair(mine), pair(cross)) for mine, cross in cache['layers']))
  if 'memory' in cache:
    found['memory'] = {k: fn(x, 'BS') for k, x in cache['memory'].items()}
  return found
