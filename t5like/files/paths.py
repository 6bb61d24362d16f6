"""Paths as people write them: ~ and $VARIABLES are expanded as in a shell, wherever a path is expected."""
import os
import re
from typing import Any

from t5like.errors import ConfigError

LONGEST = 4096  # characters of a path, on Linux
LONGEST_NAME = 255  # bytes of a name in it
SHOWN = 60  # characters of an impossible path in an error
VARIABLE = re.compile(r'\$(?:\{(\w+)\}|(\w+))')


def is_remote(path: Any) -> bool:
  """Whether a path is the URL of an object store."""
  return '://' in str(path)


def expand(path: str) -> str:
  """A path or URL with ~ and $VARIABLES replaced; variables that are not set stay."""
  expanded = os.path.expandvars(path)
  if is_remote(expanded):
    return expanded
  return os.path.expanduser(expanded)


def _impossible(path: str) -> str:
  """Why no file can have this path, '' if one can."""
  if '\0' in path:
    return 'a path has no zero bytes'
  longest = max(len(part.encode('utf-8', 'replace')) for part in path.split('/'))
  name_is_too_long = longest > LONGEST_NAME and not is_remote(path)
  if len(path) > LONGEST or name_is_too_long:
    return f'a path has at most {LONGEST:,} characters, and {LONGEST_NAME} between two slashes'
  return ''


def check(name: str, path: str) -> str:
  """`expand` of a path; `name`: the flag or key that it is from. ConfigError for a variable or user that is unknown."""
  expanded = expand(path)
  reason = _impossible(expanded)
  if reason:
    raise ConfigError(f'{name}={path[:SHOWN]}..: {reason}. Give another path.')
  if os.path.exists(path):
    return expanded
  match = VARIABLE.search(expanded)
  if match:
    variable = match[1] or match[2]
    raise ConfigError(f'{name}={path}: the environment has no variable {variable}. Set it, or write the path in full.')
  if expanded.startswith('~') and not is_remote(expanded):
    user = expanded.split('/')[0][1:]
    raise ConfigError(f'{name}={path}: there is no user {user!r} whose home that could be. Write ./{path} for a folder '
                      'of that name.')
  return expanded
