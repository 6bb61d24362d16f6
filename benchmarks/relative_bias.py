"""Relative position bias on TPUs by the compiler: our kernel, splash attention without bias, dot products with bias.

    python benchmarks/relative_bias.py [--only=kernels|steps|cycles]      # pip install -e '.[tpu]'; 10 minutes

kernels: HBM of attention and all its gradients, the table's too, compiled in full. steps: train
steps by preflight, which prices kernels by the blocks that they visit, with their FLOPs and HBM. cycles: how long
one visit to a pair of blocks is in the compiler's own schedule for v5e, from the first product of matrices to the
last; loads from HBM and what a step of the grid costs are not in it.
"""
import os
import pathlib
import re
import subprocess
import sys
import tempfile

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import jax
import jax.numpy as jnp
from jax.experimental import topologies

from configs import t5_1_1, yardstick_1b
from t5like import sharding
from t5like.errors import ConfigError
from t5like.model import attention
from t5like.model.attention_kernels import AttentionSpec
from t5like.model.kernels import relative_bias_attention, relative_bias_blocks
from t5like.model.positions import RelativeBias
from t5like.preflight import compile_ahead, costs, hlo, prediction, search, topologies as tpu


def attend(kind, q_BTNH, k_BTNH, v_BTNH, table_NE, segments_BT, causal):
  """[B, T, N, H] of self-attention, of a model whose bias is a T5 table of 32 buckets for each head."""
  T, rows = q_BTNH.shape[1], dict(segments=segments_BT)
  one_hot = jax.nn.one_hot(RelativeBias.buckets(T - jnp.arange(2 * T), not causal), 32)
  bias_NR = jnp.einsum('NE,RE->NR', table_NE, one_hot, out_sharding=sharding.weights('NR'))
  spec = AttentionSpec(causal, T, T)
  return attention.dot_product(q_BTNH, k_BTNH, v_BTNH, rows, rows, spec, 1.0, bias_NR if kind == 'kernel' else None)


def compiled(kind, generation, T, causal, B=1, N=8, H=128):
  """Compiled gradients of q, k, v and the table, with what goes in, for one device."""
  name = tpu.parse(f'{generation}:{"x".join("2" * tpu.GENERATIONS[generation].dims)}')
  devices = topologies.get_topology_desc(platform='tpu', **name.arguments()).devices[:1]
  mesh = sharding.make_mesh({}, devices)
  of = lambda shape, dtype, spec: jax.ShapeDtypeStruct(
      shape, dtype, sharding=jax.sharding.NamedSharding(mesh, spec))
  x, table = of((B, T, N, H), jnp.bfloat16, sharding.in_use('BTNH')), of((N, 32), jnp.float32, sharding.weights('N_'))

  def gradients(q, k, v, table, segments, weights):
    return jax.grad(lambda *args: jnp.sum(attend(kind, *args, segments, causal).astype(jnp.float32) * weights),
                    (0, 1, 2, 3))(q, k, v, table)
  with jax.set_mesh(mesh):
    return jax.jit(gradients).lower(x, x, x, table, of((B, T), jnp.int32, sharding.in_use('BT')), x).compile()


def kernels():
  """Bytes of all that is in HBM at once, and of what kernels take and give if each moves once."""
  print('| TPU | T = S | causal | blocks | visits a head | HBM, kernel, MiB | splash | ratio | moved, kernel, MiB | '
        'splash |\n' + '|---' * 10 + '|')
  for generation in ('v5e', 'v5p', 'v6e', 'tpu7x'):
    for T, causal in ((2048, True), (2048, False), (8192, True), (8192, False)):
      block = relative_bias_attention.block_size(T, causal)  # as splash's
      form = relative_bias_blocks.Form(causal, 1.0, 0.0, block, block, T, T, False)
      size, moved = _bytes(compiled('kernel', generation, T, causal))
      base, base_moved = _bytes(compiled('splash', generation, T, causal))
      print(f'| {generation} | {T:,} | {"yes" if causal else "no"} | {block} x {block} | '
            f'{len(relative_bias_attention.visits(form))} of {(T // block) ** 2} | {size / 2 ** 20:.0f} | '
            f'{base / 2 ** 20:.0f} | {size / base:.2f} | {moved / 2 ** 20:.0f} | {base_moved / 2 ** 20:.0f} |',
            flush=True)


def _bytes(program):
  memory = program.memory_analysis()
  module = hlo.Module(program.as_text())
  moved = 0
  for computation, ops in module.computations.items():
    for op in ops:
      if op.target == costs.PALLAS:
        moved += sum(a.bytes for each in (op, *module.operands(op, computation)) for a in each.arrays)
  return memory.temp_size_in_bytes + memory.argument_size_in_bytes + memory.output_size_in_bytes, moved


def models():
  """(name, context, batch of 256 chips of v5e, config)."""
  for T in (2048, 8192):
    c = t5_1_1.get_config('xl')
    c.data.seq_len, c.model.remat = T, 'minimal' if T == 2048 else 'full'
    yield 'T5 v1.1 XL', T, 512 if T == 2048 else 256, c
  for T in (2048, 8192):
    c = yardstick_1b.get_config()
    c.data.seq_len, c.model.position = T, 'relative'
    yield 'decoder, 1.1B', T, 1024 if T == 2048 else 256, c


def steps():
  print('| TPU | model | context | rows per chip | remat | attention | step, ms | to splash | kernels, ms | TFLOP | '
        'HBM, GiB |\n' + '|---' * 11 + '|')
  for name in ('v5e-256', 'v5p-128'):
    topology = tpu.parse(name)
    for model, T, batch, config in models():
      config.batch_size = batch * topology.devices // 256
      config.params_expected = 0
      base = None
      for kind, changes in (('splash, no bias', {'model.position': 'none'}), ('kernel, bias', {}),
                            ('dot products, bias', {'model.attention': 'xla'})):
        row = (f'| {name} | {model} | {T:,} | {config.batch_size / topology.devices:g} | {config.model.remat} | '
               f'{kind} | ')
        try:
          report = prediction.predict(search.changed(config, changes), topology)
        except ConfigError as e:
          print(row + f'{str(e)[:120]} |')
          continue
        gib = report['hbm']['used'] / 2 ** 30
        if not report['fits']:
          print(row + f'does not fit | | | | {gib:.1f} |', flush=True)
          continue
        base = base or report['step_seconds']
        times = report['times']
        print(row + f'{report["step_seconds"] * 1e3:.1f} | {report["step_seconds"] / base:.3f} | '
              f'{times.get("kernel", 0) * 1e3:.1f} | {report["flops"] / 1e12:.1f} | '
              f'{gib:.2f} |', flush=True)


def cycles():
  """Each compilation in a process of its own, for the compiler reads where to write its schedules at its start."""
  print('| T = S | blocks | attention | forward | backward | products busy, forward | backward |\n' + '|---' * 7 + '|')
  for T in (2048, 8192):
    for kind in ('kernel', 'splash'):
      with tempfile.TemporaryDirectory() as folder:
        flags = (f'--xla_jf_dump_to={folder} --xla_jf_dump_llo_text=true '
                 '--xla_jf_dump_llo_pass_label_regex=.*utilization.*')
        subprocess.run([sys.executable, __file__, f'--schedule={kind},{T}'], check=True,
                       env=dict(os.environ, LIBTPU_INIT_ARGS=flags))
        found = {}
        for path in pathlib.Path(folder).glob('*final_hlo-static-per-bundle-utilization.txt'):
          if match := re.search('causal_(forward|backward)|splash_mha_(fwd|dkv)', path.name):
            found['fwd' if set(match.groups()) & {'forward', 'fwd'} else 'bwd'] = _busy(path)
      (forward, f), (backward, b) = found['fwd'], found['bwd']
      block = relative_bias_attention.block_size(T, True)  # as splash's
      print(f'| {T:,} | {block} x {block} | {kind} | {forward:,} | {backward:,} | {f:.0%} | {b:.0%} |', flush=True)


def _busy(path):
  """(instructions from the first product of matrices to the last, share of their slots for products that is used)."""
  lines = [list(map(int, line.split())) for line in path.read_text().splitlines() if re.fullmatch(r'[\d ]+', line)]
  slots, *used = (line[0] for line in lines if len(line) == len(lines[-1]))
  at = [n for n, products in enumerate(used) if products]
  return at[-1] - at[0] + 1, sum(used) / slots / (at[-1] - at[0] + 1)


def main(args):
  os.environ.update({k: v for k, v in compile_ahead.QUIET.items() if k not in os.environ})
  if args and args[0].startswith('--schedule='):
    kind, T = args[0].partition('=')[2].split(',')
    compiled(kind, 'v5e', int(T), True)
    return
  import importlib.metadata
  version = importlib.metadata.version
  print(f'jax {version("jax")}, libtpu {version("libtpu")}')
  only = args[0].partition('=')[2] if args else ''
  for part in (kernels, steps, cycles):
    if only in ('', part.__name__):
      print(f'\n{part.__name__}\n')
      part()


if __name__ == '__main__':
  main(sys.argv[1:])
