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
  """Ctrl-C and stops have fast tests of their own in test_train.py and test_lost_work.py."""
  said = faults('--only=kills,sigterms,checkpoints,datasets,configs', '--kills=1', '--sigterms=1', '--checkpoints=20',
                '--datasets=40', '--configs=3', '--processes=1')
  assert 'kills 1' in said and 'signals 1' in said and 'damaged 20' in said and 'configs 3' in said


@pytest.mark.slow
def test_a_few_interrupts_and_stops():
  said = faults('--only=interrupts,stops', '--interrupts=1', '--stopped=2')
  assert 'signals 1' in said and 'stops 1' in said


@pytest.mark.slow
def test_all_of_them():
  faults()
