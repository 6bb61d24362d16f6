"""From a prepared dataset to batches: row = f(seed, config, index), and nothing else.

Row i of the endless training sequence is window `order[i]` of the dataset; Grain computes `order`, a
new shuffle of all windows in every epoch, for any i at once. The batch of a step is the rows
`examples_seen ..< examples_seen + batch_size`, whoever reads it: hosts, worker processes and restarts
cannot change it, and the only state to keep is the integer `examples_seen`.
"""
import contextlib
import sys

import grain
import numpy as np
from absl import flags

from t5like.data import objectives
from t5like.errors import DataError


def _windows(store, config, split):
  length = objectives.causal_length(config.data.seq_len, config.data.document_mask)
  return store.windows(split, length, stride=config.data.seq_len, tail=split != 'train')


def _objective(store, config):
  kwargs = dict(document_mask=config.data.document_mask, eos_id=store.vocabulary.eos_id)
  return lambda tokens_BT: objectives.causal(tokens_BT, **kwargs)


class TrainRows:
  """Random access to batches of consecutive rows of the endless training sequence."""

  def __init__(self, store, config):
    self.windows = _windows(store, config, 'train')
    self.objective = _objective(store, config)
    self.order = grain.MapDataset.range(len(self.windows)).seed(config.seed).shuffle().repeat()

  def batch(self, start, stop):
    """Rows start ..< stop as one dict of numpy arrays."""
    indices = [int(self.order[i]) for i in range(start, stop)]
    return self.objective(np.stack(self.windows._getitems(indices)))


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
def train_batches(store, config, examples_seen=0, host=0, hosts=1):
  """Iterator of this host's rows of each batch, read ahead by one thread (or worker processes).

  Rows are dealt in blocks, host h getting the h-th, so that the global array, row for row, is the
  same for every number of hosts. Raises DataError when the hosts do not divide the batch.
  """
  if config.batch_size % hosts:
    raise DataError(f'batch_size={config.batch_size} is not divisible by the {hosts} hosts of this '
                    f'run: give a multiple of {hosts}.')
  source = _HostBatches(TrainRows(store, config), config.batch_size, examples_seen, host, hosts)
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
  """Every token of a split exactly once, in order; rows missing from the last batch have weight 0.

  Yields as many batches on each host, of batch_size / hosts rows.
  """
  windows, objective = _windows(store, config, split), _objective(store, config)
  batches = -(-len(windows) // config.batch_size)
  if config.evaluate.batches:
    batches = min(batches, config.evaluate.batches)
  part = config.batch_size // hosts
  for k in range(batches):
    start = k * config.batch_size + host * part
    here = range(min(start, len(windows)), min(start + part, len(windows)))
    length = objectives.causal_length(config.data.seq_len, config.data.document_mask)
    tokens_BT = np.full((part, length), objectives.MISSING, np.int32)
    if here:
      tokens_BT[:len(here)] = windows._getitems(list(here))
    yield objective(tokens_BT)
