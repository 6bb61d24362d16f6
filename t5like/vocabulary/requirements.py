"""Whether a vocabulary has the special tokens that objectives need: known before a single document is tokenised."""
import dataclasses
from collections.abc import Iterator
from typing import Any

from t5like import choices
from t5like.config_type import Config
from t5like.errors import ConfigError
from t5like.objectives import lengths
from t5like.objectives.spec import OneStack, Role
from t5like.vocabulary import loading as vocabulary_lib, special_tokens
from t5like.vocabulary.kinds import Bytes

SHOWN = 8  # special tokens that an error lists


@dataclasses.dataclass(frozen=True)
class Planned:
  """What is known of a vocabulary that is still to be made of the text. Attributes as of `vocabulary.Vocabulary`."""
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

  def special(self) -> dict[str, Any]:
    """{role: id} of the special tokens that there will be; of sentinels the names, for their ids depend on the text."""
    roles = dict(
        bos=self.bos_id,
        eos=self.eos_id,
        pad=self.pad_id,
        unk=self.unk_id,
        mask=self.mask_id,
        cls=self.cls_id,
        sep=self.sep_id,
        start=self.start_id,
    )
    return {role: i for role, i in roles.items() if i is not None}


def known(config: Config) -> Any:
  """The vocabulary of a config as far as it is known without its text: a Vocabulary, or a Planned.

  Reads a file only where vocabulary.path names one. Errors as of `vocabulary.imported`; ConfigError for a path without
  a file.
  """
  v = config.vocabulary
  if v.name == 'bytes':
    return Bytes(v.sentinels)
  if v.path or v.name == 'huggingface':
    vocabulary_lib.check_path(v)
    return vocabulary_lib.imported(v, v.path)
  if v.name == 'characters' and not v.specials:
    return Planned(0, *[None] * 6, name=v.name)
  return Planned(v.sentinels, name=v.name)


def check_vocabulary(config: Config, vocabulary: Any = None) -> Any:
  """Returns the vocabulary of a config; ConfigError, one paragraph, if it lacks a token that an objective needs.

  Args:
    config: the whole config; all components of a mixture are checked.
    vocabulary: the vocabulary, where it is there already; else what is `known` of it.
  """
  vocabulary = known(config) if vocabulary is None else vocabulary
  for component in lengths.components(config):
    for problem in _lacking(component, vocabulary):
      where = f'data.mixture.{component.name}: ' if config.data.mixture else ''
      raise ConfigError(where + problem)
  return vocabulary


def _lacking(component: lengths.Component, vocabulary: Any) -> Iterator[str]:
  c, entry, layout = component.config, component.objective, component.layout
  architecture = c.model.name
  named = f'objective.name={entry.name!r}'
  pairs = not isinstance(layout, OneStack)
  if vocabulary.eos_id is None:
    reason = _needs_an_end(named, c.data, pairs, vocabulary)
    if reason:
      yield f'{reason} needs a token that ends a document, and {_name(c)} {_says_none(vocabulary, "eos")}'
  if choices.ARCHITECTURES[architecture].has_encoder and vocabulary.start_id is None:
    yield (f"model.name='encoder_decoder' needs a token that the decoder begins with, and {_name(c)} "
           + _says_none(vocabulary, 'start'))
  # Streams of text have no beginnings; all other rows of a decoder do.
  begins = choices.ARCHITECTURES[architecture].decoder_only if pairs else layout.begins(c.data)
  if begins and vocabulary.bos_id is None:
    streams = not pairs and layout.streams
    plain = ' To train on text without beginnings, set data.document_mask=False.' if streams else ''
    yield (f'{named} with data.document_mask={c.data.document_mask} needs a token that texts begin with, and '
           f'{_name(c)} ' + _says_none(vocabulary, 'bos') + plain)
  keys = entry.read(c.objective)
  for role in entry.roles(keys):
    yield from _without_role(role, named, c, vocabulary)
  needs = entry.sentinels.count(keys, lengths.of(component))
  if vocabulary.num_sentinels < needs:
    yield (f'{named} needs {needs} sentinels (<extra_id_0>, ...), {entry.sentinels.explained} of '
           f'data.seq_len={c.data.seq_len}, and {_name(c)} has {vocabulary.num_sentinels}. {_more_sentinels(c, needs)}')


def _needs_an_end(named: str, data: Any, pairs: bool, vocabulary: Any) -> str:
  """The key that needs the end of documents, '' where none does."""
  if pairs:
    return named
  if not choices.PACKINGS[data.packing].windows:
    return f'data.packing={data.packing!r}'
  if data.document_mask:
    return 'data.document_mask=True'
  # Characters without special tokens run on over the ends of documents, as vocabulary.specials=False says.
  return 'data.append_eos=True' if data.append_eos and vocabulary.name != 'characters' else ''


def _without_role(role: Role, named: str, c: Any, vocabulary: Any) -> Iterator[str]:
  if getattr(vocabulary, f'{role.name}_id') is not None:
    return
  if c.vocabulary.name == 'huggingface' or c.vocabulary.path:
    fix = _says_none(vocabulary, role.name)
  else:
    fix = f'has none. {_more_sentinels(c, role.sentinels)}'
  yield f'{named} needs a token {role.purpose}, and {_name(c)} {fix}'


def _name(c: Any) -> str:
  v = c.vocabulary
  return f'vocabulary.path={v.path!r}' if v.path else f'vocabulary.name={v.name!r}'


def _says_none(vocabulary: Any, role: str) -> str:
  """That a vocabulary has no token of a role, and how to say which it is."""
  if vocabulary.name == 'characters':
    return 'with vocabulary.specials=False has none. Set vocabulary.specials=True.'
  if vocabulary.name not in ('huggingface', 'sentencepiece'):
    return 'has none. Use another vocabulary.name.'
  names = vocabulary.pieces(vocabulary.special_ids[:SHOWN])
  there = f' Its special tokens are {", ".join(map(repr, names))}' if names else ' It has no special tokens'
  more = f' and {len(vocabulary.special_ids) - SHOWN} more.' if len(vocabulary.special_ids) > SHOWN else '.'
  return (f"does not say which one that is, nor do the files beside it.{there}{more} Say it with "
          f"{special_tokens.flag(role)}TOKEN, the text of a token or its id.")


def _more_sentinels(c: Any, needs: int) -> str:
  v = c.vocabulary
  if v.name == 'characters' and not v.specials:
    return 'Set vocabulary.specials=True, and vocabulary.sentinels.'
  if v.name == 'huggingface':
    return ('A tokenizer.json cannot be given more: use one that has them, such as those of the T5 family, or '
            "vocabulary.name='sentencepiece'.")
  return f'Set vocabulary.sentinels to at least {needs}.'
