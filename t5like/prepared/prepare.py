"""Text to tokens on disk, once: `python main.py prepare`.

The folder of a prepared dataset:

  manifest.json                              its content; written last, so it marks completeness
  vocabulary                                 read by `loading.load`
  tokens-train.array_record-00000-of-00002   tokens (see store.py), in files that TFDS reads
  lengths-train-00000-of-00002.bin           of each example in that file
  names-train-00000-of-00002.zst             where each example came from
  dataset_info.json features.json            TFDS's own description
  plans/                                     which examples share rows (see plans.py), made by readers
  plan.json part-00000.json ...              while it is being made: the plan, finished parts

Every file is written under another name and then renamed, and finished work is never repeated:
a `prepare` that was killed resumes, and ends with the same bytes, as it does with any number of processes
or machines (see parts.py).
"""

import functools
import pathlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from t5like.config_type import Config
from t5like.errors import DataError
from t5like.files import mirror, paths, plain_json
from t5like.files.writing import write_file
from t5like.prepared import duplicates, held_out, manifests, new_manifest, parts, shards, vocabulary_texts
from t5like.prepared.datasets import datasets, fetch, folder, remote
from t5like.prepared.manifests import Manifest
from t5like.prepared.parts import VOCABULARY, Job, Sources
from t5like.prepared.vocabulary_texts import Plan
from t5like.vocabulary import loading
from t5like.vocabulary.kinds import Vocabulary
from t5like.vocabulary.requirements import check_vocabulary

Say = Callable[[str], None]  # shows a person a line of text
Run = Callable[[Callable[[Job], Any], Sequence[Job]], Iterable[int]]  # see `parts.run_here`

MARKS = ('part-*.json', 'digests-*.bin', 'repeats-*.bin')  # exist while the work is going on
PLAN = 'plan.json'
INPUTS = 'inputs.json'  # beside the vocabulary of a mixture
KINDS = ('tokens', 'lengths', 'names')  # of files of shards
REPORTED = dict(  # counts of a manifest, as a person reads them
    dropped='empty documents dropped',
    repeated='documents dropped whose text was there before',
    overlong='documents above data.max_document_tokens',
    bad='damaged records skipped (data.max_bad_records)',
)

print_progress = functools.partial(print, flush=True)


def prepare(
    config: Config,
    say: Say = print_progress,
    run: Run | None = None,
) -> pathlib.Path | list[pathlib.Path]:
  """Makes the prepared dataset of `config` unless it exists; returns its folder, for a mixture a list of folders.

  Args:
    config: whose datasets (`lengths.components`) to prepare.
    say: called with a line of text per stage.
    run: `run(function, jobs)`, an iterator of the numbers of finished jobs, may do the work elsewhere (see
      `parts.run_here`); None: here.

  Raises:
    ConfigError: keys do not fit the text.
    DataError: text cannot be read or has changed since, or the disk is full.
  """
  named = datasets(config)
  if not all(_is_prepared(c) for c in named.values()):
    check_vocabulary(config)
  by_folder = {folder(c): c for c in named.values()}
  distinct = list(by_folder.values())
  if len(distinct) == 1:
    return _prepare(distinct[0], say, run)
  if distinct[0].vocabulary.path != config.vocabulary.path:
    _share_vocabulary(config, distinct, say)
  for name, c in named.items():
    say(f'{name}: {c.data.source} in {folder(c)}')
  return [_prepare(c, say, run) for c in distinct]


def _is_prepared(config: Config) -> bool:
  return (folder(config) / manifests.MANIFEST).exists()


# --- The vocabulary of a mixture ----------------------------------------------------------------


def _share_vocabulary(config: Config, configs: Sequence[Config], say: Say) -> None:
  """Makes the vocabulary of a mixture from equal shares of the text of its datasets; configs: of these."""
  path = paths.expand(configs[0].vocabulary.path)
  local = folder(configs[0]).parent / path.split('/')[-2]
  url = ''
  if mirror.is_remote(path):
    url = path.rpartition('/')[0]
  local.mkdir(parents=True, exist_ok=True)
  with mirror.alone(local, say):
    exists = mirror.is_file(path)
    if exists and any(_is_prepared(c) for c in configs):
      return  # prepared datasets keep their vocabulary, also when their source is gone
    sources = [parts.open_sources(c) for c in configs]
    inputs = [_fingerprints(texts) for texts in sources]
    if exists:
      previous = manifests.read_json(f'{url or local}/{INPUTS}')
      if previous == plain_json.as_read(inputs):
        return
    file = local / VOCABULARY
    file.unlink(missing_ok=True)
    _write_json(local / INPUTS, inputs)
    start = time.monotonic()
    share = config.vocabulary.train_characters // len(configs)
    texts = _shared_texts(configs, sources, share)
    vocab = loading.train(config.vocabulary, texts, file)
    if url:
      mirror.push(local, url, [INPUTS, VOCABULARY])
    seconds = time.monotonic() - start
    say(f'vocabulary of {len(configs)} datasets: {vocab.name}, {vocab.size} ids, {seconds:.1f} s')


def _fingerprints(texts: Sources) -> dict[str, Any]:
  return {name: source.fingerprint for name, source in texts.items()}


def _shared_texts(
    configs: Sequence[Config],
    sources: Sequence[Sources],
    share: int,
) -> Iterator[str]:
  """Yields the texts for the vocabulary of a mixture: `share` characters of each dataset, all for an alphabet."""
  for config, texts in zip(configs, sources):
    plan = _plan_of_vocabulary(config, texts)
    own = vocabulary_texts.texts_for_vocabulary(config, texts, plan)
    if vocabulary_texts.needs_all(config):
      yield from own
    else:
      yield from loading.sample(own, share)


def _plan_of_vocabulary(config: Config, texts: Sources) -> Plan:
  """The texts of a dataset of a mixture that the vocabulary is made of."""
  plan = dict(parts=parts.parts(config, texts))
  held, _ = held_out.find(config, texts, plan)
  if held:
    plan['parts'] = [dict(part, held=held) for part in plan['parts']]
  return plan


# --- One dataset --------------------------------------------------------------------------------


def _prepare(config: Config, say: Say, run: Run | None) -> pathlib.Path:
  target = folder(config)
  try:
    fetch(config, say)
    return _prepare_here(config, target, say, run)
  except OSError as error:
    raise DataError(
        f'Preparing {target} failed: {error}. Finished parts are kept: when there is space, and permission to write '
        'there, run prepare again.') from error


def _prepare_here(
    config: Config,
    target: pathlib.Path,
    say: Say,
    run: Run | None,
) -> pathlib.Path:
  manifest = manifests.load(target / manifests.MANIFEST)
  try:
    texts = parts.open_sources(config)
  except DataError:
    if manifest and not manifests.broken_files(target, manifest):
      say(f'{target}: prepared. Its source does not exist any more; it is not needed.')
      return target
    raise
  target.mkdir(parents=True, exist_ok=True)
  with mirror.alone(target, say):
    manifest = manifests.load(target / manifests.MANIFEST)
    inputs = plain_json.as_read(parts.inputs(config, texts))
    broken = []
    if manifest:
      inputs = _check_inputs(target, manifest, inputs, say)
      broken = manifests.broken_files(target, manifest)
      if not broken:
        say(f'{target}: prepared already.')
        return target
    plan = dict(
        format=manifests.FORMAT,
        inputs=inputs,
        parts=parts.parts(config, texts),
    )
    _hold_out(config, texts, plan, say)
    if manifest:
      say(f'{target}: {broken[0]}; making incomplete files again.')
      _reopen(target, manifest, plan)
    _make(config, target, texts, plan, say, run)
  return target


def _check_inputs(
    target: pathlib.Path,
    manifest: Manifest,
    inputs: parts.Inputs,
    say: Say,
) -> parts.Inputs:
  """`inputs` as the version that prepared a dataset recorded them; DataError where the text has changed since."""
  known = parts.as_known_to(manifest['inputs'], inputs)
  if known != inputs:
    say(
        f'{target}: an older version of t5like took special tokens by their names when it prepared this. To have '
        'those that the files beside the tokenizer name, delete the folder and run prepare again.')
  recorded = manifest['inputs']
  if recorded != known:
    change = parts.difference(recorded, known)
    raise DataError(
        f'The source of {target} has changed since it was prepared ({change}): delete that folder, or choose another '
        'data.directory.')
  return known


def _hold_out(config: Config, texts: Sources, plan: Plan, say: Say) -> None:
  """Writes into the parts of a plan what must be held out, where hashes leave a split without documents."""
  for source in texts.values():
    if source.left_out:
      say(f'{source.left_out:,} files of {source.name} are validation files, too, and are not trained on.')
  held, line = held_out.find(config, texts, plan)
  if not held:
    return
  say(line)
  for part in plan['parts']:
    part['held'] = held


# --- The plan and finished parts ----------------------------------------------------------------


def _reopen(target: pathlib.Path, manifest: Manifest, plan: Plan) -> None:
  """Turns a finished folder back into an unfinished one."""
  for i, mark in enumerate(manifest['parts']):
    name = parts.mark_name(i)
    _write_json(target / name, mark)
  _write_json(target / PLAN, plan)
  path = target / manifests.MANIFEST
  path.unlink()


def _make(
    config: Config,
    target: pathlib.Path,
    texts: Sources,
    plan: Plan,
    say: Say,
    run: Run | None,
) -> None:
  """Does all of a plan that is not done yet, and completes the folder."""
  start = time.monotonic()
  url = remote(config)
  if manifests.read_json(target / PLAN) != plan:  # nothing is done yet, or the source changed meanwhile
    _begin_anew(target, url, plan)
  vocab = _vocabulary(config, target, texts, plan, say)
  if url:
    mirror.push(target, url, [VOCABULARY])
  jobs = parts.jobs(config, target, url, plan)
  workers = parts.workers(config, texts)
  make = parts.make
  is_watched = say is print_progress
  if is_watched and workers == 1 and not run:  # a progress bar is for one process and a person who watches
    make = functools.partial(parts.make, bar=True)
  run = run or functools.partial(parts.run_here, workers=workers)
  todo = [job for job in jobs if not _done(job)]
  if config.data.deduplicate:
    _find_repeats(jobs, target, url, run, say)
  for number in run(make, todo):
    mark = _mark(jobs[number])
    say(f'part {number + 1} of {len(jobs)}: {mark["documents"]} documents')
  marks = [_mark(job) for job in jobs]
  manifest = new_manifest.of_parts(config, texts, plan, marks, vocab)
  _finish(target, url, manifest)
  _summarise(manifest, say)
  seconds = time.monotonic() - start
  say(f'{target}: prepared in {seconds:.1f} s')


def _begin_anew(target: pathlib.Path, url: str, plan: Plan) -> None:
  _delete(target, MARKS)
  if url:
    mirror.remove(url, MARKS)
  vocabulary = target / VOCABULARY
  vocabulary.unlink(missing_ok=True)
  _write_json(target / PLAN, plan)


def _delete(folder: pathlib.Path, patterns: Iterable[str]) -> None:
  """Deletes the files of a folder whose names match a pattern."""
  for pattern in patterns:
    for file in list(folder.glob(pattern)):
      file.unlink()


def _mark(job: Job) -> Any:
  """The mark that `parts.make` left of a job, or None."""
  place = job['remote'] or job['target']
  name = parts.mark_name(job['number'])
  return manifests.read_json(f'{place}/{name}', manifests.PART)


def _done(job: Job) -> bool:
  """Whether the mark of a job and all files that it lists exist and are undamaged."""
  mark = _mark(job)
  if not mark:
    return False
  shard_files = {split: shard['file'] for split, shard in mark['shards'].items()}
  if shard_files != job['part']['files']:
    return False
  return all(_is_whole(job, file) for file in parts.files_of(mark))


def _is_whole(job: Job, file: Mapping[str, Any]) -> bool:
  name = file['file']
  remote_folder = job['remote']
  if remote_folder:
    return mirror.is_file(f'{remote_folder}/{name}')
  path = pathlib.Path(job['target']) / name
  if not path.is_file():
    return False
  return shards.file_sha256(path) == file['sha256']


def _find_repeats(
    jobs: Sequence[Job],
    target: pathlib.Path,
    url: str,
    run: Run,
    say: Say,
) -> None:
  """Leaves repeats-00000.bin for each part: which of its examples occurred before."""
  start = time.monotonic()
  repeats_files = [parts.repeats_name(job['number']) for job in jobs]
  if all((target / name).exists() for name in repeats_files):
    return
  digest_files = [parts.digests_name(job['number']) for job in jobs]
  for _ in run(parts.digest, jobs):
    pass
  if url:
    mirror.pull(url, target, dict.fromkeys(digest_files))
  # An example that is in both splits stays in validation: validation text must not be trained on.
  order = _validation_first(jobs)
  digests = [(target / digest_files[i]).read_bytes() for i in order]
  repeats = duplicates.find(digests)
  repeated = 0
  documents = 0
  for i, part_repeats in zip(order, repeats):
    path = target / repeats_files[i]
    write_file(path, part_repeats.tobytes())
    repeated += int(part_repeats.sum())
    documents += len(part_repeats)
  if url:
    mirror.push(target, url, repeats_files)
  seconds = time.monotonic() - start
  say(f'{repeated:,} of {documents:,} documents repeat another, {seconds:.1f} s')


def _validation_first(jobs: Sequence[Job]) -> list[int]:
  """Numbers of the jobs, those of validation text first."""
  of_validation = []
  others = []
  for number, job in enumerate(jobs):
    if job['part']['source'] == 'validation':
      of_validation.append(number)
    else:
      others.append(number)
  return of_validation + others


# --- The vocabulary -----------------------------------------------------------------------------


def _vocabulary(
    config: Config,
    target: pathlib.Path,
    texts: Sources,
    plan: Plan,
    say: Say,
) -> Vocabulary:
  """Returns the vocabulary in the folder, made first if it does not exist."""
  start = time.monotonic()
  spec = config.vocabulary
  path = target / VOCABULARY
  if path.exists():
    return loading.load(spec, path)
  sample = vocabulary_texts.texts_for_vocabulary(config, texts, plan)
  vocab = loading.train(spec, sample, path)
  seconds = time.monotonic() - start
  say(f'vocabulary: {vocab.name}, {vocab.size} ids, {seconds:.1f} s')
  if vocab.name == 'sentencepiece' and not spec.path and vocab.size < spec.size:
    say(f'vocabulary.size={spec.size} is more than this text can fill: it has {vocab.size}.')
  return vocab


# --- The finished folder ------------------------------------------------------------------------


def _finish(target: pathlib.Path, url: str, manifest: Manifest) -> None:
  """Completes the folder: TFDS's description, then the manifest, and nothing else."""
  kept = manifests.sizes(manifest)
  for kind in KINDS:
    files = list(target.glob(f'{kind}-*'))
    for file in files:
      if file.name not in kept:  # shards of a split without tokens, which TFDS cannot read
        file.unlink()
  shards.write_tfds_metadata(target, manifest)
  if url:
    descriptions = [file.name for file in target.glob('*.json') if file.name != PLAN]
    mirror.push(target, url, descriptions)
  _write_json(target / manifests.MANIFEST, manifests.sealed(manifest))
  if url:
    mirror.push(target, url, [manifests.MANIFEST])
  _delete(target, (*MARKS, '*.tmp', PLAN))
  if url:
    mirror.remove(url, MARKS)


def _summarise(manifest: Manifest, say: Say) -> None:
  """Reports the content of a dataset that was just made."""
  splits = manifest['splits']
  for split, entry in splits.items():
    tokens = entry['tokens']
    bytes_per_token = entry['bytes'] / tokens
    say(f'{split}: {entry["documents"]} documents, {tokens} tokens, {bytes_per_token:.2f} bytes per token')
  if 'validation' not in splits:
    say(
        'There is no validation text: all of it was dropped. Raise data.validation_fraction, or give data.validation '
        'files of their own.')
  for key, meaning in REPORTED.items():
    count = manifest[key]
    if count:
      say(f'{count} {meaning}')
  for message in manifest['damage']:
    say(f'  {message}')


def _write_json(path: pathlib.Path, value: Any) -> None:
  content = plain_json.dumps(value, indent=1)
  write_file(path, content.encode() + b'\n')
