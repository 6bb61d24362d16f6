"""Side values of layers, on their way to the loss and the log, against a model written down by hand."""
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5like import sharding
from t5like.config import base
from t5like.model import block, layers, loss as loss_lib, side_values, transformer
from t5like.model.side_values import Sums, Value, With
from t5like.training import loop, step
from tests import tiny

B, T, S, V, COEFFICIENT = 32, 16, 24, 64, 0.03
MODEL = dataclasses.replace(tiny.MODEL, vocab_size=V, position='learned', activation='relu', num_kv_heads=4,
                            num_layers=3, num_encoder_layers=2)


class Penalised(layers.MLP):
  """An MLP that would keep its activations small, and says how large they are."""

  def __call__(self, x_BTD, key=None):
    up_BTF = self.up(x_BTD)
    z_BT = jnp.square(jax.nn.logsumexp(up_BTF, -1))
    return With(super().__call__(x_BTD, key), dict(
        activation_z=Value(z_BT, COEFFICIENT), activation_size=Value(jnp.mean(jnp.abs(up_BTF), -1))))


@pytest.fixture(autouse=True)
def penalised(monkeypatch):
  monkeypatch.setattr(block, 'MLP', Penalised)


def rows(rng, length, n=B):
  """Rows of two documents and some padding, whose tokens are anything."""
  at = np.arange(length)
  ends = rng.integers(length // 2, length + 1, (n, 1))
  first = rng.integers(2, length // 2, (n, 1))
  segments = np.where(at < first, 1, np.where(at < ends, 2, 0)).astype(np.int32)
  return dict(inputs=rng.integers(0, V, (n, length)).astype(np.int32), segments=segments,
              positions=np.where(at < first, at, at - first).astype(np.int32))


def batch_of(name):
  rng = np.random.default_rng(0)
  batch = rows(rng, T)
  batch.update(targets=rng.integers(0, V, (B, T)).astype(np.int32),
               weights=(batch['segments'] > 0).astype(np.float32) * (rng.random((B, T)) < 0.8))
  return dict(batch, encoder=rows(rng, S)) if name == 'encoder_decoder' else batch


# --- The same model by hand -----------------------------------------------------------------------


def norm(x, scale):
  return x / jnp.sqrt(jnp.mean(x ** 2, -1, keepdims=True) + 1e-6) * scale


def attention(p, x, source, query, key, causal):
  q, k, v = (jnp.einsum('btd,dnh->btnh', y, p[n]['w']) for n, y in (('q', x), ('k', source), ('v', source)))
  logits = jnp.einsum('btnh,bsnh->bnts', q, k) / 8 ** 0.5
  seen = (query['segments'][:, :, None] == key['segments'][:, None]) & (key['segments'][:, None] > 0)
  if causal:
    seen &= query['positions'][:, :, None] >= key['positions'][:, None]
  logits = jnp.where(seen[:, None], logits, -1e30)
  return jnp.einsum('bnts,bsnh,nhd->btd', jax.nn.softmax(logits, -1), v, p['o']['w'])


def by_hand(p, x, query, causal, memory=None):
  """(output, [sum of activation_z, sum of activation_size, tokens times layers]) of a stack."""
  z = size = weight = 0.0
  real = query['segments'] > 0
  for n in range(len(p['blocks']['mlp_norm']['scale'])):
    b = jax.tree.map(lambda w, n=n: w[n], p['blocks'])
    y = norm(x, b['attention_norm']['scale'])
    x = x + attention(b['attention'], y, y, query, query, causal)
    if memory is not None:
      x = x + attention(b['cross'], norm(x, b['cross_norm']['scale']), memory[0], query, memory[1], False)
    up = jnp.einsum('btd,df->btf', norm(x, b['mlp_norm']['scale']), b['mlp']['up']['w'])
    z += jnp.sum(real * jnp.log(jnp.sum(jnp.exp(up), -1)) ** 2)
    size += jnp.sum(real * jnp.abs(up).mean(-1))
    weight += jnp.sum(real)
    x = x + jnp.einsum('btf,fd->btd', jax.nn.relu(up), b['mlp']['down']['w'])
  return norm(x, p['norm']['scale']), jnp.stack([z, size, weight])


def loss_by_hand(params, batch):
  """(summed loss, [sum of activation_z, sum of activation_size, their weight])."""
  start = lambda part: params['embed']['w'][part['inputs']] + params['positions']['w'][part['positions']]
  if 'encoder' in batch:
    source = batch['encoder']
    memory, of_encoder = by_hand(params['encoder'], start(source), source, causal=False)
    x, side = by_hand(params['decoder'], start(batch), batch, causal=True, memory=(memory, source))
    side += of_encoder
  else:
    x, side = by_hand(params['stack'], start(batch), batch, causal=True)
  log_p = jax.nn.log_softmax(x @ params['head']['out']['w'])
  nll = -jnp.take_along_axis(log_p, batch['targets'][..., None], -1)[..., 0]
  return jnp.sum(nll * batch['weights']) + COEFFICIENT * side[0], side


@pytest.fixture(scope='module')
def expected():
  """{architecture: (parameters, gradients, summed loss, side values)}, from the model by hand."""
  out = {}
  for name in ('decoder', 'encoder_decoder'):
    with jax.set_mesh(sharding.make_mesh({}, jax.devices()[:1])), jax.numpy_rank_promotion('allow'):
      model = transformer.build(dataclasses.replace(MODEL, name=name))
      params = jax.device_get(jax.jit(model.init)(jax.random.key(0)))
    with jax.numpy_rank_promotion('allow'):
      (loss, side), grads = jax.jit(jax.value_and_grad(loss_by_hand, has_aux=True))(params, batch_of(name))
    out[name] = params, jax.device_get(grads), float(loss), np.asarray(side)
  return out


WAYS = [  # mesh, micro-batches, chunks, changes of the model
    ({}, 1, 1, {}), ({}, 2, 4, dict(remat='full')), ({}, 4, 1, dict(scan_layers=False, remat='minimal')),
    (dict(data=8), 4, 1, {}), (dict(fsdp=8), 2, 1, {}), (dict(tensor=4, data=2), 1, 1, {}),
    (dict(context=4, fsdp=2), 2, 2, {}), (dict(slice=2, data=2, tensor=2), 1, 1, dict(remat='minimal')),
    (dict(fsdp=2, context=2, tensor=2), 4, 1, dict(remat='weights'))]


@pytest.mark.parametrize('name, way', [
    *(('decoder', way) for way in WAYS), *(('encoder_decoder', way) for way in (WAYS[1], WAYS[-1]))], ids=str)
def test_gradients_and_sums_are_those_of_the_model_by_hand(name, way, expected):
  axes, microbatches, chunks, changes = way
  params, grads, loss, side = expected[name]
  mesh = sharding.make_mesh(axes, jax.devices()[:int(np.prod(list(axes.values()), initial=1))])
  with jax.set_mesh(mesh):
    model = transformer.build(dataclasses.replace(MODEL, name=name, **changes))
    layout = jax.tree.map(lambda x: x.sharding, sharding.abstract(lambda: model.init(jax.random.key(0)), mesh))
    gradients = jax.jit(step.make_gradients(loss_lib.make_sums(model, base().loss, chunks), microbatches))
    got, sums = gradients(jax.device_put(params, layout), sharding.to_global(mesh, batch_of(name)), jax.random.key(0))
  np.testing.assert_allclose(sums['loss'], loss, rtol=1e-5)
  for metric, total in (('activation_z', side[0]), ('activation_size', side[1])):
    np.testing.assert_allclose(sums[f'side/{metric}'], total, rtol=1e-5)
    np.testing.assert_allclose(sums[f'side_weight/{metric}'], side[2])
  for (path, x), y in zip(jax.tree_util.tree_leaves_with_path(got), jax.tree.leaves(grads)):
    np.testing.assert_allclose(x, y, rtol=1e-3, atol=2e-5 * np.abs(y).max(), err_msg=jax.tree_util.keystr(path))


def test_the_penalty_reaches_the_gradient(expected):
  """What the test above compares is not the gradient of the loss alone."""
  params, grads, _, _ = expected['decoder']
  with jax.numpy_rank_promotion('allow'):
    alone = jax.grad(lambda p: loss_by_hand(p, batch_of('decoder'))[0] - COEFFICIENT * loss_by_hand(
        p, batch_of('decoder'))[1][0])(params)
  up, without = (tree['stack']['blocks']['mlp']['up']['w'] for tree in (grads, alone))
  assert np.abs(up - without).max() > 0.1 * np.abs(up).max()


def test_a_run_logs_side_values_and_its_loss_has_the_penalty(tmp_path):
  """Means over the tokens of all steps since the last line; validation, sampling and restarts go through."""
  c = tiny.config(tmp_path, steps=4, log=dict(every=2), sample=dict(prompts=('the ',), every=2, tokens=3), batch_size=8,
                  microbatches=2)
  loop.train(c, tmp_path / 'run', 'side', jax.devices()[:1])
  lines, validations = tiny.metrics(tmp_path / 'run')
  assert len(lines) >= 2 and validations
  for line in lines:
    assert line['side/activation_z'] > 0 and line['side/activation_size'] > 0
    assert not any(key.startswith('side_weight') for key in line)
    penalty = COEFFICIENT * c.model.num_layers * line['side/activation_z']
    assert line['loss'] - line['nll'] == pytest.approx(penalty, rel=0.1)  # nearly all tokens are predicted


def test_without_side_values_there_is_nothing_of_them(monkeypatch):
  monkeypatch.undo()
  with jax.set_mesh(sharding.make_mesh({}, jax.devices()[:1])):
    model = transformer.build(MODEL)
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0)))
    sums = jax.eval_shape(loss_lib.make_sums(model, base().loss), shapes, batch_of('decoder'))
  assert set(sums) == {'loss', 'nll', 'hits', 'weights'}


def test_values_of_one_name_add_up():
  sums = {'a': Sums(1.0, 2.0, 0.5)}
  both = side_values.added(sums, {'a': Sums(2.0, 1.0, 0.0), 'b': Sums(1.0, 1.0, 1.0)})
  assert both == {'a': Sums(3.0, 3.0, 0.5), 'b': Sums(1.0, 1.0, 1.0)}
  metrics = {'side/a': 1.5, 'side_weight/a': 2.0, 'loss': 1.0}
  assert side_values.weighted(metrics) == {'side/a': 3.0, 'side_weight/a': 2.0}
  assert side_values.logged({'side/a': 3.0, 'side_weight/a': 2.0, 'loss': 7.0}) == {'side/a': 1.5}
