"""Compiles the train step of a config for TPUs that are not present; run by prediction.py in a separate process.

    python -m t5like.preflight.compile_ahead JOB FOLDER

JOB is the text of a dict for JSON: config, stage (its number), topology, options (of the compiler). FOLDER gets
facts.json before the compiler starts, the compiler's dumps of its schedule while it works, and at the end done.json, or
error.json. Wrong programs may end the process without a word, and preflight ends it when the schedule is there.
"""
import json
import math
import os
import pathlib
import sys
import time
from collections.abc import Sequence
from typing import Any

from t5like.config_type import Config, Section
from t5like.files import plain_json

QUIET = {
    'TPU_SKIP_MDS_QUERY': '1',
    'TPU_ACCELERATOR_TYPE': 'v5litepod-16',
    'TPU_WORKER_HOSTNAMES': 'localhost',
    'JAX_PLATFORMS': 'cpu',
    'ALLOW_MULTIPLE_LIBTPU_LOAD': '1',
}
DUMPS = {
    'xla_dump_hlo_as_text': True,
    'xla_dump_latency_hiding_schedule': True,
}


def lower(
    config: Config,
    devices: Sequence[Any],
    optimizers: Sequence[Section] = (),
) -> tuple[Any, dict[str, Any]]:
  """Lowers the train step.

  Args:
    config: resolved, without stages.
    devices: real or not.
    optimizers: config.optimizer of all stages of the run, where it has any.

  Returns:
    (`jax.stages.Lowered`, facts of the step as a dict for JSON).
  """
  import jax

  from t5like import config as config_lib, sharding
  from t5like.model import flops, models
  from t5like.objectives import lengths
  from t5like.optim import from_config
  from t5like.parameters import LOOKED_UP
  from t5like.training import build, step as step_lib
  mesh = sharding.make_mesh(config.mesh, devices)
  with jax.set_mesh(mesh):
    model, count = models.build_model(config)
    steps: Any = config_lib.derived(config)['steps']
    stateful = None
    if optimizers:
      stateful = from_config.stateful_paths(optimizers, model.parameters)
    tx, step, *_ = build.build_step(config, model, steps, mesh, stateful=stateful)
    train_step: Any = step  # a jitted function
    ema = config.optimizer.ema
    state = sharding.abstract(lambda: step_lib.init_state(model, tx, config.seed, ema=ema), mesh)
    of_optimizer = [value for name, value in state.items() if name in ('opt_state', 'ema')]
    batch = build.abstract_batch(config, mesh)
    shapes = lengths.shapes(config)
    looked_up = [parameter.size for parameter in model.parameters.values() if parameter.role in LOOKED_UP]
    facts = dict(
        mesh=dict(mesh.shape),
        parameters=count,
        flops_per_row=models.flops_per_row(config, model),
        flops_per_row_untouched=flops.per_row(model, shapes),
        attention_per_row=flops.attention(model.config, shapes),
        bytes=dict(
            parameters=_bytes_per_device(state['params']),
            optimizer=_bytes_per_device(of_optimizer),
            batch=_bytes_per_device(batch),
        ),
        checkpoint_bytes=_bytes(state),
        kernel=_attention_kernel(config),
        replicated=sharding.replicated(state['params'], mesh),
        tables=sum(looked_up),
    )
    return train_step.lower(state, batch), facts


def _attention_kernel(config: Config) -> Any:
  """(name, reason) of the kernel of a decoder, or of the only stack."""
  from t5like import choices, sharding
  from t5like.model import attention_choice, attention_kernels
  from t5like.objectives import lengths
  length = lengths.shapes(config).targets
  spec = attention_kernels.spec_of(
      config.model,
      choices.ARCHITECTURES[config.model.name].causal,
      length,
      length,
      bias=choices.POSITIONS[config.model.position].biased,
      dropout=bool(config.model.dropout),
  )
  return attention_choice.choose_kernel(config.model.attention, sharding.platform(), spec)


def _bytes(tree: Any) -> int:
  """Of all arrays in full."""
  import jax
  return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))


def _bytes_per_device(tree: Any) -> int:
  import jax
  total = 0
  for x in jax.tree.leaves(tree):
    piece = x.sharding.shard_shape(x.shape)
    total += math.prod(piece) * x.dtype.itemsize
  return total


def main(argv: Sequence[str]) -> None:
  """argv: the program, JOB and FOLDER."""
  from t5like.errors import Failure
  job = json.loads(argv[1])
  folder = pathlib.Path(argv[2])
  for name, value in QUIET.items():
    os.environ.setdefault(name, value)
  try:
    _compile(job, folder)
  except Exception as e:
    exit_code = 1
    if isinstance(e, Failure):
      exit_code = e.exit_code
    _write(folder / 'error.json', dict(
        exit_code=exit_code,
        type=type(e).__name__,
        text=str(e),
    ))
  os._exit(0)


def _compile(job: dict[str, Any], folder: pathlib.Path) -> None:
  started = time.monotonic()
  import jax
  from jax.experimental import topologies as jax_topologies

  from t5like import config as config_lib
  from t5like.config import stages
  from t5like.preflight import topologies
  jax.config.update('jax_enable_compilation_cache', False)
  topology = topologies.parse(job['topology'])
  described = jax_topologies.get_topology_desc(platform='tpu', **topology.arguments())
  listed = stages.of(config_lib.from_json(job['config']))
  config = config_lib.resolve(listed[job['stage']].config)
  optimizers = []
  if len(listed) > 1:
    optimizers = [stage.config.optimizer for stage in listed]
  lowered, facts = lower(config, list(described.devices), optimizers)
  seconds = time.monotonic() - started
  _write(folder / 'facts.json', dict(facts, lowering=seconds))
  options = {
      **job['options'],
      **DUMPS,
      'xla_dump_to': str(folder / 'dump'),
  }
  compiled = lowered.compile(compiler_options=options)
  memory = compiled.memory_analysis()
  # The compiler counts the body of a loop once, and nothing of a kernel that states no cost.
  costs = compiled.cost_analysis() or {}
  _write(folder / 'done.json', dict(
      code_bytes=memory.generated_code_size_in_bytes,
      flops=costs.get('flops', 0.0),
  ))


def _write(file: pathlib.Path, values: dict[str, Any]) -> None:
  file.write_text(plain_json.dumps(values))


if __name__ == '__main__':
  main(sys.argv)
