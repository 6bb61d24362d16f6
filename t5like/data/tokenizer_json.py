"""Vocabularies of Hugging Face models: a tokenizer.json, read by their library tokenizers."""
import json
import re

import numpy as np

from t5like.data.vocabulary_kinds import Vocabulary
from t5like.errors import ConfigError

# Names under which models keep their special tokens, the first that is there being taken.
NAMES = dict(pad=('[PAD]', '<pad>'), eos=('[SEP]', '</s>', '<|endoftext|>', '<|end_of_text|>', '<eos>'),
             unk=('[UNK]', '<unk>'), mask=('[MASK]', '<mask>'), cls=('[CLS]', '<s>'))


class HuggingFace(Vocabulary):
  """The vocabulary of a tokenizer.json; its sentinels are its own tokens <extra_id_0>, ..., if any."""

  name = 'huggingface'
  _more = 'this tokenizer.json cannot be used for it. Take one that can, or vocabulary.name="sentencepiece".'

  def __init__(self, content):
    """`content`: bytes of the file. ConfigError without the library, ValueError for something else."""
    try:
      import tokenizers
    except ImportError as error:
      raise ConfigError("vocabulary.name='huggingface' needs the package tokenizers; run: "
                        "pip install -e '.[hf]'") from error
    fields = json.loads(content)
    try:
      self._model = model = tokenizers.Tokenizer.from_str(content.decode())
    except Exception as error:  # the library raises no other type
      raise ValueError(str(error)) from error
    model.no_truncation()
    model.no_padding()
    model.encode_special_tokens = True  # the letters of a special token in a text are only letters
    ids = model.get_vocab(with_added_tokens=True)
    names = [''] * (max(ids.values()) + 1)
    for name, i in ids.items():
      names[i] = name
    special = {what: next((ids[name] for name in known if name in ids), None) for what, known in NAMES.items()}
    sentinels = []
    while (name := f'<extra_id_{len(sentinels)}>') in ids:
      sentinels.append(ids[name])
    control = [i for i, token in model.get_added_tokens_decoder().items() if token.special]
    self._fill(names, [b''] * len(names), (special['pad'], special['eos'], special['unk']), sentinels, content,
               _begins_word(fields, names), [*control, special['mask'], special['cls']])
    self.mask_id = self.mask_id if special['mask'] is None else special['mask']
    self.cls_id = self.cls_id if special['cls'] is None else special['cls']
    self._never = self.special_ids[self.special_ids != (-1 if self.unk_id is None else self.unk_id)]
    self._spelt = re.compile('|'.join(re.escape(names[i]) for i in self._never) or '(?!)')
    self._hidden = {*self._never.tolist()} - {*sentinels, self.mask_id}

  def encode_batch(self, texts):
    """Returns a list of int32 [n], one per text."""
    found = []
    texts = list(texts)
    for text, encoding in zip(texts, self._model.encode_batch_fast(texts, add_special_tokens=False)):
      ids = np.asarray(encoding.ids, np.int32)
      if np.isin(ids, self._never).any():  # a name is a piece too, as <extra_id_0> of T5: cut it in two
        cuts = [0, *(match.start() + 1 for match in self._spelt.finditer(text)), len(text)]
        parts = [self._model.encode(text[a:b], add_special_tokens=False).ids for a, b in zip(cuts, cuts[1:])]
        ids = np.asarray([i for part in parts for i in part], np.int32)
        ids = ids[~np.isin(ids, self._never)]  # what normalisation made one
      found.append(ids)
    return found

  def decode(self, ids):
    """Returns the text of a sequence of ids, as the library has it; ValueError for an id outside."""
    return self._model.decode([i for i in self._checked(ids) if i not in self._hidden], skip_special_tokens=False)


def _begins_word(fields, names):
  """A list of bool: pieces that begin a word, by the way in which the kind of tokenizer marks them."""
  model = fields['model']
  if model.get('type') == 'WordPiece':
    inside = model.get('continuing_subword_prefix', '##')
    return [not name.startswith(inside) for name in names]
  if 'ByteLevel' in json.dumps([fields.get('pre_tokenizer'), fields.get('decoder')]):
    return [name[:1] in tuple('ĠĊĉč') for name in names]  # space, newline, tab, return
  return [name[:1] in tuple('▁ \n\t\r') or name in ('<0x20>', '<0x0A>', '<0x09>', '<0x0D>') for name in names]
