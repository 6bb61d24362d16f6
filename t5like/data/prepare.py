"""Text to tokens on disk, once: what `python main.py prepare` does.

The folder of a prepared dataset:

  manifest.json                              what it holds; written last, so it marks completeness
  vocabulary                                 what `vocabulary.load` reads
  tokens-train.array_record-00000-of-00002   tokens (see store.py), in files that TFDS reads
  lengths-train-00000-of-00002.bin           of each example in that file
  names-train-00000-of-00002.zst             where each example came from
  dataset_info.json features.json            TFDS's own description
  plans/                                     which examples share rows (see plans.py), made by readers
  plan.json part-00000.json ...              while it is being made: what to do, what is done

Every file is written under another name and then renamed, and what is done is never done again:
a `prepare` that was killed goes on where it was, and ends with the same bytes, as it does with any
number of processes or machines (see parts.py).
"""

import functools
import importlib.metadata
import pathlib
import platform
import time

from t5like import paths, plain_json
from t5like.data import duplicates, held_out, manifests, mirror, parts, shards, vocabulary
from t5like.data.datasets import datasets, fetch, folder, remote, sha256
from t5like.data.parts import VOCABULARY
from t5like.data.vocabulary_check import check_vocabulary
from t5like.errors import DataError
from t5like.writing import write_file

MARKS = ('part-*.json', 'digests-*.bin', 'repeats-*.bin')  # there while the work goes on

print_progress = functools.partial(print, flush=True)


def prepare(config, say=print_progress, run=None):
  """Makes the prepared dataset of `config` unless it is there; returns its folder (a Path).

  For a mixture (`lengths.components`) a list of folders. `say` is called with a line of text per stage.
  `run(function, jobs)`, an iterator of the numbers of jobs that are done, may do the work elsewhere (see
  `parts.run_here`). ConfigError for keys that do not fit the text, DataError for text that cannot be
  read or has changed since, or no room for what is made of it.
  """
  named = datasets(config)
  if not all((folder(c) / manifests.MANIFEST).exists() for c in named.values()):
    check_vocabulary(config)
  found = list({folder(c): c for c in named.values()}.values())
  if len(found) == 1:
    return _prepare(found[0], say, run)
  if found[0].vocabulary.path != config.vocabulary.path:
    _share_vocabulary(config, found, say)
  for name, c in named.items():
    say(f'{name}: {c.data.source} in {folder(c)}')
  return [_prepare(c, say, run) for c in found]


def _share_vocabulary(config, found, say):
  """Makes the vocabulary of a mixture from equal shares of the text of its datasets."""
  path = paths.expand(found[0].vocabulary.path)
  local = folder(found[0]).parent / path.split('/')[-2]
  url = path.rpartition('/')[0] if mirror.is_remote(path) else ''
  local.mkdir(parents=True, exist_ok=True)
  with mirror.alone(local, say):
    if mirror.is_file(path) and any((folder(c) / manifests.MANIFEST).exists() for c in found):
      return  # what is prepared keeps its vocabulary, also when its source is gone
    opened = [parts.open_sources(c) for c in found]
    inputs = [{name: source.fingerprint for name, source in of.items()} for of in opened]
    if mirror.is_file(path) and plain_json.as_read(inputs) == manifests.read_json(f'{url or local}/inputs.json'):
      return
    (local / VOCABULARY).unlink(missing_ok=True)
    _write_json(local / 'inputs.json', inputs)
    start, share = time.monotonic(), config.vocabulary.train_characters // len(found)

    def texts():
      for c, of in zip(found, opened):
        own = _vocabulary_texts(c, of, _plan_of(c, of))
        yield from own if c.vocabulary.name == 'characters' else vocabulary.sample(own, share)
    vocab = vocabulary.train(config.vocabulary, texts(), local / VOCABULARY)
    if url:
      mirror.push(local, url, ['inputs.json', VOCABULARY])
    say(f'vocabulary of {len(found)} datasets: {vocab.name}, {vocab.size} ids, {time.monotonic() - start:.1f} s')


def _plan_of(config, texts):
  """What to read of a dataset of a mixture to make the vocabulary."""
  plan = dict(parts=parts.parts(config, texts))
  held, _ = held_out.find(config, texts, plan)
  if held:
    plan['parts'] = [dict(part, held=held) for part in plan['parts']]
  return plan


def _prepare(config, say, run):
  target = folder(config)
  try:
    fetch(config, say)
    return _prepare_here(config, target, say, run)
  except OSError as error:
    raise DataError(f'Preparing {target} failed: {error}. What is done is kept: when there is room, and permission to '
                    'write there, run prepare again.') from error


def _prepare_here(config, target, say, run):
  manifest = manifests.load(target / manifests.MANIFEST)
  try:
    texts = parts.open_sources(config)
  except DataError:
    if manifest and not manifests.broken_files(target, manifest):
      say(f'{target}: prepared; its source is not here any more, which does no harm.')
      return target
    raise
  target.mkdir(parents=True, exist_ok=True)
  with mirror.alone(target, say):
    manifest = manifests.load(target / manifests.MANIFEST)
    inputs = plain_json.as_read(parts.inputs(config, texts))
    before = parts.as_known_to(manifest['inputs'], inputs) if manifest else inputs
    if before != inputs:
      say(f'{target}: an older version of t5like took special tokens by their names when it prepared this. To have '
          'those that the files beside the tokenizer name, delete the folder and run prepare again.')
    if manifest and manifest['inputs'] != before:
      change = parts.difference(manifest['inputs'], before)
      raise DataError(f'The source of {target} has changed since it was prepared ({change}): delete that folder, '
                      'or choose another data.directory.')
    broken = manifests.broken_files(target, manifest) if manifest else []
    if manifest and not broken:
      say(f'{target}: prepared already.')
      return target
    plan = dict(format=manifests.FORMAT, inputs=before, parts=parts.parts(config, texts))
    _hold_out(config, texts, plan, say)
    if broken:
      say(f'{target}: {broken[0]}; making again what is not whole.')
      _reopen(target, manifest, plan)
    _make(config, target, texts, plan, say, run)
  return target


def _hold_out(config, texts, plan, say):
  """Writes into the parts of a plan what must be held out, where hashes leave a split without documents."""
  for source in texts.values():
    if source.left_out:
      say(f'{source.left_out:,} files of {source.name} are validation files, too, and are not trained on.')
  held, line = held_out.find(config, texts, plan)
  if held:
    say(line)
    for part in plan['parts']:
      part['held'] = held


# --- What to do, and what is done ---------------------------------------------------------------


def _reopen(target, manifest, plan):
  """Turns a finished folder back into one that is being made."""
  for i, mark in enumerate(manifest['parts']):
    _write_json(target / parts.mark_name(i), mark)
  _write_json(target / 'plan.json', plan)
  (target / manifests.MANIFEST).unlink()


def _make(config, target, texts, plan, say, run):
  start, url = time.monotonic(), remote(config)
  if manifests.read_json(target / 'plan.json') != plan:  # nothing yet, or the source changed meanwhile
    for file in [file for pattern in MARKS for file in target.glob(pattern)]:
      file.unlink()
    if url:
      mirror.remove(url, MARKS)
    (target / VOCABULARY).unlink(missing_ok=True)
    _write_json(target / 'plan.json', plan)
  vocab = _vocabulary(config, target, texts, plan, say)
  if url:
    mirror.push(target, url, [VOCABULARY])
  jobs = parts.jobs(config, target, url, plan)
  workers = parts.workers(config, texts)
  # A progress bar is for one process and a person who watches.
  bar = workers == 1 and not run and say is print_progress
  make = functools.partial(parts.make, bar=True) if bar else parts.make
  run = run or functools.partial(parts.run_here, workers=workers)
  todo = [job for job in jobs if not _done(job)]
  if config.data.deduplicate:
    _find_repeats(jobs, target, url, run, say)
  for number in run(make, todo):
    say(f'part {number + 1} of {len(jobs)}: {_mark(jobs[number])["documents"]} documents')
  _finish(config, target, url, _manifest(config, texts, plan, [_mark(job) for job in jobs], vocab))
  _summarise(manifests.load(target / manifests.MANIFEST), say)
  say(f'{target}: prepared in {time.monotonic() - start:.1f} s')


def _mark(job):
  """What `parts.make` left of a job, or None."""
  return manifests.read_json(f'{job["remote"] or job["target"]}/{parts.mark_name(job["number"])}', manifests.PART)


def _done(job):
  mark = _mark(job)
  if not mark or {split: shard['file'] for split, shard in mark['shards'].items()} != job['part']['files']:
    return False
  for file in (file for shard in mark['shards'].values() for file in parts.files_of(shard)):
    path = pathlib.Path(job['target']) / file['file']
    if job['remote']:
      if not mirror.is_file(f'{job["remote"]}/{file["file"]}'):
        return False
    elif not path.is_file() or shards.file_sha256(path) != file['sha256']:
      return False
  return True


def _find_repeats(jobs, target, url, run, say):
  """Leaves repeats-00000.bin for each part: which of its examples were there before."""
  start, names = time.monotonic(), [f'digests-{job["number"]:05d}.bin' for job in jobs]
  kept = [f'repeats-{job["number"]:05d}.bin' for job in jobs]
  if all((target / name).exists() for name in kept):
    return
  for _ in run(parts.digest, jobs):
    pass
  if url:
    mirror.pull(url, target, dict.fromkeys(names))
  # An example that is in both splits stays in validation: what is trained on must not be judged by.
  order = sorted(range(len(jobs)), key=lambda i: jobs[i]['part']['source'] != 'validation')
  found = duplicates.find([(target / names[i]).read_bytes() for i in order])
  for i, repeats in zip(order, found):
    write_file(target / kept[i], repeats.tobytes())
  if url:
    mirror.push(target, url, kept)
  say(f'{sum(int(r.sum()) for r in found):,} of {sum(map(len, found)):,} documents repeat another, '
      f'{time.monotonic() - start:.1f} s')


# --- The steps ----------------------------------------------------------------------------------


def _vocabulary(config, target, texts, plan, say):
  """Returns the vocabulary in the folder, made first if it is not there."""
  start = time.monotonic()
  if (target / VOCABULARY).exists():
    return vocabulary.load(config.vocabulary, target / VOCABULARY)
  vocab = vocabulary.train(config.vocabulary, _vocabulary_texts(config, texts, plan), target / VOCABULARY)
  say(f'vocabulary: {vocab.name}, {vocab.size} ids, {time.monotonic() - start:.1f} s')
  if vocab.name == 'sentencepiece' and not config.vocabulary.path and vocab.size < config.vocabulary.size:
    say(f'vocabulary.size={config.vocabulary.size} is more than this text can fill: it has {vocab.size}.')
  return vocab


def _vocabulary_texts(config, texts, plan):
  """Yields the texts to make a vocabulary from.

  What is learnt comes from training text. But an alphabet must hold the characters of all text.
  """
  alphabet, count, used = config.vocabulary.name == 'characters', shards.new_count(), 0
  held = shards.held_by(plan['parts'][0]) if plan['parts'] else None
  for name, source in texts.items() if alphabet else [('train', texts['train'])]:
    items = max((part['stop'] for part in plan['parts'] if part['source'] == name), default=0)
    # Of a source far larger than the sample, only some items are read.
    size = source.num_bytes * items // max(1, source.num_items)
    step = max(1, min(size // (4 * config.vocabulary.train_characters), items // 64))
    ranges = [(0, items)] if alphabet or step == 1 else [(i, i + 1) for i in range(0, items, step)]
    last = next((part['last'] for part in plan['parts'] if part['source'] == name and part['stop'] == items), None)
    for start, stop in ranges:
      some = dict(start=start, stop=stop, last=last if stop == items else None)
      for example, _ in shards.examples(config, source, some, count):
        for split, pieces in shards.split_example(example, name, config, held):
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


def _manifest(config, texts, plan, marks, vocab):
  empty = shards.new_count()
  count = {key: sum((mark[key] for mark in marks), none) for key, none in empty.items()}
  if count['bad'] > config.data.max_bad_records:
    raise DataError(f'data.source={config.data.source!r} has {count["bad"]} damaged records, '
                    f'data.max_bad_records={config.data.max_bad_records} allows fewer. The first: {count["damage"][0]}')
  splits = {}
  for name in ('train', 'validation'):
    files = [mark['shards'][name] for mark in marks if name in mark['shards']]
    if any(file['tokens'] for file in files):
      splits[name] = {key: sum(f[key] for f in files) for key in ('documents', 'tokens', 'bytes')}
      splits[name]['shards'] = files
  _check(config, count, 'train' in splits)
  manifest = dict(
      format=manifests.FORMAT, source=config.data.source, licence=texts['train'].licence, inputs=plan['inputs'],
      texts=2 if config.data.targets else 1, block=shards.BLOCK, dtype=shards.dtype(vocab), splits=splits,
      **{key: count[key] for key in empty if key != 'documents'}, parts=marks,
      created=dict(python=platform.python_version()),
      max_id=max(shard['max_id'] for split in splits.values() for shard in split['shards']),
      vocabulary=dict(name=vocab.name, size=vocab.size, num_sentinels=vocab.num_sentinels,
                      fingerprint=vocab.fingerprint, special=vocab.special(), file=VOCABULARY))
  for name in ('numpy', 'sentencepiece', 'array_record', 'tensorflow_datasets'):
    manifest['created'][name] = importlib.metadata.version(name)
  tokens = [[name, shard['tokens'], shard['sha256'], shard['lengths']['sha256']]
            for name, split in splits.items() for shard in split['shards']]
  manifest['fingerprint'] = sha256([manifests.FORMAT, shards.BLOCK, vocab.fingerprint, tokens])
  return manifest


def _finish(config, target, url, manifest):
  """Makes the folder complete: TFDS's description, then the manifest, and nothing else."""
  kept = manifests.sizes(manifest)
  for kind in ('tokens', 'lengths', 'names'):
    for file in target.glob(f'{kind}-*'):
      if file.name not in kept:  # shards of a split without tokens, which TFDS would trip over
        file.unlink()
  shards.write_tfds_metadata(target, manifest)
  if url:
    mirror.push(target, url, [file.name for file in target.glob('*.json') if file.name != 'plan.json'])
  _write_json(target / manifests.MANIFEST, manifests.sealed(manifest))
  if url:
    mirror.push(target, url, [manifests.MANIFEST])
  done = [file.name for pattern in (*MARKS, '*.tmp', 'plan.json') for file in target.glob(pattern)]
  for name in done:
    (target / name).unlink()
  if url:
    mirror.remove(url, MARKS)


def _summarise(manifest, say):
  """What a person should know of a dataset that was just made."""
  for split, entry in manifest['splits'].items():
    say(f'{split}: {entry["documents"]} documents, {entry["tokens"]} tokens, '
        f'{entry["bytes"] / entry["tokens"]:.2f} bytes per token')
  if 'validation' not in manifest['splits']:
    say('There is no validation text: all of it was left out. Raise data.validation_fraction, or give data.validation '
        'files of their own.')
  for key, what in dict(dropped='empty documents dropped', repeated='documents dropped whose text was there before',
                        overlong='documents above data.max_document_tokens',
                        bad='damaged records left out (data.max_bad_records)').items():
    if manifest[key]:
      say(f'{manifest[key]} {what}')
  for message in manifest['damage']:
    say(f'  {message}')


def _write_json(path, value):
  write_file(path, plain_json.dumps(value, indent=1).encode() + b'\n')
