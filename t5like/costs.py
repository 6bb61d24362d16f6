"""What one instruction of a compiled module computes and moves: FLOPs of matrix products, bytes of HBM.

Kinds of instructions and custom calls are looked up in tables; one that is in none of them is refused (`Unreadable`).
"""
import itertools
import math
import re

from t5like.hlo import Module, Unreadable

# Names for what is there already: no time.
FREE = frozenset(
    'parameter constant get-tuple-element tuple bitcast after-all partition-id replica-id iota opt-barrier '
    'add-dependency domain'.split())
PRODUCTS = ('dot', 'convolution')
COLLECTIVES = ('all-gather', 'all-reduce', 'reduce-scatter', 'all-to-all', 'collective-permute', 'ragged-all-to-all',
               'collective-broadcast')
# What costs the bytes that it reads and writes.
BY_BYTES = frozenset(
    'abs add and atan2 bitcast-convert broadcast cbrt ceil clamp compare complex concatenate convert copy cosine '
    'count-leading-zeros divide dynamic-reshape dynamic-slice dynamic-update-slice erf exponential '
    'exponential-minus-one floor gather get-dimension-size imag is-finite log log-plus-one logistic map maximum '
    'minimum multiply negate not or pad popcnt power real reduce reduce-precision reduce-window remainder reshape '
    'reverse rng rng-bit-generator rng-get-and-update-state round-nearest-afz round-nearest-even rsqrt scatter select '
    'select-and-scatter set-dimension-size shift-left shift-right-arithmetic shift-right-logical sign sine slice sort '
    'sqrt stochastic-convert subtract tan tanh topk transpose xor'.split())
# Custom calls of the TPU compiler. Free: they say something of a buffer, or what they do is in the fusion around them.
FREE_CALLS = frozenset(
    'AllocateBuffer ConcatBitcast AssumeGatherIndicesInBound AsyncCollectiveStart AsyncCollectiveDone SliceId ZeroCrop '
    'PrepareAsyncCallStart PrepareAsyncCallDone GatherScatterIndicesBitpacked Sharding SPMDFullToShardShape '
    'SPMDShardToFullShape'.split())
CALLS_BY_BYTES = frozenset('TopK PartialReduce ApproxTopK RngBitGenerator'.split())
PALLAS = 'tpu_custom_call'


def check_kind(op, computation):
  """Unreadable for an instruction whose cost is not known; for fusions, `flops` checks what is inside."""
  if op.kind == 'custom-call':
    if op.target not in FREE_CALLS | CALLS_BY_BYTES:
      raise Unreadable(f'the custom call {op.target!r} (%{op.name} in {computation}) has no known cost')
  elif op.kind not in BY_BYTES and op.kind not in PRODUCTS and op.kind not in FREE and op.kind != 'fusion':
    raise Unreadable(f'instructions of the kind {op.kind!r} (%{op.name} in {computation}) have no known cost')


class Costs:
  """Costs of the instructions of a Module."""

  def __init__(self, module: Module):
    self.module, self._products = module, {}

  # --- Products of matrices ---------------------------------------------------------------------

  def products(self, computation: str) -> tuple:
    """((FLOPs, path of the operation of the model), ..) of all products of a fusion's computation."""
    if computation not in self._products:
      result = []
      for op in self.module.ops(computation):
        result += self.products_of(op, computation)
      self._products[computation] = tuple(result)
    return self._products[computation]

  def products_of(self, op, computation: str) -> list:
    """Likewise of one instruction."""
    if op.kind in PRODUCTS:
      return [(self.product(op, computation), op.origin)]
    if op.kind == 'fusion':
      return list(self.products(op.callee))
    if op.kind not in COLLECTIVES:
      check_kind(op, computation)
    return []

  def product(self, op, computation: str) -> int:
    """Multiplications and additions of a dot, or of a convolution, which is how TPUs write products of matrices."""
    left, right = (operand.arrays[0].dims for operand in self.module.operands(op, computation)[:2])
    out = op.arrays[0].dims
    if op.kind == 'dot':
      axes = re.search(r'lhs_contracting_dims=\{([0-9,]*)\}', op.attributes)
      summed = [left[int(axis)] for axis in axes[1].split(',') if axis] if axes else []
      return 2 * math.prod(out) * math.prod(summed)
    return convolution(left, right, out, op.attributes)

  # --- Bytes of HBM -----------------------------------------------------------------------------

  def traffic(self, op, computation: str) -> float:
    """Bytes of HBM that an instruction reads and writes; of a slice only the slice counts."""
    operands = self.module.operands(op, computation)
    if op.kind == 'dynamic-slice':
      return 2 * op.hbm
    if op.kind == 'dynamic-update-slice':
      return 2 * operands[1].hbm
    if op.kind != 'fusion':
      return op.hbm + sum(operand.hbm for operand in operands)
    parameters, total = self.module.parameters(op.callee), 0
    for i, operand in enumerate(operands):
      full = operand.hbm
      part = self._read(op.callee, parameters[i]) if full and i in parameters else None
      total += full if part is None else min(full, part)
    root = next(o for o in self.module.ops(op.callee) if o.is_root)
    return total + self._written(op, root, op.callee)

  def _read(self, computation, name, depth=0):
    """Bytes of a fusion's parameter that are read when only slices of it are; None when all of it is."""
    users = [o for o in self.module.ops(computation) if name in o.args and o.kind not in FREE - {'bitcast'}]
    total = 0
    for user in users:
      if user.kind in ('bitcast', 'reshape') and depth < 4:
        part = self._read(computation, user.name, depth + 1)
      elif user.kind in ('dynamic-slice', 'slice') or user.kind == 'gather' and user.args[0] == name:
        part = sum(a.bytes for a in user.arrays)
      elif user.kind == 'dynamic-update-slice' and user.args[0] == name:
        part = 0
      elif user.kind == 'fusion' and depth < 4:
        inside = self.module.parameters(user.callee)
        part = self._read(user.callee, inside[user.args.index(name)], depth + 1)
      else:
        part = None
      if part is None:
        return None
      total += part
    return total if users else None

  def _written(self, op, root, computation):
    if root.kind != 'tuple':
      part = self._update(root, computation)
      return op.hbm if part is None else min(op.hbm, part)
    total = 0
    for out, result in zip(op.arrays, self.module.operands(root, computation)):
      part = self._update(result, computation)
      if out.in_hbm:
        total += out.bytes if part is None else part
    return total

  def _update(self, op, computation, depth=0):
    """Bytes that a result which is updated in place gets anew; None when it is written whole."""
    if op.kind == 'dynamic-update-slice':
      return sum(a.bytes for a in self.module.operand(computation, op.args[1]).arrays)
    if op.kind in ('bitcast', 'copy') and depth < 4:
      return self._update(self.module.operand(computation, op.args[0]), computation, depth + 1)
    return None



def convolution(left: tuple, right: tuple, out: tuple, attributes: str) -> int:
  """Multiplications and additions of a convolution of arrays of these sizes.

  Dimensions that the labels call numbers are moved over each other: of each, the pairs of an output and an element of
  the kernel that meet a real element of the input count (not padding, nor the holes that dilation makes).
  """
  labels = re.search(r'dim_labels=([^_,\s]+)_([^-,\s]+)->([^,\s]+)', attributes)
  if not labels:
    raise Unreadable(f'a convolution without labels of its dimensions: {attributes[:120]}')
  of_left, of_right, of_out = (dict(zip(names, sizes)) for names, sizes in zip(labels.groups(), (left, right, out)))
  window, moved = _window(attributes), [label for label in of_left if label.isdecimal()]
  pairs = 1
  for label in moved:
    at = int(label)
    of_axis = {key: values[at] for key, values in window.items() if at < len(values)}
    pairs *= _pairs(of_left[label], of_right[label], of_out[label], **of_axis)
  rows, features = (_in_group(of_left[label], kind, attributes) for label, kind in (('b', 'batch'), ('f', 'feature')))
  return 2 * pairs * rows * features * of_out['f']


def _in_group(size, kind, attributes):
  """Of so many rows or features those that are multiplied with each other."""
  count = re.search(rf'{kind}_group_count=(\d+)', attributes)
  return size // int(count[1]) if count else size


def _window(attributes):
  """{what: values along the moved dimensions} of `window={size=1x16 pad=0_0x15_15 rhs_reversal=0x1}`."""
  text = re.search(r'window=\{([^}]*)\}', attributes)
  fields = dict(field.split('=') for field in text[1].split()) if text else {}
  names = dict(stride='stride', lhs_dilate='base', rhs_dilate='spread')
  result = {names[key]: list(map(int, text.split('x'))) for key, text in fields.items() if key in names}
  if 'pad' in fields:
    result['pad'] = [int(pad.split('_')[0]) for pad in fields['pad'].split('x')]
  return result


def _pairs(size, kernel, outputs, stride=1, pad=0, base=1, spread=1):
  """How many pairs of an output and an element of the kernel meet one of `size` elements along one dimension.

  stride: between outputs; pad: before the first element; base: one more than the holes between elements; spread:
  likewise of the kernel.
  """
  if kernel == 1 and stride == base and pad == 0:
    return min(size, outputs)
  if size == 1 and stride == 1:  # each output meets the one element, or padding
    return sum(0 <= pad - k * spread < outputs for k in range(kernel))
  count = 0
  for k, out in itertools.product(range(kernel), range(outputs)):
    at = out * stride - pad + k * spread
    count += at >= 0 and at % base == 0 and at // base < size
  return count
