"""Which steps count: those whose numbers are finite and, if asked, near those of the steps before.

Its state is part of the checkpoint and lives on the devices, so that a good step waits for nobody.
"""
import jax.numpy as jnp

WINDOW = 128  # good steps that spikes are measured against; judged from when there are so many
MOST_COUNTED = 2 ** 30


def start():
  """Counters, int32 [], and the losses and gradient norms of the newest steps that were finite, fp32 [WINDOW]."""
  counts = {name: jnp.int32(0) for name in ('bad_steps', 'bad_in_a_row', 'spikes', 'finite')}
  return dict(counts, losses=jnp.zeros(WINDOW, jnp.float32), norms=jnp.zeros(WINDOW, jnp.float32))


def judge(guard, finite, loss, grad_norm, spike_loss=0.0, spike_norm=0.0):
  """(good, bool [], and the new state) of a step with this loss (nats per token) and gradient norm.

  spike_loss, spike_norm: above so many times the median of the last WINDOW steps it is a spike and the step is bad;
  0: never. What enters the window is cut off there, so one spike does not hide the next, and is finite always: a
  NaN in it would make every later step bad.
  """
  good, new = finite, dict(guard)
  if spike_loss or spike_norm:
    known, at = guard['finite'] >= WINDOW, guard['finite'] % WINDOW
    spike = jnp.bool_(False)
    for name, value, times in (('losses', loss, spike_loss), ('norms', grad_norm, spike_norm)):
      limit = jnp.where(known & (times > 0), times * jnp.median(guard[name]), jnp.inf)
      spike |= finite & (value > limit)
      new[name] = jnp.where(finite, guard[name].at[at].set(jnp.minimum(value, limit)), guard[name])
    good = finite & ~spike
    count = guard['finite'] + finite
    # Bounded, for 32 bits would end; a multiple of WINDOW less, so that the place in the window is the same.
    count = jnp.where(count >= MOST_COUNTED, count - MOST_COUNTED + WINDOW, count)
    new.update(spikes=guard['spikes'] + spike, finite=count)
  in_a_row = jnp.where(good, 0, guard['bad_in_a_row'] + 1)
  return good, dict(new, bad_steps=guard['bad_steps'] + ~good, bad_in_a_row=in_a_row)


def counters(guard):
  """The numbers that are reported with each step."""
  return {name: guard[name] for name in ('bad_steps', 'bad_in_a_row', 'spikes')}
