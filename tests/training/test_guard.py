"""Which steps count: numbers that are not finite, spikes, and what is left of them."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5like.optim import guard

N = guard.WINDOW


def judged(losses, norms=None, **how):
  """([good], final state) of steps with these losses and gradient norms."""
  state, step = guard.start(), jax.jit(lambda *a: guard.judge(*a, **how))
  goods = []
  for loss, norm in zip(losses, norms if norms is not None else np.ones(len(losses))):
    good, state = step(state, jnp.isfinite(loss) & jnp.isfinite(norm), jnp.float32(loss), jnp.float32(norm))
    goods.append(bool(good))
  return np.array(goods), jax.device_get(state)


def noisy(n, seed=0):
  return 3 + 0.05 * np.random.default_rng(seed).standard_normal(n)


@pytest.mark.parametrize('at', [0, 5, N + 40])
@pytest.mark.parametrize('value', [np.nan, np.inf, -np.inf])
def test_one_bad_number_costs_one_step(value, at):
  """Also with windows of spikes: a number that is not finite never enters them (one froze MaxText for 129 steps)."""
  losses = noisy(2 * N)
  losses[at] = value
  for how in ({}, dict(spike_loss=1.5, spike_norm=2.0)):
    goods, state = judged(losses, **how)
    assert np.flatnonzero(~goods).tolist() == [at]
    assert state['bad_steps'] == 1 and state['bad_in_a_row'] == 0 and state['spikes'] == 0
    assert np.isfinite(state['losses']).all() and np.isfinite(state['norms']).all()


def test_spikes_are_found_in_loss_or_norm_and_do_not_hide_each_other():
  losses, norms = noisy(3 * N), 1 + 0.1 * np.abs(noisy(3 * N, 1) - 3)
  losses[[N + 3, N + 4, 2 * N]] *= 5
  norms[[N + 9, 2 * N + 9]] = 30
  goods, state = judged(losses, norms, spike_loss=1.5, spike_norm=10.0)
  assert np.flatnonzero(~goods).tolist() == [N + 3, N + 4, N + 9, 2 * N, 2 * N + 9]
  assert state['spikes'] == state['bad_steps'] == 5
  goods, _ = judged(losses, norms, spike_loss=1.5)
  assert np.flatnonzero(~goods).tolist() == [N + 3, N + 4, 2 * N]
  goods, _ = judged(losses, norms)
  assert goods.all()


def test_nothing_is_a_spike_before_there_is_something_to_measure_by():
  losses = noisy(N)
  losses[N // 2] = 1e6
  assert judged(losses, spike_loss=1.5)[0].all()


def test_counters_outlast_32_bits():
  """After 2^30 good steps the window goes on where it was, and spikes are found as before."""
  judge = jax.jit(lambda *a: guard.judge(*a, spike_loss=2.0))
  state = dict(guard.start(), finite=jnp.int32(guard.MOST_COUNTED - 3), losses=jnp.ones(N), norms=jnp.ones(N))
  for n in range(6):
    _, state = judge(state, jnp.bool_(True), jnp.float32(1 + n / 10), jnp.float32(1))
  np.testing.assert_allclose(state['losses'][-3:], [1, 1.1, 1.2])
  np.testing.assert_allclose(state['losses'][:4], [1.3, 1.4, 1.5, 1])
  assert state['finite'] == N + 3
  assert not judge(state, jnp.bool_(True), jnp.float32(9), jnp.float32(1))[0]


def test_a_level_that_stays_is_bad_until_it_is_the_usual_one():
  """Half a window of it; long before, guard.max_bad_steps in a row make a run go back."""
  losses = np.concatenate([noisy(N), 2 * noisy(N)])
  goods, state = judged(losses, spike_loss=1.5)
  bad = np.flatnonzero(~goods)
  assert bad[0] == N and (np.diff(bad) == 1).all() and N // 2 <= len(bad) <= N // 2 + 2 and goods[-1]


def test_what_is_bad_for_ever_is_counted_for_ever():
  _, state = judged(np.full(250, np.nan), spike_loss=1.5)
  assert state['bad_in_a_row'] == state['bad_steps'] == 250 and state['finite'] == 0
