"""Runs a config with many values of its keys, one run after another or several at once, and ranks the results.

    python launch/sweep.py --config=configs/decoder_tiny.py optimizer.learning_rate=1e-3,3e-3 seed=0,1,2
    python launch/sweep.py --config=configs/decoder_tiny.py --samples=20 optimizer.learning_rate=1e-4..1e-2 \\
        optimizer.weight_decay=0.03,0.1 --dir=gs://BUCKET/sweep --launcher='launch/tpu_vm.sh keep'

Lists are combined, all with all; with --samples that many combinations are drawn instead, and a..b means anything
between, on a logarithmic scale (whole numbers where both are). The same --sample_seed draws the same. All configs
are checked before the first run begins. Each trial has a workdir in --dir, named by its values, and its output in a
file beside it. The same command again goes on: what is done is not run again, what was interrupted resumes.

A launcher that returns before the run is done (sbatch launch/slurm.sbatch, launch/tpu_vm.sh run) leaves its trials
as submitted; the same command again shows their results then, and submits those anew that --again names.
Flags that are not listed by --help, such as --config.stop.tokens=10M, go to every trial.
"""
import argparse
import collections
import concurrent.futures
import hashlib
import itertools
import math
import pathlib
import random
import re
import shlex
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
LONGEST = 180  # bytes of a name: file systems take 255, with what is put before and behind it
sys.path.insert(0, str(ROOT))

from etils import epath  # noqa: E402 (the repository need not be installed)

from t5like import config as config_lib  # noqa: E402
from t5like.errors import ConfigError  # noqa: E402
from t5like.storage import workdir as workdir_lib  # noqa: E402


def parse(argv):
  parser = argparse.ArgumentParser('launch/sweep.py', allow_abbrev=False)
  parser.add_argument('keys', nargs='*', metavar='KEY=VALUES', help='a,b,c or, with --samples, low..high')
  parser.add_argument('--config', required=True)
  parser.add_argument('--samples', type=int, default=0, help='draw this many combinations; 0: all of them')
  parser.add_argument('--sample_seed', type=int, default=0)
  parser.add_argument('--dir', default='', help='of all workdirs; default runs/sweep-CONFIG')
  parser.add_argument('--launcher', default='', help="default 'python main.py'")
  parser.add_argument('--jobs', type=int, default=1, help='trials at once')
  parser.add_argument('--no_prepare', action='store_true', help='the datasets are there already')
  parser.add_argument('--again', default='', help='a pattern of names: submit these anew')
  parser.add_argument('--dry_run', action='store_true', help='check and print the commands, run none')
  args, rest = parser.parse_known_intermixed_args(argv)
  wrong = [a for a in rest if not a.startswith('--')]
  if wrong or not args.keys:
    parser.error(f'{" ".join(wrong) or "no keys"}: add KEY=VALUES, such as optimizer.learning_rate=1e-3,3e-3')
  return args, rest


def values(item, sampling):
  """Key and its texts to choose from, or its range (low, high) as texts, of 'key=a,b' or 'key=low..high'."""
  key, equals, text = item.partition('=')
  key = re.sub(r'^(--)?(config\.)?', '', key)
  ends = re.fullmatch(r'([^,]+)\.\.([^,]+)', text)
  if not equals or not text:
    raise ConfigError(f'{item}: no values given. Write {key}=a,b,c.')
  if not ends:
    return key, re.split(r',(?![^(\[]*[)\]])', text)  # commas inside brackets belong to a value
  try:
    low, high = map(float, ends.groups())
  except ValueError:
    low = high = math.nan
  if not sampling or not 0 < low < high < math.inf:
    raise ConfigError(f'{item}: a range needs --samples=N and two numbers above 0, the smaller one first, such as '
                      f'--samples=20 {key}=1e-4..1e-2. Without --samples list the values: {key}=1e-4,1e-3,1e-2.')
  return key, ends.groups()


def draw(rng, choices, item):
  if '..' not in item.partition('=')[2]:
    return rng.choice(choices)
  whole = all(re.fullmatch(r'\d+', c) for c in choices)
  low, high = map(float, choices)
  value = math.exp(rng.uniform(math.log(low), math.log(high)))
  return str(round(value)) if whole else f'{value:.4g}'


def combinations(args):
  """[{key: text}] of all trials, each once, in a fixed order."""
  keys = [values(item, args.samples) for item in args.keys]
  if args.samples:
    rng = random.Random(args.sample_seed)
    trials = [{k: draw(rng, choices, item) for (k, choices), item in zip(keys, args.keys)}
              for _ in range(args.samples)]
  else:
    names = [k for k, _ in keys]
    trials = [dict(zip(names, texts)) for texts in itertools.product(*(choices for _, choices in keys))]
  return list({tuple(t.items()): t for t in trials}.values())


def name(trial):
  """'learning_rate=1e-3_seed=0', a name for a folder: the last part of each key, the whole where two end alike.

  Where that does not tell two trials apart, because a value has a sign that does not belong into names, or one that
  joins values here, or because it would be too long, a digest of the values follows.
  """
  last = [k.split('.')[-1] for k in trial]
  parts = [f'{short if last.count(short) == 1 else key}={value}' for (key, value), short in zip(trial.items(), last)]
  text = '_'.join(parts)
  plain = re.sub(r'[^\w.+=-]', '-', text)
  short = plain.encode()[:LONGEST].decode(errors='ignore')
  is_exact = short == text and not any('=' in value for value in trial.values())
  return short if is_exact else f'{short}-{digest(*trial.items())}'


def digest(*values):
  """Ten letters and digits that stand for some values."""
  return hashlib.sha256(repr(values).encode()).hexdigest()[:10]


class Trial:
  """One combination: its config, where it runs and what became of it."""

  def __init__(self, chosen, args, rest):
    self.chosen, self.name = chosen, name(chosen)
    self.workdir = f'{args.dir}/{self.name}'
    self.flags = [f'--config={args.config}', *(f'--config.{k}={v}' for k, v in chosen.items()), *rest]
    given = [a.removeprefix('--config.') for a in self.flags if a.startswith('--config.')]
    self.config = config_lib.load(args.config, given)
    self.submitted = epath.Path(args.dir) / f'{self.name}.submitted'
    self.state, self.code = 'not run', 0

  def result(self):
    """That of a run which reached its target, else None."""
    return workdir_lib.read_result(self.workdir, self.config)

  def command(self, launcher):
    return [*launcher, *self.flags, f'--workdir={self.workdir}']

  def run(self, launcher, logs):
    """Runs or submits it, unless that is done; never raises for what the run does."""
    if self.result():
      self.state = 'done'
      return
    if self.submitted.exists():
      self.state = 'submitted'
      return
    self.state = 'running'
    print(f'{self.name}: begins', flush=True)
    with open(logs / f'{self.name}.log', 'ab') as log:
      self.code = subprocess.call(self.command(launcher), stdin=subprocess.DEVNULL, stdout=log,
                                  stderr=subprocess.STDOUT)
    if self.code:
      self.state = f'exit code {self.code}, see {logs / self.name}.log'
    elif self.result():
      self.state = 'done'
    else:
      self.state = 'submitted'
      self.submitted.parent.mkdir(parents=True, exist_ok=True)
      self.submitted.write_text('')
    print(f'{self.name}: {self.state}', flush=True)


def all_trials(args, rest):
  """Trials of all combinations, each with a right config; ConfigError tells of all that are wrong."""
  trials, wrong = [], []
  for chosen in combinations(args):
    try:
      trials.append(Trial(chosen, args, rest))
    except ConfigError as e:
      wrong.append(f'{name(chosen)}: {e}')
  same = [title for title, count in collections.Counter(t.name for t in trials).items() if count > 1]
  if same:
    raise ConfigError(f'{same[0]}: several of these runs would share this folder. Give each value once, or sweep them '
                      'one after the other with another --dir each.')
  if wrong:
    raise ConfigError('\n'.join([f'{len(wrong)} of these runs cannot work, so none was begun.', *wrong]))
  return trials


def preparations(trials):
  """Commands that prepare each dataset once, so that trials at the same time need not."""
  shared = {}
  for t in trials:
    data = tuple(a for a in t.flags if a.startswith(('--config.data.', '--config.vocabulary.', '--config.objective.')))
    shared.setdefault(data, t)
  return [[sys.executable, str(ROOT / 'main.py'), 'prepare', *(a for a in t.flags if a.startswith('--config'))]
          for t in shared.values()]


def rank(result):
  """What trials are sorted by: those with a validation by its nll, then those whose nll is no number, then the rest."""
  if not result:
    return 2, 0.0
  nll = result['validation']['nll']
  return (1, 0.0) if math.isnan(nll) else (0, nll)


def table(trials, console):
  """Prints all trials, the lowest validation nll first."""
  from rich.markup import escape
  from rich.table import Table
  results = [(t, t.result()) for t in trials]
  results.sort(key=lambda pair: rank(pair[1]))
  keys = list(trials[0].chosen)
  grid = Table(*map(escape, keys), 'nll', 'steps', 'state')
  for t, result in results:
    nll, steps = (f'{result["validation"]["nll"]:.4f}', f'{result["step"]:,}') if result else ('', '')
    state = 'done' if result else t.state
    grid.add_row(*map(escape, t.chosen.values()), nll, steps, escape(state))  # values may look like rich's markup
  console.print(grid)


def check(args):
  """The words of the launcher, none for the default; ConfigError for flags that cannot work."""
  for flag, least, most in (('jobs', 1, 1000), ('samples', 0, 10_000)):
    if not least <= getattr(args, flag) <= most:
      raise ConfigError(f'--{flag}={getattr(args, flag)}: must be at least {least} and at most {most}.')
  try:
    re.compile(args.again)
  except re.error as e:
    raise ConfigError(f'--again={args.again}: is no regular expression ({e}). Such as --again=seed=[01].') from e
  try:
    return shlex.split(args.launcher)
  except ValueError as e:
    raise ConfigError(f'--launcher={args.launcher}: is no command line ({e}).') from e


def run(args, rest):
  args.dir = args.dir or 'runs/sweep-' + re.sub(r'\W', '-', args.config.split('/')[-1].replace('.py', ''))
  launcher = check(args) or [sys.executable, str(ROOT / 'main.py')]
  trials = all_trials(args, rest)
  far = args.dry_run and '://' in args.dir  # a dry run needs no access to buckets
  todo = trials if far else [t for t in trials if not t.result()]
  first = preparations(todo) if not args.launcher and not args.no_prepare else []
  if args.dry_run:
    for command in first + [t.command(launcher) for t in todo]:
      print(shlex.join(command))
    print(f'{len(trials)} trials, of which {"those that are done" if far else len(trials) - len(todo)} '
          f'{"would be passed over" if far else "are done"}.')
    return 0
  from rich.console import Console
  logs = pathlib.Path(args.dir)
  if '://' in args.dir:  # buckets may hold folders of the same name
    logs = pathlib.Path('runs/sweep-logs', f'{logs.name}-{digest(args.dir)}')
  logs.mkdir(parents=True, exist_ok=True)
  for command in first:
    if code := subprocess.call(command):
      return code
  for t in todo:
    if args.again and re.search(args.again, t.name):
      t.submitted.unlink(missing_ok=True)
  try:
    with concurrent.futures.ThreadPoolExecutor(max(1, args.jobs)) as pool:
      try:
        list(pool.map(lambda t: t.run(launcher, logs), todo))
      except KeyboardInterrupt:  # the runs got it from the terminal too
        pool.shutdown(cancel_futures=True)
        raise
  except KeyboardInterrupt:
    print('\nInterrupted; the same command goes on.', file=sys.stderr)
    return 130
  finally:
    table(trials, Console(soft_wrap=True))
  return next((t.code for t in trials if t.code), 0)


def main(argv):
  args, rest = parse(argv)
  try:
    return run(args, rest)
  except ConfigError as e:
    print(f'\nERROR: {e}', file=sys.stderr)
    return e.exit_code


if __name__ == '__main__':
  sys.exit(main(sys.argv[1:]))
