"""Objectives that are mixtures of others: ul2."""
import math
from typing import Any

from t5like.errors import ConfigError
from t5like.objectives import asking
from t5like.objectives.spec import Mixture, Part


def parse_denoiser(text: str) -> Part:
  """The Part that '[NLU] 0.2 3 0.15' or '[S2S] 0.2 prefix' says. Raises ConfigError."""
  words = text.split()
  mode = ''
  if words and not _number(words[0]):
    mode = words.pop(0)
  part = _prefix(text, mode, words) or _spans(text, mode, words)
  if part is None:
    raise ConfigError(f"objective.denoisers: {text!r} is none. Write mode, rate, mean span and density, as in "
                      "'[NLU] 0.2 3 0.15', or '[S2S] 0.2 prefix'; the mode may be left out.")
  return part


def _prefix(text: str, mode: str, words: list[str]) -> Part | None:
  """The Part of rate and 'prefix'."""
  if len(words) != 2 or words[1] != 'prefix':
    return None
  rate = _number(words[0])
  if rate <= 0:
    return None
  return Part(text, rate, mode, dict(name='prefix_lm'))


def _spans(text: str, mode: str, words: list[str]) -> Part | None:
  """The Part of rate, mean span and density."""
  if len(words) != 3:
    return None
  rate, mean_span, density = map(_number, words)
  if rate <= 0 or mean_span < 1 or not 0 < density < 1:
    return None
  return Part(text, rate, mode, dict(
      name='span_corruption',
      mean_span=mean_span,
      noise_density=density,
  ))


def _number(text: str) -> float:
  """The number that a text says, 0 where it says none."""
  try:
    value = float(text)
  except ValueError:
    return 0.0
  if not math.isfinite(value):
    return 0.0
  return value


def _denoisers(keys: Any) -> list[Part]:
  return [parse_denoiser(text) for text in keys.denoisers]


def _as_prefix_else_as_span(keys: Any) -> tuple[asking.Asking, str]:
  """An answer is what follows, if the mixture has such a denoiser; else what a sentinel stands for."""
  modes = {}
  for part in _denoisers(keys):
    modes.setdefault(part.changes['name'], part.mode)
  if 'prefix_lm' in modes:
    return asking.INPUTS, modes['prefix_lm']
  return asking.SENTINEL, modes['span_corruption']


UL2 = Mixture(
    name='ul2',
    architectures=('decoder', 'encoder_decoder'),
    keys=('denoisers',),
    parts=_denoisers,
    style_of_pairs='pair',
    ask=_as_prefix_else_as_span,
    example='def <extra_id_0>(self):',
)
