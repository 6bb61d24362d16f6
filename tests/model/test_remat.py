"""model.remat: what each choice saves for the backward pass, to the byte, and that none changes a number."""
import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5like import choices, sharding
from t5like.model import transformer
from tests import tiny

B, T, L = 2, 16, 3
FLOAT = 4  # bytes
compiled = functools.partial(jax.jit, compiler_options=dict(xla_backend_optimization_level=0))


@pytest.fixture(autouse=True, scope='module')
def one_device():
  mesh = sharding.make_mesh(dict.fromkeys(sharding.AXES, 1), jax.devices()[:1])
  with jax.set_mesh(mesh):
    yield mesh


def batch():
  tokens = np.random.default_rng(0).integers(1, tiny.MODEL.vocab_size, (B, T), dtype=np.int32)
  positions = np.broadcast_to(np.arange(T, dtype=np.int32), (B, T))
  return dict(inputs=tokens, positions=positions, segments=np.ones((B, T), np.int32))


def loss_of(**changes):
  """(function of params, params): the sum of squares of what a stack gives."""
  model = transformer.build(dataclasses.replace(tiny.MODEL, num_layers=L, **changes))
  params = model.init(jax.random.key(0))
  rows = batch()

  def loss(params):
    x_BTD, _ = model.hidden(params, rows)
    return jnp.sum(jnp.square(x_BTD))
  return loss, params


def saved_bytes(remat, **changes):
  """Of everything that the backward pass needs of the forward pass."""
  loss, params = loss_of(remat=remat, **changes)
  backward = jax.eval_shape(lambda params: jax.vjp(loss, params)[1], params)
  return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(backward))


@pytest.mark.parametrize('attention, of_kernel', [('xla', 0), ('splash', 1)])
def test_each_choice_saves_one_value_more_and_each_value_once(attention, of_kernel):
  c = tiny.MODEL
  ladder = [name for name, kind in choices.REMAT.items() if kind.recomputed]
  sizes = [saved_bytes(name, attention=attention) for name in ladder]
  more = dict(zip(ladder[1:], np.diff(sizes) / FLOAT / L))
  padded = 128  # queries of a kernel
  rows = padded if of_kernel else T
  assert more == dict(
      context=B * rows * c.num_heads * (c.head_dim + of_kernel),  # the kernel's has the logsumexp beside it
      attention=B * T * (c.num_heads + 2 * c.num_kv_heads) * c.head_dim,
      middle=B * T * c.d_model,
      up=B * T * c.d_ff,
      minimal=B * T * c.d_ff,
      weights=0)  # on one device, in float32, they are the parameters


def test_names_that_are_kept_are_all_there_are():
  """Every value of KEPT is named in a forward pass, and every name is in KEPT."""
  loss, params = loss_of(attention='xla')
  equations = itertools.chain.from_iterable(_equations(jax.make_jaxpr(loss)(params).jaxpr))
  names = {equation.params['name'] for equation in equations if equation.primitive.name == 'name'}
  assert names == set(choices.KEPT)


def _equations(jaxpr):
  yield jaxpr.eqns
  for equation in jaxpr.eqns:
    for inner in jax.tree.leaves(equation.params, is_leaf=lambda x: hasattr(x, 'eqns') or hasattr(x, 'jaxpr')):
      inner = getattr(inner, 'jaxpr', inner)
      if hasattr(inner, 'eqns'):
        yield from _equations(inner)


@pytest.mark.parametrize('remat', [name for name in choices.REMAT if name != 'none'])
def test_gradients_are_the_same(remat):
  loss, params = loss_of(attention='xla')
  other, _ = loss_of(attention='xla', remat=remat)
  value, gradients = compiled(jax.value_and_grad(loss))(params)
  value_again, gradients_again = compiled(jax.value_and_grad(other))(params)
  assert value == value_again
  largest = max(float(jnp.abs(x).max()) for x in jax.tree.leaves(gradients))
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-6 * largest), gradients, gradients_again)
