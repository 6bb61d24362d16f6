"""Weights in folders of Hugging Face's, by name, checked against the tables of `families.py`."""
import contextlib
import os
import pathlib
import re

import jax
import numpy as np
from etils import epath

from t5like import choices
from t5like.errors import CheckpointError, ConfigError
from t5like.files import schema
from t5like.files.schema import FileName, Object
from t5like.huggingface.families import FAMILIES
from t5like.huggingface.model_config import family_of_any, layers_of, names, rows, sizes_of, to_model, to_ours

RENAMED = (  # what other versions of transformers, and of checkpoints, call things
    (r'^lm_head\.weight$', 'embed_out.weight', 'gpt_neox'),
    (r'(LayerNorm|layer_norm)\.gamma$', r'\1.weight', ''),
    (r'(LayerNorm|layer_norm)\.beta$', r'\1.bias', ''))

ANY = Object()
INDEX = Object(dict(weight_map=Object(rest=FileName('.safetensors'))), ('weight_map',))
HEADER = 16 << 20  # bytes of JSON before the weights of a file; DeepSeek-V3's 163 files have some 60 kB each
FLOATS = ('F32', 'BF16', 'F16', 'F64')


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
    for file in weight_files(folder):
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
        stored = np.asarray(opened.get_tensor(name))
      with np.errstate(over='ignore', invalid='ignore'):
        x = stored.astype(np.float32)
        total = x.sum(dtype=np.float64)  # cannot overflow, and needs no second array as isfinite does
      if not np.isfinite(total):
        raise CheckpointError(f'{folder}: the weights {name} are not all finite (NaN or infinity). The file is damaged '
                              'or its training had diverged.')
      return x
    _check_copies(folder, model, where, tensor)
    yield model, tensor


def read_json(path, shape=ANY, failure=ConfigError):
  """The values in a file of JSON of a folder; `failure` for anything but the shape."""
  try:
    return schema.read(inside(path), shape, failure)
  except FileNotFoundError as e:
    raise failure(f'{path} cannot be read ({e.strerror}). Give a folder with a model of Hugging Face: config.json and '
                  '*.safetensors.') from e


def inside(path):
  """The path, unless it is a link to somewhere outside its folder; CheckpointError.

  The Hub's cache is let through: its snapshots/REVISION/* are links to ../../blobs/*.
  """
  if '://' in str(path) or not os.path.islink(path):
    return path
  target, folder = pathlib.Path(os.path.realpath(path)), pathlib.Path(path).parent.resolve()
  homes = [folder, folder.parent.parent / 'blobs'] if folder.parent.name == 'snapshots' else [folder]
  if not any(target.is_relative_to(home) for home in homes):
    raise CheckpointError(f'{path} is a link to {target}, outside its folder. Put the file itself there if it may be '
                          'trusted.')
  return path


def weight_files(folder):
  """Paths of the *.safetensors of a folder; CheckpointError when there are none, or not all that it names."""
  index = folder / 'model.safetensors.index.json'
  if index.exists():
    listed = read_json(index, INDEX, CheckpointError)['weight_map']
    files = [folder / name for name in sorted(set(listed.values()))]
  else:
    files = [folder / 'model.safetensors'] if (folder / 'model.safetensors').exists() else (
        sorted(folder.glob('*.safetensors')))
  missing = [file.name for file in files if not file.exists()]
  if not files or missing:
    raise CheckpointError(f'{folder} has no {", ".join(missing[:8]) or "*.safetensors"}. Weights in other formats, '
                          'such as pytorch_model.bin, must be saved by save_pretrained first.')
  return [_plausible(inside(file)) for file in files]


def _plausible(file):
  """The file, if it is one and its header is not longer than the headers of models are; CheckpointError."""
  if '://' not in str(file) and not os.path.isfile(file):  # epath takes a pipe, which never ends, for a file
    raise CheckpointError(f'{file} is not a regular file.')
  with file.open('rb') as f:
    beginning = f.read(8)
  if beginning == b'version ':
    raise CheckpointError(f'{file} is a pointer of Git LFS to a file that was not fetched. Fetch it: git lfs pull')
  length = int.from_bytes(beginning, 'little')
  if length > HEADER:
    raise CheckpointError(f'{file} cannot be read as safetensors: its first 8 bytes say that its header has {length:,} '
                          f'bytes, and no model needs more than {HEADER:,}. Was it saved as something else (a pickle)?')
  return file


def _matched(folder, model, where):
  """The model and its weights under the names of its table; CheckpointError where they do not match."""
  kind = family_of_any(model)
  family = FAMILIES[kind]
  for pattern, name, of in RENAMED:
    where = {re.sub(pattern, name, key) if of in ('', kind) else key: v for key, v in where.items()}
  if family.prefix and not any(key.startswith(family.prefix) for key in where):
    whole = names(model)
    where = {key if key in whole else family.prefix + key: v for key, v in where.items()}
  if kind == 't5' and not choices.HEADS[model['head']].scaled and 'lm_head.weight' not in where:
    model = dict(model, tie_embeddings=True)
  wanted = names(model)
  copies = [key for key in family.copies if key not in wanted]
  problems = [f'{key} is missing' for key in wanted if key not in where]
  problems += [f'{_printable(key)} is unexpected' for key in where
               if key not in wanted and key not in copies and not re.search(family.unused, key)]
  for key in (*wanted.keys() & where.keys(), *(copy for copy in copies if copy in where)):
    stored = where[key][0].get_slice(where[key][1])
    shape = tuple(stored.get_shape())
    if shape != wanted.get(key, shape):
      problems.append(f'{key} has the shape {shape}, not {wanted[key]}')
    if stored.get_dtype() not in FLOATS:
      problems.append(f'{key} is stored as {stored.get_dtype()}, not as one of {", ".join(FLOATS)}')
  if problems:
    more = f'; and {len(problems) - 8} more' if len(problems) > 8 else ''
    raise CheckpointError(f'{folder}: the weights are not those of the {kind} model in its config.json: '
                          f'{"; ".join(sorted(problems)[:8])}{more}.')
  return model, where


def _printable(name):
  return name if name.isprintable() and len(name) <= 200 else schema.show(name)


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
