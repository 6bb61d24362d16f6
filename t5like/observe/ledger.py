"""Where the time of a run went, over all its starts: workdir/ledger.jsonl, and its sums.

Phases: init (until the first step), compile (the first step), data (waiting for a batch), step, save (waiting for a
checkpoint), eval (validation, tasks, samples). From these lines follow lost (steps that were done again, because the
run ended before they were saved or was rewound) and idle (between the end of one start, as far as it is known, and the
next).
"""
import contextlib
import dataclasses
import time
from collections.abc import Iterable
from typing import Any

from etils import epath

from t5like.files import plain_json, schema, writing
from t5like.files.schema import Object, Real, Text, Whole

SECONDS = Real(-1e12, 1e12)  # negative in ledgers of older versions, when the machine's clock was set back
FIELDS = dict(
    attempt=Whole(),
    time=SECONDS,
    step=Whole(),
    seconds=Object(rest=SECONDS),
    event=Text(100),
    began=SECONDS,
    why=Text(1000),
    commit=Text(100),
    versions=Text(1000),
    devices=Text(1000))
LINE = Object(FIELDS, ('attempt', 'time', 'step', 'seconds'))
FACTS = ('commit', 'versions', 'devices')  # of a start, as environment.py has them
PHASES = ('init', 'compile', 'data', 'step', 'save', 'eval')


Line = dict[str, Any]


class Ledger:
  """Writes the lines of one start of a run.

  Seconds are charged to the phase that was entered last, by a monotonic clock. Lines are written by `flush`.

  Args:
    workdir: of the run.
    on: whether this process keeps the run's files; others write nothing.
    files: holds lines while the file cannot be written.
  """

  def __init__(self, workdir: Any, on: bool = True, files: writing.Guarded | None = None) -> None:
    self.path = epath.Path(workdir) / 'ledger.jsonl'
    self.on = on
    self.files = files or writing.Guarded()
    self.attempt = 0
    if on:
      self.files.keep(self.path)
      earlier = [line['attempt'] for line in read(workdir)]
      self.attempt = 1 + max(earlier, default=0)
    self.phase = 'init'
    self.since = time.monotonic()
    self.seconds: dict[str, float] = {}
    self.began = time.time()

  def enter(self, phase: str) -> str:
    """Charges time to this phase from now on. Returns the one before."""
    now = time.monotonic()
    before = self.phase
    charged = self.seconds.get(before, 0.0)
    self.seconds[before] = charged + now - self.since
    self.phase = phase
    self.since = now
    return before

  def flush(self, step: int, **event: Any) -> None:
    """Writes a line: the seconds of each phase since the previous line, up to `step`, with the fields of an event."""
    self.enter(self.phase)
    spent = {phase: _rounded(seconds) for phase, seconds in self.seconds.items()}
    self.seconds = {}
    if not self.on:
      return
    line = dict(
        attempt=self.attempt,
        time=_rounded(time.time()),
        step=step,
        seconds=spent,
        **event,
    )
    self.files.append(self.path, plain_json.dumps(line))

  def start(self, step: int, **facts: Any) -> None:
    """Writes the first line of a start that resumes from `step`; facts: its environment (environment.py)."""
    self.flush(
        step,
        event='start',
        began=_rounded(self.began),
        **facts,
    )


def _rounded(seconds: float) -> float:
  """To milliseconds."""
  return round(seconds, 3)


def read(workdir: Any) -> list[Line]:
  """The lines of a run's ledger, oldest first; damaged ones are skipped."""
  path = epath.Path(workdir) / 'ledger.jsonl'
  with contextlib.suppress(OSError):
    return list(schema.lines(path, LINE))
  return []


def account(lines: Iterable[Line]) -> dict[str, Any]:
  """Adds up the lines of a ledger.

  Returns:
    seconds: {phase: seconds}, also of `lost` and `idle`.
    total: the sum of the seconds, from the first start to the last line.
    goodput: the share of it that was spent in steps that the run has now.
    attempts: [{attempt, began, ended, lasted, from_step, to_step, end}], and FACTS where they are known.
  """
  totals = _Totals()
  for line in lines:
    corrected = _not_negative(line)
    totals.add(corrected)
  return totals.summary()


@dataclasses.dataclass(frozen=True)
class _Work:
  """Steps from `first` to `last`, and the seconds spent in them and waiting for their data."""
  first: int
  last: int
  in_steps: float
  in_data: float

  def until(self, step: int) -> '_Work':
    """The work that was done up to `step`."""
    share = self.share_until(step)
    last = min(self.last, step)
    return _Work(self.first, last, share * self.in_steps, share * self.in_data)

  def share_until(self, step: int) -> float:
    """The share of it that was done up to `step`."""
    if self.last <= step:
      return 1.0
    steps = self.last - self.first
    if not steps:
      return 0.0
    return max(0.0, (step - self.first) / steps)


class _Totals:
  """The sums of `account`, line by line."""

  def __init__(self) -> None:
    phases = (*PHASES, 'lost', 'idle')
    self.seconds: dict[str, float] = dict.fromkeys(phases, 0.0)
    self.work: list[_Work] = []
    self.attempts: list[dict[str, Any]] = []
    self.last_time: float | None = None
    self.last_step = 0

  def add(self, line: Line) -> None:
    """Counts a line."""
    event = line.get('event')
    self._add_phases(line['seconds'])
    if event == 'start':
      self._start(line)
    self._add_work(line, event)
    if event in ('start', 'rewind'):
      self._undo(line['step'])
    self.last_step = line['step']
    self.last_time = line['time']
    if self.attempts:
      self._continue_attempt(line, event)

  def _add_phases(self, spent: dict[str, float]) -> None:
    """Counts all phases but those of work, which may turn out to be lost."""
    for phase, seconds in spent.items():
      if phase in ('step', 'data'):
        continue
      before = self.seconds.get(phase, 0.0)
      self.seconds[phase] = before + seconds

  def _start(self, line: Line) -> None:
    began = line.get('began', line['time'])
    if self.last_time is not None:
      pause = began - self.last_time
      self.seconds['idle'] += max(0.0, pause)
    attempt = dict(
        attempt=line['attempt'],
        began=began,
        from_step=line['step'],
        end='ended',
        lasted=0.0,
    )
    for key in FACTS:
      if key in line:
        attempt[key] = line[key]
    self.attempts.append(attempt)

  def _add_work(self, line: Line, event: str | None) -> None:
    last = line['step']
    if event == 'rewind':
      last = self.last_step
    first = min(self.last_step, last)
    spent = line['seconds']
    in_steps = spent.get('step', 0.0)
    in_data = spent.get('data', 0.0)
    work = _Work(first, last, in_steps, in_data)
    self.work.append(work)

  def _undo(self, step: int) -> None:
    """Drops the work of steps after `step`, which are done again: their time is lost."""
    kept = []
    for work in self.work:
      share = work.share_until(step)
      seconds = work.in_steps + work.in_data
      self.seconds['lost'] += (1 - share) * seconds
      if share:
        kept.append(work.until(step))
    self.work = kept

  def _continue_attempt(self, line: Line, event: str | None) -> None:
    attempt = self.attempts[-1]
    attempt['ended'] = line['time']
    attempt['to_step'] = line['step']
    attempt['lasted'] += sum(line['seconds'].values())
    if event == 'end':
      attempt['end'] = line.get('why', 'ended')

  def summary(self) -> dict[str, Any]:
    """The return value of `account`."""
    seconds = self.seconds
    for work in self.work:
      seconds['step'] += work.in_steps
      seconds['data'] += work.in_data
    total = sum(seconds.values())
    goodput = seconds['step'] / total if total else 0.0
    return dict(
        seconds=seconds,
        total=total,
        goodput=goodput,
        attempts=self.attempts,
    )


def _not_negative(line: Line) -> Line:
  """A line without the negative seconds that older versions wrote when the machine's clock was set back."""
  seconds = {}
  for phase, spent in line['seconds'].items():
    seconds[phase] = max(0.0, spent)
  return dict(line, seconds=seconds)
