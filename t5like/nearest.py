"""The names nearest to one that does not exist, which errors suggest."""
import difflib
from collections.abc import Iterable

CLOSE = 0.6  # share of characters in common from which a name is worth suggesting
LONGEST = 100  # characters that are compared: names may come from files of others, and comparing takes the square


def nearest(name: str, names: Iterable[str], most: int = 1, close: float = CLOSE) -> list[str]:
  """The names nearest to one, in upper or lower case, the nearest first.

  Args:
    name: what was written.
    names: those that exist.
    most: how many to return at most.
    close: from 0 to 1, the least share of characters in common. Below CLOSE where names are only a letter or are
      often abbreviated, above it where what was written may be right though it is none of the names.
  """
  by_lower_case = {}
  for existing in names:
    by_lower_case.setdefault(existing.lower(), existing)
  matches = difflib.get_close_matches(name[:LONGEST].lower(), by_lower_case, most, close)
  return [by_lower_case[match] for match in matches]


def suggestion(name: str, names: Iterable[str], form: str = 'Did you mean {!r}? ', close: float = CLOSE) -> str:
  """`form` with the nearest name filled in, '' where none is near. Arguments as of `nearest`."""
  matches = nearest(name, names, close=close)
  return form.format(matches[0]) if matches else ''
