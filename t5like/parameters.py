"""What each parameter is: data beside its array, declared where the array is made.

    matrix('DNH', inputs='D', role='q')     vector('F', role='up', kind='bias')

`transformer.build` collects the declarations of a model once, as `model.parameters`, {path: Param}. Optimizers,
freezing, FLOPs, adapters, import and export read them. A path is a name: users' patterns and checkpoints have it, and
nobody takes a meaning from it.
"""
import dataclasses
import math
from collections.abc import Mapping

# What a parameter does in the model.
ROLES = (
    'embed',
    'positions',
    'types',
    'relative',
    'q',
    'k',
    'v',
    'o',
    'sinks',
    'router',
    'up',
    'gate',
    'down',
    'head',
    'norm',
)
LOOKED_UP = ('embed', 'positions', 'types')  # tables of which a token reads a row
KINDS = ('matrix', 'bias', 'scale', 'lora_a', 'lora_b')
ADAPTERS = ('lora_a', 'lora_b')
LAYER = 'L'  # the letter of the axis on which the layers of a stack lie

Axes = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Param:
  """One parameter of a model.

  Attributes:
    dims: a letter for each axis, as in `sharding.py`; 'L' comes first where a stack has it in every layer.
    role: one of ROLES; a bias and an adapter have the role of their matrix.
    kind: one of KINDS.
    inputs: letters of the axes that a product sums over; '' for what is no matrix.
    outputs: letters of the axes that it makes, or along which a vector lies. Letters that are in neither, as that of
      experts, tell apart matrices that have nothing to do with each other.
    layer: the part of the model that it belongs to: 'attention', 'mlp_norm', 'head', ..
    stack: the stack of layers that it belongs to: 'encoder', 'decoder', 'stack'; '' outside of them.
    shape: the size of each axis; () before the model is built.
    owners: whether each layer of the stack has it; () where all do.
  """
  dims: str
  role: str
  kind: str
  inputs: str = ''
  outputs: str = ''
  layer: str = ''
  stack: str = ''
  shape: tuple[int, ...] = ()
  owners: tuple[bool, ...] = ()

  def __post_init__(self) -> None:
    if self.role not in ROLES:
      raise ValueError(f'{self}: there is no role {self.role!r}; parameters.ROLES has them all.')
    if self.kind not in KINDS:
      raise ValueError(f'{self}: there is no kind {self.kind!r}; parameters.KINDS has them all.')
    has_doubles = _has_doubles(self.dims) or _has_doubles(self._named)
    has_others = not set(self._named) <= set(self.dims)
    if has_doubles or has_others:
      raise ValueError(f'{self}: each axis needs a letter of its own, and is an input, an output or neither.')

  @property
  def _named(self) -> str:
    """Letters of the axes that are inputs or outputs."""
    return self.inputs + self.outputs

  @property
  def is_stacked(self) -> bool:
    """Whether its first axis is that of layers."""
    return self.dims.startswith(LAYER)

  @property
  def num_layers(self) -> int:
    """How many layers have it; 1 outside of a stack's layers."""
    return self.shape[0] if self.is_stacked else 1

  @property
  def numbers(self) -> list[int]:
    """The layers of its stack that have it, as they lie on its axis of layers."""
    owners = self.owners or (True,) * self.num_layers
    return [number for number, has_it in enumerate(owners) if has_it]

  @property
  def depth(self) -> int:
    """How many layers its stack has."""
    return len(self.owners) or self.num_layers

  @property
  def size(self) -> int:
    return math.prod(self.shape)

  @property
  def batch(self) -> str:
    """Letters, apart from that of layers, of the axes that number matrices or vectors of their own: experts."""
    return _without(self.dims, LAYER + self._named)

  @property
  def own_axes(self) -> Axes:
    """Axes of one matrix or vector: all but those of layers and experts."""
    return self._axes(self._named)

  @property
  def sides(self) -> tuple[Axes, Axes] | None:
    """(axes of the inputs, axes of the outputs) of a matrix that is no adapter; else None."""
    if self.kind != 'matrix':
      return None
    inputs = self._axes(self.inputs)
    outputs = self._axes(self.outputs)
    return inputs, outputs

  def _axes(self, letters: str) -> Axes:
    axes = []
    for axis, letter in enumerate(self.dims):
      if letter in letters:
        axes.append(axis)
    return tuple(axes)


def _has_doubles(letters: str) -> bool:
  return len(set(letters)) < len(letters)


def _without(letters: str, others: str) -> str:
  return ''.join(letter for letter in letters if letter not in others)


def matrix(
    dims: str,
    inputs: str,
    role: str,
    kind: str = 'matrix',
) -> Param:
  """What multiplies `inputs` and makes the rest of `dims`."""
  outputs = _without(dims, inputs)
  return Param(dims, role, kind, inputs, outputs)


def vector(dims: str, role: str, kind: str) -> Param:
  """What is added to features or multiplies them one by one."""
  return Param(dims, role, kind, outputs=dims)


def of_layers(param: Param) -> Param:
  """The same parameter in every layer of a stack."""
  return dataclasses.replace(param, dims=LAYER + param.dims)


def whole(
    declared: Param | None,
    path: str,
    shape: tuple[int, ...],
) -> Param:
  """The declaration of an array with its shape; TypeError where there is none, or one of another rank."""
  if declared is None:
    raise TypeError(f'The parameter {path} is not declared. Make it with `normal` or `constant` of '
                    'model/initial.py, or as nnx.Param(x, declared=parameters.matrix(..)).')
  if len(declared.dims) != len(shape):
    raise TypeError(f'The parameter {path} has {len(shape)} axes, {shape}, and is declared with '
                    f'{len(declared.dims)}, {declared.dims!r}.')
  return dataclasses.replace(declared, shape=tuple(shape))


def with_path_of(
    path: str,
    parameters: Mapping[str, Param],
) -> Param | None:
  """The parameter that an array of an optimizer's state is of: that whose path ends the array's; None for no one's."""
  keys = path.split('/')
  for start in range(len(keys)):
    tail = '/'.join(keys[start:])
    if tail in parameters:
      return parameters[tail]
  return None
