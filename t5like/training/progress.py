"""How far a run is: the numbers that a checkpoint keeps beside its arrays."""
import dataclasses
from collections.abc import Iterable
from typing import Any

from t5like.files import plain_json
from t5like.training.stop import Patience

Windows = tuple[tuple[int, int], ...]


@dataclasses.dataclass(frozen=True)
class Progress:
  """Where in its steps and its data a run is.

  step: steps done, the bad ones that changed nothing included.
  tokens: of the steps done.
  examples_seen: the next row of the endless training sequence.
  skipped: windows (start, stop) of rows to skip, sorted and disjoint.
  rewinds: how often the run was rewound to a checkpoint.
  stages: (step, examples_seen) at which each stage began that has begun, the first one not counted.
  validation: the newest validation's metrics and the `step` it was made at; None before the first.
  patience: what stop.patience counts.
  """
  step: int = 0
  tokens: int = 0
  examples_seen: int = 0
  skipped: Windows = ()
  rewinds: int = 0
  stages: tuple[tuple[int, int], ...] = ()
  validation: dict[str, float] | None = None
  patience: Patience = Patience()

  @property
  def is_validated(self) -> bool:
    """Whether the newest validation is of this step."""
    if self.validation is None:
      return False
    return self.validation['step'] == self.step

  def after_step(self, tokens: int, examples_seen: int) -> 'Progress':
    """The progress after one more step, of `tokens` tokens, whose batch ends before row `examples_seen`."""
    return dataclasses.replace(
        self,
        step=self.step + 1,
        tokens=self.tokens + tokens,
        examples_seen=examples_seen,
    )

  def with_stage(self) -> 'Progress':
    """The progress after the next stage has begun here."""
    began = (self.step, self.examples_seen)
    return dataclasses.replace(self, stages=(*self.stages, began))

  def skipping(self, windows: Iterable[tuple[int, int]], rewinds: int) -> 'Progress':
    """The progress with these windows of rows to skip, after this number of rewinds."""
    return dataclasses.replace(self, skipped=tuple(windows), rewinds=rewinds)

  def to_meta(self) -> dict[str, Any]:
    """The fields of a checkpoint's `meta`, for JSON."""
    windows = [list(window) for window in self.skipped]
    stages = [list(began) for began in self.stages]
    return dict(
        step=self.step,
        tokens=self.tokens,
        examples_seen=self.examples_seen,
        skipped=windows,
        rewinds=self.rewinds,
        stages=stages,
        validation=self.validation,
        stopper=self.patience.to_meta(),
    )

  @classmethod
  def from_meta(cls, meta: dict[str, Any]) -> 'Progress':
    """The progress that `to_meta` wrote; numbers that were not finite, null in JSON, are numbers again."""
    windows = [(start, stop) for start, stop in meta['skipped']]
    stages = [(step, row) for step, row in meta.get('stages', ())]  # older versions had none
    return cls(
        step=meta['step'],
        tokens=meta['tokens'],
        examples_seen=meta['examples_seen'],
        skipped=tuple(windows),
        rewinds=meta['rewinds'],
        stages=tuple(stages),
        validation=_numbers(meta['validation']),
        patience=Patience.from_meta(meta['stopper']),
    )


def _numbers(validation: dict[str, Any] | None) -> dict[str, float] | None:
  if validation is None:
    return None
  numbers = {}
  for key, value in validation.items():
    numbers[key] = plain_json.number(value)
  return numbers
