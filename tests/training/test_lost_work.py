"""Work that would be lost: bad last steps, signals, stops, copies of a folder, and what each save leaves behind."""
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time

import jax
import numpy as np
import pytest

from t5like.batches import pipeline
from t5like.errors import CheckpointError, DataError, Interrupted, NumericsError, Preempted
from t5like.files import writing
from t5like.storage import lease
from t5like.storage.checkpoint import Checkpoints
from t5like.training import dispatch, loop, saving, signals, validation
from tests import tiny
from tests.conftest import ROOT

pytestmark = pytest.mark.usefixtures('compile_once')


def run(config, workdir, **options):
  return loop.train(config, workdir, 'test', jax.devices()[:1], **options)


def poison(monkeypatch, first_step, last_step=10 ** 9):
  """Batches of 16 rows of these steps are NaN."""
  real = pipeline.TrainRows.batch

  def batch(self, rows):
    made = real(self, rows)
    if first_step <= min(rows) // 16 + 1 <= last_step:
      made['weights'] = np.full_like(made['weights'], np.nan)
    return made
  monkeypatch.setattr(pipeline.TrainRows, 'batch', batch)


def after_step(monkeypatch, number, act):
  """Calls act(parts of the run) when that step has been dispatched."""
  real = dispatch.Dispatcher.step

  def step(self, batches, progress):
    done = real(self, batches, progress)
    if progress.step + 1 == number:
      act(self.parts)
    return done
  monkeypatch.setattr(dispatch.Dispatcher, 'step', step)


def send(number):
  """A function that sends a signal to this process and waits until it was noted."""
  def act(of):
    os.kill(os.getpid(), number)
    end = time.monotonic() + 20
    while of.signals.received is None and time.monotonic() < end:
      time.sleep(0.01)
  return act


def saved(workdir):
  """{step: checksums of parameters and optimizer} of the checkpoints."""
  with Checkpoints(workdir) as checkpoints:
    metas = {step: checkpoints.meta(step) for step in checkpoints.steps}
  return {step: {k: v for k, v in meta['checksums'].items() if not k.startswith('train')}
          for step, meta in metas.items()}


def losses(workdir):
  keys = ('step', 'loss', 'nll', 'grad_norm', 'validation/nll')
  lines = [json.loads(line) for line in (workdir / 'metrics.jsonl').read_text().splitlines()]
  return [{k: line[k] for k in keys if k in line} for line in lines]


# --- Bad last steps -------------------------------------------------------------------------------


@pytest.mark.parametrize('first_bad, every', [(6, 0), (5, 1)])
def test_a_run_whose_last_steps_are_bad_saves_what_it_has_learnt(tmp_path, monkeypatch, first_bad, every):
  """The state is bit for bit that of the last good step."""
  c = tiny.config(tmp_path, steps=6, checkpoint=dict(every=every, keep=9), evaluate=dict(every=0))
  poison(monkeypatch, first_bad)
  assert run(c, tmp_path / 'run')['step'] == 6
  found = saved(tmp_path / 'run')
  assert 6 in found and (tmp_path / 'run/result.json').exists()
  if every == 1:
    assert found[6] == found[first_bad - 1]


@pytest.fixture(scope='module')
def straight(tmp_path_factory):
  """(folder, config) of a run that is not interrupted."""
  folder = tmp_path_factory.mktemp('straight')
  return folder, tiny.config(folder, steps=8, checkpoint=dict(every=0), evaluate=dict(every=0))


@pytest.mark.parametrize('how', ['SIGTERM', 'SIGINT', 'wall_time'])
def test_a_run_that_has_to_end_at_a_bad_step_saves(tmp_path, straight, monkeypatch, how):
  """And what is resumed is what was not interrupted."""
  poison(monkeypatch, 4, 4)
  folder, c = straight
  if not (folder / 'straight').exists():
    run(c, folder / 'straight')
  with monkeypatch.context() as m:
    if how == 'wall_time':
      c.stop.wall_time = 1e6
      after_step(m, 4, lambda of: setattr(of.deadline, 'started', -1e9))
    else:
      after_step(m, 4, send(signal.Signals[how]))
    with pytest.raises(Interrupted if how == 'SIGINT' else Preempted, match='after step 4 with the state of this step'):
      run(c, tmp_path / 'run')
  assert list(saved(tmp_path / 'run')) == [4]
  c.stop.wall_time = 0.0
  run(c, tmp_path / 'run')
  assert losses(tmp_path / 'run') == losses(folder / 'straight')
  assert saved(tmp_path / 'run')[8] == saved(folder / 'straight')[8]


@pytest.mark.parametrize('every', [1])
def test_a_run_that_has_learnt_nothing_is_not_done(tmp_path, monkeypatch, every):
  c = tiny.config(tmp_path, steps=4, checkpoint=dict(every=every), evaluate=dict(every=0))
  poison(monkeypatch, 1)
  with pytest.raises(NumericsError, match='nothing was learnt: all 4 steps'):
    run(c, tmp_path / 'run')
  assert NumericsError.exit_code == 5 and not (tmp_path / 'run/result.json').exists()


def test_other_errors_keep_what_was_learnt_too(tmp_path, monkeypatch):
  """A damaged record at step 5, where the next checkpoint was due at step 100."""
  c = tiny.config(tmp_path, steps=8, checkpoint=dict(every=100), evaluate=dict(every=0))
  real = pipeline.TrainRows.batch
  with monkeypatch.context() as m:
    m.setattr(pipeline.TrainRows, 'batch', lambda self, rows: (
        real(self, rows) if min(rows) < 64 else (_ for _ in ()).throw(OSError('gone'))))
    with pytest.raises(DataError, match='batch of step 5 .*gone.*The state of step 4 is saved'):
      run(c, tmp_path / 'run')
  with monkeypatch.context() as m:
    m.setattr(validation, 'measure', lambda *a, **k: (_ for _ in ()).throw(MemoryError('no room')))
    with pytest.raises(MemoryError):
      run(c, tmp_path / 'run')
  assert list(saved(tmp_path / 'run')) == [4, 8]
  assert run(c, tmp_path / 'run')['step'] == 8


def test_what_is_suspected_is_not_saved(tmp_path, monkeypatch):
  """A device that errs, or a folder that another run has taken over."""
  c = tiny.config(tmp_path, steps=4, checkpoint=dict(every=0), evaluate=dict(every=0))
  for error in (NumericsError('device 3 holds other values'), CheckpointError('has taken this folder over')):
    with monkeypatch.context() as m:
      m.setattr(loop.Run, '_between_steps', lambda self, batch, ending, error=error: (_ for _ in ()).throw(error))
      with pytest.raises(type(error)):
        run(c, tmp_path / 'run')
  assert saved(tmp_path / 'run') == {}


# --- Signals --------------------------------------------------------------------------------------


def test_a_signal_within_a_validation_does_not_wait_for_its_end(tmp_path, monkeypatch):
  """The state is saved; the validation is done when the run resumes, which is then as if nothing had been."""
  settings = dict(steps=8, checkpoint=dict(every=0), evaluate=dict(every=2), stop=dict(patience=9))
  run(tiny.config(tmp_path, **settings), tmp_path / 'straight')
  real, batches = pipeline.evaluation_batches, []

  def slow(*args, **kwargs):
    for n, batch in enumerate(real(*args, **kwargs)):
      batches.append(n)
      if len(batches) == 4:  # the second validation's second batch
        os.kill(os.getpid(), signal.SIGHUP)
        time.sleep(0.3)
      yield batch
  with monkeypatch.context() as m:
    m.setattr(pipeline, 'evaluation_batches', slow)
    with pytest.raises(Preempted, match=r'terminal was closed \(SIGHUP\): stopped after step 4 '):
      run(tiny.config(tmp_path, **settings), tmp_path / 'run')
  assert [x for x in losses(tmp_path / 'run') if 'validation/nll' in x and x['step'] == 4] == []
  run(tiny.config(tmp_path, **settings), tmp_path / 'run')
  assert losses(tmp_path / 'run') == losses(tmp_path / 'straight')


def test_the_second_interrupt_ends_at_once_and_handlers_are_given_back():
  before = [signal.getsignal(n) for n in signals.WHY]
  threads = threading.active_count()
  said, started = [], time.monotonic()
  with pytest.raises(KeyboardInterrupt):
    with signals.Signals(said.append) as s:
      os.kill(os.getpid(), signal.SIGINT)
      os.kill(os.getpid(), signal.SIGINT)  # at the same moment: a terminal's and a launcher's
      time.sleep(signals.TOGETHER + 0.2)
      assert s.received == signal.SIGINT and len(said) == 1
      os.kill(os.getpid(), signal.SIGINT)
      time.sleep(20)
  assert time.monotonic() - started < 15
  assert [signal.getsignal(n) for n in signals.WHY] == before
  end = time.monotonic() + 5
  while threading.active_count() > threads and time.monotonic() < end:
    time.sleep(0.01)
  assert threading.active_count() == threads


def test_what_is_ignored_stays_ignored_and_other_threads_change_nothing():
  before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
  try:
    with signals.Signals(print) as s:
      os.kill(os.getpid(), signal.SIGHUP)
      time.sleep(0.1)
      assert s.received is None
  finally:
    signal.signal(signal.SIGHUP, before)
  handlers = []

  def elsewhere():
    with signals.Signals(print):
      handlers.append(signal.getsignal(signal.SIGINT))
  thread = threading.Thread(target=elsewhere)
  thread.start()
  thread.join()
  assert handlers == [signal.getsignal(signal.SIGINT)]


# --- Stops and clocks -----------------------------------------------------------------------------


@pytest.mark.parametrize('cluster', [{}, dict(SLURM_JOB_ID='7', SLURM_STEP_NODELIST='127.0.0.1', SLURM_NTASKS='1',
                                              SLURM_PROCID='0', SLURM_LOCALID='0')])
def test_a_single_process_stays_out_of_the_coordination_service(cluster):
  """Which aborts a process that was suspended, or whose clock was set."""
  code = ('from t5like import sharding; sharding.start_processes(); import jax; '
          'assert not jax.distributed.is_initialized(); print(jax.process_count())')
  done = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True, timeout=120,
                        env=dict(os.environ, **cluster))
  assert done.returncode == 0 and done.stdout.split() == ['1'], done.stderr


def test_a_process_that_was_stopped_has_not_stalled_but_one_that_hangs_has():
  code = '''
import sys, time
from t5like.training.watchdog import Watchdog
watchdog = Watchdog(dict(start=2.0, step=1.0))
print('armed', flush=True)
sys.stdin.readline()
watchdog.arm('step')
time.sleep(60)
'''
  process = subprocess.Popen([sys.executable, '-c', code], cwd=ROOT, text=True, stdin=subprocess.PIPE,
                             stdout=subprocess.PIPE, stderr=subprocess.PIPE)
  assert process.stdout.readline() == 'armed\n'
  process.send_signal(signal.SIGSTOP)
  time.sleep(4)
  process.send_signal(signal.SIGCONT)
  time.sleep(0.5)
  assert process.poll() is None, 'four seconds of being stopped are not two of doing nothing'
  process.stdin.write('\n')
  _, said = process.communicate(timeout=60)
  assert process.returncode == 124 and 'watchdog.step' in said


def test_the_watchdog_ends_a_process_also_where_nobody_can_be_told():
  code = 'import time; from t5like.training.watchdog import Watchdog; Watchdog(dict(start=0.5)); time.sleep(60)'
  for streams in ('2>/dev/full', '2>&-'):
    done = subprocess.run(['bash', '-c', f'exec "$@" {streams}', 'sh', sys.executable, '-c', code], cwd=ROOT,
                          timeout=120)
    assert done.returncode == 124


def test_a_clock_that_jumps_changes_no_duration(tmp_path, monkeypatch):
  """An hour forwards and two back, while a run trains."""
  real, offset = time.time, [0.0]
  monkeypatch.setattr(time, 'time', lambda: real() + offset[0])
  for step, jump in ((2, 3600.0), (4, -7200.0)):
    after_step(monkeypatch, step, lambda of, jump=jump: offset.__setitem__(0, offset[0] + jump))
  c = tiny.config(tmp_path, steps=6, stop=dict(wall_time=600.0), checkpoint=dict(every=1))
  assert run(c, tmp_path / 'run')['step'] == 6
  from t5like.observe import ledger
  account = ledger.account(ledger.read(tmp_path / 'run'))
  assert all(0 <= seconds < 600 for seconds in account['seconds'].values()) and 0 < account['goodput'] <= 1


# --- What saves leave behind ----------------------------------------------------------------------


def test_twenty_saves_leave_no_threads_and_no_descriptors(tmp_path, monkeypatch):
  c = tiny.config(tmp_path, steps=20, checkpoint=dict(every=1), evaluate=dict(every=0))
  real, counts = saving.Save.save, []

  def save(hook, progress):
    real(hook, progress)
    hook.parts.checkpoints.wait()
    counts.append((len(os.listdir('/proc/self/fd')), threading.active_count()))
  monkeypatch.setattr(saving.Save, 'save', save)
  run(c, tmp_path / 'run')
  for kind in (0, 1):
    numbers = [count[kind] for count in counts]
    assert max(numbers[-5:]) <= max(numbers[:5]) + 3, numbers  # each save left three descriptors and a thread


def test_saves_that_fail_leave_nothing_either(tmp_path, monkeypatch):
  from t5like.storage import checkpoint
  c = tiny.config(tmp_path, steps=15, checkpoint=dict(every=1), evaluate=dict(every=0))
  broken, counts, said = tmp_path / 'run/checkpoints', [], []
  real = checkpoint.Checkpoints._wait

  def wait(self):
    step = self.under_way
    real(self)
    counts.append((len(os.listdir('/proc/self/fd')), threading.active_count()))
    if 3 <= step < 12:
      shutil.rmtree(broken / str(step))
      raise CheckpointError(f'{step}: No space left on device')
  monkeypatch.setattr(checkpoint.Checkpoints, '_wait', wait)
  monkeypatch.setattr(writing, 'say', said.append)
  run(c, tmp_path / 'run')
  assert saved(tmp_path / 'run').keys() == {14, 15}
  for kind in (0, 1):
    numbers = [count[kind] for count in counts]
    assert max(numbers[-5:]) <= max(numbers[:4]) + 4, numbers
  assert len(said) == 2 and 'training continues' in said[0] and 'after 9 saves that failed' in said[1]


# --- Leases ---------------------------------------------------------------------------------------


def test_a_copy_of_a_running_run_is_nobodys_but_its_folder_by_another_name_is_held(tmp_path, monkeypatch):
  monkeypatch.setattr(lease, 'BEAT', 0.1)
  monkeypatch.setattr(lease, 'PATIENCE', 0.5)
  held = lease.Lease(tmp_path / 'run')
  shutil.copytree(tmp_path / 'run', tmp_path / 'copy')
  started = time.monotonic()
  lease.Lease(tmp_path / 'copy', say=pytest.fail).close()
  assert time.monotonic() - started < 5 and not (tmp_path / 'copy/lease.json').exists()
  (tmp_path / 'link').symlink_to(tmp_path / 'run')
  for name in ('link', 'run', 'copy/../run'):
    with pytest.raises(CheckpointError, match='is training there now'):
      lease.Lease(tmp_path / name)
  (tmp_path / 'copy/lease.json').write_text((tmp_path / 'run/lease.json').read_text())
  with lease_of(tmp_path / 'copy'):
    held.check()
  held.close()


class lease_of:
  def __init__(self, folder):
    self.lease = lease.Lease(folder, say=lambda text: None)

  def __enter__(self):
    return self.lease

  def __exit__(self, *_):
    self.lease.close()


def test_a_folder_that_was_moved_away_is_free_once_nobody_renews_its_lease(tmp_path, monkeypatch):
  monkeypatch.setattr(lease, 'BEAT', 0.1)
  monkeypatch.setattr(lease, 'PATIENCE', 0.5)
  held = lease.Lease(tmp_path / 'run')
  held.stop.set()
  held.thread.join()
  os.rename(tmp_path / 'run', tmp_path / 'moved')
  said = []
  mine = lease.Lease(tmp_path / 'moved', said.append)
  assert 'whether it lives' in said[0]
  mine.close()


def test_machines_of_one_name_are_not_one_machine(tmp_path, monkeypatch):
  """Without Linux's boot number: a live run of another machine must not count as gone because its number is free."""
  monkeypatch.setattr(lease, 'BEAT', 0.1)
  monkeypatch.setattr(lease, 'PATIENCE', 0.5)
  monkeypatch.setattr(lease.os, 'readlink', lambda path: (_ for _ in ()).throw(OSError()))
  monkeypatch.setattr(lease.uuid, 'getnode', lambda: 1)
  held = lease.Lease(tmp_path)
  monkeypatch.setattr(lease.uuid, 'getnode', lambda: 2)
  monkeypatch.setattr(lease, '_lives', lambda found: False)
  with pytest.raises(CheckpointError, match='is training there now'):
    lease.Lease(tmp_path, say=lambda text: None)
  held.close()


def test_a_full_disk_does_not_end_a_lease(tmp_path, monkeypatch):
  """Whoever watches from another machine sees that it is renewed."""
  monkeypatch.setattr(lease, 'BEAT', 0.1)
  monkeypatch.setattr(lease, 'PATIENCE', 0.6)
  held = lease.Lease(tmp_path)
  real = lease.writing.write_file

  def full(path, content, suffix='tmp'):
    if held.own['id'] in content:
      raise OSError(28, 'No space left on device')
    real(path, content, suffix)
  monkeypatch.setattr(lease.writing, 'write_file', full)
  monkeypatch.setattr(lease, '_machine', lambda: 'another')
  with pytest.raises(CheckpointError, match='is training there now'):
    lease.Lease(tmp_path, say=lambda text: None)
  held.close()


@pytest.mark.parametrize('content', ['', '3', 'null', '[]', '{"id": 3}', '{"id": "x", "host": "h", "machine": "m"}',
                                     '[' * 100_000, '{"id": "x", "host": "h", "pid": -1, "machine": "m"}'
                                     .replace('"m"', 'MACHINE'), '9' * 5000])
def test_what_is_no_lease_is_nobodys(tmp_path, content):
  (tmp_path / 'lease.json').write_text(content.replace('MACHINE', json.dumps(lease._machine())))
  lease.Lease(tmp_path, say=pytest.fail).close()
