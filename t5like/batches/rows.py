"""The rows of one dataset under one objective: any of them by its number."""
import numpy as np

from t5like import choices
from t5like.batches import packing, plans
from t5like.objectives import functions, lengths
from t5like.objectives.functions import MISSING
from t5like.objectives.spec import Ids, Pair, Setting


def generator(seed, stream, epoch, number):
  """The random numbers of one row and epoch; no two rows share any (Salmon et al. 2011: counter-based)."""
  return np.random.Generator(np.random.Philox(key=[seed, stream], counter=[0, 0, epoch, number]))


class Rows:
  """Rows of a `lengths.Component`; `len` of them in an epoch. Pickles small, is safe in threads."""

  def __init__(self, store, component, split, seed, stream):
    """`seed` and `stream` (ints) choose the random numbers. `store`: what `opening.open_data` returns."""
    c, vocabulary = component.config, store.vocabulary
    self.store, self.layout = store.of(component), component.layout
    self.seed, self.stream = seed, stream
    self.mode = vocabulary.encode(component.mode) if component.mode else np.zeros(0, np.int32)
    self.lengths = lengths.of(component, len(self.mode))
    self.has_encoder = choices.ARCHITECTURES[c.model.name].has_encoder
    self.is_pairs = isinstance(self.layout, Pair)
    self.is_given = component.objective.given
    self.setting = Setting(keys=component.objective.read(c.objective), ids=_ids(vocabulary, self.has_encoder),
                           lengths=self.lengths, document_mask=c.data.document_mask, has_encoder=self.has_encoder)
    self.packing = c.data.packing
    self.is_windows = choices.PACKINGS[self.packing].windows
    if self.is_windows:
      overlap = 0 if self.is_pairs else self.layout.overlap(c.data)
      self.windows = self.store.windows(split, self.lengths.raw, stride=self.lengths.raw - overlap,
                                        tail=split != 'train')
    else:
      key = [self.store.fingerprint, split, self.packing, seed, self._capacity(), self.lengths.raw, self.is_pairs,
             len(self.mode), c.objective.to_dict()]
      texts = self.store.manifest['splits'][split]['documents'] if split in self.store.splits else 0
      self.tokens = self.store.tokens(split)
      self.plan = plans.plan(self.store.folder, key, texts, lambda: self._plan(split))

  # --- Which text goes into a row -------------------------------------------------------------------

  def _plan(self, split):
    """The rows of whole examples (long documents in pieces), by their lengths alone: see plans.py."""
    examples = self.store.examples(split)
    sizes, starts = examples.lengths, examples.starts[:-1]
    if not self.is_given:
      # Of pairs, inputs and targets have ends of their own, and the text's is left out.
      number, first, size = packing.pieces(sizes[:, 0] - self.is_pairs, self.lengths.raw)
      enough = size >= 1 + self.is_pairs
      starts, sizes = (starts[number] + first)[enough], size[enough, None]
    needs = self._needs(sizes)
    members, rows = packing.PLANS[self.packing](needs, self._capacity(), self.seed)
    return dict(rows=rows, starts=starts[members], sizes=sizes[members].astype(np.int32),
                fill=np.atleast_1d(packing.efficiency(needs, members, rows, self._capacity())))

  def _capacity(self):
    if not self.is_pairs:
      return self.lengths.raw
    return (self.lengths.inputs, self.lengths.targets) if self.has_encoder else self.lengths.targets

  def _needs(self, sizes):
    """Tokens that each piece takes in a row: [n, 2] of encoder and decoder, else [n]."""
    if not self.is_pairs:
      return sizes[:, 0]
    inputs, targets = sizes.T if self.is_given else self.layout.sizes(self.setting.keys, sizes[:, 0])
    inputs = inputs + len(self.mode)
    if self.has_encoder:
      return np.stack([np.minimum(inputs, self.lengths.inputs), np.minimum(targets, self.lengths.targets)], 1)
    return np.minimum(inputs + targets, self.lengths.targets)

  def __len__(self):
    return len(self.windows) if self.is_windows else len(self.plan)

  def spans(self, number):
    """[(start, size)] of the texts of row `number`: tokens of the split, all its shards counted through."""
    if self.is_windows:
      return [self.windows.span(number)]
    texts = self._members(number)
    return list(zip(self.plan.starts[texts].tolist(), self.plan.sizes[texts].sum(1).tolist()))

  def _members(self, number):
    return slice(*self.plan.rows[number:number + 2].tolist())

  def _texts(self, number):
    """The pieces of row `number`, each one array or, for given targets, a pair."""
    found = [self.tokens.span(start, size) for start, size in self.spans(number)]
    if not self.is_given:
      return found
    inputs = self.plan.sizes[self._members(number)][:, 0].tolist()
    return [(text[:n], text[n:]) for text, n in zip(found, inputs)]

  # --- Rows -----------------------------------------------------------------------------------------

  def batch(self, numbers, epochs):
    """Batch of the rows `numbers`, each as in its epoch (lists of ints), of the widths in `lengths`."""
    random = [generator(self.seed, self.stream, e, n) for e, n in zip(epochs, numbers)]
    if self.is_windows:
      tokens = np.stack(self.windows._getitems(numbers))
      return self._of_windows(tokens, random)
    texts = [self._texts(n) for n in numbers]
    if self.is_pairs:
      return self._lay_out([[self._pair(t, r) for t in row] for row, r in zip(texts, random)])
    tokens = np.full((len(numbers), self._capacity()), MISSING, np.int32)
    for row, pieces in zip(tokens, texts):
      joined = np.concatenate(pieces)
      row[:len(joined)] = joined
    return self.layout.rows(tokens, random, self.setting)

  def _of_windows(self, tokens, random):
    if not self.is_pairs:
      return self.layout.rows(tokens, random, self.setting)
    is_whole = (tokens[:, -1] != MISSING).all()
    if is_whole and self.has_encoder and self.layout.whole_windows is not None:
      made = self.layout.whole_windows(tokens, random, self.setting)
      if made is not None:
        return self._lay_out_at_once(*made)
    return self._lay_out([self._pairs_of_window(t[t != MISSING], r) for t, r in zip(tokens, random)])

  def _pairs_of_window(self, tokens, random):
    if len(tokens) < 2:
      return []
    several = None
    if self.layout.of_window is not None:
      several = self.layout.of_window(tokens, random, self.setting)
    if several is None:
      return [self._pair(tokens, random)]
    return [self._with_mode(pair) for pair in several]

  def _pair(self, text, random):
    """text: ids [n], or for given targets the pair itself."""
    if self.is_given:
      return self._with_mode(text)
    return self._with_mode(functions.of_text(self.layout, text, random, self.setting))

  def _with_mode(self, pair):
    return (np.concatenate([self.mode, pair[0]]), pair[1]) if len(self.mode) else pair

  def _lay_out(self, rows):
    if self.has_encoder:
      return packing.pair_rows(rows, self.lengths.inputs, self.lengths.targets, self.setting.ids.begin)
    return packing.concatenated_rows(rows, self.lengths.targets, self.setting.ids.begin)

  def _lay_out_at_once(self, inputs, targets):
    """Pairs of the same lengths, one to a row: [B, I] and [B, J]."""
    if len(self.mode):
      inputs = np.concatenate([np.broadcast_to(self.mode, (len(inputs), len(self.mode))), inputs], 1)
    return packing.one_pair_rows(inputs, targets, self.lengths.inputs, self.lengths.targets, self.setting.ids.begin)


def _ids(vocabulary, has_encoder):
  """What rows need of a vocabulary."""
  sentinels = [vocabulary.sentinel(k) for k in range(vocabulary.num_sentinels)]
  return Ids(eos=vocabulary.eos_id, begin=vocabulary.start_id if has_encoder else vocabulary.bos_id,
             vocab_size=vocabulary.size, sentinels=np.array(sentinels, np.int32), special=vocabulary.special_ids,
             mask=vocabulary.mask_id, cls=vocabulary.cls_id, sep=vocabulary.sep_id, begins_word=vocabulary.begins_word)
