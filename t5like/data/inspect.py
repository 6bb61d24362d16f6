"""Batches as people can read them: what a model is given at any step, and what it must predict."""
import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from t5like.data import pipeline

COLOURS = ('cyan', 'green', 'yellow', 'magenta')


def show(store, config, step, rows, console=None):
  """Prints the first `rows` rows of the batch of `step` (from 0), rebuilt from its index alone."""
  console = console or Console(highlight=False)
  start = step * config.batch_size
  stop = start + min(rows, config.batch_size)
  batch = pipeline.TrainRows(store, config).batch(start, stop)
  console.print(f'Step {step:,} of {store.folder}: rows {start:,} to {start + config.batch_size - 1:,} '
                f'of the endless sequence, {stop - start} shown. Colours tell segments apart.')
  for i in range(stop - start):
    row = {k: v[i] for k, v in batch.items()}
    _show_row(console, store.vocabulary, start + i, row)


def _show_row(console, vocabulary, index, row):
  segments, weights = row['segments'], row['weights']
  real = int(np.sum(segments > 0))
  console.rule(f'row {index:,}: {len(segments)} positions, {real} not padding, '
               f'{len(set(segments[segments > 0]))} segments, {weights.sum():g} weighted targets')
  text = Text()
  for segment in sorted(set(segments[segments > 0])):
    ids = row['targets'][segments == segment]
    colour = COLOURS[segment % len(COLOURS)]
    text.append(vocabulary.decode(ids), colour)
    if ids[-1] == vocabulary.eos_id:
      text.append('<eos>', f'{colour} reverse')
  console.print(text)
  table = Table('position', 'segment', 'input', 'target', 'weight', box=None, pad_edge=False)
  for t in _edges(segments):
    if t is None:
      table.add_row('...', *[''] * 4)
      continue
    name = lambda key: repr(vocabulary.pieces(row[key][t:t + 1])[0]) + f' {row[key][t]}'
    table.add_row(str(row['positions'][t]), str(segments[t]), Text(name('inputs')),
                  Text(name('targets')), f'{weights[t]:g}', style=COLOURS[segments[t] % len(COLOURS)])
  console.print(table)


def _edges(segments, around=3):
  """Positions worth showing: the first and last few of each segment; None where some are left out."""
  ends = np.flatnonzero(np.diff(segments)) + 1
  shown = set()
  for edge in (0, *ends, len(segments)):
    shown.update(range(max(0, edge - around), min(len(segments), edge + around)))
  last = -1
  for t in sorted(shown):
    if t != last + 1:
      yield None
    yield t
    last = t
