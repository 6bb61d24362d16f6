"""How far predicted steps are known to be right: what was compared with published runs, and what was not."""
import dataclasses
import math

SHARDING = ('data', 'fsdp', 'context', 'tensor')  # axes of a mesh within a slice


@dataclasses.dataclass(frozen=True)
class Kind:
  """What decides whether a comparison says something of a prediction."""
  generation: str
  axes: tuple  # of SHARDING, those of more than one device
  architecture: str
  attention: str  # the kernel
  slices: int = 1

  def __str__(self):
    slices = f', {self.slices} slices' if self.slices > 1 else ''
    return (f'{self.generation}, sharded by {" and ".join(self.axes) or "nothing"}, {self.architecture}, attention by '
            f'{self.attention}{slices}')


@dataclasses.dataclass(frozen=True)
class Comparison:
  kind: Kind
  run: str
  predicted: float  # MFU in percent, from the schedule of libtpu 0.0.52
  published: float

  @property
  def error(self) -> float:
    """Of the predicted time of a step: below 0, it is too short."""
    return self.published / self.predicted - 1


def _fsdp(generation):
  return Kind(generation, ('fsdp',), 'decoder', 'splash')


# Configs of MaxText, compiled ahead of time, beside the figures in its README and its guides (of 2023 to 2025). Two
# runs sharded by fsdp and tensor are left out: their configs have changed since, so that nothing follows from them.
MADE = (
    Comparison(_fsdp('v5e'), '16B on v5e-256', 62.9, 61.1),
    Comparison(_fsdp('v5e'), '32B on v5e-256', 64.1, 66.86),
    Comparison(_fsdp('v5e'), '64B on v5e-256', 59.5, 59.9),
    Comparison(_fsdp('v5p'), 'Llama 2 70B on v5p-1024', 65.1, 65.4),
    Comparison(_fsdp('v4'), '22B on v4-128, whose config has grown to 29B since', 58.0, 56.7),
    Comparison(_fsdp('v6e'), 'Llama 3.1 8B on v6e-256', 54.6, 40.4))


def kind_of(generation: str, mesh: dict, architecture: str, attention: str, slices: int) -> Kind:
  """mesh: {axis: size}."""
  return Kind(generation, tuple(axis for axis in SHARDING if mesh[axis] > 1), architecture, attention, slices)


def accuracy(kind: Kind) -> str:
  """What is known of predictions of this kind, for people."""
  made = [comparison for comparison in MADE if comparison.kind == kind]
  if not made:
    return f'not compared with any published run of this kind ({kind})'
  worst = math.ceil(1000 * max(abs(c.error) for c in made)) / 10
  each = '; '.join(f'{c.run}: {abs(c.error):.1%} too {"long" if c.error > 0 else "short"}' for c in made)
  runs = 'one published run' if len(made) == 1 else f'{len(made)} published runs'
  return f'within {worst:g} % of {runs} of this kind ({each})'
