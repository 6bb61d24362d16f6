"""Products with 8-bit operands, by the TPU compiler: programs multiply them as such, in half the time."""
import pytest

from t5like.preflight import prediction, topologies as tpu
from tests.tpu.test_windows import config

pytestmark = pytest.mark.tpu

MODEL = dict(d_model=1024, d_ff=4096, num_heads=8, num_kv_heads=8)


@pytest.mark.parametrize('row', ['gemma', 'modernbert', 't5'])
def test_int8_is_multiplied_as_int8(row):
  """Forward and for the gradient of activations, two of three products of layers: a third less time."""
  topology = tpu.parse('v5e-4')
  reports = {name: prediction.predict(config(row, quantization=name, **MODEL), topology)
             for name in ('none', 'int8')}
  full, eight = (reports[name]['times']['matrix'] for name in ('none', 'int8'))
  assert reports['none']['counts']['flops'] == pytest.approx(reports['int8']['counts']['flops'], rel=0.02)
  assert 0.6 * full < eight < 0.75 * full


def test_a_generation_without_fp8_multiplies_no_faster():
  topology = tpu.parse('v5e-4')
  full, eight = (prediction.predict(config('gemma', quantization=name, **MODEL), topology)['times']['matrix']
                 for name in ('none', 'fp8'))
  assert eight == pytest.approx(full, rel=0.05)
