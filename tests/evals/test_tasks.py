"""Task files, the questions made of them, metrics, and whole evaluations with known answers."""
import dataclasses
import json
import math
import pathlib
import re

import numpy as np
import pytest
from hypothesis import given, strategies as st

from t5like import config as config_lib
from t5like.config import task_files, templates
from t5like.errors import ConfigError, DataError
from t5like.evals import answers, evaluate, items, score
from t5like.evals.tasks import make
from t5like.prepared import examples
from t5like.sources import python_functions
from tests import tiny
from tests.evals import test_score


def written(folder, name='mine', records=(), **values):
  (folder / f'{name}.json').write_text(json.dumps(values))
  (folder / f'{name}.jsonl').write_text(''.join(f'{json.dumps(r)}\n' for r in records))
  return str(folder / f'{name}.json')


@pytest.mark.parametrize('name', make.MAKERS)
def test_items_are_what_the_rule_makes(name):
  text = (task_files.FOLDER / f'{name}.jsonl').read_text()
  assert text == make.text_of(name)
  assert len(set(text.splitlines())) == text.count('\n') >= 40
  assert items.questions(task_files.find(name))


def test_every_built_in_task_is_made_here():
  assert task_files.built_in() == sorted(make.MAKERS)


def test_items_of_the_rules_are_true():
  for item in make.items('arithmetic'):
    assert eval(item['question'].removesuffix('=')) == int(item['answer'])
  for item in make.items('brackets'):
    code = item['code'] + item['choices'][item['answer']]
    wrong = [item['code'] + c for i, c in enumerate(item['choices']) if i != item['answer']]
    opened = lambda text: [c for c in text if c in '([{)]}']
    assert pairs(opened(code)) is not None and all(pairs(opened(w)) is None for w in wrong)
  for item in make.items('agreement'):
    plural = item['subject'].split()[1] not in [n.split('/')[0] for n in make.NOUNS]
    assert item['choices'][item['answer']] in [pair[plural] for pair in make.VERBS]
  assert [make.in_words(n) for n in (0, 15, 40, 42, 100, 718)] == [
      'zero', 'fifteen', 'forty', 'forty-two', 'one hundred', 'seven hundred and eighteen']


def pairs(marks):
  """What is still open after brackets, or None when one closes what is not."""
  still = []
  for mark in marks:
    if mark in '([{':
      still.append(mark)
    elif not still or '([{'.index(still.pop()) != ')]}'.index(mark):
      return None
  return still


def test_python_items_are_python():
  for item in make.items('next_line'):
    whole = f"{item['code']}\n{item['choices'][item['answer']]}\n"
    compile(whole, 'item', 'exec')
  for item in make.items('gap'):
    whole = item['before'] + item['choices'][item['answer']] + item['after']
    body = '\n  pass\n' if whole.rstrip().endswith(':') else '\n'
    compile(whole + body, 'item', 'exec')


def test_examples_stand_before_each_question_and_are_never_asked():
  t = task_files.find('arithmetic')
  none, two = items.questions(t, 0), items.questions(t, 2)
  raw = items.records(t)
  assert len(none) == len(two) == len(raw) - t.reserved
  example = lambda r: f"{r['question']} {r['answer']}\n"
  assert two[0].before == (example(raw[0]) + example(raw[1]) + none[0].before[0],)
  assert none[0].before == (raw[t.reserved]['question'],) and two[0].answers == (f" {raw[8]['answer']}",)
  assert len(items.questions(t, 0, limit=3)) == 3
  assert items.questions(t)[0].before[0].count('=') == t.shots + 1
  with pytest.raises(ConfigError, match='holds 8 items back'):
    items.questions(t, 9)


def test_a_choice_may_change_the_question_too(tmp_path):
  path = written(tmp_path, kind='choice', before='{choice} said', answer=' {rest}', reserved=0, label='right',
                 choices='who', records=[dict(who=['Ann', 'Bob'], rest='yes', right='B')])
  (q,) = items.questions(task_files.find(path))
  assert q == items.Question(('Ann said', 'Bob said'), (' yes', ' yes'), ('', ''), 1, (3, 3))


def test_texts_of_any_source_can_be_predicted(tmp_path):
  (tmp_path / 'a.txt').write_text('some text')
  path = written(tmp_path, kind='perplexity', items=f'text:{tmp_path}/*.txt')
  assert [q.answers for q in items.questions(task_files.find(path))] == [('some text',)]


@pytest.mark.parametrize('values, message', [
    (dict(kind='choise', answer='x'), "kind='choise' is none of perplexity, choice, cloze, generate"),
    (dict(kind='choice', anser='x'), "unknown key 'anser'. Did you mean 'answer'"),
    (dict(kind='cloze'), 'needs a template `answer`'),
    (dict(kind='cloze', answer='{a'), 'a brace has no partner'),
    (dict(kind='generate', answer='{a}', metrics=['bleau']), "'bleau', which is none of exact_match"),
    (dict(kind='generate', answer='{a}', until='x'), "until='x' must be a list of texts"),
    (dict(kind='generate', answer='{a}', tokens=0), 'tokens=0 must be at least 1')])
def test_wrong_task_files(values, message, tmp_path):
  with pytest.raises(ConfigError, match=message):
    task_files.find(written(tmp_path, **values))


@pytest.mark.parametrize('record, message', [
    (dict(q='x', choices=['a'], answer=0), 'at least two texts'),
    (dict(q='x', choices=['a', 'b'], answer=2), "holds 2; it must be the number of the right choice"),
    (dict(choices=['a', 'b'], answer=0), 'item 1: before=.*there is no field q')])
def test_wrong_items(record, message, tmp_path):
  path = written(tmp_path, kind='choice', before='{q}', answer='{choice}', reserved=0, records=[record])
  with pytest.raises(DataError, match=message):
    items.questions(task_files.find(path))


@pytest.mark.parametrize('separator', ['\u2028', '\u2029', '\x85'])
def test_items_end_at_newlines_only(separator, tmp_path):
  path = written(tmp_path, kind='cloze', before='{b}', answer=' {a}', reserved=0)
  records = [dict(b=f'x{separator}y', a='z'), dict(b='x', a=f'y{separator}')]
  (tmp_path / 'mine.jsonl').write_text('\r\n'.join(json.dumps(r, ensure_ascii=False) for r in records), newline='')
  assert [q.before[0] for q in items.questions(task_files.find(path))] == [r['b'] for r in records]


@pytest.mark.parametrize('content, message', [
    ('', 'holds no items'), ('[1]\n', 'line 1: .*must be an object'),
    ('{"b": 1}\n{"b": "\\udc00"}', 'line 2 .*surrogate'),
    ('{"b": 1}\n{', 'line 2 is not JSON'), ('[' * 10 ** 5, 'nested|not JSON')])
def test_items_that_are_none_are_named(content, message, tmp_path):
  path = written(tmp_path, kind='cloze', before='{b}', answer=' {a}', reserved=0)
  (tmp_path / 'mine.jsonl').write_text(content)
  with pytest.raises(DataError, match=f'task mine: .*{message}'):
    items.questions(task_files.find(path))


@pytest.mark.parametrize('content', ['[]', 'null', '{', '[' * 10 ** 5, '{"kind": "\\ud800"}', '{"shots": 1e400}'])
def test_task_files_that_are_none(content, tmp_path):
  (tmp_path / 'mine.json').write_text(content)
  with pytest.raises(ConfigError, match='mine.json'):
    task_files.find(str(tmp_path / 'mine.json'))


def test_names_that_are_not_there():
  with pytest.raises(ConfigError, match="Did you mean 'arithmetic'"):
    task_files.find('arithmetics')
  with pytest.raises(ConfigError, match='no such file'):
    task_files.find('nowhere/mine.json')


# --- Metrics -------------------------------------------------------------------------------------


def test_f1_and_exact_match():
  assert answers.normalised('The  Cat, sat!') == 'cat sat'
  assert answers.f1('the cat sat', ['A cat sat down.']) == pytest.approx(2 * 2 / (2 + 3))
  assert answers.f1('x', ['a b', 'x']) == 1 and answers.f1('', ['the']) == 1 and answers.f1('', ['x']) == 0
  assert answers.exact_match(' 42 ', ['42']) == 1 and answers.exact_match('42.', ['42']) == 0


@given(st.lists(st.sampled_from('abc'), max_size=6), st.lists(st.sampled_from('abc'), max_size=6))
def test_f1_is_symmetric_and_one_for_the_same_words(a, b):
  assert answers._f1(a, b) == answers._f1(b, a) and 0 <= answers._f1(a, b) <= 1
  assert (answers._f1(a, b) == 1) == (sorted(a) == sorted(b))


@pytest.mark.harness  # which the packages come with
def test_bleu_and_rouge_are_their_packages():
  said, wanted = ['the cat sat on the mat', 'no'], [['the cat sat on the mat'], ['yes it is', 'no']]
  values, notes = answers.judge(('bleu', 'rouge', 'f1'), said, wanted)
  assert values['bleu'] == pytest.approx(100) and values['rougeL'] == [1, 1] and values['f1'] == [1, 1] and not notes
  values, _ = answers.judge(('bleu', 'rouge'), ['the cat sat on a mat', 'x'], wanted)
  assert 0 < values['bleu'] < 100 and 0 < values['rouge2'][0] < values['rouge1'][0] < 1


def test_metrics_without_their_package_are_left_out_in_words(monkeypatch):
  monkeypatch.setitem(__import__('sys').modules, 'sacrebleu', None)
  values, notes = answers.judge(('f1', 'bleu'), ['a'], [['a']])
  assert list(values) == ['f1'] and "pip install -e '.[eval]'" in notes[0]


def test_text_ends_at_the_first_stop():
  assert evaluate.ended('a\nb.c', ['.', '\n']) == 'a' and evaluate.ended('abc', ['x', '']) == 'abc'


# --- Whole evaluations ---------------------------------------------------------------------------


class Knowing:
  """In place of a Scorer: knows the right answers of a task."""

  def __init__(self, right):
    self.right = right

  def score(self, questions):
    return [score.Score(-1.0 * len(answer) if answer not in self.right else -0.5, len(answer), answer in self.right)
            for _, answer, _ in questions]

  def score_choices(self, groups):
    return [self.score(group) for group in groups]


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  return tmp_path_factory.mktemp('tasks')


def subject(kind, folder, devices=1, **mesh):
  c, model, params, vocabulary, mesh = test_score.setting(kind, folder, devices, **mesh)
  return evaluate.Subject(model, params, vocabulary, c, mesh)


def test_choices_are_counted_as_defined(folder, tmp_path):
  records = [dict(choices=['aa', 'b'], answer=0), dict(choices=['cc', 'dddd'], answer=1),
             dict(choices=['e', 'f'], answer=0)]
  t = task_files.find(written(tmp_path, kind='choice', before='', answer='{choice}', reserved=0, records=records))
  s = subject('document', folder)
  s.scorer = Knowing({'aa', 'e'})  # -0.5 for these; of the others, the shorter is likelier
  (values,) = evaluate.evaluate(s, [t]).values()
  assert values['accuracy'] == pytest.approx(2 / 3) and values['accuracy_norm'] == pytest.approx(2 / 3)
  assert values['accuracy_stderr'] == pytest.approx(np.std([1, 0, 1], ddof=1) / math.sqrt(3)) and values['items'] == 3


def test_perplexity_and_bits_per_byte_of_a_text(folder, tmp_path):
  """By the chain rule, from one row: the same nats, over tokens and over bytes."""
  texts = ['the a of', 'zwölf']
  t = task_files.find(written(tmp_path, kind='perplexity', records=[dict(text=x) for x in texts]))
  s = subject('document', folder)
  (values,) = evaluate.evaluate(s, [t]).values()
  logp = sum(test_score.plainly('document', folder, '', text)[0] for text in texts)
  size = sum(len(text.encode()) for text in texts)
  assert values['tokens'] == size == 14
  assert values['nll'] == pytest.approx(-logp / size, abs=1e-4)
  assert values['bits_per_byte'] == pytest.approx(-logp / size / math.log(2), abs=1e-4)
  assert values['perplexity'] == pytest.approx(math.exp(-logp / size), rel=1e-3)


@pytest.mark.parametrize('kind', ['document', 'masked', 'spans'])
def test_what_a_model_says_it_gets_right(kind, folder, tmp_path):
  """Its own greedy answers as references: exact match 1, on one device and on eight, context cut in two."""
  s = subject(kind, folder)
  asker, before = s.scorer.asker, ['the a', 'is it for', 'on']
  if kind == 'masked':
    blanks = [asker.blank(b, ' abc', '') for b in before]
    filled = s.fill([ids for ids, _ in blanks])
    said = [s.vocabulary.decode([ids[t] for t in at]) for ids, (_, at) in zip(filled, blanks)]
  else:
    said = s.generate([asker.prompt(b, '', 4) for b in before], 4)
  said = [text.replace('<extra_id_0>', '') for text in said]
  records = [dict(b=b, a='abc', r=text.strip() or 'x') for b, text in zip(before, said)]
  t = task_files.find(written(tmp_path, kind='generate', before='{b}', answer=' {a}', references='r', until=[],
                              tokens=4, reserved=0, records=records))
  expected = np.mean([text.strip() == r['r'] for text, r in zip(said, records)])
  assert expected > 0
  for mesh in (dict(), dict(fsdp=4, context=2)):
    some = subject(kind, folder, 8, **mesh) if mesh else s
    (values,) = evaluate.evaluate(some, [t]).values()
    assert values['exact_match'] == expected and values['items'] == 3


def test_built_in_tasks_run_and_their_numbers_can_be_kept(folder):
  s, heard = subject('long_document', folder), []
  found = evaluate.evaluate(s, evaluate.chosen(['agreement', 'last_word', 'code']), limit=2, say=heard.append)
  assert set(found) == {'agreement', 'last_word', 'code'} and found['agreement']['items'] == 2
  assert json.loads(json.dumps(found)) == found
  assert len(heard) == 3 and 'accuracy' in heard[0] and '±' in evaluate.describe(dict(a=0.5, a_stderr=0.1))
  with pytest.raises(ConfigError, match='named twice'):
    evaluate.chosen(['code', str(pathlib.Path(task_files.FOLDER) / 'code.json')])


def test_questions_that_were_cut_are_counted(folder):
  t = dataclasses.replace(task_files.find('last_word'), reserved=0)
  found = evaluate.evaluate(subject('document', folder), [t], limit=3)
  assert found['last_word']['cut'] == 3  # sentences of 50 bytes, rows of 32


# --- Items from data sources ----------------------------------------------------------------------


def test_items_of_a_data_source_that_were_not_trained_on(tmp_path):
  """held_out takes exactly the examples that data.validation='hash' keeps from training."""
  records = [dict(text=f'text {i}', label=i % 3) for i in range(300)]
  (tmp_path / 'all.jsonl').write_text(''.join(f'{json.dumps(r)}\n' for r in records))
  values = dict(kind='choice', items=f'jsonl:{tmp_path}/all.jsonl', before='which: {text}', answer='{choice}',
                choices=['no', 'maybe', 'yes'], label='label', reserved=0)
  everything = items.questions(task_files.find(written(tmp_path, **values)))
  assert len(everything) == 300 and everything[5].answers == ('no', 'maybe', 'yes') and everything[5].right == 2
  held = items.questions(task_files.find(written(tmp_path, held_out=0.2, **values)))
  c = tiny.config(tmp_path)
  c.data.update(source=values['items'], inputs=values['before'], targets='{label:words(no,maybe,yes)}',
                validation_fraction=0.2)
  split = [examples.split_example(templates.texts(c.data, r, 'x'), '', c)[0] for r in records]
  assert [(q.before[0], q.answers[q.right]) for q in held] == [t for name, t in split if name == 'validation']
  assert 30 < len(held) < 90
  with pytest.raises(DataError, match='held_out=1e-09'):
    items.questions(task_files.find(written(tmp_path, held_out=1e-9, **values)))


@pytest.mark.parametrize('values, words', [
    (dict(held_out=1.5), 'held_out=1.5 must be a share'), (dict(held_out='x'), 'share'),
    (dict(choices=3), 'choices=3 must be a text'), (dict(choices=[1]), 'must be a list of texts'),
    (dict(shots=True), 'must be a whole number')])
def test_mistakes_in_them(values, words, tmp_path):
  with pytest.raises(ConfigError, match=re.escape(words)):
    task_files.find(written(tmp_path, kind='choice', answer='{choice}', **values))


@pytest.mark.parametrize('config, name', [
    ('finetune_summarize', 'cnn_dailymail'), ('finetune_translate', 'wmt14_ende'), ('finetune_classify', 'sst2'),
    ('finetune_classify:tiny', 'function_kinds')])
def test_tasks_of_configs_ask_as_training_does(config, name):
  file, colon, variant = config.partition(':')
  data = config_lib.load(f'configs/{file}.py{colon}{variant}').data
  asked = task_files.find(f'configs/tasks/{name}.json')
  assert asked.items == data.source and asked.before == data.inputs
  if asked.kind == 'generate':
    assert asked.answer == data.targets
  elif asked.held_out:
    assert asked.held_out == data.validation_fraction and set(asked.choices) == set(python_functions.KINDS)
    assert data.targets == f'{{{asked.label}}}'
  else:
    assert data.targets == f'{{{asked.label}:words({",".join(asked.choices)})}}' and asked.split == data.validation
