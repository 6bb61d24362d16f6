"""What a run leaves in its workdir beside checkpoints, and what a second start reads from it first.

  config.json      the config of the run, as it was given
  vocabulary       the vocabulary's file, so that the model can be used without the dataset
  result.json      why and where the run ended; only once its target was reached
  metrics.jsonl    a line of numbers per log interval and validation (see metrics.py)
  samples.jsonl    what the model made of config.sample.prompts
  ledger.jsonl     where the time went (see ledger.py); main.py report shows it in report.html
  evaluation.json  what main.py evaluate found, unless --output says where else
  rewinds.json     when and why the run went back to a checkpoint (see rewinds.py)
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

from t5like import config as config_lib, paths, plain_json, schema, writing
from t5like.config_values import ROOT, either, show
from t5like.data import mirror
from t5like.errors import CheckpointError, ConfigError, DataError
from t5like.schema import Maybe, Object, Real, Text, Whole


def _write(path, content):
  """Whole or not at all; text or bytes."""
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    writing.write_file(path, content)
  except OSError as e:
    raise CheckpointError(f'--workdir: cannot write {path} ({e}). Give a folder that this user may write to, with '
                          'room on its disk.') from e


RESULT = Object(dict(stop=Object(), reason=Text(), step=Whole(), tokens=Whole(), validation=Object(
    dict(nll=Maybe(Real())), ('nll',))), ('stop', 'reason', 'step', 'tokens', 'validation'))

OURS = schema.Limits(constants=True)  # older versions wrote NaN


def _read(path):
  """The bytes of a file, or None where there is none."""
  try:
    return schema.content(path)
  except FileNotFoundError:
    return None
  except ImportError as e:  # etils needs a library for gs:// or s3://
    raise no_package(path, e) from e
  except schema.Invalid as e:
    raise CheckpointError(f'--workdir: {schema.sentence(path, e)}') from e


STORES = ('gs', 's3', 'az', 'hf')  # that etils reads, as Orbax does


def is_there(name: str, path: str) -> bool:
  """Whether a folder or file is there; `name`: of the flag or key that gives it.

  CheckpointError for a store that does not answer, or whose package is not installed; ConfigError for a kind of store
  that no run can lie on, or a name that no file can have.
  """
  if not paths.is_remote(path):
    try:
      return epath.Path(path).exists()
    except (OSError, ValueError) as e:
      reason = e.strerror if isinstance(e, OSError) else e
      raise ConfigError(f'{name}={show(path)}: {reason}. Give another path.') from e
  protocol = path.partition('://')[0]
  if protocol not in STORES:
    stores = either(f'{store}://' for store in STORES)
    raise ConfigError(f'{name}={show(path)}: runs lie on disk or on {stores}, and this is {protocol}://.')
  try:
    return mirror.within(name, path, lambda: _exists(path))
  except DataError as e:
    raise CheckpointError(str(e)) from e


def _exists(path):
  try:
    return epath.Path(path).exists()
  except ImportError as e:
    raise DataError(str(no_package(path, e))) from e


def no_package(path, error):
  """A CheckpointError for a path on an object store whose package is not installed."""
  protocol = str(path).partition('://')[0]
  extra = {'gs': 'gcs', 's3': 's3'}[protocol] if protocol in ('gs', 's3') else ''
  fix = f"pip install -e '.[{extra}]'" if extra else 'pip install the package that it names'
  return CheckpointError(f'{path} cannot be opened ({error}); run: {fix}')


def read_config(workdir):
  """The config of the run in `workdir`; ConfigError when there is none."""
  is_there('--workdir', str(workdir))
  path = epath.Path(workdir) / 'config.json'
  text = _read(path)
  if text is None:
    raise ConfigError(f'--workdir={workdir} holds no run (no config.json there). Train one first: '
                      'python main.py --config=configs/decoder_tiny.py --workdir=...')
  return config_lib.complete(config_lib.from_json(text, path), path)


def check_checkpoint(name: str, workdir: str, step: int | None = None):
  """The checkpoint's step; CheckpointError when a run has none, or not that of `step`. `name`: the flag or key."""
  folder = epath.Path(workdir) / 'checkpoints'
  there = is_there(name, str(folder))
  steps = sorted(int(path.name) for path in folder.iterdir() if path.name.isdecimal()) if there else []
  if not steps or step is not None and step not in steps:
    of = '' if step is None else f' of {step}'
    raise CheckpointError(f'{name}={workdir} has no checkpoint{of} yet; it has {steps or "none"}.')
  return steps[-1] if step is None else step


def check_trained(workdir: str, step: int = 0):
  """The config of a trained run whose checkpoint `step` (0: the newest) is there.

  ConfigError when there is no run, CheckpointError when it has no such checkpoint.
  """
  config = read_config(workdir)
  check_checkpoint('--workdir', workdir, step or None)
  return config


def vocabulary_path(workdir):
  return epath.Path(workdir) / 'vocabulary'


def write_vocabulary(workdir, vocabulary):
  _write(vocabulary_path(workdir), vocabulary.content)


def check_config(workdir, config):
  """Refuses a workdir that another config made; returns the differences that are allowed."""
  is_there('--workdir', str(workdir))
  path = epath.Path(workdir) / 'config.json'
  text = _read(path)
  if text is None:
    check_beginning(config.init_from)
    return []
  return config_lib.check_resumable(config_lib.from_json(text, path), config, str(path))


def check_beginning(init_from):
  """ConfigError or CheckpointError for a config.init_from that is not there or cannot be asked."""
  if init_from and not is_there('init_from', paths.check('init_from', init_from)):
    path = epath.Path(paths.expand(init_from))
    made_by = ROOT / 'configs' / f'{path.name}.py'
    raise ConfigError(f'init_from={init_from!r}: there is no such folder. Give the workdir of a run, one of its '
                      "checkpoints (WORKDIR/checkpoints/STEP), or a folder of Hugging Face's"
                      + (f'; that run is made by python main.py --config=configs/{path.name}.py.' if made_by.exists()
                         else '.'))


def write_config(workdir, config):
  _write(epath.Path(workdir) / 'config.json', config_lib.to_json(config))


def read_result(workdir, config):
  """The result of a run that has reached the target this config asks for, else None."""
  advice = 'Delete it: the run resumes from its newest checkpoint.'
  result = read_json(epath.Path(workdir) / 'result.json', RESULT, advice)
  if result and result['stop'] == plain_json.as_read(config.stop.to_dict()):
    if result['validation']['nll'] is None:
      result['validation']['nll'] = math.nan
    return result
  return None


def finished(workdir, config):
  """`read_result` of a run that has a checkpoint: one without any is not done, whatever its result says."""
  folder = epath.Path(workdir) / 'checkpoints'
  steps = folder.iterdir() if folder.exists() else ()
  return read_result(workdir, config) if any((step / 'commit_success.txt').exists() for step in steps) else None


def write_result(workdir, config, **result):
  _write(epath.Path(workdir) / 'result.json',
         plain_json.dumps(dict(stop=config.stop.to_dict(), **result), indent=2) + '\n')


def write_json(path, values):
  """Numbers for programs, at any path."""
  _write(epath.Path(path), plain_json.dumps(values, indent=2) + '\n')


def write_file(path, content):
  """Text or bytes at any path, whole or not at all."""
  _write(epath.Path(path), content)


def read_json(path, shape=schema.ANY, advice=''):
  """What `write_json` wrote, or None where there is nothing. CheckpointError when it is damaged, with `advice`."""
  text = _read(epath.Path(path))
  try:
    return None if text is None else schema.parse(text, shape, OURS)
  except schema.Invalid as e:
    raise CheckpointError(schema.sentence(path, e, advice)) from e


# --- Whole folders --------------------------------------------------------------------------------


@contextlib.contextmanager
def whole_folder(folder: Any, marker: str = 'config.json') -> Iterator[Any]:
  """Yields a folder to write into, which becomes `folder` when all is written: it is there whole or not at all.

  It lies beside `folder` as .NAME.partial; what a process that was killed left there is deleted by the next. On an
  object store, which cannot rename folders, files are copied one by one, `marker`, which readers look for, last.
  ConfigError for a folder that holds files already, CheckpointError where nothing can be written.
  """
  # Without links and dots, so that what is renamed is the folder itself.
  folder = epath.Path(folder) if '://' in str(folder) else epath.Path(pathlib.Path(folder).expanduser().resolve())
  partial = folder.parent / f'.{folder.name}.partial'
  try:
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
      raise ConfigError(f'{folder} holds files already. Give a new or an empty folder.')
    if partial.exists():
      partial.rmtree()
    partial.mkdir(parents=True)
    try:
      yield partial
    except Exception:
      partial.rmtree(missing_ok=True)
      raise
    if '://' in str(folder):
      _copy_all(partial, folder, marker)
      partial.rmtree()
      return
    _sync(pathlib.Path(partial))
    os.rename(partial, folder)  # onto an empty folder too
    _sync_folder(pathlib.Path(folder).parent)
  except OSError as e:
    raise CheckpointError(f'cannot write to {folder}: {e}.') from e


def _copy_all(source, target, marker):
  names = sorted((path.name for path in source.iterdir()), key=lambda name: name == marker)
  target.mkdir(parents=True, exist_ok=True)
  for name in names:
    if (source / name).is_dir():
      _copy_all(source / name, target / name, marker)
    else:
      (source / name).copy(target / name, overwrite=True)


def _sync(folder):
  """Makes all files of a local folder outlive a power cut."""
  for path in folder.rglob('*'):
    if path.is_file():
      with open(path, 'rb') as f:
        os.fsync(f.fileno())


def _sync_folder(folder):
  descriptor = os.open(folder, os.O_RDONLY)
  try:
    os.fsync(descriptor)
  finally:
    os.close(descriptor)
