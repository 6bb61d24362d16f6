"""When and why a run was rewound to a checkpoint: workdir/rewinds.json.

A checkpoint holds the number of rewinds before it was saved. One that a later rewind has undone is of a past that did
not happen, and is ignored.
"""
from collections.abc import Callable, Sequence
from typing import Any

from etils import epath

from t5like.files.schema import List, Object, Text, Whole
from t5like.storage import workdir as workdir_lib

REWIND = dict(
    from_step=Whole(),
    to_step=Whole(),
    rows=List(Whole(), 2, 2),
    why=Text(),
)
REWINDS = List(Object(REWIND, tuple(REWIND)))

Record = dict[str, Any]  # {from_step, to_step, rows: [start, stop], why}


def read_rewinds(workdir: Any) -> list[Record]:
  """[{from_step, to_step, rows: [start, stop], why}], oldest first."""
  path = epath.Path(workdir) / 'rewinds.json'
  return workdir_lib.read_json(path, REWINDS) or []


def happened(rewinds: Sequence[Record]) -> Callable[[int, dict[str, Any]], bool]:
  """Function of (step, meta) of a checkpoint: whether it is of the past that the run has now."""

  def is_of_this_past(step: int, meta: dict[str, Any]) -> bool:
    later = rewinds[meta['rewinds']:]
    return all(step <= rewind['to_step'] for rewind in later)

  return is_of_this_past


def windows(
    rewinds: Sequence[Record],
    examples_seen: int,
) -> list[tuple[int, int]]:
  """The rows that rewinds skip, [(start, stop)], of a run that has read the rows before `examples_seen`."""
  ahead = []
  for rewind in rewinds:
    start, stop = rewind['rows']
    if stop <= examples_seen:
      continue
    start = max(start, examples_seen)
    ahead.append((start, stop))
  return ahead


def target(steps: Sequence[int], rewinds: Sequence[Record]) -> int | None:
  """The step to rewind to, or None: the newest, or, where the last rewind did not help, the one before it.

  steps: of the checkpoints that count, oldest first.
  """
  if not steps:
    return None
  newest = steps[-1]
  if not rewinds:
    return newest
  last_target = rewinds[-1]['to_step']
  if newest > last_target:
    return newest
  earlier = [step for step in steps if step < last_target]
  if not earlier:
    return None
  return earlier[-1]
