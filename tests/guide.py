"""The changes that docs/adding.md shows, made to a copy of t5like."""
import re
import shutil
import subprocess
from collections.abc import Collection, Iterator
from pathlib import Path

from tests import forked
from tests.conftest import ROOT

GUIDE = ROOT / 'docs' / 'adding.md'


def hunks(text: str) -> Iterator[tuple[str, str, str]]:
  """(file, the lines that are there, the lines that stand in their place) of all diffs in a text."""
  for block in re.findall(r'^```diff\n(.*?)^```', text, re.M | re.S):
    for part in re.split(r'^--- ', block, flags=re.M)[1:]:
      file, body = part.split('\n', 1)
      for hunk in re.split(r'^@@\n', body, flags=re.M):
        lines = hunk.splitlines()
        old, new = ('\n'.join(line[1:] for line in lines if line[:1] != sign) + '\n' for sign in '+-')
        yield file, old, new


def section(title: str) -> str:
  """The text of one section of the guide."""
  return re.search(rf'^## {title}\n(.*?)(?=^## |\Z)', GUIDE.read_text(encoding='utf-8'), re.M | re.S)[1]


def files(title: str) -> list[str]:
  """The files that a section changes, in its order."""
  return list(dict.fromkeys(file for file, _, _ in hunks(section(title))))


def changed(folder: Path, title: str, without: Collection[str] = (), without_lines: str = '') -> Path:
  """Copies t5like into a folder and makes the changes of a section there.

  Args:
    folder: an empty one.
    title: of the section.
    without: files whose changes are left out.
    without_lines: hunks that add this text are left out.
  """
  for name in ('t5like', 'configs'):
    shutil.copytree(ROOT / name, folder / name)
  left_out = 0
  for file, old, new in hunks(section(title)):
    if file in without or (without_lines and without_lines in new):
      left_out += 1
      continue
    source = (folder / file).read_text(encoding='utf-8')
    assert source.count(old) == 1, f'{file} has not, or not once:\n{old}'
    (folder / file).write_text(source.replace(old, new), encoding='utf-8')
  assert bool(left_out) == bool(without or without_lines)
  return folder


_server = forked.Server()


def run(folder: Path, program: str, *arguments: str) -> subprocess.CompletedProcess:
  """Runs Python source in a process that imports t5like from a folder."""
  return _server.run(folder, program, arguments)
