"""Attention with a bias for each distance, such as T5's, that makes no [T, S] array: a Pallas kernel for TPUs.

The bias of a head is one vector with a value for each distance between a query and a key; blocks of it are made in
VMEM, when they are needed (relative_bias_blocks.py, docs/relative_bias_attention.md). Its gradient is a vector, too:
forward and backward take memory of T + S for it. Otherwise this is flash attention (Dao et al. 2022, arXiv 2205.14135;
in its backward pass one visit to a pair of blocks serves all gradients): softmax over blocks of keys with a running
maximum, and the logits made again for the gradient.

It runs on what one device holds, inside `shard_map`. `reference` says what is computed.
"""
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from t5like.kernels import relative_bias_blocks as blocks
from t5like.kernels.relative_bias_blocks import LANES, NOBODY, Form

VMEM = 64 * 2 ** 20
LARGEST = 512  # of blocks
DQ_BYTES = 4 * 2 ** 20  # of gradients of queries that wait in VMEM; longer rows of queries go in pieces


def expand(bias_NR, T, S):
  """[N, T, S] of [N, T + S] values by distance: query t has bias_NR[:, t - s + S] for key s."""
  # Row t is the ring of values turned by t: rows one element short of the ring, laid end to end, which the compiler
  # turns into copies; a gather would make its gradient a scatter.
  N, R = bias_NR.shape
  ring_NR = jnp.roll(bias_NR[:, ::-1], 1 - T, 1)
  rows = jnp.broadcast_to(ring_NR[:, None], (N, T, R)).reshape(N, T * R)
  return rows[:, :T * (R - 1)].reshape(N, T, R - 1)[:, :, :S]


def reference(q_BTNH, k_BSKH, v_BSKH, bias_NR, query, key, causal, scale=1.0, softcap=0.0, start=0):
  """What `attention` computes, in [T, S] arrays of fp32."""
  (B, T, N, H), (_, S, K, _) = q_BTNH.shape, k_BSKH.shape
  q_BTKGH = q_BTNH.reshape(B, T, K, N // K, H)
  logits = scale * jnp.einsum('BTKGH,BSKH->BKGTS', q_BTKGH, k_BSKH, preferred_element_type=jnp.float32)
  logits += expand(bias_NR, T, S).reshape(1, K, N // K, T, S)
  logits = softcap * jnp.tanh(logits / softcap) if softcap else logits
  seen = query['segments'][:, :, None] == jnp.where(key['segments'] > 0, key['segments'], NOBODY)[:, None]
  if causal:
    before = start + jnp.arange(T)[None, :, None] >= jnp.arange(S)[None, None]
    seen &= (before | query['prefix'][:, :, None] & key['prefix'][:, None]) if 'prefix' in query else before
  seen = seen[:, None, None]
  p = jnp.where(seen, jax.nn.softmax(jnp.where(seen, logits, blocks.MASKED)), 0).astype(v_BSKH.dtype)
  return jnp.einsum('BKGTS,BSKH->BTKGH', p, v_BSKH).reshape(q_BTNH.shape)


def attention(q_BTNH, k_BSKH, v_BSKH, bias_NR, query, key, causal, scale=1.0, softcap=0.0, start=0, interpret=False,
              block_sizes=None):
  """softmax(scale q k + bias) v, [B, T, N, H], queries that see no key getting 0.

  bias_NR: fp32, N x (T + S) values, of which query t gets element t - s + S for key s. N / K query heads share keys
  and values. query, key: dicts of `segments` (int, 0 is padding; tokens of the same see each other) and perhaps
  `prefix` (bool: see each other under `causal`, too). causal: queries, the first at slot `start` of S (an int, or
  traced), see no later slots. softcap: logits are softcap tanh(logits / softcap); 0: they are not. interpret: not on
  a TPU. block_sizes: (of queries, of keys), multiples of 128; None: chosen.
  """
  T, S = q_BTNH.shape[1], k_BSKH.shape[1]
  block_q, block_k = block_sizes or (block_size(T, causal), block_size(S, causal))
  queries, keys = _up(T, block_q), _up(S, block_k)
  form = Form(causal, float(scale), float(softcap), block_q, block_k, keys, interpret)
  q_BNTH = _pad(q_BTNH, 1, queries - T).swapaxes(1, 2)
  k_BKSH, v_BKSH = (_pad(x, 1, keys - S).swapaxes(1, 2) for x in (k_BSKH, v_BSKH))
  bias_NR = jnp.pad(bias_NR.astype(jnp.float32), [(0, 0), (keys - S, queries - T)])
  has_prefix = causal and 'prefix' in query
  key = dict(key, segments=jnp.where(key['segments'] > 0, key['segments'], NOBODY))
  out_BNTH = _attend(form, start if isinstance(start, int) else None, q_BNTH, k_BKSH, v_BKSH, bias_NR,
                     _ids(query, queries - T, 0, has_prefix), _ids(key, keys - S, NOBODY, has_prefix),
                     jnp.full((1,), start, jnp.int32))
  return out_BNTH.swapaxes(1, 2)[:, :T]


def block_size(length, causal):
  """A multiple of 128 by which `length` is cut evenly: blocks of at most LARGEST, under a causal mask of a quarter."""
  most = min(LARGEST, max(LANES, length // 4)) if causal else LARGEST
  return _up(math.ceil(length / math.ceil(length / most)), LANES)


def _up(n, unit):
  return -(-n // unit) * unit


def _pad(x, axis, n, value=0):
  return jnp.pad(x, [(0, n * (a == axis)) for a in range(x.ndim)], constant_values=value) if n else x


def _ids(info, padding, nobody, has_prefix):
  """[B, 1 or 2, length]: segments and, of tokens of prefixes, segments again; of others a number that nothing has."""
  segments = _pad(info['segments'], 1, padding, nobody).astype(jnp.int32)
  if not has_prefix:
    return segments[:, None]
  none = NOBODY if nobody == NOBODY else NOBODY - 1
  return jnp.stack([segments, jnp.where(_pad(info['prefix'], 1, padding), segments, none)], 1)


def visits(form, rows, first=0, has_prefix=False):
  """[n, 2] int32: (block of queries, block of keys) of all pairs of which one sees the other, row by row.

  rows: blocks of queries; first: the slot of the first query, None where it is known on the device only. All keys
  are in some pair, and all queries.
  """
  i, j = np.indices((rows, form.keys // form.block_k)).reshape(2, -1)
  seen = (first or 0) + (i + 1) * form.block_q > j * form.block_k
  if not form.causal or has_prefix or first is None:
    seen[:] = True
  return np.stack([i, j], 1)[seen | (i == rows - 1)].astype(np.int32)


# --- The kernels as a function with a gradient -----------------------------------------------------


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _attend(form, first, q_BNTH, k_BKSH, v_BKSH, bias_NR, query_ids, key_ids, start):
  return _forward(form, first, q_BNTH, k_BKSH, v_BKSH, bias_NR, query_ids, key_ids, start)[0]


def _attend_forward(form, first, *given):
  # What the backward pass needs has a name, for the policies of `jax.checkpoint`.
  out_BNTH, lse_BN1T = (checkpoint_name(x, 'context') for x in _forward(form, first, *given))
  return out_BNTH, (*given, out_BNTH, lse_BN1T)


def _attend_backward(form, first, saved, do_BNTH):
  q, k, v, bias, query_ids, key_ids, start, out, lse = saved
  di = jnp.einsum('BNTH,BNTH->BNT', out, do_BNTH, preferred_element_type=jnp.float32)[:, :, None]
  T, group, H = q.shape[2], q.shape[1] // k.shape[1], q.shape[3]
  rows = max(1, DQ_BYTES // (4 * group * H * form.block_q))
  length = rows * form.block_q
  dq, dk, dv, dbias = [], 0, 0, jnp.zeros_like(bias)
  for at in range(0, T, length):
    piece = slice(at, min(T, at + length))
    distances = slice(at, piece.stop + form.keys)
    x = lambda x, axis: x[(slice(None),) * axis + (piece,)]
    parts = _backward(form, None if first is None else first + at, x(q, 2), x(do_BNTH, 2), k, v, bias[:, distances],
                      x(query_ids, 2), key_ids, x(lse, 3), x(di, 3), start + at, whole=length >= T)
    dq.append(parts[0])
    dk, dv = dk + parts[1], dv + parts[2]
    dbias = dbias.at[:, distances].add(jnp.sum(parts[3], (0, 2)))
  return (jnp.concatenate(dq, 2) if len(dq) > 1 else dq[0], dk.astype(k.dtype), dv.astype(v.dtype), dbias, None, None,
          None)


_attend.defvjp(_attend_forward, _attend_backward)


def _call(form, name, kernel, lists, start, inputs, outputs, scratch, grid, flops):
  """The kernel on a grid of (row of the batch, head, visit); inputs, outputs: (array or its shape, block, where)."""
  specs = lambda arrays: [pl.BlockSpec(block, where) for _, block, where in arrays]
  size = lambda arrays: sum(x.size * x.dtype.itemsize for x, _, _ in arrays)
  return pl.pallas_call(
      functools.partial(kernel, form=form), out_shape=[shape for shape, _, _ in outputs],
      grid_spec=pltpu.PrefetchScalarGridSpec(
          num_scalar_prefetch=len(lists) + 1, grid=grid, in_specs=specs(inputs), out_specs=specs(outputs),
          scratch_shapes=[pltpu.VMEM(shape, jnp.float32) for shape in scratch]),
      compiler_params=pltpu.CompilerParams(dimension_semantics=('parallel', 'parallel', 'arbitrary'),
                                           vmem_limit_bytes=VMEM),
      cost_estimate=pl.CostEstimate(flops=flops, bytes_accessed=size(inputs) + size(outputs),
                                    transcendentals=math.prod(grid) * form.block_q * form.block_k),
      interpret=form.interpret, name=f'relative_bias_{"causal_" * form.causal}{name}',
  )(*map(jnp.asarray, lists), start, *(x for x, _, _ in inputs))


def _forward(form, first, q_BNTH, k_BKSH, v_BKSH, bias_NR, query_ids, key_ids, start):
  """(out_BNTH, logsumexp_BN1T)."""
  (B, N, T, H), K, I, R = q_BNTH.shape, k_BKSH.shape[1], query_ids.shape[1], bias_NR.shape[1]
  q, k, group = form.block_q, form.block_k, N // K
  rows, cols = visits(form, T // q, first, I > 1).T
  # Where blocks begin, for row b, head n, visit v of the lists of visits.
  at_query = lambda b, n, v, i, *_: (b, n, i[v], 0)
  at_key = lambda b, n, v, i, j, *_: (b, jax.lax.div(n, group), j[v], 0)
  return _call(
      form, 'forward', blocks.forward, (rows, cols), start,
      [(q_BNTH, (None, None, q, H), at_query), (k_BKSH, (None, None, k, H), at_key),
       (v_BKSH.swapaxes(2, 3), (None, None, H, k), lambda b, n, v, i, j, *_: (b, jax.lax.div(n, group), 0, j[v])),
       (bias_NR[:, None], (None, 1, R), lambda b, n, *_: (n, 0, 0)),
       (query_ids, (None, I, q), lambda b, n, v, i, *_: (b, 0, i[v])),
       (key_ids, (None, I, k), lambda b, n, v, i, j, *_: (b, 0, j[v]))],
      [(jax.ShapeDtypeStruct(q_BNTH.shape, q_BNTH.dtype), (None, None, q, H), at_query),
       (jax.ShapeDtypeStruct((B, N, 1, T), jnp.float32), (None, None, 1, q), lambda b, n, v, i, *_: (b, n, 0, i[v]))],
      [(1, q), (1, q), (H, q)], (B, N, len(rows)), 4 * B * N * len(rows) * q * k * H)


def _backward(form, first, q_BNTH, do_BNTH, k_BKSH, v_BKSH, bias_NR, query_ids, key_ids, lse_BN1T, di_BN1T, start,
              whole):
  """(dq_BNTH, dk_BKSH, dv_BKSH, dbias_BN1R); dk and dv are fp32 unless these are the `whole` of the queries."""
  (B, N, T, H), K, I, R = q_BNTH.shape, k_BKSH.shape[1], query_ids.shape[1], bias_NR.shape[1]
  q, k, group, blocks_q = form.block_q, form.block_k, N // K, T // form.block_q
  pairs = visits(form, blocks_q, first, I > 1)
  order = sorted((j, head, i) for i, j in pairs.tolist() for head in range(group))
  cols, heads, rows = np.array(order, np.int32).T
  block = heads * blocks_q + rows
  done = {b: v for v, b in enumerate(block.tolist())}  # the last visit of each
  ends = sorted(done.values())
  written = block[[ends[e] for e in np.searchsorted(ends, np.arange(len(block))).clip(max=len(ends) - 1)]]
  at_query = lambda b, n, v, i, j, h, *_: (b, n * group + h[v], i[v], 0)
  at_row = lambda b, n, v, i, j, h, *_: (b, n * group + h[v], 0, i[v])
  at_key = lambda b, n, v, i, j, *_: (b, n, j[v], 0)
  of_queries, of_keys = (None, None, q, H), (None, None, k, H)
  like = lambda x, dtype: jax.ShapeDtypeStruct(x.shape, dtype)
  return _call(
      form, 'backward', blocks.backward, (rows, cols, heads, written), start,
      [(q_BNTH, of_queries, at_query), (do_BNTH, of_queries, at_query), (k_BKSH, of_keys, at_key),
       (v_BKSH, of_keys, at_key),
       (k_BKSH.swapaxes(2, 3), (None, None, H, k), lambda b, n, v, i, j, *_: (b, n, 0, j[v])),
       (bias_NR[:, None], (group, 1, R), lambda b, n, *_: (n, 0, 0)),
       (query_ids, (None, I, q), lambda b, n, v, i, *_: (b, 0, i[v])),
       (key_ids, (None, I, k), lambda b, n, v, i, j, *_: (b, 0, j[v])),
       (lse_BN1T, (None, None, 1, q), at_row), (di_BN1T, (None, None, 1, q), at_row)],
      [(like(q_BNTH, q_BNTH.dtype), of_queries,
        lambda b, n, v, i, j, h, w, *_: (b, n * group + jax.lax.div(w[v], blocks_q), jax.lax.rem(w[v], blocks_q), 0)),
       (like(k_BKSH, k_BKSH.dtype if whole else jnp.float32), of_keys, at_key),
       (like(v_BKSH, v_BKSH.dtype if whole else jnp.float32), of_keys, at_key),
       (jax.ShapeDtypeStruct((B, N, 1, R), jnp.float32), (None, group, 1, R), lambda b, n, *_: (b, n, 0, 0))],
      [(group * blocks_q, H, q), (k, H), (k, H), (LANES, form.window)],
      (B, K, len(rows)), 10 * B * K * len(rows) * q * k * H)
