"""What a walk over the schedule of a compiled program gives: times, counts, and what the core waits for."""
import dataclasses
from typing import NamedTuple


class Sums(dict[str, float]):
  """Sums by name."""

  def add(self, kind: str, value: float, times: float = 1) -> None:
    before = self.get(kind, 0.0)
    self[kind] = before + value * times

  def add_all(self, others: dict[str, float], times: float = 1) -> None:
    for kind, value in others.items():
      self.add(kind, value, times)


class Wait(NamedTuple):
  """Kinds of waiting of the core."""
  seconds: float
  name: str  # of the instruction
  description: str


@dataclasses.dataclass(frozen=True)
class Prediction:
  """Of one step, or one run of a computation.

  Attributes:
    seconds: in all.
    times: seconds by kind. matrix, memory, kernel: of work; exposed: waiting for collectives; copies: waiting for
      these; slices: waiting for other slices; links, network: how long these are busy; synchronous: of collectives that
      nothing runs beside.
    counts: flops: in all; optimizer_flops and kernel_flops: of these; link_bytes and slice_bytes: bytes that a device
      sends to others of its slice, and to other slices.
    waits: for collectives; of a step the longest first.
  """
  seconds: float
  times: dict[str, float]
  counts: dict[str, float]
  waits: list[Wait]
