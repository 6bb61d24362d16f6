"""Attention sinks: a logit for each head that joins the softmax, in XLA, in splash and in decoding."""
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from t5like import sharding
from t5like.model import attention, attention_kernels, flops, transformer
from t5like.model.kernels import splash
from t5like.objectives.spec import Lengths
from tests import tiny
from tests.model.test_kernels import choose, example

SINKS_N = np.array([-2.0, 0.5, 3.0, 1.0], np.float32)
SCALE = 0.1


def written_out(q, k, v, mask_BTS, sinks_N):
  """In numpy, fp64: probabilities of the keys and of one more, whose value is nothing."""
  q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
  group = q.shape[2] // k.shape[2]
  out = np.zeros_like(q)
  for b, t, n in np.ndindex(*q.shape[:3]):
    logits = SCALE * k[b, :, n // group] @ q[b, t, n]
    seen = np.asarray(mask_BTS)[b, t]
    weights = np.where(seen, np.exp(logits), 0)
    out[b, t, n] = weights @ v[b, :, n // group] / (weights.sum() + np.exp(sinks_N[n]))
  return out


def dot_product(q, k, v, query, key, spec, sinks_N, kernel='xla'):
  """On the mesh in force, [B, T, N, H] on every device in full."""
  spread = lambda x, dims: jax.sharding.reshard(x, sharding.in_use(dims))
  query, key = ({name: spread(x, 'BT') for name, x in info.items()} for info in (query, key))
  out = attention.dot_product(spread(q, 'BTNH'), spread(k, 'BSKH'), spread(v, 'BSKH'), query, key, spec, SCALE,
                              kernel=kernel, sinks_N=spread(sinks_N, 'N'))
  return jax.sharding.reshard(out, P())


def mesh(**axes):
  count = int(np.prod([*axes.values(), 1]))
  return jax.set_mesh(sharding.make_mesh(dict(data=1, fsdp=1, **axes), jax.devices()[:count]))


def of_kind(kind, length):
  q, k, v, query, key = example(length, length, H=16)
  if kind != 'prefix':
    query, key = ({name: x for name, x in info.items() if name != 'prefix'} for info in (query, key))
  return q, k, v, query, key, kind != 'bidirectional'


@pytest.mark.parametrize('kind, window', [('causal', None), ('prefix', None), ('bidirectional', (3, 2))])
def test_xla_and_decoding_are_attention_written_out(kind, window):
  q, k, v, query, key, causal = of_kind(kind, 24)
  spec = attention_kernels.AttentionSpec(causal, 24, 24, window=window, sinks=True)
  wanted = written_out(q, k, v, attention_kernels.visible(spec, query, key), SINKS_N)
  with mesh():
    out = dot_product(q, k, v, query, key, spec, jnp.asarray(SINKS_N))
    spread = lambda x, dims: jax.sharding.reshard(x, sharding.in_use(dims))
    query, key = ({name: spread(x, 'BT') for name, x in info.items()} for info in (query, key))
    heads_first = [spread(jnp.swapaxes(x, 1, 2), 'BKSH') for x in (k, v)]
    cached = attention.cached(spread(q, 'BTNH'), *heads_first, query, key, spec, SCALE,
                              sinks_N=spread(jnp.asarray(SINKS_N), 'N'))
  np.testing.assert_allclose(out, wanted, atol=1e-5)
  np.testing.assert_allclose(cached, wanted, atol=1e-5)


@pytest.mark.parametrize('kind, window', [('causal', None), ('prefix', None), ('bidirectional', (70, 30))])
def test_splash_is_xla_with_all_gradients(kind, window):
  """Interpreted, forward and backward, those of the sinks too."""
  q, k, v, query, key, causal = of_kind(kind, 200)
  spec = attention_kernels.AttentionSpec(causal, 200, 200, window=window)
  is_real = (query['segments'] > 0)[:, :, None, None]
  mix = jnp.cos(jnp.arange(16.))[None, None, None]
  kernels, _ = splash.prepare(q, k, causal, kind == 'prefix', interpret=True, window=window)

  def ours(q, k, v, sinks_N):
    return splash.attention(kernels, q, k, v, query, key, SCALE, window, sinks_N=sinks_N)

  def theirs(q, k, v, sinks_N):
    return dot_product(q, k, v, query, key, spec, sinks_N)

  def run(attend):
    out, back = jax.vjp(lambda *x: jnp.where(is_real, attend(*x), 0) * mix, q, k, v, jnp.asarray(SINKS_N))
    return out, back(jnp.ones_like(out))
  out, gradients = run(ours)
  with mesh():
    wanted, wanted_gradients = run(theirs)
  np.testing.assert_allclose(out, wanted, atol=1e-5)
  for gradient, wanted_gradient in zip(gradients, wanted_gradients, strict=True):
    largest = float(jnp.abs(wanted_gradient).max())
    assert largest > 0.01
    np.testing.assert_allclose(gradient, wanted_gradient, atol=1e-5 * max(1, largest))


def test_splash_on_rows_and_heads_that_are_spread():
  """The gradient of a sink is the sum over all devices that have its head."""
  q, k, v, query, key, causal = of_kind('causal', 264)
  spec = attention_kernels.AttentionSpec(causal, 264, 264)
  is_real = (query['segments'] > 0)[:, :, None, None]

  def loss(sinks_N, kernel):
    out = dot_product(q, k, v, query, key, spec, sinks_N, kernel)
    return jnp.sum(jnp.sin(jnp.where(is_real, out, 0)))

  def run(kernel, **axes):
    with mesh(**axes):
      return jax.jit(jax.value_and_grad(loss), static_argnums=1)(jnp.asarray(SINKS_N), kernel)
  value, gradient = run('splash', context=2, tensor=2)
  wanted, wanted_gradient = run('xla')
  np.testing.assert_allclose(value, wanted, rtol=1e-5)
  np.testing.assert_allclose(gradient, wanted_gradient, atol=1e-4)


def test_which_kernels_have_them():
  assert choose('auto', 'tpu', True, 8, 8, sinks=True) == ('splash', 'a TPU')
  assert choose('auto', 'tpu', True, 8, 8, sinks=True, bias=True)[0] == 'xla'
  assert 'sinks' in attention_kernels.KERNELS['cudnn'].declines(
      attention_kernels.AttentionSpec(True, 8, 8, sinks=True), 'gpu')
  assert choose('auto', 'gpu', True, 8, 8, sinks=True)[0] == 'xla'


def test_they_begin_at_zero_and_cost_no_products():
  """Zero: a softmax off by one (a key whose logit is 0)."""
  built = {}
  for sinks in ('none', 'head'):
    with mesh():
      built[sinks] = transformer.build(dataclasses.replace(tiny.MODEL, attention_sinks=sinks))
      params = jax.jit(built[sinks].init)(jax.random.key(0))
  sinks_LN = params['stack']['blocks']['attention']['sinks']
  assert sinks_LN.shape == (tiny.MODEL.num_layers, tiny.MODEL.num_heads)
  assert not np.asarray(sinks_LN).any()
  lengths = Lengths(raw=32, inputs=0, targets=32)
  without, having = (flops.per_row(model, lengths) for model in built.values())
  assert without == having
