"""Which sources, splits and special tokens go together: the rules of config.data and config.vocabulary."""
from collections.abc import Iterator
from typing import Any

from t5like import choices
from t5like.choices import SOURCES
from t5like.config.values import either, show
from t5like.config_type import Config, Section
from t5like.errors import ConfigError
from t5like.nearest import nearest, suggestion
from t5like.objectives import lengths

HELD_OUT = ('hash', 'tail')  # of the documents of data.source itself
SPECIAL = ('bos', 'eos', 'pad', 'unk', 'mask', 'cls', 'sep', 'start')  # roles of vocabulary.special
ALPHABET = range(2, 27)  # letters that generated texts may be of
OWN_TOKENS = 260  # of a SentencePiece model: padding, end, unknown, 256 bytes and one piece of text


def check_data(config: Config) -> Iterator[str]:
  """Yields what is wrong with `config.data`, and with the datasets of its mixture."""
  data = config.data
  try:
    lengths.skipped(data.skip_rows)
  except ConfigError as error:
    yield str(error)
  by_examples = choices.MIXTURE_RATES[data.mixture_rates].by_examples
  if not by_examples and (data.mixture_cap or data.mixture_temperature != 1):
    yield (f'data.mixture_cap={data.mixture_cap}, data.mixture_temperature={data.mixture_temperature:g}: belong '
           "to data.mixture_rates='examples'. Set that, or 0 and 1.")
  if not data.mixture:
    yield from _dataset(data)
    return
  for component in _components(config):
    for problem in _dataset(component.config.data):
      yield f'data.mixture.{component.name}: {problem}'


def _components(config: Config) -> list[lengths.Component]:
  try:
    return lengths.components(config)
  except ConfigError:
    return []  # objective_rules reports it


# --- Sources --------------------------------------------------------------------------------------


def _source(key: str, source: str) -> Iterator[str]:
  """What is wrong with the value of data.source, or with a source in data.validation."""
  kind, colon, rest = source.partition(':')
  written = f'{key}={show(source)}'
  if kind not in SOURCES:
    kinds = []
    for name, argument in SOURCES.items():
      kinds.append(f'{name}:{argument}' if argument else name)
    yield f'{written}: unknown kind. {suggestion(kind, SOURCES)}There is {either(kinds)}.'
    return
  argument = SOURCES[kind]
  if not argument and colon:
    yield f'{written}: write {kind}.'
  elif argument and not rest:
    yield f'{written}: write {kind}:{argument}.'
  elif argument in ('STATES', 'SYMBOLS') and not _is_alphabet(rest):
    yield f'{written}: {argument} is a number from 2 to 26, as in {kind}:8.'


def _is_alphabet(text: str) -> bool:
  """Whether a text is a number of letters of the alphabet."""
  return text.isdecimal() and int(text[:9]) in ALPHABET


def validation_source(data: Section) -> str:
  """'text:GLOB' or another source of validation text that data.validation names; '' for 'hash', 'tail' and splits.

  A glob alone is of the kind of data.source, where that reads files.
  """
  if data.validation in HELD_OUT:
    return ''
  named, named_colon, rest = data.validation.partition(':')
  if named in SOURCES and (named_colon or not SOURCES[named]):
    return data.validation
  kind, colon, _ = data.source.partition(':')
  reads_files = bool(colon) and SOURCES.get(kind) == 'GLOB'
  if not reads_files:
    return ''
  is_unknown_kind = bool(named_colon) and named.isidentifier() and not rest.startswith('//')
  if is_unknown_kind:
    return data.validation
  looks_like_files = any(mark in data.validation for mark in '*?[/.~$')
  return f'{kind}:{data.validation}' if looks_like_files else ''


def _dataset(data: Section) -> Iterator[str]:
  """What is wrong with the keys of one dataset."""
  yield from _source('data.source', data.source)
  if data.validation not in HELD_OUT:
    yield from _validation(data)
    return
  if not 0 < data.validation_fraction < 1:
    yield (f'data.validation_fraction={data.validation_fraction}: must be above 0 and below 1, '
           f'such as 0.01, for data.validation={data.validation!r}.')
  if data.targets and data.validation == 'tail':
    yield ("data.validation='tail': cuts texts in two, which examples of data.inputs and data.targets cannot "
           "be. Use 'hash'.")


def _validation(data: Section) -> Iterator[str]:
  """What is wrong with a data.validation that is a split, a source or a glob."""
  written = f'data.validation={show(data.validation)}'
  has_splits = data.source.partition(':')[0] == 'tfds'
  source = validation_source(data)
  if source:
    yield from _source('data.validation', source)
    if source == data.source and not has_splits:
      yield f"{written}: is data.source itself, and what is trained on cannot validate. Use 'hash' or 'tail'."
    return
  near = nearest(data.validation, HELD_OUT, close=0.7)  # a split may be called train
  if near:
    yield f'{written}: did you mean {near[0]!r}?'
  elif not has_splits:
    yield (f"{written}: only TFDS datasets have named splits, and data.source is {show(data.source)}. Use 'hash' or "
           "'tail', or give files of their own, such as 'text:validation/*.txt'.")


# --- Vocabularies ---------------------------------------------------------------------------------


def check_vocabulary(config: Config) -> Iterator[str]:
  """Yields what is wrong with `config.vocabulary`."""
  vocabulary = config.vocabulary
  if vocabulary.name == 'huggingface' and not vocabulary.path:
    yield ("vocabulary.name='huggingface': needs vocabulary.path, the tokenizer.json of a model. To train a "
           "vocabulary, use 'sentencepiece'.")
  if vocabulary.name == 'bytes' and vocabulary.path:
    yield f"vocabulary.path={show(vocabulary.path)}: bytes need no file. Use ''."
  yield from _special(vocabulary)
  if vocabulary.name == 'characters' and not vocabulary.specials:
    yield from _without_specials(config)
  if vocabulary.name == 'sentencepiece' and not vocabulary.path:
    yield from _size(vocabulary)


def _without_specials(config: Config) -> Iterator[str]:
  """What is wrong with a config whose vocabulary has no special tokens."""
  if config.data.document_mask:
    yield ('data.document_mask=True: needs an end-of-document token, and vocabulary.specials=False '
           'has none. Set data.document_mask=False or vocabulary.specials=True.')
  if '' in config.sample.prompts:
    yield (f'sample.prompts={show(config.sample.prompts)}: vocabulary.specials=False leaves no way to '
           "begin from nothing. Give a text such as ('a',), or () for no samples.")


def _size(vocabulary: Section) -> Iterator[str]:
  """What is wrong with the size of a vocabulary that is to be trained."""
  least = OWN_TOKENS + vocabulary.sentinels
  if vocabulary.size < least:
    yield (f'vocabulary.size={vocabulary.size}: too small for 3 special tokens, 256 bytes and '
           f'vocabulary.sentinels={vocabulary.sentinels}. Use at least {least}, better 1024 and more.')


def _special(vocabulary: Section) -> Iterator[str]:
  """What is wrong with vocabulary.special."""
  special: dict[str, Any] = vocabulary.special.to_dict()
  for role, token in special.items():
    written = f'vocabulary.special.{role}={show(token)}'
    if role not in SPECIAL:
      yield f'{written}: unknown role. {suggestion(role, SPECIAL)}There is {either(SPECIAL)}.'
    elif isinstance(token, bool) or not isinstance(token, (str, int)):
      yield f"{written}: give the text of a token, such as '</s>', its id, or '' where there is none."
  is_imported = bool(vocabulary.path) and vocabulary.name in ('sentencepiece', 'huggingface')
  if special and not is_imported:
    yield (f'vocabulary.special={show(special)}: belongs to an imported tokenizer (vocabulary.path with '
           "vocabulary.name='huggingface' or 'sentencepiece'); the others have special tokens of their own. Use {}.")
