"""launch/slurm.sbatch under a stand-in for SLURM: tasks, their logs, what goes back into the queue."""
import os
import shutil
import sys

import pytest

from tests.launch.paths import LAUNCH, ROOT, recorded, run

SCRIPT = LAUNCH / 'slurm.sbatch'

# Runs as many tasks as SLURM_NTASKS says, with the variables that srun sets; like srun it ends with the highest code.
SRUN = '''#!/usr/bin/env bash
echo "$*" >> asked
code=0
while [[ $1 == --* ]]; do [[ $1 == --output=* ]] && output=${1#--output=}; shift; done
for ((t = 0; t < SLURM_NTASKS; t++)); do
  SLURM_PROCID=$t SLURM_LOCALID=$t SLURM_STEP_NODELIST=localhost "$@" > "${output/\\%t/$t}" 2>&1 &
  pids+=($!)
done
for p in "${pids[@]}"; do wait "$p"; c=$?; ((c > code)) && code=$c; done
exit "$code"
'''


@pytest.fixture
def cluster(tmp_path):
  """Runs the script as the batch job of 2 tasks whose main.py is the given text; returns it when it has ended."""
  shutil.copytree(LAUNCH, tmp_path / 'launch')
  tools = tmp_path / 'tools'
  tools.mkdir()
  (tools / 'srun').write_text(SRUN)
  (tools / 'scontrol').write_text('#!/usr/bin/env bash\necho "scontrol $*" >> asked\n')
  for tool in tools.iterdir():
    tool.chmod(0o755)

  def job(main, **variables):
    (tmp_path / 'main.py').write_text(main)
    return run('bash', SCRIPT, '--config=a b', SLURM_SUBMIT_DIR=tmp_path, SLURM_JOB_ID='4711', SLURM_NTASKS='2',
               PATH=f'{tools}:{os.environ["PATH"]}', PYTHON=sys.executable, PYTHONPATH=ROOT, **variables)

  return job


EXITS = '''
import os, sys, time
me = os.environ['SLURM_PROCID']
print(me, sys.argv[1:], flush=True)
code, seconds = {'0': (%s), '1': (%s)}[me]
time.sleep(seconds)
os._exit(code)
'''


@pytest.mark.parametrize('first, second, code, requeued', [
    ((0, 0), (0, 0), 0, False), ((75, 0), (75, 0.1), 75, True), ((2, 0), (2, 0), 2, False),
    # the cause is the first to end: its peers are aborted, whatever their codes
    ((134, 0.5), (124, 0), 124, True), ((134, 0.5), (3, 0), 3, False), ((0, 0), (4, 0.5), 4, False)])
def test_exit_codes(cluster, tmp_path, first, second, code, requeued):
  done = cluster(EXITS % (f'{first[0]}, {first[1]}', f'{second[0]}, {second[1]}'))
  assert done.returncode == code, done.stdout + done.stderr
  assert ('scontrol requeue 4711' in (tmp_path / 'asked').read_text()) == requeued
  for task in '01':
    assert f"{task} ['--config=a b']" in (tmp_path / f'runs/slurm/4711/{task}.log').read_text()


def test_not_for_ever(cluster, tmp_path):
  done = cluster(EXITS % ('75, 0', '75, 0'), SLURM_RESTART_COUNT='2', MAX_REQUEUES='2', LOGS=tmp_path / 'logs')
  assert done.returncode == 75 and 'scontrol' not in (tmp_path / 'asked').read_text()
  assert (tmp_path / 'logs/4711/exit.2').exists()


def test_jax_finds_its_peers(cluster, tmp_path):
  """sharding.start_processes() without arguments, by the variables that SLURM gives."""
  done = cluster('''
from t5like import sharding
sharding.start_processes()
import jax
print('process', jax.process_index(), 'of', jax.process_count())
''', JAX_PLATFORMS='cpu')
  assert done.returncode == 0, done.stderr
  for task in '01':
    assert f'process {task} of 2' in (tmp_path / f'runs/slurm/4711/{task}.log').read_text()


def test_dry_run():
  done = run('bash', SCRIPT, '--config=a.py', '--config.data.source=text:a b', DRY_RUN='1', PYTHON='python',
             SLURM_JOB_ID=None, SLURM_SUBMIT_DIR=None)
  assert done.returncode == 0, done.stderr
  options = [line for line in SCRIPT.read_text().splitlines() if line.startswith('#SBATCH')]
  recorded('slurm.txt', '\n'.join(options) + '\n' + done.stdout)


def test_shellcheck():
  done = run('shellcheck', *LAUNCH.glob('*.sh'), SCRIPT)
  assert done.returncode == 0, done.stdout
