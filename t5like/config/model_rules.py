"""Which sizes, kinds of layers and positions of a model go together: the rules of config.model."""
import math
from collections.abc import Iterator
from typing import Any

from t5like import choices
from t5like.config.resolved import LANES, resolve, vocab_size
from t5like.config.values import divisors, either, show, up
from t5like.config_type import Config, Section
from t5like.nearest import suggestion

EXAMPLE_RANK = 16  # of adapters, that errors suggest


def check_model(config: Config) -> Iterator[str]:
  """Yields what is wrong with `config.model`."""
  model = config.model
  resolved = resolve(config).model
  yield from _heads(model, resolved)
  yield from _layers(model)
  if choices.BLOCKS[model.block].bare_first and min(resolved.num_layers, resolved.num_encoder_layers or 2) < 2:
    yield (f"model.block={model.block!r}: only the first layer goes without a norm, so that there must be a second "
           "one. Use at least 2 layers, or 'pre_norm'.")
  yield from _rope_scaling(model, resolved)
  yield from _adapters(model, resolved)
  yield from _ring(model)
  if model.tie_embeddings is False and choices.HEADS[model.head].scaled:
    yield f"model.head={model.head!r}: belongs to model.tie_embeddings=True. Use 'linear'."
  yield from _of_encoders(model)
  if model.num_heads % resolved.num_kv_heads:
    yield (f'model.num_kv_heads={model.num_kv_heads}: must divide model.num_heads={model.num_heads}. '
           f'Use {divisors(model.num_kv_heads, model.num_heads)}.')
  needs = vocab_size(config.vocabulary)
  if 0 < model.vocab_size < needs:
    yield (f'model.vocab_size={model.vocab_size}: the vocabulary has {needs} tokens. '
           f'Use at least {needs} (better {up(needs, LANES)}), or 0 to have it rounded up.')


def _ring(model: Section) -> Iterator[str]:
  """What attention in a ring needs of its kernel."""
  if model.context_attention != 'ring':
    return
  if model.attention not in ('auto', 'splash'):
    yield (f"model.context_attention='ring': model.attention={model.attention!r} has no ring. Use 'splash', or "
           "model.context_attention='auto'.")
  if model.dropout:
    yield (f"model.context_attention='ring': attention with model.dropout={model.dropout} has no ring. Use "
           "model.dropout=0, or model.context_attention='auto'.")


def _heads(model: Section, resolved: Section) -> Iterator[str]:
  """Sizes of heads."""
  if not model.head_dim and model.d_model % model.num_heads:
    yield (f'model.num_heads={model.num_heads}: must divide model.d_model={model.d_model}. '
           f'Use {divisors(model.num_heads, model.d_model)}, or set model.head_dim.')
    return
  if not choices.POSITIONS[model.position].rotary:
    return
  head_dim = resolved.head_dim
  rotated = int(head_dim * model.rope_fraction)
  if head_dim % 2:
    source = '' if model.head_dim else ' (d_model / num_heads)'
    yield (f"model.head_dim={head_dim}{source}: must be even for model.position={model.position!r}. "
           f'Use model.head_dim={head_dim + 1}.')
  elif rotated % 2:
    yield (f'model.rope_fraction={model.rope_fraction}: turns {rotated} of model.head_dim={head_dim} dimensions, '
           f'which must be an even number. Use {2 / head_dim:g} or a multiple of it.')


def _layers(model: Section) -> Iterator[str]:
  """Kinds of layers, and what only some kinds read."""
  if not model.layers:
    yield "model.layers=(): a stack has layers of some kind. Use ('global',)."
    return
  kinds = [choices.LAYERS[name] for name in model.layers if name in choices.LAYERS]
  yield from _windows(model, any(kind.windowed for kind in kinds))
  is_rotary = choices.POSITIONS[model.position].rotary
  has_unrotated = not all(kind.rotated for kind in kinds)
  if has_unrotated and not is_rotary:
    yield (f"model.layers={show(tuple(model.layers))}: layers without rotary positions belong to "
           f"model.position='rope', and it is {model.position!r}. Use 'global' and 'local'.")
  if model.local_rope_theta and not is_rotary:
    yield f"model.local_rope_theta={model.local_rope_theta}: belongs to model.position='rope'. Use 0."
  if model.qkv_bias and model.use_bias:
    yield 'model.qkv_bias=True: model.use_bias=True has these biases already. Use one of them.'


def _of_encoders(model: Section) -> Iterator[str]:
  """Keys that say how an encoder differs from its decoder."""
  if choices.ARCHITECTURES[model.name].has_encoder:
    has_positions = choices.POSITIONS[model.position].embedded
    if choices.ENCODER_EMBEDS[model.encoder_embed].positions and not has_positions and not model.embed_norm:
      yield (f'model.encoder_embed={show(model.encoder_embed)}: with model.position={show(model.position)} and '
             "model.embed_norm=False there are neither embedded positions nor a norm of embeddings. Use 'shared'.")
    return
  for key, default in dict(encoder_embed='shared', encoder_window=0).items():
    if model[key] != default:
      yield (f"model.{key}={show(model[key])}: belongs to model.name='encoder_decoder', and it is {model.name!r}. "
             f'Use {show(default)}.')


def _windows(model: Section, has_window: bool) -> Iterator[str]:
  """What local layers need and what belongs to them; `has_window`: whether there are any."""
  if has_window and not model.window:
    yield (f'model.layers={show(tuple(model.layers))}: local layers need model.window, the number of tokens that they '
           'see, such as 512.')
  if has_window:
    return
  for key in ('window', 'window_after', 'encoder_window', 'local_rope_theta'):
    if model[key]:
      yield (f"model.{key}={show(model[key])}: belongs to local layers, and model.layers={show(tuple(model.layers))} "
             "has none. Use 0, or model.layers=('local',).")


def _rope_scaling(model: Section, resolved: Section) -> Iterator[str]:
  """What is wrong with model.rope_scaling."""
  scaling: dict[str, Any] = model.rope_scaling.to_dict()
  if not scaling:
    return
  example = "dict(name='linear', factor=2.0)"
  name = scaling.pop('name', None)
  if name not in choices.ROPE_SCALINGS:
    guess = suggestion(str(name), choices.ROPE_SCALINGS)
    yield f'model.rope_scaling.name={show(name)}: {guess}There is {either(choices.ROPE_SCALINGS)}, as in {example}.'
    return
  if not choices.POSITIONS[model.position].rotary:
    yield f"model.rope_scaling.name={name!r}: belongs to model.position='rope'. Use dict()."
  facts = choices.ROPE_SCALINGS[name]
  missing = [key for key in facts.required if key not in scaling]
  if missing:
    yield f'model.rope_scaling: {name!r} needs {", ".join(facts.required)}, and {missing[0]} is not given.'
  pairs = int(resolved.head_dim * model.rope_fraction) // 2
  for key, value in scaling.items():
    wrong = _wrong_number(name, key, value, pairs)
    if wrong:
      yield f'model.rope_scaling.{key}={show(value)}: {wrong}'


def _wrong_number(name: str, key: str, value: Any, pairs: int) -> str:
  """What is wrong with a value of model.rope_scaling, or ''; `pairs`: of dimensions that turn."""
  facts = choices.ROPE_SCALINGS[name]
  keys = (*facts.required, *facts.optional)
  if key not in keys:
    return f'{name!r} has {", ".join(keys)}.'
  if key in facts.lists:
    if _are_divisors(value, pairs):
      return ''
    return f'needs a tuple of {pairs} positive numbers, one for each pair of dimensions that turn.'
  if type(facts.optional.get(key)) is bool:
    return '' if type(value) is bool else 'needs True or False.'
  may_be_zero = key in facts.optional
  if _is_number(value) and (value > 0 or may_be_zero and value == 0):
    return ''
  return 'needs a positive number.'


def _are_divisors(values: Any, count: int) -> bool:
  if not isinstance(values, (tuple, list)) or len(values) != count:
    return False
  return all(_is_number(value) and value > 0 for value in values)


def _is_number(value: Any) -> bool:
  return type(value) in (int, float) and math.isfinite(value)


def _adapters(model: Section, resolved: Section) -> Iterator[str]:
  """Adapters (LoRA) of more columns than their matrix has rows or columns add nothing but memory."""
  heads = resolved.num_heads * resolved.head_dim
  key_heads = resolved.num_kv_heads * resolved.head_dim
  outputs = dict(q=heads, k=key_heads, v=key_heads, o=heads, up=resolved.d_ff, gate=resolved.d_ff, down=resolved.d_ff)
  for name in model.lora_projections:
    if name not in outputs:
      continue
    most = min(resolved.d_model, outputs[name])
    if model.lora_rank > most:
      yield (f'model.lora_rank={model.lora_rank}: the matrix {name!r} of model.lora_projections is '
             f'{resolved.d_model} x {outputs[name]}, whose rank is at most {most}. Use at most that, such as '
             f'{min(EXAMPLE_RANK, most)}.')
      return
