"""Hugging Face models: folders with a config.json and *.safetensors, read, written and begun with.

    values, params = read('some/llama')              # values of config.model; a nested dict, numpy fp32
    write('some/folder', config.model, params, vocabulary)

Families and names of weights are in `families.py`, configs in `model_config.py`, files in `model_weights.py`.
"""
import shlex
from collections.abc import Callable, Collection, Mapping
from typing import Any

import jax
import numpy as np
from etils import epath

from t5like import choices, sharding
from t5like.config import resumable
from t5like.config.values import DEFAULTS, either, show
from t5like.config_type import Config
from t5like.decoding import decode
from t5like.errors import ConfigError
from t5like.files import paths, plain_json
from t5like.huggingface import folder_tokenizers
from t5like.huggingface.model_config import OF_LONGER_ROWS, differing, to_hf
from t5like.huggingface.model_weights import leaves, library, open_model
from t5like.huggingface.weight_table import Line, check_parameters, lines, places, shape_of, sizes_of, to_theirs
from t5like.model import models, transformer
from t5like.optim.optimizers import path_name
from t5like.storage import stored_config, workdir as workdir_lib
from t5like.storage.checkpoint import Checkpoints
from t5like.vocabulary import loading as vocabulary_lib, tokenizer_export
from t5like.vocabulary.kinds import Vocabulary

Array = np.ndarray | jax.Array
Tree = dict[str, Any]  # nested dicts of arrays


def read(folder: Any, vocab_size: int = 0) -> tuple[Tree, Tree]:
  """Reads a model from a folder.

  Args:
    folder: with config.json and *.safetensors.
    vocab_size: parameters with a row per token are padded to this many rows with zeros; 0: they stay as they are.

  Returns:
    (values of config.model, params as a nested dict of fp32 numpy arrays).

  Raises:
    ConfigError: for a model that ours cannot represent.
    CheckpointError: for weights that are missing, superfluous or of another shape.
  """
  with open_model(folder) as opened:
    size = vocab_size or opened.model['vocab_size']
    params: Tree = {}
    for path, array in leaves(opened, size):
      put(params, path, array)
    return dict(opened.model, vocab_size=size), params


def model_of(folder: Any, fresh_head: bool = False) -> Tree:
  """Values of config.model of the model in a folder, whose weights are checked by name and shape.

  Args:
    folder: as of `read`, whose errors this has too.
    fresh_head: whether an encoder may lack the head that predicts masked tokens.
  """
  with open_model(folder, fresh_head) as opened:
    return opened.model


def write(
    folder: Any,
    model: Tree,
    params: Tree,
    vocabulary: Vocabulary | None = None,
    style: str = '',
    length: int = 0,
) -> list[str]:
  """Writes a model into a new folder, so that transformers reads it.

  Args:
    folder: the new folder.
    model: config.model, every size known.
    params: nested dict of arrays. Biases that the family has and the model does not are written as zeros.
    vocabulary: its tokenizer is written too.
    style: what the tokenizer adds around texts, see `decode.style_of`.
    length: the longest texts, in tokens.

  Returns:
    Notes for people.

  Raises:
    ConfigError: when no family computes this model.
  """
  config = to_hf(model, vocabulary, length)
  kind = str(config['model_type'])
  _check_places(kind, model, params)
  tensors = _tensors(kind, model, params)
  files: dict[str, bytes] = {}
  notes: list[str] = []
  if vocabulary:
    files, notes = tokenizer_export.files(vocabulary, style, length)
    if kind == 'roberta' and vocabulary.pad_id != 1:
      notes.append('RoBERTa counts positions by tokens that are not 1: give position_ids to transformers yourself '
                   '(2, 3, ...), for this vocabulary pads with another.')
  if kind == 'umt5' and not model['tie_embeddings']:
    notes.append('transformers 5 divides what umT5 predicts from by sqrt(d_model), whatever config.json says: its '
                 'logits are smaller than those of this model and of transformers 4. Greedy text is the same.')
  files['config.json'] = _json_bytes(config)
  if choices.ARCHITECTURES[model['name']].causal:
    files['generation_config.json'] = _json_bytes(_generation_config(config, vocabulary))
  with workdir_lib.whole_folder(epath.Path(folder)) as new:
    for name, content in files.items():
      (new / name).write_bytes(content)
    # transformers requires the metadata to say that matrices are laid out as in PyTorch.
    library().numpy.save_file(tensors, new / 'model.safetensors', metadata=dict(format='pt'))
  return notes


def _check_places(kind: str, model: Tree, params: Tree) -> None:
  """ConfigError for a parameter that the family's weights have no name for."""
  has = places(kind, model)
  for keys, _ in jax.tree_util.tree_leaves_with_path(params):
    path = path_name(keys)
    if path not in has:
      raise ConfigError(f'{path} has no place in the weights of {kind} models.')


def _tensors(kind: str, model: Tree, params: Tree) -> dict[str, np.ndarray]:
  """{their name: fp32 array in their layout} of all parameters."""
  sizes = sizes_of(model)
  tensors = {}
  for line in lines(kind, model):
    names = line.names(model)
    parts = [_tensors_of(part, params, len(names), sizes) for part in line.parts]
    for n, name in enumerate(names):
      tensors[name] = line.join([layers[n] for layers in parts])
  return tensors


def _tensors_of(line: Line, params: Tree, count: int, sizes: Mapping[str, int]) -> list[np.ndarray]:
  """What a line of one part holds, an array for each of so many names."""
  array = _fused(params, line)
  if array is None:  # a bias
    return [np.zeros(shape_of(line.axes, sizes), np.float32)] * count
  return [to_theirs(one, line.own_dims, line.axes, sizes) for one in line.unstacked(array)]


def _fused(params: Tree, line: Line) -> np.ndarray | None:
  """The fp32 array of a line, q, k and v stacked before its dims where theirs holds all; None if there is none."""
  arrays = []
  for path in line.paths():
    array = _as_float32(find(params, path))
    if array is None:
      return None
    arrays.append(array)
  if len(arrays) == 1:
    return arrays[0]
  return np.stack(arrays, -1 - len(line.dims))


def _as_float32(array: Array | None) -> np.ndarray | None:
  if array is None:
    return None
  return np.asarray(array, np.float32)


def _generation_config(config: Tree, vocabulary: Vocabulary | None) -> Tree:
  """Values of generation_config.json: ids of special tokens, and those that no answer holds."""
  generation = {}
  for key, value in config.items():
    if key.endswith('_token_id'):
      generation[key] = value
  if vocabulary:
    never = decode.banned(config['vocab_size'], vocabulary)
    if never:
      generation['suppress_tokens'] = never
  return generation


def _json_bytes(values: Tree) -> bytes:
  return (plain_json.dumps(values, indent=2) + '\n').encode()


def find(tree: Tree, path: str) -> Any:
  """The value at 'a/b/c' of nested dicts, None if there is none."""
  for key in path.split('/'):
    if key not in tree:
      return None
    tree = tree[key]
  return tree


def put(tree: Tree, path: str, value: Any) -> None:
  """Sets the value at 'a/b/c' of nested dicts."""
  *parents, last = path.split('/')
  for key in parents:
    tree = tree.setdefault(key, {})
  tree[last] = value


# --- Weights to begin with ------------------------------------------------------------------------


def initial(
    config: Config,
    abstract: Tree,
    vocabulary: Vocabulary | None = None,
    say: Callable[[str], None] = print,
    fresh_head: bool = False,
) -> Tree:
  """Parameters from `config.init_from`, placed as `abstract` (shapes and shardings) says.

  Args:
    config: every size known. `init_from` is a Hugging Face folder, which may have fewer tokens (the other rows are
      zeros), a workdir, whose newest checkpoint counts, or one of its checkpoints, WORKDIR/checkpoints/STEP. Its
      adapters (LoRA) are merged; those of `config` are new.
    abstract: nested dict of jax.ShapeDtypeStruct.
    vocabulary: the run's own, to be compared; None: it is not compared.
    say: prints a line, which keys of OF_LONGER_ROWS change.
    fresh_head: whether an encoder in a folder may lack the head that predicts masked tokens, which is made then.

  Raises:
    ConfigError: where the models do not fit or vocabularies differ.
  """
  folder = epath.Path(paths.expand(config.init_from))
  run = workdir_lib.run_of(folder)
  if run is not None:
    params = _from_run(config, *run, vocabulary, say)
  elif (folder / 'config.json').exists():
    params = _from_folder(config, folder, abstract, vocabulary, say, fresh_head)
  else:
    raise ConfigError(f'init_from={config.init_from!r} is neither the workdir of a run (with checkpoints/) nor a '
                      'Hugging Face folder (with config.json and *.safetensors).')
  return with_new(config, abstract, params)


def _from_folder(
    config: Config,
    folder: Any,
    abstract: Tree,
    vocabulary: Vocabulary | None,
    say: Callable[[str], None],
    fresh_head: bool,
) -> Tree:
  """Parameters of a folder's files."""
  with open_model(folder, fresh_head) as opened:
    model = opened.model
    size = max(model['vocab_size'], config.model.vocab_size)
    check_fits(config, dict(model, vocab_size=size), say)
    spec, their_vocabulary = folder_tokenizers.find_vocabulary(folder, config.vocabulary.special.to_dict())
    check_same_vocabulary(config, vocabulary, spec, their_vocabulary)
    without_adapters = transformer.ModelConfig.of(dict(config.model, lora_rank=0))
    check_parameters(opened.kind, model, transformer.build(without_adapters).parameters)
    params: Tree = {}
    for path, array in leaves(opened, size):
      put(params, path, place(array, find(abstract, path)))
  return params


def _from_run(
    config: Config,
    workdir: Any,
    step: int | None,
    vocabulary: Vocabulary | None,
    say: Callable[[str], None],
) -> Tree:
  """Parameters of a run's checkpoint, the newest if `step` is None."""
  theirs: Any = stored_config.read(workdir, step)
  path = workdir_lib.vocabulary_path(workdir)
  their_vocabulary = vocabulary_lib.load(theirs.vocabulary, path)
  sized: Any = models.with_vocabulary(theirs, their_vocabulary)
  check_fits(config, sized.model.to_dict(), say)
  check_same_vocabulary(config, vocabulary, dict(theirs.vocabulary, path=str(path)), their_vocabulary)
  with Checkpoints(workdir) as checkpoints:
    chosen = _checkpoint_step(config.init_from, checkpoints.steps, step)
    return params_of_run(sized, checkpoints, chosen)


def params_of_run(sized: Config, checkpoints: Checkpoints, step: int) -> Tree:
  """Parameters of a checkpoint, on the mesh in force; adapters (LoRA) are merged. `sized`: its config, sizes known."""
  init = transformer.build(transformer.ModelConfig.of(sized.model)).init
  abstract = sharding.abstract(lambda: init(jax.random.key(0)), jax.sharding.get_mesh())
  _, params = models.merged(sized, checkpoints.params(step, abstract))
  return params


def _checkpoint_step(init_from: str, steps: list[int], step: int | None) -> int:
  """`step`, or the newest of `steps` if it is None. ConfigError if there is no such checkpoint."""
  if not steps:
    wanted = '' if step is None else f' of step {step}'
    raise ConfigError(f'init_from={init_from!r} has no checkpoint{wanted} yet.')
  if step is None:
    return steps[-1]
  if step not in steps:
    raise ConfigError(f'init_from={init_from!r} has no checkpoint of step {step} yet; there are those of '
                      f'{either(steps)}.')
  return step


def with_new(config: Config, abstract: Tree, params: Tree) -> Tree:
  """params with what they lack of `abstract`, adapters and a fresh head, initialised as at the beginning of any run."""
  missing = _missing_paths(abstract, params)
  if not missing:
    return params
  for path, leaf in initialised(config, abstract, missing).items():
    put(params, path, leaf)
  return params


def initialised(config: Config, abstract: Tree, wanted: Collection[str]) -> dict[str, jax.Array]:
  """{path: array} of some parameters as the model initialises them, in the layout of `abstract`; others are not made.
  """
  init = transformer.build(transformer.ModelConfig.of(config.model)).init
  layout = {path: find(abstract, path).sharding for path in wanted}

  def some() -> dict[str, jax.Array]:
    params = init(jax.random.key(config.seed))
    return {path: find(params, path) for path in wanted}

  return jax.jit(some, out_shardings=layout)()


def _missing_paths(tree: Tree, params: Tree) -> list[str]:
  """Paths of those leaves of a tree that `params` does not have."""
  paths_of_tree = [path_name(keys) for keys, _ in jax.tree_util.tree_leaves_with_path(tree)]
  return [path for path in paths_of_tree if find(params, path) is None]


def place(array: np.ndarray, like: Any) -> jax.Array:
  """The array with the dtype and sharding of `like`."""
  def piece(index: Any) -> np.ndarray:
    return array[index].astype(like.dtype)

  return jax.make_array_from_callback(array.shape, like.sharding, piece)


def check_fits(config: Config, theirs: Tree, say: Callable[[str], None] | None = None) -> None:
  """ConfigError where the weights to begin with are of another model than config.model.

  Args:
    config: every size known.
    theirs: values of config.model of the weights.
    say: prints which keys that no parameter depends on (OF_LONGER_ROWS) differ; None: nothing is printed.
  """
  ours = config.model.to_dict()
  differences = []
  overrides = []
  changes = []
  forgotten = _forgotten(config, theirs)
  for key in differing(theirs, ours):
    if key in OF_LONGER_ROWS and key not in forgotten:
      changes.append(f'model.{key} {theirs[key]!r} -> {ours[key]!r}')
      continue
    differences.append(f'model.{key} is {show(theirs[key])} there, {show(ours[key])} here')
    overrides.append(f'--config.model.{key}={theirs[key]}')
  if len(differences) == len(forgotten):
    check_stated(config, theirs, f'init_from={config.init_from!r}')
    if changes and say:
      say(f'Changed since {config.init_from}: {", ".join(changes)}')
    return
  if theirs['name'] != ours['name']:
    differences.insert(0, _of_another_architecture(theirs['name'], ours['name']))
  raise ConfigError(f'init_from={config.init_from!r} holds another model: {"; ".join(differences)}. To begin with it, '
                    f'add {" ".join(overrides)}.')


def check_stated(config: Config, theirs: Tree, where: str) -> None:
  """ConfigError for keys that were probably forgotten.

  Args:
    config: every size known; `allow_changed` names those that are meant.
    theirs: values of config.model of the weights.
    where: the weights are, 'KEY=VALUE'.
  """
  ours = config.model.to_dict()
  differences = []
  names = []
  flags = []
  for key in _forgotten(config, theirs):
    name = f'model.{key}'
    differences.append(f'{name} is {show(theirs[key])} there, {show(ours[key])} here')
    names.append(name)
    flags += _flags(name, theirs[key])
  if not names:
    return
  raise ConfigError(f'{where} holds a model whose {"; ".join(differences)}, which is the default: its weights were not '
                    f'trained for that. To keep what they were trained for, add {" ".join(flags)}. If the change is '
                    f'meant, add --config.allow_changed={",".join(names)}.')


def _forgotten(config: Config, theirs: Tree) -> list[str]:
  """Keys of OF_LONGER_ROWS that have their default here and another value there, and that no key says are meant."""
  ours = config.model.to_dict()
  forgotten = []
  for key in differing(theirs, ours):
    name = f'model.{key}'
    is_stated = ours[key] != DEFAULTS[name] or resumable.is_permitted(config, name)
    if key in OF_LONGER_ROWS and not is_stated:
      forgotten.append(key)
  return forgotten


def _flags(key: str, value: Any) -> list[str]:
  """Arguments of the command line that set a key of the config."""
  if isinstance(value, Mapping):
    flags = []
    for name, inner in value.items():
      flags += _flags(f'{key}.{name}', inner)
    return flags
  text = str(value).replace("'", '"')  # those of a tuple's strings, within the shell's own
  return [f'--config.{key}={shlex.quote(text)}']


def _of_another_architecture(theirs: str, ours: str) -> str:
  return (f'to begin a model with model.name={ours!r} with the weights of one with {theirs!r}, add '
          f'--config.adapt.source={theirs} (docs/adapting.md)')


def check_same_vocabulary(config: Config, ours: Any, spec: Tree, theirs: Any, where: str = '') -> None:
  """ConfigError where a vocabulary is not that of the weights to begin with.

  Args:
    config: for `init_from`.
    ours: the run's vocabulary; None: not known, nothing is checked.
    spec: values of config.vocabulary of theirs.
    theirs: vocabulary of the weights; None as `ours`.
    where: the weights are, 'KEY=VALUE'; '': init_from.
  """
  if ours is None or theirs is None or ours.fingerprint == theirs.fingerprint:
    return
  difference = tokenizer_export.difference(ours, theirs)
  if not difference:
    return
  overrides = []
  for key in ('name', 'path', 'sentinels'):
    if spec[key] not in ('', None):
      overrides.append(f'--config.vocabulary.{key}={shlex.quote(str(spec[key]))}')
  named = f'init_from={config.init_from!r}'
  own = 'Use its own'
  if overrides:
    own = f'To use its own, add {" ".join(overrides)}'
  raise ConfigError(f'{where or named} has learned another vocabulary, in which {difference}. '
                    f'{own}; to copy the rows of tokens that both have, add --config.adapt.tokens=matched.')
