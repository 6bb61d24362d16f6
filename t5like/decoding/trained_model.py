"""A trained model from its workdir, ready to use."""
import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import jax

from t5like import sharding
from t5like.config_type import Config
from t5like.decoding import decode
from t5like.errors import CheckpointError, ConfigError
from t5like.model import models, transformer
from t5like.model.transformer import Model
from t5like.objectives import lengths
from t5like.storage import stored_config, workdir as workdir_lib
from t5like.storage.checkpoint import Checkpoints
from t5like.vocabulary import loading as vocabulary_lib
from t5like.vocabulary.kinds import Vocabulary


@dataclasses.dataclass
class Loaded:
  """A model with its parameters: `generate` text, or call `model.apply(params, batch)` under `mesh`.

  Attributes:
    config: of the run, or of its stage that the checkpoint is in, every size known, without adapters (LoRA).
    mesh: that the parameters lie on.
    model: a `t5like.model.transformer` model.
    params: nested dict of jax.Array.
    vocabulary: of the run.
    step: of the checkpoint.
  """
  config: Config
  mesh: jax.sharding.Mesh
  model: Model
  params: Any
  vocabulary: Vocabulary
  step: int

  @property
  def style(self) -> str:
    """How the model takes prompts, see `decode.stream`."""
    return decode.style_of(self.config)

  def generate(self, prompts: Sequence[str], **options: Any) -> list[str]:
    """Continuations of the prompts; `options`: arguments of `decode.stream`."""
    *_, texts = self.stream(prompts, **options)
    return texts

  def stream(self, prompts: Sequence[str], **options: Any) -> Iterator[list[str]]:
    """Yields lists of the texts so far, every few tokens: see `decode.stream`. ConfigError for unfit prompts."""
    shapes = lengths.shapes(self.config)
    try:
      with jax.set_mesh(self.mesh):
        texts = decode.stream(
            self.model,
            self.params,
            self.vocabulary,
            prompts,
            style=self.style,
            context=self.config.data.seq_len,
            targets=shapes.targets,
            **options,
        )
        yield from texts
    except decode.PromptError as e:
      raise ConfigError(f'--prompt: {e}') from e


def load(
    workdir: Any,
    step: int | None = None,
    devices: Sequence[Any] | None = None,
    ema: bool = False,
) -> Loaded:
  """A trained model from a checkpoint, its adapters (LoRA) merged into the weights.

  Args:
    workdir: of the run.
    step: of the checkpoint; None: the newest.
    devices: parameters and rows are spread over them; None: one device of this machine.
    ema: the moving average of the parameters (optimizer.ema) takes their place.

  Raises:
    ConfigError: when there is no run, or it has no moving average.
    CheckpointError: when it has no such checkpoint, or one that cannot be read.
  """
  config = stored_config.read(workdir, step)
  if ema:
    workdir_lib.check_ema(config)
  vocabulary = vocabulary_lib.load(config.vocabulary, workdir_lib.vocabulary_path(workdir))
  config = models.with_vocabulary(config, vocabulary)
  mesh = sharding.make_mesh(dict(fsdp=-1), devices or jax.local_devices()[:1])
  with jax.set_mesh(mesh), Checkpoints(workdir) as checkpoints:
    step = _checkpoint_step(workdir, checkpoints.steps, step)
    trained, _ = models.build_model(config)

    def init() -> Any:
      return trained.init(jax.random.key(0))

    abstract = sharding.abstract(init, mesh)
    stored = checkpoints.params(step, abstract, ema)
    config, params = models.merged(config, stored)
    model = transformer.build(transformer.ModelConfig.of(config.model))
    return Loaded(config, mesh, model, params, vocabulary, step)


def _checkpoint_step(workdir: Any, steps: list[int], step: int | None) -> int:
  """`step`, or the newest of `steps` if it is None. CheckpointError if there is no such checkpoint."""
  if step is None and steps:
    return steps[-1]
  if step is not None and step in steps:
    return step
  wanted = ''
  if step is not None:
    wanted = f' of {step}'
  raise CheckpointError(f'--workdir={workdir} has no checkpoint{wanted} yet; it has {steps or "none"}.')
