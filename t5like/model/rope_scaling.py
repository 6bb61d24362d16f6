"""Rotary rates for longer rows than a model began with: the ways of `model.rope_scaling`.

A head's pair i of d / 2 turns by rate theta^(-2 i / d) a position (Su et al. 2021, arXiv 2104.09864). All ways slow the
pairs down that turn too little to be known from the rows of before; they differ in which, and by how much.
"""
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from t5like import choices

Numbers = Mapping[str, Any]  # of model.rope_scaling, with the defaults of choices.py
Scaled = tuple[jax.Array, float]  # rates [d / 2] fp32, and what sines and cosines are multiplied by


def rates(theta: Any, d: int) -> jax.Array:
  """[d / 2] fp32: radians for each position, of each pair of d dimensions that turn."""
  half = d // 2
  return theta ** (-jnp.arange(half, dtype=jnp.float32) / half)


def _linear(numbers: Numbers, theta: float, d: int, length: jax.Array) -> Scaled:
  """Positions divided by a factor (Chen et al. 2023, arXiv 2306.15595)."""
  return rates(theta, d) / numbers['factor'], 1.0


def _dynamic(numbers: Numbers, theta: float, d: int, length: jax.Array) -> Scaled:
  """A base that grows with the row: the slowest pair's rate is divided by as much as the row is too long.

  NTK-aware scaling, see Peng et al. 2023 (arXiv 2309.00071), appendix B.1.
  """
  factor = numbers['factor']
  original = numbers['original_positions']
  stretch = factor * jnp.maximum(length, original) / original - (factor - 1)
  return rates(theta * stretch ** (d / (d - 2)), d), 1.0


def _yarn(numbers: Numbers, theta: float, d: int, length: jax.Array) -> Scaled:
  """Pairs that turn often stay, those that turn seldom are slowed down, with a ramp between (arXiv 2309.00071, 3.2)."""
  factor = numbers['factor']
  fast = _pair_that_turns(numbers['beta_fast'], numbers['original_positions'], theta, d)
  slow = _pair_that_turns(numbers['beta_slow'], numbers['original_positions'], theta, d)
  if numbers['truncate']:
    fast = math.floor(fast)
    slow = math.ceil(slow)
  first = max(fast, 0)
  last = min(slow, d - 1)
  width = last - first or 0.001
  slowed = jnp.clip((jnp.arange(d // 2, dtype=jnp.float32) - first) / width, 0, 1)
  unscaled = rates(theta, d)
  temperature = numbers['attention_factor'] or _yarn_temperature(numbers)
  return unscaled / factor * slowed + unscaled * (1 - slowed), temperature


def _pair_that_turns(turns: float, positions: int, theta: float, d: int) -> float:
  """Which pair turns so many times in so many positions; a fraction."""
  return d * math.log(positions / (turns * 2 * math.pi)) / (2 * math.log(theta))


def _yarn_temperature(numbers: Numbers) -> float:
  """1 / sqrt(t) of section 3.4; DeepSeek's models divide two of them."""
  factor = numbers['factor']
  if numbers['mscale'] and numbers['mscale_all_dim']:
    return _mscale(factor, numbers['mscale']) / _mscale(factor, numbers['mscale_all_dim'])
  return _mscale(factor, 1.0)


def _mscale(factor: float, weight: float) -> float:
  if factor <= 1:
    return 1.0
  return 0.1 * weight * math.log(factor) + 1


def _llama3(numbers: Numbers, theta: float, d: int, length: jax.Array) -> Scaled:
  """By wavelength: short ones stay, long ones are stretched, with a ramp between (Llama 3.1's released code)."""
  unscaled = rates(theta, d)
  turns = numbers['original_positions'] * unscaled / (2 * math.pi)
  low = numbers['low_freq_factor']
  kept = jnp.clip((turns - low) / (numbers['high_freq_factor'] - low), 0, 1)
  return unscaled / numbers['factor'] * (1 - kept) + unscaled * kept, 1.0


def _longrope(numbers: Numbers, theta: float, d: int, length: jax.Array) -> Scaled:
  """A divisor found by search for each pair, other ones for rows longer than before (Ding et al. 2024, 2402.13753)."""
  original = numbers['original_positions']
  short = jnp.asarray(numbers['short_factor'], jnp.float32)
  long = jnp.asarray(numbers['long_factor'], jnp.float32)
  divisors = jnp.where(length > original, long, short)
  factor = numbers['factor']
  temperature = numbers['attention_factor']
  if not temperature:
    temperature = math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0
  return rates(theta, d) / divisors, temperature


Way = Callable[[Numbers, float, int, jax.Array], Scaled]
WAYS: Mapping[str, Way] = choices.implement('model.rope_scaling.name', choices.ROPE_SCALINGS, dict(
    linear=_linear,
    dynamic=_dynamic,
    yarn=_yarn,
    llama3=_llama3,
    longrope=_longrope,
))


def scaled(scaling: Numbers, theta: float, d: int, length: jax.Array) -> Scaled:
  """Rates of a model's layer.

  Args:
    scaling: model.rope_scaling, with a name.
    theta: base of the rates.
    d: dimensions of a head that turn, an even number.
    length: int32, the largest position of the batch and one more, which some ways depend on.

  Returns:
    (rates [d / 2] fp32, what sines and cosines are multiplied by).
  """
  name = scaling['name']
  facts = choices.ROPE_SCALINGS[name]
  numbers = {**facts.optional, **scaling}
  return WAYS[name](numbers, theta, d, length)
