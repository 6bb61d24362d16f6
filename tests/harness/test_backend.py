"""lm-evaluation-harness on our models, beside its own backend for transformers on the models that they are exported to.

    pip install -e '.[test,harness]' && pytest -m harness
"""
import functools
import random

import jax
import numpy as np
import pytest

from t5like.config import task_files
from t5like.decoding import decode
from t5like.errors import ConfigError, DataError
from t5like.evals import evaluate, harness
from t5like.huggingface import model_folders
from t5like.vocabulary import loading as vocabulary_lib
from tests.evals import test_ask, test_score
from tests.harness import tasks

pytestmark = pytest.mark.harness

SIGNS = 'ab( )\n'
# Rows of 32 tokens, but for GPT-2's table of 48 positions.
EXPORTED = dict(
    document=dict(),  # a Llama, whose texts begin with BOS
    stream=dict(data=dict(document_mask=False)),  # without
    learned=dict(model=dict(position='learned', max_positions=48, norm='layernorm', norm_eps=1e-5, block='pre_norm',
                            activation='gelu_tanh', use_bias=True, num_kv_heads=4, tie_embeddings=True, init='gpt2')),
    # T5 v1.0. The head of a v1.1 is lost in the harness's backend: it calls tie_weights() on every model, which puts
    # the embedding in its place (transformers 5.23).
    answers=dict(model=dict(name='encoder_decoder', position='relative', scale_attention=False, head='scaled',
                            tie_embeddings=True, activation='relu', init='t5', num_kv_heads=4),
                 objective=dict(name='seq2seq'),
                 data=dict(inputs='{text}', targets='{text}', target_len=32, packing='best_fit')))
VOCABULARIES = dict(bytes=lambda: vocabulary_lib.Bytes(40), pieces=lambda: test_ask.sentence_pieces(1))
PAIRS = [('document', 'bytes'), ('document', 'pieces'), ('stream', 'bytes'), ('stream', 'pieces'),
         ('learned', 'bytes')]


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  return tasks.written(tmp_path_factory.mktemp('harness'))


@functools.cache
def both(kind, vocabulary, folder):
  """(our adapter of a random model, the harness's backend on the folder that it is exported to)."""
  from lm_eval.models.huggingface import HFLM
  c, model, params, v, mesh = test_score.made(dict(EXPORTED[kind], model=dict(EXPORTED[kind].get('model', {}),
                                                                             vocab_size=360)),
                                              folder, VOCABULARIES[vocabulary]())
  params = spelling(params, v, c.model)
  subject = evaluate.Subject(model, params, v, c, mesh)
  out = folder / f'{kind}-{vocabulary}'
  notes = model_folders.write(out, c.model.to_dict(), params, v, style=decode.style_of(c),
                              length=c.data.seq_len)
  assert not [note for note in notes if 'tokenizer' in note]
  return harness.language_model(subject), HFLM(pretrained=str(out), device='cpu', batch_size=4)


def spelling(params, v, model):
  """Parameters of a model that generates ASCII: the two libraries show bytes that are no characters differently."""
  readable = np.zeros(model.vocab_size, np.float32)
  for i in range(v.size):
    text = v.decode([i])
    readable[i] = i == 0 or text.isascii() and text != '' and i not in v.special_ids
  if model.tie_embeddings:
    return dict(params, embed=jax.tree.map(lambda x: x * readable[:, None] if x.shape[0] == len(readable) else x,
                                           params['embed']))
  return dict(params, head=jax.tree.map(lambda x: x * readable[None, :] if x.ndim == 2 else x, params['head']))


def texts(seed, lengths):
  rng = random.Random(seed)
  return [''.join(rng.choices(SIGNS, k=n)) for n in lengths]


@pytest.mark.parametrize('kind, vocabulary', PAIRS)
def test_continuations_are_as_likely(kind, vocabulary, folder):
  """Short prompts, none, those that end with spaces, and those that are longer than a row; and what was cut is told."""
  ours, theirs = both(kind, vocabulary, folder)
  contexts = ['', 'a', 'ab ', 'ab\n\n', *texts(1, [5, 20, 29, 31, 32, 33, 47, 48, 49, 90, 200])]
  requests = [tasks.request(context, ' ' * (i % 2) + continuation + 'a', doc_id=i)
              for i, (context, continuation) in enumerate(zip(contexts, texts(2, [1, 3, 7] * 5)))]
  # Where pieces melt together the harness may be left without tokens, and stops.
  cut = [theirs._encode_pair(*r.args) if r.args[0] else ([0], [0]) for r in requests]
  requests = [r for r, (_, continuation) in zip(requests, cut) if continuation]
  assert len(requests) > 10
  expected, values = theirs.loglikelihood(requests, disable_tqdm=True), ours.loglikelihood(requests)
  np.testing.assert_allclose([v for v, _ in values], [v for v, _ in expected], atol=1e-4, rtol=2e-6)
  assert [greedy for _, greedy in values] == [greedy for _, greedy in expected]
  room = theirs.max_length
  lengths = [len(x) + len(y) - 1 for x, y in cut]
  assert ours.cut['mine'] == {r.doc_id for r in requests if lengths[r.doc_id] > room}
  assert 0 < len(ours.cut['mine']) < len(requests)


@pytest.mark.parametrize('kind, vocabulary', PAIRS)
def test_whole_texts_are_as_likely(kind, vocabulary, folder):
  ours, theirs = both(kind, vocabulary, folder)
  lengths = [1, 2, 30, 31, 32, 33, 34, 47, 48, 63, 64, 65, 96, 97, 150, 911]
  requests = [tasks.request(text) for text in texts(3, lengths)]
  np.testing.assert_allclose(ours.loglikelihood_rolling(requests),
                             theirs.loglikelihood_rolling(requests, disable_tqdm=True), atol=1e-4, rtol=2e-6)


@pytest.mark.parametrize('kind, vocabulary', PAIRS)
def test_text_is_the_same(kind, vocabulary, folder):
  """Prompts that fit, and those of which a limit of 8 or 20 tokens leaves the end only."""
  ours, theirs = both(kind, vocabulary, folder)
  ours.cut.clear()
  how = lambda i: dict(until=['a', 'b('] if i % 3 else [], max_gen_toks=20 if i % 2 else 8, do_sample=False)
  prompts = texts(4, [1, 3, 10, 12, 20, 23, 24, 25, 30, 60, 120])
  requests = [tasks.request(prompt, how(i), doc_id=i) for i, prompt in enumerate(prompts)]
  said = ours.generate_until(requests)
  assert said == theirs.generate_until(requests, disable_tqdm=True) and len(set(said)) > 3
  room = theirs.max_length
  assert ours.cut['mine'] == {i for i, prompt in enumerate(prompts)
                              if len(theirs.tok_encode(prompt)) > room - how(i)['max_gen_toks']}


def test_answers_of_an_encoder_decoder_are_as_likely(folder):
  """And the same text: the backend counts the prompt's tokens among those to generate, so its answers are longer."""
  ours, theirs = both('answers', 'bytes', folder)
  contexts = ['a', 'ab ', 'ab\n\n', *texts(1, [5, 20, 31, 32, 33, 48, 90])]
  requests = [tasks.request(context, ' ' * (i % 2) + continuation + 'a', doc_id=i)
              for i, (context, continuation) in enumerate(zip(contexts, texts(2, [1, 3, 7] * 4)))]
  expected, values = theirs.loglikelihood(requests, disable_tqdm=True), ours.loglikelihood(requests)
  np.testing.assert_allclose([v for v, _ in values], [v for v, _ in expected], atol=1e-4, rtol=2e-6)
  assert [greedy for _, greedy in values] == [greedy for _, greedy in expected]
  prompts = [tasks.request(context, dict(until=[], max_gen_toks=8, do_sample=False), doc_id=i)
             for i, context in enumerate(texts(4, [1, 3, 12, 25, 60]))]
  said = list(zip(ours.generate_until(prompts), theirs.generate_until(prompts, disable_tqdm=True)))
  assert all(text and longer.startswith(text) for text, longer in said)


def test_what_their_backend_cannot_ask_is_told_in_words(folder):
  ours, theirs = both('document', 'bytes', folder)
  with pytest.raises(AssertionError):
    theirs.loglikelihood([tasks.request('ab', '')], disable_tqdm=True)
  with pytest.raises(DataError, match="harness:mine: the continuation '' after 'ab' has no tokens"):
    ours.loglikelihood([tasks.request('ab', '')])
  with pytest.raises(DataError, match='continuation of 40 tokens is longer than the 32'):
    ours.loglikelihood([tasks.request('ab', 'x' * 40)])
  with pytest.raises(DataError, match='half of a surrogate pair'):
    ours.loglikelihood_rolling([tasks.request('\ud800')])
  for how, words in ((dict(num_beams=4), 'num_beams=4'), (dict(temperature=0.7), 'only greedy text'),
                     (dict(do_sample=True), 'only greedy text'), (dict(max_gen_toks=0), 'at least 1')):
    with pytest.raises(ConfigError, match=words):
      ours.generate_until([tasks.request('ab', how)])


def test_tasks_of_their_backend_and_ours_have_the_same_numbers(folder, tmp_path):
  """Whole tasks, whole texts and generation included, with prompts beyond the row of 32."""
  import lm_eval
  from lm_eval.models.huggingface import HFLM
  from lm_eval.tasks import TaskManager
  c, model, params, vocabulary, mesh = test_score.setting('document', folder)
  model_folders.write(tmp_path / 'out', c.model.to_dict(), params, vocabulary, style='document', length=c.data.seq_len)
  lm = HFLM(pretrained=str(tmp_path / 'out'), device='cpu', batch_size=4)
  names = [f'ours_{name}' for name in tasks.TASKS if name != 'next_line']  # whose lines are too long for their backend
  results = lm_eval.simple_evaluate(lm, tasks=names, task_manager=TaskManager(include_path=str(folder)),
                                    bootstrap_iters=0)['results']
  ours = harness.evaluate(tasks.subject('document', folder), names, str(folder))
  for name, metrics in dict(ours_agreement=['acc', 'acc_norm'], ours_last_word=['acc', 'perplexity'],
                            ours_english=['bits_per_byte', 'byte_perplexity'],
                            ours_copying=['exact_match', 'bleu']).items():
    for metric in metrics:
      np.testing.assert_allclose(ours[f'harness:{name}'][metric], results[name][f'{metric},none'], rtol=2e-4)
  assert ours['harness:ours_last_word']['cut'] == tasks.ITEMS


def test_their_transformers_backend_says_the_same_of_an_exported_model(folder, tmp_path):
  """The harness's own way to a Hugging Face model, beside our evaluators on the checkpoint it was made of."""
  import lm_eval
  from lm_eval.models.huggingface import HFLM
  from lm_eval.tasks import TaskManager
  c, model, params, vocabulary, mesh = test_score.setting('long_document', folder)
  model_folders.write(tmp_path / 'out', c.model.to_dict(), params, vocabulary, style='document', length=c.data.seq_len)
  lm = HFLM(pretrained=str(tmp_path / 'out'), device='cpu', batch_size=4, add_bos_token=True)
  results = lm_eval.simple_evaluate(lm, tasks=['ours_agreement', 'ours_last_word', 'ours_next_line'], num_fewshot=2,
                                    task_manager=TaskManager(include_path=str(folder)), bootstrap_iters=0)['results']
  ours = evaluate.evaluate(tasks.subject('long_document', folder),
                           [task_files.find(name) for name in ('agreement', 'last_word', 'next_line')], 2, tasks.ITEMS)
  for name, mine, other in (('agreement', 'accuracy', 'acc'), ('agreement', 'accuracy_norm', 'acc_norm'),
                            ('next_line', 'accuracy', 'acc'), ('last_word', 'accuracy', 'acc')):
    assert abs(results[f'ours_{name}'][f'{other},none'] - ours[name][mine]) < 1e-4, name
  s = tasks.subject('long_document', folder)
  logp = ours['last_word']['nll'] * tasks.tokens_per_item(s, 2)
  np.testing.assert_allclose(np.log(results['ours_last_word']['perplexity,none']), logp, rtol=1e-4)
