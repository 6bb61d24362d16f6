"""What programs and notebooks import: t5like.train, load, generate, evaluate."""
import subprocess
import sys

import jax
import pytest

import t5like
from t5like.errors import ConfigError
from tests import tiny
from tests.conftest import ROOT


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
  folder = tmp_path_factory.mktemp('api')
  seen = []
  config = tiny.config(folder, steps=6)
  result = t5like.train(config, folder / 'run', devices=jax.devices()[:1], watch=lambda *line: seen.append(line))
  return folder, config, result, seen


def test_train_says_what_came_of_it_and_shows_it_live(trained):
  folder, config, result, seen = trained
  assert result['step'] == 6 and result['validation']['nll'] > 0
  assert [step for step, values in seen if 'nll' in values] == [1, 2, 3, 4, 5, 6]
  again = t5like.train(config, folder / 'run')
  assert again['step'] == 6 and again['validation']['nll'] == pytest.approx(result['validation']['nll'])


def test_load_and_generate(trained):
  folder, *_ = trained
  model = t5like.load(folder / 'run')
  texts = t5like.generate(model, ['the ', 'a '], tokens=5, temperature=0)
  assert len(texts) == 2 and all(isinstance(t, str) for t in texts)
  assert texts == t5like.generate(folder / 'run', ['the ', 'a '], tokens=5, temperature=0)
  assert model.step == 6 and t5like.load(folder / 'run', step=model.step).step == 6


def test_evaluate(trained):
  folder, *_ = trained
  said = []
  found = t5like.evaluate(folder / 'run', ['agreement', 'english'], limit=4, say=said.append)
  assert set(found) == {'agreement', 'english'} and 0 <= found['agreement']['accuracy'] <= 1 and said
  with pytest.raises(ConfigError, match='agreement'):
    t5like.evaluate(folder / 'run', ['agrement'])


def test_wrong_configs_are_refused_first():
  with pytest.raises(ConfigError, match='decoder_tiny.py'):
    t5like.train('configs/decoder_tinny.py', 'runs/none')
  with pytest.raises(ConfigError, match='batch_size'):
    t5like.train(ROOT / 'configs' / 'decoder_tiny.py', 'runs/none', ['batch_size=0'])


def test_importing_is_cheap():
  """No JAX, so that a notebook may still say which devices there are."""
  code = 'import sys, t5like; assert "jax" not in sys.modules; print(sorted(t5like.__all__))'
  done = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True, timeout=60)
  assert done.stdout.strip() == "['evaluate', 'generate', 'load', 'train']", done.stderr
