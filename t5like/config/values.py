"""Values of config keys: their types, their units, and how people write them."""
import ast
import json
import math
import pathlib
import re
import sys
from collections.abc import Iterable
from typing import Any

import ml_collections

from t5like.config.base import base
from t5like.errors import ConfigError
from t5like.nearest import nearest
from t5like.objectives import lengths

ROOT = pathlib.Path(__file__).resolve().parents[2]

DEEPEST = 12  # levels of a value
DURATIONS = ('stop.wall_time', 'watchdog.start', 'watchdog.step', 'watchdog.data', 'watchdog.save',
             'watchdog.peers')
NEEDS = {
    bool: 'true or false',
    int: 'a whole number below 2^63, such as 12, 1_000, 250K, 2.5M, 20B or 1e6',
    float: 'a finite number, such as 0.1, 2 or 3e-4',
    str: 'text',
    tuple: "a tuple of texts, such as ('a', 'b')",
    dict: "a dict of named arguments, such as {'momentum': 0.9}",
}
SECTIONS = {name: v for name, v in base().items() if isinstance(v, ml_collections.ConfigDict)}


def flatten(config):
  """{'seed': 0, 'data.source': ...}: every key with its value, keys without a section first."""
  flat, sections = {}, {}
  for name in vars(config)['_fields']:  # in the order of t5like/config/base.py; keys() would sort
    value = config[name]
    if isinstance(value, ml_collections.ConfigDict) and name in SECTIONS:
      sections.update({f'{name}.{key}': value[key] for key in vars(value)['_fields']})
    else:
      flat[str(name)] = value
  plain = {}
  for key, value in {**flat, **sections}.items():
    if _depth_above(value, DEEPEST):
      raise ConfigError(f'{key}: holds itself, or is nested more than {DEEPEST} deep. Give it plain values.')
    plain[key] = value.to_dict() if isinstance(value, ml_collections.ConfigDict) else value
  return plain


def _depth_above(value, levels):
  """Whether containers are nested more than `levels` deep, as they are without end in a value that holds itself."""
  if isinstance(value, ml_collections.ConfigDict):
    inside = [value[name] for name in vars(value)['_fields']]
  elif isinstance(value, dict):
    inside = list(value.values())
  elif isinstance(value, (list, tuple, set, frozenset)):
    inside = list(value)
  else:
    return False
  return levels == 0 or any(_depth_above(item, levels - 1) for item in inside)


DEFAULTS = flatten(base())


def parse(key, text):
  """The value of `key` that a text stands for; None when it stands for none."""
  kind, plain = type(DEFAULTS[key]), text.strip()
  if kind is bool:
    return {'true': True, '1': True, 'yes': True, 'false': False, '0': False, 'no': False}.get(
        plain.lower())
  if kind is int:
    return lengths.whole_number(plain)
  if kind is float:
    m = re.fullmatch(r'(.*?)\s*(s|min|h|d)', plain) if key in DURATIONS else None
    try:
      value = float(m[1]) * {'s': 1, 'min': 60, 'h': 3600, 'd': 86400}[m[2]] if m else float(plain)
    except ValueError:
      return None
    return value if math.isfinite(value) else None
  if kind is tuple:
    value = literal(plain) if plain[:1] + plain[-1:] in ('()', '[]') else (text,)
    return (value,) if isinstance(value, str) else value if fits(value, tuple) else None
  if kind is dict:
    value = literal(plain)
    return value if fits(value, dict) else None
  return text


def literal(text):
  """The Python value that a text spells, with tuples for lists; None when it spells none."""
  try:
    return tuples(ast.literal_eval({'true': 'True', 'false': 'False'}.get(text, text)))
  except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
    return None


def tuples(value):
  if isinstance(value, dict):
    return {k: tuples(v) for k, v in value.items()}
  return tuple(map(tuples, value)) if isinstance(value, (list, tuple)) else value


def normal(key, value):
  """A config file's value in its key's own type, where nothing is lost by it."""
  kind = type(DEFAULTS.get(key))
  if isinstance(value, str) and kind in (int, float):
    number = parse(key, value)
    return value if number is None else number
  if kind is float and type(value) is int and fits(value, float):
    return float(value)
  if kind is int and isinstance(value, float) and value.is_integer():
    return int(value)
  return tuples(value) if kind in (tuple, dict) else value


def fits(value, kind):
  if kind is tuple:
    return isinstance(value, tuple) and all(isinstance(v, str) for v in value)
  if kind is dict:
    try:
      json.dumps(value, allow_nan=False)
      return isinstance(value, dict) and all(
          isinstance(k, str) and k.isidentifier() for k in value)
    except (TypeError, ValueError, RecursionError):
      return False
  if isinstance(value, bool) or kind is bool:  # Python counts True as a number; we do not
    return type(value) is kind
  if kind is float:
    return isinstance(value, (int, float)) and abs(value) <= sys.float_info.max  # not nan
  return isinstance(value, kind) and (kind is not int or abs(value) < 2 ** 63)


def needs(key):
  return ('seconds, or a duration such as 30s, 90min, 2h or 1d' if key in DURATIONS
          else NEEDS[type(DEFAULTS[key])])


def show(value):
  try:
    text = repr(value)
  except ValueError:  # Python refuses to print numbers of more than 4300 digits
    return 'a huge number'
  return cut(text)


def cut(text):
  return text if len(text) <= 80 else f'{text[:77]}...'


def either(names: Iterable[Any]) -> str:
  """'a, b or c'; 'none' of no names."""
  listed = list(map(str, names))
  if not listed:
    return 'none'
  *most, last = listed
  return f'{", ".join(most)} or {last}' if most else last


def up(n, unit):
  return -(-n // unit) * unit


def divisors(near, n):
  """The divisors of n nearest to a number, for people to choose from."""
  best = sorted((d for d in range(1, 1025) if n % d == 0), key=lambda d: abs(d - near))
  return either(sorted(best[:3]))


def unknown(key, asked):
  """What to say of a key that does not exist: the nearest that do."""
  inside = [k for k in DEFAULTS if k.startswith(f'{key}.')]
  if inside:
    return f'{asked}: {key} is a section. Set one of its keys: {", ".join(inside)}.'
  last = key.rpartition('.')[2]
  tails = {k: k.rpartition('.')[2] for k in DEFAULTS}
  same = [k for k, tail in tails.items() if tail == last]
  close = nearest(last, tails.values())
  near = (
      ['stop.tokens'] * (last in ('steps', 'num_steps', 'train_steps', 'total_steps', 'max_steps'))
      # learning_rate for lr
      or [k for k, tail in tails.items()
          if len(last) > 1 and last == ''.join(word[0] for word in tail.split('_'))]
      or nearest(key, same or DEFAULTS, close=0.8) or same
      or [k for k in tails if tails[k] in close])
  near = [k for k in near if k.rpartition('.')[0] == key.rpartition('.')[0]] or near
  return f'{asked}: unknown key. ' + (
      f'Did you mean {either(near[:4])}?' if near else 't5like/config/base.py lists them all.')
