"""The loop: from a config to a trained, checkpointed, evaluated model.

It steps; all else that a run does (write numbers, validate, save, sample) are hooks, listed in `training/actions.py`.
"""
import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from t5like import sharding
from t5like.batches import pipeline
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


def train(config: Config, workdir: str, name: str, devices: Any = None, profile_steps: str = '',
          watch: Callable[[int, dict[str, float]], None] | None = None,
          leave: Callable[[], None] | None = None) -> dict[str, Any]:
  """Trains until a target of `config.stop` is reached; returns {reason, step, tokens, validation, tasks}.

  `devices`: those to use, all by default; `profile_steps`: see profiling.Profiler; `watch`: called with (step, numbers)
  whenever numbers are written to metrics.jsonl; `leave`: see signals.Signals.
  Raises Preempted after SIGTERM, SIGHUP or stop.wall_time and Interrupted after Ctrl-C, with the state saved: the same
  call resumes there. So it does after other errors that leave the state as it is, those of data, say.
  """
  profiling.compile_cache(config.compile.cache)
  mesh = sharding.make_mesh(config.mesh, devices)
  build.rows_per_device(config, mesh)  # before data is prepared for a batch that cannot be divided
  build.check_compile_options(config, mesh.local_devices[0])
  store = opening.open_data(config)
  preconditions.check_prompts(config, store.vocabulary)
  with contextlib.ExitStack() as ends:
    run = Run(*open_parts(Request(config, workdir, name, profile_steps, watch, leave), store, mesh, ends))
    ends.push(run.close)
    ends.enter_context(run.parts.signals)
    with sharding.peers_blamed():
      try:
        return run.finish(run.loop())
      except Exception as error:
        saved = run.rescue(error)
        if saved and isinstance(error, Failure):
          raise type(error)(f'{error} {saved}') from error
        if saved:
          run.parts.output.say(saved)
        raise


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
    for line in self.parts.introduction(self.progress):
      self.parts.output.say(line)
    while True:
      try:
        reason = self._steps()
        recovery.check_model(self.parts.trainer, self.parts.phases, self.progress.step)
        return reason
      except BadSteps as error:
        self._go_back(error)

  def _go_back(self, error: BadSteps) -> None:
    """Starts again from an earlier checkpoint, in this process. Raises the error if there may be no more of that."""
    self.parts.rewinds.add(error, self.progress, self.parts.checkpoints)
    self.dispatcher.drop()
    self.progress = self.parts.restore()
    self.hooks.reset(self.progress)
    self.parts.ledger.flush(self.progress.step, event='rewind')
    self.parts.output.go_back(self.progress.step)

  def _steps(self) -> str:
    plan, start = self.parts.plan, self.progress
    reason = self._unless_asked(self._start)
    if reason:
      return reason
    mine = sharding.rows_of_host(plan.mesh, plan.config.batch_size)
    with pipeline.train_batches(self.parts.rows, plan.config, start.examples_seen, mine, start.skipped) as batches:
      while plan.steps_left(self.progress):
        self.hooks.before_step(self.progress.step + 1)
        self.progress, batch = self.dispatcher.step(batches, self.progress)
        is_first = self.progress.step == start.step + 1  # which compiled: its time is reported by itself
        self.dispatcher.collect(but=0 if is_first else 1)
        ending = self._ending()
        reason = self._unless_asked(self._between_steps, batch, ending)
        if ending:
          self._leave(ending)
        if reason:
          return reason
    self.dispatcher.collect()
    return 'stop.tokens reached'

  def _start(self) -> str | None:
    self.parts.phases.alive('start')
    return self._follow(self.hooks.start(Turn(self.progress)))

  def _between_steps(self, batch: Batch, ending: str | None) -> str | None:
    due = self.hooks.due(self.progress.step, ending)
    if not due:
      return None
    self.dispatcher.collect()
    return self._follow(self.hooks.act(due, Turn(self.progress, batch, ending)))

  def _follow(self, turns: Iterator[Turn]) -> str | None:
    """Runs hooks, keeping the progress that each leaves; returns the reason to stop, if one has one."""
    reason = None
    for turn in turns:
      self.progress, reason = turn.progress, turn.reason
    return reason

  def _ending(self) -> str | None:
    return endings.why_now(self.parts, self.progress, self.dispatcher.turns)

  def _unless_asked(self, work: Callable[..., Any], *args: Any) -> Any:
    """What `work(*args)` returns; where a signal comes in between, the run is left instead."""
    try:
      return work(*args)
    except signals.Asked:
      self._leave(self._ending() or signals.WHY[signals.SIGTERM])

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
    self._follow(self.hooks.finish(Turn(self.progress, reason=reason)))
    return endings.finished(self.parts, self.progress, reason, self.hooks.result(self.progress))

  def rescue(self, error: Exception) -> str:
    """Saves the newest step after an error, where that can still be done; returns a sentence, or ''."""
    if saving.can_rescue(error):
      with contextlib.suppress(Exception):  # `error` is what the run ends with; arrays of a step that failed are gone
        self.dispatcher.collect()
        return self.hooks.rescue(self.progress)
    return ''

  def close(self, kind: type | None, error: BaseException | None, trace: Any) -> None:
    """However the run ended; its arguments are those of `__exit__`."""
    self.parts.ledger.flush(self.progress.step, event='end', why=type(error).__name__ if error else 'done')
    self.hooks.close()
    self.parts.output.screen.close()
    self.parts.output.close()
