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

from t5like import choices
from t5like.errors import ConfigError, DataError
from t5like.evals import ask
from t5like.evals.evaluate import attempt, ended, finished
from t5like.nearest import suggestion

# Names of one limit, of which the first counts.
TOKENS = ('max_gen_toks', 'max_new_tokens', 'max_tokens', 'max_completion_tokens')
USUAL_TOKENS = 256
# What else a task may ask of text that is greedy: without effect, or refused unless it has this value.
WITHOUT_EFFECT = ('until', 'do_sample', 'temperature', 'top_k', 'top_p', 'min_p', 'seed', *TOKENS)
NEUTRAL = dict(num_beams=1, repetition_penalty=1.0, num_return_sequences=1, no_repeat_ngram_size=0, length_penalty=1.0)
MARKS = re.compile(r'<extra_id_\d+>')


class Continuing:
  """How the harness's backend asks a decoder: a text is what its tokenizer makes of it, BOS included if it puts one."""
  makes_text = True

  def __init__(self, asker, config):
    self.asker, self.vocabulary = asker, asker.vocabulary
    learned = choices.POSITIONS[config.model.position].learned
    self.room = config.model.max_positions if learned else config.data.seq_len  # as an exported config.json says
    self.begin = [self.vocabulary.bos_id] if asker.manner == 'document' else []
    self.end = list(self.vocabulary.after)  # some tokenizers end texts too

  @property
  def prefix(self):
    """What stands before a text that nothing stands before."""
    if not self.begin and self.vocabulary.begin_id is None:
      raise ConfigError('this model knows no beginning of documents (vocabulary.specials=False), so the harness cannot '
                        'ask it for the first token of a text.')
    return self.begin or [self.vocabulary.begin_id]

  def encode(self, text):
    return [*self.begin, *self.vocabulary.encode(text), *self.end]

  def pair(self, context, continuation):
    """(ids of the context, ids of the continuation), cut as the harness does."""
    if not context:
      return self.prefix, list(self.vocabulary.encode(continuation))
    stripped = context.rstrip()
    continuation = context[len(stripped):] + continuation
    return self._apart(stripped, continuation)

  def _apart(self, context, continuation):
    context_ids = self.encode(context)
    whole = self.encode(context + continuation)
    return context_ids or self.prefix, whole[len(context_ids):]

  def row(self, context, continuation):
    """The row that asks for the continuation, both ids."""
    ids = [*context, *continuation]
    cut = max(0, len(ids) - self.room - 1)
    inputs = ids[cut:-1]
    return ask.Row(inputs, list(range(len(inputs) - len(continuation), len(inputs))), continuation, cut=cut)


class Answering(Continuing):
  """How it asks an encoder-decoder: the context in the encoder, the continuation as targets.

  Its generated text is not compared: the backend lets it be as long as the longest prompt of a batch and the limit
  together, so that it depends on the prompts beside it.
  """
  makes_text = False

  def __init__(self, asker, config):
    super().__init__(asker, config)
    self.room = config.data.seq_len
    self.begin, self.end = [], asker.ends

  def _apart(self, context, continuation):
    return self.encode(context), list(self.vocabulary.encode(continuation))

  def row(self, context, continuation):
    inputs = [self.vocabulary.start_id, *continuation[:-1]]
    return ask.Row(inputs, list(range(len(inputs))), continuation, encoder=context[-self.room:],
                   cut=max(0, len(context) - self.room))


def way_of(subject):
  """How the harness itself would ask an exported model; None for models that it has no way to ask."""
  asker = subject.scorer.asker
  if asker.manner in ('document', 'stream'):
    return Continuing(asker, subject.config)
  if asker.style == 'encoder' and asker.is_given:
    return Answering(asker, subject.config)
  return None


def _texts(request, count):
  """The first arguments of a request, texts that can be encoded."""
  for text in request.args[:count]:
    try:
      text.encode()
    except UnicodeEncodeError as error:
      raise DataError(f'{_name(request)}: a text holds {text[error.start]!r}, half of a surrogate pair, which is no '
                      'character.') from error
  return request.args[:count]


def _name(request):
  return f'harness:{getattr(request, "task_name", None) or "request"}'


def pair_row(way, request):
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


def window_rows(way, request):
  """The rows of a request for the log-likelihood of a whole text."""
  from lm_eval import utils
  (text,) = _texts(request, 1)
  windows = utils.get_rolling_token_windows(way.encode(text), way.prefix[0], way.room, 1)
  return [way.row(*utils.make_disjoint_window(window)) for window in windows]


def greedy_limits(request):
  """(tokens, until) of a request for text. ConfigError unless it is plain greedy text that is asked for."""
  how = dict(request.args[1])
  temperature = float(how.get('temperature') or 0.0)
  sampled = how.get('do_sample', temperature > 0)
  if sampled and (temperature > 0 or 'temperature' not in how):
    raise ConfigError(f'--tasks={_name(request)}: asks for sampled text, and only greedy text is compared here. Set '
                      'do_sample: false in its generation_kwargs.')
  for key, value in how.items():
    if key not in WITHOUT_EFFECT and (key not in NEUTRAL or value != NEUTRAL[key]):
      raise ConfigError(f'--tasks={_name(request)}: its generation_kwargs have {key}={value!r}, and only greedy text '
                        f'is made here. Take {key} out.')
  limits = [how[key] for key in TOKENS if how.get(key) is not None]
  tokens = int(limits[0]) if limits else USUAL_TOKENS
  if tokens < 1:
    raise ConfigError(f'--tasks={_name(request)}: asks for {tokens} tokens; that must be at least 1.')
  until = how.get('until') or []
  return tokens, tuple([until] if isinstance(until, str) else until)


class Text:
  """Greedy text for requests of a model: as the harness's backend has it where it can, else as our own tasks.

  say: called with a line where a request asks for more tokens than a row has.
  """

  def __init__(self, subject, say):
    self.subject, self.say = subject, say
    self.asker = subject.scorer.asker
    self.way = way_of(subject)

  def of(self, requests):
    """([text], [tokens that were cut off the prompt])."""
    texts, cuts, groups = [''] * len(requests), [0] * len(requests), collections.defaultdict(list)
    for i, request in enumerate(requests):
      _texts(request, 1)
      groups[greedy_limits(request)].append(i)
    for (tokens, until), members in groups.items():
      for i, text, cut in zip(members, *self._group([requests[i].args[0] for i in members], tokens, until)):
        texts[i] = ended(MARKS.sub('', text), until)
        cuts[i] = cut
    return texts, cuts

  def _group(self, prompts, tokens, until):
    way = self.way
    if way is None or not way.makes_text:
      return self._as_ours(prompts, tokens, until)
    if tokens >= way.room:
      self.say(f'{tokens:,} tokens of text are asked for and this model reads {way.room:,}, which the harness does not '
               f'allow; here they are at most {way.room // 2:,}.')
      return self._as_ours(prompts, way.room // 2, until)
    whole = [way.encode(prompt) or way.prefix for prompt in prompts]
    most = way.room - tokens
    ends = tuple(way.vocabulary.pieces(self.asker.ends))
    texts = self.subject.generate([ids[-most:] for ids in whole], tokens, (*until, *ends), 'stream', way.room)
    return [ended(text, ends) for text in texts], [max(0, len(ids) - most) for ids in whole]

  def _as_ours(self, prompts, tokens, until):
    ids = [self.asker.prompt(prompt, '', tokens) for prompt in prompts]
    lengths = [len(self.asker.mode) + self.asker.marks + len(self.asker.vocabulary.encode(prompt))
               for prompt in prompts]
    return self.subject.generate(ids, tokens, until), [max(0, n - len(one)) for n, one in zip(lengths, ids)]


def language_model(subject, say=lambda _: None):
  """An lm_eval LM that asks an `evaluate.Subject`.

  Its `cut` is {task: the set of the documents that lost the beginning of a prompt}.
  """
  from lm_eval.api.model import LM
  scorer, way, text = subject.scorer, way_of(subject), Text(subject, say)

  class Ours(LM):

    def __init__(self):
      super().__init__()
      self.cut = collections.defaultdict(set)

    def _note(self, requests, cuts):
      for request, cut in zip(requests, cuts):
        if cut:
          self.cut[getattr(request, 'task_name', None)].add(getattr(request, 'doc_id', None))

    def loglikelihood(self, requests, disable_tqdm=False):
      """[(log-likelihood of the continuation, whether it is greedy)] of requests (context, continuation)."""
      rows = [[pair_row(way, request)] if way else scorer.asker.rows(*_texts(request, 2)) for request in requests]
      scores = scorer.score_rows(rows)
      self._note(requests, [score.cut for score in scores])
      return [(score.logp, score.greedy) for score in scores]

    def loglikelihood_rolling(self, requests, disable_tqdm=False):
      """[log-likelihood] of whole texts."""
      if not way:
        return [score.logp for score in scorer.score_text([_texts(request, 1)[0] for request in requests])]
      return [score.logp for score in scorer.score_rows([window_rows(way, request) for request in requests])]

    def generate_until(self, requests, disable_tqdm=False):
      """[text], greedily, each up to the first of its `until`."""
      texts, cuts = text.of(requests)
      self._note(requests, cuts)
      return texts
  return Ours()


@functools.lru_cache(4)
def _manager(path):
  from lm_eval.tasks import TaskManager
  return TaskManager(include_path=path)


def check(names, path=None):
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


def jobs(subject, names, path=None, shots=-1, limit=0):
  """{'harness:TASK': function that returns ({'harness:TASK': {metric: value}}, notes)}, see `evaluate.attempt`."""
  check(names, path)
  return {f'harness:{name}': functools.partial(_run, subject, name, path, shots, limit) for name in names}


def _run(subject, name, path, shots, limit):
  import lm_eval
  notes = []
  model = language_model(subject, notes.append)
  results = lm_eval.simple_evaluate(
      model, tasks=[name], num_fewshot=None if shots < 0 else shots, limit=limit or None, task_manager=_manager(path),
      bootstrap_iters=0, log_samples=False)
  values_of = {}
  for task, values in results['results'].items():
    # 'acc,none' is a metric and a filter; what is no number is a name or a missing standard error.
    numbers = {key.removesuffix(',none'): float(value) for key, value in values.items() if isinstance(value, float)}
    if task in results['n-samples']:
      numbers.update(items=results['n-samples'][task]['effective'], cut=len(model.cut[task]))
    values_of[f'harness:{task}'] = numbers
  return values_of, list(dict.fromkeys(notes))


def evaluate(subject, names, path=None, shots=-1, limit=0, say=lambda _: None):
  """{'harness:TASK': {metric: value}} of tasks of the harness, those in the folder `path` included.

  `cut` says how many documents lost the beginning of a prompt to the model's length.
  """
  return finished(*attempt(jobs(subject, names, path, shots, limit), say))
