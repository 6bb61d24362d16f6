"""From the names on a command line to results: all that can be known without a model is found out before one is loaded.

    planned = plan.make(['agreement', 'my/task.json', 'harness:lambada_openai'], shots=4)
    results, errors = planned.run(subject)
"""
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from t5like.config.task_files import Task
from t5like.errors import Failure
from t5like.evals import evaluate, harness
from t5like.evals.items import Question

HARNESS = 'harness:'


@dataclasses.dataclass(frozen=True)
class Plan:
  """What is to be evaluated.

  Attributes:
    questions_of: as `evaluate.read` returns.
    harness_tasks: names of tasks of lm-evaluation-harness.
    shots: worked examples before each question; -1: as many as each task says.
    limit: of questions of each task; 0: all.
    harness_path: a folder with more tasks of the harness.
  """
  questions_of: dict[Task, list[Question] | Failure]
  harness_tasks: tuple[str, ...]
  shots: int
  limit: int
  harness_path: str | None

  @property
  def problems(self) -> dict[str, Failure]:
    """{task: why it cannot be evaluated}, as far as is known before a model is there."""
    problems = {}
    for task, questions in self.questions_of.items():
      if isinstance(questions, Failure):
        problems[task.name] = questions
    return problems

  @property
  def hopeless(self) -> bool:
    """Whether no task can be evaluated."""
    return not self.harness_tasks and len(self.problems) == len(self.questions_of)

  def run(
      self,
      subject: evaluate.Subject,
      say: Callable[[str], Any] = evaluate.ignore,
      done: Callable[[evaluate.Results], Any] = evaluate.ignore,
  ) -> tuple[evaluate.Results, dict[str, Exception]]:
    """(results, errors): see `evaluate.attempt`."""
    jobs = evaluate.jobs(subject, self.questions_of)
    if self.harness_tasks:
      harness_jobs = harness.jobs(
          subject,
          self.harness_tasks,
          self.harness_path,
          self.shots,
          self.limit,
      )
      jobs.update(harness_jobs)
    return evaluate.attempt(jobs, say, done)


def make(
    names: Sequence[str] = (),
    shots: int = -1,
    limit: int = 0,
    harness_path: str | None = None,
) -> Plan:
  """The Plan of names of tasks, all that are built in when there are none; see `t5like.evaluate`.

  Raises:
    ConfigError: a task does not exist, is named twice or needs a package that is missing; shots or limit out of range.
  """
  evaluate.check(shots, limit)
  of_harness = []
  others = []
  for name in names:
    if name.startswith(HARNESS):
      of_harness.append(name.removeprefix(HARNESS))
    else:
      others.append(name)
  tasks: list[Task] = []
  if others or not names:
    tasks = evaluate.chosen(others)
  harness_tasks = tuple(dict.fromkeys(of_harness))
  if harness_tasks:
    harness.check(harness_tasks, harness_path)
  return Plan(
      questions_of=evaluate.read(tasks, shots, limit),
      harness_tasks=harness_tasks,
      shots=shots,
      limit=limit,
      harness_path=harness_path,
  )
