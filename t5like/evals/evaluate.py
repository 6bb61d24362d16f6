"""Tasks on a model: what `main.py evaluate` and a training run's `evaluate.tasks` compute."""
import functools
import math
import statistics
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from t5like.config import task_files as task_lib
from t5like.config.task_files import Task
from t5like.errors import ConfigError, DataError, Failure
from t5like.evals import answers, items, score
from t5like.evals.items import Question
from t5like.evals.subject import Subject, ended
from t5like.observe import metrics

SENTINEL = '<extra_id_0>'
FILLS = 'a masked language model fills in as many tokens as the reference has'

Values = dict[str, float]  # {metric: value}
Results = dict[str, Values]  # by task
Evaluated = tuple[Values, list[str]]  # and notes for people
Job = Callable[[], tuple[Results, list[str]]]
Say = Callable[[str], None]


class TasksFailed(Failure):
  """Some of several tasks failed. errors: {task: exception}; results: {task: {metric: value}} of the others."""

  def __init__(self, errors: Mapping[str, Exception], results: Results):
    tried = len(errors) + len(results)
    reasons = [f'{name} ({in_words(error)})' for name, error in errors.items()]
    super().__init__(f'{len(errors)} of {tried} tasks failed: {"; ".join(reasons)}')
    self.errors = errors
    self.results = results
    first = next(iter(errors.values()))
    self.exit_code = getattr(first, 'exit_code', 1)


def in_words(error: Exception) -> str:
  """An exception for people: with its type where it is not one of t5like's own."""
  if isinstance(error, Failure):
    return str(error)
  return f'{type(error).__name__}: {error}'


def check(shots: int, limit: int) -> None:
  """Refuses numbers that mean nothing: ConfigError."""
  if shots < -1:
    raise ConfigError(f'shots={shots} must be at least 0, or -1 for as many as each task says.')
  if limit < 0:
    raise ConfigError(f'limit={limit} must be at least 1, or 0 for all questions.')


def read(
    tasks: Iterable[Task],
    shots: int = -1,
    limit: int = 0,
) -> dict[Task, list[Question] | Failure]:
  """{Task: its [Question], or the Failure with which reading them ended}; `shots`, `limit`: see `items.questions`."""
  check(shots, limit)
  questions_of: dict[Task, list[Question] | Failure] = {}
  for task in tasks:
    try:
      questions_of[task] = items.questions(task, shots, limit)
    except Failure as error:
      questions_of[task] = error
  return questions_of


def jobs(
    subject: Subject,
    questions_of: Mapping[Task, list[Question] | Failure],
) -> dict[str, Job]:
  """{task's name: a function that returns ({name: {metric: value}}, notes)} of what `read` returned."""
  job_of = {}
  for task, questions in questions_of.items():
    job_of[task.name] = functools.partial(
        _answered,
        subject,
        task,
        questions,
    )
  return job_of


def _answered(
    subject: Subject,
    task: Task,
    questions: list[Question] | Failure,
) -> tuple[Results, list[str]]:
  if isinstance(questions, Failure):
    raise questions
  evaluate_task = EVALUATORS[task.kind]
  values, notes = evaluate_task(subject, task, questions)
  return {task.name: values}, notes


def ignore(value: Any) -> None:
  """Where nobody is to hear of lines or results."""


def attempt(
    jobs: Mapping[str, Job],
    say: Say = ignore,
    done: Callable[[Results], None] = ignore,
) -> tuple[Results, dict[str, Exception]]:
  """Runs jobs one after the other, whether others fail or not.

  Args:
    jobs: as `jobs` makes them.
    say: called with lines for people.
    done: called with the {task: {metric: value}} of each job once it is finished.

  Returns:
    {task: {metric: value}} of all that succeeded and {job: exception} of the others.
  """
  results: Results = {}
  errors: dict[str, Exception] = {}
  for name, job in jobs.items():
    try:
      values_of, notes = job()
    except Exception as error:
      if not isinstance(error, Failure):
        traceback.print_exc()
      errors[name] = error
      say(f'{name}: FAILED. {in_words(error)}')
      continue
    results.update(values_of)
    done(values_of)
    for task, values in values_of.items():
      say(f'{task}: {describe(values)}')
    for note in notes:
      say(f'  {note}')
  return results, errors


def finished(results: Results, errors: Mapping[str, Exception]) -> Results:
  """The results of `attempt`; its error if a single job was all there was, TasksFailed if some of several failed."""
  if not errors:
    return results
  first = next(iter(errors.values()))
  if len(errors) == 1 and not results:
    raise first
  raise TasksFailed(errors, results) from first


def evaluate(
    subject: Subject,
    tasks: Iterable[Task],
    shots: int = -1,
    limit: int = 0,
    say: Say = ignore,
) -> Results:
  """{task: {metric: value}} of tasks.

  Every value is a mean over items, whose standard error is METRIC_stderr, but for perplexities, which are of all
  tokens, and bleu; `items` says how many there were, `cut` how many lost part of their question to the model's length.
  A task that fails does not keep the others from being evaluated; then see `finished`.

  Args:
    subject: what is evaluated.
    tasks: those to evaluate.
    shots: see `items.questions`.
    limit: see `items.questions`.
    say: called with a line for each task.
  """
  questions_of = read(tasks, shots, limit)
  results, errors = attempt(jobs(subject, questions_of), say)
  return finished(results, errors)


def describe(values: Values) -> str:
  """The numbers of a task, for people."""
  shown = []
  for key, value in values.items():
    is_stderr = key.endswith('_stderr')
    nothing_cut = key == 'cut' and not value
    if is_stderr or nothing_cut:
      continue
    stderr = values.get(f'{key}_stderr')
    number = _number(value, stderr)
    shown.append(f'{key} {number}')
  return ', '.join(shown)


def _number(value: float, stderr: float | None) -> str:
  if isinstance(value, int):
    return f'{value:,}'
  if not stderr:
    return f'{value:.4g}'
  return f'{value:.4g} ± {stderr:.2g}'


def _means(samples: Mapping[str, Sequence[float]]) -> Values:
  """The mean of each metric's values, and its standard error where there are several."""
  means: Values = {}
  for name, values in samples.items():
    means[name] = statistics.fmean(values)
    if len(values) > 1:
      deviation = statistics.stdev(values)
      means[f'{name}_stderr'] = deviation / math.sqrt(len(values))
  return means


def perplexity_of(scores: Sequence[score.Score], size: int) -> Values:
  """nll (nats per token), perplexity and bits_per_byte of answers that are `size` bytes of text."""
  logp = sum(s.logp for s in scores)
  tokens = sum(s.tokens for s in scores)
  nll = -logp / max(1, tokens)
  bits = -logp / math.log(2)
  return dict(
      nll=nll,
      perplexity=metrics.perplexity(nll),
      bits_per_byte=bits / max(1, size),
  )


def _perplexity(
    subject: Subject,
    task: Task,
    questions: list[Question],
) -> Evaluated:
  texts = [question.answers[0] for question in questions]
  scores = subject.scorer.score_text(texts)
  tokens = sum(s.tokens for s in scores)
  if not tokens:
    raise DataError(f'task {task.name}: none of its texts has a token, so they have no perplexity.')
  size = sum(len(text.encode()) for text in texts)
  values = perplexity_of(scores, size)
  values.update(tokens=tokens, items=len(texts))
  return values, []


def _choice(
    subject: Subject,
    task: Task,
    questions: list[Question],
) -> Evaluated:
  """accuracy: the likeliest choice is right; accuracy_norm: the likeliest per character of the choice."""
  choices = [question.choices for question in questions]
  scores_of = subject.scorer.score_choices(choices)
  plain = []
  normalised = []
  cut = 0
  for question, scores in zip(questions, scores_of):
    logps = []
    per_character = []
    for s, length in zip(scores, question.lengths):
      characters = max(1, length)
      logps.append(s.logp)
      per_character.append(s.logp / characters)
    plain.append(_is_best(question.right, logps))
    normalised.append(_is_best(question.right, per_character))
    cut += any(s.cut for s in scores)
  samples = dict(accuracy=plain, accuracy_norm=normalised)
  values = _means(samples)
  values.update(items=len(questions), cut=cut)
  return values, []


def _is_best(right: int, values: Sequence[float]) -> float:
  """1.0 if the value at index `right` is the first of the largest, else 0.0. NaN is the smallest, and never right."""
  known = [-math.inf if math.isnan(value) else value for value in values]
  if known[right] == -math.inf:
    return 0.0
  best = known.index(max(known))
  return float(best == right)


def _cloze(
    subject: Subject,
    task: Task,
    questions: list[Question],
) -> Evaluated:
  first = [question.first for question in questions]
  scores = subject.scorer.score(first)
  size = 0
  for question in questions:
    _, answer, after = question.first
    text = answer + after
    size += len(text.encode())
  greedy = [float(s.greedy) for s in scores]
  cut = sum(s.cut > 0 for s in scores)
  values = _means(dict(accuracy=greedy))
  values.update(perplexity_of(scores, size))
  values.update(items=len(questions), cut=cut)
  return values, []


def _generate(
    subject: Subject,
    task: Task,
    questions: list[Question],
) -> Evaluated:
  notes = []
  if subject.scorer.asker.style.fills:
    notes.append(FILLS)
    texts = _filled_in(subject, questions)
  else:
    texts = _generated(subject, task, questions)
  references = [question.references for question in questions]
  cleaned = [_cleaned(text, task.until) for text in texts]
  judged, more_notes = answers.judge(task.metrics, cleaned, references)
  values = _averaged(judged)
  values['items'] = len(questions)
  return values, notes + more_notes


def _generated(subject: Subject, task: Task, questions: list[Question]) -> list[str]:
  """What a model says behind the texts before answers."""
  asker = subject.scorer.asker
  prompts = []
  for question in questions:
    before, _, after = question.first
    prompts.append(asker.prompt(before, after, task.tokens))
  return subject.generate(prompts, task.tokens, task.until)


def _cleaned(text: str, until: Sequence[str]) -> str:
  """An answer without sentinels, up to the first of the texts `until`."""
  without_sentinel = text.replace(SENTINEL, '')
  return ended(without_sentinel, until).strip()


def _averaged(judged: answers.Judged) -> Values:
  """Means of the metrics that have a value for each answer, then those that have one for all."""
  samples = {}
  of_all = {}
  for metric, value in judged.items():
    if isinstance(value, list):
      samples[metric] = value
    else:
      of_all[metric] = value
  values = _means(samples)
  values.update(of_all)
  return values


def _filled_in(subject: Subject, questions: list[Question]) -> list[str]:
  """What a masked language model says in place of answers."""
  asker = subject.scorer.asker
  rows = []
  masked_of_rows = []
  for question in questions:
    ids, masked = asker.blank(*question.first)
    rows.append(ids)
    masked_of_rows.append(masked)
  filled = subject.fill(rows)
  texts = []
  for ids, masked in zip(filled, masked_of_rows):
    answer = [ids[position] for position in masked]
    texts.append(subject.vocabulary.decode(answer))
  return texts


EVALUATORS: dict[str, Callable[[Subject, Task, list[Question]], Evaluated]] = dict(
    perplexity=_perplexity,
    choice=_choice,
    cloze=_cloze,
    generate=_generate,
)


def chosen(names: Sequence[str]) -> list[Task]:
  """Tasks of names and paths; all that are built in when there are none. ConfigError for an unknown one."""
  names = names or task_lib.built_in()
  tasks = [task_lib.find(name) for name in names]
  task_names = set()
  for task in tasks:
    if task.name in task_names:
      raise ConfigError(f'task {task.name!r} is named twice. Rename one of the files.')
    task_names.add(task.name)
  return tasks
