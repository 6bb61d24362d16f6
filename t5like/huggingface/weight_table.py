"""Names, shapes and layouts of a model's weights in transformers, by the table of its family (`tables.py`)."""
import dataclasses
import math
import re
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from t5like import choices
from t5like.errors import ConfigError
from t5like.huggingface import sparse_layers
from t5like.huggingface.families import FAMILIES
from t5like.huggingface.model_config import Model, family_of
from t5like.huggingface.tables import STACKS
from t5like.parameters import Param

STACK = re.compile(r'\{(\w+)\}')
RELATIVE_BUCKETS = 32  # of T5
FUSED = '3'  # the axis of an array of theirs that holds q, k and v
ONE = '1'  # an axis of theirs of length 1
JOINED = '+'  # between what lies one after the other in an array of theirs
EXPERTS = 'X'  # our axis of experts
EXPERT = '{expert}'  # in names of theirs that have an array for each
WIDTHS = str.maketrans('fs', 'FF')  # letters of tables that declarations of parameters do not tell apart


def _is_any(model: Model, layer: int) -> bool:
  return True


def _is_after_first(model: Model, layer: int) -> bool:
  return layer > 0


def _is_dense(model: Model, layer: int) -> bool:
  return not sparse_layers.has_experts(model, layer)


# Conditions of lines that not all layers of a stack have.
IN_LAYER: dict[str, Callable[[Model, int], bool]] = dict(
    r=_is_after_first,
    x=sparse_layers.has_experts,
    d=_is_dense,
)


@dataclasses.dataclass(frozen=True)
class Line:
  """A line of a family's table.

  Attributes:
    path: of our parameter; * stands for q, k and v where one array of theirs holds them; + between several.
    dims: letters of its axes, that of layers left out; + between those of several.
    name: of theirs, {stack} standing for the number of a layer, {expert} for that of an expert.
    axes: letters of each of their axes; + between parts of one.
    in_layer: whether a model has it in a layer of the stack.
  """
  path: str
  dims: str
  name: str
  axes: tuple[str, ...]
  in_layer: Callable[[Model, int], bool] = _is_any

  @property
  def stack(self) -> str:
    """The stack in layers of which it is; '' outside of them."""
    match = STACK.search(self.name)
    return match[1] if match else ''

  @property
  def by_expert(self) -> bool:
    """Whether each expert has an array of theirs."""
    return EXPERT in self.name

  @property
  def own_dims(self) -> str:
    """Letters of our axes that one array of theirs has."""
    if self.by_expert:
      return self.dims.replace(EXPERTS, '')
    return self.dims

  def layers(self, model: Model) -> list[int]:
    """Numbers of the layers of its stack that have it."""
    count = model[STACKS[self.stack]]
    return [layer for layer in range(count) if self.in_layer(model, layer)]

  def names(self, model: Model) -> list[str]:
    """Their names, one per layer where it is in a stack, and in it one per expert where each has an array."""
    if not self.stack:
      return [self.name]
    experts = 1
    if self.by_expert:
      experts = model['experts']
    names = []
    for layer in self.layers(model):
      of_layer = {self.stack: layer}
      for expert in range(experts):
        names.append(self.name.format(expert=expert, **of_layer))
    return names

  def stacked(self, arrays: list[np.ndarray], sizes: Mapping[str, int]) -> np.ndarray:
    """Arrays of all of its names, each with `own_dims`, as one; those of experts are an axis after that of layers."""
    if not self.stack:
      return np.ascontiguousarray(arrays[0])
    array = np.stack(arrays, -1 - len(self.own_dims))
    if self.by_expert:
      return array.reshape(-1, sizes[EXPERTS], *array.shape[1:])
    return array

  def unstacked(self, array: np.ndarray) -> list[np.ndarray]:
    """Undoes `stacked`."""
    if not self.stack:
      return [array]
    if self.by_expert:
      return list(array.reshape(-1, *array.shape[2:]))
    return list(array)

  @property
  def parts(self) -> list['Line']:
    """A line for each of our parameters that lie one after the other in the array; one for others."""
    paths = self.path.split(JOINED)
    dims = self.dims.split(JOINED)
    parts = []
    for n, path in enumerate(paths):
      axes = list(self.axes)
      axes[self.joined_axis] = axes[self.joined_axis].split(JOINED)[n]
      parts.append(Line(path, dims[n], self.name, tuple(axes), self.in_layer))
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
  applies = {'-': True, 'u': not model['tie_embeddings'], 'g': is_gated, 'p': not is_gated}
  applies.update(dict.fromkeys(IN_LAYER, True))
  applicable = []
  for text in FAMILIES[kind].table.strip().split('\n'):
    if not text:
      continue
    condition, path, dims, name, *axes = text.split()
    line = Line(path, dims, name, tuple(axes), IN_LAYER.get(condition, _is_any))
    is_somewhere = not line.stack or line.layers(model)
    if applies[condition] and is_somewhere:
      applicable.append(line)
  return applicable


def family_of_any(model: Model) -> str:
  """As `family_of`, also for what T5 v1.1 is in transformers 5 before it is trained: tied, yet not scaled."""
  has_encoder = choices.ARCHITECTURES[model['name']].has_encoder
  is_like_t5 = has_encoder and choices.POSITIONS[model['position']].biased
  if is_like_t5 and model['tie_embeddings'] and not choices.HEADS[model['head']].scaled:
    return family_of(dict(model, tie_embeddings=False))
  return family_of(model)


def sizes_of(model: Model) -> dict[str, int]:
  """Size of each dimension by its letter, as `ModelConfig.size`; _: T5's buckets, 3: of q, k and v.

  f: the width of an expert, s: that of the experts that all tokens pass.
  """
  width = model.get('expert_d_ff', 0)
  return {
      'V': model['vocab_size'],
      'D': model['d_model'],
      'E': model['d_model'],
      'N': model['num_heads'],
      'K': model['num_kv_heads'],
      'H': model['head_dim'],
      'F': model['d_ff'],
      'X': model['experts'],
      'f': width,
      's': width * model.get('shared_experts', 0),
      'T': model['max_positions'],
      'P': model['num_types'],
      '_': RELATIVE_BUCKETS,
      FUSED: 3,
      ONE: 1,
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


def _difference(
    line: Line,
    param: Param,
    family: str,
    model: Model,
) -> tuple[str, str] | None:
  """(what a parameter is, what it would have to be), None where it is what a family's line of it says."""
  dims = param.dims[param.is_stacked:]
  if not FAMILIES[family].grouped:  # N is also the number of heads of keys and values
    dims = dims.replace('K', 'N')
  if line.dims.translate(WIDTHS) != dims:
    return f'has the dimensions {dims}', line.dims
  stack = ''
  if param.is_stacked:
    stack = param.stack
  if line.stack != stack:
    return f'is in layers of {stack or "no stack"}', f'of {line.stack or "none"}'
  if stack and param.numbers != line.layers(model):
    return f'is in layers {param.numbers} of {stack}', f'in {line.layers(model)}'
  return None


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
    difference = _difference(line_of[path], param, family, model)
    if difference:
      here, there = difference
      raise ConfigError(f'{path} {here}, and in the weights of {family} models {there}: a model that has it cannot be '
                        'read from a Hugging Face folder, nor written into one.')
  missing = [path for path in line_of if path not in declared]
  if missing and model['use_bias']:  # without biases, a family that has them gets zeros
    raise ConfigError(f'{missing[0]}, which {family} models have, is no parameter of this model.')


def _our_axes(dims: str, theirs: str) -> str:
  """Letters of our axes, before them that of q, k and v where one array of theirs holds them."""
  return FUSED + dims if FUSED in theirs else dims


def to_ours(x: np.ndarray, dims: str, axes: Sequence[str], sizes: Mapping[str, int]) -> np.ndarray:
  """One layer of theirs in our order of dimensions; a leading axis of 3 where it holds q, k and v."""
  theirs = ''.join(axes).replace(ONE, '')
  ours = _our_axes(dims, theirs)
  split = x.reshape([sizes[letter] for letter in theirs])
  return split.transpose([theirs.index(letter) for letter in ours])


def to_theirs(x: np.ndarray, dims: str, axes: Sequence[str], sizes: Mapping[str, int]) -> np.ndarray:
  """One layer of ours as an array of theirs: undoes `to_ours`."""
  theirs = ''.join(axes).replace(ONE, '')
  ours = _our_axes(dims, theirs)
  ordered = x.transpose([ours.index(letter) for letter in theirs])
  return np.ascontiguousarray(ordered).reshape(shape_of(axes, sizes))
