"""The manifest of a prepared dataset: its contents, and whether it is complete."""
import hashlib
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

from t5like.errors import DataError
from t5like.files import mirror, plain_json, schema
from t5like.files.mirror import PathLike
from t5like.files.schema import FileName, Limits, List, Object, OneOf, Shape, Text, Whole

FORMAT = 4  # of the folder; raise it when files written by older code can no longer be read
MANIFEST = 'manifest.json'  # written last: a folder that has it is complete
COMMAND = 'python main.py prepare --config=...'
LARGE = Limits(size=256 << 20, values=4_000_000)  # it lists all files of the source and of the dataset
WIDTHS = dict(uint16=2, int32=4)  # bytes of a token
MANY = 1 << 24

Manifest = dict[str, Any]


def _whole(fields: Mapping[str, Shape]) -> Object:
  """An object that must have all of the fields."""
  return Object(fields, tuple(fields))


DIGEST = Text(64)
FILE = _whole(dict(file=FileName(), size=Whole(), sha256=DIGEST))
MAX_ID = Whole(-1, 1 << 31)
SHARD = _whole(dict(
    FILE.fields,
    documents=Whole(),
    tokens=Whole(),
    bytes=Whole(),
    blocks=Whole(),
    max_id=MAX_ID,
    lengths=FILE,
    names=FILE,
))
# The counts of a part of the work, and their sums over all parts.
COUNTS = dict(
    dropped=Whole(),
    repeated=Whole(),
    overlong=Whole(),
    bad=Whole(),
    damage=List(Text()),
)
PART = _whole(dict(COUNTS, documents=Whole(), shards=Object(rest=SHARD)))
SPLIT = _whole(dict(
    documents=Whole(),
    tokens=Whole(1),
    bytes=Whole(),
    shards=List(SHARD, least=1),
))
SPLITS = Object(dict(train=SPLIT, validation=SPLIT), needs=('train',), rest=None)
VOCABULARY = _whole(dict(
    name=Text(100),
    size=Whole(1, MANY),
    num_sentinels=Whole(0, 1 << 20),
    fingerprint=DIGEST,
    file=FileName(),
))
SHAPE = _whole(dict(
    COUNTS,
    format=Whole(),
    source=Text(),
    inputs=Object(),
    texts=Whole(1, 2),
    block=Whole(1, MANY),
    dtype=OneOf(tuple(WIDTHS)),
    splits=SPLITS,
    parts=List(PART, least=1),
    max_id=MAX_ID,
    fingerprint=DIGEST,
    digest=DIGEST,
    vocabulary=VOCABULARY,
))


def read(folder: PathLike) -> Manifest:
  """The manifest of a folder; DataError when anything is missing or damaged."""
  folder = pathlib.Path(folder)
  manifest = load(folder / MANIFEST)
  if manifest is None:
    raise DataError(_absent(folder))
  broken = broken_files(folder, manifest)
  if broken:
    raise DataError(f'{len(broken)} files of {folder} are not as prepare left them, first '
                    f'{broken[0]}; to make them again, run: {COMMAND}')
  return manifest


def _absent(folder: pathlib.Path) -> str:
  is_started = folder.is_dir() and any(folder.iterdir())
  if is_started:
    return f'prepare did not finish in {folder}; run it again, finished parts are kept: {COMMAND}'
  return f'There is no prepared dataset in {folder}; run: {COMMAND}'


def load(path: PathLike) -> Manifest | None:
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
    _check_consistency(manifest)
  except schema.Invalid as error:
    raise DataError(schema.sentence(path, error, f'Delete the folder and run: {COMMAND}')) from error
  return manifest


def _check_consistency(manifest: Manifest) -> None:
  """Invalid where numbers of a manifest contradict each other: readers allocate memory by them."""
  for name, split in manifest['splits'].items():
    for shard in split['shards']:
      _check_shard(manifest, name, shard)
    for key in ('documents', 'tokens'):
      total = sum(shard[key] for shard in split['shards'])
      if split[key] != total:
        raise schema.Invalid(f'the split {schema.show(name)} has {key}={split[key]}, which is not the sum of its '
                             'shards')
  size = manifest['vocabulary']['size']
  if manifest['max_id'] >= size:
    raise schema.Invalid(f'has max_id={manifest["max_id"]} and vocabulary.size={size}, which contradict each other')


def _check_shard(manifest: Manifest, split: str, shard: Mapping[str, Any]) -> None:
  block = manifest['block']
  place = f'the split {schema.show(split)} has a shard, {schema.show(shard["file"])},'
  blocks = -(-shard['tokens'] // block)
  least_size = blocks * block * WIDTHS[manifest['dtype']]
  if shard['blocks'] != blocks or shard['size'] < least_size:
    raise schema.Invalid(f'{place} that says tokens={shard["tokens"]}, blocks={shard["blocks"]}, '
                         f'size={shard["size"]}, which contradict each other')
  size_of_lengths = shard['lengths']['size']
  if size_of_lengths != 4 * shard['documents'] * manifest['texts']:
    raise schema.Invalid(f'{place} whose documents={shard["documents"]} and lengths.size={size_of_lengths} contradict '
                         'each other')


def sealed(manifest: Mapping[str, Any]) -> Manifest:
  """The manifest with a digest of itself."""
  rest = {key: value for key, value in manifest.items() if key != 'digest'}
  content = plain_json.dumps(rest, sort_keys=True).encode()
  return dict(rest, digest=hashlib.sha256(content).hexdigest())


def sizes(manifest: Manifest) -> dict[str, int | None]:
  """{file name: bytes, or None for any number} of the vocabulary and of the files of all shards."""
  size_of: dict[str, int | None] = {manifest['vocabulary']['file']: None}
  for shard in _shards(manifest):
    for file in (shard, shard['lengths'], shard['names']):
      size_of[file['file']] = file['size']
  return size_of


def _shards(manifest: Manifest) -> Iterator[Mapping[str, Any]]:
  for split in manifest['splits'].values():
    yield from split['shards']


def broken_files(folder: pathlib.Path, manifest: Manifest) -> list[str]:
  """Problems of the shards and the vocabulary of a folder, a str per file."""
  broken = []
  for file, expected_size in sizes(manifest).items():
    try:
      size = (folder / file).stat().st_size
    except FileNotFoundError:
      broken.append(f'{file} (missing)')
      continue
    if expected_size not in (None, size):
      broken.append(f'{file} ({size} bytes instead of {expected_size})')
  return broken


def read_json(path: PathLike, shape: Shape = schema.ANY) -> Any:
  """The value in a JSON file, local or remote, or None where there is no file.

  Args:
    path: a path or a URL.
    shape: that the value must have.

  Raises:
    DataError: the file is damaged, or the value has another shape.
  """
  try:
    return schema.parse(mirror.read_bytes(path, LARGE.size), shape, LARGE)
  except FileNotFoundError:
    return None
  except schema.Invalid as error:
    raise DataError(f'{path} is damaged ({error}): delete it, or the folder it is in, and run prepare '
                    'again.') from error
