"""The work of preparing a dataset, in parts that any process on any machine can do by itself.

A part is a range of a source's items and the shard files it makes. A job, a dict for JSON, says all
there is to know about one; `make` does it and leaves part-00000.json beside the files as a mark.
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

import numpy as np

from t5like import config as config_lib, plain_json
from t5like.data import duplicates, mirror, shards, sources, vocabulary
from t5like.errors import DataError
from t5like.writing import write_file

VOCABULARY = 'vocabulary'  # file name
SHARD_BYTES = 256 << 20  # of text, if data.shards does not say how many shards
WORTH_A_PROCESS = 32 << 20  # bytes of text


def open_sources(config):
  """Returns {'train': Source}, with 'validation' if that has a source of its own."""
  texts = dict(train=sources.open_source(config))
  validation = sources.open_validation(config)
  if validation is not None:
    texts = dict(train=texts['train'].without(validation), validation=validation)
  return texts


def inputs(config, texts):
  """Returns a dict for JSON that differs when a source or an imported vocabulary has changed."""
  found = {name: source.fingerprint for name, source in texts.items()}
  v = config.vocabulary
  if v.path and mirror.is_file(v.path):
    found['vocabulary'] = dict(sha256=shards.sha256(mirror.read_bytes(v.path)))
    special = _special(v)
    if special:
      found['vocabulary']['special'] = special
  return found


def _special(spec):
  """Special tokens that the files beside an imported tokenizer name; {} where they do not matter."""
  try:
    imported = vocabulary.imported(spec, spec.path)
  except DataError:  # another file than the one that made the tokens, as its sum shows
    return {}
  return imported.special() if imported.is_imported else {}


def as_known_to(old, new):
  """`new` inputs without what an older version, which left the inputs `old`, did not look at."""
  known = old.get('vocabulary')
  if 'vocabulary' not in new or not isinstance(known, dict) or 'special' in known:
    return new
  return dict(new, vocabulary={key: value for key, value in new['vocabulary'].items() if key != 'special'})


def difference(old, new):
  """One line on how two `inputs` differ."""
  for name in sorted(set(old) | set(new)):
    before, after = old.get(name, {}), new.get(name, {})
    if 'files' in before and 'files' in after and before != after:
      before, after = ({path: state for path, *state in side['files']} for side in (before, after))
    keys = [key for key in sorted(set(before) | set(after)) if before.get(key) != after.get(key)]
    if keys:
      key = keys[0]
      change = 'new' if key not in before else 'gone' if key not in after else f'{before[key]} is now {after[key]}'
      return f'{len(keys)} differences, first {key}: {change}'
  return 'in order only'


def parts(config, texts):
  """Returns the parts of the work; `last`: how many records of the last item to take (None: all)."""
  found = []
  for name, source in texts.items():
    items, last = _items(source, config.data.max_documents)
    size = source.num_bytes * items / max(1, source.num_items)
    count = min(config.data.shards or math.ceil(size / SHARD_BYTES) or 1, items)
    for i in range(count):
      files = {split: f'tokens-{split}.array_record-{i:05d}-of-{count:05d}'
               for split in ([name] if len(texts) > 1 else ['train', 'validation'])}
      found.append(dict(source=name, start=i * items // count, stop=(i + 1) * items // count,
                        last=last if i == count - 1 else None, files=files))
  return found


def _items(source, limit):
  """(how many items hold the first `limit` records, how many of them the last one); all if it is 0."""
  seen = 0
  for item in range(source.num_items if limit else 0):
    count = sum(1 for _ in itertools.islice(source.documents(item, item + 1), limit - seen))
    seen += count
    if seen >= limit:
      return item + 1, count
  return source.num_items, None


# --- One part -----------------------------------------------------------------------------------


def jobs(config, target, remote, plan):
  """A job for each part of a plan. `remote`: URL to copy files to, or ''."""
  common = dict(config=config_lib.to_json(config), target=str(target), remote=remote, inputs=plan['inputs'])
  return [dict(common, number=i, part=part) for i, part in enumerate(plan['parts'])]


def digest(job):
  """Writes the digests of the examples of a part, for `duplicates.find`."""
  config, source = _open(job)
  found = [duplicates.digest(texts) for texts, _ in shards.examples(config, source, job['part'], shards.new_count())]
  _leave(job, f'digests-{job["number"]:05d}.bin', b''.join(found))


def make(job, bar=False):
  """Makes the shards of a part, then its mark."""
  config, source = _open(job)
  target = pathlib.Path(job['target'])
  if job['remote']:
    mirror.pull(job['remote'], target, {VOCABULARY: None})
  vocab = _vocabulary(config.vocabulary.name, config.vocabulary.sentinels, target / VOCABULARY,
                      (target / VOCABULARY).stat().st_mtime_ns)
  repeats = None
  if config.data.deduplicate:
    name = f'repeats-{job["number"]:05d}.bin'
    if job['remote']:
      mirror.pull(job['remote'], target, {name: None})
    repeats = np.fromfile(target / name, bool)
  mark = shards.write_part(config, target, source, job['part'], vocab, repeats, bar)
  if job['remote']:
    mirror.push(target, job['remote'], [file['file'] for shard in mark['shards'].values() for file in files_of(shard)])
  _leave(job, mark_name(job['number']), plain_json.dumps(mark, indent=1).encode() + b'\n')


def mark_name(number):
  return f'part-{number:05d}.json'


def files_of(shard):
  """The marks of the files of one shard: dicts with file, size and sha256."""
  return shard, shard['lengths'], shard['names']


def _leave(job, name, content):
  write_file(pathlib.Path(job['target']) / name, content)
  if job['remote']:
    mirror.push(job['target'], job['remote'], [name])


def _open(job):
  pathlib.Path(job['target']).mkdir(parents=True, exist_ok=True)
  config, texts = _opened(job['config'], plain_json.dumps(job['inputs'], sort_keys=True))
  return config, texts[job['part']['source']]


@functools.lru_cache(2)
def _opened(text, expected):
  config = config_lib.from_json(text)
  texts = open_sources(config)
  before = json.loads(expected)
  if as_known_to(before, plain_json.as_read(inputs(config, texts))) != before:
    raise DataError(f'data.source={config.data.source!r} has changed while it is being prepared, or is another one on '
                    'this machine: run prepare again when it is as it should be.')
  return config, texts


@functools.lru_cache(2)
def _vocabulary(name, sentinels, path, stamp):  # `stamp`: a file that was made again is another one
  import types
  return vocabulary.load(types.SimpleNamespace(name=name, sentinels=sentinels), path)


# --- All parts, on one machine ------------------------------------------------------------------


def run_here(function, todo, workers=0):
  """Does jobs, in processes if there is enough to do; yields the number of each job when it is done.

  What one process finished stays when another dies.
  """
  if workers == 1 or len(todo) < 2:
    for job in todo:
      function(job)
      yield job['number']
    return
  context = multiprocessing.get_context('spawn')  # a fork of a process with threads may hang
  with concurrent.futures.ProcessPoolExecutor(min(workers, len(todo)), context, die_with_parent) as pool:
    futures = {pool.submit(function, job): job['number'] for job in todo}
    try:
      for future in concurrent.futures.as_completed(futures):
        future.result()
        yield futures[future]
    except concurrent.futures.process.BrokenProcessPool as error:
      raise DataError('A process that prepares data was killed (out of memory? data.prepare_workers sets how many '
                      'there are). Run prepare again: what is done is kept.') from error
    finally:
      pool.shutdown(cancel_futures=True)


def workers(config, texts):
  """How many processes to use."""
  size = sum(source.num_bytes for source in texts.values())
  return max(1, min(config.data.prepare_workers or os.cpu_count(), round(size / WORTH_A_PROCESS)))


def die_with_parent(*_):
  """Makes the kernel end this process with its parent; else a worker whose parent was killed waits for ever.

  Linux only; elsewhere it stays.
  """
  try:
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
  except (OSError, AttributeError):
    pass
