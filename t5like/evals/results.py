"""The file in which `main.py evaluate` collects its results, evaluation.json.

    {"step": 489, "shots": -1, "limit": 0, "tasks": {"brackets": {"accuracy": 0.555, ..}, ..},
     "results": [{"step": 489, "shots": -1, "limit": 0, "tasks": {..}}, ..]}

`results` has an entry for each step, shots and limit that were ever asked for; the newest of them stands at the top
too, where older versions had their only one. A task that is asked again in the same way replaces its own result only.
"""
import contextlib
import math
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from etils import epath

from t5like.errors import CheckpointError, ConfigError
from t5like.files import schema
from t5like.storage import workdir

KEYS = ('step', 'shots', 'limit')
ENTRY = schema.Object(
    dict(
        step=schema.Whole(),
        shots=schema.Whole(-1),
        limit=schema.Whole(),
        tasks=schema.Object(rest=schema.Object()),
    ),
    needs=(*KEYS, 'tasks'),
)
SHAPE = schema.Object(
    dict(ENTRY.fields, results=schema.List(ENTRY)),
    needs=ENTRY.needs,
)

NOT_CHANGED = 'It is no file of evaluate and was not changed: give another --output, or move it away.'

Path = str | os.PathLike[str]
Entry = dict[str, Any]  # step, shots, limit and tasks
Results = Mapping[str, Mapping[str, float]]  # {task: {metric: value}}


def read(path: Path) -> list[Entry]:
  """The entries of a file, the newest last; none where there is no file. ConfigError for a file of something else."""
  try:
    values = schema.read(epath.Path(path), SHAPE, ConfigError, NOT_CHANGED, schema.LINE)
  except FileNotFoundError:
    return []
  if values.get('results'):
    return values['results']
  only = {key: values[key] for key in (*KEYS, 'tasks')}
  return [only]


def add(path: Path, key: Mapping[str, int], tasks: Results) -> None:
  """Adds the results of tasks to a file, whole or not at all.

  Args:
    path: of the file, local or gs://.
    key: step, shots and limit.
    tasks: the results.
  """
  with _alone(path):
    entries = read(path)
    entry = _entry_of(entries, key)
    others = [other for other in entries if other is not entry]
    for task, values in tasks.items():
      entry['tasks'][task] = _finite(values)
    workdir.write_json(path, dict(entry, results=[*others, entry]))


def _entry_of(entries: list[Entry], key: Mapping[str, int]) -> Entry:
  """The first entry of a step, shots and limit; a new one if there is none."""
  for entry in entries:
    if all(entry[name] == key[name] for name in KEYS):
      return entry
  return dict(key, tasks={})


def _finite(values: Mapping[str, float]) -> dict[str, float | None]:
  """A task's values, null in place of numbers that JSON does not have."""
  finite = {}
  for metric, value in values.items():
    is_json = not isinstance(value, float) or math.isfinite(value)
    finite[metric] = None
    if is_json:
      finite[metric] = value
  return finite


def check(path: Path) -> None:
  """Refuses a file that cannot be added to, before hours are spent on what goes there. ConfigError."""
  read(path)
  if '://' in str(path):
    return
  folder = pathlib.Path(path).absolute().parent
  while not folder.exists():
    folder = folder.parent
  if not os.access(folder, os.W_OK):
    raise ConfigError(f'--output={path}: {folder} is read-only. Give another --output.')


class Kept:
  """Adds results as they come. What cannot be written (a full disk) is tried again with the next, and by `close`."""

  def __init__(
      self,
      path: Path,
      key: Mapping[str, int],
      say: Callable[[str], Any] = print,
  ):
    """`path` and `key`: see `add`; `say`: called with warnings."""
    self.path = path
    self.key = key
    self.say = say
    self.waiting: dict[str, Mapping[str, float]] = {}

  def add(self, tasks: Results) -> None:
    """Adds results; those that cannot be written wait."""
    self.waiting.update(tasks)
    try:
      self.close()
    except CheckpointError as error:
      self.say(f'WARNING: {error} Trying again after the next task.')

  def close(self) -> None:
    """CheckpointError if something still cannot be written."""
    if self.waiting:
      add(self.path, self.key, self.waiting)
      self.waiting = {}


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[None]:
  """Keeps others on this machine from writing a file's folder until it is left, so that no results are lost."""
  if '://' in str(path):
    yield
    return
  import fcntl  # not on Windows
  parent = pathlib.Path(path).absolute().parent
  try:
    parent.mkdir(parents=True, exist_ok=True)
    folder = os.open(parent, os.O_RDONLY)
  except OSError as error:
    raise CheckpointError(f'--output={path}: its folder cannot be used ({error}).') from error
  try:
    fcntl.flock(folder, fcntl.LOCK_EX)
    yield
  finally:
    os.close(folder)
