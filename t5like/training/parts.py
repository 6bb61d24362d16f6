"""The parts of a run, opened one after the other: what the loop and its hooks work with."""
import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import jax

from t5like.batches.train_rows import TrainRows
from t5like.config_type import Config
from t5like.files import writing
from t5like.observe import environment, metrics
from t5like.observe.ledger import Ledger
from t5like.storage.checkpoint import Checkpoints
from t5like.storage.lease import Lease
from t5like.training import course as course_lib, preemption, resume, stop
from t5like.training.course import Course
from t5like.training.output import Output, Watch
from t5like.training.phases import Phases
from t5like.training.plan import Plan
from t5like.training.progress import Progress
from t5like.training.recovery import Rewinds
from t5like.training.signals import Signals
from t5like.training.stages import Stages
from t5like.training.trainer import State, Trainer
from t5like.training.watchdog import Watchdog

SAVES = 3  # saves that have to fail, one after the other, before a run ends,
PATIENCE = 1800.0  # and the least seconds between the first and the last of them


@dataclasses.dataclass(frozen=True)
class Request:
  """The arguments of `loop.train`."""
  config: Config
  workdir: str
  name: str
  profile_steps: str = ''
  watch: Watch | None = None
  leave: Callable[[], None] | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class Parts:
  """What the loop and its hooks work with. Each owns its own state; nobody else writes to it.

  store: the prepared dataset. rows: of the endless training sequence. lease: on process 0 alone.
  peak_flops, peak_source: of all devices, a second, and where the number is from.
  """
  request: Request
  store: Any
  rows: TrainRows
  trainer: Trainer
  stages: Stages
  checkpoints: Checkpoints
  rewinds: Rewinds
  lease: Lease | None
  signals: Signals
  deadline: stop.Deadline
  ledger: Ledger
  phases: Phases
  output: Output
  peak_flops: float
  peak_source: str

  @property
  def plan(self) -> Plan:
    """Of the stage that the run is in."""
    return self.trainer.plan

  def restore(self) -> Progress:
    """Replaces the trainer's state by that of the newest checkpoint that counts; returns its progress."""
    self.trainer.reset(None)  # frees memory for the next state
    self.phases.enter('init', 'start')
    state, progress = resume.start(
        self.stages.course,
        self.store,
        self.checkpoints,
        self.request.workdir,
        self.rewinds.records,
        self.output.say,
    )
    self.trainer.reset(state)
    self.stages.resume(progress)
    return progress

  def introduction(self, progress: Progress) -> Iterator[str]:
    """Lines that report what the run is going to do."""
    yield from resume.introduction(self.stages.course, self.trainer.params, progress, self.rows)
    places = [str(self.request.workdir), *self.plan.config.log.trackers]
    yield f'Checkpoints and numbers: {", ".join(places)}'
    yield f'MFU counts 6 N + attention (PaLM), of {self.peak_source}'


def open_parts(
    request: Request,
    store: Any,
    mesh: jax.sharding.Mesh,
    ends: contextlib.ExitStack,
) -> tuple[Parts, Progress]:
  """The parts of a run, resumed or new, and how far it is.

  Args:
    request: the arguments of `loop.train`.
    store: the prepared dataset.
    mesh: in force from then on.
    ends: closes the parts.

  Raises:
    ConfigError: see `resume.start`.
    CheckpointError: see `resume.start`; the workdir is another run's or cannot be written to.
  """
  config = request.config
  workdir = request.workdir
  watchdog = _open_watchdog(config, mesh, ends)
  lease = _open_lease(workdir, ends)
  ends.enter_context(jax.set_mesh(mesh))
  checkpoints = ends.enter_context(_open_checkpoints(config, workdir))
  is_main = jax.process_index() == 0
  screen = metrics.Screen(request.name, config.stop.tokens, quiet=not is_main)
  ends.callback(screen.close)
  signals = Signals(screen.say, request.leave)
  writes = writing.Guarded(screen.say)
  ledger = Ledger(workdir, is_main, writes)
  phases = Phases(ledger, watchdog, signals)
  deadline = stop.Deadline(config.stop.wall_time)
  rewinds = Rewinds(workdir, config.guard.rewinds, writes, screen.say)
  course = course_lib.make(config, store.vocabulary, mesh)
  state, progress = resume.start(course, store, checkpoints, workdir, rewinds.records, screen.say)
  stages = _open_stages(course, state, progress, store, screen.say, phases)
  plan = stages.trainer.plan
  output = Output(plan, workdir, screen, writes, request.watch)
  output.begin(progress.step, store.vocabulary)
  peak_flops, peak_source = metrics.peak_flops(mesh, plan.config.model.dtype)
  ledger.start(progress.step, **environment.describe(mesh))
  return Parts(
      request=request,
      store=store,
      rows=stages.rows,
      trainer=stages.trainer,
      stages=stages,
      checkpoints=checkpoints,
      rewinds=rewinds,
      lease=lease,
      signals=signals,
      deadline=deadline,
      ledger=ledger,
      phases=phases,
      output=output,
      peak_flops=peak_flops,
      peak_source=peak_source,
  ), progress


def _open_stages(
    course: Course,
    state: State,
    progress: Progress,
    store: Any,
    say: Callable[[str], None],
    phases: Phases,
) -> Stages:
  """The stages of a run at a place in it, with its trainer and its rows."""
  course = course.continued(progress)
  plan = course.plan(progress)
  rows = TrainRows(store, plan.requested)
  trainer = Trainer(plan, state)
  stages = Stages(course, rows, trainer, say, phases)
  stages.resume(progress)
  return stages


def _open_watchdog(
    config: Config,
    mesh: jax.sharding.Mesh,
    ends: contextlib.ExitStack,
) -> Watchdog:
  """With a watch for preemption, on TPUs."""
  watchdog = Watchdog(config.watchdog)
  ends.callback(watchdog.close)
  if mesh.devices.flat[0].platform == 'tpu':
    end_of_watch = preemption.watch()
    ends.callback(end_of_watch.set)
  return watchdog


def _open_lease(workdir: str, ends: contextlib.ExitStack) -> Lease | None:
  """On process 0."""
  if jax.process_index():
    return None
  lease = Lease(workdir, writing.say)
  ends.callback(lease.close)
  return lease


def _open_checkpoints(config: Config, workdir: str) -> Checkpoints:
  spec = config.checkpoint
  return Checkpoints(
      workdir,
      keep=spec.keep,
      keep_every=spec.keep_every,
      keep_best=spec.keep_best,
      say=writing.say,
      attempts=SAVES,
      patience=PATIENCE,
      tidy=True,
  )
