"""The manifest of a prepared dataset: what it holds, and whether it is whole."""
import hashlib
import json
import pathlib

from t5like.data import mirror
from t5like.errors import DataError

FORMAT = 4  # of the folder; raise it when files written by older code cannot be read any more
MANIFEST = 'manifest.json'  # written last: a folder that has it is complete


def read(folder):
  """The manifest of a folder (str or path), a dict; DataError when anything is missing or damaged."""
  folder = pathlib.Path(folder)
  command = 'python main.py prepare --config=...'
  try:
    manifest = json.loads((folder / MANIFEST).read_bytes())
    if not isinstance(manifest, dict):
      raise ValueError('it is no object')
  except FileNotFoundError:
    if folder.is_dir() and any(folder.iterdir()):
      raise DataError(f'prepare did not finish in {folder}; run it again, finished parts are kept: '
                      f'{command}') from None
    raise DataError(f'There is no prepared dataset in {folder}; run: {command}') from None
  except ValueError as error:
    raise DataError(f'{folder / MANIFEST} is damaged ({error}): delete the folder and run: '
                    f'{command}') from error
  if manifest.get('format') != FORMAT:
    raise DataError(f'{folder} has format {manifest.get("format")}, this version of t5like reads '
                    f'format {FORMAT}: delete the folder and run: {command}')
  if manifest != sealed(manifest):
    raise DataError(f'{folder / MANIFEST} is damaged (its digest differs): delete the folder and run: {command}')
  if broken := broken_files(folder, manifest):
    raise DataError(f'{len(broken)} files of {folder} are not as prepare left them, first '
                    f'{broken[0]}; to make them again, run: {command}')
  return manifest


def sealed(manifest):
  """The manifest with a digest of itself."""
  rest = {key: value for key, value in manifest.items() if key != 'digest'}
  return dict(rest, digest=hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest())


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


def read_json(path):
  """What is in a file, or None where there is none; DataError when it is damaged."""
  try:
    return json.loads(mirror.read_bytes(path))
  except FileNotFoundError:
    return None
  except ValueError as error:
    raise DataError(f'{path} is damaged ({error}): delete it, or the folder it is in, and run prepare '
                    'again.') from error
