"""Our vocabularies as files that the library transformers loads: a tokenizer.json, and its settings.

SentencePiece models are rebuilt from their pieces and scores (Kudo & Richardson 2018, arXiv 1808.06226)
in terms of the library tokenizers, bytes and characters as byte-pair encodings without pairs. The result
is compared with the vocabulary on a few texts before it is returned. Differences that remain,
in unigram models: where two ways to cut a text are equally likely, as in long rulers of dashes, another
may be taken; and the letters <0x0A> may be taken for that byte where < itself has no piece.
"""
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from t5like.errors import ConfigError
from t5like.files import plain_json
from t5like.objectives.prompts import STYLES
from t5like.vocabulary import special_tokens
from t5like.vocabulary.kinds import BYTES, SPACE, SPECIALS
from t5like.vocabulary.tokenizer_json import HuggingFace

TEXTS = (
    'The quick brown fox jumps over the lazy dog.',
    'def f(x):\n  return {"a": x[1:], 2: None}\n\n\n',
    '  two  spaces  ',
    'naïve Ångström, 3.14159 €, 日本語 и русский, עברית',
    'a\tb\r\nc',
    'line\n',
    '',
    ' ',
    '1234567890 ' * 5,
    "It's 5 o'clock; isn't it?",
    '🙂👩‍💻',
    'ﬁne ½ Ⅳ',
)
NEVER = -1e4  # score of pieces that text cannot have: 40 characters of any text score more
COMPARED = ('eos_id', 'pad_id', 'mask_id')
SHOWN = 8  # ids of a text that are reported
TEXT = '$A'  # where the text stands in a template

Template = list[int | str]  # ids around a text, and TEXT
Order = dict[str, tuple[float, int]]  # sort keys of pieces, the best first


def difference(ours: Any, theirs: Any) -> str:
  """Where two vocabularies differ on TEXTS and in special tokens that both have, as words for people; or ''."""
  return _different_text(ours, theirs) or _different_token(ours, theirs)


def _different_text(ours: Any, theirs: Any) -> str:
  for text in TEXTS:
    try:
      our_ids = np.asarray(ours.encode(text)).tolist()
      their_ids = np.asarray(theirs.encode(text)).tolist()
    except Exception as error:  # a character that one of them does not have
      return f'{text!r} cannot be encoded ({error})'
    if our_ids != their_ids:
      return f'{text!r} is {their_ids[:SHOWN]}, not {our_ids[:SHOWN]}'
  return ''


def _different_token(ours: Any, theirs: Any) -> str:
  for name in COMPARED:
    our_id = getattr(ours, name)
    their_id = getattr(theirs, name)
    if our_id is not None and their_id is not None and our_id != their_id:
      return f'{name} is {their_id}, not {our_id}'
  both = min(ours.num_sentinels, theirs.num_sentinels)
  for k in range(both):
    our_id = ours.sentinel(k)
    their_id = theirs.sentinel(k)
    if our_id != their_id:
      return f'<extra_id_{k}> is {their_id}, not {our_id}'
  return ''


def files(
    vocabulary: Any,
    style: str = '',
    length: int = 0,
) -> tuple[dict[str, bytes], list[str]]:
  """({file name: content}, notes) for a folder that transformers' AutoTokenizer loads.

  Args:
    vocabulary: of any kind.
    style: decode.style_of(config), for the tokens around texts.
    length: the longest text of the model, in tokens; 0: not written.

  Returns:
    The files, and notes that say what could not be written, and why.

  Raises:
    ConfigError: the package tokenizers is missing.
  """
  content: dict[str, bytes] = {}
  if vocabulary.name == 'sentencepiece':
    content['spiece.model'] = vocabulary.file
  if vocabulary.name == 'huggingface':
    content['tokenizer.json'] = _with_template(vocabulary, style)
  else:
    built = _build(vocabulary, style)
    wrong = _difference_of_built(vocabulary, built)
    if wrong:
      return content, [f'No tokenizer.json was written, because in it {wrong}.']
    content['tokenizer.json'] = built
  tokens = _tokens(vocabulary, style)
  content['tokenizer_config.json'] = _settings(vocabulary, tokens, length)
  content['special_tokens_map.json'] = _to_json(tokens)
  return content, []


def _difference_of_built(vocabulary: Any, content: bytes) -> str:
  """How a tokenizer.json differs from the vocabulary, or ''."""
  if vocabulary.unk_id is None:  # it does not have the characters of TEXTS
    return ''
  special = special_tokens.of_vocabulary(vocabulary)
  wrapped = special_tokens.wrap('huggingface', special, content)
  return difference(vocabulary, HuggingFace(wrapped))


def _with_template(vocabulary: Any, style: str) -> bytes:
  """The tokenizer.json of a vocabulary, unchanged unless it puts other ids around texts than a run does."""
  template = _template(vocabulary, style)
  place = template.index(TEXT)
  before = tuple(template[:place])
  after = tuple(template[place + 1:])
  own = vocabulary.own
  if not style or (before, after) == (own.before, own.after):
    return vocabulary.file
  import tokenizers
  text = vocabulary.file.decode()
  tokenizer: Any = tokenizers.Tokenizer.from_str(text)
  tokenizer.post_processor = _post_processor(tokenizers, vocabulary, template)
  return tokenizer.to_str().encode()


def _tokens(vocabulary: Any, style: str) -> dict[str, str]:
  """{bos_token: text, ..} of the special tokens of a run of this style."""
  roles = ['pad', 'eos', 'unk']
  if vocabulary.is_imported or (style and STYLES[style].fills):
    roles += ['mask', 'cls']
    if vocabulary.cls_id is not None:
      roles.append('sep')
  if vocabulary.is_imported or (style and STYLES[style].begins):
    roles.append('bos')
  tokens = {}
  for role in roles:
    i = getattr(vocabulary, f'{role}_id')
    if i is not None:
      tokens[f'{role}_token'] = vocabulary.token(i)
  return tokens


def _settings(
    vocabulary: Any,
    tokens: Mapping[str, str],
    length: int,
) -> bytes:
  """The content of tokenizer_config.json."""
  settings: dict[str, Any] = dict(
      tokenizer_class='PreTrainedTokenizerFast',
      clean_up_tokenization_spaces=False,
      model_input_names=['input_ids', 'attention_mask'],
      padding_side='right',
      **tokens,
  )
  sentinels = []
  for k in range(vocabulary.num_sentinels):
    i = vocabulary.sentinel(k)
    sentinels.append(vocabulary.token(i))
  if sentinels:
    settings['additional_special_tokens'] = sentinels
  if length:
    settings['model_max_length'] = length
  return _to_json(settings)


def _to_json(values: Any) -> bytes:
  text = plain_json.dumps(values, indent=2)
  return f'{text}\n'.encode()


def _build(vocabulary: Any, style: str) -> bytes:
  """The bytes of a tokenizer.json."""
  try:
    import tokenizers
  except ImportError as error:
    raise ConfigError('Writing a tokenizer needs the package tokenizers; run: '
                      "pip install -e '.[hf]'") from error
  build = BUILDERS[vocabulary.name]
  tokenizer = build(tokenizers, vocabulary)
  special = []
  for name in vocabulary.pieces(vocabulary.special_ids):
    token = tokenizers.AddedToken(name, special=True, normalized=False)
    special.append(token)
  tokenizer.add_special_tokens(special)
  template = _template(vocabulary, style)
  tokenizer.post_processor = _post_processor(tokenizers, vocabulary, template)
  return tokenizer.to_str().encode()


def _post_processor(
    tokenizers: Any,
    vocabulary: Any,
    template: Template,
) -> Any:
  """The processor that puts the ids of a template around texts; None where there are none; tokenizers: the package."""
  single = []
  special = []
  for i in template:
    if i == TEXT:
      single.append(TEXT)
      continue
    name = vocabulary.token(i)
    single.append(name)
    token = (name, int(i))
    if token not in special:
      special.append(token)
  if not special:
    return None
  return tokenizers.processors.TemplateProcessing(
      single=single,
      pair=[*single, '$B:1'],
      special_tokens=special,
  )


def _template(vocabulary: Any, style: str) -> Template:
  """The ids that a row of training has around its text."""
  if not style:
    return [TEXT]
  prompt = STYLES[style]
  if prompt.framed:
    return [*_one(vocabulary.cls_id), TEXT, *_one(vocabulary.sep_id)]
  before = []
  if prompt.begins:
    before = _one(vocabulary.bos_id)
  after = []
  if prompt.ends:
    after = _one(vocabulary.eos_id)
  if prompt.slides:
    after = list(vocabulary.after)
  return [*before, TEXT, *after]


def _one(i: int | None) -> list[int]:
  if i is None:
    return []
  return [i]


# --- SentencePiece --------------------------------------------------------------------------------


def _sentencepiece(tokenizers: Any, vocabulary: Any) -> Any:
  model = _model_proto(vocabulary.file)
  trained = model.trainer_spec
  pieces = _scored_pieces(model, vocabulary)
  if trained.model_type == trained.UNIGRAM:
    inside = tokenizers.models.Unigram(
        pieces,
        vocabulary.unk_id,
        trained.byte_fallback,
    )
  else:
    ids = {piece: i for i, (piece, _) in enumerate(pieces)}
    unknown, _ = pieces[vocabulary.unk_id]
    order = _order(model, vocabulary)
    inside = tokenizers.models.BPE(
        ids,
        _merges(order),
        unk_token=unknown,
        byte_fallback=trained.byte_fallback,
        fuse_unk=True,
    )
  tokenizer = tokenizers.Tokenizer(inside)
  tokenizer.normalizer = _normalizer(
      tokenizers.normalizers,
      tokenizers.Regex,
      model.normalizer_spec,
  )
  tokenizer.decoder = _decoder(tokenizers.decoders, model.normalizer_spec)
  return tokenizer


def _model_proto(file: bytes) -> Any:
  """The ModelProto of a .model file."""
  try:
    from sentencepiece import sentencepiece_model_pb2
  except Exception as error:  # protobuf's own error, whose class older ones lack
    raise ConfigError('Writing a tokenizer needs a newer protobuf than the one here, which another package may have '
                      f'asked for (apache-beam does): {str(error).partition(". ")[0]}. Export from a virtual '
                      "environment without that package, made by pip install -e '.[hf]'.") from error
  proto: Any = sentencepiece_model_pb2
  return proto.ModelProto.FromString(file)


def _is_text(piece: Any) -> bool:
  """Whether a piece of a ModelProto is one that text may have."""
  return piece.type in (piece.NORMAL, piece.USER_DEFINED)


def _scored_pieces(model: Any, vocabulary: Any) -> list[tuple[str, float]]:
  """(piece, score) of each id of the vocabulary."""
  pieces = []
  for piece in model.pieces:
    score = NEVER
    if _is_text(piece):
      score = piece.score
    pieces.append((piece.piece, score))
  added = range(len(pieces), vocabulary.size)
  for name in vocabulary.pieces(added):
    pieces.append((name, NEVER))
  for i in vocabulary.special_ids.tolist():  # ordinary pieces too, in models of others
    if i != vocabulary.unk_id:
      (name,) = vocabulary.pieces([i])
      pieces[i] = (name, NEVER)
  return pieces


def _order(model: Any, vocabulary: Any) -> Order:
  """{piece: its sort key, the best first} of the ordinary pieces."""
  order = {}
  for i, piece in enumerate(model.pieces):
    if _is_text(piece) and i not in vocabulary.special_ids:
      order[piece.piece] = (-piece.score, i)
  return order


def _normalizer(
    normalizers: Any,
    Regex: Any,
    spec: Any,
) -> Any:
  """A normalizer of the library; spec: a NormalizerSpec."""
  steps = []
  if spec.precompiled_charsmap:
    steps.append(normalizers.Precompiled(spec.precompiled_charsmap))
  if spec.remove_extra_whitespaces:
    at_ends = Regex(r'\A +| +\z')
    several = Regex(' {2,}')
    steps.append(normalizers.Replace(at_ends, ''))
    steps.append(normalizers.Replace(several, ' '))
  if spec.add_dummy_prefix:
    steps.append(normalizers.Prepend(SPACE))
  steps.append(normalizers.Replace(' ', SPACE))
  return normalizers.Sequence(steps)


def _decoder(decoders: Any, spec: Any) -> Any:
  """A decoder of the library; spec: a NormalizerSpec."""
  steps = [
      decoders.Replace(SPACE, ' '),
      decoders.ByteFallback(),
      decoders.Fuse(),
  ]
  if spec.add_dummy_prefix:
    steps.append(decoders.Strip(' ', 1, 0))
  return decoders.Sequence(steps)


def _merges(order: Order) -> list[tuple[str, str]]:
  """Pairs of pieces that make a piece, best first; `order`: {piece: its sort key}."""
  merges = []
  for piece, place in order.items():
    for k in range(1, len(piece)):
      left = piece[:k]
      right = piece[k:]
      if left in order and right in order:
        merges.append((place, order[left], order[right], (left, right)))
  merges.sort()
  return [pair for *_, pair in merges]


# --- Bytes and characters -------------------------------------------------------------------------


def _bytes(tokenizers: Any, vocabulary: Any) -> Any:
  """No piece is a character, so all text falls back to bytes."""
  names = [*SPECIALS]
  names += [f'<0x{byte:02X}>' for byte in range(BYTES)]
  sentinels = range(len(names), vocabulary.size)
  names += vocabulary.pieces(sentinels)
  ids = {name: i for i, name in enumerate(names)}
  model = tokenizers.models.BPE(
      ids,
      [],
      unk_token='<unk>',
      byte_fallback=True,
  )
  tokenizer = tokenizers.Tokenizer(model)
  decoders = tokenizers.decoders
  tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
  return tokenizer


def _characters(tokenizers: Any, vocabulary: Any) -> Any:
  characters: Sequence[str] = json.loads(vocabulary.content)['characters']
  special = vocabulary.special_ids.tolist()
  ids = dict(zip(vocabulary.pieces(special), special))
  first = 0
  unknown: dict[str, Any] = {}
  if vocabulary.unk_id is not None:
    first = len(SPECIALS)
    unknown = dict(unk_token='<unk>', fuse_unk=False)
  for i, character in enumerate(characters, first):
    ids[character] = i
  model = tokenizers.models.BPE(ids, [], **unknown)
  tokenizer = tokenizers.Tokenizer(model)
  tokenizer.decoder = tokenizers.decoders.Fuse()
  return tokenizer


# Functions (the package tokenizers, the vocabulary) that return a tokenizer of the library.
BUILDERS: Mapping[str, Callable[[Any, Any], Any]] = dict(
    sentencepiece=_sentencepiece,
    bytes=_bytes,
    characters=_characters,
)
