"""Which attention probabilities are dropped: a function of their place, which kernels and XLA compute alike.

A probability's number is a hash of a seed and of its row, head, query and key in the whole batch: the same whatever
devices, blocks and pieces it is computed in, forward and backward, and nothing is stored. The hash is the finalizer of
MurmurHash3 (Appleby, public domain), in wrapping int32, which the vector units of TPUs have.
"""
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Number = Any  # int32, a scalar or an array, traced


def _int32(bits: int) -> np.int32:
  return np.uint32(bits).astype(np.int32)


# Odd numbers whose products tell apart places that are next to each other.
ROW = _int32(0x27D4EB2F)
HEAD = _int32(0x165667B1)
QUERY = _int32(0x9E3779B1)
KEY = _int32(0x85EBCA77)
FIRST = _int32(0x85EBCA6B)
SECOND = _int32(0xC2B2AE35)
POSITIVE = np.int32(0x7FFFFFFF)


def _mixed(x: Number) -> Number:
  """Each bit depends on all bits of x."""
  x ^= jax.lax.shift_right_logical(x, jnp.full_like(x, 16))
  x *= FIRST
  x ^= jax.lax.shift_right_logical(x, jnp.full_like(x, 13))
  x *= SECOND
  x ^= jax.lax.shift_right_logical(x, jnp.full_like(x, 16))
  return x


def of_head(seed: Number, row: Number, head: Number) -> Number:
  """What the places of one head of one row of a batch have in common."""
  x = _mixed(seed ^ (row * ROW))
  return _mixed(x ^ (head * HEAD))


def of_place(of_head: Number, query: Number, key: Number) -> Number:
  """The number of a place: of_head of its head; query, key: slots times QUERY and KEY."""
  return _mixed(of_head ^ query ^ key)


def is_kept(number: Number, rate: float) -> Number:
  """bool: whether a place with this number is kept, with a probability of 1 - rate."""
  least = np.int32(rate * 2 ** 31)
  return (number & POSITIVE) >= least


def mask(seed: Number, shape: tuple[int, int, int, int], rate: float, shared: bool) -> jax.Array:
  """bool [B, N, T, S] of all places; `shared`: all queries of a row drop the same keys."""
  slots = []
  for axis in range(4):
    slots.append(jax.lax.broadcasted_iota(jnp.int32, shape, axis))
  row, head, query, key = slots
  if shared:
    query = jnp.zeros_like(query)
  common = of_head(jnp.full_like(row, seed), row, head)
  return is_kept(of_place(common, query * QUERY, key * KEY), rate)
