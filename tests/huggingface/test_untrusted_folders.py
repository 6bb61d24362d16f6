"""Folders of Hugging Face models that are damaged or hostile: refused in one paragraph, before memory is taken."""
import json
import os
import pickle
import time

import numpy as np
import pytest

from t5like.errors import CheckpointError, ConfigError
from t5like.huggingface import model_folders
from tests.huggingface.test_huggingface import folder_of


def with_config(**changes):
  def change(config, made):
    for key, value in changes.items():
      if value is Ellipsis:
        del config[key]
      else:
        config[key] = value
  return change


@pytest.mark.parametrize('case, key, value, problem', [
    ('llama', 'num_hidden_layers', 10 ** 9, 'num_hidden_layers=1000000000 must be a whole number from 1 to 10,000'),
    ('llama', 'num_hidden_layers', 9_999, r'model\.layers\.10\.\S+ is missing; .* and \d+ more'),
    ('llama', 'vocab_size', 10 ** 9, 'vocab_size=1000000000 must be a whole number'),
    ('llama', 'vocab_size', 10 ** 7, r'embed_tokens.weight has the shape \(101, 36\), not \(10000000, 36\)'),
    ('llama', 'vocab_size', '101', 'vocab_size="101" must be a whole number'),
    ('llama', 'vocab_size', 101.0, 'vocab_size=101.0 must be a whole number'),
    ('llama', 'hidden_size', None, 'hidden_size=null must be'),
    ('llama', 'hidden_size', True, 'hidden_size=true must be'),
    ('llama', 'num_attention_heads', 0, 'num_attention_heads=0 must be a whole number from 1'),
    ('gpt2', 'n_head', 37, '37 heads do not divide the width 36'),
    ('llama', 'num_key_value_heads', [3], r'num_key_value_heads=\[3\] must be .*, or null'),
    ('llama', 'rope_theta', None, 'rope_theta=null must be a finite number above 0'),
    ('llama', 'rope_theta', -1, 'rope_theta=-1 must be'),
    ('llama', 'rope_parameters', 3, 'rope_parameters=3 must be an object'),
    ('llama', 'rope_parameters', dict(rope_theta='x'), r'rope_parameters\.rope_theta="x" must be'),
    ('llama', 'rope_scaling', ['linear'], r'rope_scaling=\["linear"\] must be an object'),
    ('llama', 'hidden_act', ['silu'], r'hidden_act=\["silu"\] must be a text'),
    ('llama', 'hidden_act', {}, r'hidden_act=\{\} must be a text'),
    ('llama', 'rms_norm_eps', 'small', 'rms_norm_eps="small" must be a finite number above 0'),
    ('llama', 'tie_word_embeddings', 'no', 'tie_word_embeddings="no" must be true or false'),
    ('llama', 'model_type', ['llama'], r'model_type=\["llama"\] must be a text'),
    ('llama', 'model_type', None, 'model_type=null must be a text'),
    ('llama', 'bos_token_id', 'x', 'bos_token_id="x" must be'),
    ('llama', 'bos_token_id', 10 ** 9, 'bos_token_id=1000000000 must be'),
    ('gpt_neox', 'use_parallel_residual', 'x', 'use_parallel_residual="x" must be true or false'),
    ('gpt_neox', 'rotary_pct', 7, 'rotary_pct=7 must be'),
    ('gpt2', 'resid_pdrop', 1.0, 'resid_pdrop=1.0 must be a finite number at least 0 and below 1'),
    ('gpt2', 'n_inner', -5, 'n_inner=-5 must be'),
    ('bert', 'type_vocab_size', 2.5, 'type_vocab_size=2.5 must be'),
    ('t5', 'd_kv', 10 ** 6, 'd_kv=1000000 must be'),
])
def test_a_config_with_a_wrong_value(case, key, value, problem, tmp_path):
  folder, since = folder_of(case, tmp_path / 'a', with_config(**{key: value})), time.monotonic()
  with pytest.raises((ConfigError, CheckpointError), match=problem) as e:
    model_folders.read(folder)
  assert '\n' not in str(e.value) and len(str(e.value)) < 1500 and time.monotonic() - since < 2


@pytest.mark.parametrize('text, problem', [
    ('[]', 'must be an object'), ('3', 'must be an object'), ('null', 'must be an object'), ('', 'is not JSON'),
    ('[' * 100_000, 'nested more than 64 levels'), ('{"a":' * 100_000, 'nested more than 64 levels'),
    ('{"model_type": "llama", "model_type": "gpt2"}', 'has the key "model_type" twice'),
    ('{"rope_theta": NaN}', 'has the number NaN'), (r'{"model_type": "\ud800"}', 'surrogate'),
    ('{"vocab_size": 1' + '0' * 5000 + '}', 'number of 5,001 digits'),
])
def test_a_config_that_is_no_object(text, problem, tmp_path):
  folder = folder_of('llama', tmp_path / 'a')
  (folder / 'config.json').write_text(text)
  with pytest.raises(ConfigError, match=problem) as e:
    model_folders.read(folder)
  assert 'config.json' in str(e.value) and '\n' not in str(e.value)


@pytest.mark.parametrize('index, problem', [
    ([], 'must be an object'), ({}, 'lacks weight_map'), (dict(weight_map=None), 'weight_map=null must be an object'),
    (dict(weight_map=dict(x=1)), 'weight_map.x=1 must be the name of a file in the same folder'),
    (dict(weight_map=dict(x='../model.safetensors')), 'must be the name of a file in the same folder'),
    (dict(weight_map=dict(x='/etc/model.safetensors')), 'must be the name of a file in the same folder'),
    (dict(weight_map=dict(x='model.bin')), r'that ends in \.safetensors'),
    (dict(weight_map=dict(x='n.safetensors')), 'has no n.safetensors'), (dict(weight_map={}), r'has no \*.safetensors'),
])
def test_an_index_that_leads_elsewhere(index, problem, tmp_path):
  folder_of('llama', tmp_path)
  folder = folder_of('llama', tmp_path / 'a')
  (folder / 'model.safetensors.index.json').write_text(json.dumps(index))
  with pytest.raises(CheckpointError, match=problem):
    model_folders.read(folder)


def test_links_out_of_the_folder(tmp_path):
  folder, other = folder_of('llama', tmp_path / 'a'), folder_of('llama', tmp_path / 'b')
  for name in ('model.safetensors', 'config.json'):
    (folder / name).rename(tmp_path / 'kept')
    (folder / name).symlink_to(other / name)
    with pytest.raises(CheckpointError, match=f'{name} is a link to {other / name}, outside its folder'):
      model_folders.read(folder)
    (folder / name).unlink()
    (tmp_path / 'kept').rename(folder / f'own-{name}')
    (folder / name).symlink_to(f'own-{name}')  # inside
  (folder / 'model.safetensors').unlink()
  (folder / 'own-model.safetensors').rename(folder / 'model.safetensors')
  model_folders.read(folder)


def test_the_cache_of_the_hub_is_links(tmp_path):
  blobs, folder = tmp_path / 'models--x--y' / 'blobs', tmp_path / 'models--x--y' / 'snapshots' / '0123abcd'
  blobs.mkdir(parents=True)
  folder_of('llama', folder)
  expected, _ = model_folders.read(folder)
  for path in list(folder.iterdir()):
    path.rename(blobs / f'sha-{path.name}')
    path.symlink_to(os.path.join('..', '..', 'blobs', f'sha-{path.name}'))
  assert model_folders.read(folder)[0] == expected


def _nan(made, name):
  made[name] = np.full_like(made[name], np.nan)


def _infinite(made, name):
  made[name].flat[-1] = -np.inf


def _both_infinities(made, name):
  made[name].flat[:2] = np.inf, -np.inf


def _too_large(made, name):
  made[name] = made[name].astype(np.float64)
  made[name].flat[0] = 1e300


@pytest.mark.parametrize('damage', [_nan, _infinite, _both_infinities, _too_large])
@pytest.mark.parametrize('name', ['model.embed_tokens.weight', 'model.layers.1.mlp.down_proj.weight',
                                  'model.norm.weight'])
def test_weights_that_are_not_finite(damage, name, tmp_path):
  folder = folder_of('llama', tmp_path / 'a', lambda config, made: damage(made, name))
  with pytest.raises(CheckpointError, match=f'the weights {name} are not all finite'):
    model_folders.read(folder)


@pytest.mark.parametrize('dtype', ['int32', 'int8', 'uint8', 'int64', 'bool'])
def test_weights_that_are_not_floats(dtype, tmp_path):
  name = 'model.layers.0.mlp.up_proj.weight'
  folder = folder_of('llama', tmp_path / 'a', lambda config, made: made.update({name: made[name].astype(dtype)}))
  with pytest.raises(CheckpointError, match=rf'{name} is stored as \w+, not as one of F32, BF16, F16, F64'):
    model_folders.read(folder)


def test_doubles_are_read(tmp_path):
  values, params = model_folders.read(folder_of('llama', tmp_path / 'a', lambda config, made: made.update(
      {key: x.astype(np.float64) for key, x in made.items()})))
  assert params['embed']['w'].dtype == np.float32 and values['d_model'] == 36


def test_files_that_are_no_weights(tmp_path):
  folder = folder_of('llama', tmp_path / 'a')
  path = folder / 'model.safetensors'
  whole = path.read_bytes()
  contents = dict(pickle=pickle.dumps(dict(a=np.zeros(9))), empty=b'', zeros=bytes(1000), cut=whole[:-5],
                  header=whole[:40], huge=(2 ** 62).to_bytes(8, 'little') + whole[8:],
                  noise=(100).to_bytes(8, 'little') + b'{' * 100, longer=whole + b'x')
  for content in contents.values():
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match='model.safetensors cannot be read as safetensors') as e:
      model_folders.read(folder)
    assert '\n' not in str(e.value)
  path.write_bytes(b'version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n')
  with pytest.raises(CheckpointError, match='git lfs pull'):
    model_folders.read(folder)
  path.unlink()
  (folder / 'pytorch_model.bin').write_bytes(contents['pickle'])
  with pytest.raises(CheckpointError, match=r'pytorch_model.bin, must be saved by save_pretrained first'):
    model_folders.read(folder)
  path.mkdir()
  with pytest.raises(CheckpointError, match='is not a regular file'):
    model_folders.read(folder)
  path.rmdir()
  os.mkfifo(path)
  with pytest.raises(CheckpointError, match='is not a regular file'):
    model_folders.read(folder)


def test_what_a_header_promises_is_in_the_file(tmp_path):
  """A model of 10^15 parameters in a file of a kilobyte: refused by its size, not by running out of memory."""
  huge = dict(hidden_size=1 << 20, num_attention_heads=1 << 10, num_key_value_heads=1, intermediate_size=1 << 24,
              num_hidden_layers=100)
  folder = folder_of('llama', tmp_path / 'a', with_config(**huge))
  with pytest.raises(CheckpointError, match='the weights are not those of the llama model'):
    model_folders.read(folder)
  header = json.dumps({'model.norm.weight': dict(dtype='F32', shape=[1 << 50], data_offsets=[0, 4 << 50])})
  (folder / 'model.safetensors').write_bytes(len(header).to_bytes(8, 'little') + header.encode() + bytes(100))
  with pytest.raises(CheckpointError, match='cannot be read as safetensors'):
    model_folders.read(folder)
