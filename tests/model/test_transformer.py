"""Sizes of published models, arithmetic by hand, layouts and number formats; see also test_architectures.py."""
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5like import sharding
from t5like.config import base
from t5like.model import flops, loss as loss_lib, transformer
from t5like.objectives.lengths import Lengths
from t5like.optim import from_config
from t5like.training import step
from tests import tiny


@pytest.fixture(autouse=True, scope='module')
def one_device():
  mesh = sharding.make_mesh(dict.fromkeys(sharding.AXES, 1), jax.devices()[:1])
  with jax.set_mesh(mesh):
    yield mesh


def build(**changes):
  return transformer.build(dataclasses.replace(tiny.MODEL, **changes))


# --- Published sizes ----------------------------------------------------------------------------


def shape(L, D, N, H, F, V, **more):
  """Layers, width, heads and their size, feed-forward width, vocabulary."""
  return dict(num_layers=L, num_encoder_layers=L, d_model=D, num_heads=N, num_kv_heads=N, head_dim=H, d_ff=F,
              vocab_size=V) | more


T5 = dict(name='encoder_decoder', position='relative', activation='relu', tie_embeddings=True, head='scaled')
T5_1_1 = dict(name='encoder_decoder', position='relative', activation='geglu')
BERT = dict(name='encoder', block='post_norm', norm='layernorm', use_bias=True, embed_norm=True, position='learned',
            activation='gelu', tie_embeddings=True, head='mlm', num_types=2, max_positions=512)
GPT2 = dict(norm='layernorm', use_bias=True, position='learned', activation='gelu_tanh', tie_embeddings=True,
            max_positions=1024)
PYTHIA = dict(block='parallel', norm='layernorm', use_bias=True, activation='gelu', rope_fraction=0.25)
PUBLISHED = {  # name -> (parameters, what is ours and not theirs or the reverse, shape)
    't5-small': (60_506_624, 0, shape(6, 512, 8, 64, 2048, 32128, **T5)),
    't5-base': (222_903_552, 0, shape(12, 768, 12, 64, 3072, 32128, **T5)),
    't5-large': (737_668_096, 0, shape(24, 1024, 16, 64, 4096, 32128, **T5)),
    't5-3b': (2_851_598_336, 0, shape(24, 1024, 32, 128, 16384, 32128, **T5)),
    't5-11b': (11_307_321_344, 0, shape(24, 1024, 128, 128, 65536, 32128, **T5)),
    't5-1.1-small': (76_961_152, 0, shape(8, 512, 6, 64, 1024, 32128, **T5_1_1)),
    't5-1.1-base': (247_577_856, 0, shape(12, 768, 12, 64, 2048, 32128, **T5_1_1)),
    't5-1.1-large': (783_150_080, 0, shape(24, 1024, 16, 64, 2816, 32128, **T5_1_1)),
    't5-1.1-xl': (2_849_757_184, 0, shape(24, 2048, 32, 64, 5120, 32128, **T5_1_1)),
    't5-1.1-xxl': (11_135_332_352, 0, shape(24, 4096, 64, 64, 10240, 32128, **T5_1_1)),
    # Published with a pooler (D^2 + D) and without a head for masks (D^2 + D, its norm 2 D, V biases).
    'bert-base': (109_482_240, 2 * 768 + 30522, shape(12, 768, 12, 64, 3072, 30522, **BERT)),
    'bert-large': (335_141_888, 2 * 1024 + 30522, shape(24, 1024, 16, 64, 4096, 30522, **BERT)),
    # Published with its head and without a pooler; its one segment type is a table of one row there.
    'roberta-base': (124_697_433, 0, shape(12, 768, 12, 64, 3072, 50265, **BERT | dict(
        position='learned_from_2', num_types=1, max_positions=514))),
    'gpt2': (124_439_808, 0, shape(12, 768, 12, 64, 3072, 50257, **GPT2)),
    'gpt2-medium': (354_823_168, 0, shape(24, 1024, 16, 64, 4096, 50257, **GPT2)),
    'gpt2-large': (774_030_080, 0, shape(36, 1280, 20, 64, 5120, 50257, **GPT2)),
    'gpt2-xl': (1_557_611_200, 0, shape(48, 1600, 25, 64, 6400, 50257, **GPT2)),
    'gpt3-xl': (1_315_723_264, 0, shape(24, 2048, 16, 128, 8192, 50257, **GPT2 | dict(max_positions=2048))),
    'nanogpt-shakespeare': (10_745_088, 0, shape(6, 384, 6, 64, 1536, 65, **GPT2 | dict(
        use_bias=False, max_positions=256))),
    'pythia-70m': (70_426_624, 0, shape(6, 512, 8, 64, 2048, 50304, **PYTHIA)),
    'pythia-160m': (162_322_944, 0, shape(12, 768, 12, 64, 3072, 50304, **PYTHIA)),
    'pythia-410m': (405_334_016, 0, shape(24, 1024, 16, 64, 4096, 50304, **PYTHIA)),
    'pythia-1b': (1_011_781_632, 0, shape(16, 2048, 8, 256, 8192, 50304, **PYTHIA)),
    'pythia-1.4b': (1_414_647_808, 0, shape(24, 2048, 16, 128, 8192, 50304, **PYTHIA)),
    'tinyllama': (1_100_048_384, 0, shape(22, 2048, 32, 64, 5632, 32000, num_kv_heads=4)),
    'olmo-1b': (1_176_764_416, 0, shape(16, 2048, 16, 128, 8192, 50304, norm='layernorm_plain', tie_embeddings=True)),
    'olmo2-1b': (1_484_916_736, 0, shape(16, 2048, 16, 128, 8192, 100352, block='output_norm', qk_norm='all')),
    'maxtext-1b': (1_104_218_112, 0, shape(16, 2048, 16, 128, 7168, 32000)),
}


@pytest.mark.parametrize('name', PUBLISHED)
def test_parameters_of_published_models(name):
  published, ours, changes = PUBLISHED[name]
  assert transformer.count_params(build(**changes)) - ours == published


# --- FLOPs by hand: 6 per weight and token, 12 N H per layer and pair of tokens ------------------


def test_flops_of_a_decoder():
  """The token table is only looked up."""
  D, F, V, L, T = 32, 48, 61, 3, 16
  stack = L * (D * 32 + 2 * D * 16 + 32 * D + 3 * D * F + 2 * D) + D
  model = build()
  assert transformer.count_params(model) == stack + 2 * V * D
  assert flops.per_row(model, Lengths(T, 0, T)) == 6 * T * (stack + D * V) + 12 * 32 * L * T * T
  # Tied: the one table predicts; positions and relative biases are looked up, and multiply nothing.
  changes = dict(position='learned', tie_embeddings=True)
  assert flops.per_row(build(**changes), Lengths(T, 0, T)) == (
      6 * T * (stack + D * V) + 12 * 32 * L * T * T)


@pytest.mark.parametrize('predictions', [0, 5])
def test_flops_of_an_encoder_with_predictions(predictions):
  """Its head works on predicted positions only; D x D of it comes before the vocabulary."""
  D, F, V, L, T = 32, 48, 61, 3, 20
  block = 2 * (D * 32 + 32) + 2 * (D * 32 + 32) + (D * F + F) + (F * D + D) + 2 * 2 * D  # matrices, biases, norms
  head = D * D + D + 2 * D + V + D * V
  model = build(name='encoder', num_kv_heads=4, block='post_norm', norm='layernorm', use_bias=True, embed_norm=True,
                position='learned', num_types=2, tie_embeddings=True, head='mlm', activation='gelu')
  assert transformer.count_params(model) == L * block + 2 * D + head + 32 * D + 2 * D  # 32 positions, 2 types
  got = flops.per_row(model, Lengths(T, 0, T, predictions))
  assert got == 6 * (T * (L * block + 2 * D) + (predictions or T) * head) + 12 * 32 * L * T * T


@pytest.mark.parametrize('tied', [True, False])
def test_flops_of_an_encoder_decoder(tied):
  """Keys and values of cross-attention are made of the encoder's S tokens, its queries of the decoder's T."""
  D, F, V, L, E, S, T = 32, 48, 61, 3, 2, 20, 7
  attention, mlp = 4 * D * 32, 2 * D * F
  encoder = E * (attention + mlp + 2 * D) + D
  decoder = L * (attention + mlp + 3 * D + 2 * D * 32) + D
  model = build(name='encoder_decoder', num_kv_heads=4, position='relative', activation='relu', tie_embeddings=tied)
  count = encoder + decoder + L * 2 * D * 32 + V * D * (1 if tied else 2) + 2 * 4 * 32  # two tables of biases
  assert transformer.count_params(model) == count
  got = flops.per_row(model, Lengths(0, S, T))
  weights = S * encoder + T * decoder + S * L * 2 * D * 32 + T * D * V
  assert got == 6 * weights + 12 * 32 * (E * S * S + L * T * T + L * T * S)


# --- Number formats, layouts --------------------------------------------------------------------


def batch():
  tokens = np.random.default_rng(0).integers(0, 61, (2, 8)).astype(np.int32)
  positions = np.tile(np.arange(8, dtype=np.int32), (2, 1))
  return dict(inputs=tokens, segments=np.ones_like(tokens), positions=positions)


def test_bf16_is_close_to_fp32_and_softcap_bounds_logits():
  """Parameters and logits are fp32 either way."""
  model = build()
  params = jax.jit(model.init, compiler_options=dict(xla_backend_optimization_level=0))(jax.random.key(0))
  assert {x.dtype for x in jax.tree.leaves(params)} == {jnp.dtype('float32')}
  run = lambda **changes: jax.jit(build(**changes).apply)(params, batch())
  full, low, capped = run(), run(dtype='bfloat16'), run(dtype='bfloat16', logit_softcap=0.5)
  assert low.dtype == capped.dtype == jnp.float32
  assert 0 < np.abs(full - low).max() < 0.15 * np.abs(full).max()
  assert np.abs(capped).max() <= 0.5
  np.testing.assert_allclose(capped, 0.5 * np.tanh(np.asarray(low) / 0.5), atol=1e-5)


@pytest.mark.parametrize('changes', [
    dict(name=name, tie_embeddings=tied, head=head) for name, head in (
        ('decoder', 'linear'), ('encoder', 'mlm'), ('encoder_decoder', 'linear')) for tied in (False, True)], ids=str)
def test_logits_and_loss_of_bf16_models_are_not_rounded_to_bf16(changes):
  """Of 4,096 logits with 8 bits each, two are often the best; products of bf16 numbers are summed up in fp32."""
  V = 4096
  model = build(dtype='bfloat16', vocab_size=V, norm='layernorm', activation='gelu', **changes)
  rng = np.random.default_rng(0)
  params = jax.tree.map(lambda s: rng.normal(size=s.shape).astype(np.float32),
                        jax.eval_shape(model.init, jax.random.key(0)))
  x, targets = jnp.asarray(rng.normal(size=(2, 8, 32)), jnp.bfloat16), rng.integers(0, V, (2, 8)).astype(np.int32)
  place = lambda x: jax.sharding.reshard(x, sharding.in_use('BTD'))
  logits = np.asarray(jax.jit(lambda p, x: model.logits(p, place(x)))(params, x))
  assert logits.dtype == np.float32
  assert (logits != np.asarray(jnp.asarray(logits, jnp.bfloat16), np.float32)).mean() > 0.9
  best = np.sort(logits, -1)[..., -2:]
  assert (best[..., 0] < best[..., 1]).all()
  if changes['head'] == 'linear':
    w = params['embed']['w'].T if changes['tie_embeddings'] else params['head']['out']['w']
    exact = np.asarray(x, np.float64) @ np.asarray(jnp.asarray(w, jnp.bfloat16), np.float64)
    np.testing.assert_allclose(logits, exact, rtol=0, atol=1e-5 * np.abs(exact).max())
    nll = np.log(np.exp(exact).sum(-1)) - np.take_along_axis(exact, targets[..., None], -1)[..., 0]
    hidden = dataclasses.replace(model, hidden=lambda params, batch, key: (batch['x'], {}))
    batch = dict(x=x, inputs=targets, targets=targets, weights=np.ones((2, 8), np.float32))
    for chunks in (1, 4):
      sums = loss_lib.make_sums(hidden, base().loss, chunks)
      put = lambda batch: sharding.place(jax.sharding.get_mesh(), batch)
      np.testing.assert_allclose(jax.jit(sums)(params, put(batch))['nll'], nll.sum(), rtol=1e-5)


def test_heads():
  """scaled: hidden / sqrt(D) times the table; mlm: dense, activation, norm, table, bias."""
  x = np.random.default_rng(0).normal(size=(2, 4, 32)).astype(np.float32)

  def run(**changes):
    model = build(tie_embeddings=True, **changes)
    shapes, rng = jax.eval_shape(model.init, jax.random.key(0)), np.random.default_rng(1)
    params = jax.tree.map(lambda s: rng.normal(size=s.shape).astype(np.float32), shapes)
    place = lambda params, x: model.logits(params, jax.sharding.reshard(x, sharding.in_use('BTD')))
    return np.asarray(jax.jit(place)(params, x)), params
  got, params = run()
  np.testing.assert_allclose(got, x @ params['embed']['w'].T, rtol=1e-4, atol=1e-4)
  got, params = run(head='scaled')
  np.testing.assert_allclose(got, x / 32 ** 0.5 @ params['embed']['w'].T, rtol=1e-4, atol=1e-4)
  got, params = run(head='mlm', name='encoder', activation='relu', norm='layernorm', use_bias=True)
  head = params['head']
  h = np.maximum(x @ head['transform']['w'] + head['transform']['b'], 0)
  h = (h - h.mean(-1, keepdims=True)) / np.sqrt(h.var(-1, keepdims=True) + 1e-6)
  h = h * head['norm']['scale'] + head['norm']['b']
  np.testing.assert_allclose(got, h @ params['embed']['w'].T + head['b'], rtol=1e-3, atol=1e-3)


def test_types_and_positions_are_added():
  """Type 0 where a batch says nothing; RoBERTa's positions begin in row 2 of their table."""
  model = build(name='encoder', num_layers=1, position='learned_from_2', num_types=2)
  params = jax.tree.map(lambda s: np.random.default_rng(0).normal(size=s.shape).astype(np.float32) * 0.3,
                        jax.eval_shape(model.init, jax.random.key(0)))
  hidden, b = jax.jit(lambda params, batch: model.hidden(params, batch)[0]), batch()
  plain = np.asarray(hidden(params, b))
  np.testing.assert_array_equal(hidden(params, b | dict(types=np.zeros((2, 8), np.int32))), plain)
  other = np.asarray(hidden(params, b | dict(types=np.eye(2, 8, 3, dtype=np.int32))))
  assert np.abs(other - plain).max() > 1e-2
  # Types and positions both add to the embedding: what a type adds may as well come from the position.
  moved = jax.tree.map(np.copy, params)
  moved['positions']['w'] += moved['types']['w'][1] - moved['types']['w'][0]
  np.testing.assert_allclose(hidden(params, b | dict(types=np.ones((2, 8), np.int32))), hidden(moved, b), atol=1e-5)
  moved = jax.tree.map(np.copy, params)
  moved['positions']['w'][[0, 1, *range(10, 32)]] = 9  # rows that 8 tokens do not reach
  np.testing.assert_array_equal(hidden(moved, b), plain)
  moved['positions']['w'][9] += 1
  assert np.abs(np.asarray(hidden(moved, b)) - plain).max() > 1e-2


@pytest.mark.parametrize('changes, sites', [
    (dict(), 1 + 3), (dict(block='parallel'), 1 + 3), (dict(name='encoder', block='post_norm'), 1 + 3),
    (dict(dropout_style='t5'), 1 + 4 + 1), (dict(name='encoder_decoder'), 1 + 3 + 1 + 5),
    (dict(name='encoder_decoder', dropout_style='t5'), 1 + 4 + 1 + 1 + 6 + 1)], ids=str)
def test_places_of_dropout(changes, sites):
  """Embeddings, attention, after each sublayer; in T5's style also inside the MLP and after the last norm."""
  def draws(jaxpr):
    parts = [x for e in jaxpr.eqns for v in e.params.values() for x in (v if isinstance(v, (list, tuple)) else [v])]
    inner = [getattr(x, 'jaxpr', x) for x in parts]
    return sum(e.primitive.name == 'random_bits' for e in jaxpr.eqns) + sum(
        draws(x) for x in inner if hasattr(x, 'eqns'))
  b = batch() | (dict(encoder=batch()) if changes.get('name') == 'encoder_decoder' else {})

  def count(rate, key):
    model = build(dropout=rate, num_layers=1, num_encoder_layers=1, **changes)
    shapes = sharding.abstract(lambda: model.init(jax.random.key(0)), jax.sharding.get_mesh())
    return draws(jax.make_jaxpr(lambda p: model.hidden(p, b, key))(shapes).jaxpr)
  assert count(0.1, jax.random.key(0)) == sites
  assert count(0.1, None) == count(0.0, jax.random.key(0)) == 0


def test_layout_of_parameters_and_of_adams_slots():
  mesh = sharding.make_mesh(dict(data=2, fsdp=2, tensor=2), jax.devices())
  with jax.set_mesh(mesh):
    model = build(vocab_size=64)
    tx = from_config.build(base().optimizer, 1e-3)
    state = sharding.abstract(lambda: step.init_state(model, tx, 0), mesh)
  spec = lambda tree: tuple(tree['stack']['blocks']['attention']['q']['w'].sharding.spec)
  assert spec(state['params']) == (None, sharding.STORED, 'tensor', None)
  adam = next(s for s in jax.tree.leaves(state['opt_state'], is_leaf=lambda s: hasattr(s, 'mu')) if hasattr(s, 'mu'))
  assert spec(adam.mu) == spec(adam.nu) == (None, sharding.STORED, 'tensor', None)
  assert tuple(state['params']['embed']['w'].sharding.spec) == ('tensor', sharding.STORED)
  assert tuple(state['params']['head']['out']['w'].sharding.spec) == (sharding.STORED, 'tensor')
