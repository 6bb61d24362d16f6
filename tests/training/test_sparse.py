"""Runs of models with experts: the same on other machines, and what cannot be is refused."""
import jax
import numpy as np
import pytest

from t5like import config as config_lib
from t5like.errors import ConfigError, Preempted
from t5like.model import models
from t5like.training import loop
from tests import tiny

SPARSE = dict(experts=4, experts_per_token=2, expert_d_ff=32, sparse_every=2, router_z_loss=0.01, router_bias=True)


def config(folder, **sections):
  return tiny.config(folder, **{**sections, 'model': {**SPARSE, **sections.get('model', {})}})


def train(c, workdir, devices):
  loop.train(c, workdir, 'test', jax.devices()[:devices])


def test_resumed_on_another_mesh_in_micro_batches(tmp_path, monkeypatch):
  """Stopped after 3 of 6 steps on one device, resumed on eight: losses and what is beside them agree."""
  c = config(tmp_path, checkpoint=dict(every=0))
  train(c, tmp_path / 'straight', 1)
  monkeypatch.setattr(loop.Run, '_ending', lambda run: 'test' if run.progress.step == 3 else None)
  with pytest.raises(Preempted):
    train(c, tmp_path / 'moved', 1)
  monkeypatch.undo()
  c = config(tmp_path, mesh=dict(fsdp=2, expert=2, tensor=2), microbatches=2, checkpoint=dict(every=0),
             model=dict(remat='weights'))
  train(c, tmp_path / 'moved', 8)
  lines, others = (tiny.metrics(tmp_path / name)[0] for name in ('straight', 'moved'))
  for name in ('loss', 'side/router/z', 'side/router/entropy', 'side/router/load/0', 'side/router/load/3'):
    np.testing.assert_allclose([line[name] for line in others], [line[name] for line in lines], rtol=3e-5, err_msg=name)
  assert all(line['side/router/dropped'] == 0 for line in lines)


def test_active_parameters_are_counted():
  """FLOPs are those of a model whose MLPs are as wide as the experts of a token, and of its router."""
  def sizes(**changes):
    c = config_lib.load('decoder_tiny', [f'model.{key}={value}' for key, value in changes.items()])
    c = config_lib.resolve(c)
    c.model.vocab_size = 2048
    return models.sizes(c)
  sparse = sizes(experts=8, experts_per_token=2, expert_d_ff=256, sparse_every=2)
  dense = sizes(d_ff=512)
  routers = 2 * 192 * 8
  assert sparse['flops_per_token'] == dense['flops_per_token'] + 6 * routers
  assert sparse['parameters'] == dense['parameters'] + routers + 2 * 3 * 192 * (8 * 256 - 512)


@pytest.mark.parametrize('changes, words', [
    ({'model.experts': 0}, ['model.sparse_every=2', 'model.experts']),
    ({'model.experts_per_token': 5}, ['model.experts_per_token=5', 'model.experts=4']),
    ({'mesh.expert': 3}, ['mesh.expert=3', 'must divide model.experts=4', '2 or 4']),
    ({'model.shared_gate': True}, ['model.shared_gate=True', 'model.shared_experts']),
    ({'model.dense_first': 2}, ['model.dense_first=2', 'model.num_layers=2']),
    ({'model.use_bias': True}, ['model.use_bias=True', 'qkv_bias']),
    ({'model.quantization': 'int8'}, ["model.quantization='int8'", 'none']),
    ({'model.lora_rank': 2, 'model.lora_projections': ('q', 'up')}, ["'up'", 'adapters'])])
def test_what_experts_do_not_have_is_refused(changes, words, tmp_path):
  c = config(tmp_path).unlock()
  for key, value in changes.items():
    section, _, name = key.partition('.')
    c[section][name] = value
  with pytest.raises(ConfigError) as error:
    config_lib.validate(c)
  assert all(word in str(error.value) for word in words), error.value
