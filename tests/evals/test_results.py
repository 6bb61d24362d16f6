"""The file of results, and tasks of which some fail."""
import json
import math
import multiprocessing

import jax
import pytest

import t5like
from t5like import command_line, commands
from t5like.decoding import decode, trained_model
from t5like.errors import CheckpointError, ConfigError, DataError, Failure
from t5like.evals import evaluate, plan, results
from t5like.files import schema
from t5like.training import loop
from tests import tiny
from tests.evals.test_tasks import written

pytestmark = pytest.mark.usefixtures('compile_once')

KEY = dict(step=10, shots=-1, limit=0)


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  folder = tmp_path_factory.mktemp('run')
  loop.train(tiny.config(folder, data=dict(seq_len=64), stop=dict(tokens=4 * 16 * 64)), folder / 'run', 'test',
             jax.devices()[:1])
  return folder / 'run'


def entries(path):
  return json.loads(path.read_text())['results']


def test_ways_of_asking_do_not_overwrite_each_other(tmp_path):
  path = tmp_path / 'evaluation.json'
  results.add(path, KEY, dict(a=dict(accuracy=0.1)))
  results.add(path, dict(KEY, shots=2), dict(a=dict(accuracy=0.2)))
  results.add(path, dict(KEY, limit=5), dict(a=dict(accuracy=0.3)))
  results.add(path, dict(KEY, step=20), dict(a=dict(accuracy=0.4)))
  results.add(path, KEY, dict(b=dict(accuracy=0.5)))
  results.add(path, KEY, dict(a=dict(accuracy=0.6)))  # asked again in the same way: the new one counts
  values = {(e['step'], e['shots'], e['limit']): e['tasks'] for e in entries(path)}
  assert values == {(10, -1, 0): dict(a=dict(accuracy=0.6), b=dict(accuracy=0.5)),
                    (10, 2, 0): dict(a=dict(accuracy=0.2)),
                    (10, -1, 5): dict(a=dict(accuracy=0.3)), (20, -1, 0): dict(a=dict(accuracy=0.4))}
  top = json.loads(path.read_text())
  assert {k: top[k] for k in KEY} == KEY and top['tasks'] == values[10, -1, 0]  # where older programs look


def test_files_of_older_versions_are_added_to(tmp_path):
  path = tmp_path / 'evaluation.json'
  path.write_text('{"step": 3, "shots": -1, "limit": 0, "tasks": {"a": {"accuracy": 0.5, "nll": NaN}}}')
  results.add(path, KEY, dict(b=dict(nll=math.nan, items=2)))
  assert [e['step'] for e in entries(path)] == [3, 10]
  assert entries(path)[0]['tasks'] == dict(a=dict(accuracy=0.5, nll=None))
  assert schema.parse(path.read_bytes())['tasks'] == dict(b=dict(nll=None, items=2))  # JSON, for any program


@pytest.mark.parametrize('content', ['{"a": 1}', '[1]', 'text', '{"step": 1, "shots": -1, "limit": 0, "tasks": 3}'])
def test_files_of_others_are_left_alone(content, tmp_path):
  path = tmp_path / 'other.json'
  path.write_text(content)
  for do in (results.check, lambda path: results.add(path, KEY, dict(a={}))):
    with pytest.raises(ConfigError, match='give another --output'):
      do(path)
  assert path.read_text() == content


def _add_many(path, step):
  for i in range(20):
    results.add(path, dict(KEY, step=step), {f'task{i}': dict(items=i)})


def test_several_at_once_lose_nothing(tmp_path):
  path = tmp_path / 'evaluation.json'
  context = multiprocessing.get_context('fork')
  processes = [context.Process(target=_add_many, args=(path, step)) for step in (1, 2, 3)]
  for process in processes:
    process.start()
  for process in processes:
    process.join()
  assert {e['step']: len(e['tasks']) for e in entries(path)} == {1: 20, 2: 20, 3: 20}


def test_what_cannot_be_written_is_written_with_the_next(tmp_path, monkeypatch):
  path, said, add = tmp_path / 'evaluation.json', [], results.add
  kept = results.Kept(path, KEY, said.append)

  def full(*args):
    raise CheckpointError('No space left on device.')
  monkeypatch.setattr(results, 'add', full)
  kept.add(dict(a=dict(items=1)))
  with pytest.raises(CheckpointError):
    kept.close()
  monkeypatch.setattr(results, 'add', add)
  kept.add(dict(b=dict(items=2)))
  assert entries(path)[0]['tasks'] == dict(a=dict(items=1), b=dict(items=2)) and 'No space' in said[0]


# --- Tasks that fail ------------------------------------------------------------------------------


@pytest.fixture
def tasks(tmp_path):
  good = dict(kind='choice', before='{q}', answer=' {choice}', reserved=0)
  record = dict(q='the', choices=['a', 'of'], answer=0)
  return dict(
      first=written(tmp_path, 'first', [record], **good), last=written(tmp_path, 'last', [record], **good),
      items=written(tmp_path, 'items', [dict(record, answer=7)], **good),
      tokens=written(tmp_path, 'tokens', [dict(record, choices=['', 'of'])], **dict(good, answer='{choice}')),
      missing=written(tmp_path, 'missing', [], **dict(good, items='nowhere.jsonl')))


def evaluated(run, *tasks, flags=()):
  request = command_line.read(['evaluate', f'--workdir={run}', f'--tasks={",".join(tasks)}', *flags])
  commands.run(request)


@pytest.mark.parametrize('bad', ['items', 'tokens', 'missing'])
def test_a_task_that_fails_costs_only_itself(bad, run, tasks, capsys):
  (run / 'evaluation.json').unlink(missing_ok=True)
  with pytest.raises(Failure, match=f'1 of 3 tasks failed: {bad}') as e:
    evaluated(run, tasks['first'], tasks[bad], tasks['last'])
  assert e.value.exit_code == DataError.exit_code
  assert list(entries(run / 'evaluation.json')[0]['tasks']) == ['first', 'last']
  assert f'{bad}: FAILED' in capsys.readouterr().out


def test_results_are_on_disk_before_the_next_task_begins(run, tasks, monkeypatch):
  (run / 'evaluation.json').unlink(missing_ok=True)
  seen, choice = [], evaluate.EVALUATORS['choice']

  def interrupted(subject, task, questions):
    seen.append((run / 'evaluation.json').exists() and list(entries(run / 'evaluation.json')[0]['tasks']))
    if len(seen) == 2:
      raise KeyboardInterrupt
    return choice(subject, task, questions)
  monkeypatch.setitem(evaluate.EVALUATORS, 'choice', interrupted)
  with pytest.raises(KeyboardInterrupt):
    evaluated(run, tasks['first'], tasks['last'])
  assert seen == [False, ['first']]
  evaluated(run, tasks['last'])
  evaluated(run, tasks['last'], flags=['--limit=1'])
  assert [list(e['tasks']) for e in entries(run / 'evaluation.json')] == [['first', 'last'], ['last']]


def test_what_is_known_before_is_said_before_a_model_is_loaded(run, tasks, tmp_path, monkeypatch):
  monkeypatch.setattr(trained_model, 'load', lambda *a: pytest.fail('loaded'))
  with pytest.raises(DataError, match='task items, item 1'):
    evaluated(run, tasks['items'])
  with pytest.raises(Failure, match='2 of 2 tasks failed'):
    evaluated(run, tasks['items'], tasks['missing'])
  (tmp_path / 'mine.json').write_text('[]')
  for task, flags, words in (('nowhere', [], 'no such task'), (tasks['first'], ['--shots=-7'], 'shots'),
                             (tasks['first'], ['--limit=-395'], 'limit'),
                             (tasks['first'], [f'--output={tmp_path}/mine.json'], 'give another --output')):
    with pytest.raises(ConfigError, match=words):
      evaluated(run, task, flags=flags)
  with pytest.raises(ConfigError, match='limit=-395 must be at least'):
    plan.make([tasks['first']], limit=-395)
  with pytest.raises(ConfigError, match='shots=-2 must be at least'):
    plan.make([tasks['first']], shots=-2)


def test_programs_get_the_results_of_the_others_too(run, tasks):
  model = t5like.load(run)
  with pytest.raises(evaluate.TasksFailed) as e:
    t5like.evaluate(model, [tasks['items'], tasks['first']])
  assert list(e.value.results) == ['first'] and list(e.value.errors) == ['items']
  assert list(t5like.evaluate(model, [tasks['first']])) == ['first']


def test_a_fault_of_the_program_is_shown_and_costs_only_its_task(capsys):
  def broken():
    raise ZeroDivisionError('division')
  done, errors = evaluate.attempt(dict(a=broken, b=lambda: (dict(b=dict(items=1)), [])))
  assert done == dict(b=dict(items=1)) and 'Traceback' in capsys.readouterr().err
  with pytest.raises(evaluate.TasksFailed, match=r'a \(ZeroDivisionError: division\)') as e:
    evaluate.finished(done, errors)
  assert e.value.exit_code == 1


def test_a_training_run_survives_a_task_that_fails(tasks, tmp_path):
  c = tiny.config(tmp_path, data=dict(seq_len=64), stop=dict(tokens=4 * 16 * 64),
                  evaluate=dict(every=0, tasks=(tasks['first'], tasks['tokens'])))
  found = loop.train(c, tmp_path / 'run', 'test', jax.devices()[:1])
  assert list(found['tasks']) == ['first']


def test_decoding_for_a_task_ends_with_its_answers(run, tmp_path, monkeypatch):
  """Once every answer of a batch has come to a stop, no more tokens are made: `tokens` is only a limit."""
  made = []

  def stream(*args, **how):
    for n in range(how['tokens']):
      made.append(n)
      yield ['an answer' + '\n' * (n > 2), 'another' + '\n' * (n > 3)]
  monkeypatch.setattr(decode, 'stream', stream)
  monkeypatch.setattr(evaluate.Subject, '_for_decoding', lambda self: (None, None, trained_model.load(run).mesh))
  model = trained_model.load(run)
  subject = evaluate.Subject(model.model, model.params, model.vocabulary, model.config, model.mesh)
  assert subject.generate([[5], [6]], 1000, ('\n',)) == ['an answer\n', 'another\n'] and len(made) == 5


@pytest.mark.parametrize('tokens', [10 ** 9, 65_537, 0, -3])
def test_limits_of_a_task_file(tokens, tmp_path):
  with pytest.raises(ConfigError, match=f'tokens={tokens} must be at'):
    evaluate.task_lib.find(written(tmp_path, kind='generate', answer='{a}', tokens=tokens))
