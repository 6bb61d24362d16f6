"""Our optimizers against NumPy, against optax, and layers on one axis against layers one by one."""
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings, strategies as st
from jax.sharding import PartitionSpec as P

from t5like import parameters, sharding
from t5like.config import base, optimizer_rules
from t5like.errors import ConfigError
from t5like.optim import from_config
from tests import tables

L = 3
DIMS = dict(q='LDNH', o='LNHD', up='LDF', attention_norm='LD', q_norm='LNH')


def leaves(tree):
  return {from_config.path_name(path): x for path, x in jax.tree_util.tree_leaves_with_path(tree)}


def normal(rng, *shape):
  return rng.normal(size=shape).astype(np.float32)


def tree(seed, D=16, N=4, H=4, F=24, V=32, scale=1.0):
  """A decoder's worth of parameters, or of gradients: numpy fp32."""
  rng, sizes = np.random.default_rng(seed), dict(L=L, D=D, N=N, H=H, F=F)
  of = lambda name: scale * normal(rng, *(sizes[d] for d in DIMS[name]))
  return dict(
      embed=dict(w=scale * normal(rng, V, D)), head=dict(out=dict(w=scale * normal(rng, D, V))),
      stack=dict(norm=dict(scale=scale * normal(rng, D)), relative=dict(w=scale * normal(rng, N, 32)), blocks=dict(
          attention=dict(q=dict(w=of('q'), b=of('q_norm')), o=dict(w=of('o'))),
          attention_norm=dict(scale=of('attention_norm')), mlp=dict(up=dict(w=of('up'))))))


def run(tx, params, steps=3, seed=100, grads=None):
  """Parameters after some steps with gradients that are the same for every caller."""
  update = jax.jit(tx.update)
  state = tx.init(params)
  for i in range(steps):
    g = grads(i) if grads else tree(seed + i)
    updates, state = update(g, state, params)
    params = optax.apply_updates(params, updates)
  return params


def build(name, rate=0.03, **changes):
  spec = base().optimizer
  spec.update(name=name, **changes)
  return tables.for_trees(lambda parameters: from_config.build(spec, rate, parameters))


@functools.cache
def compiled(name, **changes):
  """Likewise, compiled once for all examples of a shape."""
  tx = build(name, **changes)
  return optax.GradientTransformation(tx.init, jax.jit(tx.update))


# --- Layers, shapes, devices --------------------------------------------------------------------

SMALL = dict(extra=dict(min_dim_size_to_factor=8))
ALL = dict(
    adafactor=dict(extra=dict(min_dim_size_to_factor=8, weight_decay=0.1)), adamw_rms={}, bert_adamw={}, lion={},
    muon=dict(extra=dict(consistent_rms=0.2, adam_scale=0.5)))


def alone(params, i):
  """The parameters of layer i under names without `blocks`, the others as they are."""
  stack = {**params['stack'], 'layer': jax.tree.map(lambda x: x[i], params['stack']['blocks'])}
  del stack['blocks']
  return {**params, 'stack': stack}


@pytest.mark.parametrize('name', ALL)
def test_a_layer_in_a_stack_is_a_layer_alone(name):
  # Layers of different sizes: what mixes them shows.
  sized = lambda t: jax.tree_util.tree_map_with_path(
      lambda path, x: x * 10.0 ** -np.arange(L, dtype=np.float32).reshape(-1, *[1] * (x.ndim - 1))
      if 'blocks' in from_config.path_name(path) else x, t)
  tx, params = build(name, **ALL[name]), sized(tree(0, scale=0.1))
  grads = lambda i: sized(tree(100 + i))
  together = run(tx, params, grads=grads)
  for i in range(L):
    by_itself = run(tx, alone(params, i), grads=lambda step: alone(grads(step), i))
    for path, x in leaves(by_itself).items():
      before, after = leaves(alone(params, i))[path], leaves(alone(together, i))[path]
      moved = np.abs(x - before).max()
      assert moved > 0
      np.testing.assert_allclose(after, x, rtol=1e-6, atol=(1e-4 if name == 'muon' else 3e-6) * moved, err_msg=path)


def layout(path):
  keys = path.split('/')
  if 'blocks' in keys:
    return sharding.at_rest(dict(b='LNH', scale='LD', w=DIMS.get(keys[-2]))[keys[-1]])
  outside = {'embed/w': 'VD', 'head/out/w': 'DV', 'stack/norm/scale': 'D', 'stack/relative/w': 'N_'}
  return sharding.at_rest(outside[path])


@pytest.mark.parametrize('name', ALL)
def test_eight_devices_do_what_one_does(name):
  tx = build(name, **ALL[name])
  expected = run(tx, tree(0))
  mesh = sharding.make_mesh(dict(data=2, fsdp=2, tensor=2))
  with jax.set_mesh(mesh):
    put = lambda t: jax.tree_util.tree_map_with_path(
        lambda path, x: jax.device_put(x, layout(from_config.path_name(path))), t)
    params = put(tree(0))
    params_of = leaves(params)
    specs = {path: x.sharding.spec for path, x in params_of.items()}
    state = leaves(jax.eval_shape(tx.init, params))
    slots = {s: p for s in state for p in specs if s.endswith('/' + p)}  # adafactor: see the next test
    assert set(slots.values()) == (set() if name == 'adafactor' else set(specs))
    for slot, path in slots.items():
      assert state[slot].shape == params_of[path].shape and state[slot].sharding.spec == specs[path], slot
    out = run(tx, params, grads=lambda i: put(tree(100 + i)))
  for path, x in leaves(out).items():
    assert x.sharding.spec == specs[path], path
    np.testing.assert_allclose(x, leaves(expected)[path], rtol=2e-5, atol=3e-5, err_msg=path)


def test_state_of_a_factored_matrix_is_two_small_arrays_laid_out_alike():
  mesh = sharding.make_mesh(dict(data=2, fsdp=2, tensor=2))
  tx = build('adafactor', **SMALL)
  with jax.set_mesh(mesh):
    q = jax.device_put(tree(0)['stack']['blocks']['attention']['q']['w'], sharding.at_rest('LDNH'))
    v = leaves(jax.eval_shape(tx.init, dict(blocks=dict(q=dict(w=q)))))
  by_side = {path.rpartition('/')[2]: x for path, x in v.items() if 'blocks' in path}
  assert {k: x.shape for k, x in by_side.items()} == dict(inputs=(L, 16, 1, 1), outputs=(L, 1, 4, 4))
  assert by_side['inputs'].sharding.spec == P(None, sharding.STORED, None, None)
  assert by_side['outputs'].sharding.spec == P(None, None, 'tensor', None)


# --- Experts --------------------------------------------------------------------------------------

E = 2
EXPERTS = {'stack/blocks/experts/w': parameters.Param('LEDF', 'up', 'matrix', 'D', 'F', 'mlp', 'stack', (L, E, 12, 20)),
           'stack/blocks/experts/b': parameters.Param('LEF', 'up', 'bias', '', 'F', 'mlp', 'stack', (L, E, 20))}


def experts(seed):
  """Parameters, or gradients, of experts of very different sizes: what mixes them shows."""
  rng = np.random.default_rng(seed)
  sizes = 10.0 ** -np.arange(L * E, dtype=np.float32).reshape(L, E)
  w, b = (normal(rng, *declared.shape) for declared in EXPERTS.values())
  return dict(stack=dict(blocks=dict(experts=dict(w=sizes[:, :, None, None] * w, b=sizes[:, :, None] * b))))


@pytest.mark.parametrize('name', ['adafactor', 'adamw_rms', 'bert_adamw', 'muon'])
def test_an_expert_is_a_matrix_of_its_own(name):
  spec = base().optimizer
  spec.update(name=name, extra=dict(min_dim_size_to_factor=8) if name == 'adafactor' else {})
  single = {path: parameters.Param(declared.dims[2:], 'up', declared.kind, declared.inputs, declared.outputs)
            for path, declared in EXPERTS.items()}
  together = leaves(run(from_config.build(spec, 0.03, EXPERTS), experts(0), grads=lambda i: experts(1 + i)))
  for layer, expert in np.ndindex(L, E):
    def own(tree, at=(layer, expert)):
      return jax.tree.map(lambda x: x[at], tree)
    alone = leaves(run(from_config.build(spec, 0.03, single), own(experts(0)), grads=lambda i: own(experts(1 + i))))
    for path, x in alone.items():
      moved = np.abs(x - leaves(own(experts(0)))[path]).max()
      assert moved > 0
      np.testing.assert_allclose(together[path][layer, expert], x, rtol=1e-6,
                                 atol=(1e-4 if name == 'muon' else 3e-6) * moved, err_msg=path)


def test_adafactor_keeps_means_of_each_expert():
  spec = base().optimizer
  spec.update(name='adafactor', extra=dict(min_dim_size_to_factor=8))
  kept = leaves(jax.eval_shape(from_config.build(spec, 0.03, EXPERTS).init, experts(0)))
  by_side = {path.rpartition('experts/')[2]: x.shape for path, x in kept.items() if 'experts' in path}
  assert by_side == {'w/inputs': (L, E, 12, 1), 'w/outputs': (L, E, 1, 20), 'b/full': (L, E, 20)}


def test_muon_makes_each_expert_orthogonal():
  spec = base().optimizer
  spec.update(name='muon', weight_decay=0.0)
  u = leaves(step_of(from_config.build(spec, 1.0, EXPERTS), experts(0), experts(1)))['stack/blocks/experts/w']
  for one in u.reshape(-1, 12, 20) / np.sqrt(20 / 12):
    values = np.linalg.svd(one, compute_uv=False)
    assert (values > 0.2).all() and (values < 1.4).all(), values


@pytest.mark.parametrize('name', optimizer_rules.LAYER_BY_LAYER)
def test_what_takes_one_norm_of_an_array_refuses_experts(name):
  spec = base().optimizer
  spec.update(name=name)
  with pytest.raises(ConfigError, match=f"optimizer.name='{name}' takes one norm of stack/blocks/experts/w"):
    from_config.build(spec, 0.1, EXPERTS).init(experts(0))


@pytest.mark.parametrize('name', ['adafactor', 'adamw_rms', 'muon', *optimizer_rules.LAYER_BY_LAYER])
def test_an_optimizer_that_has_to_know_what_arrays_are_says_so(name):
  spec = base().optimizer
  spec.update(name=name)
  with pytest.raises(ConfigError, match=f'{name} treats each layer.*parameters=model.parameters'):
    from_config.build(spec, 0.1).init(tree(0))


# --- Adafactor ----------------------------------------------------------------------------------


def numpy_adafactor(p, grads, rate, factored):
  """Adafactor of one matrix or vector in fp64, from specs/objectives.md 1i."""
  p = p.astype(np.float64)
  rms = lambda x: np.sqrt((x ** 2).mean())
  v = np.zeros_like(p)
  rows, columns = np.zeros(p.shape[0]), np.zeros(p.shape[-1])
  for t, g in enumerate(grads):
    g = g.astype(np.float64)
    beta, square = 1 - (t + 1) ** -0.8, g ** 2 + 1e-30
    if factored:
      rows = beta * rows + (1 - beta) * square.mean(1)
      columns = beta * columns + (1 - beta) * square.mean(0)
      v = np.outer(rows, columns) / rows.mean()
    else:
      v = beta * v + (1 - beta) * square
    u = g / np.sqrt(v)
    u /= max(1, rms(u) / 1.0)
    p = p - rate * max(rms(p), 1e-3) * u
  return p


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 1000), shape=st.sampled_from([(128, 130), (130, 128), (127, 129), (40,), (1, 1)]),
       log_size=st.integers(-5, 1), steps=st.integers(1, 6), log_grad=st.integers(-8, 3))
def test_adafactor_against_numpy(seed, shape, log_size, steps, log_grad):
  rng = np.random.default_rng(seed)
  p = 10.0 ** log_size * normal(rng, *shape)
  # Sizes that change from step to step, so that clipping happens.
  grads = [(10.0 ** (log_grad + rng.integers(-1, 2)) * normal(rng, *shape)).astype(np.float32) for _ in range(steps)]
  p = p.astype(np.float32)
  expected = numpy_adafactor(p, grads, 0.01, min(shape) >= 128)
  got = run(compiled('adafactor', rate=0.01), dict(w=p), steps, grads=lambda i: dict(w=grads[i]))['w']
  np.testing.assert_allclose(got, expected, rtol=0, atol=1e-6 * np.abs(p).max())


def test_adafactor_is_optaxs_on_lone_matrices():
  """And that of [D, N, H] is optax's of [D, N H], which no two axes of 128 would show."""
  rng = np.random.default_rng(0)
  flat = dict(a=(128, 160), small=(16, 160), v=(70,), q=(128, 128))
  params = {k: 0.05 * normal(rng, *s) for k, s in flat.items()}
  grads = [{k: normal(rng, *s) * 4.0 ** i for k, s in flat.items()} for i in range(5)]
  theirs = run(optax.adafactor(0.01), params, 5, grads=lambda i: grads[i])
  mine = lambda t: {k: dict(w=x.reshape(128, 4, 32) if k == 'q' else x) for k, x in t.items()}
  ours = run(build('adafactor', rate=0.01), mine(params), 5, grads=lambda i: mine(grads[i]))
  for k in flat:
    np.testing.assert_allclose(ours[k]['w'].reshape(flat[k]), theirs[k], rtol=2e-6, atol=2e-7, err_msg=k)


def test_adafactor_decays_only_when_told_to():
  p, zero = dict(w=np.full((4, 4), 2.0, np.float32)), lambda i: dict(w=np.zeros((4, 4), np.float32))
  still = run(build('adafactor', rate=0.5, weight_decay=0.3), p, 1, grads=zero)
  np.testing.assert_array_equal(still['w'], 2)
  decayed = run(build('adafactor', rate=0.5, extra=dict(weight_decay=0.3)), {**p, 'scale': p['w'][0]}, 1,
                grads=lambda i: {**zero(i), 'scale': np.zeros(4, np.float32)})
  np.testing.assert_allclose(decayed['w'], 2 * (1 - 0.5 * 0.3), rtol=1e-6)
  np.testing.assert_array_equal(decayed['scale'], 2)


@pytest.mark.parametrize('extra, expected', [
    # RMS(p) = 2; at the first step u = g / sqrt(g^2 + eps), g = 1; rate 0.1
    ({}, 2 - 0.1 * 2), (dict(multiply_by_parameter_scale=False), 2 - 0.1),
    (dict(clip_threshold=0.5), 2 - 0.1 * 2 * 0.5), (dict(eps=9.0), 2 - 0.1 * 2 / 10 ** 0.5)], ids=str)
def test_adafactors_arguments(extra, expected):
  p, g = np.full(6, 2, np.float32), np.ones(6, np.float32)
  got = run(build('adafactor', rate=0.1, extra=extra), dict(w=p), 1, grads=lambda i: dict(w=g))['w']
  np.testing.assert_allclose(got, expected, rtol=1e-6)


def test_clipping_off_and_decay_rate():
  """A gradient 10 times the first: v = (1 - 2^-r) 1 + 2^-r 100, and without clipping u = 10 / sqrt(v)."""
  one = np.ones(6, np.float32)
  tx = build('adafactor', rate=0.1, extra=dict(clip_threshold=0.0, decay_rate=1.0, multiply_by_parameter_scale=False))
  got = run(tx, dict(w=0 * one), 2, grads=lambda i: dict(w=one * 10 ** i))['w']
  np.testing.assert_allclose(got, -0.1 * (1 + 10 / np.sqrt(50.5)), rtol=1e-6)


# --- Adam's kind --------------------------------------------------------------------------------


def test_bert_adamw_by_hand():
  """m and v after gradients 3 and -1 with b1 0.9, b2 0.99: 0.3, 0.09; then 0.17, 0.0991."""
  tx = build('bert_adamw', rate=0.1, b1=0.9, b2=0.99, eps=0.1, weight_decay=0.5)
  one = np.ones(2, np.float32)
  got = [run(tx, dict(w=one, b=one), steps, grads=lambda i: dict.fromkeys('wb', one * (3, -1)[i])) for steps in (1, 2)]
  b1 = 1 - 0.1 * 0.3 / (0.3 + 0.1)
  b2 = b1 - 0.1 * 0.17 / (0.0991 ** 0.5 + 0.1)
  w1 = 1 - 0.1 * (0.3 / (0.3 + 0.1) + 0.5)
  w2 = w1 - 0.1 * (0.17 / (0.0991 ** 0.5 + 0.1) + 0.5 * w1)
  for params, w, b in zip(got, (w1, w2), (b1, b2)):
    np.testing.assert_allclose(params['w'], w, rtol=1e-6)
    np.testing.assert_allclose(params['b'], b, rtol=1e-6)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000), log_size=st.integers(-5, 2), steps=st.integers(1, 5))
def test_adamw_rms_against_numpy(seed, log_size, steps):
  rng = np.random.default_rng(seed)
  p = (10.0 ** log_size * normal(rng, 6, 7)).astype(np.float32)
  grads = [1e-3 * normal(rng, 6, 7) for _ in range(steps)]
  expected, m, v = p.astype(np.float64), 0, 0
  for t, g in enumerate(grads, 1):
    m, v = 0.9 * m + 0.1 * g, 0.99 * v + 0.01 * g.astype(np.float64) ** 2
    step = np.sqrt(1 - 0.99 ** t) / (1 - 0.9 ** t) * m / (np.sqrt(v) + 1e-4)
    expected = expected - 0.02 * (step * max(1e-3, np.sqrt((expected ** 2).mean())) + 0.3 * expected)
  tx = compiled('adamw_rms', rate=0.02, b1=0.9, b2=0.99, eps=1e-4, weight_decay=0.3)
  got = run(tx, dict(w=p), steps, grads=lambda i: dict(w=grads[i]))['w']
  np.testing.assert_allclose(got, expected, rtol=0, atol=3e-6 * np.abs(expected).max())


# --- Muon ---------------------------------------------------------------------------------------


def step_of(tx, params, grads):
  return jax.jit(tx.update)(grads, tx.init(params), params)[0]


def test_muons_steps_are_near_orthogonal_matrices_per_layer():
  params, grads = tree(0), tree(1)
  updates = leaves(step_of(build('muon', rate=1.0, weight_decay=0.0), params, grads))
  matrices = {'attention/q/w': (16, 16), 'attention/o/w': (16, 16), 'mlp/up/w': (16, 24)}
  for name, shape in matrices.items():
    u = updates[f'stack/blocks/{name}'].reshape(L, *shape) / np.sqrt(max(1, shape[1] / shape[0]))
    g = leaves(grads)[f'stack/blocks/{name}'].reshape(L, *shape)
    for i in range(L):
      left, _, right = np.linalg.svd(g[i])
      rotated = -left.T @ u[i] @ right.T  # of U S V^T, muon keeps U and V and makes S about 1
      values = np.diag(rotated)
      assert (values > 0.2).all() and (values < 1.4).all(), values
      np.testing.assert_allclose(rotated - np.eye(*shape) * values[:, None], 0, atol=2e-3)


def test_muon_leaves_tables_and_vectors_to_adamw():
  params, grads, rate = tree(0), tree(1), 0.1
  changes = dict(rate=rate, b1=0.8, b2=0.9, eps=1e-3, weight_decay=0.4)
  muon = leaves(step_of(build('muon', **changes, extra=dict(adam_scale=0.25)), params, grads))
  adamw = leaves(step_of(build('adamw', **changes), params, grads))
  by_adam = {p for p in muon if np.allclose(muon[p], 0.25 * adamw[p], rtol=1e-5, atol=1e-7)}
  assert by_adam == {'embed/w', 'head/out/w', 'stack/norm/scale', 'stack/relative/w', 'stack/blocks/attention/q/b',
                     'stack/blocks/attention_norm/scale'}


def test_muon_decays_matrices_and_scales_as_asked():
  params, grads = tree(0), tree(1)
  of = lambda **changes: leaves(step_of(build('muon', rate=0.1, **changes), params, grads))
  plain, decayed = of(weight_decay=0.0), of(weight_decay=0.5)
  rms = of(weight_decay=0.0, extra=dict(consistent_rms=0.2))
  for path, x in leaves(params).items():
    decays = path.endswith('/w')
    np.testing.assert_allclose(decayed[path] - plain[path], -0.1 * 0.5 * x * decays, atol=1e-5, err_msg=path)
  up = 'stack/blocks/mlp/up/w'
  np.testing.assert_allclose(rms[up], plain[up] / np.sqrt(24 / 16) * 0.2 * np.sqrt(24), rtol=1e-4, atol=1e-6)
  assert 0.1 < np.sqrt(np.mean(np.square(rms[up]))) / 0.1 < 0.3  # about AdamW's 0.2, times the rate


def test_muon_is_optaxs_on_lone_matrices():
  rng = np.random.default_rng(0)
  params = {k: dict(w=normal(rng, 8, 12)) for k in 'ab'}
  grads = [{k: dict(w=normal(rng, 8, 12)) for k in 'ab'} for _ in range(4)]
  theirs = run(optax.contrib.muon(0.1, weight_decay=0.2), params, 4, grads=lambda i: grads[i])
  ours = run(build('muon', rate=0.1, weight_decay=0.2), params, 4, grads=lambda i: grads[i])
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6), ours, theirs)


@pytest.mark.parametrize('corrects, agrees', [(True, True), (False, False)])
def test_muons_first_steps_are_optaxs_and_not_jordans(corrects, agrees):
  """Five steps by hand, momentum and gradient divided by what their weights add up to, or not (KellerJordan/Muon)."""
  grads = [normal(np.random.default_rng(i), 8, 12) for i in range(5)]
  momentum, moved = np.zeros((8, 12)), np.zeros((8, 12))
  for t, g in enumerate(grads, 1):
    momentum = 0.95 * momentum + 0.05 * g
    of_m, of_g = (1 - 0.95 ** (t + 1), 1 - 0.95 ** t) if corrects else (1, 1)
    x = 0.95 * momentum / of_m + 0.05 * g / of_g
    x /= np.linalg.norm(x)
    for _ in range(5):
      square = x @ x.T
      x = 3.4445 * x - 4.775 * square @ x + 2.0315 * square @ square @ x
    moved -= 0.1 * x * np.sqrt(12 / 8)
  ours = run(build('muon', rate=0.1, weight_decay=0.0), dict(a=dict(w=np.zeros((8, 12), np.float32))), 5,
             grads=lambda i: dict(a=dict(w=grads[i])))['a']['w']
  difference = np.linalg.norm(ours - moved) / np.linalg.norm(moved)
  assert difference < 1e-3 if agrees else 0.02 < difference < 0.2


def test_learning_rates_may_be_schedules():
  tree_of = lambda x: dict(w=np.full((2, 2), x, np.float32))
  rate = lambda step: jnp.where(step == 0, 0.5, 0.0)
  for name in ALL:
    after = [run(build(name, rate=rate), tree_of(1.0), n, grads=lambda i: tree_of(1.0)) for n in (1, 2)]
    assert (after[0]['w'] < 1).all(), name
    np.testing.assert_array_equal(after[0]['w'], after[1]['w'], err_msg=name)
