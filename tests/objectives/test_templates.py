"""Templates: T5's exact strings, and errors that say what a record has."""
import re
import subprocess
import sys
import types
import unicodedata

import pytest
from hypothesis import given, settings, strategies as st

from t5like.config import base, templates
from t5like.errors import ConfigError, DataError
from tests.conftest import ROOT


def texts(inputs, targets, record, where='a.jsonl:3'):
  config = base()
  config.data.update(inputs=inputs, targets=targets)
  return templates.texts(config.data, record, where)


def one(template, **record):
  return texts('', template, record)[1]


# Strings of T5's preprocessors.py and of its tests.
PADDED = 'question: {question:pad_punctuation} context: {context:pad_punctuation}'
TASKS = [
    ('translate English to German: {en}', '{de}', dict(en='That is good.', de='Das ist gut.'),
     'translate English to German: That is good.', 'Das ist gut.'),
    ('summarize: {article}', '{highlights}', dict(article='An article.', highlights='A summary.'),
     'summarize: An article.', 'A summary.'),
    (PADDED, '{answers[text][0]:pad_punctuation}',
     dict(question='A question?', context='Some context.', answers=dict(text=['The answer.', 'Another answer.'])),
     'question: A question ? context: Some context . ', 'The answer . '),
    ('squad trivia question: {question:pad_punctuation}', '{answers[text][-1]}',
     dict(question='Who is it?', answers=dict(text=['she', 'he'])), 'squad trivia question: Who is it ? ', 'he'),
    ('qqp q1: {q1} q2: {q2}', '{label:words(not_duplicate,duplicate)}', dict(q1='How so?', q2='Why not?', label=0),
     'qqp q1: How so? q2: Why not?', 'not_duplicate'),
    ('rte sentence1: {sentence1} sentence2: {sentence2}', '{label:words(entailment, not_entailment)}',
     dict(sentence1='A.', sentence2='B.', label=-1), 'rte sentence1: A. sentence2: B.', '<unk>'),
    ('stsb sentence1: {sentence1} sentence2: {sentence2}', '{label:round(0.2)}',
     dict(sentence1='Big news.', sentence2='No idea.', label=2.8),
     'stsb sentence1: Big news. sentence2: No idea.', '2.8'),
]


@pytest.mark.parametrize('inputs, targets, record, first, second', TASKS, ids=[task[0][:12] for task in TASKS])
def test_tasks_of_t5(inputs, targets, record, first, second):
  assert texts(inputs, targets, record) == (first, second)
  assert templates.check(inputs) is templates.check(targets) is None


@pytest.mark.parametrize('value, expected', [
    (2.4, '2.4'), (1.66, '1.6'), (0, '0.0'), (5, '5.0'), (-0.04, '0.0'), (1.8000000715255737, '1.8'), (3.3333, '3.4'),
    (1.7, '1.6'), (1.7000000476837158, '1.6'), (0.7, '0.8'), (0.699999988079071, '0.8'),  # ties, in 64 and 32 bits
])
def test_scores(value, expected):
  assert one('{score:round(0.2)}', score=value) == expected


@settings(max_examples=60, deadline=None)
@given(st.floats(-100, 100), st.sampled_from(['0.2', '.25', '1', '0.05']))
def test_rounding_gives_the_nearest_multiple(value, step):
  text = one(f'{{score:round({step})}}', score=value)
  assert abs(float(text) - value) <= float(step) * 0.50001
  assert len(text.partition('.')[2]) == len(step.partition('.')[2])
  assert abs(float(text) / float(step) - round(float(text) / float(step))) < 1e-6


def test_punctuation_is_padded_as_t5_does():  # the first two are those of T5's tests
  pad = templates.pad_punctuation
  assert pad('"This  is a string with "punctuation (1845-1986) ".') == (
      ' " This is a string with " punctuation ( 1845 - 1986 ) " . ')
  assert pad('"Introducción (la vídeo)".') == ' " Introducción ( la vídeo ) " . '
  assert pad('a_b  e\u0301²½\n\tc') == 'a_b e\u0301²½ c'


@settings(max_examples=60, deadline=None)
@given(st.text(st.sampled_from('ab1_ .,;!é\u0301²日。\n\t¿$'), max_size=30))
def test_punctuation_by_categories(text):
  pieces = [f' {c} ' if unicodedata.category(c)[0] not in 'LNM' and c not in '_ \n\t' else c for c in text]
  joined = ''.join(pieces)
  expected = ' ' * joined[:1].isspace() + ' '.join(joined.split()) + ' ' * joined[-1:].isspace()
  assert templates.pad_punctuation(text) == (expected if joined.split() else ' ' * bool(joined))


def test_plain_text_numbers_and_braces():
  assert texts('', '', dict(text='as it  is', n=1)) == ('as it  is',)
  assert texts('', '{text}', dict(text='a')) == ('', 'a')
  assert one('{{{n}}}  {x}{n}', n=3, x=0.5) == '{3}  0.53'
  assert one('{a:strip}|', a=' \n b  c ') == 'b  c|'
  assert one('{a b/c.d}', **{'a b/c.d': 'odd names'}) == 'odd names'
  assert one('{x[k][-1][j]}', x=dict(k=[dict(), dict(j='deep')])) == 'deep'
  assert one('{same:words(no,yes)}', same=True) == 'yes'


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text(max_size=8), min_size=3, max_size=3), st.text(max_size=8), st.text(max_size=8))
def test_text_around_fields_stays(literal, a, b):
  escaped = [part.replace('{', '{{').replace('}', '}}') for part in literal]
  template = '{a}'.join(escaped[:2]) + '{b[0]}' + escaped[2]
  assert templates.check(template) is None
  assert one(template, a=a, b=[b]) == literal[0] + a + literal[1] + b + literal[2]


RECORD = dict(article='x', label=2, on=True, nothing=None, answers=dict(text=['a'], start=[1]))


@pytest.mark.parametrize('template, message', [
    ('{artcle}', "there is no field artcle (did you mean 'article'?); it has the fields article, label, on, "),
    ('{answers[txt]}', "there is no field answers[txt] (did you mean 'text'?); the field answers has the fields "
     'text, start.'),
    ('{answers[text][1]}', 'there is no answers[text][1]; the field answers[text] has 1 values.'),
    ('{answers[text][one]}', 'there is no answers[text][one]; the field answers[text] holds list.'),
    ('{article[0]}', 'there is no article[0]; the field article holds str.'),
    ('{answers}', 'the field answers holds dict, not text or a number; labels become words by'),
    ('{on}', 'the field on holds True, not text or a number; labels become words by {field:words(no,yes)}'),
    ('{nothing}', 'the field nothing holds nothing, not text'),
    ('{label:strip}', 'the field label holds 2, not text.'),
    ('{label:pad_punctuation}', 'the field label holds 2, not text.'),
    ('{article:words(a,b)}', 'the field article holds str, not the number of a label.'),
    ('{label:words(a,b)}', 'the field label holds 2, and words(a,b) has labels 0 to 1 only.'),
    ('{article:round(0.2)}', 'the field article holds str, not a number.'),
    ('{on:round(0.2)}', 'the field on holds True, not a number.'),
])
def test_what_a_record_lacks(template, message):
  with pytest.raises(DataError) as error:
    texts(template, 'y', RECORD)
  assert str(error.value).startswith(f"a.jsonl:3: data.inputs='{template}': {message}")
  with pytest.raises(DataError, match=r"a.jsonl:3: data.targets='"):
    texts('', template, RECORD)


@pytest.mark.parametrize('template, message', [
    ('{article', 'a brace has no partner'), ('article}', 'a brace has no partner'),
    ('{}', r'\{\} is no field'), ('{a!r}', r'\{a!r\} is no field'), ('{a[0}', 'a brace has no partner|is no field'),
    ('{a[]}', r'\{a\[\]\} is no field'), ('{a:{b}}', 'is no field'),
    ('{a:pad_puntuation}', r'unknown \(did you mean pad_punctuation\?\)'), ('{a:>10}', 'unknown. After the colon'),
    ('{a:words()}', 'unknown'), ('{a:words(x}', 'unknown'), ('{a:round(0)}', 'unknown'), ('{a:round(x)}', 'unknown'),
    ('{a:strip(1)}', 'unknown'),
])
def test_templates_that_are_wrong(template, message):
  problem = templates.check(template)
  assert re.search(message, problem) and problem.endswith('.') and '\n' not in problem
  with pytest.raises(ConfigError) as error:
    texts('', template, {})
  assert str(error.value) == f'data.targets={template!r}: {problem}'


def test_fields():
  config = base()
  config.data.field = 'body'
  assert templates.fields(config.data) == ['body']
  config.data.update(inputs='{b:strip} {a[x][0]}', targets='{b}')
  assert templates.fields(config.data) == ['a', 'b']


def test_no_fields_at_all():
  data = types.SimpleNamespace(inputs='', targets='', field='text')
  with pytest.raises(DataError, match="^x has no text in data.field='text'; it has no fields.$"):
    templates.texts(data, {}, 'x')
  with pytest.raises(DataError, match=r"data.field='text' \(did you mean 'txt'\?\); it has the fields txt.$"):
    templates.texts(data, dict(txt='a'), 'x')


def test_config_files_can_check_templates_without_heavy_imports():
  code = ('import sys; from t5like.config.templates import check; assert check("{a") and not check("{a}"); '
          'print(sorted({"numpy", "jax", "flax", "grain"} & set(sys.modules)))')
  found = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True, check=True)
  assert found.stdout == '[]\n'
