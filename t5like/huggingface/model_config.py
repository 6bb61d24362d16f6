"""Model configs, ours and Hugging Face's: `to_model` reads a config.json, `to_hf` makes one."""
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import numpy as np

from t5like import choices
from t5like.config.values import DEFAULTS, either, show
from t5like.errors import ConfigError
from t5like.files import schema
from t5like.files.schema import Anything, Either, Flag, List, Maybe, Object, Real, Text, Whole
from t5like.huggingface.families import FAMILIES, FREE, PLAIN
from t5like.nearest import suggestion
from t5like.parameters import Param

# What sizes and numbers may be, by our names: above what is built, and below what takes all memory.
BOUNDS = dict(
    d_model=Whole(1, 1 << 20), num_layers=Whole(1, 10_000), num_encoder_layers=Whole(1, 10_000),
    num_heads=Whole(1, 1 << 16), num_kv_heads=Whole(1, 1 << 16), head_dim=Whole(1, 1 << 16), d_ff=Whole(1, 1 << 24),
    vocab_size=Whole(1, 1 << 24), max_positions=Whole(1, 1 << 24), num_types=Whole(0, 1 << 16), tie_embeddings=Flag(),
    norm_eps=Real(0, 1, above=True), dropout=Real(0, 1, below=True), activation=Text(100))
THETA, FRACTION = Real(0, 1e15, above=True), Real(0, 1, above=True)
ROPE = Maybe(Object(dict(rope_type=Text(100), type=Text(100), rope_theta=THETA, partial_rotary_factor=FRACTION)))
TOKEN = Maybe(Either((Whole(-1, 1 << 24), List(Whole(0, 1 << 24), most=1000))))
# Keys of all families: unknown ones may hold anything.
KNOWN = dict(
    model_type=Text(100), rope_scaling=ROPE, rope_parameters=ROPE, rope_theta=THETA, rotary_emb_base=THETA,
    rotary_pct=FRACTION, partial_rotary_factor=FRACTION, use_parallel_residual=Flag(), scale_decoder_outputs=Flag(),
    bos_token_id=TOKEN, eos_token_id=TOKEN, pad_token_id=TOKEN)


def to_model(hf):
  """Values of config.model (all keys but dtype, attention, scan_layers and remat) of a config.json's dict.

  Raises ConfigError, naming the key, where the model does something that ours cannot.
  """
  check_types(hf)
  kind = hf.get('model_type')
  if kind not in FAMILIES:
    guess = suggestion(str(kind), FAMILIES, ' (the nearest is {})')
    raise ConfigError(f'model_type={show(kind)} in config.json is none that can be read{guess}. '
                      f'There is {either(FAMILIES)}.')
  family = FAMILIES[kind]
  for key, value in dict(family.only, quantization_config=None).items():
    if hf.get(key, value) != value:
      raise ConfigError(f'{key}={show(hf[key])} in config.json: {kind} models can only be read where it is '
                        f'{show(value)} or not given.')
  shapes = {key: BOUNDS[ours] for key, ours in family.keys.items()}
  check_types(hf, {key: Maybe(shape) if key in family.defaults and family.defaults[key] is None else shape
                   for key, shape in shapes.items()})
  missing = [key for key in family.keys if key not in hf and key not in family.defaults]
  if missing:
    raise ConfigError(f'config.json of a {kind} model lacks {", ".join(missing)}.')
  m = dict(PLAIN, **{key: v[0] if isinstance(v, tuple) else v for key, v in family.ours.items()})
  for key, ours in family.keys.items():
    m[ours] = hf.get(key, family.defaults.get(key))
  return _completed(kind, family, hf, m)


def check_types(hf, shapes=KNOWN):
  """ConfigError where values of a config.json's dict are not of the types that `shapes` gives."""
  try:
    Object(shapes, rest=Anything()).check(hf, '')
  except schema.Invalid as error:
    raise ConfigError(f'config.json: {error}.') from error


def _completed(kind, family, hf, m):
  """`m` with what its own numbers and several keys of `hf` together say."""
  theirs = next(key for key, ours in family.keys.items() if ours == 'activation')
  if m['activation'] not in family.activations:
    raise ConfigError(f'{theirs}={show(m["activation"])} in config.json: {kind} models can be read with '
                      f'{either(map(repr, family.activations))}.')
  m['activation'] = family.activations[m['activation']]
  m['d_ff'] = m['d_ff'] or 4 * m['d_model']
  m['num_layers'] = m['num_layers'] or m['num_encoder_layers']
  m.setdefault('num_encoder_layers', m['num_layers'])
  m['num_kv_heads'] = m.get('num_kv_heads') or m['num_heads']
  if not m.get('head_dim') and m['d_model'] % m['num_heads']:
    raise ConfigError(f'config.json: {m["num_heads"]} heads do not divide the width {m["d_model"]} of the model, and '
                      'no size of a head is given.')
  m['head_dim'] = m.get('head_dim') or m['d_model'] // m['num_heads']
  if choices.POSITIONS[m['position']].rotary:
    m['rope_theta'], m['rope_fraction'] = _rope(kind, hf)
    turning = int(m['head_dim'] * m['rope_fraction'])
    if turning % 2:
      raise ConfigError(f'config.json turns {turning} dimensions of each head (rotary_pct or partial_rotary_factor='
                        f'{m["rope_fraction"]}, heads of {m["head_dim"]}), which must be an even number.')
  if kind == 'gpt_neox':
    m['block'] = 'parallel' if hf.get('use_parallel_residual', True) else 'pre_norm'
  if kind == 't5':
    # transformers 5 ties whatever the file says, and remembers here what it said.
    scaled = hf.get('scale_decoder_outputs', m['tie_embeddings'])
    m['head'], m['tie_embeddings'] = ('scaled', True) if scaled else ('linear', False)
  return _checked(kind, m)


def _checked(kind, m):
  if FAMILIES[kind].ours.get('tie_embeddings') and not m['tie_embeddings']:
    raise ConfigError(f'tie_word_embeddings=False in config.json: {kind} models can only be read where it is True.')
  if m['num_heads'] % m['num_kv_heads']:
    raise ConfigError(f'num_key_value_heads={m["num_kv_heads"]} in config.json does not divide the {m["num_heads"]} '
                      'heads of queries.')
  for key in ('norm_eps', 'rope_theta', 'rope_fraction', 'dropout'):
    m[key] = float(m[key])
  return m


def _rope(kind, hf):
  """(theta, fraction): transformers 5 keeps them in `rope_parameters`, older ones beside the rest.

  Where there are both, transformers reads `rope_scaling`.
  """
  where = 'rope_scaling' if hf.get('rope_scaling') else 'rope_parameters'
  rope = hf.get(where) or {}
  how = rope.get('rope_type', rope.get('type', 'default'))
  if how != 'default':
    raise ConfigError(f"{where} in config.json asks for rope_type={how!r}: only 'default', that is rotary "
                      'positions that are not scaled, can be read.')
  theta = rope.get('rope_theta', hf.get('rope_theta', hf.get('rotary_emb_base', PLAIN['rope_theta'])))
  usual = 0.25 if kind == 'gpt_neox' else 1.0
  fraction = rope.get('partial_rotary_factor', hf.get('rotary_pct', hf.get('partial_rotary_factor', usual)))
  if kind != 'gpt_neox' and fraction != 1:
    raise ConfigError(f'partial_rotary_factor={fraction} in config.json: {kind} models can only be read where it '
                      'is 1 or not given.')
  return theta, fraction


# --- From ours to theirs --------------------------------------------------------------------------


def differing(a, b):
  """Keys in which two model sections (dicts, every size known) differ that change what a model computes."""
  keys = [k for k in b if k not in FREE and k in a and a[k] != b[k]]
  unused = unread(b)
  return [k for k in keys if k not in unused]


def unread(model: Mapping[str, Any]) -> set[str]:
  """Keys of config.model that the values of its other keys leave without a reader."""
  keys, position = set(), choices.POSITIONS[model['position']]
  if not choices.ARCHITECTURES[model['name']].has_encoder:
    keys.add('num_encoder_layers')
  if not position.learned:
    keys.add('max_positions')
  if not position.rotary:
    keys |= {'rope_theta', 'rope_fraction'}
  return keys


def family_of(model):
  """The family whose models can do exactly what `model` (config.model, every size known) does.

  A model without biases is of a family with them: they will be zeros. Raises ConfigError naming the
  keys in which the nearest family differs.
  """
  m = dict(model)
  wrong = {kind: _obstacles(family, m) for kind, family in FAMILIES.items()}
  best = min(wrong, key=lambda kind: len(wrong[kind]))
  if wrong[best]:
    raise ConfigError(f'no Hugging Face family computes what this model does. The nearest is {best}, but for '
                      + '; '.join(wrong[best]) + '.')
  return best


def _obstacles(family, m):
  """What keeps a model from being of a family: ['model.norm=..., which would have to be ...']."""
  wants = {**{k: (v,) for k, v in PLAIN.items()}, 'activation': tuple(dict.fromkeys(family.activations.values())),
           **{k: v if isinstance(v, tuple) else (v,) for k, v in family.ours.items()}}
  if wants['use_bias'] == (True,):
    wants['use_bias'] = (True, False)
  if not family.grouped:
    wants['num_kv_heads'] = (m['num_heads'],)
  if not family.any_head_dim:
    wants['head_dim'] = (m['d_model'] // m['num_heads'],)
  if wants['name'] == ('encoder_decoder',):
    wants['tie_embeddings'] = (choices.HEADS[m['head']].scaled,)
  unused = unread(m)
  represented = {*family.keys.values()} - set(wants) | {'rope_theta'}
  if family.any_rope_fraction:
    represented.add('rope_fraction')
  for key in (*FREE, *unused, *represented):
    wants.pop(key, None)
  if 'type_vocab_size' in family.keys:
    wants['num_types'] = (m['num_types'] or 2,)
  problems = [f'model.{k}={show(m[k])}, which would have to be {either(map(show, v))}'
              for k, v in wants.items() if m[k] not in v]
  problems += _unknown({*wants, *FREE, *unused, *represented}, m)
  if family.whole_heads and m['d_model'] % m['num_heads']:
    problems.append(f'model.d_model={m["d_model"]}, which would have to be a multiple of model.num_heads='
                    f'{m["num_heads"]}, such as {-(-m["d_model"] // m["num_heads"]) * m["num_heads"]}')
  return problems


def _unknown(known: Collection[str], model: Mapping[str, Any]) -> Iterator[str]:
  """Yields what is wrong with keys of config.model of which export knows only that their defaults change nothing."""
  for key, value in model.items():
    if key in known:
      continue
    if f'model.{key}' not in DEFAULTS:
      yield f'model.{key}={show(value)}, which no family is known to have'
    elif value != DEFAULTS[f'model.{key}']:
      yield f'model.{key}={show(value)}, which would have to be {show(DEFAULTS[f"model.{key}"])}'


def to_hf(model, vocabulary=None, length=0):
  """config.json's dict of a model of a family; with a vocabulary, the ids of its special tokens too.

  `length`: the longest texts it has seen, where positions are not a table. ConfigError as `family_of`.
  """
  m, kind = dict(model), family_of(model)
  family = FAMILIES[kind]
  names = {ours: theirs for theirs, ours in reversed(family.activations.items())}
  of = {ours: theirs for theirs, ours in family.keys.items()}
  hf = dict(architectures=[family.architecture], model_type=kind, dtype='float32', use_cache=True)
  hf.update(token_ids(m, vocabulary))
  hf.update({theirs: m[ours] for ours, theirs in of.items()}, **{of['activation']: names[m['activation']]})
  hf.update({key: value for key, value in family.only.items() if key != 'position_embedding_type'})
  position = choices.POSITIONS[m['position']]
  if not position.learned:
    hf[of['max_positions']] = length or m['max_positions']
  if position.rotary:
    hf.update(_rope_to_hf(kind, m))
  if kind == 'gpt2':
    hf.update(attn_pdrop=m['dropout'], embd_pdrop=m['dropout'])
  if kind == 'gpt_neox':
    hf.update(use_parallel_residual=choices.BLOCKS[m['block']].parallel, attention_dropout=m['dropout'])
  if kind in ('bert', 'roberta'):
    hf['attention_probs_dropout_prob'] = m['dropout']
  if kind == 't5':
    hf['is_encoder_decoder'] = True
  return hf


def _rope_to_hf(kind, m):
  """Both for transformers 5 and for older ones."""
  rope = dict(rope_type='default', rope_theta=m['rope_theta'])
  if kind != 'gpt_neox':
    return dict(rope_parameters=rope, rope_theta=m['rope_theta'])
  return dict(rope_parameters=dict(rope, partial_rotary_factor=m['rope_fraction']), rotary_pct=m['rope_fraction'],
              rotary_emb_base=m['rope_theta'])


def token_ids(model, vocabulary):
  """bos_token_id, eos_token_id, pad_token_id and, of an encoder-decoder, decoder_start_token_id.

  Rows of vocabularies of our own begin with id 0, as in training.
  """
  of = lambda name: getattr(vocabulary, name, None)
  stops = of('stop_ids') or ()
  ids = dict(bos_token_id=None, eos_token_id=list(stops) if len(stops) > 1 else next(iter(stops), None),
             pad_token_id=of('pad_id'))
  architecture = choices.ARCHITECTURES[model['name']]
  if architecture.has_encoder:
    start = 0 if of('start_id') is None else vocabulary.start_id
    ids.update(decoder_start_token_id=start)
    if not of('is_imported') or ids['pad_token_id'] is None:
      ids.update(pad_token_id=start)
  elif of('is_imported') or (architecture.causal and of('pad_id') is not None):
    ids.update(bos_token_id=vocabulary.bos_id)
  return ids


# --- Names and shapes of weights ----------------------------------------------------------------


def rows(model):
  """The lines of a model's table that apply to it: [(our path, our dims, their name, their dims)].

  `model`: config.model of a family, every size known; their dims are a list, one text per axis.
  """
  gated = choices.ACTIVATIONS[model['activation']].gated
  there = {'-': True, 'u': not model['tie_embeddings'], 'g': gated, 'p': not gated}
  lines = [line.split() for line in FAMILIES[family_of_any(model)].table.split('\n') if line]
  return [(path, dims, name, axes) for when, path, dims, name, *axes in lines if there[when]]


def family_of_any(model):
  """As `family_of`, also for what T5 v1.1 is in transformers 5 before it is trained: tied, yet not scaled."""
  m = dict(model)
  if choices.ARCHITECTURES[m['name']].has_encoder and m['tie_embeddings'] and not choices.HEADS[m['head']].scaled:
    m['tie_embeddings'] = False
  return family_of(m)


def sizes_of(model):
  """Size of each dimension by its letter, as `ModelConfig.size`; _: T5's buckets, 3: of q, k and v."""
  return dict(V=model['vocab_size'], D=model['d_model'], E=model['d_model'], N=model['num_heads'],
              K=model['num_kv_heads'], H=model['head_dim'], F=model['d_ff'], T=model['max_positions'],
              P=model['num_types'], **{'_': 32, '3': 3})


def shape_of(axes, sizes):
  return tuple(int(np.prod([sizes[d] for d in axis])) for axis in axes)


def layers_of(model, path, name):
  """Their names for one of our parameters, one per layer, and whether there is a leading axis for them."""
  count = model['num_encoder_layers' if path.startswith('encoder/') else 'num_layers']
  return [name.format(i) for i in range(count)] if '{}' in name else [name]


def names(model):
  """{their name: shape} of all weights of a model."""
  sizes = sizes_of(model)
  return {one: shape_of(axes, sizes) for path, _, name, axes in rows(model) for one in layers_of(model, path, name)}


def places(model: Mapping[str, Any]) -> dict[str, str]:
  """{path: dims} of all parameters, ours, for which the family of a model has a place."""
  out = {}
  for path, dims, _, _ in rows(model):
    for part in 'qkv' if '*' in path else ' ':
      out[path.replace('*', part)] = dims
  return out


def check_parameters(model: Mapping[str, Any], declared: Mapping[str, Param]) -> None:
  """ConfigError where the parameters of a model are not those that its family has.

  Args:
    model: config.model of a family, every size known.
    declared: `model.parameters` of the same model, without adapters.
  """
  family, has = family_of_any(model), places(model)
  for path, param in declared.items():
    own = param.dims[param.is_stacked:]
    if not FAMILIES[family].grouped:  # N is also the number of heads of keys and values
      own = own.replace('K', 'N')
    if path not in has:
      raise ConfigError(f'{path} has no place in the weights of {family} models: a model that has it cannot be read '
                        'from a Hugging Face folder, nor written into one.')
    if has[path] != own:
      raise ConfigError(f'{path} has the dimensions {own}, and in the weights of {family} models {has[path]}: a model '
                        'that has it cannot be read from a Hugging Face folder, nor written into one.')
  missing = [path for path in has if path not in declared]
  if missing and model['use_bias']:  # without biases, a family that has them gets zeros
    raise ConfigError(f'{missing[0]}, which {family} models have, is no parameter of this model.')


def to_ours(x, dims, axes, sizes):
  """One layer of theirs in our order of dimensions; a leading axis of 3 where it holds q, k and v."""
  theirs = ''.join(axes)
  x = x.reshape([sizes[d] for d in theirs])
  return x.transpose([theirs.index(d) for d in ('3' + dims if '3' in theirs else dims)])


def to_theirs(x, dims, axes, sizes):
  theirs = ''.join(axes)
  ours = '3' + dims if '3' in theirs else dims
  return np.ascontiguousarray(x.transpose([ours.index(d) for d in theirs])).reshape(shape_of(axes, sizes))
