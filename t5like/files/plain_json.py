"""JSON as every reader takes it: a number that is not finite becomes null, where Python would write NaN or Infinity.

Everything that t5like writes as JSON comes through here; `schema.py` reads.
"""
import json
import math
from typing import Any


def finite(value: Any) -> Any:
  """A value with None in place of each number in it that is not finite."""
  if isinstance(value, float) and not math.isfinite(value):
    return None
  if isinstance(value, dict):
    return dict(zip(value, map(finite, value.values())))
  if isinstance(value, (list, tuple)):
    return list(map(finite, value))
  return value


def dumps(value: Any, **options: Any) -> str:
  """`json.dumps` of a value; `options`: its further arguments."""
  return json.dumps(finite(value), allow_nan=False, **options)


def as_read(value: Any) -> Any:
  """A value as it comes back from a file that `dumps` wrote."""
  return json.loads(dumps(value))


def number(value: float | None) -> float:
  """A number that was written by `dumps`: NaN for None, which stands for numbers that were not finite."""
  if value is None:
    return math.nan
  return value
