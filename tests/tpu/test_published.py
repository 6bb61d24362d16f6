"""Configs of published decoders and the TPUs that they are for; test_every_config.py compiles all of them.

    pytest -m tpu
"""
import importlib.util

import pytest

from t5like.preflight import prediction, topologies
from tests.tpu import test_every_config

pytestmark = pytest.mark.tpu

TOPOLOGIES = {
    'llama2:7b': 'v5e-256', 'llama2:70b': 'v5p-512', 'llama3:8b': 'v5e-256', 'llama3:70b': 'v5p-512',
    'qwen3:0b6': 'v5e-64', 'qwen3:8b': 'v5e-256', 'gemma2_2b:': 'v5e-256', 'mistral_7b:': 'v5e-256',
    'olmo2_1b:7b': 'v5e-256', 'olmo3_7b:': 'v5e-256', 'smollm2:135m': 'v5e-64', 'smollm2:360m': 'v5e-64',
    'smollm2:1b7': 'v5e-256', 'extend_llama3:16k': 'v5e-256', 'extend_llama3:32k': 'v5e-256',
    'mixtral_8x7b:': 'v5p-256', 'olmoe_1b_7b:': 'v5e-64', 'qwen3_30b_a3b:': 'v5p-256', 'switch_base:8': 'v5e-32',
    'switch_base:64': 'v5e-64', 'switch_base:128': 'v5e-64', 'switch_base:256': 'v5e-64',
    'modernbert_base:': 'v5e-64', 'modernbert_base:large': 'v5e-64', 'modernbert_base:context': 'v5e-8',
    'extend_llama3:64k': 'v5e-256', 'extend_llama3:128k': 'v5e-256', 'extend_llama3:70b_128k': 'v5p-512'}


@pytest.mark.parametrize('name', TOPOLOGIES)
def test_topologies_are_those_of_the_docstrings(name):
  assert test_every_config.topology(*name.split(':')) == TOPOLOGIES[name]


@pytest.mark.skipif(not importlib.util.find_spec('libtpu'), reason="pip install -e '.[tpu]'")
@pytest.mark.parametrize('name', ['gemma2_2b:', 'extend_llama3:16k'])
def test_windows_and_long_rows_fit(name):
  """One with windows, soft caps and sandwich norms, and one whose rows lie on two chips each."""
  report = prediction.predict(test_every_config.load(*name.split(':')), topologies.parse(TOPOLOGIES[name]))
  assert report['fits'] and report['kernel'][0] == 'splash'
  assert 0.3 < report['mfu_causal'] < report['mfu'] < 0.75
