"""A little of what python -m tests.faults does in full; it makes processes by forking, so it is one itself."""
import subprocess
import sys

import pytest

from tests.conftest import ROOT


def faults(*flags):
  done = subprocess.run([sys.executable, '-m', 'tests.faults', *flags], cwd=ROOT, capture_output=True, text=True,
                        timeout=3600)
  assert done.returncode == 0 and 'Nothing was lost' in done.stdout, done.stdout + done.stderr[-3000:]
  return done.stdout


def test_a_few_faults_of_each_kind():
  said = faults('--only=kills,sigterms,interrupts,checkpoints,datasets,configs,stops', '--kills=1', '--sigterms=1',
                '--interrupts=1', '--checkpoints=20', '--datasets=40', '--configs=3', '--stopped=2', '--processes=1')
  assert 'kills 1' in said and said.count('signals 1') == 2 and 'damaged 20' in said and 'configs 3' in said
  assert 'stops 1' in said


@pytest.mark.slow
def test_all_of_them():
  faults()
