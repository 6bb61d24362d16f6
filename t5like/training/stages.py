"""From stage to stage: what a run trains by changes between two steps, and is compiled before it does."""
import sys
import threading
from collections.abc import Callable
from typing import Any

import jax

from t5like import sharding
from t5like.batches import pipeline
from t5like.batches.train_rows import TrainRows
from t5like.config import stages as stages_lib
from t5like.training import build
from t5like.training.course import Course
from t5like.training.phases import Phases
from t5like.training.plan import Plan
from t5like.training.progress import Progress
from t5like.training.trainer import Trainer


class Ahead:
  """Compiles the steps of a plan in a thread, while others run.

  What is compiled is found again when the steps are called with arrays of these shapes; nothing is computed, and no
  memory of devices is taken but for the programs.
  """

  def __init__(
      self,
      plan: Plan,
      steps: build.Steps,
      state: Any,
      say: Callable[[str], None],
  ):
    """state: as steps take it; only its shapes and shardings are read."""
    self.plan = plan
    self._steps = steps
    self._state = jax.tree.map(_abstract, state)
    self._say = say
    self._programs: list[Any] = []  # kept until the stage has begun
    # Not a daemon: the interpreter waits for it before it ends, as a compiler that is interrupted aborts the process.
    # main.py does not wait where a run is left, as after a signal: it ends the process itself.
    self._thread = threading.Thread(target=self._compile, name='ahead', daemon=False)
    self._thread.start()

  def _compile(self) -> None:
    plan = self.plan
    try:
      with jax.set_mesh(plan.mesh):
        batch = build.abstract_batch(plan.config, plan.mesh)
        params = self._state['params']
        train_step = self._steps.train_step.lower(self._state, batch)
        train_program = train_step.compile()
        self._programs.append(train_program)
        eval_step = self._steps.eval_step.lower(params, batch)
        eval_program = eval_step.compile()
        self._programs.append(eval_program)
    except Exception as error:  # raised again by the first step that needs it, unless it passes
      kind = type(error).__name__
      text = str(error)[:500]
      self._say(f'WARNING: stage {plan.stage} could not be compiled ahead: {kind}: {text}')

  @property
  def is_done(self) -> bool:
    """Whether nothing is left to be compiled."""
    return not self._thread.is_alive()

  def wait(self) -> None:
    """Returns when it is done."""
    self._thread.join()


def _abstract(x: jax.Array) -> jax.ShapeDtypeStruct:
  return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding, weak_type=x.aval.weak_type)


class Stages:
  """The stages of a run that trains: which of them the trainer is in, and when the next begins."""

  def __init__(
      self,
      course: Course,
      rows: TrainRows,
      trainer: Trainer,
      say: Callable[[str], None],
      phases: Phases | None = None,
  ):
    """phases: of the run, which wait for what is not compiled yet."""
    self.course = course
    self.rows = rows
    self.trainer = trainer
    self.phases = phases
    self.say = say
    self._ahead: Ahead | None = None

  def resume(self, progress: Progress) -> None:
    """The run is where `progress` says: at its start, or rewound."""
    self._ahead = None
    self.course = self.course.continued(progress)
    first_rows = self.course.first_rows(progress)
    plan = self.course.plan(progress)
    self.rows.place(first_rows)
    self.trainer.follow(plan)

  def stretches(self) -> list[pipeline.Stretch]:
    """The batches from where the run resumed to its end, and this host's rows of them."""
    listed = []
    for stretch in self.course.stretches:
      plan = self.course.plans[stretch.stage]
      size = plan.config.batch_size
      batches = stretch.steps
      if stretch is self.course.stretches[-1]:
        batches = sys.maxsize
      mine = sharding.rows_of_host(plan.mesh, size)
      listed.append(pipeline.Stretch(batches, size, mine))
    return listed

  def prepare(self) -> None:
    """Begins to compile the steps of the next stage."""
    for stretch in self.course.stretches[1:]:
      if stretch.steps:
        plan = self.course.plans[stretch.stage]
        self._ahead = self._compiling(plan)
        return

  def is_next_due(self, progress: Progress) -> bool:
    """Whether the next step begins another stage."""
    return self.course.is_next_due(progress)

  def begin(self, progress: Progress) -> Progress:
    """The stages begin that are due; returns the progress in the last of them, whose steps are compiled."""
    while self.course.is_next_due(progress):
      before = self.course.stages[len(progress.stages)]
      progress = progress.with_stage()
      number = len(progress.stages)
      stage = self.course.stages[number]
      words = stages_lib.in_words(stage.changes, before.config)
      self.say(f'Stage {number} begins after step {progress.step:,}, {progress.tokens:,} tokens: {words}')
    self.course = self.course.continued(progress)
    plan = self.course.plan(progress)
    ahead = self._ahead
    if ahead is None or ahead.plan.stage != plan.stage:
      ahead = self._compiling(plan)
    if not ahead.is_done:
      if self.phases:
        self.phases.enter('compile', 'start')
      ahead.wait()
    self._ahead = None
    self.trainer.follow(plan)
    return progress

  def _compiling(self, plan: Plan) -> Ahead:
    steps = self.trainer.steps_of(plan)
    return Ahead(plan, steps, self.trainer.state, self.say)
