"""Attention on NVIDIA GPUs: cuDNN's flash attention, which makes no [T, S] array of logits.

It has a window of its own, outside of which it visits no keys, but only where the causal mask is all there is: any
other mask reaches it as a bias, and beside a bias it has no window. Rows of one document need no other mask: their
padding, at the end, is seen by nobody. So whether rows are such is looked up when the program runs.
"""
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

LARGEST_HEAD = 128

Tokens = Mapping[str, jax.Array]  # segments, positions: int [B, T]


def lacks(platform: str, head_dim: int, dtype: str, T: int, S: int) -> str:
  """Why it cannot run here, or ''.

  Args:
    platform: 'tpu', 'gpu' or 'cpu'.
    head_dim: size of a head.
    dtype: of queries, keys and values.
    T, S: how many queries and keys there are.
  """
  if platform != 'gpu':
    return 'this is no GPU'
  if dtype not in ('bfloat16', 'float16'):
    return f'cuDNN has no kernel for {dtype}: model.dtype=bfloat16 would have one'
  if head_dim % 8 or head_dim > LARGEST_HEAD or T % 2 or S % 2:
    return (f'cuDNN needs heads of up to {LARGEST_HEAD} in multiples of 8, and even lengths: here {head_dim}, {T} and '
            f'{S}')
  try:
    gpu = jax.devices('gpu')[0]
    capability = gpu.compute_capability
    is_new_enough = float(capability) >= 8
  except (RuntimeError, AttributeError, ValueError):
    return 'no NVIDIA GPU is present'
  if is_new_enough:
    return ''
  return f'cuDNN needs compute capability 8.0, this GPU has {capability}'


def attention(
    q_BTNH: jax.Array,
    k_BSKH: jax.Array,
    v_BSKH: jax.Array,
    query: Tokens,
    mask: Callable[[], jax.Array],
    scale: float,
    causal: bool,
    before: int | None = None,
    implementation: Any = 'cudnn',
) -> jax.Array:
  """softmax(scale q k) v, [B, T, N, H], of one device.

  Args:
    q_BTNH: queries.
    k_BSKH: keys.
    v_BSKH: values.
    query: of the queries' tokens.
    mask: makes the mask, bool [B, 1, T, S], of all that hides keys.
    scale: of logits.
    causal: no query sees a key in a later slot; queries and keys are of the same tokens.
    before: how many slots before its own a query of a `causal` row sees at most; None: all.
    implementation: of jax.nn.dot_product_attention.
  """

  def masked(q_BTNH: jax.Array, k_BSKH: jax.Array, v_BSKH: jax.Array) -> jax.Array:
    return jax.nn.dot_product_attention(
        q_BTNH,
        k_BSKH,
        v_BSKH,
        mask=mask(),
        scale=scale,
        is_causal=causal,
        implementation=implementation,
    )

  if not causal or before is None or before >= q_BTNH.shape[1] - 1:
    return masked(q_BTNH, k_BSKH, v_BSKH)
  window = (before, 0)

  def windowed(q_BTNH: jax.Array, k_BSKH: jax.Array, v_BSKH: jax.Array) -> jax.Array:
    return jax.nn.dot_product_attention(
        q_BTNH,
        k_BSKH,
        v_BSKH,
        scale=scale,
        is_causal=True,
        local_window_size=window,
        implementation=implementation,
    )

  is_bare = of_one_document(query)
  return jax.lax.cond(is_bare, windowed, masked, q_BTNH, k_BSKH, v_BSKH)


def of_one_document(tokens: Tokens) -> jax.Array:
  """bool []: whether each row is one document from the first slot on, positions one by one, and padding behind it."""
  segments_BT = tokens['segments']
  positions_BT = tokens['positions']
  is_padding = segments_BT[:, 1:] == 0
  is_same_document = segments_BT[:, 1:] == segments_BT[:, :-1]
  is_next = positions_BT[:, 1:] == positions_BT[:, :-1] + 1
  continues = is_same_document & is_next
  return jnp.all(is_padding | continues)
