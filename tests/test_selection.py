"""Which files of tests pytest imports for -m, and that no file with a selected test is left out."""
import ast
import re

import pytest

from tests import conftest

DEFAULT = 'not slow and not parity and not beam and not tpu and not harness and not browser and not notebook'
MARKERS = {*conftest.FOLDERS_OF_MARKERS, *conftest.MARKERS_OF_FILES.values()}


def files():
  """{path below the root: source} of all files of tests."""
  return {path.relative_to(conftest.ROOT).as_posix(): path.read_text(encoding='utf-8')
          for path in sorted((conftest.ROOT / 'tests').rglob('test_*.py'))}


def module_markers(source):
  """The markers that `pytestmark` of a file gives all of its tests."""
  for node in ast.parse(source).body:
    if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == 'pytestmark':
      return set(re.findall(r'pytest\.mark\.(\w+)', ast.unparse(node.value)))
  return set()


def test_folders_of_a_marker_have_it_and_no_other_file_does():
  for file, source in files().items():
    folder = file.split('/')[1]
    used = set(re.findall(r'mark\.(\w+)', source)) & MARKERS
    if file == 'tests/test_selection.py':
      continue
    if folder in conftest.FOLDERS_OF_MARKERS:
      assert used == {folder} <= module_markers(source), file
    else:
      assert used == {conftest.MARKERS_OF_FILES[file]} if file in conftest.MARKERS_OF_FILES else used == set(), file
  assert set(conftest.MARKERS_OF_FILES) <= set(files())


@pytest.mark.parametrize('file, expression, imported', [
    ('tests/training/test_train.py', '', True),
    ('tests/training/test_train.py', DEFAULT, True),
    ('tests/training/test_train.py', 'slow', True),
    ('tests/training/test_train.py', 'slow and not tpu', True),
    ('tests/training/test_train.py', 'parity', False),
    ('tests/training/test_train.py', 'tpu and not slow', False),
    ('tests/training/test_train.py', 'slow and tpu', False),
    ('tests/observe/test_trackers.py', DEFAULT, True),
    ('tests/observe/test_trackers.py', 'trackers', True),
    ('tests/observe/test_trackers.py', 'trackers and slow', True),
    ('tests/parity/test_live.py', '', True),
    ('tests/parity/test_live.py', DEFAULT, False),
    ('tests/parity/test_live.py', 'parity', True),
    ('tests/parity/test_live.py', 'parity or harness', True),
    ('tests/parity/test_live.py', 'slow', True),
    ('tests/parity/test_live.py', 'tpu', False),
    ('tests/parity/test_live.py', 'parity and (', True)])
def test_files_without_a_selected_test_are_not_imported(file, expression, imported):
  assert conftest.may_be_selected(file, expression) == imported


def test_pytest_never_imports_a_package_because_it_looks_for_fixtures():
  package = conftest.Package('a_package_that_nobody_has')
  assert not hasattr(package, '__pytest_wrapped__')
  with pytest.raises(ModuleNotFoundError):
    package.anything  # noqa: B018
