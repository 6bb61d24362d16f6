"""How a model knows the order of tokens: vectors added to embeddings, rotated queries and keys, biases by distance."""
import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from t5like import choices, parameters
from t5like.model import rope_scaling
from t5like.model.config import ModelConfig
from t5like.model.layers import initial_std, normal
from t5like.sharding import at_rest, gather, in_use, weights


class Table(nnx.Module):
  """A learned vector for each of few things, such as positions or segment types: [dim, D]."""
  ROLES = dict(T='positions', P='types')

  def __init__(self, c: ModelConfig, dim: str, key: jax.Array) -> None:
    self.c = c
    self.dims = f'{dim}D'
    declared = parameters.matrix(self.dims, dim, self.ROLES[dim])
    std, cut = initial_std(c, 'positions', c.d_model)
    self.w = normal(key, c, declared, std, cut)

  def __call__(self, ids_BT: jax.Array) -> jax.Array:
    """[B, T, D] in model.dtype."""
    table = gather(self.w[...], self.dims, self.c.dtype)
    return table.at[ids_BT].get(out_sharding=in_use('BTD'))


class Sinusoids(nnx.Module):
  """sin and cos of positions at D / 2 wavelengths from 2 pi to 10,000 * 2 pi (Vaswani et al. 2017, 3.5).

  `scaled`: times one learned number, D^-1/2 at first (Hua et al. 2022, arXiv 2202.10447).
  """

  def __init__(self, c: ModelConfig, scaled: bool) -> None:
    self.c = c
    self.scaled = scaled
    if scaled:
      number = jnp.full((), c.d_model ** -0.5, jnp.float32)
      declared = parameters.vector('', 'positions', 'scale')
      self.scale = nnx.Param(number, declared=declared)

  def __call__(self, positions_BT: jax.Array) -> jax.Array:
    """[B, T, D] in model.dtype."""
    half = self.c.d_model // 2
    exponents = -np.arange(half) / max(1, half - 1)
    rates = jnp.asarray(10_000.0 ** exponents, jnp.float32)
    angles_BTh = positions_BT[:, :, None].astype(jnp.float32) * rates[None, None]
    x_BTD = jnp.concatenate([jnp.sin(angles_BTh), jnp.cos(angles_BTh)], -1)
    if self.scaled:
      x_BTD = x_BTD * self.scale[...]
    return x_BTD.astype(self.c.dtype)


class RelativeBias(nnx.Module):
  """The bias that T5 adds to attention logits: a number per head and bucket of distances (Raffel et al. 2020, 2.1).

  32 buckets: the nearest distances one by one, farther ones in steps growing to 128; keys behind and
  ahead of the query share them where both are seen, else keys ahead fall into bucket 0.
  """
  BUCKETS = 32
  FARTHEST = 128

  def __init__(self, c: ModelConfig, bidirectional: bool, key: jax.Array) -> None:
    self.c = c
    self.bidirectional = bidirectional
    limit = math.sqrt(6 / (c.num_heads + self.BUCKETS))  # variance_scaling(1, 'fan_avg', 'uniform')
    shape = (c.num_heads, self.BUCKETS)
    w = jax.random.uniform(key, shape, jnp.float32, -limit, limit, out_sharding=at_rest('N_'))
    self.w = nnx.Param(w, declared=parameters.matrix('N_', 'N', 'relative'))

  @classmethod
  def buckets(cls, distance: jax.Array, bidirectional: bool) -> jax.Array:
    """Bucket of each int distance (key - query), any shape."""
    n = cls.BUCKETS
    offset = 0
    if bidirectional:
      n //= 2
      offset = n * (distance > 0)
      distance = jnp.abs(distance)
    else:
      distance = -jnp.minimum(distance, 0)
    exact = n // 2
    # In integers, not logarithms: which distances begin a bucket must not depend on rounding.
    farther = 0
    for i in range(1, n - exact):
      begin = math.ceil(exact * (cls.FARTHEST / exact) ** (i / (n - exact)) - 1e-9)
      farther = farther + (distance >= begin).astype(jnp.int32)
    far = exact + farther
    return offset + jnp.where(distance < exact, distance, far)

  def __call__(self, T: int, S: int, at: int | jax.Array = 0) -> jax.Array:
    """[N, T + S] fp32, of queries at slots at .. at + T: t has element t - s + S for key slot s of S.

    Slots and positions differ by a constant. `dot_product` makes what it needs of it.
    """
    distance_R = S - at - jnp.arange(T + S)
    buckets_R = self.buckets(distance_R, self.bidirectional)
    one_hot = jax.nn.one_hot(buckets_R, self.BUCKETS, dtype=jnp.float32)
    w = gather(self.w[...], 'N_', jnp.float32)
    return jnp.einsum('NE,RE->NR', w, one_hot, out_sharding=weights('NR'), precision='highest')


def rope(
    x_BTNH: jax.Array,
    positions_BT: jax.Array,
    theta: float,
    fraction: float = 1.0,
    scaling: Mapping[str, Any] | None = None,
) -> jax.Array:
  """Rotary positions (Su et al. 2021, arXiv 2104.09864), halves convention: pairs (i, i + H/2).

  Args:
    x_BTNH: queries or keys.
    positions_BT: of their tokens.
    theta: base of the wavelengths.
    fraction: only that share of H, the first, is rotated (GPT-NeoX).
    scaling: model.rope_scaling; None or {}: there is none.
  """
  rotated = int(x_BTNH.shape[-1] * fraction)
  half = rotated // 2
  if scaling:
    rates_h, amplitude = rope_scaling.scaled(scaling, theta, rotated, jnp.max(positions_BT) + 1)
  else:
    rates_h = rope_scaling.rates(theta, rotated)
    amplitude = 1.0
  angle_BT1h = positions_BT[..., None, None].astype(jnp.float32) * rates_h[None, None, None]
  sin = jnp.sin(angle_BT1h)
  cos = jnp.cos(angle_BT1h)
  if amplitude != 1:
    sin *= amplitude
    cos *= amplitude
  a, b, rest = jnp.split(x_BTNH.astype(jnp.float32), (half, rotated), -1)
  turned_BTNH = jnp.concatenate([a * cos - b * sin, b * cos + a * sin, rest], -1)
  return turned_BTNH.astype(x_BTNH.dtype)


@dataclasses.dataclass(frozen=True)
class PositionScheme:
  """How a model knows the order of tokens, by any of three parts; None: the scheme does not have it.

  embed: (c, key) -> module that gives each position [B, T] a vector [B, T, D].
  rotate: (x_BTNH, positions_BT, c, kind of layer) -> x_BTNH, of queries and keys.
  bias: (c, bidirectional, key) -> module of values added to attention logits, one for each distance: see RelativeBias.
  """
  embed: Callable[..., nnx.Module] | None = None
  rotate: Callable[..., jax.Array] | None = None
  bias: Callable[..., nnx.Module] | None = None


def _learned(c: ModelConfig, key: jax.Array) -> Table:
  return Table(c, 'T', key)


def _sinusoidal(c: ModelConfig, key: jax.Array) -> Sinusoids:
  return Sinusoids(c, scaled=False)


def _scaled_sinusoidal(c: ModelConfig, key: jax.Array) -> Sinusoids:
  return Sinusoids(c, scaled=True)


def _rotated(x_BTNH: jax.Array, positions_BT: jax.Array, c: ModelConfig, kind: choices.LayerKind) -> jax.Array:
  if kind.own_theta and c.local_rope_theta:
    return rope(x_BTNH, positions_BT, c.local_rope_theta, c.rope_fraction)
  return rope(x_BTNH, positions_BT, c.rope_theta, c.rope_fraction, dict(c.rope_scaling))


def _has_parts(facts: choices.Position, scheme: PositionScheme) -> bool:
  """Whether a scheme does what its facts say."""
  parts = [scheme.embed is not None, scheme.rotate is not None, scheme.bias is not None]
  return parts == [facts.embedded, facts.rotary, facts.biased]


POSITIONS = choices.implement('model.position', choices.POSITIONS, dict(
    rope=PositionScheme(rotate=_rotated),
    learned=PositionScheme(embed=_learned),
    learned_from_2=PositionScheme(embed=_learned),
    relative=PositionScheme(bias=RelativeBias),
    sinusoidal=PositionScheme(embed=_sinusoidal),
    scaled_sinusoidal=PositionScheme(embed=_scaled_sinusoidal),
    none=PositionScheme(),
), _has_parts)
