"""Whether a vocabulary has the special tokens that objectives need: known before a single document is tokenised."""
import dataclasses
from collections.abc import Iterator
from typing import TypeAlias

from t5like import choices
from t5like.config_type import Config, Section
from t5like.errors import ConfigError
from t5like.objectives import lengths
from t5like.objectives.spec import OneStack, Pair, Role
from t5like.vocabulary import loading as vocabulary_lib, special_tokens
from t5like.vocabulary.kinds import Bytes, Vocabulary

SHOWN = 8  # special tokens that an error lists
IMPORTED = ('huggingface', 'sentencepiece')  # kinds of vocabularies whose special tokens files say


@dataclasses.dataclass(frozen=True)
class Planned:
  """The known facts of a vocabulary that is still to be made of the text. Attributes as of `vocabulary.Vocabulary`."""
  num_sentinels: int
  bos_id: int | None = 0
  start_id: int | None = 0
  pad_id: int | None = 0
  eos_id: int | None = 1
  sep_id: int | None = 1
  unk_id: int | None = 2
  name: str = ''

  @property
  def mask_id(self) -> str | None:
    return '<extra_id_0>' if self.num_sentinels else None

  @property
  def cls_id(self) -> str | None:
    return '<extra_id_1>' if self.num_sentinels > 1 else None

  def special(self) -> dict[str, int | str]:
    """{role: id} of the special tokens that there will be; of sentinels the names: their ids depend on the text."""
    roles = dict(
        bos=self.bos_id,
        eos=self.eos_id,
        pad=self.pad_id,
        unk=self.unk_id,
        mask=self.mask_id,
        cls=self.cls_id,
        sep=self.sep_id,
        start=self.start_id)
    return {role: i for role, i in roles.items() if i is not None}


Known: TypeAlias = Vocabulary | Planned  # of a config, before its text is read


def known(config: Config) -> Known:
  """The vocabulary of a config as far as it is known without its text: a Vocabulary, or a Planned.

  Reads a file only where vocabulary.path names one. Errors as of `vocabulary.imported`; ConfigError for a path without
  a file.
  """
  spec = config.vocabulary
  if spec.name == 'bytes':
    return Bytes(spec.sentinels)
  if spec.path or spec.name == 'huggingface':
    vocabulary_lib.check_path(spec)
    return vocabulary_lib.imported(spec, spec.path)
  if _has_no_specials(spec):
    return Planned(
        num_sentinels=0, bos_id=None, start_id=None, pad_id=None, eos_id=None, sep_id=None, unk_id=None, name=spec.name)
  return Planned(spec.sentinels, name=spec.name)


def _has_no_specials(spec: Section) -> bool:
  """Whether `config.vocabulary` is one of characters alone."""
  return spec.name == 'characters' and not spec.specials


def check_vocabulary(config: Config, vocabulary: Known | None = None) -> Known:
  """Returns the vocabulary of a config; ConfigError, one paragraph, if it lacks a token that an objective needs.

  Args:
    config: the whole config; all components of a mixture are checked.
    vocabulary: the vocabulary, where it exists already; else `known` of the config.
  """
  if vocabulary is None:
    vocabulary = known(config)
  for component in lengths.components(config):
    for problem in _lacking(component, vocabulary):
      where = f'data.mixture.{component.name}: ' if config.data.mixture else ''
      raise ConfigError(where + problem)
  return vocabulary


def _lacking(component: lengths.Component, vocabulary: Known) -> Iterator[str]:
  """What a vocabulary lacks of the tokens that rows of a component need, a sentence each."""
  config = component.config
  entry = component.objective
  named = f'objective.name={entry.name!r}'
  yield from _without_end(component, named, vocabulary)
  has_encoder = choices.ARCHITECTURES[config.model.name].has_encoder
  if has_encoder and vocabulary.start_id is None:
    yield (f'model.name={config.model.name!r} needs a token that the decoder begins with, and {_name(config)} '
           + _says_none(vocabulary, 'start'))
  yield from _without_beginning(component, named, vocabulary)
  keys = entry.read(config.objective)
  for role in entry.roles(keys):
    yield from _without_role(role, named, config, vocabulary)
  needs = entry.sentinels.count(keys, lengths.of(component))
  if vocabulary.num_sentinels < needs:
    yield (f'{named} needs {needs} sentinels (<extra_id_0>, ...), {entry.sentinels.explained} of '
           f'data.seq_len={config.data.seq_len}, and {_name(config)} has {vocabulary.num_sentinels}. '
           f'{_more_sentinels(config.vocabulary, needs)}')


def _without_end(
    component: lengths.Component,
    named: str,
    vocabulary: Known,
) -> Iterator[str]:
  if vocabulary.eos_id is not None:
    return
  config = component.config
  reason = _needs_an_end(config.data, vocabulary)
  if isinstance(component.layout, Pair):
    reason = named
  if reason:
    yield f'{reason} needs a token that ends a document, and {_name(config)} {_says_none(vocabulary, "eos")}'


def _needs_an_end(data: Section, vocabulary: Known) -> str:
  """The key by which rows of one stack need the end of documents, '' where none does."""
  if not choices.PACKINGS[data.packing].windows:
    return f'data.packing={data.packing!r}'
  if data.document_mask:
    return 'data.document_mask=True'
  # Characters without special tokens run on over the ends of documents, as vocabulary.specials=False says.
  if data.append_eos and vocabulary.name != 'characters':
    return 'data.append_eos=True'
  return ''


def _without_beginning(
    component: lengths.Component,
    named: str,
    vocabulary: Known,
) -> Iterator[str]:
  """Streams of text have no beginnings; all other rows of a decoder do."""
  if vocabulary.bos_id is not None:
    return
  config = component.config
  layout = component.layout
  plain = ''
  if isinstance(layout, OneStack):
    begins = layout.begins(config.data)
    if layout.streams:
      plain = ' To train on text without beginnings, set data.document_mask=False.'
  else:
    begins = choices.ARCHITECTURES[config.model.name].decoder_only
  if begins:
    yield (f'{named} with data.document_mask={config.data.document_mask} needs a token that texts begin with, and '
           f'{_name(config)} {_says_none(vocabulary, "bos")}{plain}')


def _without_role(
    role: Role,
    named: str,
    config: Config,
    vocabulary: Known,
) -> Iterator[str]:
  if getattr(vocabulary, f'{role.name}_id') is not None:
    return
  spec = config.vocabulary
  if spec.name == 'huggingface' or spec.path:
    fix = _says_none(vocabulary, role.name)
  else:
    fix = f'has none. {_more_sentinels(spec, role.sentinels)}'
  yield f'{named} needs a token {role.purpose}, and {_name(config)} {fix}'


def _name(config: Config) -> str:
  spec = config.vocabulary
  if spec.path:
    return f'vocabulary.path={spec.path!r}'
  return f'vocabulary.name={spec.name!r}'


def _says_none(vocabulary: Known, role: str) -> str:
  """That a vocabulary has no token of a role, and how to say which it is."""
  if vocabulary.name == 'characters':
    return 'with vocabulary.specials=False has none. Set vocabulary.specials=True.'
  if isinstance(vocabulary, Planned) or vocabulary.name not in IMPORTED:
    return 'has none. Use another vocabulary.name.'
  return (f"does not say which one that is, nor do the files beside it. {_special_tokens(vocabulary)} Say it with "
          f"{special_tokens.flag(role)}TOKEN, the text of a token or its id.")


def _special_tokens(vocabulary: Vocabulary) -> str:
  """A sentence on the special tokens that a vocabulary has."""
  names = vocabulary.pieces(vocabulary.special_ids[:SHOWN])
  if not names:
    return 'It has no special tokens.'
  listed = ', '.join(map(repr, names))
  more = len(vocabulary.special_ids) - SHOWN
  if more > 0:
    listed += f' and {more} more'
  return f'Its special tokens are {listed}.'


def _more_sentinels(spec: Section, needs: int) -> str:
  """How to have more sentinels."""
  if _has_no_specials(spec):
    return 'Set vocabulary.specials=True, and vocabulary.sentinels.'
  if spec.name == 'huggingface':
    return ('A tokenizer.json cannot be given more: use one that has them, such as those of the T5 family, or '
            "vocabulary.name='sentencepiece'.")
  return f'Set vocabulary.sentinels to at least {needs}.'
