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
from t5like.data.objectives import BOS
from t5like.data.tokenizer_json import HuggingFace
from t5like.data.vocabulary_kinds import SPACE
from t5like.errors import ConfigError

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
  found, notes = {}, []
  if vocabulary.name == 'sentencepiece':
    found['spiece.model'] = vocabulary.content
  if vocabulary.name == 'huggingface':
    content = vocabulary.content
    if style in ('document', 'prefix', 'pair'):
      notes.append(f'tokenizer.json is as it was: begin texts with token {BOS} yourself, as in training.')
  else:
    content = _build(vocabulary, style)
    wrong = difference(vocabulary, HuggingFace(content)) if vocabulary.unk_id is not None else ''
    if wrong:
      return found, [f'No tokenizer.json was written, for in it {wrong}.']
  found.update({'tokenizer.json': content, 'tokenizer_config.json': _settings(vocabulary, style, length)})
  return found, notes


def _settings(vocabulary, style, length):
  name = lambda i: None if i is None else vocabulary.pieces([i])[0]
  tokens = dict(pad_token=vocabulary.pad_id, eos_token=vocabulary.eos_id, unk_token=vocabulary.unk_id)
  if style.startswith('fill'):
    tokens.update(mask_token=vocabulary.mask_id, cls_token=vocabulary.cls_id, sep_token=vocabulary.eos_id)
  elif style in ('document', 'prefix', 'pair') and vocabulary.name != 'huggingface':
    tokens.update(bos_token=BOS)
  settings = dict(tokenizer_class='PreTrainedTokenizerFast', clean_up_tokenization_spaces=False,
                  model_input_names=['input_ids', 'attention_mask'], padding_side='right')
  settings.update({k: name(i) for k, i in tokens.items() if i is not None})
  sentinels = [name(vocabulary.sentinel(k)) for k in range(vocabulary.num_sentinels)]
  if sentinels:
    settings['additional_special_tokens'] = sentinels
  if length:
    settings['model_max_length'] = length
  return (plain_json.dumps(settings, indent=2) + '\n').encode()


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
  around = _template(vocabulary, style)
  if around != ['$A']:
    ids = {i: vocabulary.pieces([i])[0] for i in around if i != '$A'}
    text = lambda which: [which if i == '$A' else ids[i] for i in around]
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single=text('$A'), pair=text('$A') + text('$B:1'), special_tokens=[(n, int(i)) for i, n in ids.items()])
  return tokenizer.to_str().encode()


def _template(vocabulary, style):
  """What a row of training has around its text: ids, and '$A' for the text."""
  eos, cls = ([i] if i is not None else [] for i in (vocabulary.eos_id, vocabulary.cls_id))
  return dict(document=[BOS, '$A'], prefix=[BOS, '$A'], pair=[BOS, '$A', *eos], encoder=['$A', *eos],
              fill_row=[*cls, '$A', *eos]).get(style, ['$A'])


def _sentencepiece(tokenizers, vocabulary):
  try:
    from sentencepiece import sentencepiece_model_pb2
  except Exception as e:  # protobuf's own error, whose class older ones lack
    raise ConfigError(f'Writing a tokenizer needs a newer protobuf than the one here, which another package may have '
                      f'asked for (apache-beam does): {str(e).partition(". ")[0]}. Export from a virtual environment '
                      "without that package, made by pip install -e '.[hf]'.") from e
  model = sentencepiece_model_pb2.ModelProto.FromString(vocabulary.content)
  Piece = sentencepiece_model_pb2.ModelProto.SentencePiece
  text = (Piece.NORMAL, Piece.USER_DEFINED)
  pieces = [(p.piece, p.score if p.type in text else NEVER) for p in model.pieces]
  pieces += [(vocabulary.pieces([i])[0], NEVER) for i in range(len(pieces), vocabulary.size)]
  unknown = pieces[vocabulary.unk_id][0]
  if model.trainer_spec.model_type == model.trainer_spec.UNIGRAM:
    inside = tokenizers.models.Unigram(pieces, vocabulary.unk_id, model.trainer_spec.byte_fallback)
  else:
    order = {p.piece: (-p.score, i) for i, p in enumerate(model.pieces) if p.type in text}
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
