"""Predicted step times of pods, as a table: the config as it is, and what `preflight --search` finds.

    pip install -e '.[tpu]' && python benchmarks/preflight.py            # as they are: seconds a row
    python benchmarks/preflight.py --search [--only=v5e-256]             # minutes a row

The first five rows are the yardstick: a decoder of 1.14B parameters for which the TPU compiler's schedules of
MaxText's train step are known (benchmarks/RESULTS.md).
"""
import argparse
import os
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)

from t5like import config as config_lib, preflight, tpu  # noqa: E402 (run from anywhere)

# Config, topology, batch size, and MaxText's milliseconds: full remat, remat as ours, tuned by an expert.
ROWS = [('yardstick_1b', 'v5e-64', 256, (524.9, 435.0, None)), ('yardstick_1b', 'v5e-256', 1024, (485.9, 398.2, None)),
        ('yardstick_1b', 'v5e-256', 1536, (None, 580.4, 549.0)), ('yardstick_1b', 'v5p-128', 256, (209.0, 170.1, None)),
        ('yardstick_1b', 'v6e-256', 2048, (None, 220.4, 189.6)),
        ('t5_1_1:xl', 'v5e-256', 2048, ()), ('t5_1_1:xl', 'v5p-128', 2048, ()),
        ('bert:large', 'v5e-16', 256, ()), ('bert:large', 'v5e-64', 1024, ())]


def cell(report, overrides=None):
  how = '' if overrides is None else ' ' + (preflight.flags(overrides).replace('--config.', '') or 'as it is')
  if not report['fits']:
    return f'does not fit ({report["hbm"]["used"] / preflight.GIB:.1f} GiB){how}'
  milliseconds, waiting = (1e3 * x for x in (report['step_seconds'], report['times'].get('exposed', 0)))
  return (f'{milliseconds:.1f} ms, {report["mfu"]:.1%}, {report["hbm"]["used"] / preflight.GIB:.1f} GiB, '
          f'{waiting:.1f} ms exposed{how}')


def main():
  parser = argparse.ArgumentParser()
  parser.add_argument('--search', action='store_true')
  parser.add_argument('--only', default='', help='rows whose config or topology holds this text')
  args = parser.parse_args()
  print('step, MFU (PaLM), HBM, time that collectives are waited for; predicted\n')
  print('| config | topology | batch | MaxText, ms | as it is | found |\n|---|---|---|---|---|---|')
  for name, where, batch, others in ROWS:
    if args.only not in f'{name} {where}':
      continue
    file, _, variant = name.partition(':')
    path = f'{ROOT}/configs/{file}.py' + (f':{variant}' if variant else '')
    config, topology = config_lib.load(path, [f'batch_size={batch}']), tpu.parse(where)
    default = preflight.predict(config, topology)
    found = preflight.search(config, topology, lambda line: print(line, file=sys.stderr)) if args.search else []
    best = cell(found[0][1], found[0][0]) if found else ''
    theirs = ' / '.join(f'{x:.1f}' if x else '-' for x in others)
    print(f'| {name} | {where} | {batch} | {theirs} | {cell(default)} | {best} |', flush=True)


if __name__ == '__main__':
  main()
