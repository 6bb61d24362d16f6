"""Tasks on a model: what `main.py evaluate` and a training run's `evaluate.tasks` compute."""
import dataclasses
import functools
import math
import re
import statistics
from typing import Any

import jax

from t5like import decode, lengths, sharding
from t5like.errors import ConfigError
from t5like.evals import answers, ask, items, score, task as task_lib
from t5like.model import transformer

TOKENS_AT_ONCE = 4096  # of prompts and answers that are decoded together, per piece of the batch


@dataclasses.dataclass
class Subject:
  """What is evaluated: a model with its parameters on a mesh, its vocabulary and its config."""
  model: Any
  params: Any
  vocabulary: Any
  config: Any
  mesh: Any
  tick: Any = lambda: None

  def __post_init__(self):
    self.scorer = score.Scorer(self.model, self.params, self.vocabulary, self.config, self.mesh, self.tick)

  def generate(self, prompts, tokens):
    """The likeliest answers to prompts (lists of ids), greedily, [text]; decoded in batches of few shapes."""
    style, targets = decode.style_of(self.config), lengths.shapes(self.config).targets
    width = lambda i: ask.width(len(prompts[i]) + 2, self.config.data.seq_len)
    order = sorted(range(len(prompts)), key=lambda i: (width(i), i))
    found, (model, params, mesh) = [''] * len(prompts), self._for_decoding()
    while order:
      most = max(1, min(score.ROWS, TOKENS_AT_ONCE // (width(order[0]) + tokens))) * sharding.batch_shards(mesh)
      some = [i for i in order[:most] if width(i) == width(order[0])]
      order = order[len(some):]
      with jax.set_mesh(mesh):
        texts = decode.generate(
            model, params, self.vocabulary, [prompts[i] for i in some], style=style, targets=targets,
            context=self.config.data.seq_len, tokens=tokens, temperature=0.0)
      self.tick()
      for i, text in zip(some, texts):
        found[i] = text
    return found

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


def evaluate(subject, tasks, shots=-1, limit=0, say=lambda _: None):
  """{task: {metric: value}} of Tasks; `say` hears of each. `shots` and `limit`: see `items.questions`.

  Every value is a mean over items, whose standard error is METRIC_stderr, but for perplexities, which are of all
  tokens, and bleu; `items` says how many there were, `cut` how many lost part of their question to the model's length.
  """
  found = {}
  for task in tasks:
    values, notes = EVALUATORS[task.kind](subject, task, items.questions(task, shots, limit))
    found[task.name] = values
    say(f'{task.name}: {describe(values)}')
    for note in notes:
      say(f'  {note}')
  return found


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
  return dict(nll=nll, perplexity=math.exp(min(nll, 700)), bits_per_byte=-logp / math.log(2) / max(1, size))


def _perplexity(subject, task, questions):
  texts = [question.answers[0] for question in questions]
  scores = subject.scorer.score_text(texts)
  tokens = sum(s.tokens for s in scores)
  values = perplexity_of(sum(s.logp for s in scores), tokens, sum(len(text.encode()) for text in texts))
  return dict(values, tokens=tokens, items=len(texts)), []


def _choice(subject, task, questions):
  """accuracy: the likeliest choice is right; accuracy_norm: the likeliest per character of the choice."""
  scores = iter(subject.scorer.score([one for q in questions for one in zip(q.before, q.answers, q.after)]))
  plain, norm, cut = [], [], 0
  for q in questions:
    got = [next(scores) for _ in q.answers]
    best = lambda values: float(max(range(len(got)), key=lambda i: values[i]) == q.right)
    plain.append(best([s.logp for s in got]))
    norm.append(best([s.logp / max(1, n) for s, n in zip(got, q.lengths)]))
    cut += any(s.cut for s in got)
  return dict(_means(accuracy=plain, accuracy_norm=norm), items=len(questions), cut=cut), []


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
    said = subject.generate([asker.prompt(q.before[0], q.after[0], task.tokens) for q in questions], task.tokens)
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
