"""Queries and keys of relative_bias_attention.py in pieces, of which each is one call of a kernel."""
import dataclasses
from typing import NamedTuple

import jax

from t5like.model.kernels import relative_bias_blocks as blocks
from t5like.model.kernels.relative_bias_blocks import Form


class Span(NamedTuple):
  """A part of a length."""
  start: int
  size: int


@dataclasses.dataclass(frozen=True)
class Piece:
  """The queries and keys of one call."""
  queries: Span
  keys: Span

  @property
  def ahead(self) -> int:
    """Slots from its first key to its first query."""
    return self.queries.start - self.keys.start

  def form(self, form: Form) -> Form:
    """Of its call."""
    return dataclasses.replace(form, queries=self.queries.size, keys=self.keys.size)

  def first(self, first: int | None) -> int | None:
    """The slot of its first query from its first key, from that of all; None: not known while tracing."""
    if first is None:
      return None
    return first + self.ahead

  def is_seen(self, form: Form, first: int | None, ids: jax.Array) -> bool:
    """Whether some of its queries may see some of its keys, as far as is known while tracing."""
    if first is None:
      return True
    whole = dataclasses.replace(form, block_q=self.queries.size, block_k=self.keys.size)
    return blocks.sees(whole, first + self.queries.start, self.keys.start, has_prefix=ids.shape[1] > 1)

  def distances(self, form: Form) -> slice:
    """Which values by distance its queries and keys have between them."""
    start = self.ahead + form.keys - self.keys.size
    return slice(start, start + self.queries.size + self.keys.size)

  def of_queries(self, x: jax.Array, axis: int) -> jax.Array:
    return _cut(x, self.queries, axis)

  def of_keys(self, x: jax.Array) -> jax.Array:
    return _cut(x, self.keys, 2)


def _cut(x: jax.Array, span: Span, axis: int) -> jax.Array:
  return jax.lax.slice_in_dim(x, span.start, span.start + span.size, axis=axis)


def spans(length: int, most: int, block: int) -> list[Span]:
  """What cuts a length, a multiple of `block`, into the fewest even pieces of at most `most`."""
  count = -(-length // max(most, block))
  even = -(-length // count)
  size = -(-even // block) * block
  return spans_of_size(length, size)


def spans_of_size(length: int, size: int) -> list[Span]:
  """All of this size, but the last, which may be smaller."""
  spans = []
  for start in range(0, length, size):
    rest = length - start
    spans.append(Span(start, min(size, rest)))
  return spans
