"""Batches as people can read them: what a model is given at any step, and what it must predict."""
import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from t5like import lengths
from t5like.data import kept, pipeline
from t5like.errors import ConfigError

COLOURS = ('cyan', 'green', 'yellow', 'magenta')
DOCUMENTS = 12  # of a row that are named


def show(store, config, step, rows, row=None, console=None):
  """Prints the first `rows` rows (or only `row`, an int) of the batch of `step`, rebuilt from its index alone.

  Steps and rows of a batch count from 0; rows that data.skip_rows leaves out do not count.
  """
  console = console or Console(highlight=False)
  size = config.batch_size
  if row is not None:
    check_row(config, row)
  skipped = lengths.skipped(config.data.skip_rows)
  chosen = [pipeline.after(skipped, 0, step * size + k) for k in (range(min(rows, size)) if row is None else [row])]
  train = pipeline.TrainRows(store, config)
  batch = train.batch(chosen)
  first, last = (pipeline.after(skipped, 0, step * size + k) for k in (0, size - 1))
  console.print(f'Step {step:,}: rows {first:,} to {last:,} of the endless sequence, '
                f'{len(chosen)} shown. Colours tell segments apart. So far:')
  for line in train.describe(chosen[-1] + 1):
    console.print(line, markup=False)
  _show_special(console, store.vocabulary)
  for i, index in enumerate(chosen):
    content = {k: {n: x[i] for n, x in v.items()} if isinstance(v, dict) else v[i] for k, v in batch.items()}
    component, number, epoch = train.component(index)
    name = f', {train.names[component]}' if train.names[component] else ''
    console.rule(f'row {index:,}{name}: number {number:,} of epoch {epoch}')
    _show_documents(console, train.parts[component], number)
    _show_row(console, store.vocabulary, content)


def check_row(config, row):
  """ConfigError for a row that batches of a config do not have."""
  size = config.batch_size
  if not 0 <= row < size:
    raise ConfigError(f'--row={row}: a batch has rows 0 to {size - 1} (batch_size={size}).')


def show_kept(store, path, rows, row=None, console=None):
  """Prints rows of a batch that a run kept because its step went bad: what the devices were given."""
  console = console or Console(highlight=False)
  batch, about = kept.read(path)
  size = len(batch['inputs'])
  if row is not None and not 0 <= row < size:
    raise ConfigError(f'--row={row}: {path} holds rows 0 to {size - 1} of its batch.')
  host = f' (host {about["host"]} of {about["hosts"]})' if about['hosts'] > 1 else ''
  console.print(f'Step {about["step"]:,}{host}, whose batch began with row {about["first_row"]:,} of the endless '
                f'sequence: loss {about["loss"]:.6g}, gradient norm {about["grad_norm"]:.6g}, update norm '
                f'{about["update_norm"]:.6g}.')
  for i in range(min(rows, size)) if row is None else [row]:
    console.rule(f'row {i} of {size}')
    _show_row(console, store.vocabulary,
              {k: {n: x[i] for n, x in v.items()} if isinstance(v, dict) else v[i] for k, v in batch.items()})


def _show_special(console, vocabulary):
  """One line of the special tokens, with their ids."""
  roles = {role: i for role, i in vocabulary.special().items() if not isinstance(i, list)}
  words = [f'{role} {vocabulary.pieces([i])[0]} ({i})' for role, i in roles.items()]
  ends = [str(i) for i in vocabulary.special().get('stops', ())]
  words += [f'generated text also ends at {", ".join(ends)}'] if ends else []
  words.append(f'{vocabulary.num_sentinels} sentinels')
  console.print(f'Special tokens: {", ".join(words)}', style='dim', markup=False)


def _show_documents(console, part, number):
  """Which documents a row was made of."""
  found = [document for span in part.spans(number) for document in part.store.names('train', *span)]
  console.print(f'From {len(found)} document{"s" * (len(found) > 1)}:', style='dim')
  for name, first, count in found[:DOCUMENTS]:
    console.print(f'  {name}, tokens {first:,} to {first + count - 1:,}', style='dim', markup=False)
  if len(found) > DOCUMENTS:
    console.print(f'  and {len(found) - DOCUMENTS} more', style='dim')


def _show_row(console, vocabulary, row):
  if 'encoder' in row:
    console.print('The encoder reads:', style='dim')
    console.print(_text(vocabulary, row['encoder'], row['encoder']['inputs']))
  if 'predict' in row:
    console.print('The encoder reads:', style='dim')
    console.print(_text(vocabulary, row, row['inputs']))
    return _table(console, vocabulary, row, [(t, n) for n, t in enumerate(row['predict']) if row['weights'][n]])
  segments = row['segments']
  real = int(np.sum(segments > 0))
  console.print(f'To predict ({real} of {len(segments)} positions, {row["weights"].sum():g} weighted, '
                f'{len(set(segments[segments > 0]))} segments):', style='dim')
  console.print(_text(vocabulary, row, row['targets']))
  _table(console, vocabulary, row, [None if t is None else (t, t) for t in _edges(segments)])


def _text(vocabulary, row, ids):
  """The text of a row, a colour to each segment."""
  text, segments = Text(), row['segments']
  for segment in sorted(set(segments[segments > 0])):
    own = ids[segments == segment]
    colour = COLOURS[segment % len(COLOURS)]
    text.append(vocabulary.decode(own), colour)
    if own[-1] == vocabulary.eos_id:
      text.append('<eos>', f'{colour} reverse')
  return text


def _table(console, vocabulary, row, places):
  """A line for each of `places`, pairs (position, number of its target); None where some are left out."""
  prefix = ['prefix'] * ('prefix' in row)
  table = Table('position', 'segment', 'input', 'target', 'weight', *prefix, box=None, pad_edge=False)
  for place in places:
    if place is None:
      table.add_row('...')
      continue
    t, n = place
    name = lambda key, i: Text(repr(vocabulary.pieces(row[key][i:i + 1])[0]) + f' {row[key][i]}')
    table.add_row(str(row['positions'][t]), str(row['segments'][t]), name('inputs', t), name('targets', n),
                  f'{row["weights"][n]:g}', *(['yes' if row['prefix'][t] else ''] if prefix else []),
                  style=COLOURS[row['segments'][t] % len(COLOURS)])
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
