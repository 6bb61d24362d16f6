"""Which parameters are trained, and how fast, as `optimizer.freeze`, `optimizer.multipliers` and LoRA say it.

    freeze=('embed', 'encoder', 'decoder/blocks[:4]', '!*norm*')     multipliers=('head=10', 'stack/blocks[-2:]=0.5')

A pattern is the path of a parameter or of a folder of them, as `python main.py --config=.. --print_config` lists
them. * stands for any text, / included, ? for a character; [2], [:4], [-2:] or [::2] after any part for these
layers of the stacks alone. Later patterns overrule earlier ones; ! in front takes out of `freeze` again.
"""
import fnmatch
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from t5like import choices
from t5like.config.values import either, show
from t5like.config_type import Config, Section
from t5like.errors import ConfigError
from t5like.nearest import nearest, suggestion
from t5like.parameters import ADAPTERS, Param

PROJECTIONS = ('q', 'k', 'v', 'o', 'up', 'gate', 'down')  # roles of the matrices of layers
BRACKETS = re.compile(r'\[([^\[\]]*)\]')
LAYER = re.compile(r'-?\d{1,9}')
LAYERS = re.compile(r'(?P<start>-?\d{0,9}):(?P<stop>-?\d{0,9})(:(?P<step>[1-9]\d{0,8}))?')
SHOWN = 3  # paths that an error suggests

Rates = dict[str, list[float]]  # {path: of each layer}


class Pattern(NamedTuple):
  """Which parameters a text picks, and what for.

  Attributes:
    written: 'optimizer.freeze has 'embed'', for errors.
    glob: of paths.
    layers: of stacks; None: all there are, and what is in no layer.
    value: what the learning rate is multiplied by.
  """
  written: str
  glob: str
  layers: slice | None
  value: float


def check_trainable(config: Config) -> Iterator[str]:
  """Yields what is wrong with the keys that say what is trained, as far as they show it alone."""
  model = config.model
  yield from _wrong_patterns(config.optimizer)
  for name in model.lora_projections:
    if name not in PROJECTIONS:
      near = suggestion(name, PROJECTIONS, 'did you mean {!r}? ', 0.3)
      yield f'model.lora_projections has {name!r}: {near}There is {either(PROJECTIONS)}.'
    elif name == 'gate' and not choices.ACTIVATIONS[model.activation].gated:
      yield (f"model.lora_projections has 'gate', which model.activation={show(model.activation)} does not have. Use "
             "'up' and 'down', or leave it out.")
  if model.lora_rank and not model.lora_projections:
    yield f"model.lora_rank={model.lora_rank}: needs model.lora_projections, such as ('q', 'v')."


def _wrong_patterns(optimizer: Section) -> Iterator[str]:
  for read, texts in ((parse_freeze, optimizer.freeze), (_multiplier, optimizer.multipliers)):
    for text in texts:
      try:
        read(text)
      except ConfigError as error:
        yield str(error)


def parse_freeze(text: str, key: str = 'optimizer.freeze') -> Pattern:
  """The Pattern of an entry of a key whose values are those of optimizer.freeze: 0 without !, 1 with it."""
  is_trained = text.startswith('!')
  return _pattern(f'{key} has {text!r}', text.removeprefix('!'), float(is_trained))


def _multiplier(text: str) -> Pattern:
  """The Pattern of an entry of optimizer.multipliers."""
  written = f'optimizer.multipliers has {text!r}'
  glob, equals, number = text.rpartition('=')
  try:
    value = float(number)
  except ValueError:
    value = -1.0
  if not equals or not 0 < value < float('inf'):
    raise ConfigError(f"{written}: write a pattern, = and a number above 0, such as 'embed=0.1'. What is not to be "
                      'trained at all belongs into optimizer.freeze.')
  return _pattern(written, glob.strip(), value)


def _pattern(written: str, text: str, value: float) -> Pattern:
  """The Pattern of a path that may have layers in brackets, once."""
  glob = BRACKETS.sub('', text)
  brackets = BRACKETS.findall(text)
  layers = None
  is_right = bool(glob) and '[' not in glob and ']' not in glob and len(brackets) < 2
  if brackets:
    layers = _layers(brackets[0])
    is_right = is_right and layers is not None
  if not is_right:
    raise ConfigError(f"{written}: write a path such as 'embed', 'stack/blocks/mlp' or '*norm*', with the layers that "
                      "are meant at most once in brackets: 'stack/blocks[:4]', 'stack/blocks[-1]/mlp'.")
  return Pattern(written, glob, layers, value)


def _layers(text: str) -> slice | None:
  """The layers that stand in brackets, None if the text is wrong."""
  if LAYER.fullmatch(text):
    layer = int(text)
    return slice(layer, layer + 1 or None)
  match = LAYERS.fullmatch(text)
  if match is None:
    return None
  return slice(_number(match['start']), _number(match['stop']), _number(match['step']))


def _number(text: str | None) -> int | None:
  return int(text) if text else None


def rates(optimizer: Section, parameters: Mapping[str, Param]) -> Rates:
  """What the updates of each parameter, layer by layer if it is in layers, are multiplied by; 0: frozen.

  Where there are adapters (LoRA) all else is frozen, unless `freeze` takes it out.

  Args:
    optimizer: config.optimizer.
    parameters: `model.parameters`.

  Raises:
    ConfigError: for patterns that match nothing, or if nothing were trained.
  """
  has_adapters = any(param.kind in ADAPTERS for param in parameters.values())
  trained: Rates = {}
  factors: Rates = {}
  for path, param in parameters.items():
    is_trained = param.kind in ADAPTERS or not has_adapters
    trained[path] = [float(is_trained)] * param.num_layers
    factors[path] = [1.0] * param.num_layers
  _apply(map(parse_freeze, optimizer.freeze), trained, parameters)
  _apply(map(_multiplier, optimizer.multipliers), factors, parameters)
  if not any(map(any, trained.values())):
    raise ConfigError(f'optimizer.freeze={show(optimizer.freeze)}: leaves nothing to be trained. Take something out '
                      "again, such as ('*', '!head').")
  multiplied = {}
  for path in parameters:
    multiplied[path] = [a * b for a, b in zip(trained[path], factors[path])]
  return multiplied


def _apply(patterns: Iterable[Pattern], values: Rates, parameters: Mapping[str, Param]) -> None:
  """Sets the values of what patterns match, later ones overruling earlier ones."""
  for pattern in patterns:
    for path, layer in select(pattern, parameters):
      values[path][layer] = pattern.value


def select(pattern: Pattern, parameters: Mapping[str, Param]) -> Iterator[tuple[str, int]]:
  """Yields (path, place on its axis of layers) of all that a pattern stands for; ConfigError where there is nothing."""
  for path in _matching(pattern, parameters):
    for place in _places(pattern, parameters[path]):
      yield path, place


def _places(pattern: Pattern, param: Param) -> list[int]:
  """Places on the axis of layers of a parameter, of the layers of a pattern that have it."""
  layers = range(param.depth)[pattern.layers or slice(None)]
  return [place for place, number in enumerate(param.numbers) if number in layers]


def in_words(rates: Iterable[float]) -> str:
  """'1', 'frozen', or for layers that differ, 'frozen frozen 1 0.5'."""
  words = ['frozen' if rate == 0 else f'{rate:g}' for rate in rates]
  if len(set(words)) == 1:
    return words[0]
  return ' '.join(words)


def _matching(pattern: Pattern, parameters: Mapping[str, Param]) -> list[str]:
  """Paths that a pattern stands for; ConfigError where there are none."""
  matches = [path for path in parameters if _is_in(path, pattern.glob)]
  if not matches:
    raise ConfigError(_no_match(pattern, parameters))
  if pattern.layers is None:
    return matches
  stacked = [path for path in matches if parameters[path].is_stacked]
  if not stacked:
    raise ConfigError(f'{pattern.written}: {pattern.glob} is in no stack of layers. Leave the brackets out.')
  chosen = [path for path in stacked if _places(pattern, parameters[path])]
  if not chosen:
    param = parameters[stacked[0]]
    count = param.depth
    raise ConfigError(f'{pattern.written}: {pattern.glob} has {count} layers, counted from 0, and none of them is '
                      'meant.')
  return chosen


def _is_in(path: str, glob: str) -> bool:
  """Whether a path, or a folder that it is in, matches."""
  return any(fnmatch.fnmatchcase(folder, glob) for folder in _folders(path))


def _folders(path: str) -> list[str]:
  """A path and all folders that it is in."""
  return [path[:match.start()] for match in re.finditer('/|$', path)]


def _no_match(pattern: Pattern, paths: Iterable[str]) -> str:
  """What to say of a pattern that matches no parameter: the nearest names."""
  names: dict[str, None] = {}  # each once, in order
  for path in paths:
    names.update(dict.fromkeys(_folders(path)))
  last = pattern.glob.rpartition('/')[2]
  near = []
  if last:
    near = [name for name in names if name.rpartition('/')[2] == last]
  near = near or nearest(pattern.glob, names, SHOWN, 0.5) or nearest(last, names, SHOWN, 0.3)
  text = f'{pattern.written}, which matches no parameter. '
  if near:
    verb = 'is' if len(near) == 1 else 'are'
    text += f'The nearest {verb} {", ".join(near[:4])}. '
  return text + '--print_config lists them all.'
