"""Writes docs/keys.md, a table of all keys with their defaults and what t5like/config/base.py says of them.

    python docs/keys.py

tests/test_docs.py fails when the file is not what this writes.
"""
import ast
import io
import os
import pathlib
import sys
import tokenize

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from t5like.config.values import DEFAULTS

ROOT = pathlib.Path(__file__).resolve().parent.parent
HEAD = '''# Every key

Written by `python docs/keys.py` from `t5like/config/base.py`, which is the reference; a test keeps it up to date. How
to set keys, and what is said when one is wrong: [configs.md](configs.md).
'''


def keys(source):
  """[(key, what its comments say)] of the source of t5like/config/base.py, text; sections too, by their names."""
  function = next(n for n in ast.parse(source).body if isinstance(n, ast.FunctionDef) and n.name == 'base')
  said, alone = {}, set()
  for token in tokenize.generate_tokens(io.StringIO(source).readline):
    if token.type == tokenize.COMMENT:
      said[token.start[0]] = token.string.lstrip('# ')
      if not token.line[:token.start[1]].strip():
        alone.add(token.start[0])
  found, taken = [], set()

  def comment(first, last):
    above = first
    while above - 1 in alone and not said[above - 1].startswith('---') and above - 1 not in taken:
      above -= 1
    lines = [*range(above, first), *((last,) if last in said else ())]
    taken.update(lines)
    return ' '.join(said[line] for line in lines)
  for node in function.body:
    if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]).startswith('c.'):
      name, value = node.targets[0].attr, node.value
      if isinstance(value, ast.Call) and ast.unparse(value.func) == 'dict' and value.keywords:
        found.append((name, comment(node.lineno, node.lineno)))
        found += [(f'{name}.{k.arg}', comment(k.lineno, k.value.end_lineno)) for k in value.keywords]
      else:
        found.append((name, comment(node.lineno, node.end_lineno)))
  return found


def table():
  """The whole file, text."""
  found = keys((ROOT / 't5like' / 'config' / 'base.py').read_text(encoding='utf-8'))
  cell = lambda text: text.replace('|', '\\|')
  # No HTML, emphasis or links.
  plain = lambda text: cell(text).replace('<', '&lt;').replace('*', '\\*').replace('[', '\\[')
  lines = [HEAD, '## Of the run\n\n| key | default | |\n|---|---|---|']
  sections = [(key, text) for key, text in found if key not in DEFAULTS]
  row = lambda key, said: f'| `{key}` | `{cell(repr(DEFAULTS[key]))}` | {plain(said)} |'
  lines += [row(*pair) for pair in found if pair[0] in DEFAULTS and '.' not in pair[0]]
  for section, text in sections:
    lines.append(f'\n## {section}\n\n' + (f'{text[0].upper()}{text[1:]}.\n\n' if text else '')
                 + '| key | default | |\n|---|---|---|')
    lines += [row(*pair) for pair in found if pair[0].startswith(f'{section}.')]
  missing = set(DEFAULTS) - {key for key, _ in found}
  assert not missing, f't5like/config/base.py is not read right: {missing}'
  return '\n'.join(lines) + '\n'


if __name__ == '__main__':
  (ROOT / 'docs' / 'keys.md').write_text(table(), encoding='utf-8')
