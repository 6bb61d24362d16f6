"""Which objectives, architectures, vocabularies and lengths go together, and by which numbers not."""
import difflib

from t5like import choices, lengths
from t5like.config_values import DEFAULTS, SECTIONS, divisors, either, show, unknown
from t5like.data import templates
from t5like.errors import ConfigError
from t5like.evals import task as task_lib

ARCHITECTURES = {  # what each can be trained on
    'decoder': ('causal', 'prefix_lm', *lengths.PAIRS),
    'encoder': ('masked_lm',),
    'encoder_decoder': ('prefix_lm', *lengths.PAIRS),
}
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
        near = difflib.get_close_matches(component, names, 1)
        yield (f'{where}.weights.{component}: is no component of data.mixture. ' + (
            f'Did you mean {near[0]!r}?' if near else f'There is {either(sorted(names))}.'))
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
    found = list(_together(component.config)) or list(_vocabulary(component)) or list(_lengths(component))
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
  if config.evaluate.tasks and config.objective.name == 'deshuffling':
    yield (f"evaluate.tasks={show(config.evaluate.tasks)}: a model of objective.name='deshuffling' is given the answer "
           'in another order and cannot be asked for it. Use ().')
  if config.evaluate.tasks and config.vocabulary.name == 'characters' and not config.vocabulary.specials:
    yield (f'evaluate.tasks={show(config.evaluate.tasks)}: vocabulary.specials=False has no id for characters that the '
           'data lacks, which tasks may have. Use (), or vocabulary.specials=True.')


def _together(c):
  o, d, architecture = c.objective, c.data, c.model.name
  packing = choices.PACKINGS[d.packing]
  fits = ARCHITECTURES[architecture]
  if o.name not in fits:
    others = [name for name, objectives in ARCHITECTURES.items() if o.name in objectives]
    yield (f'objective.name={o.name!r}: model.name={architecture!r} cannot be trained on it. '
           f'Use model.name={either(map(repr, others))}, or objective.name={either(map(repr, fits))}.')
    return
  for key in ('inputs', 'targets'):
    if problem := templates.check(d[key]):
      yield f'data.{key}={show(d[key])}: {problem}'
  paired = bool(d.inputs or d.targets)
  if paired and not d.targets:
    yield f'data.inputs={show(d.inputs)}: there is no data.targets. {LEFT_RIGHT}'
  if (o.name == 'seq2seq') != paired:
    yield (f"objective.name='seq2seq': needs the texts of data.inputs and data.targets. {LEFT_RIGHT}"
           if not paired else
           f"data.targets={show(d.targets)}: only objective.name='seq2seq' learns given targets, this is "
           f'{o.name!r}. Set that, or data.inputs and data.targets to "".')
  if o.name == 'seq2seq' and packing.windows:
    yield ("data.packing='concat_split': would cut examples of objective.name='seq2seq' in two. Use 'best_fit' "
           "(several to a row) or 'none'.")
  if o.name in lengths.BY_CHANCE and packing.planned and architecture + o.name != 'decoderprefix_lm':
    yield (f"data.packing='best_fit': lengths under objective.name={o.name!r} change with every draw, so rows "
           "cannot be planned. Use 'concat_split' or 'none'.")
  if not packing.windows and not d.append_eos:
    yield (f"data.append_eos=False: rows of data.packing={d.packing!r} are made of documents, whose ends must "
           "be marked. Set it to True, or data.packing='concat_split'.")
  if not packing.windows and not d.document_mask:
    yield (f"data.document_mask=False: data.packing={d.packing!r} keeps documents apart. Set it to True, or "
           "data.packing='concat_split'.")


def _vocabulary(component):
  v, o = component.config.vocabulary, component.config.objective
  needs = 2 if o.name == 'masked_lm' and o.cls_sep else 1 if o.name == 'masked_lm' else (
      max(1, lengths.of(component).spans) if o.name in ('span_corruption', 'iid_denoising') else
      1 if o.name in ('mass', 'bert_style') else 0)
  why = {'masked_lm': 'the mask' + ' and <cls>' * o.cls_sep}.get(
      o.name, f'its corrupted spans, {needs} in a row' if needs > 1 else 'corrupted tokens')
  if v.name == 'characters' and not v.specials and (needs or o.name != 'causal'):
    yield (f"vocabulary.specials=False: objective.name={o.name!r} needs an end-of-document token and sentinels. "
           'Set it to True.')
  elif v.name != 'huggingface' and not v.path and v.sentinels < needs:
    yield (f'vocabulary.sentinels={v.sentinels}: objective.name={o.name!r} needs {needs} for {why}'
           + (f' (objective.noise_density={o.noise_density:g}, objective.mean_span={o.mean_span:g}, data.seq_len='
              f'{component.config.data.seq_len})' if o.name == 'span_corruption' else '') +
           f'. Use at least {needs}.')


def _lengths(component):
  c = component.config
  o, d, n = c.objective, c.data, lengths.of(component)
  if n.raw < 2:
    yield (f'data.seq_len={d.seq_len}' + (f' with data.target_len={d.target_len}' if d.target_len else '') +
           f': leaves no room for 2 tokens of text under objective.name={o.name!r}. Use more.')
    return
  if c.model.name == 'encoder_decoder' and o.name == 'span_corruption' and d.target_len:
    free = lengths.span_raw(lambda i, t: i <= d.seq_len, o.noise_density, o.mean_span)
    needs = lengths.span_lengths(free, o.noise_density, o.mean_span)[1]
    inputs = lengths.span_lengths(n.raw, o.noise_density, o.mean_span)[0]
    if inputs < d.seq_len - 4:
      yield (f'data.target_len={d.target_len}: {free} tokens of text, which fill data.seq_len={d.seq_len}, have '
             f'{needs} targets, so rows of the encoder would hold only {inputs}. Use {needs}, or 0.')


def _positions(config, shapes):
  m = config.model
  longest = max(shapes.inputs, shapes.targets)
  position = choices.POSITIONS[m.position]
  rows = m.max_positions - position.first_row
  if position.learned and longest > rows:
    yield (f'data.seq_len={config.data.seq_len}: rows of {longest} tokens are longer than the table of learned '
           f'positions, which holds {rows}. Use at most that, or model.max_positions='
           f'{longest + m.max_positions - rows}.')
  if m.name != 'encoder' and choices.HEADS[m.head].transformed:
    yield f"model.head={m.head!r}: belongs to model.name='encoder', this is {m.name!r}. Use 'linear'."
  for prompt in config.sample.prompts:
    if m.name == 'encoder' and '<mask>' not in prompt:
      yield (f'sample.prompts={show(config.sample.prompts)}: an encoder fills in what is masked, and '
             f"{show(prompt)} has no '<mask>'. Write ('def <mask>(self):',), or () for none.")
      break


assert set(OF_A_DATASET) <= set(SECTIONS['data'])
