"""Vocabularies of SentencePiece models, trained here or imported."""
import multiprocessing
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from t5like.vocabulary import special_tokens
from t5like.vocabulary.kinds import NEWLINE, SPACE, UNKNOWN, Ids, Table, Vocabulary, cut, spelling

# Threads that tokenise: all cores (which SentencePiece writes as -1), or one in each of many processes.
THREADS = 1 if multiprocessing.parent_process() else -1


class SentencePiece(Vocabulary):
  """Sub-words from a SentencePiece model, trained here or imported (T5's, Llama's, ...).

  Models trained here hold their sentinels. For a model that has none, such as T5's, `sentinels`
  ids are added above its own, <extra_id_0> being the highest, as T5 does.

  Attributes:
    file: bytes of the .model file.
    own: {role: id} of the special tokens that the model itself declares.
  """

  name = 'sentencepiece'

  def __init__(self, content: bytes, sentinels: int = 0):
    """`content`: bytes of a .model file, or of a vocabulary file made of one. RuntimeError for something else."""
    import sentencepiece
    self.file, special = special_tokens.unwrap(self.name, content)
    self._model: Any = sentencepiece.SentencePieceProcessor(model_proto=self.file)
    self.own = self.own_roles(self._model)
    own_size = self._model.vocab_size()
    pieces = [self._model.id_to_piece(i) for i in range(own_size)]
    control = [i for i in range(own_size) if self._model.is_control(i)]
    ids = {piece: i for i, piece in enumerate(pieces)}
    inside = special_tokens.sentinels(ids, {pieces[i] for i in control})
    added = list(range(own_size, own_size + sentinels))
    if inside:
      added = []
    table = self._table(pieces, control, inside, added, special)
    super().__init__(table, content)
    if special is not None:
      self._take(special)
      self._take_marks(special)
    unknown = {*control, self._model.unk_id(), *added}  # ids that no text is encoded as
    reachable = [i for i in self.special_ids.tolist() if i not in unknown]
    self._reachable = np.asarray(reachable, np.int32)
    self._spelt = spelling(pieces[i].strip(SPACE) for i in reachable)
    # Some models put a space before the text, which decoding takes away again.
    if self._model.encode_as_pieces('a')[0].startswith(SPACE):
      self._prefix = b' '
    self._underscore = self._spelt_underscore()

  def _table(
      self,
      pieces: Sequence[str],
      control: Sequence[int],
      inside: Sequence[int],
      added: Sequence[int],
      special: special_tokens.Special | None,
  ) -> Table:
    """The ids of the vocabulary.

    Args:
      pieces: of the model.
      control: ids of its control symbols.
      inside: ids of sentinels that it holds.
      added: ids of sentinels above its own.
      special: tokens of an imported model; None: those that it declares.
    """
    if special is None:
      special = special_tokens.Special(
          pad=self.own.get('pad'),
          eos=self.own.get('eos'),
          unk=self.own.get('unk'),
      )
    surfaces = [self._surface(i) for i in range(len(pieces))]
    surfaces += [b''] * len(added)
    names = [piece.replace('\n', NEWLINE) for piece in pieces]
    names += [''] * len(added)
    roles = (special.bos, special.start, special.mask, special.cls, special.sep)
    return Table(
        names,
        surfaces,
        begins_word=[surface[:1].isspace() for surface in surfaces],
        pad=special.pad,
        eos=special.eos,
        unk=special.unk,
        sentinels=inside or added[::-1],
        control=[*control, *roles],
    )

  def _spelt_underscore(self) -> list[int] | None:
    """Ids of the bytes of SPACE itself, which pieces cannot spell; None for models that do not keep text exactly."""
    ids = [self._model.piece_to_id(f'<0x{byte:02X}>') for byte in SPACE.encode()]
    if self._prefix or self._model.unk_id() in ids:
      return None
    return ids

  @staticmethod
  def own_roles(model: Any) -> dict[str, int]:
    """{role: id} that a SentencePieceProcessor declares."""
    ids = dict(
        bos=model.bos_id(),
        eos=model.eos_id(),
        pad=model.pad_id(),
        unk=model.unk_id(),
    )
    return {role: i for role, i in ids.items() if i >= 0}  # SentencePiece writes -1 for none

  def _surface(self, i: int) -> bytes:
    model = self._model
    if model.is_control(i):
      return b''
    if model.is_unknown(i):
      return UNKNOWN.encode()
    piece = model.id_to_piece(i)
    if model.is_byte(i):
      return bytes([int(piece[1:-1], 16)])
    return piece.replace(SPACE, ' ').encode()

  def encode_batch(self, texts: Iterable[str]) -> list[np.ndarray]:
    """Returns a list of int32 [n], one per text."""
    texts = list(texts)
    arrays = []
    for text, encoded in zip(texts, self._model.encode(texts, num_threads=THREADS)):
      ids = np.asarray(encoded, np.int32)
      if self._reachable.size:
        ids = self._without_special(text, ids)
      if self._underscore and SPACE in text:
        ids = self._with_underscores(text, self._underscore)
      arrays.append(ids)
    return arrays

  def _with_underscores(self, text: str, underscore: list[int]) -> np.ndarray:
    """Ids of a text that holds SPACE, which would come back as a space; spelt in bytes it stays itself."""
    first, *others = self._model.encode(text.split(SPACE))
    ids = first
    for part in others:
      ids = ids + underscore + part
    return np.asarray(ids, np.int32)

  def _without_special(self, text: str, ids: np.ndarray) -> np.ndarray:
    """`ids`, or where a special token is a piece that text can have, those of the text with its name cut in two."""
    if not np.isin(ids, self._reachable).any():
      return ids
    encoded = []
    places = [match.start() + 1 for match in self._spelt.finditer(text)]
    for part in cut(text, places):
      encoded += self._model.encode(part)
    ids = np.asarray(encoded, np.int32)
    return ids[~np.isin(ids, self._reachable)]

  def decode(self, ids: Ids) -> str:
    """Returns the text of a sequence of ids; ValueError for an id outside the vocabulary."""
    text = super().decode(ids)
    if self._prefix:
      return text.removeprefix(' ')
    return text
