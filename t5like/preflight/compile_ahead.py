"""Compiles the train step of a config for TPUs that are not here; run by prediction.py as a process of its own.

    python -m t5like.preflight.compile_ahead JOB FOLDER

JOB is the text of a dict for JSON: config, topology, options (of the compiler). FOLDER gets facts.json before
the compiler starts, what the compiler writes of its schedule while it works, and at the end done.json, or
error.json. Wrong programs may end the process without a word, and preflight ends it when the schedule is there.
"""
import json
import math
import os
import pathlib
import sys
import time

from t5like.files import plain_json

QUIET = dict(TPU_SKIP_MDS_QUERY='1', TPU_ACCELERATOR_TYPE='v5litepod-16', TPU_WORKER_HOSTNAMES='localhost',
             JAX_PLATFORMS='cpu', ALLOW_MULTIPLE_LIBTPU_LOAD='1')
DUMPS = dict(xla_dump_hlo_as_text=True, xla_dump_latency_hiding_schedule=True)


def lower(config, devices):
  """(lowered train step, facts as a dict for JSON) of a resolved config on `devices`, real or not."""
  import jax

  from t5like import choices, config as config_lib, sharding
  from t5like.batches import pipeline
  from t5like.model import attention, attention_kernels, flops, models
  from t5like.objectives import lengths
  from t5like.parameters import LOOKED_UP
  from t5like.training import build, step as step_lib
  mesh = sharding.make_mesh(config.mesh, devices)
  with jax.set_mesh(mesh):
    model, count = models.build_model(config)
    tx, train_step, *_ = build.build_step(config, model, config_lib.derived(config)['steps'], mesh)
    state = sharding.abstract(lambda: step_lib.init_state(model, tx, config.seed), mesh)
    shapes = lengths.shapes(config)
    rows = pipeline.blank(shapes, any(pipeline.has_prefix(c) for c in lengths.components(config)), 1)
    batch = jax.tree.map(lambda x: jax.ShapeDtypeStruct(
        (config.batch_size, *x.shape[1:]), x.dtype,
        sharding=jax.sharding.NamedSharding(mesh, sharding.row_spec(x, mesh.shape['context']))), rows)
    per_device = lambda tree: sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize
                                  for x in jax.tree.leaves(tree))
    spec = attention_kernels.AttentionSpec(
        choices.ARCHITECTURES[config.model.name].causal, shapes.targets, shapes.targets,
        bias=choices.POSITIONS[config.model.position].biased, dropout=bool(config.model.dropout))
    kernel = attention_kernels.choose_kernel(config.model.attention, attention.platform(), spec)
    facts = dict(
        mesh=dict(mesh.shape), parameters=count, flops_per_row=models.flops_per_row(config, model),
        flops_per_row_untouched=flops.per_row(model, shapes), attention_per_row=flops.attention(model.config, shapes),
        bytes=dict(parameters=per_device(state['params']), optimizer=per_device(state['opt_state']),
                   batch=per_device(batch)),
        checkpoint_bytes=sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state)),
        kernel=kernel, replicated=sharding.replicated(state['params'], mesh),
        tables=sum(param.size for param in model.parameters.values() if param.role in LOOKED_UP))
    return train_step.lower(state, batch), facts


def main(argv):
  job, folder = json.loads(argv[1]), pathlib.Path(argv[2])
  started = time.monotonic()
  os.environ.update({k: v for k, v in QUIET.items() if k not in os.environ})
  from t5like import config as config_lib
  from t5like.errors import Failure
  from t5like.preflight import topologies as tpu
  try:
    import jax
    from jax.experimental import topologies
    jax.config.update('jax_enable_compilation_cache', False)
    described = topologies.get_topology_desc(platform='tpu', **tpu.parse(job['topology']).arguments())
    lowered, facts = lower(config_lib.resolve(config_lib.from_json(job['config'])), list(described.devices))
    (folder / 'facts.json').write_text(plain_json.dumps(dict(facts, lowering=time.monotonic() - started)))
    compiled = lowered.compile(compiler_options={**job['options'], **DUMPS, 'xla_dump_to': str(folder / 'dump')})
    memory = compiled.memory_analysis()
    # The compiler counts the body of a loop once, and nothing of a kernel that states no cost.
    flops_counted = (compiled.cost_analysis() or {}).get('flops', 0.0)
    (folder / 'done.json').write_text(plain_json.dumps(
        dict(code_bytes=memory.generated_code_size_in_bytes, flops=flops_counted)))
  except Exception as e:
    kind = e.exit_code if isinstance(e, Failure) else 1
    (folder / 'error.json').write_text(plain_json.dumps(dict(exit_code=kind, type=type(e).__name__, text=str(e))))
  os._exit(0)


if __name__ == '__main__':
  main(sys.argv)
