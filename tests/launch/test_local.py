"""launch/local.py: real processes on a tiny config, and what becomes of the others when one ends."""
import json
import os
import signal
import subprocess
import sys
import time

import pytest

from tests.launch.paths import LAUNCH, ROOT, python, recorded

CONFIG = ['--config=configs/decoder_tiny.py:smoke', '--config.stop.tokens=2k', '--config.evaluate.every=0']

# Stands in for main.py: process 1 does what ACT says, the others wait to be told to stop.
ACTOR = '''
import os, signal, sys, time
me = [a for a in sys.argv if a.startswith('--process_id=')][0][-1]
os.makedirs('up', exist_ok=True)
open(f'up/{me}.tmp', 'w').write(str(os.getpid()))
if 'polite' in os.environ['ACT']:
  signal.signal(signal.SIGTERM, lambda *_: os._exit(75))
else:
  signal.signal(signal.SIGTERM, signal.SIG_IGN)
os.rename(f'up/{me}.tmp', f'up/{me}')
print('hello from', me, flush=True)
while len([f for f in os.listdir('up') if f.isdigit()]) < 3:
  time.sleep(0.01)
if me == '1' and os.environ['ACT'].startswith('exit'):
  os._exit(int(os.environ['ACT'].split()[1]))
if me == '1' and os.environ['ACT'] == 'killed':
  os.kill(os.getpid(), signal.SIGKILL)
time.sleep(60)
'''


@pytest.fixture
def begin(tmp_path):
  """Starts launch/local.py, copied beside an actor in the place of main.py, with 3 processes."""
  (tmp_path / 'launch').mkdir()
  (tmp_path / 'launch/local.py').write_text((LAUNCH / 'local.py').read_text())
  (tmp_path / 'main.py').write_text(ACTOR)
  started = []

  def start(act, *flags):
    command = [sys.executable, tmp_path / 'launch/local.py', '--no_prepare', '--processes=3', '--grace=0.5', *flags,
               '--config=any']
    process = subprocess.Popen(command, cwd=tmp_path, env={**os.environ, 'ACT': act}, stdout=subprocess.PIPE,
                               stderr=subprocess.STDOUT, text=True)
    started.append(process)
    return process

  yield start
  for process in started:
    process.kill()


def gone(folder):
  """Whether all three actors have ended, within a few seconds (a zombie has)."""
  pids = [int((folder / f'up/{i}').read_text()) for i in range(3)]

  def alive(pid):
    try:
      with open(f'/proc/{pid}/stat') as f:
        return f.read().rpartition(')')[2].split()[0] != 'Z'
    except OSError:
      return False

  return wait_for(lambda: not any(map(alive, pids)))


def wait_for(condition):
  for _ in range(200):
    if condition():
      return True
    time.sleep(0.05)
  return False


@pytest.mark.parametrize('act, code', [('exit 5', 5), ('exit 124', 124), ('killed', 137), ('exit 75 polite', 75)])
def test_one_ends_all(begin, tmp_path, act, code):
  process = begin(act)
  output = process.communicate(timeout=30)[0]
  assert process.returncode == code, output
  assert '[1] hello from 1' in output and '\nhello from 0' in '\n' + output
  assert gone(tmp_path)


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_signals_reach_all(begin, tmp_path, number):
  process = begin('polite')
  assert wait_for(lambda: all((tmp_path / f'up/{i}').exists() for i in range(3)))
  process.send_signal(number)
  assert process.wait(20) == 75 and gone(tmp_path)


@pytest.mark.skipif(sys.platform != 'linux', reason='PR_SET_PDEATHSIG')
def test_nothing_outlives_the_launcher(begin, tmp_path):
  process = begin('stay')
  assert wait_for(lambda: all((tmp_path / f'up/{i}').exists() for i in range(3)))
  process.kill()
  assert gone(tmp_path)


def test_quiet(begin):
  output = begin('exit 4', '--quiet').communicate(timeout=30)[0]
  assert '[2] hello from 2' in output  # because one failed
  process = begin('polite', '--quiet')
  assert 'hello from 0' in process.stdout.readline()
  time.sleep(0.3)
  process.terminate()
  process.wait(20)


def test_prepare_is_not_given_flags_of_training_alone():
  done = python('local.py', '--processes=2', '--dry_run', '--', *CONFIG, '--profile_steps', '3:5', '--workdir=w',
                '--dump_xla=x', '--config.batch_size', '8')
  first, *others = done.stdout.splitlines()
  assert first.endswith(f'prepare {" ".join(CONFIG)} --workdir=w --config.batch_size 8')
  assert all('--profile_steps 3:5 --workdir=w --dump_xla=x' in line for line in others) and len(others) == 2


def test_dry_run():
  done = python('local.py', '--processes=2', '--devices_per_process=2', '--dry_run', '--', *CONFIG,
                '--workdir=runs/a b', XLA_FLAGS='--other=1 --xla_force_host_platform_device_count=8')
  assert done.returncode == 0, done.stderr
  recorded('local.txt', done.stdout)
  assert python('local.py', '--processes=0', *CONFIG).returncode == 2
  assert '--config is missing' in python('local.py', '--processes=2').stderr


def test_trains(tmp_path):
  """2 processes of 2 devices: one dataset, one metrics.jsonl, one result; what was prepared is not made again."""
  flags = [*CONFIG, f'--workdir={tmp_path}/run', f'--config.data.directory={tmp_path}/prepared',
           '--config.mesh.tensor=2']
  done = python('local.py', '--processes=2', '--devices_per_process=2', *flags)
  assert done.returncode == 0, done.stdout + done.stderr
  assert '4 x cpu' in done.stdout and 'tensor 2' in done.stdout
  lines = [json.loads(line) for line in (tmp_path / 'run/metrics.jsonl').read_text().splitlines()]
  assert [line['step'] for line in lines if 'loss' in line] == [1, 2, 3, 4]
  assert json.loads((tmp_path / 'run/result.json').read_text())['step'] == 4
  assert [f.name for f in (tmp_path / 'run').rglob('metrics.jsonl')] == ['metrics.jsonl']
  again = subprocess.run([sys.executable, LAUNCH / 'local.py', '--no_prepare', *flags], cwd=ROOT, capture_output=True,
                         text=True)
  assert again.returncode == 0 and 'Nothing left to do' in again.stdout


def test_wrong_config_ends_before_any_process():
  done = python('local.py', '--processes=2', *CONFIG, '--config.batch_sizes=1')
  assert done.returncode == 2 and done.stderr.count('Did you mean batch_size') == 1
