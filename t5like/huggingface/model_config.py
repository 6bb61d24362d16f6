"""Model configs, ours and Hugging Face's: `to_model` reads a config.json, `to_hf` makes one."""
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from t5like import choices
from t5like.config.expert_rules import OF_EXPERTS
from t5like.config.values import DEFAULTS, either, show
from t5like.errors import ConfigError
from t5like.files import schema
from t5like.files.schema import Anything, Either, Flag, List, Maybe, Object, Real, Text, Whole
from t5like.huggingface import layer_kinds, nested, rotary, sparse_layers
from t5like.huggingface.families import BLOCKS_THAT_OURS_LACK, FAMILIES, FREE, PLAIN, Family
from t5like.huggingface.single_families import READERS, WRITERS
from t5like.nearest import suggestion
from t5like.vocabulary.kinds import Vocabulary

Values = dict[str, Any]  # of config.model, or of a config.json
Model = Mapping[str, Any]  # config.model, every size known

# What sizes and numbers may be, by our names: above what is built, and below what takes all memory.
BOUNDS = dict(
    d_model=Whole(1, 1 << 20),
    num_layers=Whole(1, 10_000),
    num_encoder_layers=Whole(1, 10_000),
    num_heads=Whole(1, 1 << 16),
    num_kv_heads=Whole(1, 1 << 16),
    head_dim=Whole(1, 1 << 16),
    d_ff=Whole(1, 1 << 24),
    vocab_size=Whole(1, 1 << 24),
    max_positions=Whole(1, 1 << 24),
    num_types=Whole(0, 1 << 16),
    tie_embeddings=Flag(),
    norm_eps=Real(0, 1, above=True),
    dropout=Real(0, 1, below=True),
    logit_softcap=Maybe(Real(0, 1e6)),
    attention_softcap=Maybe(Real(0, 1e6)),
    activation=Text(100),
    experts=Whole(1, 1 << 16),
    experts_per_token=Whole(1, 1 << 16),
    expert_d_ff=Whole(1, 1 << 24))
TOKEN = Maybe(Either((Whole(-1, 1 << 24), List(Whole(0, 1 << 24), most=1000))))
# Keys of all families: unknown ones may hold anything.
KNOWN: dict[str, schema.Shape] = dict(
    model_type=Text(100),
    rope_scaling=rotary.SHAPE,
    rope_parameters=rotary.SHAPE,
    rope_theta=rotary.THETA,
    rope_local_base_freq=rotary.THETA,
    global_rope_theta=rotary.THETA,
    local_rope_theta=rotary.THETA,
    local_attention=Whole(1, 1 << 24),
    global_attn_every_n_layers=Whole(1, 10_000),
    rotary_emb_base=rotary.THETA,
    rotary_pct=rotary.FRACTION,
    partial_rotary_factor=rotary.FRACTION,
    original_max_position_embeddings=Maybe(Whole(1, 1 << 24)),
    query_pre_attn_scalar=Real(0, 1e9, above=True),
    sliding_window=Maybe(Whole(0, 1 << 24)),  # 0 too, for a Qwen 2 without one
    use_sliding_window=Flag(),
    max_window_layers=Whole(0, 10_000),
    sliding_window_pattern=Whole(1, 10_000),
    layer_types=Maybe(List(Text(100), most=10_000)),
    no_rope_layers=Maybe(List(Whole(0, 1), most=10_000)),
    no_rope_layer_interval=Whole(1, 10_000),
    decoder_sparse_step=Whole(1, 10_000),
    mlp_only_layers=Maybe(List(Whole(0, 10_000), most=10_000)),
    shared_expert_intermediate_size=Whole(1, 1 << 24),
    norm_topk_prob=Flag(),
    num_sparse_encoder_layers=Whole(0, 10_000),
    num_sparse_decoder_layers=Whole(0, 10_000),
    expert_capacity=Whole(1, 1 << 31),
    router_jitter_noise=Real(0, 1, below=True),
    use_parallel_residual=Flag(),
    scale_embedding=Flag(),
    decoder_attention_heads=Whole(1, 1 << 16),
    decoder_ffn_dim=Whole(1, 1 << 24),
    scale_decoder_outputs=Flag(),
    bos_token_id=TOKEN,
    eos_token_id=TOKEN,
    pad_token_id=TOKEN)
REAL = ('norm_eps', 'rope_theta', 'rope_fraction', 'dropout')  # keys of config.model that are floats


def to_model(hf: Values) -> Values:
  """Values of config.model of a config.json's: all keys but dtype, attention, context_attention, scan_layers and remat.

  Raises:
    ConfigError: naming the key, where the model does something that ours cannot.
  """
  check_types(hf)
  kind = _kind(hf)
  family = FAMILIES[kind]
  if family.is_nested:
    hf = nested.flatten(kind, hf)
    check_types(hf)
  hf = _renamed(family, hf)
  _check_only(kind, hf)
  _check_sizes(family, hf)
  missing = [key for key in family.keys if key not in hf and key not in family.defaults]
  if missing:
    raise ConfigError(f'config.json of a {kind} model lacks {", ".join(missing)}.')
  values = dict(PLAIN)
  for key, allowed in family.ours.items():
    values[key] = _allowed(allowed)[0]
  for key, ours in family.keys.items():
    values[ours] = hf.get(key, family.defaults.get(key))
  _complete(kind, hf, values)
  _check(kind, values)
  for key in REAL:
    values[key] = float(values[key])
  return values


def _allowed(values: Any) -> tuple[Any, ...]:
  """The values of a key of `Family.ours`."""
  if isinstance(values, tuple):
    return values
  return (values,)


def _kind(hf: Values) -> str:
  """The key of FAMILIES of a config.json."""
  kind = hf.get('model_type')
  if kind in BLOCKS_THAT_OURS_LACK:
    raise ConfigError(f'model_type={show(kind)} in config.json cannot be read: {BLOCKS_THAT_OURS_LACK[kind]}.')
  if kind not in FAMILIES:
    guess = suggestion(str(kind), FAMILIES, ' (the nearest is {})')
    raise ConfigError(f'model_type={show(kind)} in config.json is none that can be read{guess}. '
                      f'There is {either(FAMILIES)}.')
  return kind


def _renamed(family: Family, hf: Values) -> Values:
  """The values of a config.json, those under other names under the names that a family has for them."""
  renamed = dict(hf)
  for other, name in family.other_names.items():
    if other in renamed:
      renamed.setdefault(name, renamed[other])
  return renamed


def _check_only(kind: str, hf: Values) -> None:
  """ConfigError where keys have other values than those that can be followed."""
  wanted = dict(FAMILIES[kind].only, quantization_config=None)
  wrong = []
  right = []
  for key, value in wanted.items():
    if hf.get(key, value) != value:
      wrong.append(f'{key}={show(hf[key])}')
      right.append(show(value))
  if wrong:
    raise ConfigError(f'{", ".join(wrong)} in config.json: {kind} models can only be read where it is '
                      f'{", ".join(right)} or not given.')


def _check_sizes(family: Family, hf: Values) -> None:
  """ConfigError for sizes and numbers out of BOUNDS."""
  shapes: dict[str, schema.Shape] = {}
  for key, ours in family.keys.items():
    shapes[key] = BOUNDS[ours]
    may_be_null = key in family.defaults and family.defaults[key] is None
    if may_be_null:
      shapes[key] = Maybe(BOUNDS[ours])
  check_types(hf, shapes)


def check_types(hf: Values, shapes: Mapping[str, schema.Shape] = KNOWN) -> None:
  """ConfigError where values of a config.json are not of the types that `shapes` gives."""
  try:
    Object(shapes, rest=Anything()).check(hf, '')
  except schema.Invalid as error:
    raise ConfigError(f'config.json: {error}.') from error


def _complete(kind: str, hf: Values, values: Values) -> None:
  """Adds to the values of config.model what its own numbers and several keys of config.json together say."""
  _translate_activation(kind, values)
  values['d_ff'] = values.get('d_ff') or values.get('expert_d_ff') or 4 * values['d_model']
  values['num_layers'] = values['num_layers'] or values['num_encoder_layers']
  values.setdefault('num_encoder_layers', values['num_layers'])
  values['num_kv_heads'] = values.get('num_kv_heads') or values['num_heads']
  if not values.get('head_dim'):
    if values['d_model'] % values['num_heads']:
      raise ConfigError(f'config.json: {values["num_heads"]} heads do not divide the width {values["d_model"]} of the '
                        'model, and no size of a head is given.')
    values['head_dim'] = values['d_model'] // values['num_heads']
    if hf.get('head_dim', values['head_dim']) not in (None, values['head_dim']):
      raise ConfigError(f'head_dim={show(hf["head_dim"])} in config.json: {kind} models can only be read where it is '
                        f'{values["head_dim"]} or not given.')
  if choices.POSITIONS[values['position']].rotary:
    values.update(rotary.read(kind, FAMILIES[kind], hf))
    _check_turned(values)
  if kind in READERS:
    READERS[kind](hf, values)


def _translate_activation(kind: str, values: Values) -> None:
  family = FAMILIES[kind]
  name = values['activation']
  if name not in family.activations:
    raise ConfigError(f'{family.theirs["activation"]}={show(name)} in config.json: {kind} models can be read with '
                      f'{either(map(repr, family.activations))}.')
  values['activation'] = family.activations[name]


def _check_turned(values: Values) -> None:
  turned = int(values['head_dim'] * values['rope_fraction'])
  if turned % 2:
    raise ConfigError(f'config.json turns {turned} dimensions of each head (rotary_pct or partial_rotary_factor='
                      f'{values["rope_fraction"]}, heads of {values["head_dim"]}), which must be an even number.')


def _check(kind: str, values: Values) -> None:
  if FAMILIES[kind].ours.get('tie_embeddings') and not values['tie_embeddings']:
    raise ConfigError(f'tie_word_embeddings=False in config.json: {kind} models can only be read where it is True.')
  if values['num_heads'] % values['num_kv_heads']:
    raise ConfigError(f'num_key_value_heads={values["num_kv_heads"]} in config.json does not divide the '
                      f'{values["num_heads"]} heads of queries.')
  sparse_layers.check(FAMILIES[kind].theirs, values)


# --- From ours to theirs --------------------------------------------------------------------------


def settled(model: Model) -> Values:
  """The same model, where config.model can say one thing in several ways said in one of them."""
  values = dict(model)
  values['rope_scaling'] = dict(model['rope_scaling'])
  values['layers'] = tuple(model['layers'])
  longest = model['num_layers']
  if choices.ARCHITECTURES[model['name']].has_encoder:  # both stacks begin the pattern anew
    longest = max(longest, model['num_encoder_layers'])
  values['layers'] = layer_kinds.pattern(layer_kinds.repeated(model['layers'], longest))
  if not any(choices.LAYERS[name].windowed for name in values['layers']):
    values.update(window=0, window_after=0, encoder_window=0, local_rope_theta=0.0)
  if model['local_rope_theta'] == model['rope_theta'] and not model['rope_scaling']:
    values['local_rope_theta'] = 0.0
  if model['scale_attention'] and model['query_scale'] == model['head_dim'] ** -0.5:
    values['query_scale'] = 0.0
  if values['encoder_window'] == values['window']:
    values['encoder_window'] = 0
  if model['experts']:
    values.update(sparse_layers.settled(model))
  if values['window_after'] == (values['encoder_window'] or values['window']):
    values['window_after'] = 0
  return values


def differing(a: Model, b: Model) -> list[str]:
  """Keys in which two model sections (every size known) differ that change what a model computes."""
  a = settled(a)
  b = settled(b)
  without_effect = {*FREE, *unread(b)}
  if not a['experts']:
    without_effect |= {*OF_EXPERTS}
  return [key for key in b if key in a and a[key] != b[key] and key not in without_effect]


# Keys that change what a model computes, but no parameter's shape: weights may begin a run that changes them, so that a
# model learns to read longer rows.
OF_LONGER_ROWS = ('layers', 'window', 'window_after', 'rope_theta', 'local_rope_theta', 'rope_scaling')


def unread(model: Model) -> set[str]:
  """Keys of config.model that the values of its other keys leave without a reader."""
  keys = set()
  position = choices.POSITIONS[model['position']]
  architecture = choices.ARCHITECTURES[model['name']]
  if not architecture.has_encoder:
    keys |= {'num_encoder_layers', 'encoder_embed', 'encoder_window'}
  if not position.learned:
    keys.add('max_positions')
  if not position.rotary:
    keys |= {'rope_theta', 'rope_fraction', 'rope_scaling', 'local_rope_theta'}
  if architecture.decoder_only:
    keys.add('window_after')
  if model['query_scale']:
    keys.add('scale_attention')
  if not model['experts']:
    keys |= {*OF_EXPERTS}
  elif sparse_layers.all_sparse(model):
    keys.add('d_ff')
  return keys


def family_of(model: Model) -> str:
  """The family whose models can do exactly what a model does.

  A model without biases is of a family with them: they will be zeros.

  Raises:
    ConfigError: naming the keys in which the nearest family differs.
  """
  model = settled(model)
  obstacles = {kind: _obstacles(kind, family, model) for kind, family in FAMILIES.items()}
  nearest = min(obstacles, key=lambda kind: len(obstacles[kind]))
  if obstacles[nearest]:
    raise ConfigError(f'no Hugging Face family computes what this model does. The nearest is {nearest}, but for '
                      f'{"; ".join(obstacles[nearest])}.')
  return nearest


def _obstacles(kind: str, family: Family, model: Model) -> list[str]:
  """What keeps a model from being of a family: ['model.norm=..., which would have to be ...']."""
  allowed = _allowed_values(family, model)
  represented = family.representable - {*allowed}
  represented.add('rope_theta')
  if family.any_rope_fraction:
    represented.add('rope_fraction')
  any_value = {*FREE, *unread(model), *represented}
  for key in any_value:
    allowed.pop(key, None)
  if 'type_vocab_size' in family.keys:
    allowed['num_types'] = (model['num_types'] or 2,)
  problems = []
  for key, values in allowed.items():
    if model[key] not in values:
      problems.append(f'model.{key}={show(model[key])}, which would have to be {either(map(show, values))}')
  problems += _unknown({*allowed, *any_value}, model)
  if not problems:
    problems += _lost(kind, model)
  width = model['d_model']
  heads = model['num_heads']
  if family.whole_heads and width % heads:
    multiple = -(-width // heads) * heads
    problems.append(f'model.d_model={width}, which would have to be a multiple of model.num_heads={heads}, such as '
                    f'{multiple}')
  return problems


def _allowed_values(family: Family, model: Model) -> dict[str, tuple[Any, ...]]:
  """{key of config.model: the values that it may have in a family}, of all keys that are not numbers of the family."""
  allowed: dict[str, tuple[Any, ...]] = {}
  for key, value in PLAIN.items():
    if key not in family.representable:
      allowed[key] = (value,)
  allowed['activation'] = tuple(dict.fromkeys(family.activations.values()))
  for key, values in family.ours.items():
    allowed[key] = _allowed(values)
  if allowed['use_bias'] == (True,):
    allowed['use_bias'] = (True, False)
  if 'experts' in family.representable and not model['experts']:
    allowed['experts'] = (family.defaults[family.theirs['experts']],)
  if not family.grouped:
    allowed['num_kv_heads'] = (model['num_heads'],)
  if not family.any_head_dim:
    allowed['head_dim'] = (model['d_model'] // model['num_heads'],)
  if choices.ARCHITECTURES[allowed['name'][0]].has_encoder and 'tie_embeddings' not in family.ours:
    allowed['tie_embeddings'] = (choices.HEADS[model['head']].scaled,)
  return allowed


def _lost(kind: str, model: Model) -> Iterator[str]:
  """Yields what a config.json of a family, whose keys could hold the model one by one, does not keep of it."""
  try:
    back = to_model(dict(_of_family(kind, model), **_fixed(kind)))
  except ConfigError as error:
    yield str(error).rstrip('.')
    return
  for key in differing(back, model):
    if key != 'use_bias':  # zeros
      yield f'model.{key}={show(model[key])}, which would have to be {show(back[key])}'


def _unknown(known: Collection[str], model: Model) -> Iterator[str]:
  """Yields what is wrong with keys of config.model of which export knows only that their defaults change nothing."""
  for key, value in model.items():
    if key in known:
      continue
    if f'model.{key}' not in DEFAULTS:
      yield f'model.{key}={show(value)}, which no family is known to have'
    elif value != DEFAULTS[f'model.{key}']:
      yield f'model.{key}={show(value)}, which would have to be {show(DEFAULTS[f"model.{key}"])}'


def to_hf(model: Model, vocabulary: Vocabulary | None = None, length: int = 0) -> Values:
  """The values of config.json of a model of a family.

  Args:
    model: config.model, every size known.
    vocabulary: the ids of its special tokens are given too; None: none are.
    length: the longest texts that the model has seen, where positions are not a table.

  Raises:
    ConfigError: as `family_of`.
  """
  kind = family_of(model)
  return {**_of_family(kind, settled(model), length), **token_ids(model, vocabulary), **_fixed(kind)}


def _fixed(kind: str) -> Values:
  """Keys of config.json that have the same value in all models of a family that ours can be."""
  values = dict(FAMILIES[kind].only)
  values.pop('position_embedding_type', None)
  return values


def _of_family(kind: str, model: Model, length: int = 0) -> Values:
  """config.json of a model of a family, but for special tokens and for what is fixed."""
  family = FAMILIES[kind]
  theirs = family.theirs
  hf: Values = dict(architectures=[family.architecture], model_type=kind, dtype='float32', use_cache=True)
  for ours, key in theirs.items():
    hf[key] = model[ours]
  hf[theirs['activation']] = _their_activation(family, model['activation'])
  position = choices.POSITIONS[model['position']]
  if not position.learned:
    hf[theirs['max_positions']] = length or model['max_positions']
  if position.rotary:
    hf.update(rotary.write(family, model))
  if kind in WRITERS:
    hf.update(WRITERS[kind](model))
  if family.is_nested:
    return nested.nest(model, hf)
  return hf


def _their_activation(family: Family, activation: str) -> str:
  """The first of a family's names for an activation."""
  return next(name for name, ours in family.activations.items() if ours == activation)


def token_ids(model: Model, vocabulary: Vocabulary | None) -> Values:
  """bos_token_id, eos_token_id, pad_token_id and, of an encoder-decoder, decoder_start_token_id.

  Rows of vocabularies of our own begin with id 0, as in training.
  """
  architecture = choices.ARCHITECTURES[model['name']]
  if vocabulary is None:
    ids: Values = dict(bos_token_id=None, eos_token_id=None, pad_token_id=None)
    if architecture.has_encoder:
      ids.update(decoder_start_token_id=0, pad_token_id=0)
    return ids
  ids = dict(bos_token_id=None, eos_token_id=_stops(vocabulary), pad_token_id=vocabulary.pad_id)
  if architecture.has_encoder:
    start = vocabulary.start_id or 0
    ids['decoder_start_token_id'] = start
    if not vocabulary.is_imported or vocabulary.pad_id is None:
      ids['pad_token_id'] = start
  elif vocabulary.is_imported or (architecture.causal and vocabulary.pad_id is not None):
    ids['bos_token_id'] = vocabulary.bos_id
  return ids


def _stops(vocabulary: Vocabulary) -> int | list[int] | None:
  """The id that ends texts, a list of several, None for none."""
  stops = vocabulary.stop_ids
  if not stops:
    return None
  if len(stops) == 1:
    return stops[0]
  return list(stops)
