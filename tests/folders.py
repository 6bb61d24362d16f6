"""Folders of tokenizers as they lie on the Hub: tiny, made with the library tokenizers, never with transformers."""
import json
import pathlib

WORDS = ('the quick brown fox jumps over a lazy dog while seven wizards mix potions of amber and glass '
         'in every quiet corner').split()
TEXT = [' '.join(WORDS)] * 20


def byte_level(special, pieces=(), prefix_space=False):
  """A byte-level BPE; `special`: texts of special added tokens; `pieces`: ordinary pieces with any text."""
  import tokenizers
  from tokenizers import decoders, models, pre_tokenizers, trainers
  made = tokenizers.Tokenizer(models.BPE())
  made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix_space)
  made.decoder = decoders.ByteLevel()
  made.train_from_iterator(TEXT, trainers.BpeTrainer(
      vocab_size=310, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False))
  fields = json.loads(made.to_str())
  for piece in pieces:
    fields['model']['vocab'][piece] = len(fields['model']['vocab'])
  made = tokenizers.Tokenizer.from_str(json.dumps(fields))
  made.add_special_tokens([token if isinstance(token, tokenizers.AddedToken) else tokenizers.AddedToken(
      token, special=True, normalized=False) for token in special])
  return made


def word_piece(special=('[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]')):
  import tokenizers
  from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers
  made = tokenizers.Tokenizer(models.WordPiece(unk_token='[UNK]'))
  made.normalizer, made.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
  made.decoder = decoders.WordPiece()
  made.train_from_iterator(TEXT, trainers.WordPieceTrainer(
      vocab_size=120, special_tokens=list(special), show_progress=False))
  return made


def around(made, before=(), after=()):
  """Gives a tokenizer a post-processor that puts these tokens around texts."""
  import tokenizers
  ids = {token: made.token_to_id(token) for token in (*before, *after)}
  made.post_processor = tokenizers.processors.TemplateProcessing(
      single=[*before, '$A', *after], pair=[*before, '$A', '$B', *after], special_tokens=list(ids.items()))
  return made


def folder(path, made=None, **files):
  """Writes a folder: tokenizer.json, and JSON files given as name=values, such as config=dict(..)."""
  path = pathlib.Path(path)
  path.mkdir(parents=True, exist_ok=True)
  if made is not None:
    made.save(str(path / 'tokenizer.json'))
  for name, values in files.items():
    (path / f'{name}.json').write_text(json.dumps(values))
  return path


def sentence_piece(path, pieces=(), control=(), size=300, **special):
  """A SentencePiece model of TEXT in a file; `special`: bos_id and the like as its trainer takes them."""
  import io

  import sentencepiece
  model = io.BytesIO()
  sentencepiece.SentencePieceTrainer.train(
      sentence_iterator=iter(TEXT), model_writer=model, vocab_size=size, model_type='bpe', byte_fallback=True,
      user_defined_symbols=list(pieces), control_symbols=list(control), minloglevel=4, hard_vocab_limit=False,
      **special)
  pathlib.Path(path).write_bytes(model.getvalue())
  return path
