"""Prompts in files and on the terminal: order, resuming, and text that comes in pieces."""
import io
import json
import types

import jax
import pytest

from t5like.decoding import decode, prompt_files, trained_model
from t5like.errors import CheckpointError, ConfigError, DataError
from t5like.training import loop
from tests import tiny


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  folder = tmp_path_factory.mktemp('run')
  loop.train(tiny.config(folder), folder / 'run', 'test', jax.devices()[:1])
  return trained_model.load(folder / 'run')


@pytest.fixture
def prompts(tmp_path):
  path = tmp_path / 'prompts.jsonl'
  records = [dict(prompt=p, id=i) for i, p in enumerate(['the ', 'of', 'a', 'is', 'it '])]
  path.write_text(''.join(json.dumps(r) + '\n' for r in records) + '\n"by"\n')
  return path


HOW = dict(tokens=6, temperature=1.0, top_k=0, rows=2, say=lambda _: None)


def lines(path):
  return [json.loads(line) for line in path.read_text().split('\n') if line]


def test_answers_come_in_order_with_all_that_records_hold(run, prompts, tmp_path):
  out = tmp_path / 'answers.jsonl'
  assert prompt_files.answer_file(run, prompts, out, **HOW) == 6
  found = lines(out)
  assert [f['prompt'] for f in found] == ['the ', 'of', 'a', 'is', 'it ', 'by']
  assert [f.get('id') for f in found] == [0, 1, 2, 3, 4, None]
  alone = run.generate(['a'], tokens=6, temperature=1.0, top_k=0, seeds=[2])
  assert found[2]['answer'] == alone[0] != found[1]['answer']


@pytest.mark.parametrize('kept', [0, 1, 3, 6])
def test_what_was_interrupted_goes_on_as_if_it_had_not_been(kept, run, prompts, tmp_path):
  whole, out = tmp_path / 'whole.jsonl', tmp_path / 'part.jsonl'
  prompt_files.answer_file(run, prompts, whole, **HOW)
  text = whole.read_text().splitlines(keepends=True)
  out.write_text(''.join(text[:kept]) + (text[kept][:15] if kept < 6 else ''))  # cut off inside a line
  prompt_files.answer_file(run, prompts, out, **HOW)
  assert out.read_text() == whole.read_text()


SEPARATORS = '\u2028\u2029\x85\x0b\x0c\x1c\x1d\x1e\r'  # where str.splitlines cuts besides newlines


@pytest.mark.parametrize('kept', [0, 1, 2, 3])
def test_only_newlines_end_lines(kept, tmp_path):
  """Prompts, other fields and answers may hold any separator; what was interrupted resumes after the last answer."""
  source, whole, out = (tmp_path / f'{name}.jsonl' for name in ('prompts', 'whole', 'part'))
  records = [dict(prompt=f'a{s}b', note=f'x{s}') for s in (SEPARATORS, '\u2028', 'plain')]
  source.write_text(''.join(json.dumps(r, ensure_ascii=False) + '\n' for r in records), newline='')
  model = types.SimpleNamespace(step=3, generate=lambda some, **how: [f'{SEPARATORS}{prompt}' for prompt in some])
  how = dict(rows=1, say=lambda _: None)
  assert prompt_files.answer_file(model, source, whole, **how) == 3
  assert [json.loads(line) for line in whole.read_bytes().split(b'\n')[:-1]] == [
      dict(r, answer=f'{SEPARATORS}{r["prompt"]}', generation=dict(step=3)) for r in records]
  parts = whole.read_bytes().split(b'\n')
  out.write_bytes(b''.join(line + b'\n' for line in parts[:kept]) + parts[kept][:9])
  assert prompt_files.answer_file(model, source, out, **how) == 3 and out.read_bytes() == whole.read_bytes()


@pytest.mark.parametrize('line, words', [
    (b'{"prompt": "\\ud800"}', 'half of a surrogate pair'), (b'{"prompt": "\xff"}', 'not UTF-8'),
    (b'[' * 100_000 + b']' * 100_000, 'levels deep|nested'), (b'{"prompt": "a"', 'is not JSON'),
    (b'null', 'has no prompt'), (b'{"prompt": 3}', 'has no prompt'),
    (b'{"prompt": "a", "n": ' + b'9' * 5000 + b'}', 'digits')])
def test_lines_that_are_no_prompts_are_named(line, words, tmp_path):
  source = tmp_path / 'prompts.jsonl'
  source.write_bytes(b'{"prompt": "good"}\n' + line + b'\n')
  with pytest.raises(DataError, match=rf'prompts.jsonl: line 2 .*({words})'):
    prompt_files.check(source, tmp_path / 'out.jsonl')


def test_a_file_of_prompts_is_no_file_of_answers(tmp_path):
  source = tmp_path / 'prompts.jsonl'
  source.write_text('{"prompt": "a"}\n')
  before = source.read_bytes()
  with pytest.raises(ConfigError, match='line 1 is not an answer'):
    prompt_files.check(source, source)
  with pytest.raises(ConfigError, match='its folder does not exist'):
    prompt_files.check(source, tmp_path / 'nowhere' / 'out.jsonl')
  with pytest.raises(CheckpointError, match='cannot be written'):
    prompt_files.answer_file(types.SimpleNamespace(step=1), source, source / 'out.jsonl', rows=1)
  for other in (tmp_path, '/dev/full'):
    with pytest.raises(ConfigError, match='no regular file'):
      prompt_files.check(source, other)
  assert source.read_bytes() == before


@pytest.mark.parametrize('prompt', ['\ud800', 'a\udcffb'])
def test_prompts_that_are_no_text_are_refused(prompt, run):
  with pytest.raises(ConfigError, match='half of'):
    run.generate([prompt], tokens=2)
  with pytest.raises(ConfigError, match='UTF-8'):
    prompt_files.check_prompts(['good', prompt])
  assert run.generate([]) == []


@pytest.mark.parametrize('name, values', dict(
    tokens=[0, -1, 2 ** 31], temperature=[-0.1, float('nan'), float('inf')], top_k=[-1],
    alpha=[-1.0, float('nan'), 1e308], top_p=[0.0, 1.1, float('nan')], seed=[-1, 2 ** 32], beams=[0, 10 ** 9]).items())
def test_numbers_that_mean_nothing_are_refused(name, values, run):
  for value in values:
    with pytest.raises(ConfigError, match=f'{name}='):
      run.generate(['the'], **{name: value})


def test_each_batch_is_on_disk_before_the_next_begins(run, prompts, tmp_path):
  out, seen = tmp_path / 'answers.jsonl', []

  def generate(some, **how):
    seen.append(len(lines(out)))
    if len(seen) == 3:
      raise KeyboardInterrupt
    return ['x'] * len(some)
  with pytest.raises(KeyboardInterrupt):
    prompt_files.answer_file(types.SimpleNamespace(step=3, generate=generate), prompts, out, rows=2, say=lambda _: None)
  assert seen == [0, 2, 4] and len(lines(out)) == 4


def test_answers_to_other_prompts_are_left_alone(run, prompts, tmp_path):
  out = tmp_path / 'answers.jsonl'
  out.write_text('{"prompt": "other", "answer": "x"}\n{"promp')
  before = out.read_bytes()
  with pytest.raises(ConfigError, match='line 1 is not an answer to line 1 of --input'):
    prompt_files.answer_file(run, prompts, out, **HOW)
  assert out.read_bytes() == before


@pytest.mark.parametrize('changes, words', [
    (dict(temperature=0.0), 'line 1 was made with temperature=1.0 and not with 0.0'), (dict(tokens=7), '--tokens=6'),
    (dict(step=9), 'line 1 was made with step=3')])
def test_answers_of_other_options_or_checkpoints_are_left_alone(changes, words, prompts, tmp_path):
  out, options = tmp_path / 'answers.jsonl', dict(tokens=6, temperature=1.0)
  model = types.SimpleNamespace(step=3, generate=lambda some, **how: list(some))
  prompt_files.answer_file(model, prompts, out, say=lambda _: None, **options)
  before = out.read_bytes()
  model.step = changes.pop('step', 3)
  with pytest.raises(ConfigError, match=words):
    prompt_files.answer_file(model, prompts, out, say=lambda _: None, **dict(options, **changes))
  if changes:
    with pytest.raises(ConfigError, match=words):
      prompt_files.check(prompts, out, dict(options, **changes))
  assert out.read_bytes() == before


@pytest.mark.parametrize('text, message', [('', 'holds no prompts'), ('{"a": 1}\n', 'line 1 has no prompt'),
                                           ('{"prompt": "x"}\n{', 'line 2 is not JSON')])
def test_files_without_prompts(text, message, tmp_path, run):
  (tmp_path / 'in.jsonl').write_text(text)
  with pytest.raises(DataError, match=message):
    prompt_files.answer_file(run, tmp_path / 'in.jsonl', tmp_path / 'out.jsonl')
  with pytest.raises(DataError, match='cannot be read'):
    prompt_files.answer_file(run, tmp_path / 'none.jsonl', tmp_path / 'out.jsonl')


def test_text_is_shown_while_it_is_made(run, monkeypatch):
  monkeypatch.setattr(decode, 'PIECE', 4)
  class Terminal(io.StringIO):
    writes = 0
    def write(self, text):
      self.writes += bool(text)
      return super().write(text)
  out = Terminal()
  how = dict(tokens=20, temperature=1.0, top_k=0, seed=1)
  said = prompt_files.show_stream(run, 'the ', out=out, **how)
  assert out.getvalue() == f'the {said}\n' and said == run.generate(['the '], **how)[0]
  assert out.writes >= 4 and len(said) > 8


def test_a_letter_that_is_not_whole_waits(run):
  pieces = ['a\ufffd', 'aö', 'aöb\ufffd']
  out, fake = io.StringIO(), types.SimpleNamespace(stream=lambda prompts, **how: ([p] for p in pieces))
  assert prompt_files.show_stream(fake, '', out=out) == pieces[-1]
  assert out.getvalue() == 'aöb\ufffd\n'


def test_tasks_are_solved_while_training(tmp_path):
  c = tiny.config(tmp_path, steps=4, evaluate=dict(tasks=('last_word', 'arithmetic'), tasks_every=2, limit=2, shots=0))
  result = loop.train(c, tmp_path / 'run', 'test', jax.devices()[:1])
  seen = [l for l in lines(tmp_path / 'run' / 'metrics.jsonl') if 'tasks/last_word/nll' in l]
  assert [l['step'] for l in seen] == [2, 4] and 'tasks/arithmetic/exact_match' in seen[0]
  assert seen[-1]['tasks/last_word/nll'] == result['tasks']['last_word']['nll'] < seen[0]['tasks/last_word/nll']


@pytest.mark.parametrize('changes, message', [
    (dict(evaluate=dict(tasks=('agrement',))), "Did you mean 'agreement'"),
    (dict(evaluate=dict(tasks=('code',), shots=-2)), 'evaluate.shots=-2: must be at least -1'),
    (dict(evaluate=dict(tasks=('code',)), vocabulary=dict(name='characters', specials=False),
          data=dict(document_mask=False)), 'vocabulary.specials=False has no id'),
    (dict(evaluate=dict(tasks=('code',)), vocabulary=dict(sentinels=40),
          model=dict(name='encoder_decoder', vocab_size=304), objective=dict(name='deshuffling')), 'in another order')])
def test_tasks_that_cannot_be_are_refused_at_once(changes, message, tmp_path):
  with pytest.raises(ConfigError, match=message):
    tiny.config(tmp_path, **changes)
