"""Values of config keys: their types, their units, and how people write them."""
import ast
import json
import math
import pathlib
import re
import sys
from collections.abc import Callable, Iterable
from typing import Any

import ml_collections

from t5like.config.base import base
from t5like.config_type import Config
from t5like.errors import ConfigError
from t5like.nearest import nearest
from t5like.objectives import lengths

ROOT = pathlib.Path(__file__).resolve().parents[2]

DEEPEST = 12  # levels of a value
LONGEST = 80  # characters of a value that an error shows
WHOLE_NUMBERS = 2 ** 63  # are below
DURATIONS = (
    'stop.wall_time',
    'watchdog.start',
    'watchdog.step',
    'watchdog.data',
    'watchdog.save',
    'watchdog.peers',
)
DURATION = re.compile(r'(.*?)\s*(s|min|h|d)')
SECONDS = dict(s=1, min=60, h=3600, d=86400)
TRUTHS = {'true': True, '1': True, 'yes': True, 'false': False, '0': False, 'no': False}
NEEDS = {
    bool: 'true or false',
    int: 'a whole number below 2^63, such as 12, 1_000, 250K, 2.5M, 20B or 1e6',
    float: 'a finite number, such as 0.1, 2 or 3e-4',
    str: 'text',
    tuple: "a tuple of texts, such as ('a', 'b')",
    dict: "a dict of named arguments, such as {'momentum': 0.9}",
    list: "a tuple of dicts, such as ({'tokens': '10B', 'batch_size': 256},)",
}
NEEDS_DURATION = 'seconds, or a duration such as 30s, 90min, 2h or 1d'
TABLES = ('stages',)  # keys whose values are tuples of dicts
NUMBERS_OF_STEPS = ('steps', 'num_steps', 'train_steps', 'total_steps', 'max_steps')  # of other programs

Flat = dict[str, Any]  # {'seed': 0, 'data.source': ...}


def _sections() -> dict[str, Config]:
  """{name: section} of the defaults."""
  sections = {}
  for name, value in base().items():
    if isinstance(value, ml_collections.ConfigDict):
      sections[name] = value
  return sections


SECTIONS = _sections()


def flatten(config: Config) -> Flat:
  """{'seed': 0, 'data.source': ...}: every key with its value, keys without a section first."""
  flat = {}
  in_sections = {}
  for name in _keys(config):
    value = config[name]
    if isinstance(value, ml_collections.ConfigDict) and name in SECTIONS:
      for key in _keys(value):
        in_sections[f'{name}.{key}'] = value[key]
    else:
      flat[str(name)] = value
  flat.update(in_sections)
  return {key: _plain(key, value) for key, value in flat.items()}


def _keys(config: Config) -> list[str]:
  """Names of keys in the order of t5like/config/base.py; config.keys() would sort them."""
  return list(vars(config)['_fields'])


def _plain(key: str, value: Any) -> Any:
  """A value without ConfigDicts. ConfigError for one that is nested too deep."""
  if _depth_above(value, DEEPEST):
    raise ConfigError(f'{key}: holds itself, or is nested more than {DEEPEST} deep. Give it plain values.')
  if isinstance(value, ml_collections.ConfigDict):
    return value.to_dict()
  return value


def _depth_above(value: Any, levels: int) -> bool:
  """Whether containers are nested more than `levels` deep, as they are without end in a value that holds itself."""
  if isinstance(value, ml_collections.ConfigDict):
    inside = [value[name] for name in _keys(value)]
  elif isinstance(value, dict):
    inside = list(value.values())
  elif isinstance(value, (list, tuple, set, frozenset)):
    inside = list(value)
  else:
    return False
  return levels == 0 or any(_depth_above(item, levels - 1) for item in inside)


DEFAULTS = flatten(base())


def made_of(flat: Flat) -> Config:
  """A locked config of these values; keys that `flat` lacks have their defaults."""
  config = base().unlock()
  for key, value in flat.items():
    section, _, name = key.rpartition('.')
    if section:
      config[section][name] = value
    else:
      config[name] = value
  return config.lock()


def kind_of(key: str) -> type:
  """The type of a key's values, by which the tables below go; `list` stands for tuples of dicts."""
  if key in TABLES:
    return list
  return type(DEFAULTS.get(key))


# --- Values that people write ---------------------------------------------------------------------


def parse(key: str, text: str) -> Any:
  """The value of `key` that a text stands for; None when it stands for none."""
  if key in DURATIONS:
    return _parse_duration(text)
  return PARSERS[kind_of(key)](text)


def _parse_truth(text: str) -> bool | None:
  return TRUTHS.get(text.strip().lower())


def _parse_whole_number(text: str) -> int | None:
  return lengths.whole_number(text.strip())


def _parse_number(text: str) -> float | None:
  try:
    value = float(text.strip())
  except ValueError:
    return None
  return value if math.isfinite(value) else None


def _parse_duration(text: str) -> float | None:
  """Seconds."""
  match = DURATION.fullmatch(text.strip())
  if match is None:
    return _parse_number(text)
  number = _parse_number(match[1])
  if number is None:
    return None
  seconds = number * SECONDS[match[2]]
  return seconds if math.isfinite(seconds) else None


def _parse_text(text: str) -> str:
  return text


def _parse_tuple(text: str) -> tuple[str, ...] | None:
  plain = text.strip()
  if plain[:1] + plain[-1:] not in ('()', '[]'):
    return (text,)
  value = literal(plain)
  if isinstance(value, str):
    return (value,)
  return value if fits(value, tuple) else None


def _parse_table(text: str) -> tuple[dict[str, Any], ...] | None:
  value = literal(text.strip())
  if isinstance(value, dict):
    value = (value,)
  return value if fits(value, list) else None


def _parse_dict(text: str) -> dict[str, Any] | None:
  value = literal(text.strip())
  return value if fits(value, dict) else None


PARSERS: dict[type, Callable[[str], Any]] = {
    bool: _parse_truth,
    int: _parse_whole_number,
    float: _parse_number,
    str: _parse_text,
    tuple: _parse_tuple,
    dict: _parse_dict,
    list: _parse_table,
}


def literal(text: str) -> Any:
  """The Python value that a text spells, with tuples for lists; None when it spells none."""
  spelled = {'true': 'True', 'false': 'False'}.get(text)
  try:
    return tuples(ast.literal_eval(spelled or text))
  except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
    return None


def tuples(value: Any) -> Any:
  """A value with tuples for its lists."""
  if isinstance(value, dict):
    return {key: tuples(item) for key, item in value.items()}
  if isinstance(value, (list, tuple)):
    return tuple(map(tuples, value))
  return value


def normal(key: str, value: Any) -> Any:
  """A config file's value in its key's own type, where nothing is lost by it."""
  kind = kind_of(key)
  if isinstance(value, str) and kind in (int, float):
    number = parse(key, value)
    return value if number is None else number
  if kind is float and type(value) is int and fits(value, float):
    return float(value)
  if kind is int and isinstance(value, float) and value.is_integer():
    return int(value)
  if kind in (tuple, dict, list):
    return tuples(value)
  return value


def fits(value: Any, kind: type) -> bool:
  """Whether a value is of the type of a key's default, and such as can be stored."""
  return FITTING[kind](value)


def _is_truth(value: Any) -> bool:
  return type(value) is bool


def _is_whole_number(value: Any) -> bool:
  if isinstance(value, bool):  # Python counts True as a number; we do not
    return False
  return isinstance(value, int) and abs(value) < WHOLE_NUMBERS


def _is_number(value: Any) -> bool:
  if isinstance(value, bool):
    return False
  return isinstance(value, (int, float)) and abs(value) <= sys.float_info.max  # not nan


def _is_text(value: Any) -> bool:
  return isinstance(value, str)


def _is_texts(value: Any) -> bool:
  return isinstance(value, tuple) and all(map(_is_text, value))


def _is_table(value: Any) -> bool:
  """Whether a value is a tuple of dicts that JSON can hold."""
  if not isinstance(value, tuple):
    return False
  return all(isinstance(entry, dict) and _can_be_stored(entry) for entry in value)


def _is_arguments(value: Any) -> bool:
  """Whether a value is a dict of named arguments that JSON can hold."""
  return _can_be_stored(value) and isinstance(value, dict) and all(map(_is_name, value))


def _can_be_stored(value: Any) -> bool:
  try:
    json.dumps(value, allow_nan=False)
  except (TypeError, ValueError, RecursionError):
    return False
  return True


def _is_name(value: Any) -> bool:
  return isinstance(value, str) and value.isidentifier()


FITTING: dict[type, Callable[[Any], bool]] = {
    bool: _is_truth,
    int: _is_whole_number,
    float: _is_number,
    str: _is_text,
    tuple: _is_texts,
    dict: _is_arguments,
    list: _is_table,
}


# --- Words for people -----------------------------------------------------------------------------


def needs(key: str) -> str:
  """What values of a key must be."""
  if key in DURATIONS:
    return NEEDS_DURATION
  return NEEDS[kind_of(key)]


def show(value: Any) -> str:
  """A value as Python writes it, cut to a length for errors."""
  try:
    text = repr(value)
  except ValueError:  # Python refuses to print numbers of more than 4300 digits
    return 'a huge number'
  return cut(text)


def cut(text: str) -> str:
  """A text cut to a length for errors."""
  if len(text) <= LONGEST:
    return text
  return f'{text[:LONGEST - 3]}...'


def either(names: Iterable[Any]) -> str:
  """'a, b or c'; 'none' of no names."""
  listed = list(map(str, names))
  if not listed:
    return 'none'
  *most, last = listed
  if not most:
    return last
  return f'{", ".join(most)} or {last}'


def up(n: int, unit: int) -> int:
  """The least multiple of `unit` that is not below n."""
  return -(-n // unit) * unit


def divisors(near: int, n: int) -> str:
  """The divisors of n nearest to a number, for people to choose from."""
  def distance(divisor: int) -> int:
    return abs(divisor - near)
  by_distance = sorted((d for d in range(1, 1025) if n % d == 0), key=distance)
  return either(sorted(by_distance[:3]))


def unknown(key: str, written: str) -> str:
  """What to say of a key that does not exist: the nearest that do.

  Args:
    key: 'section.name', or a name.
    written: the key with its value, as errors begin.
  """
  inside = [existing for existing in DEFAULTS if existing.startswith(f'{key}.')]
  if inside:
    return f'{written}: {key} is a section. Set one of its keys: {", ".join(inside)}.'
  near = _nearest_keys(key)
  section, _, _ = key.rpartition('.')
  of_section = [existing for existing in near if existing.rpartition('.')[0] == section]
  near = of_section or near
  if not near:
    return f'{written}: unknown key. t5like/config/base.py lists them all.'
  return f'{written}: unknown key. Did you mean {either(near[:4])}?'


def _nearest_keys(key: str) -> list[str]:
  """Keys that may be meant by one that does not exist, the likeliest first."""
  _, _, last = key.rpartition('.')
  if last in NUMBERS_OF_STEPS:
    return ['stop.tokens']
  names = {existing: existing.rpartition('.')[2] for existing in DEFAULTS}
  abbreviated = [existing for existing, name in names.items() if _initials(name) == last]
  if abbreviated and len(last) > 1:
    return abbreviated
  same = [existing for existing, name in names.items() if name == last]
  whole = nearest(key, same or DEFAULTS, close=0.8)
  if whole or same:
    return whole or same
  close = nearest(last, names.values())
  return [existing for existing, name in names.items() if name in close]


def _initials(name: str) -> str:
  """'lr' of learning_rate."""
  return ''.join(word[0] for word in name.split('_'))
