"""The manifest of a prepared dataset: what it holds, and whether it is whole."""
import hashlib
import pathlib

from t5like import plain_json, schema
from t5like.data import mirror
from t5like.errors import DataError
from t5like.schema import FileName, Limits, List, Object, OneOf, Text, Whole

FORMAT = 4  # of the folder; raise it when files written by older code cannot be read any more
MANIFEST = 'manifest.json'  # written last: a folder that has it is complete
COMMAND = 'python main.py prepare --config=...'
LARGE = Limits(size=256 << 20, values=4_000_000)  # it lists all files of the source and of the dataset


def _whole(fields):
  """An object all of whose fields must be there."""
  return Object(fields, tuple(fields))


FILE = _whole(dict(file=FileName(), size=Whole(), sha256=Text(64)))
SHARD = _whole(dict(FILE.fields, documents=Whole(), tokens=Whole(), bytes=Whole(), blocks=Whole(),
                    max_id=Whole(-1, 1 << 31), lengths=FILE, names=FILE))
# What a part of the work left, and the sums of all.
COUNTS = dict(dropped=Whole(), repeated=Whole(), overlong=Whole(), bad=Whole(), damage=List(Text()))
PART = _whole(dict(COUNTS, documents=Whole(), shards=Object(rest=SHARD)))
SPLIT = _whole(dict(documents=Whole(), tokens=Whole(1), bytes=Whole(), shards=List(SHARD, least=1)))
SHAPE = _whole(dict(
    COUNTS, format=Whole(), source=Text(), inputs=Object(), texts=Whole(1, 2), block=Whole(1, 1 << 24),
    dtype=OneOf(('uint16', 'int32')), splits=Object(dict(train=SPLIT, validation=SPLIT), ('train',), None),
    parts=List(PART, least=1), max_id=Whole(-1, 1 << 31), fingerprint=Text(64), digest=Text(64), vocabulary=_whole(dict(
        name=Text(100), size=Whole(1, 1 << 24), num_sentinels=Whole(0, 1 << 20), fingerprint=Text(64),
        file=FileName()))))


def read(folder):
  """The manifest of a folder (str or path), a dict; DataError when anything is missing or damaged."""
  folder = pathlib.Path(folder)
  manifest = load(folder / MANIFEST)
  if manifest is None and folder.is_dir() and any(folder.iterdir()):
    raise DataError(f'prepare did not finish in {folder}; run it again, finished parts are kept: {COMMAND}')
  if manifest is None:
    raise DataError(f'There is no prepared dataset in {folder}; run: {COMMAND}')
  if broken := broken_files(folder, manifest):
    raise DataError(f'{len(broken)} files of {folder} are not as prepare left them, first '
                    f'{broken[0]}; to make them again, run: {COMMAND}')
  return manifest


def load(path):
  """The manifest in a file, local or remote, or None where there is none; DataError when it is damaged."""
  manifest = read_json(path, Object())
  if manifest is None:
    return None
  if manifest.get('format') != FORMAT:
    raise DataError(f'{path} has format {schema.show(manifest.get("format"))}, this version of t5like reads format '
                    f'{FORMAT}: delete the folder and run: {COMMAND}')
  if manifest != sealed(manifest):
    raise DataError(f'{path} is damaged (its digest differs): delete the folder and run: {COMMAND}')
  try:
    SHAPE.check(manifest, '')
    _add_up(manifest)
  except schema.Invalid as error:
    raise DataError(schema.sentence(path, error, f'Delete the folder and run: {COMMAND}')) from error
  return manifest


def _add_up(manifest):
  """Invalid where numbers of a manifest contradict each other: they say how much memory is taken."""
  width = dict(uint16=2, int32=4)[manifest['dtype']]
  for name, split in manifest['splits'].items():
    for shard in split['shards']:
      blocks = -(-shard['tokens'] // manifest['block'])
      if shard['blocks'] != blocks or shard['size'] < blocks * manifest['block'] * width:
        raise schema.Invalid(f'the split {schema.show(name)} has a shard, {schema.show(shard["file"])}, that says '
                             f'tokens={shard["tokens"]}, blocks={shard["blocks"]}, size={shard["size"]}, which '
                             'contradict each other')
      if shard['lengths']['size'] != 4 * shard['documents'] * manifest['texts']:
        raise schema.Invalid(f'the split {schema.show(name)} has a shard, {schema.show(shard["file"])}, whose '
                             f'documents={shard["documents"]} and lengths.size={shard["lengths"]["size"]} contradict '
                             'each other')
    for key in ('documents', 'tokens'):
      if split[key] != sum(shard[key] for shard in split['shards']):
        raise schema.Invalid(f'the split {schema.show(name)} has {key}={split[key]}, which is not the sum of its '
                             'shards')
  if manifest['max_id'] >= manifest['vocabulary']['size']:
    raise schema.Invalid(f'has max_id={manifest["max_id"]} and vocabulary.size={manifest["vocabulary"]["size"]}, which '
                         'contradict each other')


def sealed(manifest):
  """The manifest with a digest of itself."""
  rest = {key: value for key, value in manifest.items() if key != 'digest'}
  return dict(rest, digest=hashlib.sha256(plain_json.dumps(rest, sort_keys=True).encode()).hexdigest())


def sizes(manifest):
  """{file name: bytes, or None for any number} of the vocabulary and of all that belongs to shards."""
  shards = [shard for split in manifest['splits'].values() for shard in split['shards']]
  files = {file['file']: file['size'] for shard in shards for file in (shard, shard['lengths'], shard['names'])}
  return {manifest['vocabulary']['file']: None, **files}


def broken_files(folder, manifest):
  """Returns what is wrong with the shards and the vocabulary of a folder, a str per file."""
  broken = []
  for file, size in sizes(manifest).items():
    try:
      found = (folder / file).stat().st_size
    except FileNotFoundError:
      broken.append(f'{file} (missing)')
      continue
    if size not in (None, found):
      broken.append(f'{file} ({found} bytes instead of {size})')
  return broken


def read_json(path, shape=schema.ANY):
  """What is in a file of JSON, local or remote, or None where there is none; DataError when it is damaged."""
  try:
    return schema.parse(mirror.read_bytes(path, LARGE.size), shape, LARGE)
  except FileNotFoundError:
    return None
  except schema.Invalid as error:
    raise DataError(f'{path} is damaged ({error}): delete it, or the folder it is in, and run prepare '
                    'again.') from error
