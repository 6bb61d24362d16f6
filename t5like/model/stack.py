"""Stacks of blocks, of which every architecture is made."""
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from t5like import choices
from t5like.model import context, side_values
from t5like.model.attention import bias_for
from t5like.model.attention_choice import choose_kernel
from t5like.model.attention_kernels import Info, spec_of
from t5like.model.block import FEED_FORWARD, Block, LayerCache, Slot, View, feed_forward, relative_bias
from t5like.model.config import ModelConfig
from t5like.model.initial import declare, place
from t5like.model.layers import Norm, dropout, identity, split_keys
from t5like.model.side_values import Sums
from t5like.parameters import of_layers
from t5like.sharding import on_one_cpu, platform

MOST_UNROLLED = 12  # layers of a stack that one CPU runs without a loop; more would take too long to compile
Output = tuple[jax.Array, dict[str, Sums]]  # x_BTD; side values by name


POLICIES = jax.checkpoint_policies


def _kept(last: str) -> Any:
  """A policy of `jax.checkpoint` that saves the values of choices.KEPT up to this name, and computes others again."""
  number = choices.KEPT.index(last)
  names = choices.KEPT[:number + 1]
  return POLICIES.save_only_these_names(*names)


# What is saved for the backward pass, which computes the rest again. None: everything is saved. Each saves what those
# before it do.
REMAT = choices.implement('model.remat', choices.REMAT, dict(
    full=POLICIES.nothing_saveable,
    context=_kept('context'),
    attention=_kept('qkv'),
    middle=_kept('middle'),
    up=_kept('up'),
    minimal=_kept('gate'),
    # Gathered once a step instead of twice, for as much memory as the parameters need in `model.dtype`.
    weights=_kept('weights'),
    none=None,
))


class Layers(NamedTuple):
  """One layer, or all of a stack with a leading axis.

  block: its parameters.
  random: key of dropout; None: there is none.
  bare: see `Block`.
  """
  block: Block
  random: jax.Array | None
  bare: jax.Array | None


def _with_first(x_L: jax.Array) -> jax.Array:
  """With a layer before the first one, which is like it."""
  return jnp.concatenate([x_L[:1], x_L])


def _but_first(x_L: jax.Array) -> jax.Array:
  return x_L[1:]


class Stack(nnx.Module):
  """L blocks whose parameters are stacked on a leading axis, run by one `scan`, then a norm."""

  def __init__(
      self,
      c: ModelConfig,
      key: jax.Array,
      causal: bool,
      cross: bool = False,
      num_layers: int = 0,
      name: str = 'stack',
  ) -> None:
    """Makes the parameters.

    Args:
      c: the ModelConfig.
      key: of jax.random.
      causal: tokens see no later ones.
      cross: whether its blocks read an encoder's output.
      num_layers: 0: model.num_layers.
      name: of the stack in the declarations of its parameters.
    """
    k_blocks, k_bias = jax.random.split(key)
    self.c = c
    self.causal = causal
    self.num_layers = num_layers or c.num_layers

    sparse = tuple(c.is_sparse(n) for n in range(self.num_layers))
    self.is_mixed = len(set(sparse)) > 1
    is_sparse: bool | None = sparse[0]
    if self.is_mixed:
      is_sparse = None

    def make(key: jax.Array) -> Block:
      return Block(c, key, causal, cross, is_sparse)

    keys_L = jax.random.split(k_blocks, self.num_layers)
    self.blocks = jax.vmap(make)(keys_L)
    declare(self.blocks, of_layers)
    if self.is_mixed:
      for has_experts, part in FEED_FORWARD.items():
        owners = tuple(of_layer == has_experts for of_layer in sparse)
        setattr(self.blocks, part, self._feed_forward(keys_L, owners, has_experts))
    self.has_bare_first = choices.BLOCKS[c.block].bare_first
    if self.has_bare_first:
      owners = tuple(n > 0 for n in range(self.num_layers))
      norms = jax.tree.map(_but_first, self.blocks.attention_norm)
      self.blocks.attention_norm = place(norms, owners=owners)
    position = choices.POSITIONS[c.position]
    self.is_biased = position.biased
    self.has_bias = position.biased and not position.per_layer
    self.has_norm = not choices.BLOCKS[c.block].norm_sum
    if self.has_bias:
      self.relative = relative_bias(c, causal, k_bias)
    if self.has_norm:
      self.norm = place(Norm(c), layer='last_norm')
    place(self, stack=name)

  def _feed_forward(self, keys_L: jax.Array, owners: tuple[bool, ...], sparse: bool) -> Any:
    """MLPs or experts of those layers of the stack that have them."""

    def make(key: jax.Array) -> Any:
      return feed_forward(self.c, key, sparse)

    numbers = np.flatnonzero(owners)
    made = jax.vmap(make)(keys_L[numbers])
    declare(made, of_layers)
    return place(made, owners=owners)

  def __call__(
      self,
      x_BTD: jax.Array,
      query: Info,
      memory: Info | None = None,
      random: jax.Array | None = None,
  ) -> Output:
    """(x_BTD, side values by name, {} where no layer has any).

    Args:
      x_BTD: embedded tokens.
      query: their positions and segments.
      memory: see View.
      random: key of dropout; None: there is none.
    """
    c = self.c
    drops = random is not None and c.dropout > 0
    views = self._views(x_BTD, query, query, memory, drops)
    r_blocks, r_last = split_keys(random, 2)
    r_L = None
    if random is not None:
      r_L = jax.random.split(r_blocks, self.num_layers)
    blocks = self._whole_blocks()
    layers = Layers(blocks, r_L, self._bare())
    x_BTD, side = self._in_turns(x_BTD, layers, views)
    if self.has_norm:
      x_BTD = self.norm(x_BTD)
    if choices.DROPOUT_STYLES[c.dropout_style].everywhere:
      x_BTD = dropout(x_BTD, c, r_last)
    return x_BTD, side

  def _bare(self) -> jax.Array | None:
    """[L] bool: in which layers attention has no norm before it; None: in none."""
    if not self.has_bare_first:
      return None
    numbers_L = jnp.arange(self.num_layers)
    return numbers_L == 0

  def _whole_blocks(self) -> Block:
    """The blocks with L of every parameter; what the first layer does not have is as in the second."""
    if not self.has_bare_first:
      return self.blocks
    blocks = jax.tree.map(identity, self.blocks)
    blocks.attention_norm = jax.tree.map(_with_first, self.blocks.attention_norm)
    return blocks

  def _in_turns(
      self,
      x_BTD: jax.Array,
      layers: Layers,
      views: Sequence[View],
  ) -> Output:
    """(output of the last layer, side values): one turn of the pattern after the other, then what is left of layers.

    Args:
      x_BTD: embedded tokens.
      layers: stacked.
      views: one for each layer of a turn.
    """
    if len(views) == 1 and not self.is_mixed:

      def layer(x: jax.Array, layer: Any) -> Output:
        return self._run(x, layer, views[0], self.is_loop)

      x_BTD, side_L = jax.lax.scan(layer, x_BTD, layers, unroll=self._copies(self.num_layers))
      return x_BTD, side_values.over_layers(side_L)
    return self._in_turns_of_several(x_BTD, layers, views)

  @property
  def is_loop(self) -> bool:
    """Whether one compiled layer runs L times, as model.scan_layers says; on one CPU only where L is large.

    There a loop's copies of weights and of what is kept for the backward pass are a tenth of a step and more.
    """
    is_float32 = self.c.dtype == 'float32'
    if on_one_cpu() and is_float32 and self.num_layers <= MOST_UNROLLED:
      return False
    return self.c.scan_layers

  def _copies(self, turns: int) -> int:
    """Of the body of a loop of so many turns: parameters stay stacked either way."""
    if self.is_loop:
      return 1
    return max(1, turns)

  def _in_turns_of_several(
      self,
      x_BTD: jax.Array,
      layers: Layers,
      views: Sequence[View],
  ) -> Output:
    """`_in_turns` where the layers of a turn differ; dense ones at the beginning come before the first turn."""
    period = len(views)
    first = 0
    if self.is_mixed:
      period = math.lcm(period, self.c.sparse_every)
      first = min(self.c.dense_first, self.num_layers)
    turns = (self.num_layers - first) // period
    last = first + turns * period
    side: dict[str, Sums] = {}

    def run(x: jax.Array, number: int, layer: Layers, in_loop: bool) -> Output:
      return self._run(x, layer, views[number % len(views)], in_loop)

    def turn(x: jax.Array, of_turn: Any) -> Output:
      side: dict[str, Sums] = {}
      for number in range(first, first + period):
        layer = self._layer(of_turn, number, first)
        x, of_layer = run(x, number, layer, self.is_loop)
        side = side_values.added(side, of_layer)
      return x, side

    for number in range(first):
      x_BTD, of_layer = run(x_BTD, number, self._layer(layers, number), in_loop=False)
      side = side_values.added(side, of_layer)
    if turns:
      layers_of_turns = self._by_turn(layers, first, turns, period)
      x_BTD, side_of_turns = jax.lax.scan(turn, x_BTD, layers_of_turns, unroll=self._copies(turns))
      side = side_values.added(side, side_values.over_layers(side_of_turns))
    for number in range(last, self.num_layers):
      x_BTD, of_layer = run(x_BTD, number, self._layer(layers, number), in_loop=False)
      side = side_values.added(side, of_layer)
    return x_BTD, side

  def _by_turn(self, layers: Layers, first: int, turns: int, period: int) -> Layers:
    """Layers [turns, of a turn, ..] from [L, ..], those before the first turn and behind the last one left out."""

    def cut(start: int, count: int) -> Callable[[jax.Array], jax.Array]:

      def reshaped(x_L: jax.Array) -> jax.Array:
        in_whole_turns = x_L[start:start + turns * count]
        return in_whole_turns.reshape(turns, count, *x_L.shape[1:])

      return reshaped

    shared, own = self._taken_apart(layers)
    by_turn = jax.tree.map(cut(first, period), shared)
    for is_sparse, module in own.items():
      start = self._owners(is_sparse, 0, first)
      count = self._owners(is_sparse, first, first + period)
      if not count:
        continue
      setattr(by_turn.block, FEED_FORWARD[is_sparse], jax.tree.map(cut(start, count), module))
    return by_turn

  def _owners(self, is_sparse: bool, start: int, stop: int) -> int:
    """How many layers from one number to another are sparse, or dense."""
    return sum(self.c.is_sparse(n) == is_sparse for n in range(start, stop))

  def _layer(self, layers: Layers, number: int, first: int = 0) -> Layers:
    """The layer of a number, of layers that are stacked from the number `first` on."""
    if not self.is_mixed:
      return _part(layers, number - first)
    shared, own = self._taken_apart(layers)
    layer = _part(shared, number - first)
    is_sparse = self.c.is_sparse(number)
    place_of_own = self._owners(is_sparse, first, number)
    setattr(layer.block, FEED_FORWARD[is_sparse], _part(own[is_sparse], place_of_own))
    return layer

  def _taken_apart(self, layers: Layers) -> tuple[Layers, dict[bool, Any]]:
    """(layers without what only some of them have, that by whether it is of sparse ones)."""
    shared = jax.tree.map(identity, layers)
    own: dict[bool, Any] = {}
    if not self.is_mixed:
      return shared, own
    for is_sparse, name in FEED_FORWARD.items():
      if hasattr(shared.block, name):
        own[is_sparse] = getattr(shared.block, name)
        delattr(shared.block, name)
    return shared, own

  def _run(
      self,
      x_BTD: jax.Array,
      layer: Layers,
      view: View,
      in_loop: bool,
  ) -> Output:
    """(output of a layer, its side values); of what it computes, model.remat says what is saved."""

    def body(x: jax.Array, layer: Layers) -> Output:
      x, _, side = layer.block(x, view, layer.random, bare=layer.bare)
      return x, side

    policy = REMAT[self.c.remat]
    if policy is not None:
      # Outside of a loop, the compiler would see that what is computed again has been computed before, and keep it.
      body = jax.checkpoint(
          body,
          policy=policy,
          prevent_cse=not in_loop,
      )
    return body(x_BTD, layer)

  def layers(self) -> list[Block]:
    """L blocks, each with its part of the parameters."""
    stacked = Layers(self._whole_blocks(), None, None)
    layers = []
    for n in range(self.num_layers):
      layer = self._layer(stacked, n)
      layers.append(layer.block)
    return layers

  def extend(
      self,
      layers: Sequence[Block],
      x_BTD: jax.Array,
      query: Info,
      keys: Info,
      memory: Info | None,
      cache: Sequence[LayerCache],
      at: Slot,
  ) -> tuple[jax.Array, tuple[LayerCache | None, ...]]:
    """(x_BTD, cache) after some more tokens.

    Args:
      layers: those of `layers`.
      x_BTD: the embedded tokens.
      query: their positions and segments.
      keys: those of all slots of the cache.
      memory: see View; x is not needed.
      cache: one part for each layer.
      at: slot of the first of the tokens.
    """
    views = self._views(
        x_BTD,
        query,
        keys,
        memory,
        drops=False,
        at=at,
    )
    bare_L = self._bare()
    parts = []
    for n, (block, part) in enumerate(zip(layers, cache)):
      view = views[n % len(views)]
      bare = _part(bare_L, n)
      x_BTD, part, _ = block(x_BTD, view, None, part, at, bare)
      parts.append(part)
    if self.has_norm:
      x_BTD = self.norm(x_BTD)
    return x_BTD, tuple(parts)

  def _views(
      self,
      x_BTD: jax.Array,
      query: Info,
      keys: Info,
      memory: Info | None,
      drops: bool,
      at: Slot = 0,
  ) -> list[View]:
    """One for each kind of layer of the pattern."""
    T = x_BTD.shape[1]
    S = keys['positions'].shape[1]
    by_distance = None
    if self.has_bias:
      by_distance = self.relative(T, S, at)
    views = []
    for kind in self.c.kinds:
      view = View(query, keys, memory, None, kind)
      if self.is_biased:
        prepared = self._prepared(query, T, S, kind, drops)
        bias = None
        if by_distance is not None:
          bias = prepared(by_distance)
        bias_of = _of_layers(prepared, T, S, at)
        view = view._replace(bias=bias, bias_of=bias_of)
      views.append(view)
    return views

  def _prepared(
      self,
      query: Info,
      T: int,
      S: int,
      kind: choices.LayerKind,
      drops: bool,
  ) -> Callable[[jax.Array], jax.Array]:
    """What turns the bias by distance, [N, T + S], into what the kernel of a kind of layer takes."""
    spec = spec_of(
        self.c,
        self.causal,
        T,
        S,
        kind=kind,
        bias=True,
        dropout=drops,
    )
    kernel, _ = choose_kernel(self.c.attention, platform(), spec)
    queries = context.cut_of(query, T)

    def prepared(by_distance: jax.Array) -> jax.Array:
      return bias_for(kernel, by_distance, queries, S)

    return prepared


def _of_layers(
    prepared: Callable[[jax.Array], jax.Array],
    T: int,
    S: int,
    at: Slot,
) -> Callable[[Any], jax.Array]:
  """What makes the bias of a layer of its own module; `prepared`: see `Stack._prepared`."""

  def bias_of(module: Any) -> jax.Array:
    return prepared(module(T, S, at))

  return bias_of


def _part(stacked: Any, n: int) -> Any:
  """The nth of what is stacked on a leading axis."""

  def part(x: jax.Array) -> jax.Array:
    return x[n]

  return jax.tree.map(part, stacked)
