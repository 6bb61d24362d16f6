"""Configs: read a file, apply `--config.key=value`, check every value, compare two configs.

    config = load('configs/decoder_tiny.py:smoke', ['optimizer.learning_rate=1e-3'])

`t5like/config/base.py` says what keys mean, `rules.py` which values they take. Nothing here imports
JAX, so that a wrong config fails in well under a second, with all its problems in one message.
"""
import ast
import contextlib
import inspect
import os
import pathlib
import re
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import ml_collections

from t5like.config.rules import check, wrong_types, wrong_values
from t5like.config.values import (
  DEFAULTS,
  ROOT,
  SECTIONS,
  Flat,
  cut,
  either,
  flatten,
  literal,
  made_of,
  needs,
  normal,
  parse,
  show,
  tuples,
  unknown,
)
from t5like.config_type import Config
from t5like.errors import ConfigError
from t5like.files import paths, plain_json, schema
from t5like.nearest import nearest

# Of a config that was stored: sections are objects, the rest is checked key by key.
STORED = schema.Object({name: schema.Object() for name in SECTIONS})
LISTED = 8  # files of a folder that an error names
LONGEST_ID = 18  # digits of a token's id


def load(path: str | pathlib.Path, overrides: Iterable[str] = ()) -> Config:
  """Locked ConfigDict of the file `path` or `path:variant`, changed by 'section.key=value' texts.

  Raises ConfigError, which says where and what would work, whatever is wrong with either.
  """
  file, variant = _split(str(path))
  overrides = list(overrides)
  flat = _read(file, variant)
  for item in overrides:
    _override(flat, item)
  flat = {key: normal(key, value) for key, value in flat.items()}
  where = f'{file} with the command line' if overrides else file
  return check(flat, where)


def find(path: str | pathlib.Path) -> pathlib.Path | None:
  """The file that a text names, None if there is none: a path, or the name of a config in configs/, .py or not.

  What is not below the working directory is looked for beside this package, so that configs/NAME.py is found from
  anywhere.
  """
  expanded = pathlib.Path(paths.expand(str(path)))
  if not expanded.name:
    return None
  names = [expanded]
  if expanded.suffix != '.py':
    names.append(expanded.with_name(f'{expanded.name}.py'))
  folders = [pathlib.Path()]
  if not expanded.is_absolute():
    folders += [pathlib.Path('configs'), ROOT, ROOT / 'configs']
  for folder in folders:
    for name in names:
      if _is_file(folder / name):
        return folder / name
  return None


def _is_file(path: pathlib.Path) -> bool:
  try:
    return path.is_file()
  except (OSError, ValueError):  # a name of 5,000 letters, or with a zero in it
    return False


def _split(text: str) -> tuple[str, str]:
  """(path, variant) of 'FILE:VARIANT'; a colon may be part of the path of a file that is there."""
  if _is_file(pathlib.Path(text)):
    return text, ''
  path, _, variant = text.partition(':')
  return path, variant


def validate(config: Config) -> None:
  """Raises ConfigError listing what is wrong with a config: keys, types, ranges, combinations."""
  check(flatten(config), 'config')


# --- Reading files --------------------------------------------------------------------------------


def _read(path: str, variant: str) -> Flat:
  """What `get_config(variant)` of a file returns."""
  file = find(path)
  if file is None:
    raise ConfigError(_no_file(pathlib.Path(path)))
  try:
    with _neighbours(file):
      return _call(file, variant)
  except ConfigError:
    raise
  except OSError as error:
    if str(error.filename) != str(file):
      raise ConfigError(_explain(error, str(file))) from error
    raise ConfigError(f'{file} cannot be read: {error.strerror}. Let this user read it.') from error
  except (Exception, SystemExit) as error:
    raise ConfigError(_explain(error, str(file))) from error


@contextlib.contextmanager
def _neighbours(file: pathlib.Path) -> Iterator[None]:
  """While a file of a folder `configs` is read, it can import others of that folder, as configs.NAME."""
  before = list(sys.path)
  for folder in file.resolve().parents:
    if folder.name == 'configs':
      sys.path.append(str(folder.parent))
  try:
    yield
  finally:
    sys.path[:] = before


def _no_file(path: pathlib.Path) -> str:
  """What to say of a config that does not exist: the nearest that do."""
  written = f'--config={cut(str(path))}: there is no such config file.'
  folder = path.parent
  has_folder = _is_folder(folder)
  names = _names_of_configs(folder)
  near = nearest(path.name, names, close=0.4)  # names of configs share their beginnings
  if near:
    return f'{written} Did you mean {_shortest(names[near[0]])}?'
  if _is_folder(path):
    return f'{written} {path} is a folder. Give one of its files.'
  if not has_folder:
    return f'{written} There is no folder {cut(str(folder))} in {pathlib.Path.cwd()} either.'
  if not names:
    return f'{written} {folder} holds no configs.'
  listed = ', '.join(sorted(names)[:LISTED])
  if len(names) > LISTED:
    listed += ', ..'
  return f'{written} {folder} holds {listed}.'


def _names_of_configs(folder: pathlib.Path) -> dict[str, pathlib.Path]:
  """{name: file} of what may be meant by a config of a folder; ours are found without one, and from anywhere."""
  folders = []
  if folder in (pathlib.Path(), pathlib.Path('configs')):
    folders.append(ROOT / 'configs')
  if _is_folder(folder):
    folders.append(folder)
  names = {}
  for place in folders:
    for file in place.glob('*.py'):
      names[file.name] = file
  return names


def _is_folder(path: pathlib.Path) -> bool:
  try:
    return path.is_dir()
  except (OSError, ValueError):
    return False


def _shortest(file: pathlib.Path) -> pathlib.Path:
  """configs/NAME.py for one of ours, which is found from anywhere."""
  if file.is_relative_to(ROOT):
    return file.relative_to(ROOT)
  return file


def _call(file: pathlib.Path, variant: str) -> Flat:
  # Compiled here, not imported: no stale bytecode, and the same tree tells the variants.
  tree = ast.parse(file.read_bytes(), str(file))
  variables: dict[str, Any] = {'__name__': file.stem, '__file__': str(file)}
  exec(compile(tree, str(file), 'exec'), variables)
  get_config = variables.get('get_config')
  if not callable(get_config):
    raise ConfigError(f"{file}: it has no function get_config. Write: def get_config(arg=''):")
  parameter = next(iter(inspect.signature(get_config).parameters), None)
  if parameter is None:
    config = get_config()
  else:
    config = get_config(variant)
  if not isinstance(config, ml_collections.ConfigDict):
    raise ConfigError(f'{file}: get_config returned {show(config)}, not a config. '
                      'Let it begin with c = base() and end with return c.')
  flat = flatten(config)
  if not variant:
    return flat
  names = variants(tree, parameter)
  is_known = variant in names or parameter is not None and _differs(get_config, flat)
  if not is_known:
    advice = f'Use {file}:{either(names)}.' if names else f'It has none at all: use {file}.'
    raise ConfigError(f'{file} has no variant {variant!r}. {advice}')
  return flat


def _differs(get_config: Callable[[str], Config], flat: Flat) -> bool:
  """Whether a variant gave another config than the file has without one."""
  try:
    return flatten(get_config('')) != flat
  except Exception:  # a file that insists on a variant, and took this one
    return True


def variants(tree: ast.AST, name: str | None) -> list[str]:
  """The texts that a file compares its variable `name` with; None: it has no such variable."""
  texts: dict[str, None] = {}  # in order
  for node in ast.walk(tree):
    if isinstance(node, ast.Compare):
      sides = [node.left, *node.comparators]
      if any(isinstance(side, ast.Name) and side.id == name for side in sides):
        texts.update(dict.fromkeys(_texts(sides)))
  return list(texts)


def _texts(nodes: Iterable[ast.AST]) -> Iterator[str]:
  """The texts in expressions, '' left out."""
  for node in nodes:
    for inner in ast.walk(node):
      if isinstance(inner, ast.Constant) and isinstance(inner.value, str) and inner.value:
        yield inner.value


def _explain(error: BaseException, file: str) -> str:
  """An error inside a config file in one line, with the file's line and the key it was about."""
  if isinstance(error, SyntaxError):
    return f'{error.filename or file}:{error.lineno}: not valid Python: {error.msg}.'
  if isinstance(error, ModuleNotFoundError) and (error.name or '').partition('.')[0] == 'configs':
    return f'{file}: {error}. Configs write: from t5like.config import base, smoke.'
  frames = list(traceback.walk_tb(error.__traceback__))
  where = file
  for frame, line in frames:
    if frame.f_code.co_filename == file:
      where = f'{file}:{line}'
  key = _unknown_key(frames[-1][0].f_locals)
  if key is not None:
    return f'{where}: {unknown(key, key)}'
  return f'{where}: {type(error).__name__}: {error}'


def _unknown_key(local: dict[str, Any]) -> str | None:
  """The key that ml_collections did not find, by the local variables of its function; None if this is not the error."""
  config = local.get('self')
  key = local.get('key', local.get('attribute'))
  if not isinstance(config, ml_collections.ConfigDict) or not isinstance(key, str) or key in config:
    return None
  for name, section in SECTIONS.items():
    if set(section) == set(config):
      return f'{name}.{key}'
  return key


# --- Reading the command line ---------------------------------------------------------------------


def special_of(overrides: Iterable[str]) -> dict[str, Any]:
  """What 'section.key=value' texts say of vocabulary.special: known before the config is."""
  flat: Flat = {'vocabulary.special': {}}
  for item in overrides:
    key, _, _ = item.partition('=')
    if f'{_without_prefix(key)}.'.startswith('vocabulary.special.'):
      _override(flat, item)
  return flat['vocabulary.special']


def _without_prefix(key: str) -> str:
  """'model.norm' of '--config.model.norm'."""
  return re.sub(r'^(--)?(config\.)?', '', key.strip())


def _override(flat: Flat, item: str) -> None:
  """Changes a flat config as 'section.key=value' says."""
  written, equals, text = item.partition('=')
  key = _without_prefix(written)
  if not equals:
    raise ConfigError(f'--config.{key}: no value given. Write --config.{key or "KEY"}=VALUE.')
  for section, parse_entry in ENTRIES.items():
    name = key.removeprefix(f'{section}.')
    if name != key and isinstance(flat.get(section), dict):
      flat[section] = {**flat[section], name: parse_entry(text)}
      return
  if key not in DEFAULTS:
    raise ConfigError(unknown(key, f'--config.{key}={cut(text)}'))
  flat[key] = parse(key, text)
  if flat[key] is None:
    raise ConfigError(f'--config.{key}={cut(text)}: needs {needs(key)}.')


def _parse_argument(text: str) -> Any:
  """The Python value that a text spells, else the text."""
  if text == 'None':
    return None
  value = literal(text)
  return text if value is None else value


def _parse_token(text: str) -> int | str:
  """A token as the command line names it: its id, or else its text."""
  is_id = text.isascii() and text.isdecimal() and len(text) <= LONGEST_ID
  if is_id:
    return int(text)
  return text


# Keys that hold dicts, whose entries can be set one by one: how the text of one is read.
ENTRIES: dict[str, Callable[[str], Any]] = {
    'model.rope_scaling': _parse_argument,
    'optimizer.extra': _parse_argument,
    'vocabulary.special': _parse_token,
}


# --- Keeping and comparing ------------------------------------------------------------------------


def to_json(config: Config) -> str:
  """Text that `from_json` turns into an equal config."""
  return plain_json.dumps(config.to_dict(), indent=2)


def from_json(text: str | bytes, where: str | os.PathLike[str] = 'the config') -> Config:
  """Locked config of a text by `to_json`, of this or an older version. ConfigError for other texts."""
  try:
    values = tuples(schema.parse(text, STORED, schema.LINE))
    config = ml_collections.ConfigDict(values, type_safe=False).lock()
    problems = list(wrong_types(flatten(config)))
  except schema.Invalid as error:
    raise ConfigError(f'{where} is not the text of a config: {error}.') from error
  except (ValueError, TypeError, AttributeError, KeyError) as error:  # keys that ConfigDict does not take
    raise ConfigError(f'{where} is not the text of a config: {show(str(error))}.') from error
  if problems:
    raise ConfigError(f'{where} is damaged: {problems[0]}')
  return config


def complete(config: Config, where: str | os.PathLike[str]) -> Config:
  """A stored config that a run can be made of: keys that it lacks, being of an older version, have their defaults.

  ConfigError for keys of the model that this version does not know, and for values that no key may have.
  """
  flat = flatten(config)
  for key in flat:
    if key not in DEFAULTS and key.startswith('model.'):
      raise ConfigError(f'{where} has {key}, which this version of t5like does not know: the run is of another '
                        'version.')
  known = {key: normal(key, value) for key, value in flat.items() if key in DEFAULTS}
  for problem in wrong_values(known):
    raise ConfigError(f'{where}: {problem}')
  return made_of({**flat, **known})


def describe(config: Config) -> list[tuple[str, Any, bool]]:
  """[(key, value, whether it differs from base())], keys without a section first."""
  flat = {**DEFAULTS, **flatten(config)}
  described = []
  for key, value in flat.items():
    is_changed = key not in DEFAULTS or value != DEFAULTS[key]
    described.append((key, value, is_changed))
  return described
