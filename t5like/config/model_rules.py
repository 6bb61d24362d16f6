"""Which sizes of a model go together: the rules of config.model."""
import re
from collections.abc import Iterator

from t5like import choices
from t5like.config.resolved import LANES, resolve, vocab_size
from t5like.config.values import DEFAULTS, divisors, show, up
from t5like.config_type import Config, Section

EXAMPLE_RANK = 16  # of adapters, that errors suggest


def check_model(config: Config) -> Iterator[str]:
  """Yields what is wrong with `config.model`, and with the patterns that pick its parameters."""
  model = config.model
  resolved = resolve(config).model
  yield from _heads(model, resolved)
  yield from _adapters(model, resolved)
  if model.tie_embeddings is False and choices.HEADS[model.head].scaled:
    yield f"model.head={model.head!r}: belongs to model.tie_embeddings=True. Use 'linear'."
  if model.num_heads % resolved.num_kv_heads:
    yield (f'model.num_kv_heads={model.num_kv_heads}: must divide model.num_heads={model.num_heads}. '
           f'Use {divisors(model.num_kv_heads, model.num_heads)}.')
  needs = vocab_size(config.vocabulary)
  if 0 < model.vocab_size < needs:
    yield (f'model.vocab_size={model.vocab_size}: the vocabulary has {needs} tokens. '
           f'Use at least {needs} (better {up(needs, LANES)}), or 0 to have it rounded up.')
  yield from _decay_mask(config.optimizer.decay_mask)


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


def _decay_mask(pattern: str) -> Iterator[str]:
  try:
    re.compile(pattern)
  except (re.error, RecursionError, OverflowError) as error:
    yield (f'optimizer.decay_mask={show(pattern)}: not a regular expression: {error}. '
           f"The default is {DEFAULTS['optimizer.decay_mask']!r}.")
