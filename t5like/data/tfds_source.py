"""Prepared TFDS datasets, on disk or wherever fsspec reads, as what a Source is made of.

A dataset is found by its folder; neither TensorFlow nor its builder's code is run. One that is not there
is an error that says how to make it, for which the catalogue of TFDS is searched as text.
"""
import contextlib
import functools
import itertools
import pathlib
import posixpath
import re
import tempfile

from t5like import paths
from t5like.data import corpora, fields, mirror, templates
from t5like.errors import ConfigError, DataError
from t5like.nearest import nearest, suggestion

BATCH = 64  # records read at once
RANGE, RECORDS = 64 << 20, 10_000  # most bytes, and records, of an item
BUILT_IN = 'python_docs'
GUESS = ' (did you mean {!r}?)'
FORMAT = 'array_record'  # the one that is read without TensorFlow
# The parts of the catalogue that hold text. TFDS knows their names only once they are imported.
COLLECTIONS = 'text translate summarization question_answering structured text_simplification'.split()


def find(rest, data, split, built_in):
  """Returns the arguments of `sources.Source` but its name, for `data.source='tfds:' + rest`.

  A record is a dict of the fields that `data` asks for, and its id 'plays/1.0.0 train record 12', counted
  from 0 over the files of the split. split: takes the place of `data.split`; None: that. built_in: for each
  config of python_docs, which is made when it is not there, a function that returns the Source of its text.
  ConfigError, DataError.
  """
  import tensorflow_datasets as tfds
  key, split = ('data.validation', split) if split else ('data.split', data.split)
  root = paths.expand(data.tfds_dir or str(tfds.core.constants.DATA_DIR))
  name, config, version = _parse(rest)
  if name == BUILT_IN:
    config, version = _make_built_in(config, version, root, built_in)
  folder = _in_time(root, lambda: _folder(root, rest, name, config, version))
  info, sizes = _in_time(root, lambda: _open(folder))
  if info.file_format.value != FORMAT:
    raise DataError(f'{folder} is stored as {info.file_format.value}, which only TensorFlow reads. '
                    f'{_how_to_convert(folder)}')
  base = split.partition('[')[0]
  if base not in info.splits:
    raise DataError(f'{key}={split!r} is not a split of {folder}{suggestion(base, info.splits, GUESS)}, '
                    f'which has {", ".join(sorted(info.splits))}.')
  names = list(info.features) if hasattr(info.features, 'keys') else []
  fields.require(data, names, folder, 'feature')
  items = _items(info, folder, sizes, key, split)
  features = tfds.features.FeaturesDict({field: info.features[field] for field in templates.fields(data)})
  used = sum(sizes[posixpath.basename(path)] * (stop - start) / length for path, start, stop, length, _ in items)
  records = sum(stop - start for _, start, stop, *_ in items)
  fingerprint = dict(dataset=info.full_name, split=split, records=records,
                     bytes=sum(sizes[file] for file in {posixpath.basename(item[0]) for item in items}))
  return dict(items=items, read=functools.partial(_read, features, f'{info.full_name} {base}'), num_bytes=used,
              fingerprint=fingerprint, licence=info.redistribution_info.license or '')


def _in_time(root, ask):
  return mirror.within(f'data.tfds_dir={root!r}', root, ask) if mirror.is_remote(root) else ask()


def _items(info, folder, sizes, key, split):
  """[(path, first record, its end, records in the file, number in the split of the file's first record)]."""
  base = info.splits[split.partition('[')[0]]
  try:
    parts = [part for part in info.splits[split].file_instructions if part.take > 0]
  except ValueError as error:
    raise DataError(f'{key}={split!r} cannot be read: {error}') from error
  if not parts:
    raise DataError(f'{key}={split!r} holds no records; {base.name} of {folder} has {base.num_examples}.')
  starts = itertools.accumulate(base.shard_lengths, initial=0)
  before = dict(zip([path.name for path in base.filepaths], starts))
  names = [posixpath.basename(part.filename) for part in parts]
  missing = [name for name in names if name not in sizes]
  if missing:
    raise DataError(f'{len(missing)} of {len(names)} files of {folder} are missing, first {missing[0]}; prepare or '
                    'copy the dataset again.')
  items = []
  for name, part in zip(names, parts):
    end, length = part.skip + part.take, part.examples_in_shard
    # A remote file is copied for each item that is read, so it is one item.
    step = end if mirror.is_remote(folder) else max(1, min(RECORDS, RANGE * length // max(1, sizes[name])))
    items += [(f'{folder}/{name}', start, min(start + step, end), length, before[name])
              for start in range(part.skip, end, step)]
  return items


# --- Reading ------------------------------------------------------------------------------------


def _read(features, dataset, item):
  path, start, stop, length, before = item
  with _local(path) as local:
    for i, raw in enumerate(_raw(path, local, start, stop, length), start):
      name = f'{dataset} record {before + i}'
      yield _record(features, raw, name, f'{name} (record {i} of {path})'), name


def _record(features, raw, name, where):
  """A dict; a DataError if the record is damaged."""
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


def _raw(path, local, start, stop, length):
  """Yields the bytes of records `start` to `stop` of a file, and RuntimeErrors for those that are damaged."""
  from array_record.python import array_record_module
  reader = array_record_module.ArrayRecordReader(local)
  try:
    if reader.num_records() != length:
      if not reader.num_records():
        reader.read([0])  # says what is wrong
      raise RuntimeError(f'it holds {reader.num_records()} records, and dataset_info.json says {length}')
  except (RuntimeError, IndexError, ValueError) as error:
    raise DataError(f'{path} cannot be read: {error}. Prepare or copy that file again.') from error
  for first in range(start, stop, BATCH):
    yield from _batch(reader, list(range(first, min(first + BATCH, stop))))
  reader.close()


def _batch(reader, indices):
  try:
    return reader.read(indices)
  except RuntimeError as error:  # of one record; the others can be read without it
    if len(indices) == 1:
      return [error]
    return [record for index in indices for record in _batch(reader, [index])]


@contextlib.contextmanager
def _local(path):
  """A path on disk of a file; one that is remote is copied, for array_record's own reader of gs:// may hang."""
  if not mirror.is_remote(path):
    yield path
    return
  with tempfile.TemporaryDirectory() as folder:
    url, name = path.rsplit('/', 1)
    mirror.pull(url, folder, {name: None})
    yield f'{folder}/{name}'


# --- Finding a dataset --------------------------------------------------------------------------


def _parse(rest):
  """(name, config or None, version or None)."""
  match = re.fullmatch(r'(\w+)(?:/([^:]+))?(?::(\d+\.\d+\.\d+))?', rest)
  if not match:
    raise ConfigError(f"data.source='tfds:{rest}' must be written as tfds:NAME[/CONFIG][:VERSION], such as "
                      "'tfds:lm1b' or 'tfds:wiki40b/en:1.3.0'.")
  return match.groups()


def _make_built_in(config, version, root, built_in):
  """Makes python_docs if it is not there; returns (config, version)."""
  from t5like.data import tfds_builder
  config = config or next(iter(built_in))
  if config not in built_in:
    guess = suggestion(config, built_in, GUESS)
    raise ConfigError(f"data.source='tfds:{BUILT_IN}/{config}' has no such config{guess}; "
                      f'there are {", ".join(built_in)}.')
  made = _in_time(root, lambda: _versions(f'{root}/{BUILT_IN}/{config}'))
  if version in (None, tfds_builder.VERSION) and tfds_builder.VERSION not in made:
    tfds_builder.make(config, root, lambda: built_in[config]().documents())
  return config, version or tfds_builder.VERSION


def _folder(root, rest, name, config, version):
  """The folder or URL of the newest version of a dataset."""
  folder = '/'.join([root.rstrip('/'), name, *([config] if config else [])])
  versions = _versions(folder)
  if version in versions or versions and not version:
    return f'{folder}/{version or versions[-1]}'
  has = f' It has the versions {", ".join(versions)}.' if versions else ''
  if not config:
    configs = [entry for entry in _list(folder) if _versions(f'{folder}/{entry}')]
    has = f' It holds the configs {", ".join(configs)}: name one.' if configs else has
  raise DataError(f"data.source='tfds:{rest}': no prepared dataset in {folder} (looked for "
                  f'{version or "*.*.*"}/dataset_info.json; data.tfds_dir sets the folder).{has or _others(root, name)}'
                  f'{_how_to_make(root, rest, name)}')


def _list(folder):
  """Sorted names of what is in a folder or URL; [] if there is none."""
  store, inside = mirror.filesystem(folder)
  try:
    return sorted(posixpath.basename(path.rstrip('/')) for path in store.ls(inside, detail=False))
  except (FileNotFoundError, NotADirectoryError):
    return []


def _versions(folder):
  """Versions, sorted, of the prepared datasets in a folder."""
  found = [name for name in _list(folder) if re.fullmatch(r'\d+\.\d+\.\d+', name)
           and mirror.is_file(f'{folder}/{name}/dataset_info.json')]
  return sorted(found, key=lambda version: [int(n) for n in version.split('.')])


def _open(folder):
  """(DatasetInfo, {file: size}) of a prepared dataset."""
  import tensorflow_datasets as tfds
  store, inside = mirror.filesystem(folder)
  sizes = {posixpath.basename(e['name']): e['size'] for e in store.ls(inside, detail=True) if e['type'] != 'directory'}
  with tempfile.TemporaryDirectory() as temporary:
    local = folder
    if mirror.is_remote(folder):
      local = temporary
      mirror.pull(folder, local, {name: size for name, size in sizes.items() if name.endswith(('.json', '.txt'))})
    try:
      info = tfds.builder_from_directory(local).info
      formats = [file_format.value for file_format in info.alternative_file_formats]
      if info.file_format.value != FORMAT and FORMAT in formats:
        info.set_file_format(FORMAT, override=True, override_if_initialized=True)
      return info, sizes
    except Exception as error:  # JSON's, TFDS's, those of protocol buffers
      raise DataError(f'{folder} has a description that TFDS cannot read ({type(error).__name__}: {error}); prepare '
                      'or copy the dataset again.') from error


# --- What to do about a dataset that is not there -------------------------------------------------


def _others(root, name):
  names = [entry for entry in _list(root) if entry != 'downloads' and not entry.startswith('.')]
  guess = suggestion(name, names, GUESS)
  return f' {root} holds {", ".join(names[:20]) or "nothing"}{", .." if len(names) > 20 else ""}{guess}.'


def _how_to_convert(folder):
  """Advice for a dataset whose records TFDS can write as array_record too, without downloading anything again."""
  return ('To write its records as array_record beside these: pip install tensorflow apache-beam mlcroissant && '
          f'tfds convert_format --dataset_version_dir={folder} --out_file_format=array_record')


def _on_the_hub(corpus):
  """Advice to read the same text from files of the Hub."""
  return (f' {corpus.title} ({corpus.size}, {corpus.licence}) can also be read from the files of '
          f"{corpus.page} on the Hugging Face Hub, after pip install -e '.[hf]': {corpora.flags(corpus)} "
          '(docs/datasets.md).')


def _how_to_make(root, rest, name):
  known = catalogue()
  corpus = corpora.find(rest)
  hub = _on_the_hub(corpus) if corpus else ''
  if name == BUILT_IN:
    from t5like.data import tfds_builder
    return f' This Python makes version {tfds_builder.VERSION} only.'
  if name == 'c4':
    return f' TFDS makes C4 from terabytes of Common Crawl, on a cluster.{hub}'
  if name not in known:
    close = ', '.join(nearest(name, known, most=3, close=0.5))
    guess = f'; the nearest names are {close}' if close else ''
    return f' TFDS has no dataset {name!r} of text{guess}.{hub}'
  needs = ' and '.join(f'{package} (pip install {package})' for package in _needs(known[name]))
  needed = f' To be made it needs {needs}.' if needs else ''
  where, copy = root, ''
  if mirror.is_remote(root):
    where = 'FOLDER'
    copy = ' (in a local folder, to be copied: these files cannot be written to a URL)'
  return (f' To prepare it there{copy}: {_command(rest, where)} It downloads, which without network is given up only '
          f'after minutes.{needed}{hub}')


def _command(rest, root):
  """A line for a shell that prepares a dataset."""
  path = catalogue().get(rest.partition('/')[0].partition(':')[0])
  part = '' if path is None or 'datasets' in path.parts[-3:-1] else _collection(path)
  return (f'python -c "import tensorflow_datasets as tfds{f", tensorflow_datasets.{part}" if part else ""}; '
          f"tfds.builder('{rest}', data_dir='{root}', file_format='array_record').download_and_prepare()\"")


@functools.cache
def catalogue():
  """Returns {name: path of the builder's code} of TFDS's datasets of text, found without importing them."""
  import tensorflow_datasets as tfds
  root = pathlib.Path(tfds.__file__).parent
  found = {}
  for path in (path for part in COLLECTIONS for path in sorted((root / part).rglob('*.py'))):
    for match in re.finditer(r'^class (\w+)\(([^)]*)\)', path.read_text(encoding='utf-8'), re.M):
      if not path.stem.endswith('_test') and re.search(r'Builder\b|Translate\b', match[2]):
        found[tfds.core.naming.camelcase_to_snakecase(match[1])] = path
  # These are known to TFDS without an import.
  return found | {path.parent.name: path for path in root.glob('datasets/*/*_dataset_builder.py')}


def _collection(path):
  return next((part for part in path.parts[::-1] if part in COLLECTIONS), '')


def _needs(path):
  """Packages that a builder's code uses, which we do not install."""
  code = path.read_text(encoding='utf-8')
  code = re.sub(r'#.*|"""(?s:.*?)"""', '', code)
  return [package for package, use in (('tensorflow', r'\btf\.\w'), ('apache-beam', r'\bbeam\.\w|BeamBasedBuilder'))
          if re.search(use, code)]
