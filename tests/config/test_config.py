"""Configs: files, overrides, round trips, comparison, start-up; rules: test_config_rules.py."""
import ast
import itertools
import math
import pathlib
import re
import subprocess
import sys

import pytest
from hypothesis import given, settings, strategies as st

from t5like import config as C
from t5like.config import base, values as V
from t5like.errors import ConfigError
from tests.conftest import ROOT

TINY = str(ROOT / 'configs' / 'decoder_tiny.py')
FILES = sorted(p for p in (ROOT / 'configs').glob('*.py') if p.stem not in ('base', '__init__'))


def message(fn, *args):
  with pytest.raises(ConfigError) as e:
    fn(*args)
  return str(e.value)


def write(tmp_path, body, header="from t5like.config import base, smoke\ndef get_config(arg=''):\n"):
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


# --- Overrides and files that are right -----------------------------------------------------------


def test_extra_arguments_of_the_optimizer(tmp_path):
  c = C.load(TINY, ['optimizer.name=prodigy', 'optimizer.extra={"betas": [0.9, 0.99]}', 'optimizer.extra.beta3=0.9',
                    'optimizer.extra.safeguard_warmup=true'])
  extra = dict(betas=(0.9, 0.99), beta3=0.9, safeguard_warmup=True)
  assert c.optimizer.extra.to_dict() == extra and c.optimizer.extra.is_locked
  assert C.from_json(C.to_json(c)) == c
  c = C.load(TINY, ['optimizer.name=muon', 'optimizer.extra.preconditioning=aol'])
  assert c.optimizer.extra.preconditioning == 'aol'
  path = write(tmp_path, 'c = base()\nc.optimizer.update(name="sgd", extra=dict(momentum=0.5))\nc.stop.tokens = "1M"\n'
                         'return c')
  c = C.load(path, ['optimizer.extra.nesterov=true'])
  assert c.optimizer.extra.to_dict() == dict(momentum=0.5, nesterov=True)


def test_the_last_override_wins():
  assert C.load(TINY, ['seed=1', 'seed=2']).seed == 2


def test_files_may_use_units_lists_and_whole_floats(tmp_path):
  c = C.load(write(tmp_path, "c = base()\nc.stop.update(tokens=2e7, wall_time='2h')\n"
                             "c.batch_size = '1_6'\nc.model.dropout = 0\n"
                             "c.sample.prompts = ['a']\nreturn c"))
  assert (c.stop.tokens, c.stop.wall_time, c.batch_size) == (20_000_000, 7200.0, 16)
  assert type(c.stop.tokens) is int and type(c.model.dropout) is float
  assert c.sample.prompts == ('a',) and c.is_locked and c.model.is_locked


def variants():
  for path in FILES:
    names = C.variants(ast.parse(path.read_text()), 'arg')
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
                header='from t5like.config import base\ndef get_config():\n')
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
  assert 'decoder_tiny.py?' in message(C.load, f'{ROOT}/configs/decoder_tini')
  assert 'holds no configs' in message(C.load, tmp_path / 'x.py')
  assert str(tmp_path / 'no') in message(C.load, tmp_path / 'no' / 'x.py')


@pytest.mark.parametrize('body', [
    'c.unlock()\nc.me = c', "c.optimizer.extra['a'] = c.optimizer.extra", "c.data.mixture['a'] = c.data.mixture",
    'c.data.unlock()\nc.data.more = c', 'x = []\nx.append(x)\nc.sample.prompts = x',
    "x = {}\nx['a'] = x\nc.compile.options = x", "x = {}\nx['a'] = dict(weight=1, data=x)\nc.data.mixture = x",
    'c.unlock()\nc.data = c', "c.data.stages['a'] = c", 'c.seed = [[[[[[[[[[[[[[1]]]]]]]]]]]]]]'])
def test_values_that_hold_themselves_are_refused(tmp_path, body):
  said = message(C.load, write(tmp_path, f'c = base()\n{body}\nreturn c'))
  assert 'holds itself' in said and len(said) < 300


# --- Keeping and comparing ------------------------------------------------------------------------


def test_differences_and_resuming():
  old, new = tiny(), tiny(model__d_model=384, optimizer__learning_rate=1.0, stop__tokens=10**9)
  assert C.differences(old, old) == []
  assert ('model.d_model', 192, 384) in C.differences(old, new)
  said = message(C.check_resumable, old, new, '/runs/a')
  for needle in ('/runs/a', 'model.d_model: 192 there, 384 now', '--workdir', 'decides which parameters there are'):
    assert needle in said
  assert 'learning_rate' not in said and 'allow_changed' not in said
  said = message(C.check_resumable, old, tiny(seed=3, loss__z_loss=1e-4, data__source='copy:8'), '/runs/a')
  assert '--config.allow_changed=seed,data,loss.z_loss;' in said
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
  said = message(C.check_resumable, older, tiny(model__qk_norm='all'), 'x')
  assert "qk_norm: 'none' there, 'all' now" in said
  older.unlock().model.gone = 3
  assert 'model.gone: 3 there, None now' in message(C.check_resumable, older, tiny(), 'x')
  C.check_resumable(older, tiny(allow_changed='model.gone'), 'x')


def test_allowed_prefixes_exist():
  for prefix in C.ALLOWED:
    assert any(f'{key}.'.startswith(f'{prefix}.') for key in V.DEFAULTS), prefix


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

BY_TYPE = {bool: st.booleans(), int: st.integers(1 - 2 ** 63, 2 ** 63 - 1), str: st.text(),
           float: st.floats(allow_nan=False, allow_infinity=False),
           tuple: st.lists(st.text()).map(tuple),
           dict: st.dictionaries(st.sampled_from('abc'), st.one_of(
               st.integers(1 - 2 ** 63, 2 ** 63 - 1), st.text(), st.tuples(st.floats(-1, 1), st.booleans()))),
           list: st.lists(st.dictionaries(st.sampled_from(['tokens', 'batch_size', 'data.seq_len', 'a.b']), st.one_of(
               st.integers(-3, 300), st.text(), st.floats(-1, 1), st.tuples(st.text())))).map(tuple)}  # of stages
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
    (c[section] if section else c)[name] = data.draw(BY_TYPE[V.kind_of(key)])
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


# --- The file of defaults, and the process --------------------------------------------------------


def test_every_key_of_base_has_a_comment():
  text = (ROOT / 't5like' / 'config' / 'base.py').read_text()
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
