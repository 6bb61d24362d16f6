"""Services that get the numbers of a run besides metrics.jsonl: those of `log.trackers`. All have the same methods.

  numbers(step, {name: number})    text(step, name, prompt, text)    histograms(step, {name: Histogram})
  flush()    close()

The name that a service has for a run is in workdir/trackers.json, so that a run which resumes extends the same curves.
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
from t5like.config.values import flatten
from t5like.config_type import Config
from t5like.errors import ConfigError
from t5like.files import plain_json, schema, writing
from t5like.storage import workdir as workdir_lib

PACKAGES = choices.implement('log.trackers', choices.TRACKERS, dict(
    tensorboard='tensorboardX',
    wandb='wandb',
    mlflow='mlflow',
))
ADVICE = choices.implement('log.trackers', choices.TRACKERS, dict(
    tensorboard='Can that folder be written to?',
    wandb='Log in with `wandb login`, or set WANDB_MODE=offline.',
    mlflow='Is MLFLOW_TRACKING_URI right?',
))
PROJECT = 't5like'
RUNS = schema.Object(rest=schema.Text(1000))  # of trackers.json
NUMBERS = itertools.count()  # of event files, in this process: there may be several in a second
LONGEST_PARAMETER = 5000  # characters that MLflow accepts
LONGEST_MESSAGE = 300  # characters of a service's error


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
    package = PACKAGES[name]
    if importlib.util.find_spec(package):
      continue
    raise ConfigError(
        f"log.trackers has {name!r}, whose package is not installed: pip install -e '.[{name}]', or leave it out. "
        'metrics.jsonl is written in any case.')


def start(
    names: Sequence[str],
    workdir: Any,
    step: int,
    run_name: str,
    config: Config,
    files: writing.Guarded | None = None,
) -> list[Tracker]:
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
    make = TRACKERS[name]
    try:
      tracker = make(workdir, step, run_name, config, files)
    except Exception as e:
      message = _one_line(e)
      raise ConfigError(
          f'log.trackers has {name!r}, which cannot be started: {type(e).__name__}: {message} {ADVICE[name]}') from e
    trackers.append(tracker)
  return trackers


def _one_line(error: Exception) -> str:
  """The message of an error without line breaks, truncated to LONGEST_MESSAGE."""
  words = str(error).split()
  return ' '.join(words)[:LONGEST_MESSAGE]


def _runs(workdir: Any) -> dict[str, str]:
  """{tracker: its name for the run}, as far as they are known."""
  path = _runs_path(workdir)
  return workdir_lib.read_json(path, RUNS) or {}


def _runs_path(workdir: Any) -> epath.Path:
  return epath.Path(workdir) / 'trackers.json'


def _known_run(workdir: Any, tracker: str) -> str | None:
  runs = _runs(workdir)
  return runs.get(tracker)


def _record_run(workdir: Any, tracker: str, run_id: str, files: writing.Guarded) -> None:
  runs = _runs(workdir)
  runs[tracker] = run_id
  content = plain_json.dumps(runs, indent=2)
  files.replace(_runs_path(workdir), content + '\n')


class TensorBoard:
  """Events in workdir/tensorboard; values logged after `step` are removed.

  The format is tensorboardX's, but not its SummaryWriter: that writes in a thread, which a full disk ends, and then
  blocks callers that add more.
  """

  def __init__(
      self,
      workdir: Any,
      step: int,
      run_name: str,
      config: Config,
      files: writing.Guarded,
  ) -> None:
    from tensorboardX.proto import event_pb2
    self.events: Any = event_pb2
    self.files = files
    now = f'{time.time():.0f}'
    host = socket.gethostname()
    process = os.getpid()
    number = next(NUMBERS)
    name = f'events.out.tfevents.{now}.{host}.{process}.{number}'
    self.path = epath.Path(workdir) / 'tensorboard' / name
    self._add(file_version='brain.Event:2')
    session = self.events.SessionLog
    started = session(status=session.START)
    self._add(step=step + 1, session_log=started)

  def _add(self, **content: Any) -> None:
    event = self._record(**content)
    self.files.append(self.path, event)

  def _record(self, **content: Any) -> bytes:
    event = self.events.Event(wall_time=time.time(), **content)
    serialized = event.SerializeToString()
    return record(serialized)

  def numbers(self, step: int, values: dict[str, float]) -> None:
    from tensorboardX import summary
    records = []
    for name, value in values.items():
      scalar = summary.scalar(name, value)
      event = self._record(step=step, summary=scalar)
      records.append(event)
    self.files.append(self.path, b''.join(records))

  def text(self, step: int, name: str, prompt: str, text: str) -> None:
    from tensorboardX import summary
    content = summary.text(name, f'{prompt}|{text}')
    self._add(step=step, summary=content)

  def histograms(self, step: int, by_name: dict[str, Any]) -> None:
    from tensorboardX import summary
    for name, histogram in by_name.items():
      edges = histogram.edges
      total = histogram.total
      content = summary.histogram_raw(
          name,
          min=edges[0],
          max=edges[-1],
          num=total,
          sum=histogram.mean * total,
          sum_squares=histogram.square * total,
          bucket_limits=edges[1:].tolist(),
          bucket_counts=histogram.counts.tolist(),
      )
      self._add(step=step, summary=content)

  def flush(self) -> None:
    pass  # the run flushes its files

  def close(self) -> None:
    pass


def record(content: bytes) -> bytes:
  """A TFRecord: length, its checksum, content, its checksum."""
  size = struct.pack('<Q', len(content))
  pieces = [
      size,
      _checksum(size),
      content,
      _checksum(content),
  ]
  return b''.join(pieces)


def _checksum(content: bytes) -> bytes:
  from tensorboardX.record_writer import masked_crc32c
  checksum = masked_crc32c(content)
  return struct.pack('<I', checksum)


class WeightsAndBiases:
  """A run of wandb.ai, or offline in workdir/wandb; WANDB_PROJECT, WANDB_MODE and the like configure it."""

  def __init__(
      self,
      workdir: Any,
      step: int,
      run_name: str,
      config: Config,
      files: writing.Guarded,
  ) -> None:
    import wandb  # pyright: ignore[reportMissingImports]  # installed by those who choose it
    folder = None if writing.is_remote(workdir) else str(workdir)
    self.wandb: Any = wandb
    self.run: Any = wandb.init(
        project=os.environ.get('WANDB_PROJECT', PROJECT),
        name=run_name,
        id=_known_run(workdir, 'wandb'),
        resume='allow',
        dir=folder,
        config=config.to_dict(),
    )
    _record_run(workdir, 'wandb', self.run.id, files)
    # A separate axis: wandb's steps only increase, but a run that was killed resumes from an older step.
    self.run.define_metric('step')
    self.run.define_metric('*', step_metric='step')

  def numbers(self, step: int, values: dict[str, float]) -> None:
    self.run.log(dict(values, step=step))

  def text(self, step: int, name: str, prompt: str, text: str) -> None:
    columns = ['prompt', 'text']
    row = [prompt, text]
    table = self.wandb.Table(columns=columns, data=[row])
    self.run.log({name: table, 'step': step})

  def histograms(self, step: int, by_name: dict[str, Any]) -> None:
    values = {}
    for name, histogram in by_name.items():
      counts_and_edges = (histogram.counts, histogram.edges)
      values[name] = self.wandb.Histogram(np_histogram=counts_and_edges)
    values['step'] = step
    self.run.log(values)

  def flush(self) -> None:
    pass  # a separate process sends immediately

  def close(self) -> None:
    self.run.finish(quiet=True)


class MLflow:
  """A run of MLflow at MLFLOW_TRACKING_URI; histograms and texts are files of it."""

  def __init__(
      self,
      workdir: Any,
      step: int,
      run_name: str,
      config: Config,
      files: writing.Guarded,
  ) -> None:
    import mlflow  # pyright: ignore[reportMissingImports]  # installed by those who choose it
    self.mlflow: Any = mlflow
    self.client: Any = mlflow.MlflowClient()
    known = _known_run(workdir, 'mlflow')
    if known:
      self.run_id = known
      self.client.update_run(known, 'RUNNING')
      return
    experiment_id = self._experiment_id()
    run = self.client.create_run(experiment_id, run_name=run_name)
    self.run_id = run.info.run_id
    _record_run(workdir, 'mlflow', self.run_id, files)
    self._log_config(config)

  def _experiment_id(self) -> str:
    """Of the experiment that MLFLOW_EXPERIMENT_NAME names, which is created if it does not exist."""
    name = os.environ.get('MLFLOW_EXPERIMENT_NAME', PROJECT)
    experiment = self.client.get_experiment_by_name(name)
    if experiment:
      return experiment.experiment_id
    return self.client.create_experiment(name)

  def _log_config(self, config: Config) -> None:
    parameters = {}
    for key, value in flatten(config).items():
      parameters[key] = str(value)[:LONGEST_PARAMETER]
    self.mlflow.log_params(parameters, run_id=self.run_id)

  def numbers(self, step: int, values: dict[str, float]) -> None:
    self.mlflow.log_metrics(
        values,
        step=step,
        run_id=self.run_id,
        synchronous=False,
    )

  def text(self, step: int, name: str, prompt: str, text: str) -> None:
    self.client.log_text(self.run_id, f'{prompt}|{text}', f'{name}/{step}.txt')

  def histograms(self, step: int, by_name: dict[str, Any]) -> None:
    values = {}
    for name, histogram in by_name.items():
      edges = histogram.edges.tolist()
      counts = histogram.counts.tolist()
      values[name] = dict(edges=edges, counts=counts)
    self.client.log_dict(self.run_id, values, f'histograms/{step}.json')

  def flush(self) -> None:
    self.mlflow.flush_async_logging()

  def close(self) -> None:
    self.flush()
    self.client.set_terminated(self.run_id)


TRACKERS = choices.implement('log.trackers', choices.TRACKERS, dict(
    tensorboard=TensorBoard,
    wandb=WeightsAndBiases,
    mlflow=MLflow,
))
