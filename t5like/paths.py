"""Paths as people write them: ~ and $VARIABLES stand for what they stand for in a shell, wherever a path is given."""
import os
import re

from t5like.errors import ConfigError

VARIABLE = re.compile(r'\$(?:\{(\w+)\}|(\w+))')


def is_remote(path):
  return '://' in str(path)


def expand(path: str) -> str:
  """A path or URL with ~ and $VARIABLES replaced; variables that are not set stay."""
  expanded = os.path.expandvars(path)
  return expanded if is_remote(expanded) else os.path.expanduser(expanded)


def check(name: str, path: str) -> str:
  """`expand` of the path that `name` (a flag or key) gives; ConfigError where a variable or user does not exist."""
  expanded = expand(path)
  if os.path.exists(path):
    return expanded
  missing = [a or b for a, b in VARIABLE.findall(expanded)]
  if missing:
    raise ConfigError(f'{name}={path}: the environment has no variable {missing[0]}. Set it, or write the path '
                      'in full.')
  if expanded.startswith('~') and not is_remote(expanded):
    raise ConfigError(f'{name}={path}: there is no user {expanded.split("/")[0][1:]!r} whose home that '
                      f'could be. Write ./{path} for a folder of that name.')
  return expanded
