"""Draws the rooms of t5like/, the folders and the modules beside them, as docs/images/rooms.svg: python docs/rooms.py

A room stands above all rooms that its modules import from; tests/test_docs.py keeps the picture up to date.
"""
import ast
import html
import pathlib

ROOT = pathlib.Path(__file__).resolve().parent.parent
PACKAGE = ROOT / 't5like'
OUT = ROOT / 'docs' / 'images' / 'rooms.svg'
WIDTH, HEIGHT, GAP, EDGE = 960, 46, 10, 16  # of the picture; of a floor; between boxes; around all
CAPTION = 5.4  # pixels of a letter


def imports() -> dict[str, set[str]]:
  """{room: rooms that it imports from}."""
  above: dict[str, set[str]] = {}
  for file in sorted(PACKAGE.rglob('*.py')):
    own = _room(file.relative_to(PACKAGE).with_suffix('').as_posix())
    if own == '__init__':
      continue
    above.setdefault(own, set()).update(_imported(ast.parse(file.read_text())) - {own})
  return {own: others & set(above) for own, others in above.items()}


def _room(path: str) -> str:
  return path.partition('/')[0]


def _imported(tree: ast.Module) -> set[str]:
  rooms = set()
  for node in ast.walk(tree):
    if isinstance(node, ast.ImportFrom) and node.module == 't5like':
      rooms.update(alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom) and (node.module or '').startswith('t5like.'):
      rooms.add(node.module.split('.')[1])
  return rooms


def floors(above: dict[str, set[str]]) -> list[list[str]]:
  """Rooms by their floor, the ground first: one more than the highest of those that a room imports from."""
  levels: dict[str, int] = {}

  def level(own: str) -> int:
    if own not in levels:
      levels[own] = 1 + max((level(other) for other in above[own]), default=-1)
    return levels[own]
  for own in above:
    level(own)
  return [sorted(own for own in above if levels[own] == floor) for floor in range(max(levels.values()) + 1)]


def caption(own: str) -> str:
  """The first sentence of a room's docstring."""
  folder = PACKAGE / own
  file = folder / '__init__.py' if folder.is_dir() else folder.with_suffix('.py')
  text = ast.get_docstring(ast.parse(file.read_text())) or ''
  return ' '.join(text.split('\n\n')[0].split()).partition('. ')[0].partition(': ')[0].rstrip('.')


def picture() -> str:
  """The SVG text."""
  rows = floors(imports())
  height = 2 * EDGE + len(rows) * (HEIGHT + GAP) - GAP
  parts = [
      f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" '
      'role="img">',
      '<title>Rooms of t5like: each imports only from those below it</title>',
      '<style>text{font-family:system-ui,sans-serif;fill:#1f2328}.name{font-size:13px;font-weight:600}.what{font-size:10px;'
      'fill:#59636e}rect{fill:#f6f8fa;stroke:#b6bdc6}@media(prefers-color-scheme:dark){text{fill:#e6edf3}.what{fill:#9198a1}'
      'rect{fill:#161b22;stroke:#3d444d}}</style>']
  for number, row in enumerate(reversed(rows)):
    parts += _floor(row, EDGE + number * (HEIGHT + GAP))
  return '\n'.join([*parts, '</svg>', ''])


def _floor(row: list[str], y: float) -> list[str]:
  width = (WIDTH - 2 * EDGE - GAP * (len(row) - 1)) / len(row)
  parts = []
  for number, own in enumerate(row):
    x = EDGE + number * (width + GAP)
    letters = int((width - 16) / CAPTION)
    text = caption(own)
    shown = text if len(text) <= letters else text[:letters - 1].rstrip() + '…'
    parts += [
        f'<rect x="{x:.0f}" y="{y:.0f}" width="{width:.0f}" height="{HEIGHT}" rx="6"/>',
        f'<text class="name" x="{x + 8:.0f}" y="{y + 19:.0f}">{html.escape(own)}</text>',
        f'<text class="what" x="{x + 8:.0f}" y="{y + 35:.0f}">{html.escape(shown)}</text>']
  return parts


if __name__ == '__main__':
  OUT.write_text(picture(), encoding='utf-8')
