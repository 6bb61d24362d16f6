"""What t5like writes as JSON, every parser reads: numbers that are not finite are null."""
import json
import math
import re

import jax
import numpy as np
import pytest
from hypothesis import given, strategies as st

from t5like.batches import bad_batches
from t5like.files import plain_json
from t5like.observe import report
from t5like.storage import workdir as workdir_lib
from t5like.storage.checkpoint import Checkpoints
from t5like.training import loop
from tests import tiny
from tests.conftest import ROOT
from tests.training.test_recovery import poison

pytestmark = pytest.mark.usefixtures('compile_once')


def strictly(text):
  """json.loads that refuses NaN and Infinity, as other programs do."""
  def refuse(name):
    raise ValueError(name)
  return json.loads(text, parse_constant=refuse)


NUMBERS = st.floats() | st.integers(-9, 9) | st.booleans() | st.none() | st.text(max_size=3)
VALUES = st.recursive(NUMBERS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
                      max_leaves=8)


@given(VALUES)
def test_any_value_is_written_so_that_it_can_be_read(value):
  text = plain_json.dumps(value)
  assert strictly(text) == plain_json.finite(value) == plain_json.as_read(value)
  if 'null' not in text:
    assert strictly(text) == value


def test_a_number_that_was_not_finite_comes_back_as_nan():
  assert plain_json.number(0.5) == 0.5
  for value in (math.nan, math.inf, -math.inf):
    assert math.isnan(plain_json.number(plain_json.as_read(value)))


def test_nothing_else_writes_json():
  """Each json.dumps in the repository refuses NaN, but for those whose text nobody reads."""
  unread = {'schema.py', 'tokenizer_json.py', 'checkpoint.py', 'folder_tokenizers.py'}
  files = [file for folder in ('t5like', 'benchmarks', 'launch', 'docs', 'configs')
           for file in sorted((ROOT / folder).rglob('*.py'))]
  for file in files:
    for call in re.findall(r'(?<![\w.])json\.dumps?\(.*', file.read_text()):
      assert 'allow_nan=False' in call or file.name in unread, f'{file}: {call}'


def test_one_bad_step_on_a_log_line_leaves_every_file_readable(tmp_path, monkeypatch):
  """Loss, norms and a validation that are not finite, in metrics, checkpoints, results, kept batches and the report."""
  poison(monkeypatch, [37])  # the third step's
  c = tiny.config(tmp_path, steps=4, log=dict(every=3), evaluate=dict(every=2), checkpoint=dict(every=1, keep=9))
  loop.train(c, tmp_path / 'run', 'test', jax.devices()[:1])
  lines = [strictly(line) for line in (tmp_path / 'run/metrics.jsonl').read_text().splitlines()]
  third, = [line for line in lines if line['step'] == 3]
  assert third['grad_norm'] is None and np.isfinite(third['loss']) and third['bad_steps'] == 1
  for name in ('ledger.jsonl', 'config.json', 'result.json'):
    for text in (tmp_path / f'run/{name}').read_text().split('\n\n' if name.endswith('.json') else '\n'):
      assert not text or strictly(text)
  path, = (tmp_path / 'run/bad_steps').iterdir()
  assert np.isnan(bad_batches.read(path)[1]['loss'])
  page = report.write(tmp_path / 'run')[0].read_text()
  (facts,) = strictly(page.split('id="data">')[1].split('</script>')[0])
  assert facts['curves']['loss']['y'] and len(facts['curves']['grad_norm']['y']) == 1


def test_a_report_of_lines_that_an_older_version_wrote(tmp_path):
  c = tiny.config(tmp_path)
  workdir_lib.write_config(tmp_path / 'run', c)
  line = dict(step=1, time=0.0, tokens=512, loss=1.0, accuracy=0.5, grad_norm=math.nan, bad_steps=1)
  validation = {'step': 1, 'time': 0.0, 'validation/nll': math.nan, 'validation/perplexity': math.inf}
  text = f'{json.dumps(line)}\n{json.dumps(validation)}\n'
  (tmp_path / 'run/metrics.jsonl').write_text(text)
  page = report.write(tmp_path / 'run')[0].read_text()
  (facts,) = strictly(page.split('id="data">')[1].split('</script>')[0])
  assert facts['curves']['grad_norm']['y'] == [] and facts['curves']['validation']['y'] == []
  assert facts['last']['validation/nll'] is None and facts['curves']['loss']['y'] == [1.0]


@pytest.mark.parametrize('nll', [math.nan, math.inf])
def test_a_checkpoint_whose_validation_was_not_finite_can_be_read(tmp_path, nll):
  one = np.int32(1)
  state = dict(params=dict(w=np.ones(2, np.float32)), opt_state=dict(n=one), step=one, guard=dict(n=one))
  state = jax.tree.map(jax.numpy.asarray, state)
  meta = dict(step=1, validation=dict(step=1, nll=nll), skipped=[])
  with Checkpoints(tmp_path, keep_best=1) as checkpoints:
    assert checkpoints.save(1, state, meta)
  with Checkpoints(tmp_path, keep_best=1) as checkpoints:
    assert checkpoints.meta(1)['validation'] == dict(step=1, nll=None)
    assert checkpoints.nlls == {1: math.inf}
