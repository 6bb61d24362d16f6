"""Learning-rate schedules: their shapes after the warm-up, as shares of the peak.

An entry of SCHEDULES is all that there is to a schedule: its name, its shape and whether it ends in a decay.
"""
import dataclasses
from collections.abc import Callable
from typing import Any


@dataclasses.dataclass(frozen=True)
class Span:
  """What a shape depends on. Steps are floats, since a whole number above 2^31 cannot meet an array.

  total, warmup: steps of the run and of its warm-up.
  decay_at_end: steps of the decay at the end; None unless the schedule ends in one.
  final_scale: the learning rate at the end, as a share of the peak.
  timescale: steps at the peak before the rate falls as 1 / sqrt(step).
  """
  total: float
  warmup: float
  decay_at_end: float | None
  final_scale: float
  timescale: float

  @property
  def decay(self) -> float:
    """Steps of the decay at the end. NotImplementedError where the schedule does not say that it has one."""
    if self.decay_at_end is None:
      raise NotImplementedError('the shape of this schedule reads span.decay, but its entry of SCHEDULES in '
                                't5like/rate_schedules.py does not say ends_in_decay=True: it has no decay.')
    return self.decay_at_end


@dataclasses.dataclass(frozen=True)
class Schedule:
  """shape: (step, fp32 array; Span; jax.numpy) -> share of the peak.

  ends_in_decay: it has a decay at its end, of schedule.decay_fraction of all steps.
  """
  shape: Callable[[Any, Span, Any], Any]
  ends_in_decay: bool = False


def _constant(step, span, jnp):
  return jnp.float32(1)


def _share_done(step, span, jnp):
  """The share that is done of the steps after the warm-up."""
  done = step - span.warmup
  steps = max(1.0, span.total - span.warmup)
  return jnp.clip(done / steps, 0, 1)


def _cosine(step, span, jnp):
  share_done = _share_done(step, span, jnp)
  fall = 1 - span.final_scale
  wave = 1 + jnp.cos(jnp.pi * share_done)
  return span.final_scale + fall * wave / 2


def _linear(step, span, jnp):
  share_done = _share_done(step, span, jnp)
  fall = 1 - span.final_scale
  return 1 - fall * share_done


def _stable_then_decay(step, span, jnp):
  steps_left = span.total - step
  share_left = jnp.clip(steps_left / span.decay, 0, 1)
  fall = 1 - span.final_scale
  return span.final_scale + fall * share_left


def _rsqrt(step, span, jnp):
  later = jnp.maximum(step, span.timescale)
  return jnp.sqrt(span.timescale / later)


def _rsqrt_decay(step, span, jnp):
  rate = _rsqrt(step, span, jnp)
  decay = _stable_then_decay(step, span, jnp)
  return rate * decay


SCHEDULES = dict(
    cosine=Schedule(_cosine),
    linear=Schedule(_linear),
    rsqrt=Schedule(_rsqrt),
    rsqrt_decay=Schedule(_rsqrt_decay, ends_in_decay=True),
    wsd=Schedule(_stable_then_decay, ends_in_decay=True),
    constant=Schedule(_constant),
)
