"""Multiplications and additions that one row of training needs, by PaLM's convention, of what has gradients.

Chowdhery et al. 2022, appendix B: 6 per parameter and token that it multiplies, and 12 N H per layer and pair of
tokens that attention compares, uncut by causal masks but cut by windows. Of the 6, 2 are of the forward pass, 2 of the
gradient of what the parameter multiplies and 2 of its own gradient; of the 12, 4 and 8. A gradient that nobody asks for
is not counted: that of a frozen parameter, and that of activations before which nothing is trained. Tables that are
only looked up, biases by distance and attention sinks multiply nothing.
"""
import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import Any

from t5like import choices
from t5like.model.config import ModelConfig
from t5like.model.transformer import Model
from t5like.objectives.spec import Lengths
from t5like.parameters import LOOKED_UP, Param
from t5like.sharding import EXPERTS

ADDED = ('relative', 'sinks')  # roles of what is added to attention logits, or stands beside them
# Order of a block's parts: what stands later multiplies what the earlier ones have made.
ORDER = ('attention_norm', 'attention/in', 'attention/pairs', 'attention/o', 'cross_norm', 'cross/in', 'cross/pairs',
         'cross/o', 'mlp_norm', 'mlp/in', 'mlp/down')
# (layer, role) -> the part of a block
PARTS = {
    ('relative', 'relative'): 'attention/in',
    ('attention', 'q'): 'attention/in',
    ('attention', 'k'): 'attention/in',
    ('attention', 'v'): 'attention/in',
    ('attention', 'norm'): 'attention/in',
    ('attention', 'sinks'): 'attention/pairs',
    ('attention', 'o'): 'attention/o',
    ('cross', 'q'): 'cross/in',
    ('cross', 'k'): 'cross/in',
    ('cross', 'v'): 'cross/in',
    ('cross', 'norm'): 'cross/in',
    ('cross', 'sinks'): 'cross/pairs',
    ('cross', 'o'): 'cross/o',
    ('mlp', 'up'): 'mlp/in',
    ('mlp', 'gate'): 'mlp/in',
    ('mlp', 'down'): 'mlp/down',
    ('experts', 'router'): 'mlp/in',
    ('experts', 'up'): 'mlp/in',
    ('experts', 'gate'): 'mlp/in',
    ('experts', 'down'): 'mlp/down',
}
# Where norms come after what they stand beside, they are like the part before them.
NORMS_AFTER = dict(attention_norm='attention/o', cross_norm='cross/o', mlp_norm='mlp/down')
OUT_NORMS = dict(attention_out_norm='attention/o', cross_out_norm='cross/o', mlp_out_norm='mlp/down')
EARLY = -1  # a layer before all others
LATE = math.inf  # and one after them
START = (EARLY, 0)
Place = tuple[float, float]  # (layer, part of the block)
# layer -> its place, outside of blocks
OUTSIDE = dict(
    positions=START,
    types=START,
    embed_norm=(EARLY, 1),
    encoder_positions=START,
    encoder_embed_norm=(EARLY, 1),
    relative=(0, ORDER.index('attention/in')),  # made for all layers, added where the first compares tokens
    last_norm=(LATE, 0),
    head=(LATE, 1),
    embed=(LATE, 2),  # a tied table multiplies last
)
# model.name -> how often each token passes through the blocks of a stack
PASSES = choices.implement('model.name', choices.ARCHITECTURES, dict(decoder=1, encoder=1, encoder_decoder=1))
NEVER = (math.inf, math.inf)  # a place after everything


def per_row(model: Model, lengths: Lengths, rates: Mapping[str, Any] | None = None) -> int:
  """Of one row, forward and backward.

  Args:
    model: of `transformer.build`.
    lengths: see `t5like/objectives/lengths.py`.
    rates: {path: [rate of each layer, 0 if it is frozen]}, as of `from_config.rates`; None: everything is trained. What
      is frozen in some layers only has gradients in all.

  Raises:
    NotImplementedError: for parameters of which a token multiplies some, and it is not known which.
  """
  c = model.config
  trained = _trained(model.parameters, rates)
  first = _first(c, list(trained.values()))
  total = 0
  for path, param in model.parameters.items():
    tokens = _tokens(c, param, lengths)
    if not tokens:
      continue
    size = _active(c, path, param) // param.num_layers
    passes = 1
    if param.is_stacked:
      passes = PASSES[c.name]
    for layer in _layers_of(param, passes):
      has_input_gradient = first[_reads(param)] < _place(c, param, layer)
      products = 1 + int(path in trained) + int(has_input_gradient)
      total += 2 * products * size * tokens
  return total + _attention(c, lengths, first)


def _active(c: ModelConfig, path: str, param: Param) -> int:
  """How many numbers of a parameter a token multiplies: of experts, those that it goes to."""
  if not param.batch:
    return param.size
  if param.batch != EXPERTS:
    raise NotImplementedError(f'{path} has matrices of its own along the axes {param.batch!r} of {param.dims}: '
                              't5like/model/flops.py does not know which of them a token multiplies.')
  return param.size // c.experts * c.experts_per_token


def _layers_of(param: Param, passes: int) -> Iterator[int]:
  """Yields the numbers of layers that have a parameter, those of a second pass behind those of the first."""
  for number in range(passes):
    for layer in param.numbers:
      yield number * param.depth + layer


def _trained(parameters: Mapping[str, Param], rates: Mapping[str, Any] | None) -> dict[str, Param]:
  """Those that are not frozen."""
  if rates is None:
    return dict(parameters)
  return {path: param for path, param in parameters.items() if any(rates[path])}


def _tokens(c: ModelConfig, param: Param, lengths: Lengths) -> int:
  """How many tokens of a row a parameter multiplies; 0 where it is looked up."""
  is_tied_table = param.layer == 'embed' and c.tie_embeddings
  if is_tied_table or param.layer == 'head':
    return lengths.predicted
  if param.role in LOOKED_UP or param.role in ADDED:
    return 0
  if _reads(param) == 'decoder':
    return lengths.targets
  return lengths.inputs


def _reads(param: Param) -> str:
  """What a parameter multiplies: activations of the 'encoder', of the 'decoder', or the encoder's output, 'memory'."""
  if param.stack == 'encoder':
    return 'encoder'
  if param.layer == 'cross' and param.role in ('k', 'v'):
    return 'memory'
  return 'decoder'


def attention(c: ModelConfig, lengths: Lengths) -> int:
  """Of the products of queries, keys and values alone, when everything is trained."""
  return _attention(c, lengths, dict(encoder=START, decoder=START))


def _attention(c: ModelConfig, lengths: Lengths, first: Mapping[str, Place]) -> int:
  _refuse_unknown(c)
  T = lengths.targets
  S = lengths.inputs
  stacks = [('decoder', 'attention', c.num_layers, T, T)]
  if S:
    stacks.append(('encoder', 'attention', c.num_encoder_layers, S, S))
    stacks.append(('decoder', 'cross', c.num_layers, T, S))
  total = 0
  for stack, name, layers, queries, keys in stacks:
    part = ORDER.index(f'{name}/pairs')
    for layer in range(PASSES[c.name] * layers):
      seen = keys
      if name == 'attention':
        seen = _seen(c, stack, layer, keys)
      has_gradient = first[stack] < (layer, part)
      products = 12 if has_gradient else 4
      total += products * c.num_heads * c.head_dim * queries * seen
  return total


def _seen(c: ModelConfig, stack: str, layer: int, keys: int) -> int:
  """How many keys of its own stack a query of a layer is compared with."""
  kind = c.kinds[layer % len(c.kinds)]
  if not kind.windowed:
    return keys
  is_causal = stack == 'decoder' and choices.ARCHITECTURES[c.name].causal
  before, after = c.window_of(is_causal)
  return min(keys, before + 1 + after)


def _place(c: ModelConfig, param: Param, layer: int = 0) -> Place:
  """Where a parameter is in its stack: (layer, part of the block); a second pass follows the first."""
  if not param.is_stacked:
    if param.layer not in OUTSIDE:
      raise NotImplementedError(f'{param}: t5like/model/flops.py does not know where it multiplies; OUTSIDE says it.')
    return OUTSIDE[param.layer]
  part = ORDER.index(_part(c, param))
  if param.kind == 'lora_b':  # it multiplies the product of the first factor
    return layer, part + 0.5
  return layer, part


def _part(c: ModelConfig, param: Param) -> str:
  """The entry of ORDER that a parameter of a block belongs to."""
  if param.layer in NORMS_AFTER:
    if choices.BLOCKS[c.block].norm_input:
      return param.layer
    return NORMS_AFTER[param.layer]
  if param.layer in OUT_NORMS:
    return OUT_NORMS[param.layer]
  if (param.layer, param.role) not in PARTS:
    raise NotImplementedError(f'{param}: t5like/model/flops.py does not know where in a block it multiplies; PARTS '
                              'says it.')
  return PARTS[param.layer, param.role]


def _group(param: Param) -> str:
  """'looked_up' where rows enter all stacks, before their layers, else 'encoder' or 'decoder'."""
  if param.stack == 'encoder':
    return 'encoder'
  if param.role in LOOKED_UP or param.layer == 'embed_norm':
    return 'looked_up'
  return 'decoder'


def _first(c: ModelConfig, trained: list[Param]) -> dict[str, Place]:
  """The places after which activations have gradients, by what a parameter reads (`_reads`)."""
  earliest: dict[str, Place] = dict(looked_up=NEVER, encoder=NEVER, decoder=NEVER)
  for param in trained:
    group = _group(param)
    place = START
    if param.role != 'embed':
      place = _place(c, param, min(param.numbers, default=0))
    earliest[group] = min(earliest[group], place)
  encoder = min(earliest['looked_up'], earliest['encoder'])
  memory = NEVER
  if encoder != NEVER:
    memory = START
  from_encoder = NEVER
  if earliest['encoder'] != NEVER:
    # The encoder's output reaches the decoder in its first layer's cross-attention.
    from_encoder = (0, ORDER.index('cross/in') - 0.5)
  decoder = min(earliest['looked_up'], earliest['decoder'], from_encoder)
  return dict(encoder=encoder, memory=memory, decoder=decoder)


# Keys of config.model whose products are counted: by the shapes of parameters, or here.
COUNTED = ('name', 'vocab_size', 'd_model', 'num_layers', 'num_encoder_layers', 'num_heads', 'num_kv_heads', 'head_dim',
           'd_ff', 'activation', 'block', 'use_bias', 'qkv_bias', 'tie_embeddings', 'head', 'qk_norm', 'layers',
           'window', 'window_after', 'encoder_window', 'lora_rank', 'lora_projections', 'experts', 'experts_per_token',
           'expert_d_ff', 'shared_experts', 'shared_gate', 'sparse_every', 'dense_first')
# Keys that change no product, or, as masks, only some that PaLM's convention counts all the same.
WITHOUT_PRODUCTS = ('norm', 'norm_eps', 'embed_norm', 'encoder_embed', 'position', 'rope_theta', 'rope_fraction',
                    'max_positions', 'num_types', 'scale_attention', 'logit_softcap', 'dropout', 'dropout_style',
                    'init', 'dtype', 'attention', 'context_attention', 'scan_layers', 'remat', 'prefix_mask',
                    'lora_alpha', 'local_rope_theta', 'attention_sinks', 'rope_scaling', 'quantization',
                    'expert_capacity', 'router', 'router_balance', 'router_bias', 'router_z_loss', 'router_jitter',
                    'embed_scale', 'query_scale', 'attention_softcap')


def _refuse_unknown(c: ModelConfig) -> None:
  """NotImplementedError for a key of the model that may change its products without being known here."""
  for field in dataclasses.fields(c):
    value = getattr(c, field.name)
    if field.name not in (*COUNTED, *WITHOUT_PRODUCTS) and value != field.default:
      raise NotImplementedError(f'model.{field.name}={value!r}: t5like/model/flops.py does not know what this changes '
                                'of the FLOPs of a row. Count it there.')
