"""Files and streams on a full disk: nothing is cut in two, nothing that memory can hold is lost, one line says so."""
import contextlib
import json
import resource
import subprocess
import sys
import time

import pytest
from hypothesis import given, settings, strategies as st

from t5like.files import writing
from t5like.observe import metrics, trackers
from tests.conftest import ROOT


@contextlib.contextmanager
def room(size):
  """No file of this process may grow beyond `size` bytes: writes are cut short there, and then fail."""
  before = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
  try:
    yield
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.fixture(autouse=True)
def at_once(monkeypatch):
  monkeypatch.setattr(writing, 'RETRY', 0.0)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.text(min_size=1, max_size=30), st.integers(0, 120)), min_size=1, max_size=12))
def test_lines_are_whole_at_every_moment_and_all_there_in_the_end(tmp_path_factory, work):
  path = tmp_path_factory.mktemp('lines') / 'log.jsonl'
  said = []
  files = writing.Guarded(said.append)
  lines = [json.dumps(text) for text, _ in work]
  for line, (_, size) in zip(lines, work):
    with room(size):
      files.append(path, line)
    seen = path.read_text() if path.exists() else ''
    assert ''.join(f'{x}\n' for x in lines).startswith(seen) and seen[-1:] in ('', '\n')
  files.flush()
  assert path.read_text() == ''.join(f'{x}\n' for x in lines)
  failures = [text for text in said if 'cannot be written' in text]
  assert len(said) == 2 * len(failures), 'each time of failing is said once, and once that it is over'


@settings(max_examples=40, deadline=None)
@given(st.binary(max_size=200), st.binary(max_size=200), st.integers(0, 250))
def test_a_file_is_the_old_or_the_new_one(tmp_path_factory, old, new, size):
  folder = tmp_path_factory.mktemp('whole')
  writing.write_file(folder / 'file', old)
  with room(size):
    if len(new) > size:
      with pytest.raises(OSError):
        writing.write_file(folder / 'file', new)
    else:
      writing.write_file(folder / 'file', new)
  assert (folder / 'file').read_bytes() == (old if len(new) > size else new)
  assert [p.name for p in folder.iterdir()] == ['file'], 'what was begun is taken away'


def test_a_full_disk_for_long_costs_the_oldest_lines_and_says_how_many(tmp_path, monkeypatch):
  monkeypatch.setattr(writing, 'MOST', 10)
  said = []
  files = writing.Guarded(said.append)
  with room(0):
    for n in range(25):
      files.append(tmp_path / 'log', f'{n}')
  files.flush()
  assert (tmp_path / 'log').read_text().split() == [f'{n}' for n in range(15, 25)]
  assert len(said) == 2 and '15 lines are lost' in said[1]


def test_lines_of_lost_steps_go_also_from_a_full_disk(tmp_path):
  path = tmp_path / 'metrics.jsonl'
  path.write_text(''.join(json.dumps(dict(step=n)) + '\n' for n in range(1, 6)) + '{"step": 6, "lo')
  said = []
  with room(0):
    files = metrics.Files(tmp_path, 3, say=said.append)
    files.write(4, dict(loss=1.0))
  assert [json.loads(x)['step'] for x in path.read_text().splitlines()] == [1, 2, 3]
  files.close()
  assert [json.loads(x)['step'] for x in path.read_text().splitlines()] == [1, 2, 3, 4]


def test_samples_are_added_and_not_written_anew(tmp_path):
  files = metrics.Files(tmp_path, 9)
  files.sample(3, 'a', 'x\u2028y')
  path = tmp_path / 'samples.jsonl'
  before = path.stat().st_ino
  files.sample(9, 'b', 'z')
  assert path.stat().st_ino == before
  files = metrics.Files(tmp_path, 3)
  files.close()
  assert [json.loads(x)['text'] for x in path.read_text().split('\n') if x] == ['x\u2028y'], 'step 9 was lost work'


def test_tensorboard_files_hold_whole_events_after_a_full_disk(tmp_path):
  from tests.observe.test_trackers import events
  files = writing.Guarded(lambda text: None)
  (board,) = trackers.start(['tensorboard'], tmp_path, 0, 'run', None, files)
  for step in range(1, 30):
    with room(10 ** 6 if step < 5 or step > 20 else 300):
      board.numbers(step, dict(loss=1.0 / step, nll=2.0))
      board.text(step, 'sample', 'a', 'b')
    events(tmp_path / 'tensorboard')  # can be read at every moment
  files.flush()
  found = events(tmp_path / 'tensorboard')
  assert [step for step, _ in found['loss']] == list(range(1, 30)) == [step for step, _ in found['nll']]


def test_event_files_are_read_by_tensorboardx_rules(tmp_path):
  """The checksums of each record are those of the TFRecord format."""
  from tensorboardX.record_writer import RecordWriter
  path = tmp_path / 'theirs'
  writer = RecordWriter(str(path))
  for content in (b'', b'x', bytes(range(256)) * 20):
    writer.write(content)
  writer.close()
  assert path.read_bytes() == b''.join(trackers.record(c) for c in (b'', b'x', bytes(range(256)) * 20))


def test_a_tracker_that_fails_is_tried_again_later(tmp_path, monkeypatch):
  class Service:
    seen, broken = [], True

    def numbers(self, step, values):
      if self.broken:
        raise ConnectionError('no network')
      self.seen.append(step)
  said, now = [], [0.0]
  monkeypatch.setattr(metrics.time, 'monotonic', lambda: now[0])
  service = Service()
  files = metrics.Files(tmp_path, 0, [service], say=said.append)
  for step in range(1, 400):
    now[0] += 1.0
    service.broken = step < 100
    files.write(step, dict(loss=1.0))
  assert service.seen[0] < 300 and service.seen == list(range(service.seen[0], 400))
  assert len(said) == 2 and 'no network' in said[0] and 'works again' in said[1]


def test_people_who_cannot_be_told_cost_nothing(monkeypatch):
  for open_full in (lambda: open('/dev/full', 'w', buffering=1), lambda: None):
    monkeypatch.setattr(sys, 'stdout', open_full())
    screen = metrics.Screen('run', 1000)
    for _ in range(3000):
      screen.say('x' * 50)
    screen.show(1, 10, dict(nll=1.0, tokens_per_second=1.0, mfu=0.1))
    screen.sample('a', 'b')
    screen.close()
    writing.say('y')
    monkeypatch.undo()


@pytest.mark.parametrize('streams', [
    '>/dev/full 2>/dev/full', '>&- 2>&-', '<&- >&- 2>&-', '| true', '2>&1 | head -c 1'])
def test_whatever_becomes_of_the_output_the_exit_code_is_that_of_the_work(tmp_path, streams):
  """And what is opened later never gets the number of standard error, on which libraries write."""
  code = ('import sys; sys.path.insert(0, sys.argv[1]); from t5like.files import writing; writing.open_streams(); '
          'writing.steady_streams(); f = open(sys.argv[2], "w"); assert f.fileno() > 2; '
          'import os; os.write(2, b"from a library") if "full" not in sys.argv[3] else None\n'
          'for n in range(20000): print("x" * 40)\n'
          'writing.say("y"); f.write("whole"); f.close()')
  command = f'"$@" {streams}; exit ${{PIPESTATUS[0]}}'
  done = subprocess.run(['bash', '-c', command, 'sh', sys.executable, '-c', code, ROOT, tmp_path / 'file', streams],
                        timeout=60, capture_output=True)
  assert done.returncode == 0, done.stderr
  assert (tmp_path / 'file').read_text() == 'whole'


def test_waiting_lines_are_not_tried_again_with_every_line(tmp_path, monkeypatch):
  monkeypatch.setattr(writing, 'RETRY', 60.0)
  tries = []
  monkeypatch.setattr(writing, 'append', lambda *a: tries.append(a) or (_ for _ in ()).throw(OSError(28, 'No space')))
  files = writing.Guarded(lambda text: None)
  started = time.monotonic()
  for n in range(1000):
    files.append(tmp_path / 'log', f'{n}')
  assert len(tries) == 1 and time.monotonic() - started < 5
