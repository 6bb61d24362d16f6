"""What is wrong with the keys of config.model that are about experts."""
from collections.abc import Iterator

from t5like.config.resolved import is_sparse
from t5like.config.values import DEFAULTS, divisors, show
from t5like.config_type import Config, Section

OF_EXPERTS = ('experts_per_token', 'expert_d_ff', 'expert_capacity', 'shared_experts', 'shared_gate', 'sparse_every',
              'dense_first', 'router', 'router_balance', 'router_bias', 'router_z_loss', 'router_jitter')
OF_MLPS = ('up', 'gate', 'down')


def check_experts(config: Config) -> Iterator[str]:
  """Yields what is wrong with experts, or with what belongs to them where there are none."""
  model = config.model
  devices = config.mesh.expert
  if not model.experts:
    yield from _without(model)
    if devices > 1:
      yield f'mesh.expert={devices}: model.experts=0, so there are no experts to spread. Use mesh.fsdp={devices}.'
    return
  if model.experts_per_token > model.experts:
    yield (f'model.experts_per_token={model.experts_per_token}: there are only model.experts={model.experts}. Use at '
           'most that.')
  if devices > 1 and model.experts % devices:
    yield (f'mesh.expert={devices}: must divide model.experts={model.experts}. '
           f'Use mesh.expert={divisors(devices, model.experts)}.')
  if model.shared_gate and not model.shared_experts:
    yield 'model.shared_gate=True: belongs to model.shared_experts, and it is 0. Use False, or model.shared_experts=1.'
  yield from _layers(model)
  yield from _dense_alone(model)


def _without(model: Section) -> Iterator[str]:
  for key in OF_EXPERTS:
    default = DEFAULTS[f'model.{key}']
    if model[key] != default:
      yield (f'model.{key}={show(model[key])}: belongs to model.experts, and it is 0. Use {show(default)}, or '
             'model.experts=8.')


def _layers(model: Section) -> Iterator[str]:
  """Each stack needs a layer with experts."""
  stacks = dict(num_layers=model.num_layers, num_encoder_layers=model.num_encoder_layers)
  for key, count in stacks.items():
    is_any = any(is_sparse(n, model.sparse_every, model.dense_first) for n in range(count))
    if count and not is_any:
      yield (f'model.experts={model.experts}: no layer has them with model.sparse_every={model.sparse_every}, '
             f'model.dense_first={model.dense_first} and model.{key}={count}. Use model.sparse_every=1 and '
             'model.dense_first=0.')


def _dense_alone(model: Section) -> Iterator[str]:
  """What layers of one MLP have and experts do not."""
  if model.use_bias:
    yield 'model.use_bias=True: experts have no biases. Use False; model.qkv_bias=True may be used beside experts.'
  if model.quantization != 'none':
    yield (f'model.quantization={show(model.quantization)}: products of experts have full precision only. '
           "Use 'none'.")
  if not model.lora_rank:
    return
  for name in model.lora_projections:
    if name in OF_MLPS:
      yield (f'model.lora_projections has {name!r}: experts have no adapters. Use those of attention, such as '
             "('q', 'v').")
