"""`python main.py`, `python -m t5like`: reads the command line, runs the command, ends with a code."""
import contextlib
import os
import pathlib
import signal
import sys
import traceback

from t5like import command_line, hardware, writing
from t5like.errors import Failure, Interrupted


def main(argv=None):
  """Runs the command that `argv` (default: sys.argv) asks for; returns when done, ends the process if it fails."""
  argv = sys.argv if argv is None else argv
  writing.open_streams()
  # Until training puts its own in its place, which saves first.
  signal.signal(signal.SIGTERM, _end_before_anything)
  try:
    request = command_line.read(argv[1:], _program(argv[0]))
    if request.help:
      return _show(request.help)
    hardware.choose_platform()
    from t5like import commands
    commands.run(request)
  except Failure as e:
    if '--debug' in argv:
      traceback.print_exc()
    leave(e.exit_code, f'{e}' if e.exit_code == 75 else f'ERROR: {e}')
  except Interrupted as e:
    leave(e.exit_code, f'{e}')
  except KeyboardInterrupt:
    leave(130, 'Interrupted. What was complete before is untouched; the same command begins where that ends.')
  except BrokenPipeError:  # such as | head
    leave(1, '')
  except Exception:
    traceback.print_exc()
    leave(1, 'ERROR: the above is a fault in t5like, not in your input. Please report it.')


def _program(path):
  """How this was called, for help."""
  name = pathlib.Path(path).name
  if name == '__main__.py':
    return 'python -m t5like'
  return f'python {name}' if name.endswith('.py') else name


def _show(text):
  print(text, flush=True)


def _end_before_anything(number, frame):
  leave(75, 'Ended (SIGTERM) before anything was done that could be lost. The same command begins again.')


def leave(code, message):
  """Ends the process at once: with peers, a clean end would wait for all of them."""
  for stream, text in ((sys.stdout, ''), (sys.stderr, f'\n{message}\n' if message else '')):
    with contextlib.suppress(OSError, ValueError):  # a screen that is gone, or a full disk behind it
      stream.write(text)
      stream.flush()
  os._exit(code)


if __name__ == '__main__':
  main()
