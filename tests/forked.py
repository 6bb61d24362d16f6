"""Runs Python programs in processes forked from one that has imported JAX and other packages, but not t5like.

Where a test needs a process only for another copy of t5like, this is a fork instead of seconds of imports. JAX is
imported and not used before a fork: its threads would not survive it.

    python -m tests.forked    # reads a JSON object a line, writes an exit code a line
"""
import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
SECONDS = 300  # for a program


class Server:
  """The process from which programs are forked; it starts with the first and ends with this process."""

  def __init__(self) -> None:
    self._process: subprocess.Popen | None = None

  def run(self, folder: pathlib.Path, program: str, arguments: tuple[str, ...]) -> subprocess.CompletedProcess:
    """What `python -c PROGRAM ARGUMENTS` does in a folder, whose modules come before those of the repository."""
    if self._process is None:
      self._process = subprocess.Popen(
          [sys.executable, '-m', 'tests.forked'], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    with tempfile.TemporaryDirectory() as outputs:
      files = [os.path.join(outputs, name) for name in ('stdout', 'stderr')]
      request = dict(folder=str(folder), program=program, arguments=arguments, files=files)
      self._process.stdin.write(json.dumps(request) + '\n')
      self._process.stdin.flush()
      code = int(self._process.stdout.readline())
      stdout, stderr = (pathlib.Path(file).read_text(errors='replace') for file in files)
    return subprocess.CompletedProcess(program, code, stdout, stderr)


def be_a_program(folder: str, program: str, arguments: list[str], files: list[str]) -> None:
  """In a child: never returns."""
  code = 1
  for number, file in zip((1, 2), files):
    os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
  sys.stdout = open(1, 'w', closefd=False)
  sys.stderr = open(2, 'w', buffering=1, closefd=False)
  try:
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.chdir(folder)
    os.environ.update(PYTHONPATH=f'{folder}{os.pathsep}{ROOT}', PYTHONDONTWRITEBYTECODE='1')
    sys.dont_write_bytecode = True
    sys.path[:0] = [folder, str(ROOT)]
    sys.argv = ['-c', *arguments]
    namespace = sys.modules['__main__'].__dict__
    namespace.update(__name__='__main__', __spec__=None)
    exec(compile(program, '<string>', 'exec'), namespace)
    code = 0
  except SystemExit as end:
    code = end.code if isinstance(end.code, int) else int(end.code is not None)
  except BaseException:
    sys.excepthook(*sys.exc_info())
  finally:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def ended(pid: int) -> int:
  """The exit code of a child, which is killed where it takes too long."""
  end = time.monotonic() + SECONDS
  while True:
    done, status = os.waitpid(pid, os.WNOHANG)
    if done:
      return os.waitstatus_to_exitcode(status)
    if time.monotonic() > end:
      os.kill(pid, signal.SIGKILL)
    time.sleep(0.02)


def load() -> None:
  """Imports the packages that t5like needs for training."""
  import array_record.python.array_record_module  # noqa: F401
  import flax  # noqa: F401
  import grain  # noqa: F401
  import jax  # noqa: F401
  import ml_collections  # noqa: F401
  import optax  # noqa: F401
  import rich.console  # noqa: F401
  import zstandard  # noqa: F401
  from etils import epath  # noqa: F401
  from orbax.checkpoint import v1  # noqa: F401


def main() -> None:
  load()
  for line in sys.stdin:
    request = json.loads(line)
    pid = os.fork()
    if not pid:
      be_a_program(**request)
    print(ended(pid), flush=True)


if __name__ == '__main__':
  main()
