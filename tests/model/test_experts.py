"""Layers of experts: no token lost, the same on every mesh, right gradients."""
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from t5like import sharding
from t5like.model import experts as experts_lib
from t5like.model.experts import Experts
from t5like.model.kernels import grouped
from t5like.model.layers import ACTIVATIONS
from t5like.model.side_values import Collector, With
from t5like.model.stack import Stack
from tests import tiny

B, T = 4, 8
SPARSE = dataclasses.replace(tiny.MODEL, experts=4, experts_per_token=2, expert_d_ff=24)


def mesh(**sizes):
  sizes = dict.fromkeys(sharding.AXES, 1) | sizes
  devices = int(np.prod(list(sizes.values())))
  return jax.set_mesh(sharding.make_mesh(sizes, jax.devices()[:devices]))


def inputs():
  rng = np.random.default_rng(0)
  x = rng.normal(size=(B, T, SPARSE.d_model)).astype(np.float32)
  segments = np.ones((B, T), np.int32)
  segments[1, 5:] = 0
  return x, segments, rng.normal(size=x.shape).astype(np.float32)


def spread(x):
  return jax.device_put(x, jax.NamedSharding(jax.sharding.get_mesh(), P(*sharding.in_use('BT'))))


def run(c, bias=None, **sizes):
  """(output, side values, gradients of x and of all parameters) of a layer of random experts on a mesh."""
  x, segments, weights = inputs()
  with mesh(**sizes):
    layer = Experts(c, jax.random.key(0))
    if bias is not None:
      layer.router.b[...] = jnp.asarray(bias, jnp.float32)

    @jax.jit
    def loss(layer, x, segments):
      y, values = layer(x, segments)
      loss = jnp.sum(y * weights * (segments > 0)[..., None])
      collector = Collector(segments)
      collector.take(With(y, values))
      loss += sum(sums.loss for sums in collector.sums.values())
      return loss, (y, {name: sums.total for name, sums in collector.sums.items()})

    gradients, (y, side) = jax.grad(loss, argnums=(0, 1), has_aux=True)(layer, spread(x), spread(segments))
    return jax.device_get((y, side, jax.tree.map(lambda x: x, jax.tree.leaves(gradients))))


def matrices(c):
  """{name: array} of the layer of `run`."""
  with mesh():
    layer = Experts(c, jax.random.key(0))
    return {name: np.asarray(getattr(layer, name).w[...]) for name in ('router', 'up', 'gate', 'down')}


def by_hand(c, bias=0.0):
  """Each token through each of its experts, one by one."""
  x, segments, _ = inputs()
  w = matrices(c)
  act = ACTIVATIONS[c.activation]
  p = np.asarray(jax.nn.softmax(x @ w['router']))
  y = np.zeros_like(x)
  for b, t in np.argwhere(segments > 0):
    chosen = np.argsort(-(p[b, t] + bias), stable=True)[:c.experts_per_token]
    for e in chosen:
      weight = p[b, t, e]
      if c.router == 'softmax_normalized':
        weight /= p[b, t, chosen].sum()
      token = x[b, t]
      hidden = np.asarray(act(token @ w['gate'][e])) * (token @ w['up'][e])
      y[b, t] += weight * (hidden @ w['down'][e])
  return y


MESHES = (dict(expert=2), dict(expert=4), dict(expert=2, tensor=2), dict(fsdp=2, expert=2, context=2),
          dict(data=2, fsdp=2, tensor=2))


def agree(one, other):
  for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('change', [
    dict(), dict(router='softmax', experts_per_token=1), dict(experts_per_token=3)], ids=str)
def test_tokens_one_by_one(change):
  c = dataclasses.replace(SPARSE, **change)
  y, _, _ = run(c)
  np.testing.assert_allclose(y, by_hand(c), atol=1e-5)


@pytest.mark.parametrize('sizes', MESHES, ids=str)
def test_the_same_on_every_mesh(sizes):
  """Outputs, side values and gradients, of the router's losses too."""
  c = dataclasses.replace(SPARSE, router_balance=0.1, router_z_loss=0.01, shared_experts=2, shared_gate=True)
  one = run(c)
  agree(run(c, **sizes), one)
  assert all(np.abs(g).max() > 0 for g in one[2])


@pytest.mark.parametrize('sizes', [dict(), dict(expert=4), dict(expert=2, fsdp=2)], ids=str)
def test_no_token_is_lost_where_all_choose_the_same(sizes):
  """Expert 3 and then expert 1 for each token."""
  c = dataclasses.replace(SPARSE, router_bias=True)
  bias = np.float32([0, 10, 0, 20])
  y, side, _ = run(c, bias, **sizes)
  np.testing.assert_allclose(y, by_hand(c, bias), atol=1e-5)
  tokens = inputs()[1].sum()
  assert side['router/dropped'] == 0 and side['router/most'] == pytest.approx(2 * tokens) and side['router/least'] == 0
  np.testing.assert_allclose([side[f'router/load/{n}'] for n in range(4)], tokens * np.float32([0, 2, 0, 2]))


def test_all_experts_are_their_sum():
  """Each token passes all: an MLP as wide as all of them, whose hidden parts are weighed."""
  c = dataclasses.replace(SPARSE, experts_per_token=4, router='softmax')
  y, side, _ = run(c)
  x, segments, _ = inputs()
  w = matrices(c)
  hidden = np.asarray(jax.nn.silu(np.einsum('BTD,XDF->BTXF', x, w['gate'])))
  hidden = hidden * np.einsum('BTD,XDF->BTXF', x, w['up'])
  dense = np.einsum('BTXF,XFD,BTX->BTD', hidden, w['down'], jax.nn.softmax(x @ w['router']))
  np.testing.assert_allclose(y, dense * (segments > 0)[..., None], atol=1e-5)


def test_capacity_takes_the_first_tokens_of_each_row():
  c = dataclasses.replace(SPARSE, router='softmax', experts_per_token=1, expert_capacity=1)
  y, side, _ = run(c)
  whole = by_hand(c)
  x, segments, _ = inputs()
  chosen = np.argmax(x @ matrices(c)['router'], -1)
  lost = 0
  for b in range(B):
    seen = set()
    for t in np.flatnonzero(segments[b]):
      expected = whole[b, t] if chosen[b, t] not in seen else 0 * whole[b, t]
      lost += chosen[b, t] in seen
      seen.add(chosen[b, t])
      np.testing.assert_allclose(y[b, t], expected, atol=1e-5)
  assert side['router/dropped'] == lost > 0
  agree(run(c, context=2, expert=2)[:2], (y, side))


def test_biases_move_towards_experts_that_got_few_tokens():
  c = dataclasses.replace(SPARSE, router_bias=True)
  _, _, gradients = run(c, np.float32([0, 10, 0, 20]))
  of_bias, = [g for g in gradients if g.shape == (4,)]
  assert np.sign(of_bias).tolist() == [-1, 1, -1, 1] and np.abs(of_bias).max() < 1e-9


@pytest.mark.parametrize('scan', [True, False])
@pytest.mark.parametrize('depth, every, dense_first, layers', [
    (5, 2, 0, ('global',)), (6, 1, 2, ('local', 'global')), (7, 2, 3, ('local', 'local', 'global'))])
def test_stacks_of_dense_and_sparse_layers(depth, every, dense_first, layers, scan):
  """In turns of a loop as one after the other, and each layer has what it should."""
  c = dataclasses.replace(SPARSE, num_layers=depth, sparse_every=every, dense_first=dense_first, layers=layers,
                          window=3, scan_layers=scan)
  rows = dict(positions=np.tile(np.arange(T, dtype=np.int32), (B, 1)), segments=inputs()[1])
  with mesh():
    stack = Stack(c, jax.random.key(0), causal=True)
    sparse = [c.is_sparse(n) for n in range(depth)]
    assert [hasattr(layer, 'experts') for layer in stack.layers()] == sparse

    @jax.jit
    def both(stack, x, rows):
      x, rows = sharding.spread_rows((x, rows))
      whole, side = stack(x, rows)
      views = stack._views(x, rows, rows, None, False)
      for n, layer in enumerate(stack.layers()):
        x = layer(x, views[n % len(views)]).x_BTD
      return whole, side, stack.norm(x)

    whole, side, one_by_one = both(stack, inputs()[0], rows)
    np.testing.assert_allclose(whole, one_by_one, atol=1e-5)
    assert side['router/entropy'].weight == sum(sparse) * (inputs()[1] > 0).sum()
    declared = stack.blocks.experts.up.w.get_metadata('declared')
    assert declared.owners == tuple(sparse) and declared.dims == 'LXDF' and declared.batch == 'X'


# --- Products of groups -----------------------------------------------------------------------------


def interpreted(x, w, sizes):
  return grouped._on_tpu(x, w, sizes, interpret=True)


@pytest.mark.parametrize('product', [grouped._on_cpu, jax.lax.ragged_dot, interpreted], ids=['cpu', 'gpu', 'tpu'])
@pytest.mark.parametrize('sizes, rows', [((100, 0, 37, 1), 150), ((0, 0, 0, 0), 5), ((3, 2, 0, 3), 8)], ids=str)
def test_products_of_groups(product, sizes, rows, monkeypatch):
  """Of each kernel, forward and gradients; rows behind the last group are zeros, whatever they were."""
  monkeypatch.setitem(grouped.PRODUCTS, 'cpu', product)
  rng = np.random.default_rng(0)
  x, w, c = (rng.normal(size=shape).astype(np.float32) for shape in ((rows, 16), (4, 16, 24), (rows, 24)))
  used = sum(sizes)
  x[used:] = np.nan
  group = np.repeat(np.arange(4), sizes)

  def expected(x, w):
    y = jnp.einsum('rd,rdf->rf', x[:used], w[group])
    return jnp.concatenate([y, jnp.zeros((rows - used, 24))])

  def computed(x, w):
    return grouped.product('cpu', x, w, jnp.asarray(sizes, jnp.int32))

  y, back = jax.vjp(computed, x, jnp.asarray(w))
  y_0, back_0 = jax.vjp(expected, np.nan_to_num(x), jnp.asarray(w))
  agree((y, back(c)), (y_0, back_0(c)))


def test_rows_that_travel_keep_to_their_slots():
  """Pairs of a token and an expert and their slots: each the reverse of the other, none twice."""
  rng = np.random.default_rng(0)
  for experts, devices, k in ((8, 4, 3), (8, 8, 2), (4, 1, 2)):
    chosen = np.stack([rng.permutation(experts)[:k] for _ in range(10)]).astype(np.int32)
    chosen[4] = experts
    plan = jax.device_get(experts_lib._plan(jnp.asarray(chosen.ravel()), experts, devices, k))
    has_slot = plan.slot_A >= 0
    assert has_slot.tolist() == (chosen.ravel() < experts).tolist()
    np.testing.assert_array_equal(plan.pair_S[plan.slot_A[has_slot]], np.flatnonzero(has_slot))
    assert (plan.pair_S >= 0).sum() == has_slot.sum() == plan.counts_X.sum()
    slots = len(plan.pair_S) // devices
    np.testing.assert_array_equal(plan.slot_A[has_slot] // slots, chosen.ravel()[has_slot] // (experts // devices))
