"""A little of what python -m tests.faults does in full; it makes processes by forking, so it is one itself."""
import subprocess
import sys

import pytest

from tests.conftest import ROOT


def faults(*flags):
  done = subprocess.run([sys.executable, '-m', 'tests.faults', *flags], cwd=ROOT, capture_output=True, text=True,
                        timeout=7200)
  assert done.returncode == 0 and 'Nothing was lost' in done.stdout, done.stdout + done.stderr[-3000:]
  return done.stdout


def test_a_few_faults_of_each_kind():
  """SIGTERM, Ctrl-C and stops have fast tests of their own in test_train.py and test_lost_work.py."""
  said = faults('--only=kills,checkpoints,datasets,configs', '--kills=2', '--checkpoints=4', '--datasets=8',
                '--configs=2', '--processes=1')
  assert said.count('kills 1,') == 2 and 'damaged 4' in said and 'damaged 8' in said and 'configs 2' in said


@pytest.mark.slow
def test_a_few_signals_and_stops():
  said = faults('--only=sigterms,interrupts,stops', '--sigterms=2', '--interrupts=1', '--stopped=2', '--processes=1')
  assert 'signals 1' in said and 'stops 1' in said


@pytest.mark.slow
def test_all_of_them():
  faults()
