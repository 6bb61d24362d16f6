"""The loop: from a config to a trained, checkpointed, evaluated model.

Metrics of a step are fetched after the next one is dispatched, so devices never wait for the host.
"""
import collections
import contextlib
import time

import jax
from jax.experimental import multihost_utils

from t5like import (
  build,
  environment,
  lengths,
  metrics,
  notice,
  preconditions,
  profiling,
  recovery,
  resume,
  saving,
  sharding,
  signals,
  trackers,
  validation,
  workdir as workdir_lib,
  writing,
)
from t5like.checkpoint import Checkpoints
from t5like.data import pipeline
from t5like.errors import BadSteps, DataError, Failure, Interrupted, NumericsError, Preempted
from t5like.evals import during
from t5like.lease import Lease
from t5like.ledger import Ledger
from t5like.stop import Stopper
from t5like.watchdog import Watchdog

SAVES, PATIENCE = 3, 1800.0  # a run ends when so many saves in a row have failed, over so many seconds


def train(config, workdir, name, devices=None, profile_steps='', watch=None, leave=None):
  """Trains until a target of `config.stop` is reached; returns {reason, step, tokens, validation}.

  `devices`: those to use, all by default; `profile_steps`: see profiling.Profiler; `watch`: see metrics.Files;
  `leave`: see signals.Signals.
  Raises Preempted after SIGTERM, SIGHUP or stop.wall_time and Interrupted after Ctrl-C, with the state saved: the same
  call resumes there. So it does after other errors that leave the state as it is, those of data, say.
  """
  profiling.compile_cache(config.compile.cache)
  mesh = sharding.make_mesh(config.mesh, devices)
  build.rows_per_device(config, mesh)  # before data is prepared for a batch that cannot be divided
  store = build.open_data(config)
  preconditions.check_prompts(config, store.vocabulary)
  watchdog = Watchdog(config.watchdog)
  policy = {k: config.checkpoint[k] for k in ('keep', 'keep_every', 'keep_best')}
  with contextlib.ExitStack() as ends:
    ends.callback(watchdog.close)
    if mesh.devices.flat[0].platform == 'tpu':
      ends.callback(notice.watch().set)
    lease = Lease(workdir, writing.say) if jax.process_index() == 0 else None
    if lease:
      ends.callback(lease.close)
    ends.enter_context(jax.set_mesh(mesh))
    checkpoints = ends.enter_context(Checkpoints(
        workdir, say=writing.say, attempts=SAVES, patience=PATIENCE, tidy=True, **policy))
    run = Run(config, store, workdir, name, mesh, checkpoints, lease, watchdog, profile_steps, watch,
              leave)
    ends.push(lambda kind, error, trace: run.close(error))
    ends.enter_context(run.signals)
    with sharding.peers_blamed():
      try:
        return run.finish(run.loop())
      except Exception as error:
        saved = saving.rescue(run, error)
        if saved and isinstance(error, Failure):
          raise type(error)(f'{error} {saved}') from error
        if saved:
          run.screen.say(saved)
        raise


class Run:
  """One start of a run: its state on the devices, its counters on the host."""

  def __init__(self, config, store, workdir, name, mesh, checkpoints, lease, watchdog, profile_steps,
               watch=None, leave=None):
    self.asked, self.store, self.workdir, self.mesh, self.watch = config, store, workdir, mesh, watch
    self.config = config = build.with_vocabulary(config, store.vocabulary)
    self.checkpoints, self.lease, self.watchdog = checkpoints, lease, watchdog
    self.main = jax.process_index() == 0
    self.screen = metrics.Screen(name, config.stop.tokens, quiet=not self.main)
    self.signals = signals.Signals(self.screen.say, leave)
    self.writes = writing.Guarded(self.screen.say)
    self.ledger = Ledger(workdir, self.main, self.writes)
    self.tokens_per_step = config.batch_size * config.data.seq_len
    self.step = self.tokens = self.examples_seen = 0
    self.turns = self.dumped = 0  # steps and bad batches kept since this start
    self.rewinds = recovery.read_rewinds(workdir)
    self.rows = pipeline.TrainRows(store, config)
    self.saved_step = -1
    self.validation = None  # the newest one's metrics
    self.solved = None  # the newest results of evaluate.tasks
    self.ending = None  # why the process has to end after this step
    self.save_late = False  # a save that waits for a finite step
    self.pending = self.last = None  # metrics of the newest step: on the devices, fetched
    self.newest = None  # what `_report` needs of the newest step that was fetched
    self.good_batch = None  # this host's part of the batch of the newest step that counts, for `recovery.check_model`
    self.sound_step = -1  # whose parameters are known to give a loss that is finite
    self.window = collections.Counter()  # sums since the last line in metrics.jsonl
    self.waited = 0.0  # seconds that the devices may have waited for data, likewise
    self.stopper, self.rate = Stopper(config.stop), metrics.Rate()
    self.profiler = profiling.Profiler(profile_steps, workdir, self.screen.say)
    self.model, self.num_params = build.build_model(config)
    self.state = self._start_state()
    _, self.train_step, self.eval_step, self.learning_rate, self.count = self._build()
    self.shapes = lengths.shapes(config)
    flops = build.flops_per_row(config, self.model) / config.data.seq_len
    peak, self.peak_source = metrics.peak_flops(mesh, config.model.dtype)
    self.mfu = lambda rate: rate * flops / peak
    self.files = None
    if self.main:
      workdir_lib.write_config(workdir, self.asked)
      workdir_lib.write_vocabulary(workdir, store.vocabulary)
      self._open_files()
    self.ledger.start(self.step, **environment.describe(self.mesh))

  def _open_files(self):
    c = self.config
    told = trackers.start(c.log.trackers, self.workdir, self.step, self.screen.name, self.asked, self.writes)
    self.files = metrics.Files(self.workdir, self.step, told, self.watch, self.screen.say, self.writes)

  def now(self, phase, budget=''):
    """What comes next, for the ledger, and for the watchdog if `budget` is not that of the phase."""
    self.ledger.enter(phase)
    self.watchdog.arm(budget or phase)

  def alive(self, budget):
    """To be called now and then by long work between steps. Raises signals.Asked if the run is asked to end."""
    self.watchdog.arm(budget)
    if self.signals.received and jax.process_count() == 1:
      raise signals.Asked

  @property
  def steps_left(self):
    return max(0, -(-(self.config.stop.tokens - self.tokens) // self.tokens_per_step))

  def _build(self):
    return build.build_step(self.config, self.model, self.step + self.steps_left, self.mesh)

  def _start_state(self):
    """The newest checkpoint's state, or a fresh one; sets the counters."""
    tx = self._build()[0]  # the schedule may end elsewhere yet, but the state's structure is right
    state, meta = resume.start_state(self.config, self.asked, self.model, tx, self.mesh, self.store,
                                     self.checkpoints, self.workdir, self.rewinds, self.screen.say)
    self._set_counters(meta)
    return state

  def _set_counters(self, meta):
    """Where in the data the run is, and which rows it leaves out, by a checkpoint's `meta` (or None)."""
    if meta:
      self.tokens, self.examples_seen = meta['tokens'], meta['examples_seen']
      self.step = self.saved_step = meta['step']
      self.validation = validation.known(meta['validation'])
      self.stopper.restore(meta['stopper'])
      self.screen.say(f'Resumed from step {self.step:,}, after {metrics.short(self.tokens)} tokens.')
    recorded = [*(meta['skipped'] if meta else []), *recovery.windows(self.rewinds, self.examples_seen)]
    self.skipped = pipeline.to_skip(self.config, self.examples_seen, recorded)

  def loop(self):
    """Steps until there is a reason to stop; returns it. Raises Preempted, NumericsError."""
    for line in resume.introduction(self):
      self.screen.say(line)
    while True:
      try:
        reason = self._steps()
        recovery.check_model(self)
        return reason
      except BadSteps as error:
        recovery.rewind(self, error)
        self._go_back()

  def _go_back(self):
    """Starts again from the newest checkpoint that counts, in this process."""
    self.state = self.pending = self.last = self.validation = self.solved = None  # room for the state that comes
    self.newest = self.good_batch = None
    self.sound_step = -1
    self.window, self.save_late, self.stopper = collections.Counter(), False, Stopper(self.config.stop)
    self.rate.pause()
    self.now('init', 'start')
    self.state = self._start_state()
    self.ledger.flush(self.step, event='rewind')
    if self.files:
      self.files.close()
      self._open_files()

  def _steps(self):
    started, first = time.monotonic(), profiling.FirstStep()
    reason = self._unless_asked(self._missed_validation)
    if reason:
      return reason
    mine = sharding.rows_of_host(self.mesh, self.config.batch_size)
    with pipeline.train_batches(self.rows, self.config, self.examples_seen, mine, self.skipped) as batches:
      while self.steps_left:
        self.profiler.before(self.step + 1, self.state)
        self._step(batches)
        if first:
          self.collect()
          self.screen.say(f'First step: {time.monotonic() - started:.1f} s, of which {first}, waiting for data '
                          f'{self.waited:.1f} s')
          self.rate.start()
          first = None
        self.ending = self._ending()
        reason = self._unless_asked(self._between_steps)
        if self.ending:
          self._leave(self.ending)
        if reason:
          return reason
    self.collect()
    return 'stop.tokens reached'

  def _unless_asked(self, work, *args):
    """What `work(*args)` returns; where a signal comes in between, the run is left instead."""
    try:
      return work(*args)
    except signals.Asked:
      self._leave(self._ending())

  def _missed_validation(self):
    """The validation of the step that was saved, if a signal came before or in it; a reason to stop, or None."""
    self.alive('start')
    done = self.validation and self.validation['step'] == self.step
    if self.step and self.steps_left and not done and self._due(self.config.evaluate.every):
      return self.stopper.after_validation(self.validate())

  def _due(self, every):
    return bool(every) and self.step % every == 0

  def _step(self, batches):
    before, first_row = time.perf_counter(), pipeline.after(self.skipped, self.examples_seen, 0)
    self.now('data', '' if self.turns else 'start')
    try:
      local = next(batches)
      batch = sharding.to_global(self.mesh, local)
    except Failure:
      raise
    except Exception as e:
      raise DataError(f'reading the batch of step {self.step + 1:,} from {self.store.folder} failed: '
                      f'{type(e).__name__}: {e}') from e
    self.waited += time.perf_counter() - before
    self.now(*(('step', '') if self.turns else ('compile', 'start')))
    with jax.transfer_guard('disallow'):  # nothing may cross to or from the devices unnoticed
      self.state, new = self.train_step(self.state, batch)
    self.step += 1
    self.turns += 1
    self.tokens += self.tokens_per_step
    self.examples_seen = pipeline.after(self.skipped, self.examples_seen, self.config.batch_size)
    self.collect()
    self.pending = (self.step, self.tokens, self.examples_seen, new, local, first_row)
    if self.config.log.histograms_every and self.step % self.config.log.histograms_every == 0:
      during.histograms(self, batch)

  def collect(self):
    """Fetches and reports the metrics of the newest step that is not reported yet."""
    if self.pending is None:
      return
    (step, tokens, examples_seen, values, batch, first_row), self.pending = self.pending, None
    self.last = values = {k: v.item() for k, v in jax.device_get(values).items()}
    if values['bad_in_a_row']:
      recovery.dump(self, batch, values, step, first_row)
    if values['bad_in_a_row'] >= self.config.guard.max_bad_steps:
      raise BadSteps(
          f'{values["bad_in_a_row"]} steps in a row had a loss, gradient or update that is not finite, or a spike '
          f'(guard.max_bad_steps), the last being step {step}; none of them changed the parameters. '
          'The newest checkpoint is finite. Often a lower optimizer.learning_rate or a longer schedule.warmup_steps '
          'helps, with which the run can be resumed, or loss.z_loss=1e-4 (add allow_changed=loss.z_loss); '
          'model.qk_norm=head helps in a new --workdir.')
    self.rate.add(self.tokens_per_step)
    self.newest = (step, tokens, examples_seen, values)
    if not values['bad_in_a_row']:
      self.good_batch = batch
      w = values['weights']
      self.window.update(weights=w, loss=w * values['loss'], nll=w * values['nll'],
                         accuracy=w * values['accuracy'])
    if step % self.config.log.every == 0 and self.window['weights']:
      self._report(step, tokens, examples_seen, values)

  def _report_rest(self):
    """A line for the steps since the last one, where the run ends between two."""
    if self.window['weights']:
      self._report(*self.newest)

  def _report(self, step, tokens, examples_seen, values):
    means = {k: self.window[k] / self.window['weights'] for k in ('loss', 'nll', 'accuracy')}
    rate = self.rate.take()
    speed = dict(tokens_per_second=rate, mfu=self.mfu(rate))
    self.screen.show(step, tokens, dict(means, **speed))
    if self.files:
      self.files.write(step, dict(
          tokens=tokens, examples_seen=examples_seen, **self.rows.used(examples_seen, self.skipped), **means,
          **speed, grad_norm=values['grad_norm'], update_norm=values['update_norm'], param_norm=values['param_norm'],
          learning_rate=float(self.learning_rate(step - 1)), bad_steps=values['bad_steps'], spikes=values['spikes'],
          data_wait=self.waited, **environment.memory()))
    self.window, self.waited = collections.Counter(), 0.0
    self.ledger.flush(step)

  def _between_steps(self):
    """Validates, saves and looks for reasons to stop, all of which are due at few steps."""
    c, reason = self.config, None
    validation_due = self._due(c.evaluate.every)
    save_due = self._due(c.checkpoint.every) or self.save_late
    tasks_due = self._due(c.evaluate.tasks_every) and not self.ending
    sample_due = self._due(c.sample.every) and not self.ending
    # What is saved should be right.
    compare_due = self._due(c.guard.compare_every) or c.guard.compare_every and save_due
    if validation_due or save_due or tasks_due or sample_due or compare_due:
      self.collect()
      self.rate.pause()
    if compare_due:
      recovery.compare_devices(self.state, self.mesh, self.step)
    if validation_due:
      reason = self.stopper.after_validation(self.validate())
    if save_due and not reason and not self.ending:
      saving.save(self)
    if tasks_due:
      during.solve(self)
    if sample_due:
      during.sample(self)
    return reason

  def _ending(self):
    """Why the process has to end though the work is not done, or None. All hosts agree."""
    if jax.process_count() > 1:
      if multihost_utils.reached_preemption_sync_point(self.turns):
        return signals.WHY[signals.SIGTERM]
    elif self.signals.received:
      return signals.WHY[self.signals.received]
    if self.steps_left and self.stopper.out_of_time():
      return f'stop.wall_time={self.config.stop.wall_time:g} s is over'
    return None

  def _leave(self, ending):
    """Saves the state and raises Preempted, or Interrupted after Ctrl-C."""
    self.collect()
    self._report_rest()
    kind = Interrupted if ending == signals.WHY[signals.SIGINT] else Preempted
    if not self.step:
      raise kind(f'{ending}: ended before the first step. The same command begins again.')
    if self.config.guard.compare_every and self.saved_step < self.step:
      recovery.compare_devices(self.state, self.mesh, self.step)
    saving.save_for_good(self)
    raise kind(f'{ending}: stopped after step {self.step:,} with the state of this step saved in {self.workdir}. The '
               'same command resumes there.')

  def validate(self):
    """Metrics of the validation set, as of `validation.measure`."""
    if self.validation and self.validation['step'] == self.step:
      return self.validation
    self.now('eval', 'step')
    values = validation.measure(self.store, self.config, self.eval_step, self.state['params'], self.mesh,
                                alive=lambda: self.alive('step'))
    for line in validation.lines(values, self.step):
      self.screen.say(line)
    if self.files:
      self.files.write(self.step, {f'validation/{k}': v for k, v in values.items()})
      self.files.flush()
    self.validation = dict(values, step=self.step)
    self.now('step')
    return self.validation

  def finish(self, reason):
    """The last validation, checkpoint, samples and tasks; records that the run is done."""
    self.collect()
    self._report_rest()
    if self.last and self.last['bad_steps'] >= self.step:
      raise NumericsError(
          f'{reason}, but nothing was learnt: all {self.step:,} steps had a loss, gradient or update that is not '
          'finite, or a spike. Look at a batch of WORKDIR/bad_steps (main.py inspect --batch=FILE); a lower '
          'optimizer.learning_rate often helps. Give another --workdir to begin again.')
    return self._unless_asked(self._finish, reason)

  def _finish(self, reason):
    values = self.validate()
    saving.save_for_good(self)
    during.sample(self)
    result = dict(reason=reason, step=self.step, tokens=self.tokens, validation=values, tasks=during.solve(self))
    if self.main:
      workdir_lib.write_result(self.workdir, self.config, **result)
    self.screen.end(self.step, self.tokens)
    self.screen.close()
    self.screen.say(f'Done: {reason} after {self.step:,} steps, {metrics.short(self.tokens)} tokens. '
                    f'Validation nll {values["nll"]:.4f}.')
    return result

  def close(self, error=None):
    self.ledger.flush(self.step, event='end', why=type(error).__name__ if error else 'done')
    self.profiler.close()
    self.screen.close()
    if self.files:
      self.files.close()
    self.writes.flush()
