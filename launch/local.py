"""A pod on one machine: `main.py` in several real processes, each with several virtual CPU devices.

    python launch/local.py --processes=4 --devices_per_process=2 --config=configs/decoder_tiny.py:smoke \\
        --config.mesh.tensor=2 --workdir=runs/pod

The dataset is prepared first, in one process, unless --no_prepare is given. Process 0 prints as ever; lines of the
others begin with their number, or with --quiet show only when one of them fails. Whatever ends one process ends
all: the others have --grace seconds for it. The exit code is that of the first that failed, as `t5like/errors.py`
lists them (75 after SIGTERM or Ctrl-C, with the state saved); a process that a signal ended counts as 128 + signal.
"""
import argparse
import collections
import ctypes
import os
import pathlib
import re
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time

OF_TRAINING = ('profile_steps', 'dump_xla')  # flags of main.py that are of no use to `prepare`, and refused there
MAIN = pathlib.Path(__file__).resolve().parent.parent / 'main.py'


def parse(argv):
  parser = argparse.ArgumentParser('launch/local.py', allow_abbrev=False,
                                   description='Other flags are those of main.py, such as --config.')
  parser.add_argument('--processes', type=positive, default=2)
  parser.add_argument('--devices_per_process', type=positive, default=1)
  parser.add_argument('--no_prepare', action='store_true', help='the dataset is there already')
  parser.add_argument('--quiet', action='store_true', help='show processes other than 0 only when one fails')
  parser.add_argument('--grace', type=float, default=20, help='seconds for the others to end once one has failed')
  parser.add_argument('--dry_run', action='store_true', help='print the commands, run none')
  args, rest = parser.parse_known_args(argv)
  rest = [a for a in rest if a != '--']
  if not any(a == '--config' or a.startswith('--config=') for a in rest):
    parser.error('--config is missing: add the flags of main.py, such as --config=configs/decoder_tiny.py:smoke')
  return args, rest


def positive(text):
  if not text.isdigit() or text == '0':
    raise argparse.ArgumentTypeError(f'{text} is not a whole number from 1 on')
  return int(text)


def environment(devices):
  """Variables that make a process see this many CPU devices."""
  flags = re.sub(r'--xla_force_host_platform_device_count=\d+', '', os.environ.get('XLA_FLAGS', ''))
  return dict(JAX_PLATFORMS='cpu', XLA_FLAGS=f'{flags} --xla_force_host_platform_device_count={devices}'.strip())


def commands(args, rest, port):
  """[(variables, command)] of the preparation, or None, and of all processes."""
  variables = environment(args.devices_per_process)
  main = [sys.executable, str(MAIN)]
  join = lambda i: ([f'--coordinator=127.0.0.1:{port}', f'--num_processes={args.processes}', f'--process_id={i}'])
  prepare = None if args.no_prepare else (variables, [*main, 'prepare', *for_prepare(rest)])
  return prepare, [(variables, [*main, *rest, *join(i)]) for i in range(args.processes)]


def for_prepare(rest):
  """The flags that `prepare` has too."""
  kept, words = [], list(rest)
  while words:
    word = words.pop(0)
    name, equals, _ = word.lstrip('-').partition('=')
    if not word.startswith('-') or name not in OF_TRAINING:
      kept.append(word)
    elif not equals and words:
      words.pop(0)
  return kept


def show(variables, command):
  return ' '.join([*(f'{k}={shlex.quote(v)}' for k, v in variables.items()), shlex.join(command)])


def die_with_parent():
  """In the child: SIGKILL when the launcher ends, even by SIGKILL. Linux only; elsewhere children outlive that."""
  if sys.platform == 'linux':
    LIBC.prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


LIBC = ctypes.CDLL(None) if sys.platform == 'linux' else None  # loaded before any fork


def start(variables, command, **kwargs):
  return subprocess.Popen(command, env={**os.environ, **variables}, stdin=subprocess.DEVNULL,
                          preexec_fn=die_with_parent, start_new_session=True, **kwargs)


class Pod:
  """The processes of one run, numbered; of all but 0 the output passes through here."""

  def __init__(self, starts, quiet):
    self.quiet, self.tails, self.threads = quiet, {}, []
    self.lock = threading.Lock()
    through_here = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    self.processes = [start(*step, **(through_here if i else {})) for i, step in enumerate(starts)]
    for i, process in enumerate(self.processes[1:], 1):
      self.tails[i] = collections.deque(maxlen=200)
      self.threads.append(threading.Thread(target=self._pass_on, args=(i, process.stdout), daemon=True))
      self.threads[-1].start()

  def _pass_on(self, i, stream):
    for line in stream:
      line = f'[{i}] ' + line.decode(errors='replace').rstrip('\n')
      if self.quiet:
        self.tails[i].append(line)
      else:
        with self.lock:
          print(line, flush=True)

  def signal(self, number):
    for process in self.processes:
      if process.poll() is None:
        os.killpg(process.pid, number)

  def wait(self, grace):
    """Waits for all to end; returns the exit code of the first that failed, or 0."""
    first, deadline = 0, float('inf')
    while any([p.poll() is None for p in self.processes]):
      codes = [exit_code(p.poll()) for p in self.processes if p.poll()]
      if codes and not first:
        # Seen at the same moment: a process that was aborted is the consequence, not the cause.
        first, deadline = min(codes, key=lambda c: c > 128), time.monotonic() + grace
      if time.monotonic() > deadline:
        print(f'launch/local.py: some processes had not ended {grace:g} s after the first did: killed.',
              file=sys.stderr, flush=True)
        self.signal(signal.SIGKILL)  # JAX takes SIGTERM for a pre-emption, which a stuck process never notices
        deadline = float('inf')
      time.sleep(0.05)
    codes = [exit_code(p.poll()) for p in self.processes if p.poll()]
    return first or (min(codes, key=lambda c: c > 128) if codes else 0)

  def show_tails(self):
    for thread in self.threads:
      thread.join(5)
    for lines in self.tails.values():
      print('\n'.join(lines), flush=True)


def exit_code(returncode):
  return 128 - returncode if returncode < 0 else returncode


def main(argv):
  args, rest = parse(argv)
  with socket.socket() as s:
    s.bind(('127.0.0.1', 0))
    port = 'PORT' if args.dry_run else s.getsockname()[1]
  prepare, starts = commands(args, rest, port)
  if args.dry_run:
    for step in ([prepare] if prepare else []) + starts:
      print(show(*step))
    return 0
  running = []
  for number in (signal.SIGTERM, signal.SIGINT):
    # SIGTERM for either: on it all processes agree where to stop, and save.
    signal.signal(number, lambda *_: [pod.signal(signal.SIGTERM) for pod in running])
  for step in ([[prepare]] if prepare else []) + [starts]:
    running[:] = [pod := Pod(step, args.quiet)]
    code = pod.wait(args.grace)
    if code:
      if args.quiet:
        pod.show_tails()
      return code
  return 0


if __name__ == '__main__':
  sys.exit(main(sys.argv[1:]))
