"""launch/retry.sh: what it runs again, how often, and that SIGTERM passes through."""
import signal
import subprocess
import time

import pytest

from tests.launch.paths import LAUNCH, run

RETRY = LAUNCH / 'retry.sh'


def command(folder, *codes):
  """A command that ends with these codes, one a run, the last for ever; appends a line to runs each time."""
  (folder / 'codes').write_text('\n'.join(map(str, codes)) + '\n')
  script = folder / 'command'
  script.write_text(f'''#!/usr/bin/env bash
echo "$@" >> {folder}/runs
n=$(wc -l < {folder}/runs); m=$(wc -l < {folder}/codes)
exit "$(sed -n "$((n < m ? n : m))p" {folder}/codes)"
''')
  script.chmod(0o755)
  return script


@pytest.mark.parametrize('codes, code, runs', [
    ((0,), 0, 1), ((2,), 2, 1), ((5,), 5, 1), ((134,), 134, 1), ((75, 0), 0, 2), ((124, 0), 0, 2),
    ((75, 124, 3), 3, 3), ((75,), 75, 4)])
def test_runs_again_what_time_heals(tmp_path, codes, code, runs):
  done = run(RETRY, command(tmp_path, *codes), 'a b', RETRY_WAIT='0', RETRY_TRIES='4')
  assert done.returncode == code, done.stderr
  assert (tmp_path / 'runs').read_text() == 'a b\n' * runs
  if runs == 4:
    assert 'try 4 of 4, the last' in done.stderr


def test_settings(tmp_path):
  record = tmp_path / 'record'
  done = run(RETRY, command(tmp_path, 134, 9), RETRY_CODES='134', RETRY_WAIT='0', RETRY_RECORD=record, SLURM_PROCID='3')
  assert done.returncode == 9 and record.read_text().split()[1:] == ['3', '9']


def test_waits_longer_each_time(tmp_path):
  done = run(RETRY, command(tmp_path, 75), RETRY_WAIT='0', RETRY_TRIES='2')
  assert 'in 0 s' in done.stderr
  done = run(RETRY, command(tmp_path, 75), RETRY_WAIT='1', RETRY_WAIT_MAX='1', RETRY_TRIES='3')
  assert done.stderr.count('in 1 s') == 2


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_stops(tmp_path, number):
  saves = 'trap "sleep 0.2; exit 75" TERM; echo up; while :; do sleep 0.05; done'
  process = subprocess.Popen(
      [RETRY, 'bash', '-c', saves], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
      preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))  # what runs behind a script inherits SIG_IGN
  assert process.stdout.readline() == 'up\n'
  process.send_signal(number)
  assert process.wait(10) == 75
  assert 'told to stop' in process.stderr.read()


def test_stops_while_it_waits(tmp_path):
  process = subprocess.Popen([RETRY, 'bash', '-c', 'exit 75'], stderr=subprocess.PIPE, text=True)
  assert 'in 5 s' in process.stderr.readline()
  time.sleep(0.1)
  process.terminate()
  assert process.wait(3) == 75


def test_dry_run():
  done = run(RETRY, 'false', 'a b', DRY_RUN='1')
  assert done.returncode == 0 and done.stdout == 'false a\\ b # at most 100 times, again after exit code 75 or 124\n'
  assert run(RETRY).returncode == 2
