"""lm-evaluation-harness on our models, beside our own evaluators on the same items.

    pip install -e '.[test,harness]' && pytest -m harness
"""
import functools
import json
import math
import random
import types

import jax
import numpy as np
import pytest

from t5like.config import task_files
from t5like.decoding import decode
from t5like.errors import ConfigError, DataError
from t5like.evals import ask, evaluate, harness, plan
from t5like.evals.tasks import make
from t5like.huggingface import model_folders
from t5like.vocabulary import loading as vocabulary_lib
from tests.evals import test_ask, test_score

pytestmark = pytest.mark.harness

ITEMS = 8
MULTIPLE = '''
task: {name}
dataset_path: json
dataset_kwargs:
  data_files: {{train: {train}, test: {test}}}
training_split: train
test_split: test
fewshot_split: train
fewshot_config: {{sampler: first_n}}
target_delimiter: "{delimiter}"
fewshot_delimiter: "\\n\\n"
output_type: {kind}
{rest}
'''
TASKS = dict(
    agreement=('multiple_choice', ' ', '''
doc_to_text: "{{subject}}"
doc_to_choice: "{{choices}}"
doc_to_target: answer
metric_list: [{metric: acc}, {metric: acc_norm}]
'''),
    next_line=('multiple_choice', '\\n', '''
doc_to_text: "{{code}}"
doc_to_choice: "{{choices}}"
doc_to_target: answer
metric_list: [{metric: acc}, {metric: acc_norm}]
'''),
    last_word=('loglikelihood', '', '''
doc_to_text: "{{text}}"
doc_to_target: "{{' ' + word}}"
metric_list: [{metric: acc}, {metric: perplexity}]
'''),
    english=('loglikelihood_rolling', '', '''
doc_to_text: ""
doc_to_target: "{{text}}"
metric_list: [{metric: bits_per_byte}, {metric: byte_perplexity}]
'''),
    copying=('generate_until', ' ', '''
doc_to_text: "say: {{words}}\\nagain:"
doc_to_target: "{{words}}"
generation_kwargs: {until: ["\\n"], max_gen_toks: 12, do_sample: false}
metric_list: [{metric: exact_match}, {metric: bleu}]
'''))


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """Task files for the harness of the same items, the reserved ones being those that examples are taken from."""
  folder = tmp_path_factory.mktemp('harness')
  for name, (kind, delimiter, rest) in TASKS.items():
    lines = [f'{line}\n' for line in make.text_of(name).split('\n')[:-1]]
    held = 0 if kind == 'loglikelihood_rolling' else make.RESERVED
    paths = dict(train=folder / f'{name}.train.jsonl', test=folder / f'{name}.test.jsonl')
    paths['train'].write_text(''.join(lines[:make.RESERVED]))
    paths['test'].write_text(''.join(lines[held:held + ITEMS]))
    (folder / f'{name}.yaml').write_text(MULTIPLE.format(name=f'ours_{name}', kind=kind, delimiter=delimiter, rest=rest,
                                                         **paths))
  return folder


def subject(kind, folder):
  c, model, params, vocabulary, mesh = test_score.setting(kind, folder)
  return evaluate.Subject(model, params, vocabulary, c, mesh)


@pytest.mark.parametrize('shots', [0, 2])
@pytest.mark.parametrize('kind', ['long_document', 'masked', 'spans'])
def test_the_harness_and_our_evaluators_agree(kind, shots, folder):
  s = subject(kind, folder)
  names = ['agreement', 'next_line', 'last_word', 'english'] + ['copying'] * (kind != 'masked')
  if shots:
    names.remove('english')
  ours = evaluate.evaluate(s, [task_files.find(name) for name in names], shots, ITEMS)
  theirs = harness.evaluate(s, [f'ours_{name}' for name in names], str(folder), shots)
  same = lambda name, mine, other: np.testing.assert_allclose(
      theirs[f'harness:ours_{name}'][other], ours[name][mine], atol=1e-4, rtol=1e-4)
  for name in ('agreement', 'next_line'):
    same(name, 'accuracy', 'acc')
    same(name, 'accuracy_norm', 'acc_norm')
    assert theirs[f'harness:ours_{name}']['items'] == ITEMS
  same('last_word', 'accuracy', 'acc')
  per_item = ours['last_word']['nll'] * tokens_per_item(s, shots)
  np.testing.assert_allclose(np.log(theirs['harness:ours_last_word']['perplexity']), per_item, rtol=1e-4)
  if not shots:
    texts_ = [item['text'] for item in make.items('english')[:ITEMS]]
    logp = sum(score.logp for score in s.scorer.score_text(texts_))
    if kind == 'long_document':  # the harness puts BOS before texts that begin with it, and predicts that too
      rows = [ask.Row([0, 0, *ids[:-1]], list(range(len(ids) + 1)), [0, *ids])
              for ids in (s.vocabulary.encode(text).tolist() for text in texts_)]
      logp = sum(score.logp for score in s.scorer.score_rows([[row] for row in rows]))
    size = sum(len(text.encode()) for text in texts_)
    np.testing.assert_allclose(theirs['harness:ours_english']['bits_per_byte'], -logp / math.log(2) / size, rtol=1e-5)
  if 'copying' in names:
    same('copying', 'exact_match', 'exact_match')


def tokens_per_item(s, shots):
  items = make.items('last_word')[make.RESERVED:][:ITEMS]
  return sum(len(s.scorer.asker.ids(item['text'], f' {item["word"]}')[1]) for item in items) / ITEMS


def test_what_the_harness_reports_is_the_definition(folder):
  """One task by hand: the log-likelihood of each choice by itself, and which is right."""
  s = subject('long_document', folder)
  items = make.items('agreement')[make.RESERVED:][:ITEMS]
  right = []
  for item in items:
    logp = [s.scorer.score([(item['subject'], f' {choice}')])[0].logp for choice in item['choices']]
    right.append(int(np.argmax(logp)) == item['answer'])
  found = harness.evaluate(s, ['ours_agreement'], str(folder))
  assert abs(found['harness:ours_agreement']['acc'] - np.mean(right)) < 1e-9


def test_names_and_sampling_are_refused_in_words(folder, tmp_path):
  s = subject('long_document', folder)
  tasks = tmp_path / 'tasks'  # of its own: the harness lists a folder once
  tasks.mkdir()
  for file in folder.glob('*.yaml'):
    (tasks / file.name).write_text(file.read_text())
  text = (folder / 'copying.yaml').read_text().replace('do_sample: false', 'do_sample: true').replace(
      'task: ours_copying', 'task: ours_sampled')
  (tasks / 'sampled.yaml').write_text(text)
  with pytest.raises(ConfigError, match='did you mean harness:ours_english|Did you mean harness:ours_english'):
    harness.evaluate(s, ['ours_englsh'], str(tasks))
  with pytest.raises(ConfigError, match='only greedy text'):
    harness.evaluate(s, ['ours_sampled'], str(tasks), limit=2)
  assert json.loads(json.dumps(harness.evaluate(s, ['ours_agreement'], str(tasks), limit=2)))


# --- Beside the harness's own backend for transformers --------------------------------------------

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


def request(*args, doc_id=0):
  return types.SimpleNamespace(args=args, task_name='mine', doc_id=doc_id)


def texts(seed, lengths):
  rng = random.Random(seed)
  return [''.join(rng.choices(SIGNS, k=n)) for n in lengths]


@pytest.mark.parametrize('kind, vocabulary', PAIRS)
def test_continuations_are_as_likely(kind, vocabulary, folder):
  """Short prompts, none, those that end with spaces, and those that are longer than a row; and what was cut is told."""
  ours, theirs = both(kind, vocabulary, folder)
  contexts = ['', 'a', 'ab ', 'ab\n\n', *texts(1, [5, 20, 29, 31, 32, 33, 47, 48, 49, 90, 200])]
  requests = [request(context, ' ' * (i % 2) + continuation + 'a', doc_id=i)
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
  requests = [request(text) for text in texts(3, [1, 2, 30, 31, 32, 33, 34, 47, 48, 63, 64, 65, 96, 97, 150, 911])]
  np.testing.assert_allclose(ours.loglikelihood_rolling(requests),
                             theirs.loglikelihood_rolling(requests, disable_tqdm=True), atol=1e-4, rtol=2e-6)


@pytest.mark.parametrize('kind, vocabulary', PAIRS)
def test_text_is_the_same(kind, vocabulary, folder):
  """Prompts that fit, and those of which a limit of 8 or 20 tokens leaves the end only."""
  ours, theirs = both(kind, vocabulary, folder)
  ours.cut.clear()
  how = lambda i: dict(until=['a', 'b('] if i % 3 else [], max_gen_toks=20 if i % 2 else 8, do_sample=False)
  prompts = texts(4, [1, 3, 10, 12, 20, 23, 24, 25, 30, 60, 120])
  requests = [request(prompt, how(i), doc_id=i) for i, prompt in enumerate(prompts)]
  said = ours.generate_until(requests)
  assert said == theirs.generate_until(requests, disable_tqdm=True) and len(set(said)) > 3
  room = theirs.max_length
  assert ours.cut['mine'] == {i for i, prompt in enumerate(prompts)
                              if len(theirs.tok_encode(prompt)) > room - how(i)['max_gen_toks']}


def test_answers_of_an_encoder_decoder_are_as_likely(folder):
  """And the same text: the backend counts the prompt's tokens among those to generate, so its answers are longer."""
  ours, theirs = both('answers', 'bytes', folder)
  contexts = ['a', 'ab ', 'ab\n\n', *texts(1, [5, 20, 31, 32, 33, 48, 90])]
  requests = [request(context, ' ' * (i % 2) + continuation + 'a', doc_id=i)
              for i, (context, continuation) in enumerate(zip(contexts, texts(2, [1, 3, 7] * 4)))]
  expected, values = theirs.loglikelihood(requests, disable_tqdm=True), ours.loglikelihood(requests)
  np.testing.assert_allclose([v for v, _ in values], [v for v, _ in expected], atol=1e-4, rtol=2e-6)
  assert [greedy for _, greedy in values] == [greedy for _, greedy in expected]
  prompts = [request(context, dict(until=[], max_gen_toks=8, do_sample=False), doc_id=i)
             for i, context in enumerate(texts(4, [1, 3, 12, 25, 60]))]
  said = list(zip(ours.generate_until(prompts), theirs.generate_until(prompts, disable_tqdm=True)))
  assert all(text and longer.startswith(text) for text, longer in said)


def test_what_their_backend_cannot_ask_is_told_in_words(folder):
  ours, theirs = both('document', 'bytes', folder)
  with pytest.raises(AssertionError):
    theirs.loglikelihood([request('ab', '')], disable_tqdm=True)
  with pytest.raises(DataError, match="harness:mine: the continuation '' after 'ab' has no tokens"):
    ours.loglikelihood([request('ab', '')])
  with pytest.raises(DataError, match='continuation of 40 tokens is longer than the 32'):
    ours.loglikelihood([request('ab', 'x' * 40)])
  with pytest.raises(DataError, match='half of a surrogate pair'):
    ours.loglikelihood_rolling([request('\ud800')])
  for how, words in ((dict(num_beams=4), 'num_beams=4'), (dict(temperature=0.7), 'only greedy text'),
                     (dict(do_sample=True), 'only greedy text'), (dict(max_gen_toks=0), 'at least 1')):
    with pytest.raises(ConfigError, match=words):
      ours.generate_until([request('ab', how)])


def test_more_text_than_a_row_holds_is_shortened_and_said(folder):
  subject_, said = subject('document', folder), []
  ours = harness.language_model(subject_, said.append)
  (text,) = ours.generate_until([request('ab', dict(until=[], max_gen_toks=10 ** 9))])
  assert len(text) <= 16 and '1,000,000,000 tokens of text are asked for and this model reads 32' in said[0]


def test_one_task_that_fails_leaves_the_others(folder, capsys):
  s = subject('long_document', folder)
  (folder / 'broken.yaml').write_text((folder / 'agreement.yaml').read_text().replace(
      'ours_agreement', 'ours_broken').replace('subject', 'no_such_field'))
  harness._manager.cache_clear()
  done = []
  results, errors = plan.make(['harness:ours_broken', 'harness:ours_agreement', 'agreement'], limit=2,
                              harness_path=str(folder)).run(s, done=lambda values: done.extend(values))
  assert list(errors) == ['harness:ours_broken'] and done == list(results) == ['agreement', 'harness:ours_agreement']
  assert results['harness:ours_agreement']['cut'] == 0


def test_tasks_of_their_backend_and_ours_have_the_same_numbers(folder, tmp_path):
  """Whole tasks, whole texts and generation included, with prompts beyond the row of 32."""
  import lm_eval
  from lm_eval.models.huggingface import HFLM
  from lm_eval.tasks import TaskManager
  c, model, params, vocabulary, mesh = test_score.setting('document', folder)
  model_folders.write(tmp_path / 'out', c.model.to_dict(), params, vocabulary, style='document', length=c.data.seq_len)
  lm = HFLM(pretrained=str(tmp_path / 'out'), device='cpu', batch_size=4)
  names = [f'ours_{name}' for name in TASKS if name != 'next_line']  # whose lines are longer than their backend takes
  results = lm_eval.simple_evaluate(lm, tasks=names, task_manager=TaskManager(include_path=str(folder)),
                                    bootstrap_iters=0)['results']
  ours = harness.evaluate(subject('document', folder), names, str(folder))
  for name, metrics in dict(ours_agreement=['acc', 'acc_norm'], ours_last_word=['acc', 'perplexity'],
                            ours_english=['bits_per_byte', 'byte_perplexity'],
                            ours_copying=['exact_match', 'bleu']).items():
    for metric in metrics:
      np.testing.assert_allclose(ours[f'harness:{name}'][metric], results[name][f'{metric},none'], rtol=2e-4)
  assert ours['harness:ours_last_word']['cut'] == ITEMS


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
  ours = evaluate.evaluate(subject('long_document', folder),
                           [task_files.find(name) for name in ('agreement', 'last_word', 'next_line')], 2, ITEMS)
  for name, mine, other in (('agreement', 'accuracy', 'acc'), ('agreement', 'accuracy_norm', 'acc_norm'),
                            ('next_line', 'accuracy', 'acc'), ('last_word', 'accuracy', 'acc')):
    assert abs(results[f'ours_{name}'][f'{other},none'] - ours[name][mine]) < 1e-4, name
  s = subject('long_document', folder)
  logp = ours['last_word']['nll'] * tokens_per_item(s, 2)
  np.testing.assert_allclose(np.log(results['ours_last_word']['perplexity,none']), logp, rtol=1e-4)
