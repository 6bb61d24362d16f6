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
    request = parts.request
    self.profiler = profiling.Profiler(request.profile_steps, request.workdir, parts.output.say)

  def before_step(self, step: int) -> None:
    self.profiler.before(step, self.parts.trainer.state)

  def close(self) -> None:
    self.profiler.close()


class Guard(Hook):
  """Keeps the batches of bad steps; too many rewind the run, and a run of bad steps alone is an error."""

  def __init__(self, parts: Parts, every: int):
    super().__init__(parts, every)
    output = parts.output
    self.bad_steps = 0.0
    self.bad_batches = recovery.BadBatches(parts.request.workdir, output.writes, output.say)

  def reset(self, progress: Progress) -> None:
    self.bad_steps = 0.0

  def measured(self, step: Step) -> None:
    number = step.progress.step
    metrics = step.metrics
    rows = step.rows
    self.bad_steps = metrics['bad_steps']
    if metrics['bad_in_a_row']:
      self.bad_batches.keep(rows, metrics, number, step.first_row)
    self.parts.trainer.judge(metrics, rows, number)

  def finish(self, turn: Turn) -> None:
    steps = turn.progress.step
    all_were_bad = self.bad_steps >= steps
    if self.bad_steps and all_were_bad:
      raise NumericsError(
          f'{turn.reason}, but nothing was learnt: all {steps:,} steps had a loss, gradient or update that is not '
          'finite, or a spike. Look at a batch of WORKDIR/bad_steps (main.py inspect --batch=FILE); a lower '
          'optimizer.learning_rate often helps. Give another --workdir to begin again.')


class Histograms(Hook):
  """Histograms of all parameters, and of their gradients on the newest batch, for trackers."""

  def act(self, turn: Turn) -> None:
    if turn.batch is None:
      raise RuntimeError('histograms need the batch of a step')
    step = turn.progress.step
    with self.parts.phases.during('eval', 'start'):  # the first time compiles
      counted = self.parts.trainer.histograms(turn.batch)
      histograms = histograms_lib.named(counted, self.parts.plan.model.parameters)
      self.parts.output.histograms(step, histograms)


class Compare(Hook):
  """Ends the run when replicas differ; whatever is saved was compared before."""
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
    if self.compared_step == step:
      return
    state = self.parts.trainer.state
    mesh = self.parts.plan.mesh
    recovery.compare_devices(state, mesh, step)
    self.compared_step = step


class Tasks(Hook):
  """The results of evaluate.tasks, on the screen and in the run's files. A task that fails is reported and skipped."""
  solved_step = -1
  results: dict[str, dict[str, float]] | None = None

  def reset(self, progress: Progress) -> None:
    self.solved_step = -1
    self.results = None

  def act(self, turn: Turn) -> None:
    parts = self.parts
    step = turn.progress.step
    evaluation = parts.plan.config.evaluate
    if not evaluation.tasks:
      return
    if self.solved_step == step:
      return
    subject = self._subject()
    with parts.phases.during('eval', 'start'):
      names = evaluate.chosen(evaluation.tasks)
      tasks = evaluate.read(names, evaluation.shots, evaluation.limit)
      jobs = evaluate.jobs(subject, tasks)
      results, _ = evaluate.attempt(jobs, parts.output.say)
      self.results = results
      self.solved_step = step
      parts.output.write(step, _flat(results), flush=True)

  def finish(self, turn: Turn) -> None:
    self.act(turn)

  def result(self, progress: Progress) -> dict[str, Any]:
    return dict(tasks=self.results)

  def _subject(self) -> evaluate.Subject:
    """The model with the parameters of the newest step."""
    parts = self.parts
    plan = parts.plan
    return evaluate.Subject(
        plan.model,
        parts.trainer.params,
        parts.store.vocabulary,
        plan.config,
        plan.mesh,
        tick=lambda: parts.phases.alive('start'),  # new shapes are compiled
    )


def _flat(results: dict[str, dict[str, float]]) -> dict[str, float]:
  """{'tasks/TASK/METRIC': value}"""
  flat = {}
  for task, values in results.items():
    for metric, value in values.items():
      flat[f'tasks/{task}/{metric}'] = value
  return flat


class Sample(Hook):
  """Shows and writes what the model makes of sample.prompts.

  Only one process can decode, and only where rows are not sharded (mesh.context).
  """

  def act(self, turn: Turn) -> None:
    plan = self.parts.plan
    output = self.parts.output
    prompts = plan.config.sample.prompts
    is_alone = jax.process_count() == 1
    has_whole_rows = plan.mesh.shape['context'] == 1
    can_decode = is_alone and has_whole_rows
    if not prompts or not can_decode:
      return
    style = decode.style_of(plan.config)
    with self.parts.phases.during('eval', 'start'):  # decoding compiles
      texts = self._decode(style)
      for prompt, text in zip(prompts, texts):
        output.screen.sample(prompt, text, style)
        output.sample(turn.progress.step, prompt, text)

  def finish(self, turn: Turn) -> None:
    self.act(turn)

  def _decode(self, style: str) -> list[str]:
    """The model's answers to sample.prompts."""
    plan = self.parts.plan
    config = plan.config
    sample = config.sample
    return decode.generate(
        plan.model,
        self.parts.trainer.params,
        self.parts.store.vocabulary,
        sample.prompts,
        style=style,
        context=config.data.seq_len,
        targets=plan.shapes.targets,
        tokens=sample.tokens,
        temperature=sample.temperature,
        top_k=sample.top_k,
        top_p=sample.top_p,
        seed=config.seed,
    )


# In this order at every moment. Before a save, replicas are compared and the model is validated. When the process has
# to end, time is short: hooks that can wait do not act, and `leave` saves the state.
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
