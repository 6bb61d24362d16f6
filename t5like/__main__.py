"""`python main.py`, `python -m t5like`: reads the command line, runs the command, ends with a code."""
import contextlib
import os
import pathlib
import signal
import sys
import traceback
from collections.abc import Sequence
from typing import Any

from t5like import command_line, hardware
from t5like.errors import Failure, Interrupted
from t5like.files import writing

PREEMPTED = 75  # exit code of a Failure that is no error: the same command continues
CTRL_C = 130  # exit code, as shells have it


def main(argv: Sequence[str] | None = None) -> None:
  """Runs the command that `argv` (default: sys.argv) asks for; returns when done, ends the process if it fails."""
  if argv is None:
    argv = sys.argv
  writing.open_streams()
  # Until training puts its own in its place, which saves first.
  signal.signal(signal.SIGTERM, _end_before_anything)
  try:
    _run(argv)
  except Failure as e:
    if '--debug' in argv:
      traceback.print_exc()
    leave(e.exit_code, _message(e))
  except Interrupted as e:
    leave(e.exit_code, f'{e}')
  except KeyboardInterrupt:
    leave(CTRL_C, 'Interrupted. Everything that was complete before is untouched; the same command continues there.')
  except BrokenPipeError:  # such as | head
    leave(1, '')
  except Exception:
    traceback.print_exc()
    leave(1, 'ERROR: the above is a fault in t5like, not in your input. Please report it.')


def _run(argv: Sequence[str]) -> None:
  request = command_line.read(argv[1:], _program(argv[0]))
  if request.help:
    print(request.help, flush=True)
    return
  hardware.prepare_process()
  from t5like import commands
  commands.run(request)


def _message(failure: Failure) -> str:
  if failure.exit_code == PREEMPTED:
    return str(failure)
  return f'ERROR: {failure}'


def _program(path: str) -> str:
  """How this was called, for help."""
  name = pathlib.Path(path).name
  if name == '__main__.py':
    return 'python -m t5like'
  if name.endswith('.py'):
    return f'python {name}'
  return name


def _end_before_anything(number: int, frame: Any) -> None:
  leave(PREEMPTED, 'Ended (SIGTERM) before anything was done that could be lost. The same command begins again.')


def leave(code: int, message: str) -> None:
  """Ends the process at once: with peers, a clean end would wait for all of them."""
  _write_last(sys.stdout, '')
  _write_last(sys.stderr, f'\n{message}\n' if message else '')
  os._exit(code)


def _write_last(stream: Any, text: str) -> None:
  with contextlib.suppress(OSError, ValueError):  # a screen that is gone, or a full disk behind it
    stream.write(text)
    stream.flush()


if __name__ == '__main__':
  main()
