"""What a run starts from: its newest checkpoint, the weights of `init_from` or random ones. And its first lines."""
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax

from t5like import config as config_lib, sharding
from t5like.batches import pipeline
from t5like.config import resumable
from t5like.config_type import Config
from t5like.errors import CheckpointError, ConfigError
from t5like.huggingface import adapted
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
Shapes = dict[str, tuple[int, ...]]  # of arrays, by path

DECISIVE = (*resumable.OF_PARAMETERS, *resumable.OF_THE_OPTIMIZER)  # keys that may change the shapes of the state


def start(
    plan: Plan,
    store: Any,
    checkpoints: Checkpoints,
    workdir: str,
    rewinds: Sequence[rewinds_lib.Record],
    say: Callable[[str], None],
) -> tuple[State, Progress]:
  """The state and how far the run is.

  The newest checkpoint of the workdir that `rewinds` have not undone comes first, then `init_from` (parameters only),
  then random parameters.

  Args:
    plan: of the run. Its mesh is in force.
    store: the prepared dataset.
    checkpoints: those of the workdir.
    workdir: of the run.
    rewinds: the records of rewinds.json, oldest first.
    say: called with lines for people.

  Returns:
    The state, on the plan's mesh, and the progress.

  Raises:
    ConfigError: the checkpoint is of another run, or data.skip_rows names rows that were trained on.
    CheckpointError: there are checkpoints, and none can be read.
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
    tokens = metrics.short(progress.tokens)
    say(f'Resumed from step {progress.step:,}, after {tokens} tokens.')
  else:
    progress = Progress()
    state = _untrained(plan, store, initial_state, abstract, say)
  return state, _with_skipped_rows(plan.config, progress, rewinds)


def _untrained(
    plan: Plan,
    store: Any,
    initial_state: Callable[..., State],
    abstract: State,
    say: Callable[[str], None],
) -> State:
  """The state before the first step, with the weights of config.init_from if it names any."""
  init_from = plan.config.init_from
  layout = jax.tree.map(lambda x: x.sharding, abstract)
  if not init_from:
    make_state = jax.jit(initial_state, out_shardings=layout)
    return make_state()
  params = adapted.initial(plan.config, abstract['params'], store.vocabulary, say)
  make_state = jax.jit(initial_state, out_shardings=layout, donate_argnums=0)
  return make_state(params)


def _with_skipped_rows(
    config: Config,
    progress: Progress,
    rewinds: Sequence[rewinds_lib.Record],
) -> Progress:
  """`progress` with all windows of rows to skip: the checkpoint's, those of rewinds, data.skip_rows."""
  next_row = progress.examples_seen
  of_rewinds = rewinds_lib.windows(rewinds, next_row)
  recorded = [*progress.skipped, *of_rewinds]
  skipped = pipeline.to_skip(config, next_row, recorded)
  return progress.skipping(skipped, len(rewinds))


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
    """The config and the data that a checkpoint was trained with."""
    where = f'the checkpoint of step {meta["step"]} in {self.workdir}'
    self._check_config(meta['config'], where)
    self._check_data(meta['data'], where)

  def _check_config(self, saved: str, where: str) -> None:
    """saved: the checkpoint's config, JSON."""
    before = config_lib.from_json(saved)
    changes = config_lib.check_resumable(before, self.plan.requested, where)
    changed_keys = {key for key, _, _ in changes}
    if changed_keys.isdisjoint(DECISIVE):
      return
    saved_shapes = _shapes_under(before, self.plan.config)
    shapes = _shapes(self.abstract)
    resumable.other_arrays(saved_shapes, shapes, changes, where)

  def _check_data(self, saved: str, where: str) -> None:
    """saved: the fingerprint of the checkpoint's dataset."""
    fingerprint = self.store.fingerprint
    if saved == fingerprint:
      return
    if 'data' in resumable.permitted(self.plan.config):
      return
    raise ConfigError(
        f'{where} was trained on other data (fingerprint {saved[:12]}, now '
        f'{fingerprint[:12]} in {self.store.folder}). Give the dataset it was trained on, '
        'another --workdir, or --config.allow_changed=data to resume with the new data.')


def _shapes(state: State) -> Shapes:
  """{path: shape} of the arrays of a state."""
  shapes = {}
  for path, x in jax.tree_util.tree_leaves_with_path(state):
    name = from_config.path_name(path)
    shapes[name] = x.shape
  return shapes


def _shapes_under(before: Any, config: Config) -> Shapes:
  """The same of the state under the config of a checkpoint; `config` knows the size of the vocabulary."""
  before = config_lib.resolve(before)
  with before.unlocked():
    if not before.model.vocab_size:
      before.model.vocab_size = config.model.vocab_size
  model, _ = models.build_model(before)
  tx, _ = build.build_optimizer(before, model, 1)
  state = jax.eval_shape(lambda: step_lib.init_state(model, tx, before.seed))
  return _shapes(state)


def introduction(
    plan: Plan,
    params: dict[str, Any],
    progress: Progress,
    rows: pipeline.TrainRows,
) -> Iterator[str]:
  """Lines that report what a run is going to do.

  Args:
    plan: of the run.
    params: its parameters, arrays.
    progress: where it resumes.
    rows: of the endless training sequence.
  """
  config = plan.config
  steps = progress.step + plan.steps_left(progress)
  rows_to_read = steps * config.batch_size
  tokens = metrics.short(config.stop.tokens)
  yield f'{config.model.name} of {plan.num_params:,} parameters on {_devices(plan.mesh)}'
  yield f'{tokens} tokens: {steps:,} steps of {config.batch_size} x {config.data.seq_len}'
  for warning in config_lib.warnings(config):
    yield f'WARNING: {warning}'
  yield from _trained_parameters(plan)
  yield from _replicated_parameters(plan, params)
  yield from rows.describe(rows_to_read)
  if progress.skipped:
    windows = [f'{start:,} to {stop - 1:,}' for start, stop in progress.skipped]
    yield f'Rows skipped: {", ".join(windows)}'


def _devices(mesh: jax.sharding.Mesh) -> str:
  """Their number and kind, and the axes of the mesh."""
  kind = mesh.devices.flat[0].device_kind
  axes = [f'{axis} {size}' for axis, size in mesh.shape.items()]
  return f'{mesh.size} x {kind} ({", ".join(axes)})'


def _trained_parameters(plan: Plan) -> Iterator[str]:
  """How many parameters are trained, if not all."""
  parameters = plan.model.parameters
  rates = from_config.rates(plan.config.optimizer, parameters)
  trained = 0
  for path, param in parameters.items():
    share = (rates[path] > 0).mean()
    trained += round(param.size * share)
  if trained < plan.num_params:
    yield f'{trained:,} of them are trained, the others frozen'


def _replicated_parameters(plan: Plan, params: dict[str, Any]) -> Iterator[str]:
  """Which parameters are on every device, if these are many."""
  replicated = sharding.replicated(params, plan.mesh)
  num_bytes = sum(size for _, size in replicated)
  share = num_bytes / (4 * plan.num_params)
  if share <= sharding.MOST_REPLICATED:
    return
  largest, _ = replicated[0]
  yield (f'{share:.0%} of parameter bytes are on every device in full, {largest} first: rules in '
         't5like/sharding.py place them.')
