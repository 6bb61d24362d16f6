"""From a config and its model to the optimizer and the compiled steps."""
from collections.abc import Callable, Set
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from t5like import sharding
from t5like.batches import frames
from t5like.config.values import show
from t5like.config_type import Config
from t5like.errors import ConfigError
from t5like.model import loss as loss_lib
from t5like.model.transformer import Model
from t5like.objectives import lengths
from t5like.observe import histograms
from t5like.optim import from_config, warm_up
from t5like.training import step as step_lib


def rows_per_device(config: Config, mesh: jax.sharding.Mesh) -> int:
  """Rows of a micro-batch that a device gets; ConfigError when batch_size cannot be divided among them."""
  batch_size = config.batch_size
  pieces = config.microbatches * sharding.batch_shards(mesh)
  rows = batch_size // pieces
  if batch_size % pieces:
    nearest = max(1, rows) * pieces
    raise ConfigError(
        f'batch_size={batch_size} is not divisible by microbatches x mesh.data x mesh.fsdp = {pieces}: try {nearest}.')
  return rows


def check_compile_options(config: Config, device: Any) -> None:
  """ConfigError for compile.options that the compiler of a device (of jax.devices) refuses for an empty program."""
  options = config.compile.options.to_dict()
  if not options:
    return
  try:
    with jax.default_device(device):
      empty = jax.jit(lambda: 0, compiler_options=options)
      empty.lower().compile()
  except jax.errors.JaxRuntimeError as error:
    message = str(error)[:300]
    raise ConfigError(
        f'compile.options={show(options)}: the compiler for {device.platform} does not accept them ({message}). '
        'Correct or remove them.') from error


class Steps(NamedTuple):
  """An optimizer, and the compiled functions of a run.

  Attributes:
    tx: the optimizer.
    train_step: (state, batch) -> (state, metrics); takes the state's memory.
    eval_step: (params, batch) -> sums.
    histograms: (params, batch, key) -> counts, see histograms.make.
  """
  tx: optax.GradientTransformation
  train_step: Callable[..., Any]
  eval_step: Callable[..., Any]
  histograms: Callable[..., Any]


def build_optimizer(
    config: Config,
    model: Model,
    total_steps: int,
    first_step: int = 0,
    stateful: Set[str] | None = None,
) -> tuple[optax.GradientTransformation, dict[str, np.ndarray]]:
  """(tx, rates) of a resolved config; rates: of each parameter, `optim.rates`.

  Args:
    config: resolved.
    model: of it.
    total_steps: of its schedule.
    first_step: of the run, at which the schedule begins.
    stateful: see `from_config.at_rates`.
  """
  learning_rate = from_config.schedule(config.schedule, config.optimizer.learning_rate, total_steps, first_step)
  rates = from_config.rates(config.optimizer, model.parameters)
  tx = from_config.build(config.optimizer, learning_rate, model.parameters)
  return from_config.at_rates(tx, rates, stateful), rates


def build_step(
    config: Config,
    model: Model,
    total_steps: int,
    mesh: jax.sharding.Mesh,
    first_step: int = 0,
    stateful: Set[str] | None = None,
) -> Steps:
  """The steps of a resolved config on a mesh, other arguments as of `build_optimizer`; compiled when first called."""
  tx, rates = build_optimizer(config, model, total_steps, first_step, stateful)
  chunks = _chunks(config, mesh)
  sums = loss_lib.make_sums(model, config.loss, chunks)
  trained_sums = from_config.without_frozen(sums, rates)
  gradients = step_lib.make_gradients(trained_sums, config.microbatches)
  train_step = step_lib.make_train_step(
      gradients,
      tx,
      seed=config.seed,
      clip_norm=config.optimizer.clip_norm,
      spike_loss=config.guard.spike_loss,
      spike_norm=config.guard.spike_norm,
      hold=warm_up.make_hold(config, model.parameters),
      ema=config.optimizer.ema,
  )
  options = config.compile.options.to_dict() or None
  count = histograms.make(gradients, model.parameters)
  return Steps(
      tx=tx,
      train_step=jax.jit(train_step, donate_argnums=0, compiler_options=options),
      eval_step=jax.jit(sums),
      histograms=jax.jit(count),
  )


def abstract_batch(config: Config, mesh: jax.sharding.Mesh) -> Any:
  """Shapes, dtypes and shardings of the batches of a config, which steps are compiled for."""
  pieces = mesh.shape['context']

  def spread(x: np.ndarray) -> jax.ShapeDtypeStruct:
    shape = (config.batch_size, *x.shape[1:])
    spec = sharding.row_spec(x, pieces)
    by_rows = jax.sharding.NamedSharding(mesh, spec)
    return jax.ShapeDtypeStruct(shape, x.dtype, sharding=by_rows)

  return jax.tree.map(spread, frames.frame_of(config).blank(rows=1))


def _chunks(config: Config, mesh: jax.sharding.Mesh) -> int:
  """Pieces of the sequence whose logits are computed one after the other, on a device of the mesh."""
  rows = rows_per_device(config, mesh)
  vocab = config.model.vocab_size // mesh.shape['tensor']
  shapes = lengths.shapes(config)
  context = mesh.shape['context']
  for length in filter(None, (shapes.inputs, shapes.targets)):
    if length % context:  # which the rules of configs cannot know of mesh.context=-1
      raise ConfigError(
          f'mesh.context={config.mesh.context} is {context} on these devices, which does not divide rows of {length} '
          'tokens: set mesh.context to a number that does, and another axis to -1.')
  predictions = -(-shapes.predicted // context)
  platform = mesh.devices.flat[0].platform
  return loss_lib.num_chunks(config.loss.chunks, predictions, rows, vocab, platform)
