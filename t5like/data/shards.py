"""Documents to shards of tokens: array_record files of fixed blocks, which TFDS reads too."""

import hashlib
import itertools
import os
import sys

import numpy as np

from t5like.data import templates
from t5like.data.vocabulary import write_file
from t5like.errors import ConfigError, DataError

BLOCK = 4096  # tokens per record
BATCH = 1 << 20  # characters given to the vocabulary at once


def new_count():
  """Returns what counts documents."""
  return dict(documents=0, dropped=0)


def examples(config, source, start, stop, limit, count):
  """Yields the examples of a source that are not empty, each a tuple of one text or of inputs and targets.

  Counts all documents and the dropped ones, whose text (or targets) are blank, in `count`.
  """
  for record, name in itertools.islice(source.documents(start, stop), limit):
    count['documents'] += 1
    texts = templates.texts(config.data, record, name)
    if not texts[-1] or texts[-1].isspace():
      count['dropped'] += 1
      continue
    for text in texts:
      try:
        text.encode()
      except UnicodeEncodeError as error:
        raise DataError(f'{name} holds {text[error.start]!r}, half of a surrogate pair, which is no '
                        'character: remove it.') from error
    yield texts


def split_example(texts, name, config):
  """Returns the pieces of an example of source `name` as pairs (split, texts). ConfigError for a pair to be cut."""
  fraction = config.data.validation_fraction
  if config.data.validation == 'hash':  # so that identical examples land on one side
    number = int.from_bytes(hashlib.sha256('\0'.join(texts).encode()).digest()[:8], 'big') / 2**64
    return [('validation' if number < fraction else 'train', texts)]
  if config.data.validation == 'tail':
    if len(texts) > 1:
      raise ConfigError("data.validation='tail' cuts texts in two, which examples of data.inputs and data.targets "
                        "cannot be: set data.validation='hash'.")
    (text,) = texts
    cut = int(len(text) * (1 - fraction))
    return [(split, (part,)) for split, part in (('train', text[:cut]), ('validation', text[cut:])) if part]
  return [(name, texts)]


def write_part(config, target, source, part, vocab, limit, bar):
  """Writes the shards of one part of the plan, from its first `limit` documents (None: all).

  Returns a dict for JSON: what the manifest says about the part.
  """
  count = new_count()
  found = examples(config, source, part['start'], part['stop'], limit, count)
  size = source.num_bytes * (part['stop'] - part['start']) / max(1, source.num_items)
  writers = {split: Shard(target / file, dtype(vocab))
             for split, file in part['files'].items()}
  end = np.array([vocab.eos_id] if config.data.append_eos and vocab.eos_id is not None else [], np.int32)
  for batch in _batches(_bar(found, size, bar)):
    pieces = [piece for texts in batch for piece in split_example(texts, part['source'], config)]
    encoded = iter(vocab.encode_batch([text for _, texts in pieces for text in texts]))
    for split, texts in pieces:
      writers[split].add([np.append(next(encoded), end) for _ in texts], sum(len(t.encode()) for t in texts))
  return count | dict(shards={split: writer.close() for split, writer in writers.items()})


def _batches(examples):
  batch, size = [], 0
  for texts in examples:
    batch.append(texts)
    size += sum(map(len, texts))
    if size >= BATCH:
      yield batch
      batch, size = [], 0
  yield batch


def _bar(examples, size, wanted):
  """Passes examples on, with a progress bar if a person is watching."""
  if not (wanted and sys.stdout.isatty()):
    yield from examples
    return
  import rich.progress
  with rich.progress.Progress(transient=True) as progress:
    task = progress.add_task('tokens', total=size)
    for texts in examples:
      yield texts
      progress.advance(task, sum(map(len, texts)))


def dtype(vocab):
  """Returns the name of the NumPy type that holds the ids of a vocabulary."""
  return 'uint16' if vocab.size <= 1 << 16 else 'int32'


class Shard:
  """One array_record file and the lengths of its examples, under other names until `close`."""

  def __init__(self, path, dtype):
    """`path`: pathlib.Path; `dtype`: of the tokens, 'uint16' or 'int32'."""
    from array_record.python import array_record_module
    self.path, self.temporary, self.dtype = path, f'{path}.tmp', dtype
    # Uncompressed: reading a record takes 6 us instead of 13, in 2.1 bytes per token, not 1.5.
    self.writer = array_record_module.ArrayRecordWriter(self.temporary, 'group_size:1,uncompressed')
    self.waiting, self.num_waiting, self.lengths = [], 0, []
    self.mark = dict(file=path.name, documents=0, tokens=0, bytes=0, blocks=0, max_id=-1)

  def add(self, texts, num_bytes):
    """Appends an example: a list of int [n], made of `num_bytes` of text."""
    self.waiting += texts
    self.lengths.append([len(ids) for ids in texts])
    self.num_waiting += sum(self.lengths[-1])
    self.mark['documents'] += 1
    self.mark['bytes'] += num_bytes
    if self.num_waiting >= 64 * BLOCK:
      self._write(self.num_waiting - self.num_waiting % BLOCK)

  def _write(self, stop):
    tokens = np.concatenate(self.waiting)
    for i in range(0, stop, BLOCK):
      self.writer.write(_record(tokens[i:min(i + BLOCK, stop)], self.dtype))
      self.mark['blocks'] += 1
    self.mark['tokens'] += stop
    self.mark['max_id'] = max(self.mark['max_id'], int(tokens.max()))
    self.waiting, self.num_waiting = [tokens[stop:]], len(tokens) - stop

  def close(self):
    """Finishes the file; returns a dict for JSON that says what is in it."""
    if self.num_waiting:
      self._write(self.num_waiting)
    self.writer.close()
    with open(self.temporary, 'rb') as f:
      os.fsync(f.fileno())
    os.replace(self.temporary, self.path)
    # Little-endian int32 [examples, texts]: tokens of each text, its end included.
    lengths = self.path.with_name(lengths_name(self.path.name))
    write_file(lengths, np.array(self.lengths, '<i4').tobytes())
    return self.mark | dict(size=self.path.stat().st_size, sha256=file_sha256(self.path), lengths=dict(
        file=lengths.name, size=lengths.stat().st_size, sha256=file_sha256(lengths)))


def lengths_name(file):
  """'lengths-train-00000-of-00002.bin' for 'tokens-train.array_record-00000-of-00002'."""
  return file.replace('tokens-', 'lengths-').replace('.array_record-', '-') + '.bin'


def _record(tokens, dtype):
  """Returns the bytes of a tf.train.Example: up to BLOCK tokens, padded with 0, and how many."""
  from tensorflow_datasets.proto import tf_example_pb2
  payload = np.pad(tokens.astype(dtype), (0, BLOCK - len(tokens))).tobytes()
  example = tf_example_pb2.Example()
  example.features.feature['n'].int64_list.value.append(len(tokens))
  example.features.feature['tokens'].bytes_list.value.append(payload)
  # Without deterministic=True the order of the two features differs from process to process (and
  # TFDS's own serializer does without). Sorted by name, the tokens come last.
  record = example.SerializeToString(deterministic=True)
  assert record.endswith(payload)
  return record


def write_tfds_metadata(folder, manifest):
  """Makes `tfds.builder_from_directory(folder).as_data_source('train')` work."""
  import tensorflow_datasets as tfds
  template = '{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}'
  infos = [
      tfds.core.SplitInfo(
          name=name, shard_lengths=[shard['blocks'] for shard in split['shards']],
          num_bytes=sum(shard['size'] for shard in split['shards']),
          filename_template=tfds.core.ShardedFileTemplate(
              data_dir=folder, dataset_name='tokens', split=name, filetype_suffix='array_record',
              template=template))
      for name, split in manifest['splits'].items()]
  tokens = tfds.features.Tensor(shape=(manifest['block'],), dtype=np.dtype(manifest['dtype']).type,
                                encoding='bytes')
  features = tfds.features.FeaturesDict(dict(tokens=tokens, n=tfds.features.Scalar(np.int32)))
  tfds.folder_dataset.write_metadata(data_dir=folder, features=features, split_infos=infos,
                                     filename_template=template, check_data=False)


def file_sha256(path):
  """Returns the sha256 of a file, in hex."""
  with open(path, 'rb') as f:
    return hashlib.file_digest(f, 'sha256').hexdigest()
