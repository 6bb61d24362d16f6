"""Predicted step times of pods, as a table: the config as it is, and what `preflight --search` finds.

    pip install -e '.[tpu]' && python benchmarks/preflight.py            # as they are: seconds a row
    python benchmarks/preflight.py --search [--only=v5e-256]             # minutes a row
    python benchmarks/preflight.py --fastest                             # the fastest known, beside what was before

The first rows are yardsticks: decoders for which the TPU compiler's schedules of MaxText's train step are known
(benchmarks/RESULTS.md). Its figures were read with attention kernels at half of the peak on half of the square of
queries and keys, whatever blocks they visit: ours are given by that ruler beside them, too. The page that preflight
shows prices kernels by the blocks that they visit; with blocks of 512 at 2,048 that is the same.
"""
import argparse
import dataclasses
import math
import os
import re
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)

from t5like import config as config_lib  # noqa: E402
from t5like.model.kernels import visits as visits_lib  # noqa: E402
from t5like.preflight import (  # noqa: E402 (run from anywhere)
  hlo,
  kernel_calls,
  prediction,
  search as search_lib,
  topologies,
)


@dataclasses.dataclass(frozen=True)
class Row:
  config: str
  topology: str
  batch: int
  maxtext: float = 0.0  # milliseconds; 0: not known
  overrides: tuple = ()
  note: str = ''
  before: float = 0.0  # milliseconds, by the same ruler, of commit 19bbc55; 0: it did not fit


RSF = f'compile.options={search_lib.FUSED_REDUCE_SCATTER}'  # as search finds it
# MaxText 0.2.5, compiled by jax 0.12.0.1 and libtpu 0.0.50.1 with the same rows per chip, remat and split of devices.
ROWS = (
    Row('yardstick_1b', 'v5e-256', 1024, 389.1),
    Row('yardstick_1b', 'v5e-256', 1536, 534.8, ('mesh.data=2', 'model.scan_layers=False', RSF),
        'data=2, unrolled, RSF'),
    Row('yardstick_llama:8b', 'v5e-256', 256, 3614.8), Row('yardstick_llama:8b', 'v5p-128', 256, 5931.7),
    Row('yardstick_llama:8b', 'v6e-256', 768, 2514.2), Row('yardstick_llama:70b', 'v5p-512', 1024, 22_731.0),
    Row('yardstick_1b', 'v5e-64', 256), Row('yardstick_1b', 'v5e-256', 1536), Row('yardstick_1b', 'v5p-128', 256),
    Row('yardstick_1b', 'v6e-256', 2048), Row('t5_1_1:xl', 'v5e-256', 2048), Row('t5_1_1:xl', 'v5p-128', 2048),
    Row('bert:large', 'v5e-16', 256), Row('bert:large', 'v5e-64', 1024))

OUTER = 'mesh.fsdp_outer=2'
UNROLLED = 'model.scan_layers=False'
WEIGHTS = 'model.remat=weights'
ATTENTION = 'model.remat=attention'
SC = f'compile.options={search_lib.SPARSE_CORES}'
FASTEST = (
    Row('yardstick_1b', 'v5e-256', 1024, 389.1, (OUTER, WEIGHTS, RSF), 'fsdp_outer=2, weights, RSF', 385.1),
    Row('yardstick_1b', 'v5e-256', 1536, 534.8, (OUTER, UNROLLED, RSF), 'fsdp_outer=2, unrolled, RSF', 550.7),
    Row('yardstick_llama:8b', 'v5e-256', 256, 3614.8, (OUTER, ATTENTION, RSF), 'fsdp_outer=2, attention, RSF', 3667.0),
    Row('yardstick_llama:8b', 'v5p-128', 256, 5931.7, ('model.remat=up', 'loss.chunks=1'), 'up, logits whole', 6002.0),
    Row('yardstick_llama:8b', 'v6e-256', 768, 2514.2, (ATTENTION, 'loss.chunks=2', SC),
        'attention, logits in 2 pieces, SC', 2552.0),
    Row('yardstick_llama:70b', 'v5p-512', 1024, 22_731.0, (ATTENTION,), 'attention', 22_698.0),
    Row('t5_1_1:xl', 'v5e-256', 2048, 0.0, (OUTER, WEIGHTS, RSF), 'fsdp_outer=2, weights, RSF', 394.7),
    Row('t5_1_1:xxl', 'v5p-256', 2048, 0.0, (WEIGHTS,), 'weights', 1024.0),
    Row('bert:large_512', 'v5e-64', 1024, 0.0, (), 'minimal'),
)


def half_of_the_square(op):
  """FLOPs of a call of splash as MaxText's were read: of a causal mask one half, whatever blocks are visited."""
  visits, flops = visits_lib.read(op.origin), kernel_calls.flops(op)
  if visits is None or visits.block_q != visits.block_k:
    raise hlo.Unreadable(f'%{op.name}: this ruler is for splash attention of a row to itself')
  if visits.mask != 'causal':
    return flops
  side = (math.isqrt(8 * visits.pairs + 1) - 1) // 2  # in blocks: half the square and half the diagonal are visited
  if side * (side + 1) // 2 != visits.pairs:
    raise hlo.Unreadable(f'%{op.name}: this ruler is for whole rows')
  return flops * side ** 2 / 2 / visits.pairs


RULER = dict(half=(half_of_the_square, 0.5))


def cell(report, overrides=None):
  how = '' if overrides is None else ' ' + (search_lib.flags(overrides).replace('--config.', '') or 'as it is')
  if not report['fits']:
    return f'does not fit ({report["hbm"]["used"] / prediction.GIB:.1f} GiB){how}'
  milliseconds, waiting = (1e3 * x for x in (report['step_seconds'], report['times'].get('exposed', 0)))
  return (f'{milliseconds:.1f} ms, {report["mfu"]:.1%}, {report["hbm"]["used"] / prediction.GIB:.1f} GiB, '
          f'{waiting:.1f} ms exposed{how}')


def line(row, search):
  file, _, variant = row.config.partition(':')
  path = f'{ROOT}/configs/{file}.py' + (f':{variant}' if variant else '')
  config, topology = config_lib.load(path, [f'batch_size={row.batch}', *row.overrides]), topologies.parse(row.topology)
  default = prediction.predict(config, topology, readings=RULER if row.maxtext else None)
  found = search_lib.search(config, topology, lambda text: print(text, file=sys.stderr)) if search else []
  best = cell(found[0][1], found[0][0]) if found else ''
  theirs = f'{row.maxtext:,.1f}' if row.maxtext else ''
  same_ruler = f'{1e3 * default["readings"]["half"]:,.1f}' if row.maxtext and default['fits'] else ''
  rows = row.batch / topology.devices
  name = row.config + (f", {row.note}" if row.note else "")
  return (f"| {name} | {row.topology} | {rows:g} | {theirs} | {same_ruler} | "
          f'{cell(default)} | {best} |')


def fastest_line(row):
  """A row of the table of `--fastest`: MaxText, before and now by one ruler, and what the page says."""
  file, _, variant = row.config.partition(':')
  path = f'{ROOT}/configs/{file}.py' + (f':{variant}' if variant else '')
  config = config_lib.load(path, [f'batch_size={row.batch}', *row.overrides])
  topology = topologies.parse(row.topology)
  report = prediction.predict(config, topology, readings=RULER if row.maxtext else None)
  now = report['readings'].get('half', report['step_seconds']) if report['fits'] else 0.0
  theirs = f'{row.maxtext:,.1f}' if row.maxtext else ''
  rows = row.batch / topology.devices
  return (f'| {row.config}, {row.note} | {row.topology} | {rows:g} | {theirs} | {row.before:,.1f} | {1e3 * now:,.1f} | '
          f'{cell(report)} |')


def main():
  parser = argparse.ArgumentParser()
  parser.add_argument('--search', action='store_true')
  parser.add_argument('--only', default='', help='a regular expression for rows: "config topology batch note"')
  parser.add_argument('--fastest', action='store_true', help='the fastest layouts known, beside earlier figures')
  args = parser.parse_args()
  if args.fastest:
    print('| config | topology | rows per chip | MaxText, ms | before | now | as the page says |\n' + '|---' * 7 + '|')
    for row in FASTEST:
      if re.search(args.only, f'{row.config} {row.topology} {row.batch} {row.note}'):
        print(fastest_line(row), flush=True)
    return
  print('step, MFU (PaLM), HBM, time that collectives are waited for; predicted\n')
  print('| config | topology | rows per chip | MaxText, ms | ours by the same ruler, ms | as it is | found |\n'
        + '|---' * 7 + '|')
  for row in ROWS:
    if re.search(args.only, f'{row.config} {row.topology} {row.batch} {row.note}'.strip()):
      print(line(row, args.search), flush=True)


if __name__ == '__main__':
  main()
