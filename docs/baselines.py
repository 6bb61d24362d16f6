"""Writes docs/baselines.md, a table of all configs and their variants, from the configs themselves.

    python docs/baselines.py

tests/test_configs.py fails when the file is not what this writes.
"""
import ast
import os
import pathlib
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from t5like import config as config_lib, lengths, metrics

ROOT = pathlib.Path(__file__).resolve().parent.parent
HEAD = '''# Baselines

Written by `python docs/baselines.py` from `configs/`; a test keeps it up to date. Parameters are exact, checked by
the code against `params_expected`. A reference is what was published for the model, its data and vocabulary; it is
verified only where a run of this code has reached it (see `benchmarks/RESULTS.md`).

| config | parameters | objective | batch x tokens | optimizer, schedule | tokens | published | source | verified here |
|---|---|---|---|---|---|---|---|---|
'''


def variants(file):
  """Names of a config file's variants, '' for the plain one, without 'smoke'."""
  found = config_lib.variants(ast.parse(file.read_text()), 'arg')
  return ['', *(v for v in found if v != 'smoke')]


def rows(file):
  """Lines of the table, one for each variant that differs from the plain config; others share its line."""
  found = {v: config_lib.load(f'{file}:{v}' if v else str(file)) for v in variants(file)}
  same = [v for v in found if found[v] == found['']]
  names = {v: f'`{file.stem}.py{":" * bool(v)}{v}`' for v in found}
  names[''] = ', '.join([names[''], *(f'`:{v}`' for v in same if v)])
  return [row(names[v], c) for v, c in found.items() if not v or v not in same]


def row(name, c):
  """The line of config `c`, which its first cell calls `name`."""
  shapes = lengths.shapes(c)
  o, r = c.objective, c.reference
  objective = o.name if o.name not in ('span_corruption', 'masked_lm') else (
      f'{o.name} {o.noise_density:g}' + (f' / {o.mean_span:g}' if o.name == 'span_corruption' else ''))
  if c.data.mixture:
    objective = 'mixture: ' + ', '.join(part.name for part in lengths.components(c))
  into = f' / {shapes.targets}' if shapes.inputs else ''
  cells = [name, f'{c.params_expected:,}' if c.params_expected else '',
           f'{c.model.name}, {objective}', f'{c.batch_size} x {c.data.seq_len}{into}',
           f'{c.optimizer.name} {c.optimizer.learning_rate:g}, {c.schedule.name}', metrics.short(c.stop.tokens),
           f'{r.metric} {r.value:g}' if r.metric else '', r.source, 'yes' if r.verified else 'no' if r.metric else '']
  return f'| {" | ".join(cells)} |\n'


def table():
  """The whole file, text."""
  files = sorted(f for f in (ROOT / 'configs').glob('*.py') if f.stem not in ('base', '__init__'))
  return HEAD + ''.join(line for f in files for line in rows(f))


if __name__ == '__main__':
  os.environ.setdefault('JAX_PLATFORMS', 'cpu')
  (ROOT / 'docs' / 'baselines.md').write_text(table(), encoding='utf-8')
