"""How the mesh axis `context` cuts rows: into one piece for each device, or into two.

Under a causal mask the end of a row sees more than its beginning. Rows are then cut into 2c pieces, of which device i
of c has i and 2c - 1 - i: together they see the same number of tokens on all devices (Llama 3 Herd of Models, section
3.3.2, arXiv 2407.21783).

`arranged` puts a batch into that order, where the loss reads it; its positions, segments, targets and weights move with
the tokens, so that sums over tokens need no undoing. A batch that is in this order has `slots`, the places of its
tokens in their rows. Without `slots` each device has one piece, and rows are in order.
"""
import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from t5like.sharding import ROWS, everywhere

SLOTS = 'slots'
PREDICT = 'predict'
OF_PREDICTIONS = ('targets', 'weights')  # with PREDICT these are of the predictions, [B, P]
ENCODER = 'encoder'  # whose tokens see all others


@dataclasses.dataclass(frozen=True)
class Cut:
  """Of rows of one length.

  length: tokens of a row.
  devices: of the axis `context`.
  is_balanced: each device has a piece from both ends.
  """
  length: int
  devices: int
  is_balanced: bool

  @property
  def pieces(self) -> int:
    """Of one device."""
    if self.is_balanced:
      return 2
    return 1

  @property
  def tokens(self) -> int:
    """Of one piece."""
    return self.length // self.devices // self.pieces

  def starts(self, device: Any) -> list[Any]:
    """Slots of the first tokens of the pieces of a device, whose number may be traced."""
    starts = [device * self.tokens]
    if self.is_balanced:
      number = 2 * self.devices - 1 - device
      starts.append(number * self.tokens)
    return starts

  def starts_here(self) -> list[Any]:
    """`starts` of the device that runs this, inside `shard_map`."""
    if self.devices == 1:
      return self.starts(0)
    device = jax.lax.axis_index('context')
    return self.starts(device)

  def slots(self) -> np.ndarray:
    """int32 [devices, tokens of a device]: the places of tokens in the row, as devices hold them."""
    of_devices = []
    for device in range(self.devices):
      pieces = [np.arange(start, start + self.tokens) for start in self.starts(device)]
      of_devices.append(np.concatenate(pieces))
    return np.stack(of_devices).astype(np.int32)


def devices() -> int:
  """Into how many parts the mesh in force cuts rows."""
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty:
    return 1
  return mesh.shape['context']


def shards_of_rows_and_heads() -> int:
  """Into how many parts the mesh in force cuts batches and heads."""
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty:
    return 1
  count = mesh.shape['tensor']
  for axis in ROWS:
    count *= mesh.shape[axis]
  return count


def cut_of(tokens: Mapping[str, Any], length: int) -> Cut:
  """The Cut of rows of this length, of whose tokens it is known whether they are arranged."""
  return Cut(length, devices(), SLOTS in tokens)


def arranged(batch: Mapping[str, Any]) -> Mapping[str, Any]:
  """A batch of a causal model whose rows are cut evenly: each device has a piece from both ends.

  As it is where rows are not cut, or cannot be cut into two pieces for each device.

  Args:
    batch: arrays [B, T], and [B, P] of predictions; those of an encoder stay as they are.
  """
  T = batch['inputs'].shape[1]
  count = devices()
  if count == 1 or T % (2 * count):
    return batch
  cut = Cut(T, count, is_balanced=True)
  out: dict[str, Any] = {}
  for name, value in batch.items():
    if name == ENCODER:
      out[name] = value
    elif name == PREDICT:
      out[name] = _places(value, cut)
    elif PREDICT in batch and name in OF_PREDICTIONS:
      out[name] = value
    else:
      out[name] = spread(value, cut)
  slots_T = cut.slots().reshape(-1)
  zeros_BT = jnp.zeros_like(out['inputs'], jnp.int32)
  out[SLOTS] = zeros_BT + slots_T[None]
  return out


def _places(slots_BP: jax.Array, cut: Cut) -> jax.Array:
  """Where the tokens that were at these slots are after `spread`."""
  slots_T = cut.slots().reshape(-1)
  places_T = jnp.asarray(np.argsort(slots_T), jnp.int32)
  slots_BP = everywhere(slots_BP, 'B_')
  return places_T.at[slots_BP].get(out_sharding=jax.typeof(slots_BP).sharding)


def spread(x_BT: jax.Array, cut: Cut) -> jax.Array:
  """Rows in order, [B, T], as devices hold them."""
  whole_BT = everywhere(x_BT, 'B_')
  pieces_BT = in_pieces(whole_BT, 1, cut)
  return everywhere(pieces_BT, 'BT')


def in_pieces(x: jax.Array, axis: int, cut: Cut) -> jax.Array:
  """An array whose axis of tokens, on every device in full, is in order, in the order in which devices hold them."""
  if not cut.is_balanced:
    return x
  before = x.shape[:axis]
  after = x.shape[axis + 1:]
  pieces = x.reshape(*before, 2 * cut.devices, cut.tokens, *after)
  first = jax.lax.slice_in_dim(pieces, 0, cut.devices, axis=axis)
  last = jax.lax.slice_in_dim(pieces, cut.devices, 2 * cut.devices, axis=axis)
  pairs = jnp.stack([first, jnp.flip(last, axis)], axis + 1)
  return pairs.reshape(x.shape)


def in_order(x: jax.Array, axis: int, cut: Cut) -> jax.Array:
  """The reverse of `in_pieces`."""
  if not cut.is_balanced:
    return x
  before = x.shape[:axis]
  after = x.shape[axis + 1:]
  pairs = x.reshape(*before, cut.devices, 2, cut.tokens, *after)
  first = jax.lax.index_in_dim(pairs, 0, axis + 1, keepdims=False)
  last = jax.lax.index_in_dim(pairs, 1, axis + 1, keepdims=False)
  pieces = jnp.concatenate([first, jnp.flip(last, axis)], axis)
  return pieces.reshape(x.shape)


def gathered(x: jax.Array, axis: int, cut: Cut) -> jax.Array:
  """All tokens in order, of an array of which each device has its own; inside `shard_map`."""
  if cut.devices == 1:
    return x
  whole = jax.lax.all_gather(x, 'context', axis=axis, tiled=True)
  return in_order(whole, axis, cut)
