"""Validation text by hash for few documents: where hashes alone would leave none, or nothing to train on.

One document in a hundred validates, chosen by its hash: of 43 documents there is none with a probability of 65 %. Then
the document with the smallest hash is taken; where all would validate, the one with the largest is trained on; a
single document is cut. As hashes do, this depends on the text alone, not on the order of files or on who reads them.
"""
from collections.abc import Mapping, Sequence
from typing import Any

from t5like.config_type import Config
from t5like.errors import DataError
from t5like.prepared import examples
from t5like.sources import registry

LEAST = 2000  # characters of the tail of a single document, unless they exceed MOST_OF_IT
MOST_OF_IT = 0.1  # largest share of a single document that LEAST may make its tail
RANGE = 2**64  # hash numbers are below this

Texts = tuple[str, ...]
Hashed = tuple[int, Texts]  # the hash number of an example, and its texts
HeldOut = dict[str, Any]


def find(
    config: Config,
    texts: Mapping[str, registry.Source],
    plan: Mapping[str, Any],
) -> tuple[HeldOut | None, str]:
  """Documents that must be held out in spite of their hashes.

  Reads text until both splits have a document, so of many documents only the first few hundred.

  Args:
    config: of the dataset.
    texts: {name: Source}, see `parts.open_sources`.
    plan: the parts of the work under 'parts', see prepare.py.

  Returns:
    (the argument of `examples.split_example`, a line for people); (None, '') where hashes fill both splits.

  Raises:
    DataError: the text can be neither cut nor divided.
  """
  if config.data.validation != 'hash':
    return None, ''
  threshold = config.data.validation_fraction
  count = examples.new_count()
  smallest = largest = None
  for part in plan['parts']:
    for example, _ in examples.examples(config, texts[part['source']], part, count):
      candidate = (examples.hash_number(example), example)
      smallest = _smaller(smallest, candidate)
      largest = _larger(largest, candidate)
      if smallest[0] / RANGE < threshold <= largest[0] / RANGE:
        return None, ''
  if smallest is None or largest is None:
    return None, ''  # prepare reports that there is no text
  documents = count['documents'] - count['dropped']
  return _instead(config, smallest, largest, documents)


def _smaller(known: Hashed | None, candidate: Hashed) -> Hashed:
  if known is None or candidate[0] < known[0]:
    return candidate
  return known


def _larger(known: Hashed | None, candidate: Hashed) -> Hashed:
  if known is None or candidate[0] > known[0]:
    return candidate
  return known


def _instead(
    config: Config,
    smallest: Hashed,
    largest: Hashed,
    documents: int,
) -> tuple[HeldOut, str]:
  """The documents to hold out where all are on one side."""
  fraction = config.data.validation_fraction
  if smallest[0] == largest[0]:
    return _cut(config, smallest[1], documents)
  subject = f'data.validation_fraction={fraction:g} of {documents:,} documents, chosen by hash,'
  if smallest[0] / RANGE >= fraction:
    line = (f'{subject} leaves none to validate on, so the one with the smallest hash was kept for that. '
            "data.validation takes files of their own, too, or 'tail'.")
    return dict(number=smallest[0], split='validation'), line
  line = f'{subject} leaves none to train on, so the one with the largest hash is trained on.'
  return dict(number=largest[0], split='train'), line


def _cut(
    config: Config,
    example: Sequence[str],
    documents: int,
) -> tuple[HeldOut, str]:
  """Where to cut a single document."""
  data = config.data
  if len(example) > 1:
    raise DataError(f'data.source={data.source!r} has one example of data.inputs and data.targets, which cannot '
                    'both be trained on and validate: give more.')
  length = len(example[0])
  wanted = int(length * data.validation_fraction)
  least = min(LEAST, int(length * MOST_OF_IT))
  tail = max(wanted, least, 1)
  content = f'{documents:,} documents of the same text'
  if documents == 1:
    content = 'one document'
  line = (f'data.source={data.source!r} has {content}, so its last {tail:,} characters of {length:,} were kept to '
          "validate on. data.validation takes files of their own, too, or 'tail'.")
  return dict(cut=length - tail), line
