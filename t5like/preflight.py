"""Says before a pod is booked whether a config fits it, how fast it will train, and what would be faster.

The TPU compiler runs here, on a CPU, up to the schedule of the very train step (aot.py, a process that is
ended when the schedule is there: what follows takes minutes and changes nothing that is said here).
`schedule.py` turns the schedule into a time. MFU is told in two conventions: PaLM's (full attention), which
training reports too, and with half of attention, which is what causal kernels do.
"""
import importlib.util
import json
import math
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import time

from t5like import config as config_lib, lengths, schedule
from t5like.errors import ConfigError

LIMIT = 900.0  # seconds for one compilation
HEADROOM = 0.97  # share of HBM above which the compiler stops overlapping, and fragmentation may not leave room
ROOT = pathlib.Path(__file__).resolve().parent.parent
GIB = 2 ** 30
FUSED_REDUCE_SCATTER = dict(xla_tpu_enable_async_collective_fusion_fuse_reduce_scatter='true',
                            xla_enable_async_reduce_scatter_fusion='ENABLED')


def predict(config, topology, full=False):
  """What is known of a step of `config` on a tpu.Topology, as a dict for JSON (see `describe`).

  `fits` is False where HBM is too small, and then there is no time. ConfigError for a config that cannot run
  there, or without libtpu. `full`: all of the compilation, which finds kernels that need too much VMEM.
  """
  if not importlib.util.find_spec('libtpu'):
    raise ConfigError("preflight needs the TPU compiler, which runs on any Linux machine: pip install -e '.[tpu]'")
  resolved = config_lib.resolve(config)
  if not resolved.model.vocab_size:
    raise ConfigError('model.vocab_size=0: preflight has no data to count the vocabulary of. Set model.vocab_size.')
  with tempfile.TemporaryDirectory(prefix='t5like-preflight-') as folder:
    folder = pathlib.Path(folder)
    job = json.dumps(dict(config=config_lib.to_json(config), topology=topology.name,
                          options=config.compile.options.to_dict()))
    started = time.monotonic()
    error = _compile(job, folder, full)
    seconds = time.monotonic() - started
    facts = json.loads((folder / 'facts.json').read_text()) if (folder / 'facts.json').exists() else None
    if error and not _is_out_of_memory(error):
      raise ConfigError(f'{topology.name} cannot run this config: {_short(error["text"])}')
    report = dict(topology=topology.name, chips=topology.chips, hosts=topology.hosts, config_batch=config.batch_size,
                  compile_seconds=round(seconds, 1), libtpu=_version('libtpu'), jax=_version('jax'), **facts)
    report.update(_memory(folder / 'dump', topology, facts, error))
    if not error:
      report.update(_speed(folder / 'dump', resolved, topology, facts))
    return report


def _compile(job, folder, full):
  """Runs aot.py until the schedule is there (`full`: to the end); returns error.json's content, or None."""
  environment = dict(os.environ, PYTHONPATH=f'{ROOT}{os.pathsep}{os.environ.get("PYTHONPATH", "")}')
  with open(folder / 'log', 'wb') as log:
    process = subprocess.Popen([sys.executable, '-m', 't5like.aot', job, str(folder)], stdout=log, stderr=log,
                               env=environment)
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


def _memory(dump, topology, facts, error):
  """HBM of one device, in bytes, by group; its largest buffers."""
  allowed, state = topology.generation.hbm * GIB, facts['bytes']
  path = _dumped(dump, 'after_optimizations-memory-usage-report')
  text = path.read_text() if path else ''
  total = re.search(r'Memory Space: default.*?\nTotal bytes: (\d+)', text)
  used = int(total[1]) if total else 0
  if error:
    asked = re.search(r'(?:Used |\()([\d.]+)([GM])i?B?\)? (?:exceeds|of)', error['text'])
    used = max(used, float(asked[1]) * (GIB if asked[2] == 'G' else 2 ** 20) if asked else 0)
  largest = re.findall(r'([\d.]+[GMK]iB)\(\s*\d+%\);\s*([\d.]+[GMK]iB);\s*\d+;\s*\d+; (.+)', text)[:6]
  return dict(fits=not error and used <= allowed, hbm=dict(
      allowed=allowed, used=used, **state, temporaries=max(0, used - sum(state.values()))),
      largest=[f'{size} {shapes[:70]}' for _, size, shapes in largest])


def _speed(dump, config, topology, facts):
  """Times, FLOPs and what follows from them."""
  text = _dumped(dump, 'after_optimizations_after_buffer_assignment').read_text()
  read = schedule.Schedule(text, topology, lambda op, operands: kernel_flops(config, op, operands))
  seconds, times, waits, flops = read.predict()
  rows = config.batch_size / topology.devices
  model_flops = facts['flops_per_row'] * rows
  causal = (facts['flops_per_row'] - _half_attention(config)) * rows
  peak, numbers = topology.generation.flops, config_lib.derived(config)
  tokens = numbers['tokens_per_step']
  return dict(
      step_seconds=seconds, times={k: v for k, v in times.items() if k != 'flops'}, flops=flops,
      model_flops=model_flops, mfu=model_flops / seconds / peak, mfu_causal=causal / seconds / peak,
      tokens_per_second=tokens / seconds, host_tokens_per_second=tokens / seconds / topology.hosts,
      steps=numbers['steps'], hours=numbers['steps'] * seconds / 3600,
      chip_hours=numbers['steps'] * seconds / 3600 * topology.chips,
      waits=[(t, name, what) for t, name, what in waits[:6]], accuracy=topology.generation.validated)


def _half_attention(config):
  """FLOPs of one row that a causal mask spares."""
  shapes, m = lengths.shapes(config), config.model
  return 6 * m.num_heads * m.head_dim * m.num_layers * shapes.targets ** 2 if m.name != 'encoder' else 0


def kernel_flops(config, op, operands):
  """FLOPs of a call of an attention kernel, ours (which say when they are causal) or splash, from its operands."""
  arrays = [a.dims for a in operands if len(a.dims) >= 3 and a.dims[-1] == config.model.head_dim]
  if len(arrays) < 2:
    return 0
  query, key = arrays[:2]
  T, S = query[-2], key[-2]
  causal = 'causal' in op.name or 'relative_bias' not in op.name and T == S and config.model.name != 'encoder' and (
      config.model.name == 'decoder' or T == lengths.shapes(config).targets)
  forward = 4 * math.prod(query) * S * (0.5 if causal else 1)
  return forward * (2.5 if re.search('dkv|dq|bwd|backward', op.name) else 1)


# --- Searching ----------------------------------------------------------------------------------


def candidates(config, topology):
  """Overrides to try, as dicts {key: value}, the config's own first."""
  splits = [{}]
  if config.mesh.tensor == 1 and config.mesh.context == 1 and config.mesh.data == 1:
    splits += [{'mesh.data': n} for n in (2, 4) if topology.devices // topology.slices % n == 0]
  for split in splits:
    for scan in (True, False):
      for remat in ('minimal', 'full', 'none'):
        for options in [{}] + [FUSED_REDUCE_SCATTER] * (topology.generation.name == 'v5e' and bool(split)):
          yield {**split, 'model.scan_layers': scan, 'model.remat': remat,
                 **({'compile.options': options} if options else {})}


def changed(config, overrides):
  """A copy of a config with {key: value} set."""
  config = config.copy_and_resolve_references()
  with config.unlocked():
    for key, value in overrides.items():
      section, _, name = key.rpartition('.')
      (config[section] if section else config)[name] = value
  return config


def search(config, topology, say=print):
  """[(overrides, report)] of all candidates that fit, the fastest first; `say` is told of each."""
  found = []
  for overrides in candidates(config, topology):
    name = ' '.join(f'{key}={"fused reduce-scatter" if key == "compile.options" else value}'
                    for key, value in overrides.items())
    try:
      report = predict(changed(config, overrides), topology)
    except ConfigError as e:
      say(f'{name}: {e}')
      continue
    gib = report['hbm']['used'] / GIB
    if report['fits']:
      found.append((overrides, report))
      say(f'{name}: {report["step_seconds"] * 1e3:.1f} ms, {gib:.1f} GiB')
    else:
      say(f'{name}: does not fit ({gib:.1f} GiB)')
  return sorted(found, key=lambda pair: pair[1]['step_seconds'])


def front(found):
  """Those of `search` that none is both faster and smaller than."""
  best, kept = math.inf, []
  for overrides, report in found:
    if report['hbm']['used'] < best:
      best = report['hbm']['used']
      kept.append((overrides, report))
  return kept
