"""Rotary positions in a config.json, of transformers 5 and of older ones, as keys of config.model, and back.

transformers 5 keeps all of it in `rope_parameters`, of some families apart for layers with a window and without; older
ones keep the base beside the other keys and the rest in `rope_scaling`, which counts where both are there.
"""
import dataclasses
from collections.abc import Mapping
from typing import Any

from t5like import choices
from t5like.config.values import either, show
from t5like.errors import ConfigError
from t5like.files.schema import Flag, List, Maybe, Object, Real, Text, Whole
from t5like.huggingface.families import Family

Values = dict[str, Any]

THETA = Real(0, 1e15, above=True)
FRACTION = Real(0, 1, above=True)
NUMBER = Maybe(Real(0, 1e9))
NUMBERS = List(Real(0, 1e9, above=True), most=1 << 15)
ORIGINAL = 'original_max_position_embeddings'  # ours: original_positions
ALIASES = {'su': 'longrope'}  # names of before
PARAMETERS = dict(
    rope_type=Text(100),
    type=Text(100),
    rope_theta=THETA,
    partial_rotary_factor=FRACTION,
    factor=NUMBER,
    original_max_position_embeddings=Maybe(Whole(1, 1 << 24)),
    attention_factor=NUMBER,
    beta_fast=NUMBER,
    beta_slow=NUMBER,
    mscale=NUMBER,
    mscale_all_dim=NUMBER,
    truncate=Flag(),
    low_freq_factor=NUMBER,
    high_freq_factor=NUMBER,
    short_factor=NUMBERS,
    long_factor=NUMBERS,
)
OF_GLOBAL = 'full_attention'
OF_LOCAL = 'sliding_attention'
BY_LAYER = {OF_GLOBAL: Maybe(Object(PARAMETERS)), OF_LOCAL: Maybe(Object(PARAMETERS))}
SHAPE = Maybe(Object({**PARAMETERS, **BY_LAYER}))


def read(kind: str, family: Family, hf: Values) -> Values:
  """rope_theta, rope_fraction, rope_scaling and, of families with two of them, local_rope_theta.

  Raises:
    ConfigError: for what ours cannot do.
  """
  place = 'rope_scaling' if hf.get('rope_scaling') else 'rope_parameters'
  source = Source(kind, family, hf, place)
  if family.rope_by_layer:
    return _read_by_layer(source)
  return _read_one(source, hf.get(place) or {}, family.theta)


@dataclasses.dataclass(frozen=True)
class Source:
  """A config.json: its model_type, family and values, and the key that counts, which errors name."""
  kind: str
  family: Family
  hf: Values
  place: str


def _read_by_layer(source: Source) -> Values:
  """Of layers with a window and of those without, between which transformers 5 divides `rope_parameters`."""
  family = source.family
  whole: Values = source.hf.get('rope_parameters') or {}
  local: Values = {}
  if OF_LOCAL in whole or OF_GLOBAL in whole:
    local = whole.get(OF_LOCAL) or {}
    whole = whole.get(OF_GLOBAL) or {}
  whole = {**whole, **(source.hf.get('rope_scaling') or {})}
  values = _read_one(source, whole, family.theta)
  theta = source.hf.get(family.local_theta_key, family.local_theta or values['rope_theta'])
  of_local = _read_one(source, dict(dict(rope_theta=theta), **local), theta)
  if of_local == values:
    return dict(values, local_rope_theta=0.0)
  if of_local['rope_scaling']:
    raise ConfigError(f'{source.place} in config.json: {source.kind} models can only be read where {OF_LOCAL} is not '
                      f'scaled, or as {OF_GLOBAL} is.')
  return dict(values, local_rope_theta=float(of_local['rope_theta']))


def _read_one(source: Source, parameters: Values, theta: float) -> Values:
  """rope_theta, rope_fraction and rope_scaling; `theta`: where neither parameters nor config.json say it."""
  family = source.family
  theta = parameters.get('rope_theta', _first(source.hf, (family.theta_key, 'rope_theta', 'rotary_emb_base'), theta))
  fraction = _first(source.hf, ('rotary_pct', 'partial_rotary_factor'), family.rope_fraction)
  fraction = parameters.get('partial_rotary_factor', fraction)
  if not family.any_rope_fraction and fraction != 1:
    raise ConfigError(f'partial_rotary_factor={fraction} in config.json: {source.kind} models can only be read where '
                      'it is 1 or not given.')
  return dict(rope_theta=theta, rope_fraction=fraction, rope_scaling=_scaling(source, parameters))


def _first(values: Values, keys: tuple[str, ...], default: float) -> float:
  """The value of the first of the keys that is given."""
  for key in keys:
    if key in values:
      return values[key]
  return default


def _scaling(source: Source, parameters: Values) -> Values:
  """model.rope_scaling."""
  name = parameters.get('rope_type', parameters.get('type', 'default'))
  name = ALIASES.get(name, name)
  if name == 'default':
    return {}
  scalings = source.family.scalings
  if name not in scalings:
    raise ConfigError(f'{source.place} in config.json asks for rope_type={show(name)}: {source.kind} models can be '
                      f'read with {either(["default", *scalings])}.')
  facts = choices.ROPE_SCALINGS[name]
  numbers = dict(parameters)
  for key, value in parameters.items():
    if value is None:  # as if it were not given
      del numbers[key]
  longest: int = source.hf.get('max_position_embeddings', source.family.defaults['max_position_embeddings'])
  numbers['original_positions'] = _original_positions(source, numbers, longest)
  numbers.setdefault('factor', longest / numbers['original_positions'])
  scaling: Values = dict(name=name)
  for key in facts.required:
    if key not in numbers:
      raise ConfigError(f'{source.place} in config.json: rope_type={name!r} needs {key}.')
    scaling[key] = _plain(numbers[key])
  for key, default in facts.optional.items():
    if numbers.get(key, default) != default:
      scaling[key] = numbers[key]
  return scaling


def _original_positions(source: Source, numbers: Values, longest: int) -> int:
  """How long rows were before scaling: beside the parameters, among them, or as long as they are."""
  if numbers.get('rope_type', numbers.get('type')) == 'dynamic':
    return longest
  return source.hf.get(ORIGINAL) or source.family.original_positions or numbers.get(ORIGINAL, longest)


def _plain(value: Any) -> Any:
  """Lists as tuples."""
  if isinstance(value, list):
    return tuple(value)
  return value


def write(family: Family, model: Mapping[str, Any]) -> Values:
  """The keys of config.json, both for transformers 5 and for older ones."""
  theta = model['rope_theta']
  scaling = model['rope_scaling']
  parameters = dict(_written_scaling(scaling), rope_theta=theta)
  values: Values = dict(rope_parameters=parameters)
  values[family.theta_key] = theta
  is_local_scaled = not model['local_rope_theta']
  if scaling and not (family.rope_by_layer and is_local_scaled):
    values['rope_scaling'] = _written_scaling(scaling)
  if family.rope_by_layer:
    local = parameters
    if not is_local_scaled:
      local = dict(rope_type='default', rope_theta=model['local_rope_theta'])
    values['rope_parameters'] = {OF_GLOBAL: parameters, OF_LOCAL: local}
    values[family.local_theta_key] = local['rope_theta']
  if family.any_rope_fraction:
    parameters['partial_rotary_factor'] = model['rope_fraction']
    values[family.fraction_key] = model['rope_fraction']
  if family.original_positions:
    values[ORIGINAL] = scaling.get('original_positions', family.original_positions)
  if scaling.get('name') == 'dynamic':
    values['max_position_embeddings'] = scaling['original_positions']
  return values


def _written_scaling(scaling: Mapping[str, Any]) -> Values:
  """Parameters of rotary positions but for their base."""
  if not scaling:
    return dict(rope_type='default')
  parameters: Values = dict(rope_type=scaling['name'])
  for key, value in scaling.items():
    if key == 'original_positions':
      parameters[ORIGINAL] = value
    elif isinstance(value, tuple):
      parameters[key] = list(value)
    elif key != 'name':
      parameters[key] = value
  if scaling['name'] == 'dynamic':
    del parameters[ORIGINAL]  # transformers knows max_position_embeddings only
  return parameters
