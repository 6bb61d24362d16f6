"""Attention kernels: what each can compute, and how it is called; attention_choice.py chooses one.

A kernel lists the features of an AttentionSpec that it implements. One that it does not list it does not have: so a
new feature makes all kernels decline until somebody has taught them, rather than be left out of what they compute.
"""
import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from t5like import choices
from t5like.model.context import Cut
from t5like.model.kernels import cpu_blocks, cudnn, relative_bias_rows, splash, xla
from t5like.model.kernels.relative_bias_attention import Drop
from t5like.sharding import ROWS, on_one_cpu

Window = tuple[int, int]
Info = Mapping[str, jax.Array]  # positions, segments and perhaps prefix of queries or keys
Extras = Mapping[str, Any]  # arrays `bias`, `sinks`, `keep` or `seed` where there are any; `prepared`: of `prepare`


@dataclasses.dataclass(frozen=True)
class AttentionSpec:
  """What attention has to compute. Fields with a default are features, absent at that default.

  causal: queries see no later keys.
  queries, keys: how many of them, T and S.
  head_dim: size of a head.
  dtype: of queries, keys and values.
  prefix: tokens of prefixes see each other in both directions under `causal`.
  bias: values by distance are added to logits.
  sinks: a logit for each head of queries joins the softmax, neither biased nor capped.
  dropout: probabilities are dropped.
  window: (positions before its own, positions after it) that a query sees at most; None: all.
  softcap: logits, biased ones too, are softcap tanh(logits / softcap); 0: they are not.
  """
  causal: bool
  queries: int
  keys: int
  _: dataclasses.KW_ONLY
  head_dim: int = 128
  dtype: str = 'bfloat16'
  prefix: bool = False
  dropout: bool = False
  bias: bool = False
  sinks: bool = False
  window: Window | None = None
  softcap: float = 0.0

  @property
  def features(self) -> list[str]:
    """Names of the features that are present; 'decoding': queries are at the end of longer rows of keys."""
    present = []
    for field in dataclasses.fields(self):
      if field.default is dataclasses.MISSING or field.name in SIZES:
        continue
      value = getattr(self, field.name)
      if value != field.default:
        present.append(field.name)
    if self.causal and self.queries != self.keys:
      present.append('decoding')
    return present


SIZES = ('head_dim', 'dtype')  # fields with a default that are no features


def spec_of(
    c: Any,
    causal: bool,
    queries: int,
    keys: int,
    *,
    kind: choices.LayerKind = choices.LAYERS['global'],
    prefix: bool = False,
    dropout: bool = False,
    bias: bool = False,
) -> AttentionSpec:
  """The AttentionSpec of a model; the one place that reads what its config says of attention.

  Args:
    c: a ModelConfig, or config.model with every size known.
    causal, queries, keys, prefix, dropout, bias: as of AttentionSpec, which a layer and its arrays say.
    kind: of the layer; cross-attention, which has no window, is of the default.
  """
  window = None
  if kind.windowed:
    window = c.window_of(causal)
  sinks = choices.ATTENTION_SINKS[c.attention_sinks]
  return AttentionSpec(
      causal,
      queries,
      keys,
      head_dim=c.head_dim,
      dtype=c.dtype,
      prefix=prefix,
      dropout=dropout,
      bias=bias,
      sinks=bool(sinks.dims),
      window=window,
      softcap=c.attention_softcap,
  )


@dataclasses.dataclass(frozen=True)
class Dropout:
  """rate: share of probabilities that are dropped; alike: all queries of a row drop the same keys."""
  rate: float
  alike: bool


@dataclasses.dataclass(frozen=True)
class Call:
  """One call on one device: what is the same for all its tokens.

  spec: what is computed; the queries of one device may be fewer than spec.queries.
  scale: of logits.
  queries, keys: how the mesh cuts rows of them.
  interpret: not on a TPU.
  drop: how probabilities are dropped; None: they are not.
  """
  spec: AttentionSpec
  scale: float
  queries: Cut
  keys: Cut
  interpret: bool
  drop: Dropout | None = None


@dataclasses.dataclass(frozen=True)
class Kernel:
  """One way to compute attention.

  features: of an AttentionSpec, those that it implements.
  lacks: (spec, platform) -> why it cannot run for other reasons than features, or ''.
  run: (Call, q_BTNH, k_BSKH, v_BSKH, query, key, extras) -> [B, T, N, H], of the queries of one device and all keys, in
    order; see Extras.
  prepare: (Call, q_BTNH, k_BSKH, has_prefix) -> (what all devices need for `run`, its specs for `shard_map`).
  reasons: why it declines certain features, in words; otherwise they are only named.
  bias_by_distance: it takes the bias as [N, T + S] values by distance rather than [N, T, S].
  drops_by_seed: it drops probabilities by their places and a seed (kernels/dropped.py), rather than by an array `keep`.
  checks_layouts: `shard_map` can check the layout of its result.
  names_context: what its backward pass needs beside queries, keys and values is named 'context' inside of it, for
    model.remat; of others the result is.
  """
  features: frozenset[str]
  lacks: Callable[[AttentionSpec, str], str]
  run: Callable[..., jax.Array]
  prepare: Callable[..., tuple[Any, Any]] | None = None
  reasons: Mapping[str, str] = dataclasses.field(default_factory=dict)
  bias_by_distance: bool = False
  drops_by_seed: bool = False
  checks_layouts: bool = False
  names_context: bool = False

  def declines(self, spec: AttentionSpec, platform: str) -> str:
    """Why it cannot compute this, or ''."""
    for feature in spec.features:
      if feature in self.features:
        continue
      if feature in self.reasons:
        return self.reasons[feature]
      return f'only it implements {feature} here'
    return self.lacks(spec, platform)


def make_mask(query: Info, key: Info, causal: bool) -> jax.Array:
  """[B, T, S] bool: which keys each query may see.

  `query` and `key` hold `positions` and `segments`, [B, T] and [B, S]; segment 0 is padding. Under
  `causal`, tokens whose `prefix` (bool, where it is given) is True see each other in both directions.
  """
  mask = _of_queries(query, 'segments') == _of_keys(key, 'segments')
  mask &= _of_keys(key, 'segments') > 0
  if causal:
    seen = _of_queries(query, 'positions') >= _of_keys(key, 'positions')
    if 'prefix' in query:
      seen |= _of_queries(query, 'prefix') & _of_keys(key, 'prefix')
    mask &= seen
  return mask


def _of_queries(query: Info, name: str) -> jax.Array:
  """[B, T, 1], to be compared with what keys have."""
  return query[name][:, :, None]


def _of_keys(key: Info, name: str) -> jax.Array:
  """[B, 1, S]."""
  return key[name][:, None, :]


def _within(window: Window, query: Info, key: Info) -> jax.Array:
  before, after = window
  distance_BTS = _of_queries(query, 'positions') - _of_keys(key, 'positions')
  is_near_before = distance_BTS <= before
  is_near_after = -distance_BTS <= after
  return is_near_before & is_near_after


# Features that hide keys: name -> (value of the feature, query, key) -> [B, T, S] bool, what it leaves visible.
MASKS: dict[str, Callable[[Any, Info, Info], jax.Array]] = dict(window=_within)

for _name in MASKS:
  if _name not in {field.name for field in dataclasses.fields(AttentionSpec)}:
    raise NotImplementedError(f'MASKS has {_name!r}, which is no feature of AttentionSpec.')


def visible(spec: AttentionSpec, query: Info, key: Info) -> jax.Array:
  """The mask of a spec, [B, T, S] bool; see `make_mask`."""
  mask = make_mask(query, key, spec.causal)
  for feature in spec.features:
    if feature in MASKS:
      value = getattr(spec, feature)
      mask &= MASKS[feature](value, query, key)
  return mask


def _lacks_nothing(spec: AttentionSpec, platform: str) -> str:
  return ''


def _needs_bias(spec: AttentionSpec, platform: str) -> str:
  if spec.bias or spec.dropout:
    return ''
  return 'the kernel with a bias needs one'


def _cudnn_lacks(spec: AttentionSpec, platform: str) -> str:
  return cudnn.lacks(platform, spec.head_dim, spec.dtype, spec.queries, spec.keys)


def _prepare_splash(call: Call, q_BTNH: jax.Array, k_BSKH: jax.Array, has_prefix: bool) -> tuple[Any, Any]:
  spec = call.spec
  sees_prefix = spec.causal and has_prefix
  return splash.prepare(
      q_BTNH,
      k_BSKH,
      spec.causal,
      sees_prefix,
      call.interpret,
      spec.window,
      spec.softcap,
      call.queries.is_balanced,
  )


def _run_splash(
    call: Call,
    q_BTNH: jax.Array,
    k_BSKH: jax.Array,
    v_BSKH: jax.Array,
    query: Info,
    key: Info,
    extras: Extras,
) -> jax.Array:
  prepared = extras['prepared']
  return splash.attention(
      prepared,
      q_BTNH,
      k_BSKH,
      v_BSKH,
      query,
      key,
      call.scale,
      call.spec.window,
      call.queries.is_balanced,
      extras.get('sinks'),
  )


def _run_relative_bias(
    call: Call,
    q_BTNH: jax.Array,
    k_BSKH: jax.Array,
    v_BSKH: jax.Array,
    query: Info,
    key: Info,
    extras: Extras,
) -> jax.Array:
  spec = call.spec
  drop = None
  if spec.dropout:
    drop = _drop_here(call.drop, extras['seed'], q_BTNH)
  return relative_bias_rows.attention(
      call.queries,
      q_BTNH,
      k_BSKH,
      v_BSKH,
      extras.get('bias'),
      query,
      key,
      spec.causal,
      call.scale,
      softcap=spec.softcap,
      interpret=call.interpret,
      window=spec.window,
      drop=drop,
  )


def _drop_here(dropout: Dropout | None, seed: jax.Array, q_BTNH: jax.Array) -> Drop:
  """What is dropped of the rows and heads of this device, whose first are so many in the whole batch."""
  assert dropout is not None, 'a spec with dropout has a rate'
  B, _, N, _ = q_BTNH.shape
  first_row = jax.lax.axis_index(ROWS) * B
  first_head = jax.lax.axis_index('tensor') * N
  first_key = jnp.zeros_like(seed)
  origin = jnp.stack([seed, first_row, first_head, first_key])
  return Drop(dropout.rate, dropout.alike, origin)


def _run_cudnn(
    call: Call,
    q_BTNH: jax.Array,
    k_BSKH: jax.Array,
    v_BSKH: jax.Array,
    query: Info,
    key: Info,
    extras: Extras,
) -> jax.Array:

  def mask() -> jax.Array:
    mask_BTS = visible(call.spec, query, key)
    return mask_BTS[:, None]

  # Within a segment later tokens have later positions, so cuDNN may skip what lies above the diagonal.
  is_square = q_BTNH.shape[1] == k_BSKH.shape[1]
  lower_half = call.spec.causal and 'prefix' not in query and is_square
  before = None
  if call.spec.window is not None:
    before, _ = call.spec.window
  return cudnn.attention(q_BTNH, k_BSKH, v_BSKH, query, mask, call.scale, lower_half, before)


def _run_xla(
    call: Call,
    q_BTNH: jax.Array,
    k_BSKH: jax.Array,
    v_BSKH: jax.Array,
    query: Info,
    key: Info,
    extras: Extras,
) -> jax.Array:
  # Made here, in every layer: fused into the softmax it costs less than reading a stored mask.
  mask_B1TS = visible(call.spec, query, key)[:, None]
  if 'keep' in extras or call.spec.softcap or call.spec.sinks:
    return xla.attention(
        q_BTNH,
        k_BSKH,
        v_BSKH,
        mask_B1TS,
        call.scale,
        softcap=call.spec.softcap,
        bias=extras.get('bias'),
        keep=extras.get('keep'),
        sinks_N=extras.get('sinks'),
    )
  bias_1NTS = None
  if 'bias' in extras:
    bias_1NTS = extras['bias'][None]
  return jax.nn.dot_product_attention(
      q_BTNH,
      k_BSKH,
      v_BSKH,
      bias=bias_1NTS,
      mask=mask_B1TS,
      scale=call.scale,
      implementation='xla',
  )


def _blocks_lack(spec: AttentionSpec, platform: str) -> str:
  if platform != 'cpu' or not on_one_cpu():
    return 'blocks are for one CPU'
  if spec.dtype != 'float32':
    return f'on one CPU blocks are computed in float32, not {spec.dtype}'
  return ''


def _run_blocks(
    call: Call,
    q_BTNH: jax.Array,
    k_BSKH: jax.Array,
    v_BSKH: jax.Array,
    query: Info,
    key: Info,
    extras: Extras,
) -> jax.Array:
  spec = call.spec
  form = cpu_blocks.Form(
      functools.partial(visible, spec),
      call.scale,
      spec.softcap,
      lower_half=spec.causal and not spec.prefix,
      window=spec.window,
  )
  return cpu_blocks.attention(form, q_BTNH, k_BSKH, v_BSKH, extras.get('bias'), query, key)


KERNELS = dict(
    xla=Kernel(
        features=frozenset({'prefix', 'bias', 'dropout', 'decoding', 'sinks', 'softcap', *MASKS}),
        lacks=_lacks_nothing,
        run=_run_xla,
        checks_layouts=True,
    ),
    splash=Kernel(
        features=frozenset({'prefix', 'sinks', 'window', 'softcap'}),
        lacks=_lacks_nothing,
        run=_run_splash,
        prepare=_prepare_splash,
        names_context=True,
    ),
    relative_bias=Kernel(
        features=frozenset({'prefix', 'bias', 'dropout', 'window', 'softcap'}),
        lacks=_needs_bias,
        run=_run_relative_bias,
        bias_by_distance=True,
        drops_by_seed=True,
        names_context=True,
    ),
    cudnn=Kernel(
        features=frozenset({'prefix', 'window'}),
        lacks=_cudnn_lacks,
        run=_run_cudnn,
        reasons=dict(
            bias='on GPUs only it adds a bias by distance',
            dropout='on GPUs only it drops attention probabilities',
        ),
    ),
    cpu_blocks=Kernel(
        features=frozenset({'prefix', 'bias', 'window', 'softcap'}),
        lacks=_blocks_lack,
        run=_run_blocks,
    ),
)
