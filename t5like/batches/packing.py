"""Rows that hold several texts: which go together, planned from their lengths, and where they lie."""
import numpy as np

from t5like import choices
from t5like.objectives.functions import PADDING


def pieces(sizes, capacity):
  """Cuts what is longer than `capacity` into pieces of it and a rest: (number, start, size) of each."""
  sizes = np.asarray(sizes, np.int64)
  counts = np.maximum(1, -(-sizes // capacity))
  number = np.repeat(np.arange(len(sizes)), counts)
  start = (np.arange(len(number)) - np.repeat(np.cumsum(counts) - counts, counts)) * capacity
  return number, start, np.minimum(sizes[number] - start, capacity)


def plan(needs, capacity, seed):
  """(members, starts): row r holds the texts members[starts[r]:starts[r + 1]].

  needs: int [n], or [n, 2] for rows of an encoder and a decoder, neither above `capacity` (an int, or
  one each). Every text goes, in an order that depends on `seed`, where it fits best: into the row with
  the least room that still holds it. Of two needs the greater share counts and of two rooms the lesser,
  so both hold. Rows with a certain room are found in one operation on an integer whose bits say which
  rooms there are. Raises ValueError if a text needs more than a row has.
  """
  needs, capacity = _columns(needs), np.atleast_1d(capacity).astype(np.int64)
  if (needs > capacity).any():
    raise ValueError(f'a text needs {needs.max(0).tolist()} of the {capacity.tolist()} tokens of a row')
  whole = int(capacity.max())
  # In units of 1 / whole of a row, needs as well as rooms rounded down: as a token is at least a unit, one
  # token more never is the same number. At least one, so that a row holds at most `whole` texts.
  units = np.maximum(1, (needs * whole // capacity).max(1))
  order = np.random.default_rng([seed, len(units)]).permutation(len(units))
  free, rooms, row_of, left = [[] for _ in range(whole + 1)], 0, np.zeros(len(units), np.int64), []
  first, last = int(capacity[0]), int(capacity[-1])
  for text, need, a, b in zip(*(x.tolist() for x in (order, units[order], needs[order, 0], needs[order, -1]))):
    fitting = rooms >> need
    if fitting:
      room = need + (fitting & -fitting).bit_length() - 1
      row = free[room].pop()
      if not free[room]:
        rooms ^= 1 << room
    else:
      row, room = len(left), whole
      left.append((first, last))
    row_of[text] = row
    a, b = left[row] = left[row][0] - a, left[row][1] - b
    room = min(room - 1, a * whole // first, b * whole // last)
    if room:
      free[room].append(row)
      rooms |= 1 << room
  members = order[np.argsort(row_of[order], kind='stable')]
  return members, np.searchsorted(np.sort(row_of), np.arange(len(left) + 1))


def one_each(needs, capacity, seed):
  """`plan` of rows that hold one text each, in the order of the texts."""
  return np.arange(len(needs)), np.arange(len(needs) + 1)


# Which texts go into each row, for data.packing that is not of windows: functions like `plan`.
PLANS = choices.implement('data.packing', choices.PACKINGS, dict(concat_split=None, best_fit=plan, none=one_each))


def _columns(needs):
  needs = np.asarray(needs, np.int64)
  return needs if needs.ndim == 2 else needs[:, None]


def efficiency(needs, members, starts, capacity):
  """Share of the positions of all rows that texts take: a float, or of two needs an array [2]."""
  needs = _columns(needs)
  share = needs[members].sum(0) / (np.atleast_1d(capacity) * max(1, len(starts) - 1))
  return float(share[0]) if len(share) == 1 else share


def pair_rows(rows, S, T, start_id=0):
  """Batch for an encoder-decoder: `rows` is a list of lists of pairs (inputs, targets), a row each.

  Decoder inputs are the targets one later, `start_id` at the start of each segment (specs of seqio's
  EncDecFeatureConverter). What is too long loses its end, but not its last token.
  """
  encoder, decoder = _blank(len(rows), S), _blank(len(rows), T)
  for r, row in enumerate(rows):
    s = t = 0
    for segment, (inputs, targets) in enumerate(row, 1):
      inputs, targets = _trimmed(inputs, S - s), _trimmed(targets, T - t)
      _write(encoder, r, s, segment, inputs)
      _write(decoder, r, t, segment, targets)
      s, t = s + len(inputs), t + len(targets)
  return dict(_shifted(decoder, start_id), encoder=encoder)


def one_pair_rows(inputs, targets, S, T, start_id=0):
  """`pair_rows` of pairs of the same lengths, [B, I] and [B, J], one to a row: all at once."""
  encoder, decoder = _blank(len(inputs), S), _blank(len(inputs), T)
  for frame, tokens in ((encoder, inputs), (decoder, targets)):
    n = tokens.shape[1]
    frame['inputs'][:, :n] = tokens
    frame['positions'][:, :n] = np.arange(n)
    frame['segments'][:, :n] = 1
  return dict(_shifted(decoder, start_id), encoder=encoder)


def concatenated_rows(rows, T, bos_id=0):
  """Batch for a decoder that reads inputs, then predicts targets (seqio's PrefixLMFeatureConverter).

  `prefix` is True on the inputs and on the position that predicts the first target. Where a pair is
  too long, inputs give way to targets.
  """
  frame = _blank(len(rows), T)
  weights, prefix = np.zeros((len(rows), T), np.float32), np.zeros((len(rows), T), bool)
  for r, row in enumerate(rows):
    t = 0
    for segment, (inputs, targets) in enumerate(row, 1):
      targets = _trimmed(targets, T - t)
      inputs = _trimmed(inputs, T - t - len(targets))
      _write(frame, r, t, segment, np.concatenate([inputs, targets]))
      prefix[r, t:t + len(inputs) + 1] = len(targets) > 0
      t += len(inputs)
      weights[r, t:t + len(targets)] = 1
      t += len(targets)
  return dict(_shifted(frame, bos_id), weights=weights, prefix=prefix)


def _blank(rows, width):
  return {k: np.zeros((rows, width), np.int32) for k in ('inputs', 'positions', 'segments')}


def _trimmed(tokens, room):
  return tokens if len(tokens) <= room else np.append(tokens[:max(0, room - 1)], tokens[-1:])[:room]


def _write(frame, row, at, segment, tokens):
  here = slice(at, at + len(tokens))
  frame['inputs'][row, here] = tokens
  frame['positions'][row, here] = np.arange(len(tokens))
  frame['segments'][row, here] = segment


def _shifted(frame, start_id):
  """Targets, and inputs that are the targets one later, from a frame whose `inputs` hold the targets.

  Segments begin with `start_id`.
  """
  targets, positions, segments = frame['inputs'], frame['positions'], frame['segments']
  there = segments > 0
  inputs = np.where(there, start_id, PADDING).astype(targets.dtype)
  inputs[:, 1:] = np.where((positions[:, 1:] > 0) & there[:, 1:], targets[:, :-1], inputs[:, 1:])
  return dict(inputs=inputs, targets=targets, weights=there.astype(np.float32), positions=positions,
              segments=segments)
