"""Writes docs/baselines.md, a table of all configs and their variants, from the configs themselves.

    python docs/baselines.py             the configs have changed
    python docs/baselines.py DIR         also what runs in DIR have reached, as launch/reproduce.sh leaves them there

tests/config/test_configs.py fails when the file is not what this writes. docs/reproduced.json keeps what was reached.
"""
import ast
import json
import os
import pathlib
import platform
import statistics
import subprocess
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from t5like import config as config_lib
from t5like.objectives import lengths
from t5like.objectives.table import OBJECTIVES
from t5like.observe import metrics

ROOT = pathlib.Path(__file__).resolve().parent.parent
REPRODUCED = ROOT / 'docs' / 'reproduced.json'
HEAD = '''# Baselines

Written by `python docs/baselines.py` from `configs/`; a test keeps it up to date. Parameters are exact, checked by
the code against `params_expected`. A reference is what was published for the model, its data and vocabulary; it is
reproduced only where runs of this code stand beside it: the mean over seeds, with their standard deviation.
`launch/reproduce.sh` trains them again; versions and commits are in `docs/reproduced.json`.

| config | parameters | published | reached here | architecture, objective | training |
|---|---|---|---|---|---|
'''


def variants(file):
  """Names of a config file's variants, '' for the plain one, without 'smoke'."""
  found = config_lib.variants(ast.parse(file.read_text()), 'arg')
  return ['', *(v for v in found if v != 'smoke')]


def reached(config, workdir):
  """Number of a run that is done, as config.reference names it: by default its last validation's nll; None if not."""
  metric = config.reference.metric or 'validation nll'
  result = pathlib.Path(workdir, 'result.json')
  if not result.exists() or not metric.removeprefix('best ').startswith('validation '):
    return None
  name = metric.rpartition(' ')[2]
  if not metric.startswith('best '):
    return json.loads(result.read_text())['validation'][name]
  lines = map(json.loads, pathlib.Path(workdir, 'metrics.jsonl').read_text().strip().split('\n'))
  return min(line[f'validation/{name}'] for line in lines if f'validation/{name}' in line)


def collect(folder):
  """Adds the runs in FOLDER/FILE.py:VARIANT/seed=N to docs/reproduced.json; returns how many configs it knows now."""
  import jax
  known = json.loads(REPRODUCED.read_text()) if REPRODUCED.exists() else {}
  git = subprocess.run(['git', 'rev-parse', '--short', 'HEAD'], cwd=ROOT, capture_output=True, text=True)
  for sweep in sorted(pathlib.Path(folder).glob('*.py*')):
    config = config_lib.load(f'{ROOT}/configs/{sweep.name}')
    values = {int(run.name.partition('=')[2]): reached(config, run) for run in sweep.glob('seed=*') if run.is_dir()}
    values = {str(seed): round(value, 5) for seed, value in sorted(values.items()) if value is not None}
    if values and values != known.get(sweep.name, {}).get('seeds'):
      known[sweep.name] = dict(metric=config.reference.metric or 'validation nll', seeds=values, jax=jax.__version__,
                               device=f'{jax.device_count()} x {jax.devices()[0].device_kind}, {platform.machine()}',
                               commit=git.stdout.strip())
  REPRODUCED.write_text(json.dumps(known, indent=1, sort_keys=True, allow_nan=False) + '\n')
  return len(known)


def here(file):
  """{variant: cell} of what was reached."""
  known = json.loads(REPRODUCED.read_text()) if REPRODUCED.exists() else {}
  cells = {}
  for name, found in known.items():
    stem, _, variant = name.partition(':')
    if stem == file.name:
      values = list(found['seeds'].values())
      spread = f' ± {statistics.stdev(values):.4f}' if len(values) > 1 else ''
      cells[variant] = (f'{found["metric"]} {statistics.mean(values):.4f}{spread} '
                        f'({len(values)} seed{"s" * (len(values) > 1)})')
  return cells


def rows(file):
  """Lines of the table, one for each variant that differs from the plain config; others share its line."""
  found = {v: config_lib.load(f'{file}:{v}' if v else str(file)) for v in variants(file)}
  same = [v for v in found if found[v] == found['']]
  names = {v: f'`{file.stem}.py{":" * bool(v)}{v}`' for v in found}
  names[''] = ', '.join([names[''], *(f'`:{v}`' for v in same if v)])
  cells = here(file)
  return [row(names[v], c, cells.get(v, '')) for v, c in found.items() if not v or v not in same]


def row(name, c, here):
  """The line of config `c`, which its first cell calls `name`; here: what was reached."""
  shapes = lengths.shapes(c)
  o, r = c.objective, c.reference
  numbers = [f'{o[key]:g}' for key in ('noise_density', 'mean_span') if key in OBJECTIVES[o.name].keys]
  objective = f'{o.name} {" / ".join(numbers)}'.strip()
  if c.data.mixture:
    objective = 'mixture: ' + ', '.join(part.name for part in lengths.components(c))
  into = f' / {shapes.targets}' if shapes.inputs else ''
  published = f'{r.metric} {r.value:g} ({r.source})' if r.metric else ''
  training = (f'{metrics.short(c.stop.tokens)} tokens in batches of {c.batch_size} x {c.data.seq_len}{into}, '
              f'{c.optimizer.name} {c.optimizer.learning_rate:.3g}, {c.schedule.name}')
  parameters = f'{c.params_expected:,}' if c.params_expected else ''
  cells = [name, parameters, published, here, f'{c.model.name}, {objective}', training]
  return f'| {" | ".join(cells)} |\n'


def table():
  """The whole file, text."""
  files = sorted(f for f in (ROOT / 'configs').glob('*.py') if f.stem not in ('base', '__init__'))
  return HEAD + ''.join(line for f in files for line in rows(f))


if __name__ == '__main__':
  os.environ.setdefault('JAX_PLATFORMS', 'cpu')
  if sys.argv[1:]:
    print(f'{REPRODUCED}: {collect(sys.argv[1])} configs')
  (ROOT / 'docs' / 'baselines.md').write_text(table(), encoding='utf-8')
