"""Predicts the time of a train step from the schedule that the TPU compiler has made of it.

The text of a scheduled module lists instructions in the order in which a core runs them. Walking it with
three clocks (the core, its copies to and from HBM, the links between chips) gives a time: products of
matrices by their FLOPs, all else by the bytes it moves, collectives by bytes over links, and what the
core waits for when an asynchronous one is not done. Kernels (Pallas) tell nothing of themselves: their
FLOPs are what the caller says. Nothing here is fitted to any measurement.
"""
import math
import re

from t5like.hlo import group_size, parse

MXU = 0.93  # share of peak FLOPs that products of large matrices reach
PALLAS = 0.5  # share that attention kernels are taken to reach
LATENCY = 1e-6  # seconds per collective and dimension of the torus
COLLECTIVES = ('all-gather', 'all-reduce', 'reduce-scatter', 'all-to-all', 'collective-permute', 'ragged-all-to-all')
FREE = set('parameter constant get-tuple-element tuple bitcast after-all partition-id replica-id iota opt-barrier '
           'add-dependency'.split())


class Times(dict):
  """Seconds by kind: matrix, memory, kernel, exposed (waiting for collectives), copies (waiting for them)."""

  def add(self, kind, seconds, times=1):
    self[kind] = self.get(kind, 0.0) + seconds * times


class Schedule:
  """The schedule of a module on a Topology (tpu.py). `kernel_flops(op, arrays of its operands)`: of a Pallas call."""

  def __init__(self, text, topology, kernel_flops=lambda op, operands: 0):
    self.computations, self.entry = parse(text)
    self.by_name = {c: {op.name: op for op in ops} for c, ops in self.computations.items()}
    self.generation, self.kernel_flops = topology.generation, kernel_flops
    partitions = re.search(r'num_partitions=(\d+)', text)
    self.partitions = int(partitions[1]) if partitions else 1
    self.rings = 2 if all(topology.wrap[:topology.generation.dims]) else 1
    self._flops, self._walked = {}, {}

  def predict(self):
    """(seconds, Times, [(seconds, name, what)] of collectives that the core waits for, FLOPs)."""
    seconds, times, waits = self._walk(self.entry)
    return seconds, times, sorted(waits, reverse=True), times.get('flops', 0)

  # --- Walking in the order of the schedule -----------------------------------------------------

  def _walk(self, name):
    if name not in self._walked:
      self._walked[name] = _Walk(self, name).run()
    return self._walked[name]

  def trips(self, op):
    """How often a loop runs: the constant in its condition."""
    condition = re.search(r'condition=%?([^\s,]+)', op.attributes)[1]
    found, seen = [1], [condition]
    for computation in seen:
      for inside in self.computations.get(computation, []):
        if inside.kind == 'constant' and re.match(r'[su]32\[\]', inside.type) and inside.args[0].isdecimal():
          found.append(int(inside.args[0]))
        if inside.callee and len(seen) < 4:
          seen.append(inside.callee)
    return max(found)

  def collective_in(self, name):
    """(op, its computation) of the first collective in a computation, or None."""
    for op in self.computations.get(name, []):
      if op.kind in COLLECTIVES:
        return op, name
      if op.kind in ('fusion', 'call', 'async-start', 'custom-call') and op.callee:
        if found := self.collective_in(op.callee):
          return found
    return None

  # --- What one instruction costs ---------------------------------------------------------------

  def collective(self, op, computation, kind=None):
    """Seconds of a collective over the links of a torus."""
    kind = kind or op.kind.removesuffix('-start')
    g = self.generation
    group = group_size(op.attributes) or self.partitions
    # A group that is not the whole slice lies along one dimension, or two of three if it is large.
    dims = g.dims if group >= self.partitions else max(1, g.dims - 1 if group ** 2 > self.partitions else 1)
    speed = g.link * dims * self.rings
    out = sum(a.bytes for a in op.arrays)
    sent = sum(a.bytes for name in op.args if name in self.by_name[computation]
               for a in self.by_name[computation][name].arrays)
    share = (group - 1) / group
    seconds = {'all-gather': out * share / speed, 'all-reduce': 2 * sent * share / speed,
               'reduce-scatter': sent * share / speed, 'all-to-all': sent / 4 / speed}.get(kind, sent / g.link)
    return seconds + LATENCY * dims

  def flops(self, computation):
    """Multiplications and additions of matrix products in a computation."""
    if computation not in self._flops:
      self._flops[computation] = sum(
          self.product(op, computation) if op.kind in ('dot', 'convolution') else
          self.flops(op.callee) if op.kind == 'fusion' and op.callee else 0
          for op in self.computations.get(computation, []))
    return self._flops[computation]

  def product(self, op, computation):
    """Of one dot, or of a convolution, which is how TPUs write products of matrices."""
    operands = [self.by_name[computation].get(a) for a in op.args[:2]]
    if None in operands:
      return 0
    left, right = (o.arrays[0].dims for o in operands)
    out = math.prod(op.arrays[0].dims)
    if op.kind == 'dot':
      axes = re.search(r'lhs_contracting_dims=\{([0-9,]*)\}', op.attributes)
      return 2 * out * math.prod(left[int(a)] for a in axes[1].split(',') if a) if axes else 2 * out
    labels = re.search(r'dim_labels=[^_]+_([^-]+)->', op.attributes)[1]
    summed = math.prod(d for label, d in zip(labels, right) if label == 'i')
    # Other dimensions of the kernel are summed over, or are like rows of a batch: the sizes tell which.
    candidates = {summed}
    for label, d in zip(labels, right):
      if label.isdecimal():
        candidates |= {c * d for c in candidates}
    likely = math.sqrt(math.prod(left) * math.prod(right) / max(1, out))
    best = min(candidates, key=lambda c: abs(c - likely))
    return 2 * out * (best if abs(best - likely) < 0.02 * likely else summed)

  def traffic(self, op, computation):
    """Bytes of HBM that an instruction reads and writes; of a slice only the slice counts."""
    source = lambda name: self.by_name[computation].get(name)
    if op.kind == 'dynamic-slice':
      return 2 * op.hbm
    if op.kind == 'dynamic-update-slice':
      update = source(op.args[1])
      return 2 * update.hbm if update else op.hbm
    body = self.computations.get(op.callee) if op.kind == 'fusion' else None
    if not body:
      return op.hbm + sum(source(a).hbm for a in op.args if source(a))
    parameters = {int(p.args[0]): p.name for p in body if p.kind == 'parameter'}
    total = 0
    for i, name in enumerate(op.args):
      full = source(name).hbm if source(name) else 0
      part = self._read(op.callee, parameters[i]) if full and i in parameters else None
      total += full if part is None else min(full, part)
    root = next((o for o in body if o.is_root), None)
    return total + (self._written(op, root, op.callee) if root else op.hbm)

  def _read(self, computation, name, depth=0):
    """Bytes of a fusion's parameter that are read when only slices of it are; None when all of it is."""
    total, users = 0, [o for o in self.computations[computation] if name in o.args and o.kind not in FREE - {'bitcast'}]
    for user in users:
      if user.kind in ('bitcast', 'reshape') and depth < 4:
        part = self._read(computation, user.name, depth + 1)
      elif user.kind in ('dynamic-slice', 'slice') or user.kind == 'gather' and user.args[0] == name:
        part = sum(a.bytes for a in user.arrays)
      elif user.kind == 'dynamic-update-slice' and user.args[0] == name:
        part = 0
      elif user.kind == 'fusion' and user.callee in self.computations and depth < 4:
        inside = {int(p.args[0]): p.name for p in self.computations[user.callee] if p.kind == 'parameter'}
        part = self._read(user.callee, inside.get(user.args.index(name), ''), depth + 1)
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
    for out, name in zip(op.arrays, root.args):
      part = self._update(self.by_name[computation].get(name), computation)
      total += 0 if not out.in_hbm else out.bytes if part is None else part
    return total

  def _update(self, op, computation, depth=0):
    """Bytes that a result which is updated in place gets anew; None when it is written whole."""
    if op is None:
      return None
    if op.kind == 'dynamic-update-slice':
      update = self.by_name[computation].get(op.args[1])
      return sum(a.bytes for a in update.arrays) if update else None
    if op.kind in ('bitcast', 'copy') and depth < 4:
      return self._update(self.by_name[computation].get(op.args[0]), computation, depth + 1)
    return None


class _Walk:
  """One computation, run through by the three clocks."""

  def __init__(self, schedule, name):
    self.s, self.name, self.ops = schedule, name, schedule.computations[name]
    self.now = self.links_free = self.copies_free = 0.0
    self.pending, self.queue = {}, []  # when what was started will be done; likewise, of fusions
    self.times, self.waits = Times(), []

  def run(self):
    for op in self.ops:
      if op.kind not in FREE and not (self._calls(op) or self._copies(op) or self._collective(op) or
                                      self._kernel(op) or self._fused_collective(op)):
        self._compute(op)
    return self.now, self.times, self.waits

  def _spend(self, kind, seconds):
    self.now += seconds
    self.times.add(kind, seconds)

  def _wait(self, until, kind, op):
    if until > self.now:
      if kind == 'exposed':
        self.waits.append((until - self.now, op.name, _described(op)))
      self._spend(kind, until - self.now)

  def _calls(self, op):
    if op.kind not in ('while', 'call'):
      return op.kind == 'conditional'  # those of a train step are rare and cheap
    n = self.s.trips(op) if op.kind == 'while' else 1
    body = re.search(r'body=%?([^\s,]+)', op.attributes)[1] if op.kind == 'while' else op.callee
    seconds, times, waits = self.s._walk(body)
    self.now += n * seconds
    for kind, value in times.items():
      self.times.add(kind, value, n)
    self.waits += [(n * t, name, f'{what} x {n}') for t, name, what in waits]
    return True

  def _copies(self, op):
    """Copies that run beside the core."""
    is_copy = op.kind == 'async-start' and not self.s.collective_in(op.callee)
    if op.kind in ('copy-start', 'slice-start', 'dynamic-slice-start') or is_copy:
      size = min((a.bytes for a in op.arrays[:2]), default=0)
      self.copies_free = max(self.now, self.copies_free) + size / self.s.generation.bandwidth
      self.pending[op.name] = (self.copies_free, 'copies')
      return True
    if op.kind in ('copy-done', 'slice-done', 'dynamic-slice-done'):
      self._wait(self.pending.get(op.args[0], (0, ''))[0], 'copies', op)
      return True
    return False

  def _collective(self, op):
    base = op.kind.removesuffix('-start').removesuffix('-done')
    if base not in COLLECTIVES and base != 'async':
      return False
    if op.kind.endswith('-done'):
      until, kind = self.pending.get(op.args[0] if op.args else '', (0, 'exposed'))
      self._wait(until, kind, op)
    elif op.kind.endswith('-start'):
      inner = self.s.collective_in(op.callee) if base == 'async' else (op, self.name)
      self._start(op, self.s.collective(*inner, base if base != 'async' else None))
    else:
      self._alone(op, self.s.collective(op, self.name))
    return True

  def _start(self, op, seconds):
    self.links_free = max(self.now, self.links_free) + seconds
    self.times.add('links', seconds)
    self.pending[op.name] = (self.links_free, 'exposed')

  def _alone(self, op, seconds):
    """A collective that the core waits for from beginning to end."""
    self.times.add('links', seconds)
    self._wait(max(self.now, self.links_free) + seconds, 'exposed', op)
    self.times.add('synchronous', seconds)
    self.links_free = self.now

  def _kernel(self, op):
    if op.kind != 'custom-call':
      return False
    if 'tpu_custom_call' in op.attributes:
      operands = [self.s.by_name[self.name][a].arrays for a in op.args if a in self.s.by_name[self.name]]
      flops = self.s.kernel_flops(op, [a for arrays_of in operands for a in arrays_of])
      g = self.s.generation
      self.times.add('flops', flops)
      self._spend('kernel', max(flops / g.flops / PALLAS, self.s.traffic(op, self.name) / g.bandwidth))
    return True

  def _fused_collective(self, op):
    """Fusions that start, finish, or are a collective."""
    inner = self.s.collective_in(op.callee) if op.callee else None
    if not inner:
      return False
    targets = ''.join(o.attributes for o in self.s.computations[op.callee] if o.kind == 'custom-call')
    seconds = self.s.collective(*inner)
    if 'AsyncCollectiveStart' in targets:
      self.links_free = max(self.now, self.links_free) + seconds
      self.times.add('links', seconds)
      self.queue.append(self.links_free)
      return False  # there is work in it, too
    if 'AsyncCollectiveDone' in targets:
      if self.queue:
        self._wait(self.queue.pop(0), 'exposed', op)
      return True
    if 'all-reduce-scatter' in op.callee or inner[0].kind != 'all-gather' and 'async_collective' not in op.callee:
      # All-reduce, then each its slice: as a reduce-scatter costs half.
      self._alone(op, seconds / 2 if inner[0].kind == 'all-reduce' else seconds)
      return True
    return False

  def _compute(self, op):
    g = self.s.generation
    flops = self.s.flops(op.callee) if op.callee else (
        self.s.product(op, self.name) if op.kind in ('dot', 'convolution') else 0)
    memory = self.s.traffic(op, self.name) / g.bandwidth
    matrix = flops / g.flops / MXU
    self.times.add('flops', flops)
    self._spend('matrix' if matrix > memory / 2 else 'memory', max(matrix, memory))


def _described(op):
  """What a collective is about: its kind, its arrays, and the operation of the model that asked for it."""
  asked = re.search(r'op_name="([^"]+)"', op.attributes)
  shapes = re.sub(r'\{[^}]*\}', '', op.type)
  return f'{op.kind} {shapes[:60]}' + (f' ({asked[1].rpartition("jit(train_step)/")[2][-60:]})' if asked else '')
