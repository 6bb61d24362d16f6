"""Every optimizer that a config may name: its arguments, that it trains, and that a layer of a stack is one alone."""
import inspect
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from t5like import config as config_lib, sharding
from t5like.config import base, optimizer_rules
from t5like.config.optimizer_rules import LAYER_BY_LAYER, LAYOUTS_BY_XLA, OPTIMIZERS
from t5like.errors import ConfigError
from t5like.optim import from_config, optimizers
from tests import tables
from tests.config.test_config import TINY, message
from tests.conftest import ROOT

L = 3
EXTRA = dict(noisy_sgd=dict(seed=0), adafactor=dict(min_dim_size_to_factor=4), sgd=dict(momentum=0.9))
MODULES = (optax.contrib, optax, optimizers)


def makers():
  """{name: function} of all that takes a learning rate; where two modules have a name, ours."""
  return {name: f for module in MODULES for name, f in vars(module).items()
          if inspect.isfunction(f) and 'learning_rate' in inspect.signature(f).parameters}


def tree(seed, scale=1.0):
  """A few parameters, of two stacks: layers of very different sizes, so that what mixes them shows."""
  rng = np.random.default_rng(seed)

  def normal(*shape):
    return scale * rng.normal(size=shape).astype(np.float32)

  def layers(count, *shape):
    sizes = 10.0 ** -np.arange(count, dtype=np.float32)
    return normal(count, *shape) * sizes.reshape(-1, *[1] * len(shape))
  decoder = dict(q=dict(w=layers(L, 8, 2, 4)), norm=dict(scale=layers(L, 8)))
  return dict(embed=dict(w=normal(16, 8)), decoder=dict(blocks=decoder),
              encoder=dict(blocks=dict(q=dict(w=layers(2, 8, 2, 4)))))


def unstacked(params):
  """The same parameters, each layer under a name of its own."""
  out = dict(params)
  for stack in ('encoder', 'decoder'):
    layers = params[stack]['blocks']
    count = len(jax.tree.leaves(layers)[0])
    out[stack] = {f'layer_{i}': jax.tree.map(lambda x: x[i], layers) for i in range(count)}
  return out


def build(name, params):
  spec = base().optimizer
  spec.update(name=name, learning_rate=0.03, extra=EXTRA.get(name, {}))
  return from_config.build(spec, lambda step: 0.03 / (1 + step), tables.declared(params))


def trained(tx, params, form, steps=3):
  """Parameters after some steps, gradients being those of trees in the given form."""
  update = jax.jit(lambda g, s, p, n: tx.update(g, s, p, step=n))
  params = form(params)
  state = tx.init(params)
  for n in range(steps):
    updates, state = update(form(tree(100 + n)), state, params, n)
    params = optax.apply_updates(params, updates)
  return params


def as_it_is(params):
  return params


@pytest.mark.parametrize('name', OPTIMIZERS)
def test_trains_and_a_layer_in_a_stack_is_an_array_of_its_own(name):
  params = tree(0, scale=0.1)
  stacked = unstacked(trained(build(name, params), params, as_it_is))
  before = unstacked(params)
  alone = trained(build(name, before), params, unstacked)
  for path, _ in jax.tree_util.tree_leaves_with_path(alone):
    def at(tree):
      for key in path:
        tree = tree[key.key]
      return np.asarray(tree)
    moved = np.abs(at(alone) - at(before)).max()
    assert np.isfinite(at(stacked)).all() and moved > 0, from_config.path_name(path)
    if name != 'noisy_sgd':  # whose noise is drawn array by array
      tolerance = (1e-4 if name == 'muon' else 1e-5) * moved
      np.testing.assert_allclose(at(stacked), at(alone), rtol=1e-6, atol=tolerance, err_msg=from_config.path_name(path))


def layout(path, x):
  dims = {'embed/w': 'VD', 'q/w': 'LDNH', 'norm/scale': 'LD'}
  return sharding.at_rest(next(d for end, d in dims.items() if from_config.path_name(path).endswith(end)))


SPECIAL = {'adafactor', 'adamw', 'dog', 'dowg', 'muon', 'schedule_free_adamw', *LAYER_BY_LAYER, *LAYOUTS_BY_XLA}


@pytest.mark.parametrize('name', [
    name if name in SPECIAL else pytest.param(name, marks=pytest.mark.slow) for name in OPTIMIZERS])
def test_eight_devices_do_what_one_does(name):
  params = tree(0, scale=0.1)
  tx = build(name, params)
  expected = trained(tx, params, as_it_is)
  with jax.set_mesh(sharding.make_mesh(dict(data=2, fsdp=2, tensor=2))):
    def put(params):
      return jax.tree_util.tree_map_with_path(lambda path, x: jax.device_put(x, layout(path, x)), params)
    jax.eval_shape(tx.init, put(params))
    got = trained(tx, params, put)
  for (path, x), y in zip(jax.tree_util.tree_leaves_with_path(got), jax.tree.leaves(expected)):
    assert x.sharding.spec == layout(path, x), from_config.path_name(path)
    np.testing.assert_allclose(x, y, rtol=2e-5, atol=3e-5, err_msg=from_config.path_name(path))


def test_what_lamb_does_to_layers_of_different_sizes():
  """You et al. 2020 (arXiv 1904.00962), algorithm 2: a layer moves by the learning rate times its own norm."""
  spec = base().optimizer
  spec.update(name='lamb', weight_decay=0.0)
  params = tree(0)
  tx = from_config.build(spec, 0.01, tables.declared(params))
  updates, _ = jax.jit(tx.update)(tree(1), tx.init(params), params)
  for stack, count in (('decoder', L), ('encoder', 2)):
    for i in range(count):
      size = np.linalg.norm(params[stack]['blocks']['q']['w'][i])
      np.testing.assert_allclose(np.linalg.norm(updates[stack]['blocks']['q']['w'][i]), 0.01 * size, rtol=1e-4)


# --- The table ----------------------------------------------------------------------------------


def test_the_table_names_all_that_there_is_or_says_why_not():
  there = {name for name in makers() if not name.startswith(('_', 'scale_by_'))}
  assert there == set(OPTIMIZERS) | set(optimizer_rules.LEFT_OUT)
  assert not set(OPTIMIZERS) & set(optimizer_rules.LEFT_OUT)
  assert {*LAYER_BY_LAYER, *LAYOUTS_BY_XLA, *optimizer_rules.ONE_OF, *optimizer_rules.UNBOUNDED} <= set(OPTIMIZERS)


@pytest.mark.parametrize('name', OPTIMIZERS)
def test_arguments_are_those_of_the_function(name):
  """Names there, and defaults that our own rules accept."""
  takes = inspect.signature(makers()[name]).parameters
  for key in OPTIMIZERS[name]:
    assert key in takes, key
    default = takes[key].default
    spec = base().optimizer
    spec.update(name=name, extra={**EXTRA.get(name, {}), key: default})
    if default is not None:
      assert not list(optimizer_rules.problems(spec)), key
  required = {key for key, p in takes.items() if p.default is inspect.Parameter.empty} - {'learning_rate'}
  assert required <= set(optimizer_rules.ONE_OF.get(name, ()))


def load(*overrides):
  return config_lib.load(TINY, overrides)


@pytest.mark.parametrize('overrides, words', [
    (['optimizer.name=adamx'], ['adamx', "Did you mean 'adam", 'bert_adamw', 'adabelief']),
    (['optimizer.name=AdamW'], ["Did you mean 'adamw'"]),
    (['optimizer.name=dpsgd'], ['each example']), (['optimizer.name=lbfgs'], ['cannot be used here']),
    (['optimizer.name=deprecated_dpsgd'], ['there is no such optimizer']),
    (['optimizer.name=scale_by_madgrad'], ["Did you mean 'madgrad'"]),
    (['optimizer.name=scale_by_adam'], ["Did you mean 'adam'"]),
    (['optimizer.extra.momentun=0.9', 'optimizer.name=sgd'], ['optimizer.extra.momentun=0.9', "'momentum'"]),
    (['optimizer.extra.b3=0.9'], ['adamw has no such argument', 'b1']),
    (['optimizer.name=sgd', 'optimizer.extra.momentum=high'], ["momentum='high'", 'at least 0 and below 1', 'None']),
    (['optimizer.name=sgd', 'optimizer.extra.momentum=1.5'], ['momentum=1.5', 'below 1']),
    (['optimizer.extra.nesterov=3'], ['nesterov=3', 'True or False']),
    (['optimizer.extra.mu_dtype=float7'], ["mu_dtype='float7'", "'bfloat16' or 'float32'"]),
    (['optimizer.name=muon', 'optimizer.extra.ns_steps=0'], ['ns_steps=0', 'whole number, at least 1']),
    (['optimizer.name=prodigy', 'optimizer.extra.betas=0.9'], ['betas=0.9', '(0.9, 0.999)']),
    (['optimizer.name=noisy_sgd'], ['needs optimizer.extra.seed']),
    (['optimizer.extra.mask=1'], ['no such argument']),
    (['optimizer.extra.learning_rate=1'], ['set optimizer.learning_rate'])],
                         ids=str)
def test_wrong_names_and_arguments_are_refused_by_the_config(overrides, words):
  text = message(config_lib.load, TINY, overrides)
  assert all(word in text for word in words), text
  assert '_deprecated' not in text and "'_" not in text


@pytest.mark.parametrize('name', optimizer_rules.LEFT_OUT)
def test_each_that_is_left_out_says_why(name):
  assert optimizer_rules.LEFT_OUT[name] in message(config_lib.load, TINY, [f'optimizer.name={name}'])


def test_what_an_optimizer_does_not_do_here_is_said():
  assert 'not the average' in ' '.join(config_lib.warnings(load('optimizer.name=schedule_free_adamw')))
  assert not list(config_lib.warnings(load('optimizer.name=lamb')))
  assert set(optimizer_rules.NOTES) <= set(OPTIMIZERS)


def test_configs_are_checked_without_jax():
  code = ("import sys; from t5like import config\n"
          "try:\n  config.load('configs/decoder_tiny.py', ['optimizer.name=adamx'])\n"
          "except Exception as e: print(type(e).__name__, 'jax' in sys.modules or 'optax' in sys.modules)")
  done = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
  assert done.stdout.split() == ['ConfigError', 'False']


def test_extra_arguments_that_are_right_reach_the_optimizer():
  c = load('optimizer.name=muon', 'optimizer.extra.consistent_rms=0.2', 'optimizer.extra.nesterov=false')
  assert c.optimizer.extra.to_dict() == dict(consistent_rms=0.2, nesterov=False)
  spec = base().optimizer
  spec.update(name='adamw', extra=dict(mu_dtype='bfloat16', b1=0.5))
  tx, params = from_config.build(spec, 0.1), dict(w=jnp.ones(4))
  _, state = tx.update(dict(w=jnp.ones(4)), tx.init(params), params)
  assert state[0].mu['w'].dtype == jnp.bfloat16 and state[0].mu['w'][0] == 0.5


def test_the_learning_rate_is_that_of_the_step_and_not_of_the_optimizers_count():
  spec = base().optimizer
  spec.update(name='sgd')
  tx, params = from_config.build(spec, lambda step: 10.0 * step), dict(w=jnp.ones(1))
  state = tx.init(params)
  for step in (7, 3):
    updates, state = tx.update(params, state, params, step=jnp.int32(step))
    assert updates['w'] == -10.0 * step


def test_build_refuses_what_configs_refuse():
  spec = base().optimizer
  spec.update(name='adamx')
  with pytest.raises(ConfigError, match='no such optimizer'):
    from_config.build(spec, 0.1)
