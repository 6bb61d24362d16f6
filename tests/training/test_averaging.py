"""Averages of checkpoints: their weights, and runs that every command reads."""
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest
from hypothesis import given, strategies as st

from t5like.decoding import trained_model
from t5like.errors import CheckpointError, ConfigError
from t5like.training import averaging, loop
from tests import tiny
from tests.conftest import ROOT

pytestmark = pytest.mark.usefixtures('compile_once')


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  """A run with checkpoints of the steps 2, 4, 6 and 8."""
  folder = tmp_path_factory.mktemp('run')
  config = tiny.config(folder, steps=8, checkpoint=dict(every=2, keep=4))
  loop.train(config, folder / 'run', 'test', jax.devices()[:1])
  return folder / 'run'


def command(*flags):
  return subprocess.run([sys.executable, ROOT / 'main.py', 'average', *flags], capture_output=True, text=True)


def params(workdir, step=None):
  return jax.tree.map(np.asarray, trained_model.load(workdir, step).params)


@pytest.mark.parametrize('name, want', [
    ('uniform', [1 / 4] * 4), ('linear', [1 / 4] * 4),
    ('sqrt', [0.5, np.sqrt(0.5) - 0.5, np.sqrt(0.75) - np.sqrt(0.5), 1 - np.sqrt(0.75)]),
    ('cosine', [(1 - np.sqrt(0.5)) / 2, np.sqrt(0.5) / 2, np.sqrt(0.5) / 2, (1 - np.sqrt(0.5)) / 2]),
    ('ema', [0.512, 0.128, 0.16, 0.2])])
def test_weights_by_hand(name, want):
  np.testing.assert_allclose(averaging.weights(name, 4), want, rtol=1e-12)


@given(st.sampled_from(list(averaging.DECAYS)), st.integers(2, 60))
def test_updates_are_scaled_as_the_decay_scales_them(name, count):
  """The update before checkpoint k counts as often as the weights from k on sum up to."""
  weights = averaging.weights(name, count)
  assert np.isclose(weights.sum(), 1) and (weights > 0).all()
  scales = np.cumsum(weights[::-1])[::-1]
  rates = [averaging.DECAYS[name](left / count) for left in range(count, 0, -1)]
  np.testing.assert_allclose(scales, rates, atol=1e-12)


@pytest.mark.parametrize('steps, name', [((), 'uniform'), ((4, 8), 'uniform'), ((2, 6, 8), 'sqrt'), ((), 'ema')])
def test_parameters_are_the_weighted_sum(run, tmp_path, steps, name):
  out = tmp_path / 'out'
  chosen = averaging.average(run, out, steps, name, say=lambda _: None)
  assert list(chosen) == list(steps or (2, 4, 6, 8))
  stored = [params(run, step) for step in chosen]
  want = jax.tree.map(lambda *xs: np.tensordot(list(chosen.values()), np.float64(xs), 1), *stored)
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-6), params(out), want)


def test_every_command_reads_it(run, tmp_path):
  out = tmp_path / 'out'
  before = sorted(path.name for path in run.iterdir())
  done = command(f'--workdir={run}', f'--out={out}', '--checkpoints=6,8', '--weights=linear')
  assert done.returncode == 0, done.stderr
  assert 'step 6: 0.5000' in done.stdout and sorted(path.name for path in run.iterdir()) == before
  assert trained_model.load(out).generate(['the '], tokens=3, temperature=0.0)
  config = tiny.config(run.parent, steps=10, checkpoint=dict(every=2, keep=4))
  result = loop.train(config, out, 'test', jax.devices()[:1])  # resumes from step 8
  assert result['step'] == 10
  steps, _ = tiny.metrics(out)
  assert [line['step'] for line in steps] == [9, 10]


@pytest.mark.parametrize('steps, name, words', [
    ((6, 7), 'uniform', 'names 7, and .* has checkpoints of 2, 4, 6, 8'), ((8,), 'uniform', 'at least two'),
    ((), 'mean', 'no such average'), ((), 'cosin', "mean 'cosine'")])
def test_wrong_checkpoints_and_weights(run, tmp_path, steps, name, words):
  with pytest.raises((CheckpointError, ConfigError), match=words):
    averaging.average(run, tmp_path / 'out', steps, name, say=lambda _: None)
  assert not (tmp_path / 'out').exists()


def test_wrong_flags(run, tmp_path):
  done = command(f'--workdir={run}', f'--out={tmp_path}/out', '--checkpoints=8,x')
  assert done.returncode == 2 and "--checkpoints has 'x': give steps" in done.stderr


def test_a_folder_with_files_is_left_alone(run, tmp_path):
  (tmp_path / 'file').write_text('mine')
  with pytest.raises(ConfigError, match='holds files already'):
    averaging.average(run, tmp_path, say=lambda _: None)
  assert [path.name for path in tmp_path.iterdir()] == ['file']


def test_a_damaged_checkpoint_is_never_averaged(run, tmp_path):
  copy, out = tmp_path / 'copy', tmp_path / 'out'
  shutil.copytree(run, copy)
  files = [path for path in (copy / 'checkpoints' / '6' / 'params').rglob('*') if path.is_file()]
  largest = max(files, key=lambda path: path.stat().st_size)
  content = bytearray(largest.read_bytes())
  content[len(content) // 2] ^= 1
  largest.write_bytes(content)
  with pytest.raises(CheckpointError):
    averaging.average(copy, out, say=lambda _: None)
  assert not out.exists()


@pytest.mark.slow
def test_an_average_of_a_constant_run_gains_nearly_what_a_decay_from_it_does(tmp_path):
  """Warm-up, stable, merge against warm-up, stable, decay at equal tokens, five seeds: 94 % of it as measured."""
  steps, stable = 400, 320
  source = tiny.write_text(tmp_path / 'long.jsonl', 3000)
  decay = {'tokens': stable * 16 * 32, 'schedule.name': 'linear', 'schedule.final_scale': 0.0}

  def nll(name, seed, **changes):
    config = tiny.config(
        tmp_path, steps=steps, seed=seed, data=dict(source=source, validation_fraction=0.05),
        schedule=dict(name='constant', warmup_steps=20), optimizer=dict(learning_rate=3e-2),
        evaluate=dict(every=0, batches=0), checkpoint=dict(every=10, keep=9), log=dict(every=100), **changes)
    return loop.train(config, tmp_path / f'{name}{seed}', name, jax.devices()[:1])['validation']['nll']

  results = []
  for seed in range(5):
    constant = nll('constant', seed)
    trunk = tmp_path / f'constant{seed}'
    decayed = nll('decayed', seed, stages=(decay,), branch_from=str(trunk / 'checkpoints' / str(stable)))
    averaging.average(trunk, tmp_path / f'merged{seed}', (), 'linear', say=lambda _: None)
    results.append((constant, decayed, nll('merged', seed)))  # nothing is left to train
  constant, decayed, merged = np.array(results).T
  print(np.round(results, 4))
  gains = (constant - merged).mean(), (constant - decayed).mean()
  assert gains[0] > 0.85 * gains[1] > 0.01
