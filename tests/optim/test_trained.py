"""Which parameters are trained, and how fast: patterns, optimizers, whole runs."""
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings, strategies as st

import t5like
from t5like import config as config_lib
from t5like.config import base, trainable
from t5like.decoding import trained_model
from t5like.errors import ConfigError
from t5like.optim import from_config
from t5like.storage.checkpoint import Checkpoints
from t5like.training import loop, preconditions
from tests import tables, tiny

pytestmark = pytest.mark.usefixtures('compile_once')

SHAPES = {'embed/w': (64, 8), 'head/out/w': (8, 64), 'stack/blocks/attention/q/w': (6, 8, 2, 4),
          'stack/blocks/attention_norm/scale': (6, 8), 'stack/blocks/mlp/up/w': (6, 8, 16), 'stack/norm/scale': (8,)}
ADAPTED = {**SHAPES, 'stack/blocks/attention/q/lora_a': (6, 8, 2), 'stack/blocks/attention/q/lora_b': (6, 2, 2, 4)}


def rates(freeze=(), multipliers=(), shapes=SHAPES):
  spec = base().optimizer
  spec.update(freeze=freeze, multipliers=multipliers)
  parameters = {path: tables.of(path, shape) for path, shape in shapes.items()}
  return {path: rate for path, rate in trainable.rates(spec, parameters).items() if set(rate) != {1}}


def test_patterns():
  blocks = [path for path in SHAPES if 'blocks' in path]
  layers = lambda *values: {path: list(values) for path in blocks}
  assert rates() == {}
  assert rates(('embed',)) == rates(('embed/w',)) == rates(('emb*',)) == {'embed/w': [0]}
  assert rates(('stack/blocks/*[:4]',)) == rates(('stack/blocks[:4]',)) == layers(0, 0, 0, 0, 1, 1)
  assert rates(('stack[-1]',)) == rates(('*[5]',)) == layers(1, 1, 1, 1, 1, 0)  # in no layer: not meant
  assert rates(('stack/blocks[::2]',)) == layers(0, 1, 0, 1, 0, 1)
  assert rates(('stack/blocks[1:3]/mlp',)) == {'stack/blocks/mlp/up/w': [1, 0, 0, 1, 1, 1]}
  assert rates(('*', '!head')) == {path: [0] * (6 if path in blocks else 1) for path in SHAPES if path != 'head/out/w'}
  assert rates(('*norm*',)) == {'stack/norm/scale': [0], 'stack/blocks/attention_norm/scale': [0] * 6}
  assert rates((), ('stack=0.5', 'stack/norm=1', 'stack/blocks[-2:]=2', 'head=1e-1')) == {
      **layers(0.5, 0.5, 0.5, 0.5, 2, 2), 'head/out/w': [pytest.approx(0.1)]}
  assert rates(('embed',), ('embed=3',)) == {'embed/w': [0]}


def test_layers_keep_their_numbers_where_the_first_does_not_have_a_parameter():
  path = 'stack/blocks/attention_norm/scale'
  later = dataclasses.replace(tables.of(path, (5, 8)), owners=(False, True, True, True, True, True))
  parameters = {**{path: tables.of(path, shape) for path, shape in SHAPES.items()}, path: later}
  spec = base().optimizer
  for freeze, of_norm, of_mlp in (
      ('stack[0]', [1] * 5, [0, 1, 1, 1, 1, 1]), ('stack[:2]', [0, 1, 1, 1, 1], [0, 0, 1, 1, 1, 1]),
      ('stack[-1]', [1, 1, 1, 1, 0], [1, 1, 1, 1, 1, 0])):
    spec.freeze = (freeze,)
    trained = trainable.rates(spec, parameters)
    assert trained[path] == of_norm and trained['stack/blocks/mlp/up/w'] == of_mlp
  spec.freeze = (f'{path}[0]',)
  with pytest.raises(ConfigError, match='has 6 layers, counted from 0, and none of them'):
    trainable.rates(spec, parameters)


def test_with_adapters_they_alone_are_trained_unless_more_is_asked_for():
  frozen = rates(shapes=ADAPTED)
  assert set(frozen) == set(SHAPES) and not any(map(any, frozen.values()))
  assert set(rates(('!head', '!*norm*'), shapes=ADAPTED)) == {
      'embed/w', 'stack/blocks/attention/q/w', 'stack/blocks/mlp/up/w'}
  assert rates((), ('*lora_b=16',), ADAPTED)['stack/blocks/attention/q/lora_b'] == [16] * 6


@pytest.mark.parametrize('freeze, multipliers, words', [
    (('stack/blocks/atention',), (), ["'stack/blocks/atention'", 'stack/blocks/attention', '--print_config']),
    (('mlp',), (), ['nearest is stack/blocks/mlp']),
    (('decoder/blocks/mlp[:4]',), (), ['stack/blocks/mlp']),
    (('stack/blocks[6:]',), (), ['6 layers, counted from 0']),
    (('stack/blocks[6]',), (), ['6 layers']),
    (('stack/norm[0]',), (), ['stack/norm is in no stack of layers']),
    (('*',), (), ['nothing to be trained', "('*', '!head')"]),
    ((), ('zebra=2',), ["multipliers has 'zebra=2'", 'matches no parameter']),
])
def test_patterns_that_match_nothing_are_told_with_the_nearest(freeze, multipliers, words):
  with pytest.raises(ConfigError) as e:
    rates(freeze, multipliers)
  assert all(word in str(e.value) for word in words), e.value


@pytest.mark.parametrize('key, value, words', [
    ('optimizer.freeze', "('stack/blocks[:4',)", ["'stack/blocks[:4'", "'stack/blocks[:4]'"]),
    ('optimizer.freeze', "('a[1]b[2]',)", ['at most once']),
    ('optimizer.freeze', "('a[]',)", ['stack/blocks[-1]/mlp']),
    ('optimizer.freeze', "('!',)", ['write a path']),
    ('optimizer.freeze', '3', ["freeze has '3'"]),
    ('optimizer.multipliers', "('embed',)", ["'embed=0.1'"]),
    ('optimizer.multipliers', "('embed=0',)", ['belongs into optimizer.freeze']),
    ('optimizer.multipliers', "('embed=nan',)", ['above 0']),
    ('model.lora_projections', "('query',)", ["'query'", 'q, k, v, o, up, gate or down']),
    ('model.lora_rank', '-1', ['at least 0']),
    ('model.lora_alpha', '0', ['above 0']),
])
def test_mistakes_are_told_by_the_config_alone(key, value, words):
  with pytest.raises(ConfigError) as e:
    config_lib.load('configs/decoder_tiny.py', [f'{key}={value}', *(
        ['model.lora_rank=4'] if 'projections' in key else [])])
    trained_ = config_lib.load('configs/decoder_tiny.py', [f'{key}={value}'])
    preconditions.check(trained_)
  assert all(word in str(e.value) for word in words), e.value


def test_gates_and_ranks():
  load_ = lambda *more: config_lib.load('configs/decoder_tiny.py', ['model.lora_rank=2', *more])
  load_("model.lora_projections=('gate',)")
  with pytest.raises(ConfigError, match='relu'):
    load_("model.lora_projections=('gate',)", 'model.activation=relu')
  with pytest.raises(ConfigError, match='lora_rank=2: needs'):
    load_('model.lora_projections=()')


# --- Optimizers -----------------------------------------------------------------------------------


PATHS = dict(embed=dict(w=(130, 140)), stack=dict(blocks=dict(up=dict(w=(3, 130, 140)), norm=dict(scale=(3, 130)))),
             head=dict(out=dict(w=(140, 130))))
OPTIMIZERS = {'adamw': {}, 'adafactor': dict(extra=dict(weight_decay=0.1)), 'lion': {}, 'muon': {}, 'adamw_rms': {},
              'bert_adamw': {}, 'sgd': dict(extra=dict(momentum=0.9)), 'lamb': {}, 'adagrad': {}}


def tree(seed):
  rng = np.random.default_rng(seed)
  return jax.tree.map(lambda s: jnp.asarray(rng.normal(size=s), jnp.float32), PATHS,
                      is_leaf=lambda x: isinstance(x, tuple))


@pytest.mark.parametrize('name', OPTIMIZERS)
def test_updates_are_the_optimizers_times_the_rate_and_frozen_arrays_have_no_state(name):
  spec = base().optimizer
  spec.update(name=name, weight_decay=0.1, freeze=('embed', 'stack/blocks[0]'),
              multipliers=('stack/blocks[1]=0.5', 'head=3'), **OPTIMIZERS[name])
  params = tree(0)
  plain = from_config.build(spec, 0.1, tables.declared(params))
  tx = from_config.at_rates(plain, from_config.rates(spec, tables.declared(params)))
  states = [plain.init(params), tx.init(params)]
  for seed in (1, 2):
    (a, states[0]), (b, states[1]) = (t.update(tree(seed), s, params) for t, s in zip((plain, tx), states))
    assert not b['embed']['w'].any()
    np.testing.assert_allclose(b['head']['out']['w'], 3 * a['head']['out']['w'], rtol=1e-5)
    for part in ('up', 'norm'):
      (x,), (y,) = (jax.tree.leaves(u['stack']['blocks'][part]) for u in (a, b))
      assert x.any() and not y[0].any()
      np.testing.assert_allclose(y[1:], x[1:] * np.array([0.5, 1]).reshape(2, *[1] * (x.ndim - 1)), rtol=1e-5)
  kept = [from_config.path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(states[1])]
  assert not any('embed' in path for path in kept)
  if name != 'adafactor':  # whose state is smaller than what it is of
    less = np.subtract(*[sum(x.size for x in jax.tree.leaves(s)) for s in states])
    assert less in (params['embed']['w'].size, 2 * params['embed']['w'].size)  # one or two moments


def test_without_patterns_nothing_is_different():
  spec = base().optimizer
  tx = from_config.build(spec, 0.1)
  plain = from_config.rates(spec, tables.declared(tree(0)))
  assert from_config.at_rates(tx, plain) is tx and from_config.without_frozen(len, plain) is len


@settings(deadline=None, max_examples=25)
@given(st.lists(st.sampled_from([0.0, 0.5, 1.0]), min_size=3, max_size=3), st.booleans())
def test_gradients_of_what_is_frozen_are_zeros_and_of_the_rest_unchanged(layers, embed):
  rates_ = {'embed/w': np.float32([embed]), 'stack/blocks/up/w': np.float32(layers),
            'stack/blocks/norm/scale': np.float32([1, 1, 1]), 'head/out/w': np.float32([1])}
  sums = lambda params, x: sum(jnp.sum(jnp.square(p) * x) for p in jax.tree.leaves(params))
  plain, held = (jax.grad(f)(tree(3), 0.7) for f in (sums, from_config.without_frozen(sums, rates_)))
  for path, g in jax.tree_util.tree_leaves_with_path(plain):
    rate = rates_[from_config.path_name(path)]
    want = g * (rate > 0).reshape(-1, *[1] * (g.ndim - 1))
    np.testing.assert_array_equal(dict(jax.tree_util.tree_leaves_with_path(held))[path], want)


def test_global_optimizers_see_what_is_trained_only():
  """The norm by which gradients are clipped is that of what is trained."""
  params, spec = tree(0), base().optimizer
  spec.freeze = ('embed', 'head', 'stack/blocks[:2]')
  found = from_config.rates(spec, tables.declared(params))
  sums = from_config.without_frozen(lambda p: sum(map(jnp.sum, jax.tree.leaves(p))), found)
  assert optax.global_norm(jax.grad(sums)(params)) == pytest.approx((130 * 140 + 130) ** 0.5)


# --- Runs -----------------------------------------------------------------------------------------


def params_of(workdir, step):
  return jax.tree.map(np.asarray, trained_model.load(workdir, step).params)


@pytest.mark.parametrize('mesh', [pytest.param(dict(fsdp=1), marks=pytest.mark.slow), dict(fsdp=2, tensor=2)], ids=str)
def test_frozen_parameters_are_the_same_bits_after_training_sharded_or_not(mesh, tmp_path):
  frozen = dict(freeze=('embed', 'stack/blocks[0]', '*norm*'), multipliers=('head=0.1',))
  for name, optimizer in (('adamw', {}), ('muon', {})):
    c = tiny.config(tmp_path, mesh=mesh, optimizer=dict(name=name, **frozen, **optimizer),
                    checkpoint=dict(every=3), evaluate=dict(every=0))
    devices = jax.devices()[:4 if mesh['fsdp'] == 2 else 1]
    loop.train(c, tmp_path / name, 'frozen', devices)
    a, b = params_of(tmp_path / name, 3), params_of(tmp_path / name, 6)
    for path, x in jax.tree_util.tree_leaves_with_path(a):
      y, at = dict(jax.tree_util.tree_leaves_with_path(b))[path], from_config.path_name(path)
      if at.startswith('embed') or 'norm' in at:
        np.testing.assert_array_equal(x.view(np.int32), y.view(np.int32), at)
      elif 'blocks' in at:
        np.testing.assert_array_equal(x[0].view(np.int32), y[0].view(np.int32), at)
        assert (x[1] != y[1]).any(), at
      else:
        assert (x != y).any(), at
    again = tiny.config(tmp_path, steps=8, mesh=mesh, optimizer=dict(name=name, **frozen), evaluate=dict(every=0))
    assert loop.train(again, tmp_path / name, 'frozen', devices)['step'] == 8


def test_resuming_goes_on_bit_for_bit(tmp_path):
  how = dict(optimizer=dict(freeze=('embed',), multipliers=('stack/blocks[1]=0.3',)), schedule=dict(name='constant'))
  loop.train(tiny.config(tmp_path, steps=6, **how), tmp_path / 'a', 'a', jax.devices()[:1])
  for steps in (3, 6):
    loop.train(tiny.config(tmp_path, steps=steps, **how), tmp_path / 'b', 'b', jax.devices()[:1])
  jax.tree.map(np.testing.assert_array_equal, params_of(tmp_path / 'a', 6), params_of(tmp_path / 'b', 6))


def test_a_run_says_what_is_wrong_before_it_prepares_data(tmp_path):
  c = tiny.config(tmp_path, optimizer=dict(freeze=('decoder/blocks',)))
  with pytest.raises(ConfigError, match='nearest is stack/blocks'):
    t5like.train(c, tmp_path / 'run')
  assert not (tmp_path / 'prepared').exists()


def test_what_is_frozen_has_no_place_in_checkpoints_of_the_optimizer(tmp_path):
  c = tiny.config(tmp_path, steps=2, optimizer=dict(freeze=('embed', 'head')))
  loop.train(c, tmp_path / 'run', 'x', jax.devices()[:1])
  with Checkpoints(tmp_path / 'run') as checkpoints:
    names = checkpoints.meta(2)['checksums']
  assert 'params/embed/w' in names
  assert not [n for n in names if n.startswith('opt_state') and ('embed' in n or 'head' in n)]
