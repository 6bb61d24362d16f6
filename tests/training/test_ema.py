"""The moving average of parameters: what it is, that it is resumed exactly, and who reads it."""
import jax
import numpy as np
import pytest

from t5like import config as config_lib, sharding
from t5like.decoding import trained_model
from t5like.errors import ConfigError
from t5like.model import models
from t5like.storage.checkpoint import Checkpoints
from t5like.training import averaging, build, loop, step as step_lib
from tests import tiny

pytestmark = pytest.mark.usefixtures('compile_once')


def config(folder, steps, ema=0.25):
  return tiny.config(folder, steps=steps, evaluate=dict(every=2, batches=1), checkpoint=dict(every=1, keep=9),
                     schedule=dict(name='constant', warmup_steps=1), model=dict(d_model=16), optimizer=dict(ema=ema))


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  """The folder of a run of 4 steps with checkpoints of all."""
  folder = tmp_path_factory.mktemp('run')
  loop.train(config(folder, 4), folder / 'whole', 'test', jax.devices()[:1])
  return folder


def params(workdir, step, ema):
  return jax.tree.map(np.float64, trained_model.load(workdir, step, ema=ema).params)


def test_it_moves_by_its_share_towards_the_parameters(run):
  average = params(run / 'whole', 1, True)
  for step, kept in ((2, 2 / 11), (3, 0.25), (4, 0.25)):  # min(ema, (1 + n) / (10 + n)) in step n, from 0
    raw = params(run / 'whole', step, False)
    average = jax.tree.map(lambda x, y: x + (1 - kept) * (y - x), average, raw)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-6), params(run / 'whole', step, True), average)
  _, validations = tiny.metrics(run / 'whole')
  for line in validations:
    assert 0 < abs(line['validation/ema/nll'] - line['validation/nll']) < 1
    assert line['validation/ema/perplexity'] == pytest.approx(np.exp(line['validation/ema/nll']))


def test_it_is_resumed_to_the_bit(run):
  for steps in (2, 4):
    loop.train(config(run, steps), run / 'parts', 'test', jax.devices()[:1])
  metas = []
  for name in ('whole', 'parts'):
    with Checkpoints(run / name) as checkpoints:
      metas.append(checkpoints.meta(4))
  assert metas[0]['checksums'] == metas[1]['checksums'] and any(key.startswith('ema') for key in metas[0]['checksums'])
  with pytest.raises(ConfigError, match='optimizer.ema decides what state the optimizer keeps'):
    loop.train(config(run, 6, ema=0.0), run / 'parts', 'test', jax.devices()[:1])


def test_it_is_sharded_as_parameters_are(tmp_path):
  c = config_lib.resolve(config(tmp_path, 2))
  mesh = sharding.make_mesh(dict(dict.fromkeys(sharding.AXES, 1), fsdp=-1), jax.devices())
  with jax.set_mesh(mesh):
    model, _ = models.build_model(c)
    tx, _ = build.build_optimizer(c, model, 2)
    state = sharding.abstract(lambda: step_lib.init_state(model, tx, 0, ema=c.optimizer.ema), mesh)
  assert mesh.size > 1 and not state['params']['embed']['w'].sharding.is_fully_replicated
  assert jax.tree.map(lambda x: x.sharding, state['ema']) == jax.tree.map(lambda x: x.sharding, state['params'])


def test_averages_of_checkpoints_are_of_either(run, tmp_path):
  quiet = dict(say=lambda _: None)
  averaging.average(run / 'whole', tmp_path / 'raw', (3, 4), **quiet)
  averaging.average(run / 'whole', tmp_path / 'ema', (3, 4), ema=True, **quiet)
  for name, ema in (('raw', False), ('ema', True)):
    want = jax.tree.map(lambda x, y: (x + y) / 2, *(params(run / 'whole', step, ema) for step in (3, 4)))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-6), params(tmp_path / name, 4, False), want)


def test_a_run_without_one_is_refused(tmp_path):
  from t5like.storage import workdir
  workdir.write_config(tmp_path / 'run', config(tmp_path, 4, ema=0.0))
  with pytest.raises(ConfigError, match='--ema: this run has no moving average'):
    trained_model.load(tmp_path / 'run', ema=True)
  c = config(tmp_path, 4)
  with c.unlocked():
    c.data.mixture = dict(ema=dict(), other=dict())
  with pytest.raises(ConfigError, match='data.mixture.ema: this name is taken'):
    config_lib.validate(c)
