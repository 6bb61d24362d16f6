"""Eight virtual CPU devices, strict broadcasting, and compiled programs shared by all tests."""
import collections
import gc
import importlib
import importlib.metadata
import itertools
import os
import pathlib
import signal
import sys
import tempfile

import pytest

ROOT = pathlib.Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))  # for tests.* and, in processes of theirs, configs/


class Package:
  """A package that only some tests need, imported when one of them runs: where it is missing that test fails.

  A test that is skipped for want of a package promises something that nobody checks.
  """

  def __init__(self, name):
    self._name = name

  def __getattr__(self, attribute):
    # pytest asks every name of a module for these, when it looks for fixtures.
    if attribute.startswith('__') and attribute != '__file__':
      raise AttributeError(attribute)
    return getattr(importlib.import_module(self._name), attribute)


# A shell that starts the tests in the background lets them ignore Ctrl-C, and nohup lets them ignore the end of a
# terminal; the programs that they start would inherit it.
for number, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
  if signal.getsignal(number) is signal.SIG_IGN:
    signal.signal(number, handler)

os.environ['JAX_PLATFORMS'] = 'cpu'
# Nearly all of the time goes into compiling tiny programs, which need not be fast. Without the emitters of its default
# the CPU compiler takes half as long; newer ones do not have the flag, and end where it is set.
COMPILED_FAST = '--xla_backend_optimization_level=0'
DEFAULT_EMITTERS = {}  # compiler_options of jax.jit with which different programs round sums alike
if importlib.metadata.version('jaxlib').startswith('0.10.'):
  COMPILED_FAST += ' --xla_cpu_use_fusion_emitters=false'
  DEFAULT_EMITTERS = dict(xla_cpu_use_fusion_emitters=True)
os.environ['XLA_FLAGS'] = f'--xla_force_host_platform_device_count=8 {COMPILED_FAST}'
os.environ.setdefault('JAX_COMPILATION_CACHE_DIR', os.path.join(tempfile.gettempdir(), 't5like-test-xla'))
os.environ['JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'] = '0.1'  # many tests compile the same
os.environ['JAX_NUMPY_RANK_PROMOTION'] = 'raise'

# All tests of these folders have the marker of that name. Files whose tests -m does not select are not imported:
# neither the whole suite for `pytest -m parity`, nor for `pytest` the files that need other packages.
FOLDERS_OF_MARKERS = ('beam', 'browser', 'harness', 'notebook', 'parity', 'tpu')
# Files elsewhere that have some tests with such a marker.
MARKERS_OF_FILES = {'tests/evals/test_tasks.py': 'harness', 'tests/launch/test_tpu_vm.py': 'gcloud',
                    'tests/test_benchmarks.py': 'parity', 'tests/observe/test_trackers.py': 'trackers'}


def may_be_selected(file: str, expression: str) -> bool:
  """Whether `-m EXPRESSION` can select a test of a file.

  Args:
    file: a path below the root of the repository, with slashes.
    expression: names of markers with `and`, `or`, `not` and parentheses; '' selects all tests.
  """
  if not expression:
    return True
  folder = file.split('/')[1]
  of_all = {folder} & set(FOLDERS_OF_MARKERS)
  of_some = {'slow', MARKERS_OF_FILES.get(file, 'slow')}
  sets_of_markers = [of_all | set(some) for n in range(3) for some in itertools.combinations(of_some, n)]
  return any(selects(expression, markers) for markers in sets_of_markers)


def selects(expression: str, markers: set[str]) -> bool:
  """Whether `-m EXPRESSION` selects a test that has these markers and no others."""
  values = collections.defaultdict(bool, dict.fromkeys(markers, True))
  try:
    return eval(expression, {'__builtins__': {}}, values)
  except (SyntaxError, TypeError):
    return True  # pytest reports what is wrong with it


def pytest_ignore_collect(collection_path: pathlib.Path, config: pytest.Config) -> bool | None:
  """Leaves out files of which no test is selected, unless they are named on the command line."""
  if collection_path.suffix != '.py' or not collection_path.is_relative_to(ROOT / 'tests'):
    return None
  named = {config.invocation_params.dir / argument.partition('::')[0] for argument in config.args}
  if collection_path in named:
    return None
  file = collection_path.relative_to(ROOT).as_posix()
  return None if may_be_selected(file, config.option.markexpr) else True


def pytest_collection_finish():
  """Modules live as long as the process, and tracing makes many objects: less is searched for garbage, less often."""
  gc.collect()
  gc.freeze()
  gc.set_threshold(2_000, 10, 10)


MOST_MAPS = 20_000  # Linux gives a process 65,530 areas of memory, of which each program that is loaded takes some


@pytest.fixture(autouse=True, scope='module')
def without_programs_of_other_files():
  """Behind a file's tests, programs are let go before there are so many that the process would be ended."""
  yield
  maps = pathlib.Path('/proc/self/maps')
  if not maps.exists() or len(maps.read_bytes().splitlines()) < MOST_MAPS:
    return
  import jax

  from tests import compiled_once
  compiled_once.steps.clear()
  compiled_once.makers.clear()
  jax.clear_caches()
  gc.collect()


@pytest.fixture(scope='module')
def compile_once():
  """Runs of a file share their programs, and with those of other files: for `pytest.mark.usefixtures`."""
  from tests import compiled_once
  with compiled_once.programs():
    yield
