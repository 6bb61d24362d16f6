"""Adapters (LoRA) merged into the weights that they adapt."""
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from t5like import parameters
from t5like.model.config import ModelConfig
from t5like.parameters import Param


def merged(params: dict[str, Any], declared: Mapping[str, Param], c: ModelConfig) -> dict[str, Any]:
  """Parameters of the same model without adapters: each W with what its A and B add to it.

  Args:
    params: nested dict of arrays.
    declared: `model.parameters` of the model with adapters.
    c: its ModelConfig.
  """
  arrays = {}
  for keys, x in jax.tree_util.tree_leaves_with_path(params):
    path = '/'.join(str(key.key) for key in keys)
    arrays[path] = x
  adapters = {}  # (folder, kind) -> array
  for path, param in declared.items():
    if param.kind in parameters.ADAPTERS:
      folder = _folder(path)
      adapters[folder, param.kind] = arrays[path]
  tree: dict[str, Any] = {}
  for path, param in declared.items():
    if param.kind in parameters.ADAPTERS:
      continue
    x = arrays[path]
    folder = _folder(path)
    if param.kind == 'matrix' and (folder, 'lora_a') in adapters:
      a = adapters[folder, 'lora_a']
      b = adapters[folder, 'lora_b']
      product = jax.vmap(_product)(a, b)
      strength = c.lora_alpha / c.lora_rank
      x += strength * product
    _put(tree, path, x)
  return tree


def _folder(path: str) -> str:
  folder, _, _ = path.rpartition('/')
  return folder


def _put(tree: dict[str, Any], path: str, x: jax.Array) -> None:
  """Puts an array into a nested dict."""
  *parents, last = path.split('/')
  inner = tree
  for key in parents:
    inner = inner.setdefault(key, {})
  inner[last] = x


def _product(a: jax.Array, b: jax.Array) -> jax.Array:
  """R is the last axis of A and the first of B."""
  return jnp.tensordot(a, b, 1)
