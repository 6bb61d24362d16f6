"""What a run starts from: its newest checkpoint, one of `branch_from`, the weights of `init_from` or random ones."""
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax

from t5like import config as config_lib, sharding
from t5like.batches import pipeline
from t5like.config import resumable, stages as stages_lib
from t5like.config_type import Config
from t5like.errors import CheckpointError, ConfigError
from t5like.huggingface import adapted
from t5like.observe import metrics
from t5like.optim import from_config
from t5like.storage import rewinds as rewinds_lib, workdir as workdir_lib
from t5like.storage.checkpoint import Checkpoints
from t5like.training import build, course as course_lib, step as step_lib
from t5like.training.course import Course
from t5like.training.plan import Plan
from t5like.training.progress import Progress
from t5like.vocabulary.kinds import Vocabulary

Meta = dict[str, Any]
State = dict[str, Any]
Shapes = dict[str, tuple[int, ...]]  # of arrays, by path

# Keys that may change the shapes of the state.
DECISIVE = (*resumable.OF_PARAMETERS, *resumable.OF_THE_OPTIMIZER, 'stages')


def start(
    course: Course,
    store: Any,
    checkpoints: Checkpoints,
    workdir: str,
    rewinds: Sequence[rewinds_lib.Record],
    say: Callable[[str], None],
) -> tuple[State, Progress]:
  """The state and how far the run is.

  The newest checkpoint of the workdir that `rewinds` have not undone comes first, then that of `branch_from`, then
  `init_from` (parameters only), then random parameters.

  Args:
    course: of the run. Its mesh is in force.
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
  plan = course.plans[0]
  # The state is that of any schedule and any stage.
  tx, _ = build.build_optimizer(plan.config, plan.model, plan.total_steps, stateful=plan.stateful)

  def initial_state(params: dict[str, Any] | None = None) -> State:
    return step_lib.init_state(plan.model, tx, plan.config.seed, params, plan.config.optimizer.ema)

  abstract = sharding.abstract(initial_state, plan.mesh)
  counts = rewinds_lib.happened(rewinds)
  check = _Check(course, store, workdir, abstract)
  check.newest(checkpoints, counts)
  restored = checkpoints.restore(abstract, say, counts)
  if restored:
    state, meta = restored
    check.meta(meta)
    progress = course.completed(Progress.from_meta(meta), meta)
    tokens = metrics.short(progress.tokens)
    say(f'Resumed from step {progress.step:,}, after {tokens} tokens.')
  elif plan.requested.branch_from:
    state, progress = _branched(course, store, abstract, say)
  else:
    progress = Progress()
    state = _untrained(plan, store, initial_state, abstract, say)
  return state, _with_skipped_rows(plan.config, progress, rewinds)


def _branched(
    course: Course,
    store: Any,
    abstract: State,
    say: Callable[[str], None],
) -> tuple[State, Progress]:
  """The state and the progress of the checkpoint that branch_from names. Errors as of `start`."""
  workdir, number = workdir_lib.trunk(course.plans[0].requested.branch_from)
  counts = _of_step(number, rewinds_lib.read_rewinds(workdir))
  check = _Check(course, store, str(workdir), abstract)
  with Checkpoints(workdir, say=say) as checkpoints:
    check.newest(checkpoints, counts)
    restored = checkpoints.restore(abstract, say, counts)
  if restored is None:
    wanted = f' of step {number:,}' * (number is not None)
    raise CheckpointError(f'branch_from: {workdir} has no checkpoint{wanted} that was not undone by a rewind.')
  state, meta = restored
  progress = course.completed(Progress.from_meta(meta), meta)
  tokens = metrics.short(progress.tokens)
  say(f'Branched from step {progress.step:,} of {workdir}, after {tokens} tokens.')
  return state, progress


def _of_step(number: int | None, rewinds: Sequence[rewinds_lib.Record]) -> Callable[[int, Meta], bool]:
  """Whether a checkpoint, by its step and meta, is that of a step, if one is given, and was not undone."""
  happened = rewinds_lib.happened(rewinds)

  def counts(step: int, meta: Meta) -> bool:
    is_wanted = number is None or step == number
    return is_wanted and happened(step, meta)

  return counts


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
  options = sharding.options_of_one_run()
  if not init_from:
    make_state = jax.jit(
        initial_state,
        out_shardings=layout,
        compiler_options=options,
    )
    return make_state()
  params = adapted.initial(plan.config, abstract['params'], store.vocabulary, say)
  make_state = jax.jit(
      initial_state,
      out_shardings=layout,
      donate_argnums=0,
      compiler_options=options,
  )
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

  def __init__(self, course: Course, store: Any, workdir: str, abstract: State):
    self.course = course
    self.plan = course.plans[0]
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
    progress = self.course.completed(Progress.from_meta(meta), meta)
    self._check_config(meta['config'], progress, where)
    self._check_data(meta['data'], where)

  def _check_config(self, saved: str, progress: Progress, where: str) -> None:
    """saved: the checkpoint's config, JSON."""
    before = config_lib.from_json(saved)
    stages_lib.check_begun(before, self.plan.requested, len(progress.stages), where)
    changes = config_lib.check_resumable(before, self.plan.requested, where)
    changed_keys = {key for key, _, _ in changes}
    if changed_keys.isdisjoint(DECISIVE):
      return
    saved_shapes = _shapes_under(before, self.store.vocabulary, self.plan.mesh)
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


def _shapes_under(before: Any, vocabulary: Vocabulary, mesh: jax.sharding.Mesh) -> Shapes:
  """The same of the state under the config of a checkpoint."""
  plan = course_lib.make(before, vocabulary, mesh).plans[0]
  tx, _ = build.build_optimizer(plan.config, plan.model, 1, stateful=plan.stateful)
  state = jax.eval_shape(lambda: step_lib.init_state(plan.model, tx, plan.config.seed, ema=plan.config.optimizer.ema))
  return _shapes(state)


def introduction(
    course: Course,
    params: dict[str, Any],
    progress: Progress,
    rows: pipeline.TrainRows,
) -> Iterator[str]:
  """Lines that report what a run is going to do.

  Args:
    course: of the run, from there on.
    params: its parameters, arrays.
    progress: where it resumes.
    rows: of the endless training sequence.
  """
  plan = course.plan(progress)
  config = plan.config
  steps = course.total_steps
  tokens = metrics.short(config.stop.tokens)
  yield f'{config.model.name} of {plan.num_params:,} parameters on {_devices(plan.mesh)}'
  if len(course.stages) == 1:
    rows_to_read = steps * config.batch_size
    yield f'{tokens} tokens: {steps:,} steps of {config.batch_size} x {config.data.seq_len}'
  else:
    last = course.stretches[-1]
    rows_to_read = last.row + last.steps * course.plans[-1].config.batch_size
    yield f'{tokens} tokens: {steps:,} steps in {len(course.stages)} stages'
    yield from _stages(course, progress)
  for warning in config_lib.warnings(plan.requested):
    yield f'WARNING: {warning}'
  yield from _trained_parameters(plan)
  yield from _replicated_parameters(plan, params)
  yield from rows.describe(rows_to_read)
  if progress.skipped:
    windows = [f'{start:,} to {stop - 1:,}' for start, stop in progress.skipped]
    yield f'Rows skipped: {", ".join(windows)}'


def _stages(course: Course, progress: Progress) -> Iterator[str]:
  """The stages from the one that the run is in on."""
  for stretch in course.stretches:
    config = course.plans[stretch.stage].config
    words = f'{stretch.steps:,} steps of {config.batch_size} x {config.data.seq_len}'
    if stretch.stage > len(progress.stages):
      stage = course.stages[stretch.stage]
      before = course.stages[stretch.stage - 1]
      changes = stages_lib.in_words(stage.changes, before.config)
      words = f'{words} from step {stretch.step:,} on, {stage.tokens:,} tokens: {changes}'
    yield f'  Stage {stretch.stage}: {words}'


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
