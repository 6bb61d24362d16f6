"""All that can be known of a run before a document is tokenised or a device is touched: one function, `check`.

`main.py train`, `prepare`, `inspect`, `preflight`, `--print_config` and `t5like.train` go through it, after the rules
of config/rules.py, which need no more than the config. What only the text or the devices show is found later, by those
who meet it. What imports JAX is imported where it is needed: most mistakes are found without.
"""
import pathlib
import tempfile
import uuid

from etils import epath

from t5like import choices, config as config_lib
from t5like.choices import SOURCES
from t5like.config import task_files as task_lib
from t5like.config.values import base, show
from t5like.config_type import Config
from t5like.errors import CheckpointError, ConfigError, DataError, Failure
from t5like.evals import items
from t5like.files import mirror, paths
from t5like.objectives import lengths
from t5like.objectives.prompts import STYLES
from t5like.observe import trackers
from t5like.prepared import datasets, examples, manifests, parts
from t5like.sources import registry
from t5like.storage import workdir as workdir_lib
from t5like.vocabulary import kinds, loading as vocabulary_lib, requirements

FOLDERS = ('data.directory', 'data.cache', 'data.tfds_dir', 'init_from', 'vocabulary.path', 'compile.cache')
PEEK = 3  # records of a source that are looked at
MUCH = 16 << 20  # bytes of a file that is not read just to look


def check(config: Config, workdir: str = '', here: bool = True, create: bool = False) -> list[str]:
  """Raises the first Failure that can be known now; returns notes for people, [text].

  Args:
    config: one that config_rules accepts.
    workdir: of the run; '' where there is none yet.
    here: whether this machine will read the data. If not (preflight, --print_config), what it lacks is in the notes.
    create: whether the workdir may be made, to see that it can be written to.
  """
  notes = []
  resumes = False
  if workdir:
    check_workdir(workdir, config)
    resumes = workdir_lib.is_there('--workdir', f'{workdir}/config.json')
  for rule in OF_THE_MACHINE:
    if resumes and rule is _init_from:
      continue  # weights to begin with are not needed any more
    try:
      rule(config)
    except Failure as error:
      if here:
        raise
      notes.append(f'On this machine: {error}')
  for rule in OF_THE_CONFIG:
    rule(config)
  if create:
    _probe(workdir)
  return notes


# --- Of the config alone ----------------------------------------------------------------------------


def _parameters(config):
  """Patterns that match no parameter, and params_expected, from shapes alone."""
  resolved = config_lib.resolve(config)
  patterns = config.optimizer.freeze or config.optimizer.multipliers
  counted = config.params_expected and resolved.model.vocab_size
  if not patterns and not counted:
    return
  from t5like.model import models
  if patterns:
    models.parameters(resolved)
  if counted:
    models.sizes(resolved)


def _shares(config):
  """Shares of a mixture that are too small for its schedule of rows."""
  if config.data.mixture and not choices.MIXTURE_RATES[config.data.mixture_rates].by_examples:
    from t5like.batches import mixing
    for _, weights in lengths.stages(config):
      mixing.apportion(weights, mixing.WINDOW * mixing.WINDOW)


def _vocabulary(config):
  """Tokens that the objective needs and the vocabulary lacks; a model that cannot hold the vocabulary."""
  v = config.vocabulary
  if v.path and not mirror.is_file(v.path):
    return  # of the machine, see _vocabulary_file
  vocabulary = requirements.check_vocabulary(config)
  if isinstance(vocabulary, kinds.Vocabulary):  # else it depends on the text
    from t5like.model import models
    models.with_vocabulary(config, vocabulary)
    check_prompts(config, vocabulary)
  else:
    _marks(config, vocabulary)


def _marks(config, vocabulary):
  """<mask> and <extra_id_k> in sample.prompts that a vocabulary will not have, whatever the text."""
  from t5like.decoding import decode
  if not STYLES[decode.style_of(config)].marked:
    return
  for prompt in config.sample.prompts:
    for mark in kinds.MARK.findall(prompt):
      number = kinds.sentinel_number(mark) if mark.startswith('<extra_id_') else 0
      if number >= vocabulary.num_sentinels:
        raise ConfigError(f'sample.prompts has {show(prompt)}: the vocabulary will have no {mark}, for '
                          f'vocabulary.sentinels={config.vocabulary.sentinels}. Raise that, or leave it out.')


def check_prompts(config, vocabulary):
  """ConfigError for sample.prompts that cannot be answered: to be known before training, not at its end."""
  from t5like.decoding import decode
  prompts = config.sample.prompts
  try:
    decode.check_prompts(vocabulary, prompts, decode.style_of(config), config.data.seq_len)
  except (decode.PromptError, ConfigError) as error:
    raise ConfigError(f'sample.prompts={show(prompts)}: {error}') from error


# --- Of this machine --------------------------------------------------------------------------------


def _folders(config):
  flat = {key: value for key, value, _ in config_lib.describe(config)}
  for key in FOLDERS:
    if flat[key]:
      paths.check(key, flat[key])
  for c in datasets.datasets(config).values():
    paths.check('data.source', c.data.source)
    paths.check('data.validation', c.data.validation)


def _vocabulary_file(config):
  v = config.vocabulary
  if v.path and not mirror.is_file(v.path):
    raise ConfigError(f'vocabulary.path={v.path!r} is not a file: give the path of {vocabulary_lib.FILES[v.name]}.')


def _trackers(config):
  trackers.check(config.log.trackers)


def _init_from(config):
  """Weights to begin with that are not there, or of another model."""
  if not config.init_from:
    return
  workdir_lib.check_beginning(config.init_from)
  folder = epath.Path(paths.expand(config.init_from))
  of_a_step = folder.parent.name == 'checkpoints' and folder.name.isdecimal()
  run = folder.parent.parent if of_a_step else folder
  from t5like.huggingface import model_folders
  is_run = of_a_step or (folder / 'checkpoints').exists()
  if is_run:
    theirs = config_lib.resolve(workdir_lib.read_config(run)).model.to_dict()
    workdir_lib.check_checkpoint('init_from', run, int(folder.name) if of_a_step else None)
  else:
    theirs = model_folders.model_of(folder)
  ours = config_lib.resolve(config)
  if not is_run or not ours.model.vocab_size or not theirs['vocab_size']:
    theirs['vocab_size'] = ours.model.vocab_size  # rows may be added to it, or the vocabulary says how many there are
  model_folders.check_fits(ours, theirs)
  known = requirements.known(config)
  if not isinstance(known, kinds.Vocabulary):
    return  # it depends on the text
  if is_run:
    spec, path = workdir_lib.read_config(run).vocabulary, workdir_lib.vocabulary_path(run)
    if path.exists():
      model_folders.check_same_vocabulary(config, known, dict(spec, path=str(path)), vocabulary_lib.load(spec, path))
  else:
    found = model_folders.find_vocabulary(folder, config.vocabulary.special.to_dict())
    model_folders.check_same_vocabulary(config, known, *found)


def _tasks(config):
  """Items and examples of evaluate.tasks, which are asked only while training or at its end."""
  seen = set()
  for name in config.evaluate.tasks:
    task = task_lib.find(name)
    if task.name in seen:
      raise ConfigError(f'evaluate.tasks={show(config.evaluate.tasks)}: two tasks are called {task.name!r}. Rename '
                        'one of the files.')
    seen.add(task.name)
    try:
      _items(task, config.evaluate)
    except Failure as error:
      raise type(error)(f'evaluate.tasks has {name!r}. {error}') from error


def _items(task, evaluate):
  if task.items.partition(':')[0] not in SOURCES:
    items.questions(task, evaluate.shots, evaluate.limit)
    return
  c = base()
  c.data.update(source=task.items, split=task.split)
  registry.open_source(c)


def _data(config):
  """Sources, splits and fields of what is not prepared yet, and whether there is a place to put it."""
  for c in datasets.datasets(config).values():
    if _is_prepared(c):
      continue
    for source in parts.open_sources(c).values():
      _peek(c, source)
    _check_writable('data.cache' if datasets.remote(c) else 'data.directory', datasets.folder(c))


def _is_prepared(config):
  url, folder = datasets.remote(config), datasets.folder(config)
  return (folder / manifests.MANIFEST).exists() or bool(url) and mirror.is_file(f'{url}/{manifests.MANIFEST}')


def _peek(config, source):
  """DataError where the first records lack a field that templates or data.field name, or are damaged."""
  if not source.num_items:
    raise DataError(f'data.source={source.name!r} holds no text.')
  large = source.name.startswith('text:') and source.num_bytes > MUCH * source.num_items
  if large or config.data.max_bad_records:
    return  # which would take long, or may be damaged
  for _ in examples.examples(config, source, dict(start=0, stop=1, last=PEEK), examples.new_count()):
    pass


# --- Of the run's folder ----------------------------------------------------------------------------


def check_workdir(workdir: str, config: Config = None):
  """Failure for a workdir that holds a run of another config, or that cannot be written to as far as can be seen."""
  workdir_lib.is_there('--workdir', workdir)
  if config is not None:
    workdir_lib.check_config(workdir, config)
  if not paths.is_remote(workdir):
    _check_writable('--workdir', pathlib.Path(workdir))


def _probe(workdir):
  """Makes the workdir, writes and deletes a file there: nothing else shows that it can be done everywhere."""
  folder = epath.Path(workdir)
  file = folder / f'writable-{uuid.uuid4().hex}.tmp'
  try:
    folder.mkdir(parents=True, exist_ok=True)
    file.write_text('')
    file.unlink()
  except Exception as error:  # each store has errors of its own
    raise CheckpointError(f'--workdir={show(str(workdir))}: cannot be written to ({type(error).__name__}: '
                          f'{str(error)[:200]}). Give a folder that this user may write to.') from error


def _check_writable(name, folder):
  """CheckpointError (of a workdir), DataError for a local folder that cannot be made or written to."""
  kind = CheckpointError if name == '--workdir' else DataError
  try:
    there = next(p for p in (folder, *folder.absolute().parents) if p.exists())
  except OSError as error:
    raise kind(f'{name}={show(str(folder))}: {error.strerror}. Give another folder.') from error
  if not there.is_dir():
    raise kind(f'{name}={show(str(folder))}: {there} is a file, not a folder. Give another.')
  try:
    with tempfile.TemporaryFile(dir=there):
      pass
  except OSError as error:
    raise kind(f'{name}={show(str(folder))}: {there} cannot be written to ({error.strerror}). Give a folder that this '
               'user may write to.') from error


OF_THE_CONFIG = (_parameters, _shares, _vocabulary)
OF_THE_MACHINE = (_folders, _vocabulary_file, _trackers, _data, _tasks, _init_from)
