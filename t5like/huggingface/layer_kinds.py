"""Kinds of layers in a config.json: `layer_types`, windows and layers without rotary positions, and back."""
from collections.abc import Mapping, Sequence
from typing import Any

from t5like import choices
from t5like.config.values import either, show
from t5like.errors import ConfigError

Values = dict[str, Any]

KINDS = {'full_attention': 'global', 'sliding_attention': 'local'}
WINDOWED = {True: 'sliding_attention', False: 'full_attention'}


def read(hf: Values, values: Values, default: Sequence[str], window: int | None) -> None:
  """Sets layers and window of config.model.

  Args:
    hf: values of config.json.
    values: of config.model, num_layers included.
    default: types of layers, a pattern that repeats, where config.json names none.
    window: model.window; None: there is none, whatever types say.

  Raises:
    ConfigError: for types that are not known, and for lists that are not as long as the stack.
  """
  count = values['num_layers']
  types = hf.get('layer_types') or repeated(default, count)
  if len(types) != count:
    raise ConfigError(f'layer_types in config.json names {len(types)} layers, and num_hidden_layers says {count}.')
  kinds = []
  for name in types:
    if name not in KINDS:
      raise ConfigError(f'layer_types in config.json has {show(name)}: layers can be read that are {either(KINDS)}.')
    kinds.append(KINDS[name])
  if not window:
    kinds = ['global'] * count
  kinds = _without_rotation(kinds, hf.get('no_rope_layers'))
  values['layers'] = pattern(kinds)
  has_window = any(choices.LAYERS[name].windowed for name in kinds)
  values['window'] = 0
  if has_window:
    values['window'] = window


def _without_rotation(kinds: list[str], rotated: Sequence[int] | None) -> list[str]:
  """Kinds of layers, of which those are rotated that have a 1; None: all."""
  if rotated is None:
    return kinds
  if len(rotated) != len(kinds):
    raise ConfigError(f'no_rope_layers in config.json has {len(rotated)} numbers, for {len(kinds)} layers.')
  named = []
  for kind, is_rotated in zip(kinds, rotated):
    if not is_rotated:
      kind = f'{kind}_nope'
    named.append(kind)
  return named


def repeated(kinds: Sequence[str], count: int) -> list[str]:
  """A pattern of kinds, one for each of so many layers."""
  return [kinds[n % len(kinds)] for n in range(count)]


def of_layers(model: Mapping[str, Any]) -> list[str]:
  """The kind of each layer of a stack of model.num_layers."""
  return repeated(model['layers'], model['num_layers'])


def pattern(kinds: Sequence[str]) -> tuple[str, ...]:
  """The shortest pattern that repeats to these kinds."""
  for period in range(1, len(kinds)):
    if repeated(kinds[:period], len(kinds)) == list(kinds):
      return tuple(kinds[:period])
  return tuple(kinds)


def write(model: Mapping[str, Any]) -> Values:
  """`layer_types` and `sliding_window` of a model."""
  types = [WINDOWED[choices.LAYERS[kind].windowed] for kind in of_layers(model)]
  return dict(layer_types=types, sliding_window=model['window'] or None)
