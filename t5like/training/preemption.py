"""Preemption notices of TPU VMs, turned into a SIGTERM, on which a run saves and ends.

The metadata server of Google Cloud announces a preemption or a maintenance event in advance: `preempted` becomes TRUE,
or `maintenance-event` something other than NONE. Not every kind of TPU VM also sends a SIGTERM.
"""
import os
import signal
import threading
import urllib.error
import urllib.request
from collections.abc import Callable

SERVER = 'http://metadata.google.internal/computeMetadata/v1/instance/'
QUIET = {'preempted': 'FALSE', 'maintenance-event': 'NONE'}  # values without a notice


def _send_sigterm() -> None:
  os.kill(os.getpid(), signal.SIGTERM)


def watch(server: str = SERVER, every: float = 5.0, act: Callable[[], None] = _send_sigterm) -> threading.Event:
  """Polls the server in a thread, and calls `act` once, at the first notice.

  Args:
    server: URL before the names of the values. Without such a server the thread ends.
    every: seconds between requests.
    act: called in the thread.

  Returns:
    An event that ends the thread when it is set.
  """
  stop = threading.Event()
  threading.Thread(target=_ask, args=(server, every, act, stop), daemon=True).start()
  return stop


def _ask(server: str, every: float, act: Callable[[], None], stop: threading.Event) -> None:
  reached = False
  wait = 0.0
  while not stop.wait(wait):
    try:
      noticed = _is_noticed(server)
    except OSError:  # also urllib's errors; a server that has answered before may be restarting
      if not reached:
        return
      continue
    reached = True
    wait = every
    if noticed:
      act()
      return


def _is_noticed(server: str) -> bool:
  for name in QUIET:
    if _get(server + name) not in ('', QUIET[name]):
      return True
  return False


def _get(url: str) -> str:
  """The value, or '' where the server does not know it."""
  request = urllib.request.Request(url, headers={'Metadata-Flavor': 'Google'})
  try:
    with urllib.request.urlopen(request, timeout=5) as answer:
      return answer.read().decode().strip().upper()
  except urllib.error.HTTPError:
    return ''
