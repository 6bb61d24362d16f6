"""The work of preparing a dataset, in parts that any process on any machine can do independently.

A part is a range of a source's items and the shard files it makes. A job, a dict for JSON, holds all
that is needed to do one; `make` does it and leaves part-00000.json beside the files as a mark.
"""
import concurrent.futures
import ctypes
import functools
import itertools
import json
import math
import multiprocessing
import os
import pathlib
import signal
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from t5like import config as config_lib
from t5like.config_type import Config
from t5like.errors import DataError
from t5like.files import mirror, plain_json
from t5like.files.writing import write_file
from t5like.prepared import duplicates, examples, shards
from t5like.sources import registry
from t5like.sources.registry import Source
from t5like.vocabulary import loading
from t5like.vocabulary.kinds import Vocabulary

Sources = dict[str, Source]  # 'train', and 'validation' if that has a separate source
Inputs = dict[str, Any]  # see `inputs`
Job = dict[str, Any]  # see `jobs`

VOCABULARY = 'vocabulary'  # file name
SHARD_BYTES = 256 << 20  # of text, if data.shards does not say how many shards
WORTH_A_PROCESS = 32 << 20  # bytes of text
PR_SET_PDEATHSIG = 1  # of Linux


def open_sources(config: Config) -> Sources:
  """Returns {'train': Source}, with 'validation' if that has a source of its own. Errors as `registry.open_source`."""
  train = registry.open_source(config)
  validation = registry.open_validation(config)
  if validation is None:
    return dict(train=train)
  return dict(train=train.without(validation), validation=validation)


def inputs(config: Config, texts: Sources) -> Inputs:
  """Returns a dict for JSON that differs when a source or an imported vocabulary has changed."""
  values = {name: source.fingerprint for name, source in texts.items()}
  spec = config.vocabulary
  if spec.path and mirror.is_file(spec.path):
    content = mirror.read_bytes(spec.path)
    values['vocabulary'] = dict(sha256=shards.sha256(content))
    special = _special(spec)
    if special:
      values['vocabulary']['special'] = special
  return values


def _special(spec: Any) -> dict[str, Any]:
  """Special tokens that the files beside an imported tokenizer name; {} where they do not matter."""
  try:
    imported = loading.imported(spec, spec.path)
  except DataError:  # another file than the one that made the tokens, as its sum shows
    return {}
  if not imported.is_imported:
    return {}
  return imported.special()


def as_known_to(old: Inputs, new: Inputs) -> Inputs:
  """`new` inputs without the special tokens, if an older version, which left the inputs `old`, did not record them."""
  if 'vocabulary' not in new:
    return new
  known = old.get('vocabulary')
  if not isinstance(known, dict) or 'special' in known:
    return new
  own = dict(new['vocabulary'])
  own.pop('special', None)
  return dict(new, vocabulary=own)


def difference(old: Inputs, new: Inputs) -> str:
  """One line on how two `inputs` differ."""
  for name in sorted({*old, *new}):
    before = old.get(name, {})
    after = new.get(name, {})
    if before != after and 'files' in before and 'files' in after:
      before = _by_path(before['files'])
      after = _by_path(after['files'])
    keys = _differing(before, after)
    if keys:
      first = keys[0]
      change = _change(first, before, after)
      return f'{len(keys)} differences, first {first}: {change}'
  return 'in order only'


def _differing(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
  """Keys whose values differ, sorted."""
  keys = sorted({*before, *after})
  return [key for key in keys if before.get(key) != after.get(key)]


def _by_path(listed: Sequence[Sequence[Any]]) -> dict[str, list[Any]]:
  """{path: its size and stamp} of [[path, size, stamp]]."""
  return {path: state for path, *state in listed}


def _change(
    key: str,
    before: Mapping[str, Any],
    after: Mapping[str, Any],
) -> str:
  if key not in before:
    return 'new'
  if key not in after:
    return 'gone'
  return f'{before[key]} is now {after[key]}'


def parts(config: Config, texts: Sources) -> list[dict[str, Any]]:
  """Returns the parts of the work: dicts for JSON.

  `source` is 'train' or 'validation', `start` and `stop` are items of it, `last` how many records of the last item
  to take (None: all), `files` {split: name of a shard}.
  """
  work = []
  for name, source in texts.items():
    splits = [name]
    if len(texts) == 1:
      splits = ['train', 'validation']
    items, last = _items(source, config.data.max_documents)
    count = _count(config, source, items)
    for i in range(count):
      part = dict(
          source=name,
          start=i * items // count,
          stop=(i + 1) * items // count,
          last=None,
          files=_files(splits, i, count),
      )
      if i == count - 1:
        part['last'] = last
      work.append(part)
  return work


def _count(
    config: Config,
    source: Source,
    items: int,
) -> int:
  """How many parts the first `items` items of a source are cut into, at most one an item."""
  size = source.num_bytes * items / max(1, source.num_items)
  by_size = math.ceil(size / SHARD_BYTES) or 1
  return min(config.data.shards or by_size, items)


def _files(
    splits: Sequence[str],
    number: int,
    count: int,
) -> dict[str, str]:
  return {split: f'tokens-{split}.array_record-{number:05d}-of-{count:05d}' for split in splits}


def _items(source: Source, limit: int) -> tuple[int, int | None]:
  """(how many items hold the first `limit` records, how many of them are in the last one); all if `limit` is 0."""
  if not limit:
    return source.num_items, None
  seen = 0
  for item in range(source.num_items):
    records = source.documents(item, item + 1)
    wanted = itertools.islice(records, limit - seen)
    count = sum(1 for _ in wanted)
    seen += count
    if seen >= limit:
      return item + 1, count
  return source.num_items, None


# --- One part -----------------------------------------------------------------------------------


def jobs(
    config: Config,
    target: pathlib.Path,
    remote: str,
    plan: Mapping[str, Any],
) -> list[Job]:
  """A job for each part of a plan.

  Args:
    config: of the dataset.
    target: folder on each machine.
    remote: URL to copy files to, or ''.
    plan: with `inputs` and `parts`.
  """
  common = dict(
      config=config_lib.to_json(config),
      target=str(target),
      remote=remote,
      inputs=plan['inputs'],
  )
  work = []
  for number, part in enumerate(plan['parts']):
    job = dict(common, number=number, part=part)
    work.append(job)
  return work


def digest(job: Job) -> None:
  """Writes the digests of the examples of a part, for `duplicates.find`."""
  config, source = _open(job)
  count = examples.new_count()
  digests = []
  for texts, _ in examples.examples(config, source, job['part'], count):
    digests.append(duplicates.digest(texts))
  name = digests_name(job['number'])
  _leave(job, name, b''.join(digests))


def make(job: Job, bar: bool = False) -> None:
  """Makes the shards of a part, then its mark; bar: whether to show a progress bar."""
  config, source = _open(job)
  target = pathlib.Path(job['target'])
  _fetch(job, VOCABULARY)
  path = target / VOCABULARY
  spec = config.vocabulary
  stamp = path.stat().st_mtime_ns
  vocab = _vocabulary(spec.name, spec.sentinels, path, stamp)
  repeats = None
  if config.data.deduplicate:
    name = repeats_name(job['number'])
    _fetch(job, name)
    repeats = np.fromfile(target / name, bool)
  mark = shards.write_part(config, target, source, job['part'], vocab, repeats, bar)
  if job['remote']:
    names = [file['file'] for file in files_of(mark)]
    mirror.push(target, job['remote'], names)
  content = plain_json.dumps(mark, indent=1) + '\n'
  name = mark_name(job['number'])
  _leave(job, name, content.encode())


def _fetch(job: Job, name: str) -> None:
  """Copies a file to this machine if the dataset is remote."""
  if job['remote']:
    mirror.pull(job['remote'], job['target'], {name: None})


def mark_name(number: int) -> str:
  return f'part-{number:05d}.json'


def digests_name(number: int) -> str:
  return f'digests-{number:05d}.bin'


def repeats_name(number: int) -> str:
  return f'repeats-{number:05d}.bin'


def files_of(mark: Mapping[str, Any]) -> list[dict[str, Any]]:
  """The files that the mark of a part lists: dicts with file, size and sha256."""
  files = []
  for shard in mark['shards'].values():
    files += [shard, shard['lengths'], shard['names']]
  return files


def _leave(job: Job, name: str, content: bytes) -> None:
  path = pathlib.Path(job['target']) / name
  write_file(path, content)
  if job['remote']:
    mirror.push(job['target'], job['remote'], [name])


def _open(job: Job) -> tuple[Config, Source]:
  target = pathlib.Path(job['target'])
  target.mkdir(parents=True, exist_ok=True)
  expected = plain_json.dumps(job['inputs'], sort_keys=True)
  config, texts = _opened(job['config'], expected)
  source = job['part']['source']
  return config, texts[source]


@functools.lru_cache(2)
def _opened(text: str, expected: str) -> tuple[Config, Sources]:
  """(config, its sources); text: the config as JSON; expected: the inputs as JSON. DataError where they changed."""
  config: Config = config_lib.from_json(text)
  texts = open_sources(config)
  before = json.loads(expected)
  now = plain_json.as_read(inputs(config, texts))
  if as_known_to(before, now) != before:
    raise DataError(
        f'data.source={config.data.source!r} has changed while it is being prepared, or is another one on this '
        'machine: run prepare again when it is as it should be.')
  return config, texts


@functools.lru_cache(2)
def _vocabulary(name: str, sentinels: int, path: pathlib.Path, stamp: int) -> Vocabulary:
  """The vocabulary in a file; `stamp`: a file that was made again is another one."""
  spec = types.SimpleNamespace(name=name, sentinels=sentinels)
  return loading.load(spec, path)


# --- All parts, on one machine ------------------------------------------------------------------


def run_here(
    function: Callable[[Job], Any],
    todo: Sequence[Job],
    workers: int = 0,
) -> Iterator[int]:
  """Does jobs; yields the number of each job when it is done. The results of one process stay when another dies.

  Args:
    function: `make` or `digest`.
    todo: the jobs.
    workers: how many processes do them; 1: this one.

  Raises:
    DataError: a process was killed, or as of `function`.
  """
  if workers == 1 or len(todo) < 2:
    for job in todo:
      function(job)
      yield job['number']
    return
  context = multiprocessing.get_context('spawn')  # a fork of a process with threads may hang
  processes = min(workers, len(todo))
  with concurrent.futures.ProcessPoolExecutor(processes, context, die_with_parent) as pool:
    numbers = {}
    for job in todo:
      future = pool.submit(function, job)
      numbers[future] = job['number']
    try:
      for future in concurrent.futures.as_completed(numbers):
        future.result()
        yield numbers[future]
    except concurrent.futures.process.BrokenProcessPool as error:
      raise DataError(
          'A process that prepares data was killed (out of memory? data.prepare_workers sets how many there are). Run '
          'prepare again: finished parts are kept.') from error
    finally:
      pool.shutdown(cancel_futures=True)


def workers(config: Config, texts: Sources) -> int:
  """How many processes to use."""
  size = sum(source.num_bytes for source in texts.values())
  worthwhile = round(size / WORTH_A_PROCESS)
  most = config.data.prepare_workers or os.cpu_count() or 1
  return max(1, min(most, worthwhile))


def die_with_parent(*_: Any) -> None:
  """Makes the kernel end this process with its parent; else a worker whose parent was killed waits forever.

  Linux only; elsewhere nothing is changed.
  """
  try:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
  except (OSError, AttributeError):
    pass
