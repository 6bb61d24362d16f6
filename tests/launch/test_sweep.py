"""launch/sweep.py: which runs it makes of keys and values, and that it goes on where it stopped."""
import json
import math
import re
import sys
import types

import pytest
from hypothesis import given, strategies as st
from rich.console import Console

from launch import sweep as sweep_module
from tests.launch.paths import python, recorded

CONFIG = '--config=configs/decoder_tiny.py:smoke'

# Stands in for `python main.py`: the result is a function of the config; FAIL names a trial that fails the first time.
TRAINER = '''
import os, pathlib, sys
sys.path.insert(0, os.getcwd())
from t5like import config as config_lib
from t5like.storage import workdir
given = dict(a.lstrip('-').split('=', 1) for a in sys.argv[1:])
folder = pathlib.Path(given['workdir'])
config = config_lib.load(given['config'], [a[9:] for a in sys.argv if a.startswith('--config.')])
with open(folder.parent / 'ran', 'a') as f:
  f.write(folder.name + '\\n')
if folder.name == os.environ.get('FAIL'):
  sys.exit(75)
if not os.environ.get('SUBMIT'):
  nll = config.optimizer.learning_rate * 1000 + config.seed / 10
  workdir.write_result(folder, config, reason='', step=20, tokens=0, validation=dict(nll=nll))
'''


@pytest.fixture
def sweep(tmp_path):
  (tmp_path / 'trainer.py').write_text(TRAINER)

  def start(*flags, **variables):
    return python('sweep.py', CONFIG, f'--dir={tmp_path}/sweep', f'--launcher={sys.executable} {tmp_path}/trainer.py',
                  *flags, COLUMNS='200', **variables)

  return start


def ran(folder):
  return (folder / 'sweep/ran').read_text().split()


VALUES = st.text(st.sampled_from('abE1.-+_=/ ,()[]\'"%é:*'), max_size=12)


@given(st.lists(st.tuples(VALUES, VALUES), min_size=2, max_size=6, unique=True))
def test_trials_have_folders_of_their_own(pairs):
  names = [sweep_module.name({'data.source': a, 'model.b': b}) for a, b in pairs]
  assert len(set(names)) == len(pairs)
  assert all(re.fullmatch(r'[\w.+=-]+', title) and title[0] not in '.-' for title in names)


def test_names_of_folders():
  name = sweep_module.name
  assert name({'optimizer.learning_rate': '1e-3', 'seed': '0'}) == 'learning_rate=1e-3_seed=0'  # as ever
  assert name({'schedule.name': 'rsqrt_decay', 'optimizer.name': 'adamw'}) == (
      'schedule.name=rsqrt_decay_optimizer.name=adamw')
  globs = [name({'data.source': f'text:{sign}.txt'}) for sign in ('a b', 'a/b', 'a*b', 'a-b')]
  assert len(set(globs)) == 4 and all(title.startswith('source=text-a-b.txt-') for title in globs)
  long = [name({'data.source': 'é' * 300 + end}) for end in 'ab']
  assert long[0] != long[1] and all(len(title.encode()) < 200 for title in long)


def test_logs_of_buckets_do_not_mix():
  assert sweep_module.digest('gs://a/sweep') != sweep_module.digest('gs://b/sweep')


def test_dry_run(tmp_path):
  done = python('sweep.py', CONFIG, 'optimizer.learning_rate=1e-3,3e-3', 'seed=0,1', 'data.seq_len=32,64', '--dry_run',
                '--dir=DIR', '--config.stop.tokens=1M')
  assert done.returncode == 0, done.stderr
  recorded('sweep.txt', done.stdout)
  done = python('sweep.py', CONFIG, 'optimizer.learning_rate=1e-3,3e-3', '--dry_run', '--dir=gs://BUCKET/sweep',
                '--launcher=launch/tpu_vm.sh keep')
  assert done.returncode == 0, done.stderr
  recorded('sweep_tpu.txt', done.stdout)


def test_grid_ranks_and_resumes(sweep, tmp_path):
  done = sweep('optimizer.learning_rate=3e-3,1e-3', 'seed=0,1', FAIL='learning_rate=1e-3_seed=1')
  assert done.returncode == 75, done.stdout + done.stderr
  assert len(ran(tmp_path)) == 4 and 'exit code 75' in done.stdout
  done = sweep('optimizer.learning_rate=3e-3,1e-3', 'seed=0,1', '--jobs=2')
  assert done.returncode == 0
  assert ran(tmp_path)[4:] == ['learning_rate=1e-3_seed=1']  # only what was left
  rows = [line.split('│')[1:5] for line in done.stdout.splitlines() if line.startswith('│')]
  assert [[cell.strip() for cell in row][:3] for row in rows] == [
      ['1e-3', '0', '1.0000'], ['1e-3', '1', '1.1000'], ['3e-3', '0', '3.0000'], ['3e-3', '1', '3.1000']]
  # another target is another run
  assert sweep('optimizer.learning_rate=1e-3', 'seed=0', '--config.stop.tokens=99k').returncode == 0
  assert len(ran(tmp_path)) == 6


def test_random(sweep, tmp_path):
  keys = ['optimizer.learning_rate=1e-4..1e-2', 'model.num_layers=1..4', 'seed=0,1']
  lines = [sweep(*keys, '--samples=30', f'--sample_seed={s}', '--dry_run').stdout.splitlines() for s in (0, 0, 1)]
  assert lines[0] == lines[1] != lines[2] and 28 <= len(lines[0]) <= 31
  given = [dict(word[9:].split('=') for word in line.split() if word.startswith('--config.')) for line in lines[0][:-1]]
  rates = [float(g['optimizer.learning_rate']) for g in given]
  assert all(1e-4 <= r <= 1e-2 for r in rates)
  assert abs(sum(math.log10(r) < -3 for r in rates) / len(rates) - 0.5) < 0.3  # even on a logarithmic scale
  assert {g['model.num_layers'] for g in given} == set('1234') and {g['seed'] for g in given} == set('01')


def test_submitted_once(sweep, tmp_path):
  assert 'submitted' in sweep('seed=0,1', SUBMIT='1').stdout
  assert sweep('seed=0,1', SUBMIT='1').returncode == 0 and len(ran(tmp_path)) == 2
  sweep('seed=0,1', '--again=seed=1')
  assert ran(tmp_path)[2:] == ['seed=1']


@pytest.mark.parametrize('flags, message', [
    (['optimizer.learning_rates=1,2'], 'optimizer.learning_rates=1,2'.split(',')[0]),
    (['seed=0,x'], '1 of these runs cannot work, so none was begun'), (['seed'], 'no values given'),
    (['optimizer.learning_rate=1e-3..1e-2'], 'a range needs --samples'),
    (['optimizer.learning_rate=1..-1', '--samples=3'], 'a range needs --samples'), ([], 'add KEY=VALUES'),
    (['seed=0', '--again=('], '--again=(: is no regular expression'), (['seed=0', '--jobs=0'], '--jobs=0: must be'),
    (['seed=0', '--samples=-1'], '--samples=-1: must be'), (['seed=0', '--samples=10001'], 'at most 10000'),
    (['seed=0', "--launcher=x '"], 'is no command line')])
def test_mistakes(sweep, tmp_path, flags, message):
  done = sweep(*flags)
  assert done.returncode == 2 and message in done.stderr and 'Traceback' not in done.stderr, done.stderr
  assert not (tmp_path / 'sweep').exists()


def test_the_table_shows_values_as_they_are(capsys):
  """Brackets too, which rich takes for its own markup."""
  chosen = {'data.source': 'text:/a/[/b]/*.txt', 'sample.prompts': '[bold]x'}
  trial = types.SimpleNamespace(chosen=chosen, result=lambda: None, state='exit code 1, see [/x].log')
  sweep_module.table([trial], Console(width=200))
  shown = capsys.readouterr().out
  assert all(text in shown for text in (*chosen.values(), trial.state))


def test_nan_is_the_worst_result(capsys):
  results = dict(a=None, b=math.nan, c=3.0, d=math.nan, e=math.inf, f=1.0, g=2.0)
  trials = [types.SimpleNamespace(chosen={'seed': name}, state='not run', result=lambda nll=nll: (
      None if nll is None else dict(step=1, validation=dict(nll=nll)))) for name, nll in results.items()]
  sweep_module.table(trials, Console(width=200))
  assert ''.join(re.findall(r'│ ([a-g]) ', capsys.readouterr().out)) == 'fgcebda'


def test_real_runs(tmp_path):
  """With the launcher it has by default: a dataset, then a run that reaches its target."""
  done = python('sweep.py', CONFIG, 'optimizer.learning_rate=1e-2', f'--dir={tmp_path}/sweep',
                '--config.stop.tokens=1k', '--config.evaluate.batches=1', '--config.sample.prompts=()',
                f'--config.data.directory={tmp_path}/prepared', JAX_PLATFORMS='cpu')
  assert done.returncode == 0, done.stdout + done.stderr
  result = json.loads((tmp_path / 'sweep/learning_rate=1e-2/result.json').read_text())
  assert f'{result["validation"]["nll"]:.4f}' in done.stdout
