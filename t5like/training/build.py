"""From a config and its model to the optimizer and the compiled steps."""
from collections.abc import Callable
from typing import Any

import jax

from t5like import sharding
from t5like.config.values import show
from t5like.config_type import Config
from t5like.errors import ConfigError
from t5like.model import loss as loss_lib
from t5like.model.transformer import Model
from t5like.objectives import lengths
from t5like.observe import histograms
from t5like.optim import from_config
from t5like.training import step as step_lib


def rows_per_device(config: Config, mesh: jax.sharding.Mesh) -> int:
  """Rows of a micro-batch that a device gets; ConfigError when batch_size cannot be divided among them."""
  pieces = config.microbatches * sharding.batch_shards(mesh)
  if config.batch_size % pieces:
    raise ConfigError(f'batch_size={config.batch_size} is not divisible by microbatches x mesh.data x '
                      f'mesh.fsdp = {pieces}: try {max(1, config.batch_size // pieces) * pieces}.')
  return config.batch_size // pieces


def check_compile_options(config: Config, device: Any) -> None:
  """ConfigError for compile.options that the compiler of a device (of jax.devices) refuses for an empty program."""
  options = config.compile.options.to_dict()
  if not options:
    return
  try:
    with jax.default_device(device):
      jax.jit(lambda: 0, compiler_options=options).lower().compile()
  except jax.errors.JaxRuntimeError as error:
    raise ConfigError(f'compile.options={show(options)}: the compiler for {device.platform} does not take them '
                      f'({str(error)[:300]}). Correct or remove them.') from error


def build_optimizer(config: Config, model: Model, total_steps: int) -> tuple[Any, dict]:
  """(tx, rates) of a resolved config whose schedule ends at total_steps; rates: of each parameter, `optim.rates`."""
  learning_rate = from_config.schedule(config.schedule, config.optimizer.learning_rate, total_steps)
  rates = from_config.rates(config.optimizer, model.parameters)
  return from_config.at_rates(from_config.build(config.optimizer, learning_rate, model.parameters), rates), rates


def build_step(config: Config, model: Model, total_steps: int,
               mesh: jax.sharding.Mesh) -> tuple[Any, Callable, Callable, Callable]:
  """(tx, train_step, eval_step, count) of a config whose schedule ends at total_steps.

  The steps are compiled when first called; train_step(state, batch) takes the state's memory. count: see histograms.
  """
  tx, rates = build_optimizer(config, model, total_steps)
  rows = rows_per_device(config, mesh)
  vocab = config.model.vocab_size // mesh.shape['tensor']
  shapes, context = lengths.shapes(config), mesh.shape['context']
  for length in filter(None, (shapes.inputs, shapes.targets)):
    if length % context:  # which the rules of configs cannot know of mesh.context=-1
      raise ConfigError(f'mesh.context={config.mesh.context} is {context} on these devices, which does not divide rows '
                        f'of {length} tokens: give mesh.context a number that does, and -1 to another axis.')
  predictions = -(-shapes.predicted // context)
  chunks = loss_lib.num_chunks(config.loss.chunks, predictions, rows, vocab, mesh.devices.flat[0].platform)
  sums = loss_lib.make_sums(model, config.loss, chunks)
  gradients = step_lib.make_gradients(from_config.without_frozen(sums, rates), config.microbatches)
  train_step = step_lib.make_train_step(gradients, tx, seed=config.seed, clip_norm=config.optimizer.clip_norm,
                                        spike_loss=config.guard.spike_loss, spike_norm=config.guard.spike_norm)
  options = config.compile.options.to_dict() or None
  return (tx, jax.jit(train_step, donate_argnums=0, compiler_options=options), jax.jit(sums),
          jax.jit(histograms.make(gradients, model.parameters)))
