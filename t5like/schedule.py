"""Predicts the time of a train step from the schedule that the TPU compiler has made of it.

The text of a scheduled module lists instructions in the order in which a core runs them. Walking it with four clocks
(the core, its copies to and from HBM, the links between chips, the network between slices) gives a time: products of
matrices by their FLOPs, all else by the bytes it moves, collectives by bytes over links, and what the core waits for
when an asynchronous one is not done. What kernels (Pallas) compute is what `kernels` says of them. Nothing here is
fitted to any measurement, and what is not understood is refused (`hlo.Unreadable`).
"""
import dataclasses
import re
from collections.abc import Callable

import numpy as np

from t5like.costs import COLLECTIVES, FREE, FREE_CALLS, PALLAS, Costs, check_kind
from t5like.hlo import Module, Op, Unreadable, groups, part
from t5like.tpu import Topology

MXU = 0.93  # share of peak FLOPs that products of large matrices reach
# Share that attention kernels reach on the blocks that they visit. It is the half of peak on the half of the square
# that predictions were compared with published runs by: there 10 of 16 blocks were visited.
KERNELS = 0.625
LATENCY = 1e-6  # seconds per collective and dimension of the torus
# Bytes that a device sends between slices, by those of its array and the number of slices n.
BETWEEN_SLICES = {'ALL_REDUCE': lambda n: 2 * (n - 1) / n, 'ALL_GATHER': lambda n: n - 1,
                  'REDUCE_SCATTER': lambda n: (n - 1) / n, 'ALL_TO_ALL': lambda n: (n - 1) / n,
                  'ONE_TO_ONE': lambda n: 1}
COPIES = ('copy', 'slice', 'dynamic-slice')  # asynchronous, between HBM and memory on the chip
OPTIMIZER = '/optimizer/'  # in the path of operations that are not of the model


class Sums(dict):
  """Sums by name."""

  def add(self, kind, value, times=1):
    self[kind] = self.get(kind, 0.0) + value * times


@dataclasses.dataclass(frozen=True)
class Prediction:
  """Of one step: its seconds in all and by kind (matrix, memory, kernel; exposed: waiting for collectives, copies:
  waiting for these, slices: waiting for other slices; links, network: how long these are busy; synchronous: of
  collectives that nothing runs beside), `counts` (flops: in all, optimizer_flops and kernel_flops of these; link_bytes
  and slice_bytes: what a device sends to others of its slice, and to other slices), and `waits`, the longest first:
  (seconds, name, what) of collectives that the core waits for."""
  seconds: float
  times: dict
  counts: dict
  waits: list


class Schedule:
  """The schedule of a module on a Topology (tpu.py).

  kernels: FLOPs of a Pallas call, or Unreadable where its kernel is not known. share: of peak that they reach.
  """

  def __init__(self, text: str, topology: Topology, kernels: Callable[[Op], float] | None = None,
               share: float = KERNELS):
    self.module = Module(text)
    self.costs = Costs(self.module)
    self.topology, self.generation = topology, topology.generation
    self.kernels, self.share = kernels or _no_kernels, share
    self.rings = 2 if all(topology.wrap[:topology.generation.dims]) else 1
    # A program is that of one slice, which sends to others by itself, or else that of all.
    self.per_slice = topology.devices // topology.slices
    self.slice_of = np.arange(self.module.partitions) // self.per_slice
    self._walked = {}

  def predict(self) -> Prediction:
    """Of the whole module."""
    seconds, times, counts, waits = self.walk(self.module.entry)
    return Prediction(seconds, dict(times), dict(counts), sorted(waits, reverse=True))

  def walk(self, name):
    """(seconds, times, counts, waits) of one run of a computation."""
    if name not in self._walked:
      self._walked[name] = _Walk(self, name).run()
    return self._walked[name]

  def trips(self, op) -> int:
    """How often a loop runs: the constant in its condition."""
    condition, _ = self.module.loop(op)
    limits, seen = [], [condition]
    for computation in seen:
      for inside in self.module.ops(computation):
        if inside.kind == 'constant' and re.match(r'[su](32|64)\[\]', inside.type) and inside.args[0].isdecimal():
          limits.append(int(inside.args[0]))
        if inside.callee and len(seen) < 4:
          seen.append(inside.callee)
    if not limits:
      raise Unreadable(f'the loop %{op.name} does not say how often it runs')
    return max(limits)

  def collectives_in(self, name) -> list:
    """[(op, its computation)] of the collectives in a computation and what it calls."""
    result = []
    for op in self.module.ops(name):
      if op.kind in COLLECTIVES:
        result.append((op, name))
      elif op.kind in ('fusion', 'call', 'async-start', 'custom-call') and op.callee:
        result += self.collectives_in(op.callee)
    return result

  def collective(self, op, computation, kind=None):
    """(seconds over the links of a torus, bytes sent over them, bytes sent to other slices) of a collective."""
    kind = kind or op.kind
    group = groups(op.attributes, self.module.partitions)
    if kind == 'collective-permute':  # its groups are pairs
      group = dataclasses.replace(group, ids=group.ids[:, :2])
    slices = group.slices(self.slice_of)
    size, g = max(1, group.size // slices), self.generation
    out = sum(a.bytes for a in Op(*op)._replace(type=_result(op, kind)).arrays)
    sent = sum(a.bytes for operand in self.module.operands(op, computation) for a in operand.arrays)
    share = (size - 1) / size
    moved = {'all-gather': out * share, 'all-reduce': 2 * sent * share, 'reduce-scatter': sent * share,
             'all-to-all': sent * share, 'ragged-all-to-all': sent * share, 'collective-permute': sent,
             'collective-broadcast': sent}[kind]
    # A group that is not the whole slice lies along one dimension, or two of three if it is large.
    partial = max(1, g.dims - 1 if size ** 2 > self.per_slice else 1)
    dims = g.dims if size >= self.per_slice else partial
    ways = {'all-to-all': 4 * dims * self.rings * share, 'ragged-all-to-all': 4 * dims * self.rings * share,
            'collective-permute': 1, 'collective-broadcast': 1}.get(kind, dims * self.rings)
    between = {'all-gather': out, 'all-reduce': 2 * sent}.get(kind, sent) / size * (slices - 1) / slices
    return (moved / (g.link * ways) if moved else 0.0) + LATENCY * dims, moved, between


def _no_kernels(op):
  raise Unreadable(f'the kernel %{op.name} is not known')


def _result(op, kind):
  """The type of what a collective gives; asynchronous all-gathers and permutes have their operands before it."""
  starts = op.kind in ('all-gather-start', 'collective-permute-start')
  return part(op.type, 1, op.name) if starts and op.type.startswith('(') else op.type


class _Walk:
  """One computation, run through by the clocks."""

  def __init__(self, schedule, name):
    self.s, self.name, self.ops = schedule, name, schedule.module.ops(name)
    self.now = self.links_free = self.copies_free = self.network_free = 0.0
    self.pending, self.queue = {}, []  # (when what was started will be done, kind of waiting); likewise, of fusions
    self.without_operands = {}  # what was started and waits for these
    self.transfers = {}  # when those between slices will be done, by their name
    self.times, self.counts, self.waits = Sums(), Sums(), []

  def run(self):
    steps = (self._calls, self._copies, self._between_slices, self._collective, self._custom_call,
             self._fused_collective)
    for op in self.ops:
      if op.kind not in FREE and not any(step(op) for step in steps):
        self._compute(op)
    return self.now, self.times, self.counts, self.waits

  def _spend(self, kind, seconds):
    self.now += seconds
    self.times.add(kind, seconds)

  def _wait(self, until, kind, op):
    if until > self.now:
      if kind in ('exposed', 'slices'):
        self.waits.append((until - self.now, op.name, _described(op)))
      self._spend(kind, until - self.now)

  # --- What runs other computations -------------------------------------------------------------

  def _calls(self, op):
    if op.kind == 'conditional':
      branches = [self.s.walk(branch) for branch in self.s.module.branches(op)]
      self._add(max(branches, key=lambda walked: walked[0]), 1)
    elif op.kind == 'while':
      self._add(self.s.walk(self.s.module.loop(op)[1]), self.s.trips(op))
    elif op.kind == 'call':
      self._add(self.s.walk(op.callee), 1)
    else:
      return False
    return True

  def _add(self, walked, times):
    seconds, spent, counts, waits = walked
    self.now += times * seconds
    for sums, added in ((self.times, spent), (self.counts, counts)):
      for kind, value in added.items():
        sums.add(kind, value, times)
    self.waits += [(times * t, name, f'{what} x {times}' if times > 1 else what) for t, name, what in waits]

  # --- What runs beside the core ----------------------------------------------------------------

  def _begin(self, op, seconds, clock, kind):
    """Starts what takes so long on a clock that works off one thing after another."""
    until = max(self.now, getattr(self, clock)) + seconds
    setattr(self, clock, until)
    self.pending[op.name] = (until, kind)

  def _end(self, op):
    start = op.args[0].split('#')[0] if op.args else ''
    if start not in self.pending:
      raise Unreadable(f'%{op.name} ends something that was not started in {self.name}')
    until, kind = self.pending[start]
    self._wait(until, kind, op)

  def _copies(self, op):
    """Copies, and all other that is asynchronous and no collective."""
    base, _, step = op.kind.rpartition('-')
    if base not in (*COPIES, 'async') or step not in ('start', 'update', 'done'):
      return False
    start = op.args[0].split('#')[0] if op.args else ''
    if step == 'done':
      self._end(op)
    elif step == 'start' and base != 'async':
      self._begin(op, min(a.bytes for a in op.arrays[:2]) / self.s.generation.bandwidth, 'copies_free', 'copies')
    elif step == 'start' and not op.args and self.s.module.parameters(op.callee):
      self.without_operands[op.name] = op  # they come with an update, which really starts it
    elif step == 'update' and start in self.pending:
      self.pending[op.name] = self.pending[start]
    elif step == 'update' and start not in self.without_operands:
      raise Unreadable(f'%{op.name} continues something that was not started in {self.name}')
    else:
      self._beside(op, self.without_operands.pop(start).callee if step == 'update' else op.callee)
    return True

  def _beside(self, op, callee):
    """Starts a computation that runs beside the core."""
    if inner := self.s.collectives_in(callee):
      self._start(op, inner)
    else:
      self._begin(op, self._time_beside(callee), 'copies_free', 'copies')

  def _time_beside(self, name):
    """Seconds of a computation that runs beside the core: of a slice what it copies, else its bytes or FLOPs."""
    root = next(o for o in self.s.module.ops(name) if o.is_root)
    if root.kind in COPIES:
      return sum(a.bytes for a in root.arrays) / self.s.generation.bandwidth
    if root.kind == 'dynamic-update-slice':
      update = self.s.module.operand(name, root.args[1])
      return sum(a.bytes for a in update.arrays) / self.s.generation.bandwidth
    seconds, _, counts, _ = self.s.walk(name)
    for kind, value in counts.items():
      self.counts.add(kind, value)
    return seconds

  def _between_slices(self, op):
    """Transfers to and from other slices, which the program hands to its host."""
    if op.kind in ('send', 'recv'):
      key = re.search(r'_xla_host_transfer_rendezvous="([^"]*)"', op.attributes)
      kind = re.search(r'_xla_megascale_transfer_type="([^"]*)"', op.attributes)
      if not key or not kind or kind[1] not in BETWEEN_SLICES:
        raise Unreadable(f'%{op.name} in {self.name} sends to where nothing is known of: {op.attributes[:160]}')
      if op.kind == 'send':
        self._send(op, key[1], kind[1])
      self.pending[op.name] = key[1]
    elif op.kind in ('send-done', 'recv-done'):
      key = self.pending.get(op.args[0].split('#')[0])
      if key not in self.transfers:
        raise Unreadable(f'%{op.name} ends a transfer that was not started in {self.name}')
      if op.kind == 'recv-done':
        self._wait(self.transfers[key], 'slices', op)
    return op.kind in ('send', 'recv', 'send-done', 'recv-done')

  def _send(self, op, key, kind):
    sent = sum(a.bytes for a in self.s.module.operand(self.name, op.args[0]).arrays)
    moved = sent * BETWEEN_SLICES[kind](self.s.topology.slices)
    self.transfers[key] = self._over_network(moved)

  def _over_network(self, moved):
    """When so many bytes to other slices will have gone; at once where the network's speed is not known."""
    speed = self.s.generation.network
    seconds = moved / speed if speed else 0.0
    self.network_free = max(self.now, self.network_free) + seconds
    self.times.add('network', seconds)
    self.counts.add('slice_bytes', moved)
    return self.network_free

  # --- Collectives ------------------------------------------------------------------------------

  def _cost(self, inner, kind=None, times=1.0):
    """Seconds of collectives, their bytes counted. times: 1/2 where an all-reduce is used as a reduce-scatter."""
    total = 0.0
    for op, computation in inner:
      seconds, moved, between = self.s.collective(op, computation, kind)
      self.counts.add('link_bytes', moved * times)
      if between:
        self.links_free = max(self.links_free, self._over_network(between * times))
      total += seconds * times
    return total

  def _collective(self, op):
    base, _, step = op.kind.rpartition('-')
    if op.kind in COLLECTIVES:
      self._alone(op, self._cost([(op, self.name)]))
    elif base in COLLECTIVES and step == 'start':
      self._start(op, [(op, self.name)], base)
    elif base in COLLECTIVES and step == 'done':
      self._end(op)
    else:
      return False
    return True

  def _start(self, op, inner, kind=None):
    seconds = self._cost(inner, kind)
    self.times.add('links', seconds)
    self._begin(op, seconds, 'links_free', 'exposed')

  def _alone(self, op, seconds):
    """A collective that the core waits for from beginning to end."""
    self.times.add('links', seconds)
    self._wait(max(self.now, self.links_free) + seconds, 'exposed', op)
    self.times.add('synchronous', seconds)
    self.links_free = self.now

  def _fused_collective(self, op):
    """Fusions that start, finish, or are a collective."""
    inner = self.s.collectives_in(op.callee) if op.kind == 'fusion' else []
    if not inner:
      return False
    targets = {o.target for o in self.s.module.ops(op.callee) if o.kind == 'custom-call'}
    if 'AsyncCollectiveStart' in targets:
      seconds = self._cost(inner)
      self.links_free = max(self.now, self.links_free) + seconds
      self.times.add('links', seconds)
      self.queue.append(self.links_free)
      return False  # there is work in it, too
    if 'AsyncCollectiveDone' in targets:
      if not self.queue:
        raise Unreadable(f'%{op.name} ends a collective that was not started in {self.name}')
      self._wait(self.queue.pop(0), 'exposed', op)
      return True
    if 'continuation_config' in op.attributes:
      return False  # in the middle of one: the work beside it
    # An all-reduce of which each keeps a slice costs as much as a reduce-scatter: half.
    scattered = 'all-reduce-scatter' in op.callee
    self._alone(op, self._cost(inner, times=0.5 if scattered or inner[0][0].kind == 'all-reduce' else 1.0))
    return True

  # --- Work of the core -------------------------------------------------------------------------

  def _custom_call(self, op):
    if op.kind != 'custom-call':
      return False
    if op.target == PALLAS:
      flops, g = self.s.kernels(op), self.s.generation
      self.counts.add('flops', flops)
      self.counts.add('kernel_flops', flops)
      memory = self.s.costs.traffic(op, self.name) / g.bandwidth
      self._spend('kernel', max(flops / g.flops / self.s.share, memory))
      return True
    check_kind(op, self.name)
    return op.target in FREE_CALLS

  def _compute(self, op):
    check_kind(op, self.name)
    g, flops = self.s.generation, 0
    for count, origin in self.s.costs.products_of(op, self.name):
      flops += count
      if OPTIMIZER in origin:
        self.counts.add('optimizer_flops', count)
    self.counts.add('flops', flops)
    memory = self.s.costs.traffic(op, self.name) / g.bandwidth
    matrix = flops / g.flops / MXU
    self._spend('matrix' if matrix > memory / 2 else 'memory', max(matrix, memory))


def _described(op):
  """What a collective is about: its kind, its arrays, and the operation of the model that it comes from."""
  shapes = re.sub(r'\{[^}]*\}', '', op.type)
  origin = op.origin.rpartition('jit(train_step)/')[2][-60:]
  return f'{op.kind} {shapes[:60]}' + (f' ({origin})' if origin else '')
