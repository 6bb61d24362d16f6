"""Prepared datasets on gs://, s3:// and the like: kept whole on this machine, copied there and back.

Training reads tokens at random, which object stores are slow at, so `data.directory` on one is copied
to `data.cache` once per machine. A file counts as copied when it has its full size; it is written under
another name until then. All access goes through fsspec.
"""
import contextlib
import fcntl
import os
import pathlib
import queue
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeVar

from t5like.errors import DataError
from t5like.files import paths, schema
from t5like.files.paths import is_remote

Result = TypeVar('Result')
PathLike = str | os.PathLike[str]

# {store: extra that installs its package for fsspec}
PACKAGES = {'gs': 'gcs', 's3': 's3', 'hf': 'hf', 'http': 'http', 'https': 'http'}
LIMIT = 20  # seconds that a remote store has to answer
ADVICE = dict(gs='gcloud auth application-default login', gcs='gcloud auth application-default login',
              s3='aws configure', hf='hf auth login (for datasets that ask for it; or set HF_TOKEN)')
SHOWN = 300  # characters of a store's own error message
LARGEST = 1 << 30  # bytes that `read_bytes` reads unless the caller says otherwise


@contextlib.contextmanager
def alone(folder: PathLike, say: Callable[[str], None]) -> Iterator[None]:
  """Waits for other processes that work in a local folder. The lock is released when its process ends.

  Args:
    folder: an existing folder.
    say: called with a line of text before waiting.
  """
  lock = os.open(folder, os.O_RDONLY)
  try:
    _lock(lock, folder, say)
    yield
  finally:
    os.close(lock)


def _lock(
    lock: int,
    folder: PathLike,
    say: Callable[[str], None],
) -> None:
  try:
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except BlockingIOError:
    say(f'{folder}: another process is at work there, waiting.')
    fcntl.flock(lock, fcntl.LOCK_EX)
  except OSError:  # some network file systems have no locks
    pass


def filesystem(url: str) -> tuple[Any, str]:
  """(fsspec filesystem, path in it) of a URL; DataError when its package is not installed."""
  import fsspec
  try:
    return fsspec.core.url_to_fs(paths.expand(url))
  except (ImportError, ValueError) as error:
    protocol = url.partition('://')[0]
    fix = 'fsspec knows gs://, s3:// and others'
    if protocol in PACKAGES:
      fix = f"run: pip install 't5like[{PACKAGES[protocol]}]'"
    raise DataError(f'{url} cannot be opened ({error}); {fix}.') from error


def within(key: str, url: str, ask: Callable[[], Result]) -> Result:
  """Returns ask(), which looks at a remote store.

  Args:
    key: the config key or the action that needs the store; errors begin with it.
    url: of the store, for errors.
    ask: a function without arguments; it runs in a separate thread.

  Raises:
    DataError: `ask` failed, or took longer than LIMIT seconds.
  """
  answers = queue.SimpleQueue()

  def run():
    try:
      answers.put((ask(), None))
    except Exception as error:  # each store has errors of its own
      answers.put((None, error))

  # A daemon: a library that hangs cannot be stopped, and it must not keep the process from ending.
  threading.Thread(target=run, daemon=True).start()
  advice = _advice(url)
  try:
    answer, error = answers.get(timeout=LIMIT)
  except queue.Empty:
    raise DataError(f'{key}: {url} did not answer within {LIMIT:g} s. {advice}') from None
  if isinstance(error, DataError):
    raise DataError(f'{key}: {error}') from error
  if error:
    raise DataError(f'{key}: looking at {url} failed ({_shortened(error)}). {advice}') from error
  return answer


def _advice(url: str) -> str:
  protocol = url.partition('://')[0]
  advice = 'Check the path, the network, and that this machine may read it'
  if protocol in ADVICE:
    return f'{advice}: {ADVICE[protocol]}.'
  return f'{advice}.'


def _shortened(error: Exception) -> str:
  return f'{type(error).__name__}: {str(error)[:SHOWN]}'


@contextlib.contextmanager
def _explained(action: str, url: str) -> Iterator[None]:
  """Turns the errors of a store into a DataError; FileNotFoundError stays itself."""
  try:
    yield
  except FileNotFoundError:
    raise
  except Exception as error:  # each store has errors of its own
    raise DataError(f'{action} {url} failed ({_shortened(error)}). Check the path and that this machine may use it '
                    '(gs://: gcloud auth application-default login).') from error


def read_bytes(path: PathLike, most: int = LARGEST) -> bytes:
  """Content of a local or remote file.

  Args:
    path: a path or a URL.
    most: how many bytes it may have.

  Raises:
    FileNotFoundError: there is no such file.
    DataError: it cannot be read or is larger, or the store fails.
  """
  path = paths.expand(str(path))
  if is_remote(path):
    return _read_remote(path, most)
  try:
    return schema.content(path, schema.Limits(size=most))
  except schema.Invalid as error:
    raise DataError(schema.sentence(path, error)) from error


def _read_remote(url: str, most: int) -> bytes:
  def ask():
    store, inside = filesystem(url)
    try:
      size = store.size(inside)
      if size is not None and size > most:
        raise DataError(f'{url} has {size:,} bytes, more than {most:,}.')
      return store.cat_file(inside)
    except FileNotFoundError:
      return None

  content = within('Reading', url, ask)
  if content is None:
    raise FileNotFoundError(url)
  return content


def is_file(path: PathLike) -> bool:
  """Whether a local or remote file exists; DataError when the store fails."""
  path = paths.expand(str(path))
  if not is_remote(path):
    return pathlib.Path(path).is_file()

  def ask():
    store, inside = filesystem(path)
    return store.isfile(inside)

  return within('Looking for a file', path, ask)


def push(
    folder: PathLike,
    url: str,
    names: Iterable[str],
) -> None:
  """Copies files of a local folder to a URL, in the order of `names`; DataError when the store fails."""
  store, inside = filesystem(url)
  with _explained('Writing to', url):
    store.makedirs(inside, exist_ok=True)
    for name in names:
      store.put_file(str(pathlib.Path(folder) / name), f'{inside}/{name}')


def remove(url: str, patterns: Iterable[str]) -> None:
  """Deletes the files of a URL that match glob patterns; the URL need not exist. DataError when the store fails."""
  store, inside = filesystem(url)
  with _explained('Deleting in', url):
    for pattern in patterns:
      for path in store.glob(f'{inside}/{pattern}'):
        store.rm_file(path)


def pull(
    url: str,
    folder: PathLike,
    sizes: Mapping[str, int | None],
) -> None:
  """Copies files of a URL to a local folder, except those that are already there in their full size.

  Args:
    url: of the folder that holds the files.
    folder: is made where it does not exist.
    sizes: {name: bytes, or None where the size is not known}.

  Raises:
    DataError: a file is missing or cut off, or the store fails.
  """
  folder = pathlib.Path(folder)
  folder.mkdir(parents=True, exist_ok=True)
  for name, size in sizes.items():
    path = folder / name
    is_complete = path.exists() and size in (None, path.stat().st_size)
    if not is_complete:
      _pull_file(url, path, size)


def _pull_file(url: str, path: pathlib.Path, size: int | None) -> None:
  store, inside = filesystem(url)
  temporary = path.with_name(f'{path.name}.{os.getpid()}.tmp')
  try:
    with _explained('Reading', f'{url}/{path.name}'):
      store.get_file(f'{inside}/{path.name}', str(temporary))
  except FileNotFoundError:
    raise DataError(f'{url} lacks {path.name}: run prepare again with this config, finished parts are '
                    'kept.') from None
  copied = temporary.stat().st_size
  if size not in (None, copied):
    temporary.unlink()
    raise DataError(f'{url}/{path.name} has {copied} bytes instead of {size}: delete it and run prepare again.')
  os.replace(temporary, path)
