"""Stacks of blocks, of which every architecture is made."""
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from t5like import choices
from t5like.model import context, side_values
from t5like.model.attention import bias_for, platform
from t5like.model.attention_kernels import Info, choose_kernel, spec_of
from t5like.model.block import Block, LayerCache, Slot, View, relative_bias
from t5like.model.config import ModelConfig
from t5like.model.initial import declare, place
from t5like.model.layers import Norm, dropout, identity, split_keys
from t5like.model.side_values import Sums
from t5like.parameters import of_layers

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


def _but_first(x_L: jax.Array) -> jax.Array:
  return x_L[1:]


def _with_first(x_L: jax.Array) -> jax.Array:
  """With a layer before the first one, which is like it."""
  return jnp.concatenate([x_L[:1], x_L])


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

    def make(key: jax.Array) -> Block:
      return Block(c, key, causal, cross)

    keys_L = jax.random.split(k_blocks, self.num_layers)
    self.blocks = jax.vmap(make)(keys_L)
    declare(self.blocks, of_layers)
    self.has_bare_first = choices.BLOCKS[c.block].bare_first
    if self.has_bare_first:
      norms = self.blocks.attention_norm
      norms = jax.tree.map(_but_first, norms)
      self.blocks.attention_norm = place(norms, first_layer=1)
    position = choices.POSITIONS[c.position]
    self.is_biased = position.biased
    self.has_bias = position.biased and not position.per_layer
    self.has_norm = not choices.BLOCKS[c.block].norm_sum
    if self.has_bias:
      self.relative = relative_bias(c, causal, k_bias)
    if self.has_norm:
      self.norm = place(Norm(c), layer='last_norm')
    place(self, stack=name)

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
    period = len(views)
    turns = self.num_layers // period
    # `unroll` copies the body instead of looping over it; parameters stay stacked either way.
    unroll = 1
    if not self.c.scan_layers:
      unroll = max(1, turns)

    def layer(x: jax.Array, layer: Any) -> Output:
      return self._run(x, layer, views[0], self.c.scan_layers)

    if period == 1:
      x_BTD, side_L = jax.lax.scan(layer, x_BTD, layers, unroll=unroll)
      return x_BTD, side_values.over_layers(side_L)

    def turn(x: jax.Array, layers: Any) -> Output:
      side: dict[str, Sums] = {}
      for n, view in enumerate(views):
        layer = _part(layers, n)
        x, of_layer = self._run(x, layer, view, self.c.scan_layers)
        side = side_values.added(side, of_layer)
      return x, side

    def in_turns(x_L: jax.Array) -> jax.Array:
      in_whole_turns = x_L[:turns * period]
      return in_whole_turns.reshape(turns, period, *x_L.shape[1:])

    side: dict[str, Sums] = {}
    if turns:
      layers_of_turns = jax.tree.map(in_turns, layers)
      x_BTD, side_of_turns = jax.lax.scan(turn, x_BTD, layers_of_turns, unroll=unroll)
      side = side_values.over_layers(side_of_turns)
    for n in range(turns * period, self.num_layers):
      view = views[n % period]
      x_BTD, of_layer = self._run(x_BTD, _part(layers, n), view, in_loop=False)
      side = side_values.added(side, of_layer)
    return x_BTD, side

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
    blocks = self._whole_blocks()
    layers = []
    for n in range(self.num_layers):
      layer = _part(blocks, n)
      layers.append(layer)
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
