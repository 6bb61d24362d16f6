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

from t5like.errors import ConfigError, DataError
from t5like.nearest import suggestion

UNKNOWN = '<unk>'  # the word of label -1
SPECS = 'pad_punctuation, strip, words(first,second,..) or round(0.2)'
FIELD = re.compile(r'([^\[\]]+)((?:\[[^\[\]]+\])*)')
# What RE2, which T5 uses, takes for whitespace.
SPACES = re.compile(r'[\t\n\f\r ]+')


def texts(data, record, where):
  """The text or texts of a record, str each: (text,), or (inputs, targets) if `data` has templates.

  `data`: a config's section; `record`: a dict of plain Python values; `where`: what to call it.
  Raises DataError for a record that has not what is asked for, ConfigError for a wrong template.
  """
  if data.inputs or data.targets:
    return tuple(fill(f'data.{key}', data[key], record, where) for key in ('inputs', 'targets'))
  text = record.get(data.field)
  if not isinstance(text, str):
    holds = f', which holds {_kind(text)}' if data.field in record else _near(data.field, record)
    raise DataError(f'{where} has no text in data.field={data.field!r}{holds}; it has {_names(record)}.')
  return (text,)


def check(template):
  """What is wrong with a template, as a sentence for people; None if nothing is."""
  try:
    _parse(template)
  except ValueError as error:
    return str(error)
  return None


def fields(data):
  """Names of the fields that `texts` reads, a sorted list. Raises ConfigError for a wrong template."""
  if not (data.inputs or data.targets):
    return [data.field]
  parts = [part for key in ('inputs', 'targets') for part in _parts(f'data.{key}', data[key])]
  return sorted({part[0] for part in parts if not isinstance(part, str)})


def _parts(key, template):
  try:
    return _parse(template)
  except ValueError as error:
    raise ConfigError(f'{key}={template!r}: {error}') from error


@functools.lru_cache(64)
def _parse(template):
  """A tuple of text and of fields, (name, path, spec, function). Raises ValueError."""
  parts = []
  try:
    pieces = list(string.Formatter().parse(template))
  except ValueError as error:
    raise ValueError(f'a brace has no partner ({error}). Literal braces are written {{{{ and }}}}.') from error
  for text, field, spec, conversion in pieces:
    if text:
      parts.append(text)
    if field is None:
      continue
    shown = '{' + field + (f'!{conversion}' if conversion else '') + (f':{spec}' if spec else '') + '}'
    match = FIELD.fullmatch(field)
    if not match or conversion or '{' in field + spec:
      raise ValueError(f'{shown} is no field of a record. Write {{article}} or {{answers[text][0]}}, and literal '
                       'braces as {{ and }}.')
    parts.append((match[1], re.findall(r'\[(.+?)\]', match[2]), spec, _function(spec, shown)))
  return tuple(parts)


def _function(spec, shown):
  """The function of a format spec: from a value to text. It raises TypeError for values it cannot take."""
  name, _, rest = spec.partition('(')
  arguments = rest.removesuffix(')')
  if spec == '':
    return _plain
  if spec == 'strip':
    return lambda value: _text(value).strip()
  if spec == 'pad_punctuation':
    return lambda value: pad_punctuation(_text(value))
  if name == 'words' and rest.endswith(')') and arguments:
    return functools.partial(_word, [word.strip() for word in arguments.split(',')])
  if name == 'round' and re.fullmatch(r'\d*\.?\d+\)', rest) and float(arguments):
    return functools.partial(_rounded, arguments)
  guess = suggestion(name, ['pad_punctuation', 'strip', 'words', 'round'], ' (did you mean {}?)')
  raise ValueError(f'{shown} has a format that is unknown{guess}. '
                   f'After the colon may stand {SPECS}.')


def fill(key, template, record, where):
  """The text that a template makes of a record; `key`: what the template is called in errors. Errors: as `texts`."""
  parts = _parts(key, template)
  text = ''.join([part if isinstance(part, str) else _value(part, record, f'{where}: {key}={template!r}')
                  for part in parts])
  # T5 joins what it has padded with spaces to the words around, and joins runs of spaces.
  padded = any(part[2] == 'pad_punctuation' for part in parts if not isinstance(part, str))
  return SPACES.sub(' ', text) if padded else text


def _value(part, record, where):
  name, path, _, function = part
  value, place = record, ''
  for step in (name, *path):
    value = _item(value, step, place, where)
    place += f'[{step}]' if place else step
  try:
    return function(value)
  except TypeError as error:
    raise DataError(f'{where}: the field {place} holds {_kind(value)}, {error}.') from error


def _item(value, step, place, where):
  """One step into a record; `place`: what was gone so far, '' at the record itself."""
  if isinstance(value, dict) and step in value:
    return value[step]
  if isinstance(value, dict):
    holder = f'the field {place}' if place else 'it'
    raise DataError(f'{where}: there is no field {f"{place}[{step}]" if place else step}{_near(step, value)}; '
                    f'{holder} has {_names(value)}.')
  if isinstance(value, list) and re.fullmatch(r'-?\d+', step):
    if -len(value) <= int(step) < len(value):
      return value[int(step)]
    raise DataError(f'{where}: there is no {place}[{step}]; the field {place} has {len(value)} values.')
  raise DataError(f'{where}: there is no {place}[{step}]; the field {place} holds {_kind(value)}.')


def _plain(value):
  if isinstance(value, str):
    return value
  if isinstance(value, (int, float)) and not isinstance(value, bool):
    return str(value)
  raise TypeError('not text or a number; labels become words by {field:words(no,yes)}, parts are taken by '
                  '{field[0]}')


def _text(value):
  if not isinstance(value, str):
    raise TypeError('not text')
  return value


def _word(words, value):
  if not isinstance(value, int):  # a truth is an integer too
    raise TypeError('not the number of a label')
  if value == -1:
    return UNKNOWN
  if not 0 <= value < len(words):
    raise TypeError(f'and words({",".join(words)}) has labels 0 to {len(words) - 1} only')
  return words[value]


def _rounded(step, value):
  if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
    raise TypeError('not a number')
  # Ties go to the even multiple, as T5's do, whether 1.7 was kept in 32 or in 64 bits.
  multiple = round(round(value / float(step), 5))
  return f'{multiple * float(step):.{len(step.partition(".")[2])}f}'


def pad_punctuation(text):
  """T5's _pad_punctuation: ' ' around all but letters, marks, numbers, '_' and whitespace, runs joined.

  Text that begins or ends with punctuation comes back with a space there, as T5's does.
  """
  def pad(match):
    return match[0] if unicodedata.category(match[0])[0] == 'M' else f' {match[0]} '
  return SPACES.sub(' ', re.sub(r'[^\w\t\n\f\r ]', pad, text))


def _near(name, record):
  return suggestion(name, map(str, record), ' (did you mean {!r}?)')


def _names(record):
  names = [name if len(name) <= 60 else f'{name[:57]}...' for name in map(str, record)]
  return ('the fields ' + ', '.join(names[:20]) + ', ..' * (len(names) > 20)) if names else 'no fields'


def _kind(value):
  return 'nothing' if value is None else repr(value) if isinstance(value, (int, float)) else type(value).__name__
