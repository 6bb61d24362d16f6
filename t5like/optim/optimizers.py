"""Optimizers that optax lacks, or has for lone matrices on single devices only.

Parameters are a nested dict, and `parameters`, the `model.parameters` of `transformer.build`, says what each of them
is. Every layer of a stack counts as a parameter of its own, and so does every expert: its statistics, root mean squares
and matrices are what they would be if it stood alone. The axes of a matrix are inputs or outputs as its Param says
([D, N, H] is D x NH); all others are vectors, whatever their rank. No axes are merged where that would move arrays
between devices.

All take `learning_rate`, a number or a schedule, and `mask`, a function of params that marks which decay. Updates,
gradients and parameters are trees alike; arrays are fp32.
"""
import math
from collections.abc import Callable, Hashable, Mapping
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from optax import contrib

from t5like.errors import ConfigError
from t5like.parameters import Axes, Param

# Roles of matrices that are looked up, or that predict: Muon is for those in between.
TABLES = ('embed', 'head', 'positions', 'types', 'relative', 'router')

Mask = Callable[[optax.Params], Any]  # params -> a tree like them of bools: what decays
Rate = optax.ScalarOrSchedule
Transform = optax.GradientTransformation
Declared = Mapping[str, Param]  # `model.parameters`
Path = tuple[Any, ...]  # a key path of jax.tree_util

map_with_path = jax.tree_util.tree_map_with_path


def path_name(path: Path) -> str:
  """'stack/blocks/attention/q/w' from a key path of jax.tree_util."""
  keys = []
  for entry in path:
    key = entry.key if hasattr(entry, 'key') else entry
    keys.append(str(key))
  return '/'.join(keys)


def map_with_param(
    fn: Callable[..., Any],
    parameters: Declared,
    tree: Any,
    *rest: Any,
) -> Any:
  """fn(its Param, array, ..) of each array of a tree of parameters, and of trees like it."""

  def with_param(path: Path, x: jax.Array, *others: Any) -> Any:
    param = parameters[path_name(path)]
    return fn(param, x, *others)

  return map_with_path(with_param, tree, *rest)


def required(parameters: Declared | None, name: str) -> Declared:
  """`parameters`; ConfigError where the optimizer of this name needs them and they are None."""
  if parameters is None:
    raise ConfigError(f'{name} treats each layer, and matrices and vectors apart, and has to know which array is what: '
                      'give it parameters=model.parameters, of the model that `transformer.build` returned.')
  return parameters


def _rms(param: Param, x: jax.Array) -> jax.Array:
  """Root mean square of each layer and expert, in axes of size 1."""
  squares = jnp.square(x)
  mean_square = jnp.mean(squares, param.own_axes, keepdims=True)
  return jnp.sqrt(mean_square)


def _of_each_update(fn: Callable[..., jax.Array], parameters: Declared) -> Transform:
  """The transformation without state that makes fn(its Param, u) of each update u."""

  def update(updates: optax.Updates, params: optax.Params | None) -> optax.Updates:
    return map_with_param(fn, parameters, updates)

  return optax.stateless(update)


def _times_parameter_rms(parameters: Declared, least: float = 1e-3) -> Transform:
  """Scales updates with the parameter they change, so that steps are relative."""

  def scaled(param: Param, u: jax.Array, p: jax.Array) -> jax.Array:
    scale = jnp.maximum(_rms(param, p), least)
    return u * scale

  def update(updates: optax.Updates, params: optax.Params | None) -> optax.Updates:
    return map_with_param(scaled, parameters, updates, params)

  return optax.stateless(update)


# --- Adafactor ----------------------------------------------------------------------------------


class AdafactorState(NamedTuple):
  """State of Adafactor.

  count: int32 scalar, an array; not annotated as such, since tuples have a method of that name.
  v: the tree of params with, for each, a dict of fp32 running means of g^2: `inputs` [L, D, 1, 1] and `outputs`
    [L, 1, N, H] of a matrix that is factored, else `full`.
  """
  count: Any
  v: Any


def adafactor(
    learning_rate: Rate,
    weight_decay: float = 0.0,
    mask: Mask | None = None,
    decay_rate: float = 0.8,
    clip_threshold: float = 1.0,
    min_dim_size_to_factor: int = 128,
    eps: float = 1e-30,
    multiply_by_parameter_scale: bool = True,
    parameters: Declared | None = None,
) -> Transform:
  """Adafactor without momentum (Shazeer & Stern 2018, arXiv 1804.04235, algorithm 4), as T5X runs it.

  At step t, from 0, v is the mean of g^2 + eps with weight (t + 1)^-decay_rate on the newest; of a
  matrix with at least min_dim_size_to_factor inputs and outputs only the means r over outputs and c
  over inputs are kept, and v = r c / mean(r). The update is u = g / sqrt(v), divided by
  max(1, RMS(u) / clip_threshold) (0: not), times max(RMS(p), 1e-3) and the learning rate.
  weight_decay p is added before the learning rate.

  Args:
    learning_rate: a number or a schedule.
    weight_decay: see above.
    mask: what decays; None: everything.
    decay_rate: see above.
    clip_threshold: see above; 0: updates are not clipped.
    min_dim_size_to_factor: see above.
    eps: see above.
    multiply_by_parameter_scale: whether updates are multiplied by max(RMS(p), 1e-3).
    parameters: `model.parameters`.
  """
  parameters = required(parameters, 'adafactor')

  def clipped(param: Param, u: jax.Array) -> jax.Array:
    excess = _rms(param, u) / clip_threshold
    return u / jnp.maximum(1, excess)

  parts = [_by_factored_rms(parameters, decay_rate, min_dim_size_to_factor, eps)]
  if clip_threshold:
    parts.append(_of_each_update(clipped, parameters))
  if multiply_by_parameter_scale:
    parts.append(_times_parameter_rms(parameters))
  parts.append(optax.add_decayed_weights(weight_decay, mask))
  parts.append(optax.scale_by_learning_rate(learning_rate))
  return optax.chain(*parts)


def _by_factored_rms(
    parameters: Declared,
    decay_rate: float,
    min_dim_size_to_factor: int,
    eps: float,
) -> Transform:
  """g / sqrt(v), v as `adafactor` says."""

  def means(param: Param, x: jax.Array) -> dict[str, jax.Array]:
    """The means that are kept of x, an array in the place of g^2."""
    sides = param.sides
    if sides is None:
      return dict(full=x)
    smaller = min(_sizes(sides, x))
    if smaller < min_dim_size_to_factor:
      return dict(full=x)
    inputs, outputs = sides
    return dict(
        inputs=jnp.mean(x, outputs, keepdims=True),
        outputs=jnp.mean(x, inputs, keepdims=True),
    )

  def init(params: optax.Params) -> AdafactorState:
    # Zeros of the means, not of their shapes: so they lie on the devices on which means will lie.
    like = map_with_param(means, parameters, params)
    v = jax.tree.map(jnp.zeros_like, like)
    return AdafactorState(jnp.int32(0), v)

  def update(
      updates: Any,
      state: Any,
      params: Any = None,
  ) -> tuple[Any, AdafactorState]:
    t = (state.count + 1).astype(jnp.float32)
    newest = t ** -decay_rate  # not 1 - beta2, which would round it

    def means_of_square(param: Param, g: jax.Array) -> dict[str, jax.Array]:
      return means(param, jnp.square(g) + eps)

    def mixed(old: jax.Array, new: jax.Array) -> jax.Array:
      return (1 - newest) * old + newest * new

    now = map_with_param(means_of_square, parameters, updates)
    v = jax.tree.map(mixed, state.v, now)
    new_updates = map_with_param(_over_factored_rms, parameters, updates, v)
    count = optax.safe_increment(state.count)
    return new_updates, AdafactorState(count, v)

  return optax.GradientTransformation(init, update)


def _over_factored_rms(
    param: Param,
    g: jax.Array,
    v: dict[str, jax.Array],
) -> jax.Array:
  """g / sqrt(v) of the means v that are kept of a parameter."""
  if 'full' in v:
    return g * jax.lax.rsqrt(v['full'])
  # Root by root: the product of two means of 1e-30 is 0 in fp32.
  inputs = v['inputs']
  outputs = v['outputs']
  mean = jnp.mean(inputs, param.own_axes, keepdims=True)
  return g * jax.lax.rsqrt(inputs / mean) * jax.lax.rsqrt(outputs)


def _sizes(sides: tuple[Axes, Axes], x: jax.Array) -> tuple[int, int]:
  """(number of inputs, number of outputs) of a matrix whose axes are these."""
  inputs, outputs = sides
  return _size(inputs, x), _size(outputs, x)


def _size(axes: Axes, x: jax.Array) -> int:
  return math.prod(x.shape[axis] for axis in axes)


# --- Adam's kind --------------------------------------------------------------------------------


def adamw_rms(
    learning_rate: Rate,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-6,
    weight_decay: float = 0.0,
    mask: Mask | None = None,
    parameters: Declared | None = None,
) -> Transform:
  """AdamW whose step is multiplied by max(RMS(p), 1e-3), which lets Adam train T5 (nanoT5's AdamWScale).

  Weight decay is not multiplied by it. eps is added to sqrt(v) as it is, before bias correction.
  """
  parameters = required(parameters, 'adamw_rms')
  return optax.chain(
      _by_adam(b1, b2, eps, bias_correction=True),
      _times_parameter_rms(parameters),
      optax.add_decayed_weights(weight_decay, mask),
      optax.scale_by_learning_rate(learning_rate),
  )


def bert_adamw(
    learning_rate: Rate,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-6,
    weight_decay: float = 0.0,
    mask: Mask | None = None,
) -> Transform:
  """lr (m / (sqrt(v) + eps) + weight_decay p): AdamW without bias correction (BERT, optimization.py).

  Its first steps are (1 - b1) / sqrt(1 - b2) times Adam's, which warm-up makes up for.
  """
  return optax.chain(
      _by_adam(b1, b2, eps, bias_correction=False),
      optax.add_decayed_weights(weight_decay, mask),
      optax.scale_by_learning_rate(learning_rate),
  )


def _by_adam(
    b1: float,
    b2: float,
    eps: float,
    bias_correction: bool,
) -> Transform:
  """m / (sqrt(v) + eps), times sqrt(1 - b2^t) / (1 - b1^t) under bias correction; t counts from 1.

  Kingma & Ba 2015 (arXiv 1412.6980), section 2, in its efficient order; in the other, which is
  optax's, the same eps counts for less until sqrt(1 - b2^t) is near 1.
  """

  def init(params: optax.Params) -> optax.ScaleByAdamState:
    m = jax.tree.map(jnp.zeros_like, params)
    v = jax.tree.map(jnp.zeros_like, params)
    return optax.ScaleByAdamState(jnp.int32(0), m, v)

  def mean(old: jax.Array, g: jax.Array) -> jax.Array:
    return b1 * old + (1 - b1) * g

  def mean_square(old: jax.Array, g: jax.Array) -> jax.Array:
    return b2 * old + (1 - b2) * jnp.square(g)

  def update(
      updates: Any,
      state: Any,
      params: Any = None,
  ) -> tuple[Any, optax.ScaleByAdamState]:
    count = optax.safe_increment(state.count)
    m = jax.tree.map(mean, state.mu, updates)
    v = jax.tree.map(mean_square, state.nu, updates)
    correction = 1
    if bias_correction:
      bias_of_v = 1 - b2 ** count
      bias_of_m = 1 - b1 ** count
      correction = jnp.sqrt(bias_of_v) / bias_of_m

    def scaled(m: jax.Array, v: jax.Array) -> jax.Array:
      root = jnp.sqrt(v)
      return m / (root + eps) * correction

    new_updates = jax.tree.map(scaled, m, v)
    return new_updates, optax.ScaleByAdamState(count, m, v)

  return optax.GradientTransformation(init, update)


# --- Muon ---------------------------------------------------------------------------------------


def muon(
    learning_rate: Rate,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    mask: Mask | None = None,
    beta: float = 0.95,
    ns_steps: int = 5,
    nesterov: bool = True,
    preconditioning: Literal['frobenius', 'spectral', 'aol', 'schatten'] = 'frobenius',
    consistent_rms: float | None = None,
    adam_scale: float = 1.0,
    parameters: Declared | None = None,
) -> Transform:
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
  parameters = required(parameters, 'muon')

  def kind(param: Param, x: jax.Array) -> str:
    is_between = param.sides is not None and param.role not in TABLES
    return 'muon' if is_between else 'adam'

  def kinds(tree: Any) -> Any:
    return map_with_param(kind, parameters, tree)

  decay = optax.add_decayed_weights(weight_decay, mask)
  orthogonal = contrib.scale_by_muon(
      beta=beta,
      ns_steps=ns_steps,
      nesterov=nesterov,
      preconditioning=preconditioning,
      weight_dimension_numbers=_dimension_numbers(parameters),
  )
  by_kind: dict[Hashable, Transform] = {}
  by_kind['muon'] = optax.chain(
      anywhere(orthogonal),
      _scaled_by_shape(consistent_rms, parameters),
      decay,
  )
  by_kind['adam'] = optax.chain(
      optax.scale_by_adam(b1, b2, eps),
      decay,
      optax.scale(adam_scale),
  )
  return optax.chain(
      optax.partition(by_kind, kinds),
      optax.scale_by_learning_rate(learning_rate),
  )


def _dimension_numbers(parameters: Declared) -> Callable[[Any], Any]:
  """Function of a tree of matrices: which of their axes are inputs and which outputs, as optax has it."""

  def of_matrix(param: Param, x: jax.Array) -> contrib.MuonDimensionNumbers:
    inputs, outputs = _sides_of_matrix(param)
    return contrib.MuonDimensionNumbers(inputs, outputs)

  def of_tree(tree: Any) -> Any:
    return map_with_param(of_matrix, parameters, tree)

  return of_tree


def _scaled_by_shape(consistent_rms: float | None, parameters: Declared) -> Transform:
  """Orthogonal matrices times a number for their numbers of inputs and outputs; see `muon`."""

  def scaled(param: Param, u: jax.Array) -> jax.Array:
    inputs, outputs = _sizes(_sides_of_matrix(param), u)
    if consistent_rms is None:
      factor = max(1, outputs / inputs)
      return u * math.sqrt(factor)
    longer = max(outputs, inputs)
    return u * consistent_rms * math.sqrt(longer)

  return _of_each_update(scaled, parameters)


def _sides_of_matrix(param: Param) -> tuple[Axes, Axes]:
  """`param.sides`; TypeError for what is no matrix."""
  if param.sides is None:
    raise TypeError(f'{param} is not a matrix: it has no inputs and outputs.')
  return param.sides


# --- Optimizers of optax, made fit for meshes ---------------------------------------------------


def anywhere(tx: Transform) -> optax.GradientTransformationExtraArgs:
  """tx, which knows nothing of explicit meshes, with XLA to choose layouts inside its update."""
  inner = optax.with_extra_args_support(tx)

  def inside(
      updates: Any,
      state: Any,
      params: Any,
      extra_args: dict[str, Any],
  ) -> tuple[Any, Any]:
    return inner.update(updates, state, params, **extra_args)

  def update(
      updates: Any,
      state: Any,
      params: Any = None,
      **extra_args: Any,
  ) -> tuple[Any, Any]:
    if jax.sharding.get_abstract_mesh().empty:
      return inside(updates, state, params, extra_args)
    # What comes out lies where it lay when it went in.
    layouts = jax.tree.map(_spec, (updates, state))
    by_xla: Any = jax.sharding.auto_axes(inside, out_sharding=layouts)
    return by_xla(updates, state, params, extra_args)

  return optax.GradientTransformationExtraArgs(tx.init, update)


def _spec(x: jax.Array) -> jax.sharding.PartitionSpec:
  """How an array is spread over the mesh in force."""
  return jax.typeof(x).sharding.spec
