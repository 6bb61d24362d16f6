"""Layers with experts, by the TPU compiler: products by megablox and tokens that travel, which only TPUs have."""
import pytest

from t5like import config as config_lib
from t5like.model.kernels import balanced
from t5like.preflight import compile_ahead, prediction, topologies as tpu
from tests.tpu.test_every_kernel import config, devices

pytestmark = pytest.mark.tpu

MESH = dict(fsdp=2, expert=2, context=2, tensor=2)


def sparse(architecture, **mesh):
  c = config(architecture, 'splash', dict(fsdp=-1))
  with c.unlocked():
    c.model.update(experts=8, experts_per_token=2, expert_d_ff=256, sparse_every=2, router_balance=0.01)
    c.mesh.update(mesh)
  config_lib.validate(c)
  return c


@pytest.mark.parametrize('architecture', ['decoder', 'encoder_decoder'])
def test_it_compiles_with_all_axes(architecture):
  report = prediction.predict(sparse(architecture, **MESH), tpu.parse('v5e-16'))
  assert report['fits'] and report['times']['kernel'] > 0
  assert 'with experts' in report['accuracy']


def test_rows_that_travel_are_those_that_there_are():
  """The program has ragged collectives, whose bytes are those of balanced experts: as many rows as without."""
  c = config_lib.resolve(sparse('decoder', fsdp=1, expert=4))
  lowered, _ = compile_ahead.lower(c, devices('v5e-4'))
  text = lowered.as_text(debug_info=True)
  rows = 4 * 512 * 2  # of a device
  assert 'ragged_all_to_all' in text and 'gmm' in text
  assert balanced.label(rows, 4 * rows) in text
