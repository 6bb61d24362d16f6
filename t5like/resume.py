"""What a run starts from, its newest checkpoint, weights that the config names or fresh ones, and what it says then."""
import jax

from t5like import (
  build,
  config as config_lib,
  huggingface,
  metrics,
  optim,
  recovery,
  resumable,
  sharding,
  step as step_lib,
)
from t5like.errors import CheckpointError, ConfigError


def start_state(config, asked, model, tx, mesh, store, checkpoints, workdir, rewinds, say):
  """(state on the mesh, the checkpoint's `meta` or None). ConfigError when the checkpoint is of another run.

  config: resolved; asked: as it was given, which is what checkpoints remember. The newest checkpoint in the
  workdir that `rewinds` have not gone back behind comes first, then `init_from` (parameters only), then fresh ones.
  """
  init = lambda params=None: step_lib.init_state(model, tx, config.seed, params)
  abstract = sharding.abstract(init, mesh)
  counts = recovery.happened(rewinds)
  _check_newest(checkpoints, counts, config, asked, store, workdir, abstract)
  found = checkpoints.restore(abstract, say, counts)
  if found:
    _check(found[1], config, asked, store, workdir, abstract)
    return found
  layout = jax.tree.map(lambda x: x.sharding, abstract)
  if config.init_from:
    params = huggingface.initial(config, abstract['params'], store.vocabulary)
    say(f'Weights to begin with: {config.init_from}')
    return jax.jit(init, out_shardings=layout, donate_argnums=0)(params), None
  return jax.jit(init, out_shardings=layout)(), None


def _check_newest(checkpoints, counts, *of):
  """`_check` of the newest checkpoint that counts, before its arrays are read: they might not fit."""
  for step in reversed(checkpoints.steps):
    try:
      meta = checkpoints.meta(step)
    except CheckpointError:  # a damaged one, which `restore` reports
      continue
    if counts(step, meta):
      return _check(meta, *of)


def _check(meta, config, asked, store, workdir, abstract):
  where = f'the checkpoint of step {meta["step"]} in {workdir}'
  before = config_lib.from_json(meta['config'])
  changed = config_lib.check_resumable(before, asked, where)
  decisive = (*resumable.OF_PARAMETERS, *resumable.OF_THE_OPTIMIZER)
  if any(key in decisive for key, _, _ in changed):
    resumable.other_arrays(_shapes_of(before, config), _shapes(abstract), changed, where)
  if meta['data'] != store.fingerprint and 'data' not in resumable.permitted(config):
    raise ConfigError(
        f'{where} was trained on other data (fingerprint {meta["data"][:12]}, now '
        f'{store.fingerprint[:12]} in {store.folder}). Give the dataset it was trained on, '
        'another --workdir, or --config.allow_changed=data to resume with the new data.')


def _shapes(state):
  """{path: shape} of the arrays of a state."""
  return {optim.path_name(path): x.shape for path, x in jax.tree_util.tree_leaves_with_path(state)}


def _shapes_of(before, config):
  """Likewise, of the state under the config of a checkpoint; `config` tells the size of the vocabulary."""
  before = config_lib.resolve(before)
  with before.unlocked():
    before.model.vocab_size = before.model.vocab_size or config.model.vocab_size
  model, _ = build.build_model(before)
  rates = optim.rates(before.optimizer, build.parameter_shapes(model))
  tx = optim.at_rates(optim.build(before.optimizer, lambda step: 0.0 * step), rates)
  return _shapes(jax.eval_shape(lambda: step_lib.init_state(model, tx, before.seed)))


def introduction(run):
  """Lines that say what a loop.Run is going to do."""
  c, mesh, steps = run.config, run.mesh, run.step + run.steps_left
  axes = ', '.join(f'{axis} {size}' for axis, size in mesh.shape.items())
  kind = mesh.devices.flat[0].device_kind
  yield (f'{c.model.name} of {run.num_params:,} parameters on {mesh.size} x {kind} ({axes})\n'
         f'{metrics.short(c.stop.tokens)} tokens: {steps:,} steps of {c.batch_size} x {c.data.seq_len}')
  for warning in config_lib.warnings(c):
    yield f'WARNING: {warning}'
  rates = optim.rates(c.optimizer, run.state['params'])
  trained = sum(round(x.size * (rates[optim.path_name(path)] > 0).mean())
                for path, x in jax.tree_util.tree_leaves_with_path(run.state['params']))
  if trained < run.num_params:
    yield f'{trained:,} of them are trained, the others frozen'
  whole = sharding.replicated(run.state['params'], mesh)
  share = sum(size for _, size in whole) / (4 * run.num_params)
  if share > sharding.MOST_REPLICATED:
    yield (f'{share:.0%} of parameter bytes are on every device in full, {whole[0][0]} first: rules in '
           't5like/sharding.py place them.')
  yield from run.rows.describe(steps * c.batch_size)
  if run.skipped:
    yield 'Rows left out: ' + ', '.join(f'{start:,} to {stop - 1:,}' for start, stop in run.skipped)
  yield (f'Checkpoints and numbers: {run.workdir}' + ''.join(f', {name}' for name in c.log.trackers) + '\n'
         f'MFU counts 6 N + attention (PaLM), of {run.peak_source}')
