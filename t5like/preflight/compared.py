"""The known accuracy of predicted steps: comparisons with published runs."""
import dataclasses
import math
from collections.abc import Mapping

SHARDING = ('data', 'fsdp_outer', 'fsdp', 'expert', 'context', 'tensor')  # axes of a mesh within a slice


@dataclasses.dataclass(frozen=True)
class Kind:
  """The properties that decide whether a comparison applies to a prediction."""
  generation: str
  axes: tuple[str, ...]  # of SHARDING, those of more than one device
  architecture: str
  attention: str  # the kernel
  slices: int = 1
  quantization: str = 'none'  # of products

  def __str__(self) -> str:
    axes = ' and '.join(self.axes) or 'nothing'
    text = f'{self.generation}, sharded by {axes}, {self.architecture}, attention by {self.attention}'
    if self.slices > 1:
      text += f', {self.slices} slices'
    if self.quantization != 'none':
      text += f', products of {self.quantization}'
    return text


@dataclasses.dataclass(frozen=True)
class Comparison:
  """A published run beside the prediction for its config."""
  kind: Kind
  run: str
  predicted: float  # MFU in percent, from the schedule of libtpu 0.0.52
  published: float  # MFU in percent

  @property
  def error(self) -> float:
    """Relative error of the predicted time of a step: below 0, it is too short."""
    return self.published / self.predicted - 1

  def __str__(self) -> str:
    direction = 'short'
    if self.error > 0:
      direction = 'long'
    return f'{self.run}: {abs(self.error):.1%} too {direction}'


def _fsdp(generation: str) -> Kind:
  return Kind(generation, ('fsdp',), 'decoder', 'splash')


# Configs of MaxText, compiled ahead of time, beside the figures in its README and its guides (of 2023 to 2025). Two
# runs sharded by fsdp and tensor are left out: their configs have changed since, so that nothing follows from them.
COMPARISONS = (
    Comparison(_fsdp('v5e'), '16B on v5e-256', 62.9, 61.1),
    Comparison(_fsdp('v5e'), '32B on v5e-256', 64.1, 66.86),
    Comparison(_fsdp('v5e'), '64B on v5e-256', 59.5, 59.9),
    Comparison(_fsdp('v5p'), 'Llama 2 70B on v5p-1024', 65.1, 65.4),
    Comparison(_fsdp('v4'), '22B on v4-128, whose config has grown to 29B since', 58.0, 56.7),
    Comparison(_fsdp('v6e'), 'Llama 3.1 8B on v6e-256', 54.6, 40.4),
)


def kind_of(
    generation: str,
    mesh: Mapping[str, int],
    architecture: str,
    attention: str,
    slices: int,
    quantization: str = 'none',
) -> Kind:
  """The kind of a prediction.

  Args:
    generation: of TPUs, as topologies.py names it.
    mesh: {axis: size}.
    architecture: model.name.
    attention: the name of its kernel.
    slices: number of slices.
    quantization: model.quantization.
  """
  axes = tuple(axis for axis in SHARDING if mesh[axis] > 1)
  return Kind(generation, axes, architecture, attention, slices, quantization)


def accuracy(kind: Kind) -> str:
  """The known accuracy of predictions of this kind, for people."""
  comparisons = [comparison for comparison in COMPARISONS if comparison.kind == kind]
  if not comparisons:
    return f'not compared with any published run of this kind ({kind})'
  largest_error = max(abs(comparison.error) for comparison in comparisons)
  percent = math.ceil(1000 * largest_error) / 10
  runs = f'{len(comparisons)} published runs'
  if len(comparisons) == 1:
    runs = 'one published run'
  details = '; '.join(map(str, comparisons))
  return f'within {percent:g} % of {runs} of this kind ({details})'
