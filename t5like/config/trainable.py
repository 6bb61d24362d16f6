"""Which parameters are trained, and how fast, as `optimizer.freeze`, `optimizer.multipliers` and LoRA say it.

    freeze=('embed', 'encoder', 'decoder/blocks[:4]', '!*norm*')     multipliers=('head=10', 'stack/blocks[-2:]=0.5')

A pattern is the path of a parameter or of a folder of them, as `python main.py --config=.. --print_config` lists
them. * stands for any text, / included, ? for a character; [2], [:4], [-2:] or [::2] after any part for these
layers of the stacks alone. Later patterns overrule earlier ones; ! in front takes out of `freeze` again.
"""
import fnmatch
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from t5like import choices
from t5like.config.values import either, show
from t5like.errors import ConfigError
from t5like.nearest import nearest, suggestion
from t5like.parameters import ADAPTERS, Param

PROJECTIONS = ('q', 'k', 'v', 'o', 'up', 'gate', 'down')
LAYERS = re.compile(r'\[([^\[\]]*)\]')
LAYER = r'(?P<one>-?\d{1,9})|(?P<start>-?\d{0,9}):(?P<stop>-?\d{0,9})(:(?P<step>[1-9]\d{0,8}))?'


class Pattern(NamedTuple):
  asked: str  # 'optimizer.freeze has 'embed'', for errors
  glob: str
  layers: Any  # a slice, or None: all there are, and what is in no layer
  value: float  # what the learning rate is multiplied by


def check(c):
  """Yields what is wrong with the keys of a config that say what is trained, as far as they tell alone."""
  m = c.model
  for key, read in (('freeze', _freeze), ('multipliers', _multiplier)):
    for text in c.optimizer[key]:
      try:
        read(text)
      except ConfigError as e:
        yield str(e)
  for name in m.lora_projections:
    if name not in PROJECTIONS:
      near = suggestion(name, PROJECTIONS, 'did you mean {!r}? ', 0.3)
      yield f'model.lora_projections has {name!r}: {near}There is {either(PROJECTIONS)}.'
    elif name == 'gate' and not choices.ACTIVATIONS[m.activation].gated:
      yield (f"model.lora_projections has 'gate', which model.activation={show(m.activation)} does not have. Use "
             "'up' and 'down', or leave it out.")
  if m.lora_rank and not m.lora_projections:
    yield f"model.lora_rank={m.lora_rank}: needs model.lora_projections, such as ('q', 'v')."


def _freeze(text):
  asked = f'optimizer.freeze has {text!r}'
  return _pattern(asked, text.removeprefix('!'), float(text.startswith('!')))


def _multiplier(text):
  asked = f'optimizer.multipliers has {text!r}'
  glob, equals, number = text.rpartition('=')
  try:
    value = float(number)
  except ValueError:
    value = -1.0
  if not equals or not 0 < value < float('inf'):
    raise ConfigError(f"{asked}: write a pattern, = and a number above 0, such as 'embed=0.1'. What is not to be "
                      'trained at all belongs into optimizer.freeze.')
  return _pattern(asked, glob.strip(), value)


def _pattern(asked, text, value):
  glob, parts = LAYERS.sub('', text), LAYERS.findall(text)
  m = re.fullmatch(LAYER, parts[0]) if parts else None
  if not glob or '[' in glob or ']' in glob or len(parts) > 1 or parts and not m:
    raise ConfigError(f"{asked}: write a path such as 'embed', 'stack/blocks/mlp' or '*norm*', with the layers that "
                      "are meant at most once in brackets: 'stack/blocks[:4]', 'stack/blocks[-1]/mlp'.")
  if m and m['one']:
    layer = int(m['one'])
    return Pattern(asked, glob, slice(layer, layer + 1 or None), value)
  layers = slice(*(int(m[i]) if m[i] else None for i in ('start', 'stop', 'step'))) if m else None
  return Pattern(asked, glob, layers, value)


def rates(optimizer: Any, parameters: Mapping[str, Param]) -> dict[str, list[float]]:
  """What the updates of each parameter, layer by layer if it is in layers, are multiplied by; 0: frozen.

  Where there are adapters (LoRA) all else is frozen, unless `freeze` takes it out.

  Args:
    optimizer: config.optimizer.
    parameters: `model.parameters`.

  Raises:
    ConfigError: for patterns that match nothing, or if nothing were trained.
  """
  has_adapters = any(param.kind in ADAPTERS for param in parameters.values())
  trained = {}
  for path, param in parameters.items():
    is_trained = param.kind in ADAPTERS or not has_adapters
    trained[path] = [float(is_trained)] * param.num_layers
  factors = {path: [1.0] * param.num_layers for path, param in parameters.items()}
  for values, patterns in ((trained, map(_freeze, optimizer.freeze)),
                           (factors, map(_multiplier, optimizer.multipliers))):
    for pattern in patterns:
      for path in _matching(pattern, parameters):
        for layer in range(len(values[path]))[pattern.layers or slice(None)]:
          values[path][layer] = pattern.value
  if not any(map(any, trained.values())):
    raise ConfigError(f'optimizer.freeze={show(optimizer.freeze)}: leaves nothing to be trained. Take something out '
                      "again, such as ('*', '!head').")
  return {path: [a * b for a, b in zip(trained[path], factors[path])] for path in parameters}


def in_words(rates):
  """'1', 'frozen', or for layers that differ, 'frozen frozen 1 0.5'."""
  words = ['frozen' if rate == 0 else f'{rate:g}' for rate in rates]
  return words[0] if len(set(words)) == 1 else ' '.join(words)


def _matching(pattern: Pattern, parameters: Mapping[str, Param]) -> list[str]:
  """Paths that a pattern stands for; ConfigError where there are none."""
  folders = {path: _folders(path) for path in parameters}
  matches = [path for path in parameters if any(fnmatch.fnmatchcase(f, pattern.glob) for f in folders[path])]
  if not matches:
    raise ConfigError(_no_match(pattern, list(dict.fromkeys(f for names in folders.values() for f in names))))
  if pattern.layers is None:
    return matches
  stacked = [path for path in matches if parameters[path].is_stacked]
  if not stacked:
    raise ConfigError(f'{pattern.asked}: {pattern.glob} is in no stack of layers. Leave the brackets out.')
  chosen = [path for path in stacked if range(parameters[path].num_layers)[pattern.layers]]
  if not chosen:
    count = parameters[stacked[0]].num_layers
    raise ConfigError(f'{pattern.asked}: {pattern.glob} has {count} layers, counted from 0, and none of them is meant.')
  return chosen


def _folders(path: str) -> list[str]:
  """A path and all folders that it is in."""
  return [path[:m.start()] for m in re.finditer('/|$', path)]


def _no_match(pattern: Pattern, names: list[str]) -> str:
  last = pattern.glob.rpartition('/')[2]
  near = [name for name in names if last and name.rpartition('/')[2] == last]
  near = near or nearest(pattern.glob, names, 3, 0.5)
  near = near or nearest(last, names, 3, 0.3)
  text = f'{pattern.asked}, which matches no parameter. '
  if near:
    text += f'The nearest {"are" if near[1:] else "is"} {", ".join(near[:4])}. '
  return text + '--print_config lists them all.'
