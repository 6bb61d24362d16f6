"""What is installed: the version, the console script, and nothing but the package `t5like`."""
import importlib
import os
import re
import subprocess
import sys
import tomllib

import t5like
from t5like import command_line
from tests.conftest import ROOT

METADATA = tomllib.loads((ROOT / 'pyproject.toml').read_text())


def test_one_version():
  assert METADATA['project']['dynamic'] == ['version']
  assert METADATA['tool']['setuptools']['dynamic']['version'] == {'attr': 't5like.__version__'}
  assert command_line.read(['--version']).help == f't5like {t5like.__version__}'
  newest = re.search(r'^## (\S+)', (ROOT / 'CHANGELOG.md').read_text(), re.M)[1]
  assert newest == t5like.__version__


def test_the_console_script_does_what_main_does():
  module, _, function = METADATA['project']['scripts']['t5like'].partition(':')
  assert f'from {module} import {function}' in (ROOT / 'main.py').read_text()
  assert callable(getattr(importlib.import_module(module), function))


def test_only_one_package_is_installed():
  assert METADATA['tool']['setuptools']['packages']['find']['include'] == ['t5like', 't5like.*']


def test_every_file_that_is_no_module_is_installed():
  declared = METADATA['tool']['setuptools']['package-data']
  patterns = [f'{package.replace(".", "/")}/{pattern}' for package, some in declared.items() for pattern in some]
  files = [f for f in (ROOT / 't5like').rglob('*') if f.is_file() and f.suffix not in ('.py', '.pyc')]
  missing = [f for f in files if not any(f.relative_to(ROOT).match(pattern) for pattern in patterns)]
  assert files and not missing


def test_setup_py_has_no_metadata_of_its_own():
  assert 'setup()' in (ROOT / 'setup.py').read_text()


def test_another_package_of_the_name_configs_does_not_matter(tmp_path):
  """Every research repository has a folder configs/ with a base.py."""
  (tmp_path / 'configs').mkdir()
  (tmp_path / 'configs' / '__init__.py').write_text('')
  (tmp_path / 'configs' / 'base.py').write_text('raise RuntimeError("another base")')
  code = ('import configs, sys; from t5like import config; before = list(sys.path); '
          f"c = config.load({str(ROOT / 'configs' / 'decoder_tiny.py')!r}); "
          'print(c.model.num_layers, before == sys.path)')
  done = subprocess.run([sys.executable, '-c', code], cwd=tmp_path, capture_output=True, text=True,
                        env=dict(os.environ, PYTHONPATH=str(ROOT)))
  assert done.stdout.split()[1:] == ['True'], done.stderr


def test_the_older_import_of_base_works_here_and_is_explained_elsewhere(tmp_path):
  text = 'from configs.base import base\n\ndef get_config():\n  c = base()\n  c.stop.tokens = "1M"\n  return c\n'
  (tmp_path / 'old.py').write_text(text)
  from configs.base import base
  from t5like import config
  assert base is config.base
  code = f"from t5like import config; config.load({str(tmp_path / 'old.py')!r})"
  done = subprocess.run([sys.executable, '-c', f'import sys; sys.path.append({str(ROOT)!r})\n{code}'], cwd=tmp_path,
                        capture_output=True, text=True)
  assert done.returncode == 0, done.stderr
  (tmp_path / 'site').mkdir()
  (tmp_path / 'site' / 't5like').symlink_to(ROOT / 't5like')
  done = subprocess.run([sys.executable, '-c', f'import sys; sys.path.append({str(tmp_path / "site")!r})\n{code}'],
                        cwd=tmp_path, capture_output=True, text=True, env=dict(os.environ, PYTHONPATH=''))
  assert 'ConfigError' in done.stderr and 'from t5like.config import base, smoke' in done.stderr
