"""Schedules at their corners, and which parameters decay."""
import jax
import numpy as np
import optax
import pytest
from hypothesis import given, settings, strategies as st

from t5like import sharding
from t5like.config import base, rules
from t5like.errors import ConfigError
from t5like.model import transformer
from t5like.optim import from_config


def values(at, total=1000, rate=1.0, **changes):
  spec = base().schedule
  spec.update(changes)
  f = from_config.schedule(spec, rate, total)
  return [round(float(f(step)), 6) for step in at]


@pytest.mark.parametrize('changes, at, expected', [
    (dict(name='constant', warmup_steps=10), (0, 4, 9, 10, 999), (0.1, 0.5, 1, 1, 1)),
    (dict(name='cosine', warmup_steps=100, final_scale=0.1), (99, 100, 550, 1000, 2000), (1, 1, 0.55, 0.1, 0.1)),
    (dict(name='linear', final_scale=0.0), (0, 250, 1000), (1, 0.75, 0)),
    (dict(name='wsd', final_scale=0.0, decay_fraction=0.2), (0, 799, 800, 900, 1000), (1, 1, 1, 0.5, 0)),
    (dict(name='rsqrt', timescale=10_000), (0, 10_000, 40_000), (1, 1, 0.5)),
    (dict(name='rsqrt', timescale=1000, warmup_steps=1000), (499, 999, 4000), (0.5, 1, 0.5)),
    (dict(name='rsqrt_decay', timescale=250, final_scale=0.0, decay_fraction=0.1), (0, 640, 900, 950, 999, 1000, 1001),
     (1, 0.625, 0.527046, 0.5 * 0.512989, 0.01 * 0.50025, 0, 0)),
    (dict(name='rsqrt_decay', timescale=1000, warmup_steps=10, final_scale=0.2, decay_fraction=0.5),
     (4, 500, 750, 1000), (0.5, 1, 0.6, 0.2))], ids=str)
def test_golden(changes, at, expected):
  np.testing.assert_allclose(values(at, **changes), expected, atol=2e-6)


def test_t5s_schedule():
  """1 / sqrt(max(step, 10,000)), specs 1i."""
  got = values((0, 5000, 10_000, 25_000), rate=0.01, name='rsqrt', timescale=10_000)
  np.testing.assert_allclose(got, [0.01, 0.01, 0.01, 25_000 ** -0.5], atol=1e-6)


def test_the_glu_papers_schedule():
  """0.01 for 10,000 steps, then 1 / sqrt(step), and over the last tenth of 65,536 steps down to 0."""
  at = (0, 10_000, 40_000, 58_982, 62_259, 65_535)
  got = values(at, total=65_536, rate=0.01, name='rsqrt_decay', timescale=10_000, decay_fraction=0.1, final_scale=0.0)
  ramp = np.minimum(1, (65_536 - np.array(at)) / 6553.6)
  np.testing.assert_allclose(got, ramp / np.sqrt(np.maximum(at, 10_000)), atol=1e-6)


@settings(deadline=None, max_examples=40)
@given(st.sampled_from(['cosine', 'linear', 'wsd', 'rsqrt', 'rsqrt_decay', 'constant']), st.integers(0, 50),
       st.integers(70, 300), st.floats(0, 1))  # decays, of a fifth of the run, begin after the warm-up
def test_rises_then_falls_and_stays_in_bounds(name, warmup, total, final):
  got = values(range(total + 5), total=total, name=name, warmup_steps=warmup, final_scale=final, timescale=70)
  assert all(0 <= v <= 1.000001 for v in got)
  assert all(a <= b for a, b in zip(got[:warmup], got[1:warmup]))
  assert all(a >= b - 1e-6 for a, b in zip(got[warmup:], got[warmup + 1:]))


def decayed(**changes):
  """Names of the parameters that decay and of those that do not; those of blocks without where they are."""
  c = base()
  c.model.update(vocab_size=64, d_model=16, num_layers=2, num_heads=2, d_ff=32, max_positions=8, **changes)
  mesh = sharding.make_mesh(dict.fromkeys(sharding.AXES, 1), jax.devices()[:1])
  with jax.set_mesh(mesh):
    model = transformer.build(transformer.ModelConfig.of(rules.resolve(c).model))
    params = jax.eval_shape(model.init, jax.random.key(0))
  mask = from_config.decay_mask(c.optimizer.decay_mask)(params)
  names = {True: set(), False: set()}
  for path, value in jax.tree_util.tree_leaves_with_path(mask):
    names[value].add(from_config.path_name(path).rpartition('blocks/')[2])
  return names


ATTENTION = {f'attention/{n}/w' for n in 'qkvo'}
MLP = {'mlp/up/w', 'mlp/down/w'}


def test_norms_and_biases_do_not_decay():
  llama = decayed()
  assert llama[True] == ATTENTION | MLP | {'mlp/gate/w', 'embed/w', 'head/out/w'}
  assert llama[False] == {'attention_norm/scale', 'mlp_norm/scale', 'stack/norm/scale'}
  t5 = decayed(name='encoder_decoder', position='relative', activation='relu', tie_embeddings=True)
  relative = {f'{stack}/relative/w' for stack in ('encoder', 'decoder')}
  assert t5[True] == ATTENTION | MLP | {n.replace('attention', 'cross') for n in ATTENTION} | {'embed/w'} | relative
  assert all(n.endswith('/scale') for n in t5[False])
  bert = decayed(name='encoder', block='post_norm', norm='layernorm', use_bias=True, embed_norm=True, num_types=2,
                 position='learned', activation='gelu', tie_embeddings=True, head='mlm')
  assert bert[True] == ATTENTION | MLP | {'embed/w', 'positions/w', 'types/w', 'head/transform/w'}
  assert all(n.endswith(('/b', '/scale')) for n in bert[False])
  assert {'mlp/up/b', 'attention/q/b', 'attention_norm/b', 'head/b', 'embed_norm/scale'} <= bert[False]


def test_adamw_is_optaxs_with_our_settings():
  spec = base().optimizer
  spec.update(b1=0.8, b2=0.9, eps=1e-4, weight_decay=0.3)
  params = dict(w=np.ones(3, np.float32), scale=np.ones(3, np.float32))
  grads = dict(w=np.arange(3, dtype=np.float32), scale=np.arange(3, dtype=np.float32))
  theirs = optax.adamw(0.1, 0.8, 0.9, 1e-4, weight_decay=0.3, mask=dict(w=True, scale=False))
  ours = from_config.build(spec, 0.1)
  a, b = (tx.update(grads, tx.init(params), params)[0] for tx in (ours, theirs))
  jax.tree.map(np.testing.assert_array_equal, a, b)
  assert not np.allclose(a['w'], a['scale'])


@pytest.mark.parametrize('changes, words', [
    (dict(name='adamx'), ['adamx', "Did you mean 'adam", 'bert_adamw', 'adabelief']),
    (dict(name='adafactor', extra=dict(weight_decay_rate=0.1)), ['extra.weight_decay_rate', "'weight_decay'"]),
    (dict(name='sgd', extra=dict(momentun=0.9)), ['optimizer.extra.momentun', "'momentum'"])], ids=str)
def test_mistakes(changes, words):
  spec = base().optimizer
  spec.update(changes)
  with pytest.raises(ConfigError) as e:
    from_config.build(spec, 0.1)
  assert all(w in str(e.value) for w in words)
