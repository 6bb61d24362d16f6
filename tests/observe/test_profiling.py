"""Traces of chosen steps, the first step in pieces, and programs that the compiler keeps."""
import os

import jax
import pytest

from t5like.errors import ConfigError
from t5like.observe import profiling
from t5like.training import loop
from tests import tiny


def test_trace_dump_and_pieces(tmp_path, capsys):
  c = tiny.config(tmp_path, steps=5, evaluate=dict(every=0))
  loop.train(c, tmp_path / 'run', 'test', jax.devices()[:1], profile_steps='3:5')
  said = capsys.readouterr().out
  assert 'Trace of steps 3 to 4' in said and 'First step: ' in said and 'tracing' in said
  [trace] = (tmp_path / 'run/profile').rglob('*.xplane.pb')
  content = trace.read_bytes()
  assert b'train_step' in content and content.count(b'train_step') > 1
  assert list((tmp_path / 'run/profile').rglob('perfetto_trace.json.gz'))


def test_a_trace_that_the_run_ends_in_is_kept(tmp_path):
  c = tiny.config(tmp_path, steps=3, evaluate=dict(every=0))
  loop.train(c, tmp_path / 'run', 'test', jax.devices()[:1], profile_steps='2:99')
  assert list((tmp_path / 'run/profile').rglob('*.xplane.pb'))


@pytest.mark.parametrize('text', ['3', '3:3', '5:3', '0:2', 'a:b', '3:'])
def test_mistakes(text):
  with pytest.raises(ConfigError, match='--profile_steps=10:13'):
    profiling.parse(text)


def test_compile_cache(monkeypatch, tmp_path):
  before = jax.config.jax_compilation_cache_dir
  try:
    profiling.compile_cache('auto')
    assert jax.config.jax_compilation_cache_dir == before  # JAX_COMPILATION_CACHE_DIR goes first
    profiling.compile_cache('')
    assert jax.config.jax_compilation_cache_dir is None
    monkeypatch.setenv('HOME', str(tmp_path))
    profiling.compile_cache('auto')
    assert jax.config.jax_compilation_cache_dir == str(tmp_path / '.cache/t5like/xla')
  finally:
    jax.config.update('jax_compilation_cache_dir', before)


def test_operations_carry_the_names_of_their_parts(tmp_path):
  from t5like import config as config_lib
  from t5like.preflight import compile_ahead
  lowered, _ = compile_ahead.lower(config_lib.resolve(tiny.config(tmp_path)), jax.devices()[:1])
  text = lowered.compile().as_text()
  for part in ('embed', 'attention', 'mlp', 'logits', 'loss', 'optimizer'):
    assert f'/{part}/' in text or f'({part})/' in text, part


@pytest.mark.parametrize('name', ['file', 'file/below', 'a"b'])
def test_folders_that_xla_could_not_write_to(name, tmp_path, monkeypatch):
  monkeypatch.setenv('XLA_FLAGS', '')
  (tmp_path / 'file').touch()
  with pytest.raises(ConfigError, match='--dump_xla='):
    profiling.dump_xla(f'{tmp_path}/{name}')
  assert os.environ['XLA_FLAGS'] == ''
