"""Profiles of a run: traces of some steps, dumps of compiled programs, and the first step by phase of compilation."""
import collections
import os
import pathlib
import re
from collections.abc import Callable
from typing import Any

import jax

from t5like.errors import ConfigError
from t5like.files import paths

PIECES = {  # {event of jax.monitoring: its name in the log}
    '/jax/core/compile/jaxpr_trace_duration': 'tracing',
    '/jax/core/compile/jaxpr_to_mlir_module_duration': 'lowering',
    '/jax/core/compile/backend_compile_duration': 'compiling',
    '/jax/compilation_cache/cache_retrieval_time_sec': 'reading the cache',
}
SHOWN = 0.05  # seconds; shorter parts are not listed

_seconds: Any = collections.Counter()  # JAX cannot remove a listener, so there is one for the whole process


def _listen(event: str, duration_secs: float, **_: Any) -> None:
  if event in PIECES:
    _seconds[PIECES[event]] += duration_secs


def compile_cache(folder: str) -> None:
  """Caches compiled programs in `folder` from now on: 'auto' is ~/.cache/t5like/xla, '' turns the cache off.

  JAX_COMPILATION_CACHE_DIR takes precedence over 'auto'. JAX version, devices and options are part of the cache key.
  """
  if folder == 'auto':
    chosen = getattr(jax.config, 'jax_compilation_cache_dir')  # noqa: B009 (unknown to type checkers)
    folder = chosen or str(pathlib.Path.home() / '.cache/t5like/xla')
  jax.config.update('jax_compilation_cache_dir', paths.expand(folder) or None)


def dump_xla(folder: str) -> None:
  """Makes XLA dump the programs of the train step, before and after optimisation; call before JAX starts.

  ConfigError for a folder that cannot be made: XLA would silently write nothing.
  """
  try:
    if not paths.is_remote(folder):
      pathlib.Path(folder).mkdir(parents=True, exist_ok=True)
  except OSError as error:
    raise ConfigError(f'--dump_xla={folder}: cannot be made ({error.strerror}). Give another folder.') from error
  if re.search('["\'\\\\]', folder):
    raise ConfigError(f'--dump_xla={folder}: XLA takes no folder with quotes or backslashes in its name.')
  flags = os.environ.get('XLA_FLAGS', '')
  flags += f' --xla_dump_to="{folder}" --xla_dump_hlo_as_text --xla_dump_hlo_module_re=.*train_step.*'
  os.environ['XLA_FLAGS'] = flags.strip()
  jax.config.update('jax_enable_compilation_cache', False)  # a program read from the cache is not compiled


class FirstStep:
  """Seconds spent since it was made, by phase of compilation."""

  def __init__(self) -> None:
    if not _seconds:
      jax.monitoring.register_event_duration_secs_listener(_listen)
      _seconds['listening'] = 1
    self.before = dict(_seconds)

  def __str__(self) -> str:
    texts = []
    for name in PIECES.values():
      spent = _seconds[name] - self.before.get(name, 0)
      if spent >= SHOWN:
        texts.append(f'{name} {spent:.1f} s')
    return ', '.join(texts)


class Profiler:
  """A trace of steps 'first:stop' (stop excluded) in WORKDIR/profile, for xprof or Perfetto."""

  def __init__(self, steps: str, workdir: str, say: Callable[[str], None]) -> None:
    self.first = -1  # no step
    self.stop = -1
    if steps:
      self.first, self.stop = parse(steps)
    self.folder = os.path.join(workdir, 'profile')
    self.say = say
    self.on = False

  def before(self, step: int, state: Any) -> None:
    """Call it before `step` begins; waits for `state` where a trace begins or ends."""
    begins = step == self.first
    ends = self.on and step == self.stop
    if begins or ends:
      jax.block_until_ready(state)
      self.close()
    if begins:
      jax.profiler.start_trace(self.folder, create_perfetto_trace=jax.process_index() == 0)
      self.on = True

  def close(self) -> None:
    """Ends the trace, if there is one."""
    if not self.on:
      return
    self.on = False
    try:
      jax.profiler.stop_trace()
    except Exception as e:  # a full disk, for instance, for which each profiler has its own error
      self.say(f'WARNING: the trace could not be written to {self.folder} ({type(e).__name__}: {str(e)[:200]}).')
      return
    self.say(f'Trace of steps {self.first:,} to {self.stop - 1:,}: tensorboard --logdir={self.folder} (with xprof), '
             'or its perfetto_trace.json.gz at ui.perfetto.dev')


def parse(steps: str) -> tuple[int, int]:
  """(first, stop) of '10:13'; ConfigError for another text."""
  match = re.fullmatch(r'([0-9]{1,18}):([0-9]{1,18})', steps)
  if not match or not 0 < int(match[1]) < int(match[2]):
    raise ConfigError(f'--profile_steps={steps}: two steps are needed, the first of the trace and the one after its '
                      'last, such as --profile_steps=10:13.')
  return int(match[1]), int(match[2])
