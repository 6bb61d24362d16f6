"""The trainer alone, without files or screen, and what a run is made of: its plan and its progress."""
import dataclasses
import math
import os

import jax
import numpy as np
import pytest

from t5like import sharding
from t5like.batches import pipeline
from t5like.errors import BadSteps
from t5like.files import plain_json
from t5like.prepared import opening
from t5like.storage.checkpoint import Checkpoints
from t5like.training import course as course_lib, loop, resume
from t5like.training.progress import Progress
from t5like.training.stop import Patience
from t5like.training.trainer import Trainer, fetch
from tests import tiny

pytestmark = pytest.mark.usefixtures('compile_once')


@pytest.fixture
def alone(tmp_path):
  """(trainer, its config, iterator of batches, course) of a fresh start in a folder without a run."""
  c = tiny.config(tmp_path, steps=4)
  store = opening.open_data(c)
  mesh = sharding.make_mesh(c.mesh, jax.devices()[:1])
  with jax.set_mesh(mesh), Checkpoints(tmp_path / 'none') as checkpoints:
    course = course_lib.make(c, store.vocabulary, mesh)
    state, progress = resume.start(course, store, checkpoints, str(tmp_path / 'none'), [], lambda line: None)
    plan = course.continued(progress).plan(progress)
    trainer = Trainer(plan, state)
    with pipeline.train_batches(pipeline.TrainRows(store, plan.config), plan.config) as batches:
      yield trainer, c, batches, course


def test_the_trainer_alone_gives_the_losses_of_a_run_bit_for_bit(tmp_path, alone):
  trainer, c, batches, _ = alone
  losses = [fetch(trainer.step(trainer.place(next(batches))))['loss'] for _ in range(4)]
  assert os.listdir(tmp_path / 'none') in ([], ['checkpoints']), 'nothing is written'
  loop.train(c, tmp_path / 'run', 'test', jax.devices()[:1])
  assert losses == [line['loss'] for line in tiny.metrics(tmp_path / 'run')[0]]


def test_the_trainer_judges_steps_and_checks_parameters(alone):
  trainer, _, batches, _ = alone
  rows = next(batches)
  assert not trainer.needs_check
  values = fetch(trainer.step(trainer.place(rows)))
  trainer.judge(values, rows, 1)
  assert trainer.needs_check
  trainer.check(1)
  assert not trainer.needs_check
  with pytest.raises(BadSteps, match='20 steps in a row'):
    trainer.judge(dict(values, bad_in_a_row=20), rows, 21)
  trainer.step(trainer.place(next(batches)))
  trainer.state = dict(trainer.state, params=jax.tree.map(lambda x: x * np.float32(math.nan), trainer.params))
  with pytest.raises(BadSteps, match='After step 2 the loss is nan'):
    trainer.check(2)


def test_a_plan_is_worked_out_once_and_cannot_be_changed(alone):
  trainer, c, _, course = alone
  plan = trainer.plan
  assert plan.tokens_per_step == 16 * 32 and plan.total_steps == 4 and plan.shapes.targets == 32
  assert plan.requested is c and plan.flops_per_token > 6 * 2 * (4 * 32 * 32 + 3 * 32 * 64) / 2
  assert plan.steps_left(Progress()) == 4 and plan.steps_left(Progress(step=9, tokens=3 * 512 + 1)) == 1
  assert course.continued(Progress(step=9, tokens=3 * 512)).plans[0].total_steps == 10
  assert float(plan.learning_rate(0)) == pytest.approx(0.5e-2)
  with pytest.raises(dataclasses.FrozenInstanceError):
    plan.total_steps = 5


def test_progress_is_what_a_checkpoint_remembers():
  progress = Progress(step=7, tokens=3584, examples_seen=130, skipped=((3, 9), (40, 41)), rewinds=1,
                      validation=dict(nll=math.inf, step=7, tokens=5), patience=Patience(1.5, 2))
  meta = plain_json.as_read(progress.to_meta())
  assert meta == dict(step=7, tokens=3584, examples_seen=130, skipped=[[3, 9], [40, 41]], rewinds=1, stages=[],
                      validation=dict(nll=None, step=7, tokens=5), stopper=dict(best=1.5, waited=2))
  read = Progress.from_meta(meta)
  assert math.isnan(read.validation['nll']) and read.is_validated
  assert dataclasses.replace(read, validation=None) == dataclasses.replace(progress, validation=None)
  fresh = plain_json.as_read(Progress().to_meta())
  assert fresh['stopper'] == dict(best=None, waited=0) and Progress.from_meta(fresh) == Progress()
