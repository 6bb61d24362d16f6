"""What must not change a run, tried on this machine with these versions: `python main.py selftest`.

Each check trains a tiny decoder a few steps in two ways, in processes of their own, and compares every loss. On a
machine without accelerators they see 8 virtual CPU devices, else the real ones. Nothing is downloaded.
"""
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from t5like.config.values import ROOT
from t5like.config_type import Config
from t5like.errors import ConfigError
from t5like.files import plain_json

STEPS = 8
LIMIT = 2e-5  # nats per token; 0 where the same numbers are added in the same order
BATCH_SIZE = 16
SEQ_LEN = 64
CPU_DEVICES = 8  # virtual ones
SETTINGS = f'''batch_size={BATCH_SIZE} log.every=1 log.trackers=() evaluate.every=0 evaluate.batches=1
sample.prompts=() schedule.name=constant schedule.warmup_steps=2 optimizer.learning_rate=0.003 checkpoint.every=4
data.max_documents=40 data.source=python_docs data.seq_len={SEQ_LEN} data.packing=best_fit vocabulary.name=bytes
vocabulary.sentinels=0 model.vocab_size=384 model.d_model=64 model.num_layers=2 model.num_heads=4
model.num_kv_heads=4 model.d_ff=128 model.dropout=0.1 model.dtype=float32'''
CONFIG = 'from t5like.config import base\n\n\ndef get_config():\n  return base()\n'
COMPARED = ('loss', 'grad_norm')  # at every step; the validation's nll only at the last one
DEVICES_PROGRAM = 'import jax; print(jax.default_backend(), jax.device_count())'
PACKING_PROGRAM = 'from t5like import selftest; print(selftest.packing())'


class Check(NamedTuple):
  """compared: what is done the other way; ways: config overrides of each way; limit: the largest difference allowed."""
  compared: str
  ways: Sequence[str]
  limit: float


class Outcome(NamedTuple):
  """difference: the largest one, None if the check did not finish; problem: '' if the check holds."""
  name: str
  compared: str
  difference: float | None
  limit: float
  seconds: float
  problem: str


CHECKS = dict(
    replay=Check('the same again', [''], 0),
    resume=Check('stopped after half of the steps', [''], 0),
    workers=Check('rows made by 2 processes', ['data.workers=2'], 0),
    accumulation=Check('2 micro-batches', ['microbatches=2 model.dropout=0'], LIMIT),
    scan=Check('layers unrolled', ['model.scan_layers=False'], LIMIT),
    remat=Check('activations computed again', ['model.remat=full', 'model.remat=minimal'], LIMIT),
    mesh=Check('other meshes', ['mesh.data=-1 mesh.fsdp=1', 'mesh.tensor=2', 'mesh.context=2'], LIMIT),
    hosts=Check('2 processes', [''], LIMIT),
    packing=Check('texts alone, not packed', [''], LIMIT),
)


def selftest(
    only: Sequence[str] = (),
    say: Callable[[str], None] = print,
) -> list[Outcome]:
  """Runs the checks named in `only`, by default all. ConfigError for a name that is not a key of CHECKS."""
  for name in only:
    if name not in CHECKS:
      raise ConfigError(f'--only={name}: no such check. There are {", ".join(CHECKS)}.')
  platform, device_count = _devices()
  outcomes = []
  with tempfile.TemporaryDirectory(prefix='t5like-selftest-') as folder:
    trainer = _Trainer(pathlib.Path(folder), platform)
    for name in only or CHECKS:
      started = time.monotonic()
      difference = None
      problem = _obstacle(name, platform, device_count)
      if not problem:
        say(f'{name} ...')
        difference, problem = _attempt(name, trainer)
      check = CHECKS[name]
      outcomes.append(Outcome(
          name=name,
          compared=check.compared,
          difference=difference,
          limit=check.limit,
          seconds=time.monotonic() - started,
          problem=problem,
      ))
  return outcomes


def _obstacle(name: str, platform: str, device_count: int) -> str:
  """Why a check cannot run on this machine, '' if it can."""
  if name == 'hosts' and platform != 'cpu':
    return 'skipped: a host owns all accelerators of its machine'
  if name == 'mesh' and device_count % 2:
    return 'skipped: needs several devices, an even number'
  return ''


def _attempt(name: str, trainer: '_Trainer') -> tuple[float | None, str]:
  """(largest difference, problem) of a check."""
  check = CHECKS[name]
  try:
    difference = _largest(_difference(name, way, trainer) for way in check.ways)
  except _Ended as e:
    return None, f'FAILED: {e}'
  if difference <= check.limit:
    return difference, ''
  return difference, 'FAILED'


class _Ended(Exception):
  """A run that did not reach its end."""


def _devices() -> tuple[str, int]:
  """(platform, number of devices) of a run; found in a process of its own, for TPUs belong to one process."""
  done = subprocess.run([sys.executable, '-c', DEVICES_PROGRAM], capture_output=True, text=True)
  if done.returncode:
    raise ConfigError(f'JAX finds no device here: {done.stderr.strip()[-300:]}')
  *_, platform, count = done.stdout.split()
  if platform == 'cpu':
    return platform, CPU_DEVICES
  return platform, int(count)


def _difference(name: str, way: str, trainer: '_Trainer') -> float:
  """The largest difference between the losses of a plain run and of one the other way."""
  if name == 'packing':
    output = _run([sys.executable, '-c', PACKING_PROGRAM], trainer.platform)
    return float(output.split()[-1])
  plain = trainer.plain('model.dropout=0' if 'model.dropout=0' in way else '')
  if name == 'resume':
    half = STEPS // 2 * BATCH_SIZE * SEQ_LEN
    trainer.losses(name, f'stop.tokens={half}')
    other = trainer.losses(name, '')
  elif name == 'hosts':
    other = trainer.losses(name, '', processes=2)
  else:
    run_name = re.sub(r'\W', '', f'{name}{way}')
    other = trainer.losses(run_name, way)
  if len(other) != len(plain):
    raise _Ended(f'{len(other)} losses instead of {len(plain)}')
  differences = np.subtract(other, plain)
  return _largest(np.abs(differences))


def _largest(differences: Iterable[float]) -> float:
  """The largest number, NaN if one is NaN: Python's max would ignore it."""
  return float(np.max([*differences]))


class _Trainer:
  """Trains the tiny decoder in processes of their own, in a temporary folder."""

  def __init__(self, folder: pathlib.Path, platform: str) -> None:
    self.folder = folder
    self.platform = platform
    self.plain_losses: dict[str, list[float]] = {}  # by overrides
    (folder / 'config.py').write_text(CONFIG)

  def plain(self, overrides: str) -> list[float]:
    """The numbers of the run that others are compared with; trained once."""
    if overrides not in self.plain_losses:
      run_name = f'plain{len(self.plain_losses)}'
      self.plain_losses[overrides] = self.losses(run_name, overrides)
    return self.plain_losses[overrides]

  def losses(
      self,
      run_name: str,
      overrides: str,
      processes: int = 1,
  ) -> list[float]:
    """Losses, gradient norms and the last validation's nll of a run. _Ended if it fails."""
    total = STEPS * BATCH_SIZE * SEQ_LEN
    workdir = self.folder / run_name
    settings = [
        f'stop.tokens={total}',
        *SETTINGS.split(),
        'mesh.fsdp=-1',
        *overrides.split(),
        f'data.directory={self.folder}/prepared',
        f'compile.cache={self.folder}/cache',
    ]
    argv = [
        f'--config={self.folder}/config.py',
        f'--workdir={workdir}',
    ]
    argv += [f'--config.{setting}' for setting in settings]
    program = _program(processes)
    _run([sys.executable, *program, *argv], self.platform)
    return _numbers(workdir / 'metrics.jsonl')


def _program(processes: int) -> list[str]:
  """What trains in this number of processes: a file and its arguments."""
  if processes == 1:
    return [str(ROOT / 'main.py')]
  return [
      str(ROOT / 'launch/local.py'),
      f'--processes={processes}',
      f'--devices_per_process={CPU_DEVICES // processes}',
  ]


def _numbers(file: pathlib.Path) -> list[float]:
  """The numbers of a metrics.jsonl that are compared, in the order of the file."""
  numbers = []
  for line in file.read_text().strip().split('\n'):
    values = json.loads(line)
    for key, value in values.items():
      is_last_validation = key == 'validation/nll' and values['step'] == STEPS
      if key in COMPARED or is_last_validation:
        numbers.append(plain_json.number(value))
  return numbers


def _run(command: list[str], platform: str) -> str:
  """The output of a program that sees all devices. _Ended if it fails."""
  done = subprocess.run(
      command,
      env=_environment(platform),
      cwd=ROOT,
      capture_output=True,
      text=True,
  )
  if done.returncode:
    output = done.stdout + done.stderr
    lines = [line for line in output.splitlines() if line.strip()]
    last_lines = ' '.join(lines[-3:])
    raise _Ended(f'exit code {done.returncode}: {last_lines[-200:]}')
  return done.stdout


def _environment(platform: str) -> dict[str, str]:
  env = dict(os.environ)
  # Not the shortcuts that accelerators take with fp32 products: they would hide what is compared.
  env['JAX_DEFAULT_MATMUL_PRECISION'] = 'highest'
  path = [str(ROOT)]
  if env.get('PYTHONPATH'):
    path.append(env['PYTHONPATH'])
  env['PYTHONPATH'] = os.pathsep.join(path)
  if platform == 'cpu':
    flags = re.sub(r'--xla_force_host_platform_device_count=\d+', '', env.get('XLA_FLAGS', ''))
    env['JAX_PLATFORMS'] = 'cpu'
    env['XLA_FLAGS'] = f'{flags} --xla_force_host_platform_device_count={CPU_DEVICES}'.strip()
  return env


def packing() -> float:
  """The largest difference between logits of texts that share a row and of the same texts in rows of their own."""
  import jax

  from t5like import config as config_lib, sharding
  from t5like.model import transformer
  config = config_lib.resolve(_packing_config())
  model_config = transformer.ModelConfig.of(config.model)
  sizes = (9, 30, 17)
  batch = _packing_batch(sizes)
  mesh = sharding.make_mesh(dict(fsdp=1), jax.devices()[:1])
  with jax.set_mesh(mesh):
    model = transformer.build(model_config)
    init = jax.jit(model.init)
    apply = jax.jit(model.apply)
    params = init(jax.random.key(0))
    logits_BTV = np.asarray(apply(params, batch))
  differences = []
  start = 0
  for row, size in enumerate(sizes, 1):
    packed_TV = logits_BTV[0, start:start + size]
    alone_TV = logits_BTV[row, :size]
    difference_TV = np.abs(packed_TV - alone_TV)
    differences.append(difference_TV.max())
    start += size
  return _largest(differences)


def _packing_config() -> Any:
  from t5like.config import base
  config: Config = base()
  for setting in SETTINGS.split():
    key, _, value = setting.partition('=')
    if key.startswith('model.') and 'dropout' not in key:
      name = key.removeprefix('model.')
      kind = type(config.model[name])
      config.model[name] = kind(value)
  return config


def _packing_batch(sizes: Sequence[int]) -> dict[str, np.ndarray]:
  """Row 0 holds all texts one after another, row n only the n-th; int32 [B, T]."""
  rng = np.random.default_rng(0)
  shape = (1 + len(sizes), SEQ_LEN)
  batch = dict(
      inputs=np.zeros(shape, np.int32),
      positions=np.zeros(shape, np.int32),
      segments=np.zeros(shape, np.int32),
  )
  start = 0
  for n, size in enumerate(sizes, 1):
    ids = rng.integers(3, 300, size)
    for row, first, segment in ((0, start, n), (n, 0, 1)):
      place = slice(first, first + size)
      batch['inputs'][row, place] = ids
      batch['segments'][row, place] = segment
      batch['positions'][row, place] = np.arange(size)
    start += size
  return batch


def show(outcomes: Sequence[Outcome]) -> None:
  """Prints a table of outcomes, and the versions."""
  import importlib.metadata
  import platform

  from rich.console import Console
  from rich.table import Table
  console = Console(highlight=False)
  table = Table(
      'check',
      'compared with',
      'difference',
      'limit',
      'seconds',
      'result',
      box=None,
      pad_edge=False,
  )
  for outcome in outcomes:
    table.add_row(*_cells(outcome))
  console.print(table)
  packages = ('jax', 'jaxlib', 'flax', 'optax', 'grain')
  versions = ', '.join(f'{package} {importlib.metadata.version(package)}' for package in packages)
  console.print(f'Python {platform.python_version()}, {versions}; largest difference of losses (nats), gradient norms '
                f'or logits over {STEPS} steps.', style='dim')


def _cells(outcome: Outcome) -> list[str]:
  """A row of the table."""
  from rich import markup
  difference = ''
  if outcome.difference is not None:
    difference = f'{outcome.difference:.2g}'
  limit = f'{outcome.limit:.0e}' if outcome.limit else '0'
  problem = markup.escape(outcome.problem)
  result = problem or '[green]ok[/]'
  if 'FAILED' in outcome.problem:
    result = f'[red]{problem}[/]'
  return [outcome.name, outcome.compared, difference, limit, f'{outcome.seconds:.0f}', result]
