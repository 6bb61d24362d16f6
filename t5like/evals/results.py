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
from collections.abc import Callable

from etils import epath

from t5like.errors import CheckpointError, ConfigError
from t5like.files import schema
from t5like.storage import workdir

KEYS = ('step', 'shots', 'limit')
ENTRY = schema.Object(dict(step=schema.Whole(), shots=schema.Whole(-1), limit=schema.Whole(),
                           tasks=schema.Object(rest=schema.Object())), needs=(*KEYS, 'tasks'))
SHAPE = schema.Object(dict(ENTRY.fields, results=schema.List(ENTRY)), needs=ENTRY.needs)


def read(path) -> list[dict]:
  """The entries of a file, the newest last; none where there is no file. ConfigError for a file of something else."""
  try:
    values = schema.read(epath.Path(path), SHAPE, ConfigError, 'It is no file of evaluate and was not changed: give '
                         'another --output, or move it away.', schema.LINE)
  except FileNotFoundError:
    return []
  return values.get('results') or [{key: values[key] for key in (*KEYS, 'tasks')}]


def add(path, key: dict, tasks: dict) -> None:
  """Adds the results of tasks, {task: {metric: value}}, to a file, whole or not at all.

  Args:
    path: of the file, local or gs://.
    key: step, shots and limit.
    tasks: the results.
  """
  with _alone(path):
    entries = read(path)
    same = [entry for entry in entries if all(entry[name] == key[name] for name in KEYS)]
    entry = same[0] if same else dict(key, tasks={})
    entry['tasks'].update({task: _finite(values) for task, values in tasks.items()})
    others = [other for other in entries if other is not entry]
    workdir.write_json(path, dict(entry, results=[*others, entry]))


def _finite(values):
  """A task's values, null in place of numbers that JSON does not have."""
  return {metric: None if isinstance(value, float) and not math.isfinite(value) else value
          for metric, value in values.items()}


def check(path) -> None:
  """Refuses a file that cannot be added to, before hours are spent on what goes there. ConfigError."""
  read(path)
  if '://' in str(path):
    return
  folder = next(parent for parent in pathlib.Path(path).absolute().parents if parent.exists())
  if not os.access(folder, os.W_OK):
    raise ConfigError(f'--output={path}: {folder} is read-only. Give another --output.')


class Kept:
  """Adds results as they come. What cannot be written (a full disk) is tried again with the next, and by `close`.

  path, key: see `add`; say: called with warnings.
  """

  def __init__(self, path, key: dict, say: Callable = print):
    self.path, self.key, self.say = path, key, say
    self.waiting = {}

  def add(self, tasks: dict) -> None:
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
def _alone(path):
  """Keeps others on this machine from writing a file's folder until it is left, for they would lose each other's."""
  if '://' in str(path):
    yield
    return
  import fcntl  # not on Windows
  try:
    pathlib.Path(path).absolute().parent.mkdir(parents=True, exist_ok=True)
    folder = os.open(pathlib.Path(path).absolute().parent, os.O_RDONLY)
  except OSError as error:
    raise CheckpointError(f'--output={path}: its folder cannot be used ({error}).') from error
  try:
    fcntl.flock(folder, fcntl.LOCK_EX)
    yield
  finally:
    os.close(folder)
