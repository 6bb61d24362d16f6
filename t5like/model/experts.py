"""Experts: MLPs of which each token passes a few (Shazeer et al. 2017; Fedus et al. 2021, Switch Transformer).

No token is dropped, unless `model.expert_capacity` says so: rows of tokens are sorted by expert and multiplied group by
group (`kernels/grouped.py`), so that groups may have any size. Suffixes: n tokens of a device, k experts of a token, A
their pairs, n k; X experts, x those of a device; S slots, R rows.

On a mesh whose axis `expert` is longer than 1, each of its devices has some of the experts and some of the tokens.
Tokens travel by all-to-all to the devices of their experts and back: device i has M slots for rows to each of the
others, as many as can be needed in the worst case, and receives as many from each.
"""
import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec as P

from t5like import choices
from t5like.model.config import ModelConfig
from t5like.model.initial import constant, initial_std, normal
from t5like.model.kernels import balanced, grouped
from t5like.model.layers import ACTIVATIONS, MLP, expand
from t5like.model.router import Router
from t5like.model.side_values import With
from t5like.parameters import Param, vector
from t5like.sharding import STORED_OF_EXPERTS, at_rest, gather, in_use, platform

AXIS = 'expert'


class Matrices(nnx.Module):
  """A matrix for each expert."""

  def __init__(self, c: ModelConfig, dims: str, key: jax.Array, role: str) -> None:
    _, inputs, outputs = dims
    std, cut = initial_std(c, role, c.size(inputs))
    declared = Param(dims, role, 'matrix', inputs, outputs)
    self.dims = dims
    self.w = normal(key, c, declared, std, cut)


class Experts(nnx.Module):
  """What a layer has in place of an MLP."""

  def __init__(self, c: ModelConfig, key: jax.Array) -> None:
    k_router, k_up, k_gate, k_down, k_shared = jax.random.split(key, 5)
    of_one = dataclasses.replace(c, d_ff=c.expert_d_ff)
    self.c = c
    self.router = Router(c, k_router)
    self.gated = choices.ACTIVATIONS[c.activation].gated
    self.up = Matrices(
        of_one,
        'XDF',
        k_up,
        role='up',
    )
    if self.gated:
      self.gate = Matrices(
          of_one,
          'XDF',
          k_gate,
          role='gate',
      )
    self.down = Matrices(
        of_one,
        'XFD',
        k_down,
        role='down',
    )
    if c.shared_experts:
      shared = dataclasses.replace(c, d_ff=c.shared_experts * c.expert_d_ff)
      self.shared = MLP(shared, k_shared)
    if c.shared_gate:
      scale = vector('D', 'router', 'scale')
      self.shared_scale = constant(0, c, scale)

  @property
  def _names(self) -> tuple[str, ...]:
    """Of its matrices."""
    if self.gated:
      return 'up', 'gate', 'down'
    return 'up', 'down'

  @jax.named_scope('experts')
  def __call__(
      self,
      x_BTD: jax.Array,
      segments_BT: jax.Array,
      key: jax.Array | None = None,
  ) -> With:
    """[B, T, D] with side values of the router.

    Args:
      x_BTD: tokens.
      segments_BT: 0 for padding.
      key: of jax.random, in training; None: nothing is random.
    """
    routes = self.router(x_BTD, segments_BT, key)
    stored = {}
    layouts = {}
    for name in self._names:
      matrices = getattr(self, name)
      stored[name] = matrices.w[...]
      layouts[name] = at_rest(matrices.dims)
    of_choices = P(*in_use('BT'), None)
    in_specs = (
        in_use('BTD'),
        of_choices,
        of_choices,
        layouts,
    )
    on_devices = jax.shard_map(
        self._on_device,
        in_specs=in_specs,
        out_specs=in_use('BTD'),
        check_vma=False,
    )
    y_BTD = on_devices(
        x_BTD,
        routes.experts_BTk,
        routes.weights_BTk,
        stored,
    )
    if self.c.shared_experts:
      y_BTD += self._of_shared(x_BTD, key)
    return With(y_BTD, routes.values)

  def _of_shared(self, x_BTD: jax.Array, key: jax.Array | None) -> jax.Array:
    y_BTD = self.shared(x_BTD, key)
    if not self.c.shared_gate:
      return y_BTD
    scale_D = gather(self.shared_scale[...], 'D', jnp.float32)
    exact_BTD = x_BTD.astype(jnp.float32)
    products_BTD = exact_BTD * expand(scale_D, exact_BTD)
    logits_BT1 = jnp.sum(products_BTD, -1, keepdims=True)
    share_BT1 = jax.nn.sigmoid(logits_BT1)
    return y_BTD * share_BT1.astype(y_BTD.dtype)

  def _on_device(
      self,
      x_BTD: jax.Array,
      experts_BTk: jax.Array,
      weights_BTk: jax.Array,
      stored: dict[str, jax.Array],
  ) -> jax.Array:
    """[B, T, D] of the tokens of a device.

    Args:
      x_BTD: its tokens.
      experts_BTk: see Routes.
      weights_BTk: see Routes.
      stored: matrices of the experts of this device, spread over others as they are stored.
    """
    mesh = jax.sharding.get_abstract_mesh()
    devices = mesh.shape[AXIS]
    *_, k = experts_BTk.shape
    *_, D = x_BTD.shape
    x_nD = x_BTD.reshape(-1, D)
    experts_A = experts_BTk.reshape(-1)
    matrices = {}
    for name, w in stored.items():
      matrices[name] = self._gathered(name, w)
    plan = _plan(experts_A, self.c.experts, devices, k)
    is_used_S = plan.pair_S >= 0
    token_S = jnp.where(is_used_S, plan.pair_S // k, -1)
    x_SD = rows_at(x_nD, token_S, plan.slot_A)
    with jax.named_scope(balanced.label(len(experts_A), len(token_S))):
      if devices == 1:
        y_SD = self._mlp(x_SD, matrices, plan.counts_X)
      else:
        y_SD = self._travelling(x_SD, matrices, plan)
    y_AD = rows_at(y_SD, plan.slot_A, plan.pair_S)
    weights_nk1 = weights_BTk.reshape(-1, k, 1)
    y_nkD = y_AD.reshape(-1, k, D)
    exact_nkD = y_nkD.astype(jnp.float32)
    y_nD = jnp.sum(exact_nkD * weights_nk1, 1)
    y_nD = y_nD.astype(x_BTD.dtype)
    if mesh.shape['tensor'] > 1:
      y_nD = jax.lax.psum(y_nD, 'tensor')
    return y_nD.reshape(x_BTD.shape)

  def _gathered(self, name: str, w: jax.Array) -> jax.Array:
    """A matrix of each expert of this device; its gradient is added up where it is stored."""
    dims = getattr(self, name).dims
    cast = w.astype(self.c.dtype)
    gathered = jax.lax.all_gather(
        cast,
        STORED_OF_EXPERTS,
        axis=dims.index('D'),
        tiled=True,
    )
    return checkpoint_name(gathered, 'weights')

  def _mlp(self, x_RD: jax.Array, matrices: dict[str, jax.Array], sizes_x: jax.Array) -> jax.Array:
    """Rows of one expert after the other through their MLPs."""
    act = ACTIVATIONS[self.c.activation]

    def product(x: jax.Array, name: str) -> jax.Array:
      return grouped.product(platform(), x, matrices[name], sizes_x)

    up_RF = product(x_RD, 'up')
    up_RF = checkpoint_name(up_RF, 'up')
    if self.gated:
      gate_RF = product(x_RD, 'gate')
      gate_RF = checkpoint_name(gate_RF, 'gate')
      x_RF = act(gate_RF) * up_RF
    else:
      x_RF = act(up_RF)
    return product(x_RF, 'down')

  def _travelling(self, x_SD: jax.Array, matrices: dict[str, jax.Array], plan: '_Plan') -> jax.Array:
    """`_mlp` of rows that lie in the slots of their devices."""
    devices = jax.lax.axis_size(AXIS)
    counts_pX = jax.lax.all_gather(plan.counts_X, AXIS)
    x = self.c.experts // devices
    here = jax.lax.axis_index(AXIS)
    counts_px = jax.lax.dynamic_slice_in_dim(
        counts_pX,
        here * x,
        x,
        axis=1,
    )
    arrived_SD = _all_to_all(x_SD, counts_pX)
    expert_S = _experts_of_slots(counts_px, len(x_SD) // devices)
    order_R, rank_S = _sorted(expert_S)
    is_used_S = expert_S < x
    is_used_R = is_used_S[order_R]
    there_R = jnp.where(is_used_R, order_R, -1)
    back_S = jnp.where(is_used_S, rank_S, -1)
    x_RD = rows_at(arrived_SD, there_R, back_S)
    sizes_x = jnp.sum(counts_px, 0)
    y_RD = self._mlp(x_RD, matrices, sizes_x)
    y_SD = rows_at(y_RD, back_S, there_R)
    return _all_to_all(y_SD, counts_pX, is_back=True)


class _Plan(NamedTuple):
  """Slots of pairs of a token and an expert, sorted by expert.

  slot_A: of each pair, -1 where it has none.
  pair_S: the pair in each slot, -1 where it is empty.
  counts_X: how many pairs each expert has.
  """
  slot_A: jax.Array
  pair_S: jax.Array
  counts_X: jax.Array


def _plan(experts_A: jax.Array, experts: int, devices: int, k: int) -> _Plan:
  """Slots, as many for each device as it may need.

  Args:
    experts_A: int32, of each pair; `experts` where it has none.
    experts: all there are.
    devices: over which they are spread.
    k: pairs of a token, of different experts.
  """
  A = len(experts_A)
  x = experts // devices
  slots = A // k * min(k, x)
  counts_X = jnp.bincount(experts_A, length=experts)  # those that are out of range are not counted
  counts_px = counts_X.reshape(devices, x)
  counts_p = jnp.sum(counts_px, 1)
  starts_p = jnp.cumsum(counts_p) - counts_p
  order_A, rank_A = _sorted(experts_A)
  device_A = experts_A // x
  device_A = jnp.minimum(device_A, devices - 1)
  first_slot_A = device_A * slots
  slot_A = first_slot_A + rank_A - starts_p[device_A]
  has_slot_A = experts_A < experts
  slot_A = jnp.where(has_slot_A, slot_A, -1)
  number_1M = jnp.arange(slots)[None]
  rank_pM = number_1M + starts_p[:, None]
  rank_pM = jnp.minimum(rank_pM, A - 1)
  is_used_pM = number_1M < counts_p[:, None]
  pair_pM = jnp.where(is_used_pM, order_A[rank_pM], -1)
  pair_S = pair_pM.reshape(-1)
  return _Plan(slot_A, pair_S, counts_X)


def _sorted(values: jax.Array) -> tuple[jax.Array, jax.Array]:
  """(the order that sorts integers, the rank of each in it)."""
  order = jnp.argsort(values, stable=True)
  numbers = jnp.arange(len(order))
  rank = jnp.zeros_like(order)
  rank = rank.at[order].set(numbers, unique_indices=True)
  return order, rank


def _experts_of_slots(counts_px: jax.Array, slots: int) -> jax.Array:
  """int32 [S]: the expert, of those of this device, of what arrived in each slot; x where nothing did.

  Args:
    counts_px: how many rows each device has sent to each expert.
    slots: of each of these devices.
  """
  ends_px = jnp.cumsum(counts_px, 1)
  numbers_1M1 = jnp.arange(slots)[None, :, None]
  is_behind_pMx = ends_px[:, None] <= numbers_1M1
  expert_pM = jnp.sum(is_behind_pMx, 2, dtype=jnp.int32)
  return expert_pM.reshape(-1)


@jax.custom_vjp
def rows_at(x_RD: jax.Array, there_S: jax.Array, back_A: jax.Array) -> jax.Array:
  """[S, D]: row there_S[s] of x, zeros where that is -1.

  Gathered in both directions, because adding rows at places would be slow.

  Args:
    x_RD: rows.
    there_S: int32, a row of x for each of the result.
    back_A: the reverse: to which rows of the result each row of x goes, A / R of them for each, -1 for none.
  """
  is_there_S1 = there_S[:, None] >= 0
  place_S = jnp.maximum(there_S, 0)
  return jnp.where(is_there_S1, x_RD[place_S], 0)


def _forward(x_RD: jax.Array, there_S: jax.Array, back_A: jax.Array) -> tuple[jax.Array, tuple[jax.Array, int]]:
  return rows_at(x_RD, there_S, back_A), (back_A, len(x_RD))


def _backward(kept: tuple[jax.Array, int], dy_SD: jax.Array) -> tuple[jax.Array, None, None]:
  back_A, R = kept
  is_there_A1 = back_A[:, None] >= 0
  place_A = jnp.maximum(back_A, 0)
  dx_AD = jnp.where(is_there_A1, dy_SD[place_A], 0)
  if len(back_A) == R:
    return dx_AD, None, None
  *_, D = dy_SD.shape
  dx_RkD = dx_AD.reshape(R, -1, D)
  dx_RD = jnp.sum(dx_RkD, 1, dtype=jnp.float32)
  dx_RD = dx_RD.astype(dy_SD.dtype)
  return dx_RD, None, None


rows_at.defvjp(_forward, _backward)


def _all_to_all(x_SD: jax.Array, counts_pX: jax.Array, is_back: bool = False) -> jax.Array:
  """Rows of S = p M slots, whose part i of M goes to device i of the axis, and part i of the result comes from there.

  Args:
    x_SD: rows.
    counts_pX: how many rows each device has for each expert.
    is_back: the rows go back to where they came from.
  """
  S, D = x_SD.shape
  devices = len(counts_pX)
  if platform() != 'tpu':  # not every backend moves the rows alone that there are
    parts_pMD = x_SD.reshape(devices, -1, D)
    parts_pMD = jax.lax.all_to_all(parts_pMD, AXIS, 0, 0)
    return parts_pMD.reshape(S, D)
  here = jax.lax.axis_index(AXIS)
  counts_ppx = counts_pX.reshape(devices, devices, -1)
  counts_pp = jnp.sum(counts_ppx, 2)  # from, to
  sent_p = counts_pp[here]
  received_p = counts_pp[:, here]
  if is_back:
    sent_p, received_p = received_p, sent_p
  slots = S // devices
  starts_p = slots * jnp.arange(devices, dtype=jnp.int32)
  their_start_p = jnp.full_like(starts_p, here * slots)
  empty_SD = jnp.zeros_like(x_SD)
  return jax.lax.ragged_all_to_all(
      x_SD,
      empty_SD,
      starts_p,
      sent_p,
      their_start_p,
      received_p,
      axis_name=AXIS,
  )
