"""Attention in plain operations, with what jax.nn.dot_product_attention does not have."""
import jax
import jax.numpy as jnp

from t5like.model.softmax import capped, probabilities

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
    sinks_N: jax.Array | None = None,
) -> jax.Array:
  """Attention with dropout of probabilities, capped logits or sinks, [B, T, N, H].

  Args:
    q_BTNH: queries.
    k_BSKH: keys; N / K heads of queries share them and the values.
    v_BSKH: values.
    mask_B1TS: bool, which keys a query sees.
    scale: of logits.
    softcap: see `softmax.capped`.
    bias: [N, T, S], added to logits; None: nothing is.
    keep: [B, N, T or 1, S], by which probabilities are multiplied; None: by nothing.
    sinks_N: a logit for each head of queries that joins the softmax; None: there are none.
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
  sinks_1N11 = None
  if sinks_N is not None:
    sinks_1N11 = sinks_N[None, :, None, None]
  p_BNTS = probabilities(logits_BNTS, sinks_1N11)
  if keep is not None:
    p_BNTS *= keep
  p_BNTS = p_BNTS.astype(v_BSNH.dtype)
  return jnp.einsum('BNTS,BSNH->BTNH', p_BNTS, v_BSNH)
