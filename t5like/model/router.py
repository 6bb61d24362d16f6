"""Which experts a token goes to, and what their outputs are multiplied by (Shazeer et al. 2017, arXiv 1701.06538).

k: experts of a token, X: all of a layer. Logits and all that follows from them are fp32.
"""
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from t5like import choices, parameters
from t5like.model.config import ModelConfig
from t5like.model.initial import constant, initial_std, normal
from t5like.model.side_values import Sums, Value
from t5like.sharding import einsum, everywhere, gather

# Of the gradients that move numbers of `model.router_bias`, of which only the sign matters: no norm shall notice them.
TINY = 1e-12


class Routes(NamedTuple):
  """Where tokens go.

  experts_BTk: int32; X, which is none of them, for padding and beyond an expert's capacity.
  weights_BTk: fp32, of the outputs.
  values: side values.
  """
  experts_BTk: jax.Array
  weights_BTk: jax.Array
  values: Mapping[str, Value | Sums]


def _softmax(logits_BTX: jax.Array) -> jax.Array:
  return jax.nn.softmax(logits_BTX)


# logits_BTX -> scores_BTX, by which experts are chosen and weighed
SCORES = choices.implement('model.router', choices.ROUTERS, dict(
    softmax=_softmax,
    softmax_normalized=_softmax,
    sigmoid=jax.nn.sigmoid,
    sigmoid_normalized=jax.nn.sigmoid,
))


class Router(nnx.Module):
  """A matrix from tokens to experts, and what chooses by its product."""

  def __init__(self, c: ModelConfig, key: jax.Array) -> None:
    self.c = c
    std, cut = initial_std(c, 'router', c.d_model)
    matrix = parameters.matrix('DX', 'D', 'router')
    self.w = normal(key, c, matrix, std, cut)
    if c.router_bias:
      bias = parameters.vector('X', 'router', 'bias')
      self.b = constant(0, c, bias)

  @jax.named_scope('router')
  def __call__(self, x_BTD: jax.Array, segments_BT: jax.Array, key: jax.Array | None = None) -> Routes:
    """Routes of tokens.

    Args:
      x_BTD: what the experts read.
      segments_BT: 0 for padding, which goes nowhere.
      key: of jax.random, in training; None: the logits are exact.
    """
    c = self.c
    is_real_BT = segments_BT > 0
    logits_BTX = self._logits(x_BTD, key)
    scores_BTX = SCORES[c.router](logits_BTX)
    ranked_BTX = scores_BTX
    if c.router_bias:
      ranked_BTX += self.b[...][None, None]
    ranked_BTX = jax.lax.stop_gradient(ranked_BTX)
    _, experts_BTk = jax.lax.top_k(ranked_BTX, c.experts_per_token)
    is_chosen_BTkX = jax.nn.one_hot(experts_BTk, c.experts)
    scores_BTkX = is_chosen_BTkX * scores_BTX[:, :, None]
    weights_BTk = jnp.sum(scores_BTkX, -1)
    if choices.ROUTERS[c.router].normalized:
      weights_BTk /= jnp.sum(weights_BTk, -1, keepdims=True)
    is_chosen_BTX = jnp.sum(is_chosen_BTkX, 2)
    is_chosen_BTX *= is_real_BT[..., None]
    shares_X = _shares(is_chosen_BTX)
    if c.router_bias:
      weights_BTk = _pushing(weights_BTk, self.b[...], shares_X)
    is_taken_BTk = jnp.broadcast_to(is_real_BT[..., None], experts_BTk.shape)
    if c.expert_capacity:
      is_taken_BTk &= _within(is_chosen_BTX, is_chosen_BTkX, c.expert_capacity)
    values = self._values(logits_BTX, scores_BTX, shares_X, is_taken_BTk)
    loads = _loads(shares_X, is_real_BT)
    experts_BTk = jnp.where(is_taken_BTk, experts_BTk, c.experts)
    return Routes(experts_BTk, weights_BTk, {**values, **loads})

  def _logits(self, x_BTD: jax.Array, key: jax.Array | None) -> jax.Array:
    noise = self.c.router_jitter
    x_BTD = x_BTD.astype(jnp.float32)
    if key is not None and noise:
      layout = jax.typeof(x_BTD).sharding
      x_BTD *= jax.random.uniform(
          key,
          x_BTD.shape,
          minval=1 - noise,
          maxval=1 + noise,
          out_sharding=layout,
      )
    w_DX = gather(self.w[...], 'DX', jnp.float32)
    return einsum(
        'BTD,DX->BTX',
        x_BTD,
        w_DX,
        precision='highest',
    )

  def _values(
      self,
      logits_BTX: jax.Array,
      scores_BTX: jax.Array,
      shares_X: jax.Array,
      is_taken_BTk: jax.Array,
  ) -> dict[str, Value]:
    """Losses of the router and what tells how it does, of each token."""
    c = self.c
    log_z_BT = jax.nn.logsumexp(logits_BTX, -1)
    z_BT = jnp.square(log_z_BT)
    log_p_BTX = jax.nn.log_softmax(logits_BTX)
    p_BTX = jnp.exp(log_p_BTX)
    entropy_BT = -jnp.sum(p_BTX * log_p_BTX, -1)
    entropy_BT = jax.lax.stop_gradient(entropy_BT)
    # Fedus et al. 2021, arXiv 2101.03961, equation 4, whose second factor is a mean over tokens.
    total_BT1 = jnp.sum(scores_BTX, -1, keepdims=True)
    part_BTX = scores_BTX / total_BT1
    products_BTX = part_BTX * shares_X[None, None]
    balance_BT = c.experts * jnp.sum(products_BTX, -1)
    dropped_BT = jnp.mean(~is_taken_BTk, -1)
    equal_BT = jnp.full_like(log_z_BT, c.experts)
    most_BT = equal_BT * jnp.max(shares_X)
    least_BT = equal_BT * jnp.min(shares_X)
    return {
        'router/balance': Value(balance_BT, c.router_balance),
        'router/z': Value(z_BT, c.router_z_loss),
        'router/entropy': Value(entropy_BT),
        'router/most': Value(most_BT),
        'router/least': Value(least_BT),
        'router/dropped': Value(dropped_BT),
    }


def _shares(is_chosen_BTX: jax.Array) -> jax.Array:
  """[X], of all that were chosen for the tokens of a batch; they add up to 1 and have no gradient."""
  counts_X = jnp.sum(is_chosen_BTX, (0, 1))
  total = jnp.sum(counts_X)
  shares_X = counts_X / jnp.maximum(total, 1)
  return jax.lax.stop_gradient(shares_X)


def _loads(shares_X: jax.Array, is_real_BT: jax.Array) -> dict[str, Sums]:
  """{router/load/N: what expert N gets of what would be its equal share}, of as many tokens as there are."""
  tokens = jnp.sum(is_real_BT, dtype=jnp.float32)
  totals_X = tokens * len(shares_X) * shares_X
  nothing = jnp.zeros_like(tokens)
  loads = {}
  for number in range(len(shares_X)):
    loads[f'router/load/{number}'] = Sums(totals_X[number], tokens, nothing)
  return loads


def _within(is_chosen_BTX: jax.Array, is_chosen_BTkX: jax.Array, capacity: int) -> jax.Array:
  """[B, T, k]: whether a token is among the first of its row that chose an expert, as many as it takes."""
  chosen_BTX = everywhere(is_chosen_BTX, 'B__')
  number_BTX = jnp.cumsum(chosen_BTX, 1)
  number_BTX = everywhere(number_BTX, 'BT_')
  number_BTkX = is_chosen_BTkX * number_BTX[:, :, None]
  number_BTk = jnp.sum(number_BTkX, -1)
  return number_BTk <= capacity


@jax.custom_vjp
def _pushing(weights_BTk: jax.Array, b_X: jax.Array, shares_X: jax.Array) -> jax.Array:
  """The weights as they are, while b_X gets as its gradient by how much shares exceed equal ones, times TINY.

  Wang et al. 2024, arXiv 2408.15664: b moves against its sign (optim/router_bias.py).
  """
  return weights_BTk


def _forward(weights_BTk: jax.Array, b_X: jax.Array, shares_X: jax.Array) -> tuple[jax.Array, jax.Array]:
  return weights_BTk, shares_X


def _backward(shares_X: jax.Array, dweights_BTk: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
  excess_X = shares_X - 1 / len(shares_X)
  return dweights_BTk, TINY * excess_X, jnp.zeros_like(shares_X)


_pushing.defvjp(_forward, _backward)
