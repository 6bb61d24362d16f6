"""Vocabularies of SentencePiece models, trained here or imported."""
import multiprocessing
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from t5like.vocabulary import special_tokens
from t5like.vocabulary.kinds import NEWLINE, SPACE, UNKNOWN, Ids, Table, Vocabulary, cut, spelling

# Threads that tokenise: all cores (which SentencePiece writes as -1), or one in each of many processes.
THREADS = -1
if multiprocessing.parent_process():
  THREADS = 1


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
    pieces = list(map(self._model.id_to_piece, range(own_size)))
    control = list(filter(self._model.is_control, range(own_size)))
    ids = {piece: i for i, piece in enumerate(pieces)}
    control_pieces = {pieces[i] for i in control}
    inside = special_tokens.sentinels(ids, control_pieces)
    added: list[int] = []
    if not inside:
      added += range(own_size, own_size + sentinels)
    table = self._table(pieces, control, inside, added, special)
    super().__init__(table, content)
    if special is not None:
      self._take(special)
      self._take_marks(special)
    unknown = {*control, self._model.unk_id(), *added}  # ids that no text is encoded as
    special_ids = self.special_ids.tolist()
    reachable = [i for i in special_ids if i not in unknown]
    self._reachable = np.asarray(reachable, np.int32)
    names = [pieces[i].strip(SPACE) for i in reachable]
    self._spelt = spelling(names)
    # Some models put a space before the text, which decoding takes away again.
    first_piece = self._model.encode_as_pieces('a')[0]
    if first_piece.startswith(SPACE):
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
    surfaces = list(map(self._surface, range(len(pieces))))
    surfaces += [b''] * len(added)
    names = [piece.replace('\n', NEWLINE) for piece in pieces]
    names += [''] * len(added)
    highest_first = added[::-1]
    return Table(
        names=names,
        surfaces=surfaces,
        begins_word=[surface[:1].isspace() for surface in surfaces],
        pad=special.pad,
        eos=special.eos,
        unk=special.unk,
        sentinels=inside or highest_first,
        control=[
            *control,
            special.bos,
            special.start,
            special.mask,
            special.cls,
            special.sep,
        ],
    )

  def _spelt_underscore(self) -> list[int] | None:
    """Ids of the bytes of SPACE itself, which pieces cannot spell; None for models that do not keep text exactly."""
    names = [f'<0x{byte:02X}>' for byte in SPACE.encode()]
    ids = list(map(self._model.piece_to_id, names))
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
      byte = int(piece[1:-1], 16)  # of <0x0A>
      return bytes([byte])
    surface = piece.replace(SPACE, ' ')
    return surface.encode()

  def encode_batch(self, texts: Iterable[str]) -> list[np.ndarray]:
    """Returns a list of int32 [n], one per text."""
    texts = list(texts)
    encoded_texts = self._model.encode(texts, num_threads=THREADS)
    arrays = []
    for text, encoded in zip(texts, encoded_texts):
      ids = np.asarray(encoded, np.int32)
      if self._reachable.size:
        ids = self._without_special(text, ids)
      if self._underscore and SPACE in text:
        ids = self._with_underscores(text, self._underscore)
      arrays.append(ids)
    return arrays

  def _with_underscores(
      self,
      text: str,
      underscore: list[int],
  ) -> np.ndarray:
    """Ids of a text that holds SPACE, which would come back as a space; spelt in bytes it stays itself."""
    parts = text.split(SPACE)
    first, *others = self._model.encode(parts)
    ids = first
    for part in others:
      ids = ids + underscore + part
    return np.asarray(ids, np.int32)

  def _without_special(
      self,
      text: str,
      ids: np.ndarray,
  ) -> np.ndarray:
    """`ids`, or where a special token is a piece that text can have, those of the text with its name cut in two."""
    is_special = np.isin(ids, self._reachable)
    if not is_special.any():
      return ids
    places = [match.start() + 1 for match in self._spelt.finditer(text)]
    encoded = []
    for part in cut(text, places):
      encoded += self._model.encode(part)
    ids = np.asarray(encoded, np.int32)
    is_special = np.isin(ids, self._reachable)
    return ids[~is_special]

  def decode(self, ids: Ids) -> str:
    """Returns the text of a sequence of ids; ValueError for an id outside the vocabulary."""
    text = super().decode(ids)
    if self._prefix:
      return text.removeprefix(' ')
    return text
