"""Work of one instruction of a compiled module: FLOPs of matrix products, bytes of HBM.

Kinds of instructions and custom calls are looked up in tables; one that is in none of them is refused (`Unreadable`).
"""
import dataclasses
import math
import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

from t5like.preflight.hlo import BYTES, Array, Module, Op, Unreadable, part

# Names of values that exist already: no time.
FREE = frozenset(
    'parameter constant get-tuple-element tuple bitcast after-all partition-id replica-id iota opt-barrier '
    'add-dependency domain'.split())
PRODUCTS = ('dot', 'convolution')
# These cost the bytes that they read and write.
BY_BYTES = frozenset(
    'abs add and atan2 bitcast-convert broadcast cbrt ceil clamp compare complex concatenate convert copy cosine '
    'count-leading-zeros divide dynamic-reshape dynamic-slice dynamic-update-slice erf exponential '
    'exponential-minus-one floor gather get-dimension-size imag is-finite log log-plus-one logistic map maximum '
    'minimum multiply negate not or pad popcnt power real reduce reduce-precision reduce-window remainder reshape '
    'reverse rng rng-bit-generator rng-get-and-update-state round-nearest-afz round-nearest-even rsqrt scatter select '
    'select-and-scatter set-dimension-size shift-left shift-right-arithmetic shift-right-logical sign sine slice sort '
    'sqrt stochastic-convert subtract tan tanh topk transpose xor'.split())
# Custom calls of the TPU compiler. Free: they describe a buffer, or their work is in the fusion around them.
FREE_CALLS = frozenset(
    'AllocateBuffer ConcatBitcast AssumeGatherIndicesInBound AsyncCollectiveStart AsyncCollectiveDone SliceId ZeroCrop '
    'PrepareAsyncCallStart PrepareAsyncCallDone GatherScatterIndicesBitpacked Sharding SPMDFullToShardShape '
    'SPMDShardToFullShape'.split())
CALLS_BY_BYTES = frozenset('TopK PartialReduce ApproxTopK RngBitGenerator'.split())
PALLAS = 'tpu_custom_call'
KNOWN_CALLS = FREE_CALLS | CALLS_BY_BYTES
KNOWN = FREE | BY_BYTES | {*PRODUCTS, 'fusion'}
DEEPEST = 4  # how far a value is followed through bitcasts and fusions

# Bytes that a device sends between slices, by those of its array and the number of slices n.
BETWEEN_SLICES: dict[str, Callable[[int], float]] = {
    'ALL_REDUCE': lambda n: 2 * (n - 1) / n,
    'ALL_GATHER': lambda n: n - 1,
    'REDUCE_SCATTER': lambda n: (n - 1) / n,
    'ALL_TO_ALL': lambda n: (n - 1) / n,
    'ONE_TO_ONE': lambda n: 1,
}
Sizes = Sequence[int]  # of dimensions


class Product(NamedTuple):
  """A product of matrices."""
  flops: int
  origin: str  # path of the operation of the model
  dtype: str  # of the wider operand, as HLO writes it


Products = tuple[Product, ...]


def _width(array: Array) -> float:
  """Bytes of one number."""
  return BYTES[array.dtype]


# --- Kinds of instructions ------------------------------------------------------------------------


# Links that a collective uses simultaneously, by how many a ring along each dimension uses, and by the share of a group
# that other devices are.


def _rings(links: int, share: float) -> float:
  return links


def _all_pairs(links: int, share: float) -> float:
  return 4 * links * share


def _one_link(links: int, share: float) -> float:
  return 1


@dataclasses.dataclass(frozen=True)
class Collective:
  """How a kind of collective sends its array."""
  passes: int = 1  # how often the array travels
  sends_result: bool = False  # the array is its result, and not its operands
  keeps_share: bool = True  # each device's own share of the array stays where it is
  ways: Callable[[int, float], float] = _rings
  is_ragged: bool = False  # it sends those rows of the array that there are


COLLECTIVES = {
    'all-gather': Collective(sends_result=True),
    'all-reduce': Collective(passes=2),
    'reduce-scatter': Collective(),
    'all-to-all': Collective(ways=_all_pairs),
    'ragged-all-to-all': Collective(ways=_all_pairs, is_ragged=True),
    'collective-permute': Collective(keeps_share=False, ways=_one_link),
    'collective-broadcast': Collective(keeps_share=False, ways=_one_link),
}


def check_kind(op: Op, computation: str) -> None:
  """Refuses an instruction whose cost is not known; for fusions, `products` checks the instructions inside.

  Raises:
    Unreadable: it names the instruction and the computation that it is in.
  """
  if op.kind == 'custom-call':
    if op.target not in KNOWN_CALLS:
      raise Unreadable(f'the custom call {op.target!r} (%{op.name} in {computation}) has no known cost')
  elif op.kind not in KNOWN:
    raise Unreadable(f'instructions of the kind {op.kind!r} (%{op.name} in {computation}) have no known cost')


class Costs:
  """Costs of the instructions of a Module."""

  def __init__(self, module: Module):
    self.module = module
    self._products: dict[str, Products] = {}

  # --- Products of matrices ---------------------------------------------------------------------

  def products(self, computation: str) -> Products:
    """All products of a fusion's computation."""
    if computation not in self._products:
      products: list[Product] = []
      for op in self.module.ops(computation):
        products.extend(self.products_of(op, computation))
      self._products[computation] = tuple(products)
    return self._products[computation]

  def products_of(self, op: Op, computation: str) -> Products:
    """The products of one instruction."""
    if op.kind in PRODUCTS:
      flops = self.product(op, computation)
      left, right, *_ = self.module.operands(op, computation)
      wider = max(left.arrays[0], right.arrays[0], key=_width)
      return (Product(flops, op.origin, wider.dtype),)
    if op.kind == 'fusion':
      return self.products(op.callee)
    if op.kind not in COLLECTIVES:
      check_kind(op, computation)
    return ()

  def product(self, op: Op, computation: str) -> int:
    """Multiplications and additions of a dot, or of a convolution, which is how TPUs write products of matrices."""
    left, right, *_ = self.module.operands(op, computation)
    left_dims = left.arrays[0].dims
    out_dims = op.arrays[0].dims
    if op.kind == 'dot':
      return 2 * math.prod(out_dims) * _contracted(left_dims, op.attributes)
    right_dims = right.arrays[0].dims
    return convolution(left_dims, right_dims, out_dims, op.attributes)

  # --- Bytes of HBM -----------------------------------------------------------------------------

  def traffic(self, op: Op, computation: str) -> float:
    """Bytes of HBM that an instruction reads and writes; of a slice only the slice counts."""
    if op.kind == 'fusion':
      return self._read_by(op, computation) + self._written_by(op)
    operands = self.module.operands(op, computation)
    if op.kind == 'dynamic-slice':
      return 2 * op.hbm
    if op.kind == 'dynamic-update-slice':
      return 2 * operands[1].hbm
    return op.hbm + sum(operand.hbm for operand in operands)

  def _read_by(self, fusion: Op, computation: str) -> float:
    """Bytes that a fusion reads."""
    parameters = self.module.parameters(fusion.callee)
    total = 0
    for number, operand in enumerate(self.module.operands(fusion, computation)):
      size = operand.hbm
      if size and number in parameters:
        sliced = self._sliced(fusion.callee, parameters[number])
        size = _smaller(size, sliced)
      total += size
    return total

  def _sliced(
      self,
      computation: str,
      name: str,
      depth: int = 0,
  ) -> float | None:
    """Bytes of a fusion's parameter that are read when only slices of it are; None when all of it is."""
    total = 0
    is_used = False
    for user in self.module.ops(computation):
      if name not in user.args or user.kind in FREE - {'bitcast'}:
        continue
      is_used = True
      size = self._sliced_by(user, computation, name, depth)
      if size is None:
        return None
      total += size
    if not is_used:
      return None
    return total

  def _sliced_by(
      self,
      user: Op,
      computation: str,
      name: str,
      depth: int,
  ) -> float | None:
    """Bytes of a value that one instruction reads; None when all of them."""
    is_first = user.args[0] == name
    if user.kind in ('dynamic-slice', 'slice'):
      return user.bytes
    if user.kind == 'gather' and is_first:
      return user.bytes
    if user.kind == 'dynamic-update-slice' and is_first:
      return 0
    if depth >= DEEPEST:
      return None
    if user.kind in ('bitcast', 'reshape'):
      return self._sliced(computation, user.name, depth + 1)
    if user.kind == 'fusion':
      number = user.args.index(name)
      parameter = self.module.parameters(user.callee)[number]
      return self._sliced(user.callee, parameter, depth + 1)
    return None

  def _written_by(self, fusion: Op) -> float:
    """Bytes that a fusion writes."""
    root = self.module.root(fusion.callee)
    if root.kind != 'tuple':
      updated = self._updated(root, fusion.callee)
      return _smaller(fusion.hbm, updated)
    total = 0
    results = self.module.operands(root, fusion.callee)
    for array, result in zip(fusion.arrays, results):
      if not array.in_hbm:
        continue
      updated = self._updated(result, fusion.callee)
      if updated is None:
        total += array.bytes
      else:
        total += updated
    return total

  def _updated(
      self,
      op: Op,
      computation: str,
      depth: int = 0,
  ) -> float | None:
    """Bytes that are written of a result that is updated in place; None when it is written whole."""
    if op.kind == 'dynamic-update-slice':
      update = self.module.operand(computation, op.args[1])
      return update.bytes
    if op.kind in ('bitcast', 'copy') and depth < DEEPEST:
      source = self.module.operand(computation, op.args[0])
      return self._updated(source, computation, depth + 1)
    return None


def _smaller(size: float, part: float | None) -> float:
  """The smaller of a size and of the size of a part of it; None: the part is all of it."""
  if part is None:
    return size
  return min(size, part)


# --- Dots and convolutions ------------------------------------------------------------------------


def _contracted(dims: Sizes, attributes: str) -> int:
  """Elements of the left operand of a dot that are summed over."""
  axes = re.search(r'lhs_contracting_dims=\{([0-9,]*)\}', attributes)
  if not axes:
    return 1
  size = 1
  for axis in re.findall(r'\d+', axes[1]):
    size *= dims[int(axis)]
  return size


def convolution(
    left: Sizes,
    right: Sizes,
    out: Sizes,
    attributes: str,
) -> int:
  """Multiplications and additions of a convolution.

  Dimensions that the labels call numbers are moved over each other: of each, the pairs of an output and an element of
  the kernel that meet a real element of the input count (not padding, nor the holes that dilation makes).

  Args:
    left: sizes of the input.
    right: sizes of the kernel.
    out: sizes of the output.
    attributes: of the instruction, with labels of all these dimensions.
  """
  labels = re.search(r'dim_labels=([^_,\s]+)_([^-,\s]+)->([^,\s]+)', attributes)
  if not labels:
    raise Unreadable(f'a convolution without labels of its dimensions: {attributes[:120]}')
  left_labels, right_labels, out_labels = labels.groups()
  left_sizes = dict(zip(left_labels, left))
  right_sizes = dict(zip(right_labels, right))
  out_sizes = dict(zip(out_labels, out))
  window = _window(attributes)
  pairs = 1
  for label in filter(str.isdecimal, left_sizes):
    along_label = _window_along(window, int(label))
    pairs *= _pairs(
        left_sizes[label],
        right_sizes[label],
        out_sizes[label],
        **along_label,
    )
  rows = _in_group(left_sizes['b'], 'batch', attributes)
  features = _in_group(left_sizes['f'], 'feature', attributes)
  return 2 * pairs * rows * features * out_sizes['f']


def _in_group(size: int, kind: str, attributes: str) -> int:
  """Of this number of rows or features those that are multiplied with each other."""
  count = re.search(rf'{kind}_group_count=(\d+)', attributes)
  if not count:
    return size
  return size // int(count[1])


# Arguments of `_pairs` by their names in HLO.
WINDOW = {'stride': 'stride', 'lhs_dilate': 'base', 'rhs_dilate': 'spread', 'pad': 'pad'}


def _window(attributes: str) -> dict[str, list[int]]:
  """{argument of `_pairs`: values along the moved dimensions}, of `window={size=1x16 pad=0_0x15_15}`."""
  text = re.search(r'window=\{([^}]*)\}', attributes)
  if not text:
    return {}
  window = {}
  for field in text[1].split():
    key, _, values = field.partition('=')
    if key not in WINDOW:
      continue
    argument = WINDOW[key]
    window[argument] = []
    for value in values.split('x'):
      before, *_ = value.split('_')  # of padding before and after a dimension, such as 15_15
      window[argument].append(int(before))
  return window


def _window_along(window: dict[str, list[int]], dimension: int) -> dict[str, int]:
  """{argument of `_pairs`: value} of one moved dimension."""
  along = {}
  for argument, values in window.items():
    if dimension < len(values):
      along[argument] = values[dimension]
  return along


def _pairs(
    size: int,
    kernel: int,
    outputs: int,
    stride: int = 1,
    pad: int = 0,
    base: int = 1,
    spread: int = 1,
) -> int:
  """How many pairs of an output and an element of the kernel meet an element of the input, along one dimension.

  Args:
    size: elements of the input.
    kernel: elements of the kernel.
    outputs: elements of the output.
    stride: between outputs.
    pad: before the first element.
    base: one more than the holes between elements of the input.
    spread: one more than the holes between elements of the kernel.
  """
  if kernel == 1 and stride == base and pad == 0:
    return min(size, outputs)
  if size == 1 and stride == 1:  # each output meets the one element, or padding
    return sum(0 <= pad - element * spread < outputs for element in range(kernel))
  count = 0
  for element in range(kernel):
    for output in range(outputs):
      place = output * stride - pad + element * spread
      is_hole = place % base != 0
      count += not is_hole and 0 <= place // base < size
  return count


# --- Collectives ----------------------------------------------------------------------------------


class Transfer(NamedTuple):
  """The cost of a collective on a device."""
  seconds: float  # over the links of a torus
  link_bytes: float  # sent over them
  slice_bytes: float  # sent to other slices


def result_bytes(op: Op) -> float:
  """Of the result of a collective; asynchronous all-gathers and permutes have their operands before it."""
  result_type = op.type
  if op.kind in ('all-gather-start', 'collective-permute-start') and op.type.startswith('('):
    result_type = part(op.type, 1, op.name)
  return op._replace(type=result_type).bytes
