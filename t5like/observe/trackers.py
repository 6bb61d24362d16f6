"""Services that get the numbers of a run besides metrics.jsonl: those of `log.trackers`. All have the same methods.

  numbers(step, {name: number})    text(step, name, prompt, text)    histograms(step, {name: Histogram})
  flush()    close()

The name that a service gives to a run is kept in workdir/trackers.json, so that a run which is started again continues
the same curves.
"""
import importlib.util
import itertools
import os
import socket
import struct
import time
from collections.abc import Sequence
from typing import Any, Protocol

from etils import epath

from t5like import choices
from t5like.config_type import Config
from t5like.errors import ConfigError
from t5like.files import plain_json, schema, writing
from t5like.storage import workdir as workdir_lib

PACKAGES = choices.implement('log.trackers', choices.TRACKERS, dict(
    tensorboard='tensorboardX', wandb='wandb', mlflow='mlflow'))
ADVICE = choices.implement('log.trackers', choices.TRACKERS, dict(
    tensorboard='Can that folder be written to?',
    wandb='Log in with `wandb login`, or set WANDB_MODE=offline.',
    mlflow='Is MLFLOW_TRACKING_URI right?'))
PROJECT = 't5like'
RUNS = schema.Object(rest=schema.Text(1000))  # of trackers.json
NUMBERS = itertools.count()  # of event files, in this process: there may be several in a second
LONGEST_PARAMETER = 5000  # characters that MLflow takes


class Tracker(Protocol):
  """A service that takes numbers, texts and histograms of steps."""

  def numbers(self, step: int, values: dict[str, float]) -> None:
    """Takes {name: number} of a step."""

  def text(self, step: int, name: str, prompt: str, text: str) -> None:
    """Takes a prompt and the model's answer."""

  def histograms(self, step: int, by_name: dict[str, Any]) -> None:
    """Takes {name: histograms.Histogram}."""

  def flush(self) -> None:
    """Sends waiting values."""

  def close(self) -> None:
    """Ends the run at the service."""


def check(names: Sequence[str]) -> None:
  """ConfigError for trackers whose package is not installed."""
  for name in names:
    if importlib.util.find_spec(PACKAGES[name]) is None:
      raise ConfigError(f"log.trackers has {name!r}, whose package is not installed: pip install -e '.[{name}]', or "
                        'leave it out. metrics.jsonl is written in any case.')


def start(names: Sequence[str], workdir: Any, step: int, run_name: str, config: Config,
          files: writing.Guarded | None = None) -> list[Tracker]:
  """Starts trackers, on one process.

  Args:
    names: config.log.trackers.
    workdir: of the run.
    step: numbers of later steps will follow.
    run_name: for people.
    config: of the run.
    files: the run's.

  Raises:
    ConfigError: for services that do not answer.
  """
  files = files or writing.Guarded()
  trackers = []
  for name in names:
    try:
      trackers.append(TRACKERS[name](workdir, step, run_name, config, files))
    except Exception as e:
      message = ' '.join(str(e).split())
      raise ConfigError(f'log.trackers has {name!r}, which cannot be started: {type(e).__name__}: {message[:300]} '
                        f'{ADVICE[name]}') from e
  return trackers


def _runs(workdir: Any) -> dict[str, str]:
  """{tracker: its name for the run}, as far as they are known."""
  return workdir_lib.read_json(epath.Path(workdir) / 'trackers.json', RUNS) or {}


def _known(workdir: Any, name: str) -> str | None:
  return _runs(workdir).get(name)


def _remember(workdir: Any, name: str, run_id: str, files: writing.Guarded) -> None:
  runs = _runs(workdir)
  runs[name] = run_id
  files.replace(epath.Path(workdir) / 'trackers.json', plain_json.dumps(runs, indent=2) + '\n')


class TensorBoard:
  """Events in workdir/tensorboard; values written after `step` are removed.

  The format is tensorboardX's, the writing is ours: its SummaryWriter writes in a thread, which a full disk ends, and
  then blocks callers that add more.
  """

  def __init__(self, workdir: Any, step: int, run_name: str, config: Config, files: writing.Guarded) -> None:
    from tensorboardX.proto import event_pb2
    self.events: Any = event_pb2
    self.files = files
    name = f'events.out.tfevents.{time.time():.0f}.{socket.gethostname()}.{os.getpid()}.{next(NUMBERS)}'
    self.path = epath.Path(workdir) / 'tensorboard' / name
    self._add(file_version='brain.Event:2')
    self._add(step=step + 1, session_log=self.events.SessionLog(status=self.events.SessionLog.START))

  def _add(self, **content: Any) -> None:
    self.files.append(self.path, self._record(**content))

  def _record(self, **content: Any) -> bytes:
    event = self.events.Event(wall_time=time.time(), **content)
    return record(event.SerializeToString())

  def numbers(self, step: int, values: dict[str, float]) -> None:
    from tensorboardX import summary
    records = []
    for name, value in values.items():
      records.append(self._record(step=step, summary=summary.scalar(name, value)))
    self.files.append(self.path, b''.join(records))

  def text(self, step: int, name: str, prompt: str, text: str) -> None:
    from tensorboardX import summary
    self._add(step=step, summary=summary.text(name, f'{prompt}|{text}'))

  def histograms(self, step: int, by_name: dict[str, Any]) -> None:
    from tensorboardX import summary
    for name, histogram in by_name.items():
      content = summary.histogram_raw(
          name,
          min=histogram.edges[0],
          max=histogram.edges[-1],
          num=histogram.total,
          sum=histogram.mean * histogram.total,
          sum_squares=histogram.square * histogram.total,
          bucket_limits=histogram.edges[1:].tolist(),
          bucket_counts=histogram.counts.tolist())
      self._add(step=step, summary=content)

  def flush(self) -> None:
    pass  # the run flushes its files

  def close(self) -> None:
    pass


def record(content: bytes) -> bytes:
  """A TFRecord: length, its checksum, content, its checksum."""
  size = struct.pack('<Q', len(content))
  return b''.join([size, _checksum(size), content, _checksum(content)])


def _checksum(content: bytes) -> bytes:
  from tensorboardX.record_writer import masked_crc32c
  return struct.pack('<I', masked_crc32c(content))


class WeightsAndBiases:
  """A run of wandb.ai, or offline in workdir/wandb; WANDB_PROJECT, WANDB_MODE and the like configure it."""

  def __init__(self, workdir: Any, step: int, run_name: str, config: Config, files: writing.Guarded) -> None:
    import wandb  # pyright: ignore[reportMissingImports]  # installed by those who choose it
    self.wandb: Any = wandb
    self.run: Any = wandb.init(
        project=os.environ.get('WANDB_PROJECT', PROJECT),
        name=run_name,
        id=_known(workdir, 'wandb'),
        resume='allow',
        dir=None if writing.is_remote(workdir) else str(workdir),
        config=config.to_dict())
    _remember(workdir, 'wandb', self.run.id, files)
    # An axis of our own: wandb's steps only go up, but a run that was killed goes back to its checkpoint.
    self.run.define_metric('step')
    self.run.define_metric('*', step_metric='step')

  def numbers(self, step: int, values: dict[str, float]) -> None:
    self.run.log(dict(values, step=step))

  def text(self, step: int, name: str, prompt: str, text: str) -> None:
    table = self.wandb.Table(columns=['prompt', 'text'], data=[[prompt, text]])
    self.run.log({name: table, 'step': step})

  def histograms(self, step: int, by_name: dict[str, Any]) -> None:
    values = {}
    for name, histogram in by_name.items():
      values[name] = self.wandb.Histogram(np_histogram=(histogram.counts, histogram.edges))
    values['step'] = step
    self.run.log(values)

  def flush(self) -> None:
    pass  # a separate process sends immediately

  def close(self) -> None:
    self.run.finish(quiet=True)


class MLflow:
  """A run of MLflow at MLFLOW_TRACKING_URI; histograms and texts are files of it."""

  def __init__(self, workdir: Any, step: int, run_name: str, config: Config, files: writing.Guarded) -> None:
    import mlflow  # pyright: ignore[reportMissingImports]  # installed by those who choose it

    from t5like.config.values import flatten
    self.mlflow: Any = mlflow
    self.client: Any = mlflow.MlflowClient()
    known = _known(workdir, 'mlflow')
    if known:
      self.run_id = known
      self.client.update_run(known, 'RUNNING')
      return
    name = os.environ.get('MLFLOW_EXPERIMENT_NAME', PROJECT)
    experiment = self.client.get_experiment_by_name(name)
    experiment_id = experiment.experiment_id if experiment else self.client.create_experiment(name)
    self.run_id = self.client.create_run(experiment_id, run_name=run_name).info.run_id
    _remember(workdir, 'mlflow', self.run_id, files)
    parameters = {key: str(value)[:LONGEST_PARAMETER] for key, value in flatten(config).items()}
    self.mlflow.log_params(parameters, run_id=self.run_id)

  def numbers(self, step: int, values: dict[str, float]) -> None:
    self.mlflow.log_metrics(values, step=step, run_id=self.run_id, synchronous=False)

  def text(self, step: int, name: str, prompt: str, text: str) -> None:
    self.client.log_text(self.run_id, f'{prompt}|{text}', f'{name}/{step}.txt')

  def histograms(self, step: int, by_name: dict[str, Any]) -> None:
    values = {}
    for name, histogram in by_name.items():
      values[name] = dict(edges=histogram.edges.tolist(), counts=histogram.counts.tolist())
    self.client.log_dict(self.run_id, values, f'histograms/{step}.json')

  def flush(self) -> None:
    self.mlflow.flush_async_logging()

  def close(self) -> None:
    self.flush()
    self.client.set_terminated(self.run_id)


TRACKERS = choices.implement('log.trackers', choices.TRACKERS, dict(
    tensorboard=TensorBoard, wandb=WeightsAndBiases, mlflow=MLflow))
