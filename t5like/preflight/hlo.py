"""Reads the text of a compiled module (HLO): its computations, instructions, types, and groups of devices.

Anything that is not understood is refused with `Unreadable`, never skipped: an operand that costs nothing because its
name was not known would make a prediction silently wrong.
"""
import dataclasses
import functools
import math
import re
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from t5like.errors import ConfigError

KINDS = {  # of elements, by their bits
    1: 's1 u1',
    2: 's2 u2',
    4: 's4 u4 f4e2m1fn',
    8: 'pred s8 u8 f8e3m4 f8e4m3 f8e4m3b11fnuz f8e4m3fn f8e4m3fnuz f8e5m2 f8e5m2fnuz f8e8m0fnu',
    16: 's16 u16 bf16 f16',
    32: 's32 u32 f32',
    64: 's64 u64 f64 c64',
    128: 'c128',
}
BYTES: dict[str, float] = {}
for _bits, _kinds in KINDS.items():
  for _kind in _kinds.split():
    BYTES[_kind] = _bits / 8
WITHOUT_BYTES = ('token', 'opaque')
ARRAY = re.compile(r'([a-z][a-z0-9]*)\[([^\]]*)\](?:\{([^}]*)\})?')  # kind, dims, layout
OPENS = re.compile(r'(ENTRY )?%?([^\s(]+) \(.*\) -> .*\{\s*$')
WITHOUT_OPERANDS = ('parameter', 'constant', 'iota')
COMMENT = re.compile(r'/\*.*?\*/')
OPENING = re.compile(r'[(\[{]')
BRACKETS = {
    '(': 1,
    ')': -1,
    '[': 1,
    ']': -1,
    '{': 1,
    '}': -1,
}


class Unreadable(ConfigError):
  """A program with a part that this reader does not know."""


class Array(NamedTuple):
  """One array of a type."""
  dims: tuple[int, ...]
  bytes: float
  in_hbm: bool  # else in on-chip memory
  dtype: str  # as HLO writes it: 'bf16', 's8', ..


class Op(NamedTuple):
  """An instruction."""
  name: str
  type: str
  kind: str
  args: list[str]  # names, `name#1` being a part of a tuple; of a parameter or constant its literal
  attributes: str
  is_root: bool

  @property
  def arrays(self) -> list[Array]:
    """Of its result."""
    return arrays(self.type)

  @property
  def bytes(self) -> float:
    """Of its result, wherever it is."""
    return sum(array.bytes for array in self.arrays)

  @property
  def hbm(self) -> float:
    """Bytes of its result that are in HBM."""
    return sum(array.bytes for array in self.arrays if array.in_hbm)

  @property
  def first_operand(self) -> str:
    """The name of the instruction that its first operand is, or is a part of; '' without operands."""
    if not self.args:
      return ''
    name, *_ = self.args[0].split('#')
    return name

  @property
  def callee(self) -> str:
    """The computation that it calls, '' without one."""
    return self._attribute(r'(?:calls|to_apply)=%?([^\s,}]+)')

  @property
  def target(self) -> str:
    """The target of a custom call, '' of others."""
    return self._attribute(r'custom_call_target="([^"]*)"')

  @property
  def origin(self) -> str:
    """The path of the operation of the model that it comes from, '' where the compiler does not say."""
    return self._attribute(r'op_name="([^"]*)"')

  def _attribute(self, pattern: str) -> str:
    match = re.search(pattern, self.attributes)
    if not match:
      return ''
    return match[1]


class Module:
  """A parsed module: `computations` {name: [Op]}, the name of its `entry`, and the number of its `partitions`."""

  def __init__(self, text: str):
    self.computations, self.entry = parse(text)
    self.partitions = 1
    partitions = re.search(r'num_partitions=(\d+)', text)
    if partitions:
      self.partitions = int(partitions[1])
    self._by_name: dict[str, dict[str, Op]] = {}
    for computation, ops in self.computations.items():
      by_name = self._by_name[computation] = {}
      for op in ops:
        by_name[op.name] = op

  def ops(self, computation: str) -> list[Op]:
    """The instructions of a computation in the order of the schedule."""
    if computation not in self.computations:
      raise Unreadable(f'the program calls a computation that it does not hold: {computation!r}')
    return self.computations[computation]

  def root(self, computation: str) -> Op:
    """The instruction whose result is that of the computation."""
    for op in self.ops(computation):
      if op.is_root:
        return op
    raise Unreadable(f'the computation {computation} has no root')

  def operand(self, computation: str, reference: str) -> Op:
    """The instruction that an operand names; of a reference to a part of a tuple with the type of the part."""
    name, *path = reference.replace('.#', '#').split('#')
    op = self._by_name[computation].get(name)
    if op is None:
      raise Unreadable(f'the operand %{reference} in {computation} is not among its instructions')
    for index in path:
      if not index.isdecimal():
        raise Unreadable(f'the operand %{reference} in {computation} is a reference of an unknown form')
      part_type = part(op.type, int(index), reference)
      op = op._replace(type=part_type)
    return op

  def operands(self, op: Op, computation: str) -> list[Op]:
    """All its operands, as `operand` returns them."""
    if op.kind in WITHOUT_OPERANDS:
      return []
    return [self.operand(computation, name) for name in op.args]

  def parameters(self, computation: str) -> dict[int, str]:
    """{number: name} of the parameters of a computation."""
    names = {}
    for op in self.ops(computation):
      if op.kind == 'parameter':
        number = int(op.args[0])
        names[number] = op.name
    return names

  def branches(self, op: Op) -> list[str]:
    """The computations that a conditional chooses from."""
    listed = re.search(r'branch_computations=\{([^}]*)\}', op.attributes)
    if listed:
      names = listed[1].replace('%', '').split(',')
      return list(map(str.strip, names))
    names = re.findall(r'(?:true|false)_computation=%?([^\s,}]+)', op.attributes)
    if not names:
      raise Unreadable(f'the conditional %{op.name} does not name the computations that it chooses from')
    return names

  def loop(self, op: Op) -> tuple[str, str]:
    """(condition, body) of a while loop, names of computations."""
    condition = re.search(r'condition=%?([^\s,}]+)', op.attributes)
    body = re.search(r'body=%?([^\s,}]+)', op.attributes)
    if condition is None or body is None:
      raise Unreadable(f'the loop %{op.name} does not name its condition or its body')
    return condition[1], body[1]


# --- Types ----------------------------------------------------------------------------------------


def arrays(text: str) -> list[Array]:
  """The Arrays in the text of a type."""
  result = []
  for kind, dims, layout in ARRAY.findall(text):
    if kind in WITHOUT_BYTES:
      continue
    shape = _shape(dims)
    if kind not in BYTES or shape is None:
      raise Unreadable(f'an array of the type {kind}[{dims}], whose size is not known')
    space = re.search(r'S\((\d+)\)', layout)
    in_hbm = space is None or space[1] == '0'
    size = math.prod(shape) * BYTES[kind]
    result.append(Array(shape, size, in_hbm, kind))
  return result


def _shape(dims: str) -> tuple[int, ...] | None:
  """Of '4,<=2048'; None where a size is not a number."""
  shape = []
  for size in dims.replace('<=', '').split(','):
    if not size:
      continue
    if not size.isdecimal():
      return None
    shape.append(int(size))
  return tuple(shape)


def part(type_text: str, index: int, reference: str = '') -> str:
  """The type of one part of a tuple; `reference`: for errors, the operand that refers to it."""
  text = type_text.strip()
  if not text.startswith('('):
    raise Unreadable(f'%{reference} is a part of something that is not a tuple but {text[:80]}')
  parts = list_of(text[1:-1])
  if index >= len(parts):
    raise Unreadable(f'%{reference} is a part of a tuple of {len(parts)}')
  return parts[index]


def list_of(text: str) -> list[str]:
  """The texts between the commas of a list, except for commas inside of brackets."""
  text = COMMENT.sub('', text)
  if not OPENING.search(text):
    pieces = text.split(',')
  else:
    pieces = _split_outside_brackets(text)
  stripped = map(str.strip, pieces)
  return list(filter(None, stripped))


def _split_outside_brackets(text: str) -> list[str]:
  pieces = []
  depth = 0
  start = 0
  for position, letter in enumerate(text):
    depth += BRACKETS.get(letter, 0)
    if letter == ',' and depth == 0:
      pieces.append(text[start:position])
      start = position + 1
  pieces.append(text[start:])
  return pieces


# --- Instructions ---------------------------------------------------------------------------------


def parse(text: str) -> tuple[dict[str, list[Op]], str]:
  """({computation: [Op]}, name of the entry)."""
  computations: dict[str, list[Op]] = {}
  entry = None
  ops = None  # of the computation that the line is in
  for line in text.split('\n'):
    if ops is not None:
      if _closes(line):
        ops = None
      else:
        _add_line(ops, line)
      continue
    opens = OPENS.match(line)
    if opens:
      is_entry, name = opens.groups()
      ops = computations.setdefault(name, [])
      if is_entry:
        entry = name
    elif _is_instruction(line):
      raise Unreadable(f'an instruction outside of all computations: {line.strip()[:120]}')
  if entry is None:
    raise Unreadable('the text of the program has no entry computation')
  return computations, entry


def _closes(line: str) -> bool:
  return line.rstrip() == '}' or line.startswith('}, execution_thread')


def _is_instruction(line: str) -> bool:
  return line.lstrip().startswith(('%', 'ROOT ')) and ' = ' in line


def _add_line(ops: list[Op], line: str) -> None:
  """Adds the instruction of a line, or continues the last one."""
  if _is_instruction(line):
    ops.append(_op(line.strip()))
  elif ops:
    last = ops[-1]
    ops[-1] = last._replace(attributes=f'{last.attributes} {line}')


def _op(line: str) -> Op:
  """Of '%name = type kind(operands), attributes'."""
  is_root = line.startswith('ROOT ')
  name, _, rest = line.removeprefix('ROOT ').partition(' = ')
  if rest.startswith('('):
    end_of_type = _closing(rest) + 1
  else:
    end_of_type = rest.index(' ')
  kind, _, rest_of_call = rest[end_of_type:].lstrip().partition('(')
  kind = kind.strip()
  end_of_operands = _closing('(' + rest_of_call) - 1
  operands = rest_of_call[:end_of_operands]
  if kind in WITHOUT_OPERANDS:
    args = [operands]
  else:
    args = [_reference(operand, line) for operand in list_of(operands)]
  return Op(
      name=name.lstrip('%'),
      type=rest[:end_of_type],
      kind=kind,
      args=args,
      attributes=rest_of_call[end_of_operands + 1:],
      is_root=is_root,
  )


def _reference(operand: str, line: str) -> str:
  """The name in the text of an operand, whose type may stand before it."""
  match = re.search(r'(?:^|\s)%(\S+)$', operand)
  if not match:
    raise Unreadable(f'the operand {operand[:60]!r} does not name an instruction: {line[:120]}')
  return match[1]


def _closing(text: str) -> int:
  """Index of the bracket that closes the one that the text begins with."""
  depth = 0
  for position, letter in enumerate(text):
    if letter == '(':
      depth += 1
    elif letter == ')':
      depth -= 1
    if depth == 0:
      return position
  raise Unreadable(f'a bracket that is not closed: {text[:120]}')


# --- Groups of devices ----------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Groups:
  """Who talks to whom: `ids`, int [groups, devices of a group], by number of the partition."""
  ids: np.ndarray

  @property
  def size(self) -> int:
    return self.ids.shape[1]

  def slices(self, slice_of: np.ndarray) -> int:
    """Over how many slices a group extends at most; `slice_of`: int [partitions], the slice of each."""
    slices_of_groups = map(set, slice_of[self.ids].tolist())
    return max(map(len, slices_of_groups))


def groups(attributes: str, partitions: int) -> Groups:
  """Groups of a collective.

  Args:
    attributes: of its instruction.
    partitions: of the program.

  Raises:
    Unreadable: groups in a form that is none of FORMS, or of devices that the program does not have.
  """
  for form, read in FORMS.items():
    match = re.search(form, attributes)
    if match:
      return _groups(match[0], read, partitions)
  start = attributes.find('replica_groups')
  if start < 0:
    raise Unreadable('a collective whose groups of devices cannot be read: it has none')
  raise Unreadable(f'a collective whose groups of devices cannot be read: {attributes[start:start + 120]}')


def group_size(attributes: str, partitions: int) -> int:
  """Devices in a group of a collective."""
  return groups(attributes, partitions).size


@functools.lru_cache(4096)
def _groups(
    text: str,
    read: Callable[[str, int], np.ndarray],
    partitions: int,
) -> Groups:
  ids = read(text, partitions)
  is_known = (ids >= 0) & (ids < partitions)
  if ids.size == 0 or not is_known.all():
    raise Unreadable(f'a collective of devices that the program does not have ({partitions}): {text[:120]}')
  return Groups(ids)


def _numbers(text: str) -> list[int]:
  return list(map(int, re.findall(r'\d+', text)))


def _read_all(text: str, partitions: int) -> np.ndarray:
  return np.arange(partitions)[None]


def _read_list(text: str, partitions: int) -> np.ndarray:
  """{{0,1},{2,3}}"""
  rows = list(map(_numbers, re.findall(r'\{([\d,\s]+)\}', text)))
  if len(set(map(len, rows))) != 1:
    raise Unreadable(f'a collective whose groups have different sizes: {text[:120]}')
  return np.array(rows)


def _iota(text: str) -> np.ndarray:
  """[2,128]<=[256], [128,2]<=[2,128]T(1,0), or [2,128]T(1,0), which reshapes no further."""
  shape, _, source = text.partition('<=')
  sizes, _, permutation = (source or shape).partition('T')
  source_shape = _numbers(sizes)
  ids = np.arange(math.prod(source_shape)).reshape(source_shape)
  if permutation:
    ids = ids.transpose(_numbers(permutation))
  if source:
    ids = ids.reshape(_numbers(shape))
  return ids


def _read_iota(text: str, partitions: int) -> np.ndarray:
  return _iota(text.partition('=')[2])


MESH = re.compile(r'mesh\[([^\]]*)\](?:,\s*device_ids=\((.*?)\)(?=\s*\{))?\s*\{([^}]*)\}$')


def _read_mesh(text: str, partitions: int) -> np.ndarray:
  """mesh['a'=2,'b'=64], device_ids=([2,64]T(1,0)) {'a'}: along which axes; an axis may be split as in 'a':(2)4."""
  match = MESH.search(text)
  if match is None:
    raise Unreadable(f'a collective along axes of a mesh in an unknown form: {text[:160]}')
  axes, device_ids, along = match.groups()
  names = []
  shape = []
  for name, size in re.findall(r"'([^']+)'=(\d+)", axes):
    names.append(name)
    shape.append(int(size))
  if device_ids:
    ids = _iota(device_ids)
  else:
    ids = np.arange(math.prod(shape))
  communicating = [_split_axis(axis, names, shape, text) for axis in list_of(along)]
  others = [name for name in names if name not in communicating]
  order = map(names.index, others + communicating)
  ids = ids.reshape(shape).transpose(*order)
  size = math.prod(ids.shape[len(others):])
  return ids.reshape(-1, size)


def _split_axis(
    axis: str,
    names: list[str],
    shape: list[int],
    text: str,
) -> str:
  """The name of an axis such as 'a', or of its part such as 'a':(2)4, by which `names` and `shape` are then split."""
  match = re.fullmatch(r"'([^']+)'(?::\((\d+)\)(\d+))?", axis)
  if not match or match[1] not in names:
    raise Unreadable(f'a collective along an axis that its mesh does not have: {text[:160]}')
  name, size_before, size = match.groups()
  if not size:
    return name
  size_before = int(size_before)
  size = int(size)
  part_name = f'{name}:{size_before}'
  place = names.index(name)
  names[place:place + 1] = [f'{name}:outer', part_name, name]
  size_after = shape[place] // size_before // size
  shape[place:place + 1] = [size_before, size, size_after]
  return part_name


# Forms of `replica_groups`, and of the pairs of a collective-permute, and their readers.
FORMS = {r'replica_groups=\{\}': _read_all,
         r'replica_groups=\{\{[\d,\s]+\}(?:,\s*\{[\d,\s]+\})*\}': _read_list,
         r'replica_groups=\[[\d,]+\]<=\[[\d,]+\](?:T\([\d,]+\))?': _read_iota,
         r'replica_groups=mesh\[[^\]]*\](?:,\s*device_ids=\(.*?\))?\s*\{[^}]*\}': _read_mesh,
         r'source_target_pairs=\{\{[\d,\s]+\}(?:,\s*\{[\d,\s]+\})*\}': _read_list}
