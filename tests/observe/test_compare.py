"""Runs compared: variants, pairs of seeds, intervals, and where losses part."""
import json
import math
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from rich.console import Console

from t5like import config as config_lib
from t5like.errors import ConfigError
from t5like.observe import compare
from tests import tiny
from tests.conftest import ROOT


def write(folder, seed=0, rate=1e-3, losses=(), validations=None, every=1):
  """A run of these losses, of steps of 512 tokens, and {step: validation nll}."""
  config = tiny.config(folder.parent, optimizer=dict(learning_rate=rate), seed=seed)
  folder.mkdir()
  (folder / 'config.json').write_text(config_lib.to_json(config))
  lines = [dict(step=step, tokens=512 * step, loss=loss) for step, loss in enumerate(losses, 1) if step % every == 0]
  lines += [{'step': step, 'validation/nll': nll} for step, nll in (validations or {}).items()]
  (folder / 'metrics.jsonl').write_text(''.join(json.dumps(line) + '\n' for line in lines))
  return str(folder)


@pytest.fixture
def runs(tmp_path):
  """Three seeds of a variant, and three of one that is 0.1, 0.2 and 0.3 better after six steps of the eight."""
  folders = []
  for rate, gains in ((1e-3, (0, 0, 0)), (2e-3, (0.1, 0.2, 0.3))):
    for seed, gain in enumerate(gains):
      losses = [5 - 0.1 * step - (gain if step > 2 else 0) for step in range(1, 9)]
      folders.append(write(tmp_path / f'{rate}-{seed}', seed, rate, losses, {3: 4.5 + seed, 6: 4 + seed - gain}))
  return folders


def test_pairs_of_seeds(runs):
  result = compare.compare(runs)
  assert [variant['seeds'] for variant in result['variants']] == [[0, 1, 2], [0, 1, 2]]
  assert result['keys'] == {'optimizer.learning_rate': ['0.001', '0.002']}
  assert result['tokens'] == 8 * 512 and result['metrics'] == {'validation nll': 6 * 512, 'training loss': 8 * 512}
  found = result['variants'][1]['validation nll']['difference']
  # By hand: mean 0.2, standard deviation 0.1, quantile of Student's t with 2 degrees of freedom 4.3027.
  half = 4.302653 * 0.1 / math.sqrt(3)
  assert found['pairs'] == 3 and np.isclose(found['mean'], -0.2)
  np.testing.assert_allclose([found['low'], found['high']], [-0.2 - half, -0.2 + half], rtol=1e-5)
  assert np.isclose(found['p'], 0.0741799)  # t = 2 sqrt(3): 1 - t / sqrt(t^2 + 2)
  assert 'difference' not in result['variants'][0]['validation nll']
  assert result['rows'] == [[3 * 512, 5.5, 5.5], [6 * 512, 5.0, pytest.approx(4.8)]]
  assert [(pair['step'], pair['of']) for pair in result['first_steps']] == [(3, 8)] * 3
  assert all(first.endswith(second[-2:]) for first, second in (pair['runs'] for pair in result['first_steps']))


def test_seeds_that_do_not_pair(tmp_path):
  """Welch's test by hand: means 4 and 3, variances 0.02 and 0.08 of two runs each."""
  folders = [write(tmp_path / f'a{seed}', seed, 1e-3, [nll], {1: nll}) for seed, nll in ((0, 3.9), (1, 4.1))]
  folders += [write(tmp_path / f'b{seed}', seed, 2e-3, [nll], {1: nll}) for seed, nll in ((7, 2.8), (8, 3.2))]
  result = compare.compare(folders)
  found = result['variants'][1]['validation nll']['difference']
  assert found['pairs'] == 0 and np.isclose(found['mean'], -1) and result['first_steps'] == []
  error, freedom = math.sqrt(0.01 + 0.04), 0.05 ** 2 / (0.01 ** 2 + 0.04 ** 2)
  from scipy import stats
  assert np.isclose(found['high'] - found['low'], 2 * stats.t.ppf(0.975, freedom) * error)


def test_one_seed_has_no_interval(tmp_path):
  folders = [write(tmp_path / 'a', 0, losses=[3, 2]), write(tmp_path / 'b', 0, 2e-3, [3, 1])]
  found = compare.compare(folders)['variants'][1]['training loss']['difference']
  assert found['mean'] == -1 and found['low'] == -math.inf and math.isnan(found['p'])


def test_equal_runs_and_runs_of_other_lengths(tmp_path):
  """Numbers are compared where the shorter run ends."""
  folders = [write(tmp_path / 'a', losses=[5, 4, 3, 2], validations={2: 4.0, 4: 2.0}),
             write(tmp_path / 'b', losses=[5, 4], validations={2: 4.0})]
  result = compare.compare(folders)
  assert len(result['variants']) == 1 and result['metrics'] == {'validation nll': 1024, 'training loss': 1024}
  third = write(tmp_path / 'c', 0, 2e-3, [5, 4, 3], {3: 3.0})
  result = compare.compare([folders[0], third])
  assert result['metrics'] == {'training loss': 3 * 512} and result['first_steps'][0]['step'] is None


@settings(max_examples=50, deadline=None)
@given(st.sets(st.integers(1, 10 ** 6), min_size=1))
def test_rows_are_few_and_end_with_the_last(tokens):
  rows = compare._thinned(sorted(tokens))
  assert 1 <= len(rows) <= compare.ROWS and rows[-1] == max(tokens)
  assert rows == sorted(set(rows)) and set(rows) <= tokens


def test_people_read_it(runs, capsys):
  compare.show(compare.compare(runs), Console(width=120, highlight=False, soft_wrap=True))
  text = capsys.readouterr().out
  for words in ('optimizer.learning_rate: A 0.001  B 0.002', 'B 4.8000', '-0.2000 against A', 'p = 0.074',
                '3 pairs of the same seed', 'differs from step 3 on'):
    assert words in text


@pytest.mark.parametrize('folders, words', [
    (['one'], 'two runs or more'), (['one', 'one'], 'named twice'), (['one', 'gone'], 'holds no run'),
    (['one', 'empty'], 'nothing was measured')])
def test_what_cannot_be_compared(tmp_path, folders, words):
  write(tmp_path / 'one', losses=[1])
  write(tmp_path / 'empty')
  with pytest.raises(ConfigError, match=words):
    compare.compare([str(tmp_path / folder) for folder in folders])


def test_the_command(runs, tmp_path):
  call = lambda *words: subprocess.run([sys.executable, ROOT / 'main.py', 'compare', *words], capture_output=True,
                                       text=True)
  page = tmp_path / 'page.html'
  done = call(*runs[:1], *runs[3:4], '--json', f'--output={page}')
  assert done.returncode == 0, done.stderr
  assert json.loads(done.stdout)['keys'] and f'{page} shows the curves.' in done.stderr
  assert '0.002-0' in page.read_text()
  assert 'two runs or more' in call(runs[0]).stderr
