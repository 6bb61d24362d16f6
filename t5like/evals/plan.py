"""From the names on a command line to results: all that can be known without a model is found out before one is loaded.

    asked = plan.make(['agreement', 'my/task.json', 'harness:lambada_openai'], shots=4)
    results, errors = asked.run(subject)
"""
import dataclasses
from collections.abc import Callable, Sequence

from t5like.errors import Failure
from t5like.evals import evaluate, harness

HARNESS = 'harness:'


@dataclasses.dataclass(frozen=True)
class Plan:
  """questions_of: as `evaluate.read` returns; theirs: names of tasks of lm-evaluation-harness."""
  questions_of: dict
  theirs: tuple[str, ...]
  shots: int
  limit: int
  harness_path: str | None

  @property
  def problems(self) -> dict[str, Failure]:
    """{task: why it cannot be asked}, as far as is known before a model is there."""
    return {task.name: questions for task, questions in self.questions_of.items() if isinstance(questions, Failure)}

  @property
  def hopeless(self) -> bool:
    return not self.theirs and len(self.problems) == len(self.questions_of)

  def run(self, subject, say: Callable = lambda _: None, done: Callable = lambda results: None) -> tuple[dict, dict]:
    """(results, errors): see `evaluate.attempt`."""
    jobs = evaluate.jobs(subject, self.questions_of)
    if self.theirs:
      jobs.update(harness.jobs(subject, self.theirs, self.harness_path, self.shots, self.limit))
    return evaluate.attempt(jobs, say, done)


def make(names: Sequence[str] = (), shots: int = -1, limit: int = 0, harness_path: str | None = None) -> Plan:
  """The Plan of names of tasks, all that are built in when there are none; see `t5like.evaluate`.

  Raises:
    ConfigError: a task does not exist, is named twice or needs a package that is missing; shots or limit out of range.
  """
  evaluate.check(shots, limit)
  theirs = tuple(dict.fromkeys(name.removeprefix(HARNESS) for name in names if name.startswith(HARNESS)))
  ours = [name for name in names if not name.startswith(HARNESS)]
  tasks = evaluate.chosen(ours) if ours or not names else []
  if theirs:
    harness.check(theirs, harness_path)
  return Plan(evaluate.read(tasks, shots, limit), theirs, shots, limit, harness_path)
