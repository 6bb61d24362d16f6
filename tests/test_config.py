"""Configs: every rule and its message, files, overrides, round trips, comparison, start-up."""
import ast
import itertools
import math
import pathlib
import re
import subprocess
import sys

import ml_collections
import pytest
from hypothesis import given, settings, strategies as st

from configs.base import base
from t5like import config as C, config_rules as R, config_values as V
from t5like.errors import ConfigError
from tests.conftest import ROOT

TINY = str(ROOT / 'configs' / 'decoder_tiny.py')
FILES = sorted(p for p in (ROOT / 'configs').glob('*.py') if p.stem not in ('base', '__init__'))


def message(fn, *args):
  with pytest.raises(ConfigError) as e:
    fn(*args)
  return str(e.value)


def write(tmp_path, body, header="from configs.base import base, smoke\ndef get_config(arg=''):\n"):
  """A config file with these lines in get_config, the first of which is line 3."""
  path = tmp_path / 'configs' / 'mine.py'
  path.parent.mkdir(exist_ok=True)
  path.write_text(header + ''.join(f'  {line}\n' for line in body.split('\n')))
  return str(path)


def tiny(**changes):
  c = C.load(TINY).unlock()
  for key, value in changes.items():
    section, _, name = key.replace('__', '.').rpartition('.')
    (c[section] if section else c)[name] = value
  return c.lock()


# --- Wrong values: the overrides, then what the message must hold: key, value, remedy -------------

WRONG = [
    # keys
    ('model.num_layer=3', '--config.model.num_layer=3', 'Did you mean model.num_layers?'),
    ('--config.learning_rate=1', 'learning_rate=1: unknown', 'optimizer.learning_rate'),
    ('lr=1', 'lr=1: unknown', 'optimizer.learning_rate'),
    ('optimizer.lr=1', 'optimizer.lr=1', 'Did you mean optimizer.learning_rate?'),
    ('model.batch_size=3', 'model.batch_size=3', 'Did you mean batch_size?'),
    ('optimzer.name=sgd', 'optimzer.name=sgd', 'Did you mean optimizer.name?'),
    ('data.every=5', 'data.every=5', 'log.every, evaluate.every or checkpoint.every'),
    ('steps=100', 'steps=100', 'stop.tokens'),
    ('seed.x=1', 'seed.x=1', 'Did you mean seed?'),
    ('zzzzqq=1', 'zzzzqq=1: unknown key', 'configs/base.py'),
    ('mesh=2', 'mesh=2: mesh is a section', 'mesh.data, mesh.fsdp, mesh.tensor'),
    ('seed', '--config.seed: no value', '--config.seed=VALUE'),
    # types
    ('model.num_layers=1.5', 'model.num_layers=1.5', 'whole number', '2.5M'),
    ('model.num_layers=True', 'model.num_layers=True', 'whole number'),
    ('stop.tokens=20G', 'stop.tokens=20G', '20B'),
    ('stop.tokens=1e99', 'stop.tokens=', 'below 2^63'),
    ('stop.tokens=0.0001K', 'stop.tokens=0.0001K', 'whole number'),
    ('data.document_mask=maybe', 'data.document_mask=maybe', 'true or false'),
    ('optimizer.b1=high', 'optimizer.b1=high', 'a finite number'),
    ('optimizer.b1=nan', 'optimizer.b1=nan', 'a finite number'),
    ('loss.z_loss=inf', 'loss.z_loss=inf', 'a finite number'),
    ('loss.z_loss=10s', 'loss.z_loss=10s', 'a finite number'),
    ('stop.wall_time=90m', 'stop.wall_time=90m', '90min'),
    ('watchdog.step=1e999', 'watchdog.step=1e999', '30s'),
    ('sample.prompts=[1, 2]', 'sample.prompts=[1, 2]', "('a', 'b')"),
    ('sample.prompts=[a, b]', 'sample.prompts=[a, b]', "('a', 'b')"),
    ('optimizer.extra=3', 'optimizer.extra=3', "{'momentum': 0.9}"),
    ('optimizer.extra={1: 2}', 'optimizer.extra={1: 2}', "{'momentum': 0.9}"),
    ('optimizer.extra.a-b=2', "optimizer.extra={'a-b': 2}", "{'momentum': 0.9}"),
    # choices
    ('model.activation=SwiGlu',
     "model.activation='SwiGlu'", "did you mean 'swiglu'", 'gelu_tanh or'),
    ('schedule.name=cosin', "schedule.name='cosin'", "did you mean 'cosine'", 'wsd or constant'),
    ('model.dtype=float16', "model.dtype='float16'", 'bfloat16 or float32'),
    ('data.field=', "data.field=''", "default is 'text'"),
    # ranges
    ('batch_size=0', 'batch_size=0', 'at least 1.'),
    ('data.workers=-1', 'data.workers=-1', 'at least 0.'),
    ('vocabulary.sentinels=-1', 'vocabulary.sentinels=-1', 'at least 0.'),
    ('model.dropout=1', 'model.dropout=1.0', 'at least 0 and below 1.'),
    ('loss.label_smoothing=-0.1', 'loss.label_smoothing=-0.1', 'at least 0 and below 1.'),
    ('optimizer.learning_rate=0', 'optimizer.learning_rate=0.0', 'above 0.'),
    ('schedule.final_scale=1.1', 'schedule.final_scale=1.1', 'at least 0 and at most 1.'),
    ('sample.top_p=0', 'sample.top_p=0.0', 'above 0 and at most 1.'),
    ('seed=5B', 'seed=5000000000', 'below 4294967296'),
    # combinations
    ('stop.tokens=0', 'stop.tokens=0', '16 x 128', 'at least 2,048'),
    ('stop.tokens=2047', 'stop.tokens=2,047', 'at least 2,048'),
    ('microbatches=3', 'batch_size=16', 'microbatches = 3', '15 or 18'),
    ('mesh.data=3', 'batch_size=16', 'mesh.data x mesh.fsdp = 3', '15 or 18'),
    ('microbatches=4 mesh.data=2 mesh.fsdp=4', 'batch_size=16', '= 32', 'Use 32.'),
    ('mesh.data=-1', 'mesh.data=-1, mesh.fsdp=-1', 'only one', 'Give all others a number'),
    ('mesh.fsdp=0', 'mesh.fsdp=0', 'at least 1, or -1'),
    ('mesh.tensor=-2', 'mesh.tensor=-2', 'at least 1, or -1'),
    ('mesh.tensor=4 model.num_heads=6', 'mesh.tensor=4', 'model.num_heads=6', '2, 3 or 6'),
    ('mesh.tensor=3 model.num_kv_heads=2', 'mesh.tensor=3', 'model.num_kv_heads=2', '1 or 2'),
    ('mesh.tensor=6 model.d_ff=512', 'mesh.tensor=6', 'model.d_ff=512', '2, 4 or 8', 'd_ff=516'),
    ('mesh.fsdp=5 batch_size=20', 'mesh.fsdp=5', 'model.d_model=192', '3, 4 or 6'),
    ('model.num_heads=5', 'model.num_heads=5', 'd_model=192', '3, 4 or 6', 'model.head_dim'),
    ('model.num_heads=64', 'model.head_dim=3 (d_model / num_heads)', 'even', 'model.head_dim=4'),
    ('model.head_dim=33', 'model.head_dim=33', 'even', 'model.head_dim=34'),
    ('model.num_heads=6 model.num_kv_heads=4', 'model.num_kv_heads=4', 'num_heads=6', '2, 3 or 6'),
    ('model.num_heads=6 model.num_kv_heads=12', 'model.num_kv_heads=12', 'num_heads=6', '2, 3 or 6'),
    ('model.position=learned model.max_positions=64',
     'seq_len=128', 'max_positions=64', 'raise that'),
    ('model.vocab_size=2000', 'model.vocab_size=2000', '2048 tokens', 'at least 2048'),
    ('vocabulary.name=bytes model.vocab_size=300', 'vocab_size=300', '359', '384'),
    ('vocabulary.size=300', 'vocabulary.size=300', 'sentinels=100', 'at least 360'),
    ('vocabulary.name=characters vocabulary.specials=no', 'data.document_mask=True',
     'vocabulary.specials=False', 'Set data.document_mask=False'),
    ('stop.tokens=2M schedule.warmup_steps=978', 'warmup_steps=978', '977 steps', 'at most 977', '2,002,944'),
    ('stop.tokens=2M schedule.name=wsd schedule.warmup_steps=900',
     'warmup_steps=900 and 195 steps of decay',
     '977', 'at most 782', 'decay_fraction'),
    ('checkpoint.every=100 checkpoint.keep_every=250', 'keep_every=250', 'checkpoint.every=100', '300'),
    ("vocabulary.name=characters vocabulary.specials=False data.document_mask=False sample.prompts=('',)",
     'sample.prompts', 'specials=False', "('a',)"),
    ('loss.chunks=3', 'loss.chunks=3', 'data.seq_len=128', 'Use 1, 2 or 4'),
    ('data.validation_fraction=1', 'data.validation_fraction=1.0', 'above 0 and below 1'),
    ('data.validation=test', "data.validation='test'", 'python_docs', "'hash' or 'tail'"),
    ('data.source=pythondocs', "data.source='pythondocs'", "mean 'python_docs'", 'jsonl:GLOB'),
    ('data.source=text:', "data.source='text:'", 'write text:GLOB'),
    ('data.source=tfds', "data.source='tfds'", 'write tfds:NAME'),
    ('data.source=shakespeare:x', "data.source='shakespeare:x'", 'write shakespeare.'),
    ('data.source=markov:27', "data.source='markov:27'", '2 to 26'),
    ('data.source=copy:x', "data.source='copy:x'", '2 to 26', 'copy:8'),
    ('stop.target=nll', "stop.target='nll'", "'nll <= 1.5'", 'bits_per_byte'),
    ('stop.target=nl<=2', "stop.target='nl<=2'", "mean 'nll'", 'bits_per_byte'),
    ('stop.target=nll<=nan', "stop.target='nll<=nan'", "'nll <= 1.5'"),
    ('optimizer.decay_mask=(', "optimizer.decay_mask='('", 'regular expression', "(^|/)w$"),
    ('optimizer.extra.learning_rate=1',
     'optimizer.extra.learning_rate', 'set optimizer.learning_rate'),
]


def split(text):
  """'a=1 b.c=2' to two overrides; values may hold spaces."""
  return re.split(r' (?=[a-z_.]+=)', text)


@pytest.mark.parametrize('overrides,needles', [(w[0], w[1:]) for w in WRONG],
                         ids=[w[0] for w in WRONG])
def test_wrong_values_are_named_with_a_remedy(overrides, needles):
  said = message(C.load, TINY, split(overrides))
  assert all(needle in said for needle in needles), said
  assert '\n' not in said or 'problems:' in said


def test_several_problems_come_at_once():
  keys = 'seed batch_size data.workers data.shards stop.patience log.every loss.chunks'.split()
  said = message(C.load, TINY, [f'{key}=-1' for key in keys])
  assert 'has 7 problems:' in said and 'and 2 more' in said and said.count('\n') == 6


# --- Right values ---------------------------------------------------------------------------------


@pytest.mark.parametrize('text,value', [
    ('stop.tokens=20B', 20 * 10**9), ('stop.tokens=2.5M', 2_500_000), ('stop.tokens=1_000k', 10**6),
    ('stop.tokens=1e6', 10**6), ('stop.tokens=1.5e+7', 15_000_000), ('stop.tokens=3 T', 3 * 10**12),
    ('stop.tokens=9_007_199_254_740_993', 2**53 + 1),  # not through a float
    ('stop.wall_time=45', 45.0), ('stop.wall_time=30s', 30.0), ('stop.wall_time=90min', 5400.0),
    ('watchdog.step=2h', 7200.0), ('watchdog.start=1.5d', 129600.0),
    ('optimizer.learning_rate=1e-3', 1e-3), ('loss.z_loss=0', 0.0),
    ('data.document_mask=No', False), ('model.scan_layers=0', False), ('model.use_bias=TRUE', True),
    ('sample.prompts=("a", "b")', ('a', 'b')), ("sample.prompts=['a']", ('a',)),
    ('sample.prompts=Once (upon', ('Once (upon',)), ('sample.prompts=', ('',)),
    ('sample.prompts=()', ()), ('config.seed=3', 3), ('--config.seed=3', 3),
    ('data.source=text:/a=b/*.txt', 'text:/a=b/*.txt'), ('data.source=markov:26', 'markov:26'),
    ('optimizer.clip_norm=0', 0.0), ('model.head_dim=32', 32)])
def test_overrides(text, value):
  key = text.partition('=')[0].removeprefix('--').removeprefix('config.')
  got = V.flatten(C.load(TINY, [text]))[key]
  assert got == value and type(got) is type(value)


def test_extra_arguments_of_the_optimizer(tmp_path):
  c = C.load(TINY, ['optimizer.extra={"a": [1, 2]}', 'optimizer.extra.momentum=0.9',
                    'optimizer.extra.nesterov=true', 'optimizer.extra.mode=fast'])
  extra = dict(a=(1, 2), momentum=0.9, nesterov=True, mode='fast')
  assert c.optimizer.extra.to_dict() == extra and c.optimizer.extra.is_locked
  assert C.from_json(C.to_json(c)) == c
  path = write(tmp_path, 'c = base()\nc.optimizer.extra = dict(m=1)\nc.stop.tokens = "1M"\n'
                         'return c')
  assert C.load(path, ['optimizer.extra.k=2']).optimizer.extra.to_dict() == dict(m=1, k=2)


def test_the_last_override_wins():
  assert C.load(TINY, ['seed=1', 'seed=2']).seed == 2


def test_files_may_use_units_lists_and_whole_floats(tmp_path):
  c = C.load(write(tmp_path, "c = base()\nc.stop.update(tokens=2e7, wall_time='2h')\n"
                             "c.batch_size = '1_6'\nc.model.dropout = 0\n"
                             "c.sample.prompts = ['a']\nreturn c"))
  assert (c.stop.tokens, c.stop.wall_time, c.batch_size) == (20_000_000, 7200.0, 16)
  assert type(c.stop.tokens) is int and type(c.model.dropout) is float
  assert c.sample.prompts == ('a',) and c.is_locked and c.model.is_locked


@pytest.mark.parametrize('text,value', [
    ('nll <= 1.5', ('nll', '<=', 1.5)), ('accuracy>=0.6', ('accuracy', '>=', 0.6)),
    (' bits_per_byte < 1e0 ', ('bits_per_byte', '<', 1.0)),
    ('perplexity > 2', ('perplexity', '>', 2.0))])
def test_parse_target(text, value):
  assert C.parse_target(text) == value


def variants():
  for path in FILES:
    names = C._variants(ast.parse(path.read_text()), 'arg')
    assert 'smoke' in names
    yield from ((path, name) for name in ('', *names))


@pytest.mark.parametrize('path,arg', list(variants()), ids=lambda v: getattr(v, 'stem', v))
def test_every_config_loads(path, arg):
  c = C.load(f'{path}:{arg}' if arg else str(path))
  C.validate(c)
  C.validate(C.resolve(c))
  assert C.from_json(C.to_json(c)) == c
  assert C.derived(c)['steps'] >= 1
  if arg == 'smoke':
    assert C.derived(c)['steps'] <= 100 and C.resolve(c).model.d_model <= 128


def test_every_config_has_a_smoke_variant():
  assert len(FILES) >= 4
  for path in FILES:
    assert C.load(f'{path}:smoke') != C.load(path)


# --- Files that are wrong -------------------------------------------------------------------------


@pytest.mark.parametrize('body,needles', [
    ('c = base()\nc.model.num_layer = 3\nreturn c',
     ('mine.py:4', 'model.num_layer:', 'model.num_layers?')),
    ('c = base()\nc.model.update(num_layer=3)\nreturn c', ('mine.py:4', 'model.num_layers?')),
    ('c = base()\nc.lr = 3\nreturn c', ('mine.py:4', 'lr: unknown', 'optimizer.learning_rate?')),
    ('c = base()\nx = c.model.hidden_dim\nreturn c', ('mine.py:4', 'model.hidden_dim', 'head_dim')),
    ('c = base()\nc.mesh = 2\nreturn c', ('mesh=2', 'section', 'mesh.fsdp')),
    ('c = base()\nc.mesh = dict(data=2)\nreturn c', ('mesh.fsdp: missing', 'c.mesh.update(')),
    ('c = base()\nc.seed = dict(a=2)\nreturn c', ("seed={'a': 2}", 'whole number')),
    ('c = base()\nc.reference = dict(c.reference, metrik="")\nreturn c',
     ('metrik', 'reference.metric?')),
    ('c = base()\nc.stop.tokens = "many"\nreturn c', ("stop.tokens='many'", '20B')),
    ('c = base()\nc.stop.tokens = 2.5\nreturn c', ('stop.tokens=2.5', 'whole number')),
    ('c = base()\nc.sample.prompts = "x"\nreturn c', ("sample.prompts='x'", 'tuple of texts')),
    ('c = base()\nc.seed = True\nreturn c', ('seed=True', 'whole number')),
    ('c = base()\nc.seed = None\nreturn c', ('seed=None', 'whole number')),
    ('c = base()\nreturn 1 / 0', ('mine.py:4', 'ZeroDivisionError')),
    ('raise SystemExit("gone")', ('mine.py:3', 'gone')),
    ('c = base()', ('returned None', 'return c')),
    ('c = base(\nreturn c', ('mine.py:', 'not valid Python')),
    ('x = "\0"', ('mine.py',))])
def test_errors_inside_a_file(tmp_path, body, needles):
  said = message(C.load, write(tmp_path, body))
  assert all(needle in said for needle in needles), said
  assert len(said) < 1500


def test_files_without_get_config_and_without_variants(tmp_path):
  assert 'def get_config' in message(C.load, write(tmp_path, 'pass', header='if True:\n'))
  plain = write(tmp_path, 'c = base()\nc.stop.tokens = "1M"\nreturn c',
                header='from configs.base import base\ndef get_config():\n')
  assert C.load(plain).stop.tokens == 1_000_000
  said = message(C.load, f'{plain}:smoke')
  assert "no variant 'smoke'" in said and 'none at all' in said


def test_variants(tmp_path):
  said = message(C.load, f'{ROOT}/configs/decoder_shakespeare.py:gpu')
  assert "no variant 'gpu'" in said and 'decoder_shakespeare.py:cpu' in said and 'or smoke.' in said
  path = write(tmp_path, "c = base()\nc.stop.tokens = '1M'\nif arg in ('big', 'same'):\n"
                         "  c.model.num_layers = {'big': 9, 'same': 8}[arg]\n"
                         "if arg.isdigit():\n  c.model.num_layers = int(arg)\nreturn c")
  assert [C.load(f'{path}:{v}').model.num_layers for v in ('big', 'same', '3')] == [9, 8, 3]
  assert message(C.load, f'{path}:huge').endswith(f'Use {path}:big or same.')


def test_missing_files(tmp_path):
  assert 'decoder_tiny.py?' in message(C.load, f'{ROOT}/configs/decoder_tyny.py')
  assert 'decoder_tiny.py?' in message(C.load, f'{ROOT}/configs/decoder_tiny')
  assert 'holds no configs' in message(C.load, tmp_path / 'x.py')
  assert str(tmp_path / 'no') in message(C.load, tmp_path / 'no' / 'x.py')


# --- What follows, and comparison -----------------------------------------------------------------


def test_resolve_and_derived():
  m = C.resolve(tiny()).model
  assert (m.num_kv_heads, m.head_dim, m.d_ff, m.vocab_size) == (3, 64, 512, 2048)
  assert C.resolve(tiny(model__d_model=512, model__num_heads=8)).model.d_ff == 1408
  assert C.resolve(tiny(model__activation='gelu')).model.d_ff == 768
  assert C.resolve(tiny(model__d_ff=100, model__head_dim=8)).model.d_ff == 100
  for key, value, size in [('name', 'bytes', 384), ('name', 'characters', 0),
                           ('path', 'x.model', 0), ('size', 2049, 2176)]:
    assert C.resolve(tiny(**{f'vocabulary__{key}': value})).model.vocab_size == size
  c = tiny(schedule__name='wsd')
  assert C.derived(c) == dict(tokens_per_step=2048, steps=489, tokens=489 * 2048,
                              microbatch_size=16, warmup_share=50 / 489, decay_steps=98)
  assert C.resolve(c) is not c and c.model.d_ff == 0


def test_differences_and_resuming():
  old, new = tiny(), tiny(model__d_model=384, optimizer__learning_rate=1.0, stop__tokens=10**9)
  assert C.differences(old, old) == []
  assert ('model.d_model', 192, 384) in C.differences(old, new)
  said = message(C.check_resumable, old, new, '/runs/a')
  for needle in ('/runs/a', 'model.d_model: 192 there, 384 now', '--workdir',
                 '--config.allow_changed=model.d_model;'):
    assert needle in said
  assert 'learning_rate' not in said
  for allow in ('model.d_model', 'model', 'seed, --config.model.d_model'):
    new = new.copy_and_resolve_references()
    new.allow_changed = allow
    changed = C.check_resumable(old, new, '/runs/a')
    assert {k for k, _, _ in changed} == {
        'model.d_model', 'optimizer.learning_rate', 'stop.tokens', 'allow_changed'}
  assert 'seed' in message(C.check_resumable, old, tiny(seed=3, allow_changed='see'), 'x')
  assert 'data.seq_len' in message(C.check_resumable, old, tiny(data__seq_len=64), 'x')


def test_runs_of_older_versions_can_go_on():
  older = tiny().unlock()
  del older.model['qk_norm'], older['watchdog']
  older = C.from_json(C.to_json(older))
  assert C.check_resumable(older, tiny(), 'x') == []
  said = message(C.check_resumable, older, tiny(model__qk_norm=True), 'x')
  assert 'qk_norm: False there, True now' in said
  older.unlock().model.gone = 3
  assert 'model.gone: 3 there, None now' in message(C.check_resumable, older, tiny(), 'x')
  C.check_resumable(older, tiny(allow_changed='model.gone'), 'x')


def test_allowed_prefixes_exist():
  for prefix in C.ALLOWED:
    assert any(f'{key}.'.startswith(f'{prefix}.') for key in V.DEFAULTS), prefix


def test_tables_name_real_keys_and_accept_the_defaults():
  assert {*R.CHOICES, *R.RANGES, *V.DURATIONS} <= set(V.DEFAULTS)
  c = base()
  c.stop.tokens = '1M'
  assert 'stop.tokens' in message(C.validate, base())
  c.stop.tokens = 10**6
  C.validate(c)
  numbers = {k for k, v in V.DEFAULTS.items() if type(v) in (int, float)}
  others = {'reference.value', 'data.validation_fraction', 'stop.tokens'}
  assert numbers - set(R.RANGES) - others == {'mesh.data', 'mesh.fsdp', 'mesh.tensor'}


def test_describe():
  rows = C.describe(tiny())
  assert [k for k, _, _ in rows] == list(V.DEFAULTS) and rows[0] == ('seed', 0, False)
  assert ('batch_size', 16, True) in rows and ('data.source', 'python_docs', False) in rows
  groups = [k for k, _ in itertools.groupby(key.rpartition('.')[0] for key in V.DEFAULTS)]
  assert len(groups) == len(set(groups)) and groups[0] == ''


def test_from_json_of_garbage():
  for text in ('', '{', '[1]', '3', '{"a.b": 1}'):
    assert 'not the text of a config' in message(C.from_json, text)


# --- Properties -----------------------------------------------------------------------------------

BY_TYPE = {bool: st.booleans(), int: st.integers(), str: st.text(),
           float: st.floats(allow_nan=False, allow_infinity=False),
           tuple: st.lists(st.text()).map(tuple),
           dict: st.dictionaries(st.sampled_from('abc'), st.one_of(
               st.integers(), st.text(), st.tuples(st.floats(-1, 1), st.booleans())))}
NUMBER = r'[0-9]{1,3}(\.[0-9])?(e[0-9]{1,9})?(K|M|B|T|s|min|h|d)?'
LITERAL = r'[\[({][^\n]{0,9}[\])}]'
ANYTHING = st.one_of(
    st.none(), *BY_TYPE.values(), st.floats(), st.binary(), st.just(10**5000), st.just(object()),
    st.sets(st.integers()), st.lists(st.one_of(st.integers(), st.text())), st.just(math.nan),
    st.integers(-3, 300),
    st.sampled_from(['0', '-1', '1e3', 'inf', '2M', 'auto', 'tfds:x', 'markov:²', '(', 'a{9}{9']))


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_json_round_trip(data):
  c = base().unlock()
  for key in data.draw(st.sets(st.sampled_from(sorted(V.DEFAULTS)), max_size=8)):
    section, _, name = key.rpartition('.')
    (c[section] if section else c)[name] = data.draw(BY_TYPE[type(V.DEFAULTS[key])])
  c.lock()
  back = C.from_json(C.to_json(c))
  assert back == c and C.differences(back, c) == []
  assert {k: type(v) for k, v in V.flatten(back).items()} == {
      k: type(v) for k, v in V.DEFAULTS.items()}


@settings(max_examples=400, deadline=None)
@given(st.sampled_from(sorted(V.DEFAULTS)), ANYTHING)
def test_corrupted_values_are_refused_or_right(key, value):
  c = tiny().unlock()
  section, _, name = key.rpartition('.')
  try:
    (c[section] if section else c)[name] = value
  except OverflowError:  # ml_collections makes a float of the 5001 digits
    return
  try:
    C.validate(c.lock())
  except ConfigError as e:
    assert len(str(e)) < 2000
    return
  C.derived(C.resolve(c))
  assert C.from_json(C.to_json(c)) == c


@settings(max_examples=200, deadline=None)
@given(st.sampled_from([*V.DEFAULTS, 'optimizer.extra.k', 'model', 'x', '']),
       st.one_of(st.text(), st.integers().map(str), st.floats().map(str),
                 st.from_regex(NUMBER, fullmatch=True), st.from_regex(LITERAL, fullmatch=True)))
def test_any_override_is_refused_or_right(key, text):
  try:
    c = C.load(TINY, [f'{key}={text}'])
  except ConfigError:
    return
  assert C.from_json(C.to_json(c)) == c


@pytest.mark.parametrize('section', ['more', *sorted(V.SECTIONS)])
def test_whole_sections_replaced(section):
  for value in (None, 3, {}, {'x': 1}, ml_collections.ConfigDict({'x': {'y': 1}})):
    c = tiny().unlock()
    c[section] = value
    assert section in message(C.validate, c)


# --- The file of defaults, and the process --------------------------------------------------------

def test_every_key_of_base_has_a_comment():
  text = (ROOT / 'configs' / 'base.py').read_text()
  lines = text[:text.index('def smoke')].split('\n')
  for key in V.DEFAULTS:
    name = key.rpartition('.')[2]
    found = [i for i, line in enumerate(lines) if re.match(rf' +(c\.)?{name} ?=', line)]
    assert found and all('#' in lines[i] + lines[i - 1] for i in found), f'{key}: say what it means'


def run(tmp_path, code):
  """Runs code in a new process, in a directory from which the repository is not to be seen."""
  code = f'import sys; sys.path.insert(0, {str(ROOT)!r})\n{code}'
  (tmp_path / 'empty').mkdir()
  return subprocess.run([sys.executable, '-c', code], cwd=tmp_path / 'empty', capture_output=True,
                        text=True, timeout=60)


def test_a_config_loads_in_a_second_without_jax(tmp_path):
  done = run(tmp_path, f'''
import time
from t5like import config
c = config.load({TINY!r}, ['seed=1'])
heavy = {{'jax', 'flax', 'optax', 'grain', 'numpy', 'tensorflow'}} & set(sys.modules)
print(time.process_time() < 1, sorted(heavy), c.seed)''')
  assert done.stdout.strip() == 'True [] 1', done.stdout + done.stderr
  assert not list((tmp_path / 'empty').iterdir())


def test_a_config_elsewhere_finds_its_neighbours(tmp_path):
  path = write(tmp_path, 'import configs.beside as b\nc = base()\nc.stop.tokens = b.TOKENS\n'
                         'return c')
  pathlib.Path(path).with_name('beside.py').write_text("TOKENS = '3M'")
  done = run(tmp_path, f'from t5like import config; print(config.load({path!r}).stop.tokens)')
  assert done.stdout.strip() == '3000000', done.stderr
