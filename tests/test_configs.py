"""Every config file loads, has the parameters it says, and trains when shrunk."""
import jax
import pytest

from t5like import build, config as config_lib, train
from tests.conftest import ROOT

FILES = sorted(f.stem for f in (ROOT / 'configs').glob('*.py') if f.stem not in ('base', '__init__'))


@pytest.fixture(scope='module')
def prepared(tmp_path_factory):
  return tmp_path_factory.mktemp('prepared')


@pytest.mark.parametrize('name', FILES)
def test_smoke_trains(name, prepared, tmp_path):
  """Two steps of every config's small version, validation, checkpoint and sample included."""
  c = config_lib.load(str(ROOT / 'configs' / f'{name}.py:smoke'),
                      ['stop.tokens=1024', 'evaluate.every=1', 'evaluate.batches=1', 'sample.tokens=4',
                       f'data.directory={prepared}'])
  result = train.train(c, tmp_path / 'run', name, jax.devices()[:1])
  assert result['step'] == 2 and 0 < result['validation']['nll'] < 12


@pytest.mark.parametrize('name, params', [
    ('decoder_1b', 1_104_742_400), ('gpt2_124m', 124_373_760), ('decoder_shakespeare', 10_745_088),
    ('decoder_shakespeare:cpu', 804_096)])
def test_params_are_those_of_the_baselines(name, params):
  """By shapes alone: specs and nanoGPT's own counts; build_model compares with params_expected."""
  file, _, variant = name.partition(':')
  c = config_lib.load(str(ROOT / 'configs' / f'{file}.py') + (f':{variant}' if variant else ''))
  assert c.params_expected == params
  assert build.sizes(config_lib.resolve(c))['parameters'] == params


def test_the_1b_config_is_as_published():
  c = config_lib.load(str(ROOT / 'configs' / 'decoder_1b.py'))
  derived = config_lib.derived(c)
  assert derived['tokens_per_step'] == 1_048_576 and derived['steps'] == 20_400
  assert c.schedule.warmup_steps == 2040 and c.loss.z_loss == 1e-4
