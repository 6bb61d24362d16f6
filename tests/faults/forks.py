"""Processes that run main.py, made by forking one that has imported everything: a second each instead of five.

JAX must not have been used in the parent: threads do not survive a fork.
"""
import contextlib
import json
import os
import pathlib
import signal
import socket
import sys
import time
from collections.abc import Callable

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent


def load():
  """Imports what children need, and lets them end at Ctrl-C: shells start what runs in the background deaf to it."""
  signal.signal(signal.SIGINT, signal.default_int_handler)
  sys.path.insert(0, str(ROOT))
  import grain  # noqa: F401
  import jax  # noqa: F401
  import optax  # noqa: F401
  from orbax.checkpoint import v1  # noqa: F401

  import main  # noqa: F401
  from t5like.evals import items, results  # noqa: F401
  from t5like.observe import profiling, report, trackers  # noqa: F401


def free_port():
  with socket.socket() as s:
    s.bind(('127.0.0.1', 0))
    return s.getsockname()[1]


class Child:
  """A forked process that calls `work()`; what it prints goes to the file `log`."""

  def __init__(self, work, log, devices=1):
    self.log, self.code = pathlib.Path(log), None
    self.pid = os.fork()
    if not self.pid:
      be_a_process(work, log, devices)

  def poll(self):
    """The exit code, negative for signals, or None while it runs."""
    if self.code is None:
      pid, status = os.waitpid(self.pid, os.WNOHANG)
      if pid:
        self.code = os.waitstatus_to_exitcode(status)
    return self.code

  def wait(self, seconds):
    """The exit code; it is killed, and TimeoutError raised, when it takes longer."""
    end = time.monotonic() + seconds
    while self.poll() is None:
      if time.monotonic() > end:
        self.kill()
        raise TimeoutError(f'{self.log}: still running after {seconds} s')
      time.sleep(0.01)
    return self.code

  def kill(self, number=signal.SIGKILL):
    if self.poll() is None:
      os.kill(self.pid, number)
      if number == signal.SIGKILL:
        self.code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


def be_a_process(work, log, devices=1):
  """Never returns."""
  code = 70
  try:
    os.setpgid(0, 0)
    out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(out, 1)
    os.dup2(out, 2)
    sys.stdout = sys.__stdout__ = open(1, 'w', buffering=1, closefd=False)
    sys.stderr = sys.__stderr__ = open(2, 'w', buffering=1, closefd=False)
    import jax
    jax.config.update('jax_platforms', 'cpu')
    jax.config.update('jax_num_cpu_devices', devices)
    work()
    code = 0
  except SystemExit as e:
    code = e.code if isinstance(e.code, int) else 1
  except BaseException:
    import traceback
    traceback.print_exc()
  finally:
    with contextlib.suppress(Exception):
      sys.stdout.flush()
      sys.stderr.flush()
    os._exit(code)


def run_main(*argv):
  """What `python main.py ARGV` does; to be called in a child."""
  import main
  main.main(['main.py', *argv])
  # As a Python that ends does, with peers waiting for each other.
  import jax
  if jax.distributed.is_initialized():
    jax.distributed.shutdown()


def start(argv, log, processes=1, devices=1):
  """Children that run main.py together, one run."""
  if processes == 1:
    return [Child(lambda: run_main(*argv), log, devices)]
  port = free_port()
  join = lambda i: (f'--coordinator=127.0.0.1:{port}', f'--num_processes={processes}', f'--process_id={i}')
  return [Child(lambda i=i: run_main(*argv, *join(i)), f'{log}.{i}', devices) for i in range(processes)]


def one_by_one(folder: pathlib.Path, cases: list, look: Callable, died: Callable, limit: float) -> list:
  """What `look(case)` returns, which JSON can hold, of each case; all in one process, or in more where one dies.

  Args:
    folder: for files of the processes.
    cases: arguments of `look`, which runs in a child.
    died: of a case, and of what its process said last, the outcome of a case over which the process died or hung.
    limit: seconds for a process.
  """
  outcomes = []
  log, results = folder / 'log', folder / 'outcomes'
  while len(outcomes) < len(cases):
    rest = cases[len(outcomes):]
    results.unlink(missing_ok=True)

    def work(rest: list = rest) -> None:
      with open(results, 'w', buffering=1) as file:
        for case in rest:
          file.write(json.dumps(look(case)) + '\n')
    try:
      code = Child(work, log).wait(limit)
    except TimeoutError:
      code = 'a hang'
    lines = results.read_text().split('\n') if results.exists() else []
    outcomes += [json.loads(line) for line in lines if line]
    if code:
      last_words = log.read_text(errors='replace')[-500:]
      outcomes.append(died(cases[len(outcomes)], f'{code}: {last_words}'))
  return outcomes[:len(cases)]
