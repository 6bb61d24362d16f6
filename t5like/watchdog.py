"""Ends a run in which nothing moves: on a pod, one stuck host makes all others wait for ever."""
import contextlib
import faulthandler
import os
import sys
import threading
import time

import jax

from t5like.errors import STALLED

TICK = 1.0  # seconds between looks
# Seconds beyond a budget after which a stuck interpreter is ended. With peers, who do not wait for a process that is
# suspended either, soon; alone only after a day: its timer runs on while the process is suspended.
STUCK_WITH_PEERS, STUCK_ALONE = 30.0, 86_400.0


class Watchdog:
  """Ends the process with exit code 124 and the stacks of all threads when nothing moves.

  budgets: config.watchdog, seconds for each phase. Only time in which this process ran counts: one that was stopped
  (Ctrl-Z, a debugger, a virtual machine that is moved) has not stalled. A thread keeps the time; should the
  interpreter itself be stuck, faulthandler's own (which needs no lock, but can only exit with 1) follows. Both write
  to the process's own standard error: what notebooks and tests put in its place has no file behind it.
  """

  def __init__(self, budgets):
    self.budgets, self.stop = budgets, threading.Event()
    self.beyond = STUCK_WITH_PEERS if jax.distributed.is_initialized() else STUCK_ALONE
    self.arm('start')
    threading.Thread(target=self._watch, name='watchdog', daemon=True).start()

  def arm(self, phase):
    """From now on, so many seconds as `budgets` has for the phase (start, step, data or save)."""
    self.now = [phase, self.budgets[phase], 0.0]  # and the seconds that have passed
    with contextlib.suppress(OSError, ValueError, AttributeError, RuntimeError, OverflowError):  # no standard error
      faulthandler.dump_traceback_later(self.budgets[phase] + self.beyond, exit=True, file=sys.__stderr__)

  def _watch(self):
    before = time.monotonic()
    while not self.stop.wait(self._tick()):
      now = self.now
      elapsed, before = time.monotonic() - before, time.monotonic()
      now[2] += min(elapsed, 2 * self._tick())  # more than that is time in which the process was stopped
      if now[2] > now[1] and now is self.now:
        _end(*now[:2])

  def _tick(self):
    return min(TICK, self.now[1] / 4)

  def close(self):
    self.stop.set()
    faulthandler.cancel_dump_traceback_later()


def _end(phase, seconds):
  try:
    sys.__stderr__.write(f'Stalled: nothing has moved for {seconds:.0f} s (config key watchdog.{phase}). '
                         'The stacks of all threads follow.\n')
    faulthandler.dump_traceback(all_threads=True, file=sys.__stderr__)
  finally:  # also when nobody can be told: no standard error, or a full disk behind it
    os._exit(STALLED)
