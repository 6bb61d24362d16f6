"""lm-evaluation-harness on our models, beside our own evaluators on the same items.

    pip install -e '.[test,eval]' && pytest -m harness
"""
import json

import numpy as np
import pytest

from t5like.errors import ConfigError
from t5like.evals import evaluate, task
from t5like.evals.tasks import make
from tests.evals import test_score

pytestmark = pytest.mark.harness
lm_eval = pytest.importorskip('lm_eval')
harness = pytest.importorskip('t5like.evals.harness')

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
    lines = make.text_of(name).splitlines(keepends=True)
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
  ours = evaluate.evaluate(s, [task.find(name) for name in names], shots, ITEMS)
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
    same('english', 'bits_per_byte', 'bits_per_byte')
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


def test_names_and_sampling_are_refused_in_words(folder):
  s = subject('long_document', folder)
  with pytest.raises(ConfigError, match='did you mean harness:ours_english|Did you mean harness:ours_english'):
    harness.evaluate(s, ['ours_englsh'], str(folder))
  text = (folder / 'copying.yaml').read_text().replace('do_sample: false', 'do_sample: true').replace(
      'task: ours_copying', 'task: ours_sampled')
  (folder / 'sampled.yaml').write_text(text)
  with pytest.raises(ConfigError, match='only greedy text'):
    harness.evaluate(s, ['ours_sampled'], str(folder), limit=2)
  assert json.loads(json.dumps(harness.evaluate(s, ['ours_agreement'], str(folder), limit=2)))


def test_their_transformers_backend_says_the_same_of_an_exported_model(folder, tmp_path):
  """The harness's own way to a Hugging Face model, beside our evaluators on the checkpoint it was made of."""
  pytest.importorskip('accelerate')
  pytest.importorskip('transformers')
  from lm_eval.models.huggingface import HFLM
  from lm_eval.tasks import TaskManager

  from t5like import huggingface
  c, model, params, vocabulary, mesh = test_score.setting('long_document', folder)
  huggingface.write(tmp_path / 'out', c.model.to_dict(), params, vocabulary, style='document', length=c.data.seq_len)
  lm = HFLM(pretrained=str(tmp_path / 'out'), device='cpu', batch_size=4, add_bos_token=True)
  results = lm_eval.simple_evaluate(lm, tasks=['ours_agreement', 'ours_last_word', 'ours_next_line'], num_fewshot=2,
                                    task_manager=TaskManager(include_path=str(folder)), bootstrap_iters=0)['results']
  ours = evaluate.evaluate(subject('long_document', folder),
                           [task.find(name) for name in ('agreement', 'last_word', 'next_line')], 2, ITEMS)
  for name, mine, other in (('agreement', 'accuracy', 'acc'), ('agreement', 'accuracy_norm', 'acc_norm'),
                            ('next_line', 'accuracy', 'acc'), ('last_word', 'accuracy', 'acc')):
    assert abs(results[f'ours_{name}'][f'{other},none'] - ours[name][mine]) < 1e-4, name
  s = subject('long_document', folder)
  logp = ours['last_word']['nll'] * tokens_per_item(s, 2)
  np.testing.assert_allclose(np.log(results['ours_last_word']['perplexity,none']), logp, rtol=1e-4)
