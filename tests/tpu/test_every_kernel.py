"""Every attention kernel on every axis of a mesh in every architecture, by the TPU compiler: what only TPUs run.

Programs are lowered, Pallas kernels too, for each axis alone, and compiled up to their schedule with all axes at once;
those of each axis alone are compiled with `pytest -m "tpu and slow"`. Models are tiny: rows of 512, two layers.
"""
import concurrent.futures
import functools
import itertools
import os

import pytest

from t5like import config as config_lib
from t5like.config import base
from t5like.preflight import compile_ahead, prediction, topologies as tpu

pytestmark = pytest.mark.tpu

ARCHITECTURES = {  # sections of a config
    'decoder': dict(model=dict(name='decoder'), objective=dict(name='causal')),
    'prefix_decoder': dict(model=dict(name='decoder'), objective=dict(name='prefix_lm')),
    'encoder': dict(model=dict(name='encoder'), objective=dict(name='masked_lm')),
    'encoder_decoder': dict(model=dict(name='encoder_decoder'), objective=dict(name='span_corruption'),
                            data=dict(target_len=128, packing='best_fit')),
}
KERNELS = {  # keys of `model`, and the kernel that they ask for
    'splash': (dict(position='rope'), 'splash'),
    'relative_bias': (dict(position='relative'), 'relative_bias'),
    'splash_ring': (dict(position='rope', context_attention='ring'), 'splash'),
    'relative_bias_ring': (dict(position='relative', context_attention='ring'), 'relative_bias'),
    'xla': (dict(position='rope', attention='xla'), 'xla'),
    'xla_bias': (dict(position='relative', attention='xla'), 'xla'),
    'dropout': (dict(position='rope', dropout=0.1), 'relative_bias'),
    'relative_bias_dropout': (dict(position='relative', dropout=0.1), 'relative_bias'),
}
MESHES = {  # axes, and slices of v5e
    'fsdp': (dict(fsdp=4), 'v5e-4'),
    'tensor': (dict(fsdp=1, tensor=2, data=2), 'v5e-4'),
    'context2': (dict(fsdp=2, context=2), 'v5e-4'),
    'context4': (dict(fsdp=1, context=4), 'v5e-4'),
    'slice': (dict(slice=2, fsdp=4), '2xv5e-4'),
}
ALL_AXES = (dict(slice=2, fsdp=2, context=2, tensor=2), '2xv5e-8')
ROWS = list(itertools.product(ARCHITECTURES, KERNELS))


def config(architecture, kernel, axes):
  c = base()
  c.data.seq_len = 512
  c.vocabulary.update(name='bytes', sentinels=128)
  c.model.update(vocab_size=1024, d_model=256, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=128, d_ff=512,
                 remat='minimal')
  for section, values in ARCHITECTURES[architecture].items():
    c[section].update(values)
  c.model.update(KERNELS[kernel][0])
  c.update(batch_size=16)
  c.stop.tokens = 10_000_000
  c.sample.prompts = ()
  c.mesh.update(axes)
  config_lib.validate(c)
  return c


@functools.cache
def devices(name):
  """Those of slices that are not here."""
  os.environ.update({k: v for k, v in compile_ahead.QUIET.items() if k not in os.environ})
  from jax.experimental import topologies
  return list(topologies.get_topology_desc(platform='tpu', **tpu.parse(name).arguments()).devices)


def each_axis():
  """All rows on all meshes; what XLA computes by itself is in the fast suite where rows are cut."""
  for (architecture, kernel), mesh in itertools.product(ROWS, MESHES):
    is_fast = not kernel.startswith('xla') or mesh == 'context4'
    yield pytest.param(architecture, kernel, mesh, marks=[] if is_fast else [pytest.mark.slow])


@pytest.mark.parametrize('architecture, kernel, mesh', each_axis())
def test_it_is_lowered(architecture, kernel, mesh):
  axes, slices = MESHES[mesh]
  lowered, facts = compile_ahead.lower(config_lib.resolve(config(architecture, kernel, axes)), devices(slices))
  text = lowered.as_text()
  has_splash, has_bias = 'splash_mha' in text, 'relative_bias_' in text
  drops = kernel.endswith('dropout')
  assert facts['kernel'][0] == KERNELS[kernel][1]
  # Cross-attention has no bias: splash, unless it drops probabilities or is told to be XLA's.
  is_bias = KERNELS[kernel][1] == 'relative_bias'
  assert has_bias == is_bias
  assert has_splash == (kernel.startswith('splash') or is_bias and not drops and architecture == 'encoder_decoder')


@pytest.fixture(scope='module')
def compiled():
  """{(architecture, kernel): report of preflight or its error}, with all axes at once, as many at a time as cores."""
  def predict(row):
    axes, slices = ALL_AXES
    try:
      return prediction.predict(config(*row, axes), tpu.parse(slices))
    except Exception as error:
      return error
  with concurrent.futures.ThreadPoolExecutor(os.cpu_count() or 1) as pool:
    return dict(zip(ROWS, pool.map(predict, ROWS)))


@pytest.mark.parametrize('architecture, kernel', ROWS)
def test_it_compiles_with_all_axes(architecture, kernel, compiled):
  check(compiled[architecture, kernel], kernel)


@pytest.mark.slow
@pytest.mark.parametrize('mesh', MESHES)
@pytest.mark.parametrize('architecture, kernel', ROWS)
def test_it_compiles_with_each_axis(architecture, kernel, mesh):
  axes, slices = MESHES[mesh]
  check(prediction.predict(config(architecture, kernel, axes), tpu.parse(slices)), kernel)


def check(report, kernel):
  if isinstance(report, Exception):
    raise report
  assert report['fits'] and report['kernel'][0] == KERNELS[kernel][1] and report['step_seconds'] > 0
  has_kernel = not kernel.startswith('xla')
  assert (report['times'].get('kernel', 0) > 0) == has_kernel


@pytest.mark.parametrize('architecture, kernel', [row for row in ROWS if row[1] in ('splash', 'relative_bias')])
def test_what_is_run_beside_the_train_step(architecture, kernel):
  """Validation and scoring, of rows that are cut, and answers: forward passes have kernels of their own."""
  import jax
  import numpy as np

  from t5like import sharding
  from t5like.batches import frames
  from t5like.decoding import sampling
  from t5like.evals import score
  from t5like.model import models
  from t5like.training import build
  axes, slices = MESHES['context2']
  resolved = config_lib.resolve(config(architecture, kernel, axes))
  mesh = sharding.make_mesh(resolved.mesh, devices(slices))

  def on(mesh, batch):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=jax.sharding.NamedSharding(
        mesh, sharding.row_spec(x, mesh.shape['context']))), batch)
  rows = frames.frame_of(resolved).blank(16)
  with jax.set_mesh(mesh):
    model, _ = models.build_model(resolved)
    eval_step = build.build_step(resolved, model, 100, mesh)[2]
    params = sharding.abstract(lambda: model.init(jax.random.key(0)), mesh)
    asked = {name: x for name, x in rows.items() if name != 'weights'}
    asked.update(dict.fromkeys(('predict', 'targets'), np.zeros((16, 64), np.int32)))
    texts = [eval_step.lower(params, on(mesh, rows)).as_text(),
             score._predictions.lower(model, 1, params, on(mesh, asked)).as_text()]
  if architecture != 'encoder':
    whole = sharding.without_context(mesh)
    prompt = {name: x for name, x in rows.items() if name not in ('weights', 'targets', 'predict')}
    with jax.set_mesh(whole):
      params = sharding.abstract(lambda: model.init(jax.random.key(0)), whole)
      texts.append(sampling.start.lower(model, params, on(whole, prompt), 8).as_text())
  assert all(kernel in text.replace('splash_mha', 'splash') for text in texts[:2])
  assert 'tpu_custom_call' not in texts[-1] or architecture in ('encoder', 'encoder_decoder')
