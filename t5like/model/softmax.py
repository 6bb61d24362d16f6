"""What attention makes of its logits: caps, and a softmax that a sink may join."""
import jax
import jax.numpy as jnp


def capped(logits: jax.Array, cap: float) -> jax.Array:
  """cap tanh(logits / cap), or the logits where the cap is 0."""
  if not cap:
    return logits
  return cap * jnp.tanh(logits / cap)


def probabilities(logits: jax.Array, sinks: jax.Array | None = None) -> jax.Array:
  """The softmax over the last axis, fp32.

  Args:
    logits: of keys, fp32.
    sinks: logits of the same rank that broadcast to those, of one more key each, which takes part in the softmax and
      has no value (as in gpt-oss); None: there is none.
  """
  if sinks is None:
    return jax.nn.softmax(logits, axis=-1)
  largest = jnp.max(logits, axis=-1, keepdims=True)
  largest = jnp.maximum(largest, sinks)
  largest = jax.lax.stop_gradient(largest)
  of_keys = jnp.exp(logits - largest)
  of_sinks = jnp.exp(sinks - largest)
  total = jnp.sum(of_keys, axis=-1, keepdims=True) + of_sinks
  return of_keys / total
