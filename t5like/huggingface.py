"""Models of Hugging Face: folders with a config.json and *.safetensors, read, written and begun with.

    values, params = read('some/llama')              # values of config.model; a nested dict, numpy fp32
    write('some/folder', config.model, params, vocabulary)

Families and the names of their weights are in `families.py`, configs in `huggingface_config.py`, files in
`huggingface_weights.py`.
"""
import dataclasses
import json
import shlex
from typing import Any

import jax
import numpy as np
from etils import epath

from t5like import choices, decode, models, paths, plain_json, sharding, workdir as workdir_lib
from t5like.checkpoint import Checkpoints
from t5like.config_values import base, either, show
from t5like.data import special_tokens, tokenizer_export, vocabulary as vocabulary_lib
from t5like.data.vocabulary_kinds import Bytes
from t5like.errors import ConfigError, DataError
from t5like.huggingface_config import (
  check_parameters,
  differing,
  family_of,  # noqa: F401 (found here)
  layers_of,
  places,
  rows,
  shape_of,
  sizes_of,
  to_hf,
  to_model,  # noqa: F401 (found here)
  to_theirs,
)
from t5like.huggingface_weights import leaves, library, open_model
from t5like.model import transformer
from t5like.optimizers import path_name


def read(folder, vocab_size=0):
  """(values of config.model, params) of a model in a folder; params: nested dict of numpy arrays, fp32.

  vocab_size: pads what has a row per token to so many with zeros; 0: as it is. ConfigError for a model
  that ours cannot be, CheckpointError for weights that are missing, too many or of another shape.
  """
  with open_model(folder) as (model, tensor):
    params = {}
    for path, x in leaves(model, tensor, vocab_size or model['vocab_size']):
      _put(params, path, x)
    return dict(model, vocab_size=vocab_size or model['vocab_size']), params


def model_of(folder):
  """Values of config.model of the model in a folder, whose weights are checked by name and shape. Errors as `read`."""
  with open_model(folder) as (model, _):
    return model


def write(folder, model, params, vocabulary=None, style='', length=0):
  """Writes a model into a new folder, so that transformers reads it; returns notes for people, [text].

  `model`: config.model, every size known; `params`: nested dict of arrays. With a vocabulary also its
  tokenizer; `style` (decode.style_of) says what it puts around texts, `length` how long they may be.
  Biases that a family has and the model lacks are zeros. ConfigError when no family computes this.
  """
  hf, sizes, out = to_hf(model, vocabulary, length), sizes_of(model), {}
  has = places(model)
  for path, _ in jax.tree_util.tree_leaves_with_path(params):
    if path_name(path) not in has:
      raise ConfigError(f'{path_name(path)} has no place in the weights of {hf["model_type"]} models.')
  for path, dims, name, axes in rows(model):
    found = [_find(params, path.replace('*', part)) for part in ('qkv' if '*' in path else ' ')]
    keys = layers_of(model, path, name)
    if found[0] is None:  # a bias
      out.update({key: np.zeros(shape_of(axes, sizes), np.float32) for key in keys})
      continue
    found = [np.asarray(x, np.float32) for x in found]
    x = np.stack(found, -1 - len(dims)) if '*' in path else found[0]
    for key, layer in zip(keys, x if '{}' in name else [x]):
      out[key] = to_theirs(layer, dims, axes, sizes)
  files, notes = tokenizer_export.files(vocabulary, style, length) if vocabulary else ({}, [])
  if hf['model_type'] == 'roberta' and vocabulary and vocabulary.pad_id != 1:
    notes.append('RoBERTa counts positions by tokens that are not 1: give position_ids to transformers yourself '
                 '(2, 3, ...), for this vocabulary pads with another.')
  files['config.json'] = _text(hf)
  if choices.ARCHITECTURES[model['name']].causal:
    generation = {k: v for k, v in hf.items() if k.endswith('_token_id')}
    never = decode.banned(hf['vocab_size'], vocabulary) if vocabulary else ()
    if never:
      generation['suppress_tokens'] = never
    files['generation_config.json'] = _text(generation)
  _write(epath.Path(folder), files, out)
  return notes


def _text(values):
  return (plain_json.dumps(values, indent=2) + '\n').encode()


def _find(tree, path):
  for key in path.split('/'):
    if key not in tree:
      return None
    tree = tree[key]
  return tree


def _put(tree, path, value):
  *parents, last = path.split('/')
  for key in parents:
    tree = tree.setdefault(key, {})
  tree[last] = value


def _write(folder, files, tensors):
  with workdir_lib.whole_folder(folder) as new:
    for name, content in files.items():
      (new / name).write_bytes(content)
    # transformers insists on being told that matrices are as PyTorch has them.
    library().numpy.save_file(tensors, new / 'model.safetensors', metadata=dict(format='pt'))


# --- Weights to begin with ------------------------------------------------------------------------


def initial(config, abstract, vocabulary=None):
  """Parameters from `config.init_from`, placed as `abstract` (shapes and shardings) says.

  `config`: every size known. `init_from` is a folder of Hugging Face's, which may have fewer tokens (the other rows
  are zeros), a workdir of ours, whose newest checkpoint counts, or one of its checkpoints, WORKDIR/checkpoints/STEP.
  Its adapters (LoRA) are merged; those of `config` are new. ConfigError where the models do not fit or, when the
  run's own is given, vocabularies differ.
  """
  folder = epath.Path(paths.expand(config.init_from))
  if (folder / 'checkpoints').exists():
    return _with_adapters(config, abstract, _from_run(config, folder, None, vocabulary))
  if folder.parent.name == 'checkpoints' and folder.name.isdecimal():
    return _with_adapters(config, abstract, _from_run(config, folder.parent.parent, int(folder.name), vocabulary))
  if not (folder / 'config.json').exists():
    raise ConfigError(f'init_from={config.init_from!r} is neither the workdir of a run (with checkpoints/) nor a '
                      "folder of Hugging Face's (with config.json and *.safetensors).")
  with open_model(folder) as (model, tensor):
    size = max(model['vocab_size'], config.model.vocab_size)
    check_fits(config, dict(model, vocab_size=size))
    check_same_vocabulary(config, vocabulary, *find_vocabulary(folder, config.vocabulary.special.to_dict()))
    plain = transformer.ModelConfig(**dict(config.model, lora_rank=0))
    check_parameters(model, transformer.build(plain).parameters)
    params = {}
    for path, x in leaves(model, tensor, size):
      _put(params, path, _place(x, _find(abstract, path)))
  return _with_adapters(config, abstract, params)


def _from_run(config, workdir, step, vocabulary):
  theirs = workdir_lib.read_config(workdir)
  path = workdir_lib.vocabulary_path(workdir)
  their_vocabulary = vocabulary_lib.load(theirs.vocabulary, path)
  sized = models.with_vocabulary(theirs, their_vocabulary)
  check_fits(config, sized.model.to_dict())
  check_same_vocabulary(config, vocabulary, dict(theirs.vocabulary, path=str(path)), their_vocabulary)
  with Checkpoints(workdir) as checkpoints:
    steps = checkpoints.steps
    if not steps or step is not None and step not in steps:
      of = '' if step is None else f' of step {step}'
      raise ConfigError(f'init_from={config.init_from!r} has no checkpoint{of} yet'
                        + (f'; there are those of {either(steps)}.' if steps else '.'))
    init = transformer.build(transformer.ModelConfig(**sized.model)).init
    abstract = sharding.abstract(lambda: init(jax.random.key(0)), jax.sharding.get_mesh())
    return models.merged(sized, checkpoints.params(steps[-1] if step is None else step, abstract))[1]


def _with_adapters(config, abstract, params):
  """params, which have no adapters, with those that `abstract` has, as at the beginning of any run."""
  if not config.model.lora_rank:
    return params
  init = transformer.build(transformer.ModelConfig(**config.model)).init
  only = lambda tree: {path_name(path): x for path, x in jax.tree_util.tree_leaves_with_path(tree)
                       if _find(params, path_name(path)) is None}
  layout = {path: x.sharding for path, x in only(abstract).items()}
  for path, x in jax.jit(lambda: only(init(jax.random.key(config.seed))), out_shardings=layout)().items():
    _put(params, path, x)
  return params


def _place(x, like):
  return jax.make_array_from_callback(x.shape, like.sharding, lambda index: x[index].astype(like.dtype))


def check_fits(config, theirs):
  ours = config.model.to_dict()
  keys = differing(theirs, ours)
  if keys:
    raise ConfigError(
        f'init_from={config.init_from!r} holds another model: '
        + '; '.join(f'model.{k} is {show(theirs[k])} there, {show(ours[k])} here' for k in keys)
        + '. To begin with it, add ' + ' '.join(f'--config.model.{k}={theirs[k]}' for k in keys) + '.')


def check_same_vocabulary(config, ours, spec, theirs):
  """ConfigError where a vocabulary is not that of the weights to begin with; None: not known."""
  if ours is None or theirs is None or ours.fingerprint == theirs.fingerprint:
    return
  different = tokenizer_export.difference(ours, theirs)
  if different:
    said = {k: spec[k] for k in ('name', 'path', 'sentinels') if spec[k] not in ('', None)}
    keys = [f'--config.vocabulary.{k}={shlex.quote(str(value))}' for k, value in said.items()]
    raise ConfigError(f'init_from={config.init_from!r} has learned another vocabulary, in which {different}. '
                      f'To use its own, add {" ".join(keys)}.')


@dataclasses.dataclass(frozen=True)
class Found:
  """A folder's tokenizer. spec: values of config.vocabulary; begins: whether it puts vocabulary.bos_id before texts."""
  spec: dict
  vocabulary: Any
  begins: bool


def find_vocabulary(folder, chosen=None):
  """(values of config.vocabulary, vocabulary) of a folder of Hugging Face's; ({}, None) where it has none."""
  found = find_tokenizer(folder, chosen)
  return (found.spec, found.vocabulary) if found else ({}, None)


def find_tokenizer(folder, chosen=None):
  """The Found of a folder of Hugging Face's, None where it has no tokenizer.

  A SentencePiece model comes before a tokenizer.json that was made from it and holds the same; else the tokenizer.json,
  which is what transformers reads. `chosen`: config.vocabulary.special. ConfigError where one id is two different
  pieces, for tokens that only a file says which the tokenizer cannot have, and as `vocabulary.imported`.
  """
  folder = epath.Path(folder)
  pieces = next((folder / name for name in PIECES if (folder / name).exists()), None)
  whole = folder / 'tokenizer.json'
  if pieces is None and not whole.exists():
    return _bytes_of(folder)
  if pieces is None:
    return _found(whole, 'huggingface', chosen)
  if not whole.exists():
    _check_added(folder, pieces, _sentinels(folder))
    return _found(pieces, 'sentencepiece', chosen, _sentinels(folder))
  theirs = _found(whole, 'huggingface', chosen)
  sentinels = _check_same(folder, pieces, theirs.vocabulary)
  if sentinels is None:
    return theirs
  ours = _found(pieces, 'sentencepiece', chosen, sentinels)
  same = not tokenizer_export.difference(ours.vocabulary, theirs.vocabulary)
  if same and _same_roles(ours.vocabulary, theirs.vocabulary):
    return dataclasses.replace(ours, begins=theirs.begins)
  return theirs


PIECES = ('spiece.model', 'tokenizer.model')


def _found(path, kind, chosen, sentinels=0):
  spec = base().vocabulary
  spec.update(name=kind, path=str(path), sentinels=sentinels, special=dict(chosen or {}))
  vocabulary = vocabulary_lib.imported(spec, spec.path)
  begins = vocabulary.bos_id is not None and tuple(vocabulary.before) == (vocabulary.bos_id,)
  return Found(spec.to_dict(), vocabulary, begins)


def _bytes_of(folder):
  """The vocabulary of a ByT5, which needs no file; None for another."""
  settings = _settings(folder)
  if (settings.get('tokenizer_class') or '').removesuffix('Fast') != 'ByT5Tokenizer':
    return None
  spec = base().vocabulary
  spec.update(name='bytes', path='', sentinels=_sentinels(folder, 125))
  return Found(spec.to_dict(), Bytes(spec.sentinels), False)


def _settings(folder, name='tokenizer_config.json'):
  """What is in one of special_tokens.FILES, {} where a folder does not have it."""
  path = folder / name
  return special_tokens.parse_files({name: path.read_bytes()}, folder)[name] if path.exists() else {}


def _sentinels(folder, usual=0):
  """How many <extra_id_0>, ... lie above a SentencePiece model, as T5's do."""
  settings = _settings(folder)
  named = settings.get('additional_special_tokens') or settings.get('extra_special_tokens') or []
  count = sum('<extra_id_' in json.dumps(token) for token in named)
  usual = usual or (100 if _settings(folder, 'config.json').get('model_type') in ('t5', 'mt5', 'umt5') else 0)
  return count or (usual if settings.get('extra_ids') is None else settings['extra_ids'])


def _check_added(folder, path, sentinels):
  """ConfigError where tokens were added that a SentencePiece model cannot have."""
  texts = list(_settings(folder, 'added_tokens.json'))
  texts += [token['content'] for token in (_settings(folder).get('added_tokens_decoder') or {}).values()]
  vocabulary = _pieces(path, sentinels)
  has = set(vocabulary.pieces(range(vocabulary.size)))
  missing = [text for text in texts if text not in has]
  if missing:
    raise ConfigError(f'{folder} adds {len(missing)} tokens to {path.name}, such as {missing[0]!r}, which only a '
                      'tokenizer.json can hold. Save its tokenizer there first: AutoTokenizer.from_pretrained(...)'
                      '.save_pretrained(...).')


def _pieces(path, sentinels=0):
  spec = base().vocabulary
  spec.update(name='sentencepiece', path=str(path), sentinels=sentinels)
  return vocabulary_lib.load(spec, spec.path)


def _check_same(folder, path, theirs):
  """How many sentinels lie above a SentencePiece model that holds all that the tokenizer.json beside it does.

  None where tokenizer.json has more, or the file is no such model (tiktoken's too are called tokenizer.model).
  ConfigError where they are of two tokenizers: an id is one piece here, another there, added tokens apart.
  """
  try:
    ours = _pieces(path)
  except DataError:
    return None
  added = {theirs.own.ids[text] for text in theirs.own.added}
  for i in range(min(ours.size, theirs.size)):
    a, b = ours.pieces([i])[0], theirs.pieces([i])[0].replace('\n', '\\n')
    if a != b and i not in added and i not in ours.special_ids:
      raise ConfigError(f'{folder} holds two tokenizers that contradict each other: id {i} is {a!r} in {path.name}, '
                        f'{b!r} in tokenizer.json. Take away the file that does not belong to the model.')
  sentinels = sum(theirs.sentinel(k) >= ours.size for k in range(theirs.num_sentinels))
  return sentinels if theirs.size <= ours.size + sentinels else None


def _same_roles(ours, theirs):
  """Whether two vocabularies have the same special tokens."""
  roles = ('eos_id', 'pad_id', 'unk_id', 'stop_ids')
  same = all(getattr(ours, role) == getattr(theirs, role) for role in roles)
  never = [{i for i in vocabulary.suppressed if i < theirs.size} for vocabulary in (ours, theirs)]
  return same and theirs.bos_id in (None, ours.bos_id) and never[0] == never[1]
