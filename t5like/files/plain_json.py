"""JSON as every reader takes it: a number that is not finite becomes null, where Python would write NaN or Infinity.

All that t5like writes as JSON comes through here; `schema.py` is what reads.
"""
import json
import math
from typing import Any


def finite(value: Any) -> Any:
  """A value with None in place of each number in it that is not finite."""
  if isinstance(value, float):
    return value if math.isfinite(value) else None
  if isinstance(value, dict):
    return {key: finite(inner) for key, inner in value.items()}
  if isinstance(value, (list, tuple)):
    return [finite(inner) for inner in value]
  return value


def dumps(value: Any, **how: Any) -> str:
  """`json.dumps` of it; `how`: its arguments."""
  return json.dumps(finite(value), allow_nan=False, **how)


def as_read(value: Any) -> Any:
  """A value as it comes back from a file that `dumps` wrote."""
  return json.loads(dumps(value))


def number(value: float | None) -> float:
  """A number that was written by `dumps`: None is one that was not finite."""
  return math.nan if value is None else value
