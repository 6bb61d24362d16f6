"""Kernels against the plain attention of XLA, values and gradients, and which one is chosen."""
import dataclasses
import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from jax.sharding import PartitionSpec as P

from t5like import choices, sharding
from t5like.model import attention, attention_choice, attention_kernels
from t5like.model.kernels import cudnn, relative_bias_attention, splash


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


def plain(q, k, v, query, key, causal, bias=None):
  mask = attention_kernels.make_mask(query, key, causal)[:, None]
  return jax.nn.dot_product_attention(q, k, v, bias=bias, mask=mask, scale=0.1)


@pytest.mark.parametrize('kind, T, S', [('causal', 200, 200), ('prefix', 256, 256), ('bidirectional', 130, 300)])
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
  kernels, _ = splash.prepare(q, k, causal, kind == 'prefix', interpret=True)
  ours = lambda q, k, v: splash.attention(kernels, q, k, v, query, key, 0.1)
  theirs = lambda q, k, v: plain(q, k, v, query, key, causal)
  (_, out), grads = jax.value_and_grad(lambda *x: value(ours, *x), (0, 1, 2), has_aux=True)(q, k, v)
  (_, want), want_grads = jax.value_and_grad(lambda *x: value(theirs, *x), (0, 1, 2), has_aux=True)(q, k, v)
  np.testing.assert_allclose(out, want, atol=2e-5)
  for got, wanted in zip(grads, want_grads):
    np.testing.assert_allclose(got, wanted, atol=2e-4)


def windowed(query, key, causal, before, after):
  """[B, 1, T, S] bool: what is seen, written anew: by slots, which within a document are as far apart as positions."""
  slots = jnp.arange(query['segments'].shape[1])
  distance = slots[:, None] - slots[None]
  near = (distance <= before) & (-distance <= after)
  return (attention_kernels.make_mask(query, key, causal) & near[None])[:, None]


LENGTHS = dict(length=st.integers(1, 420), before=st.integers(0, 450), after=st.integers(0, 450),
               kind=st.sampled_from(['causal', 'prefix', 'bidirectional']), heads=st.sampled_from([(1, 1), (4, 2)]))


@settings(max_examples=3, deadline=None, derandomize=True)
@given(**LENGTHS)
def test_splash_with_a_window_is_masked_attention(length, before, after, kind, heads):
  splash_with_a_window(length, before, after, kind, heads)


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(**LENGTHS)
def test_splash_with_any_window_is_masked_attention(length, before, after, kind, heads):
  splash_with_a_window(length, before, after, kind, heads)


def splash_with_a_window(length, before, after, kind, heads):
  """Forward and all gradients."""
  q, k, v, query, key = example(length, length, *heads, H=16)
  if kind != 'prefix':
    query, key = ({n: x for n, x in info.items() if n != 'prefix'} for info in (query, key))
  causal = kind != 'bidirectional'
  mask = windowed(query, key, causal, before, after)
  is_real = (query['segments'] > 0)[:, :, None, None]
  mix = jnp.cos(jnp.arange(16.))[None, None, None]
  kernels, _ = splash.prepare(q, k, causal, kind == 'prefix', interpret=True, window=(before, after))

  def ours(q, k, v):
    return splash.attention(kernels, q, k, v, query, key, 0.1, (before, after))

  def theirs(q, k, v):
    return jax.nn.dot_product_attention(q, k, v, mask=mask, scale=0.1)

  def run(attend):
    return jax.vjp(lambda *x: jnp.where(is_real, attend(*x), 0) * mix, q, k, v)
  (out, back), (wanted, wanted_back) = run(ours), run(theirs)
  np.testing.assert_allclose(out, wanted, atol=1e-5)
  ones = jnp.ones_like(out)
  for gradient, wanted_gradient in zip(back(ones), wanted_back(ones)):
    np.testing.assert_allclose(gradient, wanted_gradient, atol=1e-5 * max(1, float(jnp.abs(wanted_gradient).max())))


KINDS = {'causal': (264, 264), 'prefix': (264, 264), 'bidirectional': (264, 264), 'cross': (136, 264)}
MESHES = [dict(), dict(context=2), dict(context=4, tensor=2), dict(context=8)]


def every_kernel():
  """All products; in the fast suite splash on one mesh, and what of the other kernels `context` touches."""
  fast = {'splash': tuple(KINDS), 'relative_bias': ('causal', 'bidirectional'), 'xla': ('prefix',)}
  for kernel, axes, kind in itertools.product(fast, MESHES, KINDS):
    is_fast = kind in fast[kernel] and axes == dict(context=4, tensor=2)
    name = '-'.join([kernel, kind, *(f'{axis}{n}' for axis, n in axes.items())])
    yield pytest.param(kernel, axes, kind, id=name, marks=[] if is_fast else [pytest.mark.slow])


@pytest.mark.parametrize('kernel, axes, kind', every_kernel())
def test_every_kernel_on_rows_that_are_cut(kernel, axes, kind):
  """Pieces of 17 to 264 queries, so that most are padded, forward and gradients, as one device computes them."""
  T, S = KINDS[kind]
  q, k, v, query, key = example(T, S, H=16)
  causal = kind in ('causal', 'prefix')
  if kind != 'prefix':
    query, key = ({n: x for n, x in info.items() if n != 'prefix'} for info in (query, key))
  bias_NR = jnp.asarray(np.random.default_rng(1).normal(size=(4, T + S)), jnp.float32)
  is_real = (query['segments'] > 0)[:, :, None, None]
  mix = jnp.cos(jnp.arange(16.))[None, None, None]

  def loss(attend, q, k, v, bias_NR):
    out = jnp.where(is_real, attend(q, k, v, bias_NR), 0)
    return jnp.sum(out * mix), out

  def ours(q, k, v, bias_NR):
    spread = lambda x, dims: jax.sharding.reshard(x, sharding.in_use(dims))
    bias = spread(bias_NR, 'NR') if kernel == 'relative_bias' else None
    q, k, v = spread(q, 'BTNH'), spread(k, 'BSKH'), spread(v, 'BSKH')
    query_there = {name: spread(x, 'BT') for name, x in query.items()}
    key_there = {name: spread(x, 'BS') for name, x in key.items()}
    spec = attention_kernels.AttentionSpec(causal, T, S)
    out = attention.dot_product(q, k, v, query_there, key_there, spec, 0.1, bias,
                                kernel='xla' if kernel == 'xla' else 'splash')
    return jax.sharding.reshard(out, P())

  def theirs(q, k, v, bias_NR):
    bias = relative_bias_attention.expand(bias_NR, T, S)[None] if kernel == 'relative_bias' else None
    return plain(q, k, v, query, key, causal, bias)
  value = lambda attend: jax.jit(jax.value_and_grad(lambda *x: loss(attend, *x), (0, 1, 2, 3), has_aux=True))
  count = axes.get('context', 1) * axes.get('tensor', 1)
  mesh = sharding.make_mesh(dict(data=1, fsdp=1, **axes), jax.devices()[:count])
  (_, wanted), wanted_gradients = value(theirs)(q, k, v, bias_NR)
  with jax.set_mesh(mesh):
    (_, out), gradients = value(ours)(q, k, v, bias_NR)
  np.testing.assert_allclose(out, wanted, atol=2e-5)
  for gradient, wanted_gradient in zip(gradients, wanted_gradients):
    np.testing.assert_allclose(gradient, wanted_gradient, atol=2e-4)


def test_blocks_divide_and_are_smaller_under_a_causal_mask():
  whole, causal = splash.Reach(), splash.CAUSAL
  assert splash.block_size(2048, whole) == 1024 and splash.block_size(2048, causal) == 512
  assert splash.block_size(8192, causal) == 1024 and splash.block_size(128, causal) == 128
  assert splash.block_size(8192, splash.Reach(1023, 0)) == 512
  assert splash.block_size(8192, splash.Reach(64, 64)) == 256
  for length in range(128, 8193, 128):
    for reach in (whole, causal, splash.Reach(255, 0), splash.Reach(700, 300)):
      b = splash.block_size(length, reach)
      assert length % b == 0 and b % 128 == 0 and b <= 1024


def choose(request, platform, causal, T, S, **features):
  return attention_choice.choose_kernel(request, platform, attention_kernels.AttentionSpec(causal, T, S, **features))


def test_which_kernel_is_chosen():
  assert choose('auto', 'tpu', True, 8, 8) == ('splash', 'a TPU')
  assert choose('auto', 'cpu', True, 8, 8) == ('xla', 'blocks are for one CPU')
  with jax.set_mesh(sharding.make_mesh(dict(fsdp=1), jax.devices()[:1])):
    assert choose('auto', 'cpu', True, 8, 8, dtype='float32') == ('cpu_blocks', 'a CPU')
    assert choose('auto', 'cpu', True, 8, 8) == ('xla', 'on one CPU blocks are computed in float32, not bfloat16')
  assert choose('splash', 'cpu', False, 8, 4)[0] == 'splash'
  assert choose('xla', 'tpu', True, 8, 8)[0] == 'xla'
  assert choose('auto', 'tpu', True, 1, 8) == ('xla', 'decoding token by token')
  assert choose('auto', 'tpu', False, 8, 8, bias=True) == ('relative_bias', 'a TPU')
  assert choose('splash', 'cpu', True, 100, 100, bias=True)[0] == 'relative_bias'
  assert choose('auto', 'tpu', True, 2 ** 17, 2 ** 17, bias=True)[0] == 'relative_bias'
  assert choose('auto', 'gpu', True, 8, 8, bias=True) == ('xla', 'on GPUs only it adds a bias by distance')
  assert choose('auto', 'tpu', False, 8, 8, dropout=True)[0] == 'relative_bias'
  assert choose('auto', 'tpu', True, 8, 8, dropout=True, sinks=True)[0] == 'xla'
  assert choose('auto', 'gpu', False, 8, 8, dropout=True) == ('xla', 'on GPUs only it drops attention probabilities')


def test_a_feature_that_kernels_do_not_list_is_declined():
  """Such as attention in chunks: no kernel leaves it out."""
  fields = [('chunk', int, dataclasses.field(default=0, kw_only=True))]
  Chunked = dataclasses.make_dataclass('Chunked', fields, bases=(attention_kernels.AttentionSpec,), frozen=True)
  requests = [(request, platform) for request in choices.ATTENTION for platform in ('tpu', 'gpu', 'cpu')]
  for request, platform in requests:
    without = attention_choice.choose_kernel(request, platform, Chunked(True, 8, 8, chunk=0))
    assert without == choose(request, platform, True, 8, 8)
    with pytest.raises(NotImplementedError, match='attention with chunk=4: no kernel'):
      attention_choice.choose_kernel(request, platform, Chunked(True, 8, 8, chunk=4))
  for name, kernel in attention_kernels.KERNELS.items():
    assert 'chunk' in kernel.declines(Chunked(True, 8, 8, chunk=4), 'tpu'), name


@pytest.mark.parametrize('request_', choices.ATTENTION)
def test_a_feature_that_xla_alone_implements(monkeypatch, request_):
  xla = attention_kernels.KERNELS['xla']
  monkeypatch.setitem(attention_kernels.KERNELS, 'xla', dataclasses.replace(xla, features=xla.features | {'chunk'}))
  fields = [('chunk', int, dataclasses.field(default=0, kw_only=True))]
  Chunked = dataclasses.make_dataclass('Chunked', fields, bases=(attention_kernels.AttentionSpec,), frozen=True)
  for platform in ('tpu', 'gpu', 'cpu'):
    for bias in (False, True):
      name, reason = attention_choice.choose_kernel(request_, platform, Chunked(True, 8, 8, bias=bias, chunk=4))
      assert name == 'xla' and (request_ == 'xla' or reason == 'only it implements chunk here')


def test_cudnn_is_chosen_where_it_can_run(monkeypatch):
  assert choose('auto', 'gpu', True, 8, 8) == ('xla', 'no NVIDIA GPU is present')
  assert choose('cudnn', 'cpu', True, 8, 8) == ('xla', 'this is no GPU')
  assert 'float32' in choose('auto', 'gpu', True, 8, 8, dtype='float32')[1]
  assert 'even lengths: here 64, 7 and 7' in choose('auto', 'gpu', True, 7, 7, head_dim=64)[1]
  found = [type('D', (), dict(compute_capability='9.0'))]
  monkeypatch.setattr(attention.jax, 'devices', lambda kind: found)
  assert choose('auto', 'gpu', True, 8, 8) == ('cudnn', 'a GPU')
  assert choose('auto', 'gpu', True, 8, 8, bias=True)[0] == choose('xla', 'gpu', True, 8, 8)[0] == 'xla'
  found[0].compute_capability = '7.5'
  assert '8.0, this GPU has 7.5' in choose('auto', 'gpu', True, 8, 8)[1]


def lowered_for_gpus(monkeypatch, **features):
  """The program of attention and its gradients over packed rows of 64 tokens on two GPUs, which are not here."""
  from jax._src.cudnn import fused_attention_stablehlo as library
  monkeypatch.setattr(library, 'check_cudnn_version', lambda: 91100)
  able = dataclasses.replace(attention_kernels.KERNELS['cudnn'], lacks=lambda spec, platform: '')
  monkeypatch.setitem(attention_kernels.KERNELS, 'cudnn', able)
  monkeypatch.setattr(attention, 'platform', lambda: 'gpu')
  mesh = sharding.make_mesh(dict(data=2, fsdp=1, tensor=1), jax.devices()[:2])
  of = lambda shape, dims, dtype: jax.ShapeDtypeStruct(
      shape, dtype, sharding=jax.NamedSharding(mesh, sharding.in_use(dims)))
  q, k = of((4, 64, 4, 32), 'BTNH', jnp.bfloat16), of((4, 64, 2, 32), 'BTKH', jnp.bfloat16)
  info = dict.fromkeys(('positions', 'segments'), of((4, 64), 'BT', jnp.int32))
  with jax.set_mesh(mesh):
    spec = attention_kernels.AttentionSpec(True, 64, 64, **features)
    loss = lambda q, k, v, info: jnp.sum(attention.dot_product(q, k, v, info, info, spec).astype(jnp.float32))
    lowered = jax.jit(jax.grad(loss, (0, 1, 2))).trace(q, k, k, info).lower(lowering_platforms=('cuda',))
  return lowered.as_text()


def test_cudnn_in_a_program_for_gpus(monkeypatch):
  """That a packed batch becomes cuDNN's calls, forwards and backwards."""
  text = lowered_for_gpus(monkeypatch)
  assert text.count('@__cudnn$fmhaScaleBiasSoftmax(') == text.count('@__cudnn$fmhaScaleBiasSoftmaxBackward(') == 1
  assert 'fmhaSoftmax' not in text


def test_the_window_of_cudnn_in_a_program_for_gpus(monkeypatch):
  """Beside the calls with a mask, which packed rows need: a token and 15 before it are a window of 16."""
  text = lowered_for_gpus(monkeypatch, window=(15, 0))
  calls = re.findall(r'@__cudnn\$(\w+)\(.*?sliding_window_length\\22: (\d+)', text)
  wanted = {'fmhaSoftmax': 16, 'fmhaSoftmaxBackward': 16, 'fmhaScaleBiasSoftmax': 0, 'fmhaScaleBiasSoftmaxBackward': 0}
  assert {name: int(length) for name, length in calls} == wanted
  assert 'fmhaSoftmax(' not in lowered_for_gpus(monkeypatch, window=(63, 0))  # nothing is outside of it


def rows_of(*segments):
  segments = np.array(segments, np.int32)
  positions = np.array([[row[:t].tolist().count(row[t]) for t in range(len(row))] for row in segments], np.int32)
  return dict(segments=jnp.asarray(segments), positions=jnp.asarray(positions))


@pytest.mark.parametrize('before', [0, 1, 4, 8])
@pytest.mark.parametrize('rows, is_bare', [
    ([[1] * 10, [1] * 7 + [0] * 3], True), ([[1] * 4 + [2] * 6, [1] * 10], False), ([[0, 0] + [1] * 8] * 2, False)],
    ids=['documents', 'packed', 'left'])
def test_rows_with_the_window_of_cudnn_are_masked_attention(rows, is_bare, before):
  """The same calls, as XLA computes them: one off in the window would show."""
  query = rows_of(*rows)
  q, k, v = (jnp.asarray(np.random.default_rng(n).normal(size=(2, 10, heads, 8)), jnp.float32)
             for n, heads in enumerate((4, 2, 2)))
  mask = windowed(query, query, True, before, 0)
  assert bool(cudnn.of_one_document(query)) == is_bare
  out = cudnn.attention(q, k, v, query, lambda: mask, 0.1, True, before, implementation='xla')
  wanted = jax.nn.dot_product_attention(q, k, v, mask=mask, scale=0.1)
  is_real = np.asarray(query['segments'] > 0)
  np.testing.assert_allclose(np.asarray(out)[is_real], np.asarray(wanted)[is_real], atol=1e-6)


def test_rows_whose_positions_leap_are_not_of_one_document():
  positions = jnp.asarray([[0, 1, 2, 5]])
  assert not cudnn.of_one_document(dict(positions=positions, segments=jnp.ones_like(positions)))
