"""Where questions are cut into tokens, over random tokenizers whose pieces reach over the end of a prompt."""
import functools
import io
import random

import jax
import numpy as np
import pytest
import sentencepiece
import tokenizers
from hypothesis import given, settings, strategies as st

from t5like import sharding
from t5like.config import task_files
from t5like.errors import DataError
from t5like.evals import ask, evaluate, items
from t5like.model import models
from t5like.vocabulary.sentence_pieces import SentencePiece
from t5like.vocabulary.tokenizer_json import HuggingFace
from tests import tiny
from tests.evals import test_score

SIGNS = 'ab( )\n'
NAMES = ['<pad>', '</s>', '<unk>', '<mask>', '<s>', '<extra_id_0>', '<extra_id_1>']
# One of each way to ask, but seq2seq, whose texts are encoded by themselves.
ASKED = ['document', 'stream', 'prefix', 'spans_in_a_row', 'masked', 'masked_ends', 'spans', 'denoisers', 'spoilt']
TEXTS = st.text(SIGNS, max_size=7)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  return tmp_path_factory.mktemp('ask')


@functools.cache
def byte_pairs(seed):
  """A tokenizer.json whose merges are random, over spaces and line ends too."""
  rng = random.Random(seed)
  pieces, merges = list(SIGNS), []
  for _ in range(rng.randint(5, 60)):
    pair = rng.choice(pieces), rng.choice(pieces)
    if ''.join(pair) not in pieces and len(''.join(pair)) < 6:
      merges.append(pair)
      pieces.append(''.join(pair))
  model = tokenizers.models.BPE({piece: i for i, piece in enumerate([*NAMES, *pieces])}, merges, unk_token='<unk>')
  tokenizer = tokenizers.Tokenizer(model)
  tokenizer.decoder = tokenizers.decoders.Fuse()
  tokenizer.add_special_tokens(NAMES)
  return HuggingFace(tokenizer.to_str().encode())


@functools.cache
def sentence_pieces(seed):
  """A SentencePiece model of random text, with or without a space before each text and whole runs of spaces."""
  rng = random.Random(seed)
  lines = [''.join(rng.choices(SIGNS[:-1], [3, 2, 2, 3, 2], k=40)) for _ in range(60)]
  model, exact = io.BytesIO(), bool(seed % 2)
  sentencepiece.SentencePieceTrainer.train(
      sentence_iterator=iter(lines), model_writer=model, vocab_size=290 + rng.randint(0, 30), pad_id=0, eos_id=1,
      unk_id=2, bos_id=-1, minloglevel=4, byte_fallback=True, model_type=rng.choice(['bpe', 'unigram']),
      hard_vocab_limit=False, split_by_whitespace=False, normalization_rule_name='identity',
      control_symbols=['<extra_id_0>', '<extra_id_1>'], allow_whitespace_only_pieces=True,
      user_defined_symbols=['\n'], remove_extra_whitespaces=not exact, add_dummy_prefix=not exact)
  return SentencePiece(model.getvalue())


TOKENIZERS = {'byte pairs': (byte_pairs, 400), 'SentencePiece': (sentence_pieces, 8)}


@pytest.mark.parametrize('tokenizer', TOKENIZERS)
@settings(deadline=None, max_examples=150)
@given(st.data())
def test_choices_are_cut_where_their_whole_texts_begin_to_differ(tokenizer, folder, data):
  make, seeds = TOKENIZERS[tokenizer]
  v = make(data.draw(st.integers(0, seeds)))
  asker = ask.Asker(test_score.setting(data.draw(st.sampled_from(ASKED)), folder)[0], v)
  before, after = data.draw(TEXTS), data.draw(st.sampled_from(['', '', ')', ' b', 'ab\n']))
  answers = data.draw(st.lists(TEXTS, min_size=1, max_size=4))
  wholes = [v.encode(before + answer + after).tolist() for answer in answers]
  try:
    parts = asker.apart([(before, answer, after) for answer in answers])
  except DataError as e:
    assert 'has no tokens' in str(e)
    alone = v.encode(before.rstrip()).tolist()
    left = min(common(alone, whole) for whole in wholes)
    # Nothing, or less than a piece by which other choices go on.
    assert any(len(whole) - left <= tokens_of(v, after) for whole in wholes) or any(
        not answer.strip() for answer in answers)
    return
  assert [x + y + z for x, y, z in parts] == wholes
  assert len({(tuple(x), tuple(z)) for x, _, z in parts}) == 1
  left, right = len(parts[0][0]), len(parts[0][2])
  assert left == min(common(v.encode(before.rstrip()).tolist(), whole) for whole in wholes)
  assert after or not right
  if tokenizer == 'byte pairs':  # whose text comes back as it is
    for x, _, z in parts:
      assert before.startswith(v.decode(x)) and after.endswith(v.decode(z))


def tokens_of(v, after):
  return len(v.encode(after)) + 1


def common(one, other):
  n = 0
  while one[n:n + 1] and one[n:n + 1] == other[n:n + 1]:
    n += 1
  return n


@pytest.mark.parametrize('kind', [k for k in test_score.KINDS if k != 'long_document'])
def test_answers_without_tokens_are_refused(kind, folder):
  asker = ask.Asker(*(test_score.setting(kind, folder)[i] for i in (0, 3)))
  with pytest.raises(DataError, match="the answer '' after 'the a' has no tokens"):
    asker.rows('the a', '')
  with pytest.raises(DataError, match='without tokens'):
    asker.rows_of_ids([5, 6], [])


@pytest.mark.parametrize('kind', ['document', 'masked', 'spans'])
def test_an_answer_that_melts_into_the_prompt_is_still_asked_for(kind, folder):
  """The piece '((b' is one token of which the answer 'b' is the end."""
  v = byte_pairs_of([('(', '('), ('((', 'b'), ('a', 'a')])
  asker = ask.Asker(test_score.setting(kind, folder)[0], v)
  ids = lambda text: [v.pieces([i])[0] for i in text]
  (x, y, z), (other, long, _) = [map(ids, parts) for parts in asker.apart([('aa((', 'b', ''), ('aa((', 'a', '')])]
  assert (x, y, z) == (['aa'], ['((b'], []) and (other, long) == (['aa'], ['((', 'a'])
  assert list(map(ids, asker.ids('aa((', 'a'))) == [['aa', '(('], ['a'], []]
  # From the right: 'b' of the answer and '((' before it are one piece, which the text after it does not begin.
  assert list(map(ids, asker.ids('a ', '((', 'ba'))) == [['a'], [' ', '((b'], ['a']]


def byte_pairs_of(merges):
  pieces = [*NAMES, *SIGNS, *map(''.join, merges)]
  model = tokenizers.models.BPE({piece: i for i, piece in enumerate(pieces)}, merges, unk_token='<unk>')
  tokenizer = tokenizers.Tokenizer(model)
  tokenizer.add_special_tokens(NAMES)
  return HuggingFace(tokenizer.to_str().encode())


def test_a_prompt_keeps_all_of_its_text_where_pieces_melt(folder):
  v = byte_pairs_of([('(', '('), ('((', 'b')])
  asker = ask.Asker(test_score.setting('spans', folder)[0], v)
  assert v.pieces(asker.prompt('a((', 'ba', 4)) == ['a', '((', '<extra_id_0>', 'b', 'a']
  assert v.pieces(asker.prompt('a', '(a', 4)) == ['a', '<extra_id_0>', '(', 'a']


@pytest.fixture(scope='module')
def coder(tmp_path_factory):
  """A random decoder whose pieces were learnt from the questions themselves, so that many melt together."""
  folder, model = tmp_path_factory.mktemp('coder'), io.BytesIO()
  lines = [q.before[0] + answer for name in ('brackets', 'agreement') for q in items.questions(task_files.find(name))
           for answer in q.answers]
  sentencepiece.SentencePieceTrainer.train(
      sentence_iterator=iter(lines), model_writer=model, vocab_size=700, model_type='bpe', pad_id=0, eos_id=1, unk_id=2,
      bos_id=-1, minloglevel=4, byte_fallback=True, normalization_rule_name='identity', hard_vocab_limit=False,
      user_defined_symbols=['\n'], remove_extra_whitespaces=False, add_dummy_prefix=False)
  v = SentencePiece(model.getvalue())
  c = models.with_vocabulary(tiny.config(folder, model=dict(vocab_size=704), data=dict(seq_len=128)), v)
  mesh = sharding.make_mesh(dict(fsdp=1), jax.devices()[:1])
  with jax.set_mesh(mesh):
    network, _ = models.build_model(c)
    params = jax.jit(network.init)(jax.random.key(1))
  return evaluate.Subject(network, jax.tree.map(lambda x: 3 * x if x.ndim > 2 else x, params), v, c, mesh)


@pytest.mark.parametrize('name', ['brackets', 'agreement'])
def test_the_likeliest_choice_is_that_of_the_likeliest_whole_text(name, coder):
  apply = jax.jit(coder.model.apply)

  def whole_text(text):
    ids = coder.vocabulary.encode(text).tolist()
    padded = np.zeros((1, 128), np.int32)
    padded[0, 1:len(ids) + 1] = ids
    batch = dict(inputs=padded, positions=np.arange(128, dtype=np.int32)[None],
                 segments=(np.arange(128) <= len(ids)).astype(np.int32)[None])
    with jax.set_mesh(coder.mesh):
      logits = np.asarray(apply(coder.params, batch)[0], np.float64)
    logp = logits - np.log(np.exp(logits - logits.max(-1, keepdims=True)).sum(-1, keepdims=True)) - logits.max(
        -1, keepdims=True)
    return sum(logp[t, i] for t, i in enumerate(ids))
  questions, right, melted = items.questions(task_files.find(name), limit=24), [], 0
  for q in questions:
    totals = [whole_text(before + answer + after) for before, answer, after in zip(q.before, q.answers, q.after)]
    scores = coder.scorer.score_choices([list(zip(q.before, q.answers, q.after))])[0]
    differences = np.subtract([s.logp for s in scores], totals)
    np.testing.assert_allclose(differences, differences[0], atol=1e-3)
    right.append(int(np.argmax(totals)) == q.right)
    before = coder.vocabulary.encode(q.before[0].rstrip()).tolist()
    melted += any(common(before, coder.vocabulary.encode(q.before[0] + a).tolist()) < len(before) for a in q.answers)
  found = evaluate.evaluate(coder, [task_files.find(name)], limit=24)[name]
  assert found['accuracy'] == np.mean(right) and (melted > 5 or name != 'brackets')
