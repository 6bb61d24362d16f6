"""Ends a run in which nothing moves: on a pod, one stuck host makes all others wait for ever."""
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
# Seconds beyond a budget after which a stuck interpreter is ended. With peers, who do not wait for a process that is
# suspended either, soon; alone only after a day: its timer runs on while the process is suspended.
STUCK_WITH_PEERS = 30.0
STUCK_ALONE = 86_400.0


@dataclasses.dataclass
class _Phase:
  """A phase of the run, its budget and the seconds that have passed in it."""
  name: str
  budget: float
  passed: float = 0.0


class Watchdog:
  """Ends the process with exit code 124 and the stacks of all threads when nothing moves.

  Only time in which this process ran counts: one that was stopped (Ctrl-Z, a debugger, a virtual machine that is
  moved) has not stalled. A thread keeps the time; should the interpreter itself be stuck, faulthandler's own (which
  needs no lock, but can only exit with 1) follows. Both write to the process's own standard error: the streams of
  notebooks and tests have no file behind them.

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
      phase.passed += min(elapsed, 2 * self._tick())  # more than that is time in which the process was stopped
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
    stream.write(f'Stalled: nothing has moved for {phase.budget:.0f} s (config key watchdog.{phase.name}). '
                 'The stacks of all threads follow.\n')
    faulthandler.dump_traceback(all_threads=True, file=stream)
  finally:  # also when nothing can be written: no standard error, or a full disk behind it
    os._exit(STALLED)
