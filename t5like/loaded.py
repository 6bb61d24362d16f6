"""A trained model from its workdir, ready to use."""
import dataclasses
from typing import Any

import jax

from t5like import decode, lengths, models, sharding, workdir as workdir_lib
from t5like.checkpoint import Checkpoints
from t5like.data import vocabulary as vocabulary_lib
from t5like.errors import CheckpointError, ConfigError
from t5like.model import transformer


@dataclasses.dataclass
class Loaded:
  """A model with its parameters: `generate` text, or call `model.apply(params, batch)` under `mesh`."""
  config: Any
  mesh: Any
  model: Any
  params: Any
  vocabulary: Any
  step: int

  @property
  def style(self):
    """How the model takes prompts, see `decode.generate`."""
    return decode.style_of(self.config)

  def generate(self, prompts, **kwargs):
    """Continuations of the prompts, as strings; the arguments are those of `decode.stream`."""
    *_, texts = self.stream(prompts, **kwargs)
    return texts

  def stream(self, prompts, **kwargs):
    """Yields lists of the texts so far, every few tokens: see `decode.stream`."""
    shapes = lengths.shapes(self.config)
    try:
      with jax.set_mesh(self.mesh):
        found = decode.stream(self.model, self.params, self.vocabulary, prompts, style=self.style,
                              context=self.config.data.seq_len, targets=shapes.targets, **kwargs)
        yield from found
    except decode.PromptError as e:
      raise ConfigError(f'--prompt: {e}') from e


def load(workdir, step=None, devices=None):
  """Loaded model of the newest (or given) checkpoint in a workdir, its parameters and rows spread over `devices`
  (one device of this machine). Adapters (LoRA) are merged into the weights."""
  config = workdir_lib.read_config(workdir)
  vocabulary = vocabulary_lib.load(config.vocabulary, workdir_lib.vocabulary_path(workdir))
  config = models.with_vocabulary(config, vocabulary)
  mesh = sharding.make_mesh(dict(fsdp=-1), devices or jax.local_devices()[:1])
  with jax.set_mesh(mesh), Checkpoints(workdir) as checkpoints:
    steps = checkpoints.steps
    if not steps or (step is not None and step not in steps):
      raise CheckpointError(f'--workdir={workdir} has no checkpoint{"" if step is None else f" of {step}"}'
                            f' yet; it has {steps or "none"}.')
    trained, _ = models.build_model(config)
    abstract = sharding.abstract(lambda: trained.init(jax.random.key(0)), mesh)
    step = steps[-1] if step is None else step
    config, params = models.merged(config, checkpoints.params(step, abstract))
    model = transformer.build(transformer.ModelConfig(**config.model))
    return Loaded(config, mesh, model, params, vocabulary, step)
