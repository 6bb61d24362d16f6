"""Notices that a TPU's machine will be taken away, turned into the SIGTERM that a run saves at.

Google Cloud tells its virtual machines by their metadata server: `preempted` becomes TRUE, `maintenance-event`
something other than NONE, before it happens; not every kind of TPU also gets a SIGTERM.
"""
import os
import signal
import threading
import urllib.error
import urllib.request

SERVER = 'http://metadata.google.internal/computeMetadata/v1/instance/'
QUIET = {'preempted': 'FALSE', 'maintenance-event': 'NONE'}


def watch(server=SERVER, every=5.0, act=lambda: os.kill(os.getpid(), signal.SIGTERM)):
  """Asks every few seconds, in a thread, and calls `act` once when there is a notice; returns an Event that ends it.

  Where there is no such server the thread ends by itself.
  """
  stop = threading.Event()

  def ask():
    reached = False
    while not stop.wait(every if reached else 0):
      try:
        notices = {name: _get(server + name) for name in QUIET}
      except OSError:  # also urllib's errors; a server that has answered before may be restarting
        if not reached:
          return
        continue
      reached = True
      if any(value not in ('', QUIET[name]) for name, value in notices.items()):
        act()
        return
  threading.Thread(target=ask, daemon=True).start()
  return stop


def _get(url):
  """The value, or '' where the server does not know it."""
  try:
    request = urllib.request.Request(url, headers={'Metadata-Flavor': 'Google'})
    with urllib.request.urlopen(request, timeout=5) as answer:
      return answer.read().decode().strip().upper()
  except urllib.error.HTTPError:
    return ''
