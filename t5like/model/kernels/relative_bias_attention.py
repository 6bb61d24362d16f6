"""Attention with a bias for each distance, such as T5's, that makes no [T, S] array: a Pallas kernel for TPUs.

The bias of a head is one vector with a value for each distance between a query and a key; blocks of it are made in
VMEM, when they are needed (relative_bias_blocks.py, docs/relative_bias_attention.md). Its gradient is a vector, too:
forward and backward take memory of T + S for it. Otherwise this is flash attention (Dao et al. 2022, arXiv 2205.14135;
in its backward pass one visit to a pair of blocks serves all gradients): softmax over blocks of keys with a running
maximum, and the logits made again for the gradient.

It runs on what one device holds, inside `shard_map`. `reference` says what is computed.
"""
import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from t5like.model.kernels import relative_bias_blocks as blocks
from t5like.model.kernels.relative_bias_blocks import LANES, NOBODY, Form

MIB = 2 ** 20
LARGEST, SMALLER = 1024, 512  # blocks of queries or keys
LONGEST = 32_768  # queries, and keys, of one call: of more the distances, turned 128 times, do not fit VMEM


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
  form = Form(causal, float(scale), float(softcap), block_q, block_k, queries, keys, interpret)
  q_BNTH = _pad(q_BTNH, 1, queries - T).swapaxes(1, 2)
  k_BKSH, v_BKSH = (_pad(x, 1, keys - S).swapaxes(1, 2) for x in (k_BSKH, v_BSKH))
  bias_NR = jnp.pad(bias_NR.astype(jnp.float32), [(0, 0), (keys - S, queries - T)])
  has_prefix = causal and 'prefix' in query
  key = dict(key, segments=jnp.where(key['segments'] > 0, key['segments'], NOBODY))
  out_BNTH = _attend(form, start if isinstance(start, int) else None, q_BNTH, k_BKSH, v_BKSH, bias_NR,
                     _ids(query, queries - T, 0, has_prefix), _ids(key, keys - S, NOBODY, has_prefix),
                     jnp.full((1,), start, jnp.int32))
  return out_BNTH.swapaxes(1, 2)[:, :T]


def vmem():
  """Bytes that a kernel may take of the VMEM of a core, on the TPUs of the mesh in force (64 MiB elsewhere)."""
  device = jax.sharding.get_abstract_mesh().abstract_device
  is_tpu = (device.platform if device else jax.default_backend()) == 'tpu'
  return (pltpu.get_tpu_info().vmem_capacity_bytes if is_tpu else 64 * MIB) * 7 // 8


def block_size(length, causal):
  """A multiple of 128 by which `length` is cut evenly: blocks as large as their intermediate values allow.

  These take 4 MiB each at 1024 x 1024, which all TPUs have room for but v4 with its 16 MiB: it has 512. Under a causal
  mask parts of the blocks on the diagonal are for nothing, less with blocks of a quarter of the length; but below 512
  a step of the grid would cost more than what it computes (on v5e 0.7 us forward, v6e a fifth of it).
  """
  largest = LARGEST if vmem() > 32 * MIB else SMALLER
  most = min(largest, max(SMALLER, length // 4)) if causal else largest
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


def _work(form):
  """Bytes of VMEM for blocks, and for what a visit makes of them."""
  return 28 * form.block_q * form.block_k + 4 * MIB


def _longest():
  """Most queries, and most keys, of one call of a kernel."""
  return LONGEST if vmem() > 32 * MIB else LONGEST // 4


def _spans(length, most, block):
  """[(start, size)] that cut a length, a multiple of `block`, into the fewest even pieces of at most `most`."""
  count = -(-length // max(most, block))
  size = _up(-(-length // count), block)
  return [(start, min(size, length - start)) for start in range(0, length, size)]


def _is_seen(form, first, at_query, queries, at_key, ids):
  """Whether some of these queries may see keys from slot `at_key` on, as far as is known while tracing."""
  return not form.causal or ids.shape[1] > 1 or first is None or first + at_query + queries > at_key


def _distances(form, at_query, queries, at_key, keys):
  """Which values by distance queries and keys from these slots on have between them."""
  start = at_query - at_key + form.keys - keys
  return slice(start, start + queries + keys)


def _piece(form, H):
  """Queries whose gradients, and distances to all keys, fit what VMEM there is: all, or so many at a time."""
  of_distance, of_query = 8 * LANES, 4 * H + 8 * LANES  # bytes
  most = (vmem() - _work(form) - of_distance * form.keys) // of_query // form.block_q
  pieces = -(-form.queries // (max(1, most) * form.block_q))
  return _up(-(-form.queries // pieces), form.block_q)


def visits(form, first=0, has_prefix=False):
  """[n, 2] int32: (block of queries, block of keys) of all pairs of which one sees the other, row by row.

  first: the slot of the first query, counted from that of the first key, None where it is known on the device only.
  All keys are in some pair, and all queries.
  """
  rows = form.queries // form.block_q
  i, j = np.indices((rows, form.keys // form.block_k)).reshape(2, -1)
  seen = (first or 0) + (i + 1) * form.block_q > j * form.block_k
  if not form.causal or has_prefix or first is None:
    seen[:] = True
  return np.stack([i, j], 1)[seen | (i == rows - 1) | (j == 0)].astype(np.int32)


# --- The kernels as a function with a gradient -----------------------------------------------------


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _attend(form, first, q_BNTH, k_BKSH, v_BKSH, bias_NR, query_ids, key_ids, start):
  return _forward_in_pieces(form, first, q_BNTH, k_BKSH, v_BKSH, bias_NR, query_ids, key_ids, start)[0]


def _attend_forward(form, first, *arrays):
  # What the backward pass needs has a name, for the policies of `jax.checkpoint`.
  out_BNTH, lse_BN1T = (checkpoint_name(x, 'context') for x in _forward_in_pieces(form, first, *arrays))
  return out_BNTH, (*arrays, out_BNTH, lse_BN1T)


def _forward_in_pieces(form, first, q, k, v, bias, query_ids, key_ids, start):
  """(out_BNTH, logsumexp_BN1T) from calls of at most LONGEST queries and keys each; most often that is one call."""
  of_queries, of_keys = (_spans(n, _longest(), block) for n, block in (
      (form.queries, form.block_q), (form.keys, form.block_k)))
  dtype = q.dtype if len(of_keys) == 1 else jnp.float32
  outs, sums = [], []
  for at_query, queries in of_queries:
    together = None
    for at_key, keys in of_keys:
      if together and not _is_seen(form, first, at_query, queries, at_key, query_ids):
        continue
      part = dataclasses.replace(form, queries=queries, keys=keys)
      piece = lambda x, at, n, axis: jax.lax.slice_in_dim(x, at, at + n, axis=axis)
      of_piece = _forward(
          part, None if first is None else first + at_query - at_key, piece(q, at_query, queries, 2),
          piece(k, at_key, keys, 2), piece(v, at_key, keys, 2),
          bias[:, _distances(form, at_query, queries, at_key, keys)], piece(query_ids, at_query, queries, 2),
          piece(key_ids, at_key, keys, 2), start + (at_query - at_key), dtype)
      together = _joined(together, of_piece) if together else of_piece
    outs.append(together[0].astype(q.dtype))
    sums.append(together[1])
  return jnp.concatenate(outs, 2), jnp.concatenate(sums, 3)


def _joined(some, others):
  """(out_BNTH, logsumexp_BN1T) of queries that see two lots of keys, from those of each lot."""
  (out, lse), (other_out, other_lse) = some, others
  most = jnp.maximum(lse, other_lse)
  weight, other_weight = jnp.exp(lse - most), jnp.exp(other_lse - most)
  total = weight + other_weight
  share_BNT1, other_share_BNT1 = (jnp.swapaxes(w / total, 2, 3) for w in (weight, other_weight))
  return share_BNT1 * out + other_share_BNT1 * other_out, most + jnp.log(total)


def _attend_backward(form, first, saved, do_BNTH):
  q, k, v, bias, query_ids, key_ids, start, out, lse = saved
  B, K, S, H = k.shape
  di = jnp.einsum('BNTH,BNTH->BNT', out, do_BNTH, preferred_element_type=jnp.float32)[:, :, None]
  dbias, dk_parts, dv_parts = jnp.zeros_like(bias), [], []
  of_keys = _spans(form.keys, _longest(), form.block_k)
  length = _piece(dataclasses.replace(form, keys=of_keys[0][1]), H)
  of_queries = [(at, min(length, form.queries - at)) for at in range(0, form.queries, length)]
  dq_parts = [0] * len(of_queries)
  for at_key, keys in of_keys:
    dk, dv = 0, 0
    for number, (at_query, queries) in enumerate(of_queries):
      if number < len(of_queries) - 1 and at_key and not _is_seen(form, first, at_query, queries, at_key, query_ids):
        continue
      q, dk, dv = jax.lax.optimization_barrier((q, dk, dv))  # one piece after the other, or all take memory at once
      part = dataclasses.replace(form, queries=queries, keys=keys)
      piece = lambda x, axis: jax.lax.slice_in_dim(x, at_query, at_query + queries, axis=axis)
      piece_of_keys = lambda x: jax.lax.slice_in_dim(x, at_key, at_key + keys, axis=2)
      distances = _distances(form, at_query, queries, at_key, keys)
      dq_part, dk_part, dv_part, dbias_part = _backward(
          part, None if first is None else first + at_query - at_key, piece(q, 2), piece(do_BNTH, 2),
          piece_of_keys(k), piece_of_keys(v), bias[:, distances], piece(query_ids, 2), piece_of_keys(key_ids),
          piece(lse, 3), piece(di, 3), start + (at_query - at_key), q_whole=len(of_keys) == 1,
          kv_whole=len(of_queries) == 1)
      dq_parts[number] += dq_part
      dk, dv = dk + dk_part, dv + dv_part
      dbias = dbias.at[:, distances].add(jnp.sum(dbias_part, (0, 2)))
    dk_parts.append(dk)
    dv_parts.append(dv)
  dq = jnp.concatenate([x.astype(q.dtype) for x in dq_parts], 2)
  dk, dv = (jnp.sum(jnp.concatenate(parts, 2).reshape(B, K, -1, S, H), 2).astype(like.dtype)  # heads that share them
            for parts, like in ((dk_parts, k), (dv_parts, v)))
  return dq, dk, dv, dbias, None, None, None


_attend.defvjp(_attend_forward, _attend_backward)


def _name(form, ids, direction):
  """By which preflight knows a call, and that a causal mask, where there are no prefixes, spares half of it."""
  return f'relative_bias_{"causal_" * (form.causal and ids == 1)}{direction}'


def _call(form, name, kernel, lists, start, inputs, outputs, scratch, grid, flops):
  """The kernel on a grid of (row of the batch, head, visit); inputs, outputs: (array or its shape, block, where)."""
  specs = lambda arrays: [pl.BlockSpec(block, where) for _, block, where in arrays]
  size = lambda arrays: sum(x.size * x.dtype.itemsize for x, _, _ in arrays)
  kept = sum(4 * math.prod(shape) for shape in scratch)
  return pl.pallas_call(
      functools.partial(kernel, form=form), out_shape=[shape for shape, _, _ in outputs],
      grid_spec=pltpu.PrefetchScalarGridSpec(
          num_scalar_prefetch=len(lists) + 1, grid=grid, in_specs=specs(inputs), out_specs=specs(outputs),
          scratch_shapes=[*(pltpu.VMEM(shape, jnp.float32) for shape in scratch[:-1]),
                          pltpu.VMEM(scratch[-1], jnp.int32)]),
      compiler_params=pltpu.CompilerParams(dimension_semantics=('parallel', 'parallel', 'arbitrary'),
                                           vmem_limit_bytes=min(vmem(), kept + _work(form))),
      cost_estimate=pl.CostEstimate(flops=flops, bytes_accessed=size(inputs) + size(outputs),
                                    transcendentals=math.prod(grid) * form.block_q * form.block_k),
      interpret=form.interpret, name=name,
  )(*map(jnp.asarray, lists), start, *(x for x, _, _ in inputs))


def _forward(form, first, q_BNTH, k_BKSH, v_BKSH, bias_NR, query_ids, key_ids, start, dtype):
  """(out_BNTH, of a dtype, logsumexp_BN1T)."""
  (B, N, T, H), K, I, R = q_BNTH.shape, k_BKSH.shape[1], query_ids.shape[1], bias_NR.shape[1]
  q, k, group = form.block_q, form.block_k, N // K
  rows, cols = visits(form, first, I > 1).T
  reversed_NR = jnp.roll(bias_NR[:, ::-1], 1, 1)  # element s - t + T for key s
  # Where blocks begin, for row b, head n, visit v of the lists of visits.
  at_query = lambda b, n, v, i, *_: (b, n, i[v], 0)
  at_key = lambda b, n, v, i, j, *_: (b, jax.lax.div(n, group), j[v], 0)
  return _call(
      form, _name(form, I, 'forward'), blocks.forward, (rows, cols), start,
      [(q_BNTH, (None, None, q, H), at_query), (k_BKSH, (None, None, k, H), at_key),
       (v_BKSH, (None, None, k, H), at_key), (reversed_NR[:, None], (None, 1, R), lambda b, n, *_: (n, 0, 0)),
       (query_ids, (None, I, q), lambda b, n, v, i, *_: (b, 0, i[v])),
       (key_ids, (None, I, k), lambda b, n, v, i, j, *_: (b, 0, j[v]))],
      [(jax.ShapeDtypeStruct(q_BNTH.shape, dtype), (None, None, q, H), at_query),
       (jax.ShapeDtypeStruct((B, N, 1, T), jnp.float32), (None, None, 1, q), lambda b, n, v, i, *_: (b, n, 0, i[v]))],
      [(q, LANES), (q, LANES), (q, H), (LANES, R), (I, q, LANES)], (B, N, len(rows)), 4 * B * N * len(rows) * q * k * H)


def _backward(form, first, q_BNTH, do_BNTH, k_BKSH, v_BKSH, bias_NR, query_ids, key_ids, lse_BN1T, di_BN1T, start,
              q_whole, kv_whole):
  """(dq_BNTH, dk_BNSH, dv_BNSH, dbias_BN1R), those of keys and values for each head of queries.

  q_whole: all keys are here, kv_whole: all queries; gradients are fp32 sums where others are added to them.
  """
  (B, N, T, H), (_, K, S, _) = q_BNTH.shape, k_BKSH.shape
  I, R, q, k, group = query_ids.shape[1], bias_NR.shape[1], form.block_q, form.block_k, N // K
  pairs = visits(form, first, I > 1)
  rows, cols = pairs[np.lexsort(pairs.T)].T  # column by column
  done = sorted({i: v for v, i in enumerate(rows.tolist())}.values())  # the last visit of each row
  written = rows[np.take(done, np.searchsorted(done, np.arange(len(rows))), mode='clip')]
  at_query, at_row = lambda b, n, v, i, *_: (b, n, i[v], 0), lambda b, n, v, i, *_: (b, n, 0, i[v])
  at_key = lambda b, n, v, i, j, *_: (b, jax.lax.div(n, group), j[v], 0)
  of_queries, of_keys = (None, None, q, H), (None, None, k, H)
  # What several heads, or pieces of the queries, add to is rounded when it is complete.
  dkv = jax.ShapeDtypeStruct((B, N, S, H), k_BKSH.dtype if group == 1 and kv_whole else jnp.float32)
  dq = jax.ShapeDtypeStruct(q_BNTH.shape, q_BNTH.dtype if q_whole else jnp.float32)
  return _call(
      form, _name(form, I, 'backward'), blocks.backward, (rows, cols, written), start,
      [(q_BNTH, of_queries, at_query), (k_BKSH, of_keys, at_key), (v_BKSH, of_keys, at_key),
       (do_BNTH, of_queries, at_query),
       (k_BKSH.swapaxes(2, 3), (None, None, H, k), lambda b, n, v, i, j, *_: (b, jax.lax.div(n, group), 0, j[v])),
       (bias_NR[:, None], (None, 1, R), lambda b, n, *_: (n, 0, 0)),
       (query_ids, (None, I, q), lambda b, n, v, i, *_: (b, 0, i[v])),
       (key_ids, (None, I, k), lambda b, n, v, i, j, *_: (b, 0, j[v])),
       (lse_BN1T, (None, None, 1, q), at_row), (di_BN1T, (None, None, 1, q), at_row)],
      [(dq, of_queries, lambda b, n, v, i, j, w, *_: (b, n, w[v], 0)),
       *((dkv, of_keys, lambda b, n, v, i, j, *_: (b, n, j[v], 0)),) * 2,
       (jax.ShapeDtypeStruct((B, N, 1, R), jnp.float32), (None, None, 1, R), lambda b, n, *_: (b, n, 0, 0))],
      [(T // q, H, q), (k, H), (k, H), (LANES, R), (LANES, R + LANES), (I, k, LANES)],
      (B, N, len(rows)), 10 * B * N * len(rows) * q * k * H)
