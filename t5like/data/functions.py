"""What Python modules hold: functions with what they say they do, and the chapters of pydoc's topics."""
import ast
import re
import warnings

KINDS = ('property', 'classmethod', 'staticmethod', 'coroutine', 'generator', 'method', 'function')
SOURCE = 1500  # most characters of a function
SHORTEST, LONGEST = 5, 120  # characters of the first line of a docstring


def read(text):
  """Yields (record, line number) of the functions and methods of a module that have a docstring.

  They come in the order of their first lines. A record is a dict of str: name; kind, one of KINDS; source,
  the function without its docstring, not indented, cut after a line if it is longer than SOURCE; docstring,
  the first sentence if it ends on the first line, else that line; text, the docstring as a comment and the
  source. A module that cannot be parsed has no functions.
  """
  with warnings.catch_warnings():
    warnings.simplefilter('ignore')  # a module's own invalid escapes
    try:
      tree = ast.parse(text)
    except (SyntaxError, ValueError):
      return
  lines = text.split('\n')
  kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
  for node in sorted((n for n in _statements(tree) if isinstance(n, kinds)), key=lambda n: n.lineno):
    docstring = _first_sentence(ast.get_docstring(node))
    source = _source(node, lines) if docstring else ''
    if source:
      comment = f'# {docstring}\n'
      yield dict(name=node.name, kind=_kind(node), source=source, docstring=docstring,
                 text=comment + source), node.lineno


def topics(text):
  """The chapters of the language reference, a list of str, which pydoc_data/topics.py keeps in a dict."""
  values = [node.value for node in ast.parse(text).body if isinstance(node, ast.Assign)]
  return list(ast.literal_eval(values[0]).values()) if values else None


def _statements(tree):
  """Yields all statements below a node. ast.walk goes into expressions too: 3 times as slow."""
  stack = [tree]
  while stack:
    node = stack.pop()
    for block in ('body', 'orelse', 'finalbody', 'handlers', 'cases'):
      below = getattr(node, block, None)
      if isinstance(below, list):  # the body of a lambda is an expression
        stack += below
        yield from below


def _kind(node):
  decorators = [ast.unparse(d) for d in node.decorator_list]
  for kind in KINDS[:3]:
    if any(kind in d or kind == 'property' and d.endswith(('.setter', '.deleter')) for d in decorators):
      return kind
  if isinstance(node, ast.AsyncFunctionDef):
    return 'coroutine'
  inside = list(node.body)
  while inside:  # not in functions of its own
    below = inside.pop()
    if isinstance(below, (ast.Yield, ast.YieldFrom)):
      return 'generator'
    if not isinstance(below, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda, ast.ClassDef)):
      inside += ast.iter_child_nodes(below)
  arguments = [a.arg for a in (*node.args.posonlyargs, *node.args.args)]
  return 'method' if arguments[:1] == ['self'] else 'function'


def _first_sentence(docstring):
  line = (docstring or '').strip().partition('\n')[0].strip()
  if not SHORTEST <= len(line) <= LONGEST:
    return ''
  end = re.match(r'.{4,}?[.!?](?= +[A-Z])', line)
  return end[0] if end else line


def _source(node, lines):
  """The lines of a function without its docstring; '' if these are not lines of its own."""
  start = min([node.lineno, *(d.lineno for d in node.decorator_list)]) - 1
  doc = node.body[0]
  before = lines[doc.lineno - 1].encode()[:doc.col_offset]
  after = lines[doc.end_lineno - 1].encode()[doc.end_col_offset:]
  if before.strip() or after.strip():
    return ''
  kept = lines[start:doc.lineno - 1] + lines[doc.end_lineno:node.end_lineno]
  indent = lines[start][:node.col_offset]  # ASCII: a statement is indented by spaces and tabs
  source = '\n'.join(line.removeprefix(indent).rstrip() for line in kept) + '\n'
  if len(source) > SOURCE:
    source = source[:source.rfind('\n', 0, SOURCE) + 1]
  return source
