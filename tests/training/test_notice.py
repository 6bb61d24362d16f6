"""A metadata server that speaks as Google Cloud's does."""
import http.server
import threading
import time

import pytest

from t5like.training import preemption


@pytest.fixture
def server():
  values = {'preempted': 'FALSE', 'maintenance-event': 'NONE'}

  class Handler(http.server.BaseHTTPRequestHandler):

    def do_GET(self):
      name = self.path.rpartition('/')[2]
      known = self.headers['Metadata-Flavor'] == 'Google' and name in values
      self.send_response(200 if known else 404)
      self.end_headers()
      self.wfile.write(values.get(name, '').encode())

    def log_message(self, *_):
      pass
  with http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler) as running:
    threading.Thread(target=running.serve_forever, daemon=True).start()
    yield f'http://127.0.0.1:{running.server_port}/instance/', values
    running.shutdown()


@pytest.mark.parametrize('name, value', [('preempted', 'TRUE'), ('maintenance-event', 'TERMINATE_ON_HOST_MAINTENANCE')])
def test_a_notice_is_acted_upon_once(server, name, value):
  url, values = server
  acted = threading.Semaphore(0)
  stop = preemption.watch(url, 0.02, acted.release)
  time.sleep(0.3)
  assert not acted.acquire(blocking=False), 'nothing has happened yet'
  values[name] = value
  assert acted.acquire(timeout=20)
  time.sleep(0.2)
  assert not acted.acquire(blocking=False)
  stop.set()


def test_a_server_that_does_not_know_one_of_them(server):
  url, values = server
  acted = threading.Event()
  del values['maintenance-event']
  preemption.watch(url, 0.02, acted.set)
  time.sleep(0.2)
  assert not acted.is_set()
  values['preempted'] = 'TRUE'
  assert acted.wait(20)


def test_elsewhere_nothing_is_asked_for_long():
  before = threading.active_count()
  preemption.watch('http://127.0.0.1:9/', 0.01, lambda: 1 / 0)
  deadline = time.monotonic() + 20
  while threading.active_count() > before and time.monotonic() < deadline:
    time.sleep(0.01)
  assert threading.active_count() <= before
