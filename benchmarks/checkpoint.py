"""What checkpoints cost: time of a run that saves once a minute, and memory of reading one.

    python benchmarks/checkpoint.py [--millions=100] [--minutes=3]

A decoder of so many million parameters, fp32 with Adam's moments, trains on one device. Every minute it saves. The
time lost to a save is what the loop stands still for it, and what steps take longer while it is written than the
median of the others. Memory is that of a process of its own, its peak while it restores less what it held before.
"""
import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import jax
import numpy as np

from t5like import sharding
from t5like.config import base
from t5like.model import models
from t5like.storage.checkpoint import Checkpoints
from t5like.training import build, step as step_lib

SEQ, MINUTE = 64, 60.0


def config(millions):
  """About so many million parameters, most of them in 12 layers."""
  c = base()
  d = round((millions * 1e6 / (12 * 12)) ** 0.5 / 64) * 64
  c.model.update(vocab_size=1024, d_model=d, num_layers=12, num_heads=d // 64, num_kv_heads=d // 64, d_ff=4 * d,
                 activation='gelu', dtype='float32')
  c.batch_size, c.data.seq_len = 1, SEQ
  return c


def prepare(millions):
  """(mesh, tx, model, train_step, abstract state), on one device."""
  c = config(millions)
  mesh = sharding.make_mesh(c.mesh, jax.devices()[:1])
  with jax.set_mesh(mesh):
    sized = models.with_vocabulary(c, argparse.Namespace(size=1000))
    model, _ = models.build_model(sized)
    tx, train_step, *_ = build.build_step(sized, model, 1000, mesh)
    init = lambda: step_lib.init_state(model, tx, 0)
    return mesh, train_step, init, sharding.abstract(init, mesh)


def batch():
  ids = np.random.default_rng(0).integers(1, 1000, (1, SEQ + 1)).astype(np.int32)
  return dict(inputs=ids[:, :-1], targets=ids[:, 1:], weights=np.ones((1, SEQ), np.float32),
              positions=np.arange(SEQ, dtype=np.int32)[None], segments=np.ones((1, SEQ), np.int32))


def cost(millions, minutes, workdir):
  """Prints the seconds that each save cost, and the share of a minute."""
  mesh, train_step, init, abstract = prepare(millions)
  size = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(abstract))
  lost, blocked, written = [], [], []
  with jax.set_mesh(mesh), Checkpoints(workdir) as checkpoints:
    state, data = jax.jit(init)(), sharding.to_global(mesh, batch())
    state, metrics = jax.block_until_ready(train_step(state, data))
    for n in range(minutes + 1):
      start, during, others, done = time.perf_counter(), [], [], None
      if n:
        checkpoints.save(n, state, dict(step=n))
        blocked.append(time.perf_counter() - start)
      while time.perf_counter() - start < MINUTE:
        before = time.perf_counter()
        state, metrics = jax.block_until_ready(train_step(state, data))
        busy = n and done is None
        (during if busy else others).append(time.perf_counter() - before)
        if busy and (checkpoints.directory / str(n) / 'commit_success.txt').exists():
          done = time.perf_counter() - start
      if n:
        checkpoints.wait()
        usual = statistics.median(others)
        written.append(done)
        lost.append(blocked[-1] + sum(during) - len(during) * usual)
        print(f'save {n}: stood still {blocked[-1]:.2f} s, written after {done:.1f} s, steps meanwhile '
              f'{statistics.mean(during) / usual:.3f} x as long; lost {lost[-1]:.2f} s', flush=True)
  share = statistics.median(lost) / MINUTE
  print(f'{size / 1e9:.2f} GB of state, steps of {usual:.2f} s: a save stands still for '
        f'{statistics.median(blocked):.2f} s and costs {statistics.median(lost):.2f} s in all (medians of {minutes}), '
        f'{share:.2%} of a minute')
  return size


def peak():
  """The most bytes of memory that this process held (Linux)."""
  with open('/proc/self/status') as f:
    return next(int(line.split()[1]) * 1024 for line in f if line.startswith('VmHWM'))


def memory(millions, workdir):
  """Prints how much more memory than the state itself a restore takes; in a process of its own."""
  mesh, train_step, init, abstract = prepare(millions)
  with jax.set_mesh(mesh), Checkpoints(workdir) as checkpoints:
    with open('/proc/self/clear_refs', 'w') as f:
      f.write('5')  # the peak is that from here on
    before, start = peak(), time.perf_counter()
    state, _ = checkpoints.restore(abstract)
    seconds = time.perf_counter() - start
  size = sum(x.nbytes for x in jax.tree.leaves(state))
  print(f'restore: {seconds:.1f} s, peak memory {(peak() - before) / size:.2f} x the state')


if __name__ == '__main__':
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument('--millions', type=int, default=100)
  parser.add_argument('--minutes', type=int, default=3)
  parser.add_argument('--restore_from', help='only this: memory of restoring')
  args = parser.parse_args()
  if args.restore_from:
    memory(args.millions, args.restore_from)
  else:
    with tempfile.TemporaryDirectory() as folder:
      cost(args.millions, args.minutes, folder)
      subprocess.run([sys.executable, os.path.abspath(__file__), f'--millions={args.millions}',
                      f'--restore_from={folder}'], check=True)
