"""Which values config keys may take, alone and together, and the numbers that follow from them."""
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from t5like import choices
from t5like.choices import SOURCES
from t5like.config import mesh_rules, objective_rules, optimizer_rules, resumable, trainable
from t5like.config.values import DEFAULTS, base, divisors, either, fits, needs, normal, parse, show, unknown, up
from t5like.config_type import Config
from t5like.errors import ConfigError
from t5like.nearest import nearest, suggestion
from t5like.objectives import lengths, table

# Names that keys may have: tables of facts, or only names.
CHOICES = {
    'data.packing': choices.PACKINGS,
    'data.empty': choices.EMPTY,
    'data.overlong': choices.OVERLONG,
    'data.mixture_rates': choices.MIXTURE_RATES,
    'vocabulary.name': choices.VOCABULARIES,
    'vocabulary.algorithm': choices.ALGORITHMS,
    'vocabulary.normalization': choices.NORMALIZATIONS,
    'objective.name': table.OBJECTIVES,
    'objective.masking': choices.MASKINGS,
    'model.name': choices.ARCHITECTURES,
    'model.block': choices.BLOCKS,
    'model.activation': choices.ACTIVATIONS,
    'model.norm': choices.NORMS,
    'model.position': choices.POSITIONS,
    'model.head': choices.HEADS,
    'model.qk_norm': choices.QK_NORMS,
    'model.dropout_style': choices.DROPOUT_STYLES,
    'model.init': choices.INITS,
    'model.dtype': choices.DTYPES,
    'model.attention': choices.ATTENTION,
    'model.remat': choices.REMAT,
    'log.trackers': choices.TRACKERS,
    'schedule.name': choices.SCHEDULES,
}

RANGES = {key: interval for interval, keys in {
    '[1, inf)': '''batch_size microbatches data.seq_len vocabulary.size vocabulary.train_characters
      model.d_model model.num_layers model.num_heads model.max_positions schedule.timescale
      log.every checkpoint.keep guard.max_bad_steps sample.tokens objective.mean_span
      watchdog.start watchdog.step watchdog.data watchdog.save watchdog.peers''',
    '[0, inf)': '''params_expected data.target_len objective.predictions model.num_encoder_layers
      model.num_types model.lora_rank data.max_documents data.shards data.workers data.prefetch
      data.max_bad_records data.max_document_tokens data.prepare_workers data.mixture_cap
      vocabulary.sentinels model.vocab_size model.num_kv_heads model.head_dim model.d_ff
      model.logit_softcap loss.z_loss loss.chunks optimizer.eps optimizer.weight_decay
      optimizer.clip_norm schedule.warmup_steps stop.patience stop.wall_time evaluate.every
      evaluate.batches evaluate.tasks_every evaluate.limit guard.compare_every guard.rewinds
      guard.spike_loss guard.spike_norm checkpoint.keep_best
      checkpoint.every checkpoint.keep_every sample.every sample.temperature sample.top_k log.histograms_every''',
    '(0, inf)': '''data.mixture_temperature optimizer.learning_rate model.norm_eps model.rope_theta
      model.lora_alpha''',
    '[-1, inf)': 'evaluate.shots',
    '[0, 1)': 'model.dropout loss.label_smoothing optimizer.b1 optimizer.b2',
    '[0, 1]': 'schedule.final_scale schedule.decay_fraction',
    '(0, 1]': 'sample.top_p model.rope_fraction',
    '(0, 1)': 'objective.noise_density',
    '[0, 4294967296)': 'seed',
}.items() for key in keys.split()}

# The most that sizes, counts of what is made or kept, and durations may be: what no machine has room for is refused
# before it is tried. Counts of tokens, steps, rows and documents have no such bound, nor have rates of learning.
MOST = {key: most for most, keys in {
    2 ** 24: '''data.seq_len data.target_len model.max_positions model.vocab_size vocabulary.size sample.top_k
      objective.predictions loss.chunks batch_size microbatches''',
    2 ** 21: 'model.d_ff sample.tokens',
    2 ** 18: 'model.d_model',
    2 ** 16: 'model.num_heads model.num_kv_heads model.head_dim model.num_types model.lora_rank',
    10 ** 4: '''model.num_layers model.num_encoder_layers data.workers data.prepare_workers data.prefetch
      evaluate.shots objective.mean_span''',
    10 ** 5: 'data.shards vocabulary.sentinels checkpoint.keep checkpoint.keep_best guard.rewinds guard.max_bad_steps',
    10 ** 9: 'watchdog.start watchdog.step watchdog.data watchdog.save watchdog.peers stop.wall_time',
    10 ** 6: 'model.logit_softcap model.lora_alpha data.mixture_temperature sample.temperature',
    10 ** 12: 'model.rope_theta vocabulary.train_characters',
    1: 'model.norm_eps',
}.items() for key in keys.split()}

# Numbers whose range depends on other keys or on devices; the rules below and `mesh_rules` check them.
RANGES_OF_RULES = ('reference.value', 'data.validation_fraction', 'stop.tokens', 'mesh.slice', 'mesh.data', 'mesh.fsdp',
                   'mesh.context', 'mesh.tensor')


def _check_tables() -> None:
  """NotImplementedError for a number without a range, and for a rule of a key that does not exist."""
  for key, default in DEFAULTS.items():
    if type(default) in (int, float) and key not in (*RANGES, *RANGES_OF_RULES):
      raise NotImplementedError(f'{key} is a number in t5like/config/base.py, but RANGES in t5like/config/rules.py '
                                'does not say which values it may take.')
  for key in (*CHOICES, *RANGES, *MOST):
    if key not in DEFAULTS:
      raise NotImplementedError(f'{key} has a rule in t5like/config/rules.py, but is no key of t5like/config/base.py.')


_check_tables()

METRICS = ('nll', 'perplexity', 'accuracy', 'bits_per_byte')


def check(flat, where):
  """The config of a flat dict. Raises ConfigError with all that is wrong with it."""
  problems = [*_single(flat), *_missing(flat)]
  if not problems:
    parts, problems = objective_rules.mixture(flat['data.mixture'])
    problems += [f'{where}.{p}' for where, part in parts for p in _single(part)]
    problems += objective_rules.stages(flat)
  if not problems:
    config = base().unlock()
    for key, value in flat.items():
      section, _, name = key.rpartition('.')
      (config[section] if section else config)[name] = value
    config.lock()
    rules = (_data, _vocabulary, objective_rules.check, objective_rules.tasks, _model, trainable.check,
             optimizer_rules.check, _allow_changed, _mesh, _schedule)
    problems = [p for rule in rules for p in rule(config)]
  if not problems:
    return config
  more = [f'and {len(problems) - 5} more'] if len(problems) > 5 else []
  raise ConfigError(f'{where}: {problems[0]}' if len(problems) == 1 else '\n  '.join(
      [f'{where} has {len(problems)} problems:', *problems[:5], *more]))


def wrong_values(flat):
  """What is wrong with keys of a flat dict by themselves, a sentence each."""
  return _single(flat)


def wrong_types(flat):
  """Sentences on keys that are known and hold values of another type than theirs."""
  for key, value in flat.items():
    if key in DEFAULTS and not fits(normal(key, value), type(DEFAULTS[key])):
      yield f'{key}={show(value)}: needs {needs(key)}.'


def _single(flat):
  """Problems of keys by themselves: unknown, of a wrong type, outside what they may be."""
  for key, value in flat.items():
    if key not in DEFAULTS:
      yield unknown(key, f'{key}={show(value)}')
      continue
    asked, kind = f'{key}={show(value)}', type(DEFAULTS[key])
    if not fits(value, kind):
      yield f'{asked}: needs {needs(key)}.'
    elif key in CHOICES and not set(value if kind is tuple else [value]) <= {*CHOICES[key]}:
      wrong = [v for v in (value if kind is tuple else [value]) if v not in CHOICES[key]]
      meant = suggestion(wrong[0], CHOICES[key], 'did you mean {!r}? ')
      yield f'{asked}: {meant}There is {either(CHOICES[key])}.'
    elif key in RANGES and not _inside(value, RANGES[key]):
      yield f'{asked}: must be {_in_words(RANGES[key])}.'
    elif key in MOST and value > MOST[key]:
      yield f'{asked}: must be at most {MOST[key]:,}.'
    elif kind is str and DEFAULTS[key] and not value.strip():
      yield f'{asked}: must not be empty. The default is {DEFAULTS[key]!r}.'


def _missing(flat):
  for key in DEFAULTS:
    section = key.partition('.')[0]
    if key not in flat and section not in flat:
      yield f'{key}: missing. Write c.{section}.update(...), which keeps the keys it does not name.'


def _inside(value, interval):
  low, high = map(float, interval[1:-1].split(','))
  return ((value >= low if interval[0] == '[' else value > low) and
          (value <= high if interval[-1] == ']' else value < high))


def _in_words(interval):
  low, high = interval[1:-1].split(', ')
  least = f'{"at least" if interval[0] == "[" else "above"} {low}'
  return least + (f' and {"at most" if interval[-1] == "]" else "below"} {high}'
                  if high != 'inf' else '')


def _data(c):
  try:
    lengths.skipped(c.data.skip_rows)
  except ConfigError as e:
    yield str(e)
  by_examples = choices.MIXTURE_RATES[c.data.mixture_rates].by_examples
  if not by_examples and (c.data.mixture_cap or c.data.mixture_temperature != 1):
    yield (f'data.mixture_cap={c.data.mixture_cap}, data.mixture_temperature={c.data.mixture_temperature:g}: belong '
           "to data.mixture_rates='examples'. Set that, or 0 and 1.")
  for where, data in [('', c.data)] if not c.data.mixture else [
      (f'data.mixture.{name}: ', part.config.data) for name, part in _datasets(c)]:
    yield from (where + problem for problem in _dataset(data))


def _datasets(c):
  try:
    return [(part.name, part) for part in lengths.components(c)]
  except ConfigError:
    return []  # objective_rules.check tells


def _source(key, source):
  """What is wrong with the value of data.source, or with a source in data.validation."""
  kind, colon, rest = source.partition(':')
  wants = SOURCES[kind] if kind in SOURCES else None
  asked = f'{key}={show(source)}'
  if wants is None:
    kinds = either([f'{k}:{w}' if w else k for k, w in SOURCES.items()])
    yield f'{asked}: unknown kind. {suggestion(kind, SOURCES)}There is {kinds}.'
  elif bool(rest) != bool(wants) or bool(colon) != bool(wants):
    yield f'{asked}: write {kind}{":" * bool(wants)}{wants}.'
  elif wants in ('STATES', 'SYMBOLS') and not (rest.isdecimal() and 2 <= int(rest[:9]) <= 26):
    yield f'{asked}: {wants} is a number from 2 to 26, as in {kind}:8.'


def validation_source(data):
  """'text:GLOB' or another source of validation text that data.validation names; '' for 'hash', 'tail' and splits.

  A glob alone is of the kind of data.source, where that reads files.
  """
  kind, colon, _ = data.source.partition(':')
  named, named_colon, rest = data.validation.partition(':')
  if data.validation in ('hash', 'tail'):
    return ''
  if named in SOURCES and (named_colon or not SOURCES[named]):
    return data.validation
  reads_files = kind in SOURCES and SOURCES[kind] == 'GLOB' and colon
  if reads_files and named_colon and named.isidentifier() and not rest.startswith('//'):
    return data.validation  # a kind that does not exist
  looks_like_files = any(mark in data.validation for mark in '*?[/.~$')
  return f'{kind}:{data.validation}' if reads_files and looks_like_files else ''


def _dataset(d):
  yield from _source('data.source', d.source)
  kind = d.source.partition(':')[0]
  if d.validation in ('hash', 'tail'):
    if not 0 < d.validation_fraction < 1:
      yield (f'data.validation_fraction={d.validation_fraction}: must be above 0 and below 1, '
             f'such as 0.01, for data.validation={d.validation!r}.')
    if d.targets and d.validation == 'tail':
      yield ("data.validation='tail': cuts texts in two, which examples of data.inputs and data.targets cannot "
             "be. Use 'hash'.")
  else:
    yield from _validation(d, kind)


def _validation(d, kind):
  """What is wrong with a data.validation that is a split, a source or a glob."""
  asked = f'data.validation={show(d.validation)}'
  near = nearest(d.validation, ('hash', 'tail'), close=0.7)  # a split may be called train
  found = validation_source(d)
  if near and not found:
    yield f'{asked}: did you mean {near[0]!r}?'
  elif not found and kind != 'tfds':
    yield (f"{asked}: only TFDS datasets have named splits, and data.source is {show(d.source)}. Use 'hash' or 'tail', "
           "or give files of their own, such as 'text:validation/*.txt'.")
  elif found:
    yield from _source('data.validation', found)
    if found == d.source and kind != 'tfds':
      yield f"{asked}: is data.source itself, and what is trained on cannot validate. Use 'hash' or 'tail'."


def _vocabulary(c):
  d, v = c.data, c.vocabulary
  if v.name == 'huggingface' and not v.path:
    yield ("vocabulary.name='huggingface': needs vocabulary.path, the tokenizer.json of a model. To train a "
           "vocabulary, use 'sentencepiece'.")
  if v.name in ('bytes', 'characters') and v.path and v.name == 'bytes':
    yield f"vocabulary.path={show(v.path)}: bytes need no file. Use ''."
  yield from _special(v)
  if d.document_mask and v.name == 'characters' and not v.specials:
    yield ('data.document_mask=True: needs an end-of-document token, and vocabulary.specials=False '
           'has none. Set data.document_mask=False or vocabulary.specials=True.')
  if '' in c.sample.prompts and v.name == 'characters' and not v.specials:
    yield (f'sample.prompts={show(c.sample.prompts)}: vocabulary.specials=False leaves no way to '
           "begin from nothing. Give a text such as ('a',), or () for no samples.")
  least = 260 + v.sentinels  # padding, end, unknown, 256 bytes, sentinels and one piece of text
  if v.name == 'sentencepiece' and not v.path and v.size < least:
    yield (f'vocabulary.size={v.size}: too small for 3 special tokens, 256 bytes and '
           f'vocabulary.sentinels={v.sentinels}. Use at least {least}, better 1024 and more.')


SPECIAL = ('bos', 'eos', 'pad', 'unk', 'mask', 'cls', 'sep', 'start')  # roles of vocabulary.special


def _special(v):
  for role, token in v.special.to_dict().items():
    asked = f'vocabulary.special.{role}={show(token)}'
    if role not in SPECIAL:
      yield f'{asked}: unknown role. {suggestion(role, SPECIAL)}There is {either(SPECIAL)}.'
    elif isinstance(token, bool) or not isinstance(token, (str, int)):
      yield f"{asked}: give the text of a token, such as '</s>', its id, or '' where there is none."
  if v.special and not (v.path and v.name in ('sentencepiece', 'huggingface')):
    yield (f'vocabulary.special={show(v.special.to_dict())}: belongs to an imported tokenizer (vocabulary.path with '
           "vocabulary.name='huggingface' or 'sentencepiece'); the others have special tokens of their own. Use {}.")


def _model(c):
  m, r = c.model, resolve(c).model
  rotary = choices.POSITIONS[m.position].rotary
  if not m.head_dim and m.d_model % m.num_heads:
    yield (f'model.num_heads={m.num_heads}: must divide model.d_model={m.d_model}. '
           f'Use {divisors(m.num_heads, m.d_model)}, or set model.head_dim.')
  elif rotary and r.head_dim % 2:
    made = '' if m.head_dim else ' (d_model / num_heads)'
    yield (f"model.head_dim={r.head_dim}{made}: must be even for model.position={m.position!r}. "
           f'Use model.head_dim={r.head_dim + 1}.')
  elif rotary and int(r.head_dim * m.rope_fraction) % 2:
    yield (f'model.rope_fraction={m.rope_fraction}: turns {int(r.head_dim * m.rope_fraction)} of model.head_dim='
           f'{r.head_dim} dimensions, which must be an even number. Use {2 / r.head_dim:g} or a multiple of it.')
  yield from _adapters(m, r)
  if m.tie_embeddings is False and choices.HEADS[m.head].scaled:
    yield f"model.head={m.head!r}: belongs to model.tie_embeddings=True. Use 'linear'."
  if m.num_heads % r.num_kv_heads:
    yield (f'model.num_kv_heads={m.num_kv_heads}: must divide model.num_heads={m.num_heads}. '
           f'Use {divisors(m.num_kv_heads, m.num_heads)}.')
  needs = _vocab_size(c)
  if 0 < m.vocab_size < needs:
    yield (f'model.vocab_size={m.vocab_size}: the vocabulary has {needs} tokens. '
           f'Use at least {needs} (better {up(needs, 128)}), or 0 to have it rounded up.')
  try:
    re.compile(c.optimizer.decay_mask)
  except (re.error, RecursionError, OverflowError) as e:
    yield (f'optimizer.decay_mask={show(c.optimizer.decay_mask)}: not a regular expression: {e}. '
           f"The default is {DEFAULTS['optimizer.decay_mask']!r}.")


def _adapters(m, r):
  """Adapters (LoRA) of more columns than their matrix has rows or columns add nothing but memory."""
  heads, key_heads = r.num_heads * r.head_dim, r.num_kv_heads * r.head_dim
  outputs = dict(q=heads, k=key_heads, v=key_heads, o=heads, up=r.d_ff, gate=r.d_ff, down=r.d_ff)
  for name in m.lora_projections:
    most = min(r.d_model, outputs[name]) if name in outputs else m.lora_rank
    if m.lora_rank > most:
      yield (f'model.lora_rank={m.lora_rank}: the matrix {name!r} of model.lora_projections is {r.d_model} x '
             f'{outputs[name]}, whose rank is at most {most}. Use at most that, such as {min(16, most)}.')
      return


def _allow_changed(c):
  sections = {key.partition('.')[0] for key in DEFAULTS}
  for name in resumable.permitted(c):
    if name.partition('.')[0] not in sections:  # a key that an older version had is none of ours, but its section is
      yield unknown(name, f'allow_changed={show(c.allow_changed)}: {name}')


def _mesh(c):
  return mesh_rules.check(c, resolve(c).model)


def _schedule(c):
  per_step = c.batch_size * c.data.seq_len
  if c.stop.tokens < per_step:
    yield (f'stop.tokens={c.stop.tokens:,}: less than one step of batch_size x data.seq_len = '
           f'{c.batch_size} x {c.data.seq_len}. Use at least {per_step:,}.')
  every, keep = c.checkpoint.every, c.checkpoint.keep_every
  if every and keep % every:
    yield (f'checkpoint.keep_every={keep}: must be a multiple of checkpoint.every={every}, to name '
           f'steps that are saved. Use {up(keep, every)}.')
  try:
    metric, _, _ = parse_target(c.stop.target or 'nll < 1')
    if metric == 'bits_per_byte' and (not table.of(c).predicts_each_token or c.data.mixture):
      names = either([repr(name) for name, entry in table.OBJECTIVES.items() if entry.predicts_each_token])
      yield (f'stop.target={show(c.stop.target)}: bytes are only predicted, each once, by objective.name={names} '
             "on one dataset. Use 'nll < ...' or 'accuracy > ...'.")
  except ConfigError as e:
    yield str(e)


def parse_target(text):
  """('nll', '<=', 1.5) from 'nll <= 1.5'. Raises ConfigError."""
  m = re.fullmatch(r'\s*(\w+)\s*(<=|<|>=|>)\s*(\S+)\s*', text)
  value = parse('loss.z_loss', m[3]) if m else None
  if value is None:
    raise ConfigError(f'stop.target={show(text)}: write a metric, one of <= < >= >, and a number, '
                      f"as in 'nll <= 1.5'. Metrics are {either(METRICS)}.")
  if m[1] not in METRICS:
    raise ConfigError(f'stop.target={show(text)}: unknown metric {m[1]!r}. {suggestion(m[1], METRICS)}'
                      f'There is {either(METRICS)}.')
  return m[1], m[2], value


def _vocab_size(c):
  """Number of tokens, or 0 where only the data or a file tells."""
  v = c.vocabulary
  return {'bytes': 259 + v.sentinels, 'sentencepiece': 0 if v.path else v.size}.get(v.name, 0)


def resolve(config):
  """A copy with those zeros of `config.model` filled in that follow from the config alone.

  vocab_size stays 0 where the vocabulary's size is known only once it is made or read.
  """
  config = config.copy_and_resolve_references()
  m = config.model
  m.num_kv_heads = m.num_kv_heads or m.num_heads
  m.head_dim = m.head_dim or m.d_model // m.num_heads
  m.num_encoder_layers = m.num_encoder_layers or m.num_layers
  gated = choices.ACTIVATIONS[m.activation].gated  # three matrices, so 2/3 of the width
  m.d_ff = m.d_ff or (up(-(-8 * m.d_model // 3), 128) if gated else 4 * m.d_model)
  m.vocab_size = m.vocab_size or up(_vocab_size(config), 128)
  return config


class Phases(NamedTuple):
  """Steps of a schedule's warm-up, and of the decay at its end (0 unless it has one)."""
  warmup: int
  decay: int


def phases(schedule: Any, steps: int) -> Phases:
  """The phases of `config.schedule` in a run of so many steps, cut to fit into it.

  The warm-up is cut first, to what the decay leaves or half of the run, then the decay to what the warm-up leaves.
  """
  decay = 0
  if choices.SCHEDULES[schedule.name].ends_in_decay:
    decay = max(1, round(schedule.decay_fraction * steps))
  warmup = min(schedule.warmup_steps, max(steps - decay, steps // 2))
  return Phases(warmup, min(decay, max(1, steps - warmup)))


def warnings(config: Config) -> Iterator[str]:
  """What should be known of a config that is right: above all what its run is too short for."""
  if config.optimizer.name in optimizer_rules.NOTES:
    yield f'optimizer.name={config.optimizer.name!r}: {optimizer_rules.NOTES[config.optimizer.name]}.'
  ends_early = config.stop.target or config.stop.patience
  if ends_early and not config.evaluate.every:
    key = 'stop.target' if config.stop.target else 'stop.patience'
    yield (f'{key}={show(config.stop[key.removeprefix("stop.")])} cannot end the run before stop.tokens: with '
           'evaluate.every=0 it is validated at its end only.')
  steps = derived(config)['steps']
  s, cut = config.schedule, phases(config.schedule, steps)
  if cut.warmup < s.warmup_steps:
    yield (f'schedule.warmup_steps={s.warmup_steps:,} is more than the {steps:,} steps of this run leave room for: '
           f'it warms up for {cut.warmup:,}.')
  asked = round(s.decay_fraction * steps)
  if 0 < cut.decay < asked:
    yield (f'schedule.decay_fraction={s.decay_fraction:g} is {asked:,} of {steps:,} steps, more than the warm-up '
           f'leaves: the decay takes {cut.decay:,}.')


def derived(config):
  """Numbers that follow from a config: steps, tokens (of those steps, so stop.tokens or a little
  more), tokens_per_step, microbatch_size, warmup_share, decay_steps (0 unless the schedule ends in one),
  and targets_per_row, which are decoder or masked positions."""
  shapes = lengths.shapes(config)
  per_step = config.batch_size * config.data.seq_len
  steps = -(-config.stop.tokens // per_step)
  warmup, decay = phases(config.schedule, steps)
  return dict(tokens_per_step=per_step, steps=steps, tokens=steps * per_step,
              microbatch_size=config.batch_size // config.microbatches,
              warmup_share=warmup / max(1, steps), decay_steps=decay,
              targets_per_row=shapes.predictions or shapes.targets)
