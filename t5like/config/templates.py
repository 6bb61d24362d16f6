"""From a record of a source to its text, or to two: inputs and targets.

A template is text with fields of the record in braces:

    {article}                        text, or a number
    {answers[text][0]}               part of a field that holds dicts or lists; [-1] is the last
    {question:pad_punctuation}       T5's way with SQuAD: ' ' around each mark of punctuation
    {label:words(equal,different)}   the number of a label as its word, 0 being the first; -1 is <unk>
    {score:round(0.2)}               the nearest multiple, as text: '1.8'
    {text:strip}                     without whitespace at both ends
    {{ and }}                        braces

Such templates give the texts of T5's tasks (Raffel et al. 2020, appendix D). Its functions are in
preprocessors.py of the repository google-research/text-to-text-transfer-transformer.
"""
import functools
import math
import re
import string
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from t5like.config_type import Section
from t5like.errors import ConfigError, DataError
from t5like.nearest import suggestion

UNKNOWN = '<unk>'  # the word of label -1
FUNCTIONS = ('pad_punctuation', 'strip', 'words', 'round')
SPECS = 'pad_punctuation, strip, words(first,second,..) or round(0.2)'
FIELD = re.compile(r'([^\[\]]+)((?:\[[^\[\]]+\])*)')
# What RE2, which T5 uses, takes for whitespace.
SPACES = re.compile(r'[\t\n\f\r ]+')
SHOWN = 20  # fields that an error lists
LONGEST = 60  # characters of the name of a field that an error shows

Record = Mapping[str, Any]


class Field(NamedTuple):
  """A field of a template.

  Attributes:
    name: of the field.
    path: of the part of it that is taken.
    spec: what stands after the colon.
    function: from a value to text; it raises TypeError for values it cannot take.
  """
  name: str
  path: list[str]
  spec: str
  function: Callable[[Any], str]


def texts(data: Section, record: Record, where: str) -> tuple[str, ...]:
  """The text or texts of a record: (text,), or (inputs, targets) if `data` has templates.

  Args:
    data: a config's section.
    record: plain Python values.
    where: what to call it.

  Raises:
    DataError: for a record that lacks what templates or data.field name.
    ConfigError: for a wrong template.
  """
  if data.inputs or data.targets:
    inputs = fill('data.inputs', data.inputs, record, where)
    targets = fill('data.targets', data.targets, record, where)
    return inputs, targets
  text = record.get(data.field)
  if isinstance(text, str):
    return (text,)
  holds = _near(data.field, record)
  if data.field in record:
    holds = f', which holds {_kind(text)}'
  raise DataError(f'{where} has no text in data.field={data.field!r}{holds}; it has {_names(record)}.')


def check(template: str) -> str | None:
  """What is wrong with a template, as a sentence for people; None if nothing is."""
  try:
    _parse(template)
  except ValueError as error:
    return str(error)
  return None


def fields(data: Section) -> list[str]:
  """Names of the fields that `texts` reads, sorted. Raises ConfigError for a wrong template."""
  if not data.inputs and not data.targets:
    return [data.field]
  names = set()
  for part in (*_parts('data.inputs', data.inputs), *_parts('data.targets', data.targets)):
    if isinstance(part, Field):
      names.add(part.name)
  return sorted(names)


def _parts(key: str, template: str) -> tuple[str | Field, ...]:
  try:
    return _parse(template)
  except ValueError as error:
    raise ConfigError(f'{key}={template!r}: {error}') from error


@functools.lru_cache(64)
def _parse(template: str) -> tuple[str | Field, ...]:
  """Text and fields. Raises ValueError."""
  try:
    pieces = list(string.Formatter().parse(template))
  except ValueError as error:
    raise ValueError(f'a brace has no partner ({error}). Literal braces are written {{{{ and }}}}.') from error
  parts: list[str | Field] = []
  for text, field, spec, conversion in pieces:
    if text:
      parts.append(text)
    if field is not None:
      parts.append(_field(field, spec or '', conversion))
  return tuple(parts)


def _field(field: str, spec: str, conversion: str | None) -> Field:
  """The Field of what stands between braces. Raises ValueError."""
  shown = '{' + field
  if conversion:
    shown += f'!{conversion}'
  if spec:
    shown += f':{spec}'
  shown += '}'
  match = FIELD.fullmatch(field)
  if not match or conversion or '{' in field + spec:
    raise ValueError(f'{shown} is no field of a record. Write {{article}} or {{answers[text][0]}}, and literal '
                     'braces as {{ and }}.')
  path = re.findall(r'\[(.+?)\]', match[2])
  return Field(match[1], path, spec, _function(spec, shown))


def _function(spec: str, shown: str) -> Callable[[Any], str]:
  """The function of a format spec: from a value to text. It raises TypeError for values it cannot take."""
  if spec in PLAIN_FUNCTIONS:
    return PLAIN_FUNCTIONS[spec]
  name, _, rest = spec.partition('(')
  arguments = rest.removesuffix(')')
  if name == 'words' and rest.endswith(')') and arguments:
    words = [word.strip() for word in arguments.split(',')]
    return functools.partial(_word, words)
  if name == 'round' and re.fullmatch(r'\d*\.?\d+\)', rest) and float(arguments):
    return functools.partial(_rounded, arguments)
  guess = suggestion(name, FUNCTIONS, ' (did you mean {}?)')
  raise ValueError(f'{shown} has a format that is unknown{guess}. '
                   f'After the colon may stand {SPECS}.')


def fill(key: str, template: str, record: Record, where: str) -> str:
  """The text that a template makes of a record; `key`: what the template is called in errors. Errors: as `texts`."""
  texts = []
  is_padded = False
  for part in _parts(key, template):
    if isinstance(part, str):
      texts.append(part)
      continue
    texts.append(_value(part, record, f'{where}: {key}={template!r}'))
    is_padded = is_padded or part.spec == 'pad_punctuation'
  text = ''.join(texts)
  if is_padded:  # T5 joins what it has padded with spaces to the words around, and joins runs of spaces
    return SPACES.sub(' ', text)
  return text


def _value(field: Field, record: Record, where: str) -> str:
  value: Any = record
  place = ''
  for step in (field.name, *field.path):
    value = _item(value, step, place, where)
    place = _deeper(place, step)
  try:
    return field.function(value)
  except TypeError as error:
    raise DataError(f'{where}: the field {place} holds {_kind(value)}, {error}.') from error


def _deeper(place: str, step: str) -> str:
  """'answers[text]' of 'answers' and 'text'."""
  if not place:
    return step
  return f'{place}[{step}]'


def _item(value: Any, step: str, place: str, where: str) -> Any:
  """One step into a record; `place`: the steps before it, '' at the record itself."""
  if isinstance(value, dict):
    return _item_of_dict(value, step, place, where)
  if not isinstance(value, list) or not re.fullmatch(r'-?\d+', step):
    raise DataError(f'{where}: there is no {place}[{step}]; the field {place} holds {_kind(value)}.')
  if not -len(value) <= int(step) < len(value):
    raise DataError(f'{where}: there is no {place}[{step}]; the field {place} has {len(value)} values.')
  return value[int(step)]


def _item_of_dict(value: dict[str, Any], step: str, place: str, where: str) -> Any:
  if step in value:
    return value[step]
  holder = f'the field {place}' if place else 'it'
  raise DataError(f'{where}: there is no field {_deeper(place, step)}{_near(step, value)}; '
                  f'{holder} has {_names(value)}.')


# --- From values to text --------------------------------------------------------------------------


def _plain(value: Any) -> str:
  if isinstance(value, str):
    return value
  if _is_number(value):
    return str(value)
  raise TypeError('not text or a number; labels become words by {field:words(no,yes)}, parts are taken by '
                  '{field[0]}')


def _is_number(value: Any) -> bool:
  return isinstance(value, (int, float)) and not isinstance(value, bool)


def _text(value: Any) -> str:
  if not isinstance(value, str):
    raise TypeError('not text')
  return value


def _stripped(value: Any) -> str:
  return _text(value).strip()


def _padded(value: Any) -> str:
  return pad_punctuation(_text(value))


def _word(words: Sequence[str], value: Any) -> str:
  if not isinstance(value, int):  # a truth is an integer too
    raise TypeError('not the number of a label')
  if value == -1:
    return UNKNOWN
  if not 0 <= value < len(words):
    raise TypeError(f'and words({",".join(words)}) has labels 0 to {len(words) - 1} only')
  return words[value]


def _rounded(step: str, value: Any) -> str:
  if not _is_number(value) or not math.isfinite(value):
    raise TypeError('not a number')
  # Ties go to the even multiple, as T5's do, whether 1.7 was kept in 32 or in 64 bits.
  multiple = round(round(value / float(step), 5))
  _, _, decimals = step.partition('.')
  return f'{multiple * float(step):.{len(decimals)}f}'


def pad_punctuation(text: str) -> str:
  """T5's _pad_punctuation: ' ' around all but letters, marks, numbers, '_' and whitespace, runs joined.

  Text that begins or ends with punctuation comes back with a space there, as T5's does.
  """
  return SPACES.sub(' ', re.sub(r'[^\w\t\n\f\r ]', _pad, text))


def _pad(match: re.Match[str]) -> str:
  character = match[0]
  is_mark = unicodedata.category(character)[0] == 'M'
  return character if is_mark else f' {character} '


# Functions without arguments, by their specs.
PLAIN_FUNCTIONS: dict[str, Callable[[Any], str]] = {'': _plain, 'strip': _stripped, 'pad_punctuation': _padded}


# --- Words for people -----------------------------------------------------------------------------


def _near(name: str, record: Iterable[Any]) -> str:
  return suggestion(name, map(str, record), ' (did you mean {!r}?)')


def _names(record: Iterable[Any]) -> str:
  """The fields of a record, as errors list them."""
  names = list(map(_short, record))
  if not names:
    return 'no fields'
  listed = ', '.join(names[:SHOWN])
  if len(names) > SHOWN:
    listed += ', ..'
  return f'the fields {listed}'


def _short(name: Any) -> str:
  text = str(name)
  if len(text) <= LONGEST:
    return text
  return f'{text[:LONGEST - 3]}...'


def _kind(value: Any) -> str:
  """What a value is, as errors say it."""
  if value is None:
    return 'nothing'
  if isinstance(value, (int, float)):
    return repr(value)
  return type(value).__name__
