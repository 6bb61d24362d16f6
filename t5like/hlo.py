"""Reads the text of a compiled module (HLO): its computations, instructions, and the sizes of arrays."""
import math
import re
from typing import NamedTuple

BYTES = {'pred': 1, 's4': 0.5, 'u4': 0.5, 's8': 1, 'u8': 1, 's16': 2, 'u16': 2, 'bf16': 2, 'f16': 2, 's32': 4, 'u32': 4,
         'f32': 4, 's64': 8, 'u64': 8, 'f64': 8, 'f8e4m3fn': 1, 'f8e5m2': 1}
ARRAY = re.compile(r'([a-z0-9]+)\[([0-9,]*)\](?:\{([^}]*)\})?')
OPENS = re.compile(r'(ENTRY )?%?([^\s(]+) \(.*\) -> .*\{\s*$')


class Array(NamedTuple):
  dims: tuple
  bytes: float
  in_hbm: bool  # else in on-chip memory


class Op(NamedTuple):
  name: str
  type: str
  kind: str
  args: list  # names; of a parameter or constant its literal
  attributes: str
  is_root: bool

  @property
  def arrays(self):
    return arrays(self.type)

  @property
  def hbm(self):
    return sum(a.bytes for a in self.arrays if a.in_hbm)

  @property
  def callee(self):
    found = re.search(r'(?:calls|to_apply)=%?([^\s,}]+)', self.attributes)
    return found[1] if found else None


def arrays(text):
  """The Arrays in the text of a type."""
  found = []
  for kind, dims, layout in ARRAY.findall(text):
    if kind in BYTES:
      dims = tuple(int(d) for d in dims.split(',') if d)
      space = re.search(r'S\((\d+)\)', layout)
      found.append(Array(dims, math.prod(dims) * BYTES[kind], not space or space[1] == '0'))
  return found


def parse(text):
  """({computation: [Op]}, name of the entry)."""
  computations, current, entry = {}, None, None
  for line in text.split('\n'):
    opens = OPENS.match(line)
    if current is None and opens:
      current = computations.setdefault(opens[2], [])
      entry = opens[2] if opens[1] else entry
    elif line.rstrip() == '}' or line.startswith('}, execution_thread'):
      current = None
    elif current is not None and ' = ' in line and line.lstrip().startswith(('%', 'ROOT ')):
      current.append(_op(line.strip()))
    elif current:  # a long instruction goes on
      current[-1] = current[-1]._replace(attributes=f'{current[-1].attributes} {line}')
  return computations, entry


def _op(line):
  is_root = line.startswith('ROOT ')
  name, _, rest = line.removeprefix('ROOT ').partition(' = ')
  end = _closing(rest, 0) if rest.startswith('(') else rest.index(' ') - 1
  kind, _, rest_of = rest[end + 1:].lstrip().partition('(')
  close = _closing('(' + rest_of, 0) - 1
  inside = rest_of[:close]
  args = [inside] if kind in ('parameter', 'constant', 'iota') else re.findall(r'%([^\s,()]+)', inside)
  return Op(name.lstrip('%'), rest[:end + 1], kind.strip(), args, rest_of[close + 1:], is_root)


def _closing(text, start):
  """Index of the bracket that closes the one at `start`."""
  depth = 0
  for i in range(start, len(text)):
    depth += (text[i] == '(') - (text[i] == ')')
    if not depth:
      return i
  return len(text) - 1


def group_size(attributes):
  """Devices in a group of a collective; 0 where its text does not say."""
  if listed := re.search(r'replica_groups=\{\{([0-9,]*)\}', attributes):
    return len(listed[1].split(','))
  if tiled := re.search(r'replica_groups=\[\d+,(\d+)\]', attributes):
    return int(tiled[1])
  if mesh := re.search(r'replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}', attributes):
    sizes = dict(re.findall(r"'([^']+)'=(\d+)", mesh[1]))
    return math.prod(int(sizes.get(axis, 1)) for axis in re.findall(r"'([^']+)'", mesh[2]))
  return 0
