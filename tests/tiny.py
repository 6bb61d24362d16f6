"""A model and a dataset so small that a whole training run takes seconds."""
import json
import random

import jax

from t5like import config as config_lib, sharding
from t5like.batches import pipeline
from t5like.config import base
from t5like.model.transformer import ModelConfig
from t5like.prepared import opening
from t5like.training import course as course_lib, resume
from t5like.training.trainer import Trainer, fetch

WORDS = 'the a of to in is it for on as with that this from by are be was not have'.split()

MODEL = ModelConfig(
    name='decoder', vocab_size=61, d_model=32, num_layers=3, num_encoder_layers=2, num_heads=4, num_kv_heads=2,
    head_dim=8, d_ff=48, activation='swiglu', block='pre_norm', norm='rmsnorm', norm_eps=1e-6, use_bias=False,
    embed_norm=False, position='rope', rope_theta=10_000.0, rope_fraction=1.0, max_positions=32, num_types=0,
    tie_embeddings=False, head='linear', scale_attention=True, qk_norm='none', logit_softcap=0.0, dropout=0.0,
    dropout_style='standard', init='fan_in', dtype='float32', attention='auto', scan_layers=True, remat='none')


def write_text(path, documents=120, seed=0):
  """Random sentences, a document a line of a jsonl file; returns the `data.source` that reads it."""
  rng = random.Random(seed)
  with open(path, 'w', encoding='utf-8') as f:
    for _ in range(documents):
      f.write(json.dumps(dict(text=' '.join(rng.choices(WORDS, k=rng.randint(5, 60))))) + '\n')
  return f'jsonl:{path}'


def config(folder, steps=6, **sections):
  """A validated config that trains a 2-layer decoder on bytes; `sections` update sections or keys."""
  c = base()
  c.data.update(source=write_text(folder / 'text.jsonl'), validation_fraction=0.1, seq_len=32,
                directory=str(folder / 'prepared'))
  c.vocabulary.update(name='bytes', sentinels=0)
  c.model.update(vocab_size=264, d_model=32, num_layers=2, num_heads=4, num_kv_heads=2, d_ff=64,
                 dtype='float32')
  c.batch_size = 16
  c.optimizer.learning_rate = 1e-2
  c.schedule.update(name='constant', warmup_steps=2)  # of any number of steps: one program
  c.stop.tokens = steps * 16 * 32
  c.log.update(every=1, trackers=())
  c.evaluate.update(every=4, batches=2)
  c.checkpoint.every = 4
  c.sample.prompts = ()
  for key, value in sections.items():
    if isinstance(value, dict):
      c[key].update(value)
    else:
      c[key] = value
  config_lib.validate(c)
  return c


def metrics(workdir):
  """The lines of metrics.jsonl of training steps and of validations."""
  lines = [json.loads(l) for l in (workdir / 'metrics.jsonl').read_text().splitlines()]
  return [l for l in lines if 'loss' in l], [l for l in lines if 'validation/nll' in l]


def losses(config, devices=1):
  """Of the steps of a run, which has neither files nor validations and so compiles nothing else."""
  store = opening.open_data(config)
  mesh = sharding.make_mesh(config.mesh, jax.devices()[:devices])
  with jax.set_mesh(mesh):
    course = course_lib.make(config, store.vocabulary, mesh)
    state, progress = resume.start(course, store, NoCheckpoints(), 'none', [], lambda line: None)
    plan = course.continued(progress).plan(progress)
    trainer = Trainer(plan, state)
    rows = pipeline.TrainRows(store, plan.config)
    with pipeline.train_batches(rows, plan.config) as batches:
      return [fetch(trainer.step(trainer.place(next(batches))))['loss'] for _ in range(plan.steps_left(progress))]


class NoCheckpoints:
  """Those of a folder without a run."""
  steps = ()

  def restore(self, *_):
    return None
