"""Reasons to end a run before its number of tokens: a target, patience and wall time."""
import dataclasses
import math
import operator
import time
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from t5like import config as config_lib

COMPARISONS = {'<=': operator.le, '<': operator.lt, '>=': operator.ge, '>': operator.gt}


@dataclasses.dataclass(frozen=True)
class Patience:
  """What stop.patience goes by.

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
    """Its part of a checkpoint's `meta`."""
    if self.best == math.inf:
      return dict(best=None, waited=self.waited)
    return dict(best=self.best, waited=self.waited)

  @classmethod
  def from_meta(cls, meta: dict[str, Any]) -> 'Patience':
    """What `to_meta` wrote."""
    if meta['best'] is None:
      return cls(math.inf, meta['waited'])
    return cls(meta['best'], meta['waited'])


def after_validation(spec: Any, patience: Patience, values: dict[str, float]) -> tuple[Patience, str | None]:
  """(patience after a validation, why the run is done or None).

  Args:
    spec: config.stop.
    patience: before this validation.
    values: its metrics.
  """
  if spec.target:
    name, comparison, bound = config_lib.parse_target(spec.target)
    if COMPARISONS[comparison](values[name], bound):
      return patience, f'converged: stop.target {spec.target} reached with {values[name]:.4f}'
  patience = patience.after(values['nll'])
  if spec.patience and patience.waited >= spec.patience:
    return patience, (f'converged: no lower validation nll than {patience.best:.4f} in the last {patience.waited} '
                      'validations (stop.patience)')
  return patience, None


class Deadline:
  """stop.wall_time, in seconds from here on; 0: none."""

  def __init__(self, wall_time: float):
    self.wall_time = wall_time
    self.started = time.monotonic()

  def is_over(self) -> bool:
    """True once the time has passed; process 0's clock counts, and all processes call it at the same step."""
    if not self.wall_time:
      return False
    over = time.monotonic() - self.started >= self.wall_time
    if jax.process_count() > 1:
      over = bool(multihost_utils.broadcast_one_to_all(np.bool_(over)))
    return over
