"""Prepared TFDS datasets, on disk or wherever fsspec reads, as the content of a Source.

A dataset is found by its folder; neither TensorFlow nor its builder's code is run. For one that does not exist the
error says how to make it; the catalogue of TFDS is searched as text for that.
"""
import contextlib
import dataclasses
import functools
import itertools
import posixpath
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from t5like.config import templates
from t5like.config_type import Config
from t5like.errors import ConfigError, DataError
from t5like.files import mirror, paths
from t5like.nearest import suggestion
from t5like.sources import fields, files
from t5like.sources.tfds_catalogue import BUILT_IN, Name, how_to_convert, how_to_make

Result = TypeVar('Result')

BATCH = 64  # records per read
RANGE = 64 << 20  # most bytes of an item
RECORDS = 10_000  # most records of an item
GUESS = ' (did you mean {!r}?)'
FORMAT = 'array_record'  # the one that is read without TensorFlow
DESCRIPTIONS = ('.json', '.txt')  # endings of the files beside records
INFO = 'dataset_info.json'  # a folder that has it is a prepared dataset
VERSION = re.compile(r'\d+\.\d+\.\d+')
NAME = re.compile(r'(\w+)(?:/([^:]+))?(?::(\d+\.\d+\.\d+))?')  # NAME[/CONFIG][:VERSION]
LISTED = 20  # most datasets of a folder that an error lists


@dataclasses.dataclass(frozen=True)
class Split:
  """key: of the config, for errors. text: its value, such as 'train[:10%]'."""
  key: str
  text: str

  @property
  def base(self) -> str:
    return self.text.partition('[')[0]


@dataclasses.dataclass(frozen=True)
class Item:
  """A range of the records of a file.

  Attributes:
    path: of the file, or its URL.
    start: first record.
    stop: end of the range.
    length: records in the file.
    before: records of the split in the files before it.
  """
  path: str
  start: int
  stop: int
  length: int
  before: int

  @property
  def file(self) -> str:
    return posixpath.basename(self.path)


def find(
    rest: str,
    data: Config,
    split: str | None,
    built_in: Mapping[str, Callable[[], Any]],
) -> files.Content:
  """The content of `data.source='tfds:' + rest`.

  A record is a dict of the fields that `data` names, and its id 'plays/1.0.0 train record 12', counted
  from 0 over the files of the split.

  Args:
    rest: NAME[/CONFIG][:VERSION].
    data: the config's section.
    split: takes the place of `data.split`; None: `data.split`.
    built_in: for each config of python_docs, which is made where it does not exist, a function that returns
      the Source of its text.

  Raises:
    ConfigError: `rest` is not the name of a dataset.
    DataError: the dataset, the split or a field does not exist, or cannot be read.
  """
  import tensorflow_datasets as tfds
  from tensorflow_datasets.core import constants
  wanted = Split('data.split', data.split)
  if split:
    wanted = Split('data.validation', split)
  root = paths.expand(data.tfds_dir or str(constants.DATA_DIR))
  name = _parse(rest)
  if name.dataset == BUILT_IN:
    name = _make_built_in(name, root, built_in)
  folder = _in_time(root, lambda: _folder(root, name))
  info, sizes = _in_time(root, lambda: _open(folder))
  if info.file_format.value != FORMAT:
    raise DataError(f'{folder} is stored as {info.file_format.value}, which only TensorFlow reads. '
                    f'{how_to_convert(folder)}')
  _check_split(info, folder, wanted)
  names = []
  if hasattr(info.features, 'keys'):
    names = list(info.features)
  fields.require(data, names, folder, 'feature')
  needed = {field: info.features[field] for field in templates.fields(data)}
  features = tfds.features.FeaturesDict(needed)
  items = _items(info, folder, sizes, wanted)
  read = functools.partial(_read, features, f'{info.full_name} {wanted.base}')
  return files.Content(
      items,
      read,
      num_bytes=_bytes_of(items, sizes),
      fingerprint=_fingerprint(info, wanted, items, sizes),
      licence=info.redistribution_info.license or '',
  )


def _in_time(root: str, ask: Callable[[], Result]) -> Result:
  if mirror.is_remote(root):
    return mirror.within(f'data.tfds_dir={root!r}', root, ask)
  return ask()


def _check_split(info: Any, folder: str, split: Split) -> None:
  if split.base in info.splits:
    return
  raise DataError(f'{split.key}={split.text!r} is not a split of {folder}{suggestion(split.base, info.splits, GUESS)}, '
                  f'which has {", ".join(sorted(info.splits))}.')


def _bytes_of(items: Sequence[Item], sizes: Mapping[str, int]) -> float:
  """Estimated bytes of the records of items."""
  total = 0.0
  for item in items:
    total += sizes[item.file] * (item.stop - item.start) / item.length
  return total


def _fingerprint(
    info: Any,
    split: Split,
    items: Sequence[Item],
    sizes: Mapping[str, int],
) -> dict[str, Any]:
  records = 0
  names = set()
  for item in items:
    records += item.stop - item.start
    names.add(item.file)
  return dict(
      dataset=info.full_name,
      split=split.text,
      records=records,
      bytes=sum(sizes[name] for name in names),
  )


def _items(
    info: Any,
    folder: str,
    sizes: Mapping[str, int],
    split: Split,
) -> list[Item]:
  """The records of a split, of at most RANGE bytes and RECORDS each; sizes: {file: bytes}."""
  parts = _file_parts(info, folder, split)
  _refuse_missing([posixpath.basename(part.filename) for part in parts], folder, sizes)
  before = _records_before(info.splits[split.base])
  items = []
  for part in parts:
    file = posixpath.basename(part.filename)
    length = part.examples_in_shard
    stop = part.skip + part.take
    records_of_range = RANGE * length // max(1, sizes[file])
    step = max(1, min(RECORDS, records_of_range))
    if mirror.is_remote(folder):  # a file is copied for each item that is read, so it is one item
      step = stop
    for start in range(part.skip, stop, step):
      end = min(start + step, stop)
      items.append(Item(f'{folder}/{file}', start, end, length, before[file]))
  return items


def _file_parts(info: Any, folder: str, split: Split) -> list[Any]:
  """TFDS's ranges of records of files, which have `filename`, `skip`, `take` and `examples_in_shard`."""
  try:
    parts = [part for part in info.splits[split.text].file_instructions if part.take > 0]
  except ValueError as error:
    raise DataError(f'{split.key}={split.text!r} cannot be read: {error}') from error
  if not parts:
    base = info.splits[split.base]
    raise DataError(f'{split.key}={split.text!r} holds no records; {base.name} of {folder} has {base.num_examples}.')
  return parts


def _records_before(base: Any) -> dict[str, int]:
  """{file: records in the files of a split before it}."""
  starts = itertools.accumulate(base.shard_lengths, initial=0)
  names = [path.name for path in base.filepaths]
  return dict(zip(names, starts))


def _refuse_missing(
    names: Sequence[str],
    folder: str,
    sizes: Mapping[str, int],
) -> None:
  missing = [name for name in names if name not in sizes]
  if missing:
    raise DataError(f'{len(missing)} of {len(names)} files of {folder} are missing, first {missing[0]}; prepare or '
                    'copy the dataset again.')


# --- Reading ------------------------------------------------------------------------------------


def _read(features: Any, dataset: str, item: Item) -> files.Records:
  with _local(item.path) as local:
    for number, raw in enumerate(_raw(item, local), item.start):
      name = f'{dataset} record {item.before + number}'
      yield _record(features, raw, f'{name} (record {number} of {item.path})'), name


def _record(features: Any, raw: bytes | Exception, where: str) -> files.Record | DataError:
  """The fields of a record; a DataError if it is damaged."""
  if isinstance(raw, Exception):
    return DataError(f'{where} is damaged: {raw}. Prepare or copy that file again.')
  try:
    values = features.deserialize_example_np(raw)
  except Exception as error:  # TFDS and protobuf have many
    return DataError(f'{where} cannot be decoded: {type(error).__name__}: {error}. Prepare or copy that file again.')
  try:
    return {field: fields.plain(value, f'{where}, field {field},') for field, value in values.items()}
  except DataError as error:
    return error


def _raw(item: Item, local: str) -> Iterator[bytes | Exception]:
  """Yields the bytes of the records of an item, and RuntimeErrors for those that are damaged; local: path on disk."""
  from array_record.python import array_record_module  # pyright: ignore[reportAttributeAccessIssue]
  reader = array_record_module.ArrayRecordReader(local)
  try:
    _check_length(reader, item.length)
  except (RuntimeError, IndexError, ValueError) as error:
    raise DataError(f'{item.path} cannot be read: {error}. Prepare or copy that file again.') from error
  for first in range(item.start, item.stop, BATCH):
    indices = list(range(first, min(first + BATCH, item.stop)))
    yield from _batch(reader, indices)
  reader.close()


def _check_length(reader: Any, length: int) -> None:
  records = reader.num_records()
  if records == length:
    return
  if not records:
    reader.read([0])  # raises with the reason
  raise RuntimeError(f'it holds {records} records, and dataset_info.json says {length}')


def _batch(reader: Any, indices: Sequence[int]) -> list[bytes | Exception]:
  try:
    return reader.read(indices)
  except RuntimeError as error:  # of one record; the others can be read without it
    if len(indices) == 1:
      return [error]
  records = []
  for index in indices:
    records += _batch(reader, [index])
  return records


@contextlib.contextmanager
def _local(path: str) -> Iterator[str]:
  """A path on disk of a file; a remote one is copied, since array_record's own reader of gs:// may hang."""
  if not mirror.is_remote(path):
    yield path
    return
  with tempfile.TemporaryDirectory() as folder:
    url, name = path.rsplit('/', 1)
    mirror.pull(url, folder, {name: None})
    yield f'{folder}/{name}'


# --- Finding a dataset --------------------------------------------------------------------------


def _parse(rest: str) -> Name:
  match = NAME.fullmatch(rest)
  if not match:
    raise ConfigError(f"data.source='tfds:{rest}' must be written as tfds:NAME[/CONFIG][:VERSION], such as "
                      "'tfds:lm1b' or 'tfds:wiki40b/en:1.3.0'.")
  return Name(rest, *match.groups())


def _make_built_in(
    name: Name,
    root: str,
    built_in: Mapping[str, Callable[[], Any]],
) -> Name:
  """Makes python_docs if it does not exist; returns its complete name."""
  from t5like.sources import tfds_builder
  config = name.config or next(iter(built_in))
  if config not in built_in:
    guess = suggestion(config, built_in, GUESS)
    raise ConfigError(f"data.source='tfds:{BUILT_IN}/{config}' has no such config{guess}; "
                      f'there are {", ".join(built_in)}.')
  versions = _in_time(root, lambda: _versions(f'{root}/{BUILT_IN}/{config}'))
  is_wanted = name.version in (None, tfds_builder.VERSION)
  if is_wanted and tfds_builder.VERSION not in versions:
    tfds_builder.make(config, root, lambda: built_in[config]().documents())
  return dataclasses.replace(name, config=config, version=name.version or tfds_builder.VERSION)


def _folder(root: str, name: Name) -> str:
  """The folder or URL of a version of a dataset, the newest unless one is named."""
  folder = f'{root.rstrip("/")}/{name.dataset}'
  if name.config:
    folder = f'{folder}/{name.config}'
  versions = _versions(folder)
  if name.version in versions:
    return f'{folder}/{name.version}'
  if versions and not name.version:
    return f'{folder}/{versions[-1]}'
  raise DataError(f"data.source='tfds:{name.text}': no prepared dataset in {folder} (looked for "
                  f'{name.version or "*.*.*"}/{INFO}; data.tfds_dir sets the folder).'
                  f'{_instead(root, folder, name, versions)}{how_to_make(root, name)}')


def _instead(root: str, folder: str, name: Name, versions: Sequence[str]) -> str:
  """Existing configs or versions of a dataset, or else other datasets."""
  configs = []
  if not name.config:
    configs = [entry for entry in _list(folder) if _versions(f'{folder}/{entry}')]
  if configs:
    return f' It holds the configs {", ".join(configs)}: name one.'
  if versions:
    return f' It has the versions {", ".join(versions)}.'
  return _other_datasets(root, name.dataset)


def _other_datasets(root: str, name: str) -> str:
  names = [entry for entry in _list(root) if entry != 'downloads' and not entry.startswith('.')]
  listed = ', '.join(names[:LISTED]) or 'nothing'
  if len(names) > LISTED:
    listed = f'{listed}, ..'
  return f' {root} holds {listed}{suggestion(name, names, GUESS)}.'


def _list(folder: str) -> list[str]:
  """Sorted names in a folder or URL; [] if it does not exist."""
  store, inside = mirror.filesystem(folder)
  try:
    listed = store.ls(inside, detail=False)
  except (FileNotFoundError, NotADirectoryError):
    return []
  return sorted(posixpath.basename(path.rstrip('/')) for path in listed)


def _versions(folder: str) -> list[str]:
  """Versions of the prepared datasets in a folder, the newest last."""
  versions = []
  for name in _list(folder):
    if VERSION.fullmatch(name) and mirror.is_file(f'{folder}/{name}/{INFO}'):
      versions.append(name)
  return sorted(versions, key=_version_numbers)


def _version_numbers(version: str) -> list[int]:
  return [int(number) for number in version.split('.')]


def _open(folder: str) -> tuple[Any, dict[str, int]]:
  """(DatasetInfo, {file: size}) of a prepared dataset."""
  store, inside = mirror.filesystem(folder)
  sizes = {}
  for entry in store.ls(inside, detail=True):
    if entry['type'] != 'directory':
      sizes[posixpath.basename(entry['name'])] = entry['size']
  with tempfile.TemporaryDirectory() as temporary:
    local = folder
    if mirror.is_remote(folder):
      local = temporary
      descriptions = {name: size for name, size in sizes.items() if name.endswith(DESCRIPTIONS)}
      mirror.pull(folder, local, descriptions)
    try:
      return _info(local), sizes
    except Exception as error:  # JSON's, TFDS's, those of protocol buffers
      raise DataError(f'{folder} has a description that TFDS cannot read ({type(error).__name__}: {error}); prepare '
                      'or copy the dataset again.') from error


def _info(folder: str) -> Any:
  """The DatasetInfo of a local folder, with array_record as its format where it has that."""
  import tensorflow_datasets as tfds
  info: Any = tfds.builder_from_directory(folder).info
  alternatives = [file_format.value for file_format in info.alternative_file_formats]
  if info.file_format.value != FORMAT and FORMAT in alternatives:
    info.set_file_format(FORMAT, override=True, override_if_initialized=True)
  return info
