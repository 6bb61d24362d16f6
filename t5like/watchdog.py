"""Ends a run in which nothing moves: on a pod, one stuck host makes all others wait for ever."""
import faulthandler
import os
import sys
import threading
import time

from t5like.errors import STALLED


class Watchdog:
  """Ends the process with exit code 124 and the stacks of all threads when nothing moves.

  budgets: config.watchdog, seconds for each phase. A thread keeps the time; should the interpreter itself be stuck,
  faulthandler's own (which needs no lock, but can only exit with 1) follows half a minute later. Both write to the
  process's own standard error: what notebooks and tests put in its place has no file behind it.
  """

  def __init__(self, budgets):
    self.budgets, self.stop = budgets, threading.Event()
    self.arm('start')
    threading.Thread(target=self._watch, daemon=True).start()

  def arm(self, phase):
    """From now on, so many seconds as `budgets` has for the phase (start, step, data or save)."""
    seconds = self.budgets[phase]
    self.now = phase, seconds, time.monotonic() + seconds
    faulthandler.dump_traceback_later(seconds + 30, exit=True, file=sys.__stderr__)

  def _watch(self):
    while not self.stop.wait(min(1.0, self.now[1] / 4)):
      phase, seconds, deadline = self.now
      if time.monotonic() > deadline:
        sys.__stderr__.write(f'Stalled: nothing has moved for {seconds:.0f} s (config key watchdog.{phase}). '
                             'The stacks of all threads follow.\n')
        faulthandler.dump_traceback(all_threads=True, file=sys.__stderr__)
        os._exit(STALLED)

  def close(self):
    self.stop.set()
    faulthandler.cancel_dump_traceback_later()
