"""Every config of 100M parameters or more on the TPUs that its file names, by the TPU compiler.

    pytest -m "tpu and slow"
"""
import importlib.util
import re

import pytest

from t5like import config as config_lib
from t5like.model import models
from t5like.preflight import prediction, topologies
from tests.config.test_configs import EVERY
from tests.conftest import ROOT

pytestmark = [pytest.mark.tpu, pytest.mark.slow,
              pytest.mark.skipif(not importlib.util.find_spec('libtpu'), reason="pip install -e '.[tpu]'")]


def load(name, variant):
  config = config_lib.load(f'{ROOT}/configs/{name}.py' + (f':{variant}' if variant else ''))
  if not config.model.vocab_size:
    config.model.vocab_size = 32_128  # the vocabulary will be of this size or nearly
  return config


def topology(name, variant):
  """What the docstring names: 'v5e-64 (3b)' for a variant, 'v5e-32' for all others, or v5e-64 where it names others."""
  text = (ROOT / 'configs' / f'{name}.py').read_text()
  own = re.search(rf'\b(v[4-6]\w*-\d+) \({variant}\)', text) if variant else None
  any_ = re.search(r'\b(v[4-6]\w*-\d+)', text)
  return (own or any_)[1] if any_ else 'v5e-64'


@pytest.mark.parametrize('name, variant', EVERY, ids=':'.join)
def test_compiles_and_fits(name, variant):
  config = load(name, variant)
  if models.sizes(config_lib.resolve(config))['parameters'] < 100e6:
    pytest.skip('smaller')
  where = topologies.parse(topology(name, variant))
  report = prediction.predict(config, where)
  assert report['fits'], (where.name, report['hbm'])
  assert 0 < report['mfu'] < 1 and report['step_seconds'] > 0
