"""What is not finite is never called good: parameters that exploded, validations that are NaN, intervals cut short."""
import itertools
import json
import math

import jax
import numpy as np
import pytest
from hypothesis import given, strategies as st

from t5like.batches import pipeline
from t5like.errors import NumericsError
from t5like.files import plain_json
from t5like.observe import ledger, metrics, report
from t5like.prepared import opening
from t5like.storage import rewinds
from t5like.storage.checkpoint import Checkpoints, _Best
from t5like.training import dispatch, loop, validation
from t5like.training.progress import Progress
from tests import tiny

pytestmark = pytest.mark.usefixtures('compile_once')


def run(config, workdir):
  return loop.train(config, workdir, 'test', jax.devices()[:1])


def explode(monkeypatch, when):
  """Parameters are multiplied by 1e15 after steps whose first row `when` accepts: finite, unlike all they give."""
  real = dispatch.Dispatcher.step

  def step(self, batches, progress):
    done = real(self, batches, progress)
    if when(progress.examples_seen):
      trainer = self.parts.trainer
      trainer.state = dict(trainer.state, params=jax.tree.map(lambda x: x * 1e15, trainer.params))
    return done
  monkeypatch.setattr(dispatch.Dispatcher, 'step', step)


def test_an_update_that_explodes_is_gone_back_behind_and_never_saved(tmp_path, monkeypatch):
  """At step 6, which is saved and validated: back to step 4, and on without those rows."""
  explode(monkeypatch, lambda row: row == 80)
  c = tiny.config(tmp_path, steps=8, checkpoint=dict(every=2, keep=9), evaluate=dict(every=6), guard=dict(rewinds=2))
  result = run(c, tmp_path / 'run')
  assert result['step'] == 8 and np.isfinite(result['validation']['nll'])
  rewind, = rewinds.read_rewinds(tmp_path / 'run')
  assert rewind['to_step'] == 4 and rewind['rows'] == [64, 96] and 'the loss is nan' in rewind['why']


@pytest.mark.parametrize('steps', [5, 6])
def test_a_run_whose_model_explodes_at_its_end_is_not_done(tmp_path, monkeypatch, steps):
  """Whenever it explodes, at a save or after the last: exit 5, and the newest checkpoint is from before."""
  explode(monkeypatch, lambda row: row == 64)
  c = tiny.config(tmp_path, steps=steps, checkpoint=dict(every=2, keep=9), evaluate=dict(every=0),
                  guard=dict(rewinds=0))
  with pytest.raises(NumericsError, match='This state is not saved'):
    run(c, tmp_path / 'run')
  with Checkpoints(tmp_path / 'run') as checkpoints:
    assert checkpoints.steps == [2, 4]
  assert not (tmp_path / 'run/result.json').exists()


def test_a_step_whose_parameters_overflow_changes_nothing():
  """An update that is finite by itself, on parameters that have no room for it."""
  from t5like.training import step as step_lib
  big = dict(w=np.full(3, 1e19, np.float32))

  def gradients(params, batch, key):
    return dict(w=np.float32(-1) * batch['g']), dict(loss=np.float32(1), nll=np.float32(1), hits=np.float32(0),
                                                    weights=np.float32(1))
  import optax
  train_step = jax.jit(step_lib.make_train_step(gradients, optax.sgd(1.0), seed=0))
  from t5like.optim import guard
  state = dict(params=big, opt_state=optax.sgd(1.0).init(big), step=np.int32(0), guard=guard.start())
  state, values = train_step(state, dict(g=np.full(3, 1e19, np.float32)))
  assert np.isfinite(values['update_norm']) and np.isinf(values['param_norm'])
  assert values['bad_in_a_row'] == 1
  np.testing.assert_array_equal(state['params']['w'], big['w'])


NLLS = st.lists(st.floats(0, 9) | st.sampled_from([math.nan, math.inf]), min_size=1, max_size=7)


@given(NLLS, st.integers(1, 3))
def test_nan_is_the_worst_validation(nlls, n):
  from types import SimpleNamespace as Names
  checkpoints = object.__new__(Checkpoints)
  checkpoints.nlls = {}
  for step, nll in enumerate(nlls):
    kept = plain_json.as_read(dict(step=step, validation=dict(step=step, nll=nll)))
    checkpoints._note(kept)
  keep = _Best(checkpoints.nlls, n).should_preserve([Names(step=step) for step in range(len(nlls))], context=None)
  assert sum(keep) == min(n, len(nlls))
  worst_kept = max(checkpoints.nlls[step] for step in range(len(nlls)) if keep[step])
  assert all(checkpoints.nlls[step] >= worst_kept for step in range(len(nlls)) if not keep[step])
  if any(map(math.isfinite, nlls)):
    assert min(x for x in nlls if math.isfinite(x)) in {nlls[step] for step in range(len(nlls)) if keep[step]}


def test_nan_is_never_the_best_nor_the_same_as_a_number():
  from t5like import selftest
  from t5like.evals import evaluate
  from t5like.training import replay
  nan = math.nan
  assert math.isnan(selftest._largest([0.1, nan, 0.2])) and selftest._largest([0.1, 0.2]) == 0.2
  assert not replay._same(nan, 1.0) and not replay._same(1.0, nan) and replay._same(nan, nan)
  assert [evaluate._is_best(0, v) for v in ([nan, -1.0], [nan, nan], [-1.0, nan], [-2.0, -2.0])] == [0, 0, 1, 1]
  assert [evaluate._is_best(1, v) for v in ([nan, -1.0], [nan, nan], [-1.0, nan], [-2.0, -2.0])] == [1, 0, 0, 0]
  assert math.isnan(metrics.perplexity(nan)) and metrics.perplexity(math.inf) == metrics.perplexity(2e3) == math.inf
  assert metrics.perplexity(2.0) == math.exp(2.0)


@pytest.mark.parametrize('nlls, kept', [((2.0, math.nan, 3.0), [4, 12]), ((math.nan, 1.0, math.nan), [8, 12])])
def test_the_best_checkpoints_are_kept_though_validations_are_nan(tmp_path, monkeypatch, nlls, kept):
  c = tiny.config(tmp_path, steps=12, checkpoint=dict(every=4, keep=1, keep_best=1), evaluate=dict(every=4))
  values = iter([dict(nll=x, perplexity=1.0, accuracy=0.0, tokens=1) for x in nlls])
  monkeypatch.setattr(validation, 'measure', lambda *a, **k: next(values))
  run(c, tmp_path / 'run')
  with Checkpoints(tmp_path / 'run', keep=1, keep_best=1) as checkpoints:
    assert checkpoints.steps == kept
    assert Progress.from_meta(checkpoints.meta(12)).is_validated
  assert run(c, tmp_path / 'run')['step'] == 12, 'such a checkpoint is resumed'


def test_the_last_interval_has_its_line_and_a_finished_run_is_not_said_to_have_time_to_go(tmp_path):
  c = tiny.config(tmp_path, steps=5, log=dict(every=2), evaluate=dict(every=0))
  with_rest = c.copy_and_resolve_references().unlock()
  with_rest.stop.tokens -= 100  # the last step goes beyond it
  result = run(with_rest, tmp_path / 'run')
  steps, _ = tiny.metrics(tmp_path / 'run')
  assert [line['step'] for line in steps] == [2, 4, 5] and steps[-1]['tokens'] == result['tokens']
  facts = report.gather(tmp_path / 'run')
  assert facts['result'] and facts['tokens'] == result['tokens'] >= facts['target']
  assert all(line['param_norm'] > 0 and np.isfinite(line['loss']) for line in steps)


@pytest.mark.parametrize('jump', [-864_000.0, 864_000.0])
def test_a_clock_that_is_set_does_not_change_where_time_went(tmp_path, monkeypatch, jump):
  real, offset = ledger.time.time, itertools.chain([0.0, 0.0], itertools.repeat(jump))
  monkeypatch.setattr(ledger.time, 'time', lambda: real() + next(offset))
  book = ledger.Ledger(tmp_path)
  book.start(0)
  for step in range(1, 4):
    book.enter('step')
    book.flush(step)
  close = getattr(book, 'files', None)
  if close:
    close.flush()
  account = ledger.account(ledger.read(tmp_path))
  assert all(0 <= seconds < 60 for seconds in account['seconds'].values()) and 0 <= account['goodput'] <= 1
  assert all(0 <= attempt['lasted'] < 60 for attempt in account['attempts'])


def test_negative_seconds_of_older_versions_do_not_count():
  lines = [dict(attempt=1, time=1.0, step=0, seconds=dict(init=1.0), event='start', began=0.0),
           dict(attempt=1, time=-864_000.0, step=5, seconds=dict(step=-864_001.0, data=1.0)),
           dict(attempt=1, time=-863_998.0, step=6, seconds=dict(step=2.0))]
  account = ledger.account(lines)
  assert account['total'] == 4 and account['goodput'] == 0.5


@pytest.mark.parametrize('terminal', [False, True])
def test_progress_stays_within_100_percent(monkeypatch, terminal):
  monkeypatch.setenv('TERM', 'xterm')
  screen = metrics.Screen('run', 1000)
  shown = []
  monkeypatch.setattr(screen, 'say', shown.append)
  for tokens in (500, 1020):
    screen.last_line = -math.inf
    screen.show(1, tokens, dict(nll=1.0, tokens_per_second=10.0, mfu=0.1))
  assert ' 50%' in shown[0] and '100%' in shown[1] and '102' not in shown[1] and '0 tokens left' in shown[1]


@pytest.mark.parametrize('data', [dict(), dict(packing='best_fit')], ids=str)
def test_rows_beyond_32_bits_can_be_read(tmp_path, data):
  c = tiny.config(tmp_path, data=data, stop=dict(tokens=2 ** 63 - 1))
  rows = pipeline.TrainRows(opening.open_data(c, say=lambda _: None), c)
  assert 'epochs of' in ' '.join(rows.describe(2 ** 63 // 32))
  for at in (2 ** 31 + 5, 2 ** 40):
    batch = rows.batch(range(at, at + 4))
    assert batch['inputs'].shape == (4, 32) and batch['inputs'].any()


def test_more_tokens_than_32_bits_hold_train(tmp_path):
  """'Until I stop it': a target that no run reaches."""
  c = tiny.config(tmp_path, steps=1, evaluate=dict(every=1), checkpoint=dict(every=0), schedule=dict(name='wsd'),
                  stop=dict(tokens=9000 * 10 ** 12, target='nll > 0'))
  result = run(c, tmp_path / 'run')
  assert result['reason'].startswith('converged') and result['step'] == 1
  line, = tiny.metrics(tmp_path / 'run')[0]
  assert line['learning_rate'] > 0
  assert json.loads((tmp_path / 'run/result.json').read_text())['stop']['tokens'] == 9 * 10 ** 15
