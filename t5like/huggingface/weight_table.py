"""Names, shapes and layouts of a model's weights in transformers, by the table of its family (`tables.py`)."""
import dataclasses
import math
import re
from collections.abc import Mapping, Sequence

import numpy as np

from t5like import choices
from t5like.errors import ConfigError
from t5like.huggingface.families import FAMILIES
from t5like.huggingface.model_config import Model, family_of
from t5like.huggingface.tables import STACKS
from t5like.parameters import Param

STACK = re.compile(r'\{(\w+)\}')
RELATIVE_BUCKETS = 32  # of T5
FUSED = '3'  # the axis of an array of theirs that holds q, k and v
AFTER_FIRST = 'r'  # the condition of lines for all layers but the first
JOINED = '+'  # between what lies one after the other in an array of theirs


@dataclasses.dataclass(frozen=True)
class Line:
  """A line of a family's table.

  Attributes:
    path: of our parameter; * stands for q, k and v where one array of theirs holds them; + between several.
    dims: letters of its axes, that of layers left out; + between those of several.
    name: of theirs, {stack} standing for the number of a layer.
    axes: letters of each of their axes; + between parts of one.
    first: the number of the first layer that has it.
  """
  path: str
  dims: str
  name: str
  axes: tuple[str, ...]
  first: int = 0

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
    return [self.name.format(**{self.stack: layer}) for layer in range(self.first, count)]

  @property
  def parts(self) -> list['Line']:
    """A line for each of our parameters that lie one after the other in the array; one for others."""
    paths = self.path.split(JOINED)
    dims = self.dims.split(JOINED)
    parts = []
    for n, path in enumerate(paths):
      axes = list(self.axes)
      axes[self.joined_axis] = axes[self.joined_axis].split(JOINED)[n]
      parts.append(Line(path, dims[n], self.name, tuple(axes), self.first))
    return parts

  @property
  def joined_axis(self) -> int:
    """Along which of their axes the parts lie; 0 for a single one."""
    for n, axis in enumerate(self.axes):
      if JOINED in axis:
        return n
    return 0

  def split(self, x: np.ndarray, sizes: Mapping[str, int]) -> list[np.ndarray]:
    """An array of theirs, cut into those of the parts."""
    axis = self.joined_axis
    ends = np.cumsum([shape_of(part.axes, sizes)[axis] for part in self.parts])
    return np.split(x, ends[:-1], axis)

  def join(self, arrays: list[np.ndarray]) -> np.ndarray:
    """Undoes `split`."""
    if len(arrays) == 1:
      return arrays[0]
    return np.concatenate(arrays, self.joined_axis)

  def paths(self) -> list[str]:
    """Our paths, of a line that is one part."""
    if '*' not in self.path:
      return [self.path]
    return [self.path.replace('*', part) for part in 'qkv']


def lines(kind: str, model: Model) -> list[Line]:
  """The lines of the table of a family that apply to a model of it; `model`: config.model, every size known."""
  is_gated = choices.ACTIVATIONS[model['activation']].gated
  applies = {'-': True, AFTER_FIRST: True, 'u': not model['tie_embeddings'], 'g': is_gated, 'p': not is_gated}
  applicable = []
  for text in FAMILIES[kind].table.strip().split('\n'):
    if text:
      condition, path, dims, name, *axes = text.split()
      if applies[condition]:
        applicable.append(Line(path, dims, name, tuple(axes), int(condition == AFTER_FIRST)))
  return applicable


def family_of_any(model: Model) -> str:
  """As `family_of`, also for what T5 v1.1 is in transformers 5 before it is trained: tied, yet not scaled."""
  has_encoder = choices.ARCHITECTURES[model['name']].has_encoder
  is_like_t5 = has_encoder and choices.POSITIONS[model['position']].biased
  if is_like_t5 and model['tie_embeddings'] and not choices.HEADS[model['head']].scaled:
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
  for axis in axes:
    length = 0
    for letters in axis.split(JOINED):
      length += math.prod(sizes[letter] for letter in letters)
    shape.append(length)
  return tuple(shape)


def names(table: Sequence[Line], model: Model) -> dict[str, tuple[int, ...]]:
  """{their name: shape} of all weights of lines of a table; `model`: config.model, every size known."""
  sizes = sizes_of(model)
  shapes = {}
  for line in table:
    shapes.update(dict.fromkeys(line.names(model), shape_of(line.axes, sizes)))
  return shapes


def places(kind: str, model: Model) -> dict[str, Line]:
  """{our path: its line, or its part of one} of all parameters for which a family has a place."""
  places = {}
  for line in lines(kind, model):
    for part in line.parts:
      places.update(dict.fromkeys(part.paths(), part))
  return places


def check_parameters(family: str, model: Model, declared: Mapping[str, Param]) -> None:
  """ConfigError where the parameters of a model are not those that a family has.

  Args:
    family: a key of FAMILIES.
    model: config.model of a family, every size known.
    declared: `model.parameters` of the same model, without adapters.
  """
  line_of = places(family, model)
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
