"""Ring attention: keys and values travel from device to device, and each device attends to those that are with it.

Liu et al. 2023 (arXiv 2310.01889). No device ever holds the keys of a whole row. At each step a device sends the keys
that it has to the next one and meanwhile computes attention to them; what it has of several lots of keys is joined by
the logarithms of the sums of their weights. In the backward pass gradients of keys and values travel behind them, a
step later, so that this, too, happens while others are computed.

What one device computes of one lot of keys is the affair of `Parts`: any mask, segments, biases. It runs inside
`shard_map`.
"""
import functools
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name

from t5like.model import context

AXIS = 'context'


def order(devices: int) -> list[int]:
  """Devices in the order in which keys travel: up a line by every second one, and down by the others.

  None is more than two links from the next, though a line has no link from its end to its beginning; on v5e and v6e the
  compiler makes only such transfers asynchronous. Each link carries one lot each way.
  """
  up = list(range(0, devices, 2))
  down = list(range(1, devices, 2))
  return up + down[::-1]


def owner_at(device: int, step: int, devices: int) -> int:
  """The device that the keys are of which a device has at a step."""
  travelled = order(devices)
  return travelled[(travelled.index(device) - step) % devices]


class Attended(NamedTuple):
  """Attention to some keys.

  out_BNTH: any float dtype; anything for queries that see none of them.
  lse_BNT: fp32, logarithms of the sums of weights; -inf for such queries.
  """
  out_BNTH: jax.Array
  lse_BNT: jax.Array


class Lot(NamedTuple):
  """Keys of one device, wherever they are.

  k_BKSH, v_BKSH: keys and values.
  ids: what else is known of them, a tree of arrays.
  """
  k_BKSH: jax.Array
  v_BKSH: jax.Array
  ids: Any


class Queries(NamedTuple):
  """What stays on a device.

  q_BNTH: queries.
  ids: what else is known of them.
  bias: what queries and keys of all devices share and has a gradient, fp32, or None.
  """
  q_BNTH: jax.Array
  ids: Any
  bias: Any


class Results(NamedTuple):
  """What the backward pass needs of the forward one, and the gradient of its result.

  do_BNTH: that gradient.
  lse_BNT: of all keys, fp32, finite.
  di_BNT: fp32, sums of results times their gradients.
  """
  do_BNTH: jax.Array
  lse_BNT: jax.Array
  di_BNT: jax.Array


class Gradients(NamedTuple):
  """Gradients that queries and a lot of keys add to; any float dtype.

  dbias: what `Parts.add_bias` makes a gradient of; None where there is no bias.
  """
  dq_BNTH: jax.Array
  dk_BKSH: jax.Array
  dv_BKSH: jax.Array
  dbias: Any


class Parts(Protocol):
  """Attention of the queries of a device to one lot of keys.

  owner: number of the device that the keys are of, traced.
  table: of this step, the part of `tables` that `attend` was called with.
  """

  def forward(self, queries: Queries, lot: Lot, owner: Any, table: Any) -> Attended:
    """Values."""
    ...

  def backward(self, queries: Queries, lot: Lot, owner: Any, table: Any, results: Results) -> Gradients:
    """Gradients."""
    ...

  def add_bias(self, total: Any, dbias: Any, owner: Any) -> Any:
    """The gradient of the bias with what a lot of keys adds to it."""
    ...


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def attend(
    parts: Parts,
    q_BNTH: jax.Array,
    k_BKSH: jax.Array,
    v_BKSH: jax.Array,
    bias: Any,
    query_ids: Any,
    key_ids: Any,
    tables: Any,
) -> jax.Array:
  """[B, N, T, H] of the queries of this device and the keys of all.

  Args:
    parts: what computes, hashable.
    q_BNTH: queries of this device.
    k_BKSH: its keys.
    v_BKSH: its values.
    bias: see Queries.
    query_ids: of its queries, a tree of arrays.
    key_ids: of its keys.
    tables: of this device, a tree of arrays whose first axis are the steps.
  """
  out_BNTH, _ = _forward(parts, q_BNTH, k_BKSH, v_BKSH, bias, query_ids, key_ids, tables)
  return out_BNTH


def _forward(
    parts: Parts,
    q_BNTH: jax.Array,
    k_BKSH: jax.Array,
    v_BKSH: jax.Array,
    bias: Any,
    query_ids: Any,
    key_ids: Any,
    tables: Any,
) -> Attended:
  """The result, in the dtype of the queries, and its logarithms of sums."""
  queries = Queries(q_BNTH, query_ids, bias)
  nothing = Attended(
      out_BNTH=jnp.zeros(q_BNTH.shape, jnp.float32),
      lse_BNT=jnp.full(q_BNTH.shape[:3], -jnp.inf, jnp.float32),
  )

  def step(carry: tuple[Lot, Attended], numbered: tuple[jax.Array, Any]) -> tuple[tuple[Lot, Attended], None]:
    lot, total = carry
    number, table = numbered
    next_lot = _sent(lot)
    attended = parts.forward(queries, lot, _owner(number), table)
    # The keys have to be here before what follows the kernel: so they leave before it, and travel behind it.
    attended, next_lot = jax.lax.optimization_barrier((attended, next_lot))
    return (next_lot, joined(total, attended)), None

  steps = jnp.arange(context.devices())
  own = Lot(k_BKSH, v_BKSH, key_ids)
  (_, total), _ = jax.lax.scan(step, (own, nothing), (steps, tables))
  return Attended(total.out_BNTH.astype(q_BNTH.dtype), total.lse_BNT)


def _sent(tree: Any) -> Any:
  """What the device before this one sends, while this one sends its own to the next."""
  travelled = order(context.devices())
  pairs = list(zip(travelled, travelled[1:] + travelled[:1]))

  def send(x: jax.Array) -> jax.Array:
    return jax.lax.ppermute(x, AXIS, pairs)

  return jax.tree.map(send, tree)


def _owner(step: jax.Array) -> jax.Array:
  """`owner_at` of this device."""
  count = context.devices()
  places = np.argsort(order(count))
  place = jnp.asarray(places)[jax.lax.axis_index(AXIS)]
  return jnp.asarray(order(count))[(place - step) % count]


def joined(one: Attended, other: Attended) -> Attended:
  """Of queries that see two lots of keys, from what they have of each."""
  most = jnp.maximum(one.lse_BNT, other.lse_BNT)
  finite = jnp.where(most == -jnp.inf, 0, most)
  weight = jnp.exp(one.lse_BNT - finite)
  other_weight = jnp.exp(other.lse_BNT - finite)
  total = weight + other_weight
  divisor = jnp.where(total > 0, total, 1)
  out_BNTH = _weighted(one, weight / divisor) + _weighted(other, other_weight / divisor)
  return Attended(out_BNTH, finite + jnp.log(total))


def _weighted(attended: Attended, share_BNT: jax.Array) -> jax.Array:
  share_BNT1 = share_BNT[..., None]
  return jnp.where(share_BNT1 > 0, share_BNT1 * attended.out_BNTH.astype(jnp.float32), 0)


def _attend_forward(parts: Parts, *arrays: Any) -> tuple[jax.Array, Any]:
  out_BNTH, lse_BNT = _forward(parts, *arrays)
  # What the backward pass needs has a name, for the policies of `jax.checkpoint`.
  out_BNTH = checkpoint_name(out_BNTH, 'context')
  lse_BNT = checkpoint_name(lse_BNT, 'context')
  return out_BNTH, (arrays, out_BNTH, lse_BNT)


class _Travelling(NamedTuple):
  """What the steps of the backward pass hand on.

  lot: keys that are here.
  dk_BKSH, dv_BKSH: fp32, gradients of those that were here a step before.
  dq_BNTH: fp32, of the queries of this device.
  dbias: fp32 or None.
  """
  lot: Lot
  dk_BKSH: jax.Array
  dv_BKSH: jax.Array
  dq_BNTH: jax.Array
  dbias: Any


def _attend_backward(parts: Parts, saved: Any, do_BNTH: jax.Array) -> tuple[Any, ...]:
  (q_BNTH, k_BKSH, v_BKSH, bias, query_ids, key_ids, tables), out_BNTH, lse_BNT = saved
  di_BNT = jnp.einsum('BNTH,BNTH->BNT', out_BNTH, do_BNTH, preferred_element_type=jnp.float32)
  results = Results(do_BNTH, jnp.where(lse_BNT == -jnp.inf, 0, lse_BNT), di_BNT)
  queries = Queries(q_BNTH, query_ids, bias)

  def step(carry: _Travelling, numbered: tuple[jax.Array, Any]) -> tuple[_Travelling, None]:
    number, table = numbered
    next_lot = _sent(carry.lot)
    dk_BKSH, dv_BKSH = _sent((carry.dk_BKSH, carry.dv_BKSH))
    owner = _owner(number)
    added = parts.backward(queries, carry.lot, owner, table, results)
    added, next_lot = jax.lax.optimization_barrier((added, next_lot))
    dbias = carry.dbias
    if dbias is not None:
      dbias = parts.add_bias(dbias, added.dbias, owner)
    return _Travelling(
        lot=next_lot,
        dk_BKSH=dk_BKSH + added.dk_BKSH,
        dv_BKSH=dv_BKSH + added.dv_BKSH,
        dq_BNTH=carry.dq_BNTH + added.dq_BNTH,
        dbias=dbias,
    ), None

  first = _Travelling(
      lot=Lot(k_BKSH, v_BKSH, key_ids),
      dk_BKSH=jnp.zeros(k_BKSH.shape, jnp.float32),
      dv_BKSH=jnp.zeros(v_BKSH.shape, jnp.float32),
      dq_BNTH=jnp.zeros(q_BNTH.shape, jnp.float32),
      dbias=None if bias is None else jnp.zeros_like(bias),
  )
  steps = jnp.arange(context.devices())
  last, _ = jax.lax.scan(step, first, (steps, tables))
  dk_BKSH, dv_BKSH = _sent((last.dk_BKSH, last.dv_BKSH))  # home
  return (
      last.dq_BNTH.astype(q_BNTH.dtype),
      dk_BKSH.astype(k_BKSH.dtype),
      dv_BKSH.astype(v_BKSH.dtype),
      last.dbias,
      None,
      None,
      None,
  )


attend.defvjp(_attend_forward, _attend_backward)
