"""The calls of the kernels in relative_bias_blocks.py: grids, blocks of arrays, memory."""
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from t5like.model.kernels import relative_bias_blocks as blocks
from t5like.model.kernels.relative_bias_blocks import Form
from t5like.model.kernels.relative_bias_diagonals import LANES

MIB = 2 ** 20
Shape = tuple[int, ...]
Place = Callable[..., tuple[Any, ...]]  # number of a block, of row b, head n, visit v, and the lists of visits


class Arrays(NamedTuple):
  """What a call reads."""
  q_BNTH: jax.Array
  k_BKSH: jax.Array
  v_BKSH: jax.Array
  bias_NR: jax.Array  # fp32, R = T + S
  query_ids: jax.Array  # int [B, 1 or 2, T], segments and, if there are any, prefixes
  key_ids: jax.Array  # int [B, 1 or 2, S]
  start: jax.Array  # int [1], slot of the first query, counted from the first key
  origin: jax.Array  # int [4]: seed of dropout; numbers of the first row, head and key in the whole batch


class Attended(NamedTuple):
  """What the forward pass returns."""
  out_BNTH: jax.Array
  lse_BN1T: jax.Array  # fp32, logarithms of the sums of weights


class Operand(NamedTuple):
  """An array that a kernel reads or writes block by block."""
  array: Any  # or its shape and dtype
  block: tuple[int | None, ...]  # sizes; None: a dimension that the kernel does not see
  place: Place


def vmem() -> int:
  """Bytes that a kernel may take of the VMEM of a core, on the TPUs of the mesh in force (64 MiB elsewhere)."""
  device = jax.sharding.get_abstract_mesh().abstract_device
  if device:
    platform = device.platform
  else:
    platform = jax.default_backend()
  capacity = 64 * MIB
  if platform == 'tpu':
    capacity = pltpu.get_tpu_info().vmem_capacity_bytes
  return capacity * 7 // 8


def work(form: Form) -> int:
  """Bytes of VMEM for blocks, and for what a visit makes of them."""
  return 28 * form.block_q * form.block_k + 4 * MIB


def visits(form: Form, first: int | None = 0, has_prefix: bool = False) -> np.ndarray:
  """Pairs of blocks of which one sees the other, row by row; all keys are in some pair, and all queries.

  Args:
    form: of the kernel.
    first: the slot of the first query, counted from that of the first key, None where it is known on the device only.
    has_prefix: whether there are prefixes, whose tokens see each other under a causal mask, too.

  Returns:
    int32 [visits, 2]: (block of queries, block of keys).
  """
  rows = form.queries // form.block_q
  cols = form.keys // form.block_k
  i, j = np.indices((rows, cols))
  is_visited = np.ones((rows, cols), bool)
  if first is not None:
    is_visited &= blocks.sees(form, first + i * form.block_q, j * form.block_k, has_prefix)
  # Each block of results is written at some visit, even if nothing goes into it.
  is_visited[:, 0] |= ~is_visited.any(1)
  is_visited[-1] |= ~is_visited.any(0)
  return np.stack([i[is_visited], j[is_visited]], 1).astype(np.int32)


# --- Where blocks are -----------------------------------------------------------------------------


def _at_query(b, n, v, rows, *_):
  return b, n, rows[v], 0


def _at_query_number(b, n, v, rows, *_):
  """Of an array with a number for each query, [B, N, 1, T]."""
  return b, n, 0, rows[v]


def _at_query_id(b, n, v, rows, *_):
  return b, 0, rows[v]


def _at_written(b, n, v, rows, cols, written, *_):
  return b, n, written[v], 0


def _at_key(b, n, v, rows, cols, *_):
  """Of an array of keys for each head of queries, [B, N, S, H]."""
  return b, n, cols[v], 0


def _at_shared_key(group: int) -> Place:
  """Of keys [B, K, S, H] that this number of heads of queries share."""

  def _place(b, n, v, rows, cols, *_):
    return b, jax.lax.div(n, group), cols[v], 0

  return _place


def _at_shared_column(group: int) -> Place:
  """Of keys [B, K, H, S] that this number of heads of queries share."""

  def _place(b, n, v, rows, cols, *_):
    return b, jax.lax.div(n, group), 0, cols[v]

  return _place


def _at_key_id(b, n, v, rows, cols, *_):
  return b, 0, cols[v]


def _at_head(b, n, *_):
  """Of an array [N, 1, R]."""
  return n, 0, 0


def _at_row_and_head(b, n, *_):
  """Of an array [B, N, 1, R]."""
  return b, n, 0, 0


# --- Calls ----------------------------------------------------------------------------------------


def forward(form: Form, first: int | None, arrays: Arrays, dtype: Any) -> Attended:
  """Of one call, out_BNTH in this dtype; `first`: see `visits`."""
  B, N, T, H = arrays.q_BNTH.shape
  group = N // arrays.k_BKSH.shape[1]
  I = arrays.query_ids.shape[1]
  R = arrays.bias_NR.shape[1]
  rows, cols = visits(form, first, I > 1).T
  reversed_NR = jnp.roll(arrays.bias_NR[:, ::-1], 1, 1)  # element s - t + T for key s
  query_block = (None, None, form.block_q, H)
  key_block = (None, None, form.block_k, H)
  at_key = _at_shared_key(group)
  logsumexp = jax.ShapeDtypeStruct((B, N, 1, T), jnp.float32)
  product = 2 * B * N * len(rows) * form.block_q * form.block_k * H
  attended = _call(
      form,
      _name(form, I, 'forward'),
      blocks.forward,
      lists=(rows, cols),
      places=(arrays.start, arrays.origin),
      inputs=[
          Operand(arrays.q_BNTH, query_block, _at_query),
          Operand(arrays.k_BKSH, key_block, at_key),
          Operand(arrays.v_BKSH, key_block, at_key),
          Operand(reversed_NR[:, None], (None, 1, R), _at_head),
          Operand(arrays.query_ids, (None, I, form.block_q), _at_query_id),
          Operand(arrays.key_ids, (None, I, form.block_k), _at_key_id),
      ],
      outputs=[
          Operand(jax.ShapeDtypeStruct(arrays.q_BNTH.shape, dtype), query_block, _at_query),
          Operand(logsumexp, (None, None, 1, form.block_q), _at_query_number),
      ],
      scratch=[
          (form.block_q, LANES),
          (form.block_q, LANES),
          (form.block_q, H),
          (LANES, R),
          (I, form.block_q, LANES),
      ],
      grid=(B, N, len(rows)),
      flops=round(2 * product * form.share),
  )
  return Attended(*attended)


def backward(
    form: Form,
    first: int | None,
    arrays: Arrays,
    do_BNTH: jax.Array,
    lse_BN1T: jax.Array,
    di_BN1T: jax.Array,
    q_whole: bool,
    kv_whole: bool,
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
  """Gradients of one call; they are fp32 sums where others are added to them.

  Args:
    form: of the kernel.
    first: see `visits`.
    arrays: of the forward pass.
    do_BNTH: gradient of its result.
    lse_BN1T: its logarithms of sums, fp32.
    di_BN1T: sums of results times their gradients, fp32.
    q_whole: all keys are here.
    kv_whole: all queries are here.

  Returns:
    (dq_BNTH, dk_BNSH, dv_BNSH, dbias_BN1R), those of keys and values for each head of queries.
  """
  B, N, T, H = arrays.q_BNTH.shape
  _, K, S, _ = arrays.k_BKSH.shape
  I = arrays.query_ids.shape[1]
  R = arrays.bias_NR.shape[1]
  rows, cols = _column_by_column(visits(form, first, I > 1))
  key_block = (None, None, form.block_k, H)
  # What several heads, or pieces of the queries, add to is rounded when it is complete.
  dq = jax.ShapeDtypeStruct(arrays.q_BNTH.shape, _dtype_of_sums(arrays.q_BNTH, q_whole))
  dkv = jax.ShapeDtypeStruct((B, N, S, H), _dtype_of_sums(arrays.k_BKSH, kv_whole and N == K))
  dbias = jax.ShapeDtypeStruct((B, N, 1, R), jnp.float32)
  product = 2 * B * N * len(rows) * form.block_q * form.block_k * H
  return _call(
      form,
      _name(form, I, 'backward'),
      blocks.backward,
      lists=(rows, cols, _written(rows), _begun(rows)),
      places=(arrays.start, arrays.origin),
      inputs=_backward_inputs(form, arrays, do_BNTH, lse_BN1T, di_BN1T),
      outputs=[
          Operand(dq, (None, None, form.block_q, H), _at_written),
          Operand(dkv, key_block, _at_key),
          Operand(dkv, key_block, _at_key),
          Operand(dbias, (None, None, 1, R), _at_row_and_head),
      ],
      scratch=[
          (T // form.block_q, H, form.block_q),
          (form.block_k, H),
          (form.block_k, H),
          (LANES, R),
          (LANES, R + LANES),
          (I, form.block_k, LANES),
      ],
      grid=(B, N, len(rows)),
      flops=round(5 * product * form.share),
  )


def _backward_inputs(
    form: Form,
    arrays: Arrays,
    do_BNTH: jax.Array,
    lse_BN1T: jax.Array,
    di_BN1T: jax.Array,
) -> list[Operand]:
  _, N, _, H = arrays.q_BNTH.shape
  group = N // arrays.k_BKSH.shape[1]
  I = arrays.query_ids.shape[1]
  R = arrays.bias_NR.shape[1]
  query_block = (None, None, form.block_q, H)
  query_numbers = (None, None, 1, form.block_q)
  key_block = (None, None, form.block_k, H)
  column_block = (None, None, H, form.block_k)
  at_key = _at_shared_key(group)
  return [
      Operand(arrays.q_BNTH, query_block, _at_query),
      Operand(arrays.k_BKSH, key_block, at_key),
      Operand(arrays.v_BKSH, key_block, at_key),
      Operand(do_BNTH, query_block, _at_query),
      Operand(arrays.k_BKSH.swapaxes(2, 3), column_block, _at_shared_column(group)),
      Operand(arrays.bias_NR[:, None], (None, 1, R), _at_head),
      Operand(arrays.query_ids, (None, I, form.block_q), _at_query_id),
      Operand(arrays.key_ids, (None, I, form.block_k), _at_key_id),
      Operand(lse_BN1T, query_numbers, _at_query_number),
      Operand(di_BN1T, query_numbers, _at_query_number),
  ]


def _column_by_column(pairs: np.ndarray) -> np.ndarray:
  """[2, visits] of pairs [visits, 2], sorted by their block of keys."""
  order = np.lexsort(pairs.T)
  return pairs[order].T


def _written(rows: np.ndarray) -> np.ndarray:
  """At each visit the block of queries whose gradient is done then, or else at the next visit at which one is."""
  last_visits = {row: visit for visit, row in enumerate(rows.tolist())}
  done = sorted(last_visits.values())
  next_done = np.searchsorted(done, np.arange(len(rows)))
  return rows[np.take(done, next_done, mode='clip')]


def _begun(rows: np.ndarray) -> np.ndarray:
  """At each visit 1, if it is the first to its block of queries, else 0."""
  _, first_visits = np.unique(rows, return_index=True)
  begun = np.zeros(len(rows), np.int32)
  begun[first_visits] = 1
  return begun


def _dtype_of_sums(x: jax.Array, is_complete: bool) -> Any:
  if is_complete:
    return x.dtype
  return jnp.float32


def _name(form: Form, ids: int, direction: str) -> str:
  """By which preflight knows a call, and which mask spares a part of it."""
  if form.before is not None or form.after is not None:
    return f'relative_bias_window_{direction}'
  if form.causal and ids == 1:
    return f'relative_bias_causal_{direction}'
  return f'relative_bias_{direction}'


def _call(
    form: Form,
    name: str,
    kernel: Callable[..., None],
    lists: Sequence[np.ndarray],
    places: Sequence[jax.Array],
    inputs: Sequence[Operand],
    outputs: Sequence[Operand],
    scratch: Sequence[Shape],
    grid: Shape,
    flops: int,
) -> Any:
  """Calls a kernel, a function of refs to lists (int [visits]), places, inputs, outputs and scratch.

  The grid is (row of the batch, head, visit). Scratch are arrays in VMEM, fp32 but the last, which is int32.
  """
  *sums, ids = scratch
  scratch_shapes = [pltpu.VMEM(shape, jnp.float32) for shape in sums]
  scratch_shapes.append(pltpu.VMEM(ids, jnp.int32))
  kept = 4 * sum(map(math.prod, scratch))
  grid_spec = pltpu.PrefetchScalarGridSpec(
      num_scalar_prefetch=len(lists) + len(places),
      grid=grid,
      in_specs=_specs(inputs),
      out_specs=_specs(outputs),
      scratch_shapes=scratch_shapes,
  )
  compiler_params = pltpu.CompilerParams(
      dimension_semantics=('parallel', 'parallel', 'arbitrary'),
      vmem_limit_bytes=min(vmem(), kept + work(form)),
  )
  cost_estimate = pl.CostEstimate(
      flops=flops,
      bytes_accessed=_bytes(inputs) + _bytes(outputs),
      transcendentals=math.prod(grid) * form.block_q * form.block_k,
  )
  call = pl.pallas_call(
      functools.partial(kernel, form=form),
      out_shape=[output.array for output in outputs],
      grid_spec=grid_spec,
      compiler_params=compiler_params,
      cost_estimate=cost_estimate,
      interpret=form.interpret,
      name=name,
  )
  arrays = [operand.array for operand in inputs]
  return call(*map(jnp.asarray, lists), *places, *arrays)


def _specs(operands: Sequence[Operand]) -> list[pl.BlockSpec]:
  return [pl.BlockSpec(operand.block, operand.place) for operand in operands]


def _bytes(operands: Sequence[Operand]) -> int:
  total = 0
  for operand in operands:
    total += operand.array.size * operand.array.dtype.itemsize
  return total
