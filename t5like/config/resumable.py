"""Which keys of a config may change between two starts of a run, and what to do about those that may not."""
import re
from collections.abc import Iterable, Sequence
from typing import Any

from t5like.config.objective_rules import OF_A_DATASET
from t5like.config.values import DEFAULTS, either, flatten, show
from t5like.config_type import Config
from t5like.errors import ConfigError

# Prefixes of keys that may differ from the run being resumed: they change neither what the
# parameters are nor which rows of text come next, or are meant to be turned while training. Of stages, only those that
# have not begun (`stages.check_begun`).
ALLOWED = tuple('''batch_size microbatches optimizer.learning_rate schedule stages stop evaluate checkpoint
  log guard watchdog sample mesh reference params_expected init_from branch_from
  allow_changed data.workers data.prefetch
  data.directory data.cache data.tfds_dir data.prepare_workers data.skip_rows data.max_bad_records data.empty
  model.remat model.scan_layers model.attention
  model.context_attention loss.chunks compile'''.split())

# Keys that decide which arrays a checkpoint holds: no permission makes an old one fit.
OF_PARAMETERS = tuple(f'model.{key}' for key in '''name vocab_size d_model num_layers num_encoder_layers num_heads
  num_kv_heads head_dim d_ff activation block norm use_bias qkv_bias embed_norm position max_positions num_types
  tie_embeddings head qk_norm attention_sinks encoder_embed experts expert_d_ff
  shared_experts shared_gate sparse_every dense_first router_bias lora_rank lora_projections'''.split())
OF_THE_OPTIMIZER = ('optimizer.name', 'optimizer.extra', 'optimizer.freeze', 'optimizer.ema')
# What is prepared; a checkpoint knows it by one fingerprint, which `allow_changed=data` lets go.
OF_THE_DATASET = (*(f'data.{key}' for key in OF_A_DATASET if key not in ('packing', 'document_mask')), 'data.mixture')


Difference = tuple[str, Any, Any]  # key, old value, new value
Shapes = dict[str, tuple[int, ...]]  # {path: shape} of arrays


def differences(old: Config, new: Config) -> list[Difference]:
  """All keys that differ, with both values; one that is missing has its default."""
  old_flat = {**DEFAULTS, **flatten(old)}
  new_flat = {**DEFAULTS, **flatten(new)}
  changed = []
  for key in {**new_flat, **old_flat}:
    before = old_flat.get(key)
    after = new_flat.get(key)
    if before != after:
      changed.append((key, before, after))
  return changed


def permitted(config: Config) -> list[str]:
  """The keys and sections that `allow_changed` names."""
  names = [re.sub(r'^(--)?config\.', '', key.strip()) for key in config.allow_changed.split(',')]
  return [name for name in names if name]


def is_permitted(config: Config, key: str) -> bool:
  """Whether `allow_changed` names a key or its section."""
  return under(key, permitted(config))


def under(key: str, prefixes: Iterable[str]) -> bool:
  return any(f'{key}.'.startswith(f'{prefix}.') for prefix in prefixes)


def check_resumable(old: Config, new: Config, where: str) -> list[Difference]:
  """Allowed differences between the config of the run in `where` and one that is to resume it.

  Raises ConfigError when others differ than those in ALLOWED and in `new.allow_changed`.
  """
  changed = differences(old, new)
  may_change = (*ALLOWED, *permitted(new))
  refused = []
  lines = [f'{where} holds a run of another config:']
  for key, before, after in changed:
    if not under(key, may_change):
      refused.append(key)
      lines.append(f'{key}: {show(before)} there, {show(after)} now')
  if refused:
    raise ConfigError('\n  '.join(lines) + f'\n{_advice(refused, permitted(new))}')
  return changed


def _advice(keys: Sequence[str], already: Sequence[str]) -> str:
  """What works after these keys were refused, `already` being permitted."""
  reasons = []
  parameters = [key for key in keys if key in OF_PARAMETERS]
  if parameters:
    reasons.append(f'{either(parameters)} decides which parameters there are')
  vocabulary = [key for key in keys if key.startswith('vocabulary.')]
  if vocabulary:
    reasons.append(f'{either(vocabulary)} decides which token each id stands for')
  if reasons:
    return f'{" and ".join(reasons)}: this checkpoint cannot be resumed so. To begin anew, give another --workdir.'
  optimizer = [key for key in keys if key in OF_THE_OPTIMIZER]
  if optimizer:
    return (f'{either(optimizer)} decides what state the optimizer keeps, which this checkpoint does not have. To '
            'begin with its weights and a new optimizer, give another --workdir, and --config.init_from= the workdir '
            'of this run.')
  names = dict.fromkeys(already)  # each once, in order
  for key in keys:
    names['data' if key in OF_THE_DATASET else key] = None
  return (f'To resume with the values of now, add --config.allow_changed={",".join(names)}; to begin anew, give '
          'another --workdir.')


def other_arrays(old: Shapes, new: Shapes, changed: Sequence[Difference], where: str) -> None:
  """ConfigError if a checkpoint of the config before would not fit the state of the config now.

  Args:
    old, new: of the state's arrays under either config.
    changed: what `check_resumable` returned.
    where: of the checkpoint, in words.
  """
  differing = sorted(path for path in {**old, **new} if old.get(path) != new.get(path))
  if not differing:
    return
  path = differing[0]
  more = ''
  if len(differing) > 1:
    more = f' and {len(differing) - 1} more arrays'
  keys = [key for key, _, _ in changed]
  of_arrays = [key for key in keys if key in (*OF_PARAMETERS, *OF_THE_OPTIMIZER)]
  raise ConfigError(f'{where} has {path} of shape {old.get(path, "(none)")}, and with the config of now it would be '
                    f'{new.get(path, "(none)")}{more}. {_advice(of_arrays or keys, [])}')
