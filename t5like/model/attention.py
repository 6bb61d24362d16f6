"""Attention: the layer, on one device and on many, in training and in decoding."""
import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from t5like import choices
from t5like.model.attention_kernels import KERNELS, AttentionSpec, Call, choose_kernel, spec_of, visible
from t5like.model.kernels import relative_bias_attention
from t5like.model.layers import POSITIONS, Dense, Norm, keep_share
from t5like.sharding import everywhere, in_use


def platform():
  """'tpu', 'gpu' or 'cpu': of the mesh in force, which may be one of devices that are not here."""
  device = jax.sharding.get_abstract_mesh().abstract_device
  return device.platform if device else jax.default_backend()


def pieces():
  """Into how many pieces the mesh in force cuts rows of queries."""
  mesh = jax.sharding.get_abstract_mesh()
  return 1 if mesh.empty else mesh.shape['context']


def bias_for(kernel, bias, T, S):
  """[N, T + S] values by distance as a kernel takes them: like this, or for XLA [N, T, S], made once for all layers."""
  if KERNELS[kernel].bias_by_distance or bias.ndim == 3:
    return bias
  return everywhere(relative_bias_attention.expand(bias, T, S), 'NT_')


def dot_product(q_BTNH, k_BSKH, v_BSKH, query, key, spec: AttentionSpec, scale=None, bias=None, keep_BNTS=None,
                kernel='auto'):
  """softmax(scale q k + bias) v, logits in fp32, N / K queries to each key-value head.

  `query` and `key` are those of `make_mask`; `spec`: its head size, dtype, prefix, bias and dropout are read from the
  arrays here; scale None: 1 / sqrt(H); `bias`: T + S values of each head by distance, query t having element t - s + S
  for key s, or what `bias_for` makes of them; `keep` multiplies probabilities (dropout); `kernel`: see `choose_kernel`.
  Batch and heads never mix, so each device works alone on what it has.
  """
  names = _shared(query, key)
  T, S, H = q_BTNH.shape[1], k_BSKH.shape[1], q_BTNH.shape[3]
  spec = dataclasses.replace(spec, head_dim=H, dtype=str(q_BTNH.dtype), prefix='prefix' in names and spec.causal,
                             bias=bias is not None, dropout=keep_BNTS is not None)
  chosen, _ = choose_kernel(kernel, platform(), spec)
  run = KERNELS[chosen]
  scale = H ** -0.5 if scale is None else scale
  call = Call(spec, scale, pieces(), interpret=platform() != 'tpu')

  extras, dims = {}, {}
  if bias is not None:
    extras['bias'] = bias_for(chosen, bias, T, S)
    dims['bias'] = in_use('NR' if run.bias_by_distance else 'NT_')
  if keep_BNTS is not None:
    extras['keep'] = keep_BNTS
    dims['keep'] = in_use('BNT_')
  # Each device has some queries, and all keys and values of its rows: gathered, if context spreads them.
  k_BSKH = everywhere(k_BSKH, 'B_KH')
  v_BSKH = everywhere(v_BSKH, 'B_KH')
  key = {name: everywhere(key[name], 'B_') for name in names}
  query = {name: query[name] for name in names}
  if run.prepare is not None:
    extras['prepared'], dims['prepared'] = run.prepare(call, q_BTNH, k_BSKH, 'prefix' in names)

  def attend(q, k, v, query, key, extras):
    return run.run(call, q, k, v, query, key, extras)
  in_specs = (in_use('BTNH'), in_use('B_KH'), in_use('B_KH'), {name: in_use('BT') for name in names},
              {name: in_use('B_') for name in names}, dims)
  return jax.shard_map(attend, in_specs=in_specs, out_specs=in_specs[0], check_vma=run.checks_layouts)(
      q_BTNH, k_BSKH, v_BSKH, query, key, extras)


def _shared(query, key):
  """What is known of both queries and keys, in a fixed order."""
  return [name for name in ('positions', 'segments', 'prefix') if name in query and name in key]


def cached(q_BTNH, k_BKSH, v_BKSH, query, key, spec: AttentionSpec, scale=None, bias=None):
  """`dot_product` for decoding, whose keys and values lie with heads first: no product has to turn them round first.

  `bias` is [N, T, S]. Each device works alone on what it has.
  """
  names = _shared(query, key)
  scale = q_BTNH.shape[-1] ** -0.5 if scale is None else scale

  def attend(q_BTNH, k_BKSH, v_BKSH, query, key, bias):
    (B, T, N, H), K = q_BTNH.shape, k_BKSH.shape[1]
    q_BTKGH = q_BTNH.reshape(B, T, K, N // K, H)
    logits_BKGTS = scale * jnp.einsum('BTKGH,BKSH->BKGTS', q_BTKGH, k_BKSH, preferred_element_type=jnp.float32)
    if bias is not None:
      logits_BKGTS += bias.reshape(1, K, N // K, T, -1)
    mask_BTS = visible(spec, query, key)
    logits_BKGTS = jnp.where(mask_BTS[:, None, None], logits_BKGTS, 0.7 * jnp.finfo(jnp.float32).min)
    p_BKGTS = jax.nn.softmax(logits_BKGTS, axis=-1).astype(v_BKSH.dtype)
    return jnp.einsum('BKGTS,BKSH->BTKGH', p_BKGTS, v_BKSH).reshape(B, T, N, H)
  in_specs = (in_use('BTNH'), in_use('BKSH'), in_use('BKSH'), {n: in_use('BT') for n in names},
              {n: in_use('BS') for n in names}, None if bias is None else in_use('NT_'))
  of = lambda info: {n: info[n] for n in names}
  return jax.shard_map(attend, in_specs=in_specs, out_specs=in_specs[0])(
      q_BTNH, k_BKSH, v_BKSH, of(query), of(key), bias)


class Attention(nnx.Module):
  """Multi-head attention with grouped key-value heads (Ainslie et al. 2023, arXiv 2305.13245).

  `cross`: keys and values come from another stack, whose positions mean nothing here.
  """

  def __init__(self, c, key, causal, cross=False):
    k_q, k_k, k_v, k_o = jax.random.split(key, 4)
    self.c, self.causal = c, causal
    self.is_rotated = choices.POSITIONS[c.position].rotary and not cross
    self.q = Dense(c, 'BTD,DNH->BTNH', k_q, 'q')
    self.k = Dense(c, 'BSD,DKH->BSKH', k_k, 'k')
    self.v = Dense(c, 'BSD,DKH->BSKH', k_v, 'v')
    self.o = Dense(c, 'BTNH,NHD->BTD', k_o, 'o')
    dims = choices.QK_NORMS[c.qk_norm]
    self.is_normed = bool(dims.query)
    if self.is_normed:
      self.q_norm = Norm(c, dims.query)
      self.k_norm = Norm(c, dims.key)

  @jax.named_scope('attention')
  def keys_values(self, x_BSD, positions_BS):
    """(k_BSKH, v_BSKH) of what is attended to."""
    c, k, v = self.c, self.k(x_BSD), self.v(x_BSD)
    if self.is_normed:
      k = self.k_norm(k)
    if self.is_rotated:
      k = POSITIONS[c.position].rotate(k, positions_BS, c)
    return checkpoint_name(k, 'qkv'), checkpoint_name(v, 'qkv')

  @jax.named_scope('attention')
  def __call__(self, x_BTD, kv, query, key, bias=None, random=None, decoding=False):
    """[B, T, D]. `query` and `key` hold positions and segments of x and of the keys and values `kv`, which have their
    heads first if `decoding`."""
    c, q_BTNH = self.c, self.q(x_BTD)
    if self.is_normed:
      q_BTNH = self.q_norm(q_BTNH)
    if self.is_rotated:
      q_BTNH = POSITIONS[c.position].rotate(q_BTNH, query['positions'], c)
    spec = spec_of(c, self.causal, query['positions'].shape[1], key['positions'].shape[1])
    if decoding:
      return self.o(cached(q_BTNH, *kv, query, key, spec, None if c.scale_attention else 1.0, bias))
    keep_BNTS = None
    if random is not None and c.dropout:
      (B, T, N, _), S = q_BTNH.shape, kv[0].shape[1]
      shape = (B, N, 1 if choices.DROPOUT_STYLES[c.dropout_style].shared else T, S)
      keep_BNTS = keep_share(shape, c.dropout, random, in_use('BNT_'))
    out_BTNH = dot_product(checkpoint_name(q_BTNH, 'qkv'), *kv, query, key, spec,
                           None if c.scale_attention else 1.0, bias, keep_BNTS, c.attention)
    return self.o(checkpoint_name(out_BTNH, 'context'))
