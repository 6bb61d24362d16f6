"""Vocabularies: exact round trips, ids that text cannot produce, messages of the errors."""

import hashlib
import inspect
import json
import random
import sys
import types

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from t5like.config import base
from t5like.errors import ConfigError, DataError
from t5like.vocabulary import loading

WORDS = 'the quick brown fox jumps over a lazy dog and then it sleeps well'.split()
CODE = inspect.getsource(random) + inspect.getsource(inspect)


def spec(**keys):
  config = base()
  config.vocabulary.update(dict(size=512, sentinels=10) | keys)
  return config.vocabulary


@pytest.fixture(scope='module')
def code_bpe(tmp_path_factory):
  path = tmp_path_factory.mktemp('bpe') / 'vocabulary'
  return loading.train(spec(algorithm='bpe', normalization='identity'), [CODE], path)


@pytest.fixture(scope='module')
def english(tmp_path_factory):
  draw = random.Random(0)
  texts = [' '.join(draw.choices(WORDS, k=200)) for _ in range(50)]
  path = tmp_path_factory.mktemp('unigram') / 'vocabulary'
  return loading.train(spec(size=305), texts, path)


AWKWARD = st.text(st.sampled_from('ab \t\n\r\0\u2581\u2028é日😀<>_extra_id0123456789/s'),
                  max_size=40)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.one_of(st.text(), AWKWARD), min_size=1, max_size=4))
def test_identity_round_trips(code_bpe, texts):
  plain = loading.Bytes(sentinels=3)
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
  made = [loading.train(spec(size=size), [CODE[:20_000]], tmp_path / name)
          for name, size in (('a', 400), ('b', 400), ('c', 401))]
  assert (tmp_path / 'a').read_bytes() == (tmp_path / 'b').read_bytes()
  assert made[0].fingerprint == made[1].fingerprint != made[2].fingerprint
  assert sorted(p.name for p in tmp_path.iterdir()) == ['a', 'b', 'c']
  made[0].save(tmp_path / 'd')
  assert loading.load(spec(), tmp_path / 'd').fingerprint == made[0].fingerprint


def test_sample_is_even_bounded_and_in_short_pieces():
  texts = [f'{i:05d} ' * 500 for i in range(200)]  # 600,000 characters
  pieces = loading.sample(iter(texts), 60_000)
  assert 58_000 < sum(map(len, pieces)) <= 60_000
  assert max(len(piece.encode()) for piece in pieces) < 4192
  thirds = np.histogram([int(piece[:6]) for piece in pieces], bins=3, range=(0, 200))[0]
  assert min(thirds) > 10
  assert ''.join(loading.sample(['日本' * 5000, ' x\n'], 10**6)) == '日本' * 5000 + ' x\n'


def test_imported_model_gets_sentinels_above_as_t5_has_them(tmp_path):
  inside = loading.train(spec(size=288, sentinels=0), [' '.join(WORDS)], tmp_path / 'own')
  assert inside.num_sentinels == 0
  imported = loading.train(spec(path=str(tmp_path / 'own')), None, tmp_path / 'copy')
  assert imported.size == inside.size + 10
  assert imported.sentinel(0) == imported.size - 1 and imported.sentinel(9) == inside.size
  assert imported.decode([*imported.encode('the dog'), imported.size - 1]) == 'the dog<extra_id_0>'
  assert imported.fingerprint != inside.fingerprint
  with pytest.raises(ConfigError, match='vocabulary.path=.*nowhere'):
    loading.train(spec(path='nowhere'), None, tmp_path / 'copy')


@pytest.mark.parametrize('algorithm', ['bpe', 'unigram'])
def test_sizes_that_do_not_fit_the_text(tmp_path, algorithm):
  texts = [' '.join(WORDS)] * 20
  made = loading.train(spec(size=5000, algorithm=algorithm), texts, tmp_path / 'v')
  assert 260 < made.size < 5000  # as many as there are pieces to find
  same = loading.train(spec(size=made.size, algorithm=algorithm), texts, tmp_path / 'w')
  assert same.fingerprint == made.fingerprint
  with pytest.raises(ConfigError, match='vocabulary.size=100 is too small'):
    loading.train(spec(size=100, algorithm=algorithm), texts, tmp_path / 'v')
  with pytest.raises(ConfigError, match="vocabulary.algorithm='wordy'"):
    loading.train(spec(algorithm='wordy'), texts, tmp_path / 'v')
  with pytest.raises(DataError, match='no text'):
    loading.train(spec(algorithm=algorithm), [' \n'], tmp_path / 'v')


@settings(max_examples=100, deadline=None)
@given(st.text(min_size=1), st.booleans())
def test_characters_are_sorted_and_round_trip(text, specials):
  vocab = loading.Characters(text, specials)
  first = 3 if specials else 0
  assert vocab.size == len(set(text)) + first
  assert vocab.encode(text).tolist() == [sorted(set(text)).index(c) + first for c in text]
  assert vocab.decode(vocab.encode(text)) == text


def test_characters_without_specials_refuse_what_is_unknown(tmp_path):
  vocab = loading.train(spec(name='characters', specials=False), ['ba', 'c'], tmp_path / 'v')
  assert (vocab.pad_id, vocab.eos_id, vocab.unk_id, vocab.size) == (None, None, None, 3)
  with pytest.raises(DataError, match="'z' is not among the 3 characters"):
    vocab.encode('abz')
  vocab = loading.train(spec(name='characters'), ['ba', 'c'], tmp_path / 'v')
  assert vocab.encode('azé').tolist() == [3, 2, 2]
  with pytest.raises(DataError, match='no text'):
    loading.train(spec(name='characters'), [], tmp_path / 'v')


def test_characters_have_sentinels_at_the_end_and_can_be_imported(tmp_path):
  vocab = loading.train(spec(name='characters'), ['ba', 'c'], tmp_path / 'v')
  assert (vocab.size, vocab.num_sentinels) == (16, 10)
  assert [vocab.sentinel(k) for k in range(10)] == list(range(6, 16))
  assert vocab.pieces([2, 3, 5, 6]) == ['<unk>', 'a', 'c', '<extra_id_0>']
  assert vocab.decode([3, 6, 5, 1]) == 'a<extra_id_0>c'
  again = loading.load(types.SimpleNamespace(name='characters', sentinels=0), tmp_path / 'v')
  imported = loading.train(spec(name='characters', path=str(tmp_path / 'v')), None, tmp_path / 'w')
  for other in (again, imported):
    assert other.fingerprint == vocab.fingerprint and other.encode('cab').tolist() == [5, 3, 4]
  assert (tmp_path / 'w').read_bytes() == (tmp_path / 'v').read_bytes()
  assert loading.Characters('abc', specials=False, sentinels=5).size == 3
  with pytest.raises(ConfigError, match="vocabulary.path='nowhere' is not a file: .* characters of the text"):
    loading.train(spec(name='characters', path='nowhere'), None, tmp_path / 'w')
  loading.Bytes(1).save(tmp_path / 'bytes')
  with pytest.raises(DataError, match="bytes is not a vocabulary of kind vocabulary.name='characters'"):
    loading.train(spec(name='characters', path=str(tmp_path / 'bytes')), None, tmp_path / 'w')


def test_fingerprints_of_prepared_data_stay():  # data made by older versions must not be refused
  assert loading.Bytes(3).fingerprint[:16] == 'c1d17bb10aac3463'
  assert loading.Characters('cab\n').fingerprint[:16] == '9d92d4fcdd47bfa7'
  assert loading.Characters('cab\n', False).fingerprint[:16] == '75cc16368205dd63'
  assert loading.Characters('cab\n', True, 1).fingerprint[:16] != '9d92d4fcdd47bfa7'


def test_bytes(tmp_path):
  vocab = loading.train(spec(name='bytes'), None, tmp_path / 'v')
  assert vocab.encode('a\né').tolist() == [100, 13, 198, 172]
  assert vocab.size == 269 and vocab.sentinel(0) == 259
  assert vocab.pieces([100, 13, 198, 259]) == ['a', '\\n', '<0xC3>', '<extra_id_0>']
  assert vocab.decode([198, 1]) == '\ufffd'
  assert vocab.fingerprint != loading.Bytes(9).fingerprint


def test_load_names_what_is_wrong(tmp_path):
  with pytest.raises(DataError, match='missing cannot be read'):
    loading.load(spec(), tmp_path / 'missing')
  (tmp_path / 'v').write_bytes(hashlib.sha256(b'').digest())
  for name in ('sentencepiece', 'bytes', 'characters'):
    with pytest.raises(DataError, match=f"not a vocabulary of kind vocabulary.name='{name}'"):
      loading.load(types.SimpleNamespace(name=name, sentinels=0), tmp_path / 'v')
  loading.Bytes(1).save(tmp_path / 'v')
  with pytest.raises(DataError, match="not a vocabulary of kind vocabulary.name='characters'"):
    loading.load(types.SimpleNamespace(name='characters', sentinels=0), tmp_path / 'v')
  with pytest.raises(ConfigError, match="vocabulary.name='words' is unknown"):
    loading.load(types.SimpleNamespace(name='words', sentinels=0), tmp_path / 'v')


# --- Masks and words -----------------------------------------------------------------------------


def words_of(vocab, ids):
  """The text of a sequence of ids, cut where words begin by the rule of data/objectives.py."""
  found = []
  for i, token in enumerate(ids):
    if i == 0 or vocab.begins_word[token] or ids[i - 1] in vocab.special_ids:
      found.append([])
    found[-1].append(token)
  return [vocab.decode(word) for word in found]


def test_special_ids_masks_and_words(english, code_bpe):
  chars = loading.Characters('ab_9 \u0301é.\n', sentinels=2)
  plain = loading.Bytes(4)
  for vocab, sentinels in ((english, 10), (code_bpe, 10), (chars, 2), (plain, 4)):
    ids = [vocab.sentinel(k) for k in range(sentinels)]
    assert vocab.mask_id == ids[0] and vocab.cls_id == ids[1]
    assert vocab.special_ids.dtype == np.int32 and vocab.special_ids.tolist() == sorted([0, 1, 2, *ids])
    assert vocab.begins_word.shape == (vocab.size,) and vocab.begins_word.dtype == bool
    assert not vocab.begins_word[vocab.special_ids].any()
  none = loading.Characters('abc', specials=False)
  assert none.mask_id is none.cls_id is None and none.special_ids.tolist() == []
  one = loading.Bytes(1)
  assert (one.mask_id, one.cls_id) == (259, None)
  letters = chars.pieces(np.flatnonzero(~chars.begins_word))
  assert letters[3:-2] == ['9', '_', 'a', 'b', 'é', '\u0301'] and chars.begins_word.sum() == 3


def test_words_are_what_people_take_for_words(english, code_bpe):
  text = 'the fox, naïve_1 dog\n  sleeps.'
  for vocab in (loading.Bytes(), loading.Characters(text)):
    ids = vocab.encode(text).tolist()
    assert words_of(vocab, ids) == ['the', ' fox', ',', ' naïve_1', ' dog', '\n', ' ', ' sleeps', '.']
  ids = [1, *vocab.encode('fox').tolist(), 1, *vocab.encode('dog').tolist()]
  assert words_of(vocab, ids) == ['', 'fox', 'dog']  # letters that a special token parts are two words
  assert words_of(english, english.encode('the quick fox jumps').tolist()) == ['the', 'quick', 'fox', 'jumps']
  text = 'import random\n    if x:\n  return 0'
  assert words_of(code_bpe, code_bpe.encode(text).tolist()) == [
      'import', ' random', '\n', '    if', ' x:', '\n', '  return', ' 0']
  ordinary = range(13, code_bpe.size)
  assert [code_bpe.begins_word[i] for i in ordinary] == [
      code_bpe.decode([i])[:1] in tuple(' \t\n\r\v\f') for i in ordinary]


MARKED = st.lists(st.sampled_from(['<mask>', '<extra_id_0>', '<extra_id_2>', 'the fox', ' ', '<mask', 'é<>']),
                  max_size=6)


@settings(max_examples=60, deadline=None)
@given(MARKED)
def test_marks_become_ids(code_bpe, parts):
  for vocab in (code_bpe, loading.Bytes(3), loading.Characters('the fox<mask>', sentinels=3)):
    ids, text, expected = vocab.encode_marked(''.join(parts)), '', []
    for part in [*parts, None]:  # an independent reading: text runs between marks
      if part in ('<mask>', '<extra_id_0>', '<extra_id_2>', None):
        expected += vocab.encode(text).tolist()
        text = ''
        expected += [] if part is None else [vocab.sentinel(2 if '2' in part else 0)]
      else:
        text += part
    assert ids.dtype == np.int32 and ids.tolist() == expected


def test_marks_of_models_that_put_a_space_first(english):
  mask = english.sentinel(0)
  ids = english.encode_marked('the <mask> fox <extra_id_3>')
  assert ids.tolist() == [*english.encode('the'), mask, *english.encode('fox'), english.sentinel(3)]
  assert english.encode('the <mask> fox').tolist().count(mask) == 0
  assert english.encode_marked('').tolist() == []


def test_marks_without_ids():
  with pytest.raises(ConfigError, match='<mask> is not in the vocabulary.*vocabulary.sentinels must be at least 1'):
    loading.Bytes().encode_marked('a <mask>')
  with pytest.raises(ConfigError, match='<extra_id_7> is not in the vocabulary, which has 3 sentinels'):
    loading.Bytes(3).encode_marked('<extra_id_7>')


# --- Hugging Face --------------------------------------------------------------------------------


def tokenizer(kind, special):
  """A tiny tokenizer of the library, trained on WORDS."""
  import tokenizers
  from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers
  keys = dict(show_progress=False, special_tokens=special)
  if kind == 'wordpiece':
    made = tokenizers.Tokenizer(models.WordPiece(unk_token='[UNK]'))
    made.normalizer, made.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    made.decoder, trainer = decoders.WordPiece(), trainers.WordPieceTrainer(vocab_size=120, **keys)
  elif kind == 'bytes':
    made = tokenizers.Tokenizer(models.BPE())
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=320, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), **keys)
  else:
    made = tokenizers.Tokenizer(models.Unigram())
    made.pre_tokenizer, made.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=80, unk_token='<unk>', **keys)
  made.train_from_iterator([' '.join(WORDS)] * 20, trainer)
  return made


BERT = dict(pad_token='[PAD]', unk_token='[UNK]', cls_token='[CLS]', sep_token='[SEP]', mask_token='[MASK]')


def imported(made, tmp_path, **names):
  """The vocabulary of a run that imports a tokenizer, beside which its settings name special tokens."""
  made.save(str(tmp_path / 'tokenizer.json'))
  (tmp_path / 'tokenizer_config.json').write_text(json.dumps(names))
  return loading.train(spec(name='huggingface', path=str(tmp_path / 'tokenizer.json')), None, tmp_path / 'v')


def test_wordpiece(tmp_path):
  made = tokenizer('wordpiece', ['[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]'])
  made.enable_truncation(3)
  made.enable_padding()
  vocab = imported(made, tmp_path, **BERT)
  assert (vocab.pad_id, vocab.eos_id, vocab.unk_id, vocab.mask_id, vocab.cls_id) == (0, 3, 1, 4, 2)
  assert vocab.special_ids.tolist() == [0, 1, 2, 3, 4] and vocab.num_sentinels == 0
  ids = vocab.encode('The lazy fox jumping over a dog')
  assert ids.dtype == np.int32 and vocab.decode(ids) == 'the lazy fox jumping over a dog'
  pieces = vocab.pieces(ids)
  assert pieces[-1] == 'dog' and any(piece.startswith('##') for piece in pieces)
  assert [vocab.begins_word[i] for i in ids] == [not piece.startswith('##') for piece in pieces]
  assert vocab.size == made.get_vocab_size() == len(vocab.begins_word)
  assert vocab.decode([2, *ids[:2], 4, 3, 0, 0]) == 'the lazy [MASK]'
  assert vocab.encode_marked('the <mask> fox').tolist() == [*vocab.encode('the'), 4, *vocab.encode('fox')]
  assert not np.isin(vocab.encode('[MASK] [SEP] [CLS]'), [0, 2, 3, 4]).any()
  with pytest.raises(ConfigError, match='which has 0 sentinels: this tokenizer.json cannot'):
    vocab.encode_marked('<extra_id_0>')
  again = loading.load(types.SimpleNamespace(name='huggingface', sentinels=0), tmp_path / 'v')
  assert again.fingerprint == vocab.fingerprint and again.encode('fox').tolist() == vocab.encode('fox').tolist()


@settings(max_examples=60, deadline=None)
@given(st.lists(st.one_of(st.text(), AWKWARD), min_size=1, max_size=3))
def test_byte_level_bpe_round_trips(byte_level, texts):
  batch = byte_level.encode_batch(texts)
  assert [byte_level.decode(ids) for ids in batch] == texts
  assert all(ids.dtype == np.int32 and not np.isin(ids, byte_level.special_ids).any() for ids in batch)


@pytest.fixture(scope='module')
def byte_level(tmp_path_factory):
  made = tokenizer('bytes', ['<|endoftext|>', *(f'<extra_id_{k}>' for k in range(3))])
  return imported(made, tmp_path_factory.mktemp('bytes'), eos_token='<|endoftext|>')


def test_byte_level_bpe(byte_level):
  vocab = byte_level
  assert (vocab.pad_id, vocab.eos_id, vocab.unk_id, vocab.mask_id, vocab.cls_id) == (None, 0, None, 1, 2)
  assert [vocab.sentinel(k) for k in range(3)] == [1, 2, 3] and vocab.special_ids.tolist() == [0, 1, 2, 3]
  text = 'the fox<|endoftext|>\n<extra_id_1> dog'
  ids = vocab.encode(text).tolist()
  assert vocab.decode(ids) == text and not set(ids) & {0, 1, 2, 3}
  assert vocab.decode([*vocab.encode('the fox'), 2, *vocab.encode(' dog'), 0]) == 'the fox<extra_id_1> dog'
  assert words_of(vocab, vocab.encode('the fox\njumps zyx').tolist()) == ['the', ' fox', '\njumps', ' zyx']
  assert vocab.encode_marked('the<extra_id_2> dog<mask>').tolist() == [
      *vocab.encode('the'), 3, *vocab.encode(' dog'), 1]


def test_pieces_that_look_like_sentinels_cannot_come_from_text(tmp_path):
  """In T5's tokenizer.json <extra_id_0> is a piece of the model, likelier than its letters."""
  made = tokenizer('metaspace', ['<pad>', '</s>', '<unk>'])
  fields = json.loads(made.to_str())
  fields['model']['vocab'] += [['<extra_id_0>', 0.0]] + [[c, -9.0] for c in '<>_0' if c not in dict(
      fields['model']['vocab'])]
  import tokenizers
  made = tokenizers.Tokenizer.from_str(json.dumps(fields))
  vocab = imported(made, tmp_path)
  text = 'the fox<extra_id_0>x'
  assert vocab.sentinel(0) in made.encode(text).ids and vocab.mask_id == vocab.sentinel(0)
  ids = vocab.encode(text)
  assert vocab.sentinel(0) not in ids and 'extra' in vocab.decode(ids)
  assert vocab.encode('the fox').tolist() == made.encode('the fox').ids
  assert words_of(vocab, vocab.encode('the fox jumps').tolist()) == ['the', 'fox', 'jumps']


def test_tokenizer_json_errors(tmp_path, monkeypatch):
  for content in ('', '[]', '{}', '{"model": 3}'):
    (tmp_path / 'tokenizer.json').write_text(content)
    with pytest.raises(DataError, match="not a vocabulary of kind vocabulary.name='huggingface'"):
      loading.load(types.SimpleNamespace(name='huggingface', sentinels=0), tmp_path / 'tokenizer.json')
  for path in ('', 'nowhere'):
    with pytest.raises(ConfigError, match=f"vocabulary.path='{path}' is not a file: give the path of a tokenizer.json"):
      loading.train(spec(name='huggingface', path=path), None, tmp_path / 'v')
  monkeypatch.setitem(sys.modules, 'tokenizers', None)
  with pytest.raises(ConfigError, match=r"needs the package tokenizers; run: pip install -e '.\[hf\]'"):
    loading.load(types.SimpleNamespace(name='huggingface', sentinels=0), tmp_path / 'tokenizer.json')
