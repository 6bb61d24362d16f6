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
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from t5like.model.kernels import relative_bias_blocks as blocks, relative_bias_calls as calls
from t5like.model.kernels.relative_bias_blocks import NOBODY, Form
from t5like.model.kernels.relative_bias_calls import MIB, Arrays, Attended, visits, vmem, work
from t5like.model.kernels.relative_bias_diagonals import LANES
from t5like.model.kernels.relative_bias_pieces import Piece, Span, spans, spans_of_size

LARGEST = 1024  # blocks of queries or keys
SMALLER = 512
LONGEST = 32_768  # queries, and keys, of one call: of more the distances, turned 128 times, do not fit VMEM

Tokens = Mapping[str, jax.Array]  # segments: int [B, length]; perhaps prefix: bool [B, length]


def expand(bias_NR: jax.Array, T: int, S: int) -> jax.Array:
  """[N, T, S] of [N, T + S] values by distance: query t has bias_NR[:, t - s + S] for key s."""
  # Row t is the ring of values turned by t: rows one element short of the ring, laid end to end, which the compiler
  # turns into copies; a gather would make its gradient a scatter.
  N, R = bias_NR.shape
  ring_NR = jnp.roll(bias_NR[:, ::-1], 1 - T, 1)
  rows_NTR = jnp.broadcast_to(ring_NR[:, None], (N, T, R))
  end_to_end = rows_NTR.reshape(N, T * R)[:, :T * (R - 1)]
  return end_to_end.reshape(N, T, R - 1)[:, :, :S]


def reference(
    q_BTNH: jax.Array,
    k_BSKH: jax.Array,
    v_BSKH: jax.Array,
    bias_NR: jax.Array,
    query: Tokens,
    key: Tokens,
    causal: bool,
    scale: float = 1.0,
    softcap: float = 0.0,
    start: Any = 0,
    window: tuple[int, int] | None = None,
    kept_BNTS: jax.Array | float = 1.0,
) -> jax.Array:
  """What `attention` computes, in [T, S] arrays of fp32; kept_BNTS: what probabilities are multiplied by."""
  B, T, N, H = q_BTNH.shape
  _, S, K, _ = k_BSKH.shape
  group = N // K
  q_BTKGH = q_BTNH.reshape(B, T, K, group, H)
  logits = scale * jnp.einsum('BTKGH,BSKH->BKGTS', q_BTKGH, k_BSKH, preferred_element_type=jnp.float32)
  logits += expand(bias_NR, T, S).reshape(1, K, group, T, S)
  if softcap:
    logits = softcap * jnp.tanh(logits / softcap)
  is_seen = _is_seen(query, key, causal, start, window)[:, None, None]
  p = jax.nn.softmax(jnp.where(is_seen, logits, blocks.MASKED))
  p = jnp.where(is_seen, p, 0)
  if isinstance(kept_BNTS, jax.Array):
    p *= kept_BNTS.reshape(p.shape)
  p = p.astype(v_BSKH.dtype)
  return jnp.einsum('BKGTS,BSKH->BTKGH', p, v_BSKH).reshape(q_BTNH.shape)


def _is_seen(query: Tokens, key: Tokens, causal: bool, start: Any, window: tuple[int, int] | None) -> jax.Array:
  """[B, T, S] bool."""
  query_segments = query['segments'][:, :, None]
  is_seen = query_segments == without_padding(key['segments'])[:, None]
  T = query['segments'].shape[1]
  S = key['segments'].shape[1]
  query_slot = start + jnp.arange(T)[None, :, None]
  key_slot = jnp.arange(S)[None, None]
  if window is not None:
    before, after = window
    is_seen &= (query_slot - key_slot <= before) & (key_slot - query_slot <= after)
  if not causal:
    return is_seen
  is_before = query_slot >= key_slot
  if 'prefix' in query:
    is_before |= query['prefix'][:, :, None] & key['prefix'][:, None]
  return is_seen & is_before


def without_padding(segments: jax.Array) -> jax.Array:
  """Segments of keys, padding being in one that no query is in."""
  return jnp.where(segments > 0, segments, NOBODY)


class Drop(NamedTuple):
  """Which probabilities are dropped, see dropped.py.

  rate: share of them.
  alike: all queries of a row drop the same keys.
  origin: int [4]: seed; numbers of the first row, head and key in the whole batch.
  """
  rate: float
  alike: bool
  origin: jax.Array


class Starts(NamedTuple):
  """At which slots the first query of a call is on the devices that a row is spread over.

  balanced: each device has other calls too, with which it computes as much as all others: a call is taken to compute as
    much as one does in the mean. Otherwise all devices wait for the one that computes most.
  """
  of_devices: Sequence[int]
  balanced: bool


def attention(
    q_BTNH: jax.Array,
    k_BSKH: jax.Array,
    v_BSKH: jax.Array,
    bias_NR: jax.Array | None,
    query: Tokens,
    key: Tokens,
    causal: bool,
    scale: float = 1.0,
    softcap: float = 0.0,
    start: Any = 0,
    interpret: bool = False,
    block_sizes: tuple[int, int] | None = None,
    window: tuple[int, int] | None = None,
    starts: Starts | None = None,
    drop: Drop | None = None,
) -> jax.Array:
  """softmax(scale q k + bias) v, [B, T, N, H], queries that see no key getting 0.

  Args:
    q_BTNH: queries.
    k_BSKH: keys; N / K heads of queries share them and the values.
    v_BSKH: values.
    bias_NR: fp32, N x (T + S) values, of which query t gets element t - s + S for key s; None: there is no bias.
    query: of the queries' tokens: `segments` (int, 0 is padding; tokens of the same see each other) and perhaps
      `prefix` (bool: see each other under `causal`, too).
    key: the same of the keys' tokens.
    causal: queries see no later slots.
    scale: of logits.
    softcap: logits are softcap tanh(logits / softcap); 0: they are not.
    start: slot of S of the first query, an int or traced.
    interpret: not on a TPU.
    block_sizes: (of queries, of keys), multiples of 128; None: chosen.
    window: (keys before its own slot, keys after it) that a query sees at most; None: all.
    starts: of all devices, where `start` is traced: what the kernel says that it computes; None: all pairs of blocks.
    drop: which probabilities are dropped; None: none.
  """
  T = q_BTNH.shape[1]
  S = k_BSKH.shape[1]
  before, after = window or (None, None)
  block_q, block_k = block_sizes or (block_size(T, causal, before), block_size(S, causal, before))
  queries = round_up(T, block_q)
  keys = round_up(S, block_k)
  form = Form(causal, float(scale), float(softcap), block_q, block_k, queries, keys, interpret, before, after)
  if bias_NR is None:
    form = dataclasses.replace(form, biased=False)
    bias_NR = jnp.zeros((q_BTNH.shape[2], T + S), jnp.float32)
  origin = jnp.zeros((4,), jnp.int32)
  if drop is not None:
    form = dataclasses.replace(form, rate=drop.rate, alike=drop.alike)
    origin = drop.origin
  arrays = _padded(form, q_BTNH, k_BSKH, v_BSKH, bias_NR, query, key, start, origin)
  first = None
  if isinstance(start, int):
    first = start
  elif starts is not None:
    form = dataclasses.replace(form, share=share_of(form, starts, causal and 'prefix' in query))
  out_BNTH: Any = _attend(form, first, *arrays)
  return out_BNTH.swapaxes(1, 2)[:, :T]


def share_of(form: Form, starts: Starts, has_prefix: bool) -> float:
  """The share of pairs of blocks that a call computes."""
  visited = [len(visits(form, start, has_prefix)) for start in starts.of_devices]
  count = max(visited)
  if starts.balanced:
    count = sum(visited) / len(visited)
  return count / len(visits(form, None))


def _padded(
    form: Form,
    q_BTNH: jax.Array,
    k_BSKH: jax.Array,
    v_BSKH: jax.Array,
    bias_NR: jax.Array,
    query: Tokens,
    key: Tokens,
    start: Any,
    origin: jax.Array,
) -> Arrays:
  """What `attention` is given, as the kernels of a form read it."""
  more_queries = form.queries - q_BTNH.shape[1]
  more_keys = form.keys - k_BSKH.shape[1]
  has_prefix = form.causal and 'prefix' in query
  key = {**key, 'segments': without_padding(key['segments'])}
  return Arrays(
      q_BNTH=_pad(q_BTNH, more_queries).swapaxes(1, 2),
      k_BKSH=_pad(k_BSKH, more_keys).swapaxes(1, 2),
      v_BKSH=_pad(v_BSKH, more_keys).swapaxes(1, 2),
      bias_NR=jnp.pad(bias_NR.astype(jnp.float32), [(0, 0), (more_keys, more_queries)]),
      query_ids=ids_of(query, more_queries, 0, has_prefix),
      key_ids=ids_of(key, more_keys, NOBODY, has_prefix),
      start=jnp.full((1,), start, jnp.int32),
      origin=origin,
  )


def block_size(length: int, causal: bool, before: int | None = None) -> int:
  """A multiple of 128 by which `length` is cut evenly: blocks as large as their intermediate values allow.

  These take 4 MiB each at 1024 x 1024, which all TPUs have room for but v4 with its 16 MiB: it has 512. Under a causal
  mask parts of the blocks on the diagonal are for nothing, less with blocks of a quarter of the length; but below 512
  a step of the grid would cost more than what it computes (on v5e 0.7 us forward, v6e a fifth of it). The same goes for
  windows of `before` keys.
  """
  most = SMALLER
  if vmem() > 32 * MIB:
    most = LARGEST
  if causal:
    most = min(most, max(SMALLER, length // 4))
  if before is not None:
    most = min(most, max(SMALLER, before // 2))
  count = math.ceil(length / most)
  return round_up(math.ceil(length / count), LANES)


def round_up(n: int, unit: int) -> int:
  return -(-n // unit) * unit


def _pad(x: jax.Array, n: int, value: int = 0) -> jax.Array:
  """An array [B, length, ..] with n more elements along its length."""
  if not n:
    return x
  widths = [(0, 0)] * x.ndim
  widths[1] = (0, n)
  return jnp.pad(x, widths, constant_values=value)


def ids_of(tokens: Tokens, padding: int, nobody: int, has_prefix: bool) -> jax.Array:
  """[B, 1 or 2, length]: segments and, of tokens of prefixes, segments again; of others a number that nothing has."""
  segments = _pad(tokens['segments'], padding, nobody).astype(jnp.int32)
  if not has_prefix:
    return segments[:, None]
  no_prefix = NOBODY - 1
  if nobody == NOBODY:
    no_prefix = NOBODY
  in_prefix = _pad(tokens['prefix'], padding)
  return jnp.stack([segments, jnp.where(in_prefix, segments, no_prefix)], 1)


# --- Pieces ---------------------------------------------------------------------------------------


def _longest() -> int:
  """Most queries, and most keys, of one call of a kernel."""
  if vmem() > 32 * MIB:
    return LONGEST
  return LONGEST // 4


def _piece(form: Form, H: int) -> int:
  """Queries whose gradients, and distances to all keys, fit what VMEM there is: all, or this number at a time."""
  bytes_of_distance = 8 * LANES
  bytes_of_query = 4 * H + 8 * LANES
  available = vmem() - work(form) - bytes_of_distance * form.keys
  most_blocks = max(1, available // bytes_of_query // form.block_q)
  pieces = -(-form.queries // (most_blocks * form.block_q))
  return round_up(-(-form.queries // pieces), form.block_q)


# --- The kernels as a function with a gradient -----------------------------------------------------


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _attend(form, first, *arrays):
  out_BNTH, _ = forward_in_pieces(form, first, Arrays(*arrays))
  return out_BNTH


def _attend_forward(form, first, *arrays):
  out_BNTH, lse_BN1T = forward_in_pieces(form, first, Arrays(*arrays))
  # What the backward pass needs has a name, for the policies of `jax.checkpoint`.
  out_BNTH = checkpoint_name(out_BNTH, 'context')
  lse_BN1T = checkpoint_name(lse_BN1T, 'context')
  return out_BNTH, (*arrays, out_BNTH, lse_BN1T)


def forward_in_pieces(form: Form, first: int | None, arrays: Arrays) -> Attended:
  """From calls of at most LONGEST queries and keys each; most often that is one call."""
  key_spans = spans(form.keys, _longest(), form.block_k)
  outs = []
  sums = []
  for queries in spans(form.queries, _longest(), form.block_q):
    out_BNTH, lse_BN1T = _forward_of_queries(form, first, arrays, queries, key_spans)
    outs.append(out_BNTH.astype(arrays.q_BNTH.dtype))
    sums.append(lse_BN1T)
  return Attended(
      out_BNTH=jnp.concatenate(outs, 2),
      lse_BN1T=jnp.concatenate(sums, 3),
  )


def _forward_of_queries(
    form: Form,
    first: int | None,
    arrays: Arrays,
    queries: Span,
    key_spans: list[Span],
) -> Attended:
  """Of some queries and all keys; out_BNTH is fp32 where it is the sum of several calls."""
  dtype = jnp.float32
  if len(key_spans) == 1:
    dtype = arrays.q_BNTH.dtype
  total = None
  for keys in key_spans:
    piece = Piece(queries, keys)
    if total and not piece.is_seen(form, first, arrays.query_ids):
      continue
    of_piece = calls.forward(
        piece.form(form),
        piece.first(first),
        _arrays_of(piece, form, arrays),
        dtype,
    )
    if total:
      total = _join(total, of_piece)
    else:
      total = of_piece
  assert total, 'a call needs keys'
  return total


def _arrays_of(piece: Piece, form: Form, arrays: Arrays) -> Arrays:
  return Arrays(
      q_BNTH=piece.of_queries(arrays.q_BNTH, 2),
      k_BKSH=piece.of_keys(arrays.k_BKSH),
      v_BKSH=piece.of_keys(arrays.v_BKSH),
      bias_NR=arrays.bias_NR[:, piece.distances(form)],
      query_ids=piece.of_queries(arrays.query_ids, 2),
      key_ids=piece.of_keys(arrays.key_ids),
      start=arrays.start + piece.ahead,
      origin=arrays.origin.at[3].add(piece.keys.start),
  )


def _join(one: Attended, other: Attended) -> Attended:
  """Of queries that see two lots of keys, from those of each lot."""
  out, lse = one
  other_out, other_lse = other
  most = jnp.maximum(lse, other_lse)
  weight = jnp.exp(lse - most)
  other_weight = jnp.exp(other_lse - most)
  total = weight + other_weight
  share_BNT1 = jnp.swapaxes(weight / total, 2, 3)
  other_share_BNT1 = jnp.swapaxes(other_weight / total, 2, 3)
  joined = share_BNT1 * out + other_share_BNT1 * other_out
  return Attended(joined, most + jnp.log(total))


def _attend_backward(form, first, saved, do_BNTH):
  *arrays, out_BNTH, lse_BN1T = saved
  arrays = Arrays(*arrays)
  di_BNT = jnp.einsum('BNTH,BNTH->BNT', out_BNTH, do_BNTH, preferred_element_type=jnp.float32)
  gradients = backward_in_pieces(form, first, arrays, do_BNTH, lse_BN1T, di_BNT[:, :, None])
  return *gradients, None, None, None, None


def backward_in_pieces(
    form: Form,
    first: int | None,
    arrays: Arrays,
    do_BNTH: jax.Array,
    lse_BN1T: jax.Array,
    di_BN1T: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
  """(dq_BNTH, dk_BKSH, dv_BKSH, dbias_NR) of these queries and keys; the queries may see other keys too.

  Args:
    form: of the kernel.
    first: the slot of the first query from the first key; None where it is known on the device only.
    arrays: of the forward pass.
    do_BNTH: gradient of the result.
    lse_BN1T: fp32, logarithms of the sums of weights of all keys that the queries see.
    di_BN1T: fp32, sums of results times their gradients.
  """
  k_BKSH = arrays.k_BKSH
  dbias = jnp.zeros_like(arrays.bias_NR)
  key_spans = spans(form.keys, _longest(), form.block_k)
  most_keys = key_spans[0].size
  length = _piece(dataclasses.replace(form, keys=most_keys), k_BKSH.shape[-1])
  query_spans = spans_of_size(form.queries, length)
  dq_parts: list[Any] = [0] * len(query_spans)
  dk_parts = []
  dv_parts = []
  for keys in key_spans:
    dk: Any = None
    dv: Any = None
    for number, queries in enumerate(query_spans):
      piece = Piece(queries, keys)
      # The last queries see all keys, and all queries the first ones, so that each gradient is written.
      may_skip = number < len(query_spans) - 1 and keys.start > 0
      if may_skip and not piece.is_seen(form, first, arrays.query_ids):
        continue
      arrays, dk, dv = _one_after_the_other(arrays, dk, dv)
      dq_part, dk_part, dv_part, dbias_part = calls.backward(
          piece.form(form),
          piece.first(first),
          _arrays_of(piece, form, arrays),
          piece.of_queries(do_BNTH, 2),
          piece.of_queries(lse_BN1T, 3),
          piece.of_queries(di_BN1T, 3),
          q_whole=len(key_spans) == 1,
          kv_whole=len(query_spans) == 1,
      )
      dq_parts[number] += dq_part
      dk = _added(dk, dk_part)
      dv = _added(dv, dv_part)
      distances = piece.distances(form)
      dbias = dbias.at[:, distances].add(jnp.sum(dbias_part, (0, 2)))
    dk_parts.append(dk)
    dv_parts.append(dv)
  dq = jnp.concatenate([part.astype(arrays.q_BNTH.dtype) for part in dq_parts], 2)
  dk = _of_shared_heads(dk_parts, k_BKSH)
  dv = _of_shared_heads(dv_parts, arrays.v_BKSH)
  return dq, dk, dv, dbias


def _one_after_the_other(arrays: Arrays, dk: Any, dv: Any) -> tuple[Arrays, Any, Any]:
  """What the next piece reads, when the one before is done: all at once take memory at once."""
  if dk is None:
    return arrays, dk, dv
  q_BNTH, dk, dv = jax.lax.optimization_barrier((arrays.q_BNTH, dk, dv))
  return arrays._replace(q_BNTH=q_BNTH), dk, dv


def _added(total: jax.Array | None, part: jax.Array) -> jax.Array:
  if total is None:
    return part
  return total + part


def _of_shared_heads(parts: list[jax.Array], like: jax.Array) -> jax.Array:
  """The gradient of `like` [B, K, S, H], from those of pieces of it for each head of queries that shares it."""
  B, K, S, H = like.shape
  of_queries = jnp.concatenate(parts, 2).reshape(B, K, -1, S, H)
  return jnp.sum(of_queries, 2).astype(like.dtype)


_attend.defvjp(_attend_forward, _attend_backward)
