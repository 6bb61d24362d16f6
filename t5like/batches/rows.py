"""The rows of one dataset under one objective: any of them by its number."""
from collections.abc import Sequence
from typing import Any

import numpy as np

from t5like import choices
from t5like.batches import packing, plans
from t5like.objectives import functions, lengths
from t5like.objectives.functions import MISSING, Batch, TokenPair
from t5like.objectives.spec import Ids, OneStack, Pair, Setting
from t5like.prepared.store import Store, Stores
from t5like.vocabulary.kinds import Vocabulary

Span = tuple[int, int]  # (start, size): tokens of a split, all its shards counted through
Generators = Sequence[np.random.Generator]  # one for each row
Pairs = list[TokenPair]  # of a row


def generator(
    seed: int,
    stream: int,
    epoch: int,
    number: int,
) -> np.random.Generator:
  """The random numbers of one row and epoch; no two rows share any (Salmon et al. 2011: counter-based)."""
  bits = np.random.Philox(
      key=[seed, stream],
      counter=[0, 0, epoch, number],
  )
  return np.random.Generator(bits)


class Rows:
  """Rows of a `lengths.Component`; `len` of them in an epoch. Pickles small, is safe in threads.

  Attributes:
    store: the prepared dataset.
    layout: how rows are made.
    is_windows: whether rows are windows of all documents joined; otherwise they hold whole texts, as `plan` says.
    windows: of tokens, where rows are windows.
    plan, tokens: which texts are in each row, and the tokens of the split, where they are not.
  """

  def __init__(
      self,
      store: Store | Stores,
      component: lengths.Component,
      split: str,
      seed: int,
      stream: int,
  ):
    """`seed` and `stream` choose the random numbers. `store`: what `opening.open_data` returns."""
    config = component.config
    objective = component.objective
    vocabulary = store.vocabulary
    self.store = store.of(component)
    self.layout = component.layout
    self.seed = seed
    self.stream = stream
    self.mode = np.zeros(0, np.int32)
    if component.mode:
      self.mode = vocabulary.encode(component.mode)
    self.lengths = lengths.of(component, len(self.mode))
    architecture = choices.ARCHITECTURES[config.model.name]
    self.has_encoder = architecture.has_encoder
    self.is_given = objective.given
    self.setting = Setting(
        keys=objective.read(config.objective),
        ids=_ids(vocabulary, self.has_encoder),
        lengths=self.lengths,
        document_mask=config.data.document_mask,
        has_encoder=self.has_encoder,
    )
    self.packing = config.data.packing
    self.is_windows = choices.PACKINGS[self.packing].windows
    if self.is_windows:
      stride = self.lengths.raw
      if isinstance(self.layout, OneStack):
        stride -= self.layout.overlap(config.data)
      self.windows = self.store.windows(
          split,
          self.lengths.raw,
          stride=stride,
          tail=split != 'train',
      )
    else:
      self.tokens = self.store.tokens(split)
      self.plan = self._planned(split, config.objective.to_dict())

  @property
  def is_pairs(self) -> bool:
    """Whether rows are made of inputs and targets."""
    return isinstance(self.layout, Pair)

  # --- Which text goes into a row -------------------------------------------------------------------

  def _planned(self, split: str, objective: dict[str, Any]) -> plans.Plan:
    """The plan of a split, made or read; objective: config.objective."""
    key = [
        self.store.fingerprint,
        split,
        self.packing,
        self.seed,
        self._capacity(),
        self.lengths.raw,
        self.is_pairs,
        len(self.mode),
        objective,
    ]
    texts = 0
    if split in self.store.splits:
      splits = self.store.manifest['splits']
      texts = splits[split]['documents']

    def make() -> plans.Arrays:
      return self._make_plan(split)
    return plans.plan(self.store.folder, key, texts, make)

  def _make_plan(self, split: str) -> plans.Arrays:
    """The rows of whole examples (long documents in pieces), by their lengths alone: see plans.py."""
    examples = self.store.examples(split)
    sizes = examples.lengths
    starts = examples.starts[:-1]
    if not self.is_given:
      # Of pairs, inputs and targets have ends of their own, and the text's is left out.
      ends = int(self.is_pairs)
      text_sizes = sizes[:, 0] - ends
      number, first, size = packing.pieces(text_sizes, self.lengths.raw)
      piece_starts = starts[number] + first
      is_enough = size >= 1 + ends
      starts = piece_starts[is_enough]
      sizes = size[is_enough, None]
    needs = self._needs(sizes)
    capacity = self._capacity()
    plan = packing.PLANS[self.packing]
    members, rows = plan(needs, capacity, self.seed)
    fill = packing.efficiency(needs, members, rows, capacity)
    member_sizes = sizes[members]
    return dict(
        rows=rows,
        starts=starts[members],
        sizes=member_sizes.astype(np.int32),
        fill=np.atleast_1d(fill),
    )

  def _capacity(self) -> packing.Capacity:
    """Tokens that texts may take in a row."""
    if isinstance(self.layout, OneStack):
      return self.lengths.raw
    if self.has_encoder:
      return self.lengths.inputs, self.lengths.targets
    return self.lengths.targets

  def _needs(self, sizes: np.ndarray) -> np.ndarray:
    """Tokens that each piece takes in a row: [n, 2] of encoder and decoder, else [n]."""
    if isinstance(self.layout, OneStack):
      return sizes[:, 0]
    if self.is_given:
      inputs, targets = sizes.T
    else:
      inputs, targets = self.layout.sizes(self.setting.keys, sizes[:, 0])
    inputs = inputs + len(self.mode)
    if not self.has_encoder:
      return np.minimum(inputs + targets, self.lengths.targets)
    of_encoder = np.minimum(inputs, self.lengths.inputs)
    of_decoder = np.minimum(targets, self.lengths.targets)
    return np.stack([of_encoder, of_decoder], axis=1)

  def __len__(self) -> int:
    if self.is_windows:
      return len(self.windows)
    return len(self.plan)

  def spans(self, number: int) -> list[Span]:
    """Where the texts of row `number` are in the split."""
    if self.is_windows:
      return [self.windows.span(number)]
    texts = self._members(number)
    starts = self.plan.starts[texts]
    sizes = self.plan.sizes[texts].sum(1)
    return list(zip(starts.tolist(), sizes.tolist()))

  def _members(self, number: int) -> slice:
    """Which texts of the plan are in a row."""
    edges = self.plan.rows[number:number + 2]
    return slice(*edges.tolist())

  def _texts(self, number: int) -> list[np.ndarray]:
    """The pieces of row `number`; of targets that the data has, inputs and targets joined."""
    texts = []
    for start, size in self.spans(number):
      texts.append(self.tokens.span(start, size))
    return texts

  # --- Rows -----------------------------------------------------------------------------------------

  def batch(self, numbers: Sequence[int], epochs: Sequence[int]) -> Batch:
    """Batch of the rows `numbers`, each as in its epoch, of the widths in `lengths`."""
    random = []
    for epoch, number in zip(epochs, numbers):
      random.append(generator(self.seed, self.stream, epoch, number))
    if self.is_windows:
      windows = self.windows._getitems(numbers)
      return self._of_windows(np.stack(windows), random)
    if isinstance(self.layout, Pair):
      pairs = self._pairs_of_texts(numbers, random)
      return self._lay_out(pairs)
    tokens_BT = self._joined_texts(numbers)
    return self.layout.rows(tokens_BT, random, self.setting)

  def _joined_texts(self, numbers: Sequence[int]) -> np.ndarray:
    """int32 [B, T]: the texts of each row one after another, MISSING behind them."""
    shape = (len(numbers), self.lengths.raw)
    tokens_BT = np.full(shape, MISSING, np.int32)
    for tokens_T, number in zip(tokens_BT, numbers):
      joined = np.concatenate(self._texts(number))
      tokens_T[:len(joined)] = joined
    return tokens_BT

  def _pairs_of_texts(self, numbers: Sequence[int], random: Generators) -> list[Pairs]:
    """The pairs of each row."""
    rows = []
    for number, row_random in zip(numbers, random):
      texts = self._texts(number)
      if self.is_given:
        pairs = self._given_pairs(number, texts)
      else:
        pairs = [self._pair(text, row_random) for text in texts]
      rows.append(pairs)
    return rows

  def _given_pairs(self, number: int, texts: Sequence[np.ndarray]) -> Pairs:
    """Inputs and targets that the data has, of a row; texts: both joined."""
    sizes = self.plan.sizes[self._members(number)]
    input_sizes = sizes[:, 0].tolist()
    pairs = []
    for text, size in zip(texts, input_sizes):
      inputs = text[:size]
      targets = text[size:]
      pairs.append(self._with_mode((inputs, targets)))
    return pairs

  def _of_windows(self, tokens_BT: np.ndarray, random: Generators) -> Batch:
    if isinstance(self.layout, OneStack):
      return self.layout.rows(tokens_BT, random, self.setting)
    whole = self._pairs_of_whole_windows(self.layout, tokens_BT, random)
    if whole is not None:
      return self._lay_out_at_once(*whole)
    rows = []
    for tokens_T, row_random in zip(tokens_BT, random):
      is_token = tokens_T != MISSING
      pairs = self._pairs_of_window(tokens_T[is_token], row_random)
      rows.append(pairs)
    return self._lay_out(rows)

  def _pairs_of_whole_windows(
      self,
      layout: Pair,
      tokens_BT: np.ndarray,
      random: Generators,
  ) -> tuple[np.ndarray, np.ndarray] | None:
    """(inputs [B, I], targets [B, J]) of complete windows, made all at once; None where that is not possible."""
    if layout.whole_windows is None or not self.has_encoder:
      return None
    last_tokens = tokens_BT[:, -1]
    if (last_tokens == MISSING).any():
      return None
    return layout.whole_windows(tokens_BT, random, self.setting)

  def _pairs_of_window(
      self,
      tokens: np.ndarray,
      random: np.random.Generator,
  ) -> Pairs:
    if len(tokens) < 2:
      return []
    of_window = self._pair_layout().of_window
    pairs = None
    if of_window is not None:
      pairs = of_window(tokens, random, self.setting)
    if pairs is None:
      return [self._pair(tokens, random)]
    return [self._with_mode(pair) for pair in pairs]

  def _pair(
      self,
      text: np.ndarray,
      random: np.random.Generator,
  ) -> TokenPair:
    layout = self._pair_layout()
    pair = functions.of_text(layout, text, random, self.setting)
    return self._with_mode(pair)

  def _pair_layout(self) -> Pair:
    if isinstance(self.layout, OneStack):
      raise TypeError('rows of one stack are not made of pairs')
    return self.layout

  def _with_mode(self, pair: TokenPair) -> TokenPair:
    if not len(self.mode):
      return pair
    inputs, targets = pair
    with_mode = np.concatenate([self.mode, inputs])
    return with_mode, targets

  def _lay_out(self, rows: Sequence[Pairs]) -> Batch:
    S = self.lengths.inputs
    T = self.lengths.targets
    begin = self.setting.ids.token('begin')
    if self.has_encoder:
      return packing.pair_rows(rows, S, T, begin)
    return packing.concatenated_rows(rows, T, begin)

  def _lay_out_at_once(self, inputs_BI: np.ndarray, targets_BJ: np.ndarray) -> Batch:
    """Pairs of the same lengths, one to a row."""
    S = self.lengths.inputs
    T = self.lengths.targets
    begin = self.setting.ids.token('begin')
    if len(self.mode):
      shape = (len(inputs_BI), len(self.mode))
      modes = np.broadcast_to(self.mode, shape)
      inputs_BI = np.concatenate([modes, inputs_BI], axis=1)
    return packing.one_pair_rows(inputs_BI, targets_BJ, S, T, begin)


def _ids(vocabulary: Vocabulary, has_encoder: bool) -> Ids:
  """What rows need of a vocabulary."""
  sentinels = [vocabulary.sentinel(k) for k in range(vocabulary.num_sentinels)]
  begin = vocabulary.start_id if has_encoder else vocabulary.bos_id
  return Ids(
      eos=vocabulary.eos_id,
      begin=begin,
      vocab_size=vocabulary.size,
      sentinels=np.array(sentinels, np.int32),
      special=vocabulary.special_ids,
      mask=vocabulary.mask_id,
      cls=vocabulary.cls_id,
      sep=vocabulary.sep_id,
      begins_word=vocabulary.begins_word,
  )
