"""Vocabularies: exact round trips, ids that text cannot produce, messages of the errors."""

import hashlib
import inspect
import random
import types

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from configs.base import base
from t5like.data import vocabulary
from t5like.errors import ConfigError, DataError

WORDS = 'the quick brown fox jumps over a lazy dog and then it sleeps well'.split()
CODE = inspect.getsource(random) + inspect.getsource(inspect)


def spec(**keys):
  config = base()
  config.vocabulary.update(dict(size=512, sentinels=10) | keys)
  return config.vocabulary


@pytest.fixture(scope='module')
def code_bpe(tmp_path_factory):
  path = tmp_path_factory.mktemp('bpe') / 'vocabulary'
  return vocabulary.train(spec(algorithm='bpe', normalization='identity'), [CODE], path)


@pytest.fixture(scope='module')
def english(tmp_path_factory):
  draw = random.Random(0)
  texts = [' '.join(draw.choices(WORDS, k=200)) for _ in range(50)]
  path = tmp_path_factory.mktemp('unigram') / 'vocabulary'
  return vocabulary.train(spec(size=305), texts, path)


AWKWARD = st.text(st.sampled_from('ab \t\n\r\0\u2581\u2028é日😀<>_extra_id0123456789/s'),
                  max_size=40)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.one_of(st.text(), AWKWARD), min_size=1, max_size=4))
def test_identity_round_trips(code_bpe, texts):
  plain = vocabulary.Bytes(sentinels=3)
  for vocab in (code_bpe, plain):
    batch = vocab.encode_batch(texts)
    assert [vocab.decode(ids) for ids in batch] == texts
    special = [vocab.sentinel(k) for k in range(vocab.num_sentinels)] + [0, 1, 2]
    assert all(ids.dtype == np.int32 and not np.isin(ids, special).any() for ids in batch)


def test_code_round_trips_with_runs_of_spaces_as_single_pieces(code_bpe):
  ids = code_bpe.encode(CODE)
  assert code_bpe.decode(ids) == CODE
  assert len(CODE.encode()) / len(ids) > 2
  assert code_bpe.pieces(code_bpe.encode('\n        return'))[:2] == ['\\n', '▁▁▁▁▁▁▁▁']


def test_decode_agrees_with_sentencepiece(english):
  text = 'the quick  brown\nfox <extra_id_0> naïve 日本'
  assert english.decode(english.encode(text)) == english._model.decode(english._model.encode(text))
  assert english.decode(english.encode(text)) == 'the quick brown fox <extra_id_0> naïve 日本'


def test_special_ids(english):
  assert (english.pad_id, english.eos_id, english.unk_id, english.size) == (0, 1, 2, 305)
  assert [english.sentinel(k) for k in range(10)] == list(range(3, 13))
  ids = [0, 0, *english.encode('the fox'), english.sentinel(7), *english.encode('dog'), 1, 0]
  assert english.decode(ids) == 'the fox<extra_id_7> dog'
  assert english.pieces([0, 1, 2, 5]) == ['<pad>', '</s>', '<unk>', '<extra_id_2>']
  with pytest.raises(ConfigError, match='vocabulary.sentinels must be at least 11'):
    english.sentinel(10)


@pytest.mark.parametrize('ids', [[305], [-1], [3, 100_000]])
def test_ids_outside_are_refused(english, ids):
  with pytest.raises(ValueError, match='305 ids'):
    english.decode(ids)
  with pytest.raises(ValueError, match='305 ids'):
    english.pieces(ids)


def test_training_is_deterministic_and_fingerprint_tells_models_apart(tmp_path):
  made = [vocabulary.train(spec(size=size), [CODE[:20_000]], tmp_path / name)
          for name, size in (('a', 400), ('b', 400), ('c', 401))]
  assert (tmp_path / 'a').read_bytes() == (tmp_path / 'b').read_bytes()
  assert made[0].fingerprint == made[1].fingerprint != made[2].fingerprint
  assert sorted(p.name for p in tmp_path.iterdir()) == ['a', 'b', 'c']
  made[0].save(tmp_path / 'd')
  assert vocabulary.load(spec(), tmp_path / 'd').fingerprint == made[0].fingerprint


def test_sample_is_even_bounded_and_in_short_pieces():
  texts = [f'{i:05d} ' * 500 for i in range(200)]  # 600,000 characters
  pieces = vocabulary._sample(iter(texts), 60_000)
  assert 58_000 < sum(map(len, pieces)) <= 60_000
  assert max(len(piece.encode()) for piece in pieces) < 4192
  thirds = np.histogram([int(piece[:6]) for piece in pieces], bins=3, range=(0, 200))[0]
  assert min(thirds) > 10
  assert ''.join(vocabulary._sample(['日本' * 5000, ' x\n'], 10**6)) == '日本' * 5000 + ' x\n'


def test_imported_model_gets_sentinels_above_as_t5_has_them(tmp_path):
  inside = vocabulary.train(spec(size=288, sentinels=0), [' '.join(WORDS)], tmp_path / 'own')
  assert inside.num_sentinels == 0
  imported = vocabulary.train(spec(path=str(tmp_path / 'own')), None, tmp_path / 'copy')
  assert imported.size == inside.size + 10
  assert imported.sentinel(0) == imported.size - 1 and imported.sentinel(9) == inside.size
  assert imported.decode([*imported.encode('the dog'), imported.size - 1]) == 'the dog<extra_id_0>'
  assert imported.fingerprint != inside.fingerprint
  with pytest.raises(ConfigError, match='vocabulary.path=.*nowhere'):
    vocabulary.train(spec(path='nowhere'), None, tmp_path / 'copy')


@pytest.mark.parametrize('algorithm', ['bpe', 'unigram'])
def test_sizes_that_do_not_fit_the_text(tmp_path, algorithm):
  texts = [' '.join(WORDS)] * 20
  with pytest.raises(ConfigError, match=r'vocabulary.size=5000 is more .* at most (\d+)') as high:
    vocabulary.train(spec(size=5000, algorithm=algorithm), texts, tmp_path / 'v')
  most = int(str(high.value).split('at most ')[1].split(',')[0])
  vocabulary.train(spec(size=most, algorithm=algorithm), texts, tmp_path / 'v')
  with pytest.raises(ConfigError, match='vocabulary.size=100 is too small'):
    vocabulary.train(spec(size=100, algorithm=algorithm), texts, tmp_path / 'v')
  with pytest.raises(ConfigError, match="vocabulary.algorithm='wordy'"):
    vocabulary.train(spec(algorithm='wordy'), texts, tmp_path / 'v')
  with pytest.raises(DataError, match='no text'):
    vocabulary.train(spec(algorithm=algorithm), [' \n'], tmp_path / 'v')


@settings(max_examples=100, deadline=None)
@given(st.text(min_size=1), st.booleans())
def test_characters_are_sorted_and_round_trip(text, specials):
  vocab = vocabulary.Characters(text, specials)
  first = 3 if specials else 0
  assert vocab.size == len(set(text)) + first
  assert vocab.encode(text).tolist() == [sorted(set(text)).index(c) + first for c in text]
  assert vocab.decode(vocab.encode(text)) == text


def test_characters_without_specials_refuse_what_is_unknown(tmp_path):
  vocab = vocabulary.train(spec(name='characters', specials=False), ['ba', 'c'], tmp_path / 'v')
  assert (vocab.pad_id, vocab.eos_id, vocab.unk_id, vocab.size) == (None, None, None, 3)
  with pytest.raises(DataError, match="'z' is not among the 3 characters"):
    vocab.encode('abz')
  vocab = vocabulary.train(spec(name='characters'), ['ba', 'c'], tmp_path / 'v')
  assert vocab.encode('azé').tolist() == [3, 2, 2]
  with pytest.raises(DataError, match='no text'):
    vocabulary.train(spec(name='characters'), [], tmp_path / 'v')


def test_bytes(tmp_path):
  vocab = vocabulary.train(spec(name='bytes'), None, tmp_path / 'v')
  assert vocab.encode('a\né').tolist() == [100, 13, 198, 172]
  assert vocab.size == 269 and vocab.sentinel(0) == 259
  assert vocab.pieces([100, 13, 198, 259]) == ['a', '\\n', '<0xC3>', '<extra_id_0>']
  assert vocab.decode([198, 1]) == '\ufffd'
  assert vocab.fingerprint != vocabulary.Bytes(9).fingerprint


def test_load_names_what_is_wrong(tmp_path):
  with pytest.raises(DataError, match='missing cannot be read'):
    vocabulary.load(spec(), tmp_path / 'missing')
  (tmp_path / 'v').write_bytes(hashlib.sha256(b'').digest())
  for name in ('sentencepiece', 'bytes', 'characters'):
    with pytest.raises(DataError, match=f"not a vocabulary of kind vocabulary.name='{name}'"):
      vocabulary.load(types.SimpleNamespace(name=name, sentinels=0), tmp_path / 'v')
  vocabulary.Bytes(1).save(tmp_path / 'v')
  with pytest.raises(DataError, match="not a vocabulary of kind vocabulary.name='characters'"):
    vocabulary.load(types.SimpleNamespace(name='characters', sentinels=0), tmp_path / 'v')
  with pytest.raises(ConfigError, match="vocabulary.name='words' is unknown"):
    vocabulary.load(types.SimpleNamespace(name='words', sentinels=0), tmp_path / 'v')
