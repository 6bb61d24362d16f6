"""The hooks of every run, and their table: `HOOKS`, at the end of this file."""
from typing import Any

import jax

from t5like.decoding import decode
from t5like.errors import NumericsError
from t5like.evals import evaluate
from t5like.observe import histograms as histograms_lib, profiling
from t5like.training import recovery
from t5like.training.hooks import Entry, Hook, Step, Turn, table
from t5like.training.log import Log
from t5like.training.parts import Parts
from t5like.training.progress import Progress
from t5like.training.saving import Save
from t5like.training.validation import Validate


class Profile(Hook):
  """The trace that --profile_steps asks for."""

  def __init__(self, parts: Parts, every: int):
    super().__init__(parts, every)
    self.profiler = profiling.Profiler(parts.request.profile_steps, parts.request.workdir, parts.output.say)

  def before_step(self, step: int) -> None:
    self.profiler.before(step, self.parts.trainer.state)

  def close(self) -> None:
    self.profiler.close()


class Guard(Hook):
  """Keeps the batches of bad steps; the run goes back after too many, and is not done if all were bad."""

  def __init__(self, parts: Parts, every: int):
    super().__init__(parts, every)
    self.bad_steps = 0.0
    self.bad_batches = recovery.BadBatches(parts.request.workdir, parts.output.writes, parts.output.say)

  def reset(self, progress: Progress) -> None:
    self.bad_steps = 0.0

  def measured(self, step: Step) -> None:
    number = step.progress.step
    self.bad_steps = step.metrics['bad_steps']
    if step.metrics['bad_in_a_row']:
      self.bad_batches.keep(step.rows, step.metrics, number, step.first_row)
    self.parts.trainer.judge(step.metrics, step.rows, number)

  def finish(self, turn: Turn) -> None:
    steps = turn.progress.step
    if self.bad_steps and self.bad_steps >= steps:
      raise NumericsError(
          f'{turn.reason}, but nothing was learnt: all {steps:,} steps had a loss, gradient or update that is not '
          'finite, or a spike. Look at a batch of WORKDIR/bad_steps (main.py inspect --batch=FILE); a lower '
          'optimizer.learning_rate often helps. Give another --workdir to begin again.')


class Histograms(Hook):
  """Histograms of all parameters, and of their gradients on the newest batch, for trackers."""

  def act(self, turn: Turn) -> None:
    with self.parts.phases.during('eval', 'start'):  # the first time compiles
      if turn.batch is None:
        raise RuntimeError('histograms need the batch of a step')
      counted = self.parts.trainer.histograms(turn.batch)
      sizes = {path: declared.size for path, declared in self.parts.plan.model.parameters.items()}
      self.parts.output.histograms(turn.progress.step, histograms_lib.named(counted, sizes))


class Compare(Hook):
  """Ends the run when devices that should hold the same do not; whatever is saved was compared before."""
  compared_step = -1

  def reset(self, progress: Progress) -> None:
    self.compared_step = progress.step

  def act(self, turn: Turn) -> None:
    self._compare(turn.progress.step)

  def leave(self, progress: Progress) -> None:
    if self.every:
      self._compare(progress.step)

  def finish(self, turn: Turn) -> None:
    if self.every:
      self._compare(turn.progress.step)

  def _compare(self, step: int) -> None:
    if self.compared_step != step:
      recovery.compare_devices(self.parts.trainer.state, self.parts.plan.mesh, step)
      self.compared_step = step


class Tasks(Hook):
  """The results of evaluate.tasks, on the screen and in the run's files. A task that fails is reported and left out."""
  solved_step = -1
  results: dict[str, dict[str, float]] | None = None

  def reset(self, progress: Progress) -> None:
    self.solved_step = -1
    self.results = None

  def act(self, turn: Turn) -> None:
    plan = self.parts.plan
    output = self.parts.output
    phases = self.parts.phases
    evaluation = plan.config.evaluate
    step = turn.progress.step
    if not evaluation.tasks or self.solved_step == step:
      return
    subject = evaluate.Subject(
        plan.model, self.parts.trainer.params, self.parts.store.vocabulary, plan.config, plan.mesh,
        tick=lambda: phases.alive('start'))  # new shapes are compiled
    with phases.during('eval', 'start'):
      tasks = evaluate.read(evaluate.chosen(evaluation.tasks), evaluation.shots, evaluation.limit)
      results, _ = evaluate.attempt(evaluate.jobs(subject, tasks), output.say)
      self.results = results
      self.solved_step = step
      output.write(step, _flat(results), flush=True)

  def finish(self, turn: Turn) -> None:
    self.act(turn)

  def result(self, progress: Progress) -> dict[str, Any]:
    return dict(tasks=self.results)


def _flat(results: dict[str, dict[str, float]]) -> dict[str, float]:
  """{'tasks/TASK/METRIC': value}"""
  flat = {}
  for task, values in results.items():
    for metric, value in values.items():
      flat[f'tasks/{task}/{metric}'] = value
  return flat


class Sample(Hook):
  """Shows and keeps what the model makes of sample.prompts; on one process, where no row is cut (mesh.context)."""

  def act(self, turn: Turn) -> None:
    plan = self.parts.plan
    output = self.parts.output
    sample = plan.config.sample
    if not sample.prompts or jax.process_count() > 1 or plan.mesh.shape['context'] > 1:
      return
    with self.parts.phases.during('eval', 'start'):  # decoding compiles
      style = decode.style_of(plan.config)
      texts = decode.generate(
          plan.model, self.parts.trainer.params, self.parts.store.vocabulary, sample.prompts, style=style,
          context=plan.config.data.seq_len, targets=plan.shapes.targets, tokens=sample.tokens,
          temperature=sample.temperature, top_k=sample.top_k, top_p=sample.top_p, seed=plan.config.seed)
      for prompt, text in zip(sample.prompts, texts):
        output.screen.sample(prompt, text, style)
        output.sample(turn.progress.step, prompt, text)

  def finish(self, turn: Turn) -> None:
    self.act(turn)


# In this order at every moment. What is saved should be right: devices are compared, and the model validated, before.
# Of what can wait, nothing is done when the process has to end, for time is short then: the state is saved by `leave`.
HOOKS = table(
    Entry('profile', Profile),
    Entry('guard', Guard),
    Entry('log', Log, every='log.every'),
    Entry('histograms', Histograms, every='log.histograms_every', when_ending=True),
    Entry('compare', Compare, every='guard.compare_every', when_ending=True, before=('save',)),
    Entry('validate', Validate, every='evaluate.every', when_ending=True),
    Entry('save', Save, every='checkpoint.every'),
    Entry('tasks', Tasks, every='evaluate.tasks_every'),
    Entry('sample', Sample, every='sample.every'))
