"""What a run does beside its steps: hooks, when each is due, and the one place that calls them.

A hook is a class with a method for each moment at which it has something to do. `actions.HOOKS` lists them all, in
their order, each with the config key that says how often it acts. The loop knows none of them.
"""
import dataclasses
from collections.abc import Iterator
from typing import Any

from t5like.config.values import DEFAULTS
from t5like.config_type import Config
from t5like.nearest import suggestion
from t5like.training.parts import Parts
from t5like.training.progress import Progress
from t5like.training.trainer import Batch, Metrics


@dataclasses.dataclass(frozen=True, eq=False)
class Step:
  """A step that was dispatched, as `Hook.measured` gets it.

  progress: after it.
  metrics: on the devices at first; numbers once they are fetched.
  rows: this host's part of its batch, numpy.
  first_row: of the whole batch, in the endless sequence.
  data_wait: seconds that the devices may have waited for the batch.
  """
  progress: Progress
  metrics: Metrics
  rows: Batch
  first_row: int
  data_wait: float


@dataclasses.dataclass(frozen=True, eq=False)
class Turn:
  """Between two steps. A hook that changes something returns a changed copy (dataclasses.replace).

  progress: after the newest step.
  batch: of the newest step, global arrays; None before the first and after the last.
  ending: why the process has to end after this step, though the run is not done.
  reason: why the run is done.
  """
  progress: Progress
  batch: Batch | None = None
  ending: str | None = None
  reason: str | None = None


class Hook:
  """Work beside the steps. It owns its state; it reads the parts of the run and calls them.

  Methods are called in this order: `reset`, `start`, then for each step `before_stage` (where one begins),
  `before_step`, `measured` (of the previous
  step, whose metrics arrive while the newest one is computed) and, when it is due, `pause` and `act`; at last `leave`
  or `finish`, then `close`. After a rewind it begins again with `reset`.
  """

  def __init__(self, parts: Parts, every: int):
    """every: steps between two calls of `act`; 0: never."""
    self.parts = parts
    self.every = every

  def reset(self, progress: Progress) -> None:
    """Forgets what belongs to steps after `progress`, which were undone. Nothing may be computed here."""

  def start(self, turn: Turn) -> Turn | None:
    """Before the first step, and before the first after a rewind. May raise signals.Asked."""

  def before_stage(self, progress: Progress) -> None:
    """Before another stage begins: all steps so far are measured, and the parts of the run still are of theirs."""

  def before_step(self, step: int) -> None:
    """Before this step is dispatched."""

  def measured(self, step: Step) -> None:
    """The metrics of a step were fetched. BadSteps rewinds the run."""

  def is_due(self, step: int) -> bool:
    """Whether to act after this step."""
    return self.every > 0 and step % self.every == 0

  def pause(self) -> None:
    """Hooks are about to act: training pauses."""

  def act(self, turn: Turn) -> Turn | None:
    """After a step at which it is due. May raise signals.Asked where that costs only work that is done again."""

  def leave(self, progress: Progress) -> None:
    """The process ends though the run is not done."""

  def finish(self, turn: Turn) -> Turn | None:
    """The run is done. May raise signals.Asked."""

  def result(self, progress: Progress) -> dict[str, Any]:
    """Its part of what `loop.train` returns."""
    return {}

  def rescue(self, progress: Progress) -> str:
    """The run ends with an error. Saves what can still be saved; a sentence for people, or ''."""
    return ''

  def close(self) -> None:
    """However the run ended."""


@dataclasses.dataclass(frozen=True)
class Entry:
  """A line of the table of hooks.

  name: its own.
  make: a subclass of Hook.
  every: the config key with the number of steps between two calls of `act`, 0 for never; '' for a hook that acts at
    other moments alone.
  when_ending: whether it also acts after a step after which the process has to end, when time is short.
  before: names of hooks before which it always acts, if it acts at all.
  """
  name: str
  make: type[Hook]
  every: str = ''
  when_ending: bool = False
  before: tuple[str, ...] = ()


def table(*entries: Entry) -> tuple[Entry, ...]:
  """The entries, in the order in which they are called. TypeError for one that could never do anything."""
  names = [entry.name for entry in entries]
  for position, entry in enumerate(entries):
    if names.count(entry.name) > 1:
      raise TypeError(f'hook {entry.name!r} is in the table twice: give each a name of its own.')
    _check_class(entry)
    if entry.every:
      _check_key(entry)
    following = names[position + 1:]
    for name in entry.before:
      if name not in following:
        raise TypeError(f'hook {entry.name!r}: before={name!r} is no entry that follows it in the table.')
  return entries


MOMENTS = tuple(name for name in vars(Hook) if not name.startswith('_'))


def _check_class(entry: Entry) -> None:
  if not isinstance(entry.make, type) or not issubclass(entry.make, Hook):
    raise TypeError(f'hook {entry.name!r}: make={entry.make!r} must be a subclass of hooks.Hook.')
  own = [name for name in MOMENTS if getattr(entry.make, name) is not getattr(Hook, name)]
  if not own:
    raise TypeError(f'hook {entry.name!r}: {entry.make.__name__} does nothing. Write one of {", ".join(MOMENTS)}.')
  if 'act' in own and not entry.every:
    raise TypeError(f'hook {entry.name!r}: {entry.make.__name__}.act would never be called. Give every=, the config '
                    'key that says after how many steps it is due.')
  if entry.every and not {'act', 'measured'} & {*own}:
    raise TypeError(f'hook {entry.name!r} has every={entry.every!r}, but {entry.make.__name__} has no `act` that would '
                    'be called then.')


def _check_key(entry: Entry) -> None:
  if entry.every not in DEFAULTS:
    advice = suggestion(entry.every, DEFAULTS, ' Did you mean {!r}?')
    raise TypeError(f'hook {entry.name!r}: every={entry.every!r} is no key of t5like/config/base.py.{advice}')
  default = DEFAULTS[entry.every]
  if type(default) is not int:
    raise TypeError(
        f'hook {entry.name!r}: every={entry.every!r} is no number of steps, its default being {default!r}.')


def _interval(entry: Entry, config: Config) -> int:
  """Steps between two calls of `act`, from the config."""
  if not entry.every:
    return 0
  section, _, key = entry.every.rpartition('.')
  if not section:
    return config[key]
  return config[section][key]


class Hooks:
  """The hooks of a run, called in the order of their table."""

  def __init__(self, entries: tuple[Entry, ...], parts: Parts):
    self._hooks: list[Hook] = []
    self._acting: list[tuple[Entry, Hook]] = []
    for entry in entries:
      hook = entry.make(parts, _interval(entry, parts.plan.config))
      self._hooks.append(hook)
      if entry.make.act is not Hook.act:
        self._acting.append((entry, hook))

  def __iter__(self) -> Iterator[Hook]:
    return iter(self._hooks)

  def due(self, step: int, ending: str | None) -> list[Hook]:
    """Those that act after this step; `ending` as of Turn."""
    names = set()
    for entry, hook in self._acting:
      if hook.is_due(step):
        names.add(entry.name)
    due = []
    for entry, hook in self._acting:
      precedes_another = hook.every > 0 and not names.isdisjoint(entry.before)
      acts = precedes_another or hook.is_due(step)
      can_wait = not entry.when_ending
      if ending and can_wait:
        continue
      if acts:
        due.append(hook)
    return due

  def reset(self, progress: Progress) -> None:
    """See Hook.reset."""
    for hook in self:
      hook.reset(progress)

  def before_stage(self, progress: Progress) -> None:
    """See Hook.before_stage."""
    for hook in self:
      hook.before_stage(progress)

  def before_step(self, step: int) -> None:
    """See Hook.before_step."""
    for hook in self:
      hook.before_step(step)

  def measured(self, step: Step) -> None:
    """See Hook.measured."""
    for hook in self:
      hook.measured(step)

  def start(self, turn: Turn) -> Iterator[Turn]:
    """The turn after each hook, so that nothing is lost when the next one raises."""
    for hook in self:
      turn = hook.start(turn) or turn
      yield turn

  def act(self, due: list[Hook], turn: Turn) -> Iterator[Turn]:
    """As `start`, of the hooks that are due."""
    for hook in self:
      hook.pause()
    for hook in due:
      turn = hook.act(turn) or turn
      yield turn

  def finish(self, turn: Turn) -> Iterator[Turn]:
    """As `start`, when the run is done."""
    for hook in self:
      turn = hook.finish(turn) or turn
      yield turn

  def leave(self, progress: Progress) -> None:
    """See Hook.leave."""
    for hook in self:
      hook.leave(progress)

  def result(self, progress: Progress) -> dict[str, Any]:
    """The results of all hooks."""
    merged = {}
    for hook in self:
      merged.update(hook.result(progress))
    return merged

  def rescue(self, progress: Progress) -> str:
    """The sentences of all hooks."""
    sentences = []
    for hook in self:
      sentence = hook.rescue(progress)
      if sentence:
        sentences.append(sentence)
    return ' '.join(sentences)

  def close(self) -> None:
    """See Hook.close."""
    for hook in self:
      hook.close()
