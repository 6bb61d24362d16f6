"""Reads the text of a compiled module (HLO): its computations, instructions, types, and groups of devices.

What is not understood is refused with `Unreadable`, never skipped: an operand that costs nothing because its name was
not known makes a prediction that is wrong without a word.
"""
import dataclasses
import functools
import math
import re
from typing import NamedTuple

import numpy as np

from t5like.errors import ConfigError

BYTES = {'pred': 1, 's4': 0.5, 'u4': 0.5, 's8': 1, 'u8': 1, 's16': 2, 'u16': 2, 'bf16': 2, 'f16': 2, 's32': 4, 'u32': 4,
         'f32': 4, 's64': 8, 'u64': 8, 'f64': 8, 'c64': 8, 'c128': 16, 'f8e4m3fn': 1, 'f8e5m2': 1, 'f8e4m3': 1,
         'f8e4m3b11fnuz': 1, 'f8e4m3fnuz': 1, 'f8e5m2fnuz': 1, 's2': 0.25, 'u2': 0.25, 's1': 0.125, 'u1': 0.125,
         'f4e2m1fn': 0.5, 'f8e8m0fnu': 1, 'f8e3m4': 1}
WITHOUT_BYTES = ('token', 'opaque')
ARRAY = re.compile(r'([a-z][a-z0-9]*)\[([^\]]*)\](?:\{([^}]*)\})?')
OPENS = re.compile(r'(ENTRY )?%?([^\s(]+) \(.*\) -> .*\{\s*$')
WITHOUT_OPERANDS = ('parameter', 'constant', 'iota')
COMMENT = re.compile(r'/\*.*?\*/')
BRACKETS = {'(': 1, '[': 1, '{': 1, ')': -1, ']': -1, '}': -1}


class Unreadable(ConfigError):
  """A program that holds what this reader does not know."""


class Array(NamedTuple):
  dims: tuple
  bytes: float
  in_hbm: bool  # else in on-chip memory


class Op(NamedTuple):
  name: str
  type: str
  kind: str
  args: list  # names, `name#1` being a part of a tuple; of a parameter or constant its literal
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
    match = re.search(r'(?:calls|to_apply)=%?([^\s,}]+)', self.attributes)
    return match[1] if match else None

  @property
  def target(self):
    """Of a custom call."""
    match = re.search(r'custom_call_target="([^"]*)"', self.attributes)
    return match[1] if match else ''

  @property
  def origin(self):
    """The path of the operation of the model that it comes from, '' where the compiler does not say."""
    match = re.search(r'op_name="([^"]*)"', self.attributes)
    return match[1] if match else ''


class Module:
  """A parsed module: `computations` {name: [Op]}, the name of its `entry`, and the number of its `partitions`."""

  def __init__(self, text: str):
    self.computations, self.entry = parse(text)
    partitions = re.search(r'num_partitions=(\d+)', text)
    self.partitions = int(partitions[1]) if partitions else 1
    self._by_name = {c: {op.name: op for op in ops} for c, ops in self.computations.items()}

  def ops(self, computation: str) -> list:
    """The instructions of a computation in the order of the schedule."""
    if computation not in self.computations:
      raise Unreadable(f'the program calls a computation that it does not hold: {computation!r}')
    return self.computations[computation]

  def operand(self, computation: str, reference: str) -> Op:
    """The instruction that an operand names; of a reference to a part of a tuple with the type of the part."""
    name, *path = reference.replace('.#', '#').split('#')
    op = self._by_name[computation].get(name)
    if op is None:
      raise Unreadable(f'the operand %{reference} in {computation} is not among its instructions')
    for index in path:
      if not index.isdecimal():
        raise Unreadable(f'the operand %{reference} in {computation} is a reference of a form that is not known')
      op = op._replace(type=part(op.type, int(index), reference))
    return op

  def operands(self, op: Op, computation: str) -> list:
    """All its operands, as `operand` gives them."""
    return [] if op.kind in WITHOUT_OPERANDS else [self.operand(computation, name) for name in op.args]

  def parameters(self, computation: str) -> dict:
    """{number: name} of the parameters of a computation."""
    return {int(p.args[0]): p.name for p in self.ops(computation) if p.kind == 'parameter'}

  def branches(self, op: Op) -> list:
    """The computations that a conditional chooses from."""
    listed = re.search(r'branch_computations=\{([^}]*)\}', op.attributes)
    if listed:
      return [name.strip().lstrip('%') for name in listed[1].split(',')]
    names = re.findall(r'(?:true|false)_computation=%?([^\s,}]+)', op.attributes)
    if not names:
      raise Unreadable(f'the conditional %{op.name} names no computations that it chooses from')
    return names

  def loop(self, op: Op) -> tuple:
    """(condition, body) of a while loop, names of computations."""
    names = [re.search(rf'{word}=%?([^\s,}}]+)', op.attributes) for word in ('condition', 'body')]
    if None in names:
      raise Unreadable(f'the loop %{op.name} names no condition or no body')
    return names[0][1], names[1][1]


def arrays(text: str) -> list:
  """The Arrays in the text of a type."""
  result = []
  for kind, dims, layout in ARRAY.findall(text):
    if kind in WITHOUT_BYTES:
      continue
    sizes = dims.replace('<=', '').split(',')
    if kind not in BYTES or not all(d.isdecimal() for d in sizes if d):
      raise Unreadable(f'an array of the type {kind}[{dims}], whose size is not known')
    shape = tuple(int(d) for d in sizes if d)
    space = re.search(r'S\((\d+)\)', layout)
    result.append(Array(shape, math.prod(shape) * BYTES[kind], not space or space[1] == '0'))
  return result


def part(type_text: str, index: int, reference: str = '') -> str:
  """The type of one part of a tuple."""
  text = type_text.strip()
  if not text.startswith('('):
    raise Unreadable(f'%{reference} is a part of something that is no tuple but {text[:80]}')
  parts = list_of(text[1:-1])
  if index >= len(parts):
    raise Unreadable(f'%{reference} is a part of a tuple of {len(parts)}')
  return parts[index]


def list_of(text: str) -> list:
  """The texts between the commas of a list, those inside of brackets left alone."""
  text = COMMENT.sub('', text)
  if not any(bracket in text for bracket in '([{'):
    return [piece.strip() for piece in text.split(',') if piece.strip()]
  pieces, depth, start = [], 0, 0
  for i, letter in enumerate(text):
    depth += BRACKETS.get(letter, 0)
    if letter == ',' and not depth:
      pieces.append(text[start:i].strip())
      start = i + 1
  return [piece for piece in [*pieces, text[start:].strip()] if piece]


def parse(text: str) -> tuple:
  """({computation: [Op]}, name of the entry)."""
  computations, current, entry = {}, None, None
  for line in text.split('\n'):
    opens = OPENS.match(line)
    starts = line.lstrip().startswith(('%', 'ROOT ')) and ' = ' in line
    if current is None and opens:
      current = computations.setdefault(opens[2], [])
      entry = opens[2] if opens[1] else entry
    elif current is None and starts:
      raise Unreadable(f'an instruction outside of all computations: {line.strip()[:120]}')
    elif line.rstrip() == '}' or line.startswith('}, execution_thread'):
      current = None
    elif current is not None and starts:
      current.append(_op(line.strip()))
    elif current:  # a long instruction continues
      current[-1] = current[-1]._replace(attributes=f'{current[-1].attributes} {line}')
  if entry is None:
    raise Unreadable('the text of the program has no entry computation')
  return computations, entry


def _op(line):
  is_root = line.startswith('ROOT ')
  name, _, rest = line.removeprefix('ROOT ').partition(' = ')
  end = _closing(rest, 0) if rest.startswith('(') else rest.index(' ') - 1
  kind, _, rest_of = rest[end + 1:].lstrip().partition('(')
  close = _closing('(' + rest_of, 0) - 1
  kind, inside = kind.strip(), rest_of[:close]
  args = [inside] if kind in WITHOUT_OPERANDS else [_reference(piece, line) for piece in list_of(inside)]
  return Op(name.lstrip('%'), rest[:end + 1], kind, args, rest_of[close + 1:], is_root)


def _reference(operand, line):
  """The name in the text of an operand, which may give its type before it."""
  match = re.search(r'(?:^|\s)%(\S+)$', operand)
  if not match:
    raise Unreadable(f'the operand {operand[:60]!r} names no instruction: {line[:120]}')
  return match[1]


def _closing(text, start):
  """Index of the bracket that closes the one at `start`."""
  depth = 0
  for i in range(start, len(text)):
    depth += (text[i] == '(') - (text[i] == ')')
    if not depth:
      return i
  raise Unreadable(f'a bracket that nothing closes: {text[:120]}')


# --- Groups of devices ----------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Groups:
  """Who talks to whom: `ids`, [groups, devices of a group], by number of the partition."""
  ids: np.ndarray

  @property
  def size(self) -> int:
    return self.ids.shape[1]

  def slices(self, slice_of: np.ndarray) -> int:
    """Over how many slices a group extends at most. slice_of: the slice of each partition."""
    return max(len(set(row)) for row in slice_of[self.ids].tolist())


def groups(attributes: str, partitions: int) -> Groups:
  """Groups of a collective, in any of the forms in which they are written; Unreadable for any other."""
  for form, read in FORMS.items():
    match = re.search(form, attributes)
    if match:
      return _groups(match[0], read, partitions)
  start = attributes.find('replica_groups')
  raise Unreadable('a collective whose groups of devices cannot be read: '
                   f'{attributes[start:start + 120] if start >= 0 else "it gives none"}')


@functools.lru_cache(4096)
def _groups(text, read, partitions):
  ids = read(text, partitions)
  if ids.size == 0 or ids.min() < 0 or ids.max() >= partitions:
    raise Unreadable(f'a collective of devices that the program does not have ({partitions}): {text[:120]}')
  return Groups(ids)


def _numbers(text):
  return [int(n) for n in re.findall(r'\d+', text)]


def _of_all(text, partitions):
  return np.arange(partitions)[None]


def _of_list(text, partitions):
  """{{0,1},{2,3}}"""
  rows = [_numbers(row) for row in re.findall(r'\{([\d,\s]+)\}', text)]
  if len({len(row) for row in rows}) != 1:
    raise Unreadable(f'a collective whose groups have different sizes: {text[:120]}')
  return np.array(rows)


def _iota(text):
  """[2,128]<=[256], [128,2]<=[2,128]T(1,0), or [2,128]T(1,0), which reshapes no further."""
  shape, _, source = text.partition('<=')
  sizes, _, order = (source or shape).partition('T')
  ids = np.arange(math.prod(_numbers(sizes))).reshape(_numbers(sizes))
  if order:
    ids = ids.transpose(_numbers(order))
  return ids.reshape(_numbers(shape)) if source else ids


def _of_iota(text, partitions):
  return _iota(text.partition('=')[2])


def _of_mesh(text, partitions):
  """mesh['a'=2,'b'=64], device_ids=([2,64]T(1,0)) {'a'}: along which axes; an axis may be split as in 'a':(2)4."""
  axes = re.search(r'mesh\[([^\]]*)\]', text)[1]
  along = re.search(r'\{([^}]*)\}$', text)[1]
  sizes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", axes)}
  order = re.search(r'device_ids=\((.*?)\)(?=\s*\{)', text)
  ids = (_iota(order[1]) if order else np.arange(math.prod(sizes.values()))).reshape(list(sizes.values()))
  names, shape = list(sizes), list(sizes.values())
  chosen = []
  for piece in list_of(along):
    match = re.fullmatch(r"'([^']+)'(?::\((\d+)\)(\d+))?", piece)
    if not match or match[1] not in names:
      raise Unreadable(f'a collective along an axis that its mesh does not have: {text[:160]}')
    at = names.index(match[1])
    if not match[2]:
      chosen.append(match[1])
      continue
    before, size = int(match[2]), int(match[3])
    name = f'{match[1]}:{before}'
    names[at:at + 1] = [f'{match[1]}:outer', name, match[1]]
    shape[at:at + 1] = [before, size, shape[at] // before // size]
    chosen.append(name)
  ids = ids.reshape(shape)
  order = [i for i, name in enumerate(names) if name not in chosen] + [names.index(name) for name in chosen]
  return ids.transpose(order).reshape(-1, math.prod(shape[names.index(name)] for name in chosen))


# Forms of `replica_groups`, and of the pairs of a collective-permute, and what reads them.
FORMS = {r'replica_groups=\{\}': _of_all,
         r'replica_groups=\{\{[\d,\s]+\}(?:,\s*\{[\d,\s]+\})*\}': _of_list,
         r'replica_groups=\[[\d,]+\]<=\[[\d,]+\](?:T\([\d,]+\))?': _of_iota,
         r'replica_groups=mesh\[[^\]]*\](?:,\s*device_ids=\(.*?\))?\s*\{[^}]*\}': _of_mesh,
         r'source_target_pairs=\{\{[\d,\s]+\}(?:,\s*\{[\d,\s]+\})*\}': _of_list}


def group_size(attributes: str, partitions: int) -> int:
  """Devices in a group of a collective."""
  return groups(attributes, partitions).size
