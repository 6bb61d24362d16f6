"""The benchmarks run, on sizes that say nothing."""
import dataclasses
import json

import jax
import numpy as np
import optax
import pytest

from benchmarks import data, eight_bit, oracle, plain_jax, step
from t5like import sharding
from t5like.model import loss as loss_lib, transformer


def test_the_configs_of_the_comparisons_are_valid(tmp_path, monkeypatch):
  monkeypatch.setattr(data.tempfile, 'gettempdir', lambda: str(tmp_path))
  c = step.small_decoder()
  assert c.model.num_layers == 6 and c.data.seq_len == 256 and c.batch_size == 16


def test_input_pipeline(monkeypatch, capsys, tmp_path):
  monkeypatch.setattr(data.tempfile, 'gettempdir', lambda: str(tmp_path))
  monkeypatch.setattr(data, 'SECONDS', 0.05)
  for objective in ('causal', 'masked_lm', 'span_corruption'):
    data.measure(data.default_config(objective))
  assert capsys.readouterr().out.count('M tokens per CPU-second') == 9


def test_operands_of_8_bits(capsys, tmp_path):
  eight_bit.main([f'--folder={tmp_path}', '--seeds=2', '--steps=2', '--objectives=causal'])
  _, _, *rows = [line for line in capsys.readouterr().out.split('\n') if line.startswith('|')]
  assert [line.split(' | ')[1] for line in rows] == ['none', 'int8', 'fp8'] and 'reference' in rows[0]
  mean, half = eight_bit.gap([1.2, 1.1, 1.3], [1.0, 1.0, 1.0])
  assert np.isclose(mean, 0.2) and np.isclose(half, 4.3027 * 0.1 / np.sqrt(3), rtol=1e-4)


def test_plain_jax_computes_what_we_compute():
  """Same parameters, same loss: what benchmarks/step.py compares is the same mathematics."""
  from t5like.config import base
  c = step.small_decoder()
  from t5like import config as config_lib
  c = config_lib.resolve(c)
  c.model.update(num_layers=2, d_model=32, num_heads=4, num_kv_heads=4, head_dim=8, d_ff=48, vocab_size=64)
  mesh = sharding.make_mesh(dict.fromkeys(sharding.AXES, 1), jax.devices()[:1])
  rng = np.random.default_rng(0)
  inputs, targets = rng.integers(0, 64, (2, 4, 16)).astype(np.int32)
  batch = dict(inputs=inputs, targets=targets, positions=np.tile(np.arange(16, dtype=np.int32), (4, 1)),
               segments=np.ones((4, 16), np.int32), weights=np.ones((4, 16), np.float32))
  with jax.set_mesh(mesh):
    model = transformer.build(transformer.ModelConfig.of(c.model))
    params = jax.jit(model.init)(jax.random.key(0))
    sums = jax.jit(loss_lib.make_sums(model, base().loss))(params, sharding.to_global(mesh, batch))
  blocks = jax.tree.map(np.asarray, params['stack']['blocks'])
  layers = {k: blocks['attention'][k]['w'] for k in 'qkvo'} | {
      k: blocks['mlp'][k]['w'] for k in ('up', 'gate', 'down')} | dict(
          n1=blocks['attention_norm']['scale'], n2=blocks['mlp_norm']['scale'])
  plain = dict(embed=np.asarray(params['embed']['w']), layers=layers,
               norm=np.asarray(params['stack']['norm']['scale']), head=np.asarray(params['head']['out']['w']))
  with jax.numpy_rank_promotion('allow'):
    value = jax.jit(plain_jax.loss)(plain, inputs, targets)
    assert np.isclose(float(value), float(sums['nll'] / sums['weights']), rtol=1e-5)
    tx = optax.adamw(1e-2)
    plain = jax.tree.map(jax.numpy.asarray, plain)
    opt_state = tx.init(plain)
    run = plain_jax.make_step(tx)
    for _ in range(3):
      plain, opt_state, last = run(plain, opt_state, inputs, targets)
  assert float(last) < float(value)


@pytest.mark.parity
@pytest.mark.parametrize('name', ['decoder', 'encoder_decoder', 'encoder'])
def test_steps_of_torch_are_of_the_same_models(name, monkeypatch):
  import torch

  from benchmarks import step_shapes, torch_models
  shape = step_shapes.SHAPES[name]
  shape = dataclasses.replace(shape, vocabulary=512, width=32, heads=2, layers=2, feed_forward=96, length=16, rows=2,
                              targets=min(4, shape.targets))
  monkeypatch.setitem(step_shapes.SHAPES, name, shape)
  count, run = torch_models.make_step(shape)
  with jax.set_mesh(sharding.make_mesh(dict(fsdp=1), jax.devices()[:1])):
    model = transformer.build(transformer.ModelConfig.of(step_shapes.config_of(name).model))
    assert count == transformer.count_params(model)
  first, *_, last = [run() for _ in range(20)]
  assert last < first and torch.get_default_dtype() == torch.float32


@pytest.mark.parity
def test_decoding_beside_transformers(monkeypatch, capsys):
  from benchmarks import decode
  monkeypatch.setitem(decode.SIZES, 'tiny', dict(d_model=64, num_layers=1, num_heads=1, num_kv_heads=1, d_ff=64,
                                                 vocab_size=128))
  monkeypatch.setattr(decode, 'NEW', 16)
  for beams in (1, 3):
    (row,) = decode.compare('tiny', (2,), beams, rounds=1)
    assert row[0] == 2 and min(row[1:]) > 0
  assert capsys.readouterr().out.count('same tokens 100.0%') == 2


def test_published_steps_become_configs_of_their_sizes():
  """Of each generation, by the published number of parameters; what cannot be expressed says why."""
  sizes = {}
  reasons = []
  for row in json.loads(oracle.PUBLISHED.read_text(encoding='utf-8')):
    if row['status'] == 'inconsistent' or (row['tpu'], row['model']) in sizes:
      continue
    try:
      sizes[row['tpu'], row['model']] = oracle.config_of(row).batch_size
    except oracle.Inexpressible as error:
      reasons.append(str(error))
  assert {tpu for tpu, _ in sizes} == {'v4', 'v5e', 'v5p', 'v6e', '7x'} and len(sizes) >= 30
  assert any('q_lora_rank' in reason for reason in reasons) and all(reasons)


def test_errors_are_those_of_layouts_that_nothing_was_fitted_on(capsys):
  lines = [dict(tpu='v5e', layout=f'{n}', published=2.0 + n % 2, predicted=1.0) for n in range(40)]
  lines += [dict(lines[0], layout='0', published=200.0)] * 5  # the same layout again and again counts once
  oracle.summary(lines)
  row = next(line for line in capsys.readouterr().out.split('\n') if line.startswith('| v5e'))
  fitted = sum(oracle.is_fitted(line['layout']) for line in lines[:40])
  assert 10 < fitted < 30 and f', {fitted} |' in row and '45, 40' in row
