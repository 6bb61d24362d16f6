"""launch/reproduce.sh: what it would run, and what docs/baselines.py makes of runs."""
import importlib.util
import json
import os
import re
import subprocess

import pytest

from tests.conftest import ROOT


def reproduce(*names, **environment):
  given = {k: v for k, v in os.environ.items() if k not in ('SEEDS', 'DIR', 'GPU', 'SHAKESPEARE')}
  return subprocess.run([ROOT / 'launch' / 'reproduce.sh', *names], capture_output=True, text=True, timeout=600,
                        env=dict(given, DRY_RUN='1', **environment))


def test_each_seed_of_each_config_is_trained(tmp_path):
  done = reproduce('markov.py:masked', 'decoder_shakespeare.py:cpu', SEEDS='3,4', DIR=f'{tmp_path}/runs',
                   SHAKESPEARE=f'{tmp_path}/none.txt')
  assert done.returncode == 0, done.stderr
  runs = re.findall(r'--config=(\S+) --config.seed=(\d) --workdir=(\S+)', done.stdout)
  assert runs == [('configs/markov.py:masked', seed, f'{tmp_path}/runs/markov.py:masked/seed={seed}') for seed in '34']
  assert 'decoder_shakespeare.py:cpu is left out' in done.stdout and not (tmp_path / 'runs').exists()
  (tmp_path / 'text.txt').write_text('x')
  done = reproduce('decoder_shakespeare.py:cpu', SEEDS='0', SHAKESPEARE=f'{tmp_path}/text.txt')
  assert f'--config.data.source=text:{tmp_path}/text.txt' in done.stdout


def test_wrong_names_do_not_stop_the_others():
  done = reproduce('markow.py', 'markov.py', SEEDS='0')
  assert done.returncode == 1 and 'Not done: markow.py' in done.stderr
  assert 'configs/markov.py?' in done.stdout + done.stderr and '--config=configs/markov.py ' in done.stdout


@pytest.fixture
def baselines(tmp_path, monkeypatch):
  spec = importlib.util.spec_from_file_location('baselines', ROOT / 'docs' / 'baselines.py')
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  monkeypatch.setattr(module, 'REPRODUCED', tmp_path / 'reproduced.json')
  return module


def leave(folder, nlls, **last):
  """A run's files, with validations of `nlls`."""
  folder.mkdir(parents=True)
  lines = [dict(step=i, loss=9.0) for i in range(3)] + [
      {'step': 10 * i, 'validation/nll': nll} for i, nll in enumerate(nlls)]
  (folder / 'metrics.jsonl').write_text(''.join(json.dumps(line) + '\n' for line in lines))
  (folder / 'result.json').write_text(json.dumps(dict(validation=dict(nll=nlls[-1], **last))))


def test_mean_and_spread_over_seeds(tmp_path, baselines):
  """The last validation or the best, or another metric, as config.reference says; unfinished runs do not count."""
  runs = tmp_path / 'runs'
  for seed, last in enumerate((1.54, 1.56, 1.55)):
    leave(runs / 'markov.py' / f'seed={seed}', [3.0, 1.5, last], accuracy=0.4)
    leave(runs / 'decoder_shakespeare.py' / f'seed={seed}', [1.49 + seed / 100, 1.8])
  leave(runs / 'seq2seq_copy.py:reverse' / 'seed=0', [0.1], accuracy=0.999)
  (runs / 'markov.py' / 'seed=3').mkdir()
  (runs / 'markov.py' / 'seed=0.log').write_text('')
  assert baselines.collect(runs) == 3
  table = baselines.table()
  line = lambda name: next(l for l in table.splitlines() if l.startswith(f'| `{name}`'))
  cells = lambda name: [cell.strip() for cell in line(name).split('|')]
  assert cells('markov.py')[3:5] == ['validation nll 1.53665 (exact: entropy rate)',
                                     'validation nll 1.5500 ± 0.0100 (3 seeds)']
  assert cells('decoder_shakespeare.py')[4] == 'best validation nll 1.5000 ± 0.0100 (3 seeds)'
  assert cells('seq2seq_copy.py:reverse')[4] == 'validation accuracy 0.9990 (1 seed)'
  assert cells('iid_span.py')[4] == ''
  again = json.loads((tmp_path / 'reproduced.json').read_text())
  assert again['markov.py']['seeds'] == {'0': 1.54, '1': 1.56, '2': 1.55} and again['markov.py']['jax']
