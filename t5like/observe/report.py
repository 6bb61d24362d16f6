"""Runs as one page, and where their time went: `python main.py report --workdir=.. [--compare=..]`."""
import html
import math
import pathlib
import re
import time
from collections.abc import Sequence
from typing import Any

from etils import epath

from t5like import config as config_lib
from t5like.config import stages
from t5like.config_type import Config
from t5like.errors import CheckpointError, ConfigError
from t5like.files import plain_json, schema
from t5like.observe import ledger, metrics
from t5like.storage import rewinds, workdir as workdir_lib

POINTS = 1500  # of a curve: more are averaged, so that the page stays small
SAMPLES = 12  # the newest that the page shows
NAMES = dict(
    step='training steps',
    data='waiting for data',
    compile='compiling',
    init='starting',
    save='waiting to save',
    eval='evaluating',
    lost='lost and done again',
    idle='not running')
CURVES = (
    'loss',
    'accuracy',
    'tokens_per_second',
    'mfu',
    'learning_rate',
    'grad_norm',
    'update_norm',
    'data_wait',
    'device_memory',
    'host_memory')
FOLDER = pathlib.Path(__file__).parent
Line = dict[str, Any]  # of metrics.jsonl
Facts = dict[str, Any]  # the result of `gather`, or a part of it
Pace = list[tuple[int, int, int]]  # of stages.pace
Curve = dict[str, list[Any]]  # x: tokens; y; hours since the first line


def write(workdir: str, out: str | None = None, compare: Sequence[str] = ()) -> tuple[Any, Facts]:
  """Writes the page of a run, with the curves of others beside its own.

  Args:
    workdir: the run's folder.
    out: the page; default WORKDIR/report.html.
    compare: folders of further runs.

  Returns:
    (the page's path, `ledger.account` of the first run).

  Raises:
    ConfigError: if a folder holds no run, or one that has measured nothing yet.
  """
  folders = (workdir, *compare)
  runs = []
  for folder in folders:
    run = gather(folder)
    runs.append(run)
    losses = run['curves']['loss']['y']
    starts = run['time']['attempts']
    if not losses and not starts:
      raise ConfigError(f'--workdir={folder}: nothing was measured there yet; metrics.jsonl has no step.')
  _name_apart(runs, folders)
  runs[0]['differences'] = _differences(runs)
  path = epath.Path(out or f'{workdir}/report.html')
  flag = '--output' if out else '--workdir'
  workdir_lib.write_file(path, _page(runs), flag)
  return path, runs[0]['time']


def _page(runs: list[Facts]) -> str:
  """The text of the page: one file, that needs no network."""
  title = ', '.join(run['name'] for run in runs)
  data = plain_json.dumps(runs, ensure_ascii=False)
  parts = {
      '@TITLE@': html.escape(title),
      '@UPLOT_CSS@': _text_of('uplot/uPlot.min.css'),
      '@UPLOT@': _text_of('uplot/uPlot.iife.min.js'),
      '@DATA@': data.replace('<', '\\u003c'),  # '<' would end the script that holds the numbers
  }
  # In one pass: the values may themselves hold such a mark.
  marks = '|'.join(parts)
  template = _text_of('report.html')
  return re.sub(marks, lambda mark: parts[mark[0]], template)


def _text_of(name: str) -> str:
  path = FOLDER / name
  return path.read_text(encoding='utf-8')


def _name_apart(runs: list[Facts], folders: Sequence[str]) -> None:
  """Calls runs whose folders have the same name by their whole paths."""
  names = [run['name'] for run in runs]
  for run, folder in zip(runs, folders):
    is_shared = names.count(run['name']) > 1
    if is_shared:
      run['name'] = str(folder)


def _differences(runs: list[Facts]) -> list[list[str]]:
  """[[key, its value in each run]] of the config keys that are not the same in all runs."""
  values_of = [dict(run.pop('all_keys')) for run in runs]
  keys = set().union(*values_of)
  differences = []
  for key in sorted(keys):
    values = [config_values.get(key, '') for config_values in values_of]
    distinct = set(values)
    if len(distinct) > 1:
      differences.append([key, *values])
  return differences


def read_lines(path: Any, shape: schema.Shape) -> list[Line]:
  """The whole lines of a file of a run, none where there is no file; CheckpointError where it cannot be read."""
  try:
    return list(schema.lines(path, shape))
  except OSError as e:
    reason = e.strerror or e
    raise CheckpointError(f'{path} cannot be read ({reason}). Move it away, or let this user read it.') from e


def gather(workdir: str) -> Facts:
  """Everything that the page shows of a run, as JSON."""
  config: Config = workdir_lib.read_config(workdir)
  folder = epath.Path(workdir)
  lines = read_lines(folder / 'metrics.jsonl', metrics.NUMBERS)
  pace = stages.pace(config)
  points = Points(lines, pace)
  samples = read_lines(folder / 'samples.jsonl', metrics.SAMPLE)
  account = ledger.account(ledger.read(workdir))
  return dict(
      name=folder.absolute().name,
      made=time.strftime('%Y-%m-%d %H:%M'),
      model=f'{config.model.name}, {config.objective.name}',
      target=config.stop.tokens,
      pace=pace,
      **_progress(workdir, config, lines),
      curves=_curves(points),
      mixture=points.curves('rows/'),
      tasks=_task_curves(points),
      side=_side_curves(points),
      experts=points.curves('side/router/load/'),
      rewinds=_rewinds(workdir, pace),
      time=account,
      names=NAMES,
      samples=samples[-SAMPLES:],
      **_config_keys(config))


def _progress(workdir: str, config: Config, lines: list[Line]) -> Facts:
  """How far a run has come, and its result if it has reached the target of the config as it is now."""
  steps = training_steps(lines)
  last_step = steps[-1] if steps else dict(tokens=0)
  result = workdir_lib.read_result(workdir, config)
  newest = result or last_step
  last_number = 0
  last_validation = None
  for line in lines:
    last_number = max(last_number, line['step'])
    if 'validation/nll' in line:
      last_validation = line
  return dict(
      result=result,
      tokens=newest['tokens'],
      step=last_number,
      last=last_validation,
      bad_steps=last_step.get('bad_steps') or 0,
  )


def training_steps(lines: list[Line]) -> list[Line]:
  """The lines of training steps."""
  return [line for line in with_number(lines, 'tokens') if 'loss' in line]


def _curves(points: 'Points') -> dict[str, Curve]:
  steps = training_steps(points.lines)
  curves = {}
  for key in CURVES:
    curves[key] = points.curve(key, steps)
  curves['validation'] = points.curve('validation/nll', points.lines)
  return curves


def _task_curves(points: 'Points') -> dict[str, Curve]:
  curves = points.curves('tasks/')
  for key in list(curves):
    if key.endswith('_stderr'):
      del curves[key]
  return curves


def _side_curves(points: 'Points') -> dict[str, Curve]:
  """Of values beside the loss, without those of single experts."""
  curves = points.curves('side/')
  for key in list(curves):
    if key.startswith('router/load/'):
      del curves[key]
  return curves


def _rewinds(workdir: str, pace: Pace) -> list[Facts]:
  entries = []
  for rewind in rewinds.read_rewinds(workdir):
    tokens = stages.tokens_after(pace, rewind['to_step'])
    entries.append(dict(rewind, tokens=tokens))
  return entries


def _config_keys(config: Config) -> dict[str, list[tuple[str, str]]]:
  """The keys that differ from the defaults, and all of them; values as Python writes them."""
  changed_keys = []
  all_keys = []
  for key, value, changed in config_lib.describe(config):
    entry = (key, repr(value))
    all_keys.append(entry)
    if changed:
      changed_keys.append(entry)
  return dict(config=changed_keys, all_keys=all_keys)


class Points:
  """Points of curves: where a line of metrics.jsonl lies in tokens and in hours since the first.

  pace: tokens of steps, for lines that do not have their number.
  """

  def __init__(self, lines: list[Line], pace: Pace) -> None:
    self.lines = lines
    self.pace = pace
    self.tokens: dict[int, int] = {}  # by step
    for line in with_number(lines, 'tokens'):
      self.tokens[line['step']] = line['tokens']
    timed = with_number(lines, 'time')
    self.began = timed[0]['time'] if timed else 0.0

  def curve(self, key: str, lines: list[Line]) -> Curve:
    """The curve of a key, of at most POINTS points, each the mean of its neighbours."""
    with_key = with_number(lines, key)
    size = max(1, math.ceil(len(with_key) / POINTS))
    curve: Curve = dict(x=[], hours=[], y=[])
    for start in range(0, len(with_key), size):
      group = with_key[start:start + size]
      newest = group[-1]
      total = sum(line[key] for line in group)
      curve['x'].append(self.tokens_at(newest))
      curve['hours'].append(self._hours_at(newest))
      curve['y'].append(total / len(group))
    return curve

  def curves(self, prefix: str) -> dict[str, Curve]:
    """{rest of the key: curve} of all keys that begin with a prefix."""
    keys = set().union(*self.lines)
    curves = {}
    for key in sorted(keys):
      if not key.startswith(prefix):
        continue
      curve = self.curve(key, self.lines)
      if curve['x']:
        curves[key.removeprefix(prefix)] = curve
    return curves

  def tokens_at(self, line: Line) -> int:
    step = line['step']
    if step in self.tokens:
      return self.tokens[step]
    return stages.tokens_after(self.pace, step)

  def _hours_at(self, line: Line) -> float | None:
    if not is_number(line.get('time')):
      return None
    seconds = line['time'] - self.began
    return seconds / 3600


def with_number(lines: list[Line], key: str) -> list[Line]:
  return [line for line in lines if is_number(line.get(key))]


def is_number(value: Any) -> bool:
  """Whether it can be drawn: neither missing nor null in place of a number that was not finite."""
  if not isinstance(value, (int, float)):
    return False
  return math.isfinite(value)


def show(account: Facts, console: Any = None) -> None:
  """Prints the time of a run as a table: `ledger.account` of it."""
  from rich.console import Console
  from rich.table import Table
  seconds = account['seconds']
  total = account['total']
  table = Table('phase', 'time', 'share', box=None, pad_edge=False)
  by_length = sorted(NAMES, key=lambda name: -seconds.get(name, 0))
  for phase in by_length:
    spent = seconds.get(phase, 0)
    if not spent:
      continue
    share = f'{spent / total:.1%}'
    table.add_row(NAMES[phase], metrics.duration(spent), share)
  console = console or Console(highlight=False)
  console.print(table)
  starts = len(account['attempts'])
  plural = '' if starts == 1 else 's'
  goodput = f'{account["goodput"]:.1%}'
  console.print(f'Goodput {goodput} of {metrics.duration(total)}, {starts} start{plural}.')
