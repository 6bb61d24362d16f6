"""EleutherAI's lm-evaluation-harness on our models: its tasks, our log-likelihoods and text.

    python main.py evaluate --workdir=runs/decoder_tiny --tasks=harness:lambada_openai

Its tasks fetch their data as they see fit; those of --harness_path, a folder of task files, may lie on disk.

Causal decoders are asked exactly as the harness's own backend for transformers asks an exported model
(lm_eval/models/huggingface.py; encoder-decoders of objective seq2seq by the same texts, not yet compared), so that
numbers under its names can be compared with published ones: texts are cut where the number of tokens of the context
says, whole texts into windows that do not overlap, and what is too long loses tokens on its left, the beginning-of-text
token first. For models of other objectives the harness has no way of its own, and they are asked as ask.py says.
"""
import collections
import functools
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from t5like import choices
from t5like.config_type import Config
from t5like.errors import ConfigError, DataError
from t5like.evals import evaluate as evals
from t5like.evals.ask import Asker
from t5like.evals.manners import Ids, Row
from t5like.evals.score import Score
from t5like.nearest import suggestion

# Names of one limit, of which the first counts.
TOKENS = ('max_gen_toks', 'max_new_tokens', 'max_tokens', 'max_completion_tokens')
USUAL_TOKENS = 256
# What else a task may ask of text that is greedy: without effect, or refused unless it has this value.
WITHOUT_EFFECT = ('until', 'do_sample', 'temperature', 'top_k', 'top_p', 'min_p', 'seed', *TOKENS)
NEUTRAL = dict(
    num_beams=1,
    repetition_penalty=1.0,
    num_return_sequences=1,
    no_repeat_ngram_size=0,
    length_penalty=1.0,
)
MARKS = re.compile(r'<extra_id_\d+>')
STREAM = 'stream'  # the style in which prompts are only their ids

TextsAndCuts = tuple[list[str], list[int]]  # and how many tokens each prompt lost
Request = Any  # an lm_eval.api.instance.Instance, which is only imported where a task of the harness is evaluated


class Continuing:
  """How the harness's backend asks a decoder: a text is what its tokenizer makes of it, BOS included if it puts one.

  Attributes:
    room: the longest row, in tokens.
    begin: ids that every text begins with.
    end: ids that every text ends with.
    makes_text: whether its generated text is compared.
  """
  makes_text = True

  def __init__(self, asker: Asker, config: Config):
    self.vocabulary = asker.vocabulary
    self.room: int = config.data.seq_len
    if choices.POSITIONS[config.model.position].learned:
      self.room = config.model.max_positions  # as an exported config.json says
    self.begin: Ids = []
    if asker.style.begins and self.vocabulary.bos_id is not None:
      self.begin = [self.vocabulary.bos_id]
    self.end: Ids = list(self.vocabulary.after)  # some tokenizers end texts too

  @property
  def prefix(self) -> Ids:
    """What stands before a text that nothing stands before."""
    if self.begin:
      return self.begin
    if self.vocabulary.begin_id is None:
      raise ConfigError('this model knows no beginning of documents (vocabulary.specials=False), so the harness cannot '
                        'ask it for the first token of a text.')
    return [self.vocabulary.begin_id]

  def encode(self, text: str) -> Ids:
    """The ids of a text, with those that begin and end all texts."""
    return [*self.begin, *self.vocabulary.encode(text), *self.end]

  def pair(self, context: str, continuation: str) -> tuple[Ids, Ids]:
    """(ids of the context, ids of the continuation), cut as the harness does."""
    if not context:
      ids = self.vocabulary.encode(continuation)
      return self.prefix, list(ids)
    stripped = context.rstrip()
    spaces = context[len(stripped):]
    return self._apart(stripped, spaces + continuation)

  def _apart(self, context: str, continuation: str) -> tuple[Ids, Ids]:
    context_ids = self.encode(context)
    whole = self.encode(context + continuation)
    continuation_ids = whole[len(context_ids):]
    return context_ids or self.prefix, continuation_ids

  def row(self, context: Ids, continuation: Ids) -> Row:
    """The row that asks for the continuation."""
    ids = [*context, *continuation]
    cut = max(0, len(ids) - self.room - 1)
    inputs = ids[cut:-1]
    end = len(inputs)
    start = end - len(continuation)
    return Row(
        inputs=inputs,
        predict=list(range(start, end)),
        targets=continuation,
        cut=cut,
    )


class Answering(Continuing):
  """How it asks an encoder-decoder: the context in the encoder, the continuation as targets.

  Its generated text is not compared: the backend lets it be as long as the longest prompt of a batch and the limit
  together, so that it depends on the prompts beside it.
  """
  makes_text = False

  def __init__(self, asker: Asker, config: Config):
    super().__init__(asker, config)
    self.room = config.data.seq_len
    self.begin = []
    self.end = asker.ends

  def _apart(self, context: str, continuation: str) -> tuple[Ids, Ids]:
    context_ids = self.encode(context)
    continuation_ids = self.vocabulary.encode(continuation)
    return context_ids, list(continuation_ids)

  def row(self, context: Ids, continuation: Ids) -> Row:
    inputs: Any = [self.vocabulary.start_id, *continuation[:-1]]
    cut = max(0, len(context) - self.room)
    return Row(
        inputs=inputs,
        predict=list(range(len(inputs))),
        targets=continuation,
        encoder=context[-self.room:],
        cut=cut,
    )


def way_of(subject: evals.Subject) -> Continuing | None:
  """How the harness itself would ask an exported model; None for models that it has no way to ask."""
  asker = subject.scorer.asker
  if asker.style.slides:
    return Continuing(asker, subject.config)
  if asker.style.in_encoder and asker.is_given:
    return Answering(asker, subject.config)
  return None


def _texts(request: Request, count: int) -> tuple[str, ...]:
  """The first arguments of a request, texts that can be encoded."""
  texts = request.args[:count]
  for text in texts:
    try:
      text.encode()
    except UnicodeEncodeError as error:
      raise DataError(f'{_name(request)}: a text holds {text[error.start]!r}, half of a surrogate pair, which is no '
                      'character.') from error
  return texts


def _text(request: Request) -> str:
  """The first argument of a request."""
  (text,) = _texts(request, 1)
  return text


def _name(request: Request) -> str:
  task = getattr(request, 'task_name', None) or 'request'
  return f'harness:{task}'


def pair_row(way: Continuing, request: Request) -> Row:
  """The row of a request for the log-likelihood of a continuation."""
  context, continuation = _texts(request, 2)
  context_ids, continuation_ids = way.pair(context, continuation)
  if not continuation_ids:
    raise DataError(f'{_name(request)}: the continuation {continuation!r} after {context[-40:]!r} has no tokens where '
                    'the harness cuts texts, for its first piece begins in the context. The harness fails there too; a '
                    'task of our own (docs/evaluate.md) has an answer.')
  if len(continuation_ids) > way.room:
    raise DataError(f'{_name(request)}: a continuation of {len(continuation_ids):,} tokens is longer than the '
                    f'{way.room:,} that this model reads, which the harness does not allow.')
  return way.row(context_ids, continuation_ids)


def window_rows(way: Continuing, request: Request) -> list[Row]:
  """The rows of a request for the log-likelihood of a whole text."""
  from lm_eval import utils
  ids = way.encode(_text(request))
  windows = utils.get_rolling_token_windows(
      ids,
      way.prefix[0],
      way.room,
      1,
  )
  rows = []
  for window in windows:
    context, continuation = utils.make_disjoint_window(window)
    rows.append(way.row(context, continuation))
  return rows


def greedy_limits(request: Request) -> tuple[int, tuple[str, ...]]:
  """(tokens, until) of a request for text. ConfigError unless it is plain greedy text that is asked for."""
  options = dict(request.args[1])
  if _is_sampled(options):
    raise ConfigError(f'--tasks={_name(request)}: asks for sampled text, and only greedy text is compared here. Set '
                      'do_sample: false in its generation_kwargs.')
  for key, value in options.items():
    if not _is_greedy(key, value):
      raise ConfigError(f'--tasks={_name(request)}: its generation_kwargs have {key}={value!r}, and only greedy text '
                        f'is made here. Take {key} out.')
  tokens = _most_tokens(options)
  if tokens < 1:
    raise ConfigError(f'--tasks={_name(request)}: asks for {tokens} tokens; that must be at least 1.')
  until = options.get('until') or []
  if isinstance(until, str):
    until = [until]
  return tokens, tuple(until)


def _is_sampled(options: dict[str, Any]) -> bool:
  """Whether generation_kwargs ask for text that is not greedy."""
  temperature = float(options.get('temperature') or 0.0)
  if not options.get('do_sample', temperature > 0):
    return False
  return temperature > 0 or 'temperature' not in options


def _is_greedy(key: str, value: Any) -> bool:
  """Whether an option leaves greedy text as it is."""
  if key in WITHOUT_EFFECT:
    return True
  return key in NEUTRAL and value == NEUTRAL[key]


def _most_tokens(options: dict[str, Any]) -> int:
  for key in TOKENS:
    if options.get(key) is not None:
      return int(options[key])
  return USUAL_TOKENS


class TextMaker:
  """Greedy text for requests of a model: as the harness's backend has it where it can, else as our own tasks."""

  def __init__(
      self,
      subject: evals.Subject,
      say: Callable[[str], Any],
  ):
    """`say`: called with a line where a request asks for more tokens than a row has."""
    self.subject = subject
    self.say = say
    self.asker = subject.scorer.asker
    self.way = way_of(subject)

  def texts(self, requests: Sequence[Request]) -> TextsAndCuts:
    """(texts, tokens that were cut off each prompt)."""
    texts = [''] * len(requests)
    cuts = [0] * len(requests)
    groups = collections.defaultdict(list)
    for number, request in enumerate(requests):
      _text(request)
      limits = greedy_limits(request)
      groups[limits].append(number)
    for (tokens, until), members in groups.items():
      prompts = [_text(requests[number]) for number in members]
      group_texts, group_cuts = self._group(prompts, tokens, until)
      for number, text, cut in zip(members, group_texts, group_cuts):
        without_marks = MARKS.sub('', text)
        texts[number] = evals.ended(without_marks, until)
        cuts[number] = cut
    return texts, cuts

  def _group(
      self,
      prompts: list[str],
      tokens: int,
      until: tuple[str, ...],
  ) -> TextsAndCuts:
    """(texts, tokens cut off) of prompts that share their limits."""
    way = self.way
    if way is None or not way.makes_text:
      return self._as_ours(prompts, tokens, until)
    if tokens >= way.room:
      self.say(f'{tokens:,} tokens of text are asked for and this model reads {way.room:,}, which the harness does not '
               f'allow; here they are at most {way.room // 2:,}.')
      return self._as_ours(prompts, way.room // 2, until)
    most = way.room - tokens
    rows = []
    cuts = []
    for prompt in prompts:
      ids = way.encode(prompt) or way.prefix
      rows.append(ids[-most:])
      cuts.append(max(0, len(ids) - most))
    ends = tuple(way.vocabulary.pieces(self.asker.ends))
    texts = self.subject.generate(
        rows,
        tokens,
        until=(*until, *ends),
        style=STREAM,
        context=way.room,
    )
    return [evals.ended(text, ends) for text in texts], cuts

  def _as_ours(
      self,
      prompts: list[str],
      tokens: int,
      until: tuple[str, ...],
  ) -> TextsAndCuts:
    rows = [self.asker.prompt(prompt, '', tokens) for prompt in prompts]
    cuts = map(self.asker.cut_of_prompt, prompts, rows)
    texts = self.subject.generate(rows, tokens, until)
    return texts, list(cuts)


def language_model(
    subject: evals.Subject,
    say: Callable[[str], Any] = evals.ignore,
) -> Any:
  """An lm_eval.api.model.LM that asks a subject.

  Its `cut` is {task: the set of the documents that lost the beginning of a prompt}.
  """
  from lm_eval.api.model import LM
  scorer = subject.scorer
  way = way_of(subject)
  maker = TextMaker(subject, say)

  def rows_of_pair(request: Request) -> list[Row]:
    if way is not None:
      return [pair_row(way, request)]
    context, continuation = _texts(request, 2)
    return scorer.asker.rows(context, continuation)

  class SubjectModel(LM):
    """The subject, as the harness sees it."""

    def __init__(self) -> None:
      super().__init__()
      self.cut: dict[str | None, set[int | None]] = collections.defaultdict(set)

    def _note(self, requests: Iterable[Request], cuts: Iterable[int]) -> None:
      for request, cut in zip(requests, cuts):
        if cut:
          task = getattr(request, 'task_name', None)
          document = getattr(request, 'doc_id', None)
          self.cut[task].add(document)

    def loglikelihood(self, requests: list[Request], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
      """(log-likelihood of the continuation, whether it is greedy) of requests (context, continuation)."""
      rows = list(map(rows_of_pair, requests))
      scores = scorer.score_rows(rows)
      self._note(requests, [score.cut for score in scores])
      return [(score.logp, score.greedy) for score in scores]

    def loglikelihood_rolling(self, requests: list[Request], disable_tqdm: bool = False) -> list[float]:
      """Log-likelihoods of whole texts."""
      scores: list[Score]
      if way is None:
        texts = list(map(_text, requests))
        scores = scorer.score_text(texts)
      else:
        rows = [window_rows(way, request) for request in requests]
        scores = scorer.score_rows(rows)
      return [score.logp for score in scores]

    def generate_until(self, requests: list[Request], disable_tqdm: bool = False) -> list[str]:
      """Greedy texts, each up to the first of its `until`."""
      texts, cuts = maker.texts(requests)
      self._note(requests, cuts)
      return texts

  return SubjectModel()


@functools.lru_cache(4)
def _manager(path: str | None) -> Any:
  from lm_eval.tasks import TaskManager
  return TaskManager(include_path=path)


def check(names: Iterable[str], path: str | None = None) -> None:
  """Refuses tasks that the harness does not have, those in the folder `path` included. ConfigError."""
  try:
    import lm_eval  # noqa: F401 (is it there?)
  except ImportError as error:
    raise ConfigError("--tasks=harness:.. needs the package lm_eval; run: pip install -e '.[eval]'") from error
  known = set(_manager(path).all_tasks)
  for name in names:
    if name not in known:
      meant = suggestion(name, known, 'Did you mean harness:{}? ')
      raise ConfigError(f'--tasks=harness:{name}: the harness has no such task. {meant}--harness_path adds a folder of '
                        'task files.')


def jobs(
    subject: evals.Subject,
    names: Iterable[str],
    path: str | None = None,
    shots: int = -1,
    limit: int = 0,
) -> dict[str, evals.Job]:
  """{'harness:TASK': function that returns ({'harness:TASK': {metric: value}}, notes)}, see `evaluate.attempt`."""
  check(names, path)
  job_of = {}
  for name in names:
    job_of[f'harness:{name}'] = functools.partial(
        _run,
        subject,
        name,
        path,
        shots,
        limit,
    )
  return job_of


def _run(
    subject: evals.Subject,
    name: str,
    path: str | None,
    shots: int,
    limit: int,
) -> tuple[evals.Results, list[str]]:
  from lm_eval import evaluator
  notes: list[str] = []
  model = language_model(subject, notes.append)
  num_fewshot = None
  if shots >= 0:
    num_fewshot = shots
  results: Any = evaluator.simple_evaluate(
      model,
      tasks=[name],
      num_fewshot=num_fewshot,
      limit=limit or None,
      task_manager=_manager(path),
      bootstrap_iters=0,
      log_samples=False,
  )
  counts = results['n-samples']
  values_of = {}
  for task, values in results['results'].items():
    numbers = _numbers(values)
    if task in counts:
      numbers.update(
          items=counts[task]['effective'],
          cut=len(model.cut[task]),
      )
    values_of[f'harness:{task}'] = numbers
  return values_of, list(dict.fromkeys(notes))


def _numbers(values: dict[str, Any]) -> evals.Values:
  """The numbers of a task: {'acc': 0.5} of {'acc,none': 0.5}, a metric and a filter.

  What is no number is a name or a missing standard error.
  """
  numbers: evals.Values = {}
  for key, value in values.items():
    if isinstance(value, float):
      name = key.removesuffix(',none')
      numbers[name] = float(value)
  return numbers


def evaluate(
    subject: evals.Subject,
    names: Iterable[str],
    path: str | None = None,
    shots: int = -1,
    limit: int = 0,
    say: Callable[[str], Any] = evals.ignore,
) -> evals.Results:
  """{'harness:TASK': {metric: value}} of tasks of the harness, those in the folder `path` included.

  `cut` says how many documents lost the beginning of a prompt to the model's length.
  """
  harness_jobs = jobs(subject, names, path, shots, limit)
  results, errors = evals.attempt(harness_jobs, say)
  return evals.finished(results, errors)
