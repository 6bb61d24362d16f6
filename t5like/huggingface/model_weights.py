"""Weights in Hugging Face folders, by name, checked against the tables of `families.py`."""
import contextlib
import dataclasses
import os
import pathlib
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath

from t5like import choices
from t5like.errors import CheckpointError, ConfigError, Failure
from t5like.files import schema
from t5like.files.schema import FileName, Object
from t5like.huggingface.families import FAMILIES
from t5like.huggingface.model_config import Model, Values, to_model
from t5like.huggingface.weight_table import Line, lines, names, sizes_of, to_ours


@dataclasses.dataclass(frozen=True)
class Renamed:
  """What other versions of transformers, and of checkpoints, call things.

  Attributes:
    pattern: a regex of their names.
    name: what it is replaced by.
    kind: the only family in which it is; '': in any.
  """
  pattern: str
  name: str
  kind: str = ''


RENAMED = (
    Renamed(r'^lm_head\.weight$', 'embed_out.weight', 'gpt_neox'),
    Renamed(r'(LayerNorm|layer_norm)\.gamma$', r'\1.weight'),
    Renamed(r'(LayerNorm|layer_norm)\.beta$', r'\1.bias'),
)

ANY = Object()
INDEX = Object(dict(weight_map=Object(rest=FileName('.safetensors'))), ('weight_map',))
HEADER = 16 << 20  # bytes of JSON before the weights of a file; DeepSeek-V3's 163 files have some 60 kB each
FLOATS = ('F32', 'BF16', 'F16', 'F64')
SHOWN = 8  # names and problems in an error
LONGEST = 200  # of a name in an error, in characters

Tensor = Callable[[str], np.ndarray]  # fp32 array of a name
Path = Any  # an epath


@dataclasses.dataclass(frozen=True)
class Stored:
  """Weights in an open file: a safetensors handle and the name in it."""
  file: Any
  name: str

  @property
  def header(self) -> Any:
    """What the file says of them, without reading them: get_shape() and get_dtype()."""
    return self.file.get_slice(self.name)

  def read(self) -> np.ndarray:
    """Returns the array as it is stored."""
    with jax.default_device(jax.local_devices(backend='cpu')[0]):
      return np.asarray(self.file.get_tensor(self.name))


def library() -> Any:
  """The package safetensors; ConfigError without it."""
  try:
    import safetensors.numpy
  except ImportError as e:
    raise ConfigError('Hugging Face models need the package safetensors; run: '
                      "pip install -e '.[hf]'") from e
  return safetensors


@dataclasses.dataclass(frozen=True)
class OpenModel:
  """A folder whose files are open.

  Attributes:
    kind: its model_type.
    model: values of config.model.
    lines: the table of what its files hold.
    tensor: gives the fp32 array of one of their names.
  """
  kind: str
  model: Values
  lines: list[Line]
  tensor: Tensor


@contextlib.contextmanager
def open_model(folder: Any, fresh_head: bool = False) -> Iterator[OpenModel]:
  """Yields the model of a folder.

  Args:
    folder: the folder.
    fresh_head: whether an encoder may lack the head that predicts masked tokens, which a run begins anew then.

  Raises:
    ConfigError: for a model that ours cannot be.
    CheckpointError: for weights that are missing, too many or of another shape.
  """
  folder = epath.Path(folder)
  hf = read_json(folder / 'config.json')
  model = to_model(hf)
  kind: str = hf['model_type']
  safetensors = library()
  with contextlib.ExitStack() as stack:
    stored: dict[str, Stored] = {}
    for file in weight_files(folder):
      try:
        # With jax, because numpy knows no bfloat16.
        opened = stack.enter_context(safetensors.safe_open(file, framework='flax'))
      except Exception as e:  # the library raises types of its own
        raise CheckpointError(f'{file} cannot be read as safetensors: {e}') from e
      for name in opened.keys():
        stored[name] = Stored(opened, name)
    stored = _prefixed(kind, model, _renamed(kind, stored))
    model = _tied_by_files(model, stored)
    wanted = lines(kind, model)
    if _lacks_head(model, wanted, stored):
      if not fresh_head:
        raise CheckpointError(f'{folder} holds an encoder without the head that predicts masked tokens, as sentence '
                              'encoders are. To begin with a new head, import it by main.py import --fresh_head.')
      wanted = [line for line in wanted if not _is_head(line)]
    _check_match(folder, kind, model, wanted, stored)

    def tensor(name: str) -> np.ndarray:
      array = stored[name].read()
      with np.errstate(over='ignore', invalid='ignore'):
        x = array.astype(np.float32)
        total = x.sum(dtype=np.float64)  # cannot overflow, and needs no second array as isfinite does
      if not np.isfinite(total):
        raise CheckpointError(f'{folder}: the weights {stored[name].name} are not all finite (NaN or infinity). The '
                              'file is damaged or its training had diverged.')
      return x

    _check_copies(folder, kind, names(wanted, model), stored, tensor)
    _check_zeros(folder, kind, stored, tensor)
    yield OpenModel(kind, model, wanted, tensor)


def read_json(path: Path, shape: schema.Shape = ANY, failure: type[Failure] = ConfigError) -> Values:
  """The values in a file of JSON of a folder; `failure` for anything but the shape."""
  try:
    return schema.read(inside(path), shape, failure)
  except FileNotFoundError as e:
    raise failure(f'{path} cannot be read ({e.strerror}). Give a folder with a model of Hugging Face: config.json and '
                  '*.safetensors.') from e


def inside(path: Path) -> Path:
  """The path, unless it is a link to somewhere outside its folder; CheckpointError.

  The Hub's cache is let through: its snapshots/REVISION/* are links to ../../blobs/*.
  """
  if '://' in str(path) or not os.path.islink(path):
    return path
  target = pathlib.Path(os.path.realpath(path))
  folder = pathlib.Path(path).parent.resolve()
  homes = [folder]
  if folder.parent.name == 'snapshots':
    homes.append(folder.parent.parent / 'blobs')
  if not any(target.is_relative_to(home) for home in homes):
    raise CheckpointError(f'{path} is a link to {target}, outside its folder. Put the file itself there if it may be '
                          'trusted.')
  return path


def weight_files(folder: Path) -> list[Path]:
  """Paths of the *.safetensors of a folder; CheckpointError when there are none, or not all that it names."""
  files = _named_files(folder)
  missing = [file.name for file in files if not file.exists()]
  if not files or missing:
    raise CheckpointError(f'{folder} has no {", ".join(missing[:SHOWN]) or "*.safetensors"}. Weights in other formats, '
                          'such as pytorch_model.bin, must be saved by save_pretrained first.')
  return [_plausible(inside(file)) for file in files]


def _named_files(folder: Path) -> list[Path]:
  """Paths of the files of weights, by the index of a folder where it has one."""
  index = folder / 'model.safetensors.index.json'
  if index.exists():
    listed = read_json(index, INDEX, CheckpointError)['weight_map']
    return [folder / name for name in sorted(set(listed.values()))]
  single = folder / 'model.safetensors'
  if single.exists():
    return [single]
  return sorted(folder.glob('*.safetensors'))


def _plausible(file: Path) -> Path:
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


def _is_head(line: Line) -> bool:
  return line.path.startswith('head/')


def _lacks_head(model: Model, wanted: Sequence[Line], stored: Mapping[str, Stored]) -> bool:
  """Whether files have nothing at all of the head of an encoder."""
  if not choices.HEADS[model['head']].transformed:
    return False
  return not any(line.name in stored for line in wanted if _is_head(line))


def _tied_by_files(model: Values, stored: Mapping[str, Stored]) -> Values:
  """A T5 v1.1 is tied where files have no other matrix for its outputs, whatever its config.json says."""
  has_encoder = choices.ARCHITECTURES[model['name']].has_encoder
  if has_encoder and not choices.HEADS[model['head']].scaled and 'lm_head.weight' not in stored:
    return dict(model, tie_embeddings=True)
  return model


def _check_match(folder: Path, kind: str, model: Model, wanted: Sequence[Line], stored: Mapping[str, Stored]) -> None:
  """CheckpointError where weights, under the names of their table, are not those that are wanted."""
  shapes = names(wanted, model)
  problems = [*_unmatched(kind, shapes, stored), *_unfit(kind, shapes, stored)]
  if problems:
    more = ''
    if len(problems) > SHOWN:
      more = f'; and {len(problems) - SHOWN} more'
    raise CheckpointError(f'{folder}: the weights are not those of the {kind} model in its config.json: '
                          f'{"; ".join(sorted(problems)[:SHOWN])}{more}.')


def _renamed(kind: str, stored: Mapping[str, Stored]) -> dict[str, Stored]:
  """Weights under the names that the newest transformers has for them."""
  renamings = [renaming for renaming in RENAMED if renaming.kind in ('', kind)]
  renamed = {}
  for name, weights in stored.items():
    for renaming in renamings:
      name = re.sub(renaming.pattern, renaming.name, name)
    renamed[name] = weights
  return renamed


def _prefixed(kind: str, model: Model, stored: dict[str, Stored]) -> dict[str, Stored]:
  """Weights with the prefix of their family, which files of the bare model lack."""
  prefix = FAMILIES[kind].prefix
  if any(name.startswith(prefix) for name in stored):
    return stored
  whole = names(lines(kind, model), model)
  prefixed = {}
  for name, weights in stored.items():
    if name not in whole:
      name = prefix + name
    prefixed[name] = weights
  return prefixed


def _copies(kind: str, wanted: Collection[str]) -> list[str]:
  """Names under which tied weights may lie a second time."""
  return [name for name in FAMILIES[kind].copies if name not in wanted]


def _unmatched(kind: str, wanted: Collection[str], stored: Mapping[str, Stored]) -> Iterator[str]:
  """Yields which weights are missing and which are unexpected."""
  for name in wanted:
    if name not in stored:
      yield f'{name} is missing'
  known = {*wanted, *_copies(kind, wanted)}
  pattern = f'{FAMILIES[kind].unused}|{FAMILIES[kind].zeros}'
  for name in stored:
    if name not in known and not re.search(pattern, name):
      yield f'{_printable(name)} is unexpected'


def _unfit(kind: str, wanted: Mapping[str, tuple[int, ...]], stored: Mapping[str, Stored]) -> Iterator[str]:
  """Yields which weights have another shape or a type that is not read."""
  for name in (*wanted, *_copies(kind, wanted)):
    if name not in stored:
      continue
    header = stored[name].header
    shape = tuple(header.get_shape())
    if shape != wanted.get(name, shape):
      yield f'{name} has the shape {shape}, not {wanted[name]}'
    if header.get_dtype() not in FLOATS:
      yield f'{name} is stored as {header.get_dtype()}, not as one of {", ".join(FLOATS)}'


def _printable(name: str) -> str:
  if name.isprintable() and len(name) <= LONGEST:
    return name
  return schema.show(name)


def _check_copies(
    folder: Path,
    kind: str,
    wanted: Collection[str],
    stored: Mapping[str, Stored],
    tensor: Tensor,
) -> None:
  """CheckpointError where tied weights lie there twice and differ."""
  originals = FAMILIES[kind].copies
  for copy in _copies(kind, wanted):
    original = originals[copy]
    if copy in stored and original in wanted and not np.array_equal(tensor(copy), tensor(original)):
      raise CheckpointError(f'{folder}: {copy} and {original} differ, though config.json says that they are one '
                            '(tie_word_embeddings). Correct it there.')


def _check_zeros(folder: Path, kind: str, stored: Mapping[str, Stored], tensor: Tensor) -> None:
  """CheckpointError where weights are not zeros that ours have no place for."""
  for name in stored:
    if re.search(FAMILIES[kind].zeros, name) and tensor(name).any():
      raise CheckpointError(f'{folder}: {name} is not zero everywhere, and {kind} models can only be read where it is.')


def leaves(opened: OpenModel, vocab_size: int) -> Iterator[tuple[str, np.ndarray]]:
  """Yields (path, array) of each of our parameters, those of one array of theirs at a time.

  Args:
    opened: of `open_model`.
    vocab_size: rows of parameters that have one per token; those that are added are zeros.
  """
  model = opened.model
  sizes = sizes_of(model)
  missing = max(0, vocab_size - model['vocab_size'])
  for line in opened.lines:
    layers_of_part: list[list[np.ndarray]] = [[] for _ in line.parts]
    for name in line.names(model):
      for part, layers, x in zip(line.parts, layers_of_part, line.split(opened.tensor(name), sizes)):
        layers.append(to_ours(x, part.own_dims, part.axes, sizes))
    for part, layers in zip(line.parts, layers_of_part):
      yield from _leaves_of(part, part.stacked(layers, sizes), missing)


def _leaves_of(line: Line, array: np.ndarray, missing: int) -> Iterator[tuple[str, np.ndarray]]:
  """Yields (path, array) of what a line of one part holds; `missing`: rows of the vocabulary to be added."""
  if missing and 'V' in line.dims:
    added = [(0, 0)] * array.ndim
    added[line.dims.index('V') - len(line.dims)] = (0, missing)
    array = np.pad(array, added)
  paths = line.paths()
  if len(paths) == 1:
    yield paths[0], array
  else:
    yield from zip(paths, array)
