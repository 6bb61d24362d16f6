"""What a run survives, counted: python -m tests.faults [--kills=100] [--only=kills,sigterms] [--folder=...]

Kills and preempts real runs at random moments, damages files of checkpoints and datasets, gives wrong configs, hostile
folders and JSON files, and prints one line for each; exit code 1 if any promise was broken. --seed=N takes other random
choices.
"""
import argparse
import os
import signal
import sys
import tempfile
import time

os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')

from tests.faults import corruption, forks, hostile_files, hostile_folders, kills, ordeals, runs, wrong_configs

KINDS = ((1, 'decoder', 0.4), (1, 'encdec', 0.4), (2, 'decoder-2', 0.1), (2, 'encdec-2', 0.1))
SUITES = ('kills', 'sigterms', 'interrupts', 'checkpoints', 'datasets', 'configs', 'hostile', 'stops', 'clocks',
          'disks', 'saves')
# Each must be 0.
BROKEN = ('mismatches', 'lost', 'partial', 'wrong', 'crashed', 'failed', 'unsaved', 'damaged_lines', 'grown', 'slow',
          'large')
FOLDERS = 0.4  # share of the hostile cases that are folders of Hugging Face models; the others are JSON files


def parse(argv):
  parser = argparse.ArgumentParser('python -m tests.faults', description=__doc__.partition('\n\n')[0])
  for name, count, of in (('kills', 100, 'kill -9'), ('sigterms', 20, 'SIGTERMs'), ('interrupts', 10, 'Ctrl-C'),
                          ('checkpoints', 700, 'damaged checkpoints'), ('datasets', 300, 'damaged datasets'),
                          ('configs', 200, 'wrong configs'),
                          ('hostile', 1000, 'hostile folders and JSON files'),
                          ('stopped', 600, 'seconds that a run is stopped'),
                          ('full', 60, 'seconds that a disk is full'), ('steps', 3000, 'steps of the long run'),
                          ('saves', 120, 'its saves')):
    parser.add_argument(f'--{name}', type=int, default=count, help=f'{of}; default {count}')
  parser.add_argument('--only', default=','.join(SUITES), help=f'some of {", ".join(SUITES)}')
  parser.add_argument('--processes', type=int, choices=(1, 2), default=2, help='at most, of a run')
  parser.add_argument('--folder', help='keeps what is made')
  parser.add_argument('--seed', type=int, default=0)
  return parser.parse_args(argv)


def _hostile(count, folder, seed, tell):
  if not count:
    return
  for what, share in ((hostile_folders.hostile_folders, FOLDERS), (hostile_files.hostile_files, 1 - FOLDERS)):
    since = time.monotonic()
    found = what(f'{folder}/{what.__name__}', round(share * count), seed)
    tell(what.__name__.replace('_', ' '), found, since)


def main(argv):
  args = parse(argv)
  wanted, broken = args.only.split(','), []
  forks.load()
  with tempfile.TemporaryDirectory(prefix='t5like-faults-') as temporary:
    folder, arms = args.folder or temporary, {}

    def arm(name, processes):
      if name not in arms:
        arms[name] = runs.kind(name, folder, processes)
      return arms[name]

    def tell(name, found, since):
      notes = found.pop('notes', [])
      shown = ', '.join(f'{key.replace("_", " ")} {value:.1f}' if isinstance(value, float) else
                        f'{key.replace("_", " ")} {value}' for key, value in found.items())
      print(f'{name:24} {shown}  ({time.monotonic() - since:.0f} s)', flush=True)
      for note in notes:
        print(f'    {note}', flush=True)
      broken.extend(f'{name}: {key} {found[key]}' for key in BROKEN if found.get(key))

    for suite, what in (('kills', kills.kills), ('sigterms', kills.sigterms)):
      for processes, name, share in KINDS if suite in wanted else ():
        count = round(share * getattr(args, suite))
        if count and processes <= args.processes:
          ready, since = arm(name, processes), time.monotonic()
          tell(f'{suite}, {name}', what(ready, count, args.seed), since)
    if 'interrupts' in wanted and args.interrupts:
      ready, since = arm('decoder', 1), time.monotonic()
      tell('interrupts, decoder', kills.sigterms(ready, args.interrupts, args.seed, signal.SIGINT, 130), since)
    for suite, what in (('stops', lambda ready: ordeals.stops(ready, args.stopped)), ('clocks', ordeals.clocks),
                        ('disks', lambda ready: ordeals.disks(ready, args.full)), ('disks', ordeals.prepares),
                        ('saves', lambda ready: ordeals.saves(ready, args.steps, args.saves))):
      if suite in wanted:
        ready, since = arm('decoder', 1), time.monotonic()
        tell(suite, what(ready), since)
    for suite in ('checkpoints', 'datasets'):
      if suite in wanted:
        ready, since = arm('decoder', 1), time.monotonic()
        tell(suite, corruption.damaged_files(ready, getattr(args, suite), suite[:-1], args.seed), since)
    if 'configs' in wanted:
      ready, since = [arm('decoder', 1), arm('encdec', 1)], time.monotonic()
      tell('configs', wrong_configs.wrong_configs(ready, args.configs, args.seed), since)
    _hostile(args.hostile if 'hostile' in wanted else 0, folder, args.seed, tell)
  print('\n'.join(['BROKEN: ' + b for b in broken]) or 'Nothing was lost, nothing wrong was taken for right.')
  return 1 if broken else 0


if __name__ == '__main__':
  sys.exit(main(sys.argv[1:]))
