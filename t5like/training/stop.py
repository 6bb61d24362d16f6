"""Reasons to end a run before its number of tokens: a target, patience and wall time."""
import dataclasses
import math
import time
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from t5like import config as config_lib
from t5like.config import run_rules


@dataclasses.dataclass(frozen=True)
class Patience:
  """What stop.patience counts.

  best: the least validation nll so far, in nats.
  waited: validations since then.
  """
  best: float = math.inf
  waited: int = 0

  def after(self, nll: float) -> 'Patience':
    """After one more validation; NaN is not less than anything."""
    if nll < self.best:
      return Patience(nll, 0)
    return Patience(min(self.best, nll), self.waited + 1)

  def to_meta(self) -> dict[str, Any]:
    """The fields of a checkpoint's `meta`."""
    best = None if self.best == math.inf else self.best
    return dict(best=best, waited=self.waited)

  @classmethod
  def from_meta(cls, meta: dict[str, Any]) -> 'Patience':
    """The patience that `to_meta` wrote."""
    best = meta['best']
    if best is None:
      best = math.inf
    return cls(best, meta['waited'])


def after_validation(
    spec: Any,
    patience: Patience,
    values: dict[str, float],
) -> tuple[Patience, str | None]:
  """(patience after a validation, why the run is done or None).

  Args:
    spec: config.stop.
    patience: before this validation.
    values: its metrics.
  """
  if spec.target:
    name, comparison, bound = config_lib.parse_target(spec.target)
    value = values[name]
    is_reached = run_rules.COMPARISONS[comparison]
    if is_reached(value, bound):
      return patience, f'converged: stop.target {spec.target} reached with {value:.4f}'
  patience = patience.after(values['nll'])
  is_spent = patience.waited >= spec.patience
  if not spec.patience or not is_spent:
    return patience, None
  reason = (
      f'converged: no lower validation nll than {patience.best:.4f} in the last {patience.waited} validations '
      '(stop.patience)')
  return patience, reason


class Deadline:
  """The end of stop.wall_time, which is in seconds from now on; 0: none."""

  def __init__(self, wall_time: float):
    self.wall_time = wall_time
    self.started = time.monotonic()

  def is_over(self) -> bool:
    """True once the time has passed; process 0's clock counts, and all processes call it at the same step."""
    if not self.wall_time:
      return False
    seconds = time.monotonic() - self.started
    is_over = seconds >= self.wall_time
    if jax.process_count() > 1:
      of_main = multihost_utils.broadcast_one_to_all(np.bool_(is_over))
      is_over = bool(of_main)
    return is_over
