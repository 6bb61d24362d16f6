"""Examples whose text occurred before, detected by hash over all parts of a dataset."""
import hashlib
from collections.abc import Sequence

import numpy as np

DIGEST = 16  # bytes of the sha256: two of 10^12 examples share them by chance once in 10^14 datasets


def digest(texts: Sequence[str]) -> bytes:
  """Bytes that identify the texts of an example."""
  joined = '\0'.join(texts)
  return hashlib.sha256(joined.encode()).digest()[:DIGEST]


def find(parts: Sequence[bytes]) -> list[np.ndarray]:
  """Which examples repeat an earlier one.

  Args:
    parts: digests of each part, bytes [n x DIGEST], in the order in which the first of equals is kept.

  Returns:
    A bool [n] for each part.
  """
  digests = np.frombuffer(b''.join(parts), '<u8').reshape(-1, 2)  # two halves each
  first_half = digests[:, 0]
  second_half = digests[:, 1]
  order = np.lexsort((second_half, first_half))  # stable: equals stay in order
  in_order = digests[order]
  following = in_order[1:]
  previous = in_order[:-1]
  equals_previous = (following == previous).all(axis=1)
  repeated = order[1:][equals_previous]
  repeats = np.zeros(len(digests), bool)
  repeats[repeated] = True
  counts = [len(part) // DIGEST for part in parts]
  ends = np.cumsum(counts)
  return np.split(repeats, ends[:-1])
