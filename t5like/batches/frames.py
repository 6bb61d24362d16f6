"""What batches are like, whatever their rows are of: which arrays they have, and how wide these are."""
import dataclasses
from collections.abc import Iterable, Sequence

import numpy as np

from t5like.config_type import Config
from t5like.objectives import lengths
from t5like.objectives.functions import Batch
from t5like.objectives.spec import Lengths


@dataclasses.dataclass(frozen=True)
class Frame:
  """What batches of a config are like, whatever component their rows are of.

  Attributes:
    lengths: widths of rows.
    has_prefix: whether batches say which inputs see each other.
  """
  lengths: Lengths
  has_prefix: bool

  def blank(self, rows: int) -> Batch:
    """A batch of padding."""
    shape_BS = (rows, self.lengths.inputs)
    shape_BT = (rows, self.lengths.targets)
    shape_BP = (rows, self.lengths.predicted)
    batch: Batch = dict(
        inputs=np.zeros(shape_BT, np.int32),
        targets=np.zeros(shape_BP, np.int32),
        weights=np.zeros(shape_BP, np.float32),
        positions=np.zeros(shape_BT, np.int32),
        segments=np.zeros(shape_BT, np.int32),
    )
    if self.lengths.predictions:
      batch['predict'] = np.zeros(shape_BP, np.int32)
    if self.has_prefix:
      batch['prefix'] = np.zeros(shape_BT, bool)
    if self.lengths.inputs:
      batch['encoder'] = dict(
          inputs=np.zeros(shape_BS, np.int32),
          positions=np.zeros(shape_BS, np.int32),
          segments=np.zeros(shape_BS, np.int32),
      )
    return batch

  def holds(self, batch: Batch) -> bool:
    """Whether a batch is as wide as this; its encoder's rows always are."""
    frame = self.blank(0)
    if set(frame) != set(batch):
      return False
    frame.pop('encoder', None)
    for key, array in frame.items():
      if batch[key].shape[1] != array.shape[1]:
        return False
    return True


def frame_of(config: Config) -> Frame:
  """The Frame of all batches of a config."""
  return frame(lengths.components(config))


def frame(components: Sequence[lengths.Component]) -> Frame:
  """The Frame of all batches of components."""
  has_prefix = any(component.has_prefix for component in components)
  return Frame(lengths.longest(components), has_prefix)


def put(out: Batch, made: Batch, rows: Iterable[int]) -> None:
  """Copies a batch into `rows` of one that is as wide or wider."""
  for key, value in made.items():
    target = out[key]
    if isinstance(value, dict):
      put(target, value, rows)
      continue
    numbers = list(rows)
    width = value.shape[1]
    target[numbers, :width] = value
