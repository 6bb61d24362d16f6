"""Public datasets: the names in configs resolve, files of the Hub's layout are read, and what the pages say is true."""
import gzip
import importlib
import io
import json
import re
import shlex

import pyarrow
import pyarrow.parquet
import pytest
import zstandard

from t5like import config as config_lib
from t5like.config import templates
from t5like.errors import DataError
from t5like.prepared import opening, prepare
from t5like.sources import corpora, registry, tfds_catalogue
from tests import hub, tiny
from tests.config.test_configs import EVERY
from tests.conftest import ROOT

HF_PATH = re.compile(r'(jsonl|parquet):hf://datasets/[\w.-]+/[\w.-]+/[^\s?]+')
RECORDS = dict(  # by the Hub's repository; all others have `text`
    cnn_dailymail=dict(article='A long day.', highlights='Day.', id='1'),
    wmt14=dict(translation=dict(de='Guten Tag', en='Good day')),
    wmt17=dict(translation=dict(de='Guten Tag', en='Good day')),
    glue=dict(sentence='fine', label=1, idx=0),
    squad=dict(id='1', question='Who?', context='She did.', answers=dict(text=['She'], answer_start=[0])))


def corpus_sources(corpus):
  """The values of data.source and data.validation that read files."""
  return [corpus.data[key] for key in ('source', 'validation') if ':' in corpus.data[key]]


def file_content(path, records):
  lines = ''.join(json.dumps(record) + '\n' for record in records).encode()
  if path.endswith('.gz'):
    return gzip.compress(lines)
  if path.endswith('.zst'):
    return zstandard.compress(lines)
  table = io.BytesIO()
  pyarrow.parquet.write_table(pyarrow.Table.from_pylist(records), table)
  return table.getvalue()


def repository_of(corpus):
  """{path: bytes} with two files for each glob of a Corpus."""
  record = RECORDS.get(corpus.page.partition('/')[2], dict(text='Some text.'))
  files = {}
  for source in corpus_sources(corpus):
    pattern = source.partition(f'{corpora.HUB}/{corpus.page}/')[2].replace('**', 'plain_text')
    for number in range(2 if '*' in pattern else 1):
      path = pattern.replace('*', f'{number:05}-of-00002')
      files[path] = file_content(path, [record, record])
  return files


def open_source(source, **data):
  config = config_lib.load(ROOT / 'configs' / 'decoder_tiny.py')
  config.data.update(source=source, **data)
  return registry.open_source(config)


def config_sources():
  """{data.source: config that has it}, of all configs, their variants and the components of their mixtures."""
  names = {}
  for name, variant in EVERY:
    config = config_lib.load(f'{ROOT}/configs/{name}.py' + (f':{variant}' if variant else ''))
    parts = [config.data, *(part.data for part in config.data.mixture.values() if 'data' in part)]
    names.update({part.source: f'{name}:{variant}' for part in parts if 'source' in part})
  return names


def test_every_source_of_a_config_resolves():
  """tfds: names are those of a builder and its config in TFDS; hf:// paths are those of a known corpus."""
  import tensorflow_datasets as tfds
  for collection in tfds_catalogue.COLLECTIONS:
    importlib.import_module(f'tensorflow_datasets.{collection}')
  names = config_sources()
  known = {source for corpus in corpora.CORPORA.values() for source in corpus_sources(corpus)}
  assert sum(source.startswith('tfds:') for source in names) >= 6
  for source, config in names.items():
    if '://' in source:
      assert source in known, f'{config}: {source}'
    if source.startswith('tfds:'):
      name, _, part = source.removeprefix('tfds:').partition('/')
      builder = tfds.builder_cls(name)
      parts = {c.name for c in builder.BUILDER_CONFIGS}
      assert not part or part in parts, f'{config}: {source}, TFDS has {sorted(parts)[:20]}'


def test_large_sources_of_configs_have_a_way_around_tfds():
  """What cannot be had from TFDS without days of work is read from the Hub."""
  for source, config in config_sources().items():
    name = source.removeprefix('tfds:')
    if source.startswith('tfds:') and name not in ('lm1b', 'pg19'):
      assert corpora.find(name), f'{config}: {source}'


@pytest.mark.parametrize('name', corpora.CORPORA)
def test_files_of_the_hub_are_read(name, monkeypatch):
  corpus = corpora.CORPORA[name]
  fields = {key: value for key, value in corpus.data.items() if key in ('inputs', 'targets')}
  if corpus.page.endswith(('/glue', '/squad')):
    fields = dict(field=dict(glue='sentence', squad='context')[corpus.page.partition('/')[2]])
  with hub.serve({corpus.page: repository_of(corpus)}, monkeypatch):
    for source in corpus_sources(corpus):
      assert HF_PATH.fullmatch(source), source
      opened = open_source(source, **fields)
      records = list(opened.documents())
      assert len(records) == (4 if '*' in source else 2)
      config = config_lib.load(ROOT / 'configs' / 'decoder_tiny.py')
      config.data.update(fields)
      for record, where in records:
        assert all(templates.texts(config.data, record, where))


def test_tokens_of_the_hub_are_prepared(monkeypatch, tmp_path):
  """Both kinds of files by `prepare`, in processes of its own; validation text is that of its files alone."""
  corpus = corpora.CORPORA['c4/realnewslike']
  words = [dict(text=f'the text of document {n} ' * 8) for n in range(40)]
  with hub.serve({corpus.page: {
      'realnewslike/c4-train.00000-of-00512.json.gz': file_content('x.gz', words[:20]),
      'realnewslike/c4-train.00001-of-00512.json.gz': file_content('x.gz', words[20:36]),
      'realnewslike/c4-validation.00000-of-00001.json.gz': file_content('x.gz', words[36:])}}, monkeypatch):
    config = tiny.config(tmp_path, data=dict(corpus.data, prepare_workers=2))
    prepare.prepare(config)
    data = opening.open_data(config)
  splits = data.manifest['splits']
  assert splits['train']['documents'] == 36 and splits['validation']['documents'] == 4


def test_another_version_of_a_file_is_noticed(monkeypatch):
  corpus = corpora.CORPORA['c4/realnewslike']
  files = repository_of(corpus)
  with hub.serve({corpus.page: files}, monkeypatch):
    before = open_source(corpus.data['source']).fingerprint
  changed = {path: file_content(path, [dict(text='Some teXt.')] * 2) for path in files}
  with hub.serve({corpus.page: changed}, monkeypatch):
    after = open_source(corpus.data['source']).fingerprint
  assert [file[0] for file in before['files']] == [file[0] for file in after['files']] and before != after


def test_a_repository_that_is_not_there(monkeypatch):
  with hub.serve({}, monkeypatch), pytest.raises(DataError) as error:
    open_source('parquet:hf://datasets/some/thing/*.parquet')
  assert 'some/thing' in str(error.value)


def test_files_of_any_web_server_are_read(monkeypatch):
  content = gzip.compress(b'{"text": "One."}\n{"text": "Two."}\n')
  with hub.serve({'some/texts': {'part.jsonl.gz': content}}, monkeypatch) as address:
    opened = open_source(f'jsonl:{address}/datasets/some/texts/resolve/main/part.jsonl.gz')
    assert [record['text'] for record, _ in opened.documents()] == ['One.', 'Two.']


@pytest.mark.parametrize('name', ['c4/en', 'c4/multilingual', 'wikipedia/20230601.en', 'cnn_dailymail',
                                  'wmt14_translate/de-en', 'openwebtext'])
def test_errors_say_how_to_read_it_from_the_hub(name, tmp_path):
  with pytest.raises(DataError) as error:
    open_source(f'tfds:{name}', tfds_dir=str(tmp_path))
  message = str(error.value)
  assert corpora.flags(corpora.find(name)) in message and "pip install -e '.[hf]'" in message
  assert 'download_and_prepare' not in message or not name.startswith('c4')


def test_flags_are_what_a_shell_passes_on():
  for corpus in corpora.CORPORA.values():
    words = shlex.split(corpora.flags(corpus))
    assert dict(word.removeprefix('--config.data.').split('=', 1) for word in words) == corpus.data


def test_the_page_has_every_corpus():
  page = (ROOT / 'docs' / 'datasets.md').read_text(encoding='utf-8')
  words = set(re.sub(r'\\\n\s*', ' ', page).split())
  for name, corpus in corpora.CORPORA.items():
    assert corpus.title in page and corpus.page in page and corpus.size in page and corpus.licence in page, name
    for flag in shlex.split(corpora.flags(corpus)):
      assert shlex.quote(flag).split()[0] in words, f'{name}: {flag}'
