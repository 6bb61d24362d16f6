"""Programs of training that are built once for all runs of a process that compute the same.

Most tests of training ask what happens around the steps. A run of theirs traces, lowers and loads three programs, which
takes longer than the rest of it. What is built here is a function of the key by which it is kept, and of nothing else:
the real functions get a config that holds no more than the key.
"""
import contextlib
import json
from collections.abc import Iterator, Set
from typing import Any

import jax
import pytest

from t5like import sharding
from t5like.config_type import Config
from t5like.training import build, resume

# Of no effect on steps: without them a config is good for `build_step`, and who reads one gets an AttributeError.
SECTIONS = ('allow_changed', 'branch_from', 'checkpoint', 'evaluate', 'init_from', 'log', 'params_expected', 'sample',
            'stages', 'stop', 'watchdog')
KEYS = dict(data=('source', 'directory', 'skip_rows', 'workers', 'prefetch', 'validation_fraction'),
            guard=('max_bad_steps', 'rewinds', 'compare_every'))
OF_STATES = ('model', 'optimizer', 'seed')

steps: dict[Any, build.Steps] = {}
makers: dict[Any, Any] = {}  # functions that make a state


def decisive(config: Config) -> Config:
  """The config without what no step depends on."""
  config = config.copy_and_resolve_references().unlock()
  for section in SECTIONS:
    del config[section]
  for section, keys in KEYS.items():
    for key in keys:
      del config[section][key]
  return config


def decisive_steps(config: Config, total_steps: int) -> int:
  """The least number of all steps with which the learning rates are the same."""
  if config.schedule.name == 'constant':
    return min(total_steps, max(1, config.schedule.warmup_steps))
  return total_steps


@contextlib.contextmanager
def programs() -> Iterator[None]:
  """Runs within take programs that runs before them have left. Not for tests that replace what is compiled."""
  build_step = build.build_step
  untrained = resume._untrained

  def build_once(
      config: Config,
      model: Any,
      total_steps: int,
      mesh: jax.sharding.Mesh,
      first_step: int = 0,
      stateful: Set[str] | None = None,
  ) -> build.Steps:
    config = decisive(config)
    total_steps = decisive_steps(config, total_steps)
    stateful = None if stateful is None else frozenset(stateful)
    key = (json.dumps(config.to_dict(), sort_keys=True), total_steps, mesh, first_step, stateful)
    if key not in steps:
      steps[key] = build_step(config, model, total_steps, mesh, first_step, stateful)
    return steps[key]

  def untrained_once(plan: Any, store: Any, initial_state: Any, abstract: Any, say: Any) -> Any:
    if plan.config.init_from:
      return untrained(plan, store, initial_state, abstract, say)
    sections = plan.config.to_dict()
    of_state = {name: sections[name] for name in OF_STATES}
    key = (json.dumps(of_state, sort_keys=True), plan.mesh, plan.stateful, repr(abstract))
    if key not in makers:
      layout = jax.tree.map(lambda x: x.sharding, abstract)
      options = sharding.options_of_one_run()
      makers[key] = jax.jit(initial_state, out_shardings=layout, compiler_options=options)
    return makers[key]()

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(build, 'build_step', build_once)
    patch.setattr(resume, '_untrained', untrained_once)
    yield
