"""Bad steps: batches that are kept, runs that go back, rows that are left out; two runs in a folder; disks."""
import json
import os
import pathlib
import shutil
import subprocess
import sys
import zipfile

import jax
import numpy as np
import pytest

from t5like.batches import bad_batches, inspect, pipeline
from t5like.errors import CheckpointError, ConfigError, DataError, NumericsError
from t5like.storage import lease, rewinds as rewinds_lib
from t5like.storage.checkpoint import Checkpoints
from t5like.training import dispatch, loop, saving, validation
from tests import forked, tiny

pytestmark = pytest.mark.usefixtures('compile_once')

ROOT = pathlib.Path(__file__).parents[2]
_server = forked.Server()


def run(config, workdir):
  return loop.train(config, workdir, 'test', jax.devices()[:1])


def poison(monkeypatch, bad_rows):
  """Rows whose weights are NaN; returns the list of all rows that are read, batch by batch."""
  real, read = pipeline.TrainRows.batch, []

  def batch(self, rows):
    read.append(list(rows))
    out = real(self, rows)
    for i, row in enumerate(rows):
      if row in bad_rows:
        out['weights'][i] = np.nan
    return out
  monkeypatch.setattr(pipeline.TrainRows, 'batch', batch)
  return read


def test_a_run_goes_back_and_leaves_bad_rows_out(tmp_path, monkeypatch):
  """Rows 100 to 139 (steps 7 to 9) are bad: back to step 6, and on behind them."""
  c = tiny.config(tmp_path, steps=12, checkpoint=dict(every=3, keep=9), evaluate=dict(every=0),
                  guard=dict(max_bad_steps=2))
  poison(monkeypatch, range(100, 140))
  result = run(c, tmp_path / 'run')
  assert result['step'] == 12 and np.isfinite(result['validation']['nll'])
  rewinds = rewinds_lib.read_rewinds(tmp_path / 'run')
  assert [(r['to_step'], r['rows']) for r in rewinds] == [(6, [96, 144])]
  with Checkpoints(tmp_path / 'run') as checkpoints:
    meta = checkpoints.meta(12)
  assert meta['rewinds'] == 1 and meta['tokens'] == 12 * 16 * 32 and meta['skipped'] == [[96, 144]]
  assert meta['examples_seen'] == 12 * 16 + 48
  steps = [l['step'] for l in tiny.metrics(tmp_path / 'run')[0]]
  assert steps == sorted(set(steps)) and steps[-1] == 12, 'lines of steps that were undone are gone'


def test_going_back_is_the_same_as_never_having_read_those_rows(tmp_path, monkeypatch):
  """Weights and losses bit for bit as of a run whose config left the window out from the beginning."""
  poison(monkeypatch, range(70, 100))  # steps 5 to 7
  settings = dict(steps=10, checkpoint=dict(every=2, keep=9), evaluate=dict(every=0))
  c = tiny.config(tmp_path, guard=dict(max_bad_steps=2), **settings)
  run(c, tmp_path / 'run')
  with Checkpoints(tmp_path / 'run') as checkpoints:
    meta = checkpoints.meta(10)
  window, = meta['skipped']
  c = tiny.config(tmp_path, data=dict(skip_rows=f'{window[0]}:{window[1]}'), **settings)
  run(c, tmp_path / 'straight')
  with Checkpoints(tmp_path / 'straight') as checkpoints:
    straight = checkpoints.meta(10)
  weights = lambda m: {k: v for k, v in m['checksums'].items() if not k.startswith('train')}
  assert weights(meta) == weights(straight)
  losses = [[(l['step'], l['loss']) for l in tiny.metrics(tmp_path / name)[0]] for name in ('run', 'straight')]
  assert losses[0] == losses[1]


def test_the_budget_of_rewinds_holds_across_starts(tmp_path, monkeypatch):
  c = tiny.config(tmp_path, steps=40, checkpoint=dict(every=2, keep=9), evaluate=dict(every=0),
                  guard=dict(max_bad_steps=2, rewinds=2))
  poison(monkeypatch, range(80, 10_000))
  with pytest.raises(NumericsError, match=r'rewound 2 times \(guard.rewinds=2\)'):
    run(c, tmp_path / 'run')
  first, second = rewinds_lib.read_rewinds(tmp_path / 'run')
  assert second['to_step'] < first['to_step'], 'going back to the same place led nowhere'
  with pytest.raises(NumericsError, match='rewound 2 times'):
    run(c, tmp_path / 'run')
  assert len(rewinds_lib.read_rewinds(tmp_path / 'run')) == 2


def test_a_checkpoint_of_a_past_that_did_not_happen_is_not_taken():
  rewinds = [dict(to_step=10, rows=[160, 400]), dict(to_step=8, rows=[128, 500])]
  happened = rewinds_lib.happened(rewinds)
  assert happened(10, dict(rewinds=1)) is False, 'undone by the second rewind'
  assert happened(8, dict(rewinds=0)) and happened(8, dict(rewinds=1)) and happened(20, dict(rewinds=2))
  assert not happened(12, dict(rewinds=0)) and not happened(9, dict(rewinds=0))
  assert rewinds_lib.windows(rewinds, 130) == [(160, 400), (130, 500)]
  assert rewinds_lib.windows(rewinds, 450) == [(450, 500)]
  assert rewinds_lib.target([4, 8, 10], []) == 10
  assert rewinds_lib.target([4, 8, 10], rewinds[:1]) == 8 and rewinds_lib.target([4, 8, 12], rewinds[:1]) == 12
  assert rewinds_lib.target([10], rewinds[:1]) is None and rewinds_lib.target([], []) is None


@pytest.mark.parametrize('sections', [
    dict(), dict(model=dict(name='encoder_decoder', vocab_size=320), data=dict(target_len=32),
                 objective=dict(name='span_corruption'), vocabulary=dict(sentinels=30))])
def test_a_bad_batch_is_kept_and_can_be_inspected(tmp_path, monkeypatch, capsys, sections):
  c = tiny.config(tmp_path, steps=4, evaluate=dict(every=0), **sections)
  poison(monkeypatch, [37])  # the third step's
  result = run(c, tmp_path / 'run')
  assert result['step'] == 4
  path, = (tmp_path / 'run/bad_steps').iterdir()
  batch, about = bad_batches.read(path)
  assert about['step'] == 3 and about['first_row'] == 32 and np.isnan(about['loss']) and about['bad_steps'] == 1
  assert np.isnan(batch['weights'][5]).all() and np.isfinite(np.delete(batch['weights'], 5, 0)).all()
  from t5like.prepared import opening
  inspect.show_kept(opening.open_data(c), path, 1, 5)
  shown = capsys.readouterr().out
  assert 'Step 3' in shown and 'began with row 32' in shown and 'nan' in shown
  with pytest.raises(ConfigError, match='--row=99'):
    inspect.show_kept(opening.open_data(c), path, 1, 99)


@pytest.mark.parametrize('content', [b'', b'PK\x03\x04 and then nothing', b'text'])
def test_what_is_no_batch_is_refused(tmp_path, content):
  (tmp_path / 'x.npz').write_bytes(content)
  with pytest.raises(DataError, match='not a batch that a run kept'):
    bad_batches.read(tmp_path / 'x.npz')


@pytest.mark.parametrize('path', ['/dev/zero', '/dev/null', 'pipe', 'folder', 'bomb.npz'])
def test_what_would_take_all_memory_or_time_is_no_batch(tmp_path, path):
  os.mkfifo(tmp_path / 'pipe')
  (tmp_path / 'folder').mkdir()
  if path == 'bomb.npz':
    with zipfile.ZipFile(tmp_path / path, 'w', zipfile.ZIP_DEFLATED, compresslevel=1) as bomb:
      with bomb.open('inputs.npy', 'w') as f:
        for _ in range(33):
          f.write(bytes(16 << 20))
  with pytest.raises(DataError, match='not a batch that a run kept .*(regular file|folder|unpacks to)'):
    bad_batches.read(tmp_path / path)


def test_two_runs_in_one_folder_are_refused_and_the_dead_make_room(tmp_path):
  held = lease.Lease(tmp_path)
  with pytest.raises(CheckpointError, match=f'process {os.getpid()} on .* is training there now'):
    lease.Lease(tmp_path)
  held.close()
  assert not (tmp_path / 'lease.json').exists()
  code = f'from t5like.storage.lease import Lease; import os; Lease({str(tmp_path)!r}); os._exit(0)'
  subprocess.run([sys.executable, '-c', code], cwd=ROOT, check=True, timeout=120)
  assert (tmp_path / 'lease.json').exists()
  lease.Lease(tmp_path).close()  # of a process that is no more: taken over at once


def test_a_lease_of_another_machine_counts_while_it_is_renewed(tmp_path, monkeypatch):
  monkeypatch.setattr(lease, 'BEAT', 0.1)
  monkeypatch.setattr(lease, 'PATIENCE', 0.5)
  elsewhere = lease.Lease(tmp_path)
  monkeypatch.setattr(lease, '_machine', lambda: 'another')
  with pytest.raises(CheckpointError, match='is training there now'):
    lease.Lease(tmp_path, say=lambda _: None)
  elsewhere.stop.set()
  elsewhere.thread.join()  # it lives no more, and its file stays
  said = []
  mine = lease.Lease(tmp_path, said.append)
  assert 'watching for' in said[0]
  with pytest.raises(CheckpointError, match='taken this folder over'):
    elsewhere.check()
  mine.check()
  mine.close()


def test_a_number_that_was_given_to_another_process_is_not_the_run(tmp_path):
  """Containers begin with the same numbers each time."""
  held = lease.Lease(tmp_path)
  held.stop.set()
  held.thread.join()
  found = json.loads((tmp_path / 'lease.json').read_text())
  (tmp_path / 'lease.json').write_text(json.dumps(dict(found, began=found['began'] - 1)))
  lease.Lease(tmp_path).close()


def test_a_damaged_lease_is_nobodys(tmp_path):
  (tmp_path / 'lease.json').write_text('{"id": ')
  lease.Lease(tmp_path).close()


def test_a_full_disk_costs_checkpoints_and_no_training(tmp_path, monkeypatch):
  """Saves at steps 2 and 4 find no room, the one at 6 does; a run whose last save fails ends with an error."""
  c = tiny.config(tmp_path, steps=8, checkpoint=dict(every=2), evaluate=dict(every=0))
  real, calls = shutil.disk_usage, []

  def usage(path):
    calls.append(path)
    return real(path)._replace(free=1000) if len(calls) in (1, 2) else real(path)
  monkeypatch.setattr(shutil, 'disk_usage', usage)
  assert run(c, tmp_path / 'run')['step'] == 8
  with Checkpoints(tmp_path / 'run') as checkpoints:
    assert checkpoints.steps == [6, 8]
  monkeypatch.setattr(shutil, 'disk_usage', lambda path: real(path)._replace(free=1000))
  monkeypatch.setattr(saving, 'PAUSE', 0.01)
  with pytest.raises(CheckpointError, match='a checkpoint takes .* GB.*The last checkpoint, of step 8, could not'):
    run(c, tmp_path / 'full')
  assert not (tmp_path / 'full/result.json').exists()


def test_a_save_that_fails_behind_the_run_is_told_and_tidied(tmp_path, monkeypatch):
  """The disk is full while a save is being written: an error in the background, half a checkpoint on the disk."""
  from orbax.checkpoint import v1 as ocp
  c = tiny.config(tmp_path, steps=8, checkpoint=dict(every=2, keep=9), evaluate=dict(every=0))
  real, waits = ocp.training.Checkpointer.wait, []

  def wait(self):
    waits.append(1)
    real(self)
    if len(waits) == 1:
      (tmp_path / 'run/checkpoints/2/commit_success.txt').unlink()
      raise ValueError('RESOURCE_EXHAUSTED: No space left on device')
  monkeypatch.setattr(ocp.training.Checkpointer, 'wait', wait)
  assert run(c, tmp_path / 'run')['step'] == 8
  with Checkpoints(tmp_path / 'run') as checkpoints:
    assert 2 not in checkpoints.steps and checkpoints.steps[-1] == 8
  assert not (tmp_path / 'run/checkpoints/2').exists()


def test_a_folder_that_vanishes_ends_the_run_with_an_error_or_is_made_again(tmp_path, monkeypatch):
  c = tiny.config(tmp_path, steps=8, checkpoint=dict(every=2), evaluate=dict(every=0))
  real, steps = dispatch.Dispatcher.step, []

  def step(self, batches, progress):
    steps.append(1)
    if len(steps) == 5:
      self.parts.checkpoints.wait()
      shutil.rmtree(tmp_path / 'run')
    return real(self, batches, progress)
  monkeypatch.setattr(dispatch.Dispatcher, 'step', step)
  try:
    run(c, tmp_path / 'run')
  except CheckpointError as error:
    assert str(tmp_path / 'run') in str(error)
  else:
    with Checkpoints(tmp_path / 'run') as checkpoints:
      assert checkpoints.steps[-1] == 8, 'what was said to be saved is there'


def test_looking_at_a_run_does_not_touch_what_it_is_saving(tmp_path):
  """generate beside a run that trains: a save under way looks like one that was killed."""
  run(tiny.config(tmp_path, steps=4), tmp_path / 'run')
  under_way = tmp_path / 'run/checkpoints/9'
  shutil.copytree(tmp_path / 'run/checkpoints/4', under_way)
  (under_way / 'commit_success.txt').unlink()
  with Checkpoints(tmp_path / 'run') as checkpoints:
    assert checkpoints.steps == [4]
  assert under_way.exists()
  with Checkpoints(tmp_path / 'run', tidy=True) as checkpoints:
    assert checkpoints.steps == [4]
  assert not under_way.exists()


def test_the_best_checkpoints_are_kept(tmp_path, monkeypatch):
  c = tiny.config(tmp_path, steps=12, checkpoint=dict(every=2, keep=1, keep_best=2), evaluate=dict(every=4))
  values = iter([dict(nll=x, perplexity=1.0, accuracy=0.0, tokens=1) for x in (2.0, 1.0, 3.0)])
  monkeypatch.setattr(validation, 'measure', lambda *a, **k: next(values))
  run(c, tmp_path / 'run')
  with Checkpoints(tmp_path / 'run') as checkpoints:
    assert checkpoints.steps == [4, 8, 12], 'the best two, and the newest'


@pytest.mark.parametrize('phase, patch', [
    ('data', "pipeline.TrainRows.batch = lambda self, rows: time.sleep(60)"),
    ('save', "checkpoint.Checkpoints.save = lambda *a, **k: time.sleep(60)"),
    ('step', "loop.Run._between_steps = lambda self, batch, ending: time.sleep(60)")])
def test_each_phase_has_a_budget(tmp_path, phase, patch):
  """What hangs is named, with the stacks, and ends the run with 124."""
  code = f'''
import pathlib, time
from t5like.storage import checkpoint
from t5like.training import loop
from t5like.batches import pipeline
from t5like.training.dispatch import Dispatcher
from tests import forked, tiny
c = tiny.config(pathlib.Path({str(tmp_path)!r}), steps=20, checkpoint=dict(every=2), evaluate=dict(every=0),
                watchdog=dict({phase}=2.0))
real_step, count = Dispatcher.step, []
def step(self, batches, progress):
  count.append(1)
  if len(count) == 2:
    exec({patch!r}, globals())
  return real_step(self, batches, progress)
Dispatcher.step = step
loop.train(c, {str(tmp_path / 'run')!r}, 'test')
'''
  done = _server.run(ROOT, code, ())
  assert done.returncode == 124, done.stderr[-2000:]
  assert f'no progress for 2 s (config key watchdog.{phase})' in done.stderr
  assert 'time.sleep' not in done.stdout and 'File "' in done.stderr
