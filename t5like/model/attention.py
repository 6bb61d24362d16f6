"""Attention: masks from positions and segments, and the one place that picks a kernel."""
import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from t5like import choices
from t5like.errors import ConfigError
from t5like.kernels import relative_bias_attention, splash
from t5like.model.layers import POSITIONS, Dense, Norm, keep_share
from t5like.sharding import everywhere, in_use


def make_mask(query, key, causal):
  """[B, T, S] bool: which keys each query may see.

  `query` and `key` hold `positions` and `segments`, [B, T] and [B, S]; segment 0 is padding. Under
  `causal`, tokens whose `prefix` (bool, where it is given) is True see each other in both directions.
  """
  mask = query['segments'][:, :, None] == key['segments'][:, None, :]
  mask &= key['segments'][:, None, :] > 0
  if causal:
    seen = query['positions'][:, :, None] >= key['positions'][:, None, :]
    if 'prefix' in query:
      seen |= query['prefix'][:, :, None] & key['prefix'][:, None, :]
    mask &= seen
  return mask


def choose_kernel(asked, platform, causal, T, S, has_bias=False, has_dropout=False, H=128, dtype='bfloat16'):
  """Which kernel attention runs, 'splash', 'relative_bias', 'cudnn' or 'xla', and why: (name, reason).

  `asked`: model.attention; H: size of a head.
  """
  if asked not in ('auto', 'xla', 'splash', 'cudnn'):
    raise ConfigError(f'model.attention={asked!r}: there is no such kernel.')
  if asked == 'xla':
    return 'xla', 'model.attention asks for it'
  if has_dropout:
    return 'xla', 'only it drops attention probabilities'
  if causal and T != S:
    return 'xla', 'decoding token by token'
  if has_bias and (asked == 'cudnn' or asked == 'auto' and platform == 'gpu'):
    return 'xla', 'on GPUs only it adds a bias by distance'
  if asked == 'cudnn' or asked == 'auto' and platform == 'gpu':
    missing = 'this is no GPU' if platform != 'gpu' else _cudnn_lacks(T, S, H, dtype)
    return ('xla', missing) if missing else ('cudnn', 'a GPU')
  kernel = 'relative_bias' if has_bias else 'splash'
  if asked == 'splash':
    return kernel, 'model.attention asks for it'
  return (kernel, 'a TPU') if platform == 'tpu' else ('xla', f'this is a {platform}')


def _cudnn_lacks(T, S, H, dtype):
  """Why cuDNN's flash attention cannot run here, or ''."""
  if dtype not in ('bfloat16', 'float16'):
    return f'cuDNN has no kernel for {dtype}: model.dtype=bfloat16 would have one'
  if H % 8 or H > 128 or T % 2 or S % 2:
    return f'cuDNN needs heads of up to 128 in multiples of 8, and even lengths: here {H}, {T} and {S}'
  try:
    capability = jax.devices('gpu')[0].compute_capability
    return '' if float(capability) >= 8 else f'cuDNN needs compute capability 8.0, this GPU has {capability}'
  except (RuntimeError, AttributeError, ValueError):
    return 'no NVIDIA GPU is present'


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
  if kernel == 'relative_bias' or bias.ndim == 3:
    return bias
  return everywhere(relative_bias_attention.expand(bias, T, S), 'NT_')


def dot_product(q_BTNH, k_BSKH, v_BSKH, query, key, causal=True, scale=None, bias=None, keep_BNTS=None, kernel='auto'):
  """softmax(scale q k + bias) v, logits in fp32, N / K queries to each key-value head.

  `query` and `key` are those of `make_mask`; scale None: 1 / sqrt(H); `bias`: T + S values of each head by
  distance, query t having element t - s + S for key s, or what `bias_for` makes of them; `keep` multiplies
  probabilities (dropout); `kernel`: see `choose_kernel`. Batch and heads never mix, so each device works alone on
  what it has.
  """
  names = [n for n in ('positions', 'segments', 'prefix') if n in query and n in key]
  of = lambda info: {n: info[n] for n in names}
  scale = q_BTNH.shape[-1] ** -0.5 if scale is None else scale
  where, T, S = platform(), q_BTNH.shape[1], k_BSKH.shape[1]
  chosen, _ = choose_kernel(kernel, where, causal, T, S, bias is not None, keep_BNTS is not None,
                            q_BTNH.shape[3], str(q_BTNH.dtype))
  bias = None if bias is None else bias_for(chosen, bias, T, S)
  given = {n: x for n, x in dict(bias=bias, keep=keep_BNTS).items() if x is not None}
  dims = dict(bias='NR' if chosen == 'relative_bias' else 'NT_', keep='BNT_')

  # Each device has some queries, and all keys and values of its rows: gathered, if context spreads them.
  k_BSKH, v_BSKH = (everywhere(x, 'B_KH') for x in (k_BSKH, v_BSKH))
  key = {n: everywhere(x, 'B_') for n, x in of(key).items()}
  kernels, kernel_specs = {}, {}
  if chosen == 'splash':
    kernels, kernel_specs = splash.prepare(q_BTNH, k_BSKH, causal, causal and 'prefix' in names, where != 'tpu')

  def attend(q, k, v, query, key, given, kernels):
    if chosen == 'splash':
      return splash.attention(kernels, q, k, v, query, key, scale)
    if chosen == 'relative_bias':
      T = q.shape[1]  # this device's queries, the first of which is at `start`
      start = jax.lax.axis_index('context') * T if pieces() > 1 else 0
      bias_NR = jax.lax.dynamic_slice_in_dim(given['bias'], start, T + S, axis=1)
      return relative_bias_attention.attention(q, k, v, bias_NR, query, key, causal, scale, start=start,
                                               interpret=where != 'tpu')
    # Made here, in every layer: fused into the softmax it costs less than reading a stored mask.
    mask = make_mask(query, key, causal)[:, None]
    if 'keep' in given:
      return _with_dropout(q, k, v, mask, scale, **given)
    bias = given['bias'][None] if 'bias' in given else None
    # Within a segment later tokens have later positions, so cuDNN may skip what lies above the diagonal.
    lower_half = chosen == 'cudnn' and causal and 'prefix' not in query and q.shape[1] == k.shape[1]
    return jax.nn.dot_product_attention(q, k, v, bias=bias, mask=mask, scale=scale, is_causal=lower_half,
                                        implementation=chosen)
  in_specs = (in_use('BTNH'), in_use('B_KH'), in_use('B_KH'), {n: in_use('BT') for n in names},
              {n: in_use('B_') for n in names}, {n: in_use(dims[n]) for n in given}, kernel_specs)
  return jax.shard_map(attend, in_specs=in_specs, out_specs=in_specs[0], check_vma=chosen == 'xla')(
      q_BTNH, k_BSKH, v_BSKH, of(query), key, given, kernels)


def cached(q_BTNH, k_BKSH, v_BKSH, query, key, causal=True, scale=None, bias=None):
  """`dot_product` for decoding, whose keys and values lie with heads first: no product has to turn them round first.

  `bias` is [N, T, S]. Each device works alone on what it has.
  """
  names = [n for n in ('positions', 'segments', 'prefix') if n in query and n in key]
  scale = q_BTNH.shape[-1] ** -0.5 if scale is None else scale

  def attend(q_BTNH, k_BKSH, v_BKSH, query, key, bias):
    (B, T, N, H), K = q_BTNH.shape, k_BKSH.shape[1]
    q_BTKGH = q_BTNH.reshape(B, T, K, N // K, H)
    logits_BKGTS = scale * jnp.einsum('BTKGH,BKSH->BKGTS', q_BTKGH, k_BKSH, preferred_element_type=jnp.float32)
    if bias is not None:
      logits_BKGTS += bias.reshape(1, K, N // K, T, -1)
    mask_BTS = make_mask(query, key, causal)
    logits_BKGTS = jnp.where(mask_BTS[:, None, None], logits_BKGTS, 0.7 * jnp.finfo(jnp.float32).min)
    p_BKGTS = jax.nn.softmax(logits_BKGTS, axis=-1).astype(v_BKSH.dtype)
    return jnp.einsum('BKGTS,BKSH->BTKGH', p_BKGTS, v_BKSH).reshape(B, T, N, H)
  in_specs = (in_use('BTNH'), in_use('BKSH'), in_use('BKSH'), {n: in_use('BT') for n in names},
              {n: in_use('BS') for n in names}, None if bias is None else in_use('NT_'))
  of = lambda info: {n: info[n] for n in names}
  return jax.shard_map(attend, in_specs=in_specs, out_specs=in_specs[0])(
      q_BTNH, k_BKSH, v_BKSH, of(query), of(key), bias)


def _with_dropout(q_BTNH, k_BSKH, v_BSKH, mask_B1TS, scale, keep, bias=None):
  """Likewise, with dropout of probabilities, which jax.nn.dot_product_attention has not."""
  repeats = q_BTNH.shape[2] // k_BSKH.shape[2]
  k_BSNH, v_BSNH = (jnp.repeat(x, repeats, axis=2) for x in (k_BSKH, v_BSKH))
  logits_BNTS = jnp.einsum('BTNH,BSNH->BNTS', q_BTNH, k_BSNH, preferred_element_type=jnp.float32)
  logits_BNTS *= scale
  if bias is not None:
    logits_BNTS += bias[None]
  p_BNTS = jax.nn.softmax(jnp.where(mask_B1TS, logits_BNTS, -1e30), -1) * keep
  return jnp.einsum('BNTS,BSNH->BTNH', p_BNTS.astype(v_BSNH.dtype), v_BSNH)


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
    if decoding:
      return self.o(cached(q_BTNH, *kv, query, key, self.causal, None if c.scale_attention else 1.0, bias))
    keep_BNTS = None
    if random is not None and c.dropout:
      (B, T, N, _), S = q_BTNH.shape, kv[0].shape[1]
      shape = (B, N, 1 if choices.DROPOUT_STYLES[c.dropout_style].shared else T, S)
      keep_BNTS = keep_share(shape, c.dropout, random, in_use('BNT_'))
    out_BTNH = dot_product(checkpoint_name(q_BTNH, 'qkv'), *kv, query, key, self.causal,
                           None if c.scale_attention else 1.0, bias, keep_BNTS, c.attention)
    return self.o(checkpoint_name(out_BTNH, 'context'))
