"""lm-evaluation-harness on our models, beside our own evaluators on the same items.

    pip install -e '.[test,harness]' && pytest -m harness
"""
import json
import math

import numpy as np
import pytest

from t5like.config import task_files
from t5like.errors import ConfigError
from t5like.evals import ask, evaluate, harness, plan
from t5like.evals.tasks import make
from tests.harness import tasks

pytestmark = pytest.mark.harness


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  return tasks.written(tmp_path_factory.mktemp('harness'))


@pytest.mark.parametrize('shots', [0, 2])
@pytest.mark.parametrize('kind', ['long_document', 'masked', 'spans'])
def test_the_harness_and_our_evaluators_agree(kind, shots, folder):
  s = tasks.subject(kind, folder)
  names = ['agreement', 'next_line', 'last_word', 'english'] + ['copying'] * (kind != 'masked')
  if shots:
    names.remove('english')
  ours = evaluate.evaluate(s, [task_files.find(name) for name in names], shots, tasks.ITEMS)
  theirs = harness.evaluate(s, [f'ours_{name}' for name in names], str(folder), shots)
  same = lambda name, mine, other: np.testing.assert_allclose(
      theirs[f'harness:ours_{name}'][other], ours[name][mine], atol=1e-4, rtol=1e-4)
  for name in ('agreement', 'next_line'):
    same(name, 'accuracy', 'acc')
    same(name, 'accuracy_norm', 'acc_norm')
    assert theirs[f'harness:ours_{name}']['items'] == tasks.ITEMS
  same('last_word', 'accuracy', 'acc')
  per_item = ours['last_word']['nll'] * tasks.tokens_per_item(s, shots)
  np.testing.assert_allclose(np.log(theirs['harness:ours_last_word']['perplexity']), per_item, rtol=1e-4)
  if not shots:
    texts_ = [item['text'] for item in make.items('english')[:tasks.ITEMS]]
    logp = sum(score.logp for score in s.scorer.score_text(texts_))
    if kind == 'long_document':  # the harness puts BOS before texts that begin with it, and predicts that too
      rows = [ask.Row([0, 0, *ids[:-1]], list(range(len(ids) + 1)), [0, *ids])
              for ids in (s.vocabulary.encode(text).tolist() for text in texts_)]
      logp = sum(score.logp for score in s.scorer.score_rows([[row] for row in rows]))
    size = sum(len(text.encode()) for text in texts_)
    np.testing.assert_allclose(theirs['harness:ours_english']['bits_per_byte'], -logp / math.log(2) / size, rtol=1e-5)
  if 'copying' in names:
    same('copying', 'exact_match', 'exact_match')


def test_what_the_harness_reports_is_the_definition(folder):
  """One task by hand: the log-likelihood of each choice by itself, and which is right."""
  s = tasks.subject('long_document', folder)
  items = make.items('agreement')[make.RESERVED:][:tasks.ITEMS]
  right = []
  for item in items:
    logp = [s.scorer.score([(item['subject'], f' {choice}')])[0].logp for choice in item['choices']]
    right.append(int(np.argmax(logp)) == item['answer'])
  found = harness.evaluate(s, ['ours_agreement'], str(folder))
  assert abs(found['harness:ours_agreement']['acc'] - np.mean(right)) < 1e-9


def test_names_and_sampling_are_refused_in_words(folder, tmp_path):
  s = tasks.subject('long_document', folder)
  copies = tmp_path / 'tasks'  # of its own: the harness lists a folder once
  copies.mkdir()
  for file in folder.glob('*.yaml'):
    (copies / file.name).write_text(file.read_text())
  text = (folder / 'copying.yaml').read_text().replace('do_sample: false', 'do_sample: true').replace(
      'task: ours_copying', 'task: ours_sampled')
  (copies / 'sampled.yaml').write_text(text)
  with pytest.raises(ConfigError, match='did you mean harness:ours_english|Did you mean harness:ours_english'):
    harness.evaluate(s, ['ours_englsh'], str(copies))
  with pytest.raises(ConfigError, match='only greedy text'):
    harness.evaluate(s, ['ours_sampled'], str(copies), limit=2)
  assert json.loads(json.dumps(harness.evaluate(s, ['ours_agreement'], str(copies), limit=2)))


def test_more_text_than_a_row_holds_is_shortened_and_said(folder):
  subject_, said = tasks.subject('document', folder), []
  ours = harness.language_model(subject_, said.append)
  (text,) = ours.generate_until([tasks.request('ab', dict(until=[], max_gen_toks=10 ** 9))])
  assert len(text) <= 16 and '1,000,000,000 tokens of text are asked for and this model reads 32' in said[0]


def test_one_task_that_fails_leaves_the_others(folder, capsys):
  s = tasks.subject('long_document', folder)
  (folder / 'broken.yaml').write_text((folder / 'agreement.yaml').read_text().replace(
      'ours_agreement', 'ours_broken').replace('subject', 'no_such_field'))
  harness._manager.cache_clear()
  done = []
  results, errors = plan.make(['harness:ours_broken', 'harness:ours_agreement', 'agreement'], limit=2,
                              harness_path=str(folder)).run(s, done=lambda values: done.extend(values))
  assert list(errors) == ['harness:ours_broken'] and done == list(results) == ['agreement', 'harness:ours_agreement']
  assert results['harness:ours_agreement']['cut'] == 0
