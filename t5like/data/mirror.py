"""Prepared datasets on gs://, s3:// and the like: kept whole on this machine, copied there and back.

Training reads tokens at random, which object stores are slow at, so `data.directory` on one is copied
to `data.cache` once per machine. A file counts as copied when it has its full size; it is written under
another name until then. All through fsspec.
"""
import contextlib
import fcntl
import os
import pathlib
import queue
import threading

from t5like import paths, schema
from t5like.errors import DataError
from t5like.paths import is_remote

PACKAGES = {'gs': 'gcs', 's3': 's3', 'hf': 'hf', 'http': 'http', 'https': 'http'}  # extras that bring what fsspec needs
LIMIT = 20  # seconds that a remote store has to answer
ADVICE = dict(gs='gcloud auth application-default login', gcs='gcloud auth application-default login',
              s3='aws configure', hf='hf auth login (for datasets that ask for it; or set HF_TOKEN)')


@contextlib.contextmanager
def alone(folder, say):
  """Waits for other processes that work in a local folder. The lock dies with its process."""
  lock = os.open(folder, os.O_RDONLY)
  try:
    try:
      fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      say(f'{folder}: another process is at work there, waiting.')
      fcntl.flock(lock, fcntl.LOCK_EX)
    except OSError:  # some network file systems have no locks
      pass
    yield
  finally:
    os.close(lock)


def filesystem(url):
  """(fsspec filesystem, path in it) of a URL; DataError when its package is not installed."""
  import fsspec
  try:
    return fsspec.core.url_to_fs(paths.expand(url))
  except (ImportError, ValueError) as error:
    extra = PACKAGES[url.partition('://')[0]] if url.partition('://')[0] in PACKAGES else ''
    fix = f"run: pip install 't5like[{extra}]'" if extra else 'fsspec knows gs://, s3:// and others'
    raise DataError(f'{url} cannot be opened ({error}); {fix}.') from error


def within(key, url, ask):
  """Returns ask(), which looks at a remote store; DataError, begun with `key`, if it fails or takes too long."""
  answers = queue.SimpleQueue()

  def run():
    try:
      answers.put((ask(), None))
    except Exception as error:  # each store has errors of its own
      answers.put((None, error))
  # A daemon: nobody can stop a library that hangs, and it must not keep the process from ending.
  threading.Thread(target=run, daemon=True).start()
  login = ADVICE.get(url.partition('://')[0], '')
  advice = f'Check the path, the network, and that this machine may read it{": " if login else ""}{login}.'
  try:
    answer, error = answers.get(timeout=LIMIT)
  except queue.Empty:
    raise DataError(f'{key}: {url} did not answer within {LIMIT:g} s. {advice}') from None
  if isinstance(error, DataError):
    raise DataError(f'{key}: {error}') from error
  if error:
    raise DataError(f'{key}: looking at {url} failed ({type(error).__name__}: {str(error)[:300]}). {advice}') from error
  return answer


@contextlib.contextmanager
def _explained(what, url):
  try:
    yield
  except FileNotFoundError:
    raise
  except Exception as error:  # each store has errors of its own
    raise DataError(f'{what} {url} failed ({type(error).__name__}: {str(error)[:300]}). Check the path and that this '
                    'machine may use it (gs://: gcloud auth application-default login).') from error


def read_bytes(path, most=1 << 30):
  """Content of a local or remote file, of at most so many bytes; FileNotFoundError, or DataError for a file that
  cannot be read or is longer, or when the store fails."""
  path = paths.expand(str(path))
  if not is_remote(path):
    try:
      return schema.content(path, schema.Limits(size=most))
    except schema.Invalid as error:
      raise DataError(schema.sentence(path, error)) from error
  def ask():
    store, inside = filesystem(str(path))
    try:
      size = store.size(inside)
      if size is not None and size > most:
        raise DataError(f'{path} has {size:,} bytes, more than {most:,}.')
      return store.cat_file(inside)
    except FileNotFoundError:
      return None
  content = within('Reading', str(path), ask)
  if content is None:
    raise FileNotFoundError(path)
  return content


def is_file(path):
  """Whether a local or remote file is there; DataError when the store fails."""
  path = paths.expand(str(path))
  if not is_remote(path):
    return pathlib.Path(path).is_file()
  def ask():
    store, inside = filesystem(str(path))
    return store.isfile(inside)
  return within('Looking for a file', str(path), ask)


def push(folder, url, names):
  """Copies files of a local folder to a URL, in the order of `names`."""
  store, inside = filesystem(url)
  with _explained('Writing to', url):
    store.makedirs(inside, exist_ok=True)
    for name in names:
      store.put_file(str(pathlib.Path(folder) / name), f'{inside}/{name}')


def remove(url, patterns):
  """Deletes the files of a URL that match; it may not be there at all."""
  store, inside = filesystem(url)
  with _explained('Deleting in', url):
    for path in (path for pattern in patterns for path in store.glob(f'{inside}/{pattern}')):
      store.rm_file(path)


def pull(url, folder, sizes):
  """Copies files of a URL to a local folder, those that are not there in their full size yet.

  sizes: {name: bytes, or None where that is not known}. DataError when one is missing or cut off.
  """
  store, inside = filesystem(url)
  folder = pathlib.Path(folder)
  folder.mkdir(parents=True, exist_ok=True)
  for name, size in sizes.items():
    path, new = folder / name, folder / f'{name}.{os.getpid()}.tmp'
    if path.exists() and size in (None, path.stat().st_size):
      continue
    try:
      with _explained('Reading', f'{url}/{name}'):
        store.get_file(f'{inside}/{name}', str(new))
    except FileNotFoundError:
      raise DataError(f'{url} lacks {name}: run prepare again with this config, parts that are there are '
                      'kept.') from None
    found = new.stat().st_size
    if size not in (None, found):
      new.unlink()
      raise DataError(f'{url}/{name} has {found} bytes instead of {size}: delete it and run prepare again.')
    os.replace(new, path)
