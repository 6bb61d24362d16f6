"""Stages in a config: what they may change, what is said of the rest, and which steps they have."""
import re

import pytest

from t5like import config as config_lib
from t5like.config import base, resolved, stages
from t5like.config.values import DEFAULTS
from t5like.errors import ConfigError
from t5like.model import models

MIXTURE = dict(web=dict(weight=3), code=dict())


def config(*listed, **sections):
  c = base()
  c.stop.tokens = 10_000_000
  c.data.seq_len = 128
  c.sample.prompts = ()
  for section, values in sections.items():
    c[section].update(values)
  c.stages = listed
  return config_lib.check(config_lib.flatten(c), 'config')


def test_a_stage_is_the_one_before_with_its_changes():
  c = config({'tokens': '1M', 'data.seq_len': 256, 'batch_size': '4', 'data.mixture.code.weight': 2},
             {'tokens': 2_000_000, 'optimizer.learning_rate': 1, 'model.rope_scaling': dict(name='linear', factor=2.0)},
             data=dict(mixture=MIXTURE), schedule=dict(warmup_steps=100))
  assert c.stages[0]['tokens'] == 1_000_000 and c.stages[0]['batch_size'] == 4  # numbers, as of any key
  first, second, third = stages.of(c)
  assert (first.config.data.seq_len, second.config.data.seq_len, third.config.data.seq_len) == (128, 256, 256)
  assert third.config.data.mixture.to_dict() == dict(web=dict(weight=3), code=dict(weight=2))
  assert third.config.model.rope_scaling.name == 'linear' and first.config.data.mixture.code.to_dict() == {}
  warmups = [stage.config.schedule.warmup_steps for stage in (first, second, third)]
  assert warmups == [100, 100, 0]  # a schedule of its own begins without a warm-up, unless it says one
  assert not third.config.stages and stages.of(third.config)[0].config is third.config
  again = config_lib.from_json(config_lib.to_json(c))
  assert again.to_dict() == c.to_dict() and len(stages.of(again)) == 3


def test_a_stage_begins_with_the_first_step_at_or_beyond_its_tokens():
  c = config({'tokens': 5000, 'batch_size': 4}, {'tokens': 5121, 'data.seq_len': 64},
             {'tokens': '5.2K', 'batch_size': 8}, {'tokens': 6144, 'schedule.name': 'linear'}, stop=dict(tokens=8000))
  course = stages.course(stages.of(c))
  assert [(s.step, s.tokens, s.row, s.steps) for s in course] == [
      (0, 0, 0, 5), (5, 5120, 40, 1), (6, 5632, 44, 0), (6, 5632, 44, 1), (7, 6144, 52, 4)]
  assert stages.spans(stages.of(c), [s.step for s in course], 11) == [(0, 7)] * 4 + [(7, 4)]
  numbers = resolved.derived(c)
  assert (numbers['steps'], numbers['tokens'], numbers['tokens_per_step']) == (11, 8192, 1024)
  pace = stages.pace(c)
  assert [stages.tokens_after(pace, step) for step in (0, 4, 5, 6, 7, 9)] == [0, 4096, 5120, 5632, 6144, 7168]
  later = stages.course(stages.of(c), begun=1, step=6, tokens=5632, row=100)  # resumed after rows were skipped
  assert later[1:] == [stages.Stretch(s.stage, s.step, s.tokens, s.row + 56, s.steps) for s in course[2:]]


@pytest.mark.parametrize('changes, words', [
    ({}, 'changes nothing'), ({'tokens': 'soon'}, r"stages\[1\]\.tokens='soon': needs a whole number"),
    ({'tokens': 1000, 'batch_size': 4}, r'stages\[0\] begins there too'),
    ({'data.seq_len': 'long'}, r"stages\[1\]\.data\.seq_len='long': needs a whole number"),
    ({'data.seq_len': 0}, r'stages\[1\]\.data\.seq_len=0: must be at least 1'),
    ({'data.seq_lenn': 64}, "unknown key. Did you mean data.seq_len"),
    ({'batch_size': 6, 'microbatches': 4}, r'stages\[1\]\.batch_size=6.*microbatches'),
    ({'model.d_model': 64}, 'decides which parameters there are'),
    ({'optimizer.name': 'lion'}, 'decides what state the optimizer keeps'),
    ({'vocabulary.size': 64}, 'decides which token each id stands for'),
    ({'data.source': 'copy:8'}, "List all datasets in data.mixture"), ({'data.mixture': {}}, 'List all datasets'),
    ({'stop.tokens': 64}, 'belongs to the whole run'), ({'seed': 1}, 'belongs to the whole run'),
    ({'data.mixture.wep.weight': 1}, "Did you mean 'web'"), ({'data.mixture.web.weight': -1}, 'must be a number, 0 or'),
    ({'data.mixture.web.data': {}}, 'a stage can change the weight'),
    ({'data.mixture.web.weight': 0, 'data.mixture.code.weight': 0}, r'stages\[1\].*all weights are 0'),
    ({'objective.name': 'masked_lm'}, r"stages\[1\] \(objective.name\)|stages\[1\]\.objective"),
    ({'data.seq_len': 2 ** 22}, r'stages\[1\] \(data\.seq_len\): stop\.tokens'),
])
def test_what_a_stage_cannot_change_is_refused_by_its_name(changes, words):
  with pytest.raises(ConfigError) as error:
    config({'tokens': 1000, 'batch_size': 4}, {'tokens': 2000, **changes}, data=dict(mixture=MIXTURE))
  assert re.search(words, str(error.value)), error.value


@pytest.mark.parametrize('value, words', [
    (dict(a=1), 'needs a tuple of dicts'), (('a',), 'needs a tuple of dicts'),
    (({'batch_size': 4},), "'tokens' is missing")])
def test_stages_that_are_none(value, words):
  c = base()
  c.stop.tokens = 10_000_000
  c.stages = value
  with pytest.raises(ConfigError, match=words):
    config_lib.validate(c)


def test_every_key_of_a_stage_exists():
  for key in stages.MAY_CHANGE:
    assert any(f'{name}.'.startswith(f'{key}.') for name in DEFAULTS), key


def test_flops_of_a_run_are_those_of_its_stages():
  listed = ({'tokens': 4096, 'data.seq_len': 256, 'batch_size': 4, 'optimizer.freeze': ('embed', 'stack/blocks[:2]')},)
  c, plain = (config(*some, stop=dict(tokens=8192), model=dict(vocab_size=8192, d_model=64)) for some in (listed, ()))
  c, plain = resolved.resolve(c), resolved.resolve(plain)
  parts = [models.sizes(stage.config)['flops_per_token'] for stage in stages.of(c)]
  assert models.sizes(plain)['flops_in_all'] == 8192 * parts[0] and parts[1] != parts[0]
  assert models.sizes(c)['flops_in_all'] == pytest.approx(4096 * sum(parts), rel=1e-4)


def test_stages_of_the_command_line(tmp_path):
  text = "stages=({'tokens': '4K', 'batch_size': 4},)"
  c = config_lib.load('configs/decoder_tiny.py:smoke', [text])
  assert c.stages == ({'tokens': 4000, 'batch_size': 4},)


def test_a_stage_after_the_end_is_a_warning():
  c = config({'tokens': '10M', 'batch_size': 4}, {'tokens': '20M', 'schedule.name': 'wsd'})
  assert [line for line in config_lib.warnings(c) if 'this run ends before, at stop.tokens=10,000,000' in line] == [
      'stages[0].tokens=10,000,000: this run ends before, at stop.tokens=10,000,000.',
      'stages[1].tokens=20,000,000: this run ends before, at stop.tokens=10,000,000.']
