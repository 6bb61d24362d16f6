"""Layers with a window, by the TPU compiler of each generation: their kernels visit only blocks within it."""
import pytest

from t5like import config as config_lib
from t5like.config import base
from t5like.preflight import prediction, topologies as tpu

pytestmark = pytest.mark.tpu

TOPOLOGIES = ('v5e-4', 'v5p-8', 'v6e-4', '7x-8')
ROWS = {  # sections of a config, the kernel
    'gemma': (dict(model=dict(name='decoder', block='sandwich', norm='rmsnorm_unit', attention_softcap=50.0),
                   objective=dict(name='causal')), 'splash'),
    'modernbert': (dict(model=dict(name='encoder', activation='geglu_exact'), objective=dict(name='masked_lm')),
                   'splash'),
    't5': (dict(model=dict(name='decoder', position='relative'), objective=dict(name='causal')), 'relative_bias'),
    'umt5': (dict(model=dict(name='decoder', position='relative_per_layer'), objective=dict(name='causal')),
             'relative_bias'),
}


def config(row, **model):
  c = base()
  c.data.seq_len = 2048
  c.vocabulary.update(name='bytes', sentinels=128)
  c.model.update(vocab_size=1024, d_model=256, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=128, d_ff=512,
                 remat='minimal')
  for section, values in ROWS[row][0].items():
    c[section].update(values)
  c.model.update(model)
  c.update(batch_size=16)
  c.stop.tokens = 10_000_000
  c.sample.prompts = ()
  config_lib.validate(c)
  return c


@pytest.mark.parametrize('row', ROWS)
@pytest.mark.parametrize('topology', [
    topology if topology == 'v5e-4' else pytest.param(topology, marks=pytest.mark.slow) for topology in TOPOLOGIES])
def test_windows_compile_and_their_kernels_cost_less(topology, row):
  """Of two layers one is local: at a window of an eighth of the row the kernels' time falls, yet not below half."""
  whole, local = (prediction.predict(config(row, **model), tpu.parse(topology))
                  for model in (dict(), dict(layers=('local', 'global'), window=256)))
  for report in (whole, local):
    assert report['kernel'][0] == ROWS[row][1] and report['fits']
  share = local['times']['kernel'] / whole['times']['kernel']
  assert 0.5 < share < 0.9, share
