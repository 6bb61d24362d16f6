"""~ and $VARIABLES in every path: keys of the config, flags, globs; and no folder that is named after them."""
import os
import pathlib

import pytest

from t5like import command_line
from t5like.config import base, task_files
from t5like.errors import ConfigError, DataError
from t5like.files import mirror, paths
from t5like.prepared import datasets, prepare
from t5like.sources import registry
from tests import tiny

QUIET = dict(say=lambda line: None)
WRITTEN = ['~/x', '$T5LIKE_TEST/x', '${T5LIKE_TEST}/x']


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
  monkeypatch.setenv('HOME', str(tmp_path))
  monkeypatch.setenv('T5LIKE_TEST', str(tmp_path))
  (tmp_path / 'elsewhere').mkdir()
  monkeypatch.chdir(tmp_path / 'elsewhere')
  return tmp_path


@pytest.mark.parametrize('written', WRITTEN)
def test_expand(home, written):
  assert paths.expand(written) == paths.check('--workdir', written) == f'{home}/x'
  assert paths.expand('gs://b/~x/$T5LIKE_TEST') == f'gs://b/~x/{home}'
  assert paths.expand('a~b/$') == 'a~b/$'


@pytest.mark.parametrize('written', ['$T5LIKE_NONE/x', '${T5LIKE_NONE}/x', '~no_such_user/x', 'gs://$T5LIKE_NONE/x'])
def test_what_stands_for_nothing_is_refused(written):
  with pytest.raises(ConfigError, match='--workdir=.*(T5LIKE_NONE|no_such_user)'):
    paths.check('--workdir', written)


def test_a_file_that_is_really_called_so_is_itself(home):
  pathlib.Path('$T5LIKE_NONE').touch()
  assert paths.check('--input', '$T5LIKE_NONE') == '$T5LIKE_NONE'


PATHS = [name for name, flag in command_line.FLAGS.items() if flag.value in ('FILE', 'FOLDER')]


@pytest.mark.parametrize('name', PATHS)
@pytest.mark.parametrize('written', WRITTEN)
def test_flags(home, name, written):
  command = next(c for c, entry in command_line.COMMANDS.items() if name in entry.flags)
  request = command_line.read([command, f'--{name}={written}'])
  assert getattr(request.flags, name) == f'{home}/x'
  with pytest.raises(ConfigError, match='T5LIKE_NONE'):
    command_line.read([command, f'--{name}=$T5LIKE_NONE/x'])


@pytest.mark.parametrize('written', WRITTEN)
def test_folders_of_datasets(home, written):
  c = tiny.config(home, data=dict(directory=written))
  assert datasets.folder(c).parent == home / 'x'
  c.data.update(directory='memory://t5like-paths', cache=written)
  assert datasets.folder(c).parent == home / 'x'
  c.data.update(directory='memory://$T5LIKE_TEST/x')
  assert datasets.remote(c).startswith(f'memory://{home}/x/')


@pytest.mark.parametrize('written', WRITTEN)
def test_a_dataset_is_prepared_there_and_no_folder_is_called_so(home, written):
  c = tiny.config(home, data=dict(directory=written, source=f'jsonl:{written[:-2]}/text.jsonl'))
  folder = prepare.prepare(c, **QUIET)
  assert (home / 'x' / folder.name / 'manifest.json').exists()
  assert not os.listdir('.')


def test_a_mixture_shares_a_vocabulary_there(home):
  source = tiny.write_text(home / 'b.jsonl', seed=1)
  c = tiny.config(home, data=dict(directory='~/x', mixture=dict(a=dict(), b=dict(data=dict(source=source)))),
                  vocabulary=dict(name='characters'))
  for folder in prepare.prepare(c, **QUIET):
    assert folder.parent == home / 'x'
  assert [p for p in (home / 'x').iterdir() if p.name.startswith('vocabulary-')] and not os.listdir('.')
  prepare.prepare(c, **QUIET)


@pytest.mark.parametrize('written', ['~', '$T5LIKE_TEST', '${T5LIKE_TEST}'])
@pytest.mark.parametrize('kind', ['text', 'jsonl'])
def test_globs(home, written, kind):
  (home / 'deep').mkdir()
  (home / 'deep' / 'a.txt').write_text('{"text": "words"}')
  c = base()
  c.data.update(source=f'{kind}:{written}/**/*.txt', validation=f'{written}/deep/a.txt')
  assert registry.open_source(c).num_items == registry.open_validation(c).num_items == 1
  c.data.source = f'{kind}:{written}/no/*.txt'
  with pytest.raises(DataError, match=f'no file matches {home}/no'):
    registry.open_source(c)


@pytest.mark.parametrize('written', WRITTEN)
def test_vocabulary_files(home, written):
  (home / 'x').write_text('content')
  assert mirror.is_file(written) and mirror.read_bytes(written) == b'content'


@pytest.mark.parametrize('written', WRITTEN)
def test_task_files(home, written):
  (home / 'x.json').write_text('{"kind": "perplexity", "text": "{text}"}')
  assert task_files.find(f'{written}.json').name == 'x'


@pytest.mark.parametrize('name', ['a' * 5000, 'a' * 5000 + '.json', 'a\0.json', '$T5LIKE_NONE/x.json', ''])
def test_tasks_that_no_file_can_be(name):
  with pytest.raises(ConfigError, match='there is no such') as e:
    task_files.find(name)
  assert len(str(e.value)) < 800
