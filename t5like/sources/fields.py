"""Fields of records: whether those that the config reads exist, and their values as plain Python values."""
from collections.abc import Collection
from typing import Any

from t5like.config import templates
from t5like.config_type import Config
from t5like.errors import DataError
from t5like.nearest import suggestion
from t5like.sources import encodings


def require(data: Config, names: Collection[str], where: str, kind: str) -> None:
  """Raises DataError for a field that the config reads and the records do not have.

  Args:
    data: the config's section.
    names: of the fields that the records have.
    where: the file or folder, for errors.
    kind: the word for a field there, such as 'column'.
  """
  for field in templates.fields(data):
    if field not in names:
      raise DataError(_missing(data, field, names, where, kind))


def _missing(
    data: Config,
    field: str,
    names: Collection[str],
    where: str,
    kind: str,
) -> str:
  key = f'data.field={field!r}'
  if data.targets:
    key = f'The field {field!r} of the templates'
  guess = suggestion(field, names, ' (did you mean {!r}?)')
  return f'{key} is not a {kind} of {where}{guess}, which has {", ".join(sorted(names))}.'


def plain(value: Any, where: str) -> Any:
  """A value that a library decoded, as values of JSON: bytes as text, arrays as lists, dates as str.

  Args:
    value: of a field, with values inside.
    where: the record and its field, for errors.

  Raises:
    DataError: bytes are not UTF-8.
  """
  if hasattr(value, 'tolist'):  # NumPy's
    value = value.tolist()
  if isinstance(value, bytes):
    return decode(value, where)
  if isinstance(value, dict):
    return {name: plain(part, f'{where} field {name},') for name, part in value.items()}
  if isinstance(value, (list, tuple)):
    return [plain(part, where) for part in value]
  if value is None or isinstance(value, (str, int, float)):
    return value
  return str(value)


def decode(content: bytes, where: str) -> str:
  """Returns the text of UTF-8 bytes; DataError for other bytes, which names `where` they are."""
  try:
    return content.decode('utf-8')
  except UnicodeDecodeError as error:
    offset = error.start
    raise DataError(f'{where} is not UTF-8: byte 0x{content[offset]:02X} at offset {offset} of its text; '
                    f'{encodings.CONVERT}') from error
