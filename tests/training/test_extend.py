"""Longer rows: a run begins with the weights of one that has read shorter ones, and changes positions or windows."""
import jax
import numpy as np
import pytest

from t5like import config as config_lib, sharding
from t5like.decoding import trained_model
from t5like.errors import ConfigError
from t5like.huggingface import model_config, model_folders
from t5like.model import transformer
from t5like.training import loop, preconditions
from tests import tiny

pytestmark = pytest.mark.usefixtures('compile_once')

TOKENS = 512  # of a step
LLAMA3 = dict(name='llama3', factor=2.0, original_positions=32, low_freq_factor=1.0, high_freq_factor=4.0)
CHANGES = dict(  # a value of each key, and what has to go with it
    layers=dict(layers=('local', 'global'), window=16),
    window=dict(layers=('local',), window=16),
    window_after=dict(layers=('local',), window=16, window_after=8),
    rope_theta=dict(rope_theta=500_000.0),
    local_rope_theta=dict(layers=('local',), window=16, local_rope_theta=1000.0),
    rope_scaling=dict(rope_scaling=LLAMA3),
)


def config(folder, length, steps, **sections):
  data = dict(sections.pop('data', {}), seq_len=length)
  batch = TOKENS // length
  return tiny.config(folder, data=data, batch_size=batch, stop=dict(tokens=steps * TOKENS), **sections)


def nll(folder, name, *args, **sections):
  """Validation loss at the end of a run of this name."""
  c = config(folder, *args, evaluate=dict(every=0, batches=0), checkpoint=dict(every=0), **sections)
  return loop.train(c, folder / name, name, jax.devices()[:1])['validation']['nll']


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """With a run, `short`, that has read rows of 32 tokens."""
  folder = tmp_path_factory.mktemp('extend')
  nll(folder, 'short', 32, 150, data=dict(document_mask=False))
  return folder


def beginning(folder):
  return dict(init_from=str(folder / 'short'), data=dict(document_mask=False))


def test_a_run_continued_on_longer_rows_predicts_them_better(folder, capsys):
  still = dict(optimizer=dict(learning_rate=1e-12))
  before = nll(folder, 'before', 64, 1, **beginning(folder), **still)
  assert 'Changed since' not in capsys.readouterr().out
  nll(folder, 'more', 32, 100, **beginning(folder))
  capsys.readouterr()
  scaled = nll(folder, 'scaled', 64, 100, **beginning(folder), model=dict(rope_scaling=LLAMA3))
  lines = [line for line in capsys.readouterr().out.splitlines() if 'Changed since' in line]
  assert len(lines) == 1 and f"Changed since {folder}/short: model.rope_scaling {{}} -> {{'factor': 2.0" in lines[0]
  # As much training on short rows does not help with long ones.
  more_on_long = nll(folder, 'more_on_long', 64, 1, init_from=str(folder / 'more'), data=dict(document_mask=False),
                     **still)
  assert scaled < min(before, more_on_long) - 0.1


def initial(c, lines):
  """(parameters that a run of a config begins with, its model)."""
  c = config_lib.resolve(c)
  mesh = sharding.make_mesh(dict.fromkeys(sharding.AXES, 1), jax.devices()[:1])
  with jax.set_mesh(mesh):
    model = transformer.build(transformer.ModelConfig.of(c.model))
    abstract = sharding.abstract(lambda: model.init(jax.random.key(0)), mesh)
    return model_folders.initial(c, abstract, say=lines.append), model


def test_all_keys_are_tried():
  assert set(CHANGES) == set(model_config.OF_LONGER_ROWS)


@pytest.mark.parametrize('key', CHANGES)
def test_keys_without_parameters_may_change(key, folder):
  """The parameters are those of the run, to the bit, and one line says what has changed."""
  lines = []
  c = config(folder, 64, 1, **beginning(folder), model=CHANGES[key])
  assert preconditions.check(c) == []
  params, model = initial(c, lines)
  run = trained_model.load(folder / 'short')
  assert {path: param.shape for path, param in model.parameters.items()} == {
      path: param.shape for path, param in run.model.parameters.items()}
  assert jax.tree.all(jax.tree.map(np.array_equal, jax.device_get(params), jax.device_get(run.params)))
  named = 'window' if key == 'window_after' else key  # which a decoder does not read
  assert len(lines) == 1 and f'model.{named} ' in lines[0]


@pytest.mark.parametrize('key, flag', dict(
    layers='--config.model.layers=\'("local", "global")\'', window='--config.model.window=16',
    rope_theta='--config.model.rope_theta=500000.0', rope_scaling='--config.model.rope_scaling.name=llama3').items())
def test_a_key_that_is_forgotten_is_an_error(key, flag, folder, tmp_path, monkeypatch):
  """Of a model with other values than the defaults; but not where the config names it, or says something else."""
  theirs = config(tmp_path, 64, 1, model=CHANGES[key])
  monkeypatch.setattr(preconditions.workdir_lib, 'read_config', lambda run: theirs)
  c = config(folder, 64, 1, **beginning(folder))
  with pytest.raises(ConfigError) as error:
    preconditions.check(c)
  text = str(error.value)
  assert f"init_from='{folder}/short' holds a model whose" in text and f'model.{key} is' in text
  assert flag in text and '--config.allow_changed=model.' in text
  c.allow_changed = 'model.layers,model.window,model.rope_theta,model.rope_scaling'
  assert preconditions.check(c) == []
  c.allow_changed = 'model'
  assert preconditions.check(c) == []


@pytest.mark.parametrize('key, value, said', [
    ('rope_fraction', 0.5, 'model.rope_fraction is 1.0 there, 0.5 here'), ('norm_eps', 1e-5, 'norm_eps is 1e-06 there'),
    ('d_ff', 80, 'd_ff is 64 there, 80 here')])
def test_other_keys_may_not(key, value, said, folder):
  """Not even beside those that may, which are not called differences then."""
  lines = []
  c = config(folder, 64, 1, **beginning(folder), model={key: value, 'rope_theta': 500_000.0})
  for refusing in (preconditions.check, lambda c: initial(c, lines)):
    with pytest.raises(ConfigError, match=said) as e:
      refusing(c)
    assert 'rope_theta' not in str(e.value)
  assert lines == []
