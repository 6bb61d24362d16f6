"""prepare: the same bytes every time, also after a kill; splits; what changed; TFDS reads it."""

import gzip
import hashlib
import json
import os
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest

from t5like import config as config_lib
from t5like.config import base
from t5like.errors import ConfigError, DataError
from t5like.objectives import lengths
from t5like.prepared import datasets, duplicates, examples, opening, parts, prepare, store
from t5like.sources import registry
from t5like.vocabulary import loading

ROOT = pathlib.Path(__file__).parents[2]
QUIET = dict(say=lambda line: None)
# Examples and the numbers that place them, from `printf 'in\\0out' | sha256sum`.
SPLITS = {('hello',): 0x2cf24dba5fb0a30e / 2**64, ('a document of several words',): 0xb37ce3eeafea62a2 / 2**64,
          ('in', 'out'): 0xc019ee9121ee0663 / 2**64}


@pytest.fixture
def make(tmp_path):
  """Writes 4 files of 250 documents and returns configs that read them."""
  draw = np.random.RandomState(0)
  words = ['alpha', 'beta', 'gamma', 'delta', 'epsilon', 'zeta', 'eta', 'theta']
  for f in range(4):
    with open(tmp_path / f'{f}.jsonl', 'w') as file:
      for i in range(250):
        text = ' '.join(draw.choice(words, draw.randint(1, 60))) + f' {f} {i}'
        file.write(json.dumps(dict(text=text if i != 7 else ' \n')) + '\n')

  def config(vocabulary='bytes', **keys):
    c = base()
    c.data.update(dict(source=f'jsonl:{tmp_path}/*.jsonl', directory=str(tmp_path / 'prepared'),
                       validation_fraction=0.1, shards=4) | keys)
    c.vocabulary.update(name=vocabulary, sentinels=3)
    return c

  return config


def documents(folder, split):
  """Decodes every document of a split, from EOS to EOS."""
  data = store.open_store(folder)
  tokens = np.concatenate([row[row >= 0] for row in data.windows(split, 500, tail=True)])
  ends = np.flatnonzero(tokens == data.vocabulary.eos_id)
  assert ends[-1] == len(tokens) - 1
  return [data.vocabulary.decode(part) for part in np.split(tokens, ends + 1)[:-1]]


def hashes(folder):
  return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.iterdir())}


def test_every_document_is_there_once_in_order_and_the_manifest_counts_it(make):
  c = make()
  said = []
  folder = prepare.prepare(c, said.append)
  texts = [r['text'] for r, _ in registry.open_source(c).documents() if r['text'].strip()]
  hashed = {t: int(hashlib.sha256(t.encode()).hexdigest()[:16], 16) / 2**64 for t in texts}
  expected = dict(train=[t for t in texts if hashed[t] >= 0.1],
                  validation=[t for t in texts if hashed[t] < 0.1])
  manifest = store.open_store(folder).manifest
  assert manifest['dropped'] == 4 and '4 empty documents dropped' in said
  for split, wanted in expected.items():
    assert documents(folder, split) == wanted
    entry = manifest['splits'][split]
    assert entry['documents'] == len(wanted) and len(entry['shards']) == 4
    assert entry['bytes'] == sum(len(t.encode()) for t in wanted)
    assert entry['tokens'] == entry['bytes'] + len(wanted)
    for shard in entry['shards']:
      assert hashlib.sha256((folder / shard['file']).read_bytes()).hexdigest() == shard['sha256']
  assert manifest['dtype'] == 'uint16' and manifest['max_id'] == ord('z') + 3
  assert not [p for p in folder.iterdir() if 'part' in p.name or '.tmp' in p.name]


def test_preparing_again_does_nothing_and_elsewhere_gives_the_same_bytes(make, tmp_path):
  folder = prepare.prepare(make(), **QUIET)
  before = {p: p.stat().st_mtime_ns for p in folder.iterdir()}
  said = []
  assert prepare.prepare(make(), said.append) == folder
  assert said == [f'{folder}: prepared already.']
  assert {p: p.stat().st_mtime_ns for p in folder.iterdir()} == before
  other = prepare.prepare(make(directory=str(tmp_path / 'other')), **QUIET)
  assert hashes(other) == hashes(folder)


@pytest.mark.parametrize('calls', [1, 3, 5])
def test_killed_prepare_continues_to_the_same_bytes(make, tmp_path, calls):
  """The child dies by SIGKILL in the middle of a part, `calls` batches in."""
  c = make(directory=str(tmp_path / 'killed'))
  child = (
      'import os, sys, signal; from t5like.config import base; '
      'from t5like.prepared import prepare, shards; from t5like.vocabulary import loading as vocabulary\n'
      'c = base(); c.data.update(source=sys.argv[1], directory=sys.argv[2], shards=4, '
      'validation_fraction=0.1); c.vocabulary.update(name="bytes", sentinels=3)\n'
      'shards.BATCH = 20_000; encode, calls = vocabulary.Bytes.encode_batch, [0]\n'
      'def die(self, texts):\n'
      '  calls[0] += 1\n'
      '  if calls[0] > int(sys.argv[3]): os.kill(os.getpid(), signal.SIGKILL)\n'
      '  return encode(self, texts)\n'
      'vocabulary.Bytes.encode_batch = die; prepare.prepare(c)\n')
  died = subprocess.run([sys.executable, '-c', child, c.data.source, c.data.directory, str(calls)],
                        cwd=ROOT, capture_output=True, text=True)
  assert died.returncode == -9, died.stderr
  folder = prepare.folder(c)
  done = sorted(p.name for p in folder.glob('part-*.json'))
  assert list(folder.glob('*.tmp')) and len(done) < 4
  with pytest.raises(DataError, match='prepare did not finish in .*run it again'):
    store.open_store(folder)
  kept = {p: p.stat().st_ino for p in folder.glob('tokens-*') if p.suffix != '.tmp'}
  assert len(kept) == 2 * len(done)
  prepare.prepare(c, **QUIET)
  assert all(p.stat().st_ino == inode for p, inode in kept.items())
  whole = prepare.prepare(make(directory=str(tmp_path / 'whole')), **QUIET)
  assert hashes(whole) == hashes(folder)


def test_interrupted_then_changed_source_starts_anew(make, tmp_path):
  c = make('characters')
  folder = prepare.folder(c)

  def stop(line):
    if line.startswith('part 2'):
      raise KeyboardInterrupt
  with pytest.raises(KeyboardInterrupt):
    prepare.prepare(c, stop)
  with open(tmp_path / '3.jsonl', 'a') as f:
    f.write('{"text": "Ω"}\n')
  prepare.prepare(c, **QUIET)
  assert 'Ω' in documents(folder, 'train') + documents(folder, 'validation')


def test_changed_source_is_refused(make, tmp_path):
  folder = prepare.prepare(make(), **QUIET)
  content = (tmp_path / '2.jsonl').read_bytes()
  (tmp_path / '2.jsonl').write_bytes(content + b'{"text": "more"}\n')
  with pytest.raises(DataError, match='has changed .*2.jsonl.*delete that folder'):
    prepare.prepare(make(), **QUIET)
  (tmp_path / '2.jsonl').unlink()
  with pytest.raises(DataError, match='1 differences, first .*2.jsonl: gone'):
    prepare.prepare(make(), **QUIET)
  for file in tmp_path.glob('*.jsonl'):
    file.unlink()
  said = []
  assert prepare.prepare(make(), said.append) == folder
  assert 'Its source does not exist any more' in said[0]


def test_lost_and_broken_shards_are_made_again(make):
  folder = prepare.prepare(make(), **QUIET)
  before = hashes(folder)
  inodes = {p.name: p.stat().st_ino for p in folder.glob('tokens-*')}
  (folder / 'tokens-train.array_record-00001-of-00004').unlink()
  with open(folder / 'tokens-validation.array_record-00002-of-00004', 'ab') as f:
    f.write(b'x')
  prepare.prepare(make(), **QUIET)
  assert hashes(folder) == before
  for name, inode in inodes.items():
    if '-00000-' in name or '-00003-' in name:
      assert (folder / name).stat().st_ino == inode


def test_tail_validation_is_the_end_of_each_document(make):
  c = make(validation='tail', shards=1)
  folder = prepare.prepare(c, **QUIET)
  texts = [r['text'] for r, _ in registry.open_source(c).documents() if r['text'].strip()]
  cuts = [int(len(t) * 0.9) for t in texts]
  assert documents(folder, 'train') == [t[:k] for t, k in zip(texts, cuts)]
  assert documents(folder, 'validation') == [t[k:] for t, k in zip(texts, cuts)]


def test_max_documents_and_shards(make):
  c = make(max_documents=300, shards=2)
  folder = prepare.prepare(c, **QUIET)
  entry = store.open_store(folder).manifest['splits']
  assert sum(split['documents'] for split in entry.values()) == 298  # 2 are empty
  assert len(entry['train']['shards']) == 2
  texts = [r['text'] for r, _ in list(registry.open_source(c).documents())[:300] if r['text'].strip()]
  assert sorted(documents(folder, 'train') + documents(folder, 'validation')) == sorted(texts)


def test_tfds_reads_the_folder(make):
  import tensorflow_datasets as tfds
  folder = prepare.prepare(make(shards=2), **QUIET)
  data = store.open_store(folder)
  for split in data.splits:
    records = tfds.builder_from_directory(folder).as_data_source(split)
    theirs = np.concatenate([r['tokens'][:r['n']] for r in records])
    assert records[0]['tokens'].shape == (4096,) and records[0]['tokens'].dtype == np.uint16
    ours = np.concatenate([row[row >= 0] for row in data.windows(split, 1000, tail=True)])
    assert np.array_equal(theirs, ours)
  assert 'tensorflow' not in sys.modules


def test_tfds_dataset_with_its_own_validation_split(make, tmp_path):
  import tensorflow_datasets as tfds

  class Notes(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version('2.1.0')

    def _info(self):
      return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(
          dict(body=tfds.features.Text())))

    def _split_generators(self, manager):
      return {'train': self._generate_examples(90), 'dev': self._generate_examples(10)}

    def _generate_examples(self, count):
      for i in range(count):
        yield i, dict(body=f'note {i} of {count}')

  Notes(data_dir=tmp_path / 'tfds', file_format='array_record').download_and_prepare()
  keys = dict(source='tfds:notes', field='body', tfds_dir=str(tmp_path / 'tfds'), shards=3)
  folder = prepare.prepare(make(validation='dev', **keys), **QUIET)
  assert sorted(documents(folder, 'validation')) == sorted(f'note {i} of 10' for i in range(10))
  assert sorted(documents(folder, 'train')) == sorted(f'note {i} of 90' for i in range(90))
  with pytest.raises(ConfigError, match="data.validation='dev' names a split"):
    prepare.prepare(make(validation='dev'), **QUIET)


def test_python_docs_with_a_small_sentencepiece(make):
  c = make('sentencepiece', source='python_docs', max_documents=100, shards=0)
  c.vocabulary.update(size=512, normalization='identity', train_characters=100_000)
  folder = prepare.prepare(c, **QUIET)
  texts = documents(folder, 'train') + documents(folder, 'validation')
  assert sorted(texts) == sorted([r['text'] for r, _ in registry.open_source(c).documents()][:100])
  assert store.open_store(folder).manifest['licence'] == 'PSF-2.0'


def test_imported_vocabulary_is_copied_and_watched(make, tmp_path):
  c = make('sentencepiece')
  c.vocabulary.update(size=320)
  model = prepare.prepare(c, **QUIET) / 'vocabulary'
  shutil.copy(model, tmp_path / 'my.model')
  c.vocabulary.path = str(tmp_path / 'my.model')
  folder = prepare.prepare(c, **QUIET)
  assert (folder / 'vocabulary').read_bytes() == model.read_bytes()
  (tmp_path / 'my.model').write_bytes(b'other')
  with pytest.raises(DataError, match='has changed since'):
    prepare.prepare(c, **QUIET)


def test_large_vocabularies_take_int32(make, tmp_path):
  (tmp_path / 'wide.txt').write_text(''.join(map(chr, range(32, 0xD800))) +
                                     ''.join(map(chr, range(0xE000, 0x14000))), encoding='utf-8')
  c = make('characters', source=f'text:{tmp_path}/wide.txt', validation='tail', shards=0)
  c.vocabulary.sentinels = 0
  data = store.open_store(prepare.prepare(c, **QUIET))
  assert data.manifest['dtype'] == 'int32' and data.vocabulary.size > 65536
  tokens = np.concatenate([row[row >= 0] for row in data.windows('train', 777, tail=True)])
  size = int((data.vocabulary.size - 3) * 0.9)
  assert np.array_equal(tokens[:-1], np.arange(size) + 3) and data.manifest['max_id'] > 65536


def test_characters_without_specials_cover_validation_too(make, tmp_path):
  (tmp_path / 'a.txt').write_text('abcabc' * 50 + 'XYZ')
  c = make('characters', source=f'text:{tmp_path}/a.txt', validation='tail', document_mask=False)
  c.vocabulary.specials = False
  data = store.open_store(prepare.prepare(c, **QUIET))
  assert data.vocabulary.size == 6 and data.vocabulary.eos_id is None
  rows = [list(data.windows(split, 10, tail=True)) for split in ('train', 'validation')]
  tokens = np.concatenate(sum(rows, []))
  assert data.vocabulary.decode(tokens[tokens >= 0]) == 'abcabc' * 50 + 'XYZ'


def test_text_that_cannot_be_used(make, tmp_path):
  (tmp_path / 'empty.txt').write_text(' \n')
  for name in ('bytes', 'characters', 'sentencepiece'):
    with pytest.raises(DataError, match="empty.txt' holds no text: 1 documents"):
      prepare.prepare(make(name, source=f'text:{tmp_path}/empty.txt'), **QUIET)
  (tmp_path / 'one.txt').write_text('only one')
  (tmp_path / 'bad.json').write_text('{"text": "\\ud800"}\n')
  with pytest.raises(DataError, match='bad.json line 1, .* half of a surrogate pair'):
    prepare.prepare(make(source=f'jsonl:{tmp_path}/bad.json'), **QUIET)


def test_folder_differs_with_what_changes_tokens_only(make):
  name = prepare.folder(make()).name
  assert name.startswith('jsonl-tmp') and prepare.folder(make(seq_len=7, workers=2)).name == name
  others = [dict(field='x'), dict(validation='tail'), dict(validation_fraction=0.2), dict(shards=1),
            dict(max_documents=5), dict(split='x'), dict(source='python_docs')]
  others += [dict(targets='{text}'), dict(inputs='{text}', targets='{text}'), dict(append_eos=False)]
  c = make()
  c.vocabulary.sentinels = 4
  names = {prepare.folder(make(**keys)).name for keys in others} | {prepare.folder(c).name}
  assert len(names - {name}) == len(others) + 1
  same = make(packing='best_fit', document_mask=False, target_len=9, mixture=dict(a=dict(weight=3)))
  same.objective.name, same.model.name = 'span_corruption', 'encoder_decoder'
  assert prepare.folder(same).name == name


def test_hash_split_is_for_ever():
  """Where examples fall, worked out with sha256sum: the first 8 bytes as a share of 2^64."""
  c = base()
  for texts, number in SPLITS.items():
    for fraction, split in ((number - 1e-6, 'train'), (number + 1e-6, 'validation')):
      c.data.validation_fraction = fraction
      assert examples.split_example(texts, 'train', c) == [(split, texts)]


def test_pairs_cannot_be_cut(make, tmp_path):
  (tmp_path / 'pairs.jsonl').write_text('{"a": "in", "b": "out"}\n')
  c = make(source=f'jsonl:{tmp_path}/pairs.jsonl', inputs='{a}', targets='{b}', validation='tail')
  with pytest.raises(ConfigError, match="data.validation='tail' cuts .*data.inputs and data.targets.*'hash'"):
    prepare.prepare(c, **QUIET)


def test_gz_gives_the_same_tokens_as_plain(make, tmp_path):
  plain = prepare.prepare(make(), **QUIET)
  (tmp_path / 'packed').mkdir()
  for file in tmp_path.glob('*.jsonl'):
    (tmp_path / 'packed' / f'{file.name}.gz').write_bytes(gzip.compress(file.read_bytes()))
  packed = prepare.prepare(make(source=f'jsonl:{tmp_path}/packed/*'), **QUIET)
  assert (store.open_store(packed).fingerprint == store.open_store(plain).fingerprint)


def test_examples_of_two_texts(make, tmp_path):
  """Inputs and targets of every record, in order, each with its end; blank targets are dropped."""
  records = [dict(a=f'in {i} ' + 'x' * (i * 37 % 900), b=f'out {i}' if i % 9 else ' ' * (i % 2)) for i in range(90)]
  (tmp_path / 'pairs.jsonl').write_text(''.join(json.dumps(r) + '\n' for r in records))
  c = make(source=f'jsonl:{tmp_path}/pairs.jsonl', inputs='copy: {a}', targets='{b}', shards=3)
  data = store.open_store(prepare.prepare(c, **QUIET))
  assert data.manifest['texts'] == 2 and data.manifest['dropped'] == 10
  found = []
  for split in ('train', 'validation'):
    examples = data.examples(split)
    assert examples.lengths.shape == (len(examples), 2) and examples.lengths.dtype == np.int32
    for i in range(len(examples)):
      texts = examples[i]
      assert [len(t) for t in texts] == examples.lengths[i].tolist() and all(t[-1] == 1 for t in texts)
      found.append(tuple(data.vocabulary.decode(t) for t in texts))
      whole = np.concatenate(texts)
      assert np.array_equal(examples.read(i, 2, 7), whole[2:7])
  assert sorted(found) == sorted((f'copy: {r["a"]}', r['b']) for r in records if r['b'].strip())


def test_documents_without_ends(make):
  c = make(append_eos=False)
  data = store.open_store(prepare.prepare(c, **QUIET))
  tokens = np.concatenate([row[row >= 0] for row in data.windows('train', 500, tail=True)])
  assert 1 not in tokens and len(tokens) == data.manifest['splits']['train']['bytes']
  with_ends = make()
  assert prepare.folder(c) != prepare.folder(with_ends)
  assert data.examples('train').lengths.sum() == len(tokens)


@pytest.mark.parametrize('damage', ['lost', 'cut', 'changed'])
def test_lengths_are_watched_as_tokens_are(damage, make):
  c = make()
  folder = prepare.prepare(c, **QUIET)
  before, file = hashes(folder), folder / 'lengths-train-00001-of-00004.bin'
  content = file.read_bytes()
  if damage == 'lost':
    file.unlink()
  else:
    file.write_bytes(content[:-4] if damage == 'cut' else bytes([content[0] ^ 1]) + content[1:])
  if damage == 'changed':  # of the same size: seen when it is read
    with pytest.raises(DataError, match='lengths-train-00001-of-00004.bin is damaged'):
      store.open_store(folder).examples('train')
    file.unlink()
  with pytest.raises(DataError, match='lengths-train-00001-of-00004.bin'):
    store.open_store(folder)
  prepare.prepare(c, **QUIET)
  after = hashes(folder)
  assert {k: v for k, v in after.items() if k != 'manifest.json'} == {
      k: v for k, v in before.items() if k != 'manifest.json'}


@pytest.fixture
def mixed(make, tmp_path):
  """A config with three components, two of which read the same text."""
  (tmp_path / 'other.txt').write_text('0123456789 ' * 4000 + 'QXZ')

  def config(kind):
    c = make(kind, mixture=dict(words=dict(weight=2), digits=dict(data=dict(
        source=f'text:{tmp_path}/other.txt', validation='tail')), again=dict(objective=dict(name='prefix_lm'))))
    c.vocabulary.update(size=320, normalization='identity')
    return c

  return config


@pytest.mark.parametrize('kind', ['sentencepiece', 'characters'])
def test_datasets_of_a_mixture_share_a_vocabulary(kind, mixed, tmp_path):
  c, said = mixed(kind), []
  folders = prepare.prepare(c, said.append)
  assert len(folders) == 2  # words and again read the same text
  for name, folder in zip(('words', 'digits', 'again'), (*folders, folders[0])):
    assert any(line.startswith(f'{name}: ') and line.endswith(f' in {folder}') for line in said)
  stores = [store.open_store(f) for f in folders]
  assert len({s.vocabulary.fingerprint for s in stores}) == 1
  assert set(stores[0].vocabulary.decode(stores[0].vocabulary.encode('QXZ alpha 5'))) == set('QXZ alpha 5')
  before = [hashes(f) for f in folders]
  assert prepare.prepare(c, **QUIET) == folders and [hashes(f) for f in folders] == before
  shared = [p for p in (tmp_path / 'prepared').iterdir() if p.name.startswith('vocabulary-')]
  assert len(shared) == 1
  for folder in folders:
    assert (folder / 'vocabulary').read_bytes() == (shared[0] / 'vocabulary').read_bytes()


def test_a_vocabulary_learns_as_much_from_each_dataset(mixed, monkeypatch):
  c, given, train = mixed('sentencepiece'), [], loading.train

  def record(spec, texts, path):
    texts = list(texts)
    given.append((spec.path, texts))
    return train(spec, texts, path)
  monkeypatch.setattr(loading, 'train', record)
  c.vocabulary.train_characters = 60_000  # of 130,000 letters and 44,000 digits
  prepare.prepare(c, **QUIET)
  assert [bool(path) for path, _ in given] == [False, True, True]
  digits = sum(len(text) for text in given[0][1] if text.startswith(('0', '1', '2', '3', '4', '5', ' ')))
  letters = sum(len(text) for text in given[0][1]) - digits
  assert 27_000 < digits <= 30_000 and 27_000 < letters <= 30_000


def test_an_interrupted_mixture_goes_on(mixed, make, tmp_path):
  """After a stop between its datasets the vocabulary is kept; when text changed before any was done, made anew."""
  c, stopped = mixed('characters'), mixed('characters')
  stopped.data.directory = str(tmp_path / 'stopped')

  def stop_at(start):
    def say(line):
      if line.startswith(start):
        raise KeyboardInterrupt
    return say
  whole = prepare.prepare(c, **QUIET)
  with pytest.raises(KeyboardInterrupt):
    prepare.prepare(stopped, stop_at('train:'))  # the first dataset is done
  inode = next((tmp_path / 'stopped').glob('vocabulary-*/vocabulary')).stat().st_ino
  again = prepare.prepare(stopped, **QUIET)
  assert next((tmp_path / 'stopped').glob('vocabulary-*/vocabulary')).stat().st_ino == inode
  for one, other in zip(whole, again):
    tokens = {k: v for k, v in hashes(one).items() if k != 'manifest.json'}
    assert tokens == {k: v for k, v in hashes(other).items() if k != 'manifest.json'}
  changed = mixed('characters')
  changed.data.directory = str(tmp_path / 'changed')
  with pytest.raises(KeyboardInterrupt):
    prepare.prepare(changed, stop_at('vocabulary of 2'))
  with open(tmp_path / '3.jsonl', 'a') as f:
    f.write('{"text": "\u03a9"}\n')
  assert 'Ω' in documents(prepare.prepare(changed, **QUIET)[0], 'train')


def test_a_mixture_is_opened_as_one(mixed):
  c = mixed('characters')
  data = opening.open_data(c, lambda line: None)
  folders = prepare.prepare(c, **QUIET)
  alone = [store.open_store(f) for f in folders]
  for component, own in zip(lengths.components(c), (*alone, alone[0])):
    assert data.of(component).folder == own.folder and own.of(component) is own
  assert data.splits == ['train', 'validation'] and data.vocabulary.fingerprint == alone[0].vocabulary.fingerprint
  assert all(str(f) in data.folder for f in folders)
  for split in data.splits:
    for key in ('documents', 'tokens', 'bytes'):
      assert data.manifest['splits'][split][key] == sum(s.manifest['splits'][split][key] for s in alone)
  assert data.fingerprint not in [s.fingerprint for s in alone]
  c.data.mixture.words.weight = 5  # other shares of the same tokens
  assert opening.open_data(c).fingerprint == data.fingerprint
  other = store.open_store(folders[1])
  other.manifest['vocabulary'] = dict(other.manifest['vocabulary'], fingerprint='x')
  with pytest.raises(DataError, match=f'different vocabularies: delete .*{folders[1]}'):
    store.Stores(dict(words=alone[0], digits=other))


def test_one_dataset_in_many_objectives_is_a_plain_store(make):
  causal, c = make(), make()
  causal.vocabulary.sentinels = c.vocabulary.sentinels = 128  # as many as corrupted spans of data.seq_len
  c.objective.name = 'ul2'
  data = opening.open_data(c, lambda line: None)
  assert isinstance(data, store.Store) and data.folder == prepare.folder(causal) == prepare.prepare(c, **QUIET)


# --- At scale: processes, repeats, damage, limits, folders on object stores -------------------------


def without_marks(folder):
  """Hashes of what the tokens are made of: TFDS's description holds the folder's own path."""
  return {k: v for k, v in hashes(folder).items() if k.startswith(('tokens', 'lengths', 'names', 'manifest', 'voc'))}


@pytest.fixture
def eager(monkeypatch):
  """Processes even for little text."""
  monkeypatch.setattr(parts, 'WORTH_A_PROCESS', 1)


def test_processes_give_the_same_bytes(make, tmp_path, eager):
  keys = dict(deduplicate=True, max_documents=900)
  alone = prepare.prepare(make(directory=str(tmp_path / 'alone'), prepare_workers=1, **keys), **QUIET)
  said = []
  shared = prepare.prepare(make(directory=str(tmp_path / 'shared'), prepare_workers=2, **keys), said.append)
  assert without_marks(alone) == without_marks(shared)
  assert sorted(line for line in said if line.startswith('part '))[3].startswith('part 4 of 4: 150 documents')


def test_a_killed_process_is_told_and_what_is_done_is_kept(make, tmp_path, eager):
  """The process that meets a certain document dies, as by the out-of-memory killer; the others' work stays."""
  c = make(prepare_workers=2)
  child = ('import os, signal, sys\n'
           'from t5like import config as config_lib\n'
           'from t5like.prepared import parts, prepare; from t5like.config import templates\n'
           'real = templates.texts\n'
           'def texts(data, record, where):\n'
           '  if multiprocessing.parent_process() and where.startswith(sys.argv[2]): os.kill(os.getpid(), 9)\n'
           '  return real(data, record, where)\n'
           'import multiprocessing\n'
           'templates.texts, parts.WORTH_A_PROCESS = texts, 1\n'
           'if __name__ == "__main__":\n'
           '  try: prepare.prepare(config_lib.from_json(sys.argv[1]))\n'
           '  except Exception as error: sys.exit(f"{type(error).__name__}: {error}")\n')
  (tmp_path / 'child.py').write_text(child)
  died = subprocess.run([sys.executable, tmp_path / 'child.py', config_lib.to_json(c), str(tmp_path / '2.jsonl')],
                        env=dict(os.environ, PYTHONPATH=str(ROOT)), capture_output=True, text=True)
  assert 'DataError: A process that prepares data was killed' in died.stderr
  folder = prepare.folder(c)
  done = [p for p in folder.glob('part-*.json')]
  assert done and not (folder / 'manifest.json').exists()
  kept = {p: p.stat().st_ino for mark in done for p in folder.glob(f'tokens-*-{mark.stem[-5:]}-of-*')}
  assert kept
  prepare.prepare(c, **QUIET)
  assert all(p.stat().st_ino == inode for p, inode in kept.items())
  whole = prepare.prepare(make(directory=str(tmp_path / 'whole')), **QUIET)
  assert without_marks(whole) == without_marks(folder)


def test_repeats_are_left_out_across_files_and_splits(make, tmp_path):
  """The first of equal documents stays; of one in both splits, that of validation."""
  lines = [(tmp_path / f'{f}.jsonl').read_text().splitlines() for f in range(4)]
  for f, extra in ((1, lines[0][:40]), (2, lines[0][20:60] + lines[2][:5]), (3, lines[1][200:])):
    with open(tmp_path / f'{f}.jsonl', 'a') as file:
      file.write(''.join(line + '\n' for line in extra))
  said = []
  once = prepare.prepare(make(deduplicate=True), said.append)
  assert '134 documents dropped whose text was there before' in said
  for split in ('train', 'validation'):
    texts = documents(once, split)
    assert len(set(texts)) == len(texts)
    assert sorted(texts) == sorted(set(documents(prepare.prepare(make(), **QUIET), split)))
  manifest = store.open_store(once).manifest
  assert manifest['repeated'] == 134 and manifest['dropped'] == 5
  assert not list(once.glob('digests-*')) and not list(once.glob('repeats-*'))
  first = store.open_store(once).names('train', 0, 10)[0][0]
  assert first.startswith(f'{tmp_path}/0.jsonl')


def test_repeats_of_a_split_of_its_own_stay_in_validation():
  train, validation = [b'a' * 16, b'b' * 16, b'c' * 16], [b'c' * 16, b'd' * 16, b'c' * 16]
  found = duplicates.find([b''.join(validation), b''.join(train), b''])
  assert [f.tolist() for f in found] == [[False, False, True], [False, False, True], []]


def test_damaged_records_are_named_counted_and_limited(make, tmp_path):
  good = (tmp_path / '1.jsonl').read_bytes().splitlines()
  good[10], good[20], good[30] = b'{"text": "cut off', b'{"text": "\xff"}', b'{"body": "no text"}'
  (tmp_path / '1.jsonl').write_bytes(b'\n'.join(good) + b'\n')
  offset = len(b'\n'.join(good[:10])) + 1
  with pytest.raises(DataError, match=r'1.jsonl.*\(data.max_bad_records=0 allows 0 such records: raise it') as error:
    prepare.prepare(make(), **QUIET)
  assert str(offset) in str(error.value)
  with pytest.raises(DataError, match=r'max_bad_records=2 allows 2 such records, this is number 3'):
    prepare.prepare(make(max_bad_records=2), **QUIET)
  said = []
  folder = prepare.prepare(make(max_bad_records=3), said.append)
  at = said.index('3 damaged records skipped (data.max_bad_records)')
  assert all(str(tmp_path / '1.jsonl') in line for line in said[at + 1:at + 4])
  manifest = store.open_store(folder).manifest
  assert manifest['bad'] == 3 and len(manifest['damage']) == 3
  assert sum(s['documents'] for s in manifest['splits'].values()) == 1000 - 3 - 4


def test_damage_in_many_parts_is_counted_together(make, tmp_path):
  for f in range(3):
    with open(tmp_path / f'{f}.jsonl', 'a') as file:
      file.write('not json\n')
  with pytest.raises(DataError, match='has 3 damaged records, data.max_bad_records=2 allows fewer. .*0.json'):
    prepare.prepare(make(max_bad_records=2), **QUIET)
  prepare.prepare(make(max_bad_records=3), **QUIET)


@pytest.mark.parametrize('overlong', ['truncate', 'drop'])
def test_overlong_documents(overlong, make, tmp_path):
  whole = [len(t.encode()) + 1 for split in ('train', 'validation')
           for t in documents(prepare.prepare(make(directory=str(tmp_path / 'all')), **QUIET), split)]
  said = []
  folder = prepare.prepare(make(max_document_tokens=100, overlong=overlong), said.append)
  long = sum(n > 100 for n in whole)
  assert f'{long} documents above data.max_document_tokens' in said
  data = store.open_store(folder)
  sizes = [n for split in data.splits for n in data.examples(split).lengths[:, 0].tolist()]
  assert sorted(sizes) == sorted(min(n, 100) for n in whole if n <= 100 or overlong == 'truncate')
  assert all(example[0][-1] == data.vocabulary.eos_id for example in data.examples('train'))


def test_overlong_and_empty_documents_that_are_errors(make, tmp_path):
  with pytest.raises(DataError, match=r'0.jsonl\S* has \d+ tokens, above data.max_document_tokens=50. Raise that'):
    prepare.prepare(make(max_document_tokens=50, overlong='error'), **QUIET)
  with pytest.raises(DataError, match=r"0.jsonl\S* has no text. data.empty='drop' leaves such documents out"):
    prepare.prepare(make(empty='error'), **QUIET)


def test_no_space_left(make, tmp_path):
  c = make()
  folder = prepare.folder(c)
  folder.mkdir(parents=True)
  for name in ('tokens-train.array_record-00001-of-00004.tmp', 'names-train-00002-of-00004.zst.tmp'):
    (folder / name).symlink_to('/dev/full')
    with pytest.raises(DataError, match='Preparing .* failed: .*No space left.* Finished parts are kept'):
      prepare.prepare(c, **QUIET)
    assert not (folder / 'manifest.json').exists() and (folder / 'part-00000.json').exists()
    (folder / name).unlink(missing_ok=True)
  prepare.prepare(c, **QUIET)
  assert without_marks(folder) == without_marks(prepare.prepare(make(directory=str(tmp_path / 'whole')), **QUIET))


def test_a_file_that_cannot_be_read(make, tmp_path):
  (tmp_path / '2.jsonl').unlink()
  (tmp_path / '2.jsonl.gz').write_bytes(gzip.compress(b'{"text": "word"}\n' * 5000)[:-20])
  with pytest.raises(DataError, match=r'2.jsonl.gz cannot be read'):
    prepare.prepare(make(source=f'jsonl:{tmp_path}/*.jsonl*'), **QUIET)


def test_two_at_once_do_the_work_once(make, tmp_path):
  c = make()
  child = ('import sys\nfrom t5like import config as config_lib\nfrom t5like.prepared import prepare\n'
           'prepare.prepare(config_lib.from_json(sys.argv[1]))\n')
  both = [subprocess.Popen([sys.executable, '-c', child, config_lib.to_json(c)], cwd=ROOT, text=True,
                           stdout=subprocess.PIPE, stderr=subprocess.PIPE) for _ in range(2)]
  said = [process.communicate()[0] for process in both]
  assert [process.returncode for process in both] == [0, 0]
  assert sorted('prepared already' in text for text in said) == [False, True]
  whole = prepare.prepare(make(directory=str(tmp_path / 'whole')), **QUIET)
  assert without_marks(whole) == without_marks(prepare.folder(c))


@pytest.mark.parametrize('kind', ['bytes', 'sentencepiece'])
def test_folders_on_object_stores(kind, make, tmp_path):
  """Prepared at one place, used at another, with a damaged copy in between."""
  import fsspec
  memory = fsspec.filesystem('memory')
  url = f'memory://bucket-{tmp_path.name}'
  keys = dict(directory=url, deduplicate=True)
  c = make(kind, cache=str(tmp_path / 'here'), **keys)
  c.vocabulary.size = 320
  there = make(kind, cache=str(tmp_path / 'there'), **keys)
  there.vocabulary.size = 320
  folder = prepare.prepare(c, **QUIET)
  names = {path.rpartition('/')[2] for path in memory.ls(datasets.remote(c), detail=False)}
  assert names == {p.name for p in folder.iterdir()} and folder.parent == tmp_path / 'here'
  for source in tmp_path.glob('*.jsonl'):
    source.rename(source.with_suffix('.away'))
  said = []
  opened = opening.open_data(there, said.append)
  assert opened.folder.parent == tmp_path / 'there' and said[0].startswith(f'Copying {url}')
  assert without_marks(opened.folder) == without_marks(folder)
  assert opened.windows('train', 16)[5].tolist() == store.open_store(folder).windows('train', 16)[5].tolist()
  lost = 'tokens-train.array_record-00002-of-00004'
  content = memory.cat_file(f'{datasets.remote(c)}/{lost}')
  third = make(kind, cache=str(tmp_path / 'third'), **keys)
  third.vocabulary.size = 320
  memory.pipe_file(f'{datasets.remote(c)}/{lost}', content[:-1])
  with pytest.raises(DataError, match=f'{lost} has {len(content) - 1} bytes instead of {len(content)}: delete it'):
    opening.open_data(third, lambda line: None)
  memory.rm_file(f'{datasets.remote(c)}/{lost}')
  with pytest.raises(DataError, match=f'lacks {lost}: run prepare again'):
    opening.open_data(third, lambda line: None)


def test_an_object_store_that_is_interrupted_goes_on(make, tmp_path):
  import fsspec
  memory = fsspec.filesystem('memory')
  keys = dict(directory=f'memory://bucket-{tmp_path.name}')
  c, made = make(cache=str(tmp_path / 'here'), **keys), []

  def run(function, jobs):
    made.append([job['number'] for job in jobs])
    for job in jobs:
      function(job)
      if len(made) == 1 and job['number'] == 1:
        raise KeyboardInterrupt
      yield job['number']
  with pytest.raises(KeyboardInterrupt):
    prepare.prepare(c, run=run, **QUIET)
  assert not memory.exists(f'{datasets.remote(c)}/manifest.json')
  prepare.prepare(c, run=run, **QUIET)
  assert made == [[0, 1, 2, 3], [2, 3]]
  assert not memory.glob(f'{datasets.remote(c)}/part-*')


def test_stores_that_nothing_reads(make, tmp_path):
  with pytest.raises(DataError, match='nosuch://bucket/.* cannot be opened .*gs://, s3:// and others'):
    opening.open_data(make(directory='nosuch://bucket', cache=str(tmp_path)), lambda line: None)


def test_a_mixture_on_an_object_store(mixed, tmp_path):
  c = mixed('characters')
  c.data.update(directory=f'memory://mixed-{tmp_path.name}', cache=str(tmp_path / 'here'))
  folders = prepare.prepare(c, **QUIET)
  data = opening.open_data(c, lambda line: None)
  assert [data.of(part).folder for part in lengths.components(c)] == [folders[0], folders[1], folders[0]]
  c.data.cache = str(tmp_path / 'there')
  assert opening.open_data(c, lambda line: None).fingerprint == data.fingerprint
