"""Dropout of attention probabilities in the kernel for TPUs, against XLA's with the same mask written out."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5like import sharding
from t5like.model.attention import Drop, dot_product
from t5like.model.attention_kernels import AttentionSpec, Dropout
from t5like.model.kernels import dropped, relative_bias_attention as kernel

RATE = 0.25


@pytest.mark.parametrize('alike', [False, True])
def test_a_share_is_dropped_wherever_one_looks(alike):
  """Of every row, head, query and key, and no two of them the same places."""
  shape = (4, 6, 128, 160)
  kept = np.asarray(dropped.mask(jnp.int32(5), shape, RATE, alike)).astype(float)
  independent = np.prod(shape) / (shape[2] if alike else 1)
  for axes in ((), (0,), (1,), (3,), (0, 1), *(() if alike else ((2,), (0, 2), (2, 3)))):
    others = tuple(set(range(4)) - set(axes))
    means = kept.mean(others)
    deviation = (RATE * (1 - RATE) / (independent / means.size)) ** 0.5
    assert np.abs(means - (1 - RATE)).max() < 5 * deviation, axes
  centred = kept - (1 - RATE)
  for a, b in ((centred[0], centred[1]), (centred[:, 0], centred[:, 1]), (centred[..., 1:], centred[..., :-1]),
               *([] if alike else [(centred[:, :, 1:], centred[:, :, :-1])])):
    size = a.size / (a.shape[-2] if alike else 1)
    assert abs((a * b).mean()) < 5 * RATE * (1 - RATE) / size ** 0.5
  assert (kept[:, :, :1] == kept).all() == alike
  other = np.asarray(dropped.mask(jnp.int32(6), shape, RATE, alike))
  assert abs((kept == other).mean() - (RATE ** 2 + (1 - RATE) ** 2)) < 0.02


def arrays(T, S, K=2, N=4, H=16, B=2):
  rng = np.random.default_rng(0)
  q, k, v, weights = (rng.normal(size=shape).astype(np.float32)
                      for shape in ((B, T, N, H), (B, S, K, H), (B, S, K, H), (B, T, N, H)))
  query, key = (dict(segments=np.sort(rng.integers(0, 3, (B, n)), 1).astype(np.int32)) for n in (T, S))
  return q, k, v, weights, query, key, rng.normal(size=(N, T + S)).astype(np.float32)


@pytest.mark.parametrize('causal, biased, alike, T, S', [
    (False, True, False, 200, 300), (True, False, False, 260, 260), (True, True, True, 260, 260)])
def test_forward_and_gradients(causal, biased, alike, T, S, monkeypatch):
  """In blocks of 128 and in pieces of 256, of rows and heads that are not the first of the batch."""
  monkeypatch.setattr(kernel, '_longest', lambda: 256)
  q, k, v, weights, query, key, bias = arrays(T, S)
  mask = dropped.mask(jnp.int32(7), (2 + 3, 4 + 5, T, S), RATE, alike)[3:, 5:]
  drop = kernel.Drop(RATE, alike, jnp.asarray([7, 3, 5, 0], jnp.int32))

  def attended(q, k, v, bias):
    return kernel.attention(q, k, v, bias if biased else None, query, key, causal, 0.2, interpret=True,
                            block_sizes=(128, 128), drop=drop)

  def expected(q, k, v, bias):
    return kernel.reference(q, k, v, bias if biased else 0 * bias, query, key, causal, 0.2, kept_BNTS=mask / (1 - RATE))
  y, back = jax.vjp(attended, q, k, v, bias)
  y_0, back_0 = jax.vjp(expected, q, k, v, bias)
  for a, b in zip((y, *back(weights)), (y_0, *back_0(weights))):
    np.testing.assert_allclose(a, b, atol=2e-5)


def test_the_same_on_every_mesh():
  """Rows, heads and positions that are spread drop what they drop on one device."""
  q, k, v, _, _, _, _ = arrays(256, 256)
  rows = dict(segments=np.ones((2, 256), np.int32), positions=np.tile(np.arange(256, dtype=np.int32), (2, 1)))

  def run(**sizes):
    sizes = dict.fromkeys(sharding.AXES, 1) | sizes
    mesh = sharding.make_mesh(sizes, jax.devices()[:int(np.prod(list(sizes.values())))])
    with jax.set_mesh(mesh):
      @jax.jit
      def attend(q, k, v, rows):
        spread = ((q, 'BTNH'), (k, 'BSKH'), (v, 'BSKH'))
        q, k, v = (jax.sharding.reshard(x, sharding.in_use(dims)) for x, dims in spread)
        rows = sharding.spread_rows(rows)
        drop = Drop(jax.random.key(3), Dropout(RATE, alike=False))
        return dot_product(q, k, v, rows, rows, AttentionSpec(True, 256, 256), drop=drop, kernel='splash')
      return np.asarray(attend(q, k, v, rows))
  one = run()
  np.testing.assert_allclose(run(data=2, context=2, tensor=2), one, atol=1e-5)
  assert np.abs(one[:, 200:]).min() > 0
