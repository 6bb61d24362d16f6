"""Which steps count: those whose numbers are finite and, where a limit is set, near those of the steps before.

Its state is part of the checkpoint and lives on the devices, so that a good step waits for nobody.
"""
import jax
import jax.numpy as jnp

WINDOW = 128  # finite steps that spikes are measured against; none is a spike before there are as many
MOST_COUNTED = 2 ** 30
COUNTERS = ('bad_steps', 'bad_in_a_row', 'spikes')  # reported with each step
State = dict[str, jax.Array]


def start() -> State:
  """Counters, int32 [], and the losses and gradient norms of the newest steps that were finite, fp32 [WINDOW]."""
  state = {}
  for name in (*COUNTERS, 'finite'):
    state[name] = jnp.int32(0)
  state['losses'] = jnp.zeros(WINDOW, jnp.float32)
  state['norms'] = jnp.zeros(WINDOW, jnp.float32)
  return state


def judge(
    guard: State,
    finite: jax.Array,
    loss: jax.Array,
    grad_norm: jax.Array,
    spike_loss: float = 0.0,
    spike_norm: float = 0.0,
) -> tuple[jax.Array, State]:
  """Whether a step counts.

  Args:
    guard: the state before it.
    finite: bool [], whether all its numbers are finite.
    loss: fp32 [], nats per token.
    grad_norm: fp32 [].
    spike_loss: a loss above this multiple of the median of the last WINDOW steps is a spike and makes the step bad;
      0: never.
    spike_norm: the same of the gradient norm.

  Returns:
    (good, bool []; the new state).
  """
  new = dict(guard)
  good = finite
  if spike_loss or spike_norm:
    is_full = guard['finite'] >= WINDOW
    slot = guard['finite'] % WINDOW
    is_spike = jnp.bool_(False)
    watched = (
        ('losses', loss, spike_loss),
        ('norms', grad_norm, spike_norm),
    )
    for window, value, multiple in watched:
      values = guard[window]
      has_limit = is_full & (multiple > 0)
      limit = jnp.where(has_limit, multiple * jnp.median(values), jnp.inf)
      is_spike |= finite & (value > limit)
      # At most the limit, so that one spike does not hide the next; never NaN, which would make all later steps bad.
      bounded = jnp.minimum(value, limit)
      with_value = values.at[slot].set(bounded)
      new[window] = jnp.where(finite, with_value, values)
    good = finite & ~is_spike
    new['finite'] = _bounded(guard['finite'] + finite)
    new['spikes'] = guard['spikes'] + is_spike
  one_more = guard['bad_in_a_row'] + 1
  new['bad_in_a_row'] = jnp.where(good, 0, one_more)
  new['bad_steps'] = guard['bad_steps'] + ~good
  return good, new


def _bounded(count: jax.Array) -> jax.Array:
  """A count that does not overflow 32 bits: less a multiple of WINDOW, which keeps the place in the window."""
  bounded = count - MOST_COUNTED + WINDOW
  return jnp.where(count >= MOST_COUNTED, bounded, count)


def counters(guard: State) -> dict[str, jax.Array]:
  """The numbers that are reported with each step."""
  return {name: guard[name] for name in COUNTERS}
