"""Eight virtual CPU devices, strict broadcasting, and compiled programs shared by all tests."""
import importlib
import os
import pathlib
import signal
import sys
import tempfile

ROOT = pathlib.Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))  # for tests.* and, in processes of theirs, configs/


class Package:
  """A package that only some tests need, imported when one of them runs: where it is missing that test fails.

  A test that is skipped for want of a package promises something that nobody checks.
  """

  def __init__(self, name):
    self._name = name

  def __getattr__(self, attribute):
    return getattr(importlib.import_module(self._name), attribute)


# A shell that starts the tests in the background lets them ignore Ctrl-C, and nohup lets them ignore the end of a
# terminal; the programs that they start would inherit it.
for number, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
  if signal.getsignal(number) is signal.SIG_IGN:
    signal.signal(number, handler)

os.environ['JAX_PLATFORMS'] = 'cpu'
# Nearly all of the time goes into compiling tiny programs, which need not be fast.
os.environ['XLA_FLAGS'] = '--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0'
os.environ.setdefault('JAX_COMPILATION_CACHE_DIR', os.path.join(tempfile.gettempdir(), 't5like-test-xla'))
os.environ['JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'] = '0.5'
os.environ['JAX_NUMPY_RANK_PROMOTION'] = 'raise'
