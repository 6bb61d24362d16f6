"""How long a run may be and when it stops: the rules of config.stop, checkpoint, schedule and allow_changed."""
import math
import operator
import re
from collections.abc import Iterator

from t5like import choices
from t5like.config import stages
from t5like.config.optimizer_rules import NOTES
from t5like.config.resolved import phases
from t5like.config.resumable import permitted
from t5like.config.values import DEFAULTS, either, parse, show, unknown, up
from t5like.config_type import Config
from t5like.errors import ConfigError
from t5like.nearest import suggestion
from t5like.objectives import lengths, table

# {name: (the least, the most that it can be)}
METRICS = dict(nll=(0.0, math.inf), perplexity=(1.0, math.inf), accuracy=(0.0, 1.0), bits_per_byte=(0.0, math.inf))
COMPARISONS = {'<=': operator.le, '<': operator.lt, '>=': operator.ge, '>': operator.gt}
TARGET = re.compile(r'\s*(\w+)\s*(<=|<|>=|>)\s*(\S+)\s*')
ANY_NUMBER = 'loss.z_loss'  # a key whose values are written as those of targets are


def check_run(config: Config) -> Iterator[str]:
  """Yields what is wrong with the length of a run, its checkpoints and its target."""
  seq_len = config.data.seq_len
  per_step = config.batch_size * seq_len
  if config.stop.tokens < per_step:
    yield (f'stop.tokens={config.stop.tokens:,}: less than one step of batch_size x data.seq_len = '
           f'{config.batch_size} x {seq_len}. Use at least {per_step:,}.')
  every = config.checkpoint.every
  keep = config.checkpoint.keep_every
  if every and keep % every:
    yield (f'checkpoint.keep_every={keep}: must be a multiple of checkpoint.every={every}, to name '
           f'steps that are saved. Use {up(keep, every)}.')
  if config.stop.target:
    yield from _target(config)


def _target(config: Config) -> Iterator[str]:
  target = config.stop.target
  try:
    metric, comparison, bound = parse_target(target)
  except ConfigError as error:
    yield str(error)
    return
  least, most = METRICS[metric]
  is_reached = COMPARISONS[comparison]
  if not is_reached(least, bound) and not is_reached(most, bound):
    yield (f'stop.target={show(target)}: {metric} is from {least:g} to {most:g}, so that no model can reach it. Give '
           'a number in between.')
  knows_bytes = table.of(config).predicts_each_token and not config.data.mixture
  if metric == 'bits_per_byte' and not knows_bytes:
    names = [repr(name) for name, entry in table.OBJECTIVES.items() if entry.predicts_each_token]
    yield (f'stop.target={show(target)}: bytes are only predicted, each once, by objective.name={either(names)} '
           "on one dataset. Use 'nll < ...' or 'accuracy > ...'.")


def parse_target(text: str) -> tuple[str, str, float]:
  """('nll', '<=', 1.5) from 'nll <= 1.5'. Raises ConfigError."""
  match = TARGET.fullmatch(text)
  value = None
  if match is not None:
    value = parse(ANY_NUMBER, match[3])
  if match is None or value is None:
    raise ConfigError(f'stop.target={show(text)}: write a metric, one of <= < >= >, and a number, '
                      f"as in 'nll <= 1.5'. Metrics are {either(METRICS)}.")
  metric = match[1]
  if metric not in METRICS:
    raise ConfigError(f'stop.target={show(text)}: unknown metric {metric!r}. {suggestion(metric, METRICS)}'
                      f'There is {either(METRICS)}.')
  return metric, match[2], value


def check_allowed(config: Config) -> Iterator[str]:
  """Yields what is wrong with `config.allow_changed`."""
  sections = {key.partition('.')[0] for key in DEFAULTS}
  for name in permitted(config):
    if name.partition('.')[0] not in sections:  # a key that an older version had is none of ours, but its section is
      yield unknown(name, f'allow_changed={show(config.allow_changed)}: {name}')


def warnings(config: Config) -> Iterator[str]:
  """What should be known of a config that is right: above all what its run is too short for."""
  name = config.optimizer.name
  if name in NOTES:
    yield f'optimizer.name={name!r}: {NOTES[name]}.'
  yield from _never_ends_early(config)
  yield from _quantized(config)
  listed = stages.of(config)
  stretches = stages.course(listed)
  for stage in listed[1:]:
    if stage.tokens >= config.stop.tokens:
      yield f'{stage.where}.tokens={stage.tokens:,}: this run ends before, at stop.tokens={config.stop.tokens:,}.'
  first_steps = [stretch.step for stretch in stretches]
  spans = stages.spans(listed, first_steps, stretches[-1].stop)
  for stage, stretch, (_, steps) in zip(listed, stretches, spans):
    if stage.begins_schedule and stretch.steps:
      yield from _shortened(stage, steps)


def _shortened(stage: stages.Stage, steps: int) -> Iterator[str]:
  """The phases of the schedule that a stage begins which do not fit into its steps."""
  schedule = stage.config.schedule
  prefix = f'{stage.where}.' * bool(stage.where)
  warmup, decay = phases(schedule, steps)
  if warmup < schedule.warmup_steps:
    yield (f'{prefix}schedule.warmup_steps={schedule.warmup_steps:,} is more than the {steps:,} steps of this run '
           f'leave room for: it warms up for {warmup:,}.')
  wanted = round(schedule.decay_fraction * steps)
  if 0 < decay < wanted:
    yield (f'{prefix}schedule.decay_fraction={schedule.decay_fraction:g} is {wanted:,} of {steps:,} steps, more than '
           f'the warm-up leaves: the decay takes {decay:,}.')


def _quantized(config: Config) -> Iterator[str]:
  """The measured loss of products with 8-bit operands, by objective."""
  name = config.model.quantization
  if name == 'none':
    return
  gaps = choices.QUANTIZATIONS[name].gaps
  written = f'model.quantization={name!r}'
  for objective in sorted({component.objective.name for component in lengths.components(config)}):
    if objective not in gaps:
      yield (f'{written}: its loss was never measured for objective.name={objective!r}. Measure it with a small model '
             'first, beside the same in full precision.')
      continue
    mean, half = gaps[objective]
    yield (f'{written}: with objective.name={objective!r} small models ended {mean:+.4f} ± {half:.4f} nats per token '
           'from full precision (benchmarks/eight_bit.py).')


def _never_ends_early(config: Config) -> Iterator[str]:
  """A target or a patience that is first looked at when the run ends anyway."""
  stop = config.stop
  if config.evaluate.every or not (stop.target or stop.patience):
    return
  written = f'stop.patience={show(stop.patience)}'
  if stop.target:
    written = f'stop.target={show(stop.target)}'
  yield (f'{written} cannot end the run before stop.tokens: with evaluate.every=0 it is validated at its end only.')
