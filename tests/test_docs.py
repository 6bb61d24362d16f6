"""Pages say what is so: those that programs write are current."""
import importlib.util

from tests.conftest import ROOT

DOCS = ROOT / 'docs'


def script(name):
  """The module docs/NAME.py."""
  spec = importlib.util.spec_from_file_location(f'docs_{name}', DOCS / f'{name}.py')
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


def test_objectives_and_their_pictures_are_up_to_date():
  found = script('objectives').files()
  for name, text in found.items():
    assert (DOCS / name).read_text(encoding='utf-8') == text, f'docs/{name}: run python docs/objectives.py'
  assert {f'pictures/{f.name}' for f in (DOCS / 'pictures').iterdir()} == set(found) - {'objectives.md'}
