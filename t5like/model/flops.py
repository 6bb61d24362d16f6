"""Multiplications and additions that one row of training needs, by PaLM's convention, of what has gradients.

Chowdhery et al. 2022, appendix B: 6 per parameter and token that it multiplies, and 12 N H per layer and pair of
tokens that attention compares, uncut by causal masks. Of the 6, 2 are of the forward pass, 2 of the gradient of what
the parameter multiplies and 2 of its own gradient; of the 12, 4 and 8. A gradient that nobody asks for is not counted:
that of a frozen parameter, and that of activations before which nothing is trained. Tables that are only looked up,
and biases by distance, multiply nothing.
"""
import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from t5like import choices
from t5like.parameters import LOOKED_UP, Param

# Order of a block's parts: what stands later multiplies what the earlier ones have made.
ORDER = ('attention_norm', 'attention/in', 'attention/pairs', 'attention/o', 'cross_norm', 'cross/in', 'cross/pairs',
         'cross/o', 'mlp_norm', 'mlp/in', 'mlp/down')
# (layer, role) -> the part of a block
PARTS = {(layer, role): f'{layer}/in' for layer in ('attention', 'cross') for role in ('q', 'k', 'v', 'norm')}
PARTS |= {('attention', 'o'): 'attention/o', ('cross', 'o'): 'cross/o'}
PARTS |= {('mlp', 'up'): 'mlp/in', ('mlp', 'gate'): 'mlp/in', ('mlp', 'down'): 'mlp/down'}
# Where norms come after what they stand beside, they are like the part before them.
NORMS_AFTER = dict(attention_norm='attention/o', cross_norm='cross/o', mlp_norm='mlp/down')
EARLY, LATE = -1, math.inf  # layers before and after all others
# layer -> its place, outside of blocks; relative: made for all layers, added where the first compares tokens
OUTSIDE = dict(positions=(EARLY, 0), types=(EARLY, 0), embed_norm=(EARLY, 1), relative=(0, ORDER.index('attention/in')),
               last_norm=(LATE, 0), head=(LATE, 1), embed=(LATE, 2))  # a tied table multiplies last
# model.name -> how often each token passes through the blocks of a stack
PASSES = choices.implement('model.name', choices.ARCHITECTURES, dict(decoder=1, encoder=1, encoder_decoder=1))
NEVER = (math.inf, math.inf)  # a place after everything


def per_row(model: Any, lengths: Any, rates: Mapping[str, Any] | None = None) -> int:
  """Of one row, forward and backward.

  Args:
    model: of `transformer.build`.
    lengths: see `t5like/objectives/lengths.py`.
    rates: {path: [rate of each layer, 0 if it is frozen]}, as of `optim.rates`; None: everything is trained. What is
      frozen in some layers only has gradients in all.

  Raises:
    NotImplementedError: for parameters of which a token multiplies some, and it is not known which.
  """
  c, total = model.config, 0
  trained = {path: rates is None or any(rates[path]) for path in model.parameters}
  first = _first(c, [param for path, param in model.parameters.items() if trained[path]])
  for path, param in model.parameters.items():
    if param.batch:
      raise NotImplementedError(f'{path} has matrices of its own along the axes {param.batch!r} of {param.dims}: '
                                't5like/model/flops.py does not know which of them a token multiplies.')
    tokens = _tokens(c, param, lengths)
    passes = PASSES[c.name] if param.is_stacked else 1
    for layer in range(passes * param.num_layers if tokens else 0):
      gradients = int(trained[path]) + int(first[_reads(param)] < _place(c, param, layer))
      total += 2 * (1 + gradients) * (param.size // param.num_layers) * tokens
  return total + _attention(c, lengths, first)


def _tokens(c: Any, param: Param, lengths: Any) -> int:
  """How many tokens of a row a parameter multiplies; 0 where it is looked up."""
  is_table = param.role in LOOKED_UP or param.role == 'relative'
  if param.role == 'embed' and c.tie_embeddings or param.layer == 'head':
    return lengths.predicted
  if is_table:
    return 0
  return lengths.targets if _reads(param) == 'decoder' else lengths.inputs


def _reads(param: Param) -> str:
  """What a parameter multiplies: activations of the 'encoder', of the 'decoder', or the encoder's output, 'memory'."""
  if param.stack == 'encoder':
    return 'encoder'
  return 'memory' if param.layer == 'cross' and param.role in ('k', 'v') else 'decoder'


def attention(c: Any, lengths: Any) -> int:
  """Of the products of queries, keys and values alone, when everything is trained. c: a ModelConfig."""
  return _attention(c, lengths, dict.fromkeys(('encoder', 'decoder'), (EARLY, 0)))


def _attention(c, lengths, first):
  _refuse_unknown(c)
  T, S = lengths.targets, lengths.inputs
  kinds = [('decoder', 'attention', c.num_layers, T * T)]
  if S:
    kinds += [('encoder', 'attention', c.num_encoder_layers, S * S), ('decoder', 'cross', c.num_layers, T * S)]
  total = 0
  for stack, name, layers, pairs in kinds:
    for layer in range(PASSES[c.name] * layers):
      is_trained = first[stack] < (layer, ORDER.index(f'{name}/pairs'))
      total += (12 if is_trained else 4) * c.num_heads * c.head_dim * pairs
  return total


def _place(c: Any, param: Param, layer: int = 0) -> tuple[float, float]:
  """Where a parameter is in its stack: (layer, part of the block); a second pass follows the first."""
  if not param.is_stacked:
    if param.layer not in OUTSIDE:
      raise NotImplementedError(f'{param}: t5like/model/flops.py does not know where it multiplies; OUTSIDE says it.')
    return OUTSIDE[param.layer]
  part = _part(c, param)
  # The second factor of an adapter multiplies what the first has made.
  return layer, ORDER.index(part) + (0.5 if param.kind == 'lora_b' else 0)


def _part(c: Any, param: Param) -> str:
  """The entry of ORDER that a parameter of a block belongs to."""
  if param.layer in NORMS_AFTER:
    is_before = choices.BLOCKS[c.block].norm_input
    return param.layer if is_before else NORMS_AFTER[param.layer]
  if (param.layer, param.role) not in PARTS:
    raise NotImplementedError(f'{param}: t5like/model/flops.py does not know where in a block it multiplies; PARTS '
                              'says it.')
  return PARTS[param.layer, param.role]


def _group(param: Param) -> str:
  """'looked_up' where rows enter, before all layers, else 'encoder' or 'decoder'."""
  if param.role in LOOKED_UP or param.layer == 'embed_norm':
    return 'looked_up'
  return 'encoder' if param.stack == 'encoder' else 'decoder'


def _first(c: Any, trained: list[Param]) -> dict[str, tuple[float, float]]:
  """The places from which on gradients of activations are asked for, by what a parameter reads (`_reads`)."""
  earliest = dict(looked_up=NEVER, encoder=NEVER, decoder=NEVER)
  for param in trained:
    group = _group(param)
    place = (EARLY, 0) if param.role == 'embed' else _place(c, param)
    earliest[group] = min(earliest[group], place)
  encoder = min(earliest['looked_up'], earliest['encoder'])
  memory = NEVER if encoder == NEVER else (EARLY, 0)
  # The encoder's output reaches the decoder in its first layer's cross-attention.
  from_encoder = NEVER if earliest['encoder'] == NEVER else (0, ORDER.index('cross/in') - 0.5)
  decoder = min(earliest['looked_up'], earliest['decoder'], from_encoder)
  return dict(encoder=encoder, memory=memory, decoder=decoder)


# Keys of config.model whose products are counted: by the shapes of parameters, or here.
COUNTED = ('name', 'vocab_size', 'd_model', 'num_layers', 'num_encoder_layers', 'num_heads', 'num_kv_heads', 'head_dim',
           'd_ff', 'activation', 'block', 'use_bias', 'tie_embeddings', 'head', 'qk_norm', 'lora_rank',
           'lora_projections')
# Keys that change no product, or, as masks, only some that PaLM's convention counts all the same.
WITHOUT_PRODUCTS = ('norm', 'norm_eps', 'embed_norm', 'position', 'rope_theta', 'rope_fraction', 'max_positions',
                    'num_types', 'scale_attention', 'logit_softcap', 'dropout', 'dropout_style', 'init', 'dtype',
                    'attention', 'scan_layers', 'remat', 'prefix_mask', 'lora_alpha')


def _refuse_unknown(c):
  """NotImplementedError for a key of the model that may change its products without being known here."""
  for field in dataclasses.fields(c):
    value = getattr(c, field.name)
    if field.name not in (*COUNTED, *WITHOUT_PRODUCTS) and value != field.default:
      raise NotImplementedError(f'model.{field.name}={value!r}: t5like/model/flops.py does not know what this changes '
                                'of the FLOPs of a row. Count it there.')
