"""Multiplications and additions that one row of training needs, by PaLM's convention, of what has gradients.

Chowdhery et al. 2022, appendix B: 6 per parameter and token that it multiplies, and 12 N H per layer and pair of
tokens that attention compares, uncut by causal masks. Of the 6, 2 are of the forward pass, 2 of the gradient of what
the parameter multiplies and 2 of its own gradient; of the 12, 4 and 8. A gradient that nobody asks for is not counted:
that of a frozen parameter, and that of activations before which nothing is trained. Tables that are only looked up,
and biases by distance, multiply nothing.
"""
import dataclasses
import math

import jax

from t5like import choices

LOOKED_UP = ('embed', 'embed_norm', 'positions', 'types')  # where rows enter: before all layers
GROUPS = {**dict.fromkeys(LOOKED_UP, 'looked_up'), 'encoder': 'encoder'}  # of parameters; all others: the decoder
# Order of a block's parts: what stands later multiplies what the earlier ones have made.
ORDER = ('attention_norm', 'attention/in', 'attention/pairs', 'attention/o', 'cross_norm', 'cross/in', 'cross/pairs',
         'cross/o', 'mlp_norm', 'mlp/in', 'mlp/down')
# Where norms come after what they stand beside, they are like the part before them.
NORMS_AFTER = dict(attention_norm='attention/o', cross_norm='cross/o', mlp_norm='mlp/down')
EARLY, LATE = -1, math.inf  # layers before and after all others
NEVER = (math.inf, math.inf)  # a place after everything


def per_row(model, lengths, rates=None) -> int:
  """Of one row, forward and backward.

  Args:
    model: of `transformer.build`.
    lengths: see `t5like/lengths.py`.
    rates: {path: [rate of each layer, 0 if it is frozen]}, as of `optim.rates`; None: everything is trained. What is
      frozen in some layers only has gradients in all.
  """
  c, T, S = model.config, lengths.targets, lengths.inputs
  predictions, total = lengths.predictions or T, 0
  shapes = _shapes(model)
  trained = {path: rates is None or any(rates[path]) for path in shapes}
  first = _first(c, trained)
  for path, x in shapes.items():
    parts = path.split('/')
    if parts[0] in ('positions', 'types') or 'relative' in parts or parts[0] == 'embed' and not c.tie_embeddings:
      continue
    tokens = T
    if parts[0] in ('embed', 'head'):
      tokens = predictions
    elif parts[0] == 'encoder' or 'cross' in parts and parts[-2] in 'kv':
      tokens = S
    layers = x.shape[0] if 'blocks' in parts else 1
    for layer in range(layers):
      gradients = int(trained[path]) + int(first(path) < _place(c, path, layer))
      total += 2 * (1 + gradients) * (x.size // layers) * tokens
  return total + _attention(c, lengths, first)


def attention(c, lengths) -> int:
  """Of the products of queries, keys and values alone, when everything is trained. c: a ModelConfig."""
  return _attention(c, lengths, lambda path: (EARLY, 0))


def _shapes(model):
  leaves = jax.tree_util.tree_leaves_with_path(jax.eval_shape(lambda: model.init(jax.random.key(0))))
  return {'/'.join(key.key for key in path): x for path, x in leaves}


def _attention(c, lengths, first):
  _refuse_unknown(c)
  T, S = lengths.targets, lengths.inputs
  stack = 'decoder' if S else 'stack'
  kinds = [(f'{stack}/blocks/attention/pairs', c.num_layers, T * T)]
  if S:
    kinds += [('encoder/blocks/attention/pairs', c.num_encoder_layers, S * S),
              ('decoder/blocks/cross/pairs', c.num_layers, T * S)]
  total = 0
  for path, layers, pairs in kinds:
    for layer in range(layers):
      is_trained = first(path) < _place(c, path, layer)
      total += (12 if is_trained else 4) * c.num_heads * c.head_dim * pairs
  return total


def _place(c, path, layer=0):
  """Where a parameter is in its stack: (layer, part of the block)."""
  parts = path.split('/')
  if parts[0] in ('embed', 'head'):  # a tied table multiplies last
    return LATE, 1 + (parts[0] == 'embed')
  if parts[0] in LOOKED_UP:
    return EARLY, int(parts[0] == 'embed_norm')
  if 'relative' in parts:  # made for all layers, added where the first compares tokens
    return 0, ORDER.index('attention/in')
  if 'blocks' not in parts:
    return LATE, 0
  at = parts.index('blocks') + 1
  name = parts[at]
  if name in NORMS_AFTER:
    part = name if choices.BLOCKS[c.block].norm_input else NORMS_AFTER[name]
  else:
    inner = parts[at + 1]
    part = f'{name}/{inner}' if f'{name}/{inner}' in ORDER else f'{name}/in'
  # The second factor of an adapter multiplies what the first has made.
  return layer, ORDER.index(part) + (0.5 if parts[-1] == 'lora_b' else 0)


def _first(c, trained):
  """A function: the place from which on gradients of activations are asked for, as the parameter at a path sees it."""
  earliest = dict(looked_up=NEVER, encoder=NEVER, decoder=NEVER)
  for path in filter(trained.get, trained):
    top = path.split('/')[0]
    group = GROUPS[top] if top in GROUPS else 'decoder'
    earliest[group] = min(earliest[group], (EARLY, 0) if top == 'embed' else _place(c, path))
  encoder = min(earliest['looked_up'], earliest['encoder'])
  # The encoder's output reaches the decoder in its first layer's cross-attention.
  from_encoder = NEVER if earliest['encoder'] == NEVER else (0, ORDER.index('cross/in') - 0.5)
  decoder = min(earliest['looked_up'], earliest['decoder'], from_encoder)

  def first(path):
    parts = path.split('/')
    if parts[0] == 'encoder':
      return encoder
    if 'cross' in parts and parts[-2] in 'kv':  # they multiply the encoder's output
      return NEVER if encoder == NEVER else (EARLY, 0)
    return decoder
  return first


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
