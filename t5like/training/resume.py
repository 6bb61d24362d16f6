"""What a run starts from, its newest checkpoint, weights that the config names or fresh ones, and what it says then."""
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax

from t5like import config as config_lib, sharding
from t5like.batches import pipeline
from t5like.config import resumable
from t5like.config_type import Config
from t5like.errors import CheckpointError, ConfigError
from t5like.huggingface import model_folders
from t5like.model import models
from t5like.observe import metrics
from t5like.optim import from_config
from t5like.storage import rewinds as rewinds_lib
from t5like.storage.checkpoint import Checkpoints
from t5like.training import build, step as step_lib
from t5like.training.plan import Plan
from t5like.training.progress import Progress

Meta = dict[str, Any]
State = dict[str, Any]


def start(plan: Plan, store: Any, checkpoints: Checkpoints, workdir: str, rewinds: Sequence[rewinds_lib.Record],
          say: Callable[[str], None]) -> tuple[State, Progress]:
  """The state on the plan's mesh, which is in force, and how far the run is.

  The newest checkpoint in the workdir that `rewinds` have not gone back behind comes first, then `init_from`
  (parameters only), then fresh ones. ConfigError when the checkpoint is of another run, or for data.skip_rows that were
  trained on; CheckpointError when there are checkpoints and none can be read.
  """
  tx, _ = build.build_optimizer(plan.config, plan.model, plan.total_steps)  # another schedule, the same state

  def initial_state(params: dict[str, Any] | None = None) -> State:
    return step_lib.init_state(plan.model, tx, plan.config.seed, params)
  abstract = sharding.abstract(initial_state, plan.mesh)
  counts = rewinds_lib.happened(rewinds)
  check = _Check(plan, store, workdir, abstract)
  check.newest(checkpoints, counts)
  restored = checkpoints.restore(abstract, say, counts)
  if restored:
    state, meta = restored
    check.meta(meta)
    progress = Progress.from_meta(meta)
    say(f'Resumed from step {progress.step:,}, after {metrics.short(progress.tokens)} tokens.')
  else:
    progress = Progress()
    state = _fresh(plan, store, initial_state, abstract, say)
  return state, _leaving_out(plan.config, progress, rewinds)


def _fresh(plan: Plan, store: Any, initial_state: Callable[..., State], abstract: State,
           say: Callable[[str], None]) -> State:
  """A state of no training, with the weights of config.init_from if it names some."""
  layout = jax.tree.map(lambda x: x.sharding, abstract)
  if not plan.config.init_from:
    return jax.jit(initial_state, out_shardings=layout)()
  params = model_folders.initial(plan.config, abstract['params'], store.vocabulary)
  say(f'Weights to begin with: {plan.config.init_from}')
  return jax.jit(initial_state, out_shardings=layout, donate_argnums=0)(params)


def _leaving_out(config: Config, progress: Progress, rewinds: Sequence[rewinds_lib.Record]) -> Progress:
  """`progress` with all windows of rows that are left out: the checkpoint's, those of rewinds, data.skip_rows."""
  recorded = [*progress.skipped, *rewinds_lib.windows(rewinds, progress.examples_seen)]
  skipped = pipeline.to_skip(config, progress.examples_seen, recorded)
  return progress.leaving_out(skipped, len(rewinds))


class _Check:
  """ConfigError for checkpoints that this run cannot resume."""

  def __init__(self, plan: Plan, store: Any, workdir: str, abstract: State):
    self.plan = plan
    self.store = store
    self.workdir = workdir
    self.abstract = abstract

  def newest(self, checkpoints: Checkpoints, counts: Callable[[int, Meta], bool]) -> None:
    """The newest one that counts, before its arrays are read: they might not fit."""
    for step in reversed(checkpoints.steps):
      try:
        meta = checkpoints.meta(step)
      except CheckpointError:  # a damaged one, which `restore` reports
        continue
      if counts(step, meta):
        self.meta(meta)
        return

  def meta(self, meta: Meta) -> None:
    """By what a checkpoint says of itself."""
    config = self.plan.config
    where = f'the checkpoint of step {meta["step"]} in {self.workdir}'
    before = config_lib.from_json(meta['config'])
    changed = config_lib.check_resumable(before, self.plan.requested, where)
    decisive = (*resumable.OF_PARAMETERS, *resumable.OF_THE_OPTIMIZER)
    if any(key in decisive for key, _, _ in changed):
      resumable.other_arrays(_shapes_of(before, config), _shapes(self.abstract), changed, where)
    if meta['data'] != self.store.fingerprint and 'data' not in resumable.permitted(config):
      raise ConfigError(
          f'{where} was trained on other data (fingerprint {meta["data"][:12]}, now '
          f'{self.store.fingerprint[:12]} in {self.store.folder}). Give the dataset it was trained on, '
          'another --workdir, or --config.allow_changed=data to resume with the new data.')


def _shapes(state: State) -> dict[str, tuple[int, ...]]:
  """{path: shape} of the arrays of a state."""
  return {from_config.path_name(path): x.shape for path, x in jax.tree_util.tree_leaves_with_path(state)}


def _shapes_of(before: Any, config: Config) -> dict[str, tuple[int, ...]]:
  """The same of the state under the config of a checkpoint; `config` knows the size of the vocabulary."""
  before = config_lib.resolve(before)
  with before.unlocked():
    before.model.vocab_size = before.model.vocab_size or config.model.vocab_size
  model, _ = models.build_model(before)
  tx, _ = build.build_optimizer(before, model, 1)
  return _shapes(jax.eval_shape(lambda: step_lib.init_state(model, tx, before.seed)))


def introduction(plan: Plan, params: dict[str, Any], progress: Progress, rows: pipeline.TrainRows) -> Iterator[str]:
  """Lines that say what a run is going to do.

  Args:
    plan: of the run.
    params: its parameters, arrays.
    progress: where it resumes.
    rows: of the endless training sequence.
  """
  config, mesh, steps = plan.config, plan.mesh, progress.step + plan.steps_left(progress)
  axes = ', '.join(f'{axis} {size}' for axis, size in mesh.shape.items())
  kind = mesh.devices.flat[0].device_kind
  yield (f'{config.model.name} of {plan.num_params:,} parameters on {mesh.size} x {kind} ({axes})\n'
         f'{metrics.short(config.stop.tokens)} tokens: {steps:,} steps of {config.batch_size} x {config.data.seq_len}')
  for warning in config_lib.warnings(config):
    yield f'WARNING: {warning}'
  yield from _about_parameters(plan, params)
  yield from rows.describe(steps * config.batch_size)
  if progress.skipped:
    yield 'Rows left out: ' + ', '.join(f'{start:,} to {stop - 1:,}' for start, stop in progress.skipped)


def _about_parameters(plan: Plan, params: dict[str, Any]) -> Iterator[str]:
  """How many are trained, if not all, and which lie on every device, if these are many."""
  rates = from_config.rates(plan.config.optimizer, plan.model.parameters)
  trained = 0
  for path, param in plan.model.parameters.items():
    trained += round(param.size * (rates[path] > 0).mean())
  if trained < plan.num_params:
    yield f'{trained:,} of them are trained, the others frozen'
  whole = sharding.replicated(params, plan.mesh)
  share = sum(size for _, size in whole) / (4 * plan.num_params)
  if share > sharding.MOST_REPLICATED:
    yield (f'{share:.0%} of parameter bytes are on every device in full, {whole[0][0]} first: rules in '
           't5like/sharding.py place them.')
