"""A run as one page, and where its time went: `python main.py report --workdir=...`."""
import html
import math
import pathlib
import re
import time

from etils import epath

from t5like import config as config_lib, ledger, metrics, plain_json, recovery, schema, workdir as workdir_lib
from t5like.errors import ConfigError

POINTS = 1500  # of a curve: more are averaged, so that the page stays small
NAMES = dict(step='training steps', data='waiting for data', compile='compiling', init='starting',
             save='standing still to save', eval='evaluating', lost='lost and done again', idle='not running')


def write(workdir, out=None):
  """Writes the page of a run (out: WORKDIR/report.html); returns (its path, what `ledger.account` found)."""
  facts = gather(workdir)
  if not facts['curves']['loss']['y'] and not facts['time']['attempts']:
    raise ConfigError(f'--workdir={workdir}: nothing was measured there yet; metrics.jsonl has no step.')
  page = (pathlib.Path(__file__).parent / 'report.html').read_text(encoding='utf-8')
  # '<' would end the script that holds the numbers.
  data = plain_json.dumps(facts, ensure_ascii=False).replace('<', '\\u003c')
  # In one pass: what is filled in may itself hold such a mark.
  values = {'@TITLE@': html.escape(facts['name']), '@DATA@': data}
  page = re.sub('@TITLE@|@DATA@', lambda mark: values[mark[0]], page)
  path = epath.Path(out or f'{workdir}/report.html')
  workdir_lib.write_file(path, page)
  return path, facts['time']


def gather(workdir):
  """All that the page shows, as JSON."""
  config = workdir_lib.read_config(workdir)
  folder = epath.Path(workdir)
  lines = list(schema.lines(folder / 'metrics.jsonl', metrics.NUMBERS))
  steps = [line for line in lines if 'loss' in line and _is_number(line.get('tokens'))]
  validations = [line for line in lines if 'validation/nll' in line]
  measured = [line for line in validations if _is_number(line['validation/nll'])]
  result = workdir_lib.read_result(workdir, config)  # None while the target of the config as it is now is ahead
  tokens = {line['step']: line['tokens'] for line in steps}
  per_step = config.batch_size * config.data.seq_len
  at = lambda line: tokens.get(line['step'], line['step'] * per_step)

  def curve(key):
    return _thin([(line['tokens'], line[key]) for line in steps if _is_number(line.get(key))])
  newest = result or (steps[-1] if steps else dict(tokens=0))
  parts = sorted({key for line in steps for key in line if key.startswith('rows/')})
  curves = {key: curve(key) for key in ('loss', 'accuracy', 'tokens_per_second', 'mfu', 'learning_rate', 'grad_norm',
                                        'update_norm', 'data_wait')}
  curves['validation'] = dict(x=[at(line) for line in measured], y=[line['validation/nll'] for line in measured])
  tasks = {}
  for line in lines:
    for key, value in line.items():
      if key.startswith('tasks/') and _is_number(value):
        tasks.setdefault(key.removeprefix('tasks/'), []).append((at(line), value))
  return dict(
      name=folder.absolute().name, made=time.strftime('%Y-%m-%d %H:%M'), result=result, target=config.stop.tokens,
      tokens=newest['tokens'],
      step=max((line['step'] for line in lines), default=0), last=validations[-1] if validations else None,
      bad_steps=steps[-1].get('bad_steps') or 0 if steps else 0, model=f'{config.model.name}, {config.objective.name}',
      curves=curves, mixture={key.removeprefix('rows/'): curve(key) for key in parts},
      tasks={key: dict(x=[x for x, _ in points], y=[y for _, y in points]) for key, points in tasks.items()
             if not key.endswith('_stderr')},
      rewinds=[dict(r, tokens=r['to_step'] * per_step) for r in recovery.read_rewinds(workdir)],
      time=ledger.account(ledger.read(workdir)), names=NAMES, per_step=per_step,
      samples=list(schema.lines(folder / 'samples.jsonl', metrics.SAMPLE))[-12:],
      config=[(key, repr(value)) for key, value, changed in config_lib.describe(config) if changed])


def _is_number(value):
  """Whether it can be drawn: not missing, nor null in place of what was not finite."""
  return isinstance(value, (int, float)) and math.isfinite(value)


def _thin(points):
  """{'x', 'y'} of at most POINTS points, each the mean of its neighbours."""
  size = max(1, -(-len(points) // POINTS))
  groups = [points[i:i + size] for i in range(0, len(points), size)]
  mean = lambda values: sum(values) / len(values)
  return dict(x=[group[-1][0] for group in groups], y=[mean([y for _, y in group]) for group in groups])


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
