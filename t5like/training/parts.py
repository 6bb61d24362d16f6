"""The parts of a run, opened one after the other: what the loop and its hooks work with."""
import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import jax

from t5like.batches import pipeline
from t5like.config_type import Config
from t5like.files import writing
from t5like.observe import environment, metrics
from t5like.observe.ledger import Ledger
from t5like.storage.checkpoint import Checkpoints
from t5like.storage.lease import Lease
from t5like.training import plan as plan_lib, preemption, resume, stop
from t5like.training.output import Output, Watch
from t5like.training.phases import Phases
from t5like.training.plan import Plan
from t5like.training.progress import Progress
from t5like.training.recovery import Rewinds
from t5like.training.signals import Signals
from t5like.training.trainer import Trainer
from t5like.training.watchdog import Watchdog

SAVES = 3  # a run ends when so many saves one after the other have failed,
PATIENCE = 1800.0  # over so many seconds


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
  plan: Plan
  store: Any
  rows: pipeline.TrainRows
  trainer: Trainer
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

  def restore(self) -> Progress:
    """Puts the state of the newest checkpoint that counts in the place of the trainer's; returns its progress."""
    self.trainer.reset(None)  # room for the state that comes
    self.phases.enter('init', 'start')
    state, progress = resume.start(
        self.plan, self.store, self.checkpoints, self.request.workdir, self.rewinds.records, self.output.say)
    self.trainer.reset(state)
    return progress

  def introduction(self, progress: Progress) -> Iterator[str]:
    """Lines that say what the run is going to do."""
    yield from resume.introduction(self.plan, self.trainer.params, progress, self.rows)
    trackers = ''.join(f', {name}' for name in self.plan.config.log.trackers)
    yield (f'Checkpoints and numbers: {self.request.workdir}{trackers}\n'
           f'MFU counts 6 N + attention (PaLM), of {self.peak_source}')


def open_parts(request: Request, store: Any, mesh: jax.sharding.Mesh,
               ends: contextlib.ExitStack) -> tuple[Parts, Progress]:
  """The parts of a run and how far it is: resumed, or about to begin. What has to be closed goes into `ends`.

  `mesh` is in force from then on. Raises what `resume.start` raises, and CheckpointError when the workdir is another
  run's or cannot be written to.
  """
  config = request.config
  is_main = jax.process_index() == 0
  watchdog = Watchdog(config.watchdog)
  ends.callback(watchdog.close)
  if mesh.devices.flat[0].platform == 'tpu':
    ends.callback(preemption.watch().set)
  lease = Lease(request.workdir, writing.say) if is_main else None
  if lease:
    ends.callback(lease.close)
  ends.enter_context(jax.set_mesh(mesh))
  checkpoints = ends.enter_context(Checkpoints(
      request.workdir, keep=config.checkpoint.keep, keep_every=config.checkpoint.keep_every,
      keep_best=config.checkpoint.keep_best, say=writing.say, attempts=SAVES, patience=PATIENCE, tidy=True))
  screen = metrics.Screen(request.name, config.stop.tokens, quiet=not is_main)
  ends.callback(screen.close)
  signals = Signals(screen.say, request.leave)
  writes = writing.Guarded(screen.say)
  ledger = Ledger(request.workdir, is_main, writes)
  deadline = stop.Deadline(config.stop.wall_time)
  rewinds = Rewinds(request.workdir, config.guard.rewinds, writes, screen.say)
  plan = plan_lib.make(config, store.vocabulary, mesh)
  rows = pipeline.TrainRows(store, plan.config)
  state, progress = resume.start(plan, store, checkpoints, request.workdir, rewinds.records, screen.say)
  plan = plan.continued(progress)
  trainer = Trainer(plan, state)
  peak_flops, peak_source = metrics.peak_flops(mesh, plan.config.model.dtype)
  output = Output(plan, request.workdir, screen, writes, request.watch)
  output.begin(progress.step, store.vocabulary)
  ledger.start(progress.step, **environment.describe(mesh))
  parts = Parts(
      request=request, plan=plan, store=store, rows=rows, trainer=trainer, checkpoints=checkpoints, rewinds=rewinds,
      lease=lease, signals=signals, deadline=deadline, ledger=ledger, phases=Phases(ledger, watchdog, signals),
      output=output, peak_flops=peak_flops, peak_source=peak_source)
  return parts, progress
