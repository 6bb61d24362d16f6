"""Vocabularies of Hugging Face models: a tokenizer.json, read by their library tokenizers."""
import contextlib
import json

import numpy as np

from t5like import schema
from t5like.data import special_tokens
from t5like.data.special_tokens import Special
from t5like.data.vocabulary_kinds import MARK, Vocabulary, spelling
from t5like.errors import ConfigError, DataError

# Files that older versions kept have no special tokens with them: these names were taken for them, the first that was
# there, and what was trained with such a file is read in the same way.
OLDER = dict(pad=('[PAD]', '<pad>'), eos=('[SEP]', '</s>', '<|endoftext|>', '<|end_of_text|>', '<eos>'),
             unk=('[UNK]', '<unk>'), mask=('[MASK]', '<mask>'), cls=('[CLS]', '<s>'))
MOST = 1 << 21  # ids; XLM-V's vocabulary, the largest we know, has 901,629


class HuggingFace(Vocabulary):
  """The vocabulary of a tokenizer.json; its sentinels are its own tokens <extra_id_0>, ..., if any."""

  name = 'huggingface'
  _more = 'this tokenizer.json cannot be used for it. Take one that can, or vocabulary.name="sentencepiece".'

  def __init__(self, content):
    """`content`: bytes of a tokenizer.json, or of a vocabulary file made of one.

    ConfigError without the library, ValueError for something else.
    """
    self.file, special = special_tokens.unwrap(self.name, content)
    library()
    fields = _fields(self.file)
    self._model = _library_tokenizer(self.file)
    self.own = _own(fields, self._model)
    names = _names(self.own.ids)
    special = _by_name(self.own.ids) if special is None else special
    sentinels = special_tokens.sentinels(self.own.ids, self.own.special)
    control = [self.own.ids[text] for text in self.own.special]
    unk = None if special.unk in (special.bos, special.eos, special.pad) else special.unk
    self._fill(names, [b''] * len(names), (special.pad, special.eos, unk), sentinels, content,
               _begins_word(fields, names),
               [*control, special.mask, special.cls, special.sep, special.start, *special.stops,
                *(() if content == self.file else (special.bos,))])
    if content != self.file:
      self._take(special)
    self.mask_id = self.mask_id if special.mask is None else special.mask
    self.cls_id = self.cls_id if special.cls is None else special.cls
    self._never = self.special_ids[self.special_ids != (-1 if self.unk_id is None else self.unk_id)]
    self._texts = {i: text for text, i in self.own.ids.items()}
    self._spelt = spelling([self._texts[i] for i in self._never.tolist() if i in self._texts])
    self._hidden = {*self._never.tolist()} - {*sentinels, self.mask_id}
    self._marks = {}

  def token(self, i):
    return self._texts[i]

  def encode_batch(self, texts):
    """Returns a list of int32 [n], one per text."""
    texts = list(texts)
    with _explained(DataError, '. Is the tokenizer.json whole, and made for such text?'):
      encodings = self._model.encode_batch_fast(texts, add_special_tokens=False)
    return [self._without(self._never, self._model, text, encoding.ids) for text, encoding in zip(texts, encodings)]

  def encode_marked(self, text):
    """Returns int32 [n], as `encode`, but each <mask> is `mask_id` and <extra_id_k> is `sentinel(k)`.

    Whether a mark takes the spaces beside it, or counts only as a word by itself, is what its added token in
    tokenizer.json says (lstrip, rstrip, single_word, normalized). ConfigError for a mark that has no id.
    """
    parts = MARK.split(text)
    ids = [self._marked(mark) for mark in parts[1::2]]
    if not ids:
      return self.encode(text)
    parts[1::2] = [self._texts[i] for i in ids]
    text, model = ''.join(parts), self._reading(tuple(sorted(set(ids))))
    never = self._never[~np.isin(self._never, ids)]
    return self._without(never, model, text, model.encode(text, add_special_tokens=False).ids)

  def _reading(self, ids):
    """The library's tokenizer to which these ids are no longer special, so that it finds them in texts."""
    if ids not in self._marks:
      fields = json.loads(self.file)
      added = {token['content']: token for token in fields.get('added_tokens') or ()}
      for i in ids:
        text = self._texts[i]
        plain = dict(id=i, content=text, single_word=False, lstrip=False, rstrip=False, normalized=False)
        added[text] = dict(added.get(text, plain), special=False)
      fields['added_tokens'] = sorted(added.values(), key=lambda token: token['id'])
      self._marks[ids] = _library_tokenizer(json.dumps(fields).encode())
    return self._marks[ids]

  def _without(self, never, model, text, ids):
    """`ids` of a text as an array; where one of `never` is among them, those of the text with its name cut in two.

    Such a name is a piece too, as <extra_id_0> is one of T5's.
    """
    ids = np.asarray(ids, np.int32)
    if not np.isin(ids, never).any():
      return ids
    marked = [self._texts[i] for i in self._never if i not in never]
    cuts = [0, *(match.start() + 1 for match in self._spelt.finditer(text) if match[0] not in marked), len(text)]
    parts = [model.encode(text[a:b], add_special_tokens=False).ids for a, b in zip(cuts, cuts[1:])]
    ids = np.asarray([i for part in parts for i in part], np.int32)
    return ids[~np.isin(ids, never)]  # what normalisation made one

  def decode(self, ids):
    """Returns the text of a sequence of ids, as the library has it; ValueError for an id outside."""
    return self._model.decode([i for i in self._checked(ids) if i not in self._hidden], skip_special_tokens=False)


def _fields(content):
  return schema.parse(content, schema.Object(dict(model=schema.Object()), needs=('model',)), special_tokens.LARGE)


def library():
  """The package tokenizers; ConfigError without it."""
  try:
    import tokenizers
  except ImportError as error:
    raise ConfigError("vocabulary.name='huggingface' needs the package tokenizers; run: "
                      "pip install -e '.[hf]'") from error
  return tokenizers


@contextlib.contextmanager
def _explained(failure, advice=''):
  """Turns the errors of the library, which have no types of their own, into `failure`."""
  try:
    yield
  except (KeyboardInterrupt, SystemExit, MemoryError):
    raise
  except BaseException as error:  # a panic of Rust is no Exception
    raise failure(f'the library tokenizers says: {" ".join(str(error).split())[:300]}{advice}') from error


def _library_tokenizer(content):
  with _explained(ValueError):
    model = library().Tokenizer.from_str(content.decode())
  model.no_truncation()
  model.no_padding()
  model.encode_special_tokens = True  # the letters of a special token in a text are only letters
  return model


def _own(fields, model):
  """What a tokenizer.json says of its own tokens, a special_tokens.Tokenizer."""
  ids = model.get_vocab(with_added_tokens=True)
  special = [token.content for token in model.get_added_tokens_decoder().values() if token.special]
  with _explained(ValueError):
    encoding = model.encode('a')
  text = [n for n, added in enumerate(encoding.special_tokens_mask) if not added]
  first, last = (text[0], text[-1] + 1) if text else (len(encoding.ids), len(encoding.ids))
  own = dict(unk=fields['model'].get('unk_token'))
  unk_id = fields['model'].get('unk_id')  # of unigram models
  for part in _processors(fields.get('post_processor')):
    for role in ('sep', 'cls'):  # BertProcessing, RobertaProcessing
      if isinstance(part.get(role), list) and part[role]:
        own[role] = part[role][0]
  own = {role: ids[text] for role, text in own.items() if isinstance(text, str) and text in ids}
  if isinstance(unk_id, int) and 0 <= unk_id < len(ids):
    own['unk'] = unk_id
  kinds = json.dumps([fields.get('pre_tokenizer'), fields.get('decoder')])
  return special_tokens.Tokenizer(ids, special, own, tuple(encoding.ids[:first]), tuple(encoding.ids[last:]),
                                  'ByteLevel' in kinds,
                                  [token.content for token in model.get_added_tokens_decoder().values()])


def _processors(part):
  if not isinstance(part, dict):
    return []
  inner = part.get('processors')
  return [part] if not isinstance(inner, list) else [one for one in inner if isinstance(one, dict)]


def _names(ids):
  size = max(ids.values(), default=-1) + 1
  if not 0 < size <= MOST:
    raise ValueError(f'its ids go up to {size - 1:,}')
  names = [''] * size
  for name, i in ids.items():
    names[i] = name
  return names


def _by_name(ids):
  """The special tokens of a file that an older version kept."""
  first = {role: next((ids[name] for name in names if name in ids), None) for role, names in OLDER.items()}
  return Special(**first)


def _begins_word(fields, names):
  """A list of bool: pieces that begin a word, by the way in which the kind of tokenizer marks them."""
  model = fields['model']
  if model.get('type') == 'WordPiece':
    inside = model.get('continuing_subword_prefix', '##')
    return [not name.startswith(inside) for name in names]
  if 'ByteLevel' in json.dumps([fields.get('pre_tokenizer'), fields.get('decoder')]):
    return [name[:1] in tuple('ĠĊĉč') for name in names]  # space, newline, tab, return
  return [name[:1] in tuple('▁ \n\t\r') or name in ('<0x20>', '<0x0A>', '<0x09>', '<0x0D>') for name in names]
