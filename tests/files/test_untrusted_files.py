"""Files in a workdir that are damaged or hostile: refused in one paragraph, or lines of them left out."""
import json
import math

import pytest

from t5like import config as config_lib
from t5like.errors import CheckpointError, ConfigError
from t5like.observe import trackers
from t5like.storage import rewinds, workdir as workdir_lib
from tests import tiny

DEEP = '[' * 100_000
NO_OBJECTS = ['', '3', 'null', '[]', '"x"', '{', DEEP, '\0', '{"a": 1, "a": 2}']


@pytest.fixture
def config(tmp_path):
  return tiny.config(tmp_path)


@pytest.mark.parametrize('text', [text for text in NO_OBJECTS])
def test_a_config_that_is_none(text, config, tmp_path):
  (tmp_path / 'config.json').write_text(text)
  for read in (lambda: workdir_lib.read_config(tmp_path), lambda: workdir_lib.check_config(tmp_path, config)):
    with pytest.raises(ConfigError, match='config.json is not the text of a config') as e:
      read()
    assert '\n' not in str(e.value) and len(str(e.value)) < 600


@pytest.mark.parametrize('key, value, problem', [
    ('model.d_model', 'x', "model.d_model='x': needs a whole number"), ('model.d_model', None, 'needs a whole number'),
    ('model.d_model', [32], 'needs a whole number'), ('model.num_layers', -1, 'must be at least 1'),
    ('model.norm', 'other', 'There is rmsnorm, rmsnorm_unit'),
    ('optimizer.extra', [], 'needs a dict'),
    ('data.source', 3, 'data.source=3: needs text'), ('sample.prompts', {'a': 1}, 'needs a tuple'),
    ('model', 3, 'model=3 must be an object'), ('model', [], 'must be an object'), ('data', None, 'must be an object'),
    ('model.unknown', 3, 'model.unknown, which this version of t5like does not know'),
    ('a.b', 3, 'is not the text of a config'),
])
def test_a_config_with_a_wrong_value(key, value, problem, config, tmp_path):
  values = config.to_dict()
  section, _, name = key.rpartition('.')
  if key != 'a.b' and section:
    values[section][name] = value
  else:
    values[key] = value
  (tmp_path / 'config.json').write_text(json.dumps(values))
  with pytest.raises(ConfigError, match=problem):
    workdir_lib.read_config(tmp_path)


def test_a_config_of_an_older_version(config, tmp_path):
  values = config.to_dict()
  del values['sample'], values['model']['lora_rank']
  values['old'] = {'gone': 1}
  values['data']['gone'] = 2
  (tmp_path / 'config.json').write_text(json.dumps(values))
  read = workdir_lib.read_config(tmp_path)
  assert read.model.lora_rank == 0 and read.sample == config_lib.base().sample
  assert {k for k, *_ in config_lib.differences(read, config)} == {'data.gone', 'old', 'sample.prompts'}
  workdir_lib.write_config(tmp_path, config)
  assert workdir_lib.read_config(tmp_path).to_dict() == config.to_dict()


def test_a_result_that_is_none(config, tmp_path):
  assert workdir_lib.read_result(tmp_path, config) is None
  path = tmp_path / 'result.json'
  wrong = [text for text in NO_OBJECTS if text != 'null'] + [json.dumps(value) for value in (
      {}, dict(stop=[]), dict(stop={}, reason='x', step=1, tokens=1, validation=None),
      dict(stop={}, reason='x', step='1', tokens=1, validation=dict(nll=1)),
      dict(stop={}, reason='x', step=1, tokens=1, validation=dict(nll='x')))]
  for text in wrong:
    path.write_text(text)
    with pytest.raises(CheckpointError, match='result.json.*Delete it: the run resumes from its newest'):
      workdir_lib.read_result(tmp_path, config)
  workdir_lib.write_result(tmp_path, config, reason='x', step=1, tokens=2, validation=dict(nll=1.5))
  assert workdir_lib.read_result(tmp_path, config)['validation'] == dict(nll=1.5)
  workdir_lib.write_result(tmp_path, config, reason='x', step=1, tokens=2, validation=dict(nll=math.nan))
  assert math.isnan(workdir_lib.read_result(tmp_path, config)['validation']['nll'])


@pytest.mark.parametrize('text', [text for text in NO_OBJECTS if text not in ('null', '[]')] + [
    '[3]', '[null]', '[{}]', '[{"from_step": 3, "to_step": "1", "rows": [0, 1], "why": ""}]',
    '[{"from_step": 3, "to_step": 1, "rows": [0], "why": ""}]',
    '[{"from_step": 3, "to_step": -1, "rows": [0, 1], "why": ""}]'])
def test_rewinds_and_trackers_that_are_none(text, tmp_path):
  for name, read in [('rewinds', lambda: rewinds.read_rewinds(tmp_path)),
                     ('trackers', lambda: trackers._known_run(tmp_path, 'wandb'))]:
    (tmp_path / f'{name}.json').write_text(text)
    with pytest.raises(CheckpointError, match=f'{name}.json'):
      read()


def test_places_that_are_no_files(config, tmp_path):
  (tmp_path / 'config.json').mkdir()
  with pytest.raises(CheckpointError, match='config.json is a folder'):
    workdir_lib.read_config(tmp_path)


@pytest.mark.parametrize('lines', [
    "d = {}\n  d['d'] = d\n  c.optimizer.extra = d", "c.optimizer.extra.c = c", "c.unlock()\n  c.c = c",
    "d = []\n  d.append(d)\n  c.sample.prompts = d", "c.unlock()\n  c.optimizer = c", "c.unlock()\n  c.seed = [c]",
    "d = {}\n  for _ in range(10 ** 5):\n    d = {'d': d}\n  c.optimizer.extra = d",
    "c.optimizer.unlock()\n  c.optimizer.optimizer = c.optimizer"])
def test_a_config_that_holds_itself(lines, tmp_path):
  path = tmp_path / 'config.py'
  path.write_text(f'from t5like.config import base\n\n\ndef get_config():\n  c = base()\n  {lines}\n  return c\n')
  with pytest.raises(ConfigError) as e:
    config_lib.load(path)
  assert '\n' not in str(e.value) and len(str(e.value)) < 1000
