"""The stages of a run: the plan of each, and the steps that it has."""
import dataclasses
from collections.abc import Mapping
from typing import Any

import jax

from t5like.batches import pipeline
from t5like.config import stages as stages_lib
from t5like.config.stages import Stage, Stretch
from t5like.config_type import Config
from t5like.optim import from_config
from t5like.training import plan as plan_lib
from t5like.training.plan import Plan
from t5like.training.progress import Progress
from t5like.vocabulary.kinds import Vocabulary


@dataclasses.dataclass(frozen=True, eq=False)
class Course:
  """The stages of a run from a place in it on; a run without stages is all in the first.

  stages: of the config.
  plans: of each stage.
  stretches: what steps the stages have that are not over, the first of them the one that the run is in.
  """
  stages: tuple[Stage, ...]
  plans: tuple[Plan, ...]
  stretches: tuple[Stretch, ...]

  @property
  def total_steps(self) -> int:
    """Steps of the run."""
    return self.stretches[-1].stop

  def plan(self, progress: Progress) -> Plan:
    """The plan of the stage that a run is in."""
    return self.plans[len(progress.stages)]

  def is_next_due(self, progress: Progress) -> bool:
    """Whether the next step begins another stage."""
    following = len(progress.stages) + 1
    if following == len(self.stages):
      return False
    return self.stages[following].tokens <= progress.tokens

  def continued(self, progress: Progress) -> 'Course':
    """The course of a run that resumes from `progress`, whose steps so far may have been of another size."""
    stretches = stages_lib.course(
        self.stages,
        len(progress.stages),
        progress.step,
        progress.tokens,
        progress.examples_seen,
    )
    first_steps = [0]
    for step, _ in progress.stages:
      first_steps.append(step)
    for stretch in stretches[1:]:
      first_steps.append(stretch.step)
    spans = stages_lib.spans(self.stages, first_steps, stretches[-1].stop)
    plans = []
    for plan, (first_step, total_steps) in zip(self.plans, spans):
      spanned = dataclasses.replace(plan, first_step=first_step, total_steps=total_steps)
      plans.append(spanned)
    return dataclasses.replace(self, plans=tuple(plans), stretches=tuple(stretches))

  def completed(self, progress: Progress, meta: Mapping[str, Any]) -> Progress:
    """`progress` with the stages that have begun; meta: of its checkpoint, where older versions did not count them."""
    if 'stages' in meta:
      return progress
    began = []
    for stage, stretch in zip(self.stages[1:], stages_lib.course(self.stages)[1:]):
      if stage.tokens < progress.tokens:
        began.append((stretch.step, stretch.row))
    return dataclasses.replace(progress, stages=tuple(began))

  def first_rows(self, progress: Progress) -> list[int]:
    """The row of the endless sequence that each stage begins with."""
    rows = [0]
    for _, row in progress.stages:
      rows.append(row)
    for stretch in self.stretches[1:]:
      trained_on = stretch.row - progress.examples_seen
      row = pipeline.after(progress.skipped, progress.examples_seen, trained_on)
      rows.append(row)
    return rows


def make(config: Config, vocabulary: Vocabulary, mesh: jax.sharding.Mesh) -> Course:
  """The course of a run from its first step on; its config as the user wrote it. ConfigError as of `plan.make`."""
  stages = stages_lib.of(config)
  plans = []
  for number, stage in enumerate(stages):
    with stages_lib.named_in_errors(stage):
      plan = plan_lib.make(stage.config, vocabulary, mesh)
    plan = dataclasses.replace(plan, requested=config, stage=number)
    plans.append(plan)
  if len(plans) > 1:
    optimizers = [plan.config.optimizer for plan in plans]
    stateful = from_config.stateful_paths(optimizers, plans[0].model.parameters)
    plans = [dataclasses.replace(plan, stateful=stateful) for plan in plans]
  course = Course(stages, tuple(plans), ())
  return course.continued(Progress())
