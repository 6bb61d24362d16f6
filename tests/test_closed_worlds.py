"""A name that nothing implements is refused for every key that has choices, and never another name's behaviour."""
import importlib.util
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from t5like import choices, config as config_lib, rate_schedules, sharding
from t5like.config import optimizer_rules, rules
from t5like.errors import ConfigError
from t5like.huggingface import runs
from t5like.model import attention, positions
from t5like.model.context import Cut
from t5like.training import loop
from tests import tiny

UNKNOWN = 'nonesuch'
# What has to be set beside a key so that its value is read.
BESIDE = {
    'model.router': {'model.experts': 4, 'model.experts_per_token': 2},
    'data.overlong': {'data.max_document_tokens': 8},
    'data.mixture_rates': {'data.mixture': dict(a=dict(weight=1.0), b=dict(weight=2.0))},
    'vocabulary.algorithm': {'vocabulary.name': 'sentencepiece', 'vocabulary.size': 320, 'model.vocab_size': 0},
    'vocabulary.normalization': {'vocabulary.name': 'sentencepiece', 'vocabulary.size': 320, 'model.vocab_size': 0},
    'objective.masking': {'objective.name': 'masked_lm', 'model.name': 'encoder', 'vocabulary.sentinels': 2},
}
# Modules whose tables implement the choices of a key; the others are all facts, or are given to a library by name.
IMPLEMENTED_IN = {
    'data.packing': 'batches.packing',
    'data.empty': 'prepared.examples',
    'data.overlong': 'prepared.shards',
    'data.mixture_rates': 'batches.mixing',
    'vocabulary.name': 'vocabulary.loading',
    'objective.masking': 'objectives.masking',
    'model.name': 'model.transformer',
    'model.activation': 'model.layers',
    'model.norm': 'model.layers',
    'model.position': 'model.positions',
    'model.embed_scale': 'model.transformer',
    'model.init': 'model.initial',
    'model.remat': 'model.stack',
    'model.quantization': 'model.eight_bit',
    'model.router': 'model.router',
    'model.attention': 'model.attention_choice',
    'model.context_attention': 'model.attention_rows',
    'adapt.tokens': 'huggingface.adapted',
    'log.trackers': 'observe.trackers',
}


# Keys whose choices are all facts: an entry has them, or cannot be made.
FACTS_ALONE = ('model.layers', 'model.block', 'model.head', 'model.qk_norm', 'model.attention_sinks',
               'model.encoder_embed', 'model.dropout_style', 'schedule.name', 'adapt.source', 'adapt.encoder_source',
               'adapt.decoder', 'adapt.cross', 'adapt.head')
# Keys whose values are handed to a library, which refuses what it does not know.
OF_LIBRARIES = ('vocabulary.algorithm', 'vocabulary.normalization', 'model.dtype')
# Keys whose table is collected from modules, an entry that lacks a part being an error.
COLLECTED = ('objective.name',)


def test_every_key_is_listed():
  assert sorted([*IMPLEMENTED_IN, *FACTS_ALONE, *OF_LIBRARIES, *COLLECTED]) == sorted(rules.CHOICES)


def register(monkeypatch, key, facts=None):
  """Adds UNKNOWN to the choices of a key, where rules and implementations see it."""
  names = rules.CHOICES[key]
  if isinstance(names, dict):
    monkeypatch.setitem(names, UNKNOWN, facts)
    return
  longer = (*names, UNKNOWN)
  monkeypatch.setitem(rules.CHOICES, key, longer)
  for attribute, value in vars(choices).items():
    if value is names:
      monkeypatch.setattr(choices, attribute, longer)


def changed(config, values):
  with config.unlocked():
    for key, value in values.items():
      section, _, name = key.partition('.')
      config[section][name] = value
  return config


@pytest.mark.parametrize('key', rules.CHOICES)
def test_a_name_that_nothing_implements_is_not_trained(tmp_path, monkeypatch, key):
  c = changed(tiny.config(tmp_path, steps=1), BESIDE.get(key, {}))
  is_list = isinstance(rules.DEFAULTS[key], tuple)
  changed(c, {key: (UNKNOWN,) if is_list else UNKNOWN})
  with pytest.raises(ConfigError, match=f'{key}=.*There is'):
    config_lib.validate(c)
  register(monkeypatch, key)
  with pytest.raises(Exception) as error:
    config_lib.validate(c)
    loop.train(c, tmp_path / 'run', 'test', jax.devices()[:1])
  assert re.search(f'{UNKNOWN}|NoneType', f'{error.value!r} {error.value.__cause__!r}'), error.value


def imported_anew(module):
  """Executes the source of a module of t5like as another module."""
  spec = importlib.util.find_spec(f't5like.{module}')
  spec.loader.exec_module(importlib.util.module_from_spec(spec))


@pytest.mark.parametrize('key', IMPLEMENTED_IN)
def test_a_name_without_an_implementation_is_an_error_at_import(monkeypatch, key):
  names = rules.CHOICES[key]
  register(monkeypatch, key, next(iter(names.values())) if isinstance(names, dict) else None)
  with pytest.raises(NotImplementedError, match=f"{key}='{UNKNOWN}' is a choice .* nothing implements it"):
    imported_anew(IMPLEMENTED_IN[key])


@pytest.mark.parametrize('key', IMPLEMENTED_IN)
def test_an_implementation_without_a_name_is_an_error_at_import(monkeypatch, key):
  names = rules.CHOICES[key]
  left_out = list(names)[-1]  # what is put back is the last again
  if isinstance(names, dict):
    monkeypatch.delitem(names, left_out)
  else:
    attribute = next(attribute for attribute, value in vars(choices).items() if value is names)
    monkeypatch.setattr(choices, attribute, names[:-1])
  with pytest.raises(NotImplementedError, match=f"{key}='{left_out}' is implemented, but it is no choice"):
    imported_anew(IMPLEMENTED_IN[key])


def test_an_optimizer_that_neither_we_nor_optax_have(monkeypatch):
  monkeypatch.setitem(optimizer_rules.OPTIMIZERS, UNKNOWN, ('b1',))
  with pytest.raises(NotImplementedError, match=f"optimizer.name='{UNKNOWN}'"):
    imported_anew('optim.from_config')


def test_facts_and_implementation_of_a_position_agree(monkeypatch):
  monkeypatch.setitem(choices.POSITIONS, 'relative', choices.Position(rotary=True))
  with pytest.raises(NotImplementedError, match="model.position='relative' is not implemented as"):
    imported_anew('model.positions')


@pytest.mark.parametrize('facts', [dict(), dict(norm_input=True, norm_sum=True), dict(parallel=True),
                                   dict(norm_output=True, bare_first=True)], ids=str)
def test_a_block_has_its_norms_in_one_place(facts):
  with pytest.raises(ValueError, match='norm'):
    choices.Block(**facts)


@pytest.mark.parametrize('kind', [choices.Activation, choices.Norm, choices.QKNorm, choices.AttentionSinks,
                                  choices.EncoderEmbed, choices.DropoutStyle, choices.Remat, choices.MixtureRates,
                                  choices.Architecture, rate_schedules.Schedule])
def test_facts_cannot_be_left_out(kind):
  with pytest.raises(TypeError, match='required positional argument'):
    kind()


class Alibi(nnx.Module):
  """Linear biases by distance (Press et al. 2022, arXiv 2108.12409): 2^-1, 2^-2, .. of it for the heads."""

  def __init__(self, c, bidirectional, key):
    self.c, self.bidirectional = c, bidirectional

  def __call__(self, T, S, at=0):
    distance_R = S - at - jnp.arange(T + S)  # of key and query
    slopes_N = 0.5 ** (1 + jnp.arange(self.c.num_heads))
    bias_NR = slopes_N[:, None] * -jnp.abs(distance_R)[None].astype(jnp.float32)
    return jax.sharding.reshard(bias_NR, sharding.weights('NR'))


def test_a_new_bias_by_distance_is_one_name_and_one_entry(tmp_path, monkeypatch):
  """As docs/adding.md says of ALiBi: the kernel is chosen, FLOPs are counted, a step is trained, export refuses it."""
  monkeypatch.setitem(choices.POSITIONS, 'alibi', choices.Position(biased=True))
  monkeypatch.setitem(positions.POSITIONS, 'alibi', positions.PositionScheme(bias=Alibi))
  losses = {}
  for position in ('alibi', 'none'):
    c = changed(tiny.config(tmp_path, steps=2), {'model.position': position})
    config_lib.validate(c)
    loop.train(c, tmp_path / position, 'test', jax.devices()[:1])
    losses[position] = [line['loss'] for line in tiny.metrics(tmp_path / position)[0]]
  assert np.isfinite(losses['alibi']).all() and losses['alibi'] != losses['none']
  with pytest.raises(ConfigError, match="model.position='alibi', which would have to be 'rope'"):
    runs.check_export(changed(c, {'model.position': 'alibi'}), tmp_path / 'out')
  with jax.set_mesh(sharding.make_mesh(dict.fromkeys(sharding.AXES, 1), jax.devices()[:1])):
    bias = attention.bias_for('xla', Alibi(tiny.MODEL, False, None)(8, 8), Cut(8, 1, False), 8)
  for t in range(8):
    np.testing.assert_allclose(bias[0, t, :t + 1], -0.5 * np.arange(t, -1, -1))
