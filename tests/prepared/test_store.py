"""The store: windows cover every token once, damage is named, reading is fast."""

import concurrent.futures
import itertools
import json
import pathlib
import pickle
import random
import tempfile
import time
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from t5like.config import base
from t5like.errors import DataError
from t5like.prepared import manifests, prepare, shards as shards_lib, store
from tests.faults import hostile_json


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """Three shards of digits, two of them several blocks long."""
  path = tmp_path_factory.mktemp('store')
  for name, size in (('a', 10_000), ('b', 40), ('c', 4095)):
    (path / f'{name}.txt').write_text(''.join(str(i % 7) for i in range(size)))
  c = base()
  c.data.update(source=f'text:{path}/*.txt', directory=str(path), shards=3, validation='tail',
                validation_fraction=0.1)
  c.vocabulary.update(name='bytes', sentinels=0)
  return prepare.prepare(c, lambda line: None)


@pytest.fixture
def copy(folder, tmp_path):
  for file in folder.iterdir():
    (tmp_path / file.name).write_bytes(file.read_bytes())
  return tmp_path


def shard_tokens(data, split):
  """What the text files say should be in each shard."""
  size = {'a': 10_000, 'b': 40, 'c': 4095}
  for n in size.values():
    ids = np.array([ord(str(i % 7)) + 3 for i in range(n)])
    cut = int(n * 0.9)
    yield np.append(ids[:cut] if split == 'train' else ids[cut:], 1)


@settings(max_examples=60, deadline=None)
@given(length=st.integers(1, 5000), overlap=st.integers(0, 1), split=st.sampled_from(
    ['train', 'validation']))
def test_windows_with_tail_hold_each_token_once(folder, length, overlap, split):
  data = store.open_store(folder)
  stride, length = length, length + overlap
  rows = list(data.windows(split, length, stride, tail=True))
  assert all(row.dtype == np.int32 and row.shape == (length,) for row in rows)
  # A token counts where it is predicted: not as the first of windows that overlap by one.
  expected = [token for tokens in shard_tokens(data, split) for token in tokens[overlap:]]
  found = np.concatenate([row[overlap:] for row in rows])
  assert np.array_equal(found[found >= 0], expected)
  assert sum(bool((row < 0).any()) for row in rows) <= 3


@settings(max_examples=60, deadline=None)
@given(length=st.integers(1, 3000), stride=st.integers(1, 5000))
def test_window_i_starts_at_i_strides_of_its_shard(folder, length, stride):
  data = store.open_store(folder)
  expected = [tokens[i:i + length] for tokens in shard_tokens(data, 'train')
              for i in range(0, len(tokens) - length + 1, stride)]
  windows = data.windows('train', length, stride)
  assert len(windows) == len(expected)
  order = np.random.RandomState(0).permutation(len(windows))[:50]
  for i, row in zip(order, windows._getitems(order)):
    assert np.array_equal(row, expected[i]) and np.array_equal(row, windows[int(i)])


def test_windows_outside_are_an_index_error(folder):
  windows = store.open_store(folder).windows('train', 100)
  for i in (-1, len(windows)):
    with pytest.raises(IndexError, match=f'window {i} of {len(windows)}'):
      windows[i]
  assert len(list(windows)) == len(windows)


def test_too_small_a_split_says_how_small(folder):
  data = store.open_store(folder)
  with pytest.raises(DataError, match=r"'validation' .* has 1001 \+ 5 \+ 411 tokens: not one "
                     'window of 2000.*raise data.validation_fraction'):
    data.windows('validation', 2000)
  assert len(data.windows('validation', 2000, tail=True)) == 3
  with pytest.raises(DataError, match="no split 'test'; it has train, validation"):
    data.windows('test', 10)


def test_windows_pickle_small_and_read_from_many_threads(folder):
  data = store.open_store(folder)
  data.vocabulary  # noqa: B018  loaded, and not pickled
  assert len(pickle.dumps(data)) < 10_000
  windows = data.windows('train', 33)
  expected = np.stack(list(windows))
  content = pickle.dumps(windows)
  assert len(content) < 2000
  again = pickle.loads(content)
  store._reader.cache_clear()  # so that threads open the readers
  with concurrent.futures.ThreadPoolExecutor(8) as pool:
    for rows in pool.map(lambda _: np.stack(list(again)), range(16)):
      assert np.array_equal(rows, expected)
  assert pickle.loads(pickle.dumps(data)).vocabulary.size == 259


def test_missing_and_unfinished_folders(folder, tmp_path):
  with pytest.raises(DataError, match=f'no prepared dataset in {tmp_path}/x; run: python main.py'):
    store.open_store(tmp_path / 'x')
  (tmp_path / 'plan.json').write_text('{}')
  with pytest.raises(DataError, match='prepare did not finish in'):
    store.open_store(tmp_path)


def test_damaged_folders(copy):
  manifest = json.loads((copy / 'manifest.json').read_text())
  shard = copy / 'tokens-train.array_record-00001-of-00003'
  content = shard.read_bytes()
  shard.write_bytes(content[:-1])
  with pytest.raises(DataError, match=f'first {shard.name} .* instead of {len(content)}'):
    store.open_store(str(copy))
  shard.unlink()
  with pytest.raises(DataError, match=rf'{shard.name} \(missing\); .*prepare --config'):
    store.open_store(copy)
  shard.write_bytes(content)
  (copy / 'manifest.json').write_text(json.dumps(manifest | dict(format=99)))
  with pytest.raises(DataError, match='has format 99, this version of t5like reads format 4'):
    store.open_store(copy)
  (copy / 'manifest.json').write_text('{')
  with pytest.raises(DataError, match='manifest.json is damaged'):
    store.open_store(copy)


def test_another_vocabulary_is_refused(copy):
  (copy / 'vocabulary').write_text('{"kind": "bytes", "sentinels": 5}')
  with pytest.raises(DataError, match='not the vocabulary that made the tokens'):
    store.open_store(copy).vocabulary  # noqa: B018
  (copy / 'vocabulary').unlink()
  with pytest.raises(DataError, match=r'vocabulary \(missing\)'):
    store.open_store(copy)


def test_a_damaged_record_is_named_and_the_others_are_read(copy):
  shard = copy / 'tokens-train.array_record-00000-of-00003'
  content = bytearray(shard.read_bytes())
  at = content.find(np.uint16([53, 54, 55]).tobytes(), 9000)
  content[at + 100] ^= 1  # in the second record
  shard.write_bytes(content)
  windows = store.open_store(copy).windows('train', 400)
  assert len(windows[9]) == 400
  with pytest.raises(DataError, match=f'Record 1 of {shard} is damaged .*delete this shard'):
    windows[12]
  assert len(windows[21]) == len(windows[9]) == 400


def test_random_windows_are_read_in_60_us(tmp_path):
  c = base()
  c.data.update(source='markov:26', directory=str(tmp_path), validation='tail')
  c.vocabulary.update(name='bytes')
  data = store.open_store(prepare.prepare(c, lambda line: None))
  windows = data.windows('train', 1025, 1024)
  order = np.random.RandomState(0).permutation(len(windows))[:1024].tolist()
  costs = []
  for _ in range(5):
    start = time.process_time()
    for batch in itertools.zip_longest(*[iter(order)] * 16):
      windows._getitems(batch)
    costs.append((time.process_time() - start) / len(order))
  assert min(costs) < 60e-6, f'{min(costs) * 1e6:.0f} us per window'


def test_examples_are_the_documents(folder):
  data = store.open_store(folder)
  for split in ('train', 'validation'):
    examples = data.examples(split)
    expected = list(shard_tokens(data, split))
    assert len(examples) == 3 and examples.lengths[:, 0].tolist() == [len(e) for e in expected]
    for got, wanted in zip([examples[i] for i in range(3)], expected):
      assert len(got) == 1 and np.array_equal(got[0], wanted)
    for i in (-1, 3):
      with pytest.raises(IndexError, match=f'example {i} of 3'):
        examples.read(i, 0, 1)
      with pytest.raises(IndexError, match=f'example {i} of 3'):
        examples[i]
    for start, stop in ((-1, 2), (3, 2), (0, len(expected[0]) + 1)):
      with pytest.raises(IndexError, match=f'tokens {start} to {stop} of {len(expected[0])} in example 0'):
        examples.read(0, start, stop)
  with pytest.raises(DataError, match="no split 'test'"):
    data.examples('test')


def write_examples(path, examples, shards):
  """A config that reads files of examples, one text (jsonl field b) or two (a and b) each."""
  for i in range(shards):
    rows = [dict(zip('ba', reversed(texts))) for texts in examples[i * len(examples) // shards:
                                                                  (i + 1) * len(examples) // shards]]
    (path / f'{i}.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in rows))
  (path / 'held_out').mkdir()
  (path / 'held_out' / 'rows.jsonl').write_text(json.dumps(dict(a='a', b='b')) + '\n')
  c = base()
  c.data.update(source=f'jsonl:{path}/*.jsonl', field='b', directory=str(path / 'made'), shards=shards,
                validation=f'jsonl:{path}/held_out/*.jsonl')
  if len(examples[0]) == 2:
    c.data.update(inputs='{a}', targets='{b}')
  c.vocabulary.update(name='bytes', sentinels=0)
  return c


@settings(max_examples=25, deadline=None)
@given(data=st.data(), num_texts=st.integers(1, 2), shards=st.integers(1, 3), append_eos=st.booleans())
def test_examples_are_a_list(data, num_texts, shards, append_eos):
  """Any examples, over blocks of 16 tokens, against what UTF-8 says they are."""
  some = st.text('abé\n', min_size=1, max_size=70).filter(str.strip)
  each = st.tuples(*[st.text('abé ', max_size=70)] * (num_texts - 1), some)
  wanted = data.draw(st.lists(each, min_size=shards, max_size=12))
  with tempfile.TemporaryDirectory() as folder, mock.patch.object(shards_lib, 'BLOCK', 16):
    c = write_examples(pathlib.Path(folder), wanted, shards)
    c.data.append_eos = append_eos
    examples = store.open_store(prepare.prepare(c, lambda line: None)).examples('train')
    expected = [[[byte + 3 for byte in text.encode()] + [1] * append_eos for text in texts] for texts in wanted]
    assert len(examples) == len(expected) and examples.lengths.dtype == np.int32
    assert examples.lengths.tolist() == [[len(ids) for ids in texts] for texts in expected]
    for i in np.random.RandomState(0).permutation(len(expected)):
      found = examples[i]
      assert [ids.tolist() for ids in found] == expected[i] and all(ids.dtype == np.int32 for ids in found)
      joined = sum(expected[i], [])
      start = data.draw(st.integers(0, len(joined)))
      stop = data.draw(st.integers(start, len(joined)))
      assert examples.read(i, start, stop).tolist() == joined[start:stop]


def test_reading_part_of_an_example_reads_its_blocks_only(folder, monkeypatch):
  examples, read = store.open_store(folder).examples('train'), []
  record = store.Tokens._record
  monkeypatch.setattr(store.Tokens, '_record', lambda self, *which: read.append(which) or record(self, *which))
  examples.read(0, 4090, 4096)
  examples.read(0, 4095, 4097)
  examples.read(2, 0, 10)
  examples.read(2, 7, 7)
  assert read == [(0, 0), (0, 0), (0, 1), (2, 0)]


def test_examples_pickle_small_and_read_from_many_threads(tmp_path):
  wanted = [(f'in {i}', f'out {i}' * (i % 30 + 1)) for i in range(2000)]
  data = store.open_store(prepare.prepare(write_examples(tmp_path, wanted, 3), lambda line: None))
  examples = data.examples('train')
  expected = [np.concatenate(examples[i]) for i in range(len(examples))]
  content = pickle.dumps(examples)
  assert len(content) < 2000 < examples.lengths.nbytes
  again = pickle.loads(content)
  store._reader.cache_clear()
  with concurrent.futures.ThreadPoolExecutor(8) as pool:
    for texts in pool.map(lambda _: [np.concatenate(again[i]) for i in range(2000)], range(8)):
      assert all(map(np.array_equal, texts, expected))
  assert np.array_equal(again.lengths, examples.lengths)


def test_a_damaged_record_of_examples_is_named(copy):
  shard = copy / 'tokens-train.array_record-00000-of-00003'
  content = bytearray(shard.read_bytes())
  content[content.find(np.uint16([53, 54, 55]).tobytes(), 9000) + 100] ^= 1  # in the second record
  shard.write_bytes(content)
  examples = store.open_store(copy).examples('train')
  with pytest.raises(DataError, match=f'Record 1 of {shard} is damaged'):
    examples[0]
  assert len(examples[1][0]) == 37 and len(examples.read(0, 0, 4096)) == 4096


@settings(max_examples=60, deadline=None)
@given(i=st.integers(0, 2), a=st.integers(0, 9000), n=st.integers(0, 5000))
def test_parts_of_examples(folder, i, a, n):
  data = store.open_store(folder)
  whole = list(shard_tokens(data, 'train'))[i]
  start, stop = min(a, len(whole)), min(a + n, len(whole))
  assert np.array_equal(data.examples('train').read(i, start, stop), whole[start:stop])


def test_manifests_that_nobody_should_trust(folder, copy):
  """Damaged and hostile, with a digest that is right where there is one: refused in a sentence, or the same tokens."""
  whole, rng = (copy / 'manifest.json').read_bytes(), random.Random(0)
  expected = [row.tolist() for split in ('train', 'validation') for row in store.open_store(copy).windows(split, 64)]
  refused = 0
  for _ in range(400):
    what, content = hostile_json.mutated(rng, whole)
    try:
      content = json.dumps(manifests.sealed(json.loads(content))).encode() if rng.random() < 0.8 else content
    except (ValueError, AttributeError, RecursionError):
      pass
    (copy / 'manifest.json').write_bytes(content)
    try:
      data = store.open_store(copy)
      rows = [row.tolist() for split in ('train', 'validation') for row in data.windows(split, 64)]
      assert data.vocabulary.size == 259
    except DataError as error:
      refused += 1
      assert len(str(error)) < 1500 and '\n' not in str(error)
    else:
      assert rows == expected, what
  assert refused > 200


@pytest.mark.parametrize('name', ['../x', '/etc/passwd', 'a/b', '..', '', 3, None, 'x' * 300])
def test_files_outside_the_folder_are_not_looked_at(copy, name):
  whole = json.loads((copy / 'manifest.json').read_text())
  shard = whole['splits']['train']['shards'][0]
  for place in (shard, shard['lengths'], shard['names'], whole['vocabulary']):
    kept, place['file'] = place['file'], name
    (copy / 'manifest.json').write_text(json.dumps(manifests.sealed(whole)))
    with pytest.raises(DataError, match='file=.* must be the name of a file in the same folder'):
      store.open_store(copy)
    place['file'] = kept
