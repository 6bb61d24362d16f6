"""With libtpu installed and no TPU: nothing is said of it."""
import os
import subprocess
import sys

import pytest

from t5like import hardware
from tests import tiny
from tests.conftest import ROOT

pytestmark = [pytest.mark.tpu]


def run(*command):
  """A process that may start libtpu beside others, as a user's shell would begin it: without JAX_PLATFORMS."""
  clean = {k: v for k, v in os.environ.items() if k not in ('XLA_FLAGS', 'JAX_PLATFORMS', 'TPU_SKIP_MDS_QUERY',
                                                            *hardware.TPU_VARIABLES)}
  return subprocess.run([sys.executable, *command], capture_output=True, text=True, cwd=ROOT,
                        env=dict(clean, ALLOW_MULTIPLE_LIBTPU_LOAD='1'))


def test_what_libtpu_says_of_a_machine_without_a_tpu():
  """The reason for t5like/hardware.py: may go when this fails."""
  assert 'INVALID_ARGUMENT' in run('-c', 'import jax; jax.devices()').stderr


def test_a_training_run_says_nothing(tmp_path):
  source = tiny.write_text(tmp_path / 'text.jsonl')
  done = run('main.py', '--config=configs/decoder_tiny.py:smoke', f'--config.data.source={source}',
             f'--config.data.directory={tmp_path}/prepared', '--config.stop.tokens=512', '--config.sample.prompts=()',
             '--config.vocabulary.size=400', '--config.evaluate.batches=1', f'--workdir={tmp_path}/run')
  assert done.returncode == 0, done.stdout + done.stderr
  assert done.stderr == ''


def test_programs_and_notebooks_have_read_the_variable_before():
  done = run('-c', 'import jax, t5like.hardware; t5like.hardware.choose_platform(); print(jax.devices())')
  assert 'CpuDevice' in done.stdout and done.stderr == ''
