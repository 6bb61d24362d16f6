"""Which layers have experts: config.model says it by two numbers, families list layers or count them."""
from collections.abc import Mapping, Sequence
from typing import Any

from t5like import choices
from t5like.config.resolved import is_sparse
from t5like.config.values import show
from t5like.errors import ConfigError
from t5like.huggingface.tables import STACKS

Values = dict[str, Any]
Model = Mapping[str, Any]  # config.model, every size known

MOST = 1 << 17  # experts of all layers, some times those of any published model
NOTHING_DROPPED = 1 << 24  # a capacity that no row is longer than
ROUTERS = {True: 'softmax_normalized', False: 'softmax'}  # norm_topk_prob -> model.router


def has_experts(model: Model, layer: int) -> bool:
  """Whether a layer of a stack, counted from 0, has experts."""
  return model['experts'] > 0 and is_sparse(layer, model['sparse_every'], model['dense_first'])


def of_stacks(model: Model) -> list[list[bool]]:
  """Which layers of each stack have experts."""
  counts = [model['num_layers']]
  if choices.ARCHITECTURES[model['name']].has_encoder:
    counts.append(model['num_encoder_layers'])
  stacks = []
  for count in counts:
    layers = range(count)
    stacks.append([has_experts(model, layer) for layer in layers])
  return stacks


def all_sparse(model: Model) -> bool:
  """Whether no layer has an MLP of its own."""
  stacks = of_stacks(model)
  return all(map(all, stacks))


def numbers(stacks: Sequence[Sequence[bool]]) -> Values | None:
  """model.sparse_every and dense_first of stacks with experts in these layers, the smallest; None if there are none."""
  if not all(map(any, stacks)):
    return None
  firsts = [list(stack).index(True) for stack in stacks]
  first = min(firsts)
  for dense_first in (0, first):
    for every in range(1, first + 2):
      begins_there = is_sparse(first, every, 0)
      if begins_there and _are_these(stacks, every, dense_first):
        return dict(
            sparse_every=every,
            dense_first=dense_first,
        )
  return None


def _are_these(stacks: Sequence[Sequence[bool]], every: int, dense_first: int) -> bool:
  for stack in stacks:
    for layer, has_some in enumerate(stack):
      expected = is_sparse(
          layer,
          every,
          dense_first,
      )
      if has_some != expected:
        return False
  return True


def settled(model: Model) -> Values:
  """The numbers that `numbers` gives of a model, where it has layers with experts."""
  return numbers(of_stacks(model)) or {}


def check(theirs: Mapping[str, str], values: Values) -> None:
  """ConfigError for numbers of experts in a config.json that do not fit each other, or that no memory holds.

  Args:
    theirs: {key of config.model: that of config.json}.
    values: of config.model.
  """
  experts = values['experts']
  if not experts:
    return
  named = f'{theirs["experts"]}={experts}'
  if values.get('experts_per_token', 1) > experts:
    raise ConfigError(f'{theirs["experts_per_token"]}={values["experts_per_token"]} in config.json is more than '
                      f'{named}.')
  layers = max(values['num_layers'], values['num_encoder_layers'])
  if experts * layers > MOST:
    raise ConfigError(f'{named} in each of {layers:,} layers in config.json: only {MOST:,} in all layers together can '
                      'be read.')


def read_router(hf: Values, values: Values) -> None:
  is_normalized = hf.get('norm_topk_prob', False)
  values['router'] = ROUTERS[is_normalized]


def write_router(model: Model) -> Values:
  facts = choices.ROUTERS[model['router']]
  return dict(norm_topk_prob=facts.normalized)


def read_qwen(hf: Values, values: Values) -> None:
  """The last of `decoder_sparse_step` layers has experts, unless `mlp_only_layers` names it."""
  read_router(hf, values)
  step = hf.get('decoder_sparse_step', 1)
  listed = hf.get('mlp_only_layers') or []
  dense = set(listed)
  stack = []
  for layer in range(values['num_layers']):
    is_last = is_sparse(layer, step, 0)
    stack.append(is_last and layer not in dense)
  layout = numbers([stack])
  if layout is None:
    raise ConfigError(f'decoder_sparse_step={step} and mlp_only_layers={show(sorted(dense))} in config.json: models '
                      'can only be read where some of the first layers have no experts, and after these the last of '
                      'every decoder_sparse_step layers has them.')
  values.update(layout)


def write_qwen(model: Model) -> Values:
  dense = range(model['dense_first'])
  return dict(
      write_router(model),
      decoder_sparse_step=model['sparse_every'],
      mlp_only_layers=list(dense),
  )


def read_shared(hf: Values, values: Values) -> None:
  """Qwen 2 says how wide the MLP is that all tokens pass, model.shared_experts as how many experts."""
  width = hf.get('shared_expert_intermediate_size', 5632)
  of_one = values['expert_d_ff']
  if width % of_one:
    raise ConfigError(f'shared_expert_intermediate_size={width} in config.json: models can only be read where it is a '
                      f'multiple of moe_intermediate_size={of_one}.')
  values['shared_experts'] = width // of_one


def write_shared(model: Model) -> Values:
  width = model['shared_experts'] * model['expert_d_ff']
  return dict(shared_expert_intermediate_size=width)


def read_switch(hf: Values, values: Values) -> None:
  """Layers with experts are counted for each stack; an expert takes so many tokens of a row, the first ones."""
  stacks = []
  counted = []
  for side in ('encoder', 'decoder'):
    key = f'num_sparse_{side}_layers'
    number = hf.get(key, 3)
    layers = values[STACKS[side]]
    stack = _of_switch(layers, number)
    stacks.append(stack)
    counted.append(f'{key}={number}')
  layout = numbers(stacks)
  if layout is None:
    raise ConfigError(f'{" and ".join(counted)} in config.json: models can only be read where each stack has experts '
                      'in every layer, or in every second one.')
  values.update(layout)
  capacity = hf.get('expert_capacity', 64)
  if capacity >= NOTHING_DROPPED:
    capacity = 0
  jitter = hf.get('router_jitter_noise', 0.01)
  values['expert_capacity'] = capacity
  values['router_jitter'] = float(jitter)


def _of_switch(layers: int, number: int) -> list[bool]:
  """Which layers of a stack have experts, as transformers counts them: the second of each turn."""
  if number > layers:
    return [False] * layers
  period = layers // max(1, number)
  if period == 1:
    return [True] * layers
  return [layer % period == 1 for layer in range(layers)]


def write_switch(model: Model) -> Values:
  decoder, encoder = of_stacks(model)
  return dict(
      is_encoder_decoder=True,
      num_sparse_encoder_layers=sum(encoder),
      num_sparse_decoder_layers=sum(decoder),
      expert_capacity=model['expert_capacity'] or NOTHING_DROPPED,
      router_jitter_noise=model['router_jitter'],
  )
