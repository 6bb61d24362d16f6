"""A config.json with a config of its own for the encoder and for the decoder (T5Gemma), as one of flat keys, and back.

Both stacks of ours have the same sizes but for their number of layers, so that all other keys must be equal in both.
"""
from collections.abc import Mapping
from typing import Any

from t5like.config.values import show
from t5like.errors import ConfigError
from t5like.huggingface import layer_kinds

Values = dict[str, Any]

ENCODER_LAYERS = 'num_encoder_layers'  # in flat keys
# Keys that may differ: of depth, which is read apart, and those that say which of the two stacks it is.
OF_A_STACK = ('num_hidden_layers', 'layer_types', 'is_decoder', 'model_type', 'cross_attention_hidden_size')
# Keys of the whole model, which stay outside of the stacks.
OF_THE_WHOLE = ('architectures', 'model_type', 'dtype', 'dropout_rate', 'tie_word_embeddings', 'vocab_size')


def flatten(kind: str, hf: Values) -> Values:
  """The keys of the decoder, those outside of both, the encoder's depth, and layer_types of the deeper stack.

  Raises:
    ConfigError: for what is no config of a stack, and for keys in which the stacks differ.
  """
  stacks = []
  for name in ('encoder', 'decoder'):
    stack = hf.get(name)
    if not isinstance(stack, dict):
      raise ConfigError(f'config.json of a {kind} model needs an object as {name}, and it is {show(stack)}.')
    stacks.append(stack)
  encoder, decoder = stacks
  for key in sorted({*encoder, *decoder}):
    if key not in OF_A_STACK and encoder.get(key) != decoder.get(key):
      raise ConfigError(f'encoder.{key}={show(encoder.get(key))} and decoder.{key}={show(decoder.get(key))} in '
                        f'config.json: {kind} models can only be read where both stacks have the same.')
  flat = {**decoder, **hf}
  del flat['encoder'], flat['decoder']
  flat[ENCODER_LAYERS] = encoder.get('num_hidden_layers', decoder.get('num_hidden_layers'))
  _check_kinds(kind, encoder, decoder)
  flat['layer_types'] = max(encoder.get('layer_types') or [], decoder.get('layer_types') or [], key=len)
  return flat


def _check_kinds(kind: str, encoder: Values, decoder: Values) -> None:
  """ConfigError where the kinds of layers of the two stacks do not begin alike."""
  one = encoder.get('layer_types') or []
  other = decoder.get('layer_types') or []
  if not isinstance(one, list) or not isinstance(other, list):
    raise ConfigError('layer_types in config.json must be lists.')
  for n, (of_encoder, of_decoder) in enumerate(zip(one, other)):
    if of_encoder != of_decoder:
      raise ConfigError(f'layer_types in config.json: layer {n} is {show(of_encoder)} in the encoder and '
                        f'{show(of_decoder)} in the decoder; {kind} models can only be read where both are the same.')


def nest(model: Mapping[str, Any], flat: Values) -> Values:
  """Undoes `flatten`; `model`: config.model, every size known."""
  whole = {key: flat[key] for key in OF_THE_WHOLE if key in flat}
  of_stacks = {key: value for key, value in flat.items() if key not in (*OF_THE_WHOLE, ENCODER_LAYERS)}
  of_stacks['vocab_size'] = flat['vocab_size']
  layers = model['num_encoder_layers']
  kinds = layer_kinds.write(dict(model, num_layers=layers))
  encoder = dict(of_stacks, num_hidden_layers=layers, layer_types=kinds['layer_types'], is_decoder=False)
  decoder = dict(of_stacks, is_decoder=True)
  return dict(whole, is_encoder_decoder=True, encoder=encoder, decoder=decoder)
