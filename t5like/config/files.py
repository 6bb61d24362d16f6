"""Configs: read a file, apply `--config.key=value`, check every value, compare two configs.

    config = load('configs/decoder_tiny.py:smoke', ['optimizer.learning_rate=1e-3'])

`t5like/config/base.py` says what keys mean, `rules.py` which values they take. Nothing here imports
JAX, so that a wrong config fails in well under a second, with all its problems in one message.
"""
import ast
import contextlib
import inspect
import pathlib
import re
import sys
import traceback
from collections.abc import Iterator

import ml_collections

from t5like.config.rules import check, wrong_types, wrong_values
from t5like.config.values import (
  DEFAULTS,
  ROOT,
  SECTIONS,
  base,
  cut,
  either,
  flatten,
  literal,
  needs,
  normal,
  parse,
  show,
  tuples,
  unknown,
)
from t5like.errors import ConfigError
from t5like.files import paths, plain_json, schema
from t5like.nearest import nearest

LONGEST_ID = 18  # digits of a token's id

# Of a config that was stored: sections are objects, the rest is checked key by key.
STORED = schema.Object({name: schema.Object() for name in SECTIONS})


def load(path, overrides=()):
  """Locked ConfigDict of the file `path` or `path:variant`, changed by 'section.key=value' texts.

  Raises ConfigError, which says where and what would work, whatever is wrong with either.
  """
  path, arg = _split(str(path))
  flat = _read(path, arg)
  for item in overrides:
    _override(flat, item)
  flat = {key: normal(key, value) for key, value in flat.items()}
  return check(flat, f'{path} with the command line' if overrides else path)


def find(path):
  """The file that a text names, None if there is none: a path, or the name of a config in configs/, .py or not.

  What is not below the working directory is looked for beside this package, so that configs/NAME.py is found from
  anywhere.
  """
  expanded = pathlib.Path(paths.expand(str(path)))
  if not expanded.name:
    return None
  names = [expanded] if expanded.suffix == '.py' else [expanded, expanded.with_name(f'{expanded.name}.py')]
  folders = [pathlib.Path(), pathlib.Path('configs'), ROOT, ROOT / 'configs']
  if expanded.is_absolute():
    folders = folders[:1]
  for folder in folders:
    for name in names:
      if _is_file(folder / name):
        return folder / name
  return None


def _is_file(path):
  try:
    return path.is_file()
  except (OSError, ValueError):  # a name of 5,000 letters, or with a zero in it
    return False


def _split(text):
  """(path, variant) of 'FILE:VARIANT'; a colon may be part of the path of a file that is there."""
  if _is_file(pathlib.Path(text)):
    return text, ''
  path, _, arg = text.partition(':')
  return path, arg


def validate(config):
  """Raises ConfigError listing what is wrong with a config: keys, types, ranges, combinations."""
  check(flatten(config), 'config')


# --- Reading files and the command line -----------------------------------------------------------


def _read(path, arg):
  """Flat dict of what `get_config(arg)` of a file returns."""
  file = find(path)
  if file is None:
    raise ConfigError(_no_file(pathlib.Path(path)))
  try:
    with _neighbours(file):
      return _call(file, arg)
  except ConfigError:
    raise
  except OSError as e:
    if str(e.filename) != str(file):
      raise ConfigError(_explain(e, str(file))) from e
    raise ConfigError(f'{file} cannot be read: {e.strerror}. Let this user read it.') from e
  except (Exception, SystemExit) as e:
    raise ConfigError(_explain(e, str(file))) from e


@contextlib.contextmanager
def _neighbours(file: pathlib.Path) -> Iterator[None]:
  """While a file of a folder `configs` is read, it can import others of that folder, as configs.NAME."""
  before = list(sys.path)
  sys.path += [str(folder.parent) for folder in file.resolve().parents if folder.name == 'configs']
  try:
    yield
  finally:
    sys.path[:] = before


def _no_file(path):
  """What to say of a config that does not exist: the nearest that do."""
  asked = f'--config={cut(str(path))}: there is no such config file.'
  folder, there = path.parent, _is_folder(path.parent)
  ours = ROOT / 'configs'
  folders = [folder] * there + [ours] * (path.parent in (pathlib.Path(), pathlib.Path('configs')))
  names = {file.name: file for place in reversed(folders) for file in place.glob('*.py')}
  near = nearest(path.name, names, close=0.4)  # names of configs share their beginnings
  if near:
    return f'{asked} Did you mean {_shortest(names[near[0]])}?'
  if _is_folder(path):
    return f'{asked} {path} is a folder. Give one of its files.'
  if there and names:
    some = ', '.join(sorted(names)[:8]) + ', ..' * (len(names) > 8)
    return f'{asked} {folder} holds {some}.'
  if there:
    return f'{asked} {folder} holds no configs.'
  return f'{asked} There is no folder {cut(str(folder))} in {pathlib.Path.cwd()} either.'


def _is_folder(path):
  try:
    return path.is_dir()
  except (OSError, ValueError):
    return False


def _shortest(file):
  """configs/NAME.py for one of ours, which is found from anywhere."""
  return file.relative_to(ROOT) if file.is_relative_to(ROOT) else file


def _call(file, arg):
  # Compiled here, not imported: no stale bytecode, and the same tree tells the variants.
  tree = ast.parse(file.read_bytes(), str(file))
  names = {'__name__': file.stem, '__file__': str(file)}
  exec(compile(tree, str(file), 'exec'), names)
  if not callable(names.get('get_config')):
    raise ConfigError(f"{file}: it has no function get_config. Write: def get_config(arg=''):")
  get_config = names['get_config']
  takes = list(inspect.signature(get_config).parameters)[:1]
  config = get_config(arg) if takes else get_config()
  if not isinstance(config, ml_collections.ConfigDict):
    raise ConfigError(f'{file}: get_config returned {show(config)}, not a config. '
                      'Let it begin with c = base() and end with return c.')
  flat = flatten(config)
  if arg and not (takes and _knows(get_config, tree, takes[0], arg, flat)):
    found = variants(tree, takes[0]) if takes else []
    raise ConfigError(f'{file} has no variant {arg!r}. ' + (
        f'Use {file}:{either(found)}.' if found else f'It has none at all: use {file}.'))
  return flat


def _knows(get_config, tree, name, arg, flat):
  """Whether a variant is known: named in the file, or different from the config without one."""
  if arg in variants(tree, name):
    return True
  try:
    return flatten(get_config('')) != flat
  except Exception:  # a file that insists on a variant, and took this one
    return True


def variants(tree, name):
  """The texts that a file compares its variable `name` with."""
  found = []
  for node in ast.walk(tree):
    sides = [node.left, *node.comparators] if isinstance(node, ast.Compare) else []
    if any(isinstance(side, ast.Name) and side.id == name for side in sides):
      found += [n.value for side in sides for n in ast.walk(side)
                if isinstance(n, ast.Constant) and isinstance(n.value, str) and n.value]
  return list(dict.fromkeys(found))


def _explain(e, file):
  """An error inside a config file in one line, with the file's line and the key it was about."""
  if isinstance(e, SyntaxError):
    return f'{e.filename or file}:{e.lineno}: not valid Python: {e.msg}.'
  if isinstance(e, ModuleNotFoundError) and (e.name or '').partition('.')[0] == 'configs':
    return f'{file}: {e}. Configs write: from t5like.config import base, smoke.'
  frames = list(traceback.walk_tb(e.__traceback__))
  lines = [n for frame, n in frames if frame.f_code.co_filename == file]
  where = f'{file}:{lines[-1]}' if lines else file
  local = frames[-1][0].f_locals
  config, key = local.get('self'), local.get('key', local.get('attribute'))
  if isinstance(config, ml_collections.ConfigDict) and isinstance(key, str) and key not in config:
    sections = {frozenset(v): f'{name}.' for name, v in SECTIONS.items()}
    key = sections.get(frozenset(config), '') + key
    return f'{where}: {unknown(key, key)}'
  return f'{where}: {type(e).__name__}: {e}'


def special_of(overrides):
  """What 'section.key=value' texts say of vocabulary.special, a dict: known before the config is."""
  flat = {'vocabulary.special': {}}
  for item in overrides:
    key = re.sub(r'^(--)?(config\.)?', '', item.partition('=')[0].strip())
    if f'{key}.'.startswith('vocabulary.special.'):
      _override(flat, item)
  return flat['vocabulary.special']


def _token(text: str) -> int | str:
  """A token as the command line names it: its id, or else its text."""
  is_id = text.isascii() and text.isdecimal() and len(text) <= LONGEST_ID
  if is_id:
    return int(text)
  return text


def _override(flat, item):
  key, equals, text = item.partition('=')
  key = re.sub(r'^(--)?(config\.)?', '', key.strip())
  extra = key.removeprefix('optimizer.extra.')
  role = key.removeprefix('vocabulary.special.')
  if not equals:
    raise ConfigError(f'--config.{key}: no value given. Write --config.{key or "KEY"}=VALUE.')
  if extra != key and isinstance(flat.get('optimizer.extra'), dict):
    value = literal(text)
    value = text if value is None and text != 'None' else value
    flat['optimizer.extra'] = {**flat['optimizer.extra'], extra: value}
  elif role != key and isinstance(flat.get('vocabulary.special'), dict):
    flat['vocabulary.special'] = {**flat['vocabulary.special'], role: _token(text)}
  elif key in DEFAULTS:
    flat[key] = parse(key, text)
    if flat[key] is None:
      raise ConfigError(f'--config.{key}={cut(text)}: needs {needs(key)}.')
  else:
    raise ConfigError(unknown(key, f'--config.{key}={cut(text)}'))


# --- Keeping and comparing ------------------------------------------------------------------------


def to_json(config):
  """Text that `from_json` turns into an equal config."""
  return plain_json.dumps(config.to_dict(), indent=2)


def from_json(text, where='the config'):
  """Locked config of a text by `to_json`, of this or an older version. ConfigError for other texts."""
  try:
    values = tuples(schema.parse(text, STORED, schema.LINE))
    config = ml_collections.ConfigDict(values, type_safe=False).lock()
    problems = list(wrong_types(flatten(config)))
  except schema.Invalid as e:
    raise ConfigError(f'{where} is not the text of a config: {e}.') from e
  except (ValueError, TypeError, AttributeError, KeyError) as e:  # keys that ConfigDict does not take
    raise ConfigError(f'{where} is not the text of a config: {show(str(e))}.') from e
  if problems:
    raise ConfigError(f'{where} is damaged: {problems[0]}')
  return config


def complete(config, where):
  """A stored config that a run can be made of: keys that it lacks, being of an older version, have their defaults.

  ConfigError for keys of the model that this version does not know, and for values that no key may have.
  """
  flat = flatten(config)
  unknown_keys = [key for key in flat if key not in DEFAULTS]
  of_model = [key for key in unknown_keys if key.startswith('model.')]
  if of_model:
    raise ConfigError(f'{where} has {of_model[0]}, which this version of t5like does not know: the run is of another '
                      'version.')
  known = {key: normal(key, value) for key, value in flat.items() if key in DEFAULTS}
  problems = list(wrong_values(known))
  if problems:
    raise ConfigError(f'{where}: {problems[0]}')
  made = base().unlock()
  for key, value in {**flat, **known}.items():
    section, _, name = key.rpartition('.')
    (made[section] if section else made)[name] = value
  return made.lock()


def describe(config):
  """[(key, value, whether it differs from base())], keys without a section first."""
  flat = {**DEFAULTS, **flatten(config)}
  return [(k, v, k not in DEFAULTS or v != DEFAULTS[k]) for k, v in flat.items()]
