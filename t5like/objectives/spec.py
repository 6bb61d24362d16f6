"""What an objective is: an object with all in which objectives differ. What it leaves out is an error at import.

Configs are checked by these before JAX starts, so that nothing here imports numpy; functions that make rows get arrays.
"""
from __future__ import annotations

import dataclasses
import types
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from t5like.choices import ARCHITECTURES, Architecture
from t5like.config_type import Config, Section
from t5like.objectives.asking import Asking, CannotBeAsked
from t5like.objectives.prompts import STYLES

if TYPE_CHECKING:  # configs are checked without numpy
  import numpy as np

  Random = np.random.Generator
  Sides = tuple[np.ndarray, np.ndarray]  # inputs, targets
  MakeRows = Callable[[np.ndarray, Sequence[Random], 'Setting'], dict[str, np.ndarray]]
  MakePair = Callable[[np.ndarray, Random, 'Setting'], tuple[Any, Any]]
  MakePairs = Callable[[np.ndarray, Random, 'Setting'], list[Sides] | None]
  MakeAllPairs = Callable[[np.ndarray, Sequence[Random], 'Setting'], Sides | None]


class _Missing:
  """Stands for a part that an entry must have."""

  def __repr__(self) -> str:
    return 'MISSING'


MISSING: Any = _Missing()


def _needed(about: str) -> Any:
  return dataclasses.field(default=MISSING, metadata=dict(about=about))


class Incomplete(TypeError):
  """An objective that lacks a part, or whose parts contradict each other."""


@dataclasses.dataclass(frozen=True)
class Lengths:
  """Tokens of examples and of rows of a batch.

  Attributes:
    raw: most tokens of text in an example; where rows are windows, exactly so many.
    inputs: positions of the encoder's rows; 0 without one.
    targets: positions of the rows of the decoder, or of the only stack.
    predictions: of a row of a masked LM; 0: all positions predict.
    spans: most sentinels in an example.
  """
  raw: int
  inputs: int
  targets: int
  predictions: int = 0
  spans: int = 0

  @property
  def predicted(self) -> int:
    """Positions of a row that predict."""
    return self.predictions or self.targets


@dataclasses.dataclass(frozen=True)
class Fit:
  """How much fits into rows of pairs.

  Attributes:
    raw: tokens of text.
    targets: the most tokens that these give; used where there is a decoder behind an encoder.
    spans: the most sentinels that these give.
  """
  raw: int
  targets: int = 0
  spans: int = 0


@dataclasses.dataclass(frozen=True)
class Filled:
  """What fills the rows of an encoder.

  Attributes:
    text: tokens of text that fill the inputs of a row.
    targets: how many targets that text has.
    inputs: the positions that are filled by an example as long as config.data allows.
  """
  text: int
  targets: int
  inputs: int


@dataclasses.dataclass(frozen=True)
class Ids:
  """What rows need of a vocabulary: ids (None for none), arrays of ids, `begins_word` bool [V] or None.

  `begin` is what the decoder's rows begin with: the start token behind an encoder, else the one that begins texts.
  """
  eos: int | None
  begin: int | None
  vocab_size: int
  sentinels: np.ndarray
  special: Sequence[int] | np.ndarray
  mask: int | None = None
  cls: int | None = None
  sep: int | None = None
  begins_word: np.ndarray | None = None

  def token(self, role: str) -> int:
    """The id of a special token, by the name of its field, that vocabulary/requirements.py has seen to be there."""
    number = getattr(self, role)
    if number is None:
      raise LookupError(f'rows need a token {role!r}, which the vocabulary lacks')
    return number


@dataclasses.dataclass(frozen=True)
class Setting:
  """What functions that make rows know beside tokens; `keys` are those of config.objective that the entry names."""
  keys: types.SimpleNamespace
  ids: Ids
  lengths: Lengths
  document_mask: bool
  has_encoder: bool


@dataclasses.dataclass(frozen=True)
class Role:
  """A special token that rows need: 'mask', 'cls' or 'sep'.

  purpose: what it is for, after 'a token'; words: what errors call it; sentinels: how many a vocabulary without
  special tokens of its own must have, so that one of them can be this.
  """
  name: str
  purpose: str
  words: str = ''
  sentinels: int = 0


@dataclasses.dataclass(frozen=True)
class Sentinels:
  """How many sentinels rows need.

  Attributes:
    count: of (keys, Lengths), an int.
    purpose: of that count, what errors say they are for, after 'for'.
    explained: what they are, in full.
    depends: keys of the config that the count follows from, which errors show.
  """
  count: Callable[[Any, Lengths], int]
  purpose: Callable[[int], str]
  explained: str
  depends: tuple[str, ...] = ()


def _zero(keys: Any, lengths: Lengths) -> int:
  return 0


NO_SENTINELS = Sentinels(_zero, str, '')


def no_roles(keys: Any) -> tuple[Role, ...]:
  """Of objectives that need no special tokens but those of all rows."""
  return ()


def no_overlap(data: Section) -> int:
  """Of windows that share no token."""
  return 0


@dataclasses.dataclass(frozen=True)
class OneStack:
  """Rows of text that one stack reads, and predicts.

  Attributes:
    architecture: 'decoder' or 'encoder'.
    lengths: Lengths of (keys, config.data).
    rows: the batch of (tokens int32 [B, T], -1 where there are none, one generator a row, Setting).
    style: the style of prompts of (keys, config.data), one of `styles`.
    styles: all that `style` can return, keys of prompts.STYLES.
    begins: of config.data, whether rows begin with the token that texts begin with.
    overlap: of config.data, how many tokens a window shares with the next.
    has_prefix: whether batches say which inputs see each other.
    streams: whether it can train on text without beginnings and ends.
  """
  architecture: str = _needed("'decoder' or 'encoder'")
  lengths: Callable[[Any, Section], Lengths] = _needed('how many tokens of text fill a row')
  rows: MakeRows = _needed('how rows are made of tokens')
  style: Callable[[Any, Section], str] = _needed('how prompts are written')
  styles: tuple[str, ...] = _needed('which styles of prompts there are')
  begins: Callable[[Section], bool] = _needed('whether rows begin with a token of their own')
  overlap: Callable[[Section], int] = no_overlap
  has_prefix: bool = False
  streams: bool = False


@dataclasses.dataclass(frozen=True)
class Pair:
  """Examples of inputs and targets, for an encoder and a decoder, or for a decoder that reads one after the other.

  Attributes:
    make: (inputs, targets), int arrays without ends, of (text int32 [n], generator, Setting).
    sizes: lengths (inputs, targets) of (keys, tokens of text), ends included: arrays; the most where chance decides.
    one_row: the Fit of (keys, tokens that a decoder's row has for inputs and targets, ends included).
    two_rows: the Fit of (keys, tokens of inputs, tokens of targets or 0 for as many as are needed, tokens that a mode
      takes of inputs and is to be left out for each further example).
    style: how prompts of decoders are written, a key of prompts.STYLES.
    ask: how answers are asked for.
    given: whether the data has inputs and targets; nothing is made then.
    of_window: [(inputs, targets)] with ends, of (window int32 [n], generator, Setting), where one window gives several;
      None where there is to be one.
    whole_windows: arrays (inputs [B, I], targets [B, J]) with ends, of all complete windows [B, L] of a batch at once
      as `make` gives them, for an encoder-decoder; None where these keys do not allow it.
    filled: the Filled of (keys, tokens of inputs, tokens of text in an example), where data.target_len may leave inputs
      unfilled.
  """
  make: MakePair = _needed('how inputs and targets are made of a text')
  sizes: Callable[[Any, Any], tuple[Any, Any]] = _needed('how long inputs and targets are, by the tokens of a text')
  one_row: Callable[[Any, int], Fit] = _needed('how much text fits into a row of a decoder')
  two_rows: Callable[[Any, int, int, int], Fit] = _needed('how much text fits into rows of an encoder and a decoder')
  style: str = _needed('how prompts are written')
  ask: Asking | CannotBeAsked = _needed('how answers are asked for')
  given: bool = False
  of_window: MakePairs | None = None
  whole_windows: MakeAllPairs | None = None
  filled: Callable[[Any, int, int], Filled] | None = None


@dataclasses.dataclass(frozen=True)
class Objective:
  """An objective. Its parts are required unless they have a default, and OneStack or Pair by the architectures.

  Attributes:
    name: as config.objective.name says it.
    architectures: those that can be trained on it; where choices.py has others that read the same rows, these too.
    keys: keys of config.objective that its functions read; they are handed no others.
    sentinels: how many rows need of a vocabulary.
    stack, pair: how rows are made. A decoder that could have both reads pairs where a mode stands before inputs.
    roles: special tokens that rows need, of `keys`.
    by_chance: architectures for which the lengths of examples depend on the draw, so that rows cannot be planned.
    predicts_each_token: whether each token of text is predicted once, so that bits per byte are known.
    example: a prompt for models with an encoder.
  """
  name: str = _needed('what config.objective.name calls it')
  architectures: tuple[str, ...] = _needed('which architectures it trains')
  keys: tuple[str, ...] = _needed('which keys of config.objective it reads')
  sentinels: Sentinels = _needed('how many sentinels it needs of a vocabulary; NO_SENTINELS for none')
  stack: OneStack | None = None
  pair: Pair | None = None
  roles: Callable[[Any], tuple[Role, ...]] = no_roles
  by_chance: tuple[str, ...] = ()
  predicts_each_token: bool = False
  example: str = ''

  def __post_init__(self) -> None:
    problems = list(_missing(self)) or list(_contradictions(self))
    if problems:
      raise Incomplete(f'the objective {self.name!r} is incomplete: {"; ".join(problems)}.')
    architectures = with_same_rows(self.architectures)
    by_chance = with_same_rows(self.by_chance)
    object.__setattr__(self, 'architectures', architectures)
    object.__setattr__(self, 'by_chance', by_chance)

  @property
  def given(self) -> bool:
    """Whether its inputs and targets come from data.inputs and data.targets."""
    return self.pair is not None and self.pair.given

  def layout(self, architecture: str, mode: str = '') -> OneStack | Pair:
    """How rows of an architecture are made; mode: text that stands before inputs."""
    is_pair = bool(mode) or ARCHITECTURES[architecture].has_encoder
    if self.pair is not None and (is_pair or self.stack is None):
      return self.pair
    if self.stack is None:
      raise Incomplete(f'the objective {self.name!r} has neither stack nor pair.')
    return self.stack

  def style(self, config: Config) -> str:
    """How a model of a config takes prompts: a key of STYLES."""
    layout = self.layout(config.model.name)
    if isinstance(layout, Pair):
      return pair_style(config.model.name, layout.style)
    keys = self.read(config.objective)
    style = layout.style(keys, config.data)
    if style not in layout.styles:
      raise Incomplete(f'the objective {self.name!r} writes prompts in the style {style!r}, which stack.styles lacks: '
                       f'it has {", ".join(layout.styles)}.')
    return style

  def asking(self, section: Section) -> tuple[Asking | CannotBeAsked, str]:
    """(how models of pairs are asked, the mode that goes before it)."""
    if self.pair is None:
      raise Incomplete(f'the objective {self.name!r} has no pair, and pairs alone are asked.')
    return self.pair.ask, ''

  def read(self, section: Section) -> types.SimpleNamespace:
    """Those keys of config.objective that this objective reads."""
    return _read(section, self.keys)


@dataclasses.dataclass(frozen=True)
class Part:
  """One objective of a Mixture: `label` names it, `rate` is its share, `mode` is text that goes before inputs,
  `changes` are what it sets of config.objective."""
  label: str
  rate: float
  mode: str
  changes: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Mixture:
  """Several objectives under one name, each a component of its own.

  Attributes:
    name, architectures, keys, example: as of Objective.
    parts: [Part] of `keys`. ConfigError for values that mean nothing.
    style: how prompts of decoders are written.
    ask: of `keys`, (how answers are asked for, the mode that goes before inputs).
  """
  name: str = _needed('what config.objective.name calls it')
  architectures: tuple[str, ...] = _needed('which architectures it trains')
  keys: tuple[str, ...] = _needed('which keys of config.objective it reads')
  parts: Callable[[Any], list[Part]] = _needed('which objectives it is made of')
  style_of_pairs: str = _needed('how prompts are written')
  ask: Callable[[Any], tuple[Asking, str]] = _needed('how answers are asked for')
  example: str = ''
  given = False
  predicts_each_token = False

  def __post_init__(self) -> None:
    problems = list(_missing(self)) or list(_contradictions_of_mixture(self))
    if problems:
      raise Incomplete(f'the objective {self.name!r} is incomplete: {"; ".join(problems)}.')
    object.__setattr__(self, 'architectures', with_same_rows(self.architectures))

  def style(self, config: Config) -> str:
    """How a model of a config takes prompts: a key of STYLES."""
    return pair_style(config.model.name, self.style_of_pairs)

  def asking(self, section: Section) -> tuple[Asking, str]:
    """(how models of pairs are asked, the mode that goes before it)."""
    return self.ask(self.read(section))

  def read(self, section: Section) -> types.SimpleNamespace:
    """Those keys of config.objective that this mixture reads."""
    return _read(section, self.keys)


def _read(section: Section, keys: Iterable[str]) -> types.SimpleNamespace:
  values = types.SimpleNamespace()
  for key in keys:
    setattr(values, key, section[key])
  return values


def with_same_rows(names: Iterable[str]) -> tuple[str, ...]:
  """These architectures, and all others that read rows like theirs."""
  rows = {architecture.rows for architecture in _known(names)}
  alike = []
  for name, architecture in ARCHITECTURES.items():
    if architecture.rows in rows:
      alike.append(name)
  return tuple(alike)


def _known(names: Iterable[str]) -> list[Architecture]:
  return [ARCHITECTURES[name] for name in names if name in ARCHITECTURES]


def pair_style(architecture: str, style: str) -> str:
  """The style of prompts of models of pairs; `style`: that of a decoder alone."""
  return 'encoder' if ARCHITECTURES[architecture].has_encoder else style


# --- What is wrong with an entry ----------------------------------------------------------------------


def _missing(entry: Objective | Mixture) -> Iterator[str]:
  """What an entry and its parts do not say."""
  yield from _left_out(entry, '', set())
  if not isinstance(entry, Objective):
    return
  if entry.stack is None and entry.pair is None:
    yield 'stack or pair is missing (how rows are made)'
  if entry.stack is not None:
    yield from _left_out(entry.stack, 'stack.', set())
  if entry.pair is not None:
    optional = _not_needed(entry, entry.pair)
    yield from _left_out(entry.pair, 'pair.', optional)


def _left_out(
    part: Objective | Mixture | OneStack | Pair,
    where: str,
    optional: set[str],
) -> Iterator[str]:
  for field in dataclasses.fields(part):
    if field.name in optional:
      continue
    value = getattr(part, field.name)
    if value is MISSING:
      yield f'{where}{field.name} is missing ({field.metadata["about"]})'


def _not_needed(entry: Objective, pair: Pair) -> set[str]:
  """Parts of a Pair that this objective has no use for."""
  optional = set()
  if pair.given:
    optional.update(('make', 'sizes'))
  if entry.architectures is not MISSING:
    architectures = _known(entry.architectures)
    if not any(architecture.decoder_only for architecture in architectures):
      optional.update(('one_row', 'style'))
    if not any(architecture.has_encoder for architecture in architectures):
      optional.add('two_rows')
  return optional


def _contradictions(entry: Objective) -> Iterator[str]:
  unknown = list(_unknown_architectures(entry))
  if unknown:
    yield from unknown
    return
  yield from _without_rows(entry)
  for architecture in entry.by_chance:
    if architecture not in entry.architectures:
      yield f'by_chance has {architecture!r}, which architectures does not have'
  if entry.stack is not None:
    if not entry.stack.styles:
      yield f'stack.styles is empty: there is {", ".join(STYLES)}'
    for style in entry.stack.styles:
      yield from _unknown_style('stack.styles has', style)
  has_style = any(architecture.decoder_only for architecture in _known(entry.architectures))
  if entry.pair is not None and has_style:
    yield from _unknown_style('pair.style is', entry.pair.style)


def _without_rows(entry: Objective) -> Iterator[str]:
  """Architectures whose rows nothing makes, and rows of another architecture."""
  of_stack = ()
  if entry.stack is not None:
    of_stack = with_same_rows([entry.stack.architecture])
  for name in entry.architectures:
    is_paired = entry.pair is not None and ARCHITECTURES[name].causal
    if name not in of_stack and not is_paired:
      yield f'architectures has {name!r}, for which neither stack nor pair makes rows'
  if entry.stack is not None and entry.stack.architecture not in entry.architectures:
    yield f'stack makes rows for {entry.stack.architecture!r}, which architectures does not have'


def _contradictions_of_mixture(entry: Mixture) -> Iterator[str]:
  yield from _unknown_architectures(entry)
  yield from _unknown_style('style_of_pairs is', entry.style_of_pairs)


def _unknown_style(what: str, style: str) -> Iterator[str]:
  if style not in STYLES:
    yield f'{what} {style!r}, which is no style of prompts: there is {", ".join(STYLES)}'


def _unknown_architectures(entry: Objective | Mixture) -> Iterator[str]:
  for architecture in entry.architectures:
    if architecture not in ARCHITECTURES:
      yield f'architectures has {architecture!r}, which does not exist: there is {", ".join(ARCHITECTURES)}'
