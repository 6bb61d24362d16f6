"""Tasks on a model: what `main.py evaluate` and a training run's `evaluate.tasks` compute."""
import dataclasses
import functools
import math
import re
import statistics
import traceback
from collections.abc import Callable
from typing import Any

import jax

from t5like import sharding
from t5like.config import task_files as task_lib
from t5like.config_type import Config
from t5like.decoding import decode
from t5like.errors import ConfigError, DataError, Failure
from t5like.evals import answers, ask, items, score
from t5like.model import transformer
from t5like.objectives import lengths
from t5like.observe import metrics

TOKENS_AT_ONCE = 4096  # of prompts and answers that are decoded together, per piece of the batch


@dataclasses.dataclass
class Subject:
  """What is evaluated: a model with its parameters on a mesh, its vocabulary and its config."""
  model: Any
  params: Any
  vocabulary: Any
  config: Config
  mesh: Any
  tick: Any = lambda: None

  def __post_init__(self):
    self.scorer = score.Scorer(self.model, self.params, self.vocabulary, self.config, self.mesh, self.tick)

  def generate(self, prompts, tokens, until=(), style=None, context=0):
    """The likeliest answers to prompts, greedily, decoded in batches of few shapes.

    Args:
      prompts: lists of ids.
      tokens: of each answer, at most.
      until: texts of which one in each answer of a batch ends that batch; what follows them may be there or not.
      style: how prompts are taken, see `decode.stream`; as in training by default.
      context: the longest row; that of training by default.

    Returns:
      [text]
    """
    style = style or decode.style_of(self.config)
    context = context or self.config.data.seq_len
    targets = lengths.shapes(self.config).targets
    width = lambda i: ask.width(len(prompts[i]) + 2, context)
    order = sorted(range(len(prompts)), key=lambda i: (width(i), i))
    model, params, mesh = self._for_decoding()
    answered = [''] * len(prompts)
    while order:
      most = max(1, min(score.ROWS, TOKENS_AT_ONCE // (width(order[0]) + tokens))) * sharding.batch_shards(mesh)
      some = [i for i in order[:most] if width(i) == width(order[0])]
      order = order[len(some):]
      with jax.set_mesh(mesh):
        for texts in decode.stream(model, params, self.vocabulary, [prompts[i] for i in some], style=style,
                                   targets=targets, context=context, tokens=tokens, temperature=0.0):
          if all(ended(text, until) != text for text in texts):
            break
      self.tick()
      for i, text in zip(some, texts):
        answered[i] = text
    return answered

  def fill(self, rows):
    """Lists of ids whose masks are filled in."""
    (model, params, mesh), found, most = self._for_decoding(), [], score.ROWS
    for start in range(0, len(rows), most):
      with jax.set_mesh(mesh):
        found += decode.fill(model, params, self.vocabulary, rows[start:start + most],
                             decode.style_of(self.config) == 'fill_row')
      self.tick()
    return found

  def _for_decoding(self):
    """(model, params, mesh): tokens come one by one, so no axis can cut a row."""
    mesh = sharding.without_context(self.mesh)
    if mesh is self.mesh:
      return self.model, self.params, mesh
    with jax.set_mesh(mesh):
      model = _built(self.model.config, mesh)
      like = sharding.abstract(lambda: model.init(jax.random.key(0)), mesh)
      return model, jax.tree.map(lambda x, like: jax.device_put(x, like.sharding), self.params, like), mesh


@functools.lru_cache(4)
def _built(config, mesh):
  """The same model each time, for programs are compiled anew for another."""
  return transformer.build(config)


class TasksFailed(Failure):
  """Some of several tasks failed. errors: {task: exception}; results: {task: {metric: value}} of the others."""

  def __init__(self, errors: dict[str, Exception], results: dict[str, dict]):
    tried = len(errors) + len(results)
    super().__init__(f'{len(errors)} of {tried} tasks failed: ' + '; '.join(
        f'{name} ({in_words(error)})' for name, error in errors.items()))
    self.errors, self.results = errors, results
    self.exit_code = getattr(next(iter(errors.values())), 'exit_code', 1)


def in_words(error: Exception) -> str:
  return str(error) if isinstance(error, Failure) else f'{type(error).__name__}: {error}'


def check(shots: int, limit: int) -> None:
  """Refuses numbers that mean nothing: ConfigError."""
  if shots < -1:
    raise ConfigError(f'shots={shots} must be at least 0, or -1 for as many as each task says.')
  if limit < 0:
    raise ConfigError(f'limit={limit} must be at least 1, or 0 for all questions.')


def read(tasks, shots: int = -1, limit: int = 0) -> dict:
  """{Task: its [Question], or the Failure with which reading them ended}; `shots`, `limit`: see `items.questions`."""
  check(shots, limit)
  questions_of = {}
  for task in tasks:
    try:
      questions_of[task] = items.questions(task, shots, limit)
    except Failure as error:
      questions_of[task] = error
  return questions_of


def jobs(subject: Subject, questions_of: dict) -> dict[str, Callable]:
  """{task's name: a function that returns ({name: {metric: value}}, notes)} of what `read` returned."""
  return {task.name: functools.partial(_answered, subject, task, questions)
          for task, questions in questions_of.items()}


def _answered(subject, task, questions):
  if isinstance(questions, Failure):
    raise questions
  values, notes = EVALUATORS[task.kind](subject, task, questions)
  return {task.name: values}, notes


def attempt(jobs: dict[str, Callable], say=lambda _: None, done=lambda results: None) -> tuple[dict, dict]:
  """Runs jobs one after the other, whether others fail or not.

  Args:
    jobs: as `jobs` makes them.
    say: called with lines for people.
    done: called with the {task: {metric: value}} of each job once it is finished.

  Returns:
    {task: {metric: value}} of all that succeeded and {job: exception} of the others.
  """
  results, errors = {}, {}
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


def finished(results: dict, errors: dict) -> dict:
  """The results of `attempt`; its error if a single job was all there was, TasksFailed if some of several failed."""
  if not errors:
    return results
  first = next(iter(errors.values()))
  raise first if len(errors) == 1 and not results else TasksFailed(errors, results) from first


def evaluate(subject, tasks, shots=-1, limit=0, say=lambda _: None):
  """{task: {metric: value}} of Tasks; `say` hears of each. `shots` and `limit`: see `items.questions`.

  Every value is a mean over items, whose standard error is METRIC_stderr, but for perplexities, which are of all
  tokens, and bleu; `items` says how many there were, `cut` how many lost part of their question to the model's length.
  A task that fails does not keep the others from being asked; then see `finished`.
  """
  return finished(*attempt(jobs(subject, read(tasks, shots, limit)), say))


def describe(values):
  """The numbers of a task, for people."""
  shown = []
  for key, value in values.items():
    if key.endswith('_stderr') or key == 'cut' and not value:
      continue
    error = values.get(f'{key}_stderr')
    shown.append(f'{key} {value:,}' if isinstance(value, int) else
                 f'{key} {value:.4g}' + (f' ± {error:.2g}' if error else ''))
  return ', '.join(shown)


def _means(**samples):
  found = {}
  for name, values in samples.items():
    found[name] = statistics.fmean(values)
    if len(values) > 1:
      found[f'{name}_stderr'] = statistics.stdev(values) / math.sqrt(len(values))
  return found


def perplexity_of(logp, tokens, size):
  """nll (nats per token), perplexity and bits_per_byte of `tokens` tokens that stand for `size` bytes of text."""
  nll = -logp / max(1, tokens)
  return dict(nll=nll, perplexity=metrics.perplexity(nll), bits_per_byte=-logp / math.log(2) / max(1, size))


def _perplexity(subject, task, questions):
  texts = [question.answers[0] for question in questions]
  scores = subject.scorer.score_text(texts)
  tokens = sum(s.tokens for s in scores)
  if not tokens:
    raise DataError(f'task {task.name}: none of its texts has a token, so they have no perplexity.')
  values = perplexity_of(sum(s.logp for s in scores), tokens, sum(len(text.encode()) for text in texts))
  return dict(values, tokens=tokens, items=len(texts)), []


def _choice(subject, task, questions):
  """accuracy: the likeliest choice is right; accuracy_norm: the likeliest per character of the choice."""
  scores = subject.scorer.score_choices([list(zip(q.before, q.answers, q.after)) for q in questions])
  plain, norm, cut = [], [], 0
  for q, got in zip(questions, scores):
    plain.append(_is_best(q.right, [s.logp for s in got]))
    norm.append(_is_best(q.right, [s.logp / max(1, n) for s, n in zip(got, q.lengths)]))
    cut += any(s.cut for s in got)
  return dict(_means(accuracy=plain, accuracy_norm=norm), items=len(questions), cut=cut), []


def _is_best(right, values):
  """1.0 if the value at index `right` is the first of the largest, else 0.0. NaN is the smallest, and never right."""
  known = [-math.inf if math.isnan(value) else value for value in values]
  return float(known[right] > -math.inf and known.index(max(known)) == right)


def _cloze(subject, task, questions):
  scores = subject.scorer.score([(q.before[0], q.answers[0], q.after[0]) for q in questions])
  logp, tokens = sum(s.logp for s in scores), sum(s.tokens for s in scores)
  size = sum(len((q.answers[0] + q.after[0]).encode()) for q in questions)
  return dict(_means(accuracy=[float(s.greedy) for s in scores]), **perplexity_of(logp, tokens, size),
              items=len(questions), cut=sum(s.cut > 0 for s in scores)), []


def _generate(subject, task, questions):
  asker, notes = subject.scorer.asker, []
  if asker.manner in ('fill', 'fill_row'):
    notes.append('a masked language model fills in as many tokens as the reference has')
    blanks = [asker.blank(q.before[0], q.answers[0], q.after[0]) for q in questions]
    filled = subject.fill([ids for ids, _ in blanks])
    said = [subject.vocabulary.decode([ids[t] for t in at]) for ids, (_, at) in zip(filled, blanks)]
  else:
    said = subject.generate([asker.prompt(q.before[0], q.after[0], task.tokens) for q in questions], task.tokens,
                            task.until)
  said = [ended(re.sub('<extra_id_0>', '', text), task.until).strip() for text in said]
  values, more = answers.judge(task.metrics, said, [q.references for q in questions])
  samples = {k: v for k, v in values.items() if isinstance(v, list)}
  whole = {k: v for k, v in values.items() if not isinstance(v, list)}
  return dict(_means(**samples), **whole, items=len(questions)), notes + more


def ended(text, until):
  """A text up to the first of the texts `until`."""
  return text[:min((at for stop in until if stop and (at := text.find(stop)) >= 0), default=len(text))]


EVALUATORS = dict(perplexity=_perplexity, choice=_choice, cloze=_cloze, generate=_generate)


def chosen(names):
  """[Task] of names and paths; all that are built in when there are none. ConfigError for an unknown one."""
  tasks = [task_lib.find(name) for name in names or task_lib.built_in()]
  twice = [task.name for i, task in enumerate(tasks) if task.name in [other.name for other in tasks[:i]]]
  if twice:
    raise ConfigError(f'task {twice[0]!r} is named twice. Rename one of the files.')
  return tasks
