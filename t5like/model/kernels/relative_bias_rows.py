"""The kernel for a bias by distance on rows that are cut over devices (model/context.py); inside `shard_map`."""
from collections.abc import Mapping

import jax
import jax.numpy as jnp

from t5like.model.context import Cut
from t5like.model.kernels import relative_bias_attention
from t5like.model.kernels.relative_bias_attention import Starts

Tokens = Mapping[str, jax.Array]  # segments: int [B, length]; perhaps prefix: bool [B, length]


def attention(
    cut: Cut,
    q_BTNH: jax.Array,
    k_BSKH: jax.Array,
    v_BSKH: jax.Array,
    bias_NR: jax.Array,
    query: Tokens,
    key: Tokens,
    causal: bool,
    scale: float,
    softcap: float = 0.0,
    interpret: bool = False,
    window: tuple[int, int] | None = None,
) -> jax.Array:
  """`relative_bias_attention.attention` of the queries of one device and all keys, in order: a call for each piece.

  Args:
    cut: of rows of queries.
    q_BTNH: queries of this device.
    k_BSKH: keys.
    v_BSKH: values.
    bias_NR: fp32, values by distance of all queries.
    query: of the tokens of q.
    key: of the tokens of k.
    causal, scale, softcap, interpret, window: as there.
  """
  starts_of_devices = [cut.starts(device) for device in range(cut.devices)]
  distances = cut.tokens + k_BSKH.shape[1]
  outs = []
  for number, start in enumerate(cut.starts_here()):
    first = number * cut.tokens
    piece = slice(first, first + cut.tokens)
    starts = [of_device[number] for of_device in starts_of_devices]
    out_BTNH = relative_bias_attention.attention(
        q_BTNH[:, piece],
        k_BSKH,
        v_BSKH,
        jax.lax.dynamic_slice_in_dim(bias_NR, start, distances, axis=1),
        {name: x_BT[:, piece] for name, x_BT in query.items()},
        key,
        causal,
        scale,
        softcap=softcap,
        start=start,
        interpret=interpret,
        window=window,
        starts=Starts(starts, cut.is_balanced),
    )
    outs.append(out_BTNH)
  if len(outs) == 1:
    return outs[0]
  return jnp.concatenate(outs, 1)
