"""Every check of a run that is possible before a document is tokenised or a device is touched: `check`.

`main.py train`, `prepare`, `inspect`, `preflight`, `--print_config` and `t5like.train` call it after the rules of
config/rules.py, which read the config alone. Errors that depend on the text or the devices are raised later, where
these are read. Modules with JAX are imported in the functions that need them: most mistakes are found without it.
"""
import pathlib
import tempfile
import uuid

from etils import epath

from t5like import choices, config as config_lib
from t5like.choices import SOURCES
from t5like.config import adaptation, stages, task_files as task_lib
from t5like.config.values import base, show
from t5like.config_type import Config, Section
from t5like.errors import CheckpointError, ConfigError, DataError, Failure
from t5like.evals import items
from t5like.files import mirror, paths
from t5like.objectives import lengths
from t5like.objectives.prompts import STYLES
from t5like.observe import trackers
from t5like.prepared import datasets, examples, manifests, parts
from t5like.sources import registry
from t5like.storage import stored_config, workdir as workdir_lib
from t5like.vocabulary import kinds, loading as vocabulary_lib, requirements

FOLDERS = ('data.directory', 'data.cache', 'data.tfds_dir', 'init_from', 'branch_from', 'adapt.encoder',
           'vocabulary.path', 'compile.cache')
PEEK = 3  # records of a source that are read
EXTRA_ID = '<extra_id_'
MUCH = 16 << 20  # bytes; larger files are not opened for a check


def check(config: Config, workdir: str = '', here: bool = True, create: bool = False) -> list[str]:
  """Raises the first Failure that can be found now; returns notes for people, [text].

  Args:
    config: one that config/rules.py accepts.
    workdir: of the run; '' where there is none yet.
    here: whether this machine will read the data. If not (preflight, --print_config), its failures become notes.
    create: whether the workdir may be made, to test that it can be written to.
  """
  notes = []
  resumes = False
  if workdir:
    check_workdir(workdir, config)
    resumes = workdir_lib.is_there('--workdir', f'{workdir}/config.json')
  for rule in OF_THE_MACHINE:
    if resumes and rule in (_init_from, _branch_from):
      continue  # a run that resumes has its own weights
    try:
      rule(config)
    except Failure as error:
      if here:
        raise
      notes.append(f'On this machine: {error}')
  for stage in stages.of(config):
    with stages.named_in_errors(stage):
      for rule in OF_THE_CONFIG:
        rule(stage.config)
  if create:
    _probe(workdir)
  return notes


# --- Of the config alone ----------------------------------------------------------------------------


def _parameters(config: Config) -> None:
  """Patterns that match no parameter, and params_expected, from shapes alone."""
  resolved = config_lib.resolve(config)
  patterns = config.optimizer.freeze or config.optimizer.multipliers
  counted = config.params_expected and resolved.model.vocab_size
  is_held = config.adapt.warm_up_steps > 0
  if not patterns and not counted and not is_held:
    return
  from t5like.model import models
  if patterns or is_held:
    models.parameters(resolved)
  if counted:
    models.sizes(resolved)


def _shares(config: Config) -> None:
  """Shares of a mixture that are too small for its schedule of rows."""
  data = config.data
  if not data.mixture or choices.MIXTURE_RATES[data.mixture_rates].by_examples:
    return
  from t5like.batches import mixing
  weights = [component.weight for component in lengths.components(config)]
  mixing.apportion(weights, mixing.WINDOW * mixing.WINDOW)


def _vocabulary(config: Config) -> None:
  """Tokens that the objective needs and the vocabulary does not have; a model too small for the vocabulary."""
  path = config.vocabulary.path
  if path and not mirror.is_file(path):
    return  # of the machine, see _vocabulary_file
  vocabulary = requirements.check_vocabulary(config)
  if isinstance(vocabulary, requirements.Planned):  # it depends on the text
    _marks(config, vocabulary)
    return
  from t5like.model import models
  models.with_vocabulary(config, vocabulary)
  check_prompts(config, vocabulary)


def _marks(config: Config, vocabulary: requirements.Planned) -> None:
  """<mask> and <extra_id_k> in sample.prompts that the vocabulary cannot have, whatever the text."""
  from t5like.decoding import decode
  if not STYLES[decode.style_of(config)].marked:
    return
  for prompt in config.sample.prompts:
    for mark in kinds.MARK.findall(prompt):
      if _sentinel(mark) >= vocabulary.num_sentinels:
        raise ConfigError(f'sample.prompts has {show(prompt)}: the vocabulary will have no {mark}, for '
                          f'vocabulary.sentinels={config.vocabulary.sentinels}. Raise that, or leave it out.')


def _sentinel(mark: str) -> int:
  """The number of the sentinel that a mark stands for; that of <mask> is the first."""
  if mark.startswith(EXTRA_ID):
    return kinds.sentinel_number(mark)
  return 0


def check_prompts(config: Config, vocabulary: kinds.Vocabulary) -> None:
  """ConfigError for sample.prompts that cannot be answered, before training and not at its end."""
  from t5like.decoding import decode
  prompts = config.sample.prompts
  try:
    decode.check_prompts(vocabulary, prompts, decode.style_of(config), config.data.seq_len)
  except (decode.PromptError, ConfigError) as error:
    raise ConfigError(f'sample.prompts={show(prompts)}: {error}') from error


# --- Of this machine --------------------------------------------------------------------------------


def _folders(config: Config) -> None:
  """Paths that are not valid names of folders."""
  flat = {key: value for key, value, _ in config_lib.describe(config)}
  for key in FOLDERS:
    if flat[key]:
      paths.check(key, flat[key])
  for dataset in datasets.datasets(config).values():
    paths.check('data.source', dataset.data.source)
    paths.check('data.validation', dataset.data.validation)


def _vocabulary_file(config: Config) -> None:
  """A vocabulary.path that is not a file."""
  spec = config.vocabulary
  if spec.path and not mirror.is_file(spec.path):
    raise ConfigError(f'vocabulary.path={spec.path!r} is not a file: give the path of '
                      f'{vocabulary_lib.FILES[spec.name]}.')


def _trackers(config: Config) -> None:
  """Packages of trackers that are not installed."""
  trackers.check(config.log.trackers)


def _init_from(config: Config) -> None:
  """Initial weights that do not exist, or that are of another model."""
  if not config.init_from or config.branch_from:
    return
  if adaptation.is_on(config.adapt):
    from t5like.huggingface import adapted
    adapted.check(config)
    return
  workdir_lib.check_beginning(config.init_from)
  folder = epath.Path(paths.expand(config.init_from))
  run = workdir_lib.run_of(folder)
  if run is not None:
    _init_from_run(config, *run)
  else:
    _init_from_model(config, folder)


def _branch_from(config: Config) -> None:
  """A run to branch from that does not exist, or whose config differs by more than a resumed run may change."""
  if not config.branch_from:
    return
  workdir_lib.check_beginning(config.branch_from, 'branch_from')
  run, step = workdir_lib.trunk(config.branch_from)
  before = workdir_lib.read_config(run)
  workdir_lib.check_checkpoint('branch_from', str(run), step)
  config_lib.check_resumable(before, config, f'branch_from={config.branch_from}')


def _init_from_run(config: Config, run: epath.Path, step: int | None) -> None:
  """Weights of a run of ours; step: of the checkpoint, None: the newest."""
  from t5like.huggingface import model_folders
  workdir_lib.read_config(run)
  workdir_lib.check_checkpoint('init_from', str(run), step)
  run_config = stored_config.read(run, step)
  ours = config_lib.resolve(config)
  theirs = config_lib.resolve(run_config).model.to_dict()
  if not ours.model.vocab_size or not theirs['vocab_size']:
    theirs['vocab_size'] = ours.model.vocab_size  # the vocabulary says how many there are
  model_folders.check_fits(ours, theirs)
  known = requirements.known(config)
  path = workdir_lib.vocabulary_path(run)
  if isinstance(known, requirements.Planned) or not path.exists():
    return  # it depends on the text
  spec = run_config.vocabulary
  vocabulary = vocabulary_lib.load(spec, path)
  model_folders.check_same_vocabulary(config, known, dict(spec, path=str(path)), vocabulary)


def _init_from_model(config: Config, folder: epath.Path) -> None:
  """Weights of a folder in the layout of transformers."""
  from t5like.huggingface import folder_tokenizers, model_folders
  ours = config_lib.resolve(config)
  theirs = model_folders.model_of(folder)
  theirs['vocab_size'] = ours.model.vocab_size  # rows may be added to it
  model_folders.check_fits(ours, theirs)
  known = requirements.known(config)
  if isinstance(known, requirements.Planned):
    return  # it depends on the text
  spec, vocabulary = folder_tokenizers.find_vocabulary(folder, config.vocabulary.special.to_dict())
  model_folders.check_same_vocabulary(config, known, spec, vocabulary)


def _tasks(config: Config) -> None:
  """Items and examples of evaluate.tasks, which are first used during training or at its end."""
  names = set()
  for name in config.evaluate.tasks:
    task = task_lib.find(name)
    if task.name in names:
      raise ConfigError(f'evaluate.tasks={show(config.evaluate.tasks)}: two tasks are called {task.name!r}. Rename '
                        'one of the files.')
    names.add(task.name)
    try:
      _items(task, config.evaluate)
    except Failure as error:
      raise type(error)(f'evaluate.tasks has {name!r}. {error}') from error


def _items(task: task_lib.Task, evaluate: Section) -> None:
  if task.items.partition(':')[0] not in SOURCES:
    items.questions(task, evaluate.shots, evaluate.limit)
    return
  config = base()
  config.data.update(source=task.items, split=task.split)
  registry.open_source(config)


def _data(config: Config) -> None:
  """Sources, splits and fields of datasets that are not prepared yet, and whether their folder can be written to."""
  for dataset in datasets.datasets(config).values():
    if _is_prepared(dataset):
      continue
    for source in parts.open_sources(dataset).values():
      _peek(dataset, source)
    key = 'data.cache' if datasets.remote(dataset) else 'data.directory'
    _check_writable(key, datasets.folder(dataset))


def _is_prepared(config: Config) -> bool:
  """Whether a dataset is prepared, here or where it is mirrored."""
  if (datasets.folder(config) / manifests.MANIFEST).exists():
    return True
  url = datasets.remote(config)
  return bool(url) and mirror.is_file(f'{url}/{manifests.MANIFEST}')


def _peek(config: Config, source: registry.Source) -> None:
  """DataError where the first records lack a field that templates or data.field name, or are damaged."""
  if not source.num_items:
    raise DataError(f'data.source={source.name!r} holds no text.')
  is_large = source.name.startswith('text:') and source.num_bytes > MUCH * source.num_items
  if is_large or config.data.max_bad_records:
    return  # slow to open, or allowed to be damaged
  for _ in examples.examples(config, source, dict(start=0, stop=1, last=PEEK), examples.new_count()):
    pass


# --- Of the run's folder ----------------------------------------------------------------------------


def check_workdir(workdir: str, config: Config | None = None) -> None:
  """Failure for a workdir that holds a run of another config, or that is visibly not writable."""
  workdir_lib.is_there('--workdir', workdir)
  if config is not None:
    workdir_lib.check_config(workdir, config)
  if not paths.is_remote(workdir):
    _check_writable('--workdir', pathlib.Path(workdir))


def _probe(workdir: str) -> None:
  """Makes the workdir, then writes and deletes a file in it: the only test that works with every store."""
  folder = epath.Path(workdir)
  file = folder / f'writable-{uuid.uuid4().hex}.tmp'
  try:
    folder.mkdir(parents=True, exist_ok=True)
    file.write_text('')
    file.unlink()
  except Exception as error:  # each store has errors of its own
    raise CheckpointError(f'--workdir={show(str(workdir))}: cannot be written to ({type(error).__name__}: '
                          f'{str(error)[:200]}). Give a folder that this user may write to.') from error


def _check_writable(name: str, folder: pathlib.Path) -> None:
  """CheckpointError (of a workdir), DataError for a local folder that cannot be made or written to."""
  kind = CheckpointError if name == '--workdir' else DataError
  written = f'{name}={show(str(folder))}'
  try:
    existing = next(place for place in (folder, *folder.absolute().parents) if place.exists())
  except OSError as error:
    raise kind(f'{written}: {error.strerror}. Give another folder.') from error
  if not existing.is_dir():
    raise kind(f'{written}: {existing} is a file, not a folder. Give another.')
  try:
    with tempfile.TemporaryFile(dir=existing):
      pass
  except OSError as error:
    raise kind(f'{written}: {existing} cannot be written to ({error.strerror}). Give a folder that this '
               'user may write to.') from error


OF_THE_CONFIG = (_parameters, _shares, _vocabulary)
OF_THE_MACHINE = (_folders, _vocabulary_file, _trackers, _data, _tasks, _init_from, _branch_from)
