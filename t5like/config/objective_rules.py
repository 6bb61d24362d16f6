"""Which objectives, architectures, vocabularies and lengths go together, and by which numbers not."""
from collections.abc import Iterator
from typing import Any

from t5like import choices
from t5like.config.task_files import find as find_task
from t5like.config.templates import check as check_template
from t5like.config.values import DEFAULTS, SECTIONS, Flat, divisors, either, show, unknown
from t5like.config_type import Config, Section
from t5like.errors import ConfigError
from t5like.nearest import suggestion
from t5like.objectives import lengths, table
from t5like.objectives.asking import CannotBeAsked
from t5like.objectives.spec import Lengths, Objective, OneStack, Pair

# Keys of `data` that describe one dataset; the others belong to a run.
OF_A_DATASET = '''source field inputs targets split tfds_dir validation validation_fraction max_documents
  max_bad_records empty max_document_tokens overlong deduplicate append_eos shards packing document_mask'''.split()
LEFT_RIGHT = ('Give both templates, such as data.inputs="summarize: {article}" and '
              'data.targets="{highlights}".')
HEAVIEST = 1e12  # weights are below
LEAST_TEXT = 2  # tokens of a row
SLACK = 4  # positions of the encoder's rows that a data.target_len may leave empty


# --- Mixtures of datasets -------------------------------------------------------------------------


def check_mixture(mixture: dict[str, Any]) -> tuple[list[tuple[str, Flat]], list[str]]:
  """Reads `data.mixture`.

  Returns:
    [(its name in errors, flat values)] of each component, and what is wrong with them, a sentence each.
  """
  components = []
  problems = []
  for name, changes in mixture.items():
    where = f'data.mixture.{name}'
    if not isinstance(changes, dict):
      problems.append(f'{where}={show(changes)}: write dict(weight=2.0, data=dict(source=..)).')
      continue
    if not is_weight(changes.get('weight', 1)):
      problems.append(f'{where}.weight={show(changes["weight"])}: must be a number, 0 or above.')
    flat: Flat = {}
    for section, values in changes.items():
      if section != 'weight':
        problems += _take_section(flat, where, section, values)
    components.append((where, flat))
  return components, problems


def _take_section(flat: Flat, where: str, section: str, values: Any) -> Iterator[str]:
  """Puts the values of a section of a component into `flat`; yields what is wrong with them."""
  if section not in ('data', 'objective') or not isinstance(values, dict):
    yield (f'{where}.{section}={show(values)}: a component has weight, data and objective, '
           'the last two being dicts.')
    return
  for name, value in values.items():
    key = f'{section}.{name}'
    if key not in DEFAULTS:
      yield unknown(key, f'{where}.{key}={show(value)}')
    elif section == 'data' and name not in OF_A_DATASET:
      yield (f'{where}.{key}={show(value)}: belongs to the whole run, set {key} instead. '
             f'A component may set {either(OF_A_DATASET)}.')
    else:
      flat[key] = value


def is_weight(value: Any) -> bool:
  """Whether a value can be the weight of a component."""
  return _is_number(value) and 0 <= value < HEAVIEST


def _is_number(value: Any) -> bool:
  return isinstance(value, (int, float)) and not isinstance(value, bool)


def check_stages(flat: Flat) -> Iterator[str]:
  """Yields what is wrong with `data.stages` of a flat config; turns their tokens into whole numbers."""
  stages = dict(flat['data.stages'])
  components = set(flat['data.mixture'])
  if stages and not components:
    yield f'data.stages={show(stages)}: these change weights of data.mixture, which is empty.'
    return
  starts: dict[int, str] = {}  # {tokens: name of the stage}
  for name, stage in stages.items():
    where = f'data.stages.{name}'
    if not _is_stage(stage):
      yield f"{where}={show(stage)}: write dict(tokens='10B', weights=dict(web=0.5))."
      return
    tokens = whole_tokens(stage['tokens'])
    if tokens is None:
      yield f"{where}.tokens={show(stage['tokens'])}: needs a whole number above 0, such as 10_000_000 or '10M'."
      return
    if tokens in starts:
      yield f'{where}.tokens={tokens}: data.stages.{starts[tokens]} begins there too.'
    starts[tokens] = name
    stages[name] = dict(stage, tokens=tokens)
    yield from _weights_of_stage(where, stage['weights'], components)
  flat['data.stages'] = stages


def _is_stage(stage: Any) -> bool:
  return isinstance(stage, dict) and set(stage) == {'tokens', 'weights'} and isinstance(stage['weights'], dict)


def whole_tokens(value: Any) -> int | None:
  """The whole number above 0 that a value or a text is; None if it is none."""
  if isinstance(value, str):
    value = lengths.whole_number(value)
  if not _is_number(value) or value != int(value) or value < 1:
    return None
  return int(value)


def _weights_of_stage(where: str, weights: dict[str, Any], components: set[str]) -> Iterator[str]:
  for component, weight in weights.items():
    if component not in components:
      meant = suggestion(component, components, 'Did you mean {!r}?') or f'There is {either(sorted(components))}.'
      yield f'{where}.weights.{component}: is no component of data.mixture. {meant}'
    elif not is_weight(weight):
      yield f'{where}.weights.{component}={show(weight)}: must be a number, 0 or above.'


def _weights(data: Section) -> Iterator[str]:
  """Weights that are all 0, at the beginning or from a stage on."""
  weights = {}
  for name, changes in data.mixture.to_dict().items():
    weights[name] = changes.get('weight', 1)
  if weights and not any(weights.values()):
    yield 'data.mixture: all weights are 0. Give one component a weight.'
  for stage in sorted(data.stages.to_dict().values(), key=_start):
    weights.update(stage['weights'])
    if not any(weights.values()):
      yield f"data.stages: from {stage['tokens']:,} tokens on all weights are 0. Give one component a weight."


def _start(stage: dict[str, Any]) -> int:
  return stage['tokens']


# --- Objectives -----------------------------------------------------------------------------------


def check_objectives(config: Config) -> Iterator[str]:
  """Yields what is wrong with the objectives of a config whose values are right by themselves."""
  problems = list(_weights(config.data)) or list(_components(config))
  if problems:
    yield from problems
    return
  taken = ['validation']
  if config.optimizer.ema:
    taken.append('ema')
  for name in taken:
    if name in config.data.mixture.to_dict():
      yield f'data.mixture.{name}: this name is taken. Give the component another.'
  shapes = lengths.shapes(config)
  yield from _chunks(config, shapes)
  yield from _positions(config, shapes)
  yield from _head_and_prompts(config)


def _components(config: Config) -> Iterator[str]:
  """What is wrong with the first component that anything is wrong with."""
  try:
    components = lengths.components(config)
  except ConfigError as error:
    yield str(error)
    return
  for component in components:
    problems = list(_together(component)) or list(_vocabulary(component)) or list(_lengths(component))
    for problem in problems:
      yield f'data.mixture.{component.name}: {problem}' if config.data.mixture else problem
    if problems:
      return


def _chunks(config: Config, shapes: Lengths) -> Iterator[str]:
  """Chunks of the loss that do not divide what is predicted of a row on a device."""
  targets = shapes.predicted
  words = 'predictions of a row' if shapes.predictions else 'targets of a row'
  if config.mesh.context > 1:
    targets = -(-targets // config.mesh.context)
    words += ' on a device'
  chunks = config.loss.chunks
  if chunks > 1 and targets % chunks:
    yield (f'loss.chunks={chunks}: must divide the {targets} {words}. '
           f'Use {divisors(chunks, targets)}, or 0 to have it chosen.')


def check_tasks(config: Config) -> Iterator[str]:
  """Yields what is wrong with config.evaluate.tasks."""
  tasks = config.evaluate.tasks
  written = f'evaluate.tasks={show(tasks)}'
  for name in tasks:
    try:
      find_task(name)
    except ConfigError as error:
      yield f'{written}: {error}'
  if not tasks:
    return
  reason = _cannot_be_asked(config)
  if reason:
    yield (f'{written}: a model of objective.name={config.objective.name!r} '
           f'{reason} and cannot be asked for it. Use ().')
  if config.vocabulary.name == 'characters' and not config.vocabulary.specials:
    yield (f'{written}: vocabulary.specials=False has no id for characters that the '
           'data lacks, which tasks may have. Use (), or vocabulary.specials=True.')


def _cannot_be_asked(config: Config) -> str:
  """Why a model of a config cannot be asked for answers, '' if it can."""
  entry = table.of(config)
  if not isinstance(entry, Objective) or isinstance(entry.layout(config.model.name), OneStack):
    return ''
  asking, _ = entry.asking(config.objective)
  return asking.why if isinstance(asking, CannotBeAsked) else ''


def _together(component: lengths.Component) -> Iterator[str]:
  data = component.config.data
  entry = component.objective
  architecture = component.config.model.name
  if architecture not in entry.architectures:
    yield (f'objective.name={entry.name!r}: model.name={architecture!r} cannot be trained on it. '
           f'Use model.name={either(map(repr, entry.architectures))}, or objective.name='
           f'{either(map(repr, table.trains(architecture)))}.')
    return
  yield from _templates(data, entry)
  yield from _packing(data, entry, architecture)


def _templates(data: Section, entry: Objective) -> Iterator[str]:
  for key in ('inputs', 'targets'):
    problem = check_template(data[key])
    if problem:
      yield f'data.{key}={show(data[key])}: {problem}'
  is_paired = bool(data.inputs or data.targets)
  if is_paired and not data.targets:
    yield f'data.inputs={show(data.inputs)}: there is no data.targets. {LEFT_RIGHT}'
  if entry.given and not is_paired:
    yield f'objective.name={entry.name!r}: needs the texts of data.inputs and data.targets. {LEFT_RIGHT}'
  if is_paired and not entry.given:
    learn = [repr(name) for name, other in table.OBJECTIVES.items() if other.given]
    yield (f'data.targets={show(data.targets)}: only objective.name={either(learn)} learns given targets, this is '
           f'{entry.name!r}. Set that, or data.inputs and data.targets to "".')


def _packing(data: Section, entry: Objective, architecture: str) -> Iterator[str]:
  packing = choices.PACKINGS[data.packing]
  if entry.given and packing.windows:
    yield (f"data.packing='concat_split': would cut examples of objective.name={entry.name!r} in two. Use 'best_fit' "
           "(several to a row) or 'none'.")
  if architecture in entry.by_chance and packing.planned:
    yield (f"data.packing='best_fit': lengths under objective.name={entry.name!r} change with every draw, so rows "
           "cannot be planned. Use 'concat_split' or 'none'.")
  if packing.windows:
    return
  if not data.append_eos:
    yield (f"data.append_eos=False: rows of data.packing={data.packing!r} are made of documents, whose ends must "
           "be marked. Set it to True, or data.packing='concat_split'.")
  if not data.document_mask:
    yield (f"data.document_mask=False: data.packing={data.packing!r} keeps documents apart. Set it to True, or "
           "data.packing='concat_split'.")


def _vocabulary(component: lengths.Component) -> Iterator[str]:
  """Special tokens that rows need, of vocabularies that are still to be made."""
  vocabulary = component.config.vocabulary
  name = component.objective.name
  needs, purpose = _sentinels(component)
  layout = component.layout
  streams = isinstance(layout, OneStack) and layout.streams
  if vocabulary.name == 'characters' and not vocabulary.specials:
    if needs or not streams:
      yield (f"vocabulary.specials=False: objective.name={name!r} needs an end-of-document token and sentinels. "
             'Set it to True.')
    return
  is_made = vocabulary.name != 'huggingface' and not vocabulary.path
  if is_made and vocabulary.sentinels < needs:
    settings = [_setting(component.config, key) for key in component.objective.sentinels.depends]
    depends = f' ({", ".join(settings)})' if settings else ''
    yield (f'vocabulary.sentinels={vocabulary.sentinels}: objective.name={name!r} needs {needs} for {purpose}'
           f'{depends}. Use at least {needs}.')


def _sentinels(component: lengths.Component) -> tuple[int, str]:
  """(how many sentinels rows need, what for)."""
  entry = component.objective
  keys = entry.read(component.config.objective)
  needs = entry.sentinels.count(keys, lengths.of(component))
  words = []
  for role in entry.roles(keys):
    if role.sentinels:
      needs = max(needs, role.sentinels)
      words.append(role.words)
  return needs, ' and '.join(words) or entry.sentinels.purpose(needs)


def _setting(config: Config, key: str) -> str:
  """'objective.mean_span=3'."""
  section, _, name = key.partition('.')
  value = config[section][name]
  if isinstance(value, float):
    return f'{key}={value:g}'
  return f'{key}={value}'


def _lengths(component: lengths.Component) -> Iterator[str]:
  data = component.config.data
  raw = lengths.of(component).raw
  if raw < LEAST_TEXT:
    written = f'data.seq_len={data.seq_len}'
    if data.target_len:
      written += f' with data.target_len={data.target_len}'
    yield (f'{written}: leaves no room for 2 tokens of text under objective.name={component.objective.name!r}. '
           'Use more.')
    return
  layout = component.layout
  has_encoder = choices.ARCHITECTURES[component.config.model.name].has_encoder
  if not has_encoder or not data.target_len or not isinstance(layout, Pair) or layout.filled is None:
    return
  filled = layout.filled(component.objective.read(component.config.objective), data.seq_len, raw)
  if filled.inputs < data.seq_len - SLACK:
    yield (f'data.target_len={data.target_len}: {filled.text} tokens of text, which fill data.seq_len={data.seq_len}, '
           f'have {filled.targets} targets, so rows of the encoder would hold only {filled.inputs}. Use '
           f'{filled.targets}, or 0.')


def _positions(config: Config, shapes: Lengths) -> Iterator[str]:
  """Rows that are longer than a table of learned positions."""
  model = config.model
  position = choices.POSITIONS[model.position]
  longest = max(shapes.inputs, shapes.targets)
  rows = model.max_positions - position.first_row
  if position.learned and longest > rows:
    yield (f'data.seq_len={config.data.seq_len}: rows of {longest} tokens are longer than the table of learned '
           f'positions, which holds {rows}. Use at most that, or model.max_positions='
           f'{longest + position.first_row}.')


def _head_and_prompts(config: Config) -> Iterator[str]:
  """Heads and prompts that belong to encoders."""
  model = config.model
  if choices.ARCHITECTURES[model.name].causal:
    if choices.HEADS[model.head].transformed:
      yield f"model.head={model.head!r}: belongs to model.name='encoder', this is {model.name!r}. Use 'linear'."
    return
  for prompt in config.sample.prompts:
    if '<mask>' not in prompt:
      yield (f'sample.prompts={show(config.sample.prompts)}: an encoder fills in what is masked, and '
             f"{show(prompt)} has no '<mask>'. Write ('def <mask>(self):',), or () for none.")
      return


assert set(OF_A_DATASET) <= set(SECTIONS['data'])
