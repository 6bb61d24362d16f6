"""Rows of 32,768 and 131,072 tokens on a v5e-256 and a v5p-128, by the very commands of docs/pods.md."""
import re
import shlex

import pytest

from tests.conftest import ROOT
from tests.tpu.test_preflight import report

pytestmark = [pytest.mark.tpu, pytest.mark.slow]

# A third of what is predicted may be another compiler's doing; a wrong reading was off by a factor of ten.
LEAST, MOST = 0.05, 0.65


def commands():
  """[flags] of each command of the chapter on long rows."""
  chapter = re.search(r'^## Long rows\n(.*?)^## ', (ROOT / 'docs/pods.md').read_text(), re.M | re.S)[1]
  lines = chapter.replace('\\\n', ' ').splitlines()
  return [shlex.split(line)[3:] for line in lines if line.startswith('python main.py preflight')]


def name(flags):
  values = dict(flag.removeprefix('--').split('=', 1) for flag in flags)
  config = values['config'].split('/')[-1]
  return f'{config}-{values["config.data.seq_len"]}-{values["config.mesh.context"]}-{values["topology"]}'


def test_all_architectures_are_there():
  configs, rows = ('decoder_1b.py', 'bert.py', 't5_1_1.py:base'), ('32768-4-v5e-256', '131072-16-v5e-256')
  larger = ('decoder_1b.py', 'bert.py:large', 't5_1_1.py:xl')
  expected = [f'{config}-{row}' for config in configs for row in rows]
  expected += [f'{config}-131072-16-v5p-128' for config in larger]
  assert sorted(map(name, commands())) == sorted(expected)


@pytest.mark.parametrize('flags', commands(), ids=name)
def test_they_compile_and_fit(flags):
  found = report(*[f'--config={ROOT}/{flag.removeprefix("--config=")}' if flag.startswith('--config=') else flag
                   for flag in flags])
  assert found['fits'] and found['kernel'][0] in ('splash', 'relative_bias')
  # Full attention counts what causal masks spare, and balanced pieces do spare it.
  assert LEAST < found['mfu_causal'] < MOST and found['mfu_causal'] <= found['mfu'] < 1, found['mfu']
  assert found['times']['kernel'] > 0.5 * sum(found['times'][kind] for kind in ('matrix', 'memory'))
