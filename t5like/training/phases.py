"""What a run is busy with: the ledger charges time to it, the watchdog has a budget for it."""
import contextlib
from collections.abc import Iterator

import jax

from t5like.observe.ledger import Ledger
from t5like.training import signals as signals_lib
from t5like.training.signals import Signals
from t5like.training.watchdog import Watchdog


class Phases:
  """Keeps the ledger and the watchdog of a run in step with what it does."""

  def __init__(self, ledger: Ledger, watchdog: Watchdog, signals: Signals):
    self.ledger = ledger
    self.watchdog = watchdog
    self.signals = signals

  def enter(self, phase: str, budget: str = '') -> None:
    """From now on the run is in this phase.

    Args:
      phase: of ledger.PHASES.
      budget: the key of config.watchdog that limits it; by default that of its name.
    """
    self.ledger.enter(phase)
    self.watchdog.arm(budget or phase)

  @contextlib.contextmanager
  def during(self, phase: str, budget: str = '') -> Iterator[None]:
    """A phase between two steps; after an error it stays entered, and the time until the end is charged to it."""
    self.enter(phase, budget)
    yield
    self.enter('step')

  def alive(self, budget: str) -> None:
    """Called by long work between steps, every few seconds. Raises signals.Asked if a signal asks the run to end.

    Several processes have to agree on the step at which they end: that is the loop's work.
    """
    self.watchdog.arm(budget)
    is_alone = jax.process_count() == 1
    if is_alone and self.signals.received:
      raise signals_lib.Asked
