"""JSON that others wrote, read within limits and checked against the expected shape.

    SHAPE = Object(dict(kind=Text(), tokens=Whole(1, 4096)), needs=('kind',))
    values = read(path, SHAPE, ConfigError, 'See docs/evaluate.md.')

Every file of JSON or JSON lines that t5like reads comes through here, its own too: they lie on disks that flip bits and
in folders that others may write to. Refused are text that is not UTF-8, more bytes, values or levels than `Limits`
allows, keys that occur twice, numbers that are not finite or that no 64 bits hold, halves of surrogate pairs, and, by
the shape, values of another type or outside their range. An error is one paragraph: the file, the key, its value, and
the requirement. Keys that a shape does not know are allowed where `rest` says so, as in files of other programs.
"""
import dataclasses
import json
import math
import pathlib
import re
from collections.abc import Iterator, Mapping
from typing import Any

from t5like.errors import Failure
from t5like.nearest import suggestion

SHOWN = 60  # characters of a value in an error
WORD = (1 << 63) - 1
ESCAPED_SURROGATE = re.compile(r'\\u[dD][89a-fA-F]')
BYTE_ORDER_MARK = b'\xef\xbb\xbf'
SHORT_NUMBER = 19  # digits: whole numbers with fewer fit in 64 bits
LONGEST_NUMBER = 400  # digits
LONGEST_NAME = 300  # characters of a path in an error


class Invalid(ValueError):
  """The problem of a text, as the end of a sentence that begins with its name."""


@dataclasses.dataclass(frozen=True)
class Limits:
  """The most that a text may hold, and other limits."""
  size: int = 16 << 20  # bytes
  values: int = 1_000_000  # each takes about 60 bytes of memory
  depth: int = 64  # levels of nesting
  unique: bool = True  # refuse keys that occur twice in an object
  constants: bool = False  # NaN and Infinity, which JSON does not have but Python writes, become null


SMALL = Limits()
LINE = Limits(constants=True)  # of a file that a run appends to


# --- Shapes ---------------------------------------------------------------------------------------


class Shape:
  """The requirements of a value; `inner`: whether it has parts, which `check` looks at too."""
  wants = 'any value'  # the requirements in words
  inner = False

  def check(self, value: Any, place: str) -> None:
    """Raises Invalid, naming the key `place` of the value ('' for the whole text), if it does not fit."""
    if not self.fits(value):
      raise Invalid(f'{place or "the whole"}={show(value)} must be {self.wants}')

  def fits(self, value: Any) -> bool:
    """Whether the value itself, not its parts, is as required."""
    return True


@dataclasses.dataclass(frozen=True)
class Anything(Shape):
  """Any value."""


ANY = Anything()


@dataclasses.dataclass(frozen=True)
class Whole(Shape):
  """A whole number."""
  least: int = 0
  most: int = WORD

  @property
  def wants(self) -> str:
    return f'a whole number from {self.least:,} to {self.most:,}'

  def fits(self, value: Any) -> bool:
    if not isinstance(value, int) or isinstance(value, bool):
      return False
    return self.least <= value <= self.most


@dataclasses.dataclass(frozen=True)
class Real(Shape):
  """A finite number. `above`: the least itself is refused too; `below`: the most."""
  least: float = -math.inf
  most: float = math.inf
  above: bool = False
  below: bool = False

  @property
  def wants(self) -> str:
    limits = []
    if self.least > -math.inf:
      comparison = 'above' if self.above else 'at least'
      limits.append(f'{comparison} {self.least:g}')
    if self.most < math.inf:
      comparison = 'below' if self.below else 'at most'
      limits.append(f'{comparison} {self.most:g}')
    if not limits:
      return 'a finite number'
    return f'a finite number {" and ".join(limits)}'

  def fits(self, value: Any) -> bool:
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not math.isfinite(value):
      return False
    if self.above and value == self.least:
      return False
    if self.below and value == self.most:
      return False
    return self.least <= value <= self.most


@dataclasses.dataclass(frozen=True)
class Text(Shape):
  """A text; `most`: characters."""
  most: int = 1 << 20

  @property
  def wants(self) -> str:
    return f'a text of at most {self.most:,} characters'

  def fits(self, value: Any) -> bool:
    return isinstance(value, str) and len(value) <= self.most


@dataclasses.dataclass(frozen=True)
class Flag(Shape):
  """True or false."""
  wants = 'true or false'

  def fits(self, value: Any) -> bool:
    return isinstance(value, bool)


@dataclasses.dataclass(frozen=True)
class OneOf(Shape):
  """One of a few texts."""
  values: tuple[str, ...]

  @property
  def wants(self) -> str:
    return 'one of ' + ', '.join(map(show, self.values))

  def fits(self, value: Any) -> bool:
    return isinstance(value, str) and value in self.values


@dataclasses.dataclass(frozen=True)
class FileName(Shape):
  """The name of a file beside the one that names it: nothing that leads to another folder."""
  ending: str = ''

  @property
  def wants(self) -> str:
    ends = f' that ends in {self.ending}' if self.ending else ''
    return f'the name of a file in the same folder{ends}, without / and ..'

  def fits(self, value: Any) -> bool:
    if not isinstance(value, str) or not 0 < len(value.encode()) <= 255:
      return False
    if value in ('.', '..') or re.search(r'[/\\\x00]', value):
      return False
    return value.endswith(self.ending)


@dataclasses.dataclass(frozen=True)
class Maybe(Shape):
  """A shape, or null."""
  shape: Shape
  inner = True

  @property
  def wants(self) -> str:
    return f'{self.shape.wants}, or null'

  def fits(self, value: Any) -> bool:
    return value is None or self.shape.fits(value)

  def check(self, value: Any, place: str) -> None:
    super().check(value, place)
    if value is not None:
      self.shape.check(value, place)


@dataclasses.dataclass(frozen=True)
class Either(Shape):
  """The first of several shapes that the value fits."""
  shapes: tuple[Shape, ...]
  inner = True

  @property
  def wants(self) -> str:
    return ', or '.join(shape.wants for shape in self.shapes)

  def fits(self, value: Any) -> bool:
    return any(shape.fits(value) for shape in self.shapes)

  def check(self, value: Any, place: str) -> None:
    super().check(value, place)
    for shape in self.shapes:
      if shape.fits(value):
        shape.check(value, place)
        return


@dataclasses.dataclass(frozen=True)
class List(Shape):
  """A list of `least` to `most` values of a shape."""
  element: Shape = ANY
  least: int = 0
  most: int = 1_000_000
  inner = True

  @property
  def wants(self) -> str:
    return f'a list of {self.least:,} to {self.most:,} values'

  def fits(self, value: Any) -> bool:
    return isinstance(value, list) and self.least <= len(value) <= self.most

  def check(self, value: Any, place: str) -> None:
    super().check(value, place)
    for i, part in enumerate(value):
      if self.element.inner or not self.element.fits(part):  # names are made only where they may be needed
        self.element.check(part, f'{place}[{i}]')


@dataclasses.dataclass(frozen=True)
class Object(Shape):
  """Named values."""
  fields: Mapping[str, Shape] = dataclasses.field(default_factory=dict)  # of known keys
  needs: tuple[str, ...] = ()  # keys that must be present
  rest: Shape | None = ANY  # of all other keys; None: there must be no others
  wants = 'an object with named values'
  inner = True

  def fits(self, value: Any) -> bool:
    return isinstance(value, dict)

  def check(self, value: Any, place: str) -> None:
    super().check(value, place)
    missing = [key for key in self.needs if key not in value]
    if missing:
      raise Invalid(f'{place} lacks {", ".join(missing[:8])}'.lstrip())
    for key, part in value.items():
      shape = self.fields.get(key, self.rest)
      if shape is None:
        guess = suggestion(key, self.fields, ' (did you mean {!r}?)')
        raise Invalid(f'{_key(place, key)} is an unknown key{guess}; there are {", ".join(self.fields)}')
      if shape.inner or not shape.fits(part):
        shape.check(part, _key(place, key))


def _key(place: str, key: str) -> str:
  """The place of a key in an object: 'a.b' of 'b' in 'a'."""
  if not key.isprintable() or len(key) > SHOWN:
    key = show(key)
  if not place:
    return key
  return f'{place}.{key}'


def show(value: Any) -> str:
  """A value as JSON has it, shortened, on one line."""
  if isinstance(value, (dict, list)) and len(value) > SHOWN:
    return type(value).__name__
  text = _text_of(value)
  if len(text) <= SHOWN:
    return text
  return f'{text[:SHOWN - 3]}...'


def _text_of(value: Any) -> str:
  if isinstance(value, str):
    value = value[:SHOWN]
  try:
    return json.dumps(value)
  except (ValueError, TypeError, RecursionError):  # the latter two for values that are no JSON at all
    return f'a {type(value).__name__}'


# --- From text to values --------------------------------------------------------------------------


def parse(content: bytes | str, shape: Shape = ANY, limits: Limits = SMALL) -> Any:
  """The value of a JSON text; Invalid for a text that is not JSON, exceeds the limits, or has another shape."""
  text = _decoded(content, limits)
  constant = _null if limits.constants else _constant
  unique = _unique if limits.unique else None
  try:
    value = json.loads(text, parse_int=_integer, parse_float=_float, parse_constant=constant, object_pairs_hook=unique)
  except json.JSONDecodeError as error:
    raise Invalid(f'is not JSON: {error.msg} at line {error.lineno}, character {error.colno}') from error
  except RecursionError:
    raise Invalid(f'is nested more than {limits.depth} levels deep') from None
  except MemoryError:
    raise Invalid('takes more memory than there is') from None
  opened = text.count('[') + text.count('{')  # cheaper than the depth, which is at most this
  if opened > limits.depth and _depth(value, limits.depth) > limits.depth:
    raise Invalid(f'is nested more than {limits.depth} levels deep')
  if ESCAPED_SURROGATE.search(text):
    refuse_surrogates(value)
  shape.check(value, '')
  return value


def _decoded(content: bytes | str, limits: Limits) -> str:
  if len(content) > limits.size:
    raise Invalid(f'has more than {limits.size:,} bytes')
  if isinstance(content, str):
    text = content
  else:
    try:
      text = content.removeprefix(BYTE_ORDER_MARK).decode()
    except UnicodeDecodeError as error:
      raise Invalid(f'is not UTF-8: byte 0x{content[error.start]:02X} at offset {error.start}') from None
  if text.count(',') + text.count('[') + text.count('{') > limits.values:
    raise Invalid(f'holds more than {limits.values:,} values')
  return text


def _integer(text: str) -> int | float:
  """An int of 64 bits; a larger one as a float, because some programs write their "no limit" as 10^30."""
  if len(text) < SHORT_NUMBER:
    return int(text)
  if len(text) > LONGEST_NUMBER:
    raise Invalid(f'has a number of {len(text):,} digits')
  value = int(text)
  if abs(value) > WORD:
    return _float(text)
  return value


def _float(text: str) -> float:
  value = float(text)
  if math.isinf(value):
    raise Invalid(f'has the number {text[:SHOWN]}, which is too large')
  return value


def _constant(name: str) -> None:
  raise Invalid(f'has the number {name}, which is not JSON')


def _null(name: str) -> None:
  return None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
  value = dict(pairs)
  if len(value) == len(pairs):
    return value
  seen = set()
  for key, _ in pairs:
    if key in seen:
      raise Invalid(f'has the key {show(key)} twice in one object')
    seen.add(key)
  return value


def _depth(value: Any, most: int) -> int:
  """Levels of lists and objects, counted up to one more than `most`, without recursion."""
  level = [value]
  depth = 0
  while depth <= most:
    inner = []
    has_containers = False
    for part in level:
      if isinstance(part, dict):
        has_containers = True
        inner.extend(part.values())
      elif isinstance(part, list):
        has_containers = True
        inner.extend(part)
    if not has_containers:
      return depth
    depth += 1
    level = inner
  return depth


def refuse_surrogates(value: Any) -> None:
  """Invalid where a text in the value has half of a surrogate pair, which no file and no terminal takes."""
  try:
    json.dumps(value, ensure_ascii=False).encode()
  except UnicodeEncodeError as error:
    half = error.object[error.start]
    raise Invalid(f'has a text with {half!r}, half of a surrogate pair, which is no character') from None


# --- Files ----------------------------------------------------------------------------------------


def content(path: Any, limits: Limits = SMALL) -> bytes:
  """The bytes of a file, local (str or path) or an epath of a remote one.

  FileNotFoundError; Invalid for a file that cannot be read or is too long, and for one that is not regular (a device
  or a pipe never ends).
  """
  path = _local(path)
  try:
    if isinstance(path, pathlib.Path) and path.exists() and not path.is_file():
      raise Invalid('is a folder' if path.is_dir() else 'is not a regular file')
    with path.open('rb') as f:
      data = f.read(limits.size + 1)
  except (FileNotFoundError, Invalid):
    raise
  except OSError as error:
    raise Invalid(f'cannot be read ({error.strerror or error})') from error
  except ValueError as error:
    raise Invalid(f'is no path ({error})') from error
  if len(data) > limits.size:
    raise Invalid(f'has more than {limits.size:,} bytes')
  return data


def _local(path: Any) -> Any:
  if '://' in str(path):
    return path
  return pathlib.Path(path)


def read(path: Any, shape: Shape, failure: type[Failure], advice: str = '', limits: Limits = SMALL) -> Any:
  """The value in a file of JSON; `failure`, with what is wrong and then `advice`, for any other. FileNotFoundError."""
  try:
    return parse(content(path, limits), shape, limits)
  except Invalid as error:
    raise failure(sentence(path, error, advice)) from error


def sentence(name: Any, error: Invalid, advice: str = '') -> str:
  """One paragraph: the text's name, what is wrong with it, and advice."""
  message = str(error)
  is_predicate = re.match(r'(is|has|holds|lacks|takes|cannot) ', message)
  separator = ' ' if is_predicate else ': '
  return f'{cut(str(name))}{separator}{message}. {advice}'.rstrip()


def cut(name: str) -> str:
  """A name or path that is shown to people, without the middle of one that is very long."""
  if len(name) <= LONGEST_NAME:
    return name
  return f'{name[:140]}...{name[-140:]}'


def lines(path: Any, shape: Shape, limits: Limits = LINE) -> Iterator[Any]:
  """Yields the values of a file of JSON lines that are whole and of the shape; others are left out, for a crash may
  have cut them off. Nothing where there is no file; OSError as `open` raises it.

  Lines are separated by newlines alone: other separators that `str.splitlines` knows may stand in texts.
  """
  for line in raw_lines(path, limits):
    try:
      yield parse(line, shape, limits)
    except Invalid:
      continue


def raw_lines(path: Any, limits: Limits = LINE) -> Iterator[bytes]:
  """Yields the lines of a file that are not empty; of a line that is too long only the beginning."""
  path = _local(path)
  if not path.exists():
    return
  if isinstance(path, pathlib.Path) and not path.is_file():
    raise IsADirectoryError(f'{path} is not a regular file')
  with path.open('rb') as f:
    while line := f.readline(limits.size + 1):
      rest = line
      while rest and not rest.endswith(b'\n'):
        rest = f.readline(limits.size)
      if line.strip():
        yield line


def records(text: bytes, shape: Shape, name: Any, failure: type[Failure], advice: str = '',
            limits: Limits = SMALL) -> list[Any]:
  """The values of JSON lines, all of which must be whole: `failure`, with the number of the line, for others."""
  values = []
  for number, line in enumerate(text.removeprefix(BYTE_ORDER_MARK).split(b'\n'), 1):
    if not line.strip():
      continue
    try:
      values.append(parse(line, shape, limits))
    except Invalid as error:
      raise failure(sentence(f'{cut(str(name))}: line {number}', error, advice)) from error
  return values
