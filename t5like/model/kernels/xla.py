"""Attention in plain operations, with what jax.nn.dot_product_attention does not have."""
import jax
import jax.numpy as jnp

UNSEEN = -1e30  # logit of a key that a query does not see


def attention(
    q_BTNH: jax.Array,
    k_BSKH: jax.Array,
    v_BSKH: jax.Array,
    mask_B1TS: jax.Array,
    scale: float,
    softcap: float = 0.0,
    bias: jax.Array | None = None,
    keep: jax.Array | None = None,
) -> jax.Array:
  """Attention with dropout of probabilities or capped logits, [B, T, N, H].

  Args:
    q_BTNH: queries.
    k_BSKH: keys; N / K heads of queries share them and the values.
    v_BSKH: values.
    mask_B1TS: bool, which keys a query sees.
    scale: of logits.
    softcap: see `capped`.
    bias: [N, T, S], added to logits; None: nothing is.
    keep: [B, N, T or 1, S], by which probabilities are multiplied; None: by nothing.
  """
  repeats = q_BTNH.shape[2] // k_BSKH.shape[2]
  k_BSNH = jnp.repeat(k_BSKH, repeats, axis=2)
  v_BSNH = jnp.repeat(v_BSKH, repeats, axis=2)
  logits_BNTS = jnp.einsum('BTNH,BSNH->BNTS', q_BTNH, k_BSNH, preferred_element_type=jnp.float32)
  logits_BNTS *= scale
  if bias is not None:
    logits_BNTS += bias[None]
  logits_BNTS = capped(logits_BNTS, softcap)
  logits_BNTS = jnp.where(mask_B1TS, logits_BNTS, UNSEEN)
  p_BNTS = jax.nn.softmax(logits_BNTS, -1)
  if keep is not None:
    p_BNTS *= keep
  p_BNTS = p_BNTS.astype(v_BSNH.dtype)
  return jnp.einsum('BNTS,BSNH->BTNH', p_BNTS, v_BSNH)


def capped(logits: jax.Array, cap: float) -> jax.Array:
  """cap tanh(logits / cap), or the logits where the cap is 0."""
  if not cap:
    return logits
  return cap * jnp.tanh(logits / cap)
