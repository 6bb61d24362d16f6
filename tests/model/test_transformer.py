"""The decoder against independent formulas, and the invariances that packing and caching rest on."""
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5like import sharding
from t5like.model import layers, transformer
from t5like.model.attention import dot_product, make_mask
from t5like.model.transformer import ModelConfig

BASE = ModelConfig(
    name='decoder', vocab_size=61, d_model=32, num_layers=3, num_heads=4, num_kv_heads=2, head_dim=8,
    d_ff=48, activation='swiglu', norm='rmsnorm', norm_eps=1e-6, use_bias=False, position='rope',
    rope_theta=10_000.0, max_positions=32, tie_embeddings=False, qk_norm=False, logit_softcap=0.0,
    dropout=0.0, init='fan_in', dtype='float32', param_dtype='float32', attention='auto',
    scan_layers=True, remat='none')
KINDS = dict(
    llama={}, mqa=dict(num_kv_heads=1), mha=dict(num_kv_heads=4),
    gpt2=dict(position='learned', norm='layernorm', use_bias=True, activation='gelu', tie_embeddings=True,
              init='gpt2', num_kv_heads=4),
    qk_norm=dict(qk_norm=True, activation='geglu', logit_softcap=5.0))


@pytest.fixture(autouse=True)
def one_device():
  mesh = sharding.make_mesh(dict(data=1, fsdp=1, tensor=1), jax.devices()[:1])
  with jax.set_mesh(mesh):
    yield mesh


def build(**changes):
  model = transformer.build(dataclasses.replace(BASE, **changes))
  params = jax.jit(model.init)(jax.random.key(0))
  # Norm scales and biases off their initial values, or their place would not be tested.
  noise = lambda x: x + 0.1 * jax.random.normal(jax.random.key(x.size), x.shape)
  return model, jax.jit(lambda p: jax.tree.map(noise, p))(params)


def batch_of(tokens_BT, segments=None, positions=None):
  shape = tokens_BT.shape
  return dict(inputs=np.asarray(tokens_BT, np.int32),
              segments=np.ones(shape, np.int32) if segments is None else np.asarray(segments, np.int32),
              positions=np.tile(np.arange(shape[1], dtype=np.int32), (shape[0], 1))
              if positions is None else np.asarray(positions, np.int32))


def tokens(B, T, seed=0):
  return np.random.default_rng(seed).integers(0, BASE.vocab_size, (B, T)).astype(np.int32)


# --- Layers against numpy ---------------------------------------------------------------------


def test_norms_against_numpy():
  x = np.random.default_rng(0).normal(size=(2, 3, 32)).astype(np.float32)
  rms = layers.Norm(BASE)
  np.testing.assert_allclose(rms(x), x / np.sqrt((x ** 2).mean(-1, keepdims=True) + 1e-6), rtol=1e-5)
  layer = layers.Norm(dataclasses.replace(BASE, norm='layernorm', norm_eps=1e-5, use_bias=True))
  layer.b[...] = jnp.arange(32.0)
  centred = x - x.mean(-1, keepdims=True)
  expected = centred / np.sqrt((centred ** 2).mean(-1, keepdims=True) + 1e-5) + np.arange(32)
  np.testing.assert_allclose(layer(x), expected, rtol=1e-4, atol=1e-5)


def test_rope_is_a_rotation_of_complex_pairs():
  """x_i + j x_{i + H/2}, turned by position / theta^(i / (H/2)); products depend on differences only."""
  x = np.random.default_rng(1).normal(size=(1, 6, 2, 8)).astype(np.float32)
  positions = np.array([[0, 1, 2, 5, 9, 40]], np.int32)
  z = x[..., :4] + 1j * x[..., 4:]
  z = z * np.exp(1j * positions[..., None, None] * 10_000.0 ** (-np.arange(4) / 4))
  np.testing.assert_allclose(layers.rope(x, positions, 10_000.0), np.concatenate([z.real, z.imag], -1), atol=1e-5)
  q, k = x[:, :1], x[:, 1:2]
  product = lambda p, s: float(jnp.sum(layers.rope(q, np.array([[p]]), 1e4) * layers.rope(k, np.array([[s]]), 1e4)))
  assert np.isclose(product(3, 1), product(103, 101), rtol=1e-4) and not np.isclose(product(3, 1), product(4, 1))


@pytest.mark.parametrize('name', layers.ACTIVATIONS)
def test_mlp_against_numpy(name):
  c = dataclasses.replace(BASE, activation=name)
  mlp = layers.MLP(c, jax.random.key(0))
  x = np.random.default_rng(0).normal(size=(1, 4, 32)).astype(np.float32)
  erf = np.vectorize(__import__('math').erf)
  tanh_gelu = lambda h: 0.5 * h * (1 + np.tanh(np.sqrt(2 / np.pi) * (h + 0.044715 * h ** 3)))
  act = dict(swiglu=lambda h: h / (1 + np.exp(-h)), geglu=tanh_gelu, gelu_tanh=tanh_gelu,
             gelu=lambda h: h * 0.5 * (1 + erf(h / np.sqrt(2))), relu=lambda h: np.maximum(h, 0))[name]
  h = x @ np.asarray(mlp.up.w[...])
  h = act(x @ np.asarray(mlp.gate.w[...])) * h if 'glu' in name else act(h)
  np.testing.assert_allclose(mlp(x), h @ np.asarray(mlp.down.w[...]), atol=1e-5)


@pytest.mark.parametrize('init, std', [('fan_in', 512 ** -0.5), ('gpt2', 0.02)])
def test_initial_scales(init, std):
  c = dataclasses.replace(BASE, d_model=512, d_ff=512, num_layers=8, init=init)
  mlp = layers.MLP(c, jax.random.key(0))
  assert np.isclose(np.std(mlp.up.w[...]), std, rtol=0.02)
  assert np.isclose(np.std(mlp.down.w[...]), std / 4, rtol=0.02)  # 1 / sqrt(2 * 8)


def test_dropout_keeps_the_mean_and_stops_without_a_key():
  x = jnp.ones((64, 64))
  y = layers.dropout(x, 0.3, jax.random.key(0))
  assert abs(float(y.mean()) - 1) < 0.03 and abs(float((y == 0).mean()) - 0.3) < 0.03
  assert layers.dropout(x, 0.3, None) is x


@pytest.mark.parametrize('K', [1, 2, 4])
def test_attention_against_numpy(K):
  rng = np.random.default_rng(0)
  B, T, N, H = 2, 5, 4, 8
  q, k, v = (rng.normal(size=(B, T, n, H)).astype(np.float32) for n in (N, K, K))
  rows = dict(segments=np.array([[1, 1, 1, 2, 2], [1, 1, 1, 1, 0]], np.int32),
              positions=np.array([[0, 1, 2, 0, 1], [0, 1, 2, 3, 0]], np.int32))
  mask = make_mask(rows, rows, causal=True)
  assert np.asarray(mask)[0].astype(int).tolist() == [
      [1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [1, 1, 1, 0, 0], [0, 0, 0, 1, 0], [0, 0, 0, 1, 1]]
  assert not mask[1, :, 4].any()  # nobody sees padding
  logits = np.einsum('btnh,bsnh->bnts', q, np.repeat(k, N // K, 2)) / np.sqrt(H)
  logits = np.where(np.asarray(mask)[:, None], logits, -1e30)
  p = np.exp(logits - logits.max(-1, keepdims=True))
  p /= p.sum(-1, keepdims=True)
  expected = np.einsum('bnts,bsnh->btnh', p, np.repeat(v, N // K, 2))
  place = lambda x, dims: jax.sharding.reshard(jnp.asarray(x), sharding.in_use(dims))
  got = np.asarray(dot_product(place(q, 'BTNH'), place(k, 'BSKH'), place(v, 'BSKH'),
                               sharding.spread_rows(rows), sharding.spread_rows(rows)))
  np.testing.assert_allclose(got[0], expected[0], atol=1e-5)
  np.testing.assert_allclose(got[1, :4], expected[1, :4], atol=1e-5)


# --- The decoder --------------------------------------------------------------------------------


@pytest.mark.parametrize('kind', KINDS)
def test_no_token_sees_a_later_one(kind):
  model, params = build(**KINDS[kind])
  apply = jax.jit(model.apply)
  a = tokens(2, 12)
  b = a.copy()
  b[:, 7] = (b[:, 7] + 1) % BASE.vocab_size
  changed = np.abs(np.asarray(apply(params, batch_of(a)) - apply(params, batch_of(b)))).max((0, 2)) > 0
  assert changed.tolist() == [False] * 7 + [True] * 5


@pytest.mark.parametrize('kind', KINDS)
def test_packed_equals_separate(kind):
  """Three documents in one row, then padding: their logits as if alone, and none sees another."""
  model, params = build(**KINDS[kind])
  apply = jax.jit(model.apply)
  docs = [tokens(1, n, seed=n) for n in (7, 4, 9)]
  row = np.concatenate([*docs, np.zeros((1, 4), np.int32)], 1)
  segments = [np.repeat([1, 2, 3, 0], [7, 4, 9, 4])]
  positions = [np.concatenate([np.arange(n) for n in (7, 4, 9, 4)])]
  packed = np.asarray(apply(params, batch_of(row, segments, positions)))
  at = 0
  for doc in docs:
    alone = np.asarray(apply(params, batch_of(doc)))
    np.testing.assert_allclose(packed[:, at:at + doc.shape[1]], alone, atol=1e-5)
    at += doc.shape[1]
  other = row.copy()
  other[:, 2] = (other[:, 2] + 1) % BASE.vocab_size
  edited = np.asarray(apply(params, batch_of(other, segments, positions)))
  np.testing.assert_array_equal(edited[:, 7:20], packed[:, 7:20])
  assert np.abs(edited[:, 2:7] - packed[:, 2:7]).max() > 1e-4


@pytest.mark.parametrize('kind', KINDS)
def test_cached_decoding_equals_the_full_forward(kind):
  """Prompts of different lengths, padded on the left, then token by token."""
  model, params = build(**KINDS[kind])
  P, new, lengths = 6, 5, (6, 3)
  text = [tokens(1, n + new, seed=n)[0] for n in lengths]
  prompt = {k: np.zeros((2, P), np.int32) for k in ('inputs', 'positions', 'segments')}
  for row, n in enumerate(lengths):
    prompt['inputs'][row, P - n:] = text[row][:n]
    prompt['positions'][row, P - n:] = np.arange(n)
    prompt['segments'][row, P - n:] = 1
  ahead = np.array(lengths)[:, None] + np.arange(new)[None]
  keys = dict(positions=np.concatenate([prompt['positions'], ahead], 1).astype(np.int32),
              segments=np.concatenate([prompt['segments'], np.ones((2, new))], 1).astype(np.int32))
  cache = transformer.empty_cache(model.config, 2, P + new)
  extend = jax.jit(model.extend)
  logits, cache = extend(params, prompt, keys, cache, 0)
  got = [np.asarray(logits[:, -1])]
  for i in range(new):
    one = dict(inputs=np.array([[t[n + i]] for t, n in zip(text, lengths)], np.int32),
               positions=ahead[:, i:i + 1].astype(np.int32), segments=np.ones((2, 1), np.int32))
    logits, cache = extend(params, one, keys, cache, P + i)
    got.append(np.asarray(logits[:, 0]))
  for row, n in enumerate(lengths):
    full = np.asarray(jax.jit(model.apply)(params, batch_of(text[row][None])))[0, n - 1:]
    np.testing.assert_allclose(np.stack(got)[:, row], full, atol=1e-5)


@pytest.mark.parametrize('change', [dict(scan_layers=False), dict(remat='full'), dict(remat='minimal'),
                                    dict(remat='full', scan_layers=False)], ids=str)
def test_scan_and_remat_change_nothing(change):
  model, params = build()
  other = transformer.build(dataclasses.replace(BASE, **change))
  b = batch_of(tokens(2, 10))
  loss = lambda m: jax.jit(jax.value_and_grad(lambda p: jnp.mean(jnp.square(m.apply(p, b)))))
  (a, ga), (c, gc) = loss(model)(params), loss(other)(params)
  np.testing.assert_allclose(a, c, rtol=1e-6)
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-6, rtol=1e-4), ga, gc)


def test_softcap_bounds_logits_and_bf16_computes_them_in_fp32():
  model, params = build(logit_softcap=0.5, dtype='bfloat16')
  logits = jax.jit(model.apply)(params, batch_of(tokens(2, 8)))
  assert logits.dtype == jnp.float32 and np.abs(logits).max() <= 0.5
  assert {x.dtype for x in jax.tree.leaves(params)} == {jnp.dtype('float32')}


def test_bf16_is_close_to_fp32():
  model, params = build()
  low = transformer.build(dataclasses.replace(BASE, dtype='bfloat16'))
  a, b = (np.asarray(jax.jit(m.apply)(params, batch_of(tokens(2, 8)))) for m in (model, low))
  assert 0 < np.abs(a - b).max() < 0.15 * np.abs(a).max()


@pytest.mark.parametrize('changes, count', [  # published counts: specs of GPT-2 and TinyLlama
    (dict(vocab_size=50257, d_model=768, num_layers=12, num_heads=12, num_kv_heads=12, head_dim=64, d_ff=3072,
          activation='gelu', norm='layernorm', use_bias=True, position='learned', max_positions=1024,
          tie_embeddings=True), 124_439_808),
    (dict(vocab_size=32000, d_model=2048, num_layers=22, num_heads=32, num_kv_heads=4, head_dim=64, d_ff=5632),
     1_100_048_384)], ids=['gpt2', 'tinyllama'])
def test_parameter_counts(changes, count):
  model = transformer.build(dataclasses.replace(BASE, **changes))
  assert transformer.count_params(model) == count


def test_flops_by_hand():
  """6 per multiplying weight, 12 L N H T for attention; the token table is only looked up."""
  D, F, V, L, T = 32, 48, 61, 3, 16
  weights = L * (D * 32 + 2 * D * 16 + 32 * D + 3 * D * F + 2 * D) + D + D * V
  model = transformer.build(BASE)
  count = transformer.count_params(model)
  assert count == weights + V * D
  assert transformer.flops_per_token(BASE, count, T) == 6 * weights + 12 * L * 32 * T


def test_layout_of_parameters_and_of_adams_slots():
  from configs.base import base
  from t5like import optim, step
  from tests import tiny  # noqa: F401 (its import path is the repository's root)
  mesh = sharding.make_mesh(dict(data=2, fsdp=2, tensor=2), jax.devices())
  with jax.set_mesh(mesh):
    model = transformer.build(dataclasses.replace(BASE, vocab_size=64))
    tx = optim.build(base().optimizer, 1e-3)
    state = sharding.abstract(lambda: step.init_state(model, tx, 0), mesh)
  spec = lambda tree: tuple(tree['stack']['blocks']['attention']['q']['w'].sharding.spec)
  assert spec(state['params']) == (None, 'fsdp', 'tensor', None)
  adam = next(s for s in jax.tree.leaves(state['opt_state'], is_leaf=lambda s: hasattr(s, 'mu')) if hasattr(s, 'mu'))
  assert spec(adam.mu) == spec(adam.nu) == (None, 'fsdp', 'tensor', None)
  assert tuple(state['params']['embed']['w'].sharding.spec) == ('tensor', 'fsdp')
