"""Documents to shards of tokens: array_record files of fixed blocks, which TFDS reads too."""

import contextlib
import hashlib
import itertools
import os
import sys

import numpy as np
import zstandard

from t5like import choices
from t5like.data import templates
from t5like.errors import ConfigError, DataError
from t5like.writing import write_file

BLOCK = 4096  # tokens per record
BATCH = 1 << 20  # characters given to the vocabulary at once
NAMED = 20  # damaged records whose messages are kept


def new_count():
  """Returns what counts documents: all, without text, repeated, above data.max_document_tokens, damaged."""
  return dict(documents=0, dropped=0, repeated=0, overlong=0, bad=0, damage=[])


def examples(config, source, part, count):
  """Yields (texts, id) of the examples that are not empty; texts is a tuple of one, or of inputs and targets.

  part: a dict with `start` and `stop`, items of the source, and `last`, how many records of the last of
  them to take (None: all). Counts documents in `count`. DataError for more than data.max_bad_records
  damaged ones, whose messages, the first few, are in count['damage'].
  """
  without_text = EMPTY[config.data.empty]
  for record, name in _records(source, part['start'], part['stop'], part['last']):
    count['documents'] += 1
    try:
      texts = _texts(config.data, record, name)
    except DataError as error:
      _count_damage(config, count, error)
      continue
    if texts[-1] and not texts[-1].isspace():
      yield texts, name
    else:
      without_text(name, count)


def _drop_empty(name, count):
  count['dropped'] += 1


def _refuse_empty(name, count):
  raise DataError(f"{name} has no text. data.empty='drop' leaves such documents out, and counts them.")


# What becomes of a document without text: (its name; what counts documents).
EMPTY = choices.implement('data.empty', choices.EMPTY, dict(drop=_drop_empty, error=_refuse_empty))


def _records(source, start, stop, last):
  if last is None:
    return source.documents(start, stop)
  return itertools.chain(source.documents(start, stop - 1),
                         itertools.islice(source.documents(stop - 1, stop), last))


def _texts(data, record, name):
  if isinstance(record, DataError):
    raise record
  texts = templates.texts(data, record, name)
  for text in texts:
    try:
      text.encode()
    except UnicodeEncodeError as error:
      raise DataError(f'{name} holds {text[error.start]!r}, half of a surrogate pair, which is no '
                      'character: remove it.') from error
  return texts


def _count_damage(config, count, error):
  most = config.data.max_bad_records
  count['bad'] += 1
  count['damage'] = [*count['damage'], str(error)][:NAMED]
  if count['bad'] > most:
    raise DataError(f'{error} (data.max_bad_records={most} allows {most} such records'
                    + (f', this is number {most + 1})' if most else ': raise it to leave some out)')) from error


def split_example(texts, name, config, held=None):
  """Returns the pieces of an example of source `name` as pairs (split, texts). ConfigError for a pair to be cut.

  held: what `held_out.find` says of text whose hashes leave a split without documents; None: nothing.
  """
  if config.data.validation == 'hash':  # so that identical examples land on one side
    return _by_hash(texts, config.data.validation_fraction, held)
  if config.data.validation == 'tail':
    return _cut(texts, int(len(texts[0]) * (1 - config.data.validation_fraction)))
  return [(name, texts)]


def hash_number(texts):
  """The first 8 bytes of the SHA-256 of an example, 0 to 2^64 - 1: below validation_fraction x 2^64 it validates."""
  return int.from_bytes(hashlib.sha256('\0'.join(texts).encode()).digest()[:8], 'big')


def _by_hash(texts, fraction, held):
  if held and 'cut' in held:
    return _cut(texts, held['cut'])
  number = hash_number(texts)
  if held and number == held['number']:
    return [(held['split'], texts)]
  return [('validation' if number / 2**64 < fraction else 'train', texts)]


def _cut(texts, at):
  if len(texts) > 1:
    raise ConfigError("data.validation='tail' cuts texts in two, which examples of data.inputs and data.targets "
                      "cannot be: set data.validation='hash'.")
  (text,) = texts
  return [(split, (part,)) for split, part in (('train', text[:at]), ('validation', text[at:])) if part]


def held_by(part):
  """What a part of a plan says of documents that are held out in spite of their hash, or None."""
  return part['held'] if 'held' in part else None


def write_part(config, target, source, part, vocab, repeats=None, bar=False):
  """Writes the shards of a part; returns a dict for JSON: what the manifest says about it.

  repeats: bool [examples], those to leave out because their text was there before; None: none.
  """
  count = new_count()
  found = examples(config, source, part, count)
  size = source.num_bytes * (part['stop'] - part['start']) / max(1, source.num_items)
  writers = {split: Shard(target / file, dtype(vocab)) for split, file in part['files'].items()}
  end = np.array([vocab.eos_id] if config.data.append_eos and vocab.eos_id is not None else [], np.int32)
  for batch in _batches(_unrepeated(_bar(found, size, bar), repeats, count)):
    pieces = [(piece, name) for texts, name in batch
              for piece in split_example(texts, part['source'], config, held_by(part))]
    encoded = iter(vocab.encode_batch([text for (_, texts), _ in pieces for text in texts]))
    for (split, texts), name in pieces:
      ids = _limited(config, [np.append(next(encoded), end) for _ in texts], name, count)
      if ids:
        writers[split].add(ids, sum(len(t.encode()) for t in texts), name)
  return count | dict(shards={split: writer.close() for split, writer in writers.items()})


def _unrepeated(examples, repeats, count):
  if repeats is None:
    yield from examples
    return
  for example, repeated in zip(examples, repeats.tolist()):
    count['repeated'] += repeated
    if not repeated:
      yield example


def _limited(config, ids, name, count):
  """Ids of the texts of an example as data.max_document_tokens wants them; [] for one to leave out."""
  too_long = OVERLONG[config.data.overlong]
  most, longest = config.data.max_document_tokens, max(map(len, ids))
  if not most or longest <= most:
    return ids
  limited = too_long(config.data, ids, name)
  count['overlong'] += 1
  return limited


def _truncate(data, ids, name):
  most, keep = data.max_document_tokens, int(data.append_eos)  # a text that was cut still ends
  return [x if len(x) <= most else np.append(x[:most - keep], x[len(x) - keep:]) for x in ids]


def _drop_overlong(data, ids, name):
  return []


def _refuse_overlong(data, ids, name):
  raise DataError(f'{name} has {max(map(len, ids)):,} tokens, above data.max_document_tokens='
                  f"{data.max_document_tokens:,}. Raise that, or let data.overlong='truncate' or 'drop' say what to "
                  'do.')


# Ids of an example with a text above data.max_document_tokens: (config.data; ids of its texts; its name).
OVERLONG = choices.implement('data.overlong', choices.OVERLONG, dict(
    truncate=_truncate, drop=_drop_overlong, error=_refuse_overlong))


def _batches(examples):
  batch, size = [], 0
  for example in examples:
    batch.append(example)
    size += sum(map(len, example[0]))
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
    for example in examples:
      yield example
      progress.advance(task, sum(map(len, example[0])))


def dtype(vocab):
  """Returns the name of the NumPy type that holds the ids of a vocabulary."""
  return 'uint16' if vocab.size <= 1 << 16 else 'int32'


class Shard:
  """One array_record file, and the lengths and names of its examples, under other names until `close`."""

  def __init__(self, path, dtype):
    """`path`: pathlib.Path; `dtype`: of the tokens, 'uint16' or 'int32'."""
    from array_record.python import array_record_module
    self.path, self.temporary, self.dtype = path, f'{path}.tmp', dtype
    # Uncompressed: reading a record takes 6 us instead of 13, in 2.1 bytes per token, not 1.5.
    self.writer = array_record_module.ArrayRecordWriter(self.temporary, 'group_size:1,uncompressed')
    self.waiting, self.num_waiting, self.lengths, self.names = [], 0, [], []
    self.mark = dict(documents=0, tokens=0, bytes=0, blocks=0, max_id=-1)

  def add(self, texts, num_bytes, name):
    """Appends the example `name`: a list of int [n], made of `num_bytes` of text."""
    self.names.append(name.replace('\n', ' '))
    self.waiting += texts
    self.lengths.append([len(ids) for ids in texts])
    self.num_waiting += sum(self.lengths[-1])
    self.mark['documents'] += 1
    self.mark['bytes'] += num_bytes
    if self.num_waiting >= 64 * BLOCK:
      self._write(self.num_waiting - self.num_waiting % BLOCK)

  def _write(self, stop):
    tokens = np.concatenate(self.waiting)
    with _system_errors():
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
    with _system_errors():
      self.writer.close()
    with open(self.temporary, 'rb') as f:
      os.fsync(f.fileno())
    os.replace(self.temporary, self.path)
    # Little-endian int32 [examples, texts]: tokens of each text, its end included.
    lengths = np.array(self.lengths, '<i4').tobytes()
    # Names of the examples, a line each. No time of day inside, so the same bytes every time.
    names = zstandard.ZstdCompressor().compress('\n'.join(self.names).encode())
    return self.mark | _file_mark(self.path) | {
        kind: _beside(self.path, f'{kind}-', ending, content)
        for kind, ending, content in (('lengths', 'bin', lengths), ('names', 'zst', names))}


@contextlib.contextmanager
def _system_errors():
  """What array_record says when a disk is full or cannot be written to, as the OSError that it is."""
  try:
    yield
  except RuntimeError as error:
    raise OSError(f'{str(error)[:300]}') from error


def _beside(path, start, ending, content):
  """Writes 'lengths-train-00000-of-00002.bin' beside 'tokens-train.array_record-00000-of-00002'."""
  file = path.with_name(path.name.replace('tokens-', start).replace('.array_record-', '-') + f'.{ending}')
  write_file(file, content)
  return _file_mark(file)


def _file_mark(path):
  return dict(file=path.name, size=path.stat().st_size, sha256=file_sha256(path))


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


def sha256(content):
  """Returns the sha256 of bytes, in hex."""
  return hashlib.sha256(content).hexdigest()


def file_sha256(path):
  """Returns the sha256 of a file, in hex."""
  with open(path, 'rb') as f:
    return hashlib.file_digest(f, 'sha256').hexdigest()
