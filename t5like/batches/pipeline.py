"""From prepared datasets to batches: row = f(seed, config, index), and nothing else.

Row i of the endless training sequence belongs to one component of the config (a dataset with an
objective; usually there is one), dealt out so that any stretch of rows has the components in exact
proportion (mixing.py), and is a certain row of that component: Grain computes its `order`, a new shuffle
of all rows in every epoch, for any i at once. The batch of a step is the batch_size rows from
`examples_seen` on, but for windows of rows that are skipped, whoever reads it: hosts, worker processes
and restarts cannot change it, and the only state to keep is the integer `examples_seen`.
"""
import bisect
import contextlib
import dataclasses
import itertools
import signal
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import grain
from absl import flags

from t5like.batches import frames
from t5like.batches.rows import Rows
from t5like.batches.train_rows import TrainRows
from t5like.config_type import Config
from t5like.errors import ConfigError, DataError
from t5like.objectives import lengths
from t5like.objectives.functions import Batch
from t5like.prepared import parts
from t5like.prepared.store import Store, Stores

VALIDATION = 2 ** 32  # stream of random numbers; those of training components count from 0

Windows = Sequence[lengths.Window]  # of rows that are left out, sorted and disjoint


def after(skipped: Windows, row: int, count: int) -> int:
  """The row that comes `count` rows after `row` (or after a window that holds it), without `skipped` ones."""
  first = row
  row += count
  for start, stop in skipped:
    if start > row:
      break
    first_skipped = max(start, first)
    row += max(0, stop - first_skipped)
  return row


def to_skip(
    config: Config,
    examples_seen: int,
    recorded: Windows,
) -> list[lengths.Window]:
  """Windows of rows to leave out: those recorded in a checkpoint, and of data.skip_rows what lies ahead.

  ConfigError for a window that was trained on already.
  """
  ahead = []
  for start, stop in lengths.skipped(config.data.skip_rows):
    if stop > examples_seen:
      first = max(start, examples_seen)
      ahead.append((first, stop))
      continue
    was_skipped = any(first < stop <= last for first, last in recorded)
    if not was_skipped:
      raise ConfigError(f'data.skip_rows: rows {start:,} to {stop - 1:,} were trained on already, this run is at row '
                        f'{examples_seen:,}. To leave them out, resume from an older checkpoint (delete newer ones) '
                        'or begin in another --workdir.')
  return lengths.merged([*recorded, *ahead])


# --- Training ---------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Stretch:
  """Batches of one size.

  batches: how many.
  size: rows of each.
  mine: which rows of each batch are this host's (sharding.rows_of_host).
  """
  batches: int
  size: int
  mine: Sequence[int]


class _HostBatches:
  """What Grain reads ahead: element k is this host's part of the k-th batch after `examples_seen`."""

  def __init__(
      self,
      rows: TrainRows,
      stretches: Sequence[Stretch],
      examples_seen: int,
      skipped: Windows,
  ):
    self.rows = rows
    self.stretches = stretches
    self.seen = examples_seen
    self.skipped = skipped
    self._batches_before = [0]  # each stretch
    self._rows_before = [0]
    for stretch in stretches[:-1]:
      self._batches_before.append(self._batches_before[-1] + stretch.batches)
      self._rows_before.append(self._rows_before[-1] + stretch.batches * stretch.size)

  def __len__(self) -> int:
    return sys.maxsize

  def __getitem__(self, index: int) -> Batch:
    number = bisect.bisect_right(self._batches_before, index) - 1
    stretch = self.stretches[number]
    batch_of_stretch = index - self._batches_before[number]
    start = self._rows_before[number] + batch_of_stretch * stretch.size
    rows = [after(self.skipped, self.seen, start + n) for n in stretch.mine]
    return self.rows.batch(rows)


@contextlib.contextmanager
def train_batches(
    rows: TrainRows,
    config: Config,
    examples_seen: int = 0,
    mine: Sequence[int] | None = None,
    skipped: Windows = (),
    stretches: Sequence[Stretch] = (),
) -> Iterator[Iterator[Batch]]:
  """Iterator of this host's part of each batch, read ahead by a thread (or worker processes).

  The global array, row for row, is the same for every number of hosts.

  Args:
    rows: of the sequence.
    config: of the run.
    examples_seen: the row that it begins with.
    mine: which rows of each batch are this host's (sharding.rows_of_host), by default all.
    skipped: windows of rows to leave out (see `after`).
    stretches: batches of one size, then those of another; the last ones are without end. By default all are of
      config.batch_size.
  """
  if mine is None:
    mine = range(config.batch_size)
  if not stretches:
    stretches = [Stretch(sys.maxsize, config.batch_size, mine)]
  source = _HostBatches(rows, stretches, examples_seen, skipped)
  read = grain.ReadOptions(num_threads=1, prefetch_buffer_size=config.data.prefetch)
  dataset = grain.MapDataset.source(source).to_iter_dataset(read)
  if config.data.workers:
    if not flags.FLAGS.is_parsed():  # Grain's workers read absl's flags
      flags.FLAGS.mark_as_parsed()
    options = grain.MultiprocessingOptions(
        num_workers=config.data.workers,
        per_worker_buffer_size=config.data.prefetch,
    )
    dataset = dataset.mp_prefetch(options, _be_a_worker)
  iterator = iter(dataset)
  try:
    yield _read(iterator)
  finally:
    iterator.close()


ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def _be_a_worker(*_: Any) -> None:
  """Begins a worker process of Grain, which passes its number and how many there are.

  Signals that a terminal or a cluster sends to all processes of a run are the training process's to act upon: it
  still needs its workers for the step after which it saves, and ends them itself.
  """
  parts.die_with_parent()
  for number in ENDING:
    signal.signal(number, signal.SIG_IGN)
  signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING)


@contextlib.contextmanager
def _blocked() -> Iterator[None]:
  """Processes that are started meanwhile are deaf to ENDING until `_be_a_worker`."""
  before = signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
  try:
    yield
  finally:
    signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _read(iterator: Iterator[Batch]) -> Iterator[Batch]:
  try:
    with _blocked():  # workers start with the first
      first = next(iterator)
    yield from itertools.chain([first], iterator)
  except RuntimeError as error:
    if 'terminated unexpectedly' not in str(error):
      raise
    raise DataError('A reading process was killed (out of memory? data.workers sets how many there are). Nothing is '
                    'lost: the same command resumes from the newest checkpoint, with the same rows.') from error


# --- Evaluation -------------------------------------------------------------------------------------


def evaluation_batches(
    store: Store | Stores,
    config: Config,
    split: str = 'validation',
    mine: Sequence[int] | None = None,
) -> Iterator[tuple[str, Batch]]:
  """Pairs (component name, batch): every row of a split once, in order, component by component.

  Rows missing from a component's last batch have weight 0. Yields as many batches on each host, of its rows (`mine`,
  as of `train_batches`). What is masked or corrupted is the same every time and for every seed.
  """
  if mine is None:
    mine = range(config.batch_size)
  components = lengths.components(config)
  frame = frames.frame(components)
  for k, component in enumerate(components):
    if split not in store.of(component).splits:
      continue
    rows = Rows(store, component, split, 0, VALIDATION + k)
    for b in range(_num_batches(len(rows), config)):
      start = b * config.batch_size
      numbers = [start + n for n in mine if start + n < len(rows)]
      out = frame.blank(len(mine))
      if numbers:
        first_epoch = [0] * len(numbers)
        made = rows.batch(numbers, first_epoch)
        frames.put(out, made, range(len(numbers)))
      yield component.name, out


def _num_batches(rows: int, config: Config) -> int:
  """Batches that evaluate so many rows, or as many of them as evaluate.batches allows."""
  batches = -(-rows // config.batch_size)
  if config.evaluate.batches:
    return min(batches, config.evaluate.batches)
  return batches
