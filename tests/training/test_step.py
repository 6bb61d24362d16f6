"""The loss against its formulas, and a step that does not care how its batch is cut or spread."""
import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings, strategies as st

from t5like import sharding
from t5like.config import base
from t5like.model import loss as loss_lib, transformer
from t5like.optim import from_config
from t5like.training import step
from tests.tiny import MODEL

B, T, V = 8, 16, 64


def data(seed=0, uneven=True):
  rng = np.random.default_rng(seed)
  weights = rng.random((B, T)) < (np.linspace(0, 1, B)[:, None] if uneven else 0.9)
  return dict(inputs=rng.integers(0, V, (B, T)).astype(np.int32), targets=rng.integers(0, V, (B, T)).astype(np.int32),
              positions=np.tile(np.arange(T, dtype=np.int32), (B, 1)), segments=np.ones((B, T), np.int32),
              weights=weights.astype(np.float32))


@functools.cache
def programs(mesh, chunks, microbatches, clip_norm, optimizer):
  """(mesh, the compiled step, the function that makes a state); optimizer: its keys, JSON."""
  devices = int(np.prod(mesh))
  mesh = sharding.make_mesh(dict(zip(('data', 'fsdp', 'tensor'), mesh)), jax.devices()[:devices])
  c = base()
  c.optimizer.update(learning_rate=1e-2, **json.loads(optimizer))
  with jax.set_mesh(mesh):
    model = transformer.build(dataclasses.replace(MODEL, vocab_size=V))
    tx = from_config.build(c.optimizer, c.optimizer.learning_rate, model.parameters)
    gradients = step.make_gradients(loss_lib.make_sums(model, c.loss, chunks), microbatches)
    train_step = jax.jit(step.make_train_step(gradients, tx, seed=0, clip_norm=clip_norm), donate_argnums=0)
    return mesh, train_step, jax.jit(lambda: step.init_state(model, tx, 0))


def steps(n=3, mesh=(1, 1, 1), chunks=1, microbatches=1, clip_norm=1.0, batches=None, **optimizer):
  """(metrics of n steps, final state, the compiled step)."""
  mesh, train_step, make_state = programs(mesh, chunks, microbatches, clip_norm, json.dumps(optimizer))
  with jax.set_mesh(mesh):
    state = make_state()
    values = []
    for i in range(n):
      batch = batches[i] if batches else data()
      state, new = train_step(state, sharding.to_global(mesh, batch))
      values.append({k: float(v) for k, v in new.items()})
    return values, jax.device_get(state), train_step


def losses(**kwargs):
  return [v['loss'] for v in steps(**kwargs)[0]]


# --- The loss -------------------------------------------------------------------------------


def reference(logits, targets, smoothing=0.0, z=0.0):
  """(nll, loss) as specified, in float64, one token at a time."""
  nll, loss = np.zeros(targets.shape), np.zeros(targets.shape)
  for at in np.ndindex(targets.shape):
    x = logits[at].astype(np.float64)
    log_z = np.log(np.exp(x).sum())
    n = len(x)
    c, low = 1 - smoothing, smoothing / (n - 1)
    soft = np.full(n, low)
    soft[targets[at]] = c
    constant = -(c * np.log(c) + (n - 1) * low * np.log(low + 1e-20)) if smoothing else 0
    nll[at] = log_z - x[targets[at]]
    loss[at] = -(soft * (x - log_z)).sum() - constant + z * log_z ** 2
  return nll, loss


@pytest.mark.parametrize('smoothing, z', [(0.0, 0.0), (0.1, 0.0), (0.0, 1e-2), (0.2, 1e-3)])
def test_cross_entropy_against_its_definition(smoothing, z):
  rng = np.random.default_rng(0)
  logits, targets = 3 * rng.normal(size=(2, 5, 7)).astype(np.float32), rng.integers(0, 7, (2, 5))
  nll, loss, hit = loss_lib.cross_entropy(jnp.asarray(logits), jnp.asarray(targets), smoothing, z)
  for got, expected in zip((nll, loss), reference(logits, targets, smoothing, z)):
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)
  np.testing.assert_array_equal(hit, logits.argmax(-1) == targets)


@settings(deadline=None, max_examples=40)
@given(st.lists(st.lists(st.integers(-2, 2), min_size=5, max_size=5), min_size=3, max_size=3))
def test_of_equal_logits_only_the_first_is_hit(rows):
  logits = np.repeat(np.array(rows, np.float32), 5, axis=0)[None]
  targets = np.tile(np.arange(5, dtype=np.int32), 3)[None]
  *_, hit = loss_lib.cross_entropy(jnp.asarray(logits), jnp.asarray(targets))
  np.testing.assert_array_equal(hit, logits.argmax(-1) == targets)


@pytest.mark.parametrize('value', [0.0, -np.inf, np.inf, np.nan])
def test_equal_logits_have_the_accuracy_of_one_symbol(value):
  *_, hit = loss_lib.cross_entropy(jnp.full((1, 7, 7), value), jnp.arange(7, dtype=jnp.int32)[None])
  assert hit.sum() == (0 if np.isnan(value) else 1)


def test_accuracy_of_a_model_without_an_opinion():
  """All logits equal, the vocabulary spread over devices: one of V targets is hit, in training as in validation."""
  batch = dict(data(uneven=False), targets=np.tile(np.arange(T, dtype=np.int32), (B, 1)),
               weights=np.ones((B, T), np.float32))
  mesh = sharding.make_mesh(dict(fsdp=4, tensor=2), jax.devices())
  with jax.set_mesh(mesh):
    model = transformer.build(dataclasses.replace(MODEL, vocab_size=V))
    params = jax.tree.map(lambda x: x * 0, jax.jit(model.init)(jax.random.key(0)))
    sums = jax.jit(loss_lib.make_sums(model, base().loss))(params, sharding.to_global(mesh, batch))
  assert float(sums['hits'] / sums['weights']) == 1 / T


def test_smoothed_loss_is_least_at_zero():
  """When the model predicts the smoothed distribution itself, the loss is 0."""
  smoothing, n = 0.1, 7
  p = np.full((1, 1, n), smoothing / (n - 1), np.float32)
  p[0, 0, 3] = 1 - smoothing
  _, loss, _ = loss_lib.cross_entropy(jnp.log(p), jnp.array([[3]]), smoothing)
  assert abs(float(loss[0, 0])) < 1e-6


def test_gradient_with_z_loss():
  """(1 + 2 z log Z) softmax - onehot (specs, 1h)."""
  logits, z = jnp.asarray(np.random.default_rng(1).normal(size=(1, 1, 7)), jnp.float32), 0.05
  grad = jax.grad(lambda x: loss_lib.cross_entropy(x, jnp.array([[2]]), 0.0, z)[1].sum())(logits)
  log_z = jax.nn.logsumexp(logits)
  expected = (1 + 2 * z * log_z) * jax.nn.softmax(logits) - jax.nn.one_hot(jnp.array([[2]]), 7)
  np.testing.assert_allclose(grad, expected, atol=1e-6)


def test_chunks_are_chosen_from_sizes():
  assert loss_lib.num_chunks(0, 1024, 4, 1000) == 1
  assert loss_lib.num_chunks(0, 1024, 8, 32_000) == 8  # 8 x 1024 x 32,000 x 4 bytes in pieces of 2^27
  assert loss_lib.num_chunks(0, 96, 10_000, 128) == 4  # a divisor of 96
  assert loss_lib.num_chunks(3, 96, 10_000, 128) == 3
  assert loss_lib.num_chunks(0, 7, 10 ** 6, 10 ** 6) == 7


# --- The step ---------------------------------------------------------------------------------


@pytest.fixture(scope='module')
def plain():
  return losses()


@pytest.mark.parametrize('kwargs', [
    dict(chunks=2), dict(chunks=16), dict(microbatches=2), dict(microbatches=4),
    dict(mesh=(8, 1, 1)), dict(mesh=(2, 2, 2), microbatches=2, chunks=2)], ids=str)
def test_cuts_and_meshes_do_not_change_losses_of_uneven_batches(kwargs, plain):
  np.testing.assert_allclose(losses(**kwargs), plain, atol=5e-6)


def test_padding_changes_nothing(plain):
  """Padded columns and whole rows of weight 0, with garbage in them."""
  padded = data()
  rng = np.random.default_rng(5)
  for k, v in padded.items():
    wide = np.zeros((2 * B, T + 8), v.dtype)
    if k in ('inputs', 'targets'):
      wide = rng.integers(0, V, wide.shape).astype(v.dtype)
    wide[:B, :T] = v
    padded[k] = wide
  np.testing.assert_allclose(losses(batches=[padded] * 3), plain, atol=2e-6)


@pytest.mark.parametrize('poison', [np.nan, np.inf])
def test_a_bad_step_changes_nothing_but_the_count(poison):
  bad = data()
  bad['weights'][0, 0] = poison
  _, before, train_step = steps(n=2)
  programs_before = train_step._cache_size()
  values, after, _ = steps(n=3, batches=[data(), data(), bad])
  for key in ('params', 'opt_state'):
    jax.tree.map(np.testing.assert_array_equal, before[key], after[key])
  assert after['step'] == 3 and values[-1]['bad_steps'] == values[-1]['bad_in_a_row'] == 1
  assert train_step._cache_size() == programs_before
  values, after, _ = steps(n=4, batches=[data(), bad, bad, data()])
  assert [v['bad_in_a_row'] for v in values] == [0, 1, 2, 0] and values[-1]['bad_steps'] == 2
  assert np.isfinite(values[-1]['loss'])


def test_the_learning_rate_applied_is_that_of_the_step_whatever_steps_were_bad():
  """One time for schedule, log and stop: SGD moves by the rate of the step times the clipped gradient."""
  c, n = base(), 6
  c.optimizer.update(name='sgd')
  c.schedule.update(name='linear', warmup_steps=2, final_scale=0.0)
  rate = from_config.schedule(c.schedule, 0.1, n)
  poisoned = data()
  poisoned['weights'][0, 0] = np.nan
  mesh = sharding.make_mesh(dict.fromkeys(sharding.AXES, 1), jax.devices()[:1])
  with jax.set_mesh(mesh):
    model = transformer.build(dataclasses.replace(MODEL, vocab_size=V))
    tx = from_config.build(c.optimizer, rate, model.parameters)
    gradients = step.make_gradients(loss_lib.make_sums(model, c.loss))
    train_step = jax.jit(step.make_train_step(gradients, tx, seed=0))
    make_state = jax.jit(lambda: step.init_state(model, tx, 0))
    for bad in ((), (1,), (0, 1, 3), (2, 3, 4)):
      state = make_state()
      for i in range(n):
        state, values = train_step(state, sharding.to_global(mesh, poisoned if i in bad else data()))
        if i not in bad:
          np.testing.assert_allclose(values['update_norm'], float(rate(i)) * values['grad_norm'], rtol=1e-4)
      assert state['step'] == n
  assert float(rate(n)) == 0


@pytest.mark.parametrize('name', ['cosine', 'linear', 'wsd', 'rsqrt', 'rsqrt_decay', 'constant'])
def test_schedules_of_more_steps_than_32_bits_hold(name):
  spec = base().schedule
  spec.update(name=name, warmup_steps=10 ** 12, timescale=2 ** 40)
  for total in (2 ** 31, 2 ** 40, 10 ** 16):
    rate = from_config.schedule(spec, 1.0, total)
    values = [float(jax.jit(rate)(jnp.int32(n))) for n in (0, 1000, 2 ** 31 - 1)] + [float(rate(total))]
    assert np.isfinite(values).all() and min(values) >= 0 and values[0] < 1e-6


def test_clipping_is_optaxs():
  unclipped = steps(n=1, clip_norm=0.0, name='sgd')
  clipped = steps(n=1, clip_norm=0.1, name='sgd')
  norm = unclipped[0][0]['grad_norm']
  assert norm > 0.1 and clipped[0][0]['grad_norm'] == norm  # reported before clipping
  assert np.isclose(clipped[0][0]['update_norm'], 1e-2 * 0.1, rtol=1e-4)
  assert np.isclose(unclipped[0][0]['update_norm'], 1e-2 * norm, rtol=1e-4)


def test_the_state_is_given_away():
  """Donated: the step works in the memory of the state it was given."""
  mesh = sharding.make_mesh(dict.fromkeys(sharding.AXES, 1), jax.devices()[:1])
  with jax.set_mesh(mesh):
    model = transformer.build(dataclasses.replace(MODEL, vocab_size=V))
    tx = optax.sgd(0.1)
    gradients = step.make_gradients(loss_lib.make_sums(model, base().loss))
    train_step = jax.jit(step.make_train_step(gradients, tx, seed=0), donate_argnums=0)
    state = jax.jit(lambda: step.init_state(model, tx, 0))()
    train_step(state, sharding.to_global(mesh, data()))
    assert all(x.is_deleted() for x in jax.tree.leaves(state['params']))


@pytest.mark.parametrize('optimizer', [
    dict(name='lion'), dict(name='adafactor'), dict(name='sgd', extra=dict(momentum=0.9)), dict(name='adam')],
                         ids=lambda o: o['name'])
def test_optimizers_by_name_train(optimizer):
  got = losses(n=6, batches=[data(uneven=False)] * 6, **optimizer)
  assert got[-1] < got[0]
