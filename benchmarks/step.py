"""Tokens/s and MFU of the train step of a config, on whatever device is here.

    python benchmarks/step.py --config=configs/gpt2.py [--config.batch_size=8 ...]
    python benchmarks/step.py --compare [--cores=1]               # pip install -e '.[parity]'
    python benchmarks/step.py --loop

--compare times whole train steps of a decoder, an encoder-decoder and an encoder of about 10M parameters
(benchmarks/step_shapes.py, fp32 on CPU) beside the same on torch (benchmarks/torch_models.py), each in a process
of its own, in turns; --cores uses that many CPU cores. --loop times three ways to train the same 10M decoder (6
layers, 384 wide, context 256, batch 16) in turns in one process: our whole loop (data, metrics, logging), our
step alone on a fixed batch, and a decoder in plain JAX (benchmarks/plain_jax.py). Quote the ratios.
"""
import contextlib
import dataclasses
import os
import statistics
import sys
import tempfile
import time
from typing import Any

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import jax
import numpy as np
import optax

from benchmarks import plain_jax, step_peers
from t5like import config as config_lib, sharding
from t5like.batches import frames, pipeline
from t5like.model import models
from t5like.observe import metrics
from t5like.prepared import opening
from t5like.training import build, loop, parts, step as step_lib

STEPS, ROUNDS = 3, 7  # steps timed at a time, times


def random_batch(config, rows):
  """A batch of random tokens, a segment to a row, of the form that the config's objective gives."""
  rng = np.random.default_rng(0)

  def fill(batch):
    for key, x in batch.items():
      if key == 'encoder':
        fill(x)
      elif key in ('inputs', 'targets'):
        x[:] = rng.integers(0, config.model.vocab_size, x.shape)
      elif key == 'positions':
        x[:] = np.arange(x.shape[1])
      elif key == 'predict':
        x[:] = np.sort(rng.permutation(config.data.seq_len)[:x.shape[1]])
      elif key != 'prefix':
        x[:] = 1
    return batch
  return fill(frames.frame_of(config).blank(rows))


def timed(run):
  """Seconds per call of `run`, which returns something to wait for, over STEPS calls."""
  start = time.perf_counter()
  for _ in range(STEPS):
    last = run()
  jax.block_until_ready(last)
  return (time.perf_counter() - start) / STEPS


def environment():
  return (f'{jax.device_count()} x {jax.devices()[0].device_kind}, {os.cpu_count()} CPU cores, '
          f'jax {jax.__version__}, Python {sys.version.split()[0]}')


@dataclasses.dataclass
class PreparedStep:
  """A compiled train step on a fixed random batch, and its state."""
  num_params: int
  compile_seconds: float
  compiled: Any
  state: Any
  batch: Any
  model: Any

  def run(self):
    """Starts a step; its metrics, which may not be there yet."""
    self.state, values = self.compiled(self.state, self.batch)
    return values

  def run_to_end(self):
    """Does a step; its loss."""
    values = self.run()
    return float(values['nll'])


def prepare_step(config):
  """Of a resolved config, on the mesh that it names."""
  mesh = sharding.make_mesh(config.mesh)
  with jax.set_mesh(mesh):
    model, count = models.build_model(config)
    tx, train_step, *_ = build.build_step(config, model, 1000, mesh)
    state = jax.jit(lambda: step_lib.init_state(model, tx, 0))()
    batch = sharding.to_global(mesh, random_batch(config, len(sharding.rows_of_host(mesh, config.batch_size))))
    start = time.perf_counter()
    compiled = train_step.lower(state, batch).compile()
  return PreparedStep(count, time.perf_counter() - start, compiled, state, batch, model)


def one_config(config):
  config = config_lib.resolve(config)
  if not config.model.vocab_size:
    raise SystemExit('give --config.model.vocab_size: the vocabulary of this config is not made yet')
  prepared = prepare_step(config)
  print(f'{prepared.num_params:,} parameters; compiled in {prepared.compile_seconds:.1f} s; {environment()}')
  timed(prepared.run)
  seconds = [timed(prepared.run) for _ in range(ROUNDS)]
  mesh, model = sharding.make_mesh(config.mesh), prepared.model
  tokens = config.batch_size * config.data.seq_len
  flops = models.flops_per_row(config, model) / config.data.seq_len
  peak, source = metrics.peak_flops(mesh, config.model.dtype)
  for name, s in (('median', statistics.median(seconds)), ('best', min(seconds))):
    rate = tokens / s
    print(f'{name:6} {s * 1e3:9.1f} ms/step  {rate:12,.0f} tokens/s  MFU {rate * flops / peak:.1%}')
  print(f'MFU counts 6 N + attention (PaLM), of {source}')


def small_decoder():
  from t5like.config import base
  c = base()
  c.data.update(source='markov:26', validation='tail', seq_len=256, document_mask=False,
                directory=os.path.join(tempfile.gettempdir(), 't5like-benchmark'))
  c.vocabulary.update(name='characters', specials=False)
  c.model.update(vocab_size=1024, d_model=384, num_layers=6, num_heads=6, d_ff=1024, dtype='float32')
  c.batch_size = 16
  c.stop.tokens = 10 ** 9
  c.sample.prompts = ()
  c.evaluate.every = c.checkpoint.every = 0
  config_lib.validate(c)
  return c


def compare_loop():
  config = small_decoder()
  store = opening.open_data(config, say=lambda _: None)
  mesh = sharding.make_mesh(dict(data=1, fsdp=1, tensor=1), jax.devices()[:1])
  with contextlib.ExitStack() as ends:
    folder = ends.enter_context(tempfile.TemporaryDirectory())
    run = loop.Run(*parts.open_parts(parts.Request(config, folder, 'benchmark'), store, mesh, ends))
    ends.push(run.close)
    plan, trainer = run.parts.plan, run.parts.trainer
    run.parts.output.screen.console.quiet = True
    fixed = trainer.place(random_batch(plan.config, config.batch_size))
    state = [jax.tree.map(lambda x: x.copy(), trainer.state)]

    def step_alone():
      state[0], values = trainer.train_step(state[0], fixed)
      return values

    m = plan.model.config
    params = plain_jax.init(jax.random.key(0), m.num_layers, m.d_model, m.num_heads, m.d_ff, m.vocab_size)
    tx = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(3e-4, b2=0.95, weight_decay=0.1))
    plain, step = [params, tx.init(params)], plain_jax.make_step(tx)
    inputs, targets = (jax.device_put(np.asarray(fixed[k]), jax.devices()[0]) for k in ('inputs', 'targets'))

    def plain_step():
      plain[0], plain[1], value = step(*plain, inputs, targets)
      return value

    with pipeline.train_batches(run.parts.rows, plan.config) as batches:
      def whole():
        run.progress, batch = run.dispatcher.step(batches, run.progress)
        run.dispatcher.collect(but=1)
        run._between_steps(batch, run._ending())
        return run.dispatcher.pending[-1].metrics
      ways = dict(loop=whole, step=step_alone, plain=plain_step)
      for way in ways.values():
        timed(way)
      seconds = {name: [] for name in ways}
      for _ in range(ROUNDS):
        for name, way in ways.items():
          seconds[name].append(timed(way))
  print(f'{plan.num_params:,} parameters, {config.batch_size} x {config.data.seq_len} tokens; {environment()}')
  tokens = config.batch_size * config.data.seq_len
  for name, s in seconds.items():
    print(f'{name:6} {statistics.median(s) * 1e3:8.1f} ms/step (best {min(s) * 1e3:.1f})  '
          f'{tokens / statistics.median(s):10,.0f} tokens/s')
  for a, b in (('loop', 'step'), ('loop', 'plain')):
    ratio = statistics.median(y / x for x, y in zip(seconds[a], seconds[b]))
    print(f'speed of {a} / speed of {b}: {ratio:.3f} (median of {ROUNDS} pairs)')


def main(argv):
  from absl import flags
  flags.DEFINE_string('config', None, 'Config file.')
  flags.DEFINE_bool('compare', False, 'Compare train steps with those of torch.')
  flags.DEFINE_integer('cores', 0, 'CPU cores to use; 0: those that are here.')
  flags.DEFINE_integer('rounds', ROUNDS, 'Pairs of measurements of --compare.')
  flags.DEFINE_bool('loop', False, 'Compare our loop, our step and plain JAX.')
  flags.FLAGS([a for a in argv if not a.startswith('--config.')])
  if flags.FLAGS.cores:  # before JAX counts them, at its first array
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:flags.FLAGS.cores])
  if flags.FLAGS.compare:
    return step_peers.compare(flags.FLAGS.rounds)
  if flags.FLAGS.loop:
    return compare_loop()
  if not flags.FLAGS.config:
    raise SystemExit('give --config=FILE, --compare or --loop')
  one_config(config_lib.load(flags.FLAGS.config, [a[9:] for a in argv if a.startswith('--config.')]))


if __name__ == '__main__':
  main(sys.argv)
