"""Ends a run in which nothing moves: on a pod, one stuck host makes all others wait for ever."""
import faulthandler
import os
import sys
import threading
import time

from t5like.errors import STALLED


class Watchdog:
  """Ends the process with exit code 124 and the stacks of all threads when nothing moves.

  A thread keeps the time; should the interpreter itself be stuck, faulthandler's own (which needs no
  lock, but can only exit with 1) follows half a minute later. Both write to the process's own
  standard error: what notebooks and tests put in its place has no file behind it.
  """

  def __init__(self, seconds):
    self.deadline = time.monotonic() + seconds
    self.budget = seconds
    self.stop = threading.Event()
    threading.Thread(target=self._watch, daemon=True).start()
    self.arm(seconds)

  def arm(self, seconds):
    self.budget, self.deadline = seconds, time.monotonic() + seconds
    faulthandler.dump_traceback_later(seconds + 30, exit=True, file=sys.__stderr__)

  def _watch(self):
    while not self.stop.wait(min(1.0, self.budget / 4)):
      if time.monotonic() > self.deadline:
        sys.__stderr__.write(f'Stalled: nothing has moved for {self.budget:.0f} s (config keys '
                         'watchdog.start and watchdog.step). The stacks of all threads follow.\n')
        faulthandler.dump_traceback(all_threads=True, file=sys.__stderr__)
        os._exit(STALLED)

  def close(self):
    self.stop.set()
    faulthandler.cancel_dump_traceback_later()
