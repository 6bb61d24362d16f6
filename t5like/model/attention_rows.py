"""How attention reaches the keys of rows that mesh.context cuts: gathered on each device, or travelling in a ring."""
import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from t5like import choices
from t5like.errors import ConfigError
from t5like.model import context
from t5like.model.attention_kernels import KERNELS, AttentionSpec, Call, Extras, Info, Kernel
from t5like.model.kernels import relative_bias_rows, splash_ring

# The most of what gathering needs on a device; more travels in a ring. Small rows are gathered at once while a ring
# would take many small steps.
GATHERED_BYTES = 2 ** 28
# Where steps compute too little for transfers to hide behind.
GATHERED_BYTES_OF_SMALL_STEPS = 2 ** 32
SMALL_STEP = 4096  # queries of a device


@dataclasses.dataclass(frozen=True)
class Way:
  """A kernel on rows that may be cut.

  run: (Call, q_BTNH, k_BSKH, v_BSKH, query, key, extras) -> [B, T, N, H], of the queries of a device and the keys that
    it has; extras as of Kernel.
  prepare: as of Kernel.
  checks_layouts: as of Kernel.
  """
  run: Callable[..., jax.Array]
  prepare: Callable[..., tuple[Any, Any]] | None = None
  checks_layouts: bool = False


def _gathering(kernel: Kernel) -> Way:
  """Each device gathers all keys and values of its rows."""

  def run(
      call: Call,
      q_BTNH: jax.Array,
      k_BSKH: jax.Array,
      v_BSKH: jax.Array,
      query: Info,
      key: Info,
      extras: Extras,
  ) -> jax.Array:
    k_BSKH = context.gathered(k_BSKH, 1, call.keys)
    v_BSKH = context.gathered(v_BSKH, 1, call.keys)
    whole_key = {name: context.gathered(x_BS, 1, call.keys) for name, x_BS in key.items()}
    return kernel.run(call, q_BTNH, k_BSKH, v_BSKH, query, whole_key, extras)

  return Way(run, kernel.prepare, kernel.checks_layouts)


def _prepare_splash(call: Call, q_BTNH: jax.Array, k_BSKH: jax.Array, has_prefix: bool) -> tuple[Any, Any]:
  spec = call.spec
  return splash_ring.prepare(call.queries, call.keys, spec.causal, spec.causal and has_prefix, spec.window)


def _run_splash(
    call: Call,
    q_BTNH: jax.Array,
    k_BSKH: jax.Array,
    v_BSKH: jax.Array,
    query: Info,
    key: Info,
    extras: Extras,
) -> jax.Array:
  spec = call.spec
  return splash_ring.attention(
      call.queries,
      call.keys,
      extras['prepared'],
      q_BTNH,
      k_BSKH,
      v_BSKH,
      query,
      key,
      call.scale,
      spec.window,
      spec.softcap,
      call.interpret,
  )


def _run_relative_bias(
    call: Call,
    q_BTNH: jax.Array,
    k_BSKH: jax.Array,
    v_BSKH: jax.Array,
    query: Info,
    key: Info,
    extras: Extras,
) -> jax.Array:
  spec = call.spec
  return relative_bias_rows.in_ring(
      call.queries,
      call.keys,
      q_BTNH,
      k_BSKH,
      v_BSKH,
      extras['bias'],
      query,
      key,
      spec.causal,
      call.scale,
      softcap=spec.softcap,
      interpret=call.interpret,
      window=spec.window,
  )


@dataclasses.dataclass(frozen=True)
class Ring:
  """A kernel that attends in a ring; features: of an AttentionSpec, those that it implements there."""
  way: Way
  features: frozenset[str]


RINGS: Mapping[str, Ring] = dict(
    splash=Ring(Way(_run_splash, _prepare_splash), frozenset({'prefix', 'window', 'softcap'})),
    relative_bias=Ring(Way(_run_relative_bias), frozenset({'prefix', 'bias', 'window', 'softcap'})),
)

for _name in RINGS:
  if _name not in KERNELS:
    raise NotImplementedError(f'RINGS has {_name!r}, which is no attention kernel.')


def gathered_bytes(k_BSKH: jax.Array, shards: int) -> int:
  """Of what a device needs for all keys of its rows: keys and values, the same in order, and their gradients.

  Args:
    k_BSKH: keys of all devices.
    shards: devices that rows and heads are spread over.
  """
  size = int(np.prod(k_BSKH.shape)) * k_BSKH.dtype.itemsize
  return 6 * size // shards


def _lacks(kernel: str, spec: AttentionSpec) -> str:
  """Why a kernel cannot attend in a ring, or ''."""
  if kernel not in RINGS:
    return f'{kernel} attention, which this model needs here, has no ring'
  for feature in spec.features:
    if feature not in RINGS[kernel].features:
      return f'the ring of {kernel} attention does not implement {feature}'
  return ''


def _auto(kernel: str, call: Call, size: int) -> str:
  most = GATHERED_BYTES
  if _has_small_steps(call):
    most = GATHERED_BYTES_OF_SMALL_STEPS
  if size > most and not _lacks(kernel, call.spec):
    return 'ring'
  return 'gathered'


def _has_small_steps(call: Call) -> bool:
  """Whether the steps of a ring compute little for the keys that they send."""
  has_few_queries = call.queries.length < max(call.keys.length, SMALL_STEP * call.queries.devices)
  return has_few_queries or call.spec.window is not None


def _gathered(kernel: str, call: Call, size: int) -> str:
  return 'gathered'


def _ring(kernel: str, call: Call, size: int) -> str:
  why_not = _lacks(kernel, call.spec)
  if not why_not:
    return 'ring'
  raise ConfigError(f"model.context_attention='ring': {why_not}; {' and '.join(RINGS)} have one (kernels of TPUs, "
                    "without model.dropout). Use 'auto' or 'gathered'.")


# model.context_attention -> (name of a kernel, Call, gathered_bytes) -> 'gathered' or 'ring'
REQUESTS = choices.implement('model.context_attention', choices.CONTEXT_ATTENTION, dict(
    auto=_auto,
    gathered=_gathered,
    ring=_ring,
))


def choose(request: str, kernel: str, call: Call, k_BSKH: jax.Array) -> Way:
  """How a kernel reaches all keys.

  Args:
    request: model.context_attention.
    kernel: name of one of KERNELS.
    call: what is the same for all tokens.
    k_BSKH: keys.

  Raises:
    ConfigError: a ring is requested, which the kernel does not have.
  """
  choose_way = REQUESTS[request]  # an unknown one is refused wherever rows are whole, too
  if call.keys.devices == 1:
    return _gathering(KERNELS[kernel])
  size = gathered_bytes(k_BSKH, context.shards_of_rows_and_heads())
  if choose_way(kernel, call, size) == 'ring':
    return RINGS[kernel].way
  return _gathering(KERNELS[kernel])
