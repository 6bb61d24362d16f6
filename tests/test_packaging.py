"""What is installed: the version, the console script, and nothing but the package `t5like`."""
import importlib
import re
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
