"""Stages of a run: from a number of tokens on, keys have other values that no parameter depends on.

`stages` and `data.stages` are two spellings of one list (`read`). Each stage is a whole config, what the one before was
with its own changes (`of`), and keeps the rules of any config. `course` says which steps, tokens and rows of a run each
stage has: a stage begins with the first step that begins at or beyond its tokens.
"""
import contextlib
import copy
import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

from t5like.config.objective_rules import OF_A_DATASET, is_weight, whole_tokens
from t5like.config.resumable import OF_PARAMETERS, OF_THE_OPTIMIZER, is_permitted, under
from t5like.config.values import DEFAULTS, Flat, either, flatten, made_of, normal, show, unknown
from t5like.config_type import Config
from t5like.errors import ConfigError
from t5like.nearest import suggestion

EXAMPLE = "({'tokens': '10B', 'data.seq_len': 4096, 'batch_size': 256},)"
TOKENS = 'tokens'  # the entry of a stage that says where it begins
MIXTURE = 'data.mixture.'  # .. and of keys that name the weight of a dataset: data.mixture.NAME.weight
WEIGHT = 'weight'
# Keys that a stage may change, or the sections that hold them.
MAY_CHANGE = tuple('''
  batch_size microbatches
  data.seq_len data.target_len data.packing data.document_mask
  data.mixture_rates data.mixture_cap data.mixture_temperature
  objective
  model.rope_theta model.rope_scaling model.local_rope_theta
  model.layers model.window model.window_after model.encoder_window model.prefix_mask
  model.query_scale model.scale_attention model.logit_softcap model.attention_softcap
  model.dropout model.dropout_style
  model.router_balance model.router_z_loss model.expert_capacity
  model.attention model.context_attention model.remat model.quantization
  loss
  optimizer.learning_rate optimizer.multipliers optimizer.freeze
  optimizer.b1 optimizer.b2 optimizer.eps optimizer.clip_norm
  optimizer.weight_decay optimizer.decay_mask
  schedule
  guard.spike_loss guard.spike_norm
  compile.options
'''.split())
OF_THE_RATE = ('schedule', 'optimizer.learning_rate')  # a stage that changes one of these begins a schedule of its own
WARM_UP = 'schedule.warmup_steps'


@dataclasses.dataclass(frozen=True)
class Entry:
  """A stage as it is written.

  where: its place in the config, for errors: 'stages[1]' or 'data.stages.anneal'.
  tokens: at which it begins.
  changes: {key: value}, of `data.mixture.NAME.weight` too.
  """
  where: str
  tokens: int
  changes: Flat


@dataclasses.dataclass(frozen=True, eq=False)
class Stage:
  """A stage of a valid config; the first one is the config as it is without the others.

  where: as of Entry, '' of the first.
  tokens: at which it begins.
  changes: {key: value} of what it changes.
  config: without stages.
  """
  where: str
  tokens: int
  changes: Flat
  config: Config

  @property
  def tokens_per_step(self) -> int:
    """What a step adds towards stop.tokens."""
    return self.config.batch_size * self.config.data.seq_len

  @property
  def begins_schedule(self) -> bool:
    """Whether its learning rate is that of a schedule of its own, which begins with it."""
    return not self.where or begins_schedule(self.changes)


@dataclasses.dataclass(frozen=True)
class Stretch:
  """The steps of a stage.

  stage: its number, from 0.
  step, tokens, row: steps done, tokens and rows trained on before it.
  steps: how many it has, which may be 0.
  """
  stage: int
  step: int
  tokens: int
  row: int
  steps: int

  @property
  def stop(self) -> int:
    """Steps done after it."""
    return self.step + self.steps


# --- Reading --------------------------------------------------------------------------------------


def read(flat: Flat) -> tuple[list[Entry], list[str]]:
  """The stages of a flat config whose data.stages are right, in the order in which they begin.

  Returns:
    The stages, and what is wrong with them, a sentence each.
  """
  entries = []
  problems = []
  for number, written in enumerate(flat['stages']):
    where = f'stages[{number}]'
    wrong = list(_wrong(flat, where, written))
    problems += wrong
    if wrong:
      continue
    changes = {key: normal(key, value) for key, value in written.items() if key != TOKENS}
    entries.append(Entry(where, _tokens(written), changes))
  for name, written in flat['data.stages'].items():
    weights = {f'{MIXTURE}{component}.{WEIGHT}': weight for component, weight in written['weights'].items()}
    entries.append(Entry(f'data.stages.{name}', _tokens(written), weights))
  entries.sort(key=_start)
  for before, entry in zip(entries, entries[1:]):
    if before.tokens == entry.tokens:
      problems.append(f'{entry.where}.tokens={entry.tokens:,}: {before.where} begins there too. Make one of both.')
  return entries, problems


def written(entries: Sequence[Entry]) -> tuple[Flat, ...]:
  """The value of `stages` for those of the entries that stand there, their numbers being numbers."""
  listed = []
  for entry in entries:
    if entry.where.startswith('stages['):
      listed.append({TOKENS: entry.tokens, **entry.changes})
  return tuple(listed)


def _start(entry: Entry) -> int:
  return entry.tokens


def _tokens(written: Flat) -> int:
  tokens = whole_tokens(written[TOKENS])
  if tokens is None:
    raise ValueError(f'{written}: these tokens were not checked')
  return tokens


def _wrong(flat: Flat, where: str, written: Any) -> Iterator[str]:
  """What is wrong with an entry of `stages` by itself."""
  if TOKENS not in written:
    yield f"{where}={show(written)}: 'tokens' is missing, the number at which it begins. Write {EXAMPLE}."
    return
  if whole_tokens(written[TOKENS]) is None:
    yield f"{where}.tokens={show(written[TOKENS])}: needs a whole number above 0, such as 10_000_000 or '10M'."
  if len(written) == 1:
    yield f'{where}={show(written)}: changes nothing. Name keys beside its tokens: {EXAMPLE}.'
  for key, value in written.items():
    if key == TOKENS:
      continue
    problem = _no_key(flat, key, value)
    if problem:
      yield f'{where}.{problem}'


def _no_key(flat: Flat, key: str, value: Any) -> str:
  """Why a stage cannot change a key, '' if it can."""
  written = f'{key}={show(value)}'
  if key.startswith(MIXTURE):
    return _no_weight(flat, key, value)
  if key not in DEFAULTS:
    return unknown(key, written)
  if under(key, MAY_CHANGE):
    return ''
  return f'{written}: cannot change in a stage, because it {_reason(key)}'


def _no_weight(flat: Flat, key: str, value: Any) -> str:
  """What is wrong with 'data.mixture.NAME.weight', '' if nothing is."""
  components = flat['data.mixture']
  name, _, rest = key.removeprefix(MIXTURE).partition('.')
  if name not in components:
    meant = suggestion(name, components, 'Did you mean {!r}?') or f'There is {either(sorted(components))}.'
    return f'{key}: {name!r} is no component of data.mixture. {meant}'
  if rest != WEIGHT:
    return f'{key}={show(value)}: of a component, a stage can change the weight: {MIXTURE}{name}.weight.'
  if not is_weight(value):
    return f'{key}={show(value)}: must be a number, 0 or above.'
  return ''


def _reason(key: str) -> str:
  if key in OF_PARAMETERS:
    return 'decides which parameters there are. Begin another run with the weights of this one (init_from).'
  if key in OF_THE_OPTIMIZER:
    return ('decides what state the optimizer keeps. Begin another run with the weights of this one (init_from).')
  if key.startswith('vocabulary.'):
    return 'decides which token each id stands for.'
  section, _, name = key.rpartition('.')
  if key == 'data.mixture' or section == 'data' and name in OF_A_DATASET:
    return ("decides which text is prepared. List all datasets in data.mixture, with weight=0 where they come later, "
            "and change their weights: 'data.mixture.NAME.weight'.")
  return f'belongs to the whole run. A stage can change {either(MAY_CHANGE)}.'


def placed(entry: Entry, problem: str) -> str:
  """A problem of the config of a stage, which begins with a key, as one of the whole config."""
  if problem.startswith(tuple(entry.changes)):
    return f'{entry.where}.{problem}'
  return f'{entry.where} ({", ".join(entry.changes)}): {problem}'


@contextlib.contextmanager
def named_in_errors(stage: Stage) -> Iterator[None]:
  """Errors inside that are about the config of a stage name it."""
  try:
    yield
  except ConfigError as error:
    if not stage.where:
      raise
    kind = type(error)
    keys = ', '.join(stage.changes)
    raise kind(f'{stage.where} ({keys}): {error}') from error


def begins_schedule(changes: Flat) -> bool:
  """Whether changes are of the learning rate."""
  return any(under(key, OF_THE_RATE) for key in changes)


# --- Configs of stages ----------------------------------------------------------------------------


def flats(flat: Flat, entries: Sequence[Entry]) -> list[Flat]:
  """The flat configs of stages, without stages themselves: each is the one before with its changes."""
  current = without(flat)
  listed = []
  for entry in entries:
    current = _changed(current, entry.changes)
    listed.append(current)
  return listed


def without(flat: Flat) -> Flat:
  """A flat config as it is before its stages."""
  return {**flat, 'stages': (), 'data.stages': {}}


def _changed(flat: Flat, changes: Flat) -> Flat:
  flat = dict(flat)
  mixture = copy.deepcopy(flat['data.mixture'])
  if begins_schedule(changes):
    flat[WARM_UP] = 0  # that of the run was at its beginning
  for key, value in changes.items():
    if key.startswith(MIXTURE):
      name, _, _ = key.removeprefix(MIXTURE).partition('.')
      mixture[name][WEIGHT] = value
    else:
      flat[key] = value
  flat['data.mixture'] = mixture
  return flat


def of(config: Config) -> tuple[Stage, ...]:
  """The stages of a valid config, the first beginning at 0 tokens."""
  if not config.stages and not config.data.stages:
    return (Stage('', 0, {}, config),)
  flat = flatten(config)
  entries, _ = read(flat)
  listed = [Stage('', 0, {}, made_of(without(flat)))]
  for entry, changed in zip(entries, flats(flat, entries)):
    listed.append(Stage(entry.where, entry.tokens, entry.changes, made_of(changed)))
  return tuple(listed)


def after(config: Config, begun: int) -> Config:
  """The config of a run after so many of its stages have begun, the first not counted."""
  return of(config)[begun].config


def check_begun(old: Config, new: Config, begun: int, where: str) -> None:
  """ConfigError where a run that is resumed would have other stages than those that it has begun.

  Args:
    old: the config of the run in `where`.
    new: the config to resume it by.
    begun: how many stages had begun there, the first not counted.
    where: of a checkpoint, in words.
  """
  if is_permitted(new, 'stages'):
    return
  before = of(old)
  now = of(new)
  for number in range(1, begun + 1):
    stage = before[number]
    is_there = number < len(now)
    if is_there and (now[number].tokens, now[number].changes) == (stage.tokens, stage.changes):
      continue
    raise ConfigError(f'{where}: {stage.where} began at {stage.tokens:,} tokens with {show(stage.changes)}, and is not '
                      'so in this config. Stages that have begun stay; later ones may change. To begin with the '
                      'weights of this run, give another --workdir, and --config.init_from= its workdir.')


# --- Steps of stages ------------------------------------------------------------------------------


def course(
    stages: Sequence[Stage],
    begun: int = 0,
    step: int = 0,
    tokens: int = 0,
    row: int = 0,
) -> list[Stretch]:
  """The steps of stages to the end of the run, from a place in stage number `begun` on.

  Args:
    stages: of the run.
    begun: how many have begun there, the first not counted.
    step, tokens, row: steps done there, tokens and rows trained on.
  """
  stretches = []
  for number in range(begun, len(stages)):
    stage = stages[number]
    end = stage.config.stop.tokens
    if number + 1 < len(stages):
      end = min(end, stages[number + 1].tokens)
    steps = max(0, -(-(end - tokens) // stage.tokens_per_step))
    stretches.append(Stretch(number, step, tokens, row, steps))
    step += steps
    tokens += steps * stage.tokens_per_step
    row += steps * stage.config.batch_size
  return stretches


def spans(stages: Sequence[Stage], first_steps: Sequence[int], total_steps: int) -> list[tuple[int, int]]:
  """(first step, number of steps, at least 1) of the schedule that each stage is in.

  Args:
    stages: of the run.
    first_steps: steps done before each.
    total_steps: of the run.
  """
  begins = [number for number, stage in enumerate(stages) if stage.begins_schedule]
  listed = []
  for number in range(len(stages)):
    own = max(first for first in begins if first <= number)
    later = [first_steps[first] for first in begins if first > number]
    end = min([total_steps, *later])
    first_step = first_steps[own]
    listed.append((first_step, max(1, end - first_step)))
  return listed


def pace(config: Config) -> list[tuple[int, int, int]]:
  """[(steps done, tokens trained on, tokens of each step from there on)] of a run that nothing disturbs."""
  listed = of(config)
  pieces = []
  for stretch in course(listed):
    stage = listed[stretch.stage]
    pieces.append((stretch.step, stretch.tokens, stage.tokens_per_step))
  return pieces


def tokens_after(pieces: Sequence[tuple[int, int, int]], step: int) -> int:
  """Tokens that were trained on after a step, of what `pace` returns."""
  tokens = 0
  for first_step, before, per_step in pieces:
    if first_step <= step:
      tokens = before + (step - first_step) * per_step
  return tokens


def in_words(changes: Flat, before: Config) -> str:
  """Changes of the config of the stage before, for people."""
  flat = flatten(before)
  words = []
  for key, value in changes.items():
    if key.startswith(MIXTURE):
      words.append(f'{key} {value}')
    else:
      words.append(f'{key} {flat[key]} -> {value}')
  return ', '.join(words)
