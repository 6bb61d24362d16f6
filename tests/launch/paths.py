"""Where the launchers are, and texts recorded of them: RECORD=1 pytest tests/launch writes these anew."""
import os
import pathlib
import subprocess
import sys

HERE = pathlib.Path(__file__).parent
ROOT = HERE.parent.parent
LAUNCH = ROOT / 'launch'


def run(*command, **variables):
  """A finished process, run in the repository's root with output captured; variables None are taken away."""
  env = {k: v for k, v in {**os.environ, **variables}.items() if v is not None}
  return subprocess.run([str(c) for c in command], cwd=ROOT, env=env, capture_output=True, text=True, timeout=120)


def python(script, *args, **variables):
  return run(sys.executable, LAUNCH / script, *args, **variables)


def recorded(name, text):
  """Asserts that a dry run prints what stands in recorded/NAME."""
  text = text.replace(sys.executable, 'PYTHON').replace(str(ROOT), 'ROOT')
  file = HERE / 'recorded' / name
  if os.environ.get('RECORD'):
    file.parent.mkdir(exist_ok=True)
    file.write_text(text)
  assert text == file.read_text(), f'{file} has another text; if the new one is right, RECORD=1 pytest {HERE}'
