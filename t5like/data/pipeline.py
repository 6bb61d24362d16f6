"""From prepared datasets to batches: row = f(seed, config, index), and nothing else.

Row i of the endless training sequence belongs to one component of the config (a dataset with an
objective; usually there is one), dealt out by Grain so that any stretch of rows has the components in
exact proportion, and is a certain row of that component: Grain computes its `order`, a new shuffle of
all rows in every epoch, for any i at once. The batch of a step is the rows `examples_seen ..<
examples_seen + batch_size`, whoever reads it: hosts, worker processes and restarts cannot change it,
and the only state to keep is the integer `examples_seen`.
"""
import contextlib
import functools
import sys

import grain
import numpy as np
from absl import flags

from t5like import lengths
from t5like.data.rows import Rows
from t5like.errors import DataError

ENDLESS = 2 ** 60
VALIDATION = 2 ** 32  # stream of random numbers; those of training components count from 0


def _tag(component, rank):
  return component, rank


class TrainRows:
  """Random access to batches of consecutive rows of the endless training sequence."""

  def __init__(self, store, config):
    self.parts, self.orders = [], []
    components = lengths.components(config)
    for k, component in enumerate(components):
      rows = Rows(store, component, 'train', config.seed, k)
      seed = config.seed if k == 0 else int(np.random.SeedSequence([config.seed, k]).generate_state(1)[0])
      self.parts.append(rows)
      self.orders.append(grain.MapDataset.range(len(rows)).seed(seed).shuffle().repeat())
    self.names, self.weights = [c.name for c in components], [c.weight for c in components]
    self.blank = functools.partial(blank, lengths.shapes(config), any(has_prefix(c) for c in components))
    ranks = [grain.MapDataset.range(ENDLESS).map(functools.partial(_tag, k)) for k in range(len(self.parts))]
    self.mix = grain.MapDataset.mix(ranks, self.weights)

  def describe(self, rows):
    """What the first `rows` rows are made of, a line per component."""
    for part, name, weight in zip(self.parts, self.names, self.weights):
      packed = '' if part.packing == 'concat_split' else ', of whose positions text takes ' + ' and '.join(
          f'{share:.1%}' for share in np.atleast_1d(part.efficiency))
      yield (f'{f"{name}: {weight:.1%} of rows, " if name else ""}{rows * weight / len(part):.3g} epochs of '
             f'{len(part):,} rows from {part.store.folder}{packed}'
             + ('' if 'validation' in part.store.splits else ', which has no text to validate on'))

  def component(self, i):
    """(component, its row, epoch) of row i, ints."""
    k, rank = self.mix[i] if len(self.parts) > 1 else (0, i)
    return k, int(self.orders[k][rank]), rank // len(self.parts[k])

  def batch(self, start, stop):
    """Rows start ..< stop as one dict of numpy arrays."""
    chosen = [self.component(i) for i in range(start, stop)]
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
  c = component.config
  return c.model.name == 'decoder' and c.objective.name != 'causal'


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

  def __init__(self, rows, batch_size, examples_seen, host, hosts):
    self.rows, self.batch_size, self.seen = rows, batch_size, examples_seen
    self.part = batch_size // hosts
    self.offset = host * self.part

  def __len__(self):
    return sys.maxsize

  def __getitem__(self, k):
    start = self.seen + k * self.batch_size + self.offset
    return self.rows.batch(start, start + self.part)


@contextlib.contextmanager
def train_batches(rows, config, examples_seen=0, host=0, hosts=1):
  """Iterator of this host's part of each batch of TrainRows, read ahead by a thread (or worker processes).

  Rows are dealt in blocks, host h getting the h-th, so that the global array, row for row, is the
  same for every number of hosts. Raises DataError when the hosts do not divide the batch.
  """
  if config.batch_size % hosts:
    raise DataError(f'batch_size={config.batch_size} is not divisible by the {hosts} hosts of this '
                    f'run: give a multiple of {hosts}.')
  source = _HostBatches(rows, config.batch_size, examples_seen, host, hosts)
  dataset = grain.MapDataset.source(source)
  if config.data.workers:
    if not flags.FLAGS.is_parsed():  # Grain's workers read absl's flags
      flags.FLAGS.mark_as_parsed()
    options = grain.MultiprocessingOptions(num_workers=config.data.workers,
                                           per_worker_buffer_size=config.data.prefetch)
    read = grain.ReadOptions(num_threads=1, prefetch_buffer_size=config.data.prefetch)
    iterator = iter(dataset.to_iter_dataset(read).mp_prefetch(options))
  else:
    read = grain.ReadOptions(num_threads=1, prefetch_buffer_size=config.data.prefetch)
    iterator = iter(dataset.to_iter_dataset(read))
  try:
    yield iterator
  finally:
    iterator.close()


def evaluation_batches(store, config, split='validation', host=0, hosts=1):
  """Pairs (component name, batch): every row of a split once, in order, component by component.

  Rows missing from a component's last batch have weight 0. Yields as many batches on each host, of
  batch_size / hosts rows. What is masked or corrupted is the same every time and for every seed.
  """
  components, shapes = lengths.components(config), lengths.shapes(config)
  part = config.batch_size // hosts
  for k, component in enumerate(components):
    if split not in store.of(component).splits:
      continue
    rows = Rows(store, component, split, 0, VALIDATION + k)
    batches = -(-len(rows) // config.batch_size)
    if config.evaluate.batches:
      batches = min(batches, config.evaluate.batches)
    for b in range(batches):
      start = b * config.batch_size + host * part
      here = range(min(start, len(rows)), min(start + part, len(rows)))
      out = blank(shapes, any(has_prefix(c) for c in components), part)
      if here:
        _put(out, rows.batch(list(here), [0] * len(here)), range(len(here)))
      yield component.name, out
