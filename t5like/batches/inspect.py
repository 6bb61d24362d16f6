"""Batches as people can read them: the input of a model at any step, and what it must predict."""
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from t5like.batches import bad_batches, pipeline
from t5like.batches.train_rows import TrainRows
from t5like.config import stages
from t5like.config_type import Config
from t5like.errors import ConfigError
from t5like.objectives import lengths
from t5like.vocabulary.kinds import Vocabulary

Row = dict[str, Any]  # of a batch: {name: array [T], or a dict of arrays for the encoder}
Place = tuple[int, int]  # a position, and the number of its target

COLOURS = ('cyan', 'green', 'yellow', 'magenta')
DOCUMENTS = 12  # of a row that are named
AROUND = 3  # positions shown on each side of the edge of a segment


def show(
    store: Any,
    config: Config,
    step: int,
    rows: int,
    row: int | None = None,
    console: Console | None = None,
) -> None:
  """Prints rows of the batch of a step, rebuilt from its index alone.

  Args:
    store: of the prepared data, a Store or Stores.
    config: of the run.
    step: from 0.
    rows: how many rows of the batch to print.
    row: the only row to print, from 0; rows that data.skip_rows leaves out do not count.
    console: where to print; None: the terminal.

  Raises:
    ConfigError: the batch does not have that row.
  """
  console = console or _terminal()
  stretch, stage = stage_of(config, step)
  if row is not None:
    check_row(stage.config, row)
  size = stage.config.batch_size
  skipped = lengths.skipped(config.data.skip_rows)
  start = stretch.row + (step - stretch.step) * size
  indices = []
  for k in _shown(rows, size, row):
    indices.append(pipeline.after(skipped, 0, start + k))
  train = TrainRows(store, config)
  firsts = []
  for other in stages.course(stages.of(config)):
    first = pipeline.after(skipped, 0, other.row)
    firsts.append(first)
  train.place(firsts)
  part = train.stage(indices[0])
  batch = train.batch(indices)
  first = pipeline.after(skipped, 0, start)
  last = pipeline.after(skipped, 0, start + size - 1)
  if stage.where:
    console.print(f'{stage.where} has begun: {stage.changes}', markup=False)
  console.print(f'Step {step:,}: rows {first:,} to {last:,} of the endless sequence, '
                f'{len(indices)} shown. Colours distinguish segments. So far:')
  for line in train.describe(indices[-1] + 1):
    console.print(line, markup=False)
  _show_special(console, store.vocabulary)
  for i, index in enumerate(indices):
    component, number, epoch = train.component(index)
    name = part.names[component]
    label = f'row {index:,}'
    if name:
      label += f', {name}'
    console.rule(f'{label}: number {number:,} of epoch {epoch}')
    _show_documents(console, part.parts[component], number)
    _show_row(console, store.vocabulary, _row(batch, i))


def stage_of(config: Config, step: int) -> tuple[stages.Stretch, stages.Stage]:
  """The stage that a step, from 0, belongs to; steps after the end of a run are of the last one."""
  listed = stages.of(config)
  stretches = stages.course(listed)
  current = stretches[0]
  for stretch in stretches:
    has_begun = stretch.step <= step
    begins = stretch.tokens < config.stop.tokens
    if has_begun and begins:
      current = stretch
  return current, listed[current.stage]


def _terminal() -> Console:
  return Console(highlight=False)


def _shown(rows: int, size: int, row: int | None) -> Sequence[int]:
  """Which rows of a batch of `size` rows to print: `row` alone, or the first ones."""
  if row is not None:
    return [row]
  return range(min(rows, size))


def _row(batch: Mapping[str, Any], i: int) -> Row:
  """Row i of a batch."""
  row = {}
  for key, value in batch.items():
    if isinstance(value, dict):
      row[key] = _row(value, i)
    else:
      row[key] = value[i]
  return row


def check_row(config: Config, row: int) -> None:
  """ConfigError for a row that batches of a config do not have."""
  size = config.batch_size
  if not 0 <= row < size:
    raise ConfigError(f'--row={row}: a batch has rows 0 to {size - 1} (batch_size={size}).')


def show_kept(
    store: Any,
    path: str,
    rows: int,
    row: int | None = None,
    console: Console | None = None,
) -> None:
  """Prints rows of a batch that a run kept because its step went bad, as the devices received them.

  Args:
    store: of the prepared data, a Store or Stores.
    path: of the file, see bad_batches.py.
    rows: how many rows to print.
    row: the only row to print, from 0.
    console: where to print; None: the terminal.

  Raises:
    ConfigError: the batch does not have that row.
    DataError: the file is not a batch.
  """
  console = console or _terminal()
  batch, about = bad_batches.read(path)
  size = len(batch['inputs'])
  if row is not None and not 0 <= row < size:
    raise ConfigError(f'--row={row}: {path} holds rows 0 to {size - 1} of its batch.')
  host = ''
  if about['hosts'] > 1:
    host = f' (host {about["host"]} of {about["hosts"]})'
  console.print(f'Step {about["step"]:,}{host}, whose batch began with row {about["first_row"]:,} of the endless '
                f'sequence: loss {about["loss"]:.6g}, gradient norm {about["grad_norm"]:.6g}, update norm '
                f'{about["update_norm"]:.6g}.')
  for i in _shown(rows, size, row):
    console.rule(f'row {i} of {size}')
    _show_row(console, store.vocabulary, _row(batch, i))


def _show_special(console: Console, vocabulary: Vocabulary) -> None:
  """One line of the special tokens, with their ids."""
  special = vocabulary.special()
  stops = special.pop('stops', [])
  words = []
  for role, i in special.items():
    (piece,) = vocabulary.pieces([i])
    words.append(f'{role} {piece} ({i})')
  if stops:
    words.append(f'generated text also ends at {", ".join(map(str, stops))}')
  words.append(f'{vocabulary.num_sentinels} sentinels')
  console.print(f'Special tokens: {", ".join(words)}', style='dim', markup=False)


def _show_documents(console: Console, part: Any, number: int) -> None:
  """The documents that a row was made of; part: the Rows of its component; number: of the row there."""
  documents = []
  for start, size in part.spans(number):
    documents += part.store.names('train', start, size)
  plural = 's' * (len(documents) > 1)
  console.print(f'From {len(documents)} document{plural}:', style='dim')
  for name, first, count in documents[:DOCUMENTS]:
    last = first + count - 1
    console.print(f'  {name}, tokens {first:,} to {last:,}', style='dim', markup=False)
  more = len(documents) - DOCUMENTS
  if more > 0:
    console.print(f'  and {more} more', style='dim')


def _show_row(console: Console, vocabulary: Vocabulary, row: Row) -> None:
  if 'encoder' in row:
    encoder = row['encoder']
    console.print('The encoder reads:', style='dim')
    console.print(_text(vocabulary, encoder, encoder['inputs']))
  if 'predict' in row:
    _show_predictions(console, vocabulary, row)
  else:
    _show_targets(console, vocabulary, row)


def _show_predictions(
    console: Console,
    vocabulary: Vocabulary,
    row: Row,
) -> None:
  """A row of an encoder, which predicts only some positions."""
  console.print('The encoder reads:', style='dim')
  console.print(_text(vocabulary, row, row['inputs']))
  places = []
  for number, position in enumerate(row['predict']):
    if row['weights'][number]:
      places.append((position, number))
  console.print(_table(vocabulary, row, places))


def _show_targets(console: Console, vocabulary: Vocabulary, row: Row) -> None:
  """A row of a decoder, which predicts at all positions."""
  segments = row['segments']
  real = segments[segments > 0]
  console.print(f'To predict ({len(real)} of {len(segments)} positions, {row["weights"].sum():g} weighted, '
                f'{len(set(real))} segments):', style='dim')
  console.print(_text(vocabulary, row, row['targets']))
  console.print(_table(vocabulary, row, _edges(segments)))


def _text(vocabulary: Vocabulary, row: Row, ids: np.ndarray) -> Text:
  """The text of a row in the colours of its segments; ids: int [T]."""
  text = Text()
  segments = row['segments']
  numbers = set(segments[segments > 0])
  for segment in sorted(numbers):
    is_inside = segments == segment
    segment_ids = ids[is_inside]
    colour = COLOURS[segment % len(COLOURS)]
    text.append(vocabulary.decode(segment_ids), colour)
    if segment_ids[-1] == vocabulary.eos_id:
      text.append('<eos>', f'{colour} reverse')
  return text


def _table(
    vocabulary: Vocabulary,
    row: Row,
    places: Sequence[Place | None],
) -> Table:
  """A line for each place; None where some positions are left out."""
  has_prefix = 'prefix' in row
  table = Table(
      'position',
      'segment',
      'input',
      'target',
      'weight',
      box=None,
      pad_edge=False,
  )
  if has_prefix:
    table.add_column('prefix')
  for place in places:
    if place is None:
      table.add_row('...')
      continue
    position, number = place
    segment = row['segments'][position]
    weight = row['weights'][number]
    cells = [
        str(row['positions'][position]),
        str(segment),
        _token(vocabulary, row['inputs'][position]),
        _token(vocabulary, row['targets'][number]),
        f'{weight:g}',
    ]
    if has_prefix:
      is_prefix = bool(row['prefix'][position])
      cells.append('yes' * is_prefix)
    colour = COLOURS[segment % len(COLOURS)]
    table.add_row(*cells, style=colour)
  return table


def _token(vocabulary: Vocabulary, i: int) -> Text:
  """A token, and its id."""
  (piece,) = vocabulary.pieces([i])
  return Text(f'{piece!r} {i}')


def _edges(segments: np.ndarray) -> list[Place | None]:
  """Places worth showing, where the segments int [T] change; None where some positions are left out."""
  changes = np.flatnonzero(np.diff(segments)) + 1
  shown = set()
  for edge in (0, *changes, len(segments)):
    start = max(0, edge - AROUND)
    stop = min(len(segments), edge + AROUND)
    shown.update(range(start, stop))
  places = []
  last = -1
  for position in sorted(shown):
    if position != last + 1:
      places.append(None)
    places.append((position, position))
    last = position
  return places
