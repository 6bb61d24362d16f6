"""Stacks whose layers are of several kinds, against one layer after the other."""
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5like import choices, sharding
from t5like.model import transformer
from t5like.model.block import View
from t5like.model.layers import Norm
from t5like.model.stack import Stack
from tests import tiny

T = 12
ROWS = dict(positions=np.arange(T, dtype=np.int32)[None], segments=np.ones((1, T), np.int32))


@pytest.fixture(autouse=True)
def one_device():
  mesh = sharding.make_mesh(dict.fromkeys(sharding.AXES, 1), jax.devices()[:1])
  with jax.set_mesh(mesh):
    yield


def stack(num_layers, **changes):
  c = dataclasses.replace(tiny.MODEL, num_layers=num_layers, norm='layernorm', **changes)
  made = Stack(c, jax.random.key(0), causal=True)
  x = jax.random.normal(jax.random.key(1), (1, T, c.d_model))
  return made, jax.sharding.reshard(x, sharding.in_use('BTD'))


@pytest.mark.parametrize('num_layers', [2, 3, 5, 7])
@pytest.mark.parametrize('scan', [True, False])
def test_turns_of_a_pattern_are_one_layer_after_the_other(num_layers, scan):
  """Of whole turns, and of layers that are left; each layer with the view of its own kind."""
  kinds = ('global', 'local', 'global_nope')

  @jax.jit
  def run():
    rows = sharding.spread_rows(ROWS)
    made, x = stack(num_layers, layers=kinds, window=3, local_rope_theta=20.0, scan_layers=scan)
    whole, _ = made(x, rows)
    for n, block in enumerate(made.layers()):
      x, _, _ = block(x, View(rows, rows, None, None, choices.LAYERS[kinds[n % 3]]))
    return whole, made.norm(x)
  whole, one_by_one = run()
  np.testing.assert_allclose(whole, one_by_one, atol=1e-5)


@pytest.mark.parametrize('kinds', [('global',), ('local', 'global')])
def test_the_first_attention_without_a_norm(kinds):
  """Its numbers do not exist: one less in the array of layers, and the first layer reads what it is given."""
  @jax.jit
  def run():
    rows = sharding.spread_rows(ROWS)
    made, x = stack(3, layers=kinds, window=20 * ('local' in kinds), block='bare_first')
    scales = made.blocks.attention_norm.scale[...]
    made.blocks.attention_norm.scale[...] = scales * jnp.asarray([[2.0], [3.0]])
    whole, _ = made(x, rows)
    blocks = made.layers()
    for n, block in enumerate(blocks):
      norm = (lambda x: x) if n == 0 else block.attention_norm
      view = View(rows, rows, None, None, choices.LAYERS[kinds[n % len(kinds)]])
      y = norm(x)
      x = x + block.attention(y, block.attention.keys_values(y, rows['positions'], view.kind), rows, rows,
                              kind=view.kind)
      x = x + block.mlp(block.mlp_norm(x))
    declared = made.blocks.attention_norm.scale.get_metadata('declared')
    others = made.blocks.mlp_norm.scale.get_metadata('declared')
    assert (declared.owners, others.owners) == ((False, True, True), ())
    return scales, whole, made.norm(x)
  scales, whole, by_hand = run()
  assert scales.shape == (2, tiny.MODEL.d_model)
  np.testing.assert_allclose(whole, by_hand, atol=1e-5)


def test_a_window_as_long_as_the_row_is_none():
  ids = np.random.default_rng(0).integers(3, 60, (1, T)).astype(np.int32)

  def logits(**changes):
    model = transformer.build(dataclasses.replace(tiny.MODEL, **changes))
    params = jax.jit(model.init)(jax.random.key(0))
    return jax.jit(model.apply)(params, dict(ROWS, inputs=ids))
  np.testing.assert_allclose(logits(layers=('local', 'global'), window=T), logits(), atol=1e-5)
  assert np.abs(np.asarray(logits(layers=('local', 'global'), window=T - 4) - logits())).max() > 1e-3


def test_scales_that_begin_at_zero_are_those_that_begin_at_one():
  x = jax.random.normal(jax.random.key(0), (2, 3, tiny.MODEL.d_model))

  @jax.jit
  def run(x):
    unit = Norm(dataclasses.replace(tiny.MODEL, norm='rmsnorm_unit'))
    plain = Norm(tiny.MODEL)
    before = unit(x), plain(x)
    unit.scale[...] = unit.scale[...] + 0.5
    plain.scale[...] = plain.scale[...] + 0.5
    return before, (unit(x), plain(x))
  for one, other in run(x):
    np.testing.assert_allclose(one, other, atol=1e-6)
