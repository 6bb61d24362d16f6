"""Stages of a run: resumed anywhere it is the run that nothing disturbed, and the next one is compiled beforehand."""
import json
import threading
import time

import jax
import pytest

from t5like.config import stages as stages_lib
from t5like.decoding import trained_model
from t5like.errors import BadSteps, ConfigError, Preempted
from t5like.observe import ledger
from t5like.storage.checkpoint import Checkpoints
from t5like.training import loop, preconditions, stages
from t5like.training.course import Course
from t5like.training.progress import Progress
from t5like.training.trainer import Trainer
from tests import tiny

NOT_OF_THE_RUN = ('time', 'tokens_per_second', 'mfu', 'data_wait', 'host_memory')
STEP = 16 * 32  # tokens, at first
MIXTURE = dict(a=dict(weight=3), b=dict(weight=1, data=dict(max_documents=60)))
# Boundaries of all kinds; their tokens are those of the steps so far, or a little less.
KINDS = dict(
    sizes=({'tokens': STEP - 7, 'batch_size': 8, 'microbatches': 2},
           {'tokens': 2 * STEP, 'data.seq_len': 16, 'batch_size': 32, 'microbatches': 1},
           {'tokens': 3 * STEP - 1, 'data.mixture.a.weight': 1, 'data.mixture.b.weight': 5}),
    values=({'tokens': STEP, 'schedule.name': 'linear', 'schedule.final_scale': 0.0,
             'optimizer.learning_rate': 3e-3, 'optimizer.freeze': ('embed', 'stack/blocks[:1]')},
            {'tokens': 3 * STEP, 'model.rope_theta': 1e5, 'model.dropout': 0.1, 'loss.z_loss': 1e-3,
             'optimizer.freeze': ()},
            {'tokens': 4 * STEP, 'objective.name': 'prefix_lm'}))


def config(folder, kind, **changes):
  return tiny.config(folder, steps=5, data=dict(mixture=MIXTURE), stages=KINDS[kind], model=dict(d_model=16),
                     evaluate=dict(every=2, batches=1), checkpoint=dict(every=0, keep=20), **changes)


def run(c, workdir, **options):
  return loop.train(c, workdir, 'test', jax.devices()[:1], **options)


@pytest.mark.usefixtures('compile_once')
@pytest.mark.parametrize('kind', KINDS)
def test_a_run_that_is_resumed_after_every_step_is_the_run_that_nothing_disturbed(kind, tmp_path):
  whole = run(config(tmp_path, kind), tmp_path / 'whole')
  starts = 0
  while True:
    starts += 1
    try:
      parts = run(config(tmp_path, kind, stop=dict(wall_time=1e-9)), tmp_path / 'parts')
      break
    except Preempted:
      assert starts < 20
  assert starts == whole['step'] >= 5
  assert (parts['step'], parts['tokens'], parts['validation']) == (whole['step'], whole['tokens'], whole['validation'])
  lines = [tiny.metrics(tmp_path / name) for name in ('whole', 'parts')]
  for of_whole, of_parts in zip(*lines):
    assert len(of_whole) == len(of_parts)
    for line, other in zip(of_whole, of_parts):
      for key in NOT_OF_THE_RUN:
        line.pop(key, None), other.pop(key, None)
      assert line == other
  metas = []
  for name in ('whole', 'parts'):
    with Checkpoints(tmp_path / name) as checkpoints:
      metas.append(checkpoints.meta(whole['step']))
  for key in ('checksums', 'stages', 'tokens', 'examples_seen', 'rows'):
    assert metas[0][key] == metas[1][key]
  assert len(metas[0]['stages']) == 3


def test_steps_of_the_next_stage_are_compiled_while_others_run(tmp_path, monkeypatch):
  """No step is compiled by the thread that trains after the first; where it has to wait, that is no step's time."""
  compiled = []
  jax.monitoring.register_event_duration_secs_listener(
      lambda event, seconds, **_: 'backend_compile' in event and compiled.append(threading.current_thread().name))
  late = 1.0

  class Ahead(stages.Ahead):
    """Ready before the first boundary, and late at the second."""

    def __init__(self, plan, *rest):
      super().__init__(plan, *rest)
      assert not self._thread.daemon, 'a process that ends while a daemon compiles aborts'
      if plan.stage == 1:
        self.wait()

    def _compile(self):
      if self.plan.stage == 2:
        time.sleep(late)
      super()._compile()

  monkeypatch.setattr(stages, 'Ahead', Ahead)
  seen = {}
  c = tiny.config(tmp_path, steps=6, evaluate=dict(every=0, batches=1), checkpoint=dict(every=0),
                  model=dict(d_model=16),
                  stages=({'tokens': 2 * STEP, 'batch_size': 8}, {'tokens': 3 * STEP, 'data.seq_len': 16}))
  run(c, tmp_path / 'run', watch=lambda step, numbers: seen.setdefault(step, compiled.count('MainThread')))
  assert compiled.count('ahead') >= 4  # train and eval steps of two stages
  assert seen[1] == seen[16] > 0 and max(seen) == 16  # what is saved and validated afterwards may compile
  lines = ledger.read(tmp_path / 'run')
  compiling = sum(line['seconds'].get('compile', 0) for line in lines if line['step'] > 4)
  stepping = sum(line['seconds'].get('step', 0) for line in lines if line['step'] > 4)
  assert compiling > late / 2 and stepping < late


def test_what_has_begun_stays_and_what_comes_later_may_change(tmp_path):
  stage = {'tokens': 2 * STEP, 'model.rope_theta': 1e5, 'schedule.name': 'constant'}
  def short(steps, *listed):
    return tiny.config(tmp_path, steps=steps, stages=listed, evaluate=dict(every=0, batches=1), model=dict(d_model=16))
  run(short(3, stage), tmp_path / 'run')
  model = trained_model.load(tmp_path / 'run')
  assert model.config.model.rope_theta == 1e5 == model.model.config.rope_theta
  with pytest.raises(ConfigError, match=r"stages\[0\] began at 1,024 tokens .* Stages that have begun stay"):
    run(short(4, dict(stage, tokens=STEP)), tmp_path / 'run')
  assert run(short(4, stage, {'tokens': 3 * STEP, 'batch_size': 8}), tmp_path / 'run')['step'] == 5


def test_a_run_of_an_older_version_has_begun_the_stages_that_its_tokens_say(tmp_path):
  c = tiny.config(tmp_path, steps=8, data=dict(mixture=MIXTURE, stages=dict(
      later=dict(tokens=5 * STEP, weights=dict(a=2)), end=dict(tokens=2 * STEP, weights=dict(a=0)))))
  course = Course(stages_lib.of(c), (), ())
  for tokens, began in ((2 * STEP, ()), (3 * STEP, ((2, 32),)), (6 * STEP, ((2, 32), (5, 80)))):
    assert course.completed(Progress(tokens=tokens), dict(tokens=tokens)).stages == began
  assert course.completed(Progress(tokens=6 * STEP), dict(stages=[])).stages == ()


@pytest.mark.usefixtures('compile_once')
def test_a_branch_without_changes_is_the_trunk_to_the_bit(tmp_path):
  """From a checkpoint within a run with stages, after skipped rows; and another decay from the same checkpoint."""
  trunk = config(tmp_path, 'sizes')
  with trunk.unlocked():
    trunk.checkpoint.every = 3
    trunk.data.skip_rows = '20:23'
  whole = run(trunk, tmp_path / 'trunk')
  branch = trunk.copy_and_resolve_references()
  with branch.unlocked():
    branch.branch_from = str(tmp_path / 'trunk/checkpoints/3')
  assert run(branch, tmp_path / 'branch')['validation'] == whole['validation']
  metas = []
  for name in ('trunk', 'branch'):
    with Checkpoints(tmp_path / name) as checkpoints:
      metas.append(checkpoints.meta(whole['step']))
  for key in ('checksums', 'stages', 'tokens', 'examples_seen', 'skipped'):
    assert metas[0][key] == metas[1][key]
  assert [line['step'] for line in tiny.metrics(tmp_path / 'branch')[0]] == list(range(4, whole['step'] + 1))
  with branch.unlocked():
    branch.stages = (*branch.stages[:1], {'tokens': 2 * STEP, 'schedule.name': 'linear', 'schedule.final_scale': 0.0})
    branch.stop.tokens = 4 * STEP
  assert run(branch, tmp_path / 'decay')['tokens'] == 4 * STEP
  rates = [line['learning_rate'] for line in tiny.metrics(tmp_path / 'decay')[0]]
  assert rates == sorted(rates, reverse=True) and rates[-1] < rates[0] / 2
  with branch.unlocked():
    branch.model.d_model = 32
  with pytest.raises(ConfigError, match='model.d_model: 16 there, 32 now'):
    preconditions.check(branch, str(tmp_path / 'other'))
  with branch.unlocked():
    branch.model.d_model = 16
    branch.branch_from = str(tmp_path)
  with pytest.raises(ConfigError, match='this is no run'):
    preconditions.check(branch, str(tmp_path / 'other'))


@pytest.mark.usefixtures('compile_once')
def test_a_rewind_to_an_earlier_stage_is_a_run_that_skips_its_rows(tmp_path, monkeypatch):
  """The stage begins again at its tokens, which are other rows then."""
  c = config(tmp_path, 'sizes', stop=dict(tokens=4 * STEP))
  with c.unlocked():
    c.checkpoint.every = 2
    c.evaluate.every = 0
    c.stages = ({'tokens': 3 * STEP, 'batch_size': 8, 'data.mixture.a.weight': 1},)
  judge = Trainer.judge
  raised = []

  def once(self, values, rows, step):
    if step == 4 and not raised:
      raised.append(self.plan.stage)
      raise BadSteps('told so.')
    judge(self, values, rows, step)

  monkeypatch.setattr(Trainer, 'judge', once)
  result = run(c, tmp_path / 'rewound')
  start, stop = json.loads((tmp_path / 'rewound/rewinds.json').read_text())[0]['rows']
  assert raised == [1] and start == 32
  with c.unlocked():
    c.data.skip_rows = f'{start}:{stop}'
  assert run(c, tmp_path / 'skipped')['validation'] == result['validation']
  metas = []
  for name in ('rewound', 'skipped'):
    with Checkpoints(tmp_path / name) as checkpoints:
      metas.append(checkpoints.meta(result['step']))
  assert metas[0]['checksums'] == metas[1]['checksums'] and metas[0]['stages'] == metas[1]['stages'] == [[3, stop + 16]]
