"""Paths as people write them: ~ and $VARIABLES stand for what they stand for in a shell, wherever a path is given."""
import os
import re

from t5like.errors import ConfigError

LONGEST, LONGEST_NAME = 4096, 255  # of a path and of a name in it, on Linux
VARIABLE = re.compile(r'\$(?:\{(\w+)\}|(\w+))')


def is_remote(path):
  return '://' in str(path)


def expand(path: str) -> str:
  """A path or URL with ~ and $VARIABLES replaced; variables that are not set stay."""
  expanded = os.path.expandvars(path)
  return expanded if is_remote(expanded) else os.path.expanduser(expanded)


def _impossible(path):
  """Why no file can be called so, '' if one can."""
  if '\0' in path:
    return 'a path has no zero bytes'
  longest = max(len(part.encode('utf-8', 'replace')) for part in path.split('/'))
  if len(path) > LONGEST or longest > LONGEST_NAME and not is_remote(path):
    return f'a path has at most {LONGEST:,} characters, and {LONGEST_NAME} between two slashes'
  return ''


def check(name: str, path: str) -> str:
  """`expand` of the path that `name` (a flag or key) gives; ConfigError where a variable or user does not exist."""
  expanded = expand(path)
  reason = _impossible(expanded)
  if reason:
    raise ConfigError(f'{name}={path[:60]}..: {reason}. Give another path.')
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
