"""Contents of Python modules: functions with their docstrings, and the chapters of pydoc's topics."""
import ast
import re
import warnings
from collections.abc import Iterator

KINDS = ('property', 'classmethod', 'staticmethod', 'coroutine', 'generator', 'method', 'function')
DECORATED = KINDS[:3]  # kinds that a decorator makes
SOURCE = 1500  # most characters of a function
SHORTEST = 5  # characters of the first line of a docstring
LONGEST = 120
BLOCKS = ('body', 'orelse', 'finalbody', 'handlers', 'cases')  # fields of nodes that hold statements

Function = ast.FunctionDef | ast.AsyncFunctionDef


def read(text: str) -> Iterator[tuple[dict[str, str], int]]:
  """Yields (record, line number) of the functions and methods of a module that have a docstring.

  They come in the order of their first lines. A record is a dict of str: name; kind, one of KINDS; source,
  the function without its docstring, not indented, cut after a line if it is longer than SOURCE; docstring,
  the first sentence if it ends on the first line, else that line; text, the docstring as a comment and the
  source. A module that cannot be parsed has no functions.
  """
  tree = _parse(text)
  if tree is None:
    return
  lines = text.split('\n')
  nodes = [node for node in _statements(tree) if isinstance(node, Function)]
  nodes.sort(key=lambda node: node.lineno)
  for node in nodes:
    docstring = _first_sentence(ast.get_docstring(node))
    if not docstring:
      continue
    source = _source(node, lines)
    if not source:
      continue
    comment = f'# {docstring}\n'
    record = dict(
        name=node.name,
        kind=_kind(node),
        source=source,
        docstring=docstring,
        text=comment + source,
    )
    yield record, node.lineno


def _parse(text: str) -> ast.Module | None:
  with warnings.catch_warnings():
    warnings.simplefilter('ignore')  # a module's own invalid escapes
    try:
      return ast.parse(text)
    except (SyntaxError, ValueError):
      return None


def topics(text: str) -> list[str] | None:
  """The chapters of the language reference, which pydoc_data/topics.py keeps in a dict; None for another module."""
  for node in ast.parse(text).body:
    if isinstance(node, ast.Assign):
      return list(ast.literal_eval(node.value).values())
  return None


def _statements(tree: ast.AST) -> Iterator[ast.AST]:
  """Yields all statements below a node. ast.walk visits expressions too: 3 times as slow."""
  stack = [tree]
  while stack:
    node = stack.pop()
    for block in BLOCKS:
      below = getattr(node, block, None)
      if isinstance(below, list):  # the body of a lambda is an expression
        stack += below
        yield from below


def _kind(node: Function) -> str:
  decorators = [ast.unparse(decorator) for decorator in node.decorator_list]
  for kind in DECORATED:
    if any(_makes(decorator, kind) for decorator in decorators):
      return kind
  if isinstance(node, ast.AsyncFunctionDef):
    return 'coroutine'
  if _yields(node):
    return 'generator'
  arguments = [*node.args.posonlyargs, *node.args.args]
  if arguments and arguments[0].arg == 'self':
    return 'method'
  return 'function'


def _makes(decorator: str, kind: str) -> bool:
  """Whether a decorator makes a function one of DECORATED."""
  if kind in decorator:
    return True
  return kind == 'property' and decorator.endswith(('.setter', '.deleter'))


def _yields(node: Function) -> bool:
  """Whether a function itself yields, which functions inside it may do without making it a generator."""
  inside: list[ast.AST] = list(node.body)
  while inside:
    below = inside.pop()
    if isinstance(below, (ast.Yield, ast.YieldFrom)):
      return True
    if not isinstance(below, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda, ast.ClassDef)):
      inside += ast.iter_child_nodes(below)
  return False


def _first_sentence(docstring: str | None) -> str:
  """'' for one whose first line is too short or too long."""
  if not docstring:
    return ''
  line = docstring.strip().partition('\n')[0].strip()
  if not SHORTEST <= len(line) <= LONGEST:
    return ''
  sentence = re.match(r'.{4,}?[.!?](?= +[A-Z])', line)
  if sentence:
    return sentence[0]
  return line


def _source(node: Function, lines: list[str]) -> str:
  """The lines of a function without its docstring; '' if the docstring shares lines with code."""
  docstring = node.body[0]
  docstring_end = docstring.end_lineno or docstring.lineno
  before = lines[docstring.lineno - 1].encode()[:docstring.col_offset]
  after = lines[docstring_end - 1].encode()[docstring.end_col_offset:]
  if before.strip() or after.strip():
    return ''
  starts = [node.lineno, *(decorator.lineno for decorator in node.decorator_list)]
  start = min(starts) - 1
  kept = lines[start:docstring.lineno - 1] + lines[docstring_end:node.end_lineno]
  indent = lines[start][:node.col_offset]  # ASCII: a statement is indented by spaces and tabs
  unindented = [line.removeprefix(indent).rstrip() for line in kept]
  source = '\n'.join(unindented) + '\n'
  if len(source) <= SOURCE:
    return source
  last_line_end = source.rfind('\n', 0, SOURCE)
  return source[:last_line_end + 1]
