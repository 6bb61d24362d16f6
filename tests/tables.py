"""What the arrays of trees that tests make by hand are, by their names; models declare it themselves."""
import jax
import optax

from t5like.optim.optimizers import path_name
from t5like.parameters import Param

ROLES = {'embed': 'embed', 'head': 'head', 'positions': 'positions', 'relative': 'relative', 'q': 'q', 'o': 'o'}
LETTERS = 'DNHFVK'


def declared(tree):
  """{path: Param}: those under `blocks` are in layers; `w` of two axes or more is a matrix, whose inputs are its first
  axis, and all but its last under `o`; all else is a vector."""
  return {path_name(path): of(path_name(path), x.shape) for path, x in jax.tree_util.tree_leaves_with_path(tree)}


def of(path, shape):
  keys = path.split('/')
  is_stacked = 'blocks' in keys
  own = LETTERS[:len(shape) - is_stacked]
  role = next((ROLES[key] for key in keys if key in ROLES), 'up')
  is_matrix = keys[-1] == 'w' and len(own) > 1
  if keys[-1].startswith('lora_'):
    kind = keys[-1]
  else:
    kind = 'matrix' if is_matrix else 'scale'
  cut = len(own) - 1 if 'o' in keys else 1
  inputs = own[:cut] if is_matrix else ''
  stack = '/'.join(keys[:keys.index('blocks')]) if is_stacked else ''
  if is_stacked:
    return Param('L' + own, role, kind, inputs, own.removeprefix(inputs), stack=stack or 'stack', shape=tuple(shape))
  return Param(own, role, kind, inputs, own.removeprefix(inputs), shape=tuple(shape))


def for_trees(make):
  """make(parameters), an optimizer, with the parameters of whatever tree comes."""
  def init(params):
    return make(declared(params)).init(params)

  def update(updates, state, params=None, **more):
    return make(declared(updates)).update(updates, state, params, **more)
  return optax.GradientTransformationExtraArgs(init, update)
