"""The Beam pipeline against main.py prepare: pip install -e '.[test,beam]' && pytest -m beam"""
import subprocess
import sys

import pytest

from tests.conftest import ROOT
from tests.prepared.test_prepare import without_marks

pytestmark = pytest.mark.beam
MULTI = ['--runner=FnApiRunner', '--direct_running_mode=multi_processing', '--direct_num_workers=2']


def run(file, *args):
  return subprocess.run([sys.executable, ROOT / file, *args, f'--config={ROOT}/configs/decoder_tiny.py',
                         '--config.data.shards=4', '--config.data.deduplicate=true', '--config.data.max_documents=800'],
                        capture_output=True, text=True)


@pytest.mark.parametrize('runner', [['--runner=DirectRunner'], MULTI], ids=['direct', 'processes'])
def test_a_pipeline_makes_the_same_bytes(runner, tmp_path):
  one = run('main.py', 'prepare', f'--config.data.directory={tmp_path}/one')
  assert one.returncode == 0, one.stderr
  other = run('launch/prepare_beam.py', *runner, f'--config.data.directory={tmp_path}/other')
  assert other.returncode == 0, other.stderr
  (one,), (other,) = ((tmp_path / name).iterdir() for name in ('one', 'other'))
  assert without_marks(one) == without_marks(other) and len(without_marks(one)) == 4 * 6 + 2
  again = run('launch/prepare_beam.py', *runner, f'--config.data.directory={tmp_path}/other')
  assert again.returncode == 0 and 'prepared already' in again.stdout


def test_wrong_configs_say_so(tmp_path):
  wrong = run('launch/prepare_beam.py', '--config.data.source=jsonl:nowhere*', f'--config.data.directory={tmp_path}')
  assert wrong.returncode == 3 and 'ERROR: ' in wrong.stderr and 'Traceback' not in wrong.stderr
