"""What `config.adapt` says: which parameters of a model come from where, and which are fresh, by the tables of choices.

A path of a parameter is one that `python main.py --config=.. --print_config` lists.
"""
from collections.abc import Collection, Iterator, Mapping
from typing import NamedTuple

from t5like import choices
from t5like.choices import COPIED, FRESH, SAME
from t5like.config.correspondences import CORRESPONDENCES, Row
from t5like.config.trainable import parse_freeze, select
from t5like.config.values import DEFAULTS, show
from t5like.config_type import Config, Section
from t5like.errors import ConfigError
from t5like.nearest import suggestion
from t5like.parameters import ADAPTERS, Param

INIT_FROM = 'init_from'
ENCODER = 'adapt.encoder'  # key of the second source
OF_BOTH = ('encoder', 'encoder_source', 'decoder', 'cross')  # keys that only an encoder-decoder reads
WARM_UP = ('warm_up_steps', 'warm_up')  # keys that say nothing of where weights come from


class Origin(NamedTuple):
  """Where a parameter comes from.

  Attributes:
    key: of the config that names the model, INIT_FROM or ENCODER; '' for a fresh parameter.
    path: of the parameter in that model; '' for a fresh one.
    allows: 'adapt.cross', the key that can make it fresh; '' where none can.
    own: of the parameter in a model whose encoder has it for itself, where it comes from then; '': as path.
  """
  key: str
  path: str
  allows: str = ''
  own: str = ''

  @property
  def is_fresh(self) -> bool:
    return not self.path


def check_adapt(config: Config) -> Iterator[str]:
  """Yields what is wrong with `config.adapt`."""
  adapt = config.adapt
  changed = [key for key in adapt if adapt[key] != DEFAULTS[f'adapt.{key}']]
  if changed and not config.init_from:
    yield (f'adapt.{changed[0]}={show(adapt[changed[0]])}: says what becomes of the weights of init_from, and '
           f"init_from is ''. Give it a run or a folder, or leave adapt.{changed[0]} out.")
  yield from _wrong_architecture(config, changed)
  yield from _wrong_encoder(adapt, changed)
  yield from _wrong_warm_up(adapt)


def _wrong_architecture(config: Config, changed: Collection[str]) -> Iterator[str]:
  name = config.model.name
  if choices.ARCHITECTURES[name].has_encoder:
    return
  for key in changed:
    if key in OF_BOTH:
      yield (f"adapt.{key}={show(config.adapt[key])}: belongs to model.name='encoder_decoder', and it is {name!r}. "
             'Leave it out.')


def _wrong_encoder(adapt: Section, changed: Collection[str]) -> Iterator[str]:
  if adapt.encoder in choices.ADAPTED:
    if 'encoder_source' in changed:
      yield (f'adapt.encoder_source={adapt.encoder_source!r}: is the architecture of a second folder, and '
             f'adapt.encoder={adapt.encoder!r} names none.')
    return
  near = suggestion(adapt.encoder, choices.ADAPTED)
  if near and '/' not in adapt.encoder:
    yield f"adapt.encoder={adapt.encoder!r}: {near}There is 'copied', 'fresh', or a folder."


def _wrong_warm_up(adapt: Section) -> Iterator[str]:
  if adapt.warm_up and not adapt.warm_up_steps:
    yield f'adapt.warm_up={show(adapt.warm_up)}: says what is trained in the first adapt.warm_up_steps, which are 0.'
  for text in adapt.warm_up:
    try:
      parse_freeze(text, 'adapt.warm_up')
    except ConfigError as error:
      yield str(error)


def is_on(adapt: Section) -> bool:
  """Whether weights become parts of another model: any key says something of where they go."""
  for key in adapt:
    if key not in WARM_UP and adapt[key] != DEFAULTS[f'adapt.{key}']:
      return True
  return False


def source_of(config: Config) -> str:
  """The architecture that init_from has to hold."""
  if config.adapt.source == SAME:
    return config.model.name
  return config.adapt.source


def origins(config: Config, parameters: Collection[str]) -> dict[str, Origin]:
  """Where each of these parameters of `config.model` comes from; ConfigError for one of which no table knows it.

  Follows from the config alone: a run that resumes needs no folder to know what was fresh.
  """
  return {path: _origin(config, path) for path in parameters}


def _origin(config: Config, path: str) -> Origin:
  adapt = config.adapt
  source = source_of(config)
  row = _row(source, config.model.name, path)
  if not row.source:
    return Origin('', '')
  if not row.key:
    return _origin_of(INIT_FROM, row, path)
  value = adapt[row.key]
  allows = f'adapt.{row.key}'
  if value == FRESH:
    return Origin('', '', allows)
  if value == COPIED:
    return _origin_of(INIT_FROM, row, path, allows)
  if row.key != 'encoder':
    raise ConfigError(f"{allows}={show(value)}: there is 'copied' and 'fresh'.")
  second = _row(adapt.encoder_source, config.model.name, path)
  if not second.source:
    return Origin('', '')
  return _origin_of(ENCODER, second, path, allows)


def _row(source: str, name: str, path: str) -> Row:
  for row in CORRESPONDENCES[source, name]:
    if _is_in(path, row.target):
      return row
  raise ConfigError(f'adapt.source={source!r}: config/correspondences.py does not say where {path} of a '
                    f'model with model.name={name!r} comes from. Add a row there, or begin without init_from.')


def _is_in(path: str, folder: str) -> bool:
  return f'{path}/'.startswith(f'{folder}/')


def _origin_of(key: str, row: Row, path: str, allows: str = '') -> Origin:
  """Of a parameter that is in the target of a row."""
  rest = path.removeprefix(row.target)
  own = row.own
  if own:
    own += rest
  return Origin(key, row.source + rest, allows, own)


# --- Steps in which only some parameters are trained ----------------------------------------------


def warmed_up(config: Config, parameters: Mapping[str, Param]) -> dict[str, list[bool]]:
  """Which layers of each parameter are trained in the first adapt.warm_up_steps.

  Args:
    config: any.
    parameters: `model.parameters`.

  Raises:
    ConfigError: for patterns that match nothing, or if nothing were trained.
  """
  base = [path for path, param in parameters.items() if param.kind not in ADAPTERS]
  origin = origins(config, base)
  trained = {}
  for path, param in parameters.items():
    is_fresh = path not in origin or origin[path].is_fresh
    trained[path] = [is_fresh] * param.num_layers
  for text in config.adapt.warm_up:
    pattern = parse_freeze(text, 'adapt.warm_up')
    for path, layer in select(pattern, parameters):
      trained[path][layer] = pattern.value == 0
  if not any(map(any, trained.values())):
    raise ConfigError(f'adapt.warm_up_steps={config.adapt.warm_up_steps}: trains what is fresh in the first steps, and '
                      "nothing is. Set it to 0, or name parameters in adapt.warm_up, such as ('embed',).")
  return trained
