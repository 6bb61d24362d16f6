"""Attention: the layer, on one device and on many, in training and in decoding."""
import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec as P

from t5like import choices, parameters
from t5like.choices import LayerKind
from t5like.model import attention_rows, context
from t5like.model.attention_choice import choose_kernel
from t5like.model.attention_kernels import (
    KERNELS,
    AttentionSpec,
    Call,
    Dropout,
    Info,
    spec_of,
    visible,
)
from t5like.model.attention_rows import Way
from t5like.model.config import ModelConfig
from t5like.model.context import Cut
from t5like.model.kernels import relative_bias_attention
from t5like.model.layers import Dense, Norm, constant, gathered_together, keep_share
from t5like.model.positions import POSITIONS
from t5like.model.softmax import capped, probabilities
from t5like.sharding import everywhere, gather, in_use, platform

GLOBAL = choices.LAYERS['global']
MASKED = 0.7 * jnp.finfo(jnp.float32).min  # logit of a key that is not seen


class Matrices(NamedTuple):
  """Gathered matrices of a layer; None: each is gathered where it is used."""
  q: jax.Array | None = None
  k: jax.Array | None = None
  v: jax.Array | None = None
  o: jax.Array | None = None


ALONE = Matrices()


class KeysValues(NamedTuple):
  """What is attended to: [B, S, K, H] each, or [B, K, S, H] in caches."""
  keys: jax.Array
  values: jax.Array


def bias_for(kernel: str, bias: jax.Array, queries: Cut, S: int) -> jax.Array:
  """The bias as a kernel takes it: [N, T + S] values by distance as they are, or [N, T, S] for XLA.

  Made once for all layers: what is [N, T, S] already stays as it is.

  Args:
    kernel: a key of KERNELS.
    bias: by distance.
    queries: how the mesh cuts rows of queries.
    S: keys of a row.
  """
  if KERNELS[kernel].bias_by_distance or bias.ndim == 3:
    return bias
  bias_NTS = relative_bias_attention.expand(bias, queries.length, S)
  bias_NTS = context.in_pieces(bias_NTS, 1, queries)
  return everywhere(bias_NTS, 'NT_')


class Drop(NamedTuple):
  """Dropout of probabilities: a key of jax.random, and how."""
  key: jax.Array
  how: Dropout

  def kept(self, q_BTNH: jax.Array, S: int) -> jax.Array:
    """By what probabilities, [B, N, T or 1, S], are multiplied."""
    B, T, N, _ = q_BTNH.shape
    if self.how.alike:
      T = 1
    return keep_share((B, N, T, S), self.how.rate, self.key, in_use('BNT_'))


def dot_product(
    q_BTNH: jax.Array,
    k_BSKH: jax.Array,
    v_BSKH: jax.Array,
    query: Info,
    key: Info,
    spec: AttentionSpec,
    scale: float | None = None,
    bias: jax.Array | None = None,
    drop: Drop | None = None,
    kernel: str = 'auto',
    sinks_N: jax.Array | None = None,
    context_attention: str = 'auto',
) -> jax.Array:
  """softmax(scale q k + bias) v, [B, T, N, H], logits in fp32, N / K queries to each key-value head.

  Batch and heads never mix, so each device works alone on what it has.

  Args:
    q_BTNH: queries.
    k_BSKH: keys.
    v_BSKH: values.
    query: of the queries' tokens, see `make_mask`.
    key: of the keys' tokens.
    spec: what is computed; its head size, dtype, prefix, bias and dropout are read from the arrays here.
    scale: of logits; None: 1 / sqrt(H).
    bias: T + S values of each head by distance, query t having element t - s + S for key s, or what `bias_for` makes of
      them.
    drop: how probabilities are dropped; None: they are not.
    kernel: model.attention, see `choose_kernel`.
    sinks_N: logits that join the softmax, fp32; None: there are none.
    context_attention: model.context_attention, see `attention_rows.choose`.
  """
  names = _shared(query, key)
  T = q_BTNH.shape[1]
  S = k_BSKH.shape[1]
  has_prefix = 'prefix' in names
  spec = _of_arrays(spec, q_BTNH, has_prefix, bias, drop, sinks_N)
  chosen, _ = choose_kernel(kernel, platform(), spec)
  call = Call(
      spec,
      scale=_scale(scale, q_BTNH.shape[3]),
      queries=context.cut_of(query, T),
      keys=context.cut_of(key, S),
      interpret=platform() != 'tpu',
      drop=drop and drop.how,
  )
  extras, extra_specs = _extras(chosen, q_BTNH, bias, drop, sinks_N, call.queries, S)
  query = _picked(query, names)
  key = _picked(key, names)
  way = attention_rows.choose(context_attention, chosen, call, k_BSKH)
  if way.prepare is not None:
    prepared, prepared_specs = way.prepare(call, q_BTNH, k_BSKH, has_prefix)
    extras['prepared'] = prepared
    extra_specs['prepared'] = prepared_specs
  on_devices = _on_devices(way, call, names, extra_specs)
  out_BTNH = on_devices(q_BTNH, k_BSKH, v_BSKH, query, key, extras)
  if KERNELS[chosen].names_context:
    return out_BTNH
  return checkpoint_name(out_BTNH, 'context')


def _on_devices(way: Way, call: Call, names: Sequence[str], extra_specs: dict[str, Any]) -> Any:
  """A kernel's function of arrays that are spread over the mesh.

  Args:
    way: what computes, on one device.
    call: what is the same for all tokens.
    names: what is known of queries and keys.
    extra_specs: how `extras` are spread.
  """

  def attend(
      q: jax.Array,
      k: jax.Array,
      v: jax.Array,
      query: Info,
      key: Info,
      extras: dict[str, Any],
  ) -> jax.Array:
    return way.run(call, q, k, v, query, key, extras)

  in_specs = (
      in_use('BTNH'),
      in_use('BSKH'),
      in_use('BSKH'),
      dict.fromkeys(names, in_use('BT')),
      dict.fromkeys(names, in_use('BS')),
      extra_specs,
  )
  return jax.shard_map(
      attend,
      in_specs=in_specs,
      out_specs=in_use('BTNH'),
      check_vma=way.checks_layouts,
  )


def _of_arrays(
    spec: AttentionSpec,
    q_BTNH: jax.Array,
    has_prefix: bool,
    bias: jax.Array | None,
    drop: Drop | None,
    sinks_N: jax.Array | None,
) -> AttentionSpec:
  """A spec with what arrays say."""
  return dataclasses.replace(
      spec,
      head_dim=q_BTNH.shape[3],
      dtype=str(q_BTNH.dtype),
      prefix=has_prefix and spec.causal,
      bias=bias is not None,
      dropout=drop is not None,
      sinks=sinks_N is not None,
  )


def _extras(
    kernel: str,
    q_BTNH: jax.Array,
    bias: jax.Array | None,
    drop: Drop | None,
    sinks_N: jax.Array | None,
    queries: Cut,
    S: int,
) -> tuple[dict[str, Any], dict[str, Any]]:
  """(arrays `bias`, `keep` or `seed`, and `sinks` where there are any, how they are spread), as a kernel takes them."""
  extras: dict[str, Any] = {}
  specs: dict[str, Any] = {}
  if bias is not None:
    extras['bias'] = bias_for(kernel, bias, queries, S)
    if KERNELS[kernel].bias_by_distance:
      specs['bias'] = in_use('NR')
    else:
      specs['bias'] = in_use('NT_')
  if drop is not None and KERNELS[kernel].drops_by_seed:
    bits = jax.random.bits(drop.key, (), jnp.uint32)
    extras['seed'] = jax.lax.bitcast_convert_type(bits, jnp.int32)
    specs['seed'] = P()
  elif drop is not None:
    extras['keep'] = drop.kept(q_BTNH, S)
    specs['keep'] = in_use('BNT_')
  if sinks_N is not None:
    extras['sinks'] = sinks_N
    specs['sinks'] = in_use('N')
  return extras, specs


def _scale(scale: float | None, head_dim: int) -> float:
  if scale is None:
    return head_dim ** -0.5
  return scale


def _shared(query: Info, key: Info) -> list[str]:
  """What is known of both queries and keys, in a fixed order."""
  names = []
  for name in ('positions', 'segments', 'prefix'):
    if name in query and name in key:
      names.append(name)
  return names


def _picked(info: Info, names: Sequence[str]) -> Info:
  return {name: info[name] for name in names}


def cached(
    q_BTNH: jax.Array,
    k_BKSH: jax.Array,
    v_BKSH: jax.Array,
    query: Info,
    key: Info,
    spec: AttentionSpec,
    scale: float | None = None,
    bias: jax.Array | None = None,
    sinks_N: jax.Array | None = None,
) -> jax.Array:
  """`dot_product` for decoding, whose keys and values lie with heads first: no product has to turn them round first.

  `spec`: what is computed; `bias` is [N, T, S]. Each device works alone on what it has.
  """
  names = _shared(query, key)
  logit_scale = _scale(scale, q_BTNH.shape[-1])

  def attend(
      q_BTNH: jax.Array,
      k_BKSH: jax.Array,
      v_BKSH: jax.Array,
      query: Info,
      key: Info,
      bias_NTS: jax.Array | None,
      sinks_N: jax.Array | None,
  ) -> jax.Array:
    mask_BTS = visible(spec, query, key)
    return _cached(q_BTNH, k_BKSH, v_BKSH, mask_BTS, spec, logit_scale, bias_NTS, sinks_N)

  bias_spec = None
  if bias is not None:
    bias_spec = in_use('NT_')
  sinks_spec = None
  if sinks_N is not None:
    sinks_spec = in_use('N')
  in_specs = (
      in_use('BTNH'),
      in_use('BKSH'),
      in_use('BKSH'),
      dict.fromkeys(names, in_use('BT')),
      dict.fromkeys(names, in_use('BS')),
      bias_spec,
      sinks_spec,
  )
  on_devices: Any = jax.shard_map(attend, in_specs=in_specs, out_specs=in_use('BTNH'))
  query = _picked(query, names)
  key = _picked(key, names)
  return on_devices(q_BTNH, k_BKSH, v_BKSH, query, key, bias, sinks_N)


def _cached(
    q_BTNH: jax.Array,
    k_BKSH: jax.Array,
    v_BKSH: jax.Array,
    mask_BTS: jax.Array,
    spec: AttentionSpec,
    scale: float,
    bias_NTS: jax.Array | None,
    sinks_N: jax.Array | None,
) -> jax.Array:
  """`cached` on one device, [B, T, N, H]."""
  B, T, N, H = q_BTNH.shape
  K = k_BKSH.shape[1]
  group = N // K
  q_BTKGH = q_BTNH.reshape(B, T, K, group, H)
  products_BKGTS = jnp.einsum('BTKGH,BKSH->BKGTS', q_BTKGH, k_BKSH, preferred_element_type=jnp.float32)
  logits_BKGTS = scale * products_BKGTS
  if bias_NTS is not None:
    logits_BKGTS += bias_NTS.reshape(1, K, group, T, -1)
  logits_BKGTS = capped(logits_BKGTS, spec.softcap)
  logits_BKGTS = jnp.where(mask_BTS[:, None, None], logits_BKGTS, MASKED)
  sinks_1KG11 = None
  if sinks_N is not None:
    sinks_1KG11 = sinks_N.reshape(1, K, group, 1, 1)
  p_BKGTS = probabilities(logits_BKGTS, sinks_1KG11)
  p_BKGTS = p_BKGTS.astype(v_BKSH.dtype)
  out_BTKGH = jnp.einsum('BKGTS,BKSH->BTKGH', p_BKGTS, v_BKSH)
  return out_BTKGH.reshape(B, T, N, H)


class Attention(nnx.Module):
  """Multi-head attention with grouped key-value heads (Ainslie et al. 2023, arXiv 2305.13245)."""

  def __init__(
      self,
      c: ModelConfig,
      key: jax.Array,
      causal: bool,
      cross: bool = False,
  ) -> None:
    """Makes the parameters.

    Args:
      c: the ModelConfig.
      key: of jax.random.
      causal: queries see no later keys.
      cross: keys and values come from another stack, whose positions mean nothing here.
    """
    k_q, k_k, k_v, k_o = jax.random.split(key, 4)
    self.c = c
    self.causal = causal
    self.is_rotary = choices.POSITIONS[c.position].rotary and not cross
    qkv_bias = c.use_bias or c.qkv_bias
    self.q = Dense(c, 'BTD,DNH->BTNH', k_q, 'q', use_bias=qkv_bias)
    self.k = Dense(c, 'BSD,DKH->BSKH', k_k, 'k', use_bias=qkv_bias)
    self.v = Dense(c, 'BSD,DKH->BSKH', k_v, 'v', use_bias=qkv_bias)
    self.o = Dense(c, 'BTNH,NHD->BTD', k_o, 'o')
    dims = choices.QK_NORMS[c.qk_norm]
    self.is_normed = bool(dims.query)
    if self.is_normed:
      self.q_norm = Norm(c, dims.query)
      self.k_norm = Norm(c, dims.key)
    sinks = choices.ATTENTION_SINKS[c.attention_sinks]
    self.has_sinks = bool(sinks.dims)
    if self.has_sinks:
      declared = parameters.vector(sinks.dims, 'sinks', 'bias')
      self.sinks = constant(0, c, declared)

  @jax.named_scope('attention')
  def matrices(self) -> Matrices:
    """All of them, gathered together."""
    layers = (self.q, self.k, self.v, self.o)
    return Matrices(*gathered_together(layers))

  @jax.named_scope('attention')
  def keys_values(
      self,
      x_BSD: jax.Array,
      positions_BS: jax.Array,
      kind: LayerKind = GLOBAL,
      matrices: Matrices = ALONE,
  ) -> KeysValues:
    """Keys and values, [B, S, K, H], of what is attended to, in a layer of this kind."""
    k = self.k(x_BSD, matrices.k)
    v = self.v(x_BSD, matrices.v)
    if self.is_normed:
      k = self.k_norm(k)
    if self.is_rotary and kind.rotated:
      k = self._rotated(k, positions_BS, kind)
    k = checkpoint_name(k, 'qkv')
    v = checkpoint_name(v, 'qkv')
    return KeysValues(k, v)

  @jax.named_scope('attention')
  def __call__(
      self,
      x_BTD: jax.Array,
      kv: KeysValues,
      query: Info,
      key: Info,
      bias: jax.Array | None = None,
      random: jax.Array | None = None,
      decoding: bool = False,
      kind: LayerKind = GLOBAL,
      matrices: Matrices = ALONE,
  ) -> jax.Array:
    """[B, T, D].

    Args:
      x_BTD: of which queries are made.
      kv: keys and values, with heads first if `decoding`.
      query: positions and segments of x.
      key: those of the keys and values.
      bias: see `dot_product` and `cached`.
      random: key of dropout; None: there is none.
      decoding: whether keys and values are those of a cache.
      kind: of the layer.
      matrices: of `matrices`.
    """
    q_BTNH = self.q(x_BTD, matrices.q)
    if self.is_normed:
      q_BTNH = self.q_norm(q_BTNH)
    if self.is_rotary and kind.rotated:
      q_BTNH = self._rotated(q_BTNH, query['positions'], kind)
    scale = self.c.logit_scale
    k, v = kv
    T = query['positions'].shape[1]
    S = key['positions'].shape[1]
    spec = spec_of(self.c, self.causal, T, S, kind=kind)
    sinks_N = None
    if self.has_sinks:
      sinks_N = gather(self.sinks[...], 'N', jnp.float32)
    if decoding:
      out_BTNH = cached(q_BTNH, k, v, query, key, spec, scale, bias, sinks_N)
      return self.o(out_BTNH, matrices.o)
    drop = self._drop(random)
    q_BTNH = checkpoint_name(q_BTNH, 'qkv')
    kernel = self.c.attention
    context_attention = self.c.context_attention
    out_BTNH = dot_product(
        q_BTNH,
        k,
        v,
        query,
        key,
        spec,
        scale,
        bias,
        drop,
        kernel,
        sinks_N,
        context_attention,
    )
    return self.o(out_BTNH, matrices.o)

  def _rotated(self, x_BTNH: jax.Array, positions_BT: jax.Array, kind: LayerKind) -> jax.Array:
    rotate = POSITIONS[self.c.position].rotate
    assert rotate is not None, 'choices.implement compares schemes with their facts'
    return rotate(x_BTNH, positions_BT, self.c, kind)

  def _drop(self, random: jax.Array | None) -> Drop | None:
    """How probabilities are dropped; None: they are not."""
    rate = self.c.dropout
    if random is None or not rate:
      return None
    style = choices.DROPOUT_STYLES[self.c.dropout_style]
    return Drop(random, Dropout(rate, style.shared))
