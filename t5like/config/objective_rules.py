"""Which objectives, architectures, vocabularies and lengths go together, and by which numbers not."""
from t5like import choices
from t5like.config import task_files as task_lib, templates
from t5like.config.values import DEFAULTS, SECTIONS, divisors, either, show, unknown
from t5like.errors import ConfigError
from t5like.nearest import suggestion
from t5like.objectives import lengths, table
from t5like.objectives.asking import CannotBeAsked
from t5like.objectives.spec import Objective, OneStack, Pair

# Keys of `data` that describe one dataset; the others belong to a run.
OF_A_DATASET = '''source field inputs targets split tfds_dir validation validation_fraction max_documents
  max_bad_records empty max_document_tokens overlong deduplicate append_eos shards packing document_mask'''.split()
LEFT_RIGHT = ('Give both templates, such as data.inputs="summarize: {article}" and '
              'data.targets="{highlights}".')


def mixture(flat_mixture):
  """Flat values of each component, {'data.source': ..}, as [(name, values)]; problems as [text]."""
  flats, problems = [], []
  for name, parts in flat_mixture.items():
    where, flat = f'data.mixture.{name}', {}
    if not isinstance(parts, dict):
      problems.append(f'{where}={show(parts)}: write dict(weight=2.0, data=dict(source=..)).')
      continue
    weight = parts.get('weight', 1)
    if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not 0 <= weight < 1e12:
      problems.append(f'{where}.weight={show(weight)}: must be a number, 0 or above.')
    for section, values in parts.items():
      if section == 'weight':
        continue
      if section not in ('data', 'objective') or not isinstance(values, dict):
        problems.append(f'{where}.{section}={show(values)}: a component has weight, data and objective, '
                        'the last two being dicts.')
        continue
      for key, value in values.items():
        full = f'{section}.{key}'
        if full not in DEFAULTS:
          problems.append(unknown(full, f'{where}.{full}={show(value)}'))
        elif section == 'data' and key not in OF_A_DATASET:
          problems.append(f'{where}.{full}={show(value)}: belongs to the whole run, set {full} instead. '
                          f'A component may set {either(OF_A_DATASET)}.')
        else:
          flat[full] = value
    flats.append((where, flat))
  return flats, problems


def stages(flat):
  """Yields what is wrong with `data.stages` of a flat config; turns their tokens into whole numbers."""
  names, found = set(flat['data.mixture']), dict(flat['data.stages'])
  if found and not names:
    yield f'data.stages={show(found)}: these change weights of data.mixture, which is empty.'
    return
  starts = {}
  for name, stage in found.items():
    where = f'data.stages.{name}'
    if not isinstance(stage, dict) or set(stage) != {'tokens', 'weights'} or not isinstance(stage['weights'], dict):
      yield f"{where}={show(stage)}: write dict(tokens='10B', weights=dict(web=0.5))."
      return
    tokens, weights = stage['tokens'], stage['weights']
    tokens = lengths.whole_number(tokens) if isinstance(tokens, str) else tokens
    if isinstance(tokens, bool) or not isinstance(tokens, (int, float)) or tokens != int(tokens) or tokens < 1:
      yield f"{where}.tokens={show(stage['tokens'])}: needs a whole number above 0, such as 10_000_000 or '10M'."
      return
    if tokens in starts:
      yield f'{where}.tokens={tokens}: data.stages.{starts[tokens]} begins there too.'
    starts[tokens] = name
    found[name] = dict(stage, tokens=int(tokens))
    for component, weight in weights.items():
      if component not in names:
        meant = suggestion(component, names, 'Did you mean {!r}?') or f'There is {either(sorted(names))}.'
        yield f'{where}.weights.{component}: is no component of data.mixture. {meant}'
      elif isinstance(weight, bool) or not isinstance(weight, (int, float)) or not 0 <= weight < 1e12:
        yield f'{where}.weights.{component}={show(weight)}: must be a number, 0 or above.'
  flat['data.stages'] = found


def _weights(config):
  weights = {name: {'weight': 1, **part}['weight'] for name, part in config.data.mixture.to_dict().items()}
  if weights and not any(weights.values()):
    yield 'data.mixture: all weights are 0. Give one component a weight.'
  for stage in sorted(config.data.stages.to_dict().values(), key=lambda stage: stage['tokens']):
    weights.update(stage['weights'])
    if not any(weights.values()):
      yield f"data.stages: from {stage['tokens']:,} tokens on all weights are 0. Give one component a weight."


def check(config):
  """Yields what is wrong with the objectives of a config whose values are right by themselves."""
  if found := list(_weights(config)):
    yield from found
    return
  try:
    parts = lengths.components(config)
  except ConfigError as e:
    yield str(e)
    return
  for component in parts:
    where = f'data.mixture.{component.name}: ' if config.data.mixture else ''
    found = list(_together(component)) or list(_vocabulary(component)) or list(_lengths(component))
    yield from (where + problem for problem in found)
    if found:
      return
  if config.data.mixture and 'validation' in config.data.mixture.to_dict():
    yield 'data.mixture.validation: this name is taken. Give the component another.'
  shapes = lengths.shapes(config)
  n, of = (shapes.predictions, 'predictions of a row') if shapes.predictions else (shapes.targets, 'targets of a row')
  n = -(-n // max(1, config.mesh.context))
  of += ' on a device' * (config.mesh.context > 1)
  if config.loss.chunks > 1 and n % config.loss.chunks:
    yield (f'loss.chunks={config.loss.chunks}: must divide the {n} {of}. '
           f'Use {divisors(config.loss.chunks, n)}, or 0 to have it chosen.')
  yield from _positions(config, shapes)


def tasks(config):
  """What is wrong with config.evaluate.tasks, [text]."""
  for name in config.evaluate.tasks:
    try:
      task_lib.find(name)
    except ConfigError as e:
      yield f'evaluate.tasks={show(config.evaluate.tasks)}: {e}'
  if config.evaluate.tasks and _cannot_be_asked(config):
    yield (f"evaluate.tasks={show(config.evaluate.tasks)}: a model of objective.name={config.objective.name!r} "
           f'{_cannot_be_asked(config)} and cannot be asked for it. Use ().')
  if config.evaluate.tasks and config.vocabulary.name == 'characters' and not config.vocabulary.specials:
    yield (f'evaluate.tasks={show(config.evaluate.tasks)}: vocabulary.specials=False has no id for characters that the '
           'data lacks, which tasks may have. Use (), or vocabulary.specials=True.')


def _cannot_be_asked(config):
  """Why a model of a config cannot be asked for answers, '' if it can."""
  entry = table.of(config)
  if isinstance(entry, Objective) and isinstance(entry.layout(config.model.name), Pair):
    way, _ = entry.asking(config.objective)
    return way.why if isinstance(way, CannotBeAsked) else ''
  return ''


def _together(component):
  c, entry = component.config, component.objective
  architecture = c.model.name
  if architecture not in entry.architectures:
    yield (f'objective.name={entry.name!r}: model.name={architecture!r} cannot be trained on it. '
           f'Use model.name={either(map(repr, entry.architectures))}, or objective.name='
           f'{either(map(repr, table.trains(architecture)))}.')
    return
  yield from _templates(c.data, entry)
  yield from _packing(c.data, entry, architecture)


def _templates(d, entry):
  for key in ('inputs', 'targets'):
    if problem := templates.check(d[key]):
      yield f'data.{key}={show(d[key])}: {problem}'
  paired = bool(d.inputs or d.targets)
  if paired and not d.targets:
    yield f'data.inputs={show(d.inputs)}: there is no data.targets. {LEFT_RIGHT}'
  if entry.given and not paired:
    yield f'objective.name={entry.name!r}: needs the texts of data.inputs and data.targets. {LEFT_RIGHT}'
  if paired and not entry.given:
    learn = [repr(name) for name, other in table.OBJECTIVES.items() if other.given]
    yield (f'data.targets={show(d.targets)}: only objective.name={either(learn)} learns given targets, this is '
           f'{entry.name!r}. Set that, or data.inputs and data.targets to "".')


def _packing(d, entry, architecture):
  packing = choices.PACKINGS[d.packing]
  if entry.given and packing.windows:
    yield (f"data.packing='concat_split': would cut examples of objective.name={entry.name!r} in two. Use 'best_fit' "
           "(several to a row) or 'none'.")
  if architecture in entry.by_chance and packing.planned:
    yield (f"data.packing='best_fit': lengths under objective.name={entry.name!r} change with every draw, so rows "
           "cannot be planned. Use 'concat_split' or 'none'.")
  if not packing.windows and not d.append_eos:
    yield (f"data.append_eos=False: rows of data.packing={d.packing!r} are made of documents, whose ends must "
           "be marked. Set it to True, or data.packing='concat_split'.")
  if not packing.windows and not d.document_mask:
    yield (f"data.document_mask=False: data.packing={d.packing!r} keeps documents apart. Set it to True, or "
           "data.packing='concat_split'.")


def _vocabulary(component):
  v, entry = component.config.vocabulary, component.objective
  keys = entry.read(component.config.objective)
  carried = [role for role in entry.roles(keys) if role.sentinels]
  spans_need = entry.sentinels.count(keys, lengths.of(component))
  needs = max([spans_need, *(role.sentinels for role in carried)])
  purpose = ' and '.join(role.words for role in carried) or entry.sentinels.purpose(needs)
  layout = component.layout
  streams = isinstance(layout, OneStack) and layout.streams
  if v.name == 'characters' and not v.specials and (needs or not streams):
    yield (f"vocabulary.specials=False: objective.name={entry.name!r} needs an end-of-document token and sentinels. "
           'Set it to True.')
  elif v.name != 'huggingface' and not v.path and v.sentinels < needs:
    depends = ', '.join(_setting(component.config, key) for key in entry.sentinels.depends)
    yield (f'vocabulary.sentinels={v.sentinels}: objective.name={entry.name!r} needs {needs} for {purpose}'
           + (f' ({depends})' if depends else '') + f'. Use at least {needs}.')


def _setting(config, key):
  section, _, name = key.partition('.')
  value = config[section][name]
  return f'{key}={value:g}' if isinstance(value, float) else f'{key}={value}'


def _lengths(component):
  c = component.config
  o, d, n = c.objective, c.data, lengths.of(component)
  if n.raw < 2:
    yield (f'data.seq_len={d.seq_len}' + (f' with data.target_len={d.target_len}' if d.target_len else '') +
           f': leaves no room for 2 tokens of text under objective.name={component.objective.name!r}. Use more.')
    return
  layout = component.layout
  if choices.ARCHITECTURES[c.model.name].has_encoder and layout.filled is not None and d.target_len:
    filled = layout.filled(component.objective.read(o), d.seq_len, n.raw)
    if filled.inputs < d.seq_len - 4:
      yield (f'data.target_len={d.target_len}: {filled.text} tokens of text, which fill data.seq_len={d.seq_len}, have '
             f'{filled.targets} targets, so rows of the encoder would hold only {filled.inputs}. Use {filled.targets}, '
             'or 0.')


def _positions(config, shapes):
  m = config.model
  longest = max(shapes.inputs, shapes.targets)
  position = choices.POSITIONS[m.position]
  rows = m.max_positions - position.first_row
  if position.learned and longest > rows:
    yield (f'data.seq_len={config.data.seq_len}: rows of {longest} tokens are longer than the table of learned '
           f'positions, which holds {rows}. Use at most that, or model.max_positions='
           f'{longest + m.max_positions - rows}.')
  if choices.ARCHITECTURES[m.name].causal and choices.HEADS[m.head].transformed:
    yield f"model.head={m.head!r}: belongs to model.name='encoder', this is {m.name!r}. Use 'linear'."
  for prompt in config.sample.prompts:
    if not choices.ARCHITECTURES[m.name].causal and '<mask>' not in prompt:
      yield (f'sample.prompts={show(config.sample.prompts)}: an encoder fills in what is masked, and '
             f"{show(prompt)} has no '<mask>'. Write ('def <mask>(self):',), or () for none.")
      break


assert set(OF_A_DATASET) <= set(SECTIONS['data'])
