"""What a run starts from: its newest checkpoint, weights that the config names, or fresh ones."""
import jax

from t5like import config as config_lib, huggingface, sharding, step as step_lib
from t5like.errors import ConfigError


def start_state(config, asked, model, tx, mesh, store, checkpoints, workdir, say):
  """(state on the mesh, the checkpoint's `meta` or None). ConfigError when the checkpoint is of another run.

  config: resolved; asked: as it was given, which is what checkpoints remember. The newest checkpoint in the
  workdir comes first, then `init_from` (parameters only), then fresh parameters.
  """
  init = lambda params=None: step_lib.init_state(model, tx, config.seed, params)
  abstract = sharding.abstract(init, mesh)
  found = checkpoints.restore(abstract, say)
  if found:
    _check(found[1], config, asked, store, workdir)
    return found
  layout = jax.tree.map(lambda x: x.sharding, abstract)
  if config.init_from:
    params = huggingface.initial(config, abstract['params'], store.vocabulary)
    say(f'Weights to begin with: {config.init_from}')
    return jax.jit(init, out_shardings=layout, donate_argnums=0)(params), None
  return jax.jit(init, out_shardings=layout)(), None


def _check(meta, config, asked, store, workdir):
  where = f'the checkpoint of step {meta["step"]} in {workdir}'
  config_lib.check_resumable(config_lib.from_json(meta['config']), asked, where)
  if meta['data'] != store.fingerprint and 'data' not in config.allow_changed.split(','):
    raise ConfigError(
        f'{where} was trained on other data (fingerprint {meta["data"][:12]}, now '
        f'{store.fingerprint[:12]} in {store.folder}). Give the dataset it was trained on, '
        'another --workdir, or --config.allow_changed=data to go on with the new data.')
