"""Our vocabularies as files that the library transformers loads: a tokenizer.json, and its settings.

SentencePiece models are rebuilt from their pieces and scores (Kudo & Richardson 2018, arXiv 1808.06226)
in terms of the library tokenizers, bytes and characters as byte-pair encodings without pairs. What was
made is compared with the vocabulary on a few texts before it is given out. Differences that stay,
in unigram models: where two ways to cut a text are equally likely, as in long rulers of dashes, another
may be taken; and the letters <0x0A> may be taken for that byte where < itself has no piece.
"""
import json

import numpy as np

from t5like import plain_json
from t5like.data import special_tokens
from t5like.data.tokenizer_json import HuggingFace
from t5like.data.vocabulary_kinds import SPACE
from t5like.errors import ConfigError
from t5like.objectives.prompts import STYLES

TEXTS = (
    'The quick brown fox jumps over the lazy dog.', 'def f(x):\n  return {"a": x[1:], 2: None}\n\n\n',
    '  two  spaces  ', 'naïve Ångström, 3.14159 €, 日本語 и русский, עברית', 'a\tb\r\nc', 'line\n', '', ' ',
    '1234567890 ' * 5, "It's 5 o'clock; isn't it?", '🙂👩‍💻', 'ﬁne ½ Ⅳ')
NEVER = -1e4  # score of pieces that text cannot have: 40 characters of any text score more


def difference(ours, theirs):
  """Where two vocabularies differ on TEXTS and in special tokens that both have, as words for people; or ''."""
  for text in TEXTS:
    try:
      a, b = (np.asarray(v.encode(text)).tolist() for v in (ours, theirs))
    except Exception as e:  # a character that one of them does not have
      return f'{text!r} cannot be encoded ({e})'
    if a != b:
      return f'{text!r} is {b[:8]}, not {a[:8]}'
  for name in ('eos_id', 'pad_id', 'mask_id'):
    a, b = getattr(ours, name), getattr(theirs, name)
    if None not in (a, b) and a != b:
      return f'{name} is {b}, not {a}'
  for k in range(min(ours.num_sentinels, theirs.num_sentinels)):
    if ours.sentinel(k) != theirs.sentinel(k):
      return f'<extra_id_{k}> is {theirs.sentinel(k)}, not {ours.sentinel(k)}'
  return ''


def files(vocabulary, style='', length=0):
  """({file name: bytes}, notes) for a folder that transformers' AutoTokenizer loads.

  `style`: decode.style_of(config), for what goes around texts; `length`: the longest text of the model.
  Notes say what could not be written, and why. ConfigError without the package tokenizers.
  """
  found = {}
  if vocabulary.name == 'sentencepiece':
    found['spiece.model'] = vocabulary.file
  if vocabulary.name == 'huggingface':
    content = _around_anew(vocabulary, style)
  else:
    content = _build(vocabulary, style)
    wrong = difference(vocabulary, _read_back(vocabulary, content)) if vocabulary.unk_id is not None else ''
    if wrong:
      return found, [f'No tokenizer.json was written, for in it {wrong}.']
  tokens = _tokens(vocabulary, style)
  found.update({'tokenizer.json': content, 'tokenizer_config.json': _settings(vocabulary, tokens, length),
                'special_tokens_map.json': _text(tokens)})
  return found, []


def _read_back(vocabulary, content):
  return HuggingFace(special_tokens.wrap('huggingface', special_tokens.of(vocabulary), content))


def _around_anew(vocabulary, style):
  """The tokenizer.json of a vocabulary, as it was unless it puts something else around texts than a run does."""
  wants = _template(vocabulary, style)
  at = wants.index('$A')
  has = vocabulary.own.before, vocabulary.own.after
  if not style or has == (tuple(wants[:at]), tuple(wants[at + 1:])):
    return vocabulary.file
  import tokenizers
  tokenizer = tokenizers.Tokenizer.from_str(vocabulary.file.decode())
  tokenizer.post_processor = _post_processor(tokenizers, vocabulary, wants)
  return tokenizer.to_str().encode()


def _tokens(vocabulary, style):
  """{bos_token: text, ..} of the special tokens that there are in a run of this style."""
  v = vocabulary
  ids = dict(pad_token=v.pad_id, eos_token=v.eos_id, unk_token=v.unk_id)
  way = STYLES[style] if style else None
  if v.is_imported or (way is not None and way.fills):
    ids.update(mask_token=v.mask_id, cls_token=v.cls_id, sep_token=None if v.cls_id is None else v.sep_id)
  if v.is_imported or (way is not None and way.begins):
    ids.update(bos_token=v.bos_id)
  return {name: v.token(i) for name, i in ids.items() if i is not None}


def _settings(vocabulary, tokens, length):
  settings = dict(tokenizer_class='PreTrainedTokenizerFast', clean_up_tokenization_spaces=False,
                  model_input_names=['input_ids', 'attention_mask'], padding_side='right', **tokens)
  sentinels = [vocabulary.token(vocabulary.sentinel(k)) for k in range(vocabulary.num_sentinels)]
  if sentinels:
    settings['additional_special_tokens'] = sentinels
  if length:
    settings['model_max_length'] = length
  return _text(settings)


def _text(values):
  return (plain_json.dumps(values, indent=2) + '\n').encode()


def _build(vocabulary, style):
  """The bytes of a tokenizer.json."""
  try:
    import tokenizers
  except ImportError as e:
    raise ConfigError("Writing a tokenizer needs the package tokenizers; run: pip install -e '.[hf]'") from e
  make = dict(sentencepiece=_sentencepiece, bytes=_bytes, characters=_characters)[vocabulary.name]
  tokenizer = make(tokenizers, vocabulary)
  names = [vocabulary.pieces([i])[0] for i in vocabulary.special_ids]
  tokenizer.add_special_tokens([tokenizers.AddedToken(n, special=True, normalized=False) for n in names])
  tokenizer.post_processor = _post_processor(tokenizers, vocabulary, _template(vocabulary, style))
  return tokenizer.to_str().encode()


def _post_processor(tokenizers, vocabulary, around):
  """What puts the ids `around`, in which '$A' stands for the text, around texts; None where there are none."""
  ids = {i: vocabulary.token(i) for i in around if i != '$A'}
  if not ids:
    return None
  single = [ids.get(i, i) for i in around]
  return tokenizers.processors.TemplateProcessing(
      single=single, pair=[*single, '$B:1'],
      special_tokens=[(name, int(i)) for i, name in ids.items()])


def _template(vocabulary, style):
  """What a row of training has around its text: ids, and '$A' for the text."""
  if not style:
    return ['$A']
  v, way = vocabulary, STYLES[style]
  if way.framed:
    return [*_present(v.cls_id), '$A', *_present(v.sep_id)]
  before = _present(v.bos_id) if way.begins else []
  behind = _present(v.eos_id) if way.ends else []
  if way.slides:
    behind = list(v.after)
  return [*before, '$A', *behind]


def _present(i):
  return [] if i is None else [i]


def _sentencepiece(tokenizers, vocabulary):
  try:
    from sentencepiece import sentencepiece_model_pb2
  except Exception as e:  # protobuf's own error, whose class older ones lack
    raise ConfigError(f'Writing a tokenizer needs a newer protobuf than the one here, which another package may have '
                      f'asked for (apache-beam does): {str(e).partition(". ")[0]}. Export from a virtual environment '
                      "without that package, made by pip install -e '.[hf]'.") from e
  model = sentencepiece_model_pb2.ModelProto.FromString(vocabulary.file)
  Piece = sentencepiece_model_pb2.ModelProto.SentencePiece
  text = (Piece.NORMAL, Piece.USER_DEFINED)
  pieces = [(p.piece, p.score if p.type in text else NEVER) for p in model.pieces]
  pieces += [(vocabulary.pieces([i])[0], NEVER) for i in range(len(pieces), vocabulary.size)]
  for i in vocabulary.special_ids.tolist():  # pieces too, in models of others
    if i != vocabulary.unk_id:
      pieces[i] = (vocabulary.pieces([i])[0], NEVER)
  unknown = pieces[vocabulary.unk_id][0]
  if model.trainer_spec.model_type == model.trainer_spec.UNIGRAM:
    inside = tokenizers.models.Unigram(pieces, vocabulary.unk_id, model.trainer_spec.byte_fallback)
  else:
    order = {p.piece: (-p.score, i) for i, p in enumerate(model.pieces)
             if p.type in text and i not in vocabulary.special_ids}
    inside = tokenizers.models.BPE({p: i for i, (p, _) in enumerate(pieces)}, _merges(order), unk_token=unknown,
                                   byte_fallback=model.trainer_spec.byte_fallback, fuse_unk=True)
  tokenizer = tokenizers.Tokenizer(inside)
  spec, n, d = model.normalizer_spec, tokenizers.normalizers, tokenizers.decoders
  steps = [n.Precompiled(spec.precompiled_charsmap)] if spec.precompiled_charsmap else []
  if spec.remove_extra_whitespaces:
    steps += [n.Replace(tokenizers.Regex(r'\A +| +\z'), ''), n.Replace(tokenizers.Regex(' {2,}'), ' ')]
  prefix = [n.Prepend(SPACE)] if spec.add_dummy_prefix else []
  tokenizer.normalizer = n.Sequence([*steps, *prefix, n.Replace(' ', SPACE)])
  tokenizer.decoder = d.Sequence([d.Replace(SPACE, ' '), d.ByteFallback(), d.Fuse(),
                                  *([d.Strip(' ', 1, 0)] if prefix else [])])
  return tokenizer


def _merges(order):
  """Pairs of pieces that make a piece, best first; `order`: {piece: what it is sorted by}."""
  found = []
  for piece, place in order.items():
    pairs = [(piece[:k], piece[k:]) for k in range(1, len(piece))]
    found += [(place, order[a], order[b], (a, b)) for a, b in pairs if a in order and b in order]
  return [pair for *_, pair in sorted(found)]


def _bytes(tokenizers, vocabulary):
  """No piece is a character, so all text falls back to bytes."""
  named = {'<pad>': 0, '</s>': 1, '<unk>': 2, **{f'<0x{b:02X}>': 3 + b for b in range(256)}}
  named.update({vocabulary.pieces([i])[0]: i for i in range(259, vocabulary.size)})
  tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(named, [], unk_token='<unk>', byte_fallback=True))
  tokenizer.decoder = tokenizers.decoders.Sequence([tokenizers.decoders.ByteFallback(), tokenizers.decoders.Fuse()])
  return tokenizer


def _characters(tokenizers, vocabulary):
  first = 0 if vocabulary.unk_id is None else 3
  text = json.loads(vocabulary.content)['characters']
  named = {vocabulary.pieces([i])[0]: int(i) for i in vocabulary.special_ids}
  named.update({character: first + i for i, character in enumerate(text)})
  unknown = {} if vocabulary.unk_id is None else dict(unk_token='<unk>', fuse_unk=False)
  tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(named, [], **unknown))
  tokenizer.decoder = tokenizers.decoders.Fuse()
  return tokenizer
