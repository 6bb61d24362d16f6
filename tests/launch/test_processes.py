"""Four processes of two devices compute what one process of eight does, for every architecture."""
import json
import os
import subprocess
import sys

import numpy as np
import pytest

from tests.conftest import COMPILED_FAST
from tests.launch.paths import LAUNCH, ROOT

SMALL = ['--config.stop.tokens=3k', '--config.evaluate.batches=1', '--config.sample.prompts=()',
         '--config.model.dtype=float32', '--config.batch_size=8', '--config.log.every=1',
         '--config.log.trackers=()']


def losses(folder, processes, devices, flags):
  command = [sys.executable, LAUNCH / 'local.py', f'--processes={processes}', f'--devices_per_process={devices}',
             '--quiet', f'--workdir={folder}/{processes}', f'--config.data.directory={folder}/prepared', *flags]
  # Tiny programs need not be fast, and compiling them takes most of the time.
  done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600,
                        env=dict(os.environ, XLA_FLAGS=COMPILED_FAST))
  assert done.returncode == 0, done.stdout + done.stderr
  lines = map(json.loads, (folder / f'{processes}/metrics.jsonl').read_text().splitlines())
  return [line.get('loss', line.get('validation/nll')) for line in lines]


@pytest.mark.parametrize('config, mesh', [
    pytest.param('decoder_tiny', dict(data=2, fsdp=2, tensor=2), marks=pytest.mark.slow),
    pytest.param('encoder_tiny', dict(data=4, fsdp=2, tensor=1), marks=pytest.mark.slow),
    pytest.param('encdec_tiny', dict(data=2, fsdp=2, tensor=2), marks=pytest.mark.slow),
    pytest.param('encdec_tiny', dict(data=1, fsdp=4, tensor=2), marks=pytest.mark.slow),
    # Rows whose pieces are on two processes, and on all four.
    ('encoder_tiny', dict(data=2, fsdp=1, context=4)),
    pytest.param('decoder_tiny', dict(data=1, fsdp=1, context=8), marks=pytest.mark.slow),
    pytest.param('encdec_tiny', dict(data=1, fsdp=1, context=4, tensor=2), marks=pytest.mark.slow)])
def test_four_processes_are_one(config, mesh, tmp_path):
  flags = [f'--config=configs/{config}.py:smoke', *SMALL, *(f'--config.mesh.{axis}={n}' for axis, n in mesh.items())]
  four, one = losses(tmp_path, 4, 2, flags), losses(tmp_path, 1, 8, flags)
  assert len(one) >= 4
  np.testing.assert_allclose(four, one, atol=1e-5)
