"""The loop: from a config to a trained, checkpointed, evaluated model.

It steps; all else that a run does (log, validate, save, sample) are hooks, listed in `training/actions.py`.
"""
import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import jax

from t5like import sharding
from t5like.batches import pipeline
from t5like.config import stages
from t5like.config_type import Config
from t5like.errors import BadSteps, Failure
from t5like.observe import profiling
from t5like.prepared import opening
from t5like.training import actions, build, endings, preconditions, recovery, saving, signals
from t5like.training.dispatch import Dispatcher
from t5like.training.hooks import Hooks, Turn
from t5like.training.parts import Parts, Request, open_parts
from t5like.training.progress import Progress
from t5like.training.trainer import Batch


def train(
    config: Config,
    workdir: str,
    name: str,
    devices: Any = None,
    profile_steps: str = '',
    watch: Callable[[int, dict[str, float]], None] | None = None,
    leave: Callable[[], None] | None = None,
) -> dict[str, Any]:
  """Trains until a target of `config.stop` is reached; returns {reason, step, tokens, validation, tasks}.

  The same call resumes where the state was saved: after the errors below, and after others that leave the state as it
  is, such as those of data.

  Args:
    config: as it was read, not resolved.
    workdir: of the run.
    name: of the run, for people.
    devices: those to use; None: all.
    profile_steps: see profiling.Profiler.
    watch: called with (step, numbers) whenever numbers are written to metrics.jsonl.
    leave: see signals.Signals.

  Raises:
    Preempted: after SIGTERM, SIGHUP or stop.wall_time; the state is saved.
    Interrupted: after Ctrl-C; the state is saved.
  """
  profiling.compile_cache(config.compile.cache)
  mesh = sharding.make_mesh(config.mesh, devices)
  for stage in stages.of(config):  # before data is prepared for a batch that cannot be divided
    _check_stage(stage, mesh)
  store = opening.open_data(config)
  preconditions.check_prompts(config, store.vocabulary)
  request = Request(config, workdir, name, profile_steps, watch, leave)
  with contextlib.ExitStack() as ends:
    parts, progress = open_parts(request, store, mesh, ends)
    run = Run(parts, progress)
    ends.push(run.close)
    ends.enter_context(parts.signals)
    with sharding.peers_blamed():
      try:
        reason = run.loop()
        return run.finish(reason)
      except Exception as error:
        saved = run.rescue(error)
        if saved and isinstance(error, Failure):
          raise type(error)(f'{error} {saved}') from error
        if saved:
          parts.output.say(saved)
        raise


def _check_stage(stage: stages.Stage, mesh: jax.sharding.Mesh) -> None:
  """ConfigError for a batch that the devices cannot divide, and for options that their compiler refuses."""
  with stages.named_in_errors(stage):
    build.rows_per_device(stage.config, mesh)
    build.check_compile_options(stage.config, mesh.local_devices[0])


class Run:
  """One start of a run."""

  def __init__(self, parts: Parts, progress: Progress):
    self.parts = parts
    self.progress = progress
    self.hooks = Hooks(actions.HOOKS, parts)
    self.hooks.reset(progress)
    self.dispatcher = Dispatcher(parts, self.hooks)

  def loop(self) -> str:
    """Steps until there is a reason to stop; returns it. Raises Preempted, Interrupted, NumericsError."""
    parts = self.parts
    for line in parts.introduction(self.progress):
      parts.output.say(line)
    while True:
      try:
        reason = self._steps()
        recovery.check_model(parts.trainer, parts.phases, self.progress.step)
        return reason
      except BadSteps as error:
        self._rewind(error)

  def _rewind(self, error: BadSteps) -> None:
    """Resumes from an older checkpoint, in this process. Raises the error where guard.rewinds does not allow it."""
    parts = self.parts
    parts.rewinds.add(error, self.progress, parts.checkpoints)
    self.dispatcher.drop()
    self.progress = parts.restore()
    self.hooks.reset(self.progress)
    parts.ledger.flush(self.progress.step, event='rewind')
    parts.output.rewind(self.progress.step)

  def _steps(self) -> str:
    parts = self.parts
    first_step = self.progress.step + 1
    reason = self._unless_asked(self._start)
    if reason:
      return reason
    with self._batches() as batches:
      while parts.plan.steps_left(self.progress):
        self._begin_stages()
        self.hooks.before_step(self.progress.step + 1)
        self.progress, batch = self.dispatcher.step(batches, self.progress)
        is_first = self.progress.step == first_step  # which compiled: its time is reported by itself
        self.dispatcher.collect(but=0 if is_first else 1)
        if is_first:
          parts.stages.prepare()
        ending = self._ending()
        reason = self._unless_asked(self._between_steps, batch, ending)
        if ending:
          self._leave(ending)
        if reason:
          return reason
    self.dispatcher.collect()
    return 'stop.tokens reached'

  def _batches(self) -> contextlib.AbstractContextManager[Iterator[Batch]]:
    """This host's rows of the batches after `self.progress`."""
    parts = self.parts
    progress = self.progress
    stretches = parts.stages.stretches()
    return pipeline.train_batches(
        parts.rows,
        parts.plan.config,
        progress.examples_seen,
        skipped=progress.skipped,
        stretches=stretches,
    )

  def _begin_stages(self) -> None:
    """Begins the stages that are due."""
    parts = self.parts
    if not parts.stages.is_next_due(self.progress):
      return
    self.dispatcher.collect()
    self.hooks.before_stage(self.progress)
    self.progress = parts.stages.begin(self.progress)
    parts.stages.prepare()

  def _start(self) -> str | None:
    self.parts.phases.alive('start')
    turn = Turn(self.progress)
    turns = self.hooks.start(turn)
    return self._follow(turns)

  def _between_steps(self, batch: Batch, ending: str | None) -> str | None:
    due = self.hooks.due(self.progress.step, ending)
    if not due:
      return None
    self.dispatcher.collect()
    turn = Turn(self.progress, batch, ending)
    turns = self.hooks.act(due, turn)
    return self._follow(turns)

  def _follow(self, turns: Iterator[Turn]) -> str | None:
    """Runs hooks, keeping the progress that each leaves; returns the reason to stop, if one has one."""
    reason = None
    for turn in turns:
      self.progress = turn.progress
      reason = turn.reason
    return reason

  def _ending(self) -> str | None:
    return endings.why_now(self.parts, self.progress, self.dispatcher.turns)

  def _unless_asked(self, work: Callable[..., Any], *args: Any) -> Any:
    """What `work(*args)` returns; where a signal interrupts it, the run is left instead."""
    try:
      return work(*args)
    except signals.Asked:
      ending = self._ending()
      self._leave(ending or signals.WHY[signals.SIGTERM])

  def _leave(self, ending: str) -> None:
    """Saves the state and raises Preempted, or Interrupted after Ctrl-C."""
    self.dispatcher.collect()
    if self.progress.step:
      self.hooks.leave(self.progress)
    raise endings.left(ending, self.progress, self.parts.request.workdir)

  def finish(self, reason: str) -> dict[str, Any]:
    """What hooks do at the end; records that the run is done."""
    self.dispatcher.collect()
    return self._unless_asked(self._finish, reason)

  def _finish(self, reason: str) -> dict[str, Any]:
    turn = Turn(self.progress, reason=reason)
    turns = self.hooks.finish(turn)
    self._follow(turns)
    results = self.hooks.result(self.progress)
    return endings.finished(self.parts, self.progress, reason, results)

  def rescue(self, error: Exception) -> str:
    """Saves the newest step after an error, where that can still be done; returns a sentence, or ''."""
    if not saving.can_rescue(error):
      return ''
    with contextlib.suppress(Exception):  # `error` is what the run ends with; arrays of a step that failed are gone
      self.dispatcher.collect()
      return self.hooks.rescue(self.progress)
    return ''

  def close(self, kind: type | None, error: BaseException | None, trace: Any) -> None:
    """However the run ended; its arguments are those of `__exit__`."""
    parts = self.parts
    why = type(error).__name__ if error else 'done'
    parts.ledger.flush(self.progress.step, event='end', why=why)
    self.hooks.close()
    parts.output.screen.close()
    parts.output.close()
