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
  skipped: windows (start, stop) of rows that are left out, sorted and disjoint.
  rewinds: how often the run went back to a checkpoint.
  validation: the newest validation's metrics and the `step` it was made at; None before the first.
  patience: what stop.patience goes by.
  """
  step: int = 0
  tokens: int = 0
  examples_seen: int = 0
  skipped: Windows = ()
  rewinds: int = 0
  validation: dict[str, float] | None = None
  patience: Patience = Patience()

  @property
  def is_validated(self) -> bool:
    """Whether the newest validation is of this step."""
    return self.validation is not None and self.validation['step'] == self.step

  def after_step(self, tokens: int, examples_seen: int) -> 'Progress':
    """After one more step, of so many tokens, which has read up to row `examples_seen`."""
    return dataclasses.replace(self, step=self.step + 1, tokens=self.tokens + tokens, examples_seen=examples_seen)

  def leaving_out(self, windows: Iterable[tuple[int, int]], rewinds: int) -> 'Progress':
    """With these windows of rows left out, after so many rewinds."""
    return dataclasses.replace(self, skipped=tuple(windows), rewinds=rewinds)

  def to_meta(self) -> dict[str, Any]:
    """Its part of a checkpoint's `meta`, as JSON has it."""
    return dict(step=self.step, tokens=self.tokens, examples_seen=self.examples_seen,
                skipped=[list(window) for window in self.skipped], rewinds=self.rewinds, validation=self.validation,
                stopper=self.patience.to_meta())

  @classmethod
  def from_meta(cls, meta: dict[str, Any]) -> 'Progress':
    """What `to_meta` wrote; numbers that were not finite, null in JSON, are numbers again."""
    validation = meta['validation']
    if validation is not None:
      validation = {key: plain_json.number(value) for key, value in validation.items()}
    return cls(step=meta['step'], tokens=meta['tokens'], examples_seen=meta['examples_seen'],
               skipped=tuple((start, stop) for start, stop in meta['skipped']), rewinds=meta['rewinds'],
               validation=validation, patience=Patience.from_meta(meta['stopper']))
