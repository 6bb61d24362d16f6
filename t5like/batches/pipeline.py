"""From prepared datasets to batches: row = f(seed, config, index), and nothing else.

Row i of the endless training sequence belongs to one component of the config (a dataset with an
objective; usually there is one), dealt out so that any stretch of rows has the components in exact
proportion (mixing.py), and is a certain row of that component: Grain computes its `order`, a new shuffle
of all rows in every epoch, for any i at once. The batch of a step is the batch_size rows from
`examples_seen` on, but for windows of rows that are skipped, whoever reads it: hosts, worker processes
and restarts cannot change it, and the only state to keep is the integer `examples_seen`.
"""
import contextlib
import dataclasses
import itertools
import signal
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import grain
import numpy as np
from absl import flags

from t5like.batches import mixing
from t5like.batches.rows import Rows
from t5like.config_type import Config
from t5like.errors import ConfigError, DataError
from t5like.objectives import lengths
from t5like.objectives.functions import Batch
from t5like.objectives.spec import Lengths
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


# --- Frames -----------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Frame:
  """What batches of a config are like, whatever component their rows are of.

  Attributes:
    lengths: widths of rows.
    has_prefix: whether batches say which inputs see each other.
  """
  lengths: Lengths
  has_prefix: bool

  def blank(self, rows: int) -> Batch:
    """A batch of padding."""
    shape_BS = (rows, self.lengths.inputs)
    shape_BT = (rows, self.lengths.targets)
    shape_BP = (rows, self.lengths.predicted)
    batch: Batch = dict(
        inputs=np.zeros(shape_BT, np.int32),
        targets=np.zeros(shape_BP, np.int32),
        weights=np.zeros(shape_BP, np.float32),
        positions=np.zeros(shape_BT, np.int32),
        segments=np.zeros(shape_BT, np.int32),
    )
    if self.lengths.predictions:
      batch['predict'] = np.zeros(shape_BP, np.int32)
    if self.has_prefix:
      batch['prefix'] = np.zeros(shape_BT, bool)
    if self.lengths.inputs:
      batch['encoder'] = dict(
          inputs=np.zeros(shape_BS, np.int32),
          positions=np.zeros(shape_BS, np.int32),
          segments=np.zeros(shape_BS, np.int32),
      )
    return batch

  def holds(self, batch: Batch) -> bool:
    """Whether a batch is as wide as this; its encoder's rows always are."""
    frame = self.blank(0)
    if set(frame) != set(batch):
      return False
    frame.pop('encoder', None)
    for key, array in frame.items():
      if batch[key].shape[1] != array.shape[1]:
        return False
    return True


def frame_of(config: Config) -> Frame:
  """The Frame of all batches of a config."""
  return _frame(lengths.components(config))


def _frame(components: Sequence[lengths.Component]) -> Frame:
  has_prefix = any(component.has_prefix for component in components)
  return Frame(lengths.longest(components), has_prefix)


def _put(out: Batch, made: Batch, rows: Iterable[int]) -> None:
  """Copies a batch into `rows` of one that is as wide or wider."""
  for key, value in made.items():
    if isinstance(value, dict):
      _put(out[key], value, rows)
      continue
    width = value.shape[1]
    out[key][list(rows), :width] = value


# --- Training ---------------------------------------------------------------------------------------


class TrainRows:
  """Random access to batches of rows of the endless training sequence.

  Attributes:
    parts: the Rows of each component.
    orders: of each component, Grain's order of its rows, without end.
    names: of components.
    mixture: which component rows belong to; None if there is only one.
  """

  def __init__(self, store: Store | Stores, config: Config):
    """`store`: what `opening.open_data` returns."""
    components = lengths.components(config)
    self.parts: list[Rows] = []
    self.orders: list[Any] = []
    for k, component in enumerate(components):
      rows = Rows(store, component, 'train', config.seed, k)
      seed = _seed_of_order(config.seed, k)
      in_order = grain.MapDataset.range(len(rows)).seed(seed)
      self.parts.append(rows)
      self.orders.append(in_order.shuffle().repeat())
    self.names = [component.name for component in components]
    self.frame = _frame(components)
    self.mixture: mixing.Mixture | None = None
    if len(components) > 1:
      self.mixture = mixing.Mixture(self._stages(config))

  def _stages(self, config: Config) -> list[mixing.Stage]:
    """[(first row, weights)]: see data.mixture_rates and data.stages of the config."""
    data = config.data
    documents = []
    for part in self.parts:
      split = part.store.manifest['splits']['train']
      documents.append(split['documents'])
    rates = mixing.RATES[data.mixture_rates]
    scale = rates(documents, data)
    stages = []
    for tokens, weights in lengths.stages(config):
      first_row = -(-tokens // data.seq_len)
      scaled = np.array(weights) * scale
      stages.append((first_row, scaled))
    return stages

  def describe(self, rows: int) -> Iterator[str]:
    """What the first `rows` rows are made of, a line per component."""
    counts = self.counts(rows)
    for part, name, count in zip(self.parts, self.names, counts):
      line = f'{count / len(part):.3g} epochs of {len(part):,} rows from {part.store.folder}'
      if name:
        line = f'{name}: {count / rows:.1%} of rows, {line}'
      if not part.is_windows:
        shares = [f'{share:.1%}' for share in part.plan.fill]
        line += f', of whose positions text takes {" and ".join(shares)}'
      if 'validation' not in part.store.splits:
        line += ', which has no text to validate on'
      yield line

  def counts(self, rows: int) -> list[int]:
    """How many of the first `rows` rows each component has, in the order of `names`."""
    if self.mixture is None:
      return [rows]
    return self.mixture.counts(rows).tolist()

  def used(self, examples_seen: int, skipped: Windows) -> dict[str, int]:
    """{'rows/NAME': rows of that component that training has read}; {} if there is only one component."""
    if self.mixture is None:
      return {}
    counts = self.mixture.counts(examples_seen)
    for start, stop in skipped:
      if start < examples_seen:
        before = self.mixture.counts(start)
        behind = self.mixture.counts(min(stop, examples_seen))
        counts = counts - (behind - before)
    return {f'rows/{name}': count for name, count in zip(self.names, counts.tolist())}

  def component(self, i: int) -> tuple[int, int, int]:
    """(component, its row, epoch) of row i."""
    k = 0
    rank = i
    if self.mixture is not None:
      k, rank = self.mixture[i]
    number = int(self.orders[k][rank])
    epoch = rank // len(self.parts[k])
    return k, number, epoch

  def batch(self, rows: Iterable[int]) -> Batch:
    """Batch of `rows` of the sequence: numpy arrays."""
    numbers: list[list[int]] = [[] for _ in self.parts]  # of each component: its rows
    epochs: list[list[int]] = [[] for _ in self.parts]
    places: list[list[int]] = [[] for _ in self.parts]  # where they are in the batch
    size = 0
    for place, i in enumerate(rows):
      k, number, epoch = self.component(i)
      numbers[k].append(number)
      epochs[k].append(epoch)
      places[k].append(place)
      size += 1
    out = None
    for k, part in enumerate(self.parts):
      if not places[k]:
        continue
      made = part.batch(numbers[k], epochs[k])
      if len(places[k]) == size and self.frame.holds(made):
        return made
      if out is None:
        out = self.frame.blank(size)
      _put(out, made, places[k])
    return out or self.frame.blank(0)


def _seed_of_order(seed: int, component: int) -> int:
  """The seed of the order of a component's rows; that of the first, which usually is the only one, is the run's."""
  if component == 0:
    return seed
  sequence = np.random.SeedSequence([seed, component])
  (own_seed,) = sequence.generate_state(1)
  return int(own_seed)


class _HostBatches:
  """What Grain reads ahead: element k is this host's part of the k-th batch after `examples_seen`."""

  def __init__(
      self,
      rows: TrainRows,
      batch_size: int,
      examples_seen: int,
      skipped: Windows,
      mine: Iterable[int],
  ):
    self.rows = rows
    self.batch_size = batch_size
    self.seen = examples_seen
    self.skipped = skipped
    self.mine = mine

  def __len__(self) -> int:
    return sys.maxsize

  def __getitem__(self, index: int) -> Batch:
    start = index * self.batch_size
    rows = [after(self.skipped, self.seen, start + n) for n in self.mine]
    return self.rows.batch(rows)


@contextlib.contextmanager
def train_batches(
    rows: TrainRows,
    config: Config,
    examples_seen: int = 0,
    mine: Sequence[int] | None = None,
    skipped: Windows = (),
) -> Iterator[Iterator[Batch]]:
  """Iterator of this host's part of each batch, read ahead by a thread (or worker processes).

  The global array, row for row, is the same for every number of hosts.

  Args:
    rows: of the sequence.
    config: of the run.
    examples_seen: the row that it begins with.
    mine: which rows of each batch are this host's (sharding.rows_of_host), by default all.
    skipped: windows of rows to leave out (see `after`).
  """
  if mine is None:
    mine = range(config.batch_size)
  source = _HostBatches(
      rows,
      config.batch_size,
      examples_seen,
      skipped,
      mine,
  )
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
  frame = _frame(components)
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
        _put(out, made, range(len(numbers)))
      yield component.name, out


def _num_batches(rows: int, config: Config) -> int:
  """Batches that evaluate so many rows, or as many of them as evaluate.batches allows."""
  batches = -(-rows // config.batch_size)
  if config.evaluate.batches:
    return min(batches, config.evaluate.batches)
  return batches
