"""Products with 8-bit operands: against rounding by hand in numpy, on every mesh, and in models that train."""
import dataclasses
import re

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from t5like import sharding
from t5like.config import base
from t5like.huggingface import families
from t5like.model import eight_bit, transformer
from t5like.model.gathering import gather_factor
from t5like.sharding import at_rest, einsum, in_use
from tests import tiny

pytestmark = pytest.mark.usefixtures('compile_once')

EQUATIONS = {'BTD,DNH->BTNH': ((3, 8, 32), (32, 4, 8)), 'BTNH,NHD->BTD': ((3, 8, 4, 8), (4, 8, 32)),
             'BTD,DF->BTF': ((3, 8, 32), (32, 24)), 'BTF,FD->BTD': ((3, 8, 24), (24, 32))}
FORMATS = {'int8': (127.5, lambda x: np.clip(np.round(x), -128, 127)),
           'fp8': (448.0, lambda x: np.clip(x, -448, 448).astype(ml_dtypes.float8_e4m3fn).astype(np.float32))}


def mesh(n=1, **axes):
  return jax.set_mesh(sharding.make_mesh({**dict.fromkeys(sharding.AXES, 1), **axes}, jax.devices()[:n]))


def by_hand(name, equation, x, w):
  """x of each position and w of each output, rounded to steps of their largest magnitude."""
  inputs, out = equation.split('->')
  largest, rounded = FORMATS[name]

  def near(array, dims):
    axes = tuple(axis for axis, letter in enumerate(dims) if letter not in out)
    scale = (np.abs(array).max(axes, keepdims=True) / np.float32(largest)).astype(np.float32)
    scale = np.where(scale < 1e-19, 1, scale).astype(np.float32)
    return rounded(array / scale).astype(np.float64) * scale

  return np.einsum(equation, *map(near, (x, w), inputs.split(',')))


def numbers(rng, shape):
  """Random ones, of which the largest magnitudes are positive: qwix rounds them to 127, and -127.5 up or down."""
  x = rng.standard_normal(shape).astype(np.float32)
  return np.where(np.abs(x) > 0.3, np.abs(x), x)


def inputs_of(equation, seed=0, scales=(1.0, 1.0)):
  rng = np.random.default_rng(seed)
  return [np.float32(scale) * numbers(rng, shape) for shape, scale in zip(EQUATIONS[equation], scales)]


@settings(max_examples=25, deadline=None)
@given(st.sampled_from(list(FORMATS)), st.sampled_from(list(EQUATIONS)), st.integers(0, 99),
       st.sampled_from([1e-6, 1.0, 1e6]), st.sampled_from([1e-3, 1.0]))
def test_products_are_those_of_rounded_operands(name, equation, seed, x_scale, w_scale):
  x, w = inputs_of(equation, seed, (x_scale, w_scale))
  with mesh():
    y = eight_bit.product(name, equation, jnp.array(x), jnp.array(w))
  want = by_hand(name, equation, x, w)
  np.testing.assert_allclose(y, want, rtol=1e-5, atol=1e-5 * np.abs(want).max())


@pytest.mark.parametrize('equation', EQUATIONS)
@pytest.mark.parametrize('name', FORMATS)
def test_gradients(name, equation):
  """Of the activations a product of rounded operands again; of the weights to the bit that of plain products."""
  x, w = map(jnp.array, inputs_of(equation))
  g = jnp.array(numbers(np.random.default_rng(1), jnp.einsum(equation, x, w).shape))
  with mesh():
    _, pull_back = jax.vjp(lambda x, w: eight_bit.product(name, equation, x, w), x, w)
    of_x, of_w = pull_back(g)
    _, plain = jax.vjp(lambda w: einsum(equation, x, w), w)
    want_w, = plain(g)
  first, out = equation.split('->')
  x_dims, w_dims = first.split(',')
  np.testing.assert_array_equal(of_w, want_w)
  want = by_hand(name, f'{out},{w_dims}->{x_dims}', np.asarray(g), np.asarray(w))
  np.testing.assert_allclose(of_x, want, rtol=1e-5, atol=1e-5 * np.abs(want).max())


def test_zeros_and_outliers():
  """A row of zeros is zeros; one large number costs its own position, and no other, its precision."""
  x, w = inputs_of('BTD,DF->BTF')
  x[0, 0] = 0
  x[1, 1, 0] = 1e4
  with mesh():
    y = np.asarray(eight_bit.product('int8', 'BTD,DF->BTF', jnp.array(x), jnp.array(w)))
  exact = np.einsum('BTD,DF->BTF', x, w)
  assert not y[0, 0].any()
  error = np.abs(y - exact)
  error[1, 1] = 0
  assert error.max() < 0.03 * np.abs(exact[0]).max()


@pytest.mark.parametrize('axes', [dict(data=2, fsdp=2, tensor=2), dict(fsdp=2, context=2, tensor=2), dict(fsdp=8)])
@pytest.mark.parametrize('name', FORMATS)
def test_every_mesh_computes_the_same(name, axes):
  x, w = inputs_of('BTD,DNH->BTNH')
  back, = inputs_of('BTNH,NHD->BTD')[1:]

  def loss(x, w, back):
    heads = eight_bit.product(name, 'BTD,DNH->BTNH', x, gather_factor(w, 'DNH', jnp.float32))
    y = eight_bit.product(name, 'BTNH,NHD->BTD', heads, gather_factor(back, 'NHD', jnp.float32))
    return jnp.sum(jnp.square(y))

  results = []
  for devices, sizes in ((1, {}), (8, axes)):
    with mesh(devices, **sizes):
      rows = np.concatenate([x] * 8)[:8]
      arrays = [jax.device_put(rows, in_use('BTD')), jax.device_put(w, at_rest('DNH')),
                jax.device_put(back, at_rest('NHD'))]
      value, gradients = jax.jit(jax.value_and_grad(loss, (0, 1, 2)))(*arrays)
      results.append([np.asarray(value), *map(np.asarray, gradients)])
  for one, other in zip(*results):
    np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5 * np.abs(one).max())


@pytest.mark.parametrize('architecture', ['decoder', 'encoder', 'encoder_decoder'])
@pytest.mark.parametrize('name, operand', [('int8', 'i8'), ('fp8', 'f8E4M3FN')])
def test_the_products_of_layers_and_no_others_have_8_bits(architecture, name, operand):
  c = dataclasses.replace(tiny.MODEL, name=architecture, quantization=name)
  row = dict(inputs=np.ones((4, 8), np.int32), segments=np.ones((4, 8), np.int32),
             positions=np.tile(np.arange(8, dtype=np.int32), (4, 1)))
  batch = dict(row, encoder=row) if architecture == 'encoder_decoder' else row
  with mesh():
    model = transformer.build(c)
    params = jax.jit(model.init)(jax.random.key(0))
    placed = sharding.place(jax.sharding.get_mesh(), batch)
    text = jax.jit(lambda p: jnp.sum(model.apply(p, placed))).lower(params).as_text()
  operand_types = r': \(tensor<[^>]*x([a-z]\w*)>, tensor<[^>]*x([a-z]\w*)>\)'
  kinds = re.findall(f'stablehlo.dot_general .*?{operand_types}', text)
  counts = {tuple(kind): kinds.count(kind) for kind in set(kinds)}
  stacks = 2 if architecture == 'encoder_decoder' else 1
  cross = 4 if architecture == 'encoder_decoder' else 0
  assert counts.pop((operand, operand)) == 7 * stacks + cross
  assert set(counts) == {('f32', 'f32')}  # attention, logits


@pytest.mark.parametrize('name', FORMATS)
def test_it_trains_nearly_as_well(name, tmp_path):
  from t5like.training import loop
  losses = {}
  for quantization in ('none', name):
    config = tiny.config(tmp_path, steps=24, model=dict(quantization=quantization))
    loop.train(config, tmp_path / quantization, 'test', jax.devices()[:1])
    steps, _ = tiny.metrics(tmp_path / quantization)
    losses[quantization] = np.array([step['loss'] for step in steps])
  difference = np.abs(losses[name] - losses['none'])
  assert 0 < difference.max() < 0.1 and losses[name][-1] < losses[name][0] - 2


def test_exports_are_of_the_weights():
  """Hugging Face formats have the parameters, which are float32; how products were rounded is no part of a model."""
  assert 'quantization' in families.FREE and 'quantization' in base().model
  assert eight_bit.QUANTIZATIONS['none'] is None
