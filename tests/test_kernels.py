"""Kernels against the plain attention of XLA, values and gradients, and which one is chosen."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5like.kernels import splash
from t5like.model import attention


def example(T, S, N=4, K=2, H=64, B=2, seed=0):
  """Queries, keys, values; two packed documents and padding on each side, the first half of each a prefix."""
  rng = np.random.default_rng(seed)
  q, k, v = (jnp.asarray(rng.normal(size=(B, n, heads, H)), jnp.float32) for n, heads in ((T, N), (S, K), (S, K)))

  def info(n):
    cut, end = n // 3, n - n // 8
    segments = np.where(np.arange(n) < cut, 1, np.where(np.arange(n) < end, 2, 0))
    positions = np.where(segments == 1, np.arange(n), np.maximum(0, np.arange(n) - cut))
    prefix = positions < np.where(segments == 1, cut // 2, (end - cut) // 2)
    return {k: jnp.asarray(np.stack([x] * B)) for k, x in dict(
        segments=segments.astype(np.int32), positions=positions.astype(np.int32), prefix=prefix).items()}
  return q, k, v, info(T), info(S)


def plain(q, k, v, query, key, causal):
  mask = attention.make_mask(query, key, causal)[:, None]
  return jax.nn.dot_product_attention(q, k, v, mask=mask, scale=0.1)


@pytest.mark.parametrize('kind, T, S', [('causal', 256, 256), ('causal', 200, 200), ('prefix', 256, 256),
                                        ('bidirectional', 256, 256), ('bidirectional', 130, 300)])
def test_splash_is_plain_attention(kind, T, S):
  q, k, v, query, key = example(T, S)
  causal = kind != 'bidirectional'
  if kind != 'prefix':
    query, key = ({n: x for n, x in info.items() if n != 'prefix'} for info in (query, key))
  real = (query['segments'] > 0)[:, :, None, None]
  mix = jnp.cos(jnp.arange(64.))[None, None, None]

  def value(attend, q, k, v):
    out = jnp.where(real, attend(q, k, v), 0)
    return jnp.sum(out * mix), out
  kernels, _ = splash.prepare(q, k, causal, interpret=True)
  ours = lambda q, k, v: splash.attention(kernels, q, k, v, query, key, causal, 0.1)
  theirs = lambda q, k, v: plain(q, k, v, query, key, causal)
  (_, out), grads = jax.value_and_grad(lambda *x: value(ours, *x), (0, 1, 2), has_aux=True)(q, k, v)
  (_, want), want_grads = jax.value_and_grad(lambda *x: value(theirs, *x), (0, 1, 2), has_aux=True)(q, k, v)
  np.testing.assert_allclose(out, want, atol=2e-5)
  for got, wanted in zip(grads, want_grads):
    np.testing.assert_allclose(got, wanted, atol=2e-4)


def test_blocks_divide_and_are_smaller_under_a_causal_mask():
  assert splash.block_size(2048, False) == 1024 and splash.block_size(2048, True) == 512
  assert splash.block_size(8192, True) == 1024 and splash.block_size(128, True) == 128
  for length in range(128, 8193, 128):
    for causal in (True, False):
      b = splash.block_size(length, causal)
      assert length % b == 0 and b % 128 == 0 and b <= 1024


def test_which_kernel_is_chosen():
  choose = attention.choose_kernel
  assert choose('auto', 'tpu', True, 8, 8) == ('splash', 'a TPU')
  assert choose('auto', 'cpu', True, 8, 8) == ('xla', 'this is a cpu')
  assert choose('splash', 'cpu', False, 8, 4)[0] == 'splash'
  assert choose('xla', 'tpu', True, 8, 8)[0] == 'xla'
  assert choose('auto', 'tpu', True, 1, 8) == ('xla', 'decoding token by token')
  assert choose('auto', 'tpu', False, 8, 8, has_bias=True) == ('relative_bias', 'a TPU')
  assert choose('splash', 'cpu', True, 100, 100, has_bias=True, pieces=2)[0] == 'relative_bias'
  assert choose('splash', 'cpu', True, 100, 100, pieces=2)[0] == 'xla'
  assert choose('auto', 'tpu', True, 2 ** 16, 2 ** 16, has_bias=True)[0] == 'xla'
  assert choose('auto', 'gpu', True, 8, 8, has_bias=True) == ('xla', 'this is a gpu')
  assert choose('auto', 'tpu', False, 8, 8, has_dropout=True)[0] == 'xla'
