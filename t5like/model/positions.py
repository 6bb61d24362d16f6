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
from t5like.model.initial import initial_std, normal
from t5like.sharding import at_rest, gather, in_use, weights


class Table(nnx.Module):
  """A learned vector for each of few things, such as positions or segment types: [dim, D]."""
  ROLES = dict(T='positions', P='types')

  def __init__(
      self,
      c: ModelConfig,
      dim: str,
      key: jax.Array,
  ) -> None:
    self.c = c
    self.dims = f'{dim}D'
    role = self.ROLES[dim]
    declared = parameters.matrix(self.dims, dim, role)
    std, cut = initial_std(c, 'positions', c.d_model)
    self.w = normal(key, c, declared, std, cut)

  def __call__(self, ids_BT: jax.Array) -> jax.Array:
    """[B, T, D] in model.dtype."""
    stored = self.w[...]
    table = gather(stored, self.dims, self.c.dtype)
    layout = in_use('BTD')
    return table.at[ids_BT].get(out_sharding=layout)


class Sinusoids(nnx.Module):
  """sin and cos of positions at D / 2 wavelengths from 2 pi to 10,000 * 2 pi (Vaswani et al. 2017, 3.5).

  `scaled`: times one learned number, D^-1/2 at first (Hua et al. 2022, arXiv 2202.10447).
  """

  def __init__(self, c: ModelConfig, scaled: bool) -> None:
    self.c = c
    self.scaled = scaled
    if scaled:
      first = c.d_model ** -0.5
      number = jnp.full((), first, jnp.float32)
      declared = parameters.vector('', 'positions', 'scale')
      self.scale = nnx.Param(number, declared=declared)

  def __call__(self, positions_BT: jax.Array) -> jax.Array:
    """[B, T, D] in model.dtype."""
    half = self.c.d_model // 2
    steps = max(1, half - 1)
    exponents = -np.arange(half) / steps
    rates_h = jnp.asarray(10_000.0 ** exponents, jnp.float32)
    positions_BT1 = positions_BT[:, :, None].astype(jnp.float32)
    angles_BTh = positions_BT1 * rates_h[None, None]
    sin_BTh = jnp.sin(angles_BTh)
    cos_BTh = jnp.cos(angles_BTh)
    x_BTD = jnp.concatenate([sin_BTh, cos_BTh], -1)
    if self.scaled:
      scale = self.scale[...]
      x_BTD = x_BTD * scale
    return x_BTD.astype(self.c.dtype)


class RelativeBias(nnx.Module):
  """The bias that T5 adds to attention logits: a number per head and bucket of distances (Raffel et al. 2020, 2.1).

  32 buckets: the nearest distances one by one, farther ones in steps growing to 128; keys behind and
  ahead of the query share them where both are seen, else keys ahead fall into bucket 0.
  """
  BUCKETS = 32
  FARTHEST = 128

  def __init__(
      self,
      c: ModelConfig,
      bidirectional: bool,
      key: jax.Array,
  ) -> None:
    self.c = c
    self.bidirectional = bidirectional
    limit = math.sqrt(6 / (c.num_heads + self.BUCKETS))  # variance_scaling(1, 'fan_avg', 'uniform')
    w = jax.random.uniform(
        key,
        shape=(c.num_heads, self.BUCKETS),
        dtype=jnp.float32,
        minval=-limit,
        maxval=limit,
        out_sharding=at_rest('N_'),
    )
    declared = parameters.matrix('N_', 'N', 'relative')
    self.w = nnx.Param(w, declared=declared)

  @classmethod
  def buckets(
      cls,
      distance: jax.Array,
      bidirectional: bool,
  ) -> jax.Array:
    """Bucket of each int distance (key - query), any shape."""
    n = cls.BUCKETS
    offset = 0
    if bidirectional:
      n //= 2
      is_ahead = distance > 0
      offset = n * is_ahead
      distance = jnp.abs(distance)
    else:
      distance = -jnp.minimum(distance, 0)
    exact = n // 2
    # In integers, not logarithms: which distances begin a bucket must not depend on rounding.
    farther = 0
    growing = n - exact
    growth = cls.FARTHEST / exact
    for i in range(1, growing):
      share = i / growing
      begin = math.ceil(exact * growth ** share - 1e-9)
      is_farther = distance >= begin
      farther = farther + is_farther.astype(jnp.int32)
    far = exact + farther
    is_exact = distance < exact
    bucket = jnp.where(is_exact, distance, far)
    return offset + bucket

  def __call__(
      self,
      T: int,
      S: int,
      at: int | jax.Array = 0,
  ) -> jax.Array:
    """[N, T + S] fp32, of queries at slots at .. at + T: t has element t - s + S for key slot s of S.

    Slots and positions differ by a constant. `dot_product` makes what it needs of it.
    """
    first = S - at
    distance_R = first - jnp.arange(T + S)
    buckets_R = self.buckets(distance_R, self.bidirectional)
    one_hot_RE = jax.nn.one_hot(buckets_R, self.BUCKETS, dtype=jnp.float32)
    stored_NE = self.w[...]
    w_NE = gather(stored_NE, 'N_', jnp.float32)
    return jnp.einsum(
        'NE,RE->NR',
        w_NE,
        one_hot_RE,
        out_sharding=weights('NR'),
        precision='highest',
    )


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
    length = jnp.max(positions_BT) + 1
    rates_h, amplitude = rope_scaling.scaled(scaling, theta, rotated, length)
  else:
    rates_h = rope_scaling.rates(theta, rotated)
    amplitude = 1.0
  positions_BT11 = positions_BT[..., None, None].astype(jnp.float32)
  angle_BT1h = positions_BT11 * rates_h[None, None, None]
  sin = jnp.sin(angle_BT1h)
  cos = jnp.cos(angle_BT1h)
  if amplitude != 1:
    sin *= amplitude
    cos *= amplitude
  exact_BTNH = x_BTNH.astype(jnp.float32)
  a, b, rest = jnp.split(exact_BTNH, (half, rotated), -1)
  turned_a = a * cos - b * sin
  turned_b = b * cos + a * sin
  turned_BTNH = jnp.concatenate([turned_a, turned_b, rest], -1)
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


def _rotated(
    x_BTNH: jax.Array,
    positions_BT: jax.Array,
    c: ModelConfig,
    kind: choices.LayerKind,
) -> jax.Array:
  if kind.own_theta and c.local_rope_theta:
    return rope(
        x_BTNH,
        positions_BT,
        theta=c.local_rope_theta,
        fraction=c.rope_fraction,
    )
  return rope(
      x_BTNH,
      positions_BT,
      theta=c.rope_theta,
      fraction=c.rope_fraction,
      scaling=dict(c.rope_scaling),
  )


def _has_parts(facts: choices.Position, scheme: PositionScheme) -> bool:
  """Whether a scheme does what its facts say."""
  has_embed = scheme.embed is not None
  has_rotate = scheme.rotate is not None
  has_bias = scheme.bias is not None
  parts = (has_embed, has_rotate, has_bias)
  return parts == (facts.embedded, facts.rotary, facts.biased)


_SCHEMES = dict(
    rope=PositionScheme(rotate=_rotated),
    learned=PositionScheme(embed=_learned),
    learned_from_2=PositionScheme(embed=_learned),
    relative=PositionScheme(bias=RelativeBias),
    relative_per_layer=PositionScheme(bias=RelativeBias),
    sinusoidal=PositionScheme(embed=_sinusoidal),
    scaled_sinusoidal=PositionScheme(embed=_scaled_sinusoidal),
    none=PositionScheme(),
)
POSITIONS = choices.implement(
    'model.position',
    choices.POSITIONS,
    _SCHEMES,
    _has_parts,
)
