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
  trackers,
  validation,
  workdir as workdir_lib,
)
from t5like.checkpoint import Checkpoints
from t5like.data import pipeline
from t5like.errors import BadSteps, DataError, Failure, Preempted
from t5like.evals import during
from t5like.lease import Lease
from t5like.ledger import Ledger
from t5like.stop import Stopper
from t5like.watchdog import Watchdog

SAVES = 3  # in a row that may fail before a run ends


def train(config, workdir, name, devices=None, profile_steps='', watch=None):
  """Trains until a target of `config.stop` is reached; returns {reason, step, tokens, validation}.

  `devices`: those to use, all by default; `profile_steps`: see profiling.Profiler; `watch`: see metrics.Files.
  Raises Preempted after SIGTERM or stop.wall_time, with the state saved: the same call goes on from there. Other
  Failures leave the newest checkpoint as it was.
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
    lease = Lease(workdir) if jax.process_index() == 0 else None
    if lease:
      ends.callback(lease.close)
    ends.enter_context(jax.set_mesh(mesh))
    checkpoints = ends.enter_context(Checkpoints(workdir, attempts=SAVES, tidy=True, **policy))
    run = Run(config, store, workdir, name, mesh, checkpoints, lease, watchdog, profile_steps, watch)
    ends.push(lambda kind, error, trace: run.close(error))
    with sharding.peers_blamed():
      return run.finish(run.loop())


class Run:
  """One start of a run: its state on the devices, its counters on the host."""

  def __init__(self, config, store, workdir, name, mesh, checkpoints, lease, watchdog, profile_steps,
               watch=None):
    self.asked, self.store, self.workdir, self.mesh, self.watch = config, store, workdir, mesh, watch
    self.config = config = build.with_vocabulary(config, store.vocabulary)
    self.checkpoints, self.lease, self.watchdog = checkpoints, lease, watchdog
    self.main = jax.process_index() == 0
    self.ledger = Ledger(workdir, self.main)
    self.tokens_per_step = config.batch_size * config.data.seq_len
    self.step = self.tokens = self.examples_seen = 0
    self.turns = self.dumped = 0  # steps and bad batches kept since this start
    self.rewinds = recovery.read_rewinds(workdir)
    self.rows = pipeline.TrainRows(store, config)
    self.saved_step = -1
    self.validation = None  # the newest one's metrics
    self.solved = None  # the newest results of evaluate.tasks
    self.save_late = False  # a save that waits for a finite step
    self.pending = self.last = None  # metrics of the newest step: on the devices, fetched
    self.newest = None  # what `_report` needs of the newest step that was fetched
    self.good_batch = None  # this host's part of the batch of the newest step that counts, for `recovery.check_model`
    self.sound_step = -1  # whose parameters are known to give a loss that is finite
    self.window = collections.Counter()  # sums since the last line in metrics.jsonl
    self.waited = 0.0  # seconds that the devices may have waited for data, likewise
    self.stopper, self.rate = Stopper(config.stop), metrics.Rate()
    self.screen = metrics.Screen(name, config.stop.tokens, quiet=not self.main)
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
    told = trackers.start(self.config.log.trackers, self.workdir, self.step, self.screen.name, self.asked)
    self.files = metrics.Files(self.workdir, self.step, told, self.watch, self.screen.say)

  def now(self, phase, budget=''):
    """What comes next, for the ledger, and for the watchdog if `budget` is not that of the phase."""
    self.ledger.enter(phase)
    self.watchdog.arm(budget or phase)

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
    mine = sharding.rows_of_host(self.mesh, self.config.batch_size)
    with pipeline.train_batches(self.rows, self.config, self.examples_seen, mine, self.skipped) as batches:
      while self.steps_left:
        self.profiler.before(self.step + 1, self.state)
        self._step(batches)
        if first:
          self._collect()
          self.screen.say(f'First step: {time.monotonic() - started:.1f} s, of which {first}, waiting for data '
                          f'{self.waited:.1f} s')
          self.rate.start()
          first = None
        reason = self._between_steps()
        if reason:
          return reason
    self._collect()
    return 'stop.tokens reached'

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
    self._collect()
    self.pending = (self.step, self.tokens, self.examples_seen, new, local, first_row)
    if self.config.log.histograms_every and self.step % self.config.log.histograms_every == 0:
      during.histograms(self, batch)

  def _collect(self):
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
    c = self.config
    validation_due = c.evaluate.every and self.step % c.evaluate.every == 0
    save_due = c.checkpoint.every and self.step % c.checkpoint.every == 0 or self.save_late
    tasks_due = c.evaluate.tasks_every and self.step % c.evaluate.tasks_every == 0
    sample_due = c.sample.every and self.step % c.sample.every == 0
    ending, reason = self._ending(), None
    compare_due = c.guard.compare_every and self.step % c.guard.compare_every == 0
    if validation_due or save_due or tasks_due or sample_due or compare_due or ending:
      self._collect()
      self.rate.pause()
    if compare_due or c.guard.compare_every and (save_due or ending):  # what is saved should be right
      recovery.compare_devices(self.state, self.mesh, self.step)
    if validation_due:
      reason = self.stopper.after_validation(self.validate())
    if (save_due or ending) and not reason:
      saving.save(self)
    if tasks_due and not ending:
      during.solve(self)
    if sample_due and not ending:
      during.sample(self)
    if ending:
      self._report_rest()
      saving.save_for_good(self)
      steps = self.checkpoints.steps
      saved = f'the state of step {steps[-1]:,} saved' if steps else 'nothing saved'
      raise Preempted(f'{ending}: stopped after step {self.step:,} with {saved} in {self.workdir}. The same command '
                      'goes on.')
    return reason

  def _ending(self):
    """Why the process has to end though the work is not done, or None. All hosts agree."""
    if multihost_utils.reached_preemption_sync_point(self.turns):
      return 'Pre-empted (SIGTERM)'
    if self.steps_left and self.stopper.out_of_time():
      return f'stop.wall_time={self.config.stop.wall_time:g} s is over'
    return None

  def validate(self):
    """Metrics of the validation set, as of `validation.measure`."""
    if self.validation and self.validation['step'] == self.step:
      return self.validation
    self.now('eval', 'step')
    values = validation.measure(self.store, self.config, self.eval_step, self.state['params'], self.mesh,
                                alive=lambda: self.watchdog.arm('step'))
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
    self._collect()
    self._report_rest()
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
