"""What can be known before a document is tokenised or a device is touched is found before, by every command alike."""
import json
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest

from t5like import command_line, commands, config as config_lib, sharding
from t5like.config import base
from t5like.decoding import decode
from t5like.errors import CheckpointError, ConfigError, DataError, Failure
from t5like.prepared import prepare
from t5like.storage import workdir as workdir_lib
from t5like.training import build, loop, preconditions
from t5like.vocabulary import loading as vocabulary_lib
from tests import tiny
from tests.conftest import ROOT


def file_of(config, tmp_path):
  """A config file that gives this config."""
  path = tmp_path / 'mine.py'
  path.write_text('import ml_collections\nfrom t5like.config import base\n'
                  'def get_config():\n  c = base()\n  c.unlock()\n'
                  f'  c.update(ml_collections.ConfigDict({config.to_dict()!r}))\n  return c.lock()\n')
  return path


def wrong(tmp_path):
  """{name: (sections of a tiny config, flags, what must be said, kind of error)}: each knowable from the beginning."""
  (tmp_path / 'file').write_text('words')
  (tmp_path / 'not.model').write_text('words')
  (tmp_path / 'body.jsonl').write_text('{"body": "words"}\n')
  (tmp_path / 'dev.pdf').write_bytes(b'%PDF-1.7')
  (tmp_path / 'no_items.json').write_text('{"kind": "cloze", "before": "a", "answer": "b", "items": "nope.jsonl"}')
  (tmp_path / 'shots.json').write_text(
      '{"kind": "cloze", "before": "a", "answer": "b", "items": "two.jsonl", "shots": 9}')
  (tmp_path / 'two.jsonl').write_text('{"a": 1}\n{"a": 2}\n')
  (tmp_path / 'empty').mkdir()
  data = lambda **keys: dict(data=keys)
  return {
      'patterns': (dict(optimizer=dict(freeze=('nope',))), '', "optimizer.freeze has 'nope'", ConfigError),
      'parameters': (dict(params_expected=3), '', 'params_expected=3', ConfigError),
      'share': (data(mixture=dict(a=dict(weight=1), b=dict(weight=1e-9))), '', 'data.mixture', ConfigError),
      'long prompt': (dict(sample=dict(prompts=('x' * 99,)), objective=dict(name='prefix_lm')), '',
                      'sample.prompts', ConfigError),
      'mark': (dict(sample=dict(prompts=('<extra_id_7>',)), objective=dict(name='span_corruption'),
                    vocabulary=dict(sentinels=4), model=dict(vocab_size=0)), '', 'extra_id_7', ConfigError),
      'long mark': (dict(sample=dict(prompts=(f'<extra_id_{"7" * 5000}>',)), objective=dict(name='span_corruption'),
                         vocabulary=dict(sentinels=4), model=dict(vocab_size=0)), '', 'extra_id_777', ConfigError),
      'vocabulary file': (dict(vocabulary=dict(name='sentencepiece', path=str(tmp_path / 'no.model'))), '',
                          'vocabulary.path', ConfigError),
      'no vocabulary': (dict(vocabulary=dict(name='sentencepiece', path=str(tmp_path / 'not.model'))), '',
                        'not.model', DataError),
      'tracker': (dict(log=dict(trackers=('mlflow',))), '', 'log.trackers', ConfigError),
      'items': (dict(evaluate=dict(tasks=(str(tmp_path / 'no_items.json'),))), '', 'nope.jsonl', DataError),
      'shots': (dict(evaluate=dict(tasks=(str(tmp_path / 'shots.json'),), shots=9)), '', 'holds', ConfigError),
      'glob': (data(source=f'text:{tmp_path}/no/*.txt'), '', 'no file matches', DataError),
      'field': (data(source=f'jsonl:{tmp_path}/body.jsonl'), '', "data.field='text'", DataError),
      'kind of file': (data(validation=f'text:{tmp_path}/dev.pdf'), '', 'dev.pdf', DataError),
      'validation': (data(validation=f'{tmp_path}/no/*.jsonl'), '', 'data.validation', DataError),
      'tfds': (data(source='tfds:lm1b', validation='test', tfds_dir=str(tmp_path / 'empty')), '', 'no prepared dataset',
               DataError),
      'directory': (data(directory=str(tmp_path / 'file' / 'x')), '', 'data.directory', DataError),
      'variable': (data(directory='$T5LIKE_NONE/x'), '', 'T5LIKE_NONE', ConfigError),
      'no weights': (dict(init_from=str(tmp_path / 'nowhere')), '', 'init_from', ConfigError),
      'bad weights': (dict(init_from=str(tmp_path / 'empty')), '', 'config.json', Failure),
      'store of weights': (dict(init_from='gs://bucket/run'), '', "pip install -e '.[gcs]'", CheckpointError),
      'kind of store': (dict(init_from='foo://bucket/run'), '', 'foo://', ConfigError),
      'workdir': ({}, str(tmp_path / 'file' / 'run'), '--workdir', CheckpointError),
      'workdir on gs': ({}, 'gs://bucket/run', "pip install -e '.[gcs]'", CheckpointError),
      'workdir nowhere': ({}, '/proc/no/run', '--workdir', CheckpointError),
      'long workdir': ({}, 'x' * 5000, '--workdir', Failure),
  }


NAMES = ['patterns', 'parameters', 'share', 'long prompt', 'mark', 'long mark', 'vocabulary file', 'no vocabulary',
         'tracker', 'items', 'shots', 'glob', 'field', 'kind of file', 'validation', 'tfds', 'directory', 'variable',
         'no weights', 'bad weights', 'store of weights', 'kind of store', 'workdir', 'workdir on gs',
         'workdir nowhere', 'long workdir']
# What another machine may have, is a note where nothing is read here.
OF_THE_MACHINE = {'vocabulary file', 'tracker', 'items', 'shots', 'glob', 'field', 'kind of file',
                  'validation', 'tfds', 'directory', 'variable', 'no weights', 'bad weights', 'store of weights',
                  'kind of store'}


@pytest.fixture
def nothing_happens(monkeypatch):
  """Fails if a document is tokenised or a device is touched."""
  import jax

  def never(*args, **kwargs):
    raise AssertionError('too late')
  for package in ('gcsfs', 'mlflow'):  # as if they were not installed
    monkeypatch.setitem(sys.modules, package, None)
  for kind in (vocabulary_lib.Bytes, vocabulary_lib.SentencePiece, vocabulary_lib.Characters):
    monkeypatch.setattr(kind, 'encode_batch', lambda self, texts: never() if len(texts) > 1 else [
        np.zeros(len(text), np.int32) for text in texts])
  for module, name in ((jax, 'devices'), (jax, 'local_devices'), (prepare, '_make'), (vocabulary_lib, 'train')):
    monkeypatch.setattr(module, name, never)


def test_every_case_is_listed(tmp_path):
  assert list(wrong(tmp_path)) == NAMES and OF_THE_MACHINE < set(NAMES)


@pytest.mark.parametrize('name', NAMES)
@pytest.mark.parametrize('command', ['train', 'prepare', 'inspect'])
def test_commands_that_read_data_refuse(tmp_path, monkeypatch, nothing_happens, name, command):
  sections, workdir, said, kind = wrong(tmp_path)[name]
  monkeypatch.chdir(tmp_path / 'empty')
  c = tiny.config(tmp_path, **sections)
  flags = [f'--workdir={workdir}'] if workdir else []
  with pytest.raises(kind) as e:
    commands.run(command_line.read([command, f'--config={file_of(c, tmp_path)}', *flags]))
  assert said in str(e.value) and '\n' not in str(e.value) and len(str(e.value)) < 1500
  assert not list((tmp_path / 'empty').iterdir()) and not (tmp_path / 'prepared').exists()


@pytest.mark.parametrize('name', NAMES)
def test_looking_at_a_config_finds_the_same(tmp_path, monkeypatch, nothing_happens, name, capsys):
  """--print_config and preflight refuse what is wrong with the config, and note what this machine lacks."""
  sections, workdir, said, kind = wrong(tmp_path)[name]
  monkeypatch.chdir(tmp_path / 'empty')
  c = tiny.config(tmp_path, **sections)
  check = lambda: preconditions.check(c, workdir, here=False)
  if name in OF_THE_MACHINE:
    assert any(said in note for note in check())
    commands.run(command_line.read(['train', f'--config={file_of(c, tmp_path)}', '--print_config']))
    assert said in capsys.readouterr().err
  else:
    with pytest.raises(kind) as e:
      check()
    assert said in str(e.value)
  assert not list((tmp_path / 'empty').iterdir())


def test_a_right_config_passes_and_nothing_is_made(tmp_path, nothing_happens):
  c = tiny.config(tmp_path)
  for here in (True, False):
    assert preconditions.check(c, str(tmp_path / 'run'), here) == []
  assert not (tmp_path / 'run').exists()
  preconditions.check(c, str(tmp_path / 'run'), create=True)
  assert (tmp_path / 'run').is_dir() and not list((tmp_path / 'run').iterdir())


def test_shapes_need_no_device(tmp_path):
  """--print_config on a machine whose only platform does not exist."""
  done = subprocess.run([sys.executable, ROOT / 'main.py', '--config=decoder_tiny', '--print_config',
                         '--config.model.vocab_size=2048', "--config.optimizer.freeze=('embed',)"], cwd=tmp_path,
                        capture_output=True, text=True,
                        env={'JAX_PLATFORMS': 'nonsense', 'PATH': '', 'HOME': str(tmp_path)})
  assert done.returncode == 0 and '2,164,416' in done.stdout, done.stderr


def test_what_is_prepared_needs_no_source(tmp_path):
  c = tiny.config(tmp_path)
  prepare.prepare(c, say=lambda line: None)
  (tmp_path / 'text.jsonl').unlink()
  assert preconditions.check(c) == []


def test_a_run_that_resumes_needs_no_weights_to_begin_with(tmp_path):
  c = tiny.config(tmp_path, init_from=str(tmp_path / 'gone'))
  with pytest.raises(ConfigError, match='init_from'):
    preconditions.check(c, str(tmp_path / 'run'))
  workdir_lib.write_config(tmp_path / 'run', c)
  assert preconditions.check(c, str(tmp_path / 'run')) == []


def test_weights_of_another_model_are_refused(tmp_path):
  other = tiny.config(tmp_path, model=dict(d_model=64))
  workdir_lib.write_config(tmp_path / 'other', other)
  (tmp_path / 'other' / 'checkpoints' / '7').mkdir(parents=True)
  for path in ('other', 'other/checkpoints/7'):
    with pytest.raises(ConfigError, match='model.d_model is 64 there, 32 here'):
      preconditions.check(tiny.config(tmp_path, init_from=str(tmp_path / path)))
  with pytest.raises(Failure, match='checkpoints/8.*no such folder'):
    preconditions.check(tiny.config(tmp_path, init_from=str(tmp_path / 'other/checkpoints/8')))
  same = tiny.config(tmp_path, model=dict(d_model=64), init_from=str(tmp_path / 'other'))
  assert preconditions.check(same) == []


def test_weights_of_another_vocabulary_are_refused_where_ours_is_known(tmp_path):
  other = tiny.config(tmp_path, vocabulary=dict(name='characters', sentinels=0), model=dict(vocab_size=264))
  workdir_lib.write_config(tmp_path / 'other', other)
  (tmp_path / 'other' / 'checkpoints' / '7').mkdir(parents=True)
  vocabulary_lib.Characters('abc').save(tmp_path / 'other' / 'vocabulary')
  same = tiny.config(tmp_path, init_from=str(tmp_path / 'other'))
  with pytest.raises(ConfigError, match='has learned another vocabulary'):
    preconditions.check(same)
  vocabulary = dict(name='characters', sentinels=0, path=str(tmp_path / 'other' / 'vocabulary'))
  assert preconditions.check(tiny.config(tmp_path, init_from=str(tmp_path / 'other'), vocabulary=vocabulary)) == []


@pytest.mark.parametrize('bad', ['a' * 5000, 'x/' + 'a' * 300, 'a\0b', '/dev/null', '/'], ids=lambda v: v[:9])
@pytest.mark.parametrize('key', ['data.directory', 'data.cache', 'data.tfds_dir', 'vocabulary.path', 'init_from',
                                 'data.source=text', 'data.source=jsonl', 'data.source=parquet', 'data.source=tfds',
                                 'data.validation=text', 'evaluate.tasks'])
def test_paths_that_nothing_can_have_get_a_paragraph(tmp_path, monkeypatch, key, bad):
  monkeypatch.chdir(tmp_path)
  name, equals, kind = key.partition('=')
  section, _, last = name.rpartition('.')
  value = (f'{bad}.json',) if name == 'evaluate.tasks' else f'{kind}:{bad}' if equals else bad
  try:
    c = tiny.config(tmp_path, **({section: {last: value}} if section else {last: value}))
    if key == 'data.tfds_dir':
      c.unlock()
      c.data.update(source='tfds:lm1b', validation='test')
    preconditions.check(c)
  except Failure as error:
    assert len(str(error)) < 1500


def test_two_tasks_of_one_name_are_refused(tmp_path):
  (tmp_path / 'brackets.json').write_text('{"kind": "cloze", "before": "a", "answer": "b", "items": "two.jsonl"}')
  (tmp_path / 'two.jsonl').write_text('{"a": 1}\n')
  c = tiny.config(tmp_path, evaluate=dict(tasks=('brackets', str(tmp_path / 'brackets.json'))))
  with pytest.raises(ConfigError, match="two tasks are called 'brackets'"):
    preconditions.check(c)


def test_fields_of_templates_are_looked_for_in_text_files_too(tmp_path, nothing_happens):
  (tmp_path / 'a.txt').write_text('words')
  c = tiny.config(tmp_path, data=dict(source=f'text:{tmp_path}/a.txt', inputs='{title}', targets='{text}',
                                      packing='best_fit'), objective=dict(name='seq2seq'))
  with pytest.raises(DataError, match='title'):
    preconditions.check(c)


@pytest.mark.parametrize('command', ['generate', 'evaluate', 'export', 'replay'])
@pytest.mark.parametrize('state, said', [('nothing', 'holds no run'), ('no checkpoint', 'no checkpoint yet'),
                                         ('damaged', 'config')])
def test_commands_of_runs_see_first_whether_there_is_one(tmp_path, nothing_happens, command, state, said):
  run = tmp_path / 'run'
  if state == 'no checkpoint':
    workdir_lib.write_config(run, tiny.config(tmp_path))
  if state == 'damaged':
    run.mkdir()
    (run / 'config.json').write_text('[')
  flags = ['--out=x'] if command == 'export' else []
  with pytest.raises(Failure, match=said):
    commands.run(command_line.read([command, f'--workdir={run}', *flags]))
  if command in ('generate', 'evaluate'):
    (run / 'checkpoints' / '5').mkdir(parents=True)
    workdir_lib.write_config(run, tiny.config(tmp_path))
    with pytest.raises(CheckpointError, match=r'no checkpoint of 6 yet; it has \[5\]'):
      commands.run(command_line.read([command, f'--workdir={run}', '--step=6']))


def test_export_sees_first_whether_it_can_be_written(tmp_path, nothing_happens):
  run = tmp_path / 'run'
  (run / 'checkpoints' / '5').mkdir(parents=True)
  workdir_lib.write_config(run, tiny.config(tmp_path, model=dict(activation='bilinear')))
  (tmp_path / 'full').mkdir()
  (tmp_path / 'full' / 'x').touch()
  for out, said in (('full', 'holds files'), ('full/x', 'holds files'), ('new', 'no Hugging Face family')):
    with pytest.raises(ConfigError, match=said):
      commands.run(command_line.read(['export', f'--workdir={run}', f'--out={tmp_path}/{out}']))
  assert not (tmp_path / 'new').exists()


def test_import_sees_first_whether_it_can_be_written(tmp_path, nothing_happens):
  (tmp_path / 'file').touch()
  with pytest.raises(CheckpointError, match='--workdir'):
    commands.run(command_line.read(['import', f'--folder={tmp_path}', f'--workdir={tmp_path}/file/run']))


@pytest.mark.parametrize('argv, said', [('--row=16', '--row=16'), ('--batch=nope', '--batch=nope')])
def test_inspect_sees_its_flags_first(tmp_path, nothing_happens, argv, said):
  path = file_of(tiny.config(tmp_path), tmp_path)
  with pytest.raises(Failure, match=said):
    commands.run(command_line.read(['inspect', f'--config={path}', argv]))


def test_profile_steps_are_read_first(tmp_path, nothing_happens):
  path = file_of(tiny.config(tmp_path), tmp_path)
  with pytest.raises(ConfigError, match='--profile_steps=9:3'):
    commands.run(command_line.read(['train', f'--config={path}', '--profile_steps=9:3', f'--workdir={tmp_path}/run']))


def test_a_batch_that_the_devices_cannot_divide_is_refused_before_data_is_prepared(tmp_path):
  from t5like.training import loop
  c = tiny.config(tmp_path, batch_size=12)  # 8 devices
  with pytest.raises(ConfigError, match='batch_size=12 is not divisible'):
    loop.train(c, str(tmp_path / 'run'), 'run')
  assert not (tmp_path / 'prepared').exists()


def test_options_that_the_compiler_does_not_know_are_refused_before_data_is_prepared(tmp_path):
  c = tiny.config(tmp_path, compile=dict(options={'xla_nonsense': '1'}))
  with pytest.raises(ConfigError, match="compile.options=.*xla_nonsense.*the compiler for cpu"):
    loop.train(c, tmp_path / 'run', 'test')
  assert not (tmp_path / 'prepared').exists()
  known = tiny.config(tmp_path, compile=dict(options={'xla_cpu_enable_fast_math': False}))
  build.check_compile_options(known, jax.devices()[0])


@pytest.mark.parametrize('prompt, sentinels, fine', [
    ('a <extra_id_3>', 4, True), ('a <extra_id_4>', 4, False), ('<mask> b', 1, True), ('<mask> b', 0, False),
    ('nothing', 0, True)])
def test_marks_that_no_vocabulary_of_the_text_will_have(tmp_path, prompt, sentinels, fine):
  """Of a vocabulary that is still to be made, the number of sentinels is known."""
  c = tiny.config(tmp_path, objective=dict(name='prefix_lm'), sample=dict(prompts=(prompt,)), model=dict(vocab_size=0),
                  vocabulary=dict(name='characters', sentinels=sentinels))
  if fine:
    assert preconditions.check(c) == []
    return
  with pytest.raises(ConfigError, match='sample.prompts has .*vocabulary.sentinels'):
    preconditions.check(c)


def test_prompts_that_only_the_text_shows_to_be_wrong_are_refused_before_training(tmp_path):
  """A vocabulary of characters, and a prompt that is too long once it is tokenised."""
  from t5like.training import loop
  prompt = 'the a of to in is it for on as with that'
  c = tiny.config(tmp_path, objective=dict(name='prefix_lm'), sample=dict(prompts=(prompt,)),
                  vocabulary=dict(name='characters', sentinels=0), model=dict(vocab_size=0))
  with pytest.raises(ConfigError, match='sample.prompts=.*leaves no room'):
    loop.train(c, str(tmp_path / 'run'), 'run')
  assert not (tmp_path / 'run' / 'metrics.jsonl').exists()


def test_prompts_are_judged_as_decoding_judges_them():
  vocabulary = vocabulary_lib.Bytes(4)
  for style, prompt, wrong_by in (('prefix', 'x' * 6, 0), ('prefix', 'x' * 7, 1), ('pair', 'x' * 5, 0),
                                  ('pair', 'x' * 6, 1), ('document', 'x' * 99, 0), ('fill', 'xxxx<mask>', 0),
                                  ('fill', 'x' * 8 + '<mask>', 1), ('fill_row', 'x' * 6 + '<mask>', 1)):
    try:
      decode.check_prompts(vocabulary, [prompt], style, 8)
      assert not wrong_by, (style, prompt)
    except decode.PromptError:
      assert wrong_by, (style, prompt)


def test_rows_per_device():
  class Mesh:
    shape = dict.fromkeys(sharding.AXES, 1) | dict(data=2, fsdp=2)
  c = base()
  c.update(batch_size=16, microbatches=2)
  assert build.rows_per_device(c, Mesh) == 2
  c.batch_size = 10
  with pytest.raises(ConfigError, match='try 8'):
    build.rows_per_device(c, Mesh)


def test_json_of_preflight_stays_json(tmp_path, monkeypatch, capsys):
  from t5like.preflight import prediction
  monkeypatch.setattr(prediction, 'predict', lambda config, topology, full: dict(fits=True))
  c = tiny.config(tmp_path, data=dict(source=f'text:{tmp_path}/no/*.txt'))
  commands.run(command_line.read(['preflight', f'--config={file_of(c, tmp_path)}', '--topology=v5e-4', '--json']))
  shown = capsys.readouterr()
  assert json.loads(shown.out) == dict(fits=True) and 'no file matches' in shown.err


def test_the_api_checks_too(tmp_path):
  import t5like
  c = tiny.config(tmp_path, evaluate=dict(tasks=('brackets',)))
  assert config_lib.validate(c) is None
  with pytest.raises(CheckpointError, match='--workdir'):
    t5like.train(c, pathlib.Path('/proc/no/run'))
