"""Names, shapes and layouts of a model's weights in transformers, by the table of its family (`families.py`)."""
import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from t5like import choices
from t5like.errors import ConfigError
from t5like.huggingface.families import FAMILIES, STACKS
from t5like.huggingface.model_config import Model, family_of
from t5like.parameters import Param

STACK = re.compile(r'\{(\w+)\}')
RELATIVE_BUCKETS = 32  # of T5
FUSED = '3'  # the axis of an array of theirs that holds q, k and v


@dataclasses.dataclass(frozen=True)
class Line:
  """A line of a family's table.

  Attributes:
    path: of our parameter; * stands for q, k and v where one array of theirs holds them.
    dims: letters of its axes, that of layers left out.
    name: of theirs, {stack} standing for the number of a layer.
    axes: letters of each of their axes.
  """
  path: str
  dims: str
  name: str
  axes: tuple[str, ...]

  @property
  def stack(self) -> str:
    """The stack in every layer of which it is; '' outside of them."""
    match = STACK.search(self.name)
    return match[1] if match else ''

  def names(self, model: Model) -> list[str]:
    """Their names, one per layer where it is in a stack."""
    if not self.stack:
      return [self.name]
    count = model[STACKS[self.stack]]
    return [self.name.format(**{self.stack: layer}) for layer in range(count)]

  def paths(self) -> list[str]:
    """Our paths."""
    if '*' not in self.path:
      return [self.path]
    return [self.path.replace('*', part) for part in 'qkv']


def lines(model: Model) -> list[Line]:
  """The lines of the table of a model's family that apply to it; `model`: config.model, every size known."""
  is_gated = choices.ACTIVATIONS[model['activation']].gated
  applies = {'-': True, 'u': not model['tie_embeddings'], 'g': is_gated, 'p': not is_gated}
  applicable = []
  for text in FAMILIES[family_of_any(model)].table.strip().split('\n'):
    if text:
      condition, path, dims, name, *axes = text.split()
      if applies[condition]:
        applicable.append(Line(path, dims, name, tuple(axes)))
  return applicable


def family_of_any(model: Model) -> str:
  """As `family_of`, also for what T5 v1.1 is in transformers 5 before it is trained: tied, yet not scaled."""
  has_encoder = choices.ARCHITECTURES[model['name']].has_encoder
  if has_encoder and model['tie_embeddings'] and not choices.HEADS[model['head']].scaled:
    return family_of(dict(model, tie_embeddings=False))
  return family_of(model)


def sizes_of(model: Model) -> dict[str, int]:
  """Size of each dimension by its letter, as `ModelConfig.size`; _: T5's buckets, 3: of q, k and v."""
  return {
      'V': model['vocab_size'],
      'D': model['d_model'],
      'E': model['d_model'],
      'N': model['num_heads'],
      'K': model['num_kv_heads'],
      'H': model['head_dim'],
      'F': model['d_ff'],
      'T': model['max_positions'],
      'P': model['num_types'],
      '_': RELATIVE_BUCKETS,
      FUSED: 3,
  }


def shape_of(axes: Sequence[str], sizes: Mapping[str, int]) -> tuple[int, ...]:
  """The shape of an array of theirs."""
  shape = []
  for letters in axes:
    shape.append(int(np.prod([sizes[letter] for letter in letters])))
  return tuple(shape)


def names(model: Model) -> dict[str, tuple[int, ...]]:
  """{their name: shape} of all weights of a model."""
  sizes = sizes_of(model)
  shapes = {}
  for line in lines(model):
    shapes.update(dict.fromkeys(line.names(model), shape_of(line.axes, sizes)))
  return shapes


def _places(model: Model) -> Iterator[tuple[str, Line]]:
  for line in lines(model):
    for path in line.paths():
      yield path, line


def places(model: Model) -> dict[str, Line]:
  """{our path: its line} of all parameters for which the family of a model has a place."""
  return dict(_places(model))


def check_parameters(model: Model, declared: Mapping[str, Param]) -> None:
  """ConfigError where the parameters of a model are not those that its family has.

  Args:
    model: config.model of a family, every size known.
    declared: `model.parameters` of the same model, without adapters.
  """
  family = family_of_any(model)
  line_of = places(model)
  for path, param in declared.items():
    if path not in line_of:
      raise ConfigError(f'{path} has no place in the weights of {family} models: a model that has it cannot be read '
                        'from a Hugging Face folder, nor written into one.')
    line = line_of[path]
    dims = param.dims[param.is_stacked:]
    if not FAMILIES[family].grouped:  # N is also the number of heads of keys and values
      dims = dims.replace('K', 'N')
    if line.dims != dims:
      raise ConfigError(f'{path} has the dimensions {dims}, and in the weights of {family} models {line.dims}: a model '
                        'that has it cannot be read from a Hugging Face folder, nor written into one.')
    stack = param.stack if param.is_stacked else ''
    if line.stack != stack:
      raise ConfigError(f'{path} is in every layer of {stack or "no stack"}, and in the weights of {family} models of '
                        f'{line.stack or "none"}: a model that has it cannot be read from a Hugging Face folder, nor '
                        'written into one.')
  missing = [path for path in line_of if path not in declared]
  if missing and model['use_bias']:  # without biases, a family that has them gets zeros
    raise ConfigError(f'{missing[0]}, which {family} models have, is no parameter of this model.')


def _our_axes(dims: str, theirs: str) -> str:
  """Letters of our axes, before them that of q, k and v where one array of theirs holds them."""
  return FUSED + dims if FUSED in theirs else dims


def to_ours(x: np.ndarray, dims: str, axes: Sequence[str], sizes: Mapping[str, int]) -> np.ndarray:
  """One layer of theirs in our order of dimensions; a leading axis of 3 where it holds q, k and v."""
  theirs = ''.join(axes)
  ours = _our_axes(dims, theirs)
  split = x.reshape([sizes[letter] for letter in theirs])
  return split.transpose([theirs.index(letter) for letter in ours])


def to_theirs(x: np.ndarray, dims: str, axes: Sequence[str], sizes: Mapping[str, int]) -> np.ndarray:
  """One layer of ours as an array of theirs: undoes `to_ours`."""
  theirs = ''.join(axes)
  ours = _our_axes(dims, theirs)
  ordered = x.transpose([ours.index(letter) for letter in theirs])
  return np.ascontiguousarray(ordered).reshape(shape_of(axes, sizes))
