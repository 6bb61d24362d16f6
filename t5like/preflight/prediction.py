"""Says before a pod is booked whether a config fits it, how fast it will train, and what would be faster.

The TPU compiler runs here, on a CPU, up to the schedule of the very train step (compile_ahead.py, a process that is
ended when the schedule is there: what follows takes minutes and changes nothing that is said here).
`hlo_schedule.py` turns the schedule into a time, and `plausible.py` refuses one that cannot be. MFU is reported in two
conventions: PaLM's (full attention), which training reports too, and with half of attention, which is what a causal
mask leaves.
"""
import concurrent.futures
import importlib.util
import json
import math
import os
import pathlib
import re
import shlex
import subprocess
import sys
import tempfile
import time

from t5like import choices, config as config_lib
from t5like.errors import ConfigError
from t5like.files import plain_json
from t5like.objectives import lengths
from t5like.preflight import compared, hlo, hlo_schedule, kernel_calls, plausible

LIMIT = 900.0  # seconds for one compilation
PROMISING = 1.1  # times the fastest step: what a search follows further
HEADROOM = 0.97  # share of HBM above which the compiler stops overlapping, and fragmentation may not leave room
ROOT = pathlib.Path(__file__).resolve().parents[2]
GIB = 2 ** 30
UNITS = dict(G=GIB, M=2 ** 20, K=2 ** 10)
FUSED_REDUCE_SCATTER = dict(  # with the VMEM that its fusions need: less does not compile to the end
    xla_tpu_enable_async_collective_fusion_fuse_reduce_scatter='true',
    xla_enable_async_reduce_scatter_fusion='ENABLED', xla_tpu_scoped_vmem_limit_kib='32768')
SPARSE_CORES = dict(  # collectives run on cores that have nothing else to do
    xla_tpu_enable_sparse_core_collective_offload_all_gather='true',
    xla_tpu_enable_sparse_core_collective_offload_reduce_scatter='true',
    xla_tpu_enable_sparse_core_collective_offload_all_reduce='true', xla_tpu_use_tc_device_shape_on_sc='true',
    xla_sc_disable_megacore_partitioning='true')


def predict(config, topology, full=False, readings=None):
  """What is known of a step of `config` on a tpu.Topology, as a dict for JSON.

  `fits` is False where HBM is too small, and then there is no time. ConfigError for a config that cannot run
  there, for a program that cannot be read, or without libtpu. `full`: all of the compilation, which finds kernels that
  need too much VMEM. readings: {name: (FLOPs of a call of a kernel, share of peak that they reach)}, other prices of
  kernels, whose seconds are in 'readings' of the result.
  """
  if not importlib.util.find_spec('libtpu'):
    raise ConfigError("preflight needs the TPU compiler, which runs on any Linux machine: pip install -e '.[tpu]'")
  resolved = config_lib.resolve(config)
  if not resolved.model.vocab_size:
    raise ConfigError('model.vocab_size=0: preflight has no data to count the vocabulary of. Set model.vocab_size.')
  with tempfile.TemporaryDirectory(prefix='t5like-preflight-') as folder:
    folder = pathlib.Path(folder)
    job = plain_json.dumps(dict(config=config_lib.to_json(config), topology=topology.name,
                          options=config.compile.options.to_dict()))
    started = time.monotonic()
    error = _compile(job, folder, full)
    seconds = time.monotonic() - started
    facts = json.loads((folder / 'facts.json').read_text()) if (folder / 'facts.json').exists() else None
    if error and not _is_out_of_memory(error):
      raise ConfigError(f'{topology.name} cannot run this config: {_short(error["text"])}')
    report = dict(topology=topology.name, chips=topology.chips, hosts=topology.hosts, slices=topology.slices,
                  config_batch=config.batch_size,
                  compile_seconds=round(seconds, 1), full=full, libtpu=_version('libtpu'), jax=_version('jax'), **facts)
    if (folder / 'done.json').exists():
      report.update(compilers_flops=json.loads((folder / 'done.json').read_text())['flops'])
    report.update(_memory(folder / 'dump', resolved, topology, facts, error))
    if not error:
      report.update(_speed(folder / 'dump', resolved, topology, facts, readings or {}))
    return report


def _compile(job, folder, full):
  """Runs compile_ahead.py until the schedule is there (`full`: to the end); returns error.json's content, or None."""
  environment = dict(os.environ, PYTHONPATH=f'{ROOT}{os.pathsep}{os.environ.get("PYTHONPATH", "")}')
  with open(folder / 'log', 'wb') as log:
    command = [sys.executable, '-m', 't5like.preflight.compile_ahead', job, str(folder)]
    process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
    try:
      deadline, size = time.monotonic() + LIMIT, -1
      while process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.3)
        path = _dumped(folder / 'dump', 'after_optimizations_after_buffer_assignment')
        if not full and path and size == path.stat().st_size > 0:
          return None
        size = path.stat().st_size if path else -1
    finally:
      process.kill()
      process.wait()
  if (folder / 'error.json').exists():
    return json.loads((folder / 'error.json').read_text())
  if (folder / 'done.json').exists():
    return None
  tail = (folder / 'log').read_text(errors='replace')[-600:]
  return dict(exit_code=1, type='Abort', text=f'the compiler ended without a result (exit code {process.returncode}, '
              f'limit {LIMIT:g} s). The last it said: {tail}')


def _dumped(folder, kind):
  found = sorted(folder.glob(f'*jit_train_step*.{kind}.txt')) if folder.is_dir() else []
  return found[-1] if found else None


def _is_out_of_memory(error):
  return 'RESOURCE_EXHAUSTED' in error['text'] and 'HBM' in error['text'].upper()


def _short(text):
  return ' '.join(text.split())[:700]


def _version(package):
  import importlib.metadata
  return importlib.metadata.version(package)


def _memory(dump, config, topology, facts, error):
  """HBM of one device, in bytes, by group; its largest buffers."""
  allowed, state = topology.generation.hbm * GIB, facts['bytes']
  path = _dumped(dump, 'after_optimizations-memory-usage-report')
  text = path.read_text() if path else ''
  total = re.search(r'Memory Space: default.*?\nTotal bytes: (\d+)', text)
  used = int(total[1]) if total else 0
  if error:
    asked = re.search(r'(?:Used |\()([\d.]+)([GM])i?B?\)? (?:exceeds|of)', error['text'])
    used = max(used, float(asked[1]) * (GIB if asked[2] == 'G' else 2 ** 20) if asked else 0)
  buffers = re.findall(r'\(\s*\d+%\);\s*([\d.]+)([GMK])iB;\s*\d+;\s*\d+; (.+)', text)
  size_of = lambda buffers: sum(float(size) * UNITS[unit] for size, unit, _ in buffers)
  # Buffers share places at different times, so that they add up to more than is used: their share counts.
  activations = [b for b in buffers if _holds_rows(b[2], config, facts)]
  activations = used * size_of(activations) / size_of(buffers) if buffers else 0
  return dict(fits=not error and used <= allowed, hbm=dict(
      allowed=allowed, used=used, **state, activations=activations, headroom=max(0, allowed - used),
      temporaries=max(0, used - activations - sum(state.values()))),
      largest=[f'{size} {unit}iB {shapes[:70]}' for size, unit, shapes in buffers[:6]])


def _holds_rows(shapes, config, facts):
  """Whether a buffer of these shapes holds something for each position of each row of a micro-batch."""
  mesh, found = facts['mesh'], lengths.shapes(config)
  rows = config.batch_size // config.microbatches // math.prod(mesh[axis] for axis in ('slice', 'data', 'fsdp'))
  positions = {n // mesh['context'] for n in (found.inputs, found.targets) if n}
  return any(positions & (dims := {int(n) for n in shape.split(',') if n}) and (rows == 1 or rows in dims)
             for shape in re.findall(r'\[([\d,]*)\]', shapes))


def _speed(dump, config, topology, facts, readings):
  """Times, FLOPs and what follows from them."""
  text = _dumped(dump, 'after_optimizations_after_buffer_assignment').read_text()
  try:
    prediction = hlo_schedule.Schedule(text, topology, kernel_calls.flops).predict()
    others = {name: hlo_schedule.Schedule(text, topology, kernels, share).predict().seconds
              for name, (kernels, share) in readings.items()}
  except hlo.Unreadable as e:
    raise ConfigError(f'The time of this program cannot be predicted: {e}. It was compiled by libtpu '
                      f'{_version("libtpu")} for {topology.name}.') from e
  peak, numbers, seconds = topology.generation.flops, config_lib.derived(config), prediction.seconds
  work = plausible.work(config, facts, topology.devices)
  plausible.check(prediction, work, peak)
  kind = compared.kind_of(topology.generation.name, facts['mesh'], config.model.name, facts['kernel'][0],
                          topology.slices)
  tokens, steps = numbers['tokens_per_step'], numbers['steps']
  return dict(
      step_seconds=seconds, times=prediction.times, counts=prediction.counts, flops=prediction.counts['flops'],
      model_flops=work.model, mfu=work.model / seconds / peak, mfu_causal=work.least / seconds / peak,
      tokens_per_second=tokens / seconds, host_tokens_per_second=tokens / seconds / topology.hosts,
      steps=steps, hours=steps * seconds / 3600, chip_hours=steps * seconds / 3600 * topology.chips,
      waits=prediction.waits[:6], network=topology.generation.network,
      accuracy=compared.accuracy(kind), readings=others)


# --- Searching ----------------------------------------------------------------------------------


def splits(config, topology):
  """Ways to spread the devices of a slice, as ladders of overrides of `config.mesh`: each begins with its own, and a
  step is worth trying where the one before was. No other if the config gives sizes."""
  per_slice = topology.devices // topology.slices
  if any(config.mesh[axis] != 1 for axis in ('data', 'context', 'tensor')) or config.mesh.fsdp != -1:
    return [[{}]]
  data = [{'mesh.data': n} for n in (2, 4, 8, per_slice) if per_slice % n == 0]
  tensor = [{'mesh.tensor': n} for n in (2, 4, 8) if per_slice % n == 0 and config.model.num_heads % n == 0]
  return [[{}, *data], [{}, *tensor]]


def options(config, topology):
  """Compiler options that have been seen to help on a generation, beside the config's own."""
  yield {}
  if topology.generation.name == 'v5e':
    yield FUSED_REDUCE_SCATTER
  if topology.generation.name == 'v6e':
    yield SPARSE_CORES


def changed(config, overrides):
  """A copy of a config with {key: value} set."""
  config = config.copy_and_resolve_references()
  with config.unlocked():
    for key, value in overrides.items():
      section, _, name = key.rpartition('.')
      (config[section] if section else config)[name] = value
  return config


def search(config, topology, say=print):
  """[(overrides, report)] of all layouts tried that fit, the fastest first; `say` is told of each.

  One thing after another, each from the best of those before: how devices are split; what is kept for the
  backward pass, with more micro-batches where that is too much; compiler options; layers unrolled.
  """
  return _Search(config, topology, say).run()


class _Search:
  """The state of a search: what has been tried, {flags: (overrides, report or the text of its error)}."""

  def __init__(self, config, topology, say):
    self.config, self.topology, self.say = config, topology, say
    self.tried = {}

  def run(self):
    # Several of each stage are kept: compiler options help some splits more than others, which change places then.
    ladders = splits(self.config, self.topology)
    while ladders:
      self.best([ladder[0] for ladder in ladders], 1)
      ladders = [ladder[1:] for ladder in ladders if ladder[1:] and self.is_promising(ladder[0])]
    self._remat(self.best([], 4))
    for options_of in filter(None, options(self.config, self.topology)):
      merged = {**self.config.compile.options.to_dict(), **options_of}
      self.best([{**way, 'compile.options': merged} for way in self.best([], 6)], 1)
    # Unrolled layers take longest to compile: the fastest ways alone, with options and without.
    fastest = self.best([], 4)
    plain = [{key: value for key, value in way.items() if key != 'compile.options'} for way in fastest]
    self.best([{**way, 'model.scan_layers': False} for way in fastest + plain], 1)
    return self._compiled_to_the_end()
  def attempt(self, overrides, full=False):
    try:
      return predict(changed(self.config, overrides), self.topology, full)
    except ConfigError as e:
      return str(e)

  def lean(self, overrides):
    """Those that differ from the config."""
    return {key: value for key, value in overrides.items() if _at(self.config, key) != value}

  def best(self, stage, keep):
    """Tries all overrides that are new; the fastest `keep` of all so far that fit (or the smallest, if none does)."""
    new = list({flags(o): o for o in map(self.lean, stage) if flags(o) not in self.tried}.values())
    with concurrent.futures.ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
      for overrides, report in zip(new, pool.map(self.attempt, new)):
        self.tried[flags(overrides)] = overrides, report
        self.say(f'{verdict(report)}  {flags(overrides) or "as it is"}')
    known = [pair for pair in self.tried.values() if not isinstance(pair[1], str)]
    smallest = sorted(known, key=lambda pair: pair[1]['hbm']['used'])
    return [overrides for overrides, _ in (self.fitting() or smallest)[:keep]]

  def fitting(self):
    """Of what was tried that which fits, the fastest first."""
    known = [pair for pair in self.tried.values() if not isinstance(pair[1], str) and pair[1]['fits']]
    return sorted(known, key=lambda pair: pair[1]['step_seconds'])

  def report(self, overrides):
    return self.tried[flags(self.lean(overrides))][1]

  def is_too_large(self, overrides):
    report = self.report(overrides)
    return not isinstance(report, str) and not report['fits']

  def is_promising(self, overrides):
    """Whether it is nearly as fast as the fastest, or nothing fits yet."""
    report, fitting = self.report(overrides), self.fitting()
    if isinstance(report, str) or not fitting:
      return not isinstance(report, str)
    return report['fits'] and report['step_seconds'] <= PROMISING * fitting[0][1]['step_seconds']

  def _remat(self, ways):
    """What is kept for the backward pass: all there is for the fastest way, for others what was good for it."""
    stage = [{**ways[0], 'model.remat': remat} for remat in choices.REMAT]
    self.best(stage, 1)
    good = [overrides['model.remat'] for overrides in stage if self.is_promising(overrides)]
    self.best([{**way, 'model.remat': remat} for way in ways[1:] for remat in good], 1)
    for times in (2, 4):  # more micro-batches only make room: for those that need it
      stage = [{**overrides, 'microbatches': self.config.microbatches * times} for overrides in stage
               if self.is_too_large(overrides)]
      self.best(stage, 1)

  def _compiled_to_the_end(self):
    """`fitting` from the first on that compiles: some kernels and fusions need too much VMEM, which shows only then."""
    candidates = self.fitting()
    while candidates:
      self.say(f'compiling to the end, which takes minutes: {flags(candidates[0][0]) or "as it is"}')
      report = self.attempt(candidates[0][0], full=True)
      if not isinstance(report, str):
        break
      self.say(verdict(report))
      candidates.pop(0)
    return candidates


def _at(config, key):
  for part in key.split('.'):
    config = config[part]
  return config


def verdict(report):
  """'  385.3 ms   7.8 GiB', or why not, of a report of `predict` or the text of its error."""
  if isinstance(report, str):
    return f'cannot be: {report[:160]}'
  size = f'{report["hbm"]["used"] / GIB:5.1f} GiB'
  return f'{report["step_seconds"] * 1e3:7.1f} ms {size}' if report['fits'] else f' too large {size}'


def flags(overrides):
  """'--config.mesh.data=2 ..' of a dict, for a command line."""
  return ' '.join(shlex.quote(f'--config.{key}={plain_json.dumps(value) if isinstance(value, dict) else value}')
                  for key, value in overrides.items())


def front(found):
  """Those of `search` that none is both faster and smaller than."""
  best, kept = math.inf, []
  for overrides, report in found:
    if report['hbm']['used'] < best:
      best = report['hbm']['used']
      kept.append((overrides, report))
  return kept
