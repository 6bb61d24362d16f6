"""Architectures. `build` turns a ModelConfig into plain functions of plain nested dicts.

Flax NNX lives on this side of the seam only: modules are made and taken apart inside the functions
of `Model`, and everybody else sees a nested dict of arrays.
"""
import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from t5like import choices
from t5like.model import side_values
from t5like.model.layers import ACTIVATIONS, POSITIONS, Dense, Embed, Norm, Table, constant, dropout, expand, place
from t5like.model.stack import Stack, heads_first
from t5like.parameters import Param, vector, whole
from t5like.sharding import gather, in_use, spread_rows


@dataclasses.dataclass(frozen=True)
class ModelConfig:
  """`config.model`, with every size known. Keys are explained in `t5like/config/base.py`."""
  name: str
  vocab_size: int
  d_model: int
  num_layers: int
  num_encoder_layers: int
  num_heads: int
  num_kv_heads: int
  head_dim: int
  d_ff: int
  activation: str
  block: str
  norm: str
  norm_eps: float
  use_bias: bool
  embed_norm: bool
  position: str
  rope_theta: float
  rope_fraction: float
  max_positions: int
  num_types: int
  tie_embeddings: bool
  head: str
  scale_attention: bool
  qk_norm: str
  logit_softcap: float
  dropout: float
  dropout_style: str
  init: str
  dtype: str
  attention: str
  scan_layers: bool
  remat: str
  prefix_mask: bool = True
  lora_rank: int = 0
  lora_alpha: float = 16.0
  lora_projections: tuple = ()

  @classmethod
  def of(cls, section: Mapping[str, Any]) -> 'ModelConfig':
    """Of `config.model`. NotImplementedError for a key that has no field here, so that no layer could read it."""
    fields = {field.name for field in dataclasses.fields(cls)}
    for key in section:
      if key not in fields:
        raise NotImplementedError(f'model.{key} is a key of t5like/config/base.py, but no field of ModelConfig in '
                                  't5like/model/transformer.py: no layer can read it. Add the field there.')
    return cls(**section)

  def size(self, dim):
    """Size of a dimension by its letter; here T is the number of learned positions, P of types, R of LoRA, E is D."""
    return dict(V=self.vocab_size, D=self.d_model, E=self.d_model, L=self.num_layers, N=self.num_heads,
                K=self.num_kv_heads, H=self.head_dim, F=self.d_ff, T=self.max_positions,
                P=self.num_types, R=self.lora_rank)[dim]

  @property
  def residual_scale(self):
    """Projections into the residual stream start smaller, for 2 L of them add up (GPT-2)."""
    return (2 * self.num_layers) ** -0.5


class Head(nnx.Module):
  """Logits from the last layer's output: what `model.head` puts before and after the vocabulary."""

  def __init__(self, c, key):
    k_transform, k_out = jax.random.split(key)
    self.c, self.kind = c, choices.HEADS[c.head]
    if self.kind.transformed:
      self.transform, self.norm = Dense(c, 'BTD,DE->BTE', k_transform, 'head', use_bias=True), Norm(c)
      self.b = constant(0, c, vector('V', 'head', 'bias'))
    if not c.tie_embeddings:
      # Rounded to bfloat16, the best of 32k logits would often be two.
      self.out = Dense(c, 'BTD,DV->BTV', k_out, 'head', use_bias=False, result_dtype=jnp.float32)

  def __call__(self, x_BTD, embed):
    c = self.c
    if self.kind.transformed:
      x_BTD = self.norm(ACTIVATIONS[c.activation](self.transform(x_BTD)))
    if self.kind.scaled:
      x_BTD *= c.d_model ** -0.5
    logits_BTV = (embed.decode if c.tie_embeddings else self.out)(x_BTD).astype(jnp.float32)
    if self.kind.transformed:
      logits_BTV += expand(gather(self.b[...], 'V', jnp.float32), logits_BTV)
    cap = c.logit_softcap
    return cap * jnp.tanh(logits_BTV / cap) if cap else logits_BTV


class Transformer(nnx.Module):
  """What all architectures share: embeddings and head."""

  def __init__(self, c, key):
    k_embed, k_positions, k_types, k_head = jax.random.split(key, 4)
    self.c = c
    self.embed = place(Embed(c, k_embed), layer='embed')
    self.head = place(Head(c, k_head), layer='head')
    self.has_positions = choices.POSITIONS[c.position].embedded
    if self.has_positions:
      self.positions = place(POSITIONS[c.position].embed(c, k_positions), layer='positions')
    if c.num_types:
      self.types = place(Table(c, 'P', k_types), layer='types')
    if c.embed_norm:
      self.embed_norm = place(Norm(c), layer='embed_norm')

  @jax.named_scope('embed')
  def start(self, batch, random):
    """[B, T, D]: tokens, positions and segment types (`types`; all 0 where the batch has none)."""
    c, x_BTD = self.c, self.embed.encode(batch['inputs'])
    if self.has_positions:
      x_BTD += self.positions(batch['positions'] + choices.POSITIONS[c.position].first_row)
    if c.num_types:
      x_BTD += self.types(batch['types'] if 'types' in batch else batch['inputs'] * 0)
    if c.embed_norm:
      x_BTD = self.embed_norm(x_BTD)
    return dropout(x_BTD, c, random)

  @jax.named_scope('logits')
  def logits(self, x_BTD):
    """[B, T, V] fp32."""
    return self.head(x_BTD, self.embed)


class Decoder(Transformer):
  """Language model that sees what came before, and all of a prefix."""
  causal = True

  def __init__(self, c, key):
    k_shared, k_stack = jax.random.split(key)
    super().__init__(c, k_shared)
    self.stack = Stack(c, k_stack, self.causal)

  def hidden(self, batch, random=None):
    r_start, r_stack = (None, None) if random is None else jax.random.split(random)
    return self.stack(self.start(batch, r_start), batch, random=r_stack)

  def layers(self):
    return self.stack.layers()

  def cache(self, batch, slots):
    return dict(layers=((_empty(self.c, batch['inputs'].shape[0], slots), None),) * self.c.num_layers)

  def extend(self, batch, keys, cache, at, last=False, layers=None):
    x_BTD, parts = self.stack.extend(layers or self.layers(), self.start(batch, None), batch, keys, None,
                                     cache['layers'], at)
    return self.logits(x_BTD[:, -1:] if last else x_BTD), dict(layers=parts)


class Encoder(Decoder):
  """Masked language model: every token sees all others."""
  causal = False


class EncoderDecoder(Transformer):
  """A decoder that also sees an encoder's output; `batch['encoder']` holds the encoder's tokens."""

  def __init__(self, c, key):
    k_shared, k_encoder, k_decoder = jax.random.split(key, 3)
    super().__init__(c, k_shared)
    self.encoder = Stack(c, k_encoder, causal=False, num_layers=c.num_encoder_layers, name='encoder')
    self.decoder = Stack(c, k_decoder, causal=True, cross=True, name='decoder')

  def encode(self, batch, random=None):
    r_start, r_stack = (None, None) if random is None else jax.random.split(random)
    x_BSD, side = self.encoder(self.start(batch, r_start), batch, random=r_stack)
    return dict(x=x_BSD, positions=batch['positions'], segments=batch['segments']), side

  def hidden(self, batch, random=None):
    r = [None] * 3 if random is None else jax.random.split(random, 3)
    memory, of_encoder = self.encode(batch['encoder'], r[0])
    x_BTD, of_decoder = self.decoder(self.start(batch, r[1]), batch, memory, r[2])
    return x_BTD, side_values.added(of_encoder, of_decoder)

  def layers(self):
    return self.decoder.layers()

  def cache(self, batch, slots):
    memory, _ = self.encode(batch['encoder'])
    own = _empty(self.c, memory['x'].shape[0], slots)
    parts = tuple((own, heads_first(block.remember(memory))) for block in self.layers())
    return dict(layers=parts, memory={k: memory[k] for k in ('positions', 'segments')})

  def extend(self, batch, keys, cache, at, last=False, layers=None):
    x_BTD, parts = self.decoder.extend(layers or self.layers(), self.start(batch, None), batch, keys, cache['memory'],
                                       cache['layers'], at)
    return self.logits(x_BTD[:, -1:] if last else x_BTD), dict(layers=parts, memory=cache['memory'])


def _empty(c, batch_size, slots):
  """(keys, values) of one layer, each [B, K, S, H]."""
  shape = (batch_size, c.num_kv_heads, slots, c.head_dim)
  return tuple(jnp.zeros(shape, c.dtype, out_sharding=in_use('BKSH')) for _ in 'kv')


ARCHITECTURES = choices.implement('model.name', choices.ARCHITECTURES, dict(
    decoder=Decoder, encoder=Encoder, encoder_decoder=EncoderDecoder))


@dataclasses.dataclass(frozen=True)
class Model:
  """An architecture as functions of `params`, a nested dict of arrays. Call them inside `jit`.

  init(key) -> params
  hidden(params, batch, key) -> (x_BTD, the last layer's output; side values by name, {} where no layer has any: see
    `side_values.py`); key None: no dropout
  logits(params, x_BTD) -> logits_BTV, fp32
  cache(params, batch, slots) -> cache with room for so many tokens of each row; of `batch` only the
    number of rows counts, and `encoder`, which is encoded
  extend(params, batch, keys, cache, at, last=False, layers=None) -> (logits_BTV, cache), for decoding: `batch` holds
    the new tokens (inputs, positions, segments, [B, T]), written to cache slots at .. at + T; `keys` the
    positions and segments of all S slots, those of the new tokens included; `last`: logits of the last one only
  layers(params) -> the layers that decode, cut out of params, for `extend`, which else does it for every token
  parameters: what each parameter is, by its path: 'stack/blocks/mlp/up/w'
  """
  config: ModelConfig
  parameters: dict[str, Param] = dataclasses.field(compare=False)  # a dict has no hash; `init` tells models apart
  init: Callable[..., Any]
  hidden: Callable[..., Any]
  logits: Callable[..., Any]
  cache: Callable[..., Any]
  extend: Callable[..., Any]
  layers: Callable[..., Any]

  def apply(self, params, batch, key=None):
    """logits_BTV, fp32."""
    x_BTD, _ = self.hidden(params, batch, key)
    return self.logits(params, x_BTD)


def build(c):
  """Model of a ModelConfig; needs a mesh in force (`jax.set_mesh`)."""
  make = ARCHITECTURES[c.name]
  graph, state = nnx.split(nnx.eval_shape(lambda: make(c, jax.random.key(0))))
  of = lambda params: nnx.merge(graph, params)
  rows = lambda batch: spread_rows({k: x for k, x in batch.items() if c.prefix_mask or k != 'prefix'})
  return Model(
      c,
      _declared(state),
      init=lambda key: nnx.to_pure_dict(nnx.state(make(c, key))),
      hidden=lambda params, batch, key=None: of(params).hidden(rows(batch), key),
      logits=lambda params, x_BTD: of(params).logits(x_BTD),
      cache=lambda params, batch, slots: of(params).cache(rows(batch), slots),
      extend=lambda params, batch, keys, cache, at, last=False, layers=None: of(params).extend(
          rows(batch), rows(keys), cache, at, last, layers),
      layers=lambda params: of(params).layers())


def _declared(state) -> dict[str, Param]:
  """{path: Param} of a model's state; TypeError for a parameter that is not declared."""
  out = {}
  for keys, variable in nnx.to_flat_state(state):
    path = '/'.join(map(str, keys))
    out[path] = whole(variable.get_metadata().get('declared'), path, variable.shape)
  return out


def count_params(model: Model) -> int:
  """Exact number of parameters, without making them."""
  return sum(declared.size for declared in model.parameters.values())
