"""Rows that hold several texts: which go together, planned from their lengths, and where they lie."""
from collections.abc import Callable, Sequence

import numpy as np

from t5like import choices
from t5like.objectives.functions import PADDING, Batch, TokenPair

Capacity = int | tuple[int, int]  # tokens of a row; of an encoder and of a decoder
Members = tuple[np.ndarray, np.ndarray]  # texts, in the order of rows; where those of each row start


def pieces(sizes: np.ndarray, capacity: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Cuts texts that are longer than `capacity` into pieces of it and a rest.

  Args:
    sizes: int [n], tokens of each text.
    capacity: the most tokens of a piece.

  Returns:
    int64 arrays (number of its text, where it starts in it, size) of each piece.
  """
  sizes = np.asarray(sizes, np.int64)
  rounded_up = -(-sizes // capacity)
  counts = np.maximum(1, rounded_up)
  number = np.repeat(np.arange(len(sizes)), counts)
  pieces_before = np.cumsum(counts) - counts
  first_of_text = np.repeat(pieces_before, counts)
  number_in_text = np.arange(len(number)) - first_of_text
  start = number_in_text * capacity
  rest = sizes[number] - start
  size = np.minimum(rest, capacity)
  return number, start, size


def plan(needs: np.ndarray, capacity: Capacity, seed: int) -> Members:
  """(members, starts): row r holds the texts members[starts[r]:starts[r + 1]].

  Every text goes, in an order that depends on `seed`, where it fits best: into the row with the least room that still
  holds it. Of two needs the greater share counts and of two rooms the lesser, so both hold.

  Args:
    needs: int [n], or [n, 2] for rows of an encoder and a decoder.
    capacity: of a row, one number or two.
    seed: of the order.

  Raises:
    ValueError: if a text needs more than a row has.
  """
  needs_NK = _columns(needs)
  capacity_K = np.atleast_1d(capacity).astype(np.int64)
  is_too_long = needs_NK > capacity_K
  if is_too_long.any():
    most_K = needs_NK.max(0)
    raise ValueError(f'a text needs {most_K.tolist()} of the {capacity_K.tolist()} tokens of a row')
  whole = int(capacity_K.max())
  # In units of 1 / whole of a row, needs as well as rooms rounded down: as a token is at least a unit, one
  # token more never is the same number. At least one, so that a row holds at most `whole` texts.
  units_NK = needs_NK * whole // capacity_K
  units = np.maximum(1, units_NK.max(1))
  random = np.random.default_rng([seed, len(units)])
  order = random.permutation(len(units))
  row_of, num_rows = _best_fit(
      needs_NK[order],
      units[order],
      capacity_K,
      whole,
  )
  by_row = np.argsort(row_of, kind='stable')
  members = order[by_row]
  starts = np.searchsorted(row_of[by_row], np.arange(num_rows + 1))
  return members, starts


def _best_fit(
    needs_NK: np.ndarray,
    units: np.ndarray,
    capacity_K: np.ndarray,
    whole: int,
) -> tuple[np.ndarray, int]:
  """(the row of each text, how many rows there are), texts being placed in their order.

  Rows with a certain room are found in one operation on an integer whose bits say which rooms there are.
  """
  row_of = np.zeros(len(units), np.int64)
  left: list[tuple[int, int]] = []  # tokens of each row that are not taken
  with_room: list[list[int]] = [[] for _ in range(whole + 1)]  # rows by their room, in units
  rooms = 0  # bit k is set if a row has room k
  first = int(capacity_K[0])
  last = int(capacity_K[-1])
  first_needs = needs_NK[:, 0].tolist()
  last_needs = needs_NK[:, -1].tolist()
  texts = zip(units.tolist(), first_needs, last_needs)
  for text, (need, first_need, last_need) in enumerate(texts):
    fitting = rooms >> need
    if fitting:
      least = fitting & -fitting
      room = need + least.bit_length() - 1
      row = with_room[room].pop()
      if not with_room[room]:
        rooms ^= 1 << room
    else:
      room = whole
      row = len(left)
      left.append((first, last))
    row_of[text] = row
    first_left, last_left = left[row]
    first_left -= first_need
    last_left -= last_need
    left[row] = (first_left, last_left)
    room = min(
        room - 1,
        first_left * whole // first,
        last_left * whole // last,
    )
    if room:
      with_room[room].append(row)
      rooms |= 1 << room
  return row_of, len(left)


def one_each(needs: np.ndarray, capacity: Capacity, seed: int) -> Members:
  """`plan` of rows that hold one text each, in the order of the texts."""
  num_texts = len(needs)
  members = np.arange(num_texts)
  starts = np.arange(num_texts + 1)
  return members, starts


def _windows_have_no_plan(
    needs: np.ndarray,
    capacity: Capacity,
    seed: int,
) -> Members:
  raise ValueError('rows that are windows hold no whole texts, of which some could be planned to share a row')


_PLANS: dict[str, Callable[[np.ndarray, Capacity, int], Members]] = dict(
    concat_split=_windows_have_no_plan,
    best_fit=plan,
    none=one_each,
)
# Which texts go into each row: functions like `plan`.
PLANS = choices.implement('data.packing', choices.PACKINGS, _PLANS)


def _columns(needs: np.ndarray) -> np.ndarray:
  """int64 [n, 1] or [n, 2]."""
  needs = np.asarray(needs, np.int64)
  if needs.ndim == 2:
    return needs
  return needs[:, None]


def efficiency(
    needs: np.ndarray,
    members: np.ndarray,
    starts: np.ndarray,
    capacity: Capacity,
) -> float | np.ndarray:
  """Share of the positions of all rows that texts take: a float, or of two needs an array [2]."""
  needs_NK = _columns(needs)
  tokens = needs_NK[members].sum(0)
  num_rows = max(1, len(starts) - 1)
  positions = num_rows * np.atleast_1d(capacity)
  share = tokens / positions
  if len(share) == 1:
    return float(share[0])
  return share


# --- Where texts lie in a row -------------------------------------------------------------------------


def pair_rows(
    rows: Sequence[Sequence[TokenPair]],
    S: int,
    T: int,
    start_id: int = 0,
) -> Batch:
  """Batch for an encoder-decoder.

  Decoder inputs are the targets one later, `start_id` at the start of each segment (specs of seqio's
  EncDecFeatureConverter). What is too long loses its end, but not its last token.

  Args:
    rows: pairs (inputs, targets) of each row.
    S: width of the encoder's rows.
    T: width of the decoder's rows.
    start_id: the token that the decoder begins with.
  """
  encoder = _blank(len(rows), S)
  decoder = _blank(len(rows), T)
  for r, row in enumerate(rows):
    s = 0
    t = 0
    for segment, (inputs, targets) in enumerate(row, 1):
      inputs = _trimmed(inputs, S - s)
      targets = _trimmed(targets, T - t)
      _write(encoder, r, s, segment, inputs)
      _write(decoder, r, t, segment, targets)
      s += len(inputs)
      t += len(targets)
  return dict(_shifted(decoder, start_id), encoder=encoder)


def one_pair_rows(
    inputs_BI: np.ndarray,
    targets_BJ: np.ndarray,
    S: int,
    T: int,
    start_id: int = 0,
) -> Batch:
  """`pair_rows` of pairs of the same lengths, one to a row: all at once."""
  B = len(inputs_BI)
  encoder = _blank(B, S)
  decoder = _blank(B, T)
  _write_all(encoder, inputs_BI)
  _write_all(decoder, targets_BJ)
  return dict(_shifted(decoder, start_id), encoder=encoder)


def concatenated_rows(
    rows: Sequence[Sequence[TokenPair]],
    T: int,
    bos_id: int = 0,
) -> Batch:
  """Batch for a decoder that reads inputs, then predicts targets (seqio's PrefixLMFeatureConverter).

  `prefix` is True on the inputs and on the position that predicts the first target. Where a pair is
  too long, inputs give way to targets.

  Args:
    rows: pairs (inputs, targets) of each row.
    T: width of rows.
    bos_id: the token that segments begin with.
  """
  B = len(rows)
  frame = _blank(B, T)
  weights = np.zeros((B, T), np.float32)
  prefix = np.zeros((B, T), bool)
  for r, row in enumerate(rows):
    t = 0
    for segment, (inputs, targets) in enumerate(row, 1):
      room = T - t
      targets = _trimmed(targets, room)
      inputs = _trimmed(inputs, room - len(targets))
      joined = np.concatenate([inputs, targets])
      _write(frame, r, t, segment, joined)
      first_target = t + len(inputs)
      stop = first_target + len(targets)
      prefix[r, t:first_target + 1] = len(targets) > 0
      weights[r, first_target:stop] = 1
      t = stop
  batch = _shifted(frame, bos_id)
  return dict(batch, weights=weights, prefix=prefix)


def _blank(rows: int, width: int) -> Batch:
  shape = (rows, width)
  return dict(
      inputs=np.zeros(shape, np.int32),
      positions=np.zeros(shape, np.int32),
      segments=np.zeros(shape, np.int32),
  )


def _trimmed(tokens: np.ndarray, room: int) -> np.ndarray:
  """Tokens that fit into `room`, the last one among them if there is any room."""
  if len(tokens) <= room:
    return tokens
  if room <= 0:
    return tokens[:0]
  beginning = tokens[:room - 1]
  last = tokens[-1:]
  return np.append(beginning, last)


def _write(
    frame: Batch,
    row: int,
    start: int,
    segment: int,
    tokens: np.ndarray,
) -> None:
  """Puts a segment into a row, from position `start` on."""
  n = len(tokens)
  here = slice(start, start + n)
  frame['inputs'][row, here] = tokens
  frame['positions'][row, here] = np.arange(n)
  frame['segments'][row, here] = segment


def _write_all(frame: Batch, tokens_BN: np.ndarray) -> None:
  """Puts a segment into each row, at its beginning."""
  n = tokens_BN.shape[1]
  frame['inputs'][:, :n] = tokens_BN
  frame['positions'][:, :n] = np.arange(n)
  frame['segments'][:, :n] = 1


def _shifted(frame: Batch, start_id: int) -> Batch:
  """Targets, and inputs that are the targets one later, from a frame whose `inputs` hold the targets.

  Segments begin with `start_id`.
  """
  targets = frame['inputs']
  positions = frame['positions']
  is_token = frame['segments'] > 0
  start_or_padding = np.where(is_token, start_id, PADDING)
  inputs = start_or_padding.astype(targets.dtype)
  has_begun = positions[:, 1:] > 0
  follows = has_begun & is_token[:, 1:]
  previous = targets[:, :-1]
  inputs[:, 1:] = np.where(follows, previous, inputs[:, 1:])
  return dict(
      inputs=inputs,
      targets=targets,
      weights=is_token.astype(np.float32),
      positions=positions,
      segments=frame['segments'],
  )
