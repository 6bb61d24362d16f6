"""JSON that others wrote, read within limits and checked against the shape that is expected of it.

    SHAPE = Object(dict(kind=Text(), tokens=Whole(1, 4096)), needs=('kind',))
    values = read(path, SHAPE, ConfigError, 'See docs/evaluate.md.')

Every file of JSON or JSON lines that t5like reads comes through here, its own too: they lie on disks that flip bits and
in folders that others may write to. Refused are text that is not UTF-8, more bytes, values or levels than `Limits`
allows, keys that occur twice, numbers that are not finite or that no 64 bits hold, halves of surrogate pairs, and, by
the shape, values of another type or outside their range. An error is one paragraph: the file, the key, its value, and
what it must be. Keys that a shape does not know are let through where `rest` says so, as in files of other programs.
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


class Invalid(ValueError):
  """What is wrong with a text, as the end of a sentence that begins with its name."""


@dataclasses.dataclass(frozen=True)
class Limits:
  """What a text may hold at most: bytes, values (each takes about 60 bytes of memory) and levels of nesting.

  unique: refuse keys that occur twice in an object. constants: NaN and Infinity, which JSON does not have but Python
  writes, become null instead of an error.
  """
  size: int = 16 << 20
  values: int = 1_000_000
  depth: int = 64
  unique: bool = True
  constants: bool = False


SMALL = Limits()
LINE = Limits(constants=True)  # of a file that a run appends to


# --- Shapes ---------------------------------------------------------------------------------------


class Shape:
  """What a value must be. `wants` says it in words, `check` raises Invalid, naming the key `at` which it stands."""
  wants = 'any value'
  inner = False  # whether it has parts, which `check` looks at

  def check(self, value: Any, at: str) -> None:
    if not self.fits(value):
      raise Invalid(f'{at or "the whole"}={show(value)} must be {self.wants}')

  def fits(self, value: Any) -> bool:
    return True


@dataclasses.dataclass(frozen=True)
class Anything(Shape):
  pass


ANY = Anything()


@dataclasses.dataclass(frozen=True)
class Whole(Shape):
  least: int = 0
  most: int = WORD

  @property
  def wants(self) -> str:
    return f'a whole number from {self.least:,} to {self.most:,}'

  def fits(self, value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and self.least <= value <= self.most


@dataclasses.dataclass(frozen=True)
class Real(Shape):
  """A finite number. `above`: the least itself is refused too; `below`: the most."""
  least: float = -math.inf
  most: float = math.inf
  above: bool = False
  below: bool = False

  @property
  def wants(self) -> str:
    low = f'{"above" if self.above else "at least"} {self.least:g}' if self.least > -math.inf else ''
    high = f'{"below" if self.below else "at most"} {self.most:g}' if self.most < math.inf else ''
    return ' '.join(['a finite number', ' and '.join(filter(None, [low, high]))]).strip()

  def fits(self, value: Any) -> bool:
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not math.isfinite(value):
      return False
    high_enough = value > self.least if self.above else value >= self.least
    low_enough = value < self.most if self.below else value <= self.most
    return high_enough and low_enough


@dataclasses.dataclass(frozen=True)
class Text(Shape):
  most: int = 1 << 20  # characters

  @property
  def wants(self) -> str:
    return f'a text of at most {self.most:,} characters'

  def fits(self, value: Any) -> bool:
    return isinstance(value, str) and len(value) <= self.most


@dataclasses.dataclass(frozen=True)
class Flag(Shape):
  wants = 'true or false'

  def fits(self, value: Any) -> bool:
    return isinstance(value, bool)


@dataclasses.dataclass(frozen=True)
class OneOf(Shape):
  """One of a few texts."""
  values: tuple

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
    return (isinstance(value, str) and 0 < len(value.encode()) <= 255 and value not in ('.', '..')
            and not re.search(r'[/\\\x00]', value) and value.endswith(self.ending))


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

  def check(self, value: Any, at: str) -> None:
    super().check(value, at)
    if value is not None:
      self.shape.check(value, at)


@dataclasses.dataclass(frozen=True)
class Either(Shape):
  """The first of several shapes whose kind of value it is."""
  shapes: tuple
  inner = True

  @property
  def wants(self) -> str:
    return ', or '.join(shape.wants for shape in self.shapes)

  def fits(self, value: Any) -> bool:
    return any(shape.fits(value) for shape in self.shapes)

  def check(self, value: Any, at: str) -> None:
    super().check(value, at)
    next(shape for shape in self.shapes if shape.fits(value)).check(value, at)


@dataclasses.dataclass(frozen=True)
class List(Shape):
  of: Shape = ANY
  least: int = 0
  most: int = 1_000_000
  inner = True

  @property
  def wants(self) -> str:
    return f'a list of {self.least:,} to {self.most:,} values'

  def fits(self, value: Any) -> bool:
    return isinstance(value, list) and self.least <= len(value) <= self.most

  def check(self, value: Any, at: str) -> None:
    super().check(value, at)
    for i, part in enumerate(value):
      if self.of.inner or not self.of.fits(part):  # names are made only where they may be needed
        self.of.check(part, f'{at}[{i}]')


@dataclasses.dataclass(frozen=True)
class Object(Shape):
  """fields: {key: shape} of the known ones; needs: those that must be there; rest: the shape of all others, None: there
  must be no others."""
  fields: Mapping = dataclasses.field(default_factory=dict)
  needs: tuple = ()
  rest: Shape | None = ANY

  wants = 'an object with named values'
  inner = True

  def fits(self, value: Any) -> bool:
    return isinstance(value, dict)

  def check(self, value: Any, at: str) -> None:
    super().check(value, at)
    missing = [key for key in self.needs if key not in value]
    if missing:
      raise Invalid(f'{f"{at} " if at else ""}lacks {", ".join(missing[:8])}')
    for key, part in value.items():
      shape = self.fields.get(key, self.rest)
      if shape is None:
        guess = suggestion(key, self.fields, ' (did you mean {!r}?)')
        raise Invalid(f'{_key(at, key)} is an unknown key{guess}; there are {", ".join(self.fields)}')
      if shape.inner or not shape.fits(part):
        shape.check(part, _key(at, key))


def _key(at: str, key: str) -> str:
  key = key if key.isprintable() and len(key) <= SHOWN else show(key)
  return f'{at}.{key}' if at else key


def show(value: Any) -> str:
  """A value as JSON has it, shortened, on one line."""
  text = type(value).__name__ if isinstance(value, (dict, list)) and len(value) > SHOWN else _text_of(value)
  return text if len(text) <= SHOWN else f'{text[:SHOWN - 3]}...'


def _text_of(value: Any) -> str:
  if isinstance(value, str):
    value = value[:SHOWN]
  try:
    return json.dumps(value)
  except (ValueError, TypeError, RecursionError):  # the latter two of what is no JSON at all
    return f'a {type(value).__name__}'


# --- From text to values --------------------------------------------------------------------------


def parse(content: bytes | str, shape: Shape = ANY, limits: Limits = SMALL) -> Any:
  """The value of a JSON text; Invalid for one that is none, is beyond the limits, or has another shape."""
  text = _decoded(content, limits)
  try:
    value = json.loads(text, parse_int=_integer, parse_float=_float,
                       parse_constant=_null if limits.constants else _constant,
                       object_pairs_hook=_unique if limits.unique else None)
  except json.JSONDecodeError as error:
    raise Invalid(f'is not JSON: {error.msg} at line {error.lineno}, character {error.colno}') from error
  except RecursionError:
    raise Invalid(f'is nested more than {limits.depth} levels deep') from None
  except MemoryError:
    raise Invalid('takes more memory than there is') from None
  if text.count('[') + text.count('{') > limits.depth and _depth(value, limits.depth) > limits.depth:
    raise Invalid(f'is nested more than {limits.depth} levels deep')
  if ESCAPED_SURROGATE.search(text):
    refuse_surrogates(value)
  shape.check(value, '')
  return value


def _decoded(content: bytes | str, limits: Limits) -> str:
  if len(content) > limits.size:
    raise Invalid(f'has more than {limits.size:,} bytes')
  text = content
  if isinstance(content, bytes):
    try:
      text = content.removeprefix(b'\xef\xbb\xbf').decode()
    except UnicodeDecodeError as error:
      raise Invalid(f'is not UTF-8: byte 0x{content[error.start]:02X} at offset {error.start}') from None
  if text.count(',') + text.count('[') + text.count('{') > limits.values:
    raise Invalid(f'holds more than {limits.values:,} values')
  return text


def _integer(text: str) -> int | float:
  """An int of 64 bits; a larger one as a float, for some programs write their "no limit" as 10^30."""
  if len(text) < 19:
    return int(text)
  if len(text) > 400:
    raise Invalid(f'has a number of {len(text):,} digits')
  value = int(text)
  return value if abs(value) <= WORD else _float(text)


def _float(text: str) -> float:
  value = float(text)
  if math.isinf(value):
    raise Invalid(f'has the number {text[:SHOWN]}, which is too large')
  return value


def _constant(name: str) -> None:
  raise Invalid(f'has the number {name}, which is not JSON')


def _null(name: str) -> None:
  return None


def _unique(pairs: list) -> dict:
  value = dict(pairs)
  if len(value) < len(pairs):
    seen = set()
    twice = next(key for key, _ in pairs if key in seen or seen.add(key))
    raise Invalid(f'has the key {show(twice)} twice in one object')
  return value


def _depth(value: Any, most: int) -> int:
  """Levels of lists and objects, counted up to one more than `most`, without recursion."""
  level, depth = [value], 0
  while depth <= most:
    level = [part for part in level if isinstance(part, (dict, list))]
    if not level:
      return depth
    depth += 1
    level = [inner for part in level for inner in (part.values() if isinstance(part, dict) else part)]
  return depth


def refuse_surrogates(value: Any) -> None:
  """Invalid where a text in the value has half of a surrogate pair: no file and no terminal takes it."""
  try:
    json.dumps(value, ensure_ascii=False).encode()
  except UnicodeEncodeError as error:
    half = error.object[error.start]
    raise Invalid(f'has a text with {half!r}, half of a surrogate pair, which is no character') from None


# --- Files ----------------------------------------------------------------------------------------


def content(path: Any, limits: Limits = SMALL) -> bytes:
  """The bytes of a file, local (str or path) or an epath of a remote one.

  FileNotFoundError; Invalid for one that cannot be read, is too long, or is no regular file (a device or a pipe never
  ends).
  """
  path = _local(path)
  try:
    if isinstance(path, pathlib.Path) and path.exists() and not path.is_file():
      raise Invalid('is a folder' if path.is_dir() else 'is not a regular file')
    with path.open('rb') as f:
      found = f.read(limits.size + 1)
  except FileNotFoundError:
    raise
  except OSError as error:
    raise Invalid(f'cannot be read ({error.strerror or error})') from error
  except ValueError as error:
    if isinstance(error, Invalid):
      raise
    raise Invalid(f'is no path ({error})') from error
  if len(found) > limits.size:
    raise Invalid(f'has more than {limits.size:,} bytes')
  return found


def _local(path: Any) -> Any:
  return path if '://' in str(path) else pathlib.Path(path)


def read(path: Any, shape: Shape, failure: type[Failure], advice: str = '', limits: Limits = SMALL) -> Any:
  """The value in a file of JSON; `failure`, with what is wrong and then `advice`, for any other. FileNotFoundError."""
  try:
    return parse(content(path, limits), shape, limits)
  except Invalid as error:
    raise failure(sentence(path, error, advice)) from error


def sentence(name: Any, error: Invalid, advice: str = '') -> str:
  """One paragraph on what is wrong with the text `name`."""
  says = str(error)
  joined = ' ' if re.match(r'(is|has|holds|lacks|takes|cannot) ', says) else ': '
  return f'{cut(str(name))}{joined}{says}.' + (
      f' {advice}' if advice else '')


def cut(name: str) -> str:
  """A name or path that is shown to people, without the middle of one that is very long."""
  return name if len(name) <= 300 else f'{name[:140]}...{name[-140:]}'


def lines(path: Any, shape: Shape, limits: Limits = LINE) -> Iterator[Any]:
  """Yields the values of a file of JSON lines that are whole and of the shape; others are left out, for a crash may
  have cut them off. Nothing where there is no file; OSError as `open` raises it.

  A line is what stands between newlines: other separators that `str.splitlines` knows may stand in texts.
  """
  for line in raw_lines(path, limits):
    try:
      yield parse(line, shape, limits)
    except Invalid:
      continue


def raw_lines(path: Any, limits: Limits = LINE) -> Iterator[bytes]:
  """Yields the lines of a file that are not empty, one at a time; of one that is too long only the beginning."""
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
            limits: Limits = SMALL) -> list:
  """The values of JSON lines, all of which must be whole: `failure`, with the number of the line, for others."""
  values = []
  for number, line in enumerate(text.removeprefix(b'\xef\xbb\xbf').split(b'\n'), 1):
    if not line.strip():
      continue
    try:
      values.append(parse(line, shape, limits))
    except Invalid as error:
      raise failure(sentence(f'{cut(str(name))}: line {number}', error, advice)) from error
  return values
