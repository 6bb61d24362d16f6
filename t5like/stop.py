"""When a run has done what it was asked to, beside reaching its number of tokens."""
import time

import jax
import numpy as np
from jax.experimental import multihost_utils

from t5like import config as config_lib


class Stopper:
  """Decides when a run is done, from validations and the clock."""

  def __init__(self, spec):
    self.spec, self.best, self.waited = spec, float('inf'), 0
    self.target = config_lib.parse_target(spec.target) if spec.target else None
    self.started = time.monotonic()

  def after_validation(self, values):
    """The reason to stop, or None."""
    if self.target:
      name, op, value = self.target
      reached = {'<=': values[name] <= value, '<': values[name] < value,
                 '>=': values[name] >= value, '>': values[name] > value}[op]
      if reached:
        return f'converged: stop.target {self.spec.target} reached with {values[name]:.4f}'
    self.waited = 0 if values['nll'] < self.best else self.waited + 1
    self.best = min(self.best, values['nll'])
    if self.spec.patience and self.waited >= self.spec.patience:
      return (f'converged: no lower validation nll than {self.best:.4f} in the last {self.waited} '
              'validations (stop.patience)')
    return None

  def to_meta(self):
    return dict(best=None if self.best == float('inf') else self.best, waited=self.waited)

  def restore(self, meta):
    self.best = float('inf') if meta['best'] is None else meta['best']
    self.waited = meta['waited']

  def out_of_time(self):
    """True once stop.wall_time has passed; process 0's clock counts."""
    if not self.spec.wall_time:
      return False
    over = time.monotonic() - self.started >= self.spec.wall_time
    if jax.process_count() > 1:
      over = bool(multihost_utils.broadcast_one_to_all(np.bool_(over)))
    return over
