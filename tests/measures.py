"""How dense the code of t5like/ is, of one commit or of several side by side.

    python -m tests.measures                    # the working tree
    python -m tests.measures 19bbc55 HEAD       # commits, as a table

tests/test_house.py holds the working tree to LIMITS.
"""
import ast
import dataclasses
import io
import pathlib
import subprocess
import sys
import tokenize
from collections.abc import Iterator

ROOT = pathlib.Path(__file__).resolve().parent.parent
NO_CODE = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
BRANCHES = (ast.If, ast.For, ast.While, ast.ExceptHandler, ast.With, ast.IfExp, ast.comprehension)


@dataclasses.dataclass
class Counts:
  """Sums over files; `decisions` and `longest` are the largest of a function, with its place."""
  lines: int = 0  # with code: neither blank, nor comment or docstring alone
  tokens: int = 0
  ternaries: int = 0
  nested_ternaries: int = 0
  comprehensions: int = 0
  nested_comprehensions: int = 0
  named_lambdas: int = 0
  parameters: int = 0  # of public functions
  annotated: int = 0
  top_files: int = 0  # modules right below t5like/
  decisions: tuple[int, str] = (0, '')
  longest: tuple[int, str] = (0, '')


def count(files: dict[str, str]) -> Counts:
  """Counts of {path below t5like: source}."""
  counts = Counts()
  for path, source in files.items():
    counts.top_files += '/' not in path
    tree = ast.parse(source)
    _count_tokens(counts, source, _docstring_lines(tree))
    for node in ast.walk(tree):
      _count_node(counts, node, path)
  return counts


def _docstring_lines(tree: ast.Module) -> set[int]:
  lines: set[int] = set()
  for node in ast.walk(tree):
    if not isinstance(node, (ast.Module, ast.ClassDef, *FUNCTIONS)) or not node.body:
      continue
    first = node.body[0]
    if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str):
      lines.update(range(first.lineno, first.end_lineno + 1))
  return lines


def _count_tokens(counts: Counts, source: str, docstrings: set[int]) -> None:
  lines: set[int] = set()
  for token in _whole_strings(tokenize.generate_tokens(io.StringIO(source).readline)):
    is_docstring = token.type == tokenize.STRING and token.start[0] in docstrings
    if token.type in NO_CODE or is_docstring:
      continue
    counts.tokens += 1
    lines.update(range(token.start[0], token.end[0] + 1))
  counts.lines += len(lines)


def _whole_strings(tokens: Iterator[tokenize.TokenInfo]) -> Iterator[tokenize.TokenInfo]:
  """Tokens with each f-string as one, as Python 3.11 has it; later ones give its parts."""
  depth = 0
  for token in tokens:
    name = tokenize.tok_name[token.type]
    if name == 'FSTRING_START':
      depth += 1
    if depth == 0 or (name == 'FSTRING_START' and depth == 1):
      yield token
    if name == 'FSTRING_END':
      depth -= 1


def _count_node(counts: Counts, node: ast.AST, path: str) -> None:
  if isinstance(node, ast.IfExp):
    counts.ternaries += 1
    counts.nested_ternaries += _holds_another(node, ast.IfExp)
  elif isinstance(node, COMPREHENSIONS):
    counts.comprehensions += 1
    counts.nested_comprehensions += _holds_another(node, COMPREHENSIONS)
  elif isinstance(node, ast.Assign) and isinstance(node.value, ast.Lambda):
    counts.named_lambdas += 1
  elif isinstance(node, FUNCTIONS):
    place = f'{path}:{node.name}'
    counts.decisions = max(counts.decisions, (decisions(node), place))
    counts.longest = max(counts.longest, (node.end_lineno - node.lineno + 1, place))
    if not node.name.startswith('_'):
      arguments = [a for a in node.args.args + node.args.kwonlyargs if a.arg not in ('self', 'cls')]
      counts.parameters += len(arguments)
      counts.annotated += sum(a.annotation is not None for a in arguments)


def _holds_another(node: ast.AST, kinds: type | tuple) -> bool:
  return any(isinstance(inner, kinds) for child in ast.iter_child_nodes(node) for inner in ast.walk(child))


def decisions(function: ast.AST) -> int:
  """1 plus branches, loops, handlers, ternaries, clauses of comprehensions, and operands of and/or after the first."""
  total = 1
  for node in ast.walk(function):
    total += isinstance(node, BRANCHES)
    if isinstance(node, ast.BoolOp):
      total += len(node.values) - 1
  return total


def measures(counts: Counts) -> dict[str, float]:
  """{name: number}, as the limits of tests/test_house.py have them."""
  thousands = counts.lines / 1000
  return {
      'tokens per code line': counts.tokens / counts.lines,
      'ternaries per 1,000 lines': counts.ternaries / thousands,
      'nested ternaries': counts.nested_ternaries,
      'comprehensions per 1,000 lines': counts.comprehensions / thousands,
      'nested comprehensions': counts.nested_comprehensions,
      'named lambdas': counts.named_lambdas,
      'decisions of a function': counts.decisions[0],
      'parameters of public functions without annotation': counts.parameters - counts.annotated,
      'files in the top folder': counts.top_files,
  }


def working_tree() -> dict[str, str]:
  """{path below t5like: source} of the files as they are."""
  folder = ROOT / 't5like'
  return {file.relative_to(folder).as_posix(): file.read_text() for file in sorted(folder.rglob('*.py'))}


def commit(name: str) -> dict[str, str]:
  """The same of a commit."""
  return dict(_files_of(name))


def _files_of(name: str) -> Iterator[tuple[str, str]]:
  listed = _git('ls-tree', '-r', '--name-only', name, 't5like/')
  for path in listed.splitlines():
    if path.endswith('.py'):
      yield path.removeprefix('t5like/'), _git('show', f'{name}:{path}')


def _git(*words: str) -> str:
  return subprocess.run(['git', *words], cwd=ROOT, capture_output=True, text=True, check=True).stdout


def main(names: list[str]) -> None:
  trees = {name: commit(name) for name in names} or {'working tree': working_tree()}
  counts = {name: count(files) for name, files in trees.items()}
  columns = {name: measures(of_tree) for name, of_tree in counts.items()}
  print(f'| t5like/ | {" | ".join(columns)} |')
  print('|---' * (len(columns) + 1) + '|')
  print(f'| lines of code | {" | ".join(f"{of_tree.lines:,}" for of_tree in counts.values())} |')
  for measure in next(iter(columns.values())):
    numbers = (f'{column[measure]:.1f}'.removesuffix('.0') for column in columns.values())
    print(f'| {measure} | {" | ".join(numbers)} |')
  for name, of_tree in counts.items():
    print(f'\n{name}: most decisions in {of_tree.decisions[1]}, longest function {of_tree.longest[1]} '
          f'({of_tree.longest[0]} lines)')


if __name__ == '__main__':
  main(sys.argv[1:])
