"""What one CPU alone computes: attention in blocks and flat products are plain ones, values and gradients."""
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from t5like import sharding
from t5like.model import attention_choice, attention_kernels
from t5like.model.attention_kernels import AttentionSpec
from t5like.model.kernels import cpu_blocks
from tests.model.test_kernels import example

CASES = dict(
    length=st.integers(1, 300), other=st.integers(1, 300), kind=st.sampled_from(['causal', 'prefix', 'both', 'cross']),
    window=st.none() | st.tuples(st.integers(0, 320), st.integers(0, 320)), softcap=st.sampled_from([0.0, 3.0]),
    heads=st.sampled_from([(1, 1), (4, 2), (3, 3)]), biased=st.booleans())


@settings(max_examples=5, deadline=None, derandomize=True)
@given(**CASES)
def test_blocks_are_plain_attention(**case):
  compare(**case)


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(**CASES)
def test_any_blocks_are_plain_attention(**case):
  compare(**case)


def compare(length, other, kind, window, softcap, heads, biased):
  """Forward and all gradients, of the queries that see a key."""
  T, S = length, other if kind == 'cross' else length
  q, k, v, query, key = example(T, S, *heads, H=16)
  if kind != 'prefix':
    query, key = ({n: x for n, x in info.items() if n != 'prefix'} for info in (query, key))
  if kind == 'cross':
    window = None
  causal = kind in ('causal', 'prefix')
  spec = AttentionSpec(causal, T, S, dtype='float32', prefix=kind == 'prefix', window=window, softcap=softcap)
  bias = None
  if biased:
    bias = jnp.asarray(np.random.default_rng(1).normal(size=(heads[0], T, S)), jnp.float32)
  sees_some = attention_kernels.visible(spec, query, key).any(-1)[:, :, None, None]
  mix = jnp.cos(jnp.arange(16.))[None, None, None]

  def run(kernel):
    call = attention_kernels.Call(spec, scale=0.1, queries=None, keys=None, interpret=True)

    def attend(q, k, v, bias):
      extras = {} if bias is None else dict(bias=bias)
      out = attention_kernels.KERNELS[kernel].run(call, q, k, v, query, key, extras)
      return jnp.where(sees_some, out, 0) * mix
    out, back = jax.vjp(attend, q, k, v, bias)
    return out, back(jnp.ones_like(out))
  out, gradients = run('cpu_blocks')
  wanted, wanted_gradients = run('xla')
  np.testing.assert_allclose(out, wanted, atol=1e-5)
  for gradient, wanted_gradient in zip(jax.tree.leaves(gradients), jax.tree.leaves(wanted_gradients), strict=True):
    most = max(1, float(jnp.abs(wanted_gradient).max()))
    np.testing.assert_allclose(gradient, wanted_gradient, atol=2e-5 * most)


def test_blocks_leave_out_what_no_query_of_theirs_sees():
  form = cpu_blocks.Form(lambda query, key: None, 1.0, lower_half=True)
  keys = [block.keys.stop for block in cpu_blocks.blocks_of(form, 256, 256)]
  assert keys == [64, 128, 192, 256]
  form = cpu_blocks.Form(lambda query, key: None, 1.0, lower_half=True, window=(10, 0))
  starts = [block.keys.start for block in cpu_blocks.blocks_of(form, 256, 256)]
  assert starts == [0, 54, 118, 182]


EQUATIONS = ['BTD,DNH->BTNH', 'BTNH,NHD->BTD', 'BTD,DF->BTF', 'BTD,VD->BTV', 'BTNH,NHR->BTR', 'BTR,RNH->BTNH']
SIZES = dict(B=2, T=3, D=8, N=2, H=4, F=6, V=5, R=3)


@pytest.mark.parametrize('equation', EQUATIONS)
def test_flat_products_are_einsums(equation):
  """On one device, where they are taken, and with the layout that every product has."""
  letters, _, _ = equation.partition('->')
  rng = np.random.default_rng(0)
  x, w = (rng.normal(size=[SIZES[d] for d in dims]).astype(np.float32) for dims in letters.split(','))
  mesh = sharding.make_mesh(dict(fsdp=1), jax.devices()[:1])
  with jax.set_mesh(mesh):
    assert sharding.on_one_cpu()
    product = jax.jit(functools.partial(sharding.einsum, equation))(x, w)
    assert jax.typeof(product).sharding.spec == sharding.in_use(equation.partition('->')[2])
  np.testing.assert_allclose(product, np.einsum(equation, x, w), atol=1e-5)


def test_what_is_no_product_with_a_matrix_is_refused():
  mesh = sharding.make_mesh(dict(fsdp=1), jax.devices()[:1])
  with jax.set_mesh(mesh), pytest.raises(NotImplementedError, match='BTD,BTD->BT'):
    sharding.flat_product('BTD,BTD->BT', jnp.ones((1, 2, 3)), jnp.ones((1, 2, 3)))


def test_several_devices_and_accelerators_are_left_alone(monkeypatch):
  mesh = sharding.make_mesh(dict(fsdp=2), jax.devices()[:2])
  with jax.set_mesh(mesh):
    assert not sharding.on_one_cpu()
    spec = AttentionSpec(True, 8, 8, dtype='float32')
    assert attention_choice.choose_kernel('auto', 'cpu', spec) == ('xla', 'blocks are for one CPU')
  mesh = sharding.make_mesh(dict(fsdp=1), jax.devices()[:1])
  monkeypatch.setattr(sharding, 'platform', lambda: 'tpu')
  with jax.set_mesh(mesh):
    assert not sharding.on_one_cpu()
