"""Validation text by hash for few documents: where hashes alone would leave none, or nothing to train on.

One document in a hundred validates, chosen by its hash: of 43 documents there is none with a probability of 65 %. Then
the document with the smallest hash is taken; where all would validate, the one with the largest is trained on; a
single document is cut. As hashes do, this depends on the text alone, not on the order of files or on who reads them.
"""
from t5like.data import shards
from t5like.errors import DataError

LEAST = 2000  # characters of the tail of a single document, if they are not more than
MOST_OF_IT = 0.1  # so much of it


def find(config, texts, plan):
  """(what `shards.split_example` needs to know, a line for people); (None, '') where hashes fill both splits.

  texts, plan: sources and parts of the work, see prepare.py. Reads text until both splits have a document, so of many
  documents only the first few hundred. DataError for text that can be neither cut nor divided.
  """
  if config.data.validation != 'hash':
    return None, ''
  fraction = config.data.validation_fraction
  count = shards.new_count()
  smallest = largest = None
  for part in plan['parts']:
    for example, _ in shards.examples(config, texts[part['source']], part, count):
      number = shards.hash_number(example)
      smallest = (number, example) if smallest is None or number < smallest[0] else smallest
      largest = (number, example) if largest is None or number > largest[0] else largest
      if smallest[0] / 2**64 < fraction <= largest[0] / 2**64:
        return None, ''
  if smallest is None:
    return None, ''  # prepare says that there is no text
  return _instead(config, smallest, largest, count['documents'] - count['dropped'])


def _instead(config, smallest, largest, documents):
  fraction = config.data.validation_fraction
  if smallest[0] == largest[0]:
    return _cut(config, smallest[1], documents)
  asked = f'data.validation_fraction={fraction:g} of {documents:,} documents, chosen by hash,'
  if smallest[0] / 2**64 >= fraction:
    return dict(number=smallest[0], split='validation'), (
        f'{asked} leaves none to validate on, so the one with the smallest hash was kept for that. '
        "data.validation takes files of their own, too, or 'tail'.")
  return dict(number=largest[0], split='train'), (
      f'{asked} leaves none to train on, so the one with the largest hash is trained on.')


def _cut(config, example, documents):
  if len(example) > 1:
    raise DataError(f'data.source={config.data.source!r} has one example of data.inputs and data.targets, which cannot '
                    'both be trained on and validate: give more.')
  (text,) = example
  tail = max(int(len(text) * config.data.validation_fraction), min(LEAST, int(len(text) * MOST_OF_IT)), 1)
  what = 'one document' if documents == 1 else f'{documents:,} documents of the same text'
  return dict(cut=len(text) - tail), (
      f'data.source={config.data.source!r} has {what}, so its last {tail:,} characters of {len(text):,} were kept to '
      "validate on. data.validation takes files of their own, too, or 'tail'.")
