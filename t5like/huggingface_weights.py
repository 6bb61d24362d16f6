"""Weights in folders of Hugging Face's, by name, checked against the tables of `families.py`."""
import contextlib
import json
import re

import jax
import numpy as np
from etils import epath

from t5like.errors import CheckpointError, ConfigError
from t5like.families import FAMILIES
from t5like.huggingface_config import family_of_any, layers_of, names, rows, sizes_of, to_model, to_ours

RENAMED = (  # what other versions of transformers, and of checkpoints, call things
    (r'^lm_head\.weight$', 'embed_out.weight', 'gpt_neox'),
    (r'(LayerNorm|layer_norm)\.gamma$', r'\1.weight', ''),
    (r'(LayerNorm|layer_norm)\.beta$', r'\1.bias', ''))


def library():
  """The package safetensors; ConfigError without it."""
  try:
    import safetensors.numpy
  except ImportError as e:
    raise ConfigError('Hugging Face models need the package safetensors; run: '
                      "pip install -e '.[hf]'") from e
  return safetensors


@contextlib.contextmanager
def open_model(folder):
  """Yields (values of config.model, tensor), the latter giving the fp32 array of one of their names.

  ConfigError for a model that ours cannot be, CheckpointError for weights that are missing, too many or
  of another shape.
  """
  folder = epath.Path(folder)
  model = to_model(read_json(folder / 'config.json'))
  safetensors = library()
  with contextlib.ExitStack() as stack:
    where = {}  # name in the family -> (open file, name in it)
    for file in _files(folder):
      try:
        # With jax, because numpy knows no bfloat16.
        opened = stack.enter_context(safetensors.safe_open(file, framework='flax'))
      except Exception as e:  # the library raises types of its own
        raise CheckpointError(f'{file} cannot be read as safetensors: {e}') from e
      where.update({name: (opened, name) for name in opened.keys()})
    model, where = _matched(folder, model, where)

    def tensor(name):
      opened, name = where[name]
      with jax.default_device(jax.local_devices(backend='cpu')[0]):
        return np.asarray(opened.get_tensor(name)).astype(np.float32)
    _check_copies(folder, model, where, tensor)
    yield model, tensor


def read_json(path):
  try:
    return json.loads(path.read_text())
  except OSError as e:
    raise ConfigError(f'{path} cannot be read ({e.strerror}). Give a folder with a model of Hugging '
                      "Face's: config.json and *.safetensors.") from e
  except ValueError as e:
    raise ConfigError(f'{path} is not JSON: {e}.') from e


def _files(folder):
  index = folder / 'model.safetensors.index.json'
  if index.exists():
    files = [folder / name for name in sorted(set(read_json(index)['weight_map'].values()))]
  else:
    files = [folder / 'model.safetensors'] if (folder / 'model.safetensors').exists() else (
        sorted(folder.glob('*.safetensors')))
  missing = [file.name for file in files if not file.exists()]
  if not files or missing:
    raise CheckpointError(f'{folder} has no {", ".join(missing) or "*.safetensors"}. Weights of other formats, such '
                          'as pytorch_model.bin, must be saved by save_pretrained first.')
  return files


def _matched(folder, model, where):
  """The model and its weights under the names of its table; CheckpointError where they do not match."""
  kind = family_of_any(model)
  family = FAMILIES[kind]
  for pattern, name, of in RENAMED:
    where = {re.sub(pattern, name, key) if of in ('', kind) else key: v for key, v in where.items()}
  if family.prefix and not any(key.startswith(family.prefix) for key in where):
    whole = names(model)
    where = {key if key in whole else family.prefix + key: v for key, v in where.items()}
  if kind == 't5' and model['head'] == 'linear' and 'lm_head.weight' not in where:
    model = dict(model, tie_embeddings=True)
  wanted = names(model)
  copies = [key for key in family.copies if key not in wanted]
  problems = [f'{key} is missing' for key in wanted if key not in where]
  problems += [f'{key} is unexpected' for key in where
               if key not in wanted and key not in copies and not re.search(family.unused, key)]
  for key in wanted.keys() & where.keys():
    found = tuple(where[key][0].get_slice(where[key][1]).get_shape())
    if found != wanted[key]:
      problems.append(f'{key} has the shape {found}, not {wanted[key]}')
  if problems:
    more = f'; and {len(problems) - 8} more' if len(problems) > 8 else ''
    raise CheckpointError(f'{folder}: the weights are not those of the {kind} model in its config.json: '
                          f'{"; ".join(sorted(problems)[:8])}{more}.')
  return model, where


def _check_copies(folder, model, where, tensor):
  wanted = names(model)
  for copy, original in FAMILIES[family_of_any(model)].copies.items():
    if copy in where and copy not in wanted and not np.array_equal(tensor(copy), tensor(original)):
      raise CheckpointError(f'{folder}: {copy} and {original} differ, though config.json says that they are one '
                            '(tie_word_embeddings). Correct it there.')


def leaves(model, tensor, vocab_size):
  """Yields (path, array) of each of our parameters, one at a time; `vocab_size` pads as `huggingface.read`."""
  sizes = sizes_of(model)
  for path, dims, name, axes in rows(model):
    layers = [to_ours(tensor(one), dims, axes, sizes) for one in layers_of(model, path, name)]
    x = np.stack(layers, -1 - len(dims)) if '{}' in name else np.ascontiguousarray(layers[0])
    if 'V' in dims and vocab_size > model['vocab_size']:
      x = np.pad(x, [(0, vocab_size - model['vocab_size'] if d == 'V' else 0) for d in dims])
    yield from zip([path.replace('*', part) for part in 'qkv'], x) if '*' in path else [(path, x)]
