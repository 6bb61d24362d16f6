"""TFDS datasets: read as TFDS reads them, without TensorFlow, and errors that say how to get there."""
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading

import fsspec
import numpy as np
import pytest
import tensorflow_datasets as tfds
from array_record.python import array_record_module

from t5like.config import base, templates
from t5like.errors import ConfigError, DataError
from t5like.files import mirror
from t5like.prepared import prepare, store
from t5like.sources import registry, tfds_builder, tfds_source
from tests.conftest import ROOT

FIELDS = dict(inputs='{text}{act}{raw}{score}{kind}', targets='{answers[text][0]}{names[0]}')


class Plays(tfds.core.GeneratorBasedBuilder, skip_registration=True):
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
    return {'train': self._generate_examples(20), 'test': self._generate_examples(5),
            'large': self._generate_examples(1000)}

  def _generate_examples(self, count):
    for i in range(count):
      yield i, dict(text=f'Scène {i} of {count}', act=i, raw=b'\xff' if count == 5 else b'raw', score=i / 2,
                    kind=i % 2, answers=dict(text=['é'] * (i % 3), start=[7] * (i % 3)), names=['ö'] * (i % 2))


@pytest.fixture(scope='module')
def plays(tmp_path_factory):
  folder = tmp_path_factory.mktemp('tfds')
  download = tfds.download.DownloadConfig(num_shards=3)
  Plays(data_dir=folder, file_format='array_record').download_and_prepare(download_config=download)
  return folder


def open_source(source, folder, validation=None, **keys):
  c = base()
  c.data.update(source=source, tfds_dir=str(folder), **keys)
  return registry.open_source(c, split=validation)


def records(source, folder, **keys):
  return list(open_source(source, folder, **keys).documents())


def texts(found):
  return [record['text'] for record, _ in found]


# --- Reading ------------------------------------------------------------------------------------


def test_a_prepared_dataset_is_read_without_its_code(plays):
  source = open_source('tfds:plays', plays)
  found = list(source.documents())
  assert sorted(texts(found)) == sorted(f'Scène {i} of 20' for i in range(20))
  theirs = tfds.builder_from_directory(plays / 'plays' / '1.0.0').as_data_source('train')
  assert texts(found) == [record['text'].decode() for record in theirs]
  assert source.fingerprint['dataset'] == 'plays/1.0.0' and source.fingerprint['records'] == 20
  assert records('tfds:plays:1.0.0', plays, split='train[:3]') == found[:3]
  other = open_source('tfds:plays', plays, validation='train', split='test')
  assert list(other.documents()) == found
  assert list(open_source('tfds:plays', plays, split='train', field='act').documents())[4][1] == found[4][1]
  assert 'tensorflow' not in sys.modules


@pytest.mark.parametrize('split', ['large', 'large[:10%]', 'large[333:-1]', 'large[50%:51%]', 'large[999:]'])
def test_items_are_ranges_of_the_files_of_a_split(plays, monkeypatch, split):
  monkeypatch.setattr(tfds_source, 'RECORDS', 70)
  source = open_source('tfds:plays', plays, split=split)
  found = list(source.documents())
  theirs = tfds.builder_from_directory(plays / 'plays' / '1.0.0').as_data_source(split)
  assert texts(found) == [record['text'].decode() for record in theirs]
  assert source.num_items >= len(found) / 70
  assert [pair for i in range(source.num_items) for pair in source.documents(i, i + 1)] == found
  names = [name for _, name in records('tfds:plays', plays, split='large')]
  assert names == [f'plays/1.0.0 large record {i}' for i in range(1000)]
  assert [name for _, name in found] == names[names.index(found[0][1]):][:len(found)]
  assert source.fingerprint['split'] == split and source.fingerprint['records'] == len(found)


def test_records_are_plain_and_hold_what_is_asked_for(plays):
  found = {r['act']: r for r, _ in records('tfds:plays', plays, **FIELDS)}
  for i in range(20):
    expected = dict(text=f'Scène {i} of 20', act=i, raw='raw', score=i / 2, kind=i % 2,
                    answers=dict(text=['é'] * (i % 3), start=[7] * (i % 3)), names=['ö'] * (i % 2))
    assert json.dumps(found[i], sort_keys=True) == json.dumps(expected, sort_keys=True)
  assert {tuple(record) for record, _ in records('tfds:plays', plays)} == {('text',)}
  source = open_source('tfds:plays', plays, inputs='{text}', targets='{answers[text][0]}')
  data = base().data
  data.update(inputs='play: {text}', targets='{answers[text][0]}')
  with pytest.raises(DataError, match=r'plays/1.0.0 train record \d+: .*there is no answers\[text\]\[0\]'):
    [templates.texts(data, *pair) for pair in source.documents()]


# --- Damage -------------------------------------------------------------------------------------


@pytest.fixture
def copy(plays, tmp_path):
  """A copy of the dataset; `copy(name)` gives the path of a file of it."""
  shutil.copytree(plays, tmp_path / 'copy')
  return lambda name='': tmp_path / 'copy' / ('plays/1.0.0/' + name if name else '')


SHARD = 'plays-large.array_record-00001-of-00003'


def test_bytes_that_are_no_text_are_a_damaged_record(plays):
  found = records('tfds:plays', plays, split='test', **FIELDS)
  assert len(found) == 5 and all(isinstance(error, DataError) for error, _ in found)
  assert re.match(r'plays/1.0.0 test record 0 \(record 0 of .*plays-test.array_record-00000-of-00003\), field raw, is '
                  'not UTF-8: byte 0xFF at offset 0', str(found[0][0]))
  assert len(texts(records('tfds:plays', plays, split='test'))) == 5  # nobody asks for raw


def test_a_record_with_a_flipped_bit_is_one_error(copy):
  good = records('tfds:plays', copy(), split='large')
  content = bytearray(copy(SHARD).read_bytes())
  content[5000] ^= 1
  copy(SHARD).write_bytes(content)
  found = records('tfds:plays', copy(), split='large')
  [bad] = [i for i, (record, _) in enumerate(found) if isinstance(record, DataError)]
  assert found[:bad] == good[:bad] and found[bad + 1:] == good[bad + 1:] and found[bad][1] == good[bad][1]
  assert re.match(rf'plays/1.0.0 large record {bad} \(record {bad - 333} of {copy(SHARD)}\) is damaged: .*at byte \d+.*'
                  'Prepare or copy that file again.', str(found[bad][0]), re.S)


def test_a_record_that_cannot_be_decoded_is_one_error(copy):
  reader = array_record_module.ArrayRecordReader(str(copy(SHARD)))
  content = reader.read(list(range(reader.num_records())))
  content[2] = b'no protocol buffer'
  writer = array_record_module.ArrayRecordWriter(str(copy(SHARD)), 'group_size:1')
  for record in content:
    writer.write(record)
  writer.close()
  found = records('tfds:plays', copy(), split='large')
  assert [i for i, (record, _) in enumerate(found) if isinstance(record, DataError)] == [335]
  assert f'large record 335 (record 2 of {copy(SHARD)}) cannot be decoded: DecodeError' in str(found[335][0])


def test_files_that_are_damaged_name_themselves(copy):
  content = copy(SHARD).read_bytes()
  for damaged, why in ((content[:-1000], '.*'), (content[:70_000], 'Corrupted'), (content[:100], '.*at least 64KB'),
                       (b'', '.*at least 64KB'), (bytes(len(content)), '.*'),
                       (copy('plays-test.array_record-00000-of-00003').read_bytes(), 'it holds 2 records, and data')):
    copy(SHARD).write_bytes(damaged)
    source = open_source('tfds:plays', copy(), split='large')
    with pytest.raises(DataError, match=rf'(?s){SHARD} cannot be read: {why}.*Prepare or copy that file again'):
      list(source.documents())
  source = open_source('tfds:plays', copy(), split='large')
  copy(SHARD).unlink()
  with pytest.raises(DataError, match=f'{SHARD} cannot be read: '):
    list(source.documents())
  with pytest.raises(DataError, match=f'1 of 3 files of .*plays/1.0.0 are missing, first {SHARD}; prepare or copy'):
    open_source('tfds:plays', copy(), split='large')
  assert records('tfds:plays', copy(), split='large[:10]')  # other files are not needed
  copy('dataset_info.json').write_text('{"name": ')
  with pytest.raises(DataError, match='plays/1.0.0 has a description that TFDS cannot read .*prepare or copy'):
    open_source('tfds:plays', copy())


# --- What is not there --------------------------------------------------------------------------


def test_errors_say_what_there_is(plays):
  with pytest.raises(DataError, match=r"data.split='trian' is not a split of .*1.0.0 \(did you mean 'train'\?\)"):
    open_source('tfds:plays', plays, split='trian')
  with pytest.raises(DataError, match="data.validation='dev' is not a split of .*test"):
    open_source('tfds:plays', plays, validation='dev')
  with pytest.raises(DataError, match=r"data.split='train\[:x\]'"):
    open_source('tfds:plays', plays, split='train[:x]')
  for empty in ('train[:0]', 'train[5:3]'):
    with pytest.raises(DataError, match=re.escape(f"data.split='{empty}' holds no records; train of") + '.* has 20'):
      open_source('tfds:plays', plays, split=empty)
  with pytest.raises(DataError, match=r"data.field='txt' is not a feature of .*\(did you mean 'text'\?\), which"):
    open_source('tfds:plays', plays, field='txt')
  with pytest.raises(DataError, match="The field 'txt' of the templates is not a feature of .*act, answers"):
    open_source('tfds:plays', plays, inputs='{text}', targets='{txt}')
  with pytest.raises(DataError, match='looked for 2.0.0/dataset_info.json.*It has the versions 1.0.0'):
    open_source('tfds:plays:2.0.0', plays)
  with pytest.raises(ConfigError, match='tfds:NAME'):
    open_source('tfds:plays:latest', plays)


def test_configs_versions_and_other_formats(plays, tmp_path):
  for name in ('en/1.0.0', 'de/1.0.0', 'de/1.10.0', 'de/1.9.0'):
    shutil.copytree(plays / 'plays' / '1.0.0', tmp_path / 'plays' / name)
  assert len(records('tfds:plays/en', tmp_path)) == 20
  with pytest.raises(DataError, match='It holds the configs de, en: name one'):
    open_source('tfds:plays', tmp_path)
  for file in (tmp_path / 'plays' / 'de' / '1.10.0').glob('plays-train*'):
    file.unlink()
  with pytest.raises(DataError, match='3 of 3 files of .*/de/1.10.0 are missing'):  # the newest
    open_source('tfds:plays/de', tmp_path)
  assert len(records('tfds:plays/de:1.9.0', tmp_path)) == 20
  info = tmp_path / 'plays' / 'de' / '1.9.0' / 'dataset_info.json'
  info.write_text(info.read_text().replace('array_record', 'tfrecord'))
  with pytest.raises(DataError, match='stored as tfrecord, which only TensorFlow reads') as error:
    open_source('tfds:plays/de:1.9.0', tmp_path)
  command = f'tfds convert_format --dataset_version_dir={tmp_path}/plays/de/1.9.0 --out_file_format=array_record'
  assert command in str(error.value)
  # What that command leaves: array_record as a second format of the same dataset.
  info.write_text(info.read_text().replace('"fileFormat"', '"alternativeFileFormats": ["array_record"], "fileFormat"'))
  assert len(records('tfds:plays/de:1.9.0', tmp_path)) == 20


def missing(name, folder):
  with pytest.raises(DataError) as error:
    open_source(f'tfds:{name}', folder)
  return str(error.value)


def test_a_dataset_that_is_not_prepared(plays, tmp_path):
  message = missing('lm1b', plays)
  assert message.startswith(f"data.source='tfds:lm1b': no prepared dataset in {plays}/lm1b (looked for *.*.*/dataset_"
                            f'info.json; data.tfds_dir sets the folder). {plays} holds plays. To prepare it there: ')
  assert f"tfds.builder('lm1b', data_dir='{plays}', file_format='array_record').download_and_prepare()" in message
  assert 'only after minutes' in message and 'needs tensorflow (pip install tensorflow)' in message
  assert 'import tensorflow_datasets as tfds; ' in message  # known without its collection
  message = missing('wikipedia/20230601.en', tmp_path / 'none')
  assert 'none holds nothing' in message and 'tensorflow_datasets.text; tfds.builder' in message
  assert "'wikipedia/20230601.en'" in message and 'apache-beam (pip install apache-beam)' in message
  assert 'tensorflow_datasets.summarization; ' in missing('cnn_dailymail', plays)
  message = missing('wmt14_translate/de-en', plays)
  assert 'tensorflow_datasets.translate; ' in message and 'needs' not in message
  message = missing('wmt14', plays)
  assert "TFDS has no dataset 'wmt14' of text; the nearest names are wmt14_translate" in message
  assert "(did you mean 'plays'?)" in missing('play', plays)


def test_the_command_knows_the_datasets(tmp_path):
  lines = []
  for name in ('glue/cola', 'wmt14_translate/de-en', 'cnn_dailymail', 'wikipedia/20230601.en', 'squad'):
    code = re.search(r'python -c "(.*)"', missing(name, tmp_path))[1]
    lines.append(code.replace('.download_and_prepare()', '.info.features'))
  done = subprocess.run([sys.executable, '-c', '\n'.join(lines)], capture_output=True, text=True, cwd=ROOT)
  assert done.returncode == 0, done.stderr


# --- Far away -----------------------------------------------------------------------------------


@pytest.fixture
def remote(plays):
  store = fsspec.filesystem('memory')
  store.put(str(plays / 'plays'), '/datasets/plays', recursive=True)
  yield 'memory://datasets'
  store.rm('/datasets', recursive=True)


def test_a_remote_dataset_is_read_like_a_local_one(remote, plays, tmp_path, monkeypatch):
  monkeypatch.setattr(tempfile, 'tempdir', str(tmp_path))
  source = open_source('tfds:plays', remote, split='large')
  assert source.num_items == 3  # a file is copied for each
  assert list(source.documents()) == records('tfds:plays', plays, split='large')
  assert source.fingerprint == open_source('tfds:plays', plays, split='large').fingerprint
  assert records('tfds:plays', remote, split='large[400:450]') == records('tfds:plays', plays, split='large[400:450]')
  assert not list(tmp_path.iterdir())
  assert 'memory://datasets holds plays.' in missing('lm1b', remote)
  message = missing('glue', remote)
  assert 'in a local folder, to be copied: these files cannot be written to a URL): python -c' in message
  with pytest.raises(DataError, match="data.field='txt' is not a feature of memory://datasets/plays/1.0.0"):
    open_source('tfds:plays', remote, field='txt')
  fsspec.filesystem('memory').rm(f'/datasets/plays/1.0.0/{SHARD}')
  with pytest.raises(DataError, match=f'1 of 3 files of memory://datasets/plays/1.0.0 are missing, first {SHARD}'):
    open_source('tfds:plays', remote, split='large')


def test_a_remote_folder_that_does_not_answer(remote, monkeypatch):
  answer = threading.Event()
  monkeypatch.setattr(mirror, 'LIMIT', 0.2)
  monkeypatch.setattr(type(fsspec.filesystem('memory')), 'ls', lambda *_, **__: answer.wait(30) and [])
  with pytest.raises(DataError, match="data.tfds_dir='memory://datasets': memory://datasets did not answer within 0.2"):
    open_source('tfds:plays', remote)
  answer.set()


# --- The dataset that every machine has ----------------------------------------------------------


def test_python_docs_make_themselves_and_are_prepared(tmp_path):
  c = base()
  c.data.update(source='tfds:python_docs/documents', validation='validation', tfds_dir=str(tmp_path / 'tfds'),
                directory=str(tmp_path / 'prepared'), max_documents=40)
  c.vocabulary.update(name='bytes', sentinels=3)
  folder = prepare.prepare(c, say=lambda line: None)
  manifest = store.open_store(folder).manifest
  assert {split: entry['documents'] for split, entry in manifest['splits'].items()} == dict(train=40, validation=40)
  assert manifest['licence'] == 'PSF-2.0'
  python = '.'.join(map(str, sys.version_info[:3]))
  made = tmp_path / 'tfds' / 'python_docs' / 'documents' / python
  assert tfds_builder.VERSION == python and sorted(os.listdir(made.parent)) == [python]
  builder = tfds.builder_from_directory(made)
  assert set(builder.info.features) == {'text', 'id'} and builder.info.full_name == f'python_docs/documents/{python}'
  plain = {name: record['text'] for record, name in open_source('python_docs', '').documents()}
  found = {split: list(builder.as_data_source(split)) for split in ('train', 'validation')}
  assert {r['id'].decode(): r['text'].decode() for rows in found.values() for r in rows} == plain
  size = {split: sum(len(r['text']) for r in rows) for split, rows in found.items()}
  assert 0.005 < size['validation'] / size['train'] < 0.05
  modules = [{r['id'].decode().partition('#')[0] for r in rows} for rows in found.values()]
  assert not modules[0] & modules[1]
  stamp = (made / 'dataset_info.json').stat().st_mtime_ns
  c.data.split = 'train[:10%]'
  c.data.source = 'tfds:python_docs'
  sliced = list(registry.open_source(c).documents())
  assert texts(sliced) == [r['text'].decode() for r in builder.as_data_source('train[:10%]')]
  assert (made / 'dataset_info.json').stat().st_mtime_ns == stamp  # made once


TWO = '''
import sys
from t5like.config import base
from t5like.sources import registry as sources
c = base()
c.data.update(source='tfds:python_docs/functions', tfds_dir=sys.argv[1], field='docstring')
print(sum(1 for _ in sources.open_source(c).documents()))
'''


def test_two_processes_that_make_it_at_once(tmp_path):
  both = [subprocess.Popen([sys.executable, '-c', TWO, str(tmp_path)], cwd=ROOT, text=True, stdout=subprocess.PIPE,
                           stderr=subprocess.PIPE) for _ in range(2)]
  (one, error), (two, other) = [process.communicate() for process in both]
  assert int(one) == int(two) > 4000, error + other  # nothing else is printed
  assert len([text for text in (error, other) if 'another process is at work there' in text]) <= 1
  assert os.listdir(tmp_path / 'python_docs' / 'functions') == [tfds_builder.VERSION]
  builder = tfds.builder_from_directory(tmp_path / 'python_docs' / 'functions' / tfds_builder.VERSION)
  record = builder.as_data_source('train')[0]
  assert set(record) == {'name', 'kind', 'source', 'docstring', 'text'} and b'def ' in record['source']


def test_python_docs_on_a_remote_folder_and_its_errors(tmp_path, monkeypatch):
  few = [({'text': f'text {i}'}, f'module_{i}.py#0') for i in range(300)]
  monkeypatch.setattr(registry, '_python_docs',
                      lambda request: registry.Source(request.name, [0], lambda item: few, 1, {}))
  remote = fsspec.filesystem('memory')
  try:
    found = records('tfds:python_docs', 'memory://made')
    assert 280 < len(found) < 300 and 'python_docs/documents' in found[0][1]
    validation = list(open_source('tfds:python_docs', 'memory://made', validation='validation').documents())
    assert sorted(texts(found + validation)) == sorted(record['text'] for record, _ in few)
  finally:
    remote.rm('/made', recursive=True)
  with pytest.raises(ConfigError, match=r"python_docs/function' has no such config \(did you mean 'functions'\?\); "
                     'there are documents, functions'):
    open_source('tfds:python_docs/function', tmp_path)
  assert f'makes version {tfds_builder.VERSION} only' in missing('python_docs:2.7.0', tmp_path)
  (tmp_path / 'file').write_text('')
  with pytest.raises(DataError, match='could not be written to .*file: .*data.tfds_dir sets the folder'):
    open_source('tfds:python_docs', tmp_path / 'file')
