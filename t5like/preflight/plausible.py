"""Conditions that every prediction must satisfy: checked each time, and a prediction that fails is refused."""
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from t5like import choices
from t5like.config_type import Config
from t5like.errors import ConfigError
from t5like.model import flops
from t5like.objectives import lengths
from t5like.preflight.hlo_schedule import MXU
from t5like.preflight.hlo_times import Prediction

SLACK = 0.03  # of FLOPs: sums that a compiler makes of small products, or products of small sums
BLOCK = 1024  # the largest blocks of kernels
LANES = 128  # the unit of their sizes


class Work(NamedTuple):
  """FLOPs of a step on one device, as a model's arithmetic has them."""
  model: float  # by PaLM's convention: attention in full
  least: float  # without those that causal masks save: a program must have as many
  most: float  # with those that remat recomputes and kernels waste: a program has no more


def work(config: Config, facts: Mapping[str, Any], devices: int) -> Work:
  """The FLOPs that a step of a resolved config should have.

  Args:
    config: resolved.
    facts: those of compile_ahead.py about the lowered step.
    devices: of the whole mesh.
  """
  rows = config.batch_size / devices
  shapes = lengths.shapes(config)
  attention = facts['attention_per_row']
  linear = facts['flops_per_row_untouched'] - attention
  logits = 2 * config.model.vocab_size * config.model.d_model * shapes.predicted
  recomputed = choices.REMAT[config.model.remat].recomputed
  # Parts of the vocabulary are multiplied twice where the loss is computed in pieces.
  most_linear = linear * (1 + recomputed) + logits
  most_attention = attention * _most_of_attention(config, facts['kernel'][0])
  model = facts['flops_per_row']
  return Work(
      model=model * rows,
      least=(model - spared(config)) * rows,
      most=(most_linear + most_attention) * rows,
  )


def _most_of_attention(config: Config, kernel: str) -> float:
  """How many times the FLOPs of full attention a kernel computes at most."""
  if kernel == 'xla':
    return 4 / 3
  # Fused backward passes make logits again: 7 products instead of 6. Forward again, 9; of padded rows; with
  # prefixes one call for each kind of query.
  calls = 1 + config.model.prefix_mask
  return 9 / 6 * _padding(lengths.shapes(config), config.mesh.context) * calls


def spared(config: Config) -> float:
  """FLOPs of one row that a causal mask spares: half of the attention of a decoder to itself."""
  model = config.model
  if not choices.ARCHITECTURES[model.name].causal:
    return 0
  targets = lengths.shapes(config).targets
  layers = flops.PASSES[model.name] * model.num_layers
  return 6 * model.num_heads * model.head_dim * layers * targets ** 2


def _padding(shapes: lengths.Lengths, pieces: int) -> float:
  """By how much kernels enlarge the square of a row that is cut into this number of pieces, at most."""
  ratio = 1.0
  for length in (shapes.inputs, shapes.targets):
    if not length:
      continue
    piece = math.ceil(length / pieces)
    blocks = math.ceil(piece / BLOCK)
    block = math.ceil(piece / blocks / LANES) * LANES
    ratio = max(ratio, block * blocks / piece)
  return ratio ** 2


def check(prediction: Prediction, work: Work, peak: float) -> None:
  """Refuses a prediction that cannot be right.

  Args:
    prediction: of one step.
    work: the model's arithmetic for the same step.
    peak: FLOPs of a device per second.

  Raises:
    ConfigError: names the condition that does not hold.
  """
  flops = prediction.counts.get('flops', 0.0)
  model_flops = flops - prediction.counts.get('optimizer_flops', 0.0)
  if not prediction.seconds > 0:
    raise _implausible('a step that takes no time')
  computed = f'the program computes {_tera(model_flops)} a step and device'
  if model_flops < work.least * (1 - SLACK):
    raise _implausible(f'{computed}, and the model alone needs {_tera(work.least)}: something of the program was not '
                       'read')
  if model_flops > work.most * (1 + SLACK):
    raise _implausible(f'{computed}, and with all that remat and blocks of kernels add the model explains '
                       f'{_tera(work.most)}')
  for name, count in (('the program', flops), ('the model', work.least)):
    utilisation = count / prediction.seconds / peak
    if utilisation > MXU:
      raise _implausible(f'{name} would use {utilisation:.1%} of the peak of the matrix units, which reach {MXU:.0%}')


def _tera(flops: float) -> str:
  return f'{flops / 1e12:.4g} TFLOP'


def _implausible(reason: str) -> ConfigError:
  return ConfigError(f'This prediction cannot be right, so it is not shown: {reason}. Please report it, with the '
                     'config, the topology and the versions of jax and libtpu.')
