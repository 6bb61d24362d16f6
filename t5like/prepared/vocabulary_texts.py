"""Which texts of a dataset its vocabulary is made from."""
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from t5like.config_type import Config
from t5like.errors import DataError
from t5like.prepared import examples
from t5like.prepared.parts import Sources
from t5like.sources.registry import Source

Plan = dict[str, Any]  # the plan: format, inputs and parts

LARGE = 4  # times the sample for a vocabulary: of a larger source only some items are read for it
LEAST_ITEMS = 64  # read for a vocabulary, if a source has as many


def needs_all(config: Config) -> bool:
  """Whether the vocabulary is an alphabet, which must hold the characters of all text."""
  return config.vocabulary.name == 'characters'


def texts_for_vocabulary(config: Config, texts: Sources, plan: Plan) -> Iterator[str]:
  """Yields the texts to make a vocabulary from: of training text alone, except for an alphabet."""
  is_alphabet = needs_all(config)
  count = examples.new_count()
  used = 0
  held = None
  if plan['parts']:
    held = examples.held_by(plan['parts'][0])
  read = dict(train=texts['train'])
  if is_alphabet:
    read = texts
  for name, source in read.items():
    planned = [part for part in plan['parts'] if part['source'] == name]
    for part in _parts_to_read(config, source, planned):
      for example, _ in examples.examples(config, source, part, count):
        for split, pieces in examples.split_example(example, name, config, held):
          if is_alphabet or split == 'train':
            used += 1
            yield from pieces
  check_not_empty(config, count, used > 0)


def _parts_to_read(
    config: Config,
    source: Source,
    planned: Sequence[Mapping[str, Any]],
) -> list[dict[str, Any]]:
  """Parts of a source to make a vocabulary of; of a source far larger than the sample only some items."""
  if not planned:
    return [dict(start=0, stop=0, last=None)]
  end = planned[-1]
  items = end['stop']
  size = source.num_bytes * items // max(1, source.num_items)
  by_size = size // (LARGE * config.vocabulary.train_characters)
  by_number = items // LEAST_ITEMS
  step = max(1, min(by_size, by_number))
  if step == 1 or needs_all(config):
    return [dict(start=0, stop=items, last=end['last'])]
  single: list[dict[str, Any]] = []
  for i in range(0, items, step):
    item = dict(start=i, stop=i + 1, last=None)
    single.append(item)
  if single[-1]['stop'] == items:
    single[-1]['last'] = end['last']
  return single


def check_not_empty(
    config: Config,
    count: examples.Count,
    has_training_text: bool,
) -> None:
  """DataError where a dataset has nothing to train on."""
  source = config.data.source
  if count['documents'] == count['dropped']:
    raise DataError(f'data.source={source!r} holds no text: {count["documents"]} documents, all empty.')
  if not has_training_text:
    raise DataError(
        f"data.source={source!r} gives no text to train on: all of it went to validation. For few long documents, set "
        "data.validation='tail'.")
