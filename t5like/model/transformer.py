"""Architectures. `build` turns a ModelConfig into plain functions of plain nested dicts.

Flax NNX lives on this side of the seam only: modules are made and taken apart inside the functions
of `Model`, and everybody else sees a nested dict of arrays.
"""
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from t5like import choices
from t5like.model import side_values
from t5like.model.attention import KeysValues
from t5like.model.block import Block, LayerCache, Slot, heads_first
from t5like.model.config import ModelConfig
from t5like.model.initial import constant, place
from t5like.model.layers import (
    ACTIVATIONS,
    Dense,
    Embed,
    Norm,
    dropout,
    expand,
    identity,
    split_keys,
)
from t5like.model.positions import POSITIONS, Table
from t5like.model.side_values import Sums
from t5like.model.stack import Stack
from t5like.parameters import Param, vector, whole
from t5like.sharding import gather, in_use, spread_rows

Params = dict[str, Any]  # nested dicts of arrays
Batch = Mapping[str, Any]  # arrays [B, T]: inputs, positions, segments, ..; `encoder`: a dict of those of the encoder
Cache = dict[str, Any]  # layers: a LayerCache for each; memory: positions and segments of the encoder's output
Random = jax.Array | None  # key of dropout; None: there is none
Hidden = tuple[jax.Array, dict[str, Sums]]  # x_BTD, the last layer's output; side values by name
Logits = tuple[jax.Array, Cache]


class Head(nnx.Module):
  """Logits from the last layer's output: what `model.head` puts before and after the vocabulary."""

  def __init__(self, c: ModelConfig, key: jax.Array) -> None:
    k_transform, k_out = jax.random.split(key)
    self.c = c
    self.kind = choices.HEADS[c.head]
    if self.kind.transformed:
      self.transform = Dense(c, 'BTD,DE->BTE', k_transform, 'head', use_bias=self.kind.dense_bias)
      self.norm = Norm(c)
      bias = vector('V', 'head', 'bias')
      self.b = constant(0, c, bias)
    if not c.tie_embeddings:
      # Rounded to bfloat16, the best of 32k logits would often be two.
      self.out = Dense(c, 'BTD,DV->BTV', k_out, 'head', use_bias=False, result_dtype=jnp.float32)

  def __call__(self, x_BTD: jax.Array, embed: Embed) -> jax.Array:
    """[B, T, V] fp32; `embed`: the table, which tied embeddings share."""
    c = self.c
    if self.kind.transformed:
      activate = ACTIVATIONS[c.activation]
      x_BTD = self.transform(x_BTD)
      x_BTD = activate(x_BTD)
      x_BTD = self.norm(x_BTD)
    if self.kind.scaled:
      x_BTD *= c.d_model ** -0.5
    if c.tie_embeddings:
      logits_BTV = embed.decode(x_BTD)
    else:
      logits_BTV = self.out(x_BTD)
    logits_BTV = logits_BTV.astype(jnp.float32)
    if self.kind.transformed:
      b_V = gather(self.b[...], 'V', jnp.float32)
      logits_BTV += expand(b_V, logits_BTV)
    cap = c.logit_softcap
    if cap:
      logits_BTV = cap * jnp.tanh(logits_BTV / cap)
    return logits_BTV


def _times_root_of_width(x_BTD: jax.Array) -> jax.Array:
  """Gemma's: the root is rounded to the dtype of x."""
  root = x_BTD.shape[-1] ** 0.5
  return x_BTD * jnp.asarray(root, x_BTD.dtype)


EMBED_SCALES = choices.implement('model.embed_scale', choices.EMBED_SCALES, dict(
    none=identity,
    sqrt_d_model=_times_root_of_width,
))


class Start(NamedTuple):
  """What embeds the tokens of a stack: their table, and where there are such, positions and the norm of the sum."""
  embed: Embed
  positions: Any = None
  norm: Norm | None = None


def _positions(c: ModelConfig, key: jax.Array) -> Any:
  """The module of a scheme that gives positions vectors."""
  make = POSITIONS[c.position].embed
  assert make is not None, 'choices.implement compares schemes with their facts'
  return make(c, key)


class Transformer(nnx.Module):
  """What all architectures share: embeddings and head."""

  def __init__(self, c: ModelConfig, key: jax.Array) -> None:
    k_embed, k_positions, k_types, k_head = jax.random.split(key, 4)
    self.c = c
    embed = Embed(c, k_embed)
    self.embed = place(embed, layer='embed')
    head = Head(c, k_head)
    self.head = place(head, layer='head')
    self.has_positions = choices.POSITIONS[c.position].embedded
    if self.has_positions:
      positions = _positions(c, k_positions)
      self.positions = place(positions, layer='positions')
    if c.num_types:
      types = Table(c, 'P', k_types)
      self.types = place(types, layer='types')
    if c.embed_norm:
      self.embed_norm = place(Norm(c), layer='embed_norm')

  @property
  def shared(self) -> Start:
    """What embeds tokens of every stack that has nothing of its own."""
    start = Start(self.embed)
    if self.has_positions:
      start = start._replace(positions=self.positions)
    if self.c.embed_norm:
      start = start._replace(norm=self.embed_norm)
    return start

  @jax.named_scope('embed')
  def start(
      self,
      batch: Batch,
      random: Random,
      start: Start | None = None,
  ) -> jax.Array:
    """[B, T, D]: tokens, positions and segment types (`types`; all 0 where the batch has none).

    Args:
      batch: the tokens.
      random: key of dropout; None: there is none.
      start: what embeds them; None: what the model shares.
    """
    c = self.c
    tokens_BT = batch['inputs']
    embed, positions, norm = start or self.shared
    scale = EMBED_SCALES[c.embed_scale]
    x_BTD = embed.encode(tokens_BT)
    x_BTD = scale(x_BTD)
    if positions is not None:
      first_row = choices.POSITIONS[c.position].first_row
      rows_BT = batch['positions'] + first_row
      x_BTD += positions(rows_BT)
    if c.num_types:
      if 'types' in batch:
        types_BT = batch['types']
      else:
        types_BT = tokens_BT * 0
      x_BTD += self.types(types_BT)
    if norm is not None:
      x_BTD = norm(x_BTD)
    return dropout(x_BTD, c, random)

  @jax.named_scope('logits')
  def logits(self, x_BTD: jax.Array) -> jax.Array:
    """[B, T, V] fp32."""
    return self.head(x_BTD, self.embed)

  @property
  def last_stack(self) -> Stack:
    """The one whose output is predicted from."""
    raise NotImplementedError

  def layers(self) -> list[Block]:
    """See `Model`."""
    return self.last_stack.layers()

  def extend(
      self,
      batch: Batch,
      keys: Batch,
      cache: Cache,
      at: Slot,
      last: bool = False,
      layers: Sequence[Block] | None = None,
  ) -> Logits:
    """See `Model`."""
    memory = cache.get('memory')
    x_BTD = self.start(batch, None)
    layers = layers or self.layers()
    x_BTD, parts = self.last_stack.extend(
        layers,
        x_BTD,
        batch,
        keys,
        memory,
        cache['layers'],
        at,
    )
    if last:
      x_BTD = x_BTD[:, -1:]
    return self.logits(x_BTD), dict(cache, layers=parts)


class Decoder(Transformer):
  """Language model that sees what came before, and all of a prefix. Methods: see `Model`."""
  causal = True

  def __init__(self, c: ModelConfig, key: jax.Array) -> None:
    k_shared, k_stack = jax.random.split(key)
    super().__init__(c, k_shared)
    self.stack = Stack(c, k_stack, self.causal)

  @property
  def last_stack(self) -> Stack:
    return self.stack

  def hidden(self, batch: Batch, random: Random = None) -> Hidden:
    """See `Model`."""
    r_start, r_stack = split_keys(random, 2)
    x_BTD = self.start(batch, r_start)
    return self.stack(x_BTD, batch, random=r_stack)

  def cache(self, batch: Batch, slots: int) -> Cache:
    """See `Model`."""
    batch_size = batch['inputs'].shape[0]
    empty = _empty(self.c, batch_size, slots)
    layer = LayerCache(empty, None)
    return dict(layers=(layer,) * self.c.num_layers)


class Encoder(Decoder):
  """Masked language model: every token sees all others."""
  causal = False


class EncoderDecoder(Transformer):
  """A decoder that also sees an encoder's output; `batch['encoder']` holds the encoder's tokens. Methods: see `Model`.
  """

  def __init__(self, c: ModelConfig, key: jax.Array) -> None:
    k_shared, k_encoder, k_decoder = jax.random.split(key, 3)
    super().__init__(c, k_shared)
    self.encoder = Stack(
        c,
        k_encoder,
        causal=False,
        num_layers=c.num_encoder_layers,
        name='encoder',
    )
    self.decoder = Stack(
        c,
        k_decoder,
        causal=True,
        cross=True,
        name='decoder',
    )
    own = choices.ENCODER_EMBEDS[c.encoder_embed]
    k_own = jax.random.fold_in(k_shared, 1)
    self.has_own_tokens = own.tokens
    self.has_own_positions = own.positions and self.has_positions
    self.has_own_norm = own.positions and c.embed_norm
    if self.has_own_tokens:
      embed = Embed(c, k_own)
      self.encoder_embed = place(embed, layer='encoder_embed', stack='encoder')
    if self.has_own_positions:
      positions = _positions(c, k_own)
      self.encoder_positions = place(positions, layer='encoder_positions', stack='encoder')
    if self.has_own_norm:
      self.encoder_embed_norm = place(Norm(c), layer='encoder_embed_norm', stack='encoder')

  @property
  def encoder_start(self) -> Start:
    """What embeds tokens of the encoder."""
    start = self.shared
    if self.has_own_tokens:
      start = start._replace(embed=self.encoder_embed)
    if self.has_own_positions:
      start = start._replace(positions=self.encoder_positions)
    if self.has_own_norm:
      start = start._replace(norm=self.encoder_embed_norm)
    return start

  @property
  def last_stack(self) -> Stack:
    return self.decoder

  def encode(self, batch: Batch, random: Random = None) -> tuple[dict[str, jax.Array], dict[str, Sums]]:
    """(x, the encoder's output [B, S, D], with positions and segments; side values by name)."""
    r_start, r_stack = split_keys(random, 2)
    x_BSD = self.start(batch, r_start, self.encoder_start)
    x_BSD, side = self.encoder(x_BSD, batch, random=r_stack)
    memory = dict(
        x=x_BSD,
        positions=batch['positions'],
        segments=batch['segments'],
    )
    return memory, side

  def hidden(self, batch: Batch, random: Random = None) -> Hidden:
    """See `Model`."""
    keys = split_keys(random, 3)
    memory, encoder_side = self.encode(batch['encoder'], keys[0])
    x_BTD = self.start(batch, keys[1])
    x_BTD, decoder_side = self.decoder(x_BTD, batch, memory, keys[2])
    side = side_values.added(encoder_side, decoder_side)
    return x_BTD, side

  def cache(self, batch: Batch, slots: int) -> Cache:
    """See `Model`."""
    memory, _ = self.encode(batch['encoder'])
    batch_size = memory['x'].shape[0]
    empty = _empty(self.c, batch_size, slots)
    layers = []
    for block in self.layers():
      cross = block.remember(memory)
      layer = LayerCache(empty, heads_first(cross))
      layers.append(layer)
    tokens = dict(
        positions=memory['positions'],
        segments=memory['segments'],
    )
    return dict(layers=tuple(layers), memory=tokens)


def _empty(c: ModelConfig, batch_size: int, slots: int) -> KeysValues:
  """Of one layer, heads first."""
  shape = (batch_size, c.num_kv_heads, slots, c.head_dim)
  layout = in_use('BKSH')
  keys = jnp.zeros(shape, c.dtype, out_sharding=layout)
  values = jnp.zeros(shape, c.dtype, out_sharding=layout)
  return KeysValues(keys, values)


ARCHITECTURES = choices.implement('model.name', choices.ARCHITECTURES, dict(
    decoder=Decoder,
    encoder=Encoder,
    encoder_decoder=EncoderDecoder,
))


@dataclasses.dataclass(frozen=True)
class Model:
  """An architecture as functions of `params`, a nested dict of arrays. Call them inside `jit`.

  init(key) -> params
  hidden(params, batch, key=None) -> (x_BTD, the last layer's output; side values by name, {} where no layer has any:
    see `side_values.py`); key None: no dropout
  logits(params, x_BTD) -> logits_BTV, fp32
  cache(params, batch, slots) -> cache with room for this number of tokens of each row; of `batch` only the
    number of rows counts, and `encoder`, which is encoded
  extend(params, batch, keys, cache, at, last=False, layers=None) -> (logits_BTV, cache), for decoding: `batch` holds
    the new tokens (inputs, positions, segments, [B, T]), written to cache slots at .. at + T; `keys` the
    positions and segments of all S slots, those of the new tokens included; `last`: logits of the last one only
  layers(params) -> the layers that decode, cut out of params, for `extend`, which otherwise does it for every token
  parameters: what each parameter is, by its path: 'stack/blocks/mlp/up/w'
  """
  config: ModelConfig
  parameters: dict[str, Param] = dataclasses.field(compare=False)  # a dict has no hash; `init` tells models apart
  init: Callable[[jax.Array], Params]
  hidden: Callable[..., Hidden]
  logits: Callable[[Params, jax.Array], jax.Array]
  cache: Callable[[Params, Batch, int], Cache]
  extend: Callable[..., Logits]
  layers: Callable[[Params], list[Block]]

  def apply(self, params: Params, batch: Batch, key: Random = None) -> jax.Array:
    """logits_BTV, fp32."""
    x_BTD, _ = self.hidden(params, batch, key)
    return self.logits(params, x_BTD)


class _Functions:
  """The functions of a Model."""

  def __init__(self, c: ModelConfig) -> None:
    self.c = c
    self.make = ARCHITECTURES[c.name]
    module = nnx.eval_shape(self._any)
    self.graph, self.state = nnx.split(module)

  def _any(self) -> Any:
    key = jax.random.key(0)
    return self.make(self.c, key)

  def _module(self, params: Params) -> Any:
    return nnx.merge(self.graph, params)

  def _rows(self, batch: Batch) -> Batch:
    """A batch laid out as in use, without what the model does not read."""
    rows = dict(batch)
    if not self.c.prefix_mask:
      rows.pop('prefix', None)
    return spread_rows(rows)

  def init(self, key: jax.Array) -> Params:
    module = self.make(self.c, key)
    state = nnx.state(module)
    return nnx.to_pure_dict(state)

  def hidden(self, params: Params, batch: Batch, key: Random = None) -> Hidden:
    module = self._module(params)
    rows = self._rows(batch)
    return module.hidden(rows, key)

  def logits(self, params: Params, x_BTD: jax.Array) -> jax.Array:
    return self._module(params).logits(x_BTD)

  def cache(self, params: Params, batch: Batch, slots: int) -> Cache:
    module = self._module(params)
    rows = self._rows(batch)
    return module.cache(rows, slots)

  def extend(
      self,
      params: Params,
      batch: Batch,
      keys: Batch,
      cache: Cache,
      at: Slot,
      last: bool = False,
      layers: Sequence[Block] | None = None,
  ) -> Logits:
    module = self._module(params)
    rows = self._rows(batch)
    rows_of_keys = self._rows(keys)
    return module.extend(rows, rows_of_keys, cache, at, last, layers)

  def layers(self, params: Params) -> list[Block]:
    return self._module(params).layers()


def build(c: ModelConfig) -> Model:
  """Model of a ModelConfig; needs a mesh in force (`jax.set_mesh`)."""
  functions = _Functions(c)
  return Model(
      c,
      _declared(functions.state),
      init=functions.init,
      hidden=functions.hidden,
      logits=functions.logits,
      cache=functions.cache,
      extend=functions.extend,
      layers=functions.layers,
  )


def _declared(state: Any) -> dict[str, Param]:
  """{path: Param} of a model's state; TypeError for a parameter that is not declared."""
  parameters = {}
  for keys, variable in nnx.to_flat_state(state):
    path = '/'.join(map(str, keys))
    metadata = variable.get_metadata()
    declared = metadata.get('declared')
    parameters[path] = whole(declared, path, variable.shape)
  return parameters


def count_params(model: Model) -> int:
  """Exact number of parameters, without making them."""
  return sum(declared.size for declared in model.parameters.values())
