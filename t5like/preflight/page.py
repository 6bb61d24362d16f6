"""The results of preflight, on one page for people."""
from collections.abc import Iterable, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from t5like import sharding
from t5like.observe import metrics
from t5like.preflight import search
from t5like.preflight.prediction import GIB, HEADROOM, Report

GROUPS = ('parameters', 'optimizer', 'batch', 'activations', 'temporaries', 'headroom')  # of HBM


def show(
    report: Report,
    price: float = 0.0,
    console: Console | None = None,
) -> None:
  """Prints a report of `prediction.predict`.

  Args:
    report: of one config on one topology.
    price: of a chip for an hour, 0 if unknown.
    console: where to; None: stdout.
  """
  console = console or _console()
  axes = [f'{axis} {size}' for axis, size in report['mesh'].items() if size > 1]
  mesh = ', '.join(axes) or 'one device'
  console.print(f'{report["parameters"]:,} parameters on {report["topology"]}: {report["chips"]} chips, '
                f'{report["hosts"]} hosts, mesh {mesh}', style='bold')
  _show_memory(console, report)
  _show_replicated(console, report)
  _show_stages(console, report)
  accuracy = 'none here'
  if report['fits']:
    accuracy = report['accuracy']
    _show_speed(console, report, price)
  how = 'up to the schedule'
  if report['full']:
    how = 'to the end'
  kernel, reason = report['kernel']
  console.print(f'Compiled {how} in {report["compile_seconds"]} s by libtpu {report["libtpu"]}, jax {report["jax"]}; '
                f'attention by {kernel} ({reason}). Times are predictions of a model: {accuracy}.', style='dim')


def _console() -> Console:
  return Console(highlight=False, soft_wrap=True)


def _show_memory(console: Console, report: Report) -> None:
  hbm = report['hbm']
  share = hbm['used'] / hbm['allowed']
  verdict = 'DOES NOT FIT'
  style = 'bold red'
  if report['fits']:
    verdict = 'Fits'
    style = 'green'
  console.print(f'{verdict}: {_gib(hbm["used"])} of the {_gib(hbm["allowed"])} of HBM that a program may use '
                f'({share:.0%})', style=style)
  _show_table(console, [(group, _gib(hbm[group])) for group in GROUPS])
  is_tight = share > HEADROOM
  if report['fits'] and is_tight:
    console.print('There is next to no room left: the compiler overlaps less, and a real run may not fit.',
                  style='yellow')
  if is_tight or not report['fits']:
    buffers = '; '.join(report['largest'])
    console.print(f'Largest buffers: {buffers}. Smaller with an earlier model.remat (full keeps least), a larger '
                  'microbatches, a smaller batch_size, or more chips.')


def _show_stages(console: Console, report: Report) -> None:
  """The stages of a run that has any; what is above and below is of the largest, times are of all."""
  if 'stages' not in report:
    return
  console.print('\nMemory above is that of the stage that needs most; the step below is the mean of all.')
  for line in report['stages']:
    text = f'{line["steps"]:,} steps of {line["batch_size"]} x {line["seq_len"]}, {_gib(line["hbm_used"])}'
    if 'hours' in line:
      text = f'{text}, {_ms(line["step_seconds"])} a step, {line["hours"]:.1f} hours'
    console.print(f'  {line["where"]}: {text}', markup=False)


def _show_replicated(console: Console, report: Report) -> None:
  """A warning where much of the parameters is on every device in full."""
  total = sum(size for _, size in report['replicated'])
  parameter_bytes = 4 * report['parameters']
  if total > sharding.MOST_REPLICATED * parameter_bytes:
    first, _ = report['replicated'][0]
    console.print(f'{total / parameter_bytes:.0%} of parameter bytes are on every device in full, {first} first.',
                  style='yellow')


def _show_speed(console: Console, report: Report, price: float) -> None:
  tokens = metrics.short(report['tokens_per_second'])
  utilisation = f'MFU {report["mfu"]:.1%} (PaLM: full attention), {report["mfu_causal"]:.1%} (causal half)'
  console.print(f'\nPredicted step: {_ms(report["step_seconds"])}, {tokens} tokens/s, {utilisation}', style='bold')
  exposed = _time(report, 'exposed')
  links = _time(report, 'links')
  flops = f'{report["flops"] / 1e12:.1f} / {report["model_flops"] / 1e12:.1f} T per device and step'
  rows = [
      ('matrix products', _time(report, 'matrix')),
      ('kernels (assumed)', _time(report, 'kernel')),
      ('memory traffic', _time(report, 'memory')),
      ('waiting for copies', _time(report, 'copies')),
      ('waiting for collectives', f'{exposed} of {links} on the links'),
  ]
  if report['slices'] > 1:
    rows.append(_between_slices(report))
  rows.append(('FLOPs of the program / of the model', flops))
  _show_table(console, rows)
  if report['quantization'] != 'none':
    console.print(f'MFU is a share of the peak of bf16; products of {report["quantization"]} are assumed to reach as '
                  'large a share of their own.')
  for seconds, name, description in report['waits'][:3]:
    console.print(f'  waits {_ms(seconds)} for {name}: {description}', style='dim', markup=False)
  cost = ''
  if price:
    cost = f', {report["chip_hours"] * price:,.0f} at {price:g} per chip-hour'
  console.print(f'{report["steps"]:,} steps: {report["hours"]:.1f} hours, {report["chip_hours"]:,.0f} chip-hours{cost}'
                f'. Each host must deliver {metrics.short(report["host_tokens_per_second"])} tokens/s; a checkpoint is '
                f'{report["checkpoint_bytes"] / 1e9:.1f} GB.')


def _between_slices(report: Report) -> tuple[str, str]:
  """The row of the network between slices."""
  sent = f'{report["counts"].get("slice_bytes", 0) / 1e6:,.1f} MB a step from each device'
  if not report['network']:
    return 'between slices', f'NOT PRICED: Google gives no speed of the network of {report["topology"]}; {sent}'
  waiting = _time(report, 'slices')
  busy = _time(report, 'network')
  return 'waiting for other slices', f'{waiting} of {busy} on their network, {sent}'


def show_search(results: Sequence[search.Result], console: Console | None = None) -> None:
  """Prints the Pareto front of the results of `search.search`, and the flags of the fastest."""
  console = console or _console()
  console.print('\nFastest first; those below are slower and smaller:', style='bold')
  for overrides, report in search.front(results):
    flags = search.flags(overrides) or 'as it is'
    console.print(f'{report["step_seconds"] * 1e3:7.1f} ms  MFU {report["mfu"]:.1%}  '
                  f'{report["hbm"]["used"] / GIB:5.1f} GiB  {flags}', markup=False)
  console.print('')


def _show_table(console: Console, rows: Iterable[Any]) -> None:
  """Of (name, value)."""
  table = Table(box=None, show_header=False, pad_edge=False)
  for name, value in rows:
    table.add_row(f'  {name}', value)
  console.print(table)


def _time(report: Report, kind: str) -> str:
  """The time of a kind, as text."""
  times = report['times']
  if kind not in times:
    return '0 ms'
  return _ms(times[kind])


def _ms(seconds: float) -> str:
  return f'{seconds * 1e3:.1f} ms'


def _gib(size: float) -> str:
  return f'{size / GIB:.2f} GiB'
