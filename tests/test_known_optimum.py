"""A decoder reaches the entropy of a source whose entropy is known, and does not go below it."""
import jax

from t5like import config as config_lib, train
from t5like.data import sources
from tests.conftest import ROOT


def test_markov_chain(tmp_path):
  c = config_lib.load(str(ROOT / 'configs' / 'markov.py'), [f'data.directory={tmp_path}/prepared'])
  result = train.train(c, tmp_path / 'run', 'markov', jax.devices()[:1])
  entropy = sources.markov_entropy(8)
  assert entropy - 0.01 < result['validation']['nll'] < entropy + 0.02
