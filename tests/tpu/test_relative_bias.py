"""The kernel for relative position bias, compiled in full for TPUs that are not here, VMEM included."""
import importlib.util
import os

import pytest

from benchmarks import relative_bias
from t5like.preflight import compile_ahead
from tests.tpu.test_preflight import ROOT, report

pytestmark = [pytest.mark.tpu, pytest.mark.slow,
              pytest.mark.skipif(not importlib.util.find_spec('libtpu'), reason="pip install -e '.[tpu]'")]


def size(*args, **kwargs):
  """Bytes of HBM."""
  os.environ.update({k: v for k, v in compile_ahead.QUIET.items() if k not in os.environ})
  memory = relative_bias.compiled(*args, **kwargs).memory_analysis()
  return memory.temp_size_in_bytes + memory.argument_size_in_bytes + memory.output_size_in_bytes


@pytest.mark.parametrize('generation', ['v4', 'v5e', 'v5p', 'v6e', 'tpu7x'])
@pytest.mark.parametrize('T, causal, H', [(512, False, 64), (1000, True, 64), (2048, True, 128), (8192, False, 128)])
def test_it_compiles_for_every_generation(generation, T, causal, H):
  assert size('kernel', generation, T, causal, H=H) > 0


@pytest.mark.parametrize('causal', [True, False])
def test_memory_is_that_of_attention_without_bias(causal):
  """At 8,192 the bias as an array would be 2 GiB, and its gradient as much again."""
  assert size('kernel', 'v5e', 8192, causal) <= 1.2 * size('splash', 'v5e', 8192, causal)


@pytest.mark.parametrize('topology', ['v5e-64', 'v5p-128', 'v6e-64', '7x-128'])
def test_t5_trains_with_it(topology):
  found = report(f'--config={ROOT}/configs/t5_1_1.py:xl', f'--topology={topology}', '--config.batch_size=512')
  assert found['fits'] and found['kernel'] == ['relative_bias', 'a TPU'] and found['times']['kernel'] > 0


def test_t5_compiles_in_full():
  """With the kernels' own VMEM beside what the rest of the step keeps there; base, for it takes minutes."""
  assert report(f'--config={ROOT}/configs/t5_1_1.py:base', '--topology=v5e-64', '--full')['fits']
