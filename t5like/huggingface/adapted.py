"""Weights to begin with that are another model's: of another architecture, of two models, of another vocabulary.

`config.adapt` and CORRESPONDENCES of `correspondences.py` say which parameter comes from where (docs/adapting.md).
"""
import contextlib
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax.experimental import multihost_utils

from t5like import choices, config as config_lib
from t5like.config import adaptation
from t5like.config.adaptation import ENCODER, INIT_FROM, Origin
from t5like.config.values import base, show
from t5like.config_type import Config
from t5like.errors import ConfigError
from t5like.files import paths
from t5like.huggingface import folder_tokenizers, model_folders
from t5like.huggingface.model_config import OF_LONGER_ROWS, differing
from t5like.huggingface.model_folders import find, put
from t5like.huggingface.model_weights import leaves, open_model
from t5like.huggingface.tables import STACKS
from t5like.model import models, transformer
from t5like.optim.optimizers import path_name
from t5like.parameters import Param
from t5like.storage import stored_config, workdir as workdir_lib
from t5like.storage.checkpoint import Checkpoints
from t5like.vocabulary import loading as vocabulary_lib, matching, requirements
from t5like.vocabulary.kinds import Vocabulary

Array = np.ndarray | jax.Array
Tree = dict[str, Any]  # nested dicts of arrays, or values of config.model
Say = Callable[[str], None]

# Keys of config.model that may differ although parameters are copied, for each stack has its own number of layers, and
# each vocabulary its own number of tokens.
OF_STACKS = ('name', 'num_layers', 'num_encoder_layers', 'encoder_embed', 'encoder_window', 'vocab_size')
OF_THE_HEAD = ('head', 'tie_embeddings', 'logit_softcap')
SHOWN = 3  # parameters that an error or a line names


@dataclasses.dataclass(frozen=True, eq=False)
class Source:
  """A model that weights come from.

  Attributes:
    key: of the config that names it.
    folder: its value.
    model: values of config.model; vocab_size is 0 where it is not known.
    spec: values of config.vocabulary.
    vocabulary: of its tokens; None where it has none.
    arrays: yields (path, array) of its parameters, those of a run on the mesh in force.
  """
  key: str
  folder: str
  model: Tree
  spec: Tree
  vocabulary: Vocabulary | None
  arrays: Callable[[], Iterable[tuple[str, Array]]]


# --- Sources --------------------------------------------------------------------------------------


@contextlib.contextmanager
def open_source(key: str, value: str, special: Tree) -> Iterator[Source]:
  """Yields the Source of a folder.

  Args:
    key: of the config that names it.
    value: a workdir, one of its checkpoints, or a Hugging Face folder.
    special: config.vocabulary.special, for a tokenizer that does not say.

  Raises:
    ConfigError or CheckpointError: for a folder that does not exist, or holds something else.
  """
  workdir_lib.check_beginning(value, key)
  folder = epath.Path(paths.expand(value))
  run = workdir_lib.run_of(folder)
  if run is not None:
    yield _run(key, value, *run)
    return
  with open_model(folder) as opened:
    spec, vocabulary = folder_tokenizers.find_vocabulary(folder, special)

    def arrays() -> Iterable[tuple[str, Array]]:
      return leaves(opened, opened.model['vocab_size'])

    model = base().model.to_dict()  # what no config.json says: how it is computed
    model.update(opened.model)
    yield Source(key, value, model, spec, vocabulary, arrays)


def _run(key: str, value: str, workdir: Any, step: int | None) -> Source:
  """Of a checkpoint of a run, the newest if `step` is None; adapters (LoRA) are merged."""
  workdir_lib.read_config(workdir)
  step = workdir_lib.check_checkpoint(key, str(workdir), step)
  theirs = stored_config.read(workdir, step)
  path = workdir_lib.vocabulary_path(workdir)
  vocabulary = None
  sized = config_lib.resolve(theirs)
  if path.exists():
    vocabulary = vocabulary_lib.load(theirs.vocabulary, path)
    sized = models.with_vocabulary(theirs, vocabulary)
  model = dict(sized.model.to_dict(), lora_rank=0)

  def arrays() -> Iterable[tuple[str, Array]]:
    with Checkpoints(workdir) as checkpoints:
      params = model_folders.params_of_run(sized, checkpoints, step)
    for keys, array in jax.tree_util.tree_leaves_with_path(params):
      yield path_name(keys), array

  return Source(key, value, model, dict(theirs.vocabulary, path=str(path)), vocabulary, arrays)


def sources(config: Config) -> dict[str, str]:
  """{key of the config: folder} of the models that weights come from."""
  folders = {INIT_FROM: config.init_from}
  if config.adapt.encoder not in choices.ADAPTED:
    folders[ENCODER] = config.adapt.encoder
  return folders


# --- Whether they fit -----------------------------------------------------------------------------


def check(config: Config) -> None:
  """ConfigError where config.adapt cannot be done, before data is prepared. Errors as of `open_source` too.

  Vocabularies are compared where that of the run is known without its text.
  """
  resolved = config_lib.resolve(config)
  parameters = _declared(resolved.model.to_dict())
  origins = adaptation.origins(config, parameters)
  known = requirements.known(config)
  for key, value in sources(config).items():
    with open_source(key, value, config.vocabulary.special.to_dict()) as source:
      located = _located(origins, source)
      check_fits(resolved, source, parameters, located)
      if not isinstance(known, requirements.Planned):
        _matched(config, known, source, parameters, located)


def _declared(model: Tree) -> dict[str, Param]:
  """`model.parameters` of values of config.model, without adapters."""
  with models.no_devices():
    return transformer.build(transformer.ModelConfig.of(dict(model, lora_rank=0))).parameters


def _located(origins: Mapping[str, Origin], source: Source) -> dict[str, Origin]:
  """Origins, those in a source where its encoder has them for itself being there."""
  theirs = _declared(source.model)
  located = {}
  for path, origin in origins.items():
    if origin.key == source.key and origin.own in theirs:
      origin = origin._replace(path=origin.own)
    located[path] = origin
  return located


def check_fits(
    config: Config,
    source: Source,
    parameters: Mapping[str, Param],
    origins: Mapping[str, Origin],
) -> None:
  """ConfigError, one paragraph, where a source does not have what is to be copied from it.

  Args:
    config: resolved.
    source: one of its `sources`.
    parameters: of the new model.
    origins: of these.
  """
  _check_architecture(config, source)
  problems = [*_differences(config, source, origins), *_depths(config, source, parameters, origins)]
  if problems:
    raise ConfigError(f'{source.key}={source.folder!r} holds a model that these weights cannot be taken from: '
                      f'{"; ".join(problems)}. Width, heads and kinds of layers stay as they are in an adaptation: set '
                      'config.model to the same.')
  model_folders.check_stated(config, _as_read_by(config, source), f'{source.key}={source.folder!r}')
  theirs = _declared(source.model)
  for path, origin in origins.items():
    if origin.key == source.key:
      _check_one(path, origin, parameters[path], theirs, source)


def _as_read_by(config: Config, source: Source) -> Tree:
  """Values of config.model of a source, without those that only other architectures read."""
  values = dict(source.model)
  if _sees_one_side(values) or _sees_one_side(config.model.to_dict()):
    values['window_after'] = config.model.window_after
  return values


def _check_architecture(config: Config, source: Source) -> None:
  holds = source.model['name']
  key = 'adapt.encoder_source'
  expected = config.adapt.encoder_source
  if source.key == INIT_FROM:
    key = 'adapt.source'
    expected = adaptation.source_of(config)
  if holds != expected:
    raise ConfigError(f'{source.key}={source.folder!r} holds a model with model.name={holds!r}, and {key}='
                      f'{show(config.adapt[key.partition(".")[2]])} says that it is {expected!r}. Use '
                      f'--config.{key}={holds}.')


def _differences(config: Config, source: Source, origins: Mapping[str, Origin]) -> Iterator[str]:
  """Yields keys of config.model that differ and change what the copied parameters compute."""
  ours = config.model.to_dict()
  may_differ = {*OF_STACKS, *OF_LONGER_ROWS}
  takes_head = source.key == INIT_FROM and config.adapt.head == choices.COPIED
  if not takes_head:
    may_differ |= {*OF_THE_HEAD}
  if _sees_one_side(ours) or _sees_one_side(source.model):
    may_differ.add('window_after')
  for key in differing(source.model, ours):
    if key in may_differ:
      continue
    text = f'model.{key} is {show(source.model[key])} there, {show(ours[key])} here'
    if key in OF_THE_HEAD:
      text += ' (or add --config.adapt.head=fresh)'
    yield text


def _sees_one_side(model: Tree) -> bool:
  return choices.ARCHITECTURES[model['name']].decoder_only


def _depths(
    config: Config,
    source: Source,
    parameters: Mapping[str, Param],
    origins: Mapping[str, Origin],
) -> Iterator[str]:
  """Yields stacks whose number of layers is not that of the stack that they are copied from."""
  compared = set()
  for path, origin in origins.items():
    param = parameters[path]
    pair = (param.stack, origin.path.partition('/')[0])
    if origin.key != source.key or not param.is_stacked or pair in compared:
      continue
    compared.add(pair)
    ours = STACKS[pair[0]]
    theirs = STACKS[pair[1]]
    if config.model[ours] != source.model[theirs]:
      yield f'model.{theirs} is {source.model[theirs]} there, model.{ours} {config.model[ours]} here'


def _check_one(path: str, origin: Origin, param: Param, theirs: Mapping[str, Param], source: Source) -> None:
  """ConfigError where the parameter of an origin does not exist or has another shape, its number of tokens aside."""
  advice = 'Make config.model the same there and here.'
  if origin.allows:
    advice = f'Use --config.{origin.allows}=fresh, or make config.model the same there and here.'
  if origin.path not in theirs:
    raise ConfigError(f'{path} would begin with {origin.path} of {source.key}={source.folder!r}, which that model '
                      f'does not have. {advice}')
  other = theirs[origin.path]
  if _without_tokens(param) != _without_tokens(other):
    raise ConfigError(f'{path} has the dimensions {param.dims} = {param.shape}, and {origin.path} of {source.key}='
                      f'{source.folder!r}, which it would begin with, {other.dims} = {other.shape}. {advice}')


def _without_tokens(param: Param) -> list[tuple[str, int]]:
  return [(letter, size) for letter, size in zip(param.dims, param.shape) if letter != 'V']


# --- Tokens ---------------------------------------------------------------------------------------


def _same_tokens(config: Config, ours: Vocabulary, source: Source) -> matching.Match:
  model_folders.check_same_vocabulary(config, ours, source.spec, source.vocabulary,
                                      f'{source.key}={source.folder!r}')
  rows = max(ours.size, config.model.vocab_size)  # those of no token too
  return matching.Match(np.arange(rows, dtype=np.int32), len(ours.special_ids))


def _tokens_of_both(config: Config, ours: Vocabulary, source: Source) -> matching.Match:
  theirs = source.vocabulary
  if theirs is None:
    raise ConfigError(f"adapt.tokens='matched': {source.key}={source.folder!r} has no tokenizer, so that it is not "
                      "known which tokens its rows are of. Put the model's tokenizer there.")
  matched = matching.match(ours, theirs)
  if not matched.count:
    raise ConfigError(f"adapt.tokens='matched': no token of the vocabulary of this run is one of {source.key}="
                      f'{source.folder!r}. Is it the right folder?')
  return matched


MATCHES = choices.implement('adapt.tokens', choices.ADAPT_TOKENS, dict(
    same=_same_tokens,
    matched=_tokens_of_both,
))


def _matched(
    config: Config,
    ours: Vocabulary,
    source: Source,
    parameters: Mapping[str, Param],
    origins: Mapping[str, Origin],
) -> matching.Match | None:
  """Which tokens of a source those of the run are; None where nothing of a row per token comes from it."""
  for path, param in parameters.items():
    if 'V' in param.dims and origins[path].key == source.key:
      return MATCHES[config.adapt.tokens](config, ours, source)
  return None


# --- Parameters -----------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, eq=False)
class Target:
  """The model that is made.

  Attributes:
    config: every size known.
    abstract: nested dict of jax.ShapeDtypeStruct of its parameters.
    parameters: what each is, without adapters.
    origins: where each comes from.
    fresh: those that are fresh, and those of which rows may be, as the model initialises them.
  """
  config: Config
  abstract: Tree
  parameters: dict[str, Param]
  origins: dict[str, Origin]
  fresh: dict[str, jax.Array]


def initial(config: Config, abstract: Tree, vocabulary: Vocabulary, say: Say) -> Tree:
  """Parameters from `config.init_from`, placed as `abstract` (shapes and shardings) says.

  Args:
    config: every size known.
    abstract: nested dict of jax.ShapeDtypeStruct.
    vocabulary: the run's own.
    say: called with lines for people.

  Raises:
    ConfigError: where models do not fit, or vocabularies differ that should not.
  """
  if not adaptation.is_on(config.adapt):
    say(f'Weights to begin with: {config.init_from}')
    return model_folders.initial(config, abstract, vocabulary)
  parameters = _declared(config.model.to_dict())
  origins = adaptation.origins(config, parameters)
  fresh = model_folders.initialised(config, abstract, _partly_fresh(parameters, origins))
  target = Target(config, abstract, parameters, origins, fresh)
  params: Tree = {}
  for path, origin in origins.items():
    if origin.is_fresh:
      put(params, path, fresh[path])
  for key, value in sources(config).items():
    with open_source(key, value, config.vocabulary.special.to_dict()) as source:
      located = _located(origins, source)
      _take(dataclasses.replace(target, origins=located), source, vocabulary, params, say)
  say(_sizes('Fresh', parameters, [path for path in origins if origins[path].is_fresh]))
  return model_folders.with_new(config, abstract, params)


def _partly_fresh(parameters: Mapping[str, Param], origins: Mapping[str, Origin]) -> list[str]:
  """Parameters that are fresh, or may be in rows of tokens."""
  return [path for path, param in parameters.items() if origins[path].is_fresh or 'V' in param.dims]


def _take(target: Target, source: Source, vocabulary: Vocabulary, params: Tree, say: Say) -> None:
  """Puts all that comes from a source into params."""
  check_fits(target.config, source, target.parameters, target.origins)
  matched = _matched(target.config, vocabulary, source, target.parameters, target.origins)
  takers: dict[str, list[str]] = {}
  for path, origin in target.origins.items():
    if origin.key == source.key:
      takers.setdefault(origin.path, []).append(path)
  unused = []
  for their_path, array in source.arrays():
    if their_path not in takers:
      unused.append(their_path)
    for path in takers.get(their_path, ()):
      put(params, path, _placed(target, path, array, matched))
  taken = []
  for paths_of_one in takers.values():
    taken += paths_of_one
  say(f'Weights to begin with: {source.folder}, a model with model.name={source.model["name"]!r}.')
  say(_sizes('Copied', target.parameters, taken))
  if unused:
    say(f'Not used of it: {_some(unused)}.')
  is_by_token = target.config.adapt.tokens != choices.SAME
  if matched is not None and source.vocabulary is not None and is_by_token:
    say(matching.describe(vocabulary, source.vocabulary, matched))


def _placed(target: Target, path: str, array: Array, matched: matching.Match | None) -> jax.Array:
  """A copy of an array of a source in the layout of a parameter, its rows being those of the tokens of this run."""
  like = find(target.abstract, path)
  dims = target.parameters[path].dims
  if 'V' in dims:
    assert matched is not None, 'parameters with a row per token are matched'
    rows = _of_tokens(np.asarray(_on_host(array)), np.asarray(_on_host(target.fresh[path])), dims.index('V'), matched)
    return model_folders.place(rows, like)
  if isinstance(array, np.ndarray):
    return model_folders.place(array, like)
  # A copy, since several parameters may come from one array, and the step takes the memory of each.
  return jax.device_put(jnp.copy(array), like.sharding)


def _on_host(array: Array) -> Array:
  """An array of the mesh in full on each host."""
  if jax.process_count() == 1 or isinstance(array, np.ndarray):
    return array
  return multihost_utils.process_allgather(array, tiled=True)


def _of_tokens(theirs: np.ndarray, fresh: np.ndarray, axis: int, matched: matching.Match) -> np.ndarray:
  """`fresh` with the rows of the tokens that theirs has."""
  rows = np.moveaxis(fresh.copy(), axis, 0)
  their_rows = np.moveaxis(theirs, axis, 0)
  ids = matched.ids[:len(rows)]
  shared = np.flatnonzero((ids != matching.NONE) & (ids < len(their_rows)))
  rows[shared] = their_rows[ids[shared]]
  return np.ascontiguousarray(np.moveaxis(rows, 0, axis))


# --- What was done --------------------------------------------------------------------------------


def _sizes(what: str, parameters: Mapping[str, Param], chosen: list[str]) -> str:
  """'Fresh: 12 arrays of 1,234 parameters: decoder/blocks/cross, ..'"""
  total = sum(parameters[path].size for path in chosen)
  if not chosen:
    return f'{what}: nothing.'
  return f'{what}: {len(chosen)} arrays of {total:,} parameters: {_some(_folders(chosen))}.'


def _folders(chosen: Iterable[str]) -> list[str]:
  """Their folders, each once, three parts deep."""
  names: dict[str, None] = {}  # each once, in order
  for path in chosen:
    parts = path.split('/')
    names['/'.join(parts[:3])] = None
  return list(names)


def _some(names: list[str]) -> str:
  text = ', '.join(names[:2 * SHOWN])
  if len(names) > 2 * SHOWN:
    text += f' and {len(names) - 2 * SHOWN} more'
  return text
