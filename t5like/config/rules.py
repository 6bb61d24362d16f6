"""Which values config keys may take, each by itself; `check` also goes through the rules for several together."""
import re
from collections.abc import Iterator
from typing import Any

from t5like import choices
from t5like.config import stages
from t5like.config.adaptation import check_adapt
from t5like.config.data_rules import check_data, check_vocabulary
from t5like.config.expert_rules import check_experts
from t5like.config.mesh_rules import check_mesh
from t5like.config.model_rules import check_model
from t5like.config.objective_rules import check_mixture, check_objectives, check_stages, check_tasks
from t5like.config.optimizer_rules import check as check_optimizer
from t5like.config.resolved import resolve
from t5like.config.run_rules import check_allowed, check_run
from t5like.config.trainable import check_trainable
from t5like.config.values import (
  DEFAULTS,
  Flat,
  either,
  fits,
  kind_of,
  made_of,
  needs,
  normal,
  show,
  unknown,
)
from t5like.config_type import Config
from t5like.errors import ConfigError
from t5like.nearest import suggestion
from t5like.objectives import table

SHOWN = 5  # problems that an error lists

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
    'model.layers': choices.LAYERS,
    'model.embed_scale': choices.EMBED_SCALES,
    'model.encoder_embed': choices.ENCODER_EMBEDS,
    'model.qk_norm': choices.QK_NORMS,
    'model.attention_sinks': choices.ATTENTION_SINKS,
    'model.dropout_style': choices.DROPOUT_STYLES,
    'model.init': choices.INITS,
    'model.dtype': choices.DTYPES,
    'model.quantization': choices.QUANTIZATIONS,
    'model.router': choices.ROUTERS,
    'model.attention': choices.ATTENTION,
    'model.context_attention': choices.CONTEXT_ATTENTION,
    'model.remat': choices.REMAT,
    'adapt.source': choices.ADAPT_SOURCES,
    'adapt.encoder_source': choices.ARCHITECTURES,
    'adapt.decoder': choices.ADAPTED,
    'adapt.cross': choices.ADAPTED,
    'adapt.head': choices.ADAPTED,
    'adapt.tokens': choices.ADAPT_TOKENS,
    'log.trackers': choices.TRACKERS,
    'schedule.name': choices.SCHEDULES,
}

RANGES = {key: interval for interval, keys in {
    '[1, inf)': '''batch_size microbatches data.seq_len vocabulary.size vocabulary.train_characters
      model.d_model model.num_layers model.num_heads model.max_positions schedule.timescale
      model.experts_per_token model.sparse_every
      log.every checkpoint.keep guard.max_bad_steps sample.tokens objective.mean_span
      watchdog.start watchdog.step watchdog.data watchdog.save watchdog.peers''',
    '[0, inf)': '''params_expected data.target_len objective.predictions model.num_encoder_layers
      model.num_types model.lora_rank data.max_documents data.shards data.workers data.prefetch
      data.max_bad_records data.max_document_tokens data.prepare_workers data.mixture_cap
      vocabulary.sentinels model.vocab_size model.num_kv_heads model.head_dim model.d_ff
      model.logit_softcap model.attention_softcap model.window model.window_after
      model.encoder_window model.local_rope_theta model.experts model.expert_d_ff model.expert_capacity
      model.shared_experts model.dense_first model.router_balance optimizer.router_bias_rate model.router_z_loss
      model.query_scale loss.z_loss loss.chunks optimizer.eps optimizer.weight_decay
      optimizer.clip_norm schedule.warmup_steps adapt.warm_up_steps stop.patience stop.wall_time evaluate.every
      evaluate.batches evaluate.tasks_every evaluate.limit guard.compare_every guard.rewinds
      guard.spike_loss guard.spike_norm checkpoint.keep_best
      checkpoint.every checkpoint.keep_every sample.every sample.temperature sample.top_k log.histograms_every''',
    '(0, inf)': '''data.mixture_temperature optimizer.learning_rate model.norm_eps model.rope_theta
      model.lora_alpha''',
    '[-1, inf)': 'evaluate.shots',
    '[0, 1)': 'model.router_jitter model.dropout loss.label_smoothing optimizer.b1 optimizer.b2 optimizer.ema',
    '[0, 1]': 'schedule.final_scale schedule.decay_fraction',
    '(0, 1]': 'sample.top_p model.rope_fraction',
    '(0, 1)': 'objective.noise_density',
    '[0, 4294967296)': 'seed',
}.items() for key in keys.split()}

# The most that sizes, counts of what is made or kept, and durations may be: what no machine has room for is refused
# before it is tried. Counts of tokens, steps, rows and documents have no such bound, nor have rates of learning.
MOST = {key: most for most, keys in {
    2 ** 24: '''data.seq_len data.target_len model.max_positions model.window model.window_after model.encoder_window
      model.vocab_size
      vocabulary.size sample.top_k objective.predictions loss.chunks batch_size microbatches''',
    2 ** 21: 'model.d_ff model.expert_d_ff model.expert_capacity sample.tokens',
    2 ** 18: 'model.d_model',
    2 ** 16: 'model.num_heads model.num_kv_heads model.head_dim model.num_types model.lora_rank model.experts',
    10 ** 4: '''model.experts_per_token model.shared_experts model.sparse_every model.dense_first
      model.num_layers model.num_encoder_layers data.workers data.prepare_workers data.prefetch
      evaluate.shots objective.mean_span''',
    10 ** 5: 'data.shards vocabulary.sentinels checkpoint.keep checkpoint.keep_best guard.rewinds guard.max_bad_steps',
    10 ** 9: '''watchdog.start watchdog.step watchdog.data watchdog.save watchdog.peers stop.wall_time
      adapt.warm_up_steps''',
    10 ** 6: '''model.logit_softcap model.attention_softcap model.query_scale model.lora_alpha
      data.mixture_temperature sample.temperature''',
    10 ** 12: 'model.rope_theta model.local_rope_theta vocabulary.train_characters',
    1: 'model.norm_eps',
}.items() for key in keys.split()}

# Numbers whose range depends on other keys or on devices; the rules below and `mesh_rules` check them.
RANGES_OF_RULES = ('reference.value', 'data.validation_fraction', 'stop.tokens', 'mesh.slice', 'mesh.data', 'mesh.fsdp',
                   'mesh.fsdp_outer', 'mesh.expert', 'mesh.context', 'mesh.tensor')


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


def check(flat: Flat, where: str) -> Config:
  """The config of a flat dict. Raises ConfigError with all that is wrong with it; `where`: what errors call it."""
  problems = _problems(flat) or list(_of_stages(flat))
  if problems:
    raise ConfigError(_listed(problems, where))
  return made_of(flat)


def _problems(flat: Flat) -> list[str]:
  """What is wrong with a flat config but for its stages; turns tokens of data.stages into whole numbers."""
  problems = [*_single(flat), *_missing(flat)]
  if not problems:
    problems = list(_mixture(flat))
  if problems:
    return problems
  config = made_of(flat)
  for rule in RULES:
    problems += rule(config)
  return problems


def _of_stages(flat: Flat) -> Iterator[str]:
  """What is wrong with the stages of a flat config that is right without them: each is a config by itself."""
  entries, problems = stages.read(flat)
  yield from problems
  if problems:
    return
  flat['stages'] = stages.written(entries)
  for entry, changed in zip(entries, stages.flats(flat, entries)):
    for problem in _problems(changed):
      yield stages.placed(entry, problem)


def _listed(problems: list[str], where: str) -> str:
  """What an error says of problems: all of one, the first of several."""
  if len(problems) == 1:
    return f'{where}: {problems[0]}'
  lines = [f'{where} has {len(problems)} problems:', *problems[:SHOWN]]
  if len(problems) > SHOWN:
    lines.append(f'and {len(problems) - SHOWN} more')
  return '\n  '.join(lines)


def wrong_values(flat: Flat) -> Iterator[str]:
  """What is wrong with keys of a flat dict by themselves, a sentence each."""
  return _single(flat)


def wrong_types(flat: Flat) -> Iterator[str]:
  """Sentences on keys that are known and hold values of another type than theirs."""
  for key, value in flat.items():
    if key in DEFAULTS and not fits(normal(key, value), kind_of(key)):
      yield f'{key}={show(value)}: needs {needs(key)}.'


def _single(flat: Flat) -> Iterator[str]:
  """Problems of keys by themselves: unknown, of a wrong type, outside what they may be."""
  for key, value in flat.items():
    if key not in DEFAULTS:
      yield unknown(key, f'{key}={show(value)}')
      continue
    problem = _wrong(key, value)
    if problem:
      yield f'{key}={show(value)}: {problem}'


def _wrong(key: str, value: Any) -> str:
  """What is wrong with the value of a key, '' if nothing is."""
  default = DEFAULTS[key]
  if not fits(value, kind_of(key)):
    return f'needs {needs(key)}.'
  if key in CHOICES:
    return _no_choice(key, value)
  if key in RANGES and not _inside(value, RANGES[key]):
    return f'must be {_in_words(RANGES[key])}.'
  if key in MOST and value > MOST[key]:
    return f'must be at most {MOST[key]:,}.'
  if isinstance(default, str) and default and not value.strip():
    return f'must not be empty. The default is {default!r}.'
  return ''


def _no_choice(key: str, value: str | tuple[str, ...]) -> str:
  """What is wrong with a name, or with one of several; '' if all are choices."""
  names = value if isinstance(value, tuple) else (value,)
  for name in names:
    if name not in CHOICES[key]:
      meant = suggestion(name, CHOICES[key], 'did you mean {!r}? ')
      return f'{meant}There is {either(CHOICES[key])}.'
  return ''


def _missing(flat: Flat) -> Iterator[str]:
  for key in DEFAULTS:
    section = key.partition('.')[0]
    if key not in flat and section not in flat:
      yield f'{key}: missing. Write c.{section}.update(...), which keeps the keys it does not name.'


def _mixture(flat: Flat) -> Iterator[str]:
  """What is wrong with data.mixture and data.stages; turns tokens of stages into whole numbers."""
  components, problems = check_mixture(flat['data.mixture'])
  yield from problems
  for where, values in components:
    for problem in _single(values):
      yield f'{where}.{problem}'
  yield from check_stages(flat)


def _inside(value: float, interval: str) -> bool:
  low, high = map(float, interval[1:-1].split(','))
  if value == low:
    return interval[0] == '['
  if value == high:
    return interval[-1] == ']'
  return low < value < high


def _in_words(interval: str) -> str:
  """'at least 0 and below 1' of '[0, 1)'."""
  low, high = interval[1:-1].split(', ')
  least = 'at least' if interval[0] == '[' else 'above'
  most = 'at most' if interval[-1] == ']' else 'below'
  if high == 'inf':
    return f'{least} {low}'
  return f'{least} {low} and {most} {high}'


def _mesh(config: Config) -> Iterator[str]:
  return check_mesh(config, resolve(config).model)


# --- Parameters that decay ------------------------------------------------------------------------


def _decay_mask(config: Config) -> Iterator[str]:
  pattern = config.optimizer.decay_mask
  try:
    re.compile(pattern)
  except (re.error, RecursionError, OverflowError) as error:
    yield (f'optimizer.decay_mask={show(pattern)}: not a regular expression: {error}. '
           f"The default is {DEFAULTS['optimizer.decay_mask']!r}.")


# Of configs whose keys are right by themselves: each yields what is wrong with several together.
RULES = (
    check_data,
    check_vocabulary,
    check_objectives,
    check_tasks,
    check_model,
    check_experts,
    _decay_mask,
    check_trainable,
    check_adapt,
    check_optimizer,
    check_allowed,
    _mesh,
    check_run,
)
