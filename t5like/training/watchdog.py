"""Ends a run that makes no progress: on a pod, one host that hangs keeps all others waiting forever."""
import contextlib
import dataclasses
import faulthandler
import os
import sys
import threading
import time
from collections.abc import Mapping
from typing import Any

import jax

from t5like.errors import STALLED

TICK = 1.0  # seconds between looks
# Seconds beyond a budget after which an interpreter that hangs is ended. Its timer runs on while the process is
# suspended: with peers, who do not wait for a suspended process either, soon; alone only after a day.
STUCK_WITH_PEERS = 30.0
STUCK_ALONE = 86_400.0


@dataclasses.dataclass
class _Phase:
  """A phase of the run, its budget and the seconds that have passed in it."""
  name: str
  budget: float
  passed: float = 0.0


class Watchdog:
  """Ends the process with exit code 124 and the stacks of all threads when a phase exceeds its budget.

  Only time in which the process ran counts: one that was suspended (Ctrl-Z, a debugger, a virtual machine that
  migrates) has not stalled. A thread keeps the time. If the interpreter itself hangs, faulthandler's timer (which
  needs no lock, but can only exit with 1) ends the process. Both write to the standard error of the process, because
  the streams of notebooks and tests have no file descriptor.

  Args:
    budgets: config.watchdog, seconds for each phase.
  """

  def __init__(self, budgets: Mapping[str, float]) -> None:
    self.budgets = budgets
    self.stop = threading.Event()
    self.beyond = STUCK_WITH_PEERS if jax.distributed.is_initialized() else STUCK_ALONE
    self.arm('start')
    threading.Thread(target=self._watch, name='watchdog', daemon=True).start()

  def arm(self, phase: str) -> None:
    """Begins a phase (start, step, data or save) with its budget."""
    budget = self.budgets[phase]
    self.phase = _Phase(phase, budget)
    stream: Any = sys.__stderr__
    with contextlib.suppress(OSError, ValueError, AttributeError, RuntimeError, OverflowError):  # no standard error
      faulthandler.dump_traceback_later(budget + self.beyond, exit=True, file=stream)

  def _watch(self) -> None:
    before = time.monotonic()
    while not self.stop.wait(self._tick()):
      phase = self.phase
      now = time.monotonic()
      elapsed = now - before
      before = now
      phase.passed += min(elapsed, 2 * self._tick())  # a longer gap is time in which the process was suspended
      if phase.passed > phase.budget and phase is self.phase:
        _end(phase)

  def _tick(self) -> float:
    return min(TICK, self.phase.budget / 4)

  def close(self) -> None:
    """Ends the watch."""
    self.stop.set()
    faulthandler.cancel_dump_traceback_later()


def _end(phase: _Phase) -> None:
  stream: Any = sys.__stderr__
  try:
    stream.write(f'Stalled: no progress for {phase.budget:.0f} s (config key watchdog.{phase.name}). '
                 'The stacks of all threads follow.\n')
    faulthandler.dump_traceback(all_threads=True, file=stream)
  finally:  # also where nothing can be written: no standard error, or a full disk
    os._exit(STALLED)
