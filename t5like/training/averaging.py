"""Averages of the checkpoints of a run, as a run that every command reads.

An average of checkpoints that a constant learning rate made is close to what a decay would have made: with weights c_k
of checkpoints k = 0 .. n-1, the updates between checkpoints k-1 and k count c_k + .. + c_n-1 times, as a decay of the
learning rate would have scaled them (Tian et al. 2025, arXiv 2507.17634, section 3). The mean is a linear decay.
"""
import contextlib
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from t5like import sharding
from t5like.config.values import either
from t5like.config_type import Config
from t5like.errors import CheckpointError, ConfigError
from t5like.model import models
from t5like.nearest import suggestion
from t5like.storage import workdir as workdir_lib
from t5like.storage.checkpoint import EMA as EMA_PART, Checkpoints
from t5like.training import build, step as step_lib
from t5like.vocabulary import loading as vocabulary_lib

EMA = 0.8  # of the average so far, at each checkpoint


def _linear(left: float) -> float:
  return left


def _square_root(left: float) -> float:
  """1 - sqrt(t) of Hägele et al. 2024, arXiv 2405.18392, section 4."""
  return 1 - math.sqrt(1 - left)


def _cosine(left: float) -> float:
  return (1 - math.cos(math.pi * left)) / 2


# {name: the learning rate as a share of its peak, of the share of the checkpoints that is left}
DECAYS: dict[str, Callable[[float], float]] = dict(linear=_linear, sqrt=_square_root, cosine=_cosine)
WEIGHTS = ('uniform', *DECAYS, 'ema')


def weights(name: str, count: int) -> np.ndarray:
  """The weights of so many checkpoints, oldest first: float64 [count], whose sum is 1.

  Args:
    name: of WEIGHTS. 'uniform' is 'linear'; 'ema' an exponential moving average that keeps EMA of itself.
    count: of the checkpoints.

  Raises:
    ConfigError: for another name.
  """
  if name not in WEIGHTS:
    raise ConfigError(f'--weights={name}: there is no such average. {suggestion(name, WEIGHTS)}There is '
                      f'{either(WEIGHTS)}.')
  if name == 'ema':
    raw = EMA ** np.arange(count)[::-1]
    raw[1:] *= 1 - EMA
    return raw / raw.sum()
  decay = DECAYS['linear' if name == 'uniform' else name]
  rates = [decay(left / count) for left in range(count, -1, -1)]  # before each checkpoint counts, and after the last
  return -np.diff(rates)


def average(
    workdir: str,
    out: str,
    steps: Sequence[int] = (),
    name: str = 'uniform',
    say: Callable[[str], None] = print,
    ema: bool = False,
) -> dict[int, float]:
  """Writes a run whose only checkpoint has averaged parameters.

  It has the config and the vocabulary of the run, and of its newest averaged checkpoint the step, the optimizer and the
  place in the data: it can be prompted, evaluated, exported, begun with and resumed.

  Args:
    workdir: of the run, which does not change.
    out: a new folder.
    steps: of the checkpoints; none: all that the run has.
    name: of WEIGHTS.
    say: called with lines for people.
    ema: of each checkpoint, the moving average of optimizer.ema takes the place of the parameters.

  Returns:
    {step: its weight}.

  Raises:
    ConfigError: for a folder with files in it, or a name that is none of WEIGHTS.
    CheckpointError: for a checkpoint that is missing or damaged, or where there is only one.
  """
  config = workdir_lib.read_config(workdir)
  if ema:
    workdir_lib.check_ema(config)
  chosen = _chosen(workdir, steps, name)
  vocabulary = vocabulary_lib.load(config.vocabulary, workdir_lib.vocabulary_path(workdir))
  mesh = sharding.make_mesh(dict(fsdp=-1), jax.local_devices())
  with contextlib.ExitStack() as ends:
    new = ends.enter_context(workdir_lib.whole_folder(epath.Path(out)))
    ends.enter_context(jax.set_mesh(mesh))
    checkpoints = ends.enter_context(Checkpoints(workdir))
    state, meta = _newest(models.with_vocabulary(config, vocabulary), checkpoints, max(chosen), mesh)
    state['params'] = _averaged(checkpoints, chosen, state[EMA_PART if ema else 'params'], say, ema)
    facts = dict(meta, validation=None, averaged={str(step): weight for step, weight in chosen.items()})
    workdir_lib.write_vocabulary(new, vocabulary)
    workdir_lib.write_config(new, config)
    with Checkpoints(new) as averaged:
      averaged.save(max(chosen), state, facts)
      if not averaged.wait():
        raise CheckpointError(averaged.error)
  return chosen


def _chosen(workdir: str, steps: Sequence[int], name: str) -> dict[int, float]:
  """{step: its weight} of the checkpoints to average; errors as of `average`."""
  stored = workdir_lib.checkpoint_steps('--workdir', workdir)
  for step in steps:
    if step not in stored:
      raise CheckpointError(f'--checkpoints names {step:,}, and --workdir={workdir} has checkpoints of '
                            f'{", ".join(f"{one:,}" for one in stored) or "no step"}.')
  chosen = sorted(set(steps or stored))
  if len(chosen) < 2:
    raise CheckpointError(f'--workdir={workdir}: an average needs at least two checkpoints, and this is {len(chosen)}. '
                          'checkpoint.keep and checkpoint.keep_every keep more of them.')
  return dict(zip(chosen, map(float, weights(name, len(chosen)))))


def _newest(
    config: Config,
    checkpoints: Checkpoints,
    step: int,
    mesh: jax.sharding.Mesh,
) -> tuple[dict[str, Any], dict[str, Any]]:
  """(state, meta) of the checkpoint of a step."""
  model, _ = models.build_model(config)
  tx, _ = build.build_optimizer(config, model, total_steps=1)  # the state of any schedule is the same

  def initial_state() -> dict[str, Any]:
    return step_lib.init_state(model, tx, config.seed, ema=config.optimizer.ema)

  abstract = sharding.abstract(initial_state, mesh)
  restored = checkpoints.restore(abstract, counts=lambda other, meta: other == step)
  if restored is None:
    raise CheckpointError(f'{checkpoints.directory}: the checkpoint of step {step:,} is gone.')
  return restored


def _averaged(
    checkpoints: Checkpoints,
    chosen: dict[int, float],
    newest: Any,
    say: Callable[[str], None],
    ema: bool,
) -> Any:
  """Parameters summed one checkpoint after the other, in float32."""

  @jax.jit
  def add(total: Any, params: Any, weight: jax.Array) -> Any:
    return jax.tree.map(lambda x, y: x + weight * y, total, params)

  abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), newest)
  total = jax.tree.map(jnp.zeros_like, newest)
  last = max(chosen)
  for step, weight in chosen.items():
    params = newest  # of the last step, read with its optimizer
    if step != last:
      params = checkpoints.params(step, abstract, ema)
    total = add(total, params, jnp.float32(weight))
    say(f'step {step:,}: {weight:.4f}')
  return total
