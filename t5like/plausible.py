"""What must hold of every prediction, or else it is wrong: checked each time, and what fails is refused."""
import math
from typing import NamedTuple

from t5like import choices, lengths
from t5like.errors import ConfigError
from t5like.schedule import MXU, Prediction

SLACK = 0.03  # of FLOPs: sums that a compiler makes of small products, or products of small sums
BLOCK, LANES = 1024, 128  # the largest blocks of kernels, and the unit of their sizes


class Work(NamedTuple):
  """FLOPs of a step on one device, as a model's arithmetic has them."""
  model: float  # by PaLM's convention: attention in full
  least: float  # without what causal masks spare: a program must have as many
  most: float  # with what remat recomputes, and what kernels compute in vain: a program has no more


def work(config, facts: dict, devices: int) -> Work:
  """Of a resolved config; facts: of aot.py."""
  rows, shapes, m = config.batch_size / devices, lengths.shapes(config), config.model
  attention, everything = facts['attention_per_row'], facts['flops_per_row_untouched']
  logits = 2 * m.vocab_size * m.d_model * (shapes.predictions or shapes.targets)
  # Parts of the vocabulary are multiplied twice where the loss is computed in pieces.
  linear = (everything - attention) * (1 + choices.REMAT[m.remat].recomputed) + logits
  if facts['kernel'][0] == 'xla':
    attention *= 4 / 3
  else:
    # Fused backward passes make logits again: 7 products instead of 6. Forward again, 9; of padded rows; with
    # prefixes one call for each kind of query.
    attention *= 9 / 6 * _padding(shapes, config.mesh.context) * (1 + m.prefix_mask)
  return Work(facts['flops_per_row'] * rows, (facts['flops_per_row'] - spared(config)) * rows,
              (linear + attention) * rows)


def spared(config) -> float:
  """FLOPs of one row that a causal mask spares: half of the attention of a decoder to itself."""
  shapes, m = lengths.shapes(config), config.model
  if not choices.ARCHITECTURES[m.name].causal:
    return 0
  return 6 * m.num_heads * m.head_dim * m.num_layers * shapes.targets ** 2


def _padding(shapes, pieces):
  """By how much kernels enlarge the square of a row, cut into so many pieces, at most."""
  ratio = 1.0
  for length in filter(None, (shapes.inputs, shapes.targets)):
    piece = math.ceil(length / pieces)
    blocks = math.ceil(piece / BLOCK)
    ratio = max(ratio, math.ceil(piece / blocks / LANES) * LANES * blocks / piece)
  return ratio ** 2


def check(prediction: Prediction, work: Work, peak: float) -> None:
  """ConfigError that says what does not hold. peak: FLOPs of a device per second."""
  flops = prediction.counts.get('flops', 0.0)
  of_model = flops - prediction.counts.get('optimizer_flops', 0.0)
  if not prediction.seconds > 0:
    _refuse('a step that takes no time')
  if of_model < work.least * (1 - SLACK):
    _refuse(f'the program computes {_tera(of_model)} a step and device, and the model alone needs {_tera(work.least)}: '
            'something of the program was not read')
  if of_model > work.most * (1 + SLACK):
    _refuse(f'the program computes {_tera(of_model)} a step and device, and with all that remat and blocks of kernels '
            f'add the model explains {_tera(work.most)}')
  for name, count in (('the program', flops), ('the model', work.least)):
    utilisation = count / prediction.seconds / peak
    if utilisation > MXU:
      _refuse(f'{name} would use {utilisation:.1%} of the peak of the matrix units, which reach {MXU:.0%}')


def _tera(flops):
  return f'{flops / 1e12:.4g} TFLOP'


def _refuse(what):
  raise ConfigError(f'This prediction cannot be right, so it is not shown: {what}. Please report it, with the config, '
                    'the topology and the versions of jax and libtpu.')
