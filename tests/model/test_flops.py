"""FLOPs that MFU counts, against the products of matrices in the very program that takes the gradients."""
import dataclasses
import math

import jax
import jax.numpy as jnp
import pytest

from t5like import sharding
from t5like.config import base
from t5like.model import flops, transformer
from t5like.objectives.lengths import Lengths
from t5like.optim import from_config
from tests import tiny
from tests.model.test_architectures import KINDS

WIDE = dict(d_model=96, num_heads=4, head_dim=24, d_ff=256, num_layers=3, num_encoder_layers=2, vocab_size=203,
            max_positions=80, scan_layers=False, attention='xla')
T, S = 40, 56


@pytest.fixture(autouse=True, scope='module')
def one_device():
  mesh = sharding.make_mesh(dict.fromkeys(sharding.AXES, 1), jax.devices()[:1])
  with jax.set_mesh(mesh):
    yield mesh


def products(jaxpr):
  """FLOPs of all products of matrices in a jaxpr and those that it calls."""
  total = 0
  for equation in jaxpr.eqns:
    if equation.primitive.name == 'dot_general':
      (contracted, _), _ = equation.params['dimension_numbers']
      left, out = equation.invars[0].aval.shape, equation.outvars[0].aval.shape
      total += 2 * math.prod(out) * math.prod(left[axis] for axis in contracted)
    times = equation.params.get('length', 1) if equation.primitive.name == 'scan' else 1
    for value in jax.tree.leaves(equation.params, is_leaf=lambda x: hasattr(x, 'eqns') or hasattr(x, 'jaxpr')):
      inner = getattr(value, 'jaxpr', value)
      if hasattr(inner, 'eqns'):
        total += times * products(inner)
  return total


def counted(kind, freeze=(), **changes):
  """(ours, those of the program) of one row of a model of test_architectures.py."""
  model = transformer.build(dataclasses.replace(tiny.MODEL, **{**KINDS[kind], **WIDE, 'num_kv_heads': 4, **changes}))
  shapes = jax.eval_shape(lambda: model.init(jax.random.key(0)))
  optimizer = base().optimizer
  optimizer.freeze = freeze
  rates = from_config.rates(optimizer, model.parameters)
  pair = model.config.name == 'encoder_decoder'
  row = lambda n: {name: jnp.ones((1, n), jnp.int32) for name in ('inputs', 'positions', 'segments')}
  batch = dict(row(T), encoder=row(S)) if pair else row(T)
  loss = from_config.without_frozen(lambda params: jnp.sum(jnp.sin(model.apply(params, batch))), rates)
  program = jax.make_jaxpr(jax.grad(loss))(shapes)
  jaxpr, _ = jax.interpreters.partial_eval.dce_jaxpr(program.jaxpr, [True] * len(program.jaxpr.outvars))
  return flops.per_row(model, Lengths(T, S if pair else 0, T), rates), products(jaxpr)


LORA = dict(lora_rank=4, lora_alpha=8.0, lora_projections=('q', 'v'))


@pytest.mark.parametrize('kind', ['llama', 'gpt2', 't5_1_1', 'bert', 'neox'])
def test_what_is_trained_in_full_is_counted_as_the_program_computes_it(kind):
  ours, program = counted(kind)
  assert ours == pytest.approx(program, rel=0.03)


@pytest.mark.parametrize('kind, freeze, changes', [
    ('llama', (), LORA), ('t5_1_1', (), LORA), ('llama', (), LORA | dict(lora_projections=('q', 'o', 'up', 'down'))),
    ('llama', ('embed', 'stack/blocks[:2]'), {}), ('llama', ('stack',), {}),
    ('llama', ('*', '!head'), {}), ('llama', ('*', '!stack/blocks/attention/q'), {}),
    ('t5_1_1', ('encoder', 'embed'), {}), ('t5_1_1', ('decoder', 'head', 'embed'), {}),
    ('t5_1_1', ('*', '!decoder/blocks/cross'), {}), ('bert', ('*', '!*norm*'), {}), ('bert', ('*', '!head'), {}),
    ('gpt2', ('*', '!embed'), {})])
def test_what_is_frozen_is_counted_as_the_program_computes_it(kind, freeze, changes):
  """Layers one by one: nothing is computed then that none of them needs."""
  ours, program = counted(kind, freeze, **changes)
  everything, _ = counted(kind, **{**changes, 'lora_rank': 0} if changes else {})
  assert ours == pytest.approx(program, rel=0.04) and ours <= everything


def test_lora_takes_two_thirds():
  """Forward, and gradients of activations: 4 of 6 for each weight; attention's products in full."""
  ours, _ = counted('llama', **LORA)
  full, _ = counted('llama')
  model = transformer.build(dataclasses.replace(tiny.MODEL, **WIDE, num_kv_heads=4))
  attention = flops.attention(model.config, Lengths(T, 0, T))
  assert (ours - attention) / (full - attention) == pytest.approx(2 / 3, rel=0.05)


def test_keys_that_are_not_counted_are_refused():
  """A key that is new in config.model, such as attention in chunks, at another value than its default."""
  chunked = dataclasses.make_dataclass('Chunked', [('chunk', int, 0)], bases=(transformer.ModelConfig,), frozen=True)
  values = dataclasses.asdict(tiny.MODEL)
  shapes = Lengths(0, 0, 32)
  assert flops.attention(chunked(**values), shapes) == flops.attention(tiny.MODEL, shapes)
  with pytest.raises(NotImplementedError, match='model.chunk=8: .* does not know'):
    flops.attention(chunked(**values, chunk=8), shapes)
  model = dataclasses.replace(transformer.build(tiny.MODEL), config=chunked(**values, chunk=8))
  with pytest.raises(NotImplementedError, match='model.chunk=8'):
    flops.per_row(model, shapes)


def test_every_key_is_declared_once():
  names = [field.name for field in dataclasses.fields(transformer.ModelConfig)]
  assert sorted([*flops.COUNTED, *flops.WITHOUT_PRODUCTS]) == sorted(names)
