"""Runs as a user starts them: what is left behind, why they end, and what they refuse."""
import contextlib
import fcntl
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import termios
import threading
import time

import jax
import numpy as np
import pytest

from t5like import sharding
from t5like.batches import pipeline
from t5like.decoding import trained_model
from t5like.errors import CheckpointError, ConfigError, DataError, NumericsError, Preempted
from t5like.storage import workdir as workdir_lib
from t5like.storage.checkpoint import Checkpoints
from t5like.training import loop, stop
from t5like.training.watchdog import Watchdog
from tests import forked, tiny
from tests.conftest import COMPILED_FAST, ROOT

pytestmark = pytest.mark.usefixtures('compile_once')


def run(config, workdir):
  return loop.train(config, workdir, 'test', jax.devices()[:1])


def test_leaves_a_model_metrics_events_and_a_result(tmp_path, capsys):
  c = tiny.config(tmp_path, steps=8, log=dict(trackers=('tensorboard',)), sample=dict(prompts=('the ',), tokens=8))
  result = run(c, tmp_path / 'run')
  out = capsys.readouterr().out
  assert result['reason'] == 'stop.tokens reached' and result['tokens'] == c.stop.tokens
  steps, validations = tiny.metrics(tmp_path / 'run')
  assert [l['step'] for l in steps] == list(range(1, 9))
  assert {'loss', 'nll', 'accuracy', 'grad_norm', 'learning_rate', 'tokens', 'tokens_per_second', 'mfu',
          'bad_steps'} <= set(steps[0])
  assert [l['step'] for l in validations] == [4, 8]
  last = validations[-1]
  assert np.isclose(last['validation/perplexity'], np.exp(last['validation/nll']))
  assert list((tmp_path / 'run' / 'tensorboard').glob('events*'))
  with Checkpoints(tmp_path / 'run') as checkpoints:
    assert checkpoints.steps == [4, 8]
  assert 'sample' in out and 'the ' in out and 'Done: stop.tokens reached' in out
  model = trained_model.load(tmp_path / 'run')
  a, b = (model.generate(['the ', 'of'], tokens=40, seed=s) for s in (0, 1))
  assert a != b and a == model.generate(['the ', 'of'], tokens=40, seed=0)


def test_bits_per_byte_and_nll_agree_with_a_hand_computation(tmp_path):
  """One validation by hand: every token of the split once, in nats, over its bytes of text."""
  c = tiny.config(tmp_path, evaluate=dict(batches=0))
  result = run(c, tmp_path / 'run')
  model = trained_model.load(tmp_path / 'run')
  from t5like.objectives import functions
  from t5like.prepared import opening
  store = opening.open_data(c)
  windows = store.windows('validation', c.data.seq_len, stride=c.data.seq_len, tail=True)
  batch = functions.causal(np.stack([windows[i] for i in range(len(windows))]), document_mask=True, eos_id=1)
  with jax.set_mesh(model.mesh):
    logits = np.asarray(jax.jit(model.model.apply)(model.params, jax.device_put(batch)), np.float64)
  log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
  nll = -np.take_along_axis(log_p, batch['targets'][..., None], -1)[..., 0]
  total = float((nll * batch['weights']).sum())
  split = store.manifest['splits']['validation']
  assert batch['weights'].sum() == split['tokens'] == result['validation']['tokens']
  assert np.isclose(result['validation']['nll'], total / split['tokens'], rtol=1e-5)
  assert np.isclose(result['validation']['bits_per_byte'], total / np.log(2) / split['bytes'], rtol=1e-5)


def test_converges_by_target_and_by_patience(tmp_path):
  c = tiny.config(tmp_path, steps=50, stop=dict(target='nll <= 5.4'), evaluate=dict(every=2))
  result = run(c, tmp_path / 'target')
  assert result['reason'].startswith('converged: stop.target nll <= 5.4')
  assert result['step'] < 50 and result['validation']['nll'] <= 5.4
  c = tiny.config(tmp_path, steps=50, stop=dict(patience=2), evaluate=dict(every=1),
                  optimizer=dict(learning_rate=1e-12, weight_decay=0.0))
  result = run(c, tmp_path / 'patience')
  assert 'stop.patience' in result['reason'] and result['step'] < 50


def test_patience_counts_validations_without_a_lower_nll(tmp_path):
  spec, patience, reasons = tiny.config(tmp_path, stop=dict(patience=3)).stop, stop.Patience(), []
  for nll in (3, 2, 2.5, 2.0, 1.9, 2, 2, 2):
    patience, reason = stop.after_validation(spec, patience, dict(nll=nll))
    reasons.append(bool(reason))
  assert reasons == [False] * 7 + [True]


def test_wall_time_saves_and_can_go_on(tmp_path):
  c = tiny.config(tmp_path, steps=8, stop=dict(wall_time=0.001))
  with pytest.raises(Preempted, match='stop.wall_time'):
    run(c, tmp_path / 'run')
  c.stop.wall_time = 0.0
  assert run(c, tmp_path / 'run')['step'] == 8
  assert [l['step'] for l in tiny.metrics(tmp_path / 'run')[0]] == list(range(1, 9))


def test_numbers_that_stay_bad_end_the_run_and_are_never_saved(tmp_path):
  """A learning rate whose updates overflow: no step changes anything, and none is saved."""
  c = tiny.config(tmp_path, steps=40, optimizer=dict(learning_rate=1e30), guard=dict(max_bad_steps=5),
                  schedule=dict(warmup_steps=0), checkpoint=dict(every=1), evaluate=dict(every=0))
  with pytest.raises(NumericsError, match='5 steps in a row'):
    run(c, tmp_path / 'run')
  with Checkpoints(tmp_path / 'run') as checkpoints:
    assert checkpoints.steps == []


def test_a_step_that_is_not_finite_is_passed_over_and_its_save_put_off(tmp_path, monkeypatch):
  """NaN in the fourth batch, at whose step a save is due: step 5 is saved instead."""
  c = tiny.config(tmp_path, steps=7, checkpoint=dict(every=4, keep=9), evaluate=dict(every=0))
  real, seen = sharding.to_global, []

  def poisoned(mesh, batch):
    seen.append(1)
    if len(seen) == 4:
      batch['weights'] = np.full_like(batch['weights'], np.nan)
    return real(mesh, batch)
  monkeypatch.setattr(sharding, 'to_global', poisoned)
  result = run(c, tmp_path / 'run')
  assert np.isfinite(result['validation']['nll'])
  with Checkpoints(tmp_path / 'run') as checkpoints:
    assert checkpoints.steps == [5, 7]
  lines = tiny.metrics(tmp_path / 'run')[0]
  assert [l['step'] for l in lines] == [1, 2, 3, 5, 6, 7] and lines[-1]['bad_steps'] == 1


def test_an_error_while_reading_is_a_data_error_with_the_step(tmp_path, monkeypatch):
  real = pipeline.TrainRows.batch
  monkeypatch.setattr(pipeline.TrainRows, 'batch', lambda self, rows: (
      real(self, rows) if min(rows) < 32 else (_ for _ in ()).throw(OSError('gone'))))
  with pytest.raises(DataError, match='batch of step 3 .*OSError: gone'):
    run(tiny.config(tmp_path), tmp_path / 'run')


@pytest.mark.filterwarnings('ignore:coroutine .* was never awaited:RuntimeWarning')
def test_a_damaged_checkpoint_falls_back_to_the_one_before(tmp_path, capsys):
  c = tiny.config(tmp_path, steps=8)
  run(c, tmp_path / 'run')
  newest = tmp_path / 'run' / 'checkpoints' / '8'
  for file in (newest / 'params').rglob('*'):
    if file.is_file() and file.stat().st_size > 1000:
      file.write_bytes(file.read_bytes()[:500])
  c.stop.tokens += 2 * 16 * 32
  assert run(c, tmp_path / 'run')['step'] == 10
  out = capsys.readouterr().out
  assert 'step 8' in out and 'Resumed from step 4' in out
  for step in (tmp_path / 'run' / 'checkpoints').iterdir():
    shutil.rmtree(step / 'params', ignore_errors=True)
  c.stop.tokens += 16 * 32
  with pytest.raises(CheckpointError, match='no checkpoint in .* can be read'):
    run(c, tmp_path / 'run')


def test_other_data_is_refused_unless_allowed(tmp_path):
  c = tiny.config(tmp_path, steps=4)
  run(c, tmp_path / 'run')
  tiny.write_text(tmp_path / 'text.jsonl', seed=5)
  shutil.rmtree(tmp_path / 'prepared')
  c.stop.tokens *= 2
  with pytest.raises(ConfigError, match='other data'):
    run(c, tmp_path / 'run')
  c.allow_changed = 'data'
  assert run(c, tmp_path / 'run')['step'] == 8


def test_a_model_too_small_for_its_vocabulary(tmp_path):
  c = tiny.config(tmp_path)
  c.model.vocab_size = 200
  with pytest.raises(ConfigError, match='model.vocab_size=200.*259 pieces'):
    run(c, tmp_path / 'run')


def test_params_expected_is_checked(tmp_path):
  with pytest.raises(ConfigError, match='params_expected=123.*parameters'):
    run(tiny.config(tmp_path, params_expected=123), tmp_path / 'run')


def test_generate_needs_a_run(tmp_path):
  with pytest.raises(ConfigError, match='holds no run'):
    trained_model.load(tmp_path)


def test_a_result_counts_only_for_the_same_stop(tmp_path):
  c = tiny.config(tmp_path)
  workdir_lib.write_result(tmp_path, c, reason='x', step=1, tokens=2, validation=dict(nll=1.0))
  assert workdir_lib.read_result(tmp_path, c)['reason'] == 'x'
  c.stop.tokens += 1
  assert workdir_lib.read_result(tmp_path, c) is None


# --- Whole processes ------------------------------------------------------------------------


MAIN = f"""
import os, runpy, sys
os.environ.update(XLA_FLAGS={COMPILED_FAST!r}, COLUMNS='100')
sys.argv[0] = {str(ROOT / 'main.py')!r}
runpy.run_path(sys.argv[0], run_name='__main__')
"""
_server = forked.Server()


def main(*args, cwd):
  """`python main.py ARGS`, forked where it needs no terminal and no signals."""
  return _server.run(cwd, MAIN, args)


def test_command_line_end_to_end(tmp_path):
  """Train, run again, refuse another config, generate, inspect: as the README has it."""
  args = [f'--config={ROOT}/configs/decoder_tiny.py:smoke']
  first = main(*args, cwd=tmp_path)
  assert first.returncode == 0, first.stderr
  assert 'Done: stop.tokens reached' in first.stdout and 'sample' in first.stdout
  assert 'Traceback' not in first.stderr and 'Warning' not in first.stderr
  workdir = tmp_path / 'runs' / 'decoder_tiny-smoke'
  assert {'checkpoints', 'metrics.jsonl', 'tensorboard', 'config.json', 'result.json',
          'vocabulary'} <= set(os.listdir(workdir))
  again = main(*args, cwd=tmp_path)
  assert again.returncode == 0 and 'Nothing left to do' in again.stdout
  other = main(*args, '--config.model.d_model=128', cwd=tmp_path)
  assert other.returncode == 2 and 'model.d_model: 64 there, 128 now' in other.stderr
  text = main('generate', f'--workdir={workdir}', '--prompt=def ', '--tokens=8', cwd=tmp_path)
  assert text.returncode == 0 and 'def ' in text.stdout, text.stderr
  shown = main('inspect', *args, '--step=3', cwd=tmp_path)
  assert shown.returncode == 0 and 'row 24' in shown.stdout and 'target' in shown.stdout
  prepared = main('prepare', *args, cwd=tmp_path)
  assert prepared.returncode == 0 and 'prepared already' in prepared.stdout
  numbers = main(*args, '--print_config', '--config.model.vocab_size=640', cwd=tmp_path)
  assert numbers.returncode == 0 and 'parameters' in numbers.stdout and 'flops_in_all' in numbers.stdout


@pytest.mark.parametrize('args, code, words', [
    (['--config=configs/decoder_tny.py'], 2, ['decoder_tiny.py']),
    (['--config=configs/decoder_tiny.py', '--config.model.num_layer=3'], 2, ['model.num_layers']),
    (['--config=configs/decoder_tiny.py', '--config.batch_size=many'], 2, ['batch_size', 'many']),
    (['--config=configs/decoder_tiny.py', '--workdr=x'], 2, ['workdr', 'workdir']),
    (['trian', '--config=configs/decoder_tiny.py'], 2, ['train']),
    (['train', 'batch_size=9', '--config=configs/decoder_tiny.py'], 2,
     ['batch_size=9', '--config.batch_size']),
    ([], 2, ['--config']),
    (['generate', '--workdir=nowhere'], 2, ['nowhere']),
    (['--config=configs/decoder_tiny.py', '--config.data.source=text:/no/such/*.txt'], 3, ['/no/such']),
    (['--config=configs/decoder_tiny.py', '--config.optimizer.name=adamx'], 2, ['adamx', 'adam']),
    (['--config=configs/decoder_tiny.py', '--config.mesh.fsdp=3'], 2, ['mesh.fsdp']),
], ids=lambda a: ' '.join(a[-2:]) if isinstance(a, list) else '')
def test_mistakes_end_with_a_paragraph_and_a_code(args, code, words, tmp_path):
  args = [a.replace('configs/', f'{ROOT}/configs/') for a in args]
  smoke = [a + ':smoke' if a.endswith('decoder_tiny.py') else a for a in args]
  done = main(*smoke, cwd=tmp_path)
  assert done.returncode == code, done.stderr
  assert 'Traceback' not in done.stderr
  for word in words:
    assert word in done.stderr
  assert len(done.stderr) < 2500


def test_sigterm_saves_exits_75_and_the_same_command_goes_on(tmp_path):
  args = [f'--config={ROOT}/configs/decoder_tiny.py:smoke', '--config.stop.tokens=60000',
          '--config.evaluate.every=0', '--config.checkpoint.every=0', '--config.sample.prompts=()']
  process = subprocess.Popen(
      [sys.executable, ROOT / 'main.py', *args], cwd=tmp_path, text=True, stdout=subprocess.PIPE,
      stderr=subprocess.PIPE, env={**os.environ, 'XLA_FLAGS': COMPILED_FAST})
  metrics = tmp_path / 'runs' / 'decoder_tiny-smoke' / 'metrics.jsonl'
  deadline = time.time() + 300
  while time.time() < deadline and not (metrics.exists() and metrics.read_text().count('\n') > 5):
    time.sleep(0.05)
  process.send_signal(signal.SIGTERM)
  _, err = process.communicate(timeout=200)
  assert process.returncode == 75, err
  assert 'Pre-empted' in err and 'The same command resumes there' in err
  saved = max(int(p.name) for p in (metrics.parent / 'checkpoints').iterdir() if p.name.isdigit())
  assert 5 <= saved < 117
  done = main(*args, cwd=tmp_path)
  assert done.returncode == 0 and f'Resumed from step {saved}' in done.stdout, done.stderr
  steps = [json.loads(l)['step'] for l in metrics.read_text().splitlines() if '"loss"' in l]
  assert steps == list(range(1, steps[-1] + 1))


class Terminal:
  """A command in a pseudo-terminal of its own; what it prints is read as it comes."""

  def __init__(self, args, cwd):
    self.end, other = os.openpty()
    self.said = ''
    self.process = subprocess.Popen(
        [sys.executable, ROOT / 'main.py', *args], cwd=cwd, stdin=other, stdout=other, stderr=other,
        start_new_session=True, env={**os.environ, 'XLA_FLAGS': COMPILED_FAST, 'COLUMNS': '300'},
        preexec_fn=lambda: (fcntl.ioctl(0, termios.TIOCSCTTY, 0), signal.signal(signal.SIGINT, signal.SIG_DFL)))
    os.close(other)
    self.thread = threading.Thread(target=self._read)
    self.thread.start()

  def _read(self):
    with contextlib.suppress(OSError):  # it has ended
      while True:
        self.said += os.read(self.end, 1000).decode(errors='replace')

  def until(self, done):
    end = time.monotonic() + 200
    while not done():
      assert self.process.poll() is None and time.monotonic() < end, self.said
      time.sleep(0.05)

  def press_ctrl_c(self):
    os.write(self.end, b'\x03')

  def wait(self):
    code = self.process.wait(200)
    self.thread.join()
    os.close(self.end)
    return code


def test_ctrl_c_in_a_terminal_saves_and_the_second_one_ends_at_once(tmp_path):
  args = [f'--config={ROOT}/configs/decoder_tiny.py:smoke', '--config.stop.tokens=100M', '--config.log.every=1',
          '--config.checkpoint.every=0', '--config.evaluate.every=0', '--workdir=run']
  metrics = tmp_path / 'run' / 'metrics.jsonl'
  first = Terminal(args, tmp_path)
  first.until(lambda: metrics.exists() and metrics.read_text().count('\n') > 2)
  first.press_ctrl_c()
  assert first.wait() == 130 and 'Traceback' not in first.said, first.said
  step = int(re.search(r'Interrupted \(Ctrl-C\): stopped after step (\d+) with the state of this step', first.said)[1])
  assert (tmp_path / f'run/checkpoints/{step}/commit_success.txt').exists()
  second = Terminal(args, tmp_path)
  second.until(lambda: f'Resumed from step {step}' in second.said and 'MFU counts' in second.said)
  second.press_ctrl_c()  # XLA compiles: the main thread is deaf for seconds
  time.sleep(0.7)
  second.press_ctrl_c()
  assert second.wait() == 130 and 'Traceback' not in second.said, second.said
  assert 'Ctrl-C again ends it at once' in second.said and 'Ended at once' in second.said, second.said


def test_watchdog_ends_a_stuck_process_with_124(tmp_path):
  code = 'import time; from t5like.training.watchdog import Watchdog; Watchdog(dict(start=0.5)); time.sleep(60)'
  done = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True, timeout=120)
  assert done.returncode == 124
  assert 'Stalled' in done.stderr and 'time.sleep' not in done.stdout and 'line 1 in <module>' in done.stderr


def test_watchdog_lets_a_living_process_be():
  watchdog = Watchdog(dict(start=0.4, step=0.4))
  for _ in range(6):
    time.sleep(0.1)
    watchdog.arm('step')
  watchdog.close()
