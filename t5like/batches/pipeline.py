"""From prepared datasets to batches: row = f(seed, config, index), and nothing else.

Row i of the endless training sequence belongs to one component of the config (a dataset with an
objective; usually there is one), dealt out so that any stretch of rows has the components in exact
proportion (mixing.py), and is a certain row of that component: Grain computes its `order`, a new shuffle
of all rows in every epoch, for any i at once. The batch of a step is the batch_size rows from
`examples_seen` on, but for windows of rows that are skipped, whoever reads it: hosts, worker processes
and restarts cannot change it, and the only state to keep is the integer `examples_seen`.
"""
import contextlib
import functools
import itertools
import signal
import sys

import grain
import numpy as np
from absl import flags

from t5like.batches import mixing
from t5like.batches.rows import Rows
from t5like.errors import ConfigError, DataError
from t5like.objectives import lengths
from t5like.objectives.spec import Pair
from t5like.prepared import parts

VALIDATION = 2 ** 32  # stream of random numbers; those of training components count from 0


def after(skipped, row, count):
  """The row that comes `count` rows after `row` (or after a window that holds it), without `skipped` ones.

  skipped: [(start, stop)] in rows, sorted and disjoint.
  """
  row, first = row + count, row
  for start, stop in skipped:
    if start > row:
      break
    row += max(0, stop - max(start, first))
  return row


def to_skip(config, examples_seen, recorded):
  """Windows of rows to leave out: those recorded in a checkpoint, and of data.skip_rows what lies ahead.

  ConfigError for a window that was trained on already.
  """
  ahead = []
  for start, stop in lengths.skipped(config.data.skip_rows):
    if stop > examples_seen:
      ahead.append((max(start, examples_seen), stop))
    elif not any(first < stop <= last for first, last in recorded):
      raise ConfigError(f'data.skip_rows: rows {start:,} to {stop - 1:,} were trained on already, this run is at row '
                        f'{examples_seen:,}. To leave them out, go on from an older checkpoint (delete the newer ones) '
                        'or begin in another --workdir.')
  return lengths.merged([*recorded, *ahead])


class TrainRows:
  """Random access to batches of rows of the endless training sequence."""

  def __init__(self, store, config):
    self.parts, self.orders = [], []
    components = lengths.components(config)
    for k, component in enumerate(components):
      rows = Rows(store, component, 'train', config.seed, k)
      seed = config.seed if k == 0 else int(np.random.SeedSequence([config.seed, k]).generate_state(1)[0])
      self.parts.append(rows)
      self.orders.append(grain.MapDataset.range(len(rows)).seed(seed).shuffle().repeat())
    self.names = [c.name for c in components]
    self.blank = functools.partial(blank, lengths.shapes(config), any(has_prefix(c) for c in components))
    self.mixture = mixing.Mixture(self._stages(config)) if len(components) > 1 else None

  def _stages(self, config):
    """[(first row, weights)]: see data.mixture_rates and data.stages of the config."""
    data, stages = config.data, lengths.stages(config)
    documents = [part.store.manifest['splits']['train']['documents'] for part in self.parts]
    scale = mixing.RATES[data.mixture_rates](documents, data)
    return [(-(-tokens // data.seq_len), np.array(weights) * scale) for tokens, weights in stages]

  def describe(self, rows):
    """What the first `rows` rows are made of, a line per component."""
    for part, name, count in zip(self.parts, self.names, self.counts(rows)):
      packed = '' if part.is_windows else ', of whose positions text takes ' + ' and '.join(
          f'{share:.1%}' for share in part.plan.fill)
      yield (f'{f"{name}: {count / rows:.1%} of rows, " if name else ""}{count / len(part):.3g} epochs of '
             f'{len(part):,} rows from {part.store.folder}{packed}'
             + ('' if 'validation' in part.store.splits else ', which has no text to validate on'))

  def counts(self, rows):
    """How many of the first `rows` rows each component has: a list of ints, in the order of `names`."""
    return self.mixture.counts(rows).tolist() if self.mixture else [rows]

  def used(self, examples_seen, skipped):
    """{'rows/NAME': rows of that component that training has read}; {} if there is only one component."""
    if not self.mixture:
      return {}
    counts = np.array(self.counts(examples_seen))
    for start, stop in skipped:
      if start < examples_seen:
        counts -= np.array(self.counts(min(stop, examples_seen))) - self.counts(start)
    return {f'rows/{name}': count for name, count in zip(self.names, counts.tolist())}

  def component(self, i):
    """(component, its row, epoch) of row i, ints."""
    k, rank = self.mixture[i] if self.mixture else (0, i)
    return k, int(self.orders[k][rank]), rank // len(self.parts[k])

  def batch(self, rows):
    """Batch of `rows` (ints): a dict of numpy arrays."""
    chosen = [self.component(i) for i in rows]
    if len(self.parts) == 1:
      return self._fill(self.blank(0), self.parts[0].batch([n for _, n, _ in chosen], [e for *_, e in chosen]))
    out = self.blank(len(chosen))
    for k, part in enumerate(self.parts):
      rows = [i for i, (of, _, _) in enumerate(chosen) if of == k]
      if rows:
        made = part.batch([chosen[i][1] for i in rows], [chosen[i][2] for i in rows])
        _put(out, made, rows)
    return out

  def _fill(self, frame, made):
    """`made` itself where it is as wide as batches must be, else padded."""
    if all(made[k].shape[1] == v.shape[1] for k, v in frame.items() if k != 'encoder') and set(frame) == set(made):
      return made
    out = self.blank(len(made['inputs']))
    _put(out, made, range(len(made['inputs'])))
    return out


def has_prefix(component):
  """Whether batches of a Component say which inputs see each other."""
  if component.config.model.name != 'decoder':
    return False
  return isinstance(component.layout, Pair) or component.layout.has_prefix


def blank(shapes, has_prefix, rows):
  """A batch of padding, of the widths in `shapes` (see `lengths.shapes`)."""
  T, P = shapes.targets, shapes.predictions or shapes.targets
  widths = dict(inputs=T, targets=P, weights=P, positions=T, segments=T)
  if shapes.predictions:
    widths['predict'] = P
  if has_prefix:
    widths['prefix'] = T
  kinds = dict(weights=np.float32, prefix=bool)
  batch = {k: np.zeros((rows, n), kinds[k] if k in kinds else np.int32) for k, n in widths.items()}
  if shapes.inputs:
    batch['encoder'] = {k: np.zeros((rows, shapes.inputs), np.int32) for k in ('inputs', 'positions', 'segments')}
  return batch


def _put(out, made, rows):
  for key, value in made.items():
    if isinstance(value, dict):
      _put(out[key], value, rows)
    else:
      out[key][list(rows), :value.shape[1]] = value


class _HostBatches:
  """What Grain reads ahead: element k is this host's part of the k-th batch after `examples_seen`."""

  def __init__(self, rows, batch_size, examples_seen, skipped, mine):
    self.rows, self.batch_size, self.seen, self.skipped = rows, batch_size, examples_seen, skipped
    self.mine = mine

  def __len__(self):
    return sys.maxsize

  def __getitem__(self, k):
    start = k * self.batch_size
    return self.rows.batch([after(self.skipped, self.seen, start + n) for n in self.mine])


@contextlib.contextmanager
def train_batches(rows, config, examples_seen=0, mine=None, skipped=()):
  """Iterator of this host's part of each batch of TrainRows, read ahead by a thread (or worker processes).

  It begins with row `examples_seen` and leaves out windows of rows `skipped` (see `after`). mine: which rows of each
  batch are this host's (sharding.rows_of_host), by default all. The global array, row for row, is the same for
  every number of hosts.
  """
  mine = range(config.batch_size) if mine is None else mine
  source = _HostBatches(rows, config.batch_size, examples_seen, skipped, mine)
  dataset = grain.MapDataset.source(source)
  if config.data.workers:
    if not flags.FLAGS.is_parsed():  # Grain's workers read absl's flags
      flags.FLAGS.mark_as_parsed()
    options = grain.MultiprocessingOptions(num_workers=config.data.workers,
                                           per_worker_buffer_size=config.data.prefetch)
    read = grain.ReadOptions(num_threads=1, prefetch_buffer_size=config.data.prefetch)
    iterator = iter(dataset.to_iter_dataset(read).mp_prefetch(options, _be_a_worker))
  else:
    read = grain.ReadOptions(num_threads=1, prefetch_buffer_size=config.data.prefetch)
    iterator = iter(dataset.to_iter_dataset(read))
  try:
    yield _read(iterator)
  finally:
    iterator.close()


ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def _be_a_worker(*_):
  """Begins a worker process of Grain, which passes its number and how many there are.

  Signals that a terminal or a cluster sends to all processes of a run are the training process's to act upon: it
  still needs its workers for the step after which it saves, and ends them itself.
  """
  parts.die_with_parent()
  for number in ENDING:
    signal.signal(number, signal.SIG_IGN)
  signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING)


@contextlib.contextmanager
def _blocked():
  """Processes that are started meanwhile are deaf to ENDING until `_be_a_worker`."""
  before = signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
  try:
    yield
  finally:
    signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _read(iterator):
  try:
    with _blocked():  # workers start with the first
      first = next(iterator)
    yield from itertools.chain([first], iterator)
  except RuntimeError as error:
    if 'terminated unexpectedly' not in str(error):
      raise
    raise DataError('A reading process was killed (out of memory? data.workers sets how many there are). Nothing is '
                    'lost: the same command goes on from the newest checkpoint, with the same rows.') from error


def evaluation_batches(store, config, split='validation', mine=None):
  """Pairs (component name, batch): every row of a split once, in order, component by component.

  Rows missing from a component's last batch have weight 0. Yields as many batches on each host, of its rows (`mine`,
  as of `train_batches`). What is masked or corrupted is the same every time and for every seed.
  """
  components, shapes = lengths.components(config), lengths.shapes(config)
  mine = range(config.batch_size) if mine is None else mine
  for k, component in enumerate(components):
    if split not in store.of(component).splits:
      continue
    rows = Rows(store, component, split, 0, VALIDATION + k)
    batches = -(-len(rows) // config.batch_size)
    if config.evaluate.batches:
      batches = min(batches, config.evaluate.batches)
    for b in range(batches):
      here = [row for row in (b * config.batch_size + n for n in mine) if row < len(rows)]
      out = blank(shapes, any(has_prefix(c) for c in components), len(mine))
      if here:
        _put(out, rows.batch(here, [0] * len(here)), range(len(here)))
      yield component.name, out
