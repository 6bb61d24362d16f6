"""What preflight found, on one page for people."""
from rich.console import Console
from rich.table import Table

from t5like import sharding
from t5like.observe import metrics
from t5like.preflight import prediction, search

GIB = prediction.GIB


def show(report, price=0.0, console=None):
  """Prints a report of `preflight.predict`; price: of a chip for an hour, 0 if unknown."""
  console = console or Console(highlight=False, soft_wrap=True)
  hbm, g = report['hbm'], lambda size: f'{size / GIB:.2f} GiB'
  axes = ', '.join(f'{axis} {n}' for axis, n in report['mesh'].items() if n > 1) or 'one device'
  console.print(f'{report["parameters"]:,} parameters on {report["topology"]}: {report["chips"]} chips, '
                f'{report["hosts"]} hosts, mesh {axes}', style='bold')
  share = hbm['used'] / hbm['allowed']
  verdict, style = ('Fits', 'green') if report['fits'] else ('DOES NOT FIT', 'bold red')
  console.print(f'{verdict}: {g(hbm["used"])} of the {g(hbm["allowed"])} of HBM that a program may use ({share:.0%})',
                style=style)
  groups = ('parameters', 'optimizer', 'batch', 'activations', 'temporaries', 'headroom')
  _table(console, [(name, g(hbm[name])) for name in groups])
  if report['fits'] and share > prediction.HEADROOM:
    console.print('There is next to no room left: the compiler overlaps less, and a real run may not fit.',
                  style='yellow')
  if not report['fits'] or share > prediction.HEADROOM:
    console.print('Largest buffers: ' + '; '.join(report['largest']) +
                  '. Smaller with model.remat=full, a larger microbatches, a smaller batch_size, or more chips.')
  total = sum(size for _, size in report['replicated'])
  if total > sharding.MOST_REPLICATED * 4 * report['parameters']:
    console.print(f'{total / 4 / report["parameters"]:.0%} of parameter bytes are on every device in full, '
                  f'{report["replicated"][0][0]} first.', style='yellow')
  if report['fits']:
    _show_speed(console, report, price)
  how = 'to the end' if report['full'] else 'up to the schedule'
  console.print(f'Compiled {how} in {report["compile_seconds"]} s by libtpu {report["libtpu"]}, jax '
                f'{report["jax"]}; attention by {report["kernel"][0]} ({report["kernel"][1]}). Times are predictions '
                f'of a model: {report["accuracy"] if report["fits"] else "none here"}.', style='dim')


def _show_speed(console, report, price):
  times, seconds = report['times'], report['step_seconds']
  ms = lambda kind: f'{times[kind] * 1e3:.1f} ms' if kind in times else '0 ms'
  console.print(f'\nPredicted step: {seconds * 1e3:.1f} ms, {metrics.short(report["tokens_per_second"])} tokens/s, MFU '
                f'{report["mfu"]:.1%} (PaLM: full attention), {report["mfu_causal"]:.1%} (causal half)', style='bold')
  _table(console, [
      ('matrix products', ms('matrix')), ('attention kernels (assumed)', ms('kernel')),
      ('memory traffic', ms('memory')), ('waiting for copies', ms('copies')),
      ('waiting for collectives', f'{ms("exposed")} of {ms("links")} on the links'), *_between_slices(report, ms),
      ('FLOPs of the program / of the model',
       f'{report["flops"] / 1e12:.1f} / {report["model_flops"] / 1e12:.1f} T per device and step')])
  for wait, name, what in report['waits'][:3]:
    console.print(f'  waits {wait * 1e3:.1f} ms for {name}: {what}', style='dim', markup=False)
  cost = f', {report["chip_hours"] * price:,.0f} at {price:g} per chip-hour' if price else ''
  console.print(f'{report["steps"]:,} steps: {report["hours"]:.1f} hours, {report["chip_hours"]:,.0f} chip-hours{cost}'
                f'. Each host must deliver {metrics.short(report["host_tokens_per_second"])} tokens/s; a checkpoint is '
                f'{report["checkpoint_bytes"] / 1e9:.1f} GB.')


def _between_slices(report, ms):
  """A line on the network between slices, where there are several."""
  if report['slices'] == 1:
    return []
  sent = f'{report["counts"].get("slice_bytes", 0) / 1e6:,.1f} MB a step from each device'
  if not report['network']:
    return [('between slices', f'NOT PRICED: Google gives no speed of the network of {report["topology"]}; {sent}')]
  return [('waiting for other slices', f'{ms("slices")} of {ms("network")} on their network, {sent}')]


def show_search(found, console=None):
  """Prints the Pareto front of `preflight.search`, and how to have its fastest."""
  console = console or Console(highlight=False, soft_wrap=True)
  console.print('\nFastest first; those below are slower and smaller:', style='bold')
  for overrides, report in search.front(found):
    console.print(f'{report["step_seconds"] * 1e3:7.1f} ms  MFU {report["mfu"]:.1%}  '
                  f'{report["hbm"]["used"] / GIB:5.1f} GiB  {search.flags(overrides) or "as it is"}', markup=False)
  console.print('')


def _table(console, rows):
  table = Table(box=None, show_header=False, pad_edge=False)
  for row in rows:
    table.add_row('  ' + row[0], *row[1:])
  console.print(table)
