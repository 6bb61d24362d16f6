"""The manifest of a dataset whose parts are all finished."""
import importlib.metadata
import platform
from collections.abc import Mapping, Sequence
from typing import Any

from t5like.config_type import Config
from t5like.errors import DataError
from t5like.prepared import examples, manifests, shards
from t5like.prepared.datasets import sha256
from t5like.prepared.manifests import Manifest
from t5like.prepared.parts import VOCABULARY, Sources
from t5like.prepared.vocabulary_texts import Plan, check_not_empty
from t5like.vocabulary.kinds import Vocabulary

Marks = Sequence[Mapping[str, Any]]  # of finished parts

SPLITS = ('train', 'validation')
SUMS = ('documents', 'tokens', 'bytes')  # of a split
PACKAGES = ('numpy', 'sentencepiece', 'array_record', 'tensorflow_datasets')  # whose versions a manifest records


def of_parts(
    config: Config,
    texts: Sources,
    plan: Plan,
    marks: Marks,
    vocab: Vocabulary,
) -> Manifest:
  count = _total(marks)
  if count['bad'] > config.data.max_bad_records:
    raise DataError(f'data.source={config.data.source!r} has {count["bad"]} damaged records, '
                    f'data.max_bad_records={config.data.max_bad_records} allows fewer. The first: {count["damage"][0]}')
  splits = _splits(marks)
  check_not_empty(config, count, 'train' in splits)
  del count['documents']
  return dict(
      format=manifests.FORMAT,
      source=config.data.source,
      licence=texts['train'].licence,
      inputs=plan['inputs'],
      texts=_number_of_texts(config),
      block=shards.BLOCK,
      dtype=shards.dtype(vocab),
      splits=splits,
      **count,
      parts=marks,
      created=_versions(),
      max_id=_max_id(splits),
      vocabulary=_entry(vocab),
      fingerprint=_fingerprint(vocab, splits),
  )


def _total(marks: Marks) -> examples.Count:
  """The sums of the counts of parts."""
  count = examples.new_count()
  for mark in marks:
    for key in count:
      count[key] = count[key] + mark[key]
  return count


def _splits(marks: Marks) -> dict[str, Any]:
  """Entries of the splits that have tokens."""
  splits = {}
  for name in SPLITS:
    entries = [mark['shards'][name] for mark in marks if name in mark['shards']]
    split: dict[str, Any] = dict.fromkeys(SUMS, 0)
    for entry in entries:
      for key in SUMS:
        split[key] += entry[key]
    if split['tokens']:
      splits[name] = dict(split, shards=entries)
  return splits


def _number_of_texts(config: Config) -> int:
  """In an example: inputs and targets, or one."""
  if config.data.targets:
    return 2
  return 1


def _max_id(splits: Mapping[str, Any]) -> int:
  largest = -1
  for split in splits.values():
    for shard in split['shards']:
      largest = max(largest, shard['max_id'])
  return largest


def _entry(vocab: Vocabulary) -> dict[str, Any]:
  return dict(
      name=vocab.name,
      size=vocab.size,
      num_sentinels=vocab.num_sentinels,
      fingerprint=vocab.fingerprint,
      special=vocab.special(),
      file=VOCABULARY,
  )


def _versions() -> dict[str, str]:
  versions = dict(python=platform.python_version())
  for name in PACKAGES:
    versions[name] = importlib.metadata.version(name)
  return versions


def _fingerprint(vocab: Vocabulary, splits: Mapping[str, Any]) -> str:
  """sha256 of the tokens and the vocabulary."""
  tokens = []
  for name, split in splits.items():
    for shard in split['shards']:
      tokens.append([name, shard['tokens'], shard['sha256'], shard['lengths']['sha256']])
  return sha256([manifests.FORMAT, shards.BLOCK, vocab.fingerprint, tokens])
