"""The files of a run in its workdir beside checkpoints, and the checks of a second start.

  config.json      the config of the run, before derived values
  vocabulary       the vocabulary's file, so that the model can be used without the dataset
  result.json      why and where the run ended; only once its target was reached
  metrics.jsonl    a line of numbers per log interval and validation (see observe/metrics.py)
  samples.jsonl    the model's answers to config.sample.prompts
  ledger.jsonl     where the time went (see observe/ledger.py); main.py report shows it in report.html
  evaluation.json  the results of main.py evaluate, unless --output names another file
  rewinds.json     when and why the run was rewound to a checkpoint (see rewinds.py)
  bad_steps/       batches of steps that were not finite
  lease.json       while a run is there (see lease.py)
"""
import contextlib
import math
import os
import pathlib
from collections.abc import Iterator
from typing import Any

from etils import epath

from t5like import config as config_lib
from t5like.config.values import ROOT, either, show
from t5like.config_type import Config
from t5like.errors import CheckpointError, ConfigError, DataError
from t5like.files import mirror, paths, plain_json, schema, writing
from t5like.files.schema import Maybe, Object, Real, Text, Whole

RESULT_FIELDS = dict(
    stop=Object(),
    reason=Text(),
    step=Whole(),
    tokens=Whole(),
    validation=Object(dict(nll=Maybe(Real())), ('nll',)))
RESULT = Object(RESULT_FIELDS, tuple(RESULT_FIELDS))
OURS = schema.Limits(constants=True)  # older versions wrote NaN
STORES = ('gs', 's3', 'az', 'hf')  # that etils reads, as Orbax does
EXTRAS = dict(gs='gcs', s3='s3')  # {store: extra of this package that installs its client}
RESUME_ADVICE = 'Delete it: the run resumes from its newest checkpoint.'


def _write(path: Any, content: str | bytes, name: str = '--workdir') -> None:
  """Writes a file whole or not at all; `name`: the flag that gives its place, for errors."""
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    writing.write_file(path, content)
  except OSError as e:
    reason = e.strerror or e
    raise CheckpointError(
        f'{name}: cannot write {path} ({reason}). Give a place that this user may write to, with space on its disk.'
    ) from e


def _read(path: Any) -> bytes | None:
  """The bytes of a file, or None where there is none."""
  try:
    return schema.content(path)
  except FileNotFoundError:
    return None
  except ImportError as e:  # etils needs a library for gs:// or s3://
    raise no_package(path, e) from e
  except schema.Invalid as e:
    raise CheckpointError(f'--workdir: {schema.sentence(path, e)}') from e


def is_there(name: str, path: str) -> bool:
  """Whether a folder or file exists.

  Args:
    name: the flag or key that gives it.
    path: local, or the URL of an object store.

  Raises:
    CheckpointError: for a store that does not answer, or whose package is not installed.
    ConfigError: for a kind of store that runs cannot use, or a name that no file can have.
  """
  if not paths.is_remote(path):
    return _is_there_locally(name, path)
  protocol, _, _ = path.partition('://')
  if protocol not in STORES:
    stores = either(f'{store}://' for store in STORES)
    raise ConfigError(f'{name}={show(path)}: runs lie on disk or on {stores}, and this is {protocol}://.')
  try:
    return mirror.within(name, path, lambda: _exists(path))
  except DataError as e:
    raise CheckpointError(str(e)) from e


def _is_there_locally(name: str, path: str) -> bool:
  try:
    return epath.Path(path).exists()
  except OSError as e:
    raise ConfigError(f'{name}={show(path)}: {e.strerror}. Give another path.') from e
  except ValueError as e:
    raise ConfigError(f'{name}={show(path)}: {e}. Give another path.') from e


def _exists(path: str) -> bool:
  try:
    return epath.Path(path).exists()
  except ImportError as e:
    message = str(no_package(path, e))
    raise DataError(message) from e


def no_package(path: Any, error: ImportError) -> CheckpointError:
  """The error for a path on an object store whose package is not installed."""
  protocol, _, _ = str(path).partition('://')
  fix = 'pip install the package that it names'
  if protocol in EXTRAS:
    extra = EXTRAS[protocol]
    fix = f"pip install -e '.[{extra}]'"
  return CheckpointError(f'{path} cannot be opened ({error}); run: {fix}')


# --- The config, and checkpoints ------------------------------------------------------------------


def read_config(workdir: Any) -> Any:
  """The config of the run in `workdir`; ConfigError when there is none."""
  is_there('--workdir', str(workdir))
  path = epath.Path(workdir) / 'config.json'
  text = _read(path)
  if text is None:
    raise ConfigError(
        f'--workdir={workdir} holds no run (no config.json there). Train one first: '
        'python main.py --config=configs/decoder_tiny.py --workdir=...')
  config = config_lib.from_json(text, str(path))
  return config_lib.complete(config, path)


def check_checkpoint(
    name: str,
    workdir: str,
    step: int | None = None,
) -> int:
  """The step of a run's checkpoint.

  Args:
    name: the flag or key that gives the workdir.
    workdir: of the run.
    step: of the checkpoint; None: the newest.

  Raises:
    CheckpointError: when the run has none, or not this one.
  """
  steps = checkpoint_steps(name, workdir)
  if step is None and steps:
    return steps[-1]
  if step is not None and step in steps:
    return step
  wanted = '' if step is None else f' of {step}'
  raise CheckpointError(f'{name}={workdir} has no checkpoint{wanted} yet; it has {steps or "none"}.')


def checkpoint_steps(name: str, workdir: str) -> list[int]:
  """The steps of a run's checkpoints, oldest first; `name`: the flag or key that gives the workdir."""
  folder = epath.Path(workdir) / 'checkpoints'
  steps: list[int] = []
  if not is_there(name, str(folder)):
    return steps
  for path in folder.iterdir():
    if path.name.isdecimal():
      steps.append(int(path.name))
  return sorted(steps)


def check_trained(workdir: str, step: int = 0) -> Any:
  """The config of a trained run whose checkpoint `step` (0: the newest) exists.

  ConfigError when there is no run, CheckpointError when it has no such checkpoint.
  """
  config = read_config(workdir)
  check_checkpoint('--workdir', workdir, step or None)
  return config


def check_ema(config: Config) -> None:
  """ConfigError for a run without a moving average of its parameters."""
  if not config.optimizer.ema:
    raise ConfigError('--ema: this run has no moving average of its parameters, for optimizer.ema=0. Leave it out, or '
                      'average checkpoints by main.py average.')


def run_of(folder: Any) -> tuple[Any, int | None] | None:
  """(workdir, step) of a run that a folder is, None being its newest checkpoint, or of one of its checkpoints.

  None where the folder is neither.
  """
  folder = epath.Path(folder)
  if folder.parent.name == 'checkpoints' and folder.name.isdecimal():
    return folder.parent.parent, int(folder.name)
  if (folder / 'checkpoints').exists():
    return folder, None
  return None


def trunk(branch_from: str) -> tuple[Any, int | None]:
  """(workdir, step) of a checkpoint that branch_from names, None: the newest. ConfigError where there is no run."""
  run = run_of(epath.Path(paths.expand(branch_from)))
  if run is None:
    raise ConfigError(f'branch_from={show(branch_from)}: this is no run. Give the workdir of one, or one of its '
                      'checkpoints (WORKDIR/checkpoints/STEP). To begin with weights alone, use init_from.')
  return run


def vocabulary_path(workdir: Any) -> Any:
  """The path of a run's vocabulary."""
  return epath.Path(workdir) / 'vocabulary'


def write_vocabulary(workdir: Any, vocabulary: Any) -> None:
  """Writes a vocabulary into a workdir."""
  path = vocabulary_path(workdir)
  _write(path, vocabulary.content)


def check_config(workdir: Any, config: Config) -> list[tuple[str, Any, Any]]:
  """Refuses a workdir that another config made; returns [(key, old value, new value)] of the differences allowed."""
  is_there('--workdir', str(workdir))
  path = epath.Path(workdir) / 'config.json'
  text = _read(path)
  if text is None:
    if config.branch_from:
      check_beginning(config.branch_from, 'branch_from')
    else:
      check_beginning(config.init_from)
    return []
  place = str(path)
  before = config_lib.from_json(text, place)
  return config_lib.check_resumable(before, config, place)


def check_beginning(init_from: str, key: str = 'init_from') -> None:
  """ConfigError or CheckpointError for a folder that a key names and that does not exist or cannot be reached."""
  if not init_from:
    return
  checked = paths.check(key, init_from)
  if is_there(key, checked):
    return
  path = epath.Path(paths.expand(init_from))
  hint = '.'
  config_file = ROOT / 'configs' / f'{path.name}.py'
  if config_file.exists():
    hint = f'; that run is made by python main.py --config=configs/{path.name}.py.'
  raise ConfigError(
      f'{key}={init_from!r}: there is no such folder. Give the workdir of a run, one of its checkpoints '
      f'(WORKDIR/checkpoints/STEP), or a Hugging Face folder{hint}')


def write_config(workdir: Any, config: Config) -> None:
  """Writes a config into a workdir."""
  path = epath.Path(workdir) / 'config.json'
  _write(path, config_lib.to_json(config))


# --- The result, and other JSON -------------------------------------------------------------------


def read_result(workdir: Any, config: Config) -> dict[str, Any] | None:
  """The result of a run that has reached the target of this config, else None."""
  path = epath.Path(workdir) / 'result.json'
  result = read_json(path, RESULT, RESUME_ADVICE)
  if not result:
    return None
  targets = plain_json.as_read(config.stop.to_dict())
  if result['stop'] != targets:
    return None
  validation = result['validation']
  if validation['nll'] is None:
    validation['nll'] = math.nan
  return result


def finished(workdir: Any, config: Config) -> dict[str, Any] | None:
  """`read_result` of a run that has a checkpoint: one without any is not done, whatever its result says."""
  folder = epath.Path(workdir) / 'checkpoints'
  if not folder.exists():
    return None
  for checkpoint in folder.iterdir():
    mark = checkpoint / 'commit_success.txt'
    if mark.exists():
      return read_result(workdir, config)
  return None


def write_result(workdir: Any, config: Config, **result: Any) -> None:
  """Writes the result of a run, with the target that it has reached."""
  path = epath.Path(workdir) / 'result.json'
  targets = config.stop.to_dict()
  write_json(path, dict(stop=targets, **result))


def write_json(path: Any, values: Any) -> None:
  """Numbers for programs, at any path."""
  content = plain_json.dumps(values, indent=2)
  _write(epath.Path(path), content + '\n')


def write_file(path: Any, content: str | bytes, name: str = '--workdir') -> None:
  """Text or bytes at any path, whole or not at all; `name`: the flag that gives the path, for errors."""
  _write(epath.Path(path), content, name)


def read_json(path: Any, shape: schema.Shape = schema.ANY, advice: str = '') -> Any:
  """The values that `write_json` wrote, or None where there is no file. CheckpointError if damaged, with `advice`."""
  text = _read(epath.Path(path))
  if text is None:
    return None
  try:
    return schema.parse(text, shape, OURS)
  except schema.Invalid as e:
    raise CheckpointError(schema.sentence(path, e, advice)) from e


# --- Whole folders --------------------------------------------------------------------------------


@contextlib.contextmanager
def whole_folder(folder: Any, marker: str = 'config.json') -> Iterator[Any]:
  """Yields a folder to write into, which becomes `folder` when all is written: it is there whole or not at all.

  It lies beside `folder` as .NAME.partial; the remains of a process that was killed are deleted by the next. On an
  object store, which cannot rename folders, files are copied one by one, `marker`, which readers look for, last.
  ConfigError for a folder that holds files already, CheckpointError where nothing can be written.
  """
  remote = paths.is_remote(folder)
  if not remote:  # without links and dots, so that the folder itself is renamed
    folder = pathlib.Path(folder).expanduser().resolve()
  folder = epath.Path(folder)
  partial = folder.parent / f'.{folder.name}.partial'
  try:
    if _is_occupied(folder):
      raise ConfigError(f'{folder} holds files already. Give a new or an empty folder.')
    if partial.exists():
      partial.rmtree()
    partial.mkdir(parents=True)
    try:
      yield partial
    except Exception:
      partial.rmtree(missing_ok=True)
      raise
    if remote:
      _copy_all(partial, folder, marker)
      partial.rmtree()
      return
    _sync(pathlib.Path(partial))
    os.rename(partial, folder)  # onto an empty folder too
    _sync_folder(pathlib.Path(folder).parent)
  except OSError as e:
    raise CheckpointError(f'cannot write to {folder}: {e}.') from e


def _is_occupied(folder: epath.Path) -> bool:
  """Whether something other than an empty folder is at a path."""
  if not folder.exists():
    return False
  if not folder.is_dir():
    return True
  return any(folder.iterdir())


def _copy_all(source: Any, target: Any, marker: str) -> None:
  """Copies a folder, the file `marker` last."""
  paths_in_order = sorted(source.iterdir(), key=lambda path: path.name == marker)
  target.mkdir(parents=True, exist_ok=True)
  for path in paths_in_order:
    copy = target / path.name
    if path.is_dir():
      _copy_all(path, copy, marker)
    else:
      path.copy(copy, overwrite=True)


def _sync(folder: pathlib.Path) -> None:
  """Makes all files of a local folder survive a power failure."""
  for path in folder.rglob('*'):
    if not path.is_file():
      continue
    with open(path, 'rb') as file:
      os.fsync(file.fileno())


def _sync_folder(folder: pathlib.Path) -> None:
  descriptor = os.open(folder, os.O_RDONLY)
  try:
    os.fsync(descriptor)
  finally:
    os.close(descriptor)
