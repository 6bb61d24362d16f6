"""Objectives that are mixtures of others: ul2."""
import math
from typing import Any

from t5like.errors import ConfigError
from t5like.objectives import asking
from t5like.objectives.spec import Mixture, Part


def parse_denoiser(text: str) -> Part:
  """The Part that '[NLU] 0.2 3 0.15' or '[S2S] 0.2 prefix' says. Raises ConfigError."""
  words = text.split()
  mode = words.pop(0) if words and not _number(words[0]) else ''
  if len(words) == 2 and words[1] == 'prefix' and _number(words[0]) > 0:
    return Part(text, float(words[0]), mode, dict(name='prefix_lm'))
  numbers = [_number(w) for w in words]
  if len(numbers) == 3 and all(numbers) and min(numbers) > 0 and numbers[1] >= 1 and numbers[2] < 1:
    changes = dict(name='span_corruption', mean_span=numbers[1], noise_density=numbers[2])
    return Part(text, numbers[0], mode, changes)
  raise ConfigError(f"objective.denoisers: {text!r} is none. Write mode, rate, mean span and density, as in "
                    "'[NLU] 0.2 3 0.15', or '[S2S] 0.2 prefix'; the mode may be left out.")


def _number(text: str) -> float:
  try:
    value = float(text)
  except ValueError:
    return 0.0
  return value if math.isfinite(value) else 0.0


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
    name='ul2', architectures=('decoder', 'encoder_decoder'), keys=('denoisers',), parts=_denoisers,
    style_of_pairs='pair', ask=_as_prefix_else_as_span, example='def <extra_id_0>(self):')
