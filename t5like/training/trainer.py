"""The trainer: the state of a model on the devices, and the compiled steps that train and evaluate it.

It needs a mesh in force and nothing else: no files, no terminal, no watchdog.
"""
import math
from typing import Any

import jax

from t5like import sharding
from t5like.errors import BadSteps
from t5like.training import build
from t5like.training.plan import Plan

Batch = dict[str, Any]  # arrays [B, ...], numpy or on the devices, and dicts of them
State = dict[str, Any]  # of step.init_state
Metrics = dict[str, Any]  # {name: scalar}


def fetch(metrics: Metrics) -> dict[str, float]:
  """The metrics of a step as numbers on the host; waits until the step is done."""
  return {name: value.item() for name, value in jax.device_get(metrics).items()}


class Trainer:
  """Runs train and eval steps, and checks the parameters that they produce."""

  def __init__(self, plan: Plan, state: State):
    """The steps are compiled when first called; `state`, on the mesh, is the trainer's from now on."""
    self._steps: dict[str, build.Steps] = {}  # by Plan.program
    self.follow(plan)
    self.reset(state)

  def follow(self, plan: Plan) -> None:
    """Trains by this plan from now on, of another stage of the run; the state stays."""
    self.plan = plan
    steps = self.steps_of(plan)
    self.train_step = steps.train_step
    self.eval_step = steps.eval_step
    self._count = steps.histograms
    self._good_rows: Batch | None = None  # this host's rows of the newest step that counts; of this plan's shapes
    self._is_checked = False  # whether the parameters as they are now gave a loss that is finite

  def steps_of(self, plan: Plan) -> build.Steps:
    """The steps of a plan, which may be another than it trains by; plans with the same program share them."""
    if plan.program not in self._steps:
      self._steps[plan.program] = build.build_step(
          plan.config,
          plan.model,
          plan.total_steps,
          plan.mesh,
          plan.first_step,
          plan.stateful,
      )
    return self._steps[plan.program]

  def reset(self, state: State | None) -> None:
    """Replaces the state; None frees the memory for one that is read later."""
    self._state = state
    self._good_rows = None
    self._is_checked = False

  @property
  def state(self) -> State:
    """All that steps read and write, on the devices."""
    if self._state is None:
      raise RuntimeError('The trainer has no state yet: `reset` gives it one.')
    return self._state

  @state.setter
  def state(self, state: State) -> None:
    self._state = state

  @property
  def params(self) -> dict[str, Any]:
    """The parameters, a nested dict of arrays."""
    return self.state['params']

  @property
  def averaged(self) -> dict[str, Any] | None:
    """The moving average of the parameters, of runs that keep one (optimizer.ema)."""
    if 'ema' not in self.state:
      return None
    return self.state['ema']

  def place(self, rows: Batch) -> Batch:
    """This host's rows of a batch (numpy, of `sharding.rows_of_host`) as global arrays [B, ...] on the mesh."""
    return sharding.to_global(self.plan.mesh, rows)

  def step(self, batch: Batch) -> Metrics:
    """Dispatches a step of training on a global batch; returns its metrics on the devices, for `fetch`.

    It returns at once: dispatch the next step before fetching, and the devices stay busy.
    """
    with jax.transfer_guard('disallow'):  # nothing may cross to or from the devices unnoticed
      self.state, metrics = self.train_step(self.state, batch)
    self._is_checked = False
    return metrics

  def evaluate(self, batch: Batch, params: dict[str, Any] | None = None) -> Metrics:
    """Sums over a global batch, on the devices: loss, nll, hits, weights; of other parameters, if given."""
    if params is None:
      params = self.params
    return self.eval_step(params, batch)

  def histograms(self, batch: Batch) -> dict[str, Any]:
    """Counts of parameters and of their gradients on a global batch, on the host (see histograms.named)."""
    return jax.device_get(self._count(self.params, batch, jax.random.key(self.plan.config.seed)))

  def judge(self, values: dict[str, float], rows: Batch, step: int) -> None:
    """BadSteps when too many steps one after the other changed nothing, the last being `step`.

    Args:
      values: its metrics, fetched.
      rows: this host's rows of its batch, which are kept for `check` if the step counts.
      step: its number.
    """
    bad = values['bad_in_a_row']
    if not bad:
      self._good_rows = rows
    if bad >= self.plan.config.guard.max_bad_steps:
      raise BadSteps(
          f'{bad} steps in a row had a loss, gradient or update that is not finite, or a spike '
          f'(guard.max_bad_steps), the last being step {step}; none of them changed the parameters. '
          'The newest checkpoint is finite. Often a lower optimizer.learning_rate or a longer schedule.warmup_steps '
          'helps, with which the run can be resumed, or loss.z_loss=1e-4 (add allow_changed=loss.z_loss); '
          'model.qk_norm=head helps in a new --workdir.')

  @property
  def needs_check(self) -> bool:
    """Whether `check` has anything to compute."""
    return self._good_rows is not None and not self._is_checked

  def check(self, step: int) -> None:
    """BadSteps when the parameters after `step` give a loss that is not finite: no checkpoint may hold them.

    The metrics of a step are those of the parameters before its update, which may be finite where the update is not.
    The check is a forward pass over the newest batch whose step counted.
    """
    rows = self._good_rows
    if rows is None or self._is_checked:
      return
    loss = fetch(self.evaluate(self.place(rows)))['loss']
    if not math.isfinite(loss):
      raise BadSteps(
          f'After step {step:,} the loss is {loss} on a batch on which it was finite before: the metrics of the update '
          'were finite, but its parameters are not. This state is not saved. A lower optimizer.learning_rate, a longer '
          'schedule.warmup_steps or a larger optimizer.eps often help.')
    self._is_checked = True
