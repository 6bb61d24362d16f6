"""Draws tokens as boxes and attention masks as grids, as SVG text. What is drawn is objectives.py's business."""
import dataclasses
import html

WIDTH = 900  # of all pictures, pixels
LETTER, SMALL, BOX, GAP, PAD = 7.3, 6.1, 23, 4, 5  # widths of letters, height of a box, between boxes, inside them
CELL, EDGE = 13, 14  # side of a grid's cell, what is left free around all
# Kind of box or cell: colours of fill, border and text on light ground, then on dark.
COLOURS = {
    'word': '#ffffff #b6bdc6 #1f2328 #21262d #4d5661 #e6edf3',
    'special': '#eceff2 #b6bdc6 #59636e #161b22 #3d444d #9198a1',
    'sentinel': '#dbe5ff #4c6fd8 #1d3a8f #1c2b55 #6f8ff0 #c8d6ff',
    'gone': '#ffe9c7 #d18b16 #6b4200 #43300d #c28a2e #ffdca0',
    'random': '#ffd9d9 #d1495b #8a1626 #4d1a22 #e0707f #ffc9cf',
    'mode': '#e6dcfa #8458c9 #4a2391 #33234f #a585dd #dccbf8',
    'learned': '#d7f2dc #3a9a50 #12552a #16371f #4fae66 #b9eec5',
    'ignored': 'none #b6bdc6 #8b949e none #3d444d #6e7681',
    'seen': '#4c8b5c #4c8b5c #fff #4fae66 #4fae66 #fff',
    'prefix': '#e0a63a #e0a63a #fff #c28a2e #c28a2e #fff',
    'unseen': '#e7eaee #e7eaee #fff #262c34 #262c34 #fff',
}
GROUND = '#f6f8fa #d9dee4 #1f2328 #0d1117 #30363d #e6edf3'


@dataclasses.dataclass
class Line:
  """A line of boxes that wraps: `columns` of as many boxes as there are `labels`; a box is (text, kind) or None."""
  labels: list
  columns: list


@dataclasses.dataclass
class Grid:
  """Who sees whom: `cells[t][s]` names the kind of cell of query t and key s; the labels are texts."""
  title: str
  rows: list
  columns: list
  cells: list


def picture(title, lines, grids):
  """The SVG text of Lines, one below the other, and Grids side by side below them; `title` is for those who cannot see
  it."""
  parts, y = [], EDGE
  left = EDGE + 12 + round(SMALL * max(len(label) for line in lines for label in line.labels))
  for line in lines:
    drawn, y = _line(line, left, y)
    parts += drawn
  x, bottom = EDGE, y
  for grid in grids:
    drawn, width, height = _grid(grid, x, y + 4)
    if x > EDGE and x + width > WIDTH - EDGE:
      x, y = EDGE, bottom + 10
      drawn, width, height = _grid(grid, x, y + 4)
    parts += drawn
    x, bottom = x + width + 26, max(bottom, y + 4 + height)
  height = bottom + EDGE
  return '\n'.join([
      f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" '
      'role="img">',
      f'<title>{html.escape(title)}</title>', _style([box for line in lines for c in line.columns for box in c], grids),
      f'<rect class="ground" x=".5" y=".5" width="{WIDTH - 1}" height="{height - 1}" rx="6"/>', *parts, '</svg>', ''])


def _style(boxes, grids):
  used = {kind for _, kind in filter(None, boxes)} | {kind for grid in grids for row in grid.cells for kind in row}
  colours = {'ground': GROUND, **{kind: v for kind, v in COLOURS.items() if kind in used}}
  rules = lambda at: ''.join(
      f'.{kind}{{fill:{c[at]};stroke:{c[at + 1]}}}.t-{kind}{{fill:{c[at + 2]}}}'
      for kind, c in ((kind, text.split()) for kind, text in colours.items()))
  ground = GROUND.split()
  both = lambda at: (f'{rules(at)}.n{{fill:{ground[at + 2]}}}.l{{stroke:{ground[at]}}}'
                     '.seen,.prefix,.unseen{stroke:none}')
  return ('<style>text{font:12px ui-monospace,SFMono-Regular,Menlo,Consolas,monospace;text-anchor:middle}'
          '.n{font-size:10px;text-anchor:start}.e{text-anchor:end}.ignored{stroke-dasharray:3 2}.l{fill:none}'
          f'{both(0)}@media(prefers-color-scheme:dark){{{both(3)}}}</style>')


def _text(x, y, text, kind):
  return f'<text class="{kind}" x="{x:g}" y="{y:g}">{html.escape(text)}</text>'


def _line(line, left, y):
  """(elements, the y below them), the boxes beginning at x = `left`."""
  x, deep = left, len(line.labels) * (BOX + GAP) + 5
  labels = lambda: [_text(EDGE, y + 16 + k * (BOX + GAP), label, 'n') for k, label in enumerate(line.labels)]
  found = labels()
  for column in line.columns:
    width = round(2 * PAD + LETTER * max(len(text) for text, _ in filter(None, column)))
    if x + width > WIDTH - EDGE:
      x, y = left, y + deep + 3
      found += labels()
    for k, (text, kind) in ((k, box) for k, box in enumerate(column) if box):
      top = y + k * (BOX + GAP)
      found.append(f'<rect class="{kind}" x="{x}" y="{top}" width="{width}" height="{BOX}" rx="4"/>')
      found.append(_text(x + width / 2, top + 16, text, f't-{kind}'))
    x += width + GAP
  return found, y + deep + 5


def _grid(grid, x, y):
  """(elements, width, height)."""
  left, above = x + 12 + round(SMALL * max(map(len, grid.rows))), y + 24 + 5 * max(map(len, grid.columns))
  T, S = len(grid.rows), len(grid.columns)
  found = [_text(x, y + 8, grid.title, 'n')]
  for s, label in enumerate(grid.columns):
    found.append(f'<text class="n" transform="translate({left + s * CELL + 9} {above - 4}) rotate(-55)">'
                 f'{html.escape(label)}</text>')
  for t, (label, row) in enumerate(zip(grid.rows, grid.cells)):
    top, start = above + t * CELL, 0
    found.append(_text(left - 5, top + 10, label, 'n e'))
    for s in range(1, S + 1):
      if s == S or row[s] != row[start]:
        found.append(f'<rect class="{row[start]}" x="{left + start * CELL}" y="{top}" '
                     f'width="{(s - start) * CELL}" height="{CELL}"/>')
        start = s
  across = ''.join(f'M{left} {above + t * CELL}h{S * CELL}' for t in range(T + 1))
  down = ''.join(f'M{left + s * CELL} {above}v{T * CELL}' for s in range(S + 1))
  found.append(f'<path class="l" d="{across}{down}"/>')
  # The last slanted label leans over the edge.
  width = max(left - x + S * CELL + round(3.5 * len(grid.columns[-1])), round(SMALL * len(grid.title)))
  return found, width, above + T * CELL - y
