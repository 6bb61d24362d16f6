"""Where numbers go besides metrics.jsonl: what `log.trackers` names. Each has the same five functions.

  numbers(step, {name: number})    text(step, name, prompt, text)    histograms(step, {name: Histogram})
  flush()    close()

What a run is called by a service that has names of its own is kept in workdir/trackers.json, so that a run which is
started again goes on with the same curves.
"""
import importlib.util
import itertools
import os
import socket
import struct
import time

from etils import epath

from t5like import choices, plain_json, schema, workdir as workdir_lib, writing
from t5like.errors import ConfigError

PACKAGES = choices.implement('log.trackers', choices.TRACKERS, dict(
    tensorboard='tensorboardX', wandb='wandb', mlflow='mlflow'))
PROJECT = 't5like'
RUNS = schema.Object(rest=schema.Text(1000))  # of trackers.json
NUMBERS = itertools.count()  # of event files, in this process: there may be several in a second


def check(names):
  """ConfigError for those whose package is not installed."""
  for name in names:
    if importlib.util.find_spec(PACKAGES[name]) is None:
      raise ConfigError(f"log.trackers has {name!r}, whose package is not installed: pip install -e '.[{name}]', or "
                        'leave it out. metrics.jsonl is written in any case.')


def start(names, workdir, step, run_name, config, files=None):
  """[tracker], ready for numbers of steps after `step`; on one process. ConfigError for services that do not answer.

  files: the run's writing.Guarded.
  """
  trackers = []
  for name in names:
    try:
      trackers.append(TRACKERS[name](workdir, step, run_name, config, files or writing.Guarded()))
    except Exception as e:
      how = dict(wandb='Log in with `wandb login`, or set WANDB_MODE=offline.',
                 mlflow='Is MLFLOW_TRACKING_URI right?').get(name, 'Can that folder be written to?')
      raise ConfigError(f'log.trackers has {name!r}, which cannot be started: {type(e).__name__}: '
                        f'{" ".join(str(e).split())[:300]} {how}') from e
  return trackers


def _known(workdir, name):
  return (workdir_lib.read_json(epath.Path(workdir) / 'trackers.json', RUNS) or {}).get(name)


def _remember(workdir, name, run_id, files):
  path = epath.Path(workdir) / 'trackers.json'
  known = dict(workdir_lib.read_json(path, RUNS) or {}, **{name: run_id})
  files.replace(path, plain_json.dumps(known, indent=2) + '\n')


class TensorBoard:
  """Events in workdir/tensorboard; what was written after `step` is struck out.

  The format is tensorboardX's, the writing is ours: its SummaryWriter writes in a thread, which a full disk ends, and
  then blocks whoever gives it more.
  """

  def __init__(self, workdir, step, run_name, config, files):
    from tensorboardX.proto import event_pb2
    self.events = event_pb2
    self.files = files
    name = f'events.out.tfevents.{time.time():.0f}.{socket.gethostname()}.{os.getpid()}.{next(NUMBERS)}'
    self.path = epath.Path(workdir) / 'tensorboard' / name
    self._add(file_version='brain.Event:2')
    self._add(step=step + 1, session_log=event_pb2.SessionLog(status=event_pb2.SessionLog.START))

  def _add(self, **content):
    self.files.append(self.path, self._record(**content))

  def _record(self, **content):
    return record(self.events.Event(wall_time=time.time(), **content).SerializeToString())

  def numbers(self, step, values):
    from tensorboardX import summary
    records = [self._record(step=step, summary=summary.scalar(name, value)) for name, value in values.items()]
    self.files.append(self.path, b''.join(records))

  def text(self, step, name, prompt, text):
    from tensorboardX import summary
    self._add(step=step, summary=summary.text(name, f'{prompt}|{text}'))

  def histograms(self, step, found):
    from tensorboardX import summary
    for name, h in found.items():
      self._add(step=step, summary=summary.histogram_raw(
          name, min=h.edges[0], max=h.edges[-1], num=h.count, sum=h.mean * h.count, sum_squares=h.square * h.count,
          bucket_limits=h.edges[1:].tolist(), bucket_counts=h.counts.tolist()))

  def flush(self):
    pass  # the run flushes its files

  def close(self):
    pass


def record(content):
  """A TFRecord: length, its checksum, content, its checksum."""
  from tensorboardX.record_writer import masked_crc32c
  size = struct.pack('<Q', len(content))
  return b''.join([size, struct.pack('<I', masked_crc32c(size)), content, struct.pack('<I', masked_crc32c(content))])


class WeightsAndBiases:
  """A run of wandb.ai, or offline in workdir/wandb; WANDB_PROJECT, WANDB_MODE and the like say which."""

  def __init__(self, workdir, step, run_name, config, files):
    import wandb
    local = '://' not in str(workdir)
    self.wandb, known = wandb, _known(workdir, 'wandb')
    self.run = wandb.init(project=os.environ.get('WANDB_PROJECT', PROJECT), name=run_name, id=known, resume='allow',
                          dir=str(workdir) if local else None, config=config.to_dict())
    _remember(workdir, 'wandb', self.run.id, files)
    # An axis of our own: wandb's steps only go up, but a run that was killed goes back to its checkpoint.
    self.run.define_metric('step')
    self.run.define_metric('*', step_metric='step')

  def numbers(self, step, values):
    self.run.log(dict(values, step=step))

  def text(self, step, name, prompt, text):
    self.run.log({name: self.wandb.Table(columns=['prompt', 'text'], data=[[prompt, text]]), 'step': step})

  def histograms(self, step, found):
    self.run.log({name: self.wandb.Histogram(np_histogram=(h.counts, h.edges)) for name, h in found.items()}
                 | dict(step=step))

  def flush(self):
    pass  # a process of its own sends at once

  def close(self):
    self.run.finish(quiet=True)


class MLflow:
  """A run of MLflow's, where MLFLOW_TRACKING_URI says; histograms and texts are files of it."""

  def __init__(self, workdir, step, run_name, config, files):
    import mlflow

    from t5like.config_values import flatten
    self.mlflow, self.client, known = mlflow, mlflow.MlflowClient(), _known(workdir, 'mlflow')
    if known:
      self.run_id = known
      self.client.update_run(known, 'RUNNING')
      return
    name = os.environ.get('MLFLOW_EXPERIMENT_NAME', PROJECT)
    experiment = self.client.get_experiment_by_name(name)
    experiment_id = experiment.experiment_id if experiment else self.client.create_experiment(name)
    self.run_id = self.client.create_run(experiment_id, run_name=run_name).info.run_id
    _remember(workdir, 'mlflow', self.run_id, files)
    mlflow.log_params({key: str(value)[:5000] for key, value in flatten(config).items()}, run_id=self.run_id)

  def numbers(self, step, values):
    self.mlflow.log_metrics(values, step=step, run_id=self.run_id, synchronous=False)

  def text(self, step, name, prompt, text):
    self.client.log_text(self.run_id, f'{prompt}|{text}', f'{name}/{step}.txt')

  def histograms(self, step, found):
    self.client.log_dict(self.run_id, {name: dict(edges=h.edges.tolist(), counts=h.counts.tolist())
                                       for name, h in found.items()}, f'histograms/{step}.json')

  def flush(self):
    self.mlflow.flush_async_logging()

  def close(self):
    self.flush()
    self.client.set_terminated(self.run_id)


TRACKERS = choices.implement('log.trackers', choices.TRACKERS, dict(
    tensorboard=TensorBoard, wandb=WeightsAndBiases, mlflow=MLflow))
