"""Text to tokens on disk, once: what `python main.py prepare` does.

The folder of a prepared dataset:

  manifest.json                              what it holds; written last, so it marks completeness
  vocabulary                                 what `vocabulary.load` reads
  tokens-train.array_record-00000-of-00002   tokens (see store.py), in files that TFDS reads
  lengths-train-00000-of-00002.bin           of each example in that file
  dataset_info.json features.json            TFDS's own description
  plan.json part-00000.json ...              while it is being made: what to do, what is done

Every file is written under another name and then renamed, and what is done is never done again:
a `prepare` that was killed goes on where it was, and ends with the same bytes.
"""

import contextlib
import fcntl
import functools
import itertools
import json
import math
import os
import pathlib
import platform
import time

from t5like.data import shards, sources, store, vocabulary
from t5like.data.datasets import VOCABULARY, datasets, folder, sha256
from t5like.data.vocabulary import write_file
from t5like.errors import DataError

SHARD_BYTES = 256 << 20  # of text, if data.shards does not say how many shards

print_progress = functools.partial(print, flush=True)


def prepare(config, say=print_progress):
  """Makes the prepared dataset of `config` unless it is there; returns its folder (a Path).

  For a mixture (`lengths.components`) a list of folders. `say` is called with a line of text per stage.
  ConfigError for keys that do not fit the text, DataError for text that cannot be read or has changed since.
  """
  named = datasets(config)
  found = list({folder(c): c for c in named.values()}.values())
  if len(found) == 1:
    return _prepare(found[0], say)
  if found[0].vocabulary.path != config.vocabulary.path:
    _share_vocabulary(config, found, say)
  for name, c in named.items():
    say(f'{name}: {c.data.source} in {folder(c)}')
  return [_prepare(c, say) for c in found]


def _share_vocabulary(config, found, say):
  """Makes the vocabulary of a mixture from equal shares of the text of its datasets."""
  path = pathlib.Path(found[0].vocabulary.path)
  path.parent.mkdir(parents=True, exist_ok=True)
  with _alone(path.parent, say):
    if path.exists() and any((folder(c) / store.MANIFEST).exists() for c in found):
      return  # what is prepared keeps its vocabulary, also when its source is gone
    opened = [_open_sources(c) for c in found]
    inputs = [{name: source.fingerprint for name, source in of.items()} for of in opened]
    if path.exists() and _read_json(path.with_name('inputs.json')) == inputs:
      return
    path.unlink(missing_ok=True)
    _write_json(path.with_name('inputs.json'), inputs)
    start, share = time.monotonic(), config.vocabulary.train_characters // len(found)

    def texts():
      for c, of in zip(found, opened):
        own = _vocabulary_texts(c, of, dict(parts=_parts(c, of)))
        yield from own if c.vocabulary.name == 'characters' else vocabulary.sample(own, share)
    vocab = vocabulary.train(config.vocabulary, texts(), path)
    say(f'vocabulary of {len(found)} datasets: {vocab.name}, {vocab.size} ids, {time.monotonic() - start:.1f} s')


def _prepare(config, say):
  target = folder(config)
  manifest = _read_json(target / store.MANIFEST)
  try:
    texts = _open_sources(config)
  except DataError:
    if manifest and not store.broken_files(target, manifest):
      say(f'{target}: prepared; its source is not here any more, which does no harm.')
      return target
    raise
  target.mkdir(parents=True, exist_ok=True)
  with _alone(target, say):
    manifest = _read_json(target / store.MANIFEST)
    inputs = _inputs(config, texts)
    if manifest and manifest['inputs'] != inputs:
      change = _difference(manifest['inputs'], inputs)
      raise DataError(f'The source of {target} has changed since it was prepared ({change}): delete that folder, '
                      'or choose another data.directory.')
    broken = store.broken_files(target, manifest) if manifest else []
    if manifest and not broken:
      say(f'{target}: prepared already.')
      return target
    plan = dict(format=store.FORMAT, inputs=inputs, parts=_parts(config, texts))
    if broken:
      say(f'{target}: {broken[0]}; making again what is not whole.')
      _reopen(target, manifest, plan)
    _make(config, target, texts, plan, say)
  return target


def _open_sources(config):
  """Returns {'train': Source}, with 'validation' if that has a source of its own."""
  texts = dict(train=sources.open_source(config))
  if config.data.validation not in ('hash', 'tail'):
    texts['validation'] = sources.open_source(config, split=config.data.validation)
  return texts


@contextlib.contextmanager
def _alone(target, say):
  """Waits for other processes that prepare the same folder. The lock dies with its process."""
  lock = os.open(target, os.O_RDONLY)
  try:
    try:
      fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      say(f'{target}: another process is preparing it, waiting.')
      fcntl.flock(lock, fcntl.LOCK_EX)
    except OSError:  # some network file systems have no locks
      pass
    yield
  finally:
    os.close(lock)


# --- What to do, and what is done ---------------------------------------------------------------


def _inputs(config, texts):
  """Returns a dict for JSON that differs when a source or an imported vocabulary has changed."""
  inputs = {name: source.fingerprint for name, source in texts.items()}
  path = pathlib.Path(config.vocabulary.path)
  if config.vocabulary.path and path.is_file():
    inputs['vocabulary'] = dict(sha256=shards.file_sha256(path))
  return inputs


def _parts(config, texts):
  """Returns the parts of the work, each a range of items and the shard files it makes."""
  parts = []
  for name, source in texts.items():
    items = _items(source, config.data.max_documents)
    size = source.num_bytes * items / max(1, source.num_items)
    count = min(config.data.shards or math.ceil(size / SHARD_BYTES) or 1, items)
    for i in range(count):
      files = {split: f'tokens-{split}.array_record-{i:05d}-of-{count:05d}'
               for split in ([name] if len(texts) > 1 else ['train', 'validation'])}
      parts.append(dict(source=name, start=i * items // count, stop=(i + 1) * items // count, files=files))
  return parts


def _items(source, limit):
  """Returns how many items hold the first `limit` documents; all if it is 0."""
  seen = 0
  for item in range(source.num_items if limit else 0):
    seen += sum(1 for _ in itertools.islice(source.documents(item, item + 1), limit - seen))
    if seen >= limit:
      return item + 1
  return source.num_items


def _difference(old, new):
  """One line on how the inputs differ."""
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


def _reopen(target, manifest, plan):
  """Turns a finished folder back into one that is being made."""
  for i, mark in enumerate(manifest['parts']):
    _write_json(target / f'part-{i:05d}.json', mark)
  _write_json(target / 'plan.json', plan)
  (target / store.MANIFEST).unlink()


def _make(config, target, texts, plan, say):
  start = time.monotonic()
  if _read_json(target / 'plan.json') != plan:  # nothing yet, or the source changed meanwhile
    for file in target.glob('part-*.json'):
      file.unlink()
    (target / VOCABULARY).unlink(missing_ok=True)
    _write_json(target / 'plan.json', plan)
  vocab = _vocabulary(config, target, texts, plan, say)
  left = {name: config.data.max_documents or None for name in texts}
  marks = []
  for i, part in enumerate(plan['parts']):
    done, name = target / f'part-{i:05d}.json', part['source']
    mark = _read_json(done)
    if not mark or not _valid(target, part, mark):
      mark = shards.write_part(config, target, texts[name], part, vocab, left[name], bar=say is print_progress)
      _write_json(done, mark)
      say(f'part {i + 1} of {len(plan["parts"])}: {mark["documents"]} documents')
    if left[name] is not None:
      left[name] -= mark['documents']
    marks.append(mark)
  manifest = _manifest(config, texts, plan, marks, vocab)
  _finish(target, manifest)
  for split, entry in manifest['splits'].items():
    say(f'{split}: {entry["documents"]} documents, {entry["tokens"]} tokens, '
        f'{entry["bytes"] / entry["tokens"]:.2f} bytes per token')
  if 'validation' not in manifest['splits']:
    say('There is no validation text: no document fell to validation. Raise data.validation_fraction, or for few '
        "long documents set data.validation='tail'.")
  if manifest['dropped']:
    say(f'{manifest["dropped"]} empty documents dropped')
  say(f'{target}: prepared in {time.monotonic() - start:.1f} s')


# --- The steps ----------------------------------------------------------------------------------


def _vocabulary(config, target, texts, plan, say):
  """Returns the vocabulary in the folder, made first if it is not there."""
  start = time.monotonic()
  if (target / VOCABULARY).exists():
    return vocabulary.load(config.vocabulary, target / VOCABULARY)
  vocab = vocabulary.train(config.vocabulary, _vocabulary_texts(config, texts, plan), target / VOCABULARY)
  say(f'vocabulary: {vocab.name}, {vocab.size} ids, {time.monotonic() - start:.1f} s')
  return vocab


def _vocabulary_texts(config, texts, plan):
  """Yields the texts to make a vocabulary from.

  What is learnt comes from training text. But an alphabet must hold the characters of all text.
  """
  alphabet, count, used = config.vocabulary.name == 'characters', shards.new_count(), 0
  for name, source in texts.items() if alphabet else [('train', texts['train'])]:
    items = max((part['stop'] for part in plan['parts'] if part['source'] == name), default=0)
    # Of a source far larger than the sample, only some items are read.
    size = source.num_bytes * items // max(1, source.num_items)
    step = max(1, min(size // (4 * config.vocabulary.train_characters), items // 64))
    ranges = [(0, items)] if alphabet or step == 1 else [(i, i + 1) for i in range(0, items, step)]
    limit = config.data.max_documents or None
    chosen = (shards.examples(config, source, start, stop, limit, count) for start, stop in ranges)
    for texts_of_one in itertools.chain.from_iterable(chosen):
      for split, pieces in shards.split_example(texts_of_one, name, config):
        if alphabet or split == 'train':
          used += 1
          yield from pieces
  _check(config, count, used)


def _check(config, count, train):
  if count['documents'] == count['dropped']:
    raise DataError(f'data.source={config.data.source!r} holds no text: {count["documents"]} documents, all empty.')
  if not train:
    raise DataError(f'data.source={config.data.source!r} gives no text to train on: all of it went '
                    "to validation. For few long documents, set data.validation='tail'.")


def _valid(target, part, mark):
  found = {split: shard['file'] for split, shard in mark['shards'].items()}
  files = [file for shard in mark['shards'].values() for file in (shard, shard['lengths'])]
  return found == part['files'] and all(
      (target / file['file']).is_file() and shards.file_sha256(target / file['file']) == file['sha256']
      for file in files)


def _manifest(config, texts, plan, marks, vocab):
  import importlib.metadata
  count = {key: sum(mark[key] for mark in marks) for key in shards.new_count()}
  splits = {}
  for name in ('train', 'validation'):
    files = [mark['shards'][name] for mark in marks if name in mark['shards']]
    if any(file['tokens'] for file in files):
      splits[name] = {key: sum(f[key] for f in files) for key in ('documents', 'tokens', 'bytes')}
      splits[name]['shards'] = files
  _check(config, count, 'train' in splits)
  manifest = dict(
      format=store.FORMAT, source=config.data.source, licence=texts['train'].licence, inputs=plan['inputs'],
      texts=2 if config.data.targets else 1, block=shards.BLOCK, dtype=shards.dtype(vocab), splits=splits,
      dropped=count['dropped'], parts=marks, created=dict(python=platform.python_version()),
      max_id=max(shard['max_id'] for split in splits.values() for shard in split['shards']),
      vocabulary=dict(name=vocab.name, size=vocab.size, num_sentinels=vocab.num_sentinels,
                      fingerprint=vocab.fingerprint, file=VOCABULARY))
  for name in ('numpy', 'sentencepiece', 'array_record', 'tensorflow_datasets'):
    manifest['created'][name] = importlib.metadata.version(name)
  tokens = [[name, shard['tokens'], shard['sha256'], shard['lengths']['sha256']]
            for name, split in splits.items() for shard in split['shards']]
  manifest['fingerprint'] = sha256([store.FORMAT, shards.BLOCK, vocab.fingerprint, tokens])
  return manifest


def _finish(target, manifest):
  """Makes the folder complete: TFDS's description, then the manifest, and nothing else."""
  files = [shard for split in manifest['splits'].values() for shard in split['shards']]
  kept = {file['file'] for shard in files for file in (shard, shard['lengths'])}
  for file in [*target.glob('tokens-*'), *target.glob('lengths-*')]:
    if file.name not in kept:  # shards of a split without tokens, which TFDS would trip over
      file.unlink()
  shards.write_tfds_metadata(target, manifest)
  _write_json(target / store.MANIFEST, manifest)
  for file in [*target.glob('part-*.json'), *target.glob('*.tmp'), target / 'plan.json']:
    file.unlink()


def _read_json(path):
  try:
    return json.loads(path.read_bytes())
  except FileNotFoundError:
    return None


def _write_json(path, value):
  write_file(path, json.dumps(value, indent=1).encode() + b'\n')
