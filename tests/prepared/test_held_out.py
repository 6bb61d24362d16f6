"""Validation: at least one of few documents, files of their own that are never trained on, the old choices as ever."""
import json
import os

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from t5like import config as config_lib
from t5like.config import base, data_rules
from t5like.errors import ConfigError, DataError
from t5like.prepared import datasets, examples, held_out, manifests, parts, prepare, store
from t5like.sources import registry

QUIET = dict(say=lambda line: None)


def config(tmp_path, source, **keys):
  c = base()
  c.data.update(source=source, directory=str(tmp_path / 'prepared'), seq_len=16, **keys)
  c.vocabulary.update(name='bytes', sentinels=0)
  return c


def write(folder, count, seed=0, words=200):
  """Files of some words each; returns their texts."""
  folder.mkdir(parents=True, exist_ok=True)
  found = [' '.join(f'{seed}-{i}-{k}' for k in range(words)) for i in range(count)]
  for i, text in enumerate(found):
    (folder / f'{i:03}.txt').write_text(text)
  return found


def texts_of(folder, split):
  """The documents of a split, decoded, from end to end."""
  opened = store.open_store(folder)
  tokens = np.concatenate([row[row >= 0] for row in opened.windows(split, 5, tail=True)])
  ends = np.flatnonzero(tokens == opened.vocabulary.eos_id)
  assert ends[-1] == len(tokens) - 1
  return [opened.vocabulary.decode(part) for part in np.split(tokens, ends + 1)[:-1]]


def number(text):
  return examples.hash_number((text,)) / 2**64


def seed_without_validation(count, fraction=0.01):
  """A seed for `write` whose texts all hash above the fraction."""
  return next(seed for seed in range(1000) if all(
      number(' '.join(f'{seed}-{i}-{k}' for k in range(200))) >= fraction for i in range(count)))


# --- Few documents ----------------------------------------------------------------------------------


@pytest.mark.parametrize('count', [2, 3, 43])
def test_few_documents_keep_the_one_with_the_smallest_hash(tmp_path, count):
  texts = write(tmp_path / 'in', count, seed_without_validation(count))
  said = []
  folder = prepare.prepare(config(tmp_path, f'text:{tmp_path}/in/*.txt'), said.append)
  chosen = min(texts, key=number)
  assert texts_of(folder, 'validation') == [chosen]
  assert sorted(texts_of(folder, 'train')) == sorted(set(texts) - {chosen})
  [line] = [line for line in said if 'to validate on' in line]
  assert f'{count} documents' in line and 'data.validation_fraction=0.01' in line


@pytest.mark.parametrize('length, tail', [(10, 1), (1000, 100), (100_000, 2000), (1_000_000, 10_000)])
def test_a_single_document_keeps_its_tail(tmp_path, length, tail):
  text = ('abcdefghij' * (length // 10))[:length]
  (tmp_path / 'one.txt').write_text(text)
  said = []
  folder = prepare.prepare(config(tmp_path, f'text:{tmp_path}/one.txt'), said.append)
  assert texts_of(folder, 'train') == [text[:-tail]] and texts_of(folder, 'validation') == [text[-tail:]]
  assert any(f'its last {tail:,} characters of {length:,}' in line for line in said)


def test_copies_of_one_document_are_cut_so_that_no_tail_is_trained_on(tmp_path):
  for i in range(5):
    (tmp_path / f'{i}.txt').write_text('abcdefghij' * 100)
  folder = prepare.prepare(config(tmp_path, f'text:{tmp_path}/*.txt'), **QUIET)
  assert set(texts_of(folder, 'train')) == {'abcdefghij' * 90}
  assert set(texts_of(folder, 'validation')) == {'abcdefghij' * 10}


def test_where_all_would_validate_one_is_trained_on(tmp_path):
  texts = write(tmp_path / 'in', 3)
  c = config(tmp_path, f'text:{tmp_path}/in/*.txt', validation_fraction=max(map(number, texts)) + 1e-6)
  folder = prepare.prepare(c, **QUIET)
  assert texts_of(folder, 'train') == [max(texts, key=number)] and len(texts_of(folder, 'validation')) == 2


def test_one_pair_cannot_be_cut(tmp_path):
  (tmp_path / 'a.jsonl').write_text('{"a": "in", "b": "out"}\n')
  c = config(tmp_path, f'jsonl:{tmp_path}/a.jsonl', inputs='{a}', targets='{b}')
  with pytest.raises(DataError, match='has one example of data.inputs and data.targets.*give more'):
    prepare.prepare(c, **QUIET)
  (tmp_path / 'a.jsonl').write_text('{"a": "in", "b": "out"}\n{"a": "in", "b": "other"}\n')
  folder = prepare.prepare(c, **QUIET)
  assert {split: entry['documents'] for split, entry in store.open_store(folder).manifest['splits'].items()} == dict(
      train=1, validation=1)


@pytest.mark.parametrize('vocabulary', ['characters', 'sentencepiece'])
def test_vocabularies_are_made_of_what_is_trained_on(tmp_path, vocabulary):
  texts = write(tmp_path / 'in', 3, seed_without_validation(3))
  c = config(tmp_path, f'text:{tmp_path}/in/*.txt')
  c.vocabulary.update(name=vocabulary, size=300, sentinels=4)
  folder = prepare.prepare(c, **QUIET)
  assert texts_of(folder, 'validation') == [min(texts, key=number)]


def test_parts_in_processes_and_again_give_the_same_bytes(tmp_path):
  write(tmp_path / 'in', 8, seed_without_validation(8))
  found = []
  for name, workers in (('a', 1), ('b', 1), ('c', 2)):
    c = config(tmp_path, f'text:{tmp_path}/in/*.txt', shards=4, prepare_workers=workers)
    c.data.directory = str(tmp_path / name)
    if name == 'b':  # interrupted in its last part
      jobs_done = []

      def run(function, jobs, done=jobs_done):
        for job in jobs[:-1]:
          function(job)
          done.append(job)
          yield job['number']
        raise KeyboardInterrupt
      with pytest.raises(KeyboardInterrupt):
        prepare.prepare(c, run=run, **QUIET)
      assert len(jobs_done) == 3
    found.append(manifests.read(prepare.prepare(c, **QUIET))['fingerprint'])
  assert len(set(found)) == 1


def test_hashes_that_fill_both_splits_are_left_alone(tmp_path):
  """What was prepared before is prepared to the same bytes: the plan has nothing more in it."""
  texts = write(tmp_path / 'in', 40)
  c = config(tmp_path, f'text:{tmp_path}/in/*.txt', validation_fraction=0.2)
  opened = parts.open_sources(c)
  plan = dict(parts=parts.parts(c, opened))
  assert held_out.find(c, opened, plan) == (None, '')
  folder = prepare.prepare(c, **QUIET)
  assert sorted(texts_of(folder, 'validation')) == sorted(text for text in texts if number(text) < 0.2)


@pytest.mark.parametrize('validation, fraction, name, fingerprint', [
    ('hash', 0.2, 'text-in-txt-49dc6055d5', '4924b0b4d800710c'),
    ('tail', 0.1, 'text-in-txt-7428fd3539', '1ce10c52e0db0848')])
def test_datasets_that_had_validation_text_are_the_same_as_ever(tmp_path, monkeypatch, validation, fraction, name,
                                                                fingerprint):
  """Folder and digest of all tokens as the version made them that knew neither files nor few documents."""
  write(tmp_path / 'in', 40)
  monkeypatch.chdir(tmp_path)
  c = config(tmp_path, 'text:in/*.txt', validation=validation, validation_fraction=fraction, shards=3)
  c.data.directory = 'prepared'
  c.vocabulary.sentinels = 4
  folder = prepare.prepare(c, **QUIET)
  assert folder.name == name and manifests.read(folder)['fingerprint'].startswith(fingerprint)


def test_only_as_much_is_read_as_it_takes(tmp_path, monkeypatch):
  write(tmp_path / 'in', 200, words=3)
  c = config(tmp_path, f'text:{tmp_path}/in/*.txt', validation_fraction=0.5)
  opened, read = parts.open_sources(c), []
  documents = registry.Source.documents

  def counted(self, start=0, stop=None):
    for pair in documents(self, start, stop):
      read.append(pair)
      yield pair
  monkeypatch.setattr(registry.Source, 'documents', counted)
  assert held_out.find(c, opened, dict(parts=parts.parts(c, opened)))[0] is None
  assert len(read) < 30


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text('ab', min_size=1, max_size=30), min_size=1, max_size=12), st.floats(1e-6, 1 - 1e-6))
def test_any_documents_leave_both_splits_something_and_lose_nothing(tmp_path_factory, texts, fraction):
  c = base()
  c.data.validation_fraction = fraction

  class Few:
    def documents(self, start=0, stop=None):
      yield from ((dict(text=text), str(i)) for i, text in enumerate(texts))
  plan = dict(parts=[dict(source='train', start=0, stop=1, last=None)])
  held, line = held_out.find(c, dict(train=Few()), plan)
  pieces = [piece for text in texts for piece in examples.split_example((text,), 'train', c, held)]
  splits = {split for split, _ in pieces}
  assert 'validation' in splits and ('train' in splits or set(map(len, texts)) == {1})
  assert ''.join(text for _, (text,) in pieces) == ''.join(texts)
  assert bool(held) == bool(line)
  if not (held and 'cut' in held):  # no text is on both sides
    sides = {split: {text for s, (text,) in pieces if s == split} for split in splits}
    assert not sides['validation'] & (sides['train'] if 'train' in sides else set())


# --- Files of their own -----------------------------------------------------------------------------


@pytest.mark.parametrize('validation', ['text:{}/dev/*.txt', '{}/dev/*.txt', 'jsonl:{}/dev.jsonl'])
def test_validation_files(tmp_path, validation):
  train, dev = write(tmp_path / 'in', 20), write(tmp_path / 'dev', 3, seed=1)
  (tmp_path / 'dev.jsonl').write_text(''.join(json.dumps(dict(text=text)) + '\n' for text in dev))
  c = config(tmp_path, f'text:{tmp_path}/in/*.txt', validation=validation.format(tmp_path), shards=2)
  folder = prepare.prepare(c, **QUIET)
  assert sorted(texts_of(folder, 'train')) == sorted(train) and sorted(texts_of(folder, 'validation')) == sorted(dev)
  manifest = manifests.read(folder)
  assert set(manifest['inputs']) == {'train', 'validation'} and f'{tmp_path}/dev' in json.dumps(manifest['inputs'])
  assert folder.name != datasets.folder(config(tmp_path, c.data.source)).name
  (tmp_path / 'dev' / '000.txt').write_text('changed')
  (tmp_path / 'dev.jsonl').write_text('{"text": "changed"}\n')
  with pytest.raises(DataError, match='has changed since it was prepared'):
    prepare.prepare(c, **QUIET)


@pytest.mark.parametrize('kind', ['text', 'jsonl'])
def test_validation_files_are_never_trained_on_though_the_glob_of_the_source_has_them(tmp_path, kind):
  folder = tmp_path / 'all'
  texts = write(folder, 12)
  if kind == 'jsonl':
    for i, text in enumerate(texts):
      (folder / f'{i:03}.txt').write_text(json.dumps(dict(text=text)) + '\n')
  os.symlink(folder / '003.txt', folder / '900.txt')  # another name for a file that validates
  said = []
  c = config(tmp_path, f'{kind}:{tmp_path}/all/*.txt', validation=f'{kind}:{tmp_path}/all/../all/00[0-4].txt')
  made = prepare.prepare(c, said.append)
  assert sorted(texts_of(made, 'validation')) == sorted(texts[:5])
  assert sorted(texts_of(made, 'train')) == sorted(texts[5:])
  assert any('6 files' in line and 'not trained on' in line for line in said)
  opened = store.open_store(made)
  names = [name for name, *_ in opened.names('train', 0, opened.manifest['splits']['train']['tokens'])]
  assert not any(name.split('/')[-1].startswith(('000', '001', '002', '003', '004', '900')) for name in names)


def test_repeated_texts_stay_with_validation_where_they_are_deduplicated(tmp_path):
  texts = write(tmp_path / 'in', 6)
  (tmp_path / 'dev.txt').write_text(texts[2])  # a copy under another name
  c = config(tmp_path, f'text:{tmp_path}/in/*.txt', validation=f'{tmp_path}/dev.txt', deduplicate=True)
  folder = prepare.prepare(c, **QUIET)
  assert texts_of(folder, 'validation') == [texts[2]]
  assert sorted(texts_of(folder, 'train')) == sorted(set(texts) - {texts[2]})


def test_validation_on_what_is_not_there_or_is_all_there_is(tmp_path):
  write(tmp_path / 'in', 3)
  source = f'text:{tmp_path}/in/*.txt'
  with pytest.raises(DataError, match='data.validation=.*no file matches'):
    prepare.prepare(config(tmp_path, source, validation=f'{tmp_path}/no/*.txt'), **QUIET)
  with pytest.raises(DataError, match='all of its 3 files are validation files'):
    prepare.prepare(config(tmp_path, source, validation=f'text:{tmp_path}/in/*'), **QUIET)


@pytest.mark.parametrize('source, validation, words', [
    ('text:a/*.txt', 'hsah', ["did you mean 'hash'"]),
    ('text:a/*.txt', 'Tail', ["did you mean 'tail'"]),
    ('text:a/*.txt', 'dev', ['only TFDS datasets have named splits', 'text:validation/*.txt']),
    ('text:a/*.txt', 'txt:b/*.txt', ["data.validation='txt:b/*.txt'", "Did you mean 'text'"]),
    ('text:a/*.txt', 'text:', ['data.validation', 'write text:GLOB']),
    ('text:a/*.txt', 'text:a/*.txt', ['data.source itself']),
    ('python_docs', 'a/*.txt', ['only TFDS datasets have named splits']),
    ('python_docs', 'markov:99', ["data.validation='markov:99'", '2 to 26']),
], ids=lambda v: v if isinstance(v, str) else None)
def test_wrong_validation_is_refused_before_anything_is_read(source, validation, words):
  c = base()
  c.data.update(source=source, validation=validation)
  c.stop.tokens = 10**9
  with pytest.raises(ConfigError) as e:
    config_lib.validate(c)
  assert all(word in str(e.value) for word in words), str(e.value)


@pytest.mark.parametrize('source, validation, expected', [
    ('text:a', 'hash', ''), ('text:a', 'tail', ''), ('tfds:c4/en', 'validation', ''), ('tfds:x', 'train[:1%]', ''),
    ('text:a', 'b/*.txt', 'text:b/*.txt'), ('jsonl:a', 'gs://b/c.jsonl', 'jsonl:gs://b/c.jsonl'),
    ('text:a', 'jsonl:b', 'jsonl:b'), ('python_docs', 'python_functions', 'python_functions'),
    ('parquet:a', 'https://h/b.parquet', 'parquet:https://h/b.parquet'), ('tfds:x', 'text:b', 'text:b')])
def test_what_data_validation_means(source, validation, expected):
  c = base()
  c.data.update(source=source, validation=validation)
  assert data_rules.validation_source(c.data) == expected
