"""The TPU compiler on real configs: pip install -e '.[test,tpu]' && pytest -m tpu"""
import importlib.util
import json
import os
import subprocess
import sys

import pytest

from tests.conftest import ROOT

pytestmark = [pytest.mark.tpu,
              pytest.mark.skipif(not importlib.util.find_spec('libtpu'), reason="pip install -e '.[tpu]'")]


def run(*args):
  clean = {k: v for k, v in os.environ.items() if k not in ('XLA_FLAGS', 'JAX_PLATFORMS')}
  return subprocess.run([sys.executable, ROOT / 'main.py', 'preflight', *args], capture_output=True, text=True,
                        env=clean)


def report(*args):
  done = run('--json', *args)
  assert done.returncode == 0, done.stdout + done.stderr
  return json.loads(done.stdout)


def test_the_yardstick_beats_maxtext_by_default():
  """398.2 ms is MaxText's, with the same remat, by the same kind of reading (specification, 2026-11-22)."""
  found = report(f'--config={ROOT}/configs/yardstick_1b.py', '--topology=v5e-256')
  assert found['fits'] and found['kernel'][0] == 'splash' and found['parameters'] == 1_140_918_272
  assert 0.3 < found['step_seconds'] < 0.398 and 0.95 < found['flops'] / 56.1e12 < 1.05
  assert found['hbm']['used'] < 9 * 2 ** 30
  assert sum(size for _, size in found['replicated']) < 0.001 * 4 * found['parameters']


@pytest.mark.parametrize('topology', ['v5p-128', 'v6e-64', '2xv5e-64'])
def test_other_slices(topology):
  found = report(f'--config={ROOT}/configs/decoder_1b.py', f'--topology={topology}',
                 f'--config.mesh.slice={2 if topology[0] == "2" else 1}')
  assert found['fits'] and found['step_seconds'] > 0.05


def test_what_does_not_fit_says_so():
  done = run(f'--config={ROOT}/configs/yardstick_1b.py', '--topology=v5e-4', '--config.batch_size=64')
  assert done.returncode == 2 and 'DOES NOT FIT' in done.stdout and 'does not fit v5e-4' in done.stderr
  assert 'Largest buffers' in done.stdout and 'Traceback' not in done.stderr


def test_options_that_the_compiler_does_not_know():
  done = run(f'--config={ROOT}/configs/decoder_1b.py', '--topology=v5e-64',
             "--config.compile.options={'xla_nonsense': '1'}")
  assert done.returncode == 2 and 'xla_nonsense' in done.stderr
