"""The parts of a transformer block. Each layer takes its sizes from one ModelConfig `c`.

Suffixes and einsum letters: see `t5like/sharding.py`.
"""
import dataclasses
import math
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from t5like import choices, parameters
from t5like.parameters import Param
from t5like.sharding import at_rest, einsum, gather, gather_factor, in_use, weights

# --- Parameters ---------------------------------------------------------------------------------


# Each gives (standard deviation, whether the distribution is cut at two of them) of a matrix in its role.


def _fan_in(c, role, fan_in):
  """Outputs of blocks are scaled as by gpt2."""
  if role == 'positions':
    return 0.02, False
  inputs = c.d_model if role == 'embed' else fan_in
  return _output_scale(c, role) * inputs ** -0.5, False


def _gpt2(c, role, fan_in):
  """Radford et al. 2019, section 2.3: outputs of blocks are smaller, because 2 L of them are summed."""
  return 0.02 * _output_scale(c, role), False


def _output_scale(c, role):
  return c.residual_scale if role in OUTPUTS else 1.0


def _bert(c, role, fan_in):
  """Devlin et al. 2018, released code."""
  return 0.02, True


def _t5(c, role, fan_in):
  """T5X, whose query matrices carry the 1 / sqrt(head_dim) that its attention lacks."""
  if role in ('up', 'gate', 'down', 'head'):
    # A normal cut at two deviations has 0.8796 of its own: T5X makes up for it.
    return fan_in ** -0.5 / 0.87962566103423978, True
  stds = dict(embed=1.0, positions=1.0, q=(fan_in * c.head_dim) ** -0.5)
  return stds.get(role, fan_in ** -0.5), False


def _neox(c, role, fan_in):
  """Black et al. 2022, section 2.1: small_init, and wang_init for outputs of blocks."""
  if role in OUTPUTS:
    return 2 / c.num_layers * c.d_model ** -0.5, False
  return math.sqrt(2 / (5 * c.d_model)), False


OUTPUTS = ('o', 'down')  # roles of matrices whose products are added to the residual stream
INITS = choices.implement('model.init', choices.INITS, dict(fan_in=_fan_in, gpt2=_gpt2, bert=_bert, t5=_t5, neox=_neox))


def initial_std(c, role: str, fan_in: int) -> tuple[float, bool]:
  """(standard deviation, cut at two of them?) of a matrix in its role, by the family of `model.init`."""
  return INITS[c.init](c, role, fan_in)


def normal(key, c, declared: Param, std: float, cut: bool = False) -> nnx.Param:
  """A random parameter, laid out as at rest.

  Args:
    key: of jax.random.
    c: the ModelConfig, which knows the size of each letter.
    declared: what it is; its `dims` say its shape and layout.
    std: of N(0, std^2), from which it is drawn.
    cut: whether the distribution ends at 2 std.
  """
  shape = tuple(c.size(d) for d in declared.dims)
  layout = at_rest(declared.dims)
  if cut:
    x = jax.random.truncated_normal(key, -2, 2, shape, out_sharding=layout)
  else:
    x = jax.random.normal(key, shape, out_sharding=layout)
  return nnx.Param(std * x, declared=declared)


def constant(value: float, c, declared: Param) -> nnx.Param:
  """A parameter of fp32 numbers that are all `value` at first."""
  shape = tuple(c.size(d) for d in declared.dims)
  return nnx.Param(jnp.full(shape, value, jnp.float32, out_sharding=weights(declared.dims)), declared=declared)


def declare(module: nnx.Module, change) -> None:
  """Replaces the declaration of every parameter in a module by `change` of it."""
  for variable in jax.tree.leaves(module, is_leaf=lambda x: isinstance(x, nnx.Variable)):
    if 'declared' in variable.get_metadata():
      variable.set_metadata(declared=change(variable.get_metadata()['declared']))


def place(module: nnx.Module, **fields: str) -> nnx.Module:
  """The module, whose parameters are declared to be in this `layer` or `stack`."""
  declare(module, lambda declared: dataclasses.replace(declared, **fields))
  return module


def expand(w, x):
  """w with leading axes of size 1 up to x's rank (implicit rank promotion is an error in tests)."""
  return jnp.expand_dims(w, tuple(range(x.ndim - w.ndim)))


class Dense(nnx.Module):
  """einsum(equation, x, w) + b. The equation fixes the shape, initial scale and layout of w and b.

  result_dtype: what products are summed up and returned in; None: x's dtype.
  """

  def __init__(self, c, equation, key, role, use_bias=None, result_dtype=None):
    inputs, out = equation.split('->')
    x_dims, self.dims = inputs.split(',')
    fan_in = math.prod(c.size(d) for d in self.dims if d in x_dims and d not in out)
    self.c, self.equation, self.result_dtype = c, equation, result_dtype
    self.bias_dims = ''.join(d for d in self.dims if d in out)
    fan_dims = ''.join(d for d in self.dims if d not in out)
    self.w = normal(key, c, parameters.matrix(self.dims, fan_dims, role), *initial_std(c, role, fan_in))
    self.use_bias = c.use_bias if use_bias is None else use_bias
    if self.use_bias:
      self.b = constant(0, c, parameters.vector(self.bias_dims, role, 'bias'))
    self.adapted = c.lora_rank > 0 and role in c.lora_projections
    if self.adapted:  # not nnx.LoRA: its factors are plain matrices on one device, of one input and one output axis
      self.fan_dims = fan_dims
      first = parameters.matrix(f'{fan_dims}R', fan_dims, role, 'lora_a')
      second = parameters.matrix(f'R{self.bias_dims}', 'R', role, 'lora_b')
      self.lora_a = normal(jax.random.fold_in(key, 1), c, first, fan_in ** -0.5)
      self.lora_b = normal(key, c, second, 0.0)  # nothing is added yet

  def __call__(self, x):
    w = checkpoint_name(gather_factor(self.w[...], self.dims, self.c.dtype), 'weights')
    y = einsum(self.equation, x, w, preferred_element_type=self.result_dtype)
    if self.adapted:
      x_dims, out = self.equation.split(',')[0], self.equation.split('->')[1]
      a, b = (gather_factor(p[...], dims, self.c.dtype) for p, dims in (
          (self.lora_a, f'{self.fan_dims}R'), (self.lora_b, f'R{self.bias_dims}')))
      low = einsum(f'{x_dims},{self.fan_dims}R->{out[:2]}R', x, a)
      y += self.c.lora_alpha / self.c.lora_rank * einsum(f'{out[:2]}R,R{self.bias_dims}->{out}', low, b)
    if self.use_bias:
      y += expand(gather(self.b[...], self.bias_dims, self.c.dtype), y)
    return y


def merged(params: dict, declared: Mapping[str, Param], c) -> dict:
  """Parameters of the same model without adapters: each W with what its A and B add to it.

  Args:
    params: nested dict of arrays.
    declared: `model.parameters` of the model with adapters.
    c: its ModelConfig.
  """
  arrays = {'/'.join(str(key.key) for key in keys): x for keys, x in jax.tree_util.tree_leaves_with_path(params)}
  in_folder = {(path.rpartition('/')[0], param.kind): path for path, param in declared.items()}
  out: dict = {}
  for path, param in declared.items():
    if param.kind in parameters.ADAPTERS:
      continue
    folder, _, name = path.rpartition('/')
    x = arrays[path]
    if param.kind == 'matrix' and (folder, 'lora_a') in in_folder:
      a, b = arrays[in_folder[folder, 'lora_a']], arrays[in_folder[folder, 'lora_b']]
      x += c.lora_alpha / c.lora_rank * jax.vmap(_product)(a, b)
    inner = out
    for key in folder.split('/'):
      inner = inner.setdefault(key, {})
    inner[name] = x
  return out


def _product(a, b):
  """R is the last axis of A and the first of B."""
  return jnp.tensordot(a, b, 1)


def _as_it_is(y, axes):
  return y


def _centred(y, axes):
  return y - jnp.mean(y, axes, keepdims=True)


# What is divided by its root mean square: (y, fp32; axes) -> array like y.
NORMS = choices.implement('model.norm', choices.NORMS, dict(
    rmsnorm=_as_it_is, layernorm=_centred, layernorm_plain=_centred))


class Norm(nnx.Module):
  """RMSNorm (Zhang & Sennrich 2019) or LayerNorm (Ba et al. 2016) over the dimensions `dims`, fp32."""

  def __init__(self, c, dims='D'):
    self.c, self.dims = c, dims
    self.has_scale = choices.NORMS[c.norm].scale
    self.has_bias = choices.NORMS[c.norm].bias and c.use_bias
    if self.has_scale:
      self.scale = constant(1, c, parameters.vector(dims, 'norm', 'scale'))
    if self.has_bias:
      self.b = constant(0, c, parameters.vector(dims, 'norm', 'bias'))

  def __call__(self, x):
    c = self.c
    axes = tuple(range(-len(self.dims), 0))
    y = NORMS[c.norm](x.astype(jnp.float32), axes)
    y *= jax.lax.rsqrt(jnp.mean(jnp.square(y), axes, keepdims=True) + c.norm_eps)
    if self.has_scale:
      y *= expand(gather(self.scale[...], self.dims, jnp.float32), y)
    if self.has_bias:
      y += expand(gather(self.b[...], self.dims, jnp.float32), y)
    return y.astype(x.dtype)


# --- Tokens and positions -----------------------------------------------------------------------


class Embed(nnx.Module):
  """Token table [V, D]; read forwards it embeds, read backwards it predicts."""

  def __init__(self, c, key):
    self.c = c
    self.w = normal(key, c, parameters.matrix('VD', 'V', 'embed'), *initial_std(c, 'embed', c.d_model))

  def encode(self, tokens_BT):
    table_VD = gather(self.w[...], 'VD', self.c.dtype)
    return table_VD.at[tokens_BT].get(out_sharding=in_use('BTD'))

  def decode(self, x_BTD):
    return einsum('BTD,VD->BTV', x_BTD, gather_factor(self.w[...], 'VD', self.c.dtype),
                  preferred_element_type=jnp.float32)


class Table(nnx.Module):
  """A learned vector for each of few things, such as positions or segment types: [dim, D]."""
  ROLES = dict(T='positions', P='types')

  def __init__(self, c, dim, key):
    self.c, self.dims = c, f'{dim}D'
    declared = parameters.matrix(self.dims, dim, self.ROLES[dim])
    self.w = normal(key, c, declared, *initial_std(c, 'positions', c.d_model))

  def __call__(self, ids_BT):
    table = gather(self.w[...], self.dims, self.c.dtype)
    return table.at[ids_BT].get(out_sharding=in_use('BTD'))


class Sinusoids(nnx.Module):
  """sin and cos of positions at D / 2 wavelengths from 2 pi to 10,000 * 2 pi (Vaswani et al. 2017, 3.5).

  `scaled`: times one learned number, D^-1/2 at first (Hua et al. 2022, arXiv 2202.10447).
  """

  def __init__(self, c, scaled):
    self.c, self.scaled = c, scaled
    if scaled:
      self.scale = nnx.Param(jnp.full((), c.d_model ** -0.5, jnp.float32),
                             declared=parameters.vector('', 'positions', 'scale'))

  def __call__(self, positions_BT):
    half = self.c.d_model // 2
    rates = jnp.asarray(10_000.0 ** (-np.arange(half) / max(1, half - 1)), jnp.float32)
    angles_BTh = positions_BT[:, :, None].astype(jnp.float32) * rates[None, None]
    x_BTD = jnp.concatenate([jnp.sin(angles_BTh), jnp.cos(angles_BTh)], -1)
    return (x_BTD * self.scale[...] if self.scaled else x_BTD).astype(self.c.dtype)


class RelativeBias(nnx.Module):
  """What T5 adds to attention logits: a number per head and bucket of distances (Raffel et al. 2020, 2.1).

  32 buckets: the nearest distances one by one, farther ones in steps growing to 128; keys behind and
  ahead of the query share them where both are seen, else keys ahead fall into bucket 0.
  """
  BUCKETS, FARTHEST = 32, 128

  def __init__(self, c, bidirectional, key):
    self.c, self.bidirectional = c, bidirectional
    limit = math.sqrt(6 / (c.num_heads + self.BUCKETS))  # variance_scaling(1, 'fan_avg', 'uniform')
    self.w = nnx.Param(jax.random.uniform(key, (c.num_heads, self.BUCKETS), jnp.float32, -limit, limit,
                                          out_sharding=at_rest('N_')),
                       declared=parameters.matrix('N_', 'N', 'relative'))

  @classmethod
  def buckets(cls, distance, bidirectional):
    """Bucket of each int distance (key - query), any shape."""
    n, offset = cls.BUCKETS, 0
    if bidirectional:
      n //= 2
      offset = n * (distance > 0)
      distance = jnp.abs(distance)
    else:
      distance = -jnp.minimum(distance, 0)
    exact = n // 2
    # In integers, not logarithms: which distances begin a bucket must not depend on rounding.
    starts = [math.ceil(exact * (cls.FARTHEST / exact) ** (i / (n - exact)) - 1e-9) for i in range(1, n - exact)]
    far = exact + sum((distance >= s).astype(jnp.int32) for s in starts)
    return offset + jnp.where(distance < exact, distance, far)

  def __call__(self, T, S, at=0):
    """[N, T + S] fp32, of queries at slots at .. at + T: t has element t - s + S for key slot s of S.

    Slots and positions differ by a constant. `dot_product` makes what it needs of it.
    """
    distance_R = S - at - jnp.arange(T + S)
    one_hot = jax.nn.one_hot(self.buckets(distance_R, self.bidirectional), self.BUCKETS, dtype=jnp.float32)
    return jnp.einsum('NE,RE->NR', gather(self.w[...], 'N_', jnp.float32), one_hot, out_sharding=weights('NR'),
                      precision='highest')


def rope(x_BTNH, positions_BT, theta, fraction=1.0):
  """Rotary positions (Su et al. 2021, arXiv 2104.09864), halves convention: pairs (i, i + H/2).

  `fraction`: only that share of H, the first, turns (GPT-NeoX).
  """
  turning = int(x_BTNH.shape[-1] * fraction)
  half = turning // 2
  wavelengths = theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
  angle_BT1h = positions_BT[..., None, None].astype(jnp.float32) * wavelengths[None, None, None]
  sin, cos = jnp.sin(angle_BT1h), jnp.cos(angle_BT1h)
  a, b, rest = jnp.split(x_BTNH.astype(jnp.float32), (half, turning), -1)
  return jnp.concatenate([a * cos - b * sin, b * cos + a * sin, rest], -1).astype(x_BTNH.dtype)


@dataclasses.dataclass(frozen=True)
class PositionScheme:
  """What a model does to know the order of tokens, in any of three places; None: nothing there.

  embed: (c, key) -> module that gives each position [B, T] a vector [B, T, D].
  rotate: (x_BTNH, positions_BT, c) -> x_BTNH, of queries and keys.
  bias: (c, bidirectional, key) -> module of values added to attention logits, one for each distance: see RelativeBias.
  """
  embed: Callable[..., nnx.Module] | None = None
  rotate: Callable[..., jax.Array] | None = None
  bias: Callable[..., nnx.Module] | None = None


def _learned(c, key):
  return Table(c, 'T', key)


def _sinusoidal(c, key):
  return Sinusoids(c, scaled=False)


def _scaled_sinusoidal(c, key):
  return Sinusoids(c, scaled=True)


def _rotated(x_BTNH, positions_BT, c):
  return rope(x_BTNH, positions_BT, c.rope_theta, c.rope_fraction)


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


# --- Feed-forward, dropout ----------------------------------------------------------------------


def _exact_gelu(x):
  return jax.nn.gelu(x, approximate=False)


def _identity(x):
  return x


ACTIVATIONS = choices.implement('model.activation', choices.ACTIVATIONS, dict(
    relu=jax.nn.relu,
    gelu=_exact_gelu,
    gelu_tanh=jax.nn.gelu,
    swish=jax.nn.silu,
    glu=jax.nn.sigmoid,
    bilinear=_identity,
    reglu=jax.nn.relu,
    geglu=jax.nn.gelu,  # tanh form, as T5 v1.1
    swiglu=jax.nn.silu,
))


class MLP(nnx.Module):
  """down(act(up(x))), or down(act(gate(x)) * up(x)) for gated activations."""

  def __init__(self, c, key):
    k_up, k_gate, k_down = jax.random.split(key, 3)
    self.c, self.act, self.gated = c, ACTIVATIONS[c.activation], choices.ACTIVATIONS[c.activation].gated
    self.up = Dense(c, 'BTD,DF->BTF', k_up, 'up')
    if self.gated:
      self.gate = Dense(c, 'BTD,DF->BTF', k_gate, 'gate')
    self.down = Dense(c, 'BTF,FD->BTD', k_down, 'down')

  @jax.named_scope('mlp')
  def __call__(self, x_BTD, key=None):
    up_BTF = checkpoint_name(self.up(x_BTD), 'mlp')
    if self.gated:
      x_BTF = self.act(checkpoint_name(self.gate(x_BTD), 'mlp')) * up_BTF
    else:
      x_BTF = self.act(up_BTF)
    if choices.DROPOUT_STYLES[self.c.dropout_style].everywhere:
      x_BTF = dropout(x_BTF, self.c, key)
    return self.down(x_BTF)


def keep_share(shape, rate, key, layout):
  """Array of `shape` that is 0 with probability `rate`, else 1 / (1 - rate)."""
  # Uniform numbers rather than `bernoulli`, because they can be asked for in a layout.
  return (jax.random.uniform(key, shape, out_sharding=layout) >= rate) / (1 - rate)


def dropout(x_BTD, c, key):
  """Zeroes a share c.dropout of x and scales the rest up; the identity when key is None.

  In T5's style all positions of a row lose the same features.
  """
  if key is None or not c.dropout:
    return x_BTD
  shape, layout = x_BTD.shape, jax.typeof(x_BTD).sharding
  if choices.DROPOUT_STYLES[c.dropout_style].shared:
    shape = (shape[0], 1, shape[2])
  return x_BTD * keep_share(shape, c.dropout, key, layout).astype(x_BTD.dtype)
