"""LoRA: nothing at first, then low-rank changes of the chosen matrices, which merge into them."""
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5like import sharding
from t5like.decoding import trained_model
from t5like.errors import ConfigError
from t5like.huggingface import model_folders, runs
from t5like.model import adapters, transformer
from t5like.optim import from_config
from t5like.training import loop
from tests import tiny
from tests.conftest import DEFAULT_EMITTERS

pytestmark = pytest.mark.usefixtures('compile_once')

EVERY = ('q', 'k', 'v', 'o', 'up', 'gate', 'down')
ADAPTED = dict(lora_rank=3, lora_alpha=6.0, lora_projections=EVERY)


def model_of(**changes):
  return transformer.build(dataclasses.replace(tiny.MODEL, **changes))


def mesh(n=1, **axes):
  return jax.set_mesh(sharding.make_mesh({**dict.fromkeys(sharding.AXES, 1), **axes}, jax.devices()[:n]))


def batch(name='decoder'):
  rng = np.random.default_rng(0)
  row = lambda T: dict(inputs=rng.integers(1, 61, (4, T)).astype(np.int32), segments=np.ones((4, T), np.int32),
                       positions=np.tile(np.arange(T, dtype=np.int32), (4, 1)))
  return dict(row(8), encoder=row(16)) if name == 'encoder_decoder' else row(8)


def trained_a_little(params, seed=1):
  """Adapters off the place where they begin."""
  rng = np.random.default_rng(seed)
  return jax.tree_util.tree_map_with_path(
      lambda path, x: x + 0.1 * jnp.asarray(rng.normal(size=x.shape), x.dtype) if 'lora' in path[-1].key else x, params)


def flat(tree):
  return {from_config.path_name(path): np.asarray(x) for path, x in jax.tree_util.tree_leaves_with_path(tree)}


@pytest.mark.parametrize('name', ['decoder', 'encoder', 'encoder_decoder'])
def test_begins_as_the_model_without_and_merges_into_it(name):
  how = dict(name=name, position='relative' if name == 'encoder_decoder' else 'rope')
  with mesh():
    plain, adapted = model_of(**how), model_of(**how, **ADAPTED)
    a, b = (jax.jit(m.init)(jax.random.key(0)) for m in (plain, adapted))
    assert {p for p in flat(b) if 'lora' not in p} == set(flat(a))
    for path, x in flat(a).items():
      np.testing.assert_array_equal(x, flat(b)[path], path)  # the same weights, drawn from the same seed
    logits = []
    for model, params in ((plain, a), (adapted, b)):
      apply = jax.jit(model.apply, compiler_options=DEFAULT_EMITTERS)
      logits.append(apply(params, sharding.place(jax.sharding.get_mesh(), batch(name))))
    np.testing.assert_array_equal(*logits)
    b = trained_a_little(b)
    changed = jax.jit(adapted.apply)(b, batch(name))
    assert np.abs(changed - logits[0]).max() > 0.1
    merged = adapters.merged(b, adapted.parameters, adapted.config)
    assert jax.tree.structure(merged) == jax.tree.structure(a)
    np.testing.assert_allclose(jax.jit(plain.apply)(merged, batch(name)), changed, atol=2e-4)


def test_a_weight_gets_alpha_over_rank_times_a_b():
  """By the formula (Hu et al. 2021, section 4.1), layer by layer in numpy."""
  with mesh():
    model = model_of(**ADAPTED)
    params = trained_a_little(jax.jit(model.init)(jax.random.key(0)))
    before, after = flat(params), flat(adapters.merged(params, model.parameters, model.config))
  for path, inputs in (('attention/q', 1), ('attention/o', 2), ('mlp/down', 1)):
    w, a, b = (before[f'stack/blocks/{path}/{n}'] for n in ('w', 'lora_a', 'lora_b'))
    for layer in range(len(w)):
      rows = np.prod(w.shape[1:1 + inputs])
      want = w[layer].reshape(rows, -1) + 6 / 3 * a[layer].reshape(rows, 3) @ b[layer].reshape(3, -1)
      np.testing.assert_allclose(after[f'stack/blocks/{path}/w'][layer].reshape(rows, -1), want, atol=1e-5)


def test_sharded_it_computes_the_same_and_gradients_too():
  found = []
  for axes in (dict(), dict(fsdp=2, context=2, tensor=2)):
    with mesh(int(np.prod([1, *axes.values()])), **axes):
      model = model_of(num_kv_heads=4, vocab_size=64, **ADAPTED)
      layout = jax.tree.map(lambda x: x.sharding, sharding.abstract(lambda: model.init(jax.random.key(0)),
                                                                     jax.sharding.get_mesh()))
      params = jax.jit(lambda: trained_a_little(model.init(jax.random.key(0))), out_shardings=layout)()
      loss = lambda p, b: jnp.mean(jnp.square(model.apply(p, b)))
      placed = sharding.place(jax.sharding.get_mesh(), batch())
      merged = jax.jit(lambda p, m=model: adapters.merged(p, m.parameters, m.config))(params)
      found.append((flat(jax.jit(jax.grad(loss))(params, placed)), flat(merged)))
  for other in found[1:]:
    for a, b in zip(found[0], other):
      for path in a:
        np.testing.assert_allclose(a[path], b[path], atol=1e-5, rtol=1e-3, err_msg=path)


def run(folder, workdir, steps=4, **sections):
  c = tiny.config(folder, steps=steps, **sections)
  loop.train(c, workdir, 'x', jax.devices()[:1])
  return trained_model.load(workdir)


def test_trained_on_a_run_without_and_begun_from_again(tmp_path):
  """Base run -> LoRA from any of its checkpoints -> merged, generating, exported, begun from."""
  first = run(tmp_path, tmp_path / 'base', checkpoint=dict(every=2, keep=9))
  base_2 = trained_model.load(tmp_path / 'base', 2)
  lora = dict(lora_rank=2, lora_alpha=4.0, lora_projections=('q', 'v', 'down'))
  second = run(tmp_path, tmp_path / 'lora', model=lora, init_from=str(tmp_path / 'base/checkpoints/2'),
               optimizer=dict(weight_decay=0.5))
  assert second.model.config.lora_rank == 0 and second.config.model.lora_rank == 0
  a, b = flat(base_2.params), flat(second.params)
  assert set(a) == set(b)
  for path in a:
    changed = path.removeprefix('stack/blocks/') in ('attention/q/w', 'attention/v/w', 'mlp/down/w')
    assert (a[path] != b[path]).any() == changed, path
    if changed:  # by matrices of rank 2
      difference = (b[path] - a[path])[0].reshape(a[path].shape[1], -1)
      assert np.linalg.matrix_rank(difference, tol=1e-5) == 2
  runs.export_run(tmp_path / 'lora', tmp_path / 'exported')
  _, exported = model_folders.read(tmp_path / 'exported')
  for path, x in flat(exported).items():
    np.testing.assert_array_equal(x, b[path], path)
  assert second.generate(['the '], tokens=5, temperature=0) == trained_model.load(tmp_path / 'lora').generate(
      ['the '], tokens=5, temperature=0)
  third = run(tmp_path, tmp_path / 'on', steps=2, model=lora, init_from=str(tmp_path / 'lora'))
  c = flat(third.params)
  for path in c:  # begun from the merged weights
    changed = path.removeprefix('stack/blocks/') in ('attention/q/w', 'attention/v/w', 'mlp/down/w')
    assert (b[path] != c[path]).any() == changed, path
  plain = run(tmp_path, tmp_path / 'plain', steps=2, init_from=str(tmp_path / 'lora'))
  assert set(flat(plain.params)) == set(a)
  assert first.step == 4


def test_resuming_and_checkpoints_that_are_not_there(tmp_path):
  how = dict(model=dict(lora_rank=2), schedule=dict(name='constant'))
  run(tmp_path, tmp_path / 'a', 6, **how)
  run(tmp_path, tmp_path / 'b', 3, **how)
  a, b = (flat(trained_model.load(tmp_path / 'a').params), flat(run(tmp_path, tmp_path / 'b', 6, **how).params))
  for path in a:
    np.testing.assert_array_equal(a[path], b[path], path)
  with pytest.raises(ConfigError, match='no checkpoint of step 5 yet; there are those of'):
    run(tmp_path, tmp_path / 'c', init_from=str(tmp_path / 'a/checkpoints/5'))
