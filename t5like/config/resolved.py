"""Numbers that follow from a config: sizes of its model, steps of its run, phases of its schedule."""
from typing import Any, NamedTuple

from t5like import choices
from t5like.config import stages
from t5like.config.values import up
from t5like.config_type import Config, Section
from t5like.objectives import lengths

LANES = 128  # sizes that may be chosen are multiples of this, as matrix units have it
BYTES = 259  # tokens of a vocabulary of bytes, without sentinels


def vocab_size(vocabulary: Section) -> int:
  """Number of tokens of `config.vocabulary`, or 0 where only the data or a file shows it."""
  if vocabulary.name == 'bytes':
    return BYTES + vocabulary.sentinels
  if vocabulary.name == 'sentencepiece' and not vocabulary.path:
    return vocabulary.size
  return 0


def resolve(config: Config) -> Config:
  """A copy with those zeros of `config.model` filled in that follow from the config alone.

  vocab_size stays 0 where the vocabulary's size is known only once it is made or read.
  """
  config = config.copy_and_resolve_references()
  model = config.model
  model.num_kv_heads = model.num_kv_heads or model.num_heads
  model.head_dim = model.head_dim or model.d_model // model.num_heads
  model.num_encoder_layers = model.num_encoder_layers or model.num_layers
  model.d_ff = model.d_ff or _d_ff(model)
  if model.experts:
    model.expert_d_ff = model.expert_d_ff or model.d_ff
  model.vocab_size = model.vocab_size or up(vocab_size(config.vocabulary), LANES)
  return config


def _d_ff(model: Section) -> int:
  """The width of MLPs of 8 d_model^2 parameters."""
  if choices.ACTIVATIONS[model.activation].gated:  # three matrices, so 2/3 of the width
    return up(-(-8 * model.d_model // 3), LANES)
  return 4 * model.d_model


def is_sparse(layer: int, sparse_every: int, dense_first: int) -> bool:
  """Whether a layer of a stack, counted from 0, has experts in a model that has any."""
  is_last_of_its_turn = layer % sparse_every == sparse_every - 1
  return layer >= dense_first and is_last_of_its_turn


class Phases(NamedTuple):
  """Steps of a schedule's warm-up, and of the decay at its end (0 unless it has one)."""
  warmup: int
  decay: int


def phases(schedule: Section, steps: int) -> Phases:
  """The phases of `config.schedule` in a run of so many steps, cut to fit into it.

  The warm-up is cut first, to what the decay leaves or half of the run, then the decay to what the warm-up leaves.
  """
  decay = 0
  if choices.SCHEDULES[schedule.name].ends_in_decay:
    decay = max(1, round(schedule.decay_fraction * steps))
  warmup = min(schedule.warmup_steps, max(steps - decay, steps // 2))
  return Phases(warmup, min(decay, max(1, steps - warmup)))


def derived(config: Config) -> dict[str, Any]:
  """Numbers that follow from a config. Those of a step, a row and a schedule are of its first stage.

  Returns:
    tokens_per_step: of the inputs.
    steps: of the run.
    tokens: of those steps, so stop.tokens or a little more.
    microbatch_size: rows.
    warmup_share: of the steps of the schedule.
    decay_steps: 0 unless the schedule ends in a decay.
    targets_per_row: decoder or masked positions.
  """
  shapes = lengths.shapes(config)
  listed = stages.of(config)
  stretches = stages.course(listed)
  last = stretches[-1]
  first_steps = [stretch.step for stretch in stretches]
  _, steps = stages.spans(listed, first_steps, last.stop)[0]
  warmup, decay = phases(config.schedule, steps)
  first_stage = listed[0]
  last_stage = listed[-1]
  return dict(
      tokens_per_step=first_stage.tokens_per_step,
      steps=last.stop,
      tokens=last.tokens + last.steps * last_stage.tokens_per_step,
      microbatch_size=config.batch_size // config.microbatches,
      warmup_share=warmup / max(1, steps),
      decay_steps=decay,
      targets_per_row=shapes.predicted)
