"""Looks for a faster layout of a config on a TPU slice: splits of devices, remat, compiler options, unrolled layers."""
import concurrent.futures
import math
import os
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from t5like import choices
from t5like.config_type import Config
from t5like.errors import ConfigError
from t5like.files import plain_json
from t5like.preflight import staged
from t5like.preflight.prediction import GIB, Report
from t5like.preflight.topologies import Topology

PROMISING = 1.1  # times the fastest step: candidates that a search follows further
FUSED_REDUCE_SCATTER = {  # with the VMEM that its fusions need: less does not compile to the end
    'xla_tpu_enable_async_collective_fusion_fuse_reduce_scatter': 'true',
    'xla_enable_async_reduce_scatter_fusion': 'ENABLED',
    'xla_tpu_scoped_vmem_limit_kib': '32768',
}
SPARSE_CORES = {  # collectives run on cores that have nothing else to do
    'xla_tpu_enable_sparse_core_collective_offload_all_gather': 'true',
    'xla_tpu_enable_sparse_core_collective_offload_reduce_scatter': 'true',
    'xla_tpu_enable_sparse_core_collective_offload_all_reduce': 'true',
    'xla_tpu_use_tc_device_shape_on_sc': 'true',
    'xla_sc_disable_megacore_partitioning': 'true',
}
# Compiler options that have been seen to help on a generation, beside the config's own.
OPTIONS = {'v5e': FUSED_REDUCE_SCATTER, 'v6e': SPARSE_CORES}

Overrides = dict[str, Any]  # {key of a config: value}
Result = tuple[Overrides, Report]


def search(
    config: Config,
    topology: Topology,
    say: Callable[[str], Any] = print,
) -> list[Result]:
  """All layouts tried that fit, the fastest first.

  One choice after another, each from the best of those before: how devices are split; which values are kept for the
  backward pass, with more micro-batches where that is too much; compiler options; layers unrolled.

  Args:
    config: as loaded.
    topology: where it is to run.
    say: called with a line for each layout.
  """
  return _Search(config, topology, say).run()


def splits(config: Config, topology: Topology) -> list[list[Overrides]]:
  """Ways to spread the devices of a slice, as ladders of overrides of `config.mesh`.

  Each begins with the config's own, and a step is worth trying where the one before was. If the config gives sizes,
  there is no other way.
  """
  mesh = config.mesh
  has_sizes = any(mesh[axis] != 1 for axis in ('data', 'fsdp_outer', 'expert', 'context', 'tensor'))
  if has_sizes or mesh.fsdp != -1:
    return [[{}]]
  per_slice = topology.devices // topology.slices
  outer: list[Overrides] = [{}]
  for size in (2, 4):
    if per_slice % size == 0:
      outer.append({'mesh.fsdp_outer': size})
  data: list[Overrides] = [{}]
  for size in (2, 4, 8, per_slice):
    if per_slice % size == 0:
      data.append({'mesh.data': size})
  tensor: list[Overrides] = [{}]
  for size in (2, 4, 8):
    if per_slice % size == 0 and config.model.num_heads % size == 0:
      tensor.append({'mesh.tensor': size})
  return [outer, data, tensor]


def changed(config: Config, overrides: Mapping[str, Any]) -> Any:
  """A copy of a config with {key: value} set."""
  config = config.copy_and_resolve_references()
  with config.unlocked():
    for key, value in overrides.items():
      *sections, name = key.split('.')
      section = config
      for part in sections:
        section = section[part]
      section[name] = value
  return config


class _Search:
  """The state of a search: the candidates tried."""

  def __init__(
      self,
      config: Config,
      topology: Topology,
      say: Callable[[str], Any],
  ):
    self.config = config
    self.topology = topology
    self.say = say
    self.reports: dict[str, Result] = {}  # of those that can run, by their flags
    self.failed: set[str] = set()  # flags of the others

  def run(self) -> list[Result]:
    self._split()
    # Several of each stage are kept: compiler options help some splits more than others, which change places then.
    self._remat(self.best([], 4))
    self._options(self.best([], 6))
    self._unroll(self.best([], 4))
    return self._compiled_to_the_end()

  # --- Stages -----------------------------------------------------------------------------------

  def _split(self) -> None:
    """Climbs all ladders together, each for as long as its steps are promising."""
    ladders = splits(self.config, self.topology)
    while ladders:
      self.best([ladder[0] for ladder in ladders], 1)
      climbed = []
      for first, *others in ladders:
        if others and self.is_promising(first):
          climbed.append(others)
      ladders = climbed

  def _remat(self, ways: list[Overrides]) -> None:
    """Values kept for the backward pass: all choices for the fastest way, for others its best ones."""
    fastest, *others = ways
    stage = [{**fastest, 'model.remat': remat} for remat in choices.REMAT]
    self.best(stage, 1)
    good = [overrides['model.remat'] for overrides in stage if self.is_promising(overrides)]
    stage_of_others = []
    for way in others:
      for remat in good:
        stage_of_others.append({**way, 'model.remat': remat})
    self.best(stage_of_others, 1)
    for times in (2, 4):  # more micro-batches only make room: for those that need it
      too_large = filter(self.is_too_large, stage)
      stage = _with(too_large, 'microbatches', self.config.microbatches * times)
      self.best(stage, 1)

  def _options(self, ways: list[Overrides]) -> None:
    options = OPTIONS.get(self.topology.generation.name)
    if not options:
      return
    merged = {**self.config.compile.options.to_dict(), **options}
    self.best(_with(ways, 'compile.options', merged), 1)

  def _unroll(self, ways: list[Overrides]) -> None:
    """Unrolled layers take longest to compile: the fastest ways alone, with options and without."""
    plain = []
    for way in ways:
      without_options = dict(way)
      without_options.pop('compile.options', None)
      plain.append(without_options)
    self.best(_with(ways + plain, 'model.scan_layers', False), 1)

  def _compiled_to_the_end(self) -> list[Result]:
    """`fitting` from the first on that compiles: some kernels and fusions need too much VMEM, which shows only then."""
    candidates = self.fitting()
    while candidates:
      overrides, _ = candidates[0]
      self.say(f'compiling to the end, which takes minutes: {flags(overrides) or "as it is"}')
      report = self.attempt(overrides, full=True)
      if not isinstance(report, str):
        break
      self.say(verdict(report))
      candidates.pop(0)
    return candidates

  # --- Attempts ---------------------------------------------------------------------------------

  def attempt(self, overrides: Overrides, full: bool = False) -> Report | str:
    """Its report, or the text of its error."""
    try:
      return staged.predict(changed(self.config, overrides), self.topology, full)
    except ConfigError as e:
      return str(e)

  def lean(self, overrides: Overrides) -> Overrides:
    """Those that differ from the config."""
    differing = {}
    for key, value in overrides.items():
      if _value(self.config, key) != value:
        differing[key] = value
    return differing

  def best(self, stage: list[Overrides], keep: int) -> list[Overrides]:
    """Tries all overrides that are new; the fastest `keep` of all so far that fit (or the smallest, if none does)."""
    new = {}
    for overrides in map(self.lean, stage):
      name = flags(overrides)
      if name not in self.reports and name not in self.failed:
        new[name] = overrides
    with concurrent.futures.ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
      attempts = pool.map(self.attempt, new.values())
      for (name, overrides), report in zip(new.items(), attempts):
        if isinstance(report, str):
          self.failed.add(name)
        else:
          self.reports[name] = (overrides, report)
        self.say(f'{verdict(report)}  {name or "as it is"}')
    results = self.fitting()
    if not results:
      results = sorted(self.reports.values(), key=_size)
    return [overrides for overrides, _ in results[:keep]]

  def fitting(self) -> list[Result]:
    """The candidates that fit, the fastest first."""
    fitting = filter(_fits, self.reports.values())
    return sorted(fitting, key=_seconds)

  def is_too_large(self, overrides: Overrides) -> bool:
    name = flags(self.lean(overrides))
    return name in self.reports and not _fits(self.reports[name])

  def is_promising(self, overrides: Overrides) -> bool:
    """Whether it is nearly as fast as the fastest, or nothing fits yet."""
    name = flags(self.lean(overrides))
    if name in self.failed:
      return False
    fitting = self.fitting()
    if not fitting:
      return True
    result = self.reports[name]
    return _fits(result) and _seconds(result) <= PROMISING * _seconds(fitting[0])


def _with(ways: Iterable[Overrides], key: str, value: Any) -> list[Overrides]:
  """All of them with one more key set."""
  return [{**way, key: value} for way in ways]


def _fits(result: Result) -> bool:
  _, report = result
  return report['fits']


def _seconds(result: Result) -> float:
  _, report = result
  return report['step_seconds']


def _size(result: Result) -> float:
  """Bytes of HBM."""
  _, report = result
  return report['hbm']['used']


def _value(config: Config, key: str) -> Any:
  for part in key.split('.'):
    config = config[part]
  return config


# --- For people -----------------------------------------------------------------------------------


def verdict(report: Report | str) -> str:
  """'  385.3 ms   7.8 GiB', or why not, of a report of `predict` or the text of its error."""
  if isinstance(report, str):
    return f'cannot be: {report[:160]}'
  size = f'{report["hbm"]["used"] / GIB:5.1f} GiB'
  if not report['fits']:
    return f' too large {size}'
  return f'{report["step_seconds"] * 1e3:7.1f} ms {size}'


def flags(overrides: Mapping[str, Any]) -> str:
  """'--config.mesh.data=2 ..' of overrides, for a command line."""
  words = []
  for key, value in overrides.items():
    if isinstance(value, dict):
      value = plain_json.dumps(value)
    words.append(shlex.quote(f'--config.{key}={value}'))
  return ' '.join(words)


def front(results: Sequence[Result]) -> list[Result]:
  """Those of `search` such that no other is both faster and smaller."""
  smallest = math.inf
  kept = []
  for result in results:
    if _size(result) < smallest:
      smallest = _size(result)
      kept.append(result)
  return kept
