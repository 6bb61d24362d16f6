"""What parameters are declared to be: against the arrays of every kind of model, and refused where it is missing."""
import dataclasses

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from t5like import choices, parameters
from t5like.errors import ConfigError
from t5like.huggingface import model_folders, weight_table
from t5like.model import block, flops, layers, models, transformer
from t5like.objectives.lengths import Lengths
from t5like.optim.optimizers import path_name
from tests import tiny
from tests.model.test_architectures import KINDS


def model_of(**changes):
  with models.no_devices():
    model = transformer.build(dataclasses.replace(tiny.MODEL, **changes))
    return model, jax.eval_shape(lambda: model.init(jax.random.key(0)))


@pytest.mark.parametrize('kind', KINDS)
def test_every_parameter_of_every_kind_of_model_is_declared(kind):
  """Paths, shapes and order are those of the arrays, and each axis has the size of its letter."""
  model, arrays = model_of(**KINDS[kind])
  shapes = [(path_name(path), x.shape) for path, x in jax.tree_util.tree_leaves_with_path(arrays)]
  assert [(path, declared.shape) for path, declared in model.parameters.items()] == shapes
  for path, declared in model.parameters.items():
    layers_of = dict(encoder=model.config.num_encoder_layers).get(declared.stack, model.config.num_layers)
    if declared.layer == 'attention_norm' and choices.BLOCKS[model.config.block].bare_first:
      layers_of -= 1
    for letter, size in zip(declared.dims, declared.shape):
      assert size == {'L': layers_of, '_': 32}.get(letter) or size == model.config.size(letter), path
    assert not declared.batch, path


def test_a_decoders_parameters_with_adapters():
  model, _ = model_of(use_bias=True, norm='layernorm', lora_rank=2, lora_projections=('q', 'o'))
  declared = model.parameters
  q, o, first = (declared[f'stack/blocks/attention/{name}'] for name in ('q/w', 'o/w', 'o/lora_a'))
  assert (q.dims, q.inputs, q.outputs, q.role, q.kind) == ('LDNH', 'D', 'NH', 'q', 'matrix')
  assert (q.layer, q.stack, q.num_layers, q.own_axes, q.sides) == ('attention', 'stack', 3, (1, 2, 3), ((1,), (2, 3)))
  assert (o.inputs, o.outputs, o.sides) == ('NH', 'D', ((1, 2), (3,)))
  assert (first.dims, first.role, first.kind, first.sides) == ('LNHR', 'o', 'lora_a', None)
  bias, norm = declared['stack/blocks/attention/q/b'], declared['stack/blocks/mlp_norm/scale']
  assert (bias.role, bias.kind, bias.inputs, bias.outputs, bias.sides) == ('q', 'bias', '', 'NH', None)
  assert (norm.role, norm.kind, norm.layer, norm.own_axes) == ('norm', 'scale', 'mlp_norm', (1,))
  assert (declared['embed/w'].stack, declared['stack/norm/scale'].is_stacked) == ('', False)
  assert declared['stack/norm/scale'].num_layers == 1


def test_a_parameter_that_is_not_declared_is_refused(monkeypatch):
  class Scaled(layers.MLP):
    def __init__(self, c, key):
      super().__init__(c, key)
      self.strange = nnx.Param(jnp.ones(c.d_ff))
  monkeypatch.setattr(block, 'MLP', Scaled)
  with pytest.raises(TypeError, match='stack/blocks/mlp/strange is not declared'):
    model_of()


def test_a_declaration_of_another_rank_is_refused():
  with pytest.raises(TypeError, match=r"head/b has 2 axes, \(3, 4\), and is declared with 1, 'V'"):
    parameters.whole(parameters.vector('V', 'head', 'bias'), 'head/b', (3, 4))


@pytest.mark.parametrize('fields, words', [
    (dict(dims='DF', role='mixer', kind='matrix'), "no role 'mixer'"),
    (dict(dims='DF', role='up', kind='weight'), "no kind 'weight'"),
    (dict(dims='DD', role='up', kind='matrix'), 'letter of its own'),
    (dict(dims='DF', role='up', kind='matrix', inputs='D', outputs='DF'), 'letter of its own'),
    (dict(dims='DF', role='up', kind='matrix', inputs='V'), 'letter of its own')], ids=str)
def test_declarations_that_contradict_themselves_are_refused(fields, words):
  with pytest.raises(ValueError, match=words):
    parameters.Param(**fields)


def test_experts_are_matrices_of_their_own():
  experts = parameters.of_layers(parameters.Param('EDF', 'up', 'matrix', 'D', 'F'))
  assert (experts.dims, experts.batch, experts.own_axes, experts.sides) == ('LEDF', 'E', (2, 3), ((2,), (3,)))


EXPERTS = parameters.Param('LEDF', 'up', 'matrix', 'D', 'F', 'mlp', 'stack', (3, 2, 32, 48))


def with_experts(model, path):
  return dataclasses.replace(model, parameters={**model.parameters, path: EXPERTS})


def test_flops_of_experts_are_refused_for_it_is_not_known_which_a_token_multiplies():
  model = with_experts(model_of()[0], 'stack/blocks/mlp/experts/w')
  with pytest.raises(NotImplementedError, match="mlp/experts/w has matrices of its own along the axes 'E' of LEDF"):
    flops.per_row(model, Lengths(8, 0, 8))


@pytest.mark.parametrize('place, words', [
    (dict(layer='mlp', role='q'), 'where in a block'), (dict(layer='conv'), 'where in a block'),
    (dict(layer='adapter', dims='DF', shape=(32, 48)), 'where it multiplies')], ids=str)
def test_flops_of_what_is_nowhere_are_refused(place, words):
  fields = dict(dims='LDF', role='up', kind='matrix', inputs='D', outputs='F', layer='mlp', shape=(3, 32, 48))
  model, _ = model_of()
  strange = dataclasses.replace(model, parameters={'stack/strange/w': parameters.Param(**{**fields, **place})})
  with pytest.raises(NotImplementedError, match=words):
    flops.per_row(strange, Lengths(8, 0, 8))


def test_export_and_import_refuse_parameters_that_their_family_does_not_have(tmp_path):
  model, arrays = model_of()
  values = dataclasses.asdict(model.config)
  weight_table.check_parameters(weight_table.family_of_any(values), values, model.parameters)
  for path, words in (('stack/blocks/mlp/experts/w', 'has no place in the weights of llama models'),
                      ('stack/blocks/mlp/up/w', 'has the dimensions EDF, and in the weights of llama models DF')):
    with pytest.raises(ConfigError, match=f'{path} {words}'):
      weight_table.check_parameters(weight_table.family_of_any(values), values, with_experts(model, path).parameters)
  arrays['stack']['blocks']['mlp']['experts'] = dict(w=jnp.zeros(EXPERTS.shape))
  with pytest.raises(ConfigError, match='mlp/experts/w has no place in the weights of llama models'):
    model_folders.write(tmp_path / 'out', values, arrays)
  assert not (tmp_path / 'out').exists()


def test_an_array_of_an_optimizers_state_is_of_the_parameter_that_ends_its_path():
  table = {'embed/w': 1, 'b/embed/w': 2}
  assert parameters.with_path_of('0/mu/embed/w', table) == 1
  assert parameters.with_path_of('0/mu/b/embed/w', table) == 2
  assert parameters.with_path_of('0/count', table) is None


def test_a_model_is_an_argument_that_jit_can_tell_apart():
  (a, _), (b, _) = model_of(), model_of()
  assert hash(a) == hash(a) and a == a and a != b
