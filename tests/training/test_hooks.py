"""Hooks: a periodic action is one entry, called at the right steps, in the right order, whatever happens to the run."""
import os
import signal
import time

import jax
import numpy as np
import pytest

from t5like.batches import pipeline
from t5like.errors import Preempted
from t5like.evals import evaluate
from t5like.training import actions, hooks, loop, recovery, saving, validation
from t5like.training.trainer import Trainer
from tests import tiny

pytestmark = pytest.mark.usefixtures('compile_once')


def run(config, workdir):
  return loop.train(config, workdir, 'test', jax.devices()[:1])


@pytest.fixture
def add_hook(monkeypatch):
  """Function that adds one entry to the table of hooks."""
  def add(entry):
    monkeypatch.setattr(actions, 'HOOKS', hooks.table(*actions.HOOKS, entry))
  return add


def recorder():
  """(a hook that notes what it is called for, the list of its notes)."""
  notes = []

  class Recorder(hooks.Hook):
    """Notes its calls."""

    def reset(self, progress):
      notes.append(('reset', progress.step))

    def act(self, turn):
      assert turn.batch['inputs'].shape == (16, 32)
      assert int(self.parts.trainer.state['step']) == turn.progress.step
      notes.append(('act', turn.progress.step))

    def leave(self, progress):
      notes.append(('leave', progress.step))

    def finish(self, turn):
      notes.append(('finish', turn.reason))

    def result(self, progress):
      return dict(notes=len(notes))

    def close(self):
      notes.append(('close', None))
  return Recorder, notes


def test_a_periodic_action_is_one_entry_and_acts_at_its_steps_also_when_the_run_resumes(
    tmp_path, monkeypatch, add_hook):
  recording, notes = recorder()
  add_hook(hooks.Entry('recorder', recording, every='sample.every'))
  c = tiny.config(tmp_path, steps=9, sample=dict(every=2), checkpoint=dict(every=3), evaluate=dict(every=0))
  with monkeypatch.context() as m:
    m.setattr(loop.Run, '_ending', lambda self: 'test' if self.progress.step == 6 else None)
    with pytest.raises(Preempted):
      run(c, tmp_path / 'run')
  assert notes == [('reset', 0), ('act', 2), ('act', 4), ('leave', 6), ('close', None)], 'step 6 has no time for it'
  notes.clear()
  result = run(c, tmp_path / 'run')
  assert notes == [('reset', 6), ('act', 8), ('finish', 'stop.tokens reached'), ('close', None)]
  assert result['notes'] == 3 and set(result) == {'reason', 'step', 'tokens', 'validation', 'tasks', 'notes'}


def test_a_hook_that_is_to_act_when_the_run_ends_does(tmp_path, monkeypatch, add_hook):
  recording, notes = recorder()
  add_hook(hooks.Entry('recorder', recording, every='sample.every', when_ending=True))
  monkeypatch.setattr(loop.Run, '_ending', lambda self: 'test' if self.progress.step == 4 else None)
  with pytest.raises(Preempted):
    run(tiny.config(tmp_path, sample=dict(every=4)), tmp_path / 'run')
  assert [note for note in notes if note[0] != 'close'] == [('reset', 0), ('act', 4), ('leave', 4)]


def test_a_hook_is_reset_and_acts_again_where_a_run_goes_back(tmp_path, monkeypatch, add_hook):
  """Rows of steps 6 and 7 are bad: back to step 4."""
  real = pipeline.TrainRows.batch

  def batch(self, rows):
    made = real(self, rows)
    if 80 <= min(rows) < 112:
      made['weights'] = np.full_like(made['weights'], np.nan)
    return made
  monkeypatch.setattr(pipeline.TrainRows, 'batch', batch)
  recording, notes = recorder()
  add_hook(hooks.Entry('recorder', recording, every='sample.every'))
  c = tiny.config(tmp_path, steps=8, sample=dict(every=5), checkpoint=dict(every=2), evaluate=dict(every=0),
                  guard=dict(max_bad_steps=2))
  assert run(c, tmp_path / 'run')['step'] == 8
  assert notes[:4] == [('reset', 0), ('act', 5), ('reset', 4), ('act', 5)]
  assert notes[4:] == [('finish', 'stop.tokens reached'), ('close', None)]


def test_a_hook_of_interval_0_never_acts(tmp_path, add_hook):
  recording, notes = recorder()
  add_hook(hooks.Entry('recorder', recording, every='sample.every'))
  run(tiny.config(tmp_path, steps=3), tmp_path / 'run')
  assert [kind for kind, _ in notes] == ['reset', 'finish', 'close']


@pytest.fixture
def order(monkeypatch):
  """The names of what a run does beside its steps, with the step."""
  calls = []

  def noting(owner, attribute, name, step_of):
    real = getattr(owner, attribute)

    def noted(*args, **kwargs):
      calls.append((name, step_of(*args)))
      return real(*args, **kwargs)
    monkeypatch.setattr(owner, attribute, noted)
  noting(recovery, 'compare_devices', 'compare', lambda state, mesh, step: step)
  noting(validation, 'measure', 'validate', lambda store, trainer, alive: int(trainer.state['step']))
  noting(saving.Save, 'save', 'save', lambda self, progress: progress.step)
  noting(actions.Histograms, 'act', 'histograms', lambda self, turn: turn.progress.step)
  noting(actions.Tasks, 'act', 'tasks', lambda self, turn: turn.progress.step)
  noting(actions.Sample, 'act', 'sample', lambda self, turn: turn.progress.step)
  return calls


ALL_DUE = dict(steps=6, evaluate=dict(every=3, tasks_every=3), checkpoint=dict(every=3), sample=dict(every=3),
               log=dict(histograms_every=3))


def test_the_order_of_what_is_due_at_one_step(tmp_path, order):
  """What is saved was compared before, also at a step at which only a save is due, and at the end."""
  c = tiny.config(tmp_path, guard=dict(compare_every=100), **ALL_DUE)
  run(c, tmp_path / 'run')
  at_3 = [name for name, step in order if step == 3]
  assert at_3 == ['histograms', 'compare', 'validate', 'save', 'tasks', 'sample']
  at_6 = [name for name, step in order if step == 6]
  assert at_6 == ['histograms', 'compare', 'validate', 'save', 'tasks', 'sample', 'save', 'tasks', 'sample']


def test_of_what_is_due_nothing_that_can_wait_is_done_when_the_process_ends(tmp_path, monkeypatch, order):
  monkeypatch.setattr(loop.Run, '_ending', lambda self: 'test' if self.progress.step == 3 else None)
  with pytest.raises(Preempted):
    run(tiny.config(tmp_path, guard=dict(compare_every=100), **ALL_DUE), tmp_path / 'run')
  assert order == [('histograms', 3), ('compare', 3), ('validate', 3), ('save', 3)]


def test_devices_are_not_compared_where_that_is_switched_off(tmp_path, order):
  run(tiny.config(tmp_path, guard=dict(compare_every=0), **ALL_DUE), tmp_path / 'run')
  assert 'compare' not in [name for name, _ in order]


def test_the_metrics_of_a_step_arrive_while_the_next_one_is_computed(tmp_path, monkeypatch, add_hook):
  """Unless something is due after it; so the devices never wait for the host."""
  events, real = [], Trainer.step

  def step(self, batch):
    events.append('dispatch')
    return real(self, batch)
  monkeypatch.setattr(Trainer, 'step', step)

  class Measured(hooks.Hook):
    """Notes whose metrics arrive."""

    def measured(self, step):
      assert type(step.metrics['loss']) is float and step.rows['inputs'].shape == (16, 32)
      events.append(step.progress.step)
  add_hook(hooks.Entry('measured', Measured))
  run(tiny.config(tmp_path, steps=6, evaluate=dict(every=4), checkpoint=dict(every=0)), tmp_path / 'run')
  d = 'dispatch'
  assert events == [d, 1, d, d, 2, d, 3, 4, d, d, 5, 6]


def test_side_values_of_a_step_are_written(tmp_path, monkeypatch):
  """Metrics beyond those that every step has: the mean over the steps since the line before."""
  real, values = Trainer.step, iter([1.0, 3.0, 5.0, 5.0])

  def step(self, batch):
    return dict(real(self, batch), **{'side/balance': jax.numpy.float32(next(values))})
  monkeypatch.setattr(Trainer, 'step', step)
  c = tiny.config(tmp_path, steps=4, log=dict(every=2), evaluate=dict(every=0), data=dict(document_mask=False))
  run(c, tmp_path / 'run')
  lines, _ = tiny.metrics(tmp_path / 'run')
  assert [line['step'] for line in lines] == [2, 4]
  np.testing.assert_allclose([line['side/balance'] for line in lines], [2.0, 5.0], rtol=0.05)


def test_a_signal_within_a_task_ends_the_run_and_is_no_failure_of_the_task(tmp_path, monkeypatch, capsys):
  def jobs(subject, tasks):
    def job():
      os.kill(os.getpid(), signal.SIGTERM)
      time.sleep(0.3)
      subject.tick()
      raise AssertionError('the run was to be left')
    return dict(task=job)
  monkeypatch.setattr(evaluate, 'jobs', jobs)
  monkeypatch.setattr(evaluate, 'read', lambda *args: None)
  c = tiny.config(tmp_path, steps=6, evaluate=dict(tasks=('agreement',), tasks_every=3))
  with pytest.raises(Preempted, match='after step 3 with the state of this step'):
    run(c, tmp_path / 'run')
  assert 'FAILED' not in capsys.readouterr().out


class Nothing(hooks.Hook):
  """Does nothing."""


class Acts(hooks.Hook):
  """Acts."""

  def act(self, turn):
    pass


class Closes(hooks.Hook):
  """Does something at the end alone."""

  def close(self):
    pass


@pytest.mark.parametrize('entries, words', [
    ([hooks.Entry('x', Nothing)], "hook 'x': Nothing does nothing. Write one of reset"),
    ([hooks.Entry('x', Nothing, every='sample.every')], 'Nothing does nothing'),
    ([hooks.Entry('x', print)], 'must be a subclass of hooks.Hook'),
    ([hooks.Entry('x', Acts)], 'Acts.act would never be called. Give every='),
    ([hooks.Entry('x', Closes, every='sample.every')], 'Closes has no `act`'),
    ([hooks.Entry('x', Acts, every='sample.evry')], "no key of t5like/config/base.py. Did you mean 'sample.every'"),
    ([hooks.Entry('x', Acts, every='stop.target')], 'no number of steps'),
    ([hooks.Entry('x', Acts, every='sample.every')] * 2, "'x' is in the table twice"),
    ([hooks.Entry('x', Acts, every='sample.every', before=('save',))], "before='save' is no entry that follows"),
])
def test_an_entry_that_could_never_do_anything_is_refused_when_it_is_registered(entries, words):
  with pytest.raises(TypeError) as error:
    hooks.table(*entries)
  assert words in str(error.value)
