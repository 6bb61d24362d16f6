"""Attention sinks in splash, by the TPU compiler of each generation."""
import pytest

from t5like.preflight import prediction, topologies as tpu
from tests.tpu.test_windows import TOPOLOGIES, config

pytestmark = pytest.mark.tpu


@pytest.mark.parametrize('topology', [
    topology if topology == 'v5e-4' else pytest.param(topology, marks=pytest.mark.slow) for topology in TOPOLOGIES])
def test_sinks_compile_in_layers_of_both_kinds(topology):
  c = config('gemma', layers=('local', 'global'), window=256, attention_sinks='head', attention_softcap=0.0)
  report = prediction.predict(c, tpu.parse(topology))
  assert report['kernel'][0] == 'splash' and report['fits'] and report['times']['kernel'] > 0
