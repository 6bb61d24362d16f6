"""Where the time of a run went, over all its starts: workdir/ledger.jsonl, and what it adds up to.

Phases: init (until the first step), compile (the first step), data (waiting for a batch), step, save (standing still
for a checkpoint), eval (validation, tasks, samples). From these lines follow lost (steps that were done again, because
the run ended before they were saved or went back behind them) and idle (between the end of one start, as far as it is
known, and the next).
"""
import contextlib
import time

from etils import epath

from t5like import plain_json, schema, writing
from t5like.schema import Object, Real, Text, Whole

SECONDS = Real(-1e12, 1e12)  # negative in what older versions wrote when the machine's clock was set back
LINE = Object(dict(attempt=Whole(), time=SECONDS, step=Whole(), seconds=Object(rest=SECONDS), event=Text(100),
                   began=SECONDS, why=Text(1000), commit=Text(100), versions=Text(1000), devices=Text(1000)),
              ('attempt', 'time', 'step', 'seconds'))
FACTS = ('commit', 'versions', 'devices')  # of a start, as environment.py has them
PHASES = ('init', 'compile', 'data', 'step', 'save', 'eval')


class Ledger:
  """Writes the lines of one start of a run; on the process that keeps the run's files (`on`), else nothing.

  Seconds are charged to the phase that was entered last, by a clock that nobody sets. Lines are written by `flush`;
  files: a writing.Guarded, which they wait in while the file cannot be written.
  """

  def __init__(self, workdir, on=True, files=None):
    self.path, self.on, self.files = epath.Path(workdir) / 'ledger.jsonl', on, files or writing.Guarded()
    if on:
      self.files.keep(self.path)
    self.attempt = 1 + max((line['attempt'] for line in read(workdir)), default=0) if on else 0
    self.phase, self.since, self.seconds = 'init', time.monotonic(), {}
    self.began = time.time()

  def enter(self, phase):
    """From now on, time is of this phase. Returns the one before."""
    now = time.monotonic()  # a clock that nobody sets
    before = self.phase
    self.seconds[before] = self.seconds.get(before, 0.0) + now - self.since
    self.phase = phase
    self.since = now
    return before

  def flush(self, step, **event):
    """Writes a line: the seconds of each phase since the line before, up to `step`; `event`: what happened, if any."""
    self.enter(self.phase)
    spent = {phase: round(seconds, 3) for phase, seconds in self.seconds.items()}
    self.seconds = {}
    if self.on:
      line = dict(attempt=self.attempt, time=round(time.time(), 3), step=step, seconds=spent, **event)
      self.files.append(self.path, plain_json.dumps(line))

  def start(self, step, **facts):
    """The first line of a start of the run, which continues from `step`; facts: what it runs on (environment.py)."""
    self.flush(step, event='start', began=round(self.began, 3), **facts)


def read(workdir):
  """The lines of a run's ledger, oldest first; those that were cut off, or hold something else, are left out."""
  with contextlib.suppress(OSError):
    return list(schema.lines(epath.Path(workdir) / 'ledger.jsonl', LINE))
  return []


def account(lines):
  """{'seconds': {phase: seconds, lost, idle}, 'total', 'goodput', 'attempts'} of the lines of a ledger.

  total: what the seconds add up to, from the first start to the last line. goodput: the share of it that was
  spent in steps that the run has now. attempts: [{attempt, began, ended, lasted, from_step, to_step, end}].
  """
  seconds = dict.fromkeys((*PHASES, 'lost', 'idle'), 0.0)
  worked, attempts, last, step = [], [], None, 0  # worked: [(first step, last step, seconds in steps, in data)]
  for line in map(_not_negative, lines):
    for phase, spent in line['seconds'].items():
      if phase not in ('step', 'data'):
        seconds[phase] = seconds.get(phase, 0.0) + spent
    event = line.get('event')
    if event == 'start':
      if last is not None:
        seconds['idle'] += max(0.0, line.get('began', line['time']) - last)
      attempts.append(dict(attempt=line['attempt'], began=line.get('began', line['time']), from_step=line['step'],
                           end='ended', lasted=0.0, **{key: line[key] for key in FACTS if key in line}))
    entry = (min(step, line['step']), line['step'], line['seconds'].get('step', 0.0), line['seconds'].get('data', 0.0))
    if event == 'rewind':
      entry = (step, step, *entry[2:])
    worked.append(entry)
    if event in ('start', 'rewind'):
      worked = _undo(worked, line['step'], seconds)
    step, last = line['step'], line['time']
    if attempts:
      attempts[-1].update(ended=line['time'], to_step=line['step'],
                          lasted=attempts[-1]['lasted'] + sum(line['seconds'].values()),
                          **({'end': line.get('why', 'ended')} if event == 'end' else {}))
  seconds['step'] += sum(entry[2] for entry in worked)
  seconds['data'] += sum(entry[3] for entry in worked)
  total = sum(seconds.values())
  return dict(seconds=seconds, total=total, goodput=seconds['step'] / total if total else 0.0, attempts=attempts)


def _not_negative(line):
  """A line without the negative seconds that older versions wrote when the machine's clock was set back."""
  return dict(line, seconds={phase: max(0.0, spent) for phase, spent in line['seconds'].items()})


def _undo(worked, step, seconds):
  """What is left of the work when steps after `step` are done again; the rest is lost."""
  kept = []
  for first, last, in_steps, in_data in worked:
    share = 1.0 if last <= step else max(0.0, (step - first) / (last - first)) if last > first else 0.0
    seconds['lost'] += (1 - share) * (in_steps + in_data)
    if share:
      kept.append((first, min(last, step), share * in_steps, share * in_data))
  return kept
