"""From a config to its model: sizes known, parameters counted, FLOPs, adapters merged."""
from typing import Any

import jax
import numpy as np

from t5like import config as config_lib, sharding
from t5like.config import stages
from t5like.config_type import Config
from t5like.errors import ConfigError
from t5like.model import adapters, flops, transformer
from t5like.objectives import lengths
from t5like.optim import from_config, warm_up

MULTIPLE = 128  # of rows that the embedding has where model.vocab_size=0


def with_vocabulary(config: Config, vocabulary: Any) -> Config:
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


def parameters(config: Config) -> dict[str, tuple[tuple[int, ...], np.ndarray]]:
  """{path: (shape, rates)} of a resolved config, from shapes alone; rates as of `trainable.rates`, whose
  ConfigError it raises, and that of `warm_up.make_hold`. A vocabulary whose size is not known yet has size 0."""
  with no_devices():
    model = transformer.build(transformer.ModelConfig.of(config.model))
  warm_up.make_hold(config, model.parameters)
  rates = from_config.rates(config.optimizer, model.parameters)
  shapes_and_rates = {}
  for path, param in model.parameters.items():
    shapes_and_rates[path] = (param.shape, rates[path])
  return shapes_and_rates


def merged(config: Config, params: transformer.Params) -> tuple[Config, transformer.Params]:
  """(config, params) of the same model without adapters (LoRA): what they add is in its weights then."""
  c = transformer.ModelConfig.of(config.model)
  if not c.lora_rank:
    return config, params
  with no_devices():
    declared = transformer.build(c).parameters
  config = config.copy_and_resolve_references()
  with config.unlocked():
    config.model.lora_rank = 0

  def merge(params: transformer.Params) -> transformer.Params:
    return adapters.merged(params, declared, c)

  return config, jax.jit(merge)(params)


def no_devices() -> Any:
  """A context in which shapes are known without any device: none is used, none needs to be present."""
  axis_types = (jax.sharding.AxisType.Explicit,) * len(sharding.AXES)
  sizes = (1,) * len(sharding.AXES)
  mesh = jax.sharding.AbstractMesh(sizes, sharding.AXES, axis_types=axis_types)
  return jax.sharding.use_abstract_mesh(mesh)


def sizes(config: Config) -> dict[str, int]:
  """Parameters and FLOPs of a resolved config, from shapes alone: no device is asked to do anything.

  FLOPs of a token and a step are those of the first stage, where the config has stages.
  """
  with no_devices():
    model, count = build_model(config)
    per_row = flops_per_row(config, model)
  row = config.data.seq_len
  in_all = per_row * config.stop.tokens // row
  if config.stages or config.data.stages:
    in_all = _flops_of_stages(config)
  return dict(
      parameters=count,
      flops_per_token=per_row // row,
      flops_per_step=per_row * config.batch_size,
      flops_in_all=in_all,
  )


def _flops_of_stages(config: Config) -> int:
  """FLOPs of all rows of a run with stages."""
  listed = stages.of(config)
  total = 0
  with no_devices():
    for stretch in stages.course(listed):
      stage = listed[stretch.stage].config
      model, _ = build_model(stage)
      rows = stretch.steps * stage.batch_size
      total += rows * flops_per_row(stage, model)
  return total
