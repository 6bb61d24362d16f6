"""Predicts before a pod is booked whether a config fits it, and how fast it will train; search.py finds faster ones.

The TPU compiler runs here, on a CPU, up to the schedule of the very train step (compile_ahead.py, a process that is
ended when the schedule is there: the rest takes minutes and changes nothing that is reported here).
`hlo_schedule.py` turns the schedule into a time, and `plausible.py` refuses one that cannot be. MFU is reported in two
conventions: PaLM's (full attention), which training reports too, and with half of attention, which is what a causal
mask leaves.
"""
import dataclasses
import importlib.metadata
import importlib.util
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from t5like import config as config_lib
from t5like.config import stages
from t5like.config.values import ROOT
from t5like.config_type import Config, Section
from t5like.errors import ConfigError
from t5like.files import plain_json
from t5like.objectives import lengths
from t5like.preflight import compared, hlo, hlo_schedule, kernel_calls, plausible
from t5like.preflight.topologies import Topology

LIMIT = 900.0  # seconds for one compilation
HEADROOM = 0.97  # share of HBM above which the compiler stops overlapping, and fragmentation may not leave room
GIB = 2 ** 30
UNITS = {'G': GIB, 'M': 2 ** 20, 'K': 2 ** 10}
SCHEDULE = 'after_optimizations_after_buffer_assignment'  # names of the compiler's dumps
MEMORY = 'after_optimizations-memory-usage-report'

Report = dict[str, Any]  # for JSON
# {name: (FLOPs of a call of a kernel, share of peak that they reach)}
Readings = Mapping[str, tuple[Callable[[hlo.Op], float], float]]


def predict(
    config: Config,
    topology: Topology,
    full: bool = False,
    readings: Readings | None = None,
    stage: int = 0,
) -> Report:
  """What is known of a step.

  Args:
    config: as loaded.
    topology: where it is to run.
    full: all of the compilation, which finds kernels that need too much VMEM.
    readings: other prices of kernels, whose seconds are in 'readings' of the result.
    stage: number of the stage of the run whose step it is.

  Returns:
    A dict for JSON; `fits` is False where HBM is too small, and then there is no time.

  Raises:
    ConfigError: the config cannot run there, the program cannot be read, or libtpu is not installed.
  """
  if not importlib.util.find_spec('libtpu'):
    raise ConfigError("preflight needs the TPU compiler, which runs on any Linux machine: pip install -e '.[tpu]'")
  resolved = config_lib.resolve(stages.after(config, stage))
  if not resolved.model.vocab_size:
    raise ConfigError('model.vocab_size=0: preflight has no data to count the vocabulary of. Set model.vocab_size.')
  job = dict(
      config=config_lib.to_json(config),
      topology=topology.name,
      options=resolved.compile.options.to_dict(),
      stage=stage,
  )
  with tempfile.TemporaryDirectory(prefix='t5like-preflight-') as name:
    folder = pathlib.Path(name)
    started = time.monotonic()
    error = _compile(plain_json.dumps(job), folder, full)
    seconds = time.monotonic() - started
    facts = _read_json(folder / 'facts.json') or {}
    if error and not _is_out_of_memory(error):
      raise ConfigError(f'{topology.name} cannot run this config: {_short(error["text"])}')
    report = dict(
        topology=topology.name,
        chips=topology.chips,
        hosts=topology.hosts,
        slices=topology.slices,
        config_batch=resolved.batch_size,
        compile_seconds=round(seconds, 1),
        full=full,
        libtpu=importlib.metadata.version('libtpu'),
        jax=importlib.metadata.version('jax'),
        **facts,
    )
    report.update(_counted(folder))
    program = _Program(folder / 'dump', resolved, topology, facts)
    report.update(program.memory(error))
    if not error:
      report.update(program.speed(readings or {}))
    return report


def _counted(folder: pathlib.Path) -> Report:
  """FLOPs as the compiler counts them, where it came to its end."""
  done = _read_json(folder / 'done.json')
  if not done:
    return {}
  return dict(compilers_flops=done['flops'])


# --- Compiling ------------------------------------------------------------------------------------


def _compile(
    job: str,
    folder: pathlib.Path,
    full: bool,
) -> dict[str, Any] | None:
  """Runs compile_ahead.py until the schedule is there (`full`: to the end); returns error.json's content, or None."""
  paths = [str(ROOT), os.environ.get('PYTHONPATH', '')]
  environment = {**os.environ, 'PYTHONPATH': os.pathsep.join(paths)}
  command = [sys.executable, '-m', 't5like.preflight.compile_ahead', job, str(folder)]
  with open(folder / 'log', 'wb') as log:
    process = subprocess.Popen(
        command,
        stdout=log,
        stderr=log,
        env=environment,
    )
    try:
      is_scheduled = _wait_for(process, folder / 'dump', full)
    finally:
      process.kill()
      process.wait()
  if is_scheduled:
    return None
  error = _read_json(folder / 'error.json')
  if error:
    return error
  if (folder / 'done.json').exists():
    return None
  tail = (folder / 'log').read_text(errors='replace')[-600:]
  text = (f'the compiler ended without a result (exit code {process.returncode}, limit {LIMIT:g} s). '
          f'The last it wrote: {tail}')
  return {'exit_code': 1, 'type': 'Abort', 'text': text}


def _wait_for(
    process: subprocess.Popen[bytes],
    dump: pathlib.Path,
    full: bool,
) -> bool:
  """Whether the schedule is complete before the process ends; `full`: the process is waited for."""
  deadline = time.monotonic() + LIMIT
  size_before = -1
  while process.poll() is None and time.monotonic() < deadline:
    time.sleep(0.3)
    schedule = _dumped(dump, SCHEDULE)
    size = -1
    if schedule:
      size = schedule.stat().st_size
    if not full and size == size_before > 0:
      return True
    size_before = size
  return False


def _dumped(dump: pathlib.Path, kind: str) -> pathlib.Path | None:
  """The newest file of a kind that the compiler has written."""
  if not dump.is_dir():
    return None
  files = sorted(dump.glob(f'*jit_train_step*.{kind}.txt'))
  if not files:
    return None
  return files[-1]


def _read_dumped(dump: pathlib.Path, kind: str) -> str:
  file = _dumped(dump, kind)
  if not file:
    return ''
  return file.read_text()


def _read_json(file: pathlib.Path) -> Any:
  """The output of compile_ahead.py; None where there is none yet."""
  if not file.exists():
    return None
  return json.loads(file.read_text())


def _is_out_of_memory(error: Mapping[str, Any]) -> bool:
  return 'RESOURCE_EXHAUSTED' in error['text'] and 'HBM' in error['text'].upper()


def _short(text: str) -> str:
  return ' '.join(text.split())[:700]


# --- Reading the compiler's dumps -----------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Buffer:
  size: str  # a number of `unit`
  unit: str  # of UNITS
  shapes: str

  @property
  def bytes(self) -> float:
    return float(self.size) * UNITS[self.unit]

  def __str__(self) -> str:
    return f'{self.size} {self.unit}iB {self.shapes[:70]}'


@dataclasses.dataclass(frozen=True)
class _Program:
  """A step as the compiler wrote it."""
  dump: pathlib.Path
  config: Config  # resolved
  topology: Topology
  facts: Mapping[str, Any]  # of compile_ahead.py

  def memory(self, error: Mapping[str, Any] | None) -> Report:
    """HBM of one device, in bytes, by group; its largest buffers. error: why it does not fit."""
    allowed = self.topology.generation.hbm * GIB
    state = self.facts['bytes']
    text = _read_dumped(self.dump, MEMORY)
    used = _used(text, error)
    buffers = _buffers(text)
    activations = 0
    if buffers:
      # Buffers share places at different times, so that they add up to more than is used: their share counts.
      holding_rows = filter(self._holds_rows, buffers)
      activations = used * _total(holding_rows) / _total(buffers)
    hbm = dict(
        allowed=allowed,
        used=used,
        **state,
        activations=activations,
        headroom=max(0, allowed - used),
        temporaries=max(0, used - activations - sum(state.values())),
    )
    fits = not error and used <= allowed
    return dict(fits=fits, hbm=hbm, largest=list(map(str, buffers[:6])))

  def _holds_rows(self, buffer: _Buffer) -> bool:
    """Whether a buffer holds something for each position of each row of a micro-batch."""
    mesh = self.facts['mesh']
    shapes = lengths.shapes(self.config)
    shards = mesh['slice'] * mesh['data'] * mesh['fsdp_outer'] * mesh['fsdp'] * mesh['expert']
    rows = self.config.batch_size // self.config.microbatches // shards
    positions = {length // mesh['context'] for length in (shapes.inputs, shapes.targets) if length}
    for shape in re.findall(r'\[([\d,]*)\]', buffer.shapes):
      dims = set(map(int, re.findall(r'\d+', shape)))
      has_rows = rows == 1 or rows in dims
      if has_rows and positions & dims:
        return True
    return False

  def speed(self, readings: Readings) -> Report:
    """Times, FLOPs and numbers derived from them."""
    prediction, others = self._times(readings)
    topology = self.topology
    peak = topology.generation.flops
    seconds = prediction.seconds
    work = plausible.work(self.config, self.facts, topology.devices)
    plausible.check(prediction, work, topology.generation.fastest(self.config.model.quantization))
    kind = compared.kind_of(
        topology.generation.name,
        self.facts['mesh'],
        _architecture(self.config.model),
        self.facts['kernel'][0],
        topology.slices,
        self.config.model.quantization,
    )
    numbers = config_lib.derived(self.config)
    tokens_per_second = numbers['tokens_per_step'] / seconds
    steps = numbers['steps']
    hours = steps * seconds / 3600
    return dict(
        step_seconds=seconds,
        quantization=self.config.model.quantization,
        times=prediction.times,
        counts=prediction.counts,
        flops=prediction.counts['flops'],
        model_flops=work.model,
        mfu=work.model / seconds / peak,
        mfu_causal=work.least / seconds / peak,
        tokens_per_second=tokens_per_second,
        host_tokens_per_second=tokens_per_second / topology.hosts,
        steps=steps,
        hours=hours,
        chip_hours=hours * topology.chips,
        waits=prediction.waits[:6],
        network=topology.generation.network,
        accuracy=compared.accuracy(kind),
        readings=others,
    )

  def _times(self, readings: Readings) -> tuple[hlo_schedule.Prediction, dict[str, float]]:
    """(prediction, {name: seconds by another reading})."""
    text = _read_dumped(self.dump, SCHEDULE)
    others = {}
    try:
      prediction = hlo_schedule.Schedule(text, self.topology, kernel_calls.flops).predict()
      for name, (kernels, share) in readings.items():
        other = hlo_schedule.Schedule(text, self.topology, kernels, share).predict()
        others[name] = other.seconds
    except hlo.Unreadable as e:
      version = importlib.metadata.version('libtpu')
      raise ConfigError(f'The time of this program cannot be predicted: {e}. It was compiled by libtpu {version} for '
                        f'{self.topology.name}.') from e
    return prediction, others


def _used(text: str, error: Mapping[str, Any] | None) -> float:
  """Bytes of HBM that a program uses, of its report; where it does not fit those that the error names, if more."""
  used = 0
  total = re.search(r'Memory Space: default.*?\nTotal bytes: (\d+)', text)
  if total:
    used = int(total[1])
  if not error:
    return used
  needed = re.search(r'(?:Used |\()([\d.]+)([GM])i?B?\)? (?:exceeds|of)', error['text'])
  if not needed:
    return used
  size, unit = needed.groups()
  return max(used, float(size) * UNITS[unit])


def _buffers(text: str) -> list[_Buffer]:
  """Of a report, the largest first."""
  buffers = re.findall(r'\(\s*\d+%\);\s*([\d.]+)([GMK])iB;\s*\d+;\s*\d+; (.+)', text)
  return [_Buffer(*fields) for fields in buffers]


def _total(buffers: Iterable[_Buffer]) -> float:
  return sum(buffer.bytes for buffer in buffers)


def _architecture(model: Section) -> str:
  """What predictions are compared by: a model with experts is of another kind than one without."""
  if model.experts:
    return f'{model.name} with experts, as many tokens for each'
  return model.name
