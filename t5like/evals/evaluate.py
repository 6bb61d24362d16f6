"""Tasks on a model: what `main.py evaluate` and a training run's `evaluate.tasks` compute."""
import dataclasses
import functools
import math
import statistics
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax

from t5like import sharding
from t5like.config import task_files as task_lib
from t5like.config.task_files import Task
from t5like.config_type import Config
from t5like.decoding import decode
from t5like.errors import ConfigError, DataError, Failure
from t5like.evals import answers, ask, items, score
from t5like.evals.items import Question
from t5like.model import transformer
from t5like.model.transformer import Model
from t5like.objectives import lengths
from t5like.observe import metrics
from t5like.vocabulary.kinds import Vocabulary

TOKENS_AT_ONCE = 4096  # of prompts and answers that are decoded together, per piece of the batch
SENTINEL = '<extra_id_0>'
FILLS = 'a masked language model fills in as many tokens as the reference has'

Ids = list[int]
Values = dict[str, float]  # {metric: value}
Results = dict[str, Values]  # by task
Evaluated = tuple[Values, list[str]]  # and notes for people
Job = Callable[[], tuple[Results, list[str]]]
Say = Callable[[str], None]


@dataclasses.dataclass
class Subject:
  """What is evaluated.

  Attributes:
    model: a `t5like.model.transformer` model.
    params: nested dict of arrays on `mesh`.
    vocabulary: of the model.
    config: of its run.
    mesh: that the parameters lie on.
    tick: called after each batch.
    scorer: of the same.
  """
  model: Model
  params: Any
  vocabulary: Vocabulary
  config: Config
  mesh: jax.sharding.Mesh
  tick: Callable[[], None] = score.no_tick
  scorer: score.Scorer = dataclasses.field(init=False)

  def __post_init__(self) -> None:
    self.scorer = score.Scorer(self.model, self.params, self.vocabulary, self.config, self.mesh, self.tick)

  def generate(
      self,
      prompts: Sequence[Ids],
      tokens: int,
      until: Sequence[str] = (),
      style: str | None = None,
      context: int = 0,
  ) -> list[str]:
    """The likeliest answers to prompts, greedily, decoded in batches of few shapes.

    Args:
      prompts: lists of ids.
      tokens: of each answer, at most.
      until: texts of which one in each answer of a batch ends that batch; what follows them may be there or not.
      style: how prompts are taken, see `decode.stream`; as in training by default.
      context: the longest row; that of training by default.

    Returns:
      A text for each prompt.
    """
    context = context or self.config.data.seq_len
    options: dict[str, Any] = dict(
        style=style or decode.style_of(self.config),
        targets=lengths.shapes(self.config).targets,
        context=context,
        tokens=tokens,
        temperature=0.0)
    widths = [ask.width(len(prompt) + 2, context) for prompt in prompts]
    model, params, mesh = self._for_decoding()
    texts_of = [''] * len(prompts)
    for numbers in _batches(widths, tokens, sharding.batch_shards(mesh)):
      rows = [prompts[number] for number in numbers]
      texts: list[str] = []
      with jax.set_mesh(mesh):
        for texts in decode.stream(model, params, self.vocabulary, rows, **options):
          if all(ended(text, until) != text for text in texts):
            break
      self.tick()
      for number, text in zip(numbers, texts):
        texts_of[number] = text
    return texts_of

  def fill(self, rows: Sequence[Ids]) -> list[Ids]:
    """Lists of ids whose masks are filled in."""
    model, params, mesh = self._for_decoding()
    is_framed = self.scorer.asker.style.framed
    filled: list[Ids] = []
    for start in range(0, len(rows), score.ROWS):
      with jax.set_mesh(mesh):
        filled += decode.fill(model, params, self.vocabulary, rows[start:start + score.ROWS], is_framed)
      self.tick()
    return filled

  def _for_decoding(self) -> tuple[Any, Any, jax.sharding.Mesh]:
    """(model, params, mesh): tokens come one by one, so no axis can cut a row."""
    mesh = sharding.without_context(self.mesh)
    if mesh is self.mesh:
      return self.model, self.params, mesh
    with jax.set_mesh(mesh):
      model = _built(self.model.config, mesh)
      abstract = sharding.abstract(lambda: model.init(jax.random.key(0)), mesh)
      params = jax.tree.map(lambda x, like: jax.device_put(x, like.sharding), self.params, abstract)
      return model, params, mesh


def _batches(widths: Sequence[int], tokens: int, shards: int) -> Iterable[list[int]]:
  """Numbers of prompts that are decoded together: those of one width, the smallest first.

  Args:
    widths: of each prompt.
    tokens: of an answer.
    shards: pieces that the mesh cuts batches into.
  """
  members: dict[int, list[int]] = {}
  for number, width in enumerate(widths):
    members.setdefault(width, []).append(number)
  for width, numbers in sorted(members.items()):
    rows = max(1, min(score.ROWS, TOKENS_AT_ONCE // (width + tokens)))
    size = rows * shards
    for start in range(0, len(numbers), size):
      yield numbers[start:start + size]


@functools.lru_cache(4)
def _built(config: transformer.ModelConfig, mesh: jax.sharding.Mesh) -> Any:
  """The same model each time, as programs are compiled anew for another."""
  return transformer.build(config)


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


def read(tasks: Iterable[Task], shots: int = -1, limit: int = 0) -> dict[Task, list[Question] | Failure]:
  """{Task: its [Question], or the Failure with which reading them ended}; `shots`, `limit`: see `items.questions`."""
  check(shots, limit)
  questions_of: dict[Task, list[Question] | Failure] = {}
  for task in tasks:
    try:
      questions_of[task] = items.questions(task, shots, limit)
    except Failure as error:
      questions_of[task] = error
  return questions_of


def jobs(subject: Subject, questions_of: Mapping[Task, list[Question] | Failure]) -> dict[str, Job]:
  """{task's name: a function that returns ({name: {metric: value}}, notes)} of what `read` returned."""
  job_of = {}
  for task, questions in questions_of.items():
    job_of[task.name] = functools.partial(_answered, subject, task, questions)
  return job_of


def _answered(subject: Subject, task: Task, questions: list[Question] | Failure) -> tuple[Results, list[str]]:
  if isinstance(questions, Failure):
    raise questions
  values, notes = EVALUATORS[task.kind](subject, task, questions)
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


def evaluate(subject: Subject, tasks: Iterable[Task], shots: int = -1, limit: int = 0, say: Say = ignore) -> Results:
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
  results, errors = attempt(jobs(subject, read(tasks, shots, limit)), say)
  return finished(results, errors)


def describe(values: Values) -> str:
  """The numbers of a task, for people."""
  shown = []
  for key, value in values.items():
    is_stderr = key.endswith('_stderr')
    nothing_cut = key == 'cut' and not value
    if not is_stderr and not nothing_cut:
      shown.append(f'{key} {_number(value, values.get(f"{key}_stderr"))}')
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
      means[f'{name}_stderr'] = statistics.stdev(values) / math.sqrt(len(values))
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


def _perplexity(subject: Subject, task: Task, questions: list[Question]) -> Evaluated:
  texts = [question.answers[0] for question in questions]
  scores = subject.scorer.score_text(texts)
  tokens = sum(s.tokens for s in scores)
  if not tokens:
    raise DataError(f'task {task.name}: none of its texts has a token, so they have no perplexity.')
  size = sum(len(text.encode()) for text in texts)
  values = perplexity_of(scores, size)
  values.update(tokens=tokens, items=len(texts))
  return values, []


def _choice(subject: Subject, task: Task, questions: list[Question]) -> Evaluated:
  """accuracy: the likeliest choice is right; accuracy_norm: the likeliest per character of the choice."""
  scores_of = subject.scorer.score_choices([question.choices for question in questions])
  plain = []
  normalised = []
  cut = 0
  for question, scores in zip(questions, scores_of):
    logps = []
    per_character = []
    for s, length in zip(scores, question.lengths):
      logps.append(s.logp)
      per_character.append(s.logp / max(1, length))
    plain.append(_is_best(question.right, logps))
    normalised.append(_is_best(question.right, per_character))
    cut += any(s.cut for s in scores)
  values = _means(dict(accuracy=plain, accuracy_norm=normalised))
  values.update(items=len(questions), cut=cut)
  return values, []


def _is_best(right: int, values: Sequence[float]) -> float:
  """1.0 if the value at index `right` is the first of the largest, else 0.0. NaN is the smallest, and never right."""
  known = [-math.inf if math.isnan(value) else value for value in values]
  if known[right] == -math.inf:
    return 0.0
  return float(known.index(max(known)) == right)


def _cloze(subject: Subject, task: Task, questions: list[Question]) -> Evaluated:
  scores = subject.scorer.score([question.first for question in questions])
  size = 0
  for question in questions:
    _, answer, after = question.first
    text = answer + after
    size += len(text.encode())
  greedy = [float(s.greedy) for s in scores]
  values = _means(dict(accuracy=greedy))
  values.update(perplexity_of(scores, size))
  values.update(items=len(questions), cut=sum(s.cut > 0 for s in scores))
  return values, []


def _generate(subject: Subject, task: Task, questions: list[Question]) -> Evaluated:
  notes = []
  if subject.scorer.asker.style.fills:
    notes.append(FILLS)
    texts = _filled_in(subject, questions)
  else:
    prompts = []
    for question in questions:
      before, _, after = question.first
      prompts.append(subject.scorer.asker.prompt(before, after, task.tokens))
    texts = subject.generate(prompts, task.tokens, task.until)
  texts = [ended(text.replace(SENTINEL, ''), task.until).strip() for text in texts]
  judged, more_notes = answers.judge(task.metrics, texts, [question.references for question in questions])
  samples = {metric: values for metric, values in judged.items() if isinstance(values, list)}
  values = _means(samples)
  for metric, value in judged.items():
    if not isinstance(value, list):
      values[metric] = value
  values['items'] = len(questions)
  return values, notes + more_notes


def _filled_in(subject: Subject, questions: list[Question]) -> list[str]:
  """What a masked language model says in place of answers."""
  blanks = [subject.scorer.asker.blank(*question.first) for question in questions]
  filled = subject.fill([ids for ids, _ in blanks])
  texts = []
  for ids, (_, masked) in zip(filled, blanks):
    texts.append(subject.vocabulary.decode([ids[position] for position in masked]))
  return texts


def ended(text: str, until: Iterable[str]) -> str:
  """A text up to the first of the texts `until`."""
  end = len(text)
  for stop in until:
    position = text.find(stop)
    if stop and position >= 0:
      end = min(end, position)
  return text[:end]


EVALUATORS: dict[str, Callable[[Subject, Task, list[Question]], Evaluated]] = dict(
    perplexity=_perplexity,
    choice=_choice,
    cloze=_cloze,
    generate=_generate,
)


def chosen(names: Sequence[str]) -> list[Task]:
  """Tasks of names and paths; all that are built in when there are none. ConfigError for an unknown one."""
  tasks = [task_lib.find(name) for name in names or task_lib.built_in()]
  task_names = set()
  for task in tasks:
    if task.name in task_names:
      raise ConfigError(f'task {task.name!r} is named twice. Rename one of the files.')
    task_names.add(task.name)
  return tasks
