"""Optimizers that optax lacks, or has for lone matrices on single devices only.

Parameters are a nested dict, and `parameters`, the `model.parameters` of `transformer.build`, says what each of them
is. Every layer of a stack counts as a parameter of its own, and so does every expert: its statistics, root mean squares
and matrices are what they would be if it stood alone. The axes of a matrix are inputs or outputs as its Param says
([D, N, H] is D x NH); all others are vectors, whatever their rank. No axes are merged where that would move arrays
between devices.

All take `learning_rate`, a number or a schedule, and `mask`, a function of params that marks which decay.
"""
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from optax import contrib

from t5like.errors import ConfigError
from t5like.parameters import Param, with_path_of

# Roles of matrices that are looked up, or that predict: what Muon is for are those in between.
TABLES = ('embed', 'head', 'positions', 'types', 'relative')

map_with_path = jax.tree_util.tree_map_with_path


def path_name(path: tuple) -> str:
  """'stack/blocks/attention/q/w' from a key path of jax.tree_util."""
  return '/'.join(str(k.key if hasattr(k, 'key') else k) for k in path)


def map_with_param(fn: Callable, parameters: Mapping[str, Param], tree: Any, *rest: Any) -> Any:
  """fn(its Param, array, ..) of each array of a tree of parameters, and of trees like it."""
  def of_path(path, x, *others):
    return fn(parameters[path_name(path)], x, *others)
  return map_with_path(of_path, tree, *rest)


def _required(parameters: Mapping[str, Param] | None, name: str) -> Mapping[str, Param]:
  if parameters is None:
    raise ConfigError(f'{name} treats each layer, and matrices and vectors apart, and has to know which array is what: '
                      'give it parameters=model.parameters, of the model that `transformer.build` returned.')
  return parameters


def _rms(param, x):
  """Root mean square of each layer and expert, in axes of size 1."""
  return jnp.sqrt(jnp.mean(jnp.square(x), param.own_axes, keepdims=True))


def _times_parameter_rms(parameters, least=1e-3):
  """Scales updates with the parameter they change, so that steps are relative."""
  def scaled(param, u, p):
    return u * jnp.maximum(_rms(param, p), least)
  return optax.stateless(lambda updates, params: map_with_param(scaled, parameters, updates, params))


# --- Adafactor ----------------------------------------------------------------------------------


class AdafactorState(NamedTuple):
  """count: int32 scalar. v: the tree of params with, for each, a dict of fp32 running means of g^2:
  `inputs` [L, D, 1, 1] and `outputs` [L, 1, N, H] of a matrix that is factored, else `full`."""
  count: Any
  v: Any


def adafactor(learning_rate, weight_decay=0.0, mask=None, decay_rate=0.8, clip_threshold=1.0,
              min_dim_size_to_factor=128, eps=1e-30, multiply_by_parameter_scale=True, parameters=None):
  """Adafactor without momentum (Shazeer & Stern 2018, arXiv 1804.04235, algorithm 4), as T5X runs it.

  At step t, from 0, v is the mean of g^2 + eps with weight (t + 1)^-decay_rate on the newest; of a
  matrix with at least min_dim_size_to_factor inputs and outputs only the means r over outputs and c
  over inputs are kept, and v = r c / mean(r). The update is u = g / sqrt(v), divided by
  max(1, RMS(u) / clip_threshold) (0: not), times max(RMS(p), 1e-3) and the learning rate.
  weight_decay p is added before the learning rate.
  """
  parameters = _required(parameters, 'adafactor')

  def clipped(param, u):
    return u / jnp.maximum(1, _rms(param, u) / clip_threshold)
  parts = [_by_factored_rms(parameters, decay_rate, min_dim_size_to_factor, eps)]
  if clip_threshold:
    parts.append(optax.stateless(lambda updates, _: map_with_param(clipped, parameters, updates)))
  if multiply_by_parameter_scale:
    parts.append(_times_parameter_rms(parameters))
  return optax.chain(*parts, optax.add_decayed_weights(weight_decay, mask),
                     optax.scale_by_learning_rate(learning_rate))


def _by_factored_rms(parameters, decay_rate, min_dim_size_to_factor, eps):
  def means(param, x):
    """What is kept of x, an array in the place of g^2."""
    if param.sides is None or min(_sizes(param, x)) < min_dim_size_to_factor:
      return dict(full=x)
    inputs, outputs = param.sides
    return dict(inputs=jnp.mean(x, outputs, keepdims=True), outputs=jnp.mean(x, inputs, keepdims=True))

  def scaled(param, g, v):
    if 'full' in v:
      return g * jax.lax.rsqrt(v['full'])
    # Root by root: the product of two means of 1e-30 is 0 in fp32.
    mean = jnp.mean(v['inputs'], param.own_axes, keepdims=True)
    return g * jax.lax.rsqrt(v['inputs'] / mean) * jax.lax.rsqrt(v['outputs'])

  def init(params):
    # Zeros of the means, not of their shapes: so they lie on the devices on which means will lie.
    return AdafactorState(jnp.int32(0), jax.tree.map(jnp.zeros_like, map_with_param(means, parameters, params)))

  def update(grads, state, params=None):
    newest = (state.count + 1).astype(jnp.float32) ** -decay_rate  # not 1 - beta2, which would round it
    now = map_with_param(lambda param, g: means(param, jnp.square(g) + eps), parameters, grads)
    v = jax.tree.map(lambda old, new: (1 - newest) * old + newest * new, state.v, now)
    return map_with_param(scaled, parameters, grads, v), AdafactorState(optax.safe_increment(state.count), v)
  return optax.GradientTransformation(init, update)


def _sizes(param, x):
  """(number of inputs, number of outputs) of a matrix."""
  inputs, outputs = param.sides
  return math.prod(x.shape[axis] for axis in inputs), math.prod(x.shape[axis] for axis in outputs)


# --- Adam's kind --------------------------------------------------------------------------------


def adamw_rms(learning_rate, b1=0.9, b2=0.999, eps=1e-6, weight_decay=0.0, mask=None, parameters=None):
  """AdamW whose step is multiplied by max(RMS(p), 1e-3), which lets Adam train T5 (nanoT5's AdamWScale).

  Weight decay is not multiplied by it. eps is added to sqrt(v) as it is, before bias correction.
  """
  parameters = _required(parameters, 'adamw_rms')
  return optax.chain(_by_adam(b1, b2, eps, bias_correction=True), _times_parameter_rms(parameters),
                     optax.add_decayed_weights(weight_decay, mask), optax.scale_by_learning_rate(learning_rate))


def bert_adamw(learning_rate, b1=0.9, b2=0.999, eps=1e-6, weight_decay=0.0, mask=None):
  """lr (m / (sqrt(v) + eps) + weight_decay p): AdamW without bias correction (BERT, optimization.py).

  Its first steps are (1 - b1) / sqrt(1 - b2) times Adam's, which warm-up makes up for.
  """
  return optax.chain(_by_adam(b1, b2, eps, bias_correction=False), optax.add_decayed_weights(weight_decay, mask),
                     optax.scale_by_learning_rate(learning_rate))


def _by_adam(b1, b2, eps, bias_correction):
  """m / (sqrt(v) + eps), times sqrt(1 - b2^t) / (1 - b1^t) under bias correction; t counts from 1.

  Kingma & Ba 2015 (arXiv 1412.6980), section 2, in its efficient order; in the other, which is
  optax's, the same eps counts for less until sqrt(1 - b2^t) is near 1.
  """
  def init(params):
    zeros = lambda: jax.tree.map(jnp.zeros_like, params)
    return optax.ScaleByAdamState(jnp.int32(0), zeros(), zeros())

  def update(grads, state, params=None):
    count = optax.safe_increment(state.count)
    m = jax.tree.map(lambda m, g: b1 * m + (1 - b1) * g, state.mu, grads)
    v = jax.tree.map(lambda v, g: b2 * v + (1 - b2) * jnp.square(g), state.nu, grads)
    correction = jnp.sqrt(1 - b2 ** count) / (1 - b1 ** count) if bias_correction else 1
    updates = jax.tree.map(lambda m, v: m / (jnp.sqrt(v) + eps) * correction, m, v)
    return updates, optax.ScaleByAdamState(count, m, v)
  return optax.GradientTransformation(init, update)


# --- Muon ---------------------------------------------------------------------------------------


def muon(learning_rate, b1=0.9, b2=0.999, eps=1e-8, weight_decay=0.0, mask=None, beta=0.95, ns_steps=5,
         nesterov=True, preconditioning='frobenius', consistent_rms=None, adam_scale=1.0, parameters=None):
  """Muon (Jordan et al. 2024) for the matrices of blocks, AdamW for tables, heads and vectors.

  Momentum (`beta`) of a matrix is made orthogonal by Newton-Schulz steps, all in optax, and multiplied by
  sqrt(max(1, outputs / inputs)), or by consistent_rms sqrt(max(outputs, inputs)) where that is given: with
  0.2 its steps are as large as AdamW's (Liu et al. 2025, arXiv 2502.16982, section 2.2). b1, b2 and eps
  are AdamW's, whose learning rate is adam_scale times Muon's. Weight decay, by the mask, is in both.

  The first steps are optax's, not Jordan's: before momentum m and gradient g are mixed (Nesterov), at step t from 1,
  optax.contrib.scale_by_muon divides m by 1 - beta^(t + 1) and g by 1 - beta^t, as Adam does with its means. Jordan's
  muon.py (github.com/KellerJordan/Muon) mixes beta m + (1 - beta) g as they are. Step 1 has the same direction in
  both, from step 2 on optax's leans more on the newest gradient (at first nearly twice as much), and after about
  3 / (1 - beta) steps they agree.
  """
  parameters = _required(parameters, 'muon')

  def kind(param, x):
    is_between = param.sides is not None and param.role not in TABLES
    return 'muon' if is_between else 'adam'

  def dimension_numbers(tree):
    return map_with_param(lambda param, x: contrib.MuonDimensionNumbers(*param.sides), parameters, tree)

  def shape_scale(param, u):
    inputs, outputs = _sizes(param, u)
    if consistent_rms is None:
      return u * math.sqrt(max(1, outputs / inputs))
    return u * consistent_rms * math.sqrt(max(outputs, inputs))

  decay = optax.add_decayed_weights(weight_decay, mask)
  by_kind = dict(
      muon=optax.chain(
          anywhere(contrib.scale_by_muon(beta=beta, ns_steps=ns_steps, nesterov=nesterov,
                                          preconditioning=preconditioning,
                                          weight_dimension_numbers=dimension_numbers)),
          optax.stateless(lambda updates, _: map_with_param(shape_scale, parameters, updates)), decay),
      adam=optax.chain(optax.scale_by_adam(b1, b2, eps), decay, optax.scale(adam_scale)))
  return optax.chain(optax.partition(by_kind, lambda tree: map_with_param(kind, parameters, tree)),
                     optax.scale_by_learning_rate(learning_rate))


# --- Optimizers of optax, made fit for stacks and meshes ----------------------------------------


def anywhere(tx):
  """tx, which knows nothing of explicit meshes, with XLA to choose layouts inside its update."""
  def update(updates, state, params=None, **more):
    if jax.sharding.get_abstract_mesh().empty:
      return tx.update(updates, state, params, **more)
    # What comes out lies where it lay when it went in.
    layouts = jax.tree.map(lambda x: jax.typeof(x).sharding.spec, (updates, state))

    def inside(updates, state, params, more):
      return tx.update(updates, state, params, **more)
    return jax.sharding.auto_axes(inside, out_sharding=layouts)(updates, state, params, more)
  return optax.GradientTransformationExtraArgs(tx.init, update)


def layer_by_layer(tx: optax.GradientTransformation, parameters: Mapping[str, Param] | None, name: str = 'It'
                   ) -> optax.GradientTransformation:
  """tx, which takes the norm or another number of each array, with every layer of a stack as an array of its own.

  What it keeps of a stack is kept of each layer, on a leading axis. It must not mix arrays with one another.
  ConfigError for arrays that hold more than one matrix in a layer: `name`, which is tx's, would mix them.
  """
  parameters = _required(parameters, name)
  for path, param in parameters.items():
    if param.batch:
      raise ConfigError(f'optimizer.name={name!r} takes one norm of {path}, which has a matrix for each of the axes '
                        f'{param.batch!r} in each layer. adamw, adafactor and muon treat each by itself.')

  def init(params):
    make, trees = tx.init, (params,)
    for stack in _stacks(params, parameters):
      make = _mapped(make, stack, jax.eval_shape(tx.init, params), parameters)
    return make(*trees)

  def update(updates, state, params):
    def one(updates, state, params):
      return tx.update(updates, state, params)
    for stack in _stacks(params, parameters):
      one = _mapped(one, stack, (updates, state), parameters)
    return one(updates, state, params)
  return optax.GradientTransformation(init, update)


def _stacks(params, parameters):
  """Names of the stacks whose layers are in a tree of parameters: each may have another number of layers."""
  present = [parameters[path_name(path)] for path, _ in jax.tree_util.tree_leaves_with_path(params)]
  return sorted({param.stack for param in present if param.is_stacked})


def _mapped(fn, stack, like, parameters):
  """fn of trees, done for each layer of one stack; `like` has the structure of what it returns."""
  def axis(path, _):
    param = with_path_of(path_name(path), parameters)
    is_layered = param is not None and param.is_stacked and param.stack == stack
    return 0 if is_layered else None

  def axes(tree):
    return map_with_path(axis, tree)

  def mapped(*trees):
    return jax.vmap(fn, in_axes=tuple(axes(tree) for tree in trees), out_axes=axes(like))(*trees)
  return mapped
