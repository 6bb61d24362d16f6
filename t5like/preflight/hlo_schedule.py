"""Predicts the time of a train step from the schedule that the TPU compiler has made of it.

The text of a scheduled module lists instructions in the order in which a core runs them. Walking it with four clocks
(the core, its copies to and from HBM, the links between chips, the network between slices) gives a time: products of
matrices by their FLOPs, all else by the bytes it moves, collectives by bytes over links, and waits of
the core for asynchronous ones. Kernels (Pallas) compute what `kernels` says of them. Nothing here is fitted to any
measurement, and anything that is not understood is refused (`hlo.Unreadable`).
"""
import dataclasses
import re
from collections.abc import Callable

import numpy as np

from t5like.model.kernels import balanced
from t5like.preflight.costs import (
  BETWEEN_SLICES,
  COLLECTIVES,
  FREE,
  FREE_CALLS,
  PALLAS,
  Costs,
  Transfer,
  check_kind,
  result_bytes,
)
from t5like.preflight.hlo import Module, Op, Unreadable, groups
from t5like.preflight.hlo_times import Prediction, Sums, Wait
from t5like.preflight.topologies import Topology

MXU = 0.93  # share of peak FLOPs that products of large matrices reach
# Share that attention kernels reach on the blocks that they visit. It is the half of peak on the half of the square
# that predictions were compared with published runs by: there 10 of 16 blocks were visited.
KERNELS = 0.625
LATENCY = 1e-6  # seconds per collective and dimension of the torus
COPIES = ('copy', 'slice', 'dynamic-slice')  # asynchronous, between HBM and memory on the chip
OPTIMIZER = '/optimizer/'  # in the path of operations that are not of the model


Collectives = list[tuple[Op, str]]  # (instruction, the computation that it is in)


# --- The whole schedule ---------------------------------------------------------------------------


class Schedule:
  """The schedule of a module on a Topology."""

  def __init__(
      self,
      text: str,
      topology: Topology,
      kernels: Callable[[Op], float] | None = None,
      share: float = KERNELS,
  ):
    """Reads a module.

    Args:
      text: of the compiled module, HLO.
      topology: where it runs.
      kernels: returns the FLOPs of a Pallas call, or raises Unreadable where its kernel is not known; None: none is.
      share: of peak FLOPs that kernels reach.
    """
    self.module = Module(text)
    self.costs = Costs(self.module)
    self.topology = topology
    self.generation = topology.generation
    self.kernels = kernels or _no_kernels
    self.share = share
    self.rings = 1  # per dimension
    if all(topology.wrap[:topology.generation.dims]):
      self.rings = 2
    # A program is that of one slice, which sends to others explicitly, or else that of all.
    self.per_slice = topology.devices // topology.slices
    self.slice_of = np.arange(self.module.partitions) // self.per_slice
    self._walked: dict[str, Prediction] = {}

  def predict(self) -> Prediction:
    """Of the whole module."""
    walked = self.walk(self.module.entry)
    longest_first = sorted(walked.waits, reverse=True)
    return Prediction(
        walked.seconds,
        dict(walked.times),
        dict(walked.counts),
        longest_first,
    )

  def walk(self, name: str) -> Prediction:
    """Of one run of a computation."""
    if name not in self._walked:
      self._walked[name] = _Walk(self, name).run()
    return self._walked[name]

  def trips(self, op: Op) -> int:
    """How often a loop runs: the constant in its condition, or in the first few computations that this calls."""
    condition, _ = self.module.loop(op)
    limits = []
    computations = [condition]
    for computation in computations:
      for inside in self.module.ops(computation):
        if inside.kind == 'constant' and _is_integer(inside):
          limits.append(int(inside.args[0]))
        if inside.callee and len(computations) < 4:
          computations.append(inside.callee)
    if not limits:
      raise Unreadable(f'the loop %{op.name} does not say how often it runs')
    return max(limits)

  def collectives_in(self, name: str) -> Collectives:
    """The collectives in a computation and in those that it calls."""
    result = []
    for op in self.module.ops(name):
      if op.kind in COLLECTIVES:
        result.append((op, name))
      elif op.kind in ('fusion', 'call', 'async-start', 'custom-call') and op.callee:
        result += self.collectives_in(op.callee)
    return result

  def collective(self, op: Op, computation: str, kind: str = '') -> Transfer:
    """The cost of a collective on a device; `kind`: of the collective, where that of the instruction says more."""
    kind = kind or op.kind
    behaviour = COLLECTIVES[kind]
    group = groups(op.attributes, self.module.partitions)
    if kind == 'collective-permute':  # its groups are pairs
      pairs = group.ids[:, :2]
      group = dataclasses.replace(group, ids=pairs)
    slices = group.slices(self.slice_of)
    size = max(1, group.size // slices)
    share = (size - 1) / size
    if behaviour.sends_result:
      array_bytes = result_bytes(op)
    else:
      operands = self.module.operands(op, computation)
      array_bytes = sum(operand.bytes for operand in operands)
    array_bytes *= behaviour.passes
    if behaviour.is_ragged:
      array_bytes *= balanced.share(op.origin)
    link_bytes = array_bytes
    if behaviour.keeps_share:
      link_bytes *= share
    dims = self._dimensions(size)
    seconds = LATENCY * dims
    if link_bytes:
      ways = behaviour.ways(dims * self.rings, share)
      seconds += link_bytes / (self.generation.link * ways)
    slice_bytes = array_bytes / size * (slices - 1) / slices
    return Transfer(seconds, link_bytes, slice_bytes)

  def _dimensions(self, size: int) -> int:
    """Along how many dimensions of the torus a group of this size extends."""
    dims = self.generation.dims
    if size >= self.per_slice:
      return dims
    # A group that is not the whole slice lies along one dimension, or two of three if it is large.
    if size ** 2 > self.per_slice:
      return max(1, dims - 1)
    return 1


def _is_integer(op: Op) -> bool:
  if not re.match(r'[su](32|64)\[\]', op.type):
    return False
  return op.args[0].isdecimal()


def _no_kernels(op: Op) -> float:
  raise Unreadable(f'the kernel %{op.name} is not known')


# --- The clocks -----------------------------------------------------------------------------------


class _Walk:
  """One computation, run through by the clocks."""

  def __init__(self, schedule: Schedule, name: str):
    self.schedule = schedule
    self.module = schedule.module
    self.costs = schedule.costs
    self.generation = schedule.generation
    self.name = name
    self.now = 0.0  # the clock of the core
    self.free = {'links': 0.0, 'copies': 0.0, 'network': 0.0}  # when these have done all that was started
    self.pending: dict[str, tuple[float, str]] = {}  # {started instruction: (when it is done, kind of waiting)}
    self.fused: list[float] = []  # when collectives that fusions started are done
    self.without_operands: dict[str, Op] = {}  # started instructions that wait for these
    self.rendezvous: dict[str, str] = {}  # {send or recv: name of its transfer}
    self.transfers: dict[str, float] = {}  # when those between slices will be done, by their name
    self.times = Sums()
    self.counts = Sums()
    self.waits: list[Wait] = []

  def run(self) -> Prediction:
    for op in self.module.ops(self.name):
      if op.kind not in FREE:
        self._run(op)
    return Prediction(self.now, self.times, self.counts, self.waits)

  def _run(self, op: Op) -> None:
    is_handled = (
        self._calls(op)
        or self._copies(op)
        or self._between_slices(op)
        or self._collective(op)
        or self._custom_call(op)
        or self._fused_collective(op)
    )
    if not is_handled:
      self._compute(op)

  def _spend(self, kind: str, seconds: float) -> None:
    self.now += seconds
    self.times.add(kind, seconds)

  def _wait(self, until: float, kind: str, op: Op) -> None:
    if until <= self.now:
      return
    seconds = until - self.now
    if kind in ('exposed', 'slices'):
      wait = Wait(seconds, op.name, _description(op))
      self.waits.append(wait)
    self._spend(kind, seconds)

  # --- Instructions that run other computations -------------------------------------------------

  def _calls(self, op: Op) -> bool:
    if op.kind == 'conditional':
      branches = self.module.branches(op)
      walks = map(self.schedule.walk, branches)
      slowest = max(walks, key=lambda walked: walked.seconds)
      self._add(slowest, 1)
    elif op.kind == 'while':
      _, body = self.module.loop(op)
      walked = self.schedule.walk(body)
      self._add(walked, self.schedule.trips(op))
    elif op.kind == 'call':
      walked = self.schedule.walk(op.callee)
      self._add(walked, 1)
    else:
      return False
    return True

  def _add(self, walked: Prediction, times: int) -> None:
    """Adds the prediction for a computation that runs this many times."""
    self.now += times * walked.seconds
    self.times.add_all(walked.times, times)
    self.counts.add_all(walked.counts, times)
    for seconds, name, description in walked.waits:
      if times > 1:
        description = f'{description} x {times}'
      wait = Wait(times * seconds, name, description)
      self.waits.append(wait)

  # --- Instructions that run beside the core ----------------------------------------------------

  def _begin(self, op: Op, seconds: float, clock: str, kind: str) -> None:
    """Starts work of this duration on a clock that does one piece after another."""
    until = self._occupy(clock, seconds)
    self.pending[op.name] = (until, kind)

  def _occupy(self, clock: str, seconds: float) -> float:
    """When work of this duration is done that begins now, or when the clock has done all that was started."""
    start = max(self.now, self.free[clock])
    self.free[clock] = start + seconds
    return self.free[clock]

  def _end(self, op: Op) -> None:
    start = op.first_operand
    if start not in self.pending:
      raise Unreadable(f'%{op.name} ends something that was not started in {self.name}')
    until, kind = self.pending[start]
    self._wait(until, kind, op)

  def _copies(self, op: Op) -> bool:
    """Copies, and everything else that is asynchronous and not a collective."""
    base, _, step = op.kind.rpartition('-')
    if base not in (*COPIES, 'async'):
      return False
    if step not in ('start', 'update', 'done'):
      return False
    if step == 'done':
      self._end(op)
    elif step == 'update':
      self._update(op)
    elif base == 'async':
      self._start_async(op)
    else:
      self._start_copy(op)
    return True

  def _start_copy(self, op: Op) -> None:
    copied = min(array.bytes for array in op.arrays[:2])
    seconds = copied / self.generation.bandwidth
    self._begin(op, seconds, 'copies', 'copies')

  def _start_async(self, op: Op) -> None:
    if not op.args and self.module.parameters(op.callee):
      self.without_operands[op.name] = op  # they come with an update, which really starts it
      return
    self._beside(op, op.callee)

  def _update(self, op: Op) -> None:
    start = op.first_operand
    if start in self.pending:
      self.pending[op.name] = self.pending[start]
    elif start in self.without_operands:
      started = self.without_operands.pop(start)
      self._beside(op, started.callee)
    else:
      raise Unreadable(f'%{op.name} continues something that was not started in {self.name}')

  def _beside(self, op: Op, callee: str) -> None:
    """Starts a computation that runs beside the core."""
    collectives = self.schedule.collectives_in(callee)
    if collectives:
      self._start(op, collectives)
    else:
      seconds = self._time_beside(callee)
      self._begin(op, seconds, 'copies', 'copies')

  def _time_beside(self, name: str) -> float:
    """Seconds of a computation that runs beside the core: of a slice by the bytes copied, else by FLOPs or bytes."""
    bandwidth = self.generation.bandwidth
    root = self.module.root(name)
    if root.kind in COPIES:
      return root.bytes / bandwidth
    if root.kind == 'dynamic-update-slice':
      update = self.module.operand(name, root.args[1])
      return update.bytes / bandwidth
    walked = self.schedule.walk(name)
    self.counts.add_all(walked.counts)
    return walked.seconds

  def _between_slices(self, op: Op) -> bool:
    """Transfers to and from other slices, which the program hands to its host."""
    if op.kind in ('send', 'recv'):
      self._start_transfer(op)
    elif op.kind in ('send-done', 'recv-done'):
      transfer = self.rendezvous.get(op.first_operand)
      if transfer not in self.transfers:
        raise Unreadable(f'%{op.name} ends a transfer that was not started in {self.name}')
      if op.kind == 'recv-done':
        self._wait(self.transfers[transfer], 'slices', op)
    else:
      return False
    return True

  def _start_transfer(self, op: Op) -> None:
    key = re.search(r'_xla_host_transfer_rendezvous="([^"]*)"', op.attributes)
    kind = re.search(r'_xla_megascale_transfer_type="([^"]*)"', op.attributes)
    if not key or not kind or kind[1] not in BETWEEN_SLICES:
      raise Unreadable(f'%{op.name} in {self.name} sends to an unknown place: {op.attributes[:160]}')
    self.rendezvous[op.name] = key[1]
    if op.kind == 'send':
      array = self.module.operand(self.name, op.args[0])
      times_sent = BETWEEN_SLICES[kind[1]]
      times = times_sent(self.schedule.topology.slices)
      until = self._over_network(array.bytes * times)
      self.transfers[key[1]] = until

  def _over_network(self, size: float) -> float:
    """When this many bytes to other slices will have gone; immediately where the network's speed is not known."""
    speed = self.generation.network
    seconds = 0.0
    if speed:
      seconds = size / speed
    self.times.add('network', seconds)
    self.counts.add('slice_bytes', size)
    return self._occupy('network', seconds)

  # --- Collectives ------------------------------------------------------------------------------

  def _cost(
      self,
      collectives: Collectives,
      kind: str = '',
      times: float = 1.0,
  ) -> float:
    """Seconds of collectives, their bytes counted; `times`: 1/2 where an all-reduce is used as a reduce-scatter."""
    total = 0.0
    for op, computation in collectives:
      transfer = self.schedule.collective(op, computation, kind)
      self.counts.add('link_bytes', transfer.link_bytes * times)
      if transfer.slice_bytes:
        sent = self._over_network(transfer.slice_bytes * times)
        self.free['links'] = max(self.free['links'], sent)
      total += transfer.seconds * times
    return total

  def _collective(self, op: Op) -> bool:
    base, _, step = op.kind.rpartition('-')
    if op.kind in COLLECTIVES:
      seconds = self._cost([(op, self.name)])
      self._alone(op, seconds)
    elif base in COLLECTIVES and step == 'start':
      self._start(op, [(op, self.name)], base)
    elif base in COLLECTIVES and step == 'done':
      self._end(op)
    else:
      return False
    return True

  def _start(self, op: Op, collectives: Collectives, kind: str = '') -> None:
    seconds = self._cost(collectives, kind)
    self.times.add('links', seconds)
    self._begin(op, seconds, 'links', 'exposed')

  def _alone(self, op: Op, seconds: float) -> None:
    """A collective that the core waits for from beginning to end."""
    self.times.add('links', seconds)
    start = max(self.now, self.free['links'])
    self._wait(start + seconds, 'exposed', op)
    self.times.add('synchronous', seconds)
    self.free['links'] = self.now

  def _fused_collective(self, op: Op) -> bool:
    """Fusions that start, finish, or are a collective."""
    if op.kind != 'fusion':
      return False
    collectives = self.schedule.collectives_in(op.callee)
    if not collectives:
      return False
    targets = {inside.target for inside in self.module.ops(op.callee)}
    if 'AsyncCollectiveStart' in targets:
      seconds = self._cost(collectives)
      until = self._occupy('links', seconds)
      self.times.add('links', seconds)
      self.fused.append(until)
      return False  # there is work in it, too
    if 'AsyncCollectiveDone' in targets:
      if not self.fused:
        raise Unreadable(f'%{op.name} ends a collective that was not started in {self.name}')
      self._wait(self.fused.pop(0), 'exposed', op)
      return True
    if 'continuation_config' in op.attributes:
      return False  # in the middle of one: the work beside it
    first, _ = collectives[0]
    times = 1.0
    if 'all-reduce-scatter' in op.callee or first.kind == 'all-reduce':
      times = 0.5  # an all-reduce of which each keeps a slice costs as much as a reduce-scatter: half
    seconds = self._cost(collectives, times=times)
    self._alone(op, seconds)
    return True

  # --- Work of the core -------------------------------------------------------------------------

  def _memory_seconds(self, op: Op) -> float:
    traffic = self.costs.traffic(op, self.name)
    return traffic / self.generation.bandwidth

  def _custom_call(self, op: Op) -> bool:
    if op.kind != 'custom-call':
      return False
    if op.target != PALLAS:
      check_kind(op, self.name)
      return op.target in FREE_CALLS
    flops = self.schedule.kernels(op)
    self.counts.add('flops', flops)
    self.counts.add('kernel_flops', flops)
    matrix = flops / self.generation.flops / self.schedule.share
    memory = self._memory_seconds(op)
    self._spend('kernel', max(matrix, memory))
    return True

  def _compute(self, op: Op) -> None:
    check_kind(op, self.name)
    total = 0
    matrix = 0.0
    for product in self.costs.products_of(op, self.name):
      total += product.flops
      matrix += product.flops / self.generation.rate(product.dtype) / MXU
      if OPTIMIZER in product.origin:
        self.counts.add('optimizer_flops', product.flops)
    self.counts.add('flops', total)
    memory = self._memory_seconds(op)
    kind = 'memory'
    if matrix > memory / 2:
      kind = 'matrix'
    self._spend(kind, max(matrix, memory))


def _description(op: Op) -> str:
  """The subject of a collective: its kind, its arrays, and the operation of the model that it comes from."""
  shapes = re.sub(r'\{[^}]*\}', '', op.type)
  _, _, origin = op.origin.rpartition('jit(train_step)/')
  description = f'{op.kind} {shapes[:60]}'
  if origin:
    description += f' ({origin[-60:]})'
  return description
