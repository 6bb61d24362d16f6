"""The command line: help, spellings that absl and ml_collections take, mistakes and what is said of them."""
import os
import re
import shutil
import subprocess
import sys

import pytest
from hypothesis import given, settings, strategies as st

from t5like import command_line, commands, config as config_lib
from t5like.errors import ConfigError
from tests.conftest import ROOT

TINY = 'configs/decoder_tiny.py'


def read(*argv):
  return command_line.read(argv)


def refused(*argv):
  with pytest.raises(ConfigError) as e:
    read(*argv)
  return str(e.value)


def run(*argv, cwd, script=ROOT / 'main.py', **kwargs):
  return subprocess.run([sys.executable, *([script] if script else []), *argv], cwd=cwd, capture_output=True, text=True,
                        timeout=120, **kwargs)


def loaded(request):
  return config_lib.load(request.flags.config, request.overrides)


# --- Help -------------------------------------------------------------------------------------------


@pytest.mark.parametrize('argv', [['help'], ['-h'], ['--help'], ['-help'], ['--helpfull'], ['--helpshort'],
                                  ['--config=x', '--help'], ['help', '--debug']], ids=' '.join)
def test_help_lists_all_commands(argv):
  shown = read(*argv).help
  for name in command_line.COMMANDS:
    assert re.search(rf'^  {name}  +\w', shown, re.M)


@pytest.mark.parametrize('name', command_line.COMMANDS)
def test_help_of_a_command_lists_its_flags_alone_with_defaults_and_an_example(name):
  shown = read(name, '--help').help
  assert read('help', name).help == read(name, '-h').help == shown
  listed = set(re.findall(r'^  --(?:\[no\])?(\w+)', shown, re.M))
  assert listed == {*command_line.COMMANDS[name].flags, 'debug'}
  assert f'python main.py {name}' in shown
  described = {re.match(r'(?:\[no\])?(\w+)', part)[1]: ' '.join(part.split()) for part in shown.split('\n  --')[1:]}
  for flag in listed:
    default = command_line.FLAGS[flag].default
    if isinstance(default, (int, float)) and not isinstance(default, bool):
      assert f'Default: {default}.' in described[flag]
  assert max(map(len, shown.splitlines())) <= 120


def test_examples_of_help_are_accepted():
  import shlex
  for name, command in command_line.COMMANDS.items():
    request = read(name, *shlex.split(command.example))
    assert request.command == name
    if command.takes_config:
      loaded(request)


def test_every_command_is_carried_out_and_every_flag_belongs_to_one():
  assert set(command_line.COMMANDS) == {*commands.COMMANDS, *commands.WITHOUT_CONFIG}
  used = {flag for command in command_line.COMMANDS.values() for flag in command.flags}
  assert used | {'debug'} == set(command_line.FLAGS)


# --- Spellings --------------------------------------------------------------------------------------


@pytest.mark.parametrize('argv, key, value', [
    (['--config.model.num_layers=6'], 'model.num_layers', 6),
    (['--config.model.num_layers', '6'], 'model.num_layers', 6),
    (['-config.model.num_layers=6'], 'model.num_layers', 6),
    (['--config.stop.tokens', '10M'], 'stop.tokens', 10_000_000),
    (['--config.optimizer.learning_rate', '1e-3'], 'optimizer.learning_rate', 1e-3),
    (['--config.model.tie_embeddings'], 'model.tie_embeddings', True),
    (['--noconfig.model.tie_embeddings'], 'model.tie_embeddings', False),
    (['--config.model.tie_embeddings', 'false'], 'model.tie_embeddings', False),
    (['--config.model.tie_embeddings', '--debug'], 'model.tie_embeddings', True),
    (['--config.evaluate.shots', '-1'], 'evaluate.shots', -1),
    (['--config.sample.prompts', "('a=b', '--x')"], 'sample.prompts', ('a=b', '--x')),
    (['--config.sample.prompts=--x'], 'sample.prompts', ('--x',)),
], ids=lambda v: ' '.join(v) if isinstance(v, list) else None)
@pytest.mark.parametrize('first', [True, False])
def test_keys_of_the_config_are_written_as_ml_collections_has_them(argv, key, value, first):
  config = [f'--config={ROOT}/{TINY}']
  request = read(*argv, *config) if first else read(*config, *argv)
  assert request.command == 'train'
  assert dict((k, v) for k, v, _ in config_lib.describe(loaded(request)))[key] == value


@pytest.mark.parametrize('argv', [
    ['--config=decoder_tiny'], ['--config=decoder_tiny.py'], ['--config', 'decoder_tiny'], ['-config=decoder_tiny'],
    ['--config=configs/decoder_tiny.py'], ['--config=configs/decoder_tiny'], ['configs/decoder_tiny.py'],
    ['decoder_tiny'], ['train', 'configs/decoder_tiny.py'], ['train', '--config=decoder_tiny'],
    ['--config=$T5LIKE_HERE/configs/decoder_tiny.py']], ids=' '.join)
@pytest.mark.parametrize('variant', ['', ':smoke'])
def test_configs_are_found_by_path_or_name_from_any_folder(argv, variant, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  monkeypatch.setenv('T5LIKE_HERE', str(ROOT))
  request = read(*argv[:-1], argv[-1] + variant)
  assert request.command == 'train' and not list(tmp_path.iterdir())
  assert loaded(request) == config_lib.load(f'{ROOT}/{TINY}{variant}')


def test_a_config_here_comes_before_ours_of_that_name(tmp_path, monkeypatch):
  (tmp_path / 'configs').mkdir()
  text = (ROOT / TINY).read_text().replace('num_layers=4', 'num_layers=7')
  (tmp_path / 'configs' / 'decoder_tiny.py').write_text(text)
  monkeypatch.chdir(tmp_path)
  for name in ('decoder_tiny', TINY):
    assert loaded(read(f'--config={name}')).model.num_layers == 7


def test_flags_are_absls(tmp_path):
  request = read('generate', '--workdir', 'w', '--prompt=a', '--prompt', 'b', '-tokens=1_000', '--top_k=0', '--debug')
  chosen = request.flags
  assert (chosen.workdir, chosen.prompt, chosen.tokens, chosen.top_k, chosen.debug) == ('w', ['a', 'b'], 1000, 0, True)
  assert (chosen.temperature, chosen.alpha, chosen.input) == (0.8, 0.6, None)
  assert read('evaluate', '--tasks=a,b', '--workdir=w').flags.tasks == ['a', 'b']
  assert not read('preflight', '--search', '--nosearch', '--config=decoder_tiny').flags.search
  file = tmp_path / 'flags'
  file.write_text('--config=decoder_tiny\n--config.batch_size=24\n# a comment\n--workdir=w\n')
  request = read('train', f'--flagfile={file}')
  assert request.flags.workdir == 'w' and loaded(request).batch_size == 24
  assert read('--verbosity=0', '--config=decoder_tiny').command == 'train'  # of absl.logging


# --- Mistakes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize('name', command_line.COMMANDS)
def test_flags_of_other_commands_are_refused_with_their_owner(name):
  for flag in command_line.FLAGS:
    owners = [other for other, command in command_line.COMMANDS.items() if flag in command.flags]
    if flag == 'debug' or name in owners:
      continue
    value = {'yes': '', 'whole': '=1', 'number': '=1'}.get(command_line.FLAGS[flag].kind, '=x')
    said = refused(name, f'--{flag}{value}')
    assert f'--{flag} belongs to main.py' in said and owners[0] in said and name in said


def test_changes_of_a_config_are_refused_where_there_is_none():
  for name in ('generate', 'evaluate', 'report', 'export', 'replay', 'selftest'):
    assert '--config.batch_size=3' in refused(name, '--config.batch_size=3')
  assert read('import', '--config.batch_size=3', '--folder=f').overrides == ('batch_size=3',)


@pytest.mark.parametrize('argv, words', [
    ('evaluate --limit=-395', ['--limit=-395', 'at least 0']),
    ('generate --tokens=3000000000', ['--tokens=3000000000', 'at most 2147483647']),
    ('--config=decoder_tiny --num_processes=2', ['--num_processes=2', '--coordinator=HOST:PORT']),
    ('--config=decoder_tiny --process_id=1', ['--process_id=1', '--coordinator=HOST:PORT']),
    ('--config=decoder_tiny --coordinator=a:1', ['--num_processes=0 --process_id=0', 'from 0']),
    ('--config=decoder_tiny --coordinator=a:1 --num_processes=2 --process_id=2', ['--process_id=2', 'from 0']),
    ('--config=decoder_tiny --coordinator=a --num_processes=2', ['--coordinator=a', 'HOST:PORT']),
    ('generate --beams=1001', ['--beams=1001', 'at most 1000']),
    ('generate --alpha=1e308', ['--alpha=1e+308', 'at most 5']),
    ('replay --steps=100000000000', ['--steps=100000000000', 'at most 1000000']),
    ('evaluate --shots=-2', ['--shots=-2', 'at least -1']),
    ('evaluate --step=-1', ['--step=-1', 'at least 0']),
    ('evaluate --tasks=a,,b', ['--tasks=a,,b', 'empty']),
    ('generate --tokens=0', ['--tokens=0', 'at least 1']),
    ('generate --tokens=1e99', ['--tokens=1e99', 'whole number']),
    ('generate --tokens=2.5', ['--tokens=2.5', 'whole number']),
    ('generate --temperature=-1', ['--temperature=-1', 'at least 0']),
    ('generate --temperature=nan', ['--temperature=nan', 'finite']),
    ('generate --temperature=inf', ['finite']),
    ('generate --top_p=0', ['--top_p=0', 'above 0', 'at most 1']),
    ('generate --top_p=1.1', ['at most 1']),
    ('generate --top_k=-1', ['--top_k=-1', 'at least 0']),
    ('generate --beams=0', ['--beams=0', 'at least 1']),
    ('generate --alpha=-0.1', ['--alpha']),
    ('generate --seed=4294967296', ['at most 4294967295']),
    ('inspect --rows=0', ['--rows=0']),
    ('inspect --row=-1', ['--row=-1']),
    ('inspect --step=x', ['--step=x', 'whole number']),
    ('preflight --price=-1', ['--price=-1']),
    ('preflight --json=perhaps', ['--json', 'true or false']),
    ('replay --steps=0', ['--steps=0']),
    ('train --process_id=-1', ['--process_id=-1']),
    ('trian', ['trian', 'train?']),
    ('evalute', ['evaluate?', 'preflight']),
    ('help evalute', ['evaluate?']),
    ('model.num_layers=6', ['--config.model.num_layers=6']),
    ('train batch_size=9', ['batch_size=9', '--config.batch_size=9?']),
    ('generate decoder_tiny', ['decoder_tiny', 'must be flags']),
    ('train configs/decoder_tiny.py --config=configs/gpt2.py', ['configs/decoder_tiny.py']),
    ('configs/decoder_tony.py', ['decoder_tony', '--config=FILE']),
    ('--model.num_layers=6', ['--config.model.num_layers']),
    ('--learning_rate=1', ['optimizer.learning_rate', '--config.KEY']),
    ('--print-config', ['--print_config?']),
    ('--workdr=x', ['--workdr', '--workdir?']),
    ('--zzz', ['--zzz', 'unknown flag', 'help']),
    ('--workdir', ['workdir', 'help']),
    ('--noconfig.batch_size', ['--config.batch_size=VALUE']),
    ('--noconfig.model.tie_embeddings=true', ['--config.model.tie_embeddings']),
    ('--flagfile=/no/such', ['/no/such']),
    ('preflight --topology=' + 'v' * 5000, ['--topology=', 'at most']),
    ('selftest --only=' + 'v' * 5000, ['--only=', 'at most']),
    ('import --folder=' + 'v' * 5000, ['--folder=', 'at most']),
    ('generate --workdir=x/' + 'v' * 300, ['--workdir=', 'at most']),
], ids=lambda v: v if isinstance(v, str) else None)
def test_mistakes_get_one_paragraph_with_what_would_work(argv, words):
  said = refused(*argv.split())
  for word in words:
    assert word in said, said
  assert len(said) < 500 and '\n' not in said


@pytest.mark.parametrize('config, words', [
    ('decoder_tyny', ['configs/decoder_tiny.py?']),
    ('configs/decoder_tyny.py:smoke', ['configs/decoder_tiny.py?']),
    ('a' * 5000, ['no such config file']),
    ('a/' * 2500, ['no such config file']),
    ('/no/such/folder/x.py', ['/no/such/folder']),
    ('/etc', ['folder']),
    ('x\0.py', ['no such config file']),
    (':smoke', ['no such config file']),
    ('~nosuchuser/x.py', ['no such config file']),
], ids=lambda v: v[:20] if isinstance(v, str) else None)
def test_configs_that_are_not_there(config, words):
  with pytest.raises(ConfigError) as e:
    config_lib.load(config)
  said = str(e.value)
  assert len(said) < 700 and all(word in said for word in words), said


PIECES = st.sampled_from([*command_line.COMMANDS, 'help', '-h', '--', '-', '--config', '--config=decoder_tiny', TINY,
                          '--config.batch_size', '--config.', '--noconfig.', '--config.=', '3', '-3', '--limit=-395',
                          '--tasks=', '--prompt', '--workdir=x', '--nodebug', '--v=1', '=', '--=', '--x=y', 'a=b'])


@settings(max_examples=300, deadline=None)
@given(st.lists(st.one_of(PIECES, st.text(max_size=12)), max_size=6))
def test_any_command_line_is_understood_or_refused_in_a_paragraph(argv):
  try:
    request = read(*argv)
  except ConfigError as e:
    assert len(str(e)) < 1500
    return
  assert request.help or request.command in command_line.COMMANDS


# --- Whole processes --------------------------------------------------------------------------------


@pytest.mark.parametrize('argv, code', [(['help'], 0), (['generate', '--help'], 0), (['--config=decoder_tyny'], 2),
                                        (['--config=decoder_tiny', '--config.model.num_heads', '5'], 2),
                                        (['generate', '--topology=v5e-4'], 2)], ids=lambda v: str(v))
def test_help_and_refusals_start_no_jax_and_end_with_the_right_code(argv, code, tmp_path):
  env = {**os.environ, 'PYTHONPROFILEIMPORTTIME': '1'}
  done = run(*argv, cwd=tmp_path, env=env)
  assert done.returncode == code, done.stderr
  imported = set(re.findall(r'\|\s+(\w+)\n', done.stderr))
  assert 'absl' in imported and not {'jax', 'flax', 'optax', 'numpy', 'grain', 'tensorflow_datasets'} & imported
  assert bool(done.stdout) == (code == 0) and ('ERROR: ' in done.stderr) == bool(code)
  assert not list(tmp_path.iterdir())


def test_main_py_can_be_called_from_anywhere_and_as_a_module(tmp_path):
  for script, argv in ((ROOT / 'main.py', ()), (None, ('-m', 't5like'))):
    done = run(*argv, 'prepare', '--config=configs/decoder_tiny.py', '--config.batch_size', '0', cwd=tmp_path,
               script=script, env={**os.environ, 'PYTHONPATH': str(ROOT)})
    assert done.returncode == 2 and 'batch_size=0: must be at least 1' in done.stderr, done.stderr
  assert 'python -m t5like train' in run('-m', 't5like', 'train', '-h', cwd=tmp_path, script=None,
                                         env={**os.environ, 'PYTHONPATH': str(ROOT)}).stdout


def test_a_missing_package_is_named(tmp_path):
  shutil.copy(ROOT / 'main.py', tmp_path)
  (tmp_path / 't5like').mkdir()
  (tmp_path / 't5like' / '__init__.py').touch()
  (tmp_path / 't5like' / '__main__.py').write_text('import no_such_package')
  done = run(cwd=tmp_path, script=tmp_path / 'main.py')
  assert done.returncode == 1 and 'pip install -e .' in done.stderr and 'Traceback' not in done.stderr
