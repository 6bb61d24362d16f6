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

import numpy as np

from t5like import plain_json
from t5like.errors import ConfigError

ROOT = pathlib.Path(__file__).resolve().parent.parent
STEPS, LIMIT = 8, 2e-5  # nats per token; 0 where the same numbers are added in the same order
SETTINGS = '''batch_size=16 log.every=1 log.trackers=() evaluate.every=0 evaluate.batches=1 sample.prompts=()
schedule.name=constant schedule.warmup_steps=2 optimizer.learning_rate=0.003 checkpoint.every=4 data.max_documents=40
data.source=python_docs data.seq_len=64 data.packing=best_fit vocabulary.name=bytes vocabulary.sentinels=0
model.vocab_size=384 model.d_model=64 model.num_layers=2 model.num_heads=4 model.num_kv_heads=4 model.d_ff=128
model.dropout=0.1 model.dtype=float32'''
# Name: (what is done the other way, config overrides of each way, limit).
CHECKS = dict(
    replay=('the same again', [''], 0),
    resume=('stopped after half of the steps', ['stop.tokens=HALF'], 0),
    workers=('rows made by 2 processes', ['data.workers=2'], 0),
    accumulation=('2 micro-batches', ['microbatches=2 model.dropout=0'], LIMIT),
    scan=('layers unrolled', ['model.scan_layers=False'], LIMIT),
    remat=('activations computed again', ['model.remat=full', 'model.remat=minimal'], LIMIT),
    mesh=('other meshes', ['mesh.data=-1 mesh.fsdp=1', 'mesh.tensor=2', 'mesh.context=2'], LIMIT),
    hosts=('2 processes', ['2'], LIMIT),
    packing=('texts alone, not packed', [''], LIMIT))


def selftest(only=(), say=print):
  """Runs the checks; returns [(name, what was compared, largest difference or None, limit, seconds, problem)]."""
  for name in only:
    if name not in CHECKS:
      raise ConfigError(f'--only={name}: no such check. There are {", ".join(CHECKS)}.')
  platform, count = _devices()
  found = []
  with tempfile.TemporaryDirectory(prefix='t5like-selftest-') as folder:
    folder = pathlib.Path(folder)
    (folder / 'config.py').write_text('from configs.base import base\n\n\ndef get_config():\n  return base()\n')
    plain = {}
    for name in only or CHECKS:
      what, ways, limit = CHECKS[name]
      started = time.monotonic()
      difference, problem = None, _cannot(name, platform, count)
      if not problem:
        say(f'{name} ...')
        try:
          difference = _largest(_difference(folder, name, way, plain, platform) for way in ways)
          problem = '' if difference <= limit else 'FAILED'
        except _Ended as e:
          problem = f'FAILED: {e}'
      found.append((name, what, difference, limit, time.monotonic() - started, problem))
  return found


def _cannot(name, platform, count):
  if name == 'hosts' and platform != 'cpu':
    return 'skipped: a host owns all accelerators of its machine'
  return 'skipped: needs several devices, an even number' if name == 'mesh' and count % 2 else ''


class _Ended(Exception):
  """A run that did not reach its end."""


def _devices():
  """(platform, number of devices) that a run sees; asked in a process of its own, for TPUs belong to one."""
  asked = subprocess.run([sys.executable, '-c', 'import jax; print(jax.default_backend(), jax.device_count())'],
                         capture_output=True, text=True)
  if asked.returncode:
    raise ConfigError(f'JAX finds no device here: {asked.stderr.strip()[-300:]}')
  platform, count = asked.stdout.split()[-2:]
  return platform, 8 if platform == 'cpu' else int(count)


def _difference(folder, name, way, plain, platform):
  """The largest difference between the losses of a plain run and of one the other way."""
  if name == 'packing':
    done = _run([sys.executable, '-c', 'from t5like import selftest; print(selftest.packing())'], 8, platform)
    return float(done.split()[-1])
  drop = 'model.dropout=0' if 'model.dropout=0' in way else ''
  if drop not in plain:
    plain[drop] = _losses(folder, f'plain{len(plain)}', drop, platform)
  if name == 'resume':
    half = STEPS // 2 * 16 * 64
    _losses(folder, name, f'stop.tokens={half}', platform)
    other = _losses(folder, name, '', platform)
  elif name == 'hosts':
    other = _losses(folder, name, '', platform, processes=2)
  else:
    other = _losses(folder, re.sub(r'\W', '', f'{name}{way}'), way, platform)
  if len(other) != len(plain[drop]):
    raise _Ended(f'{len(other)} losses instead of {len(plain[drop])}')
  return _largest(abs(a - b) for a, b in zip(other, plain[drop]))


def _largest(differences):
  """The largest number, NaN if one is NaN: Python's max would pass it over."""
  return float(np.max([*differences]))


def _losses(folder, name, overrides, platform, processes=1):
  settings = [f'stop.tokens={STEPS * 16 * 64}', *SETTINGS.split(), 'mesh.fsdp=-1', *overrides.split()]
  argv = [f'--config={folder}/config.py', f'--workdir={folder}/{name}', f'--config.data.directory={folder}/prepared',
          f'--config.compile.cache={folder}/cache', *(f'--config.{setting}' for setting in settings)]
  start = [str(ROOT / 'main.py')]
  if processes > 1:
    start = [str(ROOT / 'launch/local.py'), f'--processes={processes}', f'--devices_per_process={8 // processes}']
  _run([sys.executable, *start, *argv], 8, platform)
  lines = map(json.loads, (folder / name / 'metrics.jsonl').read_text().strip().split('\n'))
  compared = ('loss', 'grad_norm', 'validation/nll')
  return [plain_json.number(value) for line in lines for key, value in line.items()
          if key in compared and (key != 'validation/nll' or line['step'] == STEPS)]


def _run(command, devices, platform):
  # Not the shortcuts that accelerators take with fp32 products: they would hide what is compared.
  env = dict(os.environ, JAX_DEFAULT_MATMUL_PRECISION='highest', PYTHONPATH=os.pathsep.join(
      [str(ROOT), *filter(None, [os.environ.get('PYTHONPATH')])]))
  if platform == 'cpu':
    flags = re.sub(r'--xla_force_host_platform_device_count=\d+', '', env.get('XLA_FLAGS', ''))
    env.update(JAX_PLATFORMS='cpu', XLA_FLAGS=f'{flags} --xla_force_host_platform_device_count={devices}'.strip())
  done = subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True)
  if done.returncode:
    said = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
    raise _Ended(f'exit code {done.returncode}: ' + ' '.join(said[-3:])[-200:])
  return done.stdout


def packing():
  """The largest difference between logits of texts that share a row and of the same texts in rows of their own."""
  import jax

  from configs.base import base
  from t5like import config as config_lib, sharding
  from t5like.model import transformer
  c = base()
  for setting in SETTINGS.split():
    key, _, value = setting.partition('=')
    if key.startswith('model.') and 'dropout' not in key:
      c.model[key.removeprefix('model.')] = type(c.model[key.removeprefix('model.')])(value)
  rng, sizes = np.random.default_rng(0), (9, 30, 17)
  texts = [rng.integers(3, 300, n) for n in sizes]
  batch = {k: np.zeros((4, 64), np.int32) for k in ('inputs', 'positions', 'segments')}
  at = 0
  for n, ids in enumerate(texts, 1):
    for row, start, segment in ((0, at, n), (n, 0, 1)):
      place = slice(start, start + len(ids))
      batch['inputs'][row, place], batch['segments'][row, place] = ids, segment
      batch['positions'][row, place] = np.arange(len(ids))
    at += len(ids)
  with jax.set_mesh(sharding.make_mesh(dict(fsdp=1), jax.devices()[:1])):
    model = transformer.build(transformer.ModelConfig(**config_lib.resolve(c).model))
    logits = np.asarray(jax.jit(model.apply)(jax.jit(model.init)(jax.random.key(0)), batch))
  ends = np.cumsum(sizes)
  rows = enumerate(zip(sizes, ends), 1)
  return _largest(np.abs(logits[0, end - n:end] - logits[k, :n]).max() for k, (n, end) in rows)


def show(found):
  """Prints a table of what `selftest` returns, and the versions."""
  import importlib.metadata
  import platform

  from rich.console import Console
  from rich.table import Table
  console, table = Console(highlight=False), Table('check', 'compared with', 'difference', 'limit', 'seconds', 'result',
                                                   box=None, pad_edge=False)
  for name, what, difference, limit, seconds, problem in found:
    table.add_row(name, what, '' if difference is None else f'{difference:.2g}', f'{limit:.0e}' if limit else '0',
                  f'{seconds:.0f}', f'[red]{problem}[/]' if 'FAILED' in problem else problem or '[green]ok[/]')
  console.print(table)
  versions = ', '.join(f'{p} {importlib.metadata.version(p)}' for p in ('jax', 'jaxlib', 'flax', 'optax', 'grain'))
  console.print(f'Python {platform.python_version()}, {versions}; largest difference of losses (nats), gradient norms '
                f'or logits over {STEPS} steps.', style='dim')
