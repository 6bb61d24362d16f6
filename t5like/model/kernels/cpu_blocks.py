"""Attention on one CPU: one block of queries after another, each with the keys that some query of it may see.

XLA's CPU compiler makes of attention written down at once products with the heads in the middle and passes over all
[B, N, T, S] logits. Here heads come first, a block's logits are still in the caches when they are read again, keys that
a causal mask or a window hides from a whole block are left out, and the backward pass makes the logits anew.

Suffixes: X rows of the batch times key-value heads, G queries' heads to each of these, R queries of a block times G.
"""
import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from t5like.model.softmax import capped

MOST_BLOCKS = 4  # of a row; each is compiled anew
SMALLEST = 64  # queries of a block
MASKED = -1e30  # logit of a key that is not seen

Window = tuple[int, int]
Info = Mapping[str, jax.Array]  # positions, segments and perhaps prefix of queries or keys
Gradients = tuple[jax.Array, jax.Array, jax.Array, jax.Array | None, None, None]


@dataclasses.dataclass(frozen=True)
class Form:
  """What is the same for all tokens.

  visible: (query, key) -> [B, T, S] bool, which keys each query sees.
  scale: of logits.
  softcap: logits, biased ones too, are softcap tanh(logits / softcap); 0: they are not.
  lower_half: queries see no later keys of their own row.
  window: (slots before its own, slots after it) that a query sees at most; None: all.
  """
  visible: Callable[[Info, Info], jax.Array]
  scale: float
  softcap: float = 0.0
  lower_half: bool = False
  window: Window | None = None


@dataclasses.dataclass(frozen=True)
class Block:
  """Some of the queries, and the keys that one of them may see."""
  queries: slice
  keys: slice


class Softmax(NamedTuple):
  """Of a block: the largest logit of each query, and the sum of exp(logit - largest), [X, R, 1]."""
  most: jax.Array
  total: jax.Array


class Arrays(NamedTuple):
  """q [X, T, G, H], k and v [X, S, H], bias [N, T, S] or None, and what is known of queries' and keys' tokens."""
  q: jax.Array
  k: jax.Array
  v: jax.Array
  bias: jax.Array | None
  query: Info
  key: Info


def blocks_of(form: Form, T: int, S: int) -> list[Block]:
  """The blocks of T queries on S keys.

  The order of slots says what is hidden from a whole block where queries and keys are the same tokens: within a
  document slots are as far apart as positions.
  """
  hides_some = form.lower_half or form.window is not None
  if T != S or not hides_some:
    return [Block(slice(0, T), slice(0, S))]
  size = max(SMALLEST, -(-T // MOST_BLOCKS))
  blocks = []
  for start in range(0, T, size):
    stop = min(T, start + size)
    first = 0
    last = S
    if form.window is not None:
      before, after = form.window
      first = max(0, start - before)
      last = min(S, stop + after)
    if form.lower_half:
      last = min(last, stop)
    blocks.append(Block(slice(start, stop), slice(first, last)))
  return blocks


def attention(
    form: Form,
    q_BTNH: jax.Array,
    k_BSKH: jax.Array,
    v_BSKH: jax.Array,
    bias_NTS: jax.Array | None,
    query: Info,
    key: Info,
) -> jax.Array:
  """softmax(scale q k + bias) v, [B, T, N, H], all fp32, N / K queries to each key-value head, on one device.

  Queries that see no key at all get numbers that mean nothing.

  Args:
    form: what is the same for all tokens.
    q_BTNH: queries.
    k_BSKH: keys.
    v_BSKH: values.
    bias_NTS: added to logits; None: nothing is.
    query: of the queries' tokens.
    key: of the keys' tokens.
  """
  B, T, N, H = q_BTNH.shape
  _, S, K, _ = k_BSKH.shape
  G = N // K
  q_BTKGH = q_BTNH.reshape(B, T, K, G, H)
  q_BKTGH = jnp.swapaxes(q_BTKGH, 1, 2)
  k_BKSH = jnp.swapaxes(k_BSKH, 1, 2)
  v_BKSH = jnp.swapaxes(v_BSKH, 1, 2)
  X = B * K
  attend: Any = functools.partial(_attention, form)
  out_XTGH = attend(
      q_BKTGH.reshape(X, T, G, H),
      k_BKSH.reshape(X, S, H),
      v_BKSH.reshape(X, S, H),
      bias_NTS,
      dict(query),
      dict(key),
  )
  out_BKTGH = out_XTGH.reshape(B, K, T, G, H)
  out_BTKGH = jnp.swapaxes(out_BKTGH, 1, 2)
  return out_BTKGH.reshape(B, T, N, H)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attention(
    form: Form,
    q_XTGH: jax.Array,
    k_XSH: jax.Array,
    v_XSH: jax.Array,
    bias_NTS: jax.Array | None,
    query: Info,
    key: Info,
) -> jax.Array:
  out_XTGH, _ = _forward(
      form,
      q_XTGH,
      k_XSH,
      v_XSH,
      bias_NTS,
      query,
      key,
  )
  return out_XTGH


def _forward(
    form: Form,
    q_XTGH: jax.Array,
    k_XSH: jax.Array,
    v_XSH: jax.Array,
    bias_NTS: jax.Array | None,
    query: Info,
    key: Info,
) -> tuple[jax.Array, tuple[Arrays, jax.Array, list[Softmax]]]:
  """(out [X, T, G, H], what the backward pass needs)."""
  arrays = Arrays(
      q_XTGH,
      k_XSH,
      v_XSH,
      bias_NTS,
      query,
      key,
  )
  X, T, G, H = q_XTGH.shape
  S = k_XSH.shape[1]
  outs = []
  sums = []
  for block in blocks_of(form, T, S):
    logits_XRS = _logits(form, block, arrays)
    masked_XRS = _masked(form, block, arrays, logits_XRS)
    most_XR1 = jnp.max(masked_XRS, -1, keepdims=True)
    exp_XRS = jnp.exp(masked_XRS - most_XR1)
    total_XR1 = jnp.sum(exp_XRS, -1, keepdims=True)
    v_of_block = v_XSH[:, block.keys]
    sum_XRH = jnp.einsum('XRS,XSH->XRH', exp_XRS, v_of_block)
    # Divided after the product, where there are fewer numbers.
    out_XRH = sum_XRH / total_XR1
    out_of_block = out_XRH.reshape(X, -1, G, H)
    outs.append(out_of_block)
    softmax = Softmax(most_XR1, total_XR1)
    sums.append(softmax)
  out_XTGH = jnp.concatenate(outs, axis=1)
  return out_XTGH, (arrays, out_XTGH, sums)


def _backward(
    form: Form,
    kept: tuple[Arrays, jax.Array, list[Softmax]],
    d_out_XTGH: jax.Array,
) -> Gradients:
  """Of q, k, v and the bias; Dao et al. 2022 (arXiv 2205.14135), appendix B.2."""
  arrays, out_XTGH, sums = kept
  q, k, v, bias, _, _ = arrays
  X, T, G, H = q.shape
  S = k.shape[1]
  d_qs = []
  d_ks = []
  d_vs = []
  d_biases = []
  for block, softmax in zip(blocks_of(form, T, S), sums):
    q_XRH = _queries(block, q)
    k_XSH = k[:, block.keys]
    v_XSH = v[:, block.keys]
    out_XRH = _queries(block, out_XTGH)
    d_out_XRH = _queries(block, d_out_XTGH)
    logits_XRS = _logits(form, block, arrays)
    masked_XRS = _masked(form, block, arrays, logits_XRS)
    p_XRS = jnp.exp(masked_XRS - softmax.most) / softmax.total
    dot_XR1 = jnp.sum(d_out_XRH * out_XRH, -1, keepdims=True)
    d_p_XRS = jnp.einsum('XRH,XSH->XRS', d_out_XRH, v_XSH)
    d_logits_XRS = p_XRS * (d_p_XRS - dot_XR1)
    sees_some_XR1 = softmax.most > MASKED  # without a key, probabilities depend on no logit
    d_logits_XRS = jnp.where(sees_some_XR1, d_logits_XRS, 0)
    if form.softcap:
      tanh_XRS = logits_XRS / form.softcap
      d_logits_XRS *= 1 - jnp.square(tanh_XRS)
    if bias is not None:
      d_bias = _of_bias(block, arrays, d_logits_XRS)
      d_biases.append(d_bias)
    d_logits_XRS *= form.scale
    d_q_XRH = jnp.einsum('XRS,XSH->XRH', d_logits_XRS, k_XSH)
    d_k_XSH = jnp.einsum('XRS,XRH->XSH', d_logits_XRS, q_XRH)
    d_v_XSH = jnp.einsum('XRS,XRH->XSH', p_XRS, d_out_XRH)
    d_q_of_block = d_q_XRH.reshape(X, -1, G, H)
    d_qs.append(d_q_of_block)
    d_ks.append(_padded(d_k_XSH, block, S))
    d_vs.append(_padded(d_v_XSH, block, S))
  d_bias_NTS = None
  if d_biases:
    d_bias_NTS = jnp.concatenate(d_biases, axis=1)
  d_q = jnp.concatenate(d_qs, axis=1)
  return d_q, _total(d_ks), _total(d_vs), d_bias_NTS, None, None


_attention.defvjp(_forward, _backward)


def _queries(block: Block, x_XTGH: jax.Array) -> jax.Array:
  """[X, R, H] of a block."""
  X, _, _, H = x_XTGH.shape
  return x_XTGH[:, block.queries].reshape(X, -1, H)


def _by_heads(block: Block, arrays: Arrays, x_XRS: jax.Array) -> jax.Array:
  """[B, K, queries, G, keys]."""
  X, _, S = x_XRS.shape
  B, _ = arrays.query['segments'].shape
  queries = block.queries.stop - block.queries.start
  return x_XRS.reshape(B, X // B, queries, -1, S)


def _logits(form: Form, block: Block, arrays: Arrays) -> jax.Array:
  """Scaled, biased and capped, [X, R, keys of the block]."""
  q_XRH = _queries(block, arrays.q)
  k_XSH = arrays.k[:, block.keys]
  products_XRS = jnp.einsum('XRH,XSH->XRS', q_XRH, k_XSH)
  logits_XRS = form.scale * products_XRS
  if arrays.bias is not None:
    bias_NTS = arrays.bias[:, block.queries, block.keys]
    logits_BKTGS = _by_heads(block, arrays, logits_XRS)
    _, K, T, G, S = logits_BKTGS.shape
    bias_KGTS = bias_NTS.reshape(K, G, T, S)
    bias_KTGS = jnp.swapaxes(bias_KGTS, 1, 2)
    logits_BKTGS += bias_KTGS[None]
    logits_XRS = logits_BKTGS.reshape(logits_XRS.shape)
  return capped(logits_XRS, form.softcap)


def _masked(
    form: Form,
    block: Block,
    arrays: Arrays,
    logits_XRS: jax.Array,
) -> jax.Array:
  query = _of_slots(arrays.query, block.queries)
  key = _of_slots(arrays.key, block.keys)
  mask_BTS = form.visible(query, key)
  mask_B1T1S = mask_BTS[:, None, :, None]
  logits_BKTGS = _by_heads(block, arrays, logits_XRS)
  masked_BKTGS = jnp.where(mask_B1T1S, logits_BKTGS, MASKED)
  return masked_BKTGS.reshape(logits_XRS.shape)


def _of_slots(info: Info, slots: slice) -> dict[str, jax.Array]:
  """What is known of the tokens of some slots."""
  part = {}
  for name, x in info.items():
    part[name] = x[:, slots]
  return part


def _of_bias(block: Block, arrays: Arrays, d_logits_XRS: jax.Array) -> jax.Array:
  """A block's rows of the gradient of the bias, [N, queries, S]."""
  d_logits_BKTGS = _by_heads(block, arrays, d_logits_XRS)
  d_bias_KTGS = jnp.sum(d_logits_BKTGS, axis=0)
  d_bias_KGTS = jnp.swapaxes(d_bias_KTGS, 1, 2)
  _, _, queries, keys = d_bias_KGTS.shape
  d_bias_NTS = d_bias_KGTS.reshape(-1, queries, keys)
  _, S, _ = arrays.k.shape
  nothing = (0, 0)
  missing = _missing(block, S)
  return jnp.pad(d_bias_NTS, (nothing, nothing, missing))


def _missing(block: Block, S: int) -> tuple[int, int]:
  """How many keys are before those of a block, and how many after."""
  return block.keys.start, S - block.keys.stop


def _padded(x_XSH: jax.Array, block: Block, S: int) -> jax.Array:
  nothing = (0, 0)
  missing = _missing(block, S)
  return jnp.pad(x_XSH, (nothing, missing, nothing))


def _total(parts: Sequence[jax.Array]) -> jax.Array:
  return functools.reduce(jnp.add, parts)
