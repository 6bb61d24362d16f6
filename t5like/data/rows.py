"""The rows of one dataset under one objective: any of them by its number."""
import numpy as np

from t5like import choices, lengths
from t5like.data import objectives, packing, plans
from t5like.data.objectives import MISSING


def generator(seed, stream, epoch, number):
  """The random numbers of one row and epoch; no two rows share any (Salmon et al. 2011: counter-based)."""
  return np.random.Generator(np.random.Philox(key=[seed, stream], counter=[0, 0, epoch, number]))


class Rows:
  """Rows of a `lengths.Component`; `len` of them in an epoch. Pickles small, is safe in threads."""

  def __init__(self, store, component, split, seed, stream):
    """`seed` and `stream` (ints) choose the random numbers. `store`: what `build.open_data` returns."""
    c, vocabulary, self.store = component.config, store.vocabulary, store.of(component)
    self.objective, self.document_mask = c.objective, c.data.document_mask
    self.seed, self.stream = seed, stream
    self.mode = vocabulary.encode(component.mode) if component.mode else np.zeros(0, np.int32)
    self.lengths = lengths.of(component, len(self.mode))
    self.has_encoder = c.model.name == 'encoder_decoder'
    self.is_pairs = self.has_encoder or c.objective.name in lengths.PAIRS or bool(component.mode)
    self.eos_id, self.vocab_size = vocabulary.eos_id, vocabulary.size
    self.start_id = vocabulary.start_id if self.has_encoder else vocabulary.bos_id
    self.sentinels = np.array([vocabulary.sentinel(k) for k in range(vocabulary.num_sentinels)], np.int32)
    self.special_ids = vocabulary.special_ids
    self.masked = dict(mask_id=vocabulary.mask_id, cls_id=vocabulary.cls_id, sep_id=vocabulary.sep_id,
                       begins_word=vocabulary.begins_word if c.objective.whole_word else None)
    self.packing = c.data.packing
    self.is_windows = choices.PACKINGS[self.packing].windows
    if self.is_windows:
      stride = self.lengths.raw - (c.objective.name == 'causal' and not self.document_mask)
      self.windows = self.store.windows(split, self.lengths.raw, stride=stride, tail=split != 'train')
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
    if self.objective.name != 'seq2seq':
      # Of pairs, inputs and targets have ends of their own, and the text's is left out.
      number, first, size = packing.pieces(sizes[:, 0] - self.is_pairs, self.lengths.raw)
      enough = size >= 1 + self.is_pairs
      starts, sizes = (starts[number] + first)[enough], size[enough, None]
    needs = self._needs(sizes)
    members, rows = packing.PLANS[self.packing](needs, self._capacity(), self.seed)
    return dict(rows=rows, starts=starts[members], sizes=sizes[members].astype(np.int32),
                fill=np.atleast_1d(packing.efficiency(needs, members, rows, self._capacity())))

  def _capacity(self):
    n = self.lengths
    return (n.inputs, n.targets) if self.has_encoder else n.targets - 2 * (
        self.objective.name == 'masked_lm' and self.objective.cls_sep)

  def _needs(self, sizes):
    """Tokens that each piece takes in a row: [n, 2] of encoder and decoder, else [n]."""
    if not self.is_pairs:
      return sizes[:, 0]
    o, n = self.objective, self.lengths
    if o.name == 'seq2seq':
      inputs, targets = sizes.T
    else:
      text = sizes[:, 0]
      inputs, targets = dict(
          span_corruption=lambda: self._span_lengths(text),
          lm=lambda: (np.ones_like(text), text + 1)).get(o.name, lambda: (text + 1, text + 1))()
    inputs = inputs + len(self.mode)
    if self.has_encoder:
      return np.stack([np.minimum(inputs, n.inputs), np.minimum(targets, n.targets)], 1)
    return np.minimum(inputs + targets, n.targets)

  def _span_lengths(self, text):
    o = self.objective
    table = o.roll + np.array([
        lengths.span_lengths(n, o.noise_density, o.mean_span) for n in range(self.lengths.raw + 2)])
    return table[text].T

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
    if self.objective.name != 'seq2seq':
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
    return self._single(tokens, random)

  def _of_windows(self, tokens, random):
    if not self.is_pairs:
      return self._single(tokens, random)
    whole = (tokens[:, -1] != MISSING).all()
    if whole and self.objective.name == 'span_corruption' and self.has_encoder and not self.objective.roll:
      return self._whole_spans(tokens, random)
    return self._lay_out([self._pairs_of_window(t[t != MISSING], r) for t, r in zip(tokens, random)])

  def _pairs_of_window(self, tokens, random):
    if len(tokens) < 2:
      return []
    if self.objective.name == 'prefix_lm' and self.has_encoder and len(tokens) == self.lengths.raw:
      return [self._with_mode(pair) for pair in objectives.prefix_pair(tokens, random, eos_id=self.eos_id)]
    if self.objective.name == 'prefix_lm' and self.has_encoder and len(tokens) > self.lengths.raw // 2:
      half = len(tokens) // 2
      return [self._pair(tokens[:half], random), self._pair(tokens[half:], random)]
    return [self._pair(tokens, random)]

  def _pair(self, text, random):
    if self.objective.name == 'seq2seq':
      return self._with_mode(text)
    if self.objective.name == 'prefix_lm':
      return self._with_mode(objectives.prefix_split(text, random, eos_id=self.eos_id))
    return self._with_mode(objectives.pair(
        self.objective.name, text, random, objective=self.objective, sentinels=self.sentinels,
        eos_id=self.eos_id, vocab_size=self.vocab_size, special_ids=self.special_ids))

  def _with_mode(self, pair):
    return (np.concatenate([self.mode, pair[0]]), pair[1]) if len(self.mode) else pair

  def _lay_out(self, rows):
    if self.has_encoder:
      return packing.pair_rows(rows, self.lengths.inputs, self.lengths.targets, self.start_id)
    return packing.concatenated_rows(rows, self.lengths.targets, self.start_id)

  def _whole_spans(self, tokens, random):
    """Span corruption of windows, one to a row: all rows at once, being of the same lengths."""
    o = self.objective
    inputs, targets = objectives.span_corruption(
        tokens, random, density=o.noise_density, mean_span=o.mean_span, roll=False,
        sentinels=self.sentinels, eos_id=self.eos_id)
    if len(self.mode):
      inputs = np.concatenate([np.broadcast_to(self.mode, (len(inputs), len(self.mode))), inputs], 1)
    return packing.one_pair_rows(inputs, targets, self.lengths.inputs, self.lengths.targets, self.start_id)

  def _single(self, tokens, random):
    o, common = self.objective, dict(document_mask=self.document_mask, eos_id=self.eos_id)
    if o.name == 'causal':
      return objectives.causal(tokens, bos_id=self.start_id, **common)
    if o.name == 'prefix_lm':
      return objectives.prefix_lm(tokens, random, bos_id=self.start_id, **common)
    return objectives.masked_lm(
        tokens, random, density=o.noise_density, masking=o.masking, whole_word=o.whole_word,
        predictions=self.lengths.predictions, cls_sep=o.cls_sep, vocab_size=self.vocab_size,
        special_ids=self.special_ids, **self.masked, **common)
