"""Signals that ask a training process to end: SIGTERM, SIGINT (Ctrl-C, a notebook's interrupt), SIGHUP.

After the first one the run saves and ends as soon as it can; a second Ctrl-C ends the process at once. Python calls
handlers between two instructions of the main thread, which may be minutes away while XLA compiles or a step runs. So a
thread reads the signals from a pipe, answers the person, and can end the process.
"""
import os
import signal
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

import jax

Signal = signal.Signals
SIGTERM = signal.SIGTERM
SIGINT = signal.SIGINT
WHY = {
    signal.SIGTERM: 'Pre-empted (SIGTERM)',
    signal.SIGINT: 'Interrupted (Ctrl-C)',
    signal.SIGHUP: 'The terminal was closed (SIGHUP)',
}
TOGETHER = 0.5  # seconds: what comes within is one signal that was delivered twice, by a terminal and by a launcher
AGAIN = 0.1  # seconds after which the main thread is interrupted again


class Asked(BaseException):
  """Work between steps is left undone: a signal asks the run to end. Not an Exception, which that work may catch."""


class Signals:
  """Records signals while it is entered; `received` is the first one's number, or None.

  Several processes have to agree on the step at which they stop. JAX's preemption service does that, and handles
  SIGTERM alone: other signals are sent again as SIGTERM. A signal that is ignored (nohup, a job in the background of a
  script) stays ignored. Only Python's main thread may change handlers: in other threads this does nothing.
  """

  def __init__(self, say: Callable[[str], None], leave: Callable[[], None] | None = None) -> None:
    """leave: called on a second Ctrl-C, not to return; None: KeyboardInterrupt in the main thread."""
    self.say = say
    self.leave = leave
    self.received: signal.Signals | None = None
    self.since = 0.0  # monotonic seconds of the first signal
    self.at_once = False  # whether a second Ctrl-C has come
    self.handlers: dict[int, Any] = {}  # those to be restored
    self.pipe: tuple[int, int] | None = None  # descriptors to read and to write
    self.before = -1  # the wakeup descriptor to be restored
    self.main_thread = 0  # its number
    self.is_noticed = False  # whether the main thread has noticed the second Ctrl-C, or has ended by itself

  def __enter__(self) -> 'Signals':
    if threading.current_thread() is not threading.main_thread():
      return self
    self.main_thread = threading.get_ident()
    for number in WHY:
      if _is_ours(number):
        self.handlers[number] = signal.signal(number, self._in_main_thread)
    self.pipe = os.pipe()
    os.set_blocking(self.pipe[1], False)
    self.before = signal.set_wakeup_fd(self.pipe[1], warn_on_full_buffer=False)
    threading.Thread(target=self._read, args=(self.pipe[0],), name='signals', daemon=True).start()
    return self

  def __exit__(self, *_: Any) -> None:
    if not self.pipe:
      return
    self.is_noticed = True
    signal.set_wakeup_fd(self.before)
    for number, handler in self.handlers.items():
      signal.signal(number, signal.SIG_DFL if handler is None else handler)
    os.close(self.pipe[1])  # which ends the thread; it closes the other end
    self.pipe = None

  def _in_main_thread(self, number: int, frame: FrameType | None) -> None:
    if self.at_once:
      self.is_noticed = True
      raise KeyboardInterrupt

  def _read(self, descriptor: int) -> None:
    """The thread, which alone decides: handlers of the main thread may be late, and called once for two signals."""
    while content := os.read(descriptor, 1):
      number = content[0]
      if number not in self.handlers:
        continue
      if self.received is None:
        self._first(number)
      elif self._is_second_interrupt(number):
        self._second()
    os.close(descriptor)

  def _is_second_interrupt(self, number: int) -> bool:
    if number != signal.SIGINT or self.at_once:
      return False
    return time.monotonic() - self.since > TOGETHER

  def _second(self) -> None:
    self.at_once = True
    if self.leave:
      self.leave()
    # The main thread may have seen this one already, before `at_once`. And a signal that comes just before the thread
    # begins to sleep or to wait for a device does not end that.
    while not self.is_noticed:
      signal.pthread_kill(self.main_thread, signal.SIGINT)
      time.sleep(AGAIN)

  def _first(self, number: int) -> None:
    self.since = time.monotonic()
    self.received = signal.Signals(number)
    if jax.process_count() > 1:
      os.kill(os.getpid(), signal.SIGTERM)
    if number == signal.SIGINT:
      self.say('Ctrl-C: the state is saved after this step, then the run ends. Ctrl-C again ends it at once.')


def _is_ours(number: int) -> bool:
  """Whether a signal is to be handled: not one that is ignored, nor one that JAX handles."""
  if signal.getsignal(number) is signal.SIG_IGN:
    return False
  handled_by_jax = jax.process_count() > 1 and number == signal.SIGTERM
  return not handled_by_jax
