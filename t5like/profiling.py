"""Where the time of a run goes: traces of chosen steps, what the compiler made, and the first step in pieces."""
import collections
import os
import pathlib
import re

import jax

from t5like import paths
from t5like.errors import ConfigError

PIECES = {  # durations that JAX reports -> what they are called here
    '/jax/core/compile/jaxpr_trace_duration': 'tracing',
    '/jax/core/compile/jaxpr_to_mlir_module_duration': 'lowering',
    '/jax/core/compile/backend_compile_duration': 'compiling',
    '/jax/compilation_cache/cache_retrieval_time_sec': 'reading the cache',
}

_seconds = collections.Counter()  # JAX's listeners cannot be taken back, so there is one, for ever


def _listen(event, seconds, **_):
  if event in PIECES:
    _seconds[PIECES[event]] += seconds


def compile_cache(folder):
  """Keeps compiled programs in `folder` from now on: 'auto' is ~/.cache/t5like/xla, '' nowhere.

  JAX_COMPILATION_CACHE_DIR goes before 'auto'. Programs of other JAX versions, devices or options are others.
  """
  if folder == 'auto':
    folder = jax.config.jax_compilation_cache_dir or str(pathlib.Path.home() / '.cache/t5like/xla')
  jax.config.update('jax_compilation_cache_dir', paths.expand(folder) or None)


def dump_xla(folder):
  """XLA writes the train step's programs into `folder`, before and after it worked on them; call before devices."""
  os.environ['XLA_FLAGS'] = (f'{os.environ.get("XLA_FLAGS", "")} --xla_dump_to={folder} --xla_dump_hlo_as_text '
                             '--xla_dump_hlo_module_re=.*train_step.*').strip()
  jax.config.update('jax_enable_compilation_cache', False)  # what is read from the cache is not compiled


class FirstStep:
  """Seconds spent since it was made, by piece."""

  def __init__(self):
    if not _seconds:
      jax.monitoring.register_event_duration_secs_listener(_listen)
      _seconds['listening'] = 1
    self.before = dict(_seconds)

  def __str__(self):
    spent = {name: _seconds[name] - self.before.get(name, 0) for name in PIECES.values()}
    return ', '.join(f'{name} {s:.1f} s' for name, s in spent.items() if s >= 0.05)


class Profiler:
  """A trace of the steps that 'first:stop' names (stop not among them), in WORKDIR/profile, for xprof or Perfetto."""

  def __init__(self, steps, workdir, say):
    self.first, self.stop = parse(steps) if steps else (None, None)
    self.folder, self.say, self.on = os.path.join(workdir, 'profile'), say, False

  def before(self, step, state):
    """To be called before `step` begins; waits for `state` where a trace begins or ends."""
    if step == self.first or self.on and step == self.stop:
      jax.block_until_ready(state)
      self.close()
      if step == self.first:
        jax.profiler.start_trace(self.folder, create_perfetto_trace=jax.process_index() == 0)
        self.on = True

  def close(self):
    if self.on:
      self.on = False
      try:
        jax.profiler.stop_trace()
      except Exception as e:  # a full disk, say, of which each profiler has an error of its own
        self.say(f'WARNING: the trace could not be written to {self.folder} ({type(e).__name__}: {str(e)[:200]}).')
        return
      self.say(f'Trace of steps {self.first:,} to {self.stop - 1:,}: tensorboard --logdir={self.folder} (with xprof), '
               'or its perfetto_trace.json.gz at ui.perfetto.dev')


def parse(steps):
  """(first, stop) of '10:13'; ConfigError for another text."""
  found = re.fullmatch(r'(\d+):(\d+)', steps)
  if not found or not 0 < int(found[1]) < int(found[2]):
    raise ConfigError(f'--profile_steps={steps}: two steps are needed, the first of the trace and the one after its '
                      'last, such as --profile_steps=10:13.')
  return int(found[1]), int(found[2])
