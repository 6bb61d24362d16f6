"""Runs as one page, and where their time went: `python main.py report --workdir=.. [--compare=..]`."""
import html
import math
import pathlib
import re
import time

from etils import epath

from t5like import config as config_lib, ledger, metrics, plain_json, rewinds, schema, workdir as workdir_lib
from t5like.errors import ConfigError

POINTS = 1500  # of a curve: more are averaged, so that the page stays small
NAMES = dict(step='training steps', data='waiting for data', compile='compiling', init='starting',
             save='standing still to save', eval='evaluating', lost='lost and done again', idle='not running')
CURVES = ('loss', 'accuracy', 'tokens_per_second', 'mfu', 'learning_rate', 'grad_norm', 'update_norm', 'data_wait',
          'device_memory', 'host_memory')
FOLDER = pathlib.Path(__file__).parent


def write(workdir, out=None, compare=()):
  """Writes the page of a run, with the curves of others beside its own.

  Args:
    workdir: the run's folder.
    out: the page; default WORKDIR/report.html.
    compare: folders of further runs.

  Returns:
    (the page's path, what `ledger.account` found of the first run).
  """
  runs = [gather(folder) for folder in (workdir, *compare)]
  for folder, facts in zip((workdir, *compare), runs):
    if not facts['curves']['loss']['y'] and not facts['time']['attempts']:
      raise ConfigError(f'--workdir={folder}: nothing was measured there yet; metrics.jsonl has no step.')
  _name_apart(runs, (workdir, *compare))
  runs[0]['differences'] = _differences(runs)
  path = epath.Path(out or f'{workdir}/report.html')
  workdir_lib.write_file(path, _page(runs))
  return path, runs[0]['time']


def _page(runs):
  """The text of the page: one file, that needs no network."""
  # '<' would end the script that holds the numbers.
  parts = {
      '@TITLE@': html.escape(', '.join(run['name'] for run in runs)),
      '@UPLOT_CSS@': (FOLDER / 'uplot' / 'uPlot.min.css').read_text(encoding='utf-8'),
      '@UPLOT@': (FOLDER / 'uplot' / 'uPlot.iife.min.js').read_text(encoding='utf-8'),
      '@DATA@': plain_json.dumps(runs, ensure_ascii=False).replace('<', '\\u003c')}
  page = (FOLDER / 'report.html').read_text(encoding='utf-8')
  # In one pass: what is filled in may itself hold such a mark.
  return re.sub('|'.join(parts), lambda mark: parts[mark[0]], page)


def _name_apart(runs, folders):
  """Runs whose folders have the same name are called by their whole paths."""
  names = [run['name'] for run in runs]
  for run, folder in zip(runs, folders):
    if names.count(run['name']) > 1:
      run['name'] = str(folder)


def _differences(runs):
  """[[key, its value in each run]] of the config keys that are not the same in all runs."""
  values = [dict(run.pop('all_keys')) for run in runs]
  keys = sorted({key for keys in values for key in keys})
  table = [[key, *(one.get(key, '') for one in values)] for key in keys]
  return [row for row in table if len(set(row[1:])) > 1]


def gather(workdir):
  """All that the page shows of a run, as JSON."""
  config = workdir_lib.read_config(workdir)
  folder = epath.Path(workdir)
  lines = list(schema.lines(folder / 'metrics.jsonl', metrics.NUMBERS))
  steps = [line for line in lines if 'loss' in line and _is_number(line.get('tokens'))]
  validations = [line for line in lines if 'validation/nll' in line]
  result = workdir_lib.read_result(workdir, config)  # None while the target of the config as it is now is ahead
  newest = result or (steps[-1] if steps else dict(tokens=0))
  points = _Points(lines, config.batch_size * config.data.seq_len)
  keys = config_lib.describe(config)
  return dict(
      name=folder.absolute().name, made=time.strftime('%Y-%m-%d %H:%M'), result=result, target=config.stop.tokens,
      tokens=newest['tokens'], step=max((line['step'] for line in lines), default=0),
      last=validations[-1] if validations else None, bad_steps=(steps[-1].get('bad_steps') or 0) if steps else 0,
      model=f'{config.model.name}, {config.objective.name}', per_step=points.per_step,
      curves=dict({key: points.curve(key, steps) for key in CURVES}, validation=points.curve('validation/nll')),
      mixture=points.curves('rows/'),
      tasks={key: curve for key, curve in points.curves('tasks/').items() if not key.endswith('_stderr')},
      rewinds=[dict(r, tokens=r['to_step'] * points.per_step) for r in rewinds.read_rewinds(workdir)],
      time=ledger.account(ledger.read(workdir)), names=NAMES,
      samples=list(schema.lines(folder / 'samples.jsonl', metrics.SAMPLE))[-12:],
      config=[(key, repr(value)) for key, value, changed in keys if changed],
      all_keys=[(key, repr(value)) for key, value, _ in keys])


class _Points:
  """Points of curves: where a line of metrics.jsonl lies in tokens and in hours since the first."""

  def __init__(self, lines, per_step):
    self.lines, self.per_step = lines, per_step
    self.tokens = {line['step']: line['tokens'] for line in lines if _is_number(line.get('tokens'))}
    times = [line['time'] for line in lines if _is_number(line.get('time'))]
    self.began = times[0] if times else 0.0

  def curve(self, key, lines=None):
    """{'x': tokens, 'y', 'hours'} of a key, of at most POINTS points, each the mean of its neighbours."""
    found = [line for line in (self.lines if lines is None else lines) if _is_number(line.get(key))]
    size = max(1, -(-len(found) // POINTS))
    groups = [found[i:i + size] for i in range(0, len(found), size)]
    ends = [group[-1] for group in groups]
    return dict(x=[self._at(line) for line in ends], hours=[self._hours(line) for line in ends],
                y=[sum(line[key] for line in group) / len(group) for group in groups])

  def curves(self, prefix):
    """{rest of the key: curve} of all keys that begin with a prefix."""
    keys = sorted({key for line in self.lines for key in line if key.startswith(prefix)})
    curves = {key.removeprefix(prefix): self.curve(key) for key in keys}
    return {name: curve for name, curve in curves.items() if curve['x']}

  def _at(self, line):
    return self.tokens.get(line['step'], line['step'] * self.per_step)

  def _hours(self, line):
    return (line['time'] - self.began) / 3600 if _is_number(line.get('time')) else None


def _is_number(value):
  """Whether it can be drawn: not missing, nor null in place of what was not finite."""
  return isinstance(value, (int, float)) and math.isfinite(value)


def show(account, console=None):
  """The time of a run as a table in the terminal."""
  from rich.console import Console
  from rich.table import Table
  table = Table('phase', 'time', 'share', box=None, pad_edge=False)
  for phase in sorted(NAMES, key=lambda phase: -account['seconds'].get(phase, 0)):
    spent = account['seconds'].get(phase, 0)
    if spent:
      table.add_row(NAMES[phase], metrics.duration(spent), f'{spent / account["total"]:.1%}')
  console = console or Console(highlight=False)
  console.print(table)
  starts = len(account['attempts'])
  console.print(f'Goodput {account["goodput"]:.1%} of {metrics.duration(account["total"])}, {starts} '
                f'start{"s" * (starts != 1)}.')
