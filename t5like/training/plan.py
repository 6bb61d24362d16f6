"""The plan of a run, or of one of its stages: all that follows from its config, constant while it trains."""
import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax

from t5like.batches import frames
from t5like.config_type import Config
from t5like.model import models
from t5like.objectives import lengths
from t5like.objectives.lengths import Lengths
from t5like.optim import from_config
from t5like.training.progress import Progress
from t5like.vocabulary.kinds import Vocabulary

OF_THE_STEPS = ('model', 'loss', 'optimizer', 'schedule', 'adapt', 'guard', 'compile')  # sections that they read


@dataclasses.dataclass(frozen=True, eq=False)
class Plan:
  """A config with all that follows from it.

  requested: the config as the user wrote it; config.json and checkpoints store this one.
  config: the same with every size resolved.
  mesh: of the devices that train.
  model: init, hidden, logits (see `model/transformer.py`).
  num_params: number of parameters of the model.
  shapes: tokens of a row, by part.
  tokens_per_step: tokens that one step adds towards stop.tokens.
  flops_per_token: FLOPs of forward and backward pass, the backward pass only for what has gradients.
  total_steps: how many steps the schedule of the learning rate has.
  first_step: at which it begins.
  stage: number of the stage, from 0.
  stateful: paths of the parameters that the optimizer keeps state of; None: of those that it trains.
  """
  requested: Any
  config: Config
  mesh: jax.sharding.Mesh
  model: Any
  num_params: int
  shapes: Lengths
  tokens_per_step: int
  flops_per_token: float
  total_steps: int
  first_step: int = 0
  stage: int = 0
  stateful: frozenset[str] | None = None

  @functools.cached_property
  def learning_rate(self) -> Callable[[int], jax.Array]:
    """Function of the step, from 0."""
    config = self.config
    return from_config.schedule(config.schedule, config.optimizer.learning_rate, self.total_steps, self.first_step)

  @functools.cached_property
  def program(self) -> str:
    """All that the compiled steps depend on but for the mesh: plans that have the same can share them."""
    config = self.config
    sections = [config[name].to_dict() for name in OF_THE_STEPS]
    frame = frames.frame_of(config)
    stateful = sorted(self.stateful or ())
    numbers = (
        config.seed,
        config.batch_size,
        config.microbatches,
        self.total_steps,
        self.first_step,
    )
    return repr((sections, numbers, self.shapes, frame, stateful))

  def steps_left(self, progress: Progress) -> int:
    """Steps until stop.tokens is reached; the last one may exceed it."""
    missing = self.config.stop.tokens - progress.tokens
    return max(0, -(-missing // self.tokens_per_step))


def make(config: Config, vocabulary: Vocabulary, mesh: jax.sharding.Mesh) -> Plan:
  """The plan of a run without stages that starts at step 0. ConfigError as of `models.with_vocabulary` and
  `models.build_model`.

  Args:
    config: validated, as the user wrote it.
    vocabulary: of the prepared dataset.
    mesh: in force.
  """
  resolved = models.with_vocabulary(config, vocabulary)
  model, num_params = models.build_model(resolved)
  tokens_per_step = resolved.batch_size * resolved.data.seq_len
  return Plan(
      requested=config,
      config=resolved,
      mesh=mesh,
      model=model,
      num_params=num_params,
      shapes=lengths.shapes(resolved),
      tokens_per_step=tokens_per_step,
      flops_per_token=models.flops_per_row(resolved, model) / resolved.data.seq_len,
      total_steps=-(-resolved.stop.tokens // tokens_per_step))
