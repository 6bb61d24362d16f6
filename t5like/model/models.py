"""From a config to its model: sizes known, parameters counted, FLOPs, adapters merged."""
from typing import Any

import jax

from t5like import config as config_lib, sharding
from t5like.config_type import Config
from t5like.errors import ConfigError
from t5like.model import flops, layers, transformer
from t5like.objectives import lengths
from t5like.optim import from_config

MULTIPLE = 128  # of rows that the embedding has where model.vocab_size=0


def with_vocabulary(config: Config, vocabulary: Any) -> Any:
  """The config with every size known; ConfigError when the model cannot hold the vocabulary."""
  config = config_lib.resolve(config)
  rows = config.model.vocab_size
  padded = -(-vocabulary.size // MULTIPLE) * MULTIPLE
  if not rows:
    with config.unlocked():
      config.model.vocab_size = padded
  elif rows < vocabulary.size:
    raise ConfigError(f'model.vocab_size={rows}, but the vocabulary has {vocabulary.size} pieces, ids up to '
                      f'{vocabulary.size - 1}: set at least {vocabulary.size} ({padded} is a multiple of {MULTIPLE}).')
  return config


def build_model(config: Config) -> tuple[transformer.Model, int]:
  """(model, number of parameters) of a resolved config; checks params_expected. Needs a mesh in force."""
  model = transformer.build(transformer.ModelConfig.of(config.model))
  count = transformer.count_params(model)
  if config.params_expected and count != config.params_expected:
    raise ConfigError(f'params_expected={config.params_expected:,}, but this model has {count:,} '
                      'parameters. Correct the model section, or set params_expected to 0.')
  return model, count


def flops_per_row(config: Config, model: transformer.Model) -> int:
  """Multiplications and additions of one row of training, of what has gradients (`model/flops.py`)."""
  rates = from_config.rates(config.optimizer, model.parameters)
  return flops.per_row(model, lengths.shapes(config), rates)


def parameters(config: Config) -> dict[str, tuple]:
  """{path: (shape, rates)} of a resolved config, from shapes alone; rates as of `trained.rates`, whose ConfigError
  it raises. A vocabulary whose size is not known yet has size 0."""
  with no_devices():
    model = transformer.build(transformer.ModelConfig.of(config.model))
  rates = from_config.rates(config.optimizer, model.parameters)
  return {path: (param.shape, rates[path]) for path, param in model.parameters.items()}


def merged(config: Config, params: dict) -> tuple[Any, dict]:
  """(config, params) of the same model without adapters (LoRA): what they add is in its weights then."""
  c = transformer.ModelConfig.of(config.model)
  if not c.lora_rank:
    return config, params
  with no_devices():
    declared = transformer.build(c).parameters
  config = config.copy_and_resolve_references()
  with config.unlocked():
    config.model.lora_rank = 0
  return config, jax.jit(lambda params: layers.merged(params, declared, c))(params)


def no_devices() -> Any:
  """A context in which shapes can be found without any device: none is asked, none need be there."""
  axes = (jax.sharding.AxisType.Explicit,) * len(sharding.AXES)
  return jax.sharding.use_abstract_mesh(
      jax.sharding.AbstractMesh((1,) * len(sharding.AXES), sharding.AXES, axis_types=axes))


def sizes(config: Config) -> dict[str, int]:
  """Parameters and FLOPs of a resolved config, from shapes alone: no device is asked to do anything."""
  with no_devices():
    model, count = build_model(config)
    per_row = flops_per_row(config, model)
  return dict(parameters=count, flops_per_token=per_row // config.data.seq_len,
              flops_per_step=per_row * config.batch_size,
              flops_in_all=per_row * config.stop.tokens // config.data.seq_len)
