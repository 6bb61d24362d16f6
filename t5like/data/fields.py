"""Fields of records: are those there that are asked for, and their values as Python's own."""

from t5like.data import encodings, templates
from t5like.errors import DataError
from t5like.nearest import suggestion


def require(data, names, where, kind):
  """Raises DataError if `where` lacks one of the fields that `data` asks for; kind: what fields are called there."""
  for field in templates.fields(data):
    if field not in names:
      asked = f'The field {field!r} of the templates' if data.targets else f'data.field={field!r}'
      raise DataError(f'{asked} is not a {kind} of {where}{suggestion(field, names, " (did you mean {!r}?)")}, '
                      f'which has {", ".join(sorted(names))}.')


def plain(value, where):
  """What libraries decode, as values of JSON: bytes as text, arrays as lists, dates as str. DataError."""
  value = value.tolist() if hasattr(value, 'tolist') else value  # NumPy's
  if isinstance(value, bytes):
    return decode(value, where)
  if isinstance(value, dict):
    return {name: plain(part, f'{where} field {name},') for name, part in value.items()}
  if isinstance(value, (list, tuple)):
    return [plain(part, where) for part in value]
  return value if value is None or isinstance(value, (str, int, float)) else str(value)


def decode(content, where):
  """Returns the text of UTF-8 bytes; DataError."""
  try:
    return content.decode('utf-8')
  except UnicodeDecodeError as error:
    at = error.start
    raise DataError(f'{where} is not UTF-8: byte 0x{content[at]:02X} at offset {at} of its text; '
                    f'{encodings.CONVERT}') from error
