"""What is seen of accelerators before JAX starts, and that JAX is left alone where something is seen."""
import importlib.util
import platform
import subprocess
import sys

import pytest

from t5like import hardware


@pytest.fixture(autouse=True)
def libtpu(monkeypatch):
  """As if libtpu were installed."""
  find = importlib.util.find_spec
  monkeypatch.setattr(hardware.importlib.util, 'find_spec', lambda name: name == 'libtpu' or find(name))


def machine(root, files=(), pci=()):
  """A root folder with these device files and these (vendor, class) on the PCI bus."""
  for file in files:
    (root / file).parent.mkdir(parents=True, exist_ok=True)
    (root / file).touch()
  for number, (vendor, kind) in enumerate(pci):
    device = root / f'sys/bus/pci/devices/0000:00:0{number}.0'
    device.mkdir(parents=True)
    (device / 'vendor').write_text(f'{vendor}\n')
    (device / 'class').write_text(f'{kind}\n')
  return str(root)


def test_a_machine_without_accelerators_uses_its_cpus(tmp_path):
  # A network card and a disk of Google's, a bridge of Intel's, and the file of the VFIO driver itself.
  root = machine(tmp_path, ['dev/vfio/vfio', 'dev/null'],
                 [('0x1ae0', '0x020000'), ('0x1ae0', '0x010802'), ('0x8086', '0x060000')])
  environment = dict(TPU_SKIP_MDS_QUERY='1', TPU_STDERR_LOG_LEVEL='0', TPU_LIBRARY_PATH='libtpu.so')
  assert hardware.choose_platform(root, environment) == environment['JAX_PLATFORMS'] == 'cpu'


@pytest.mark.parametrize('files, pci', [
    (['dev/accel0'], []), (['dev/vfio/0', 'dev/vfio/vfio'], []), ([], [('0x1ae0', '0x120000')]),
    ([], [('0x1AE0', '0xff0000')]), (['dev/nvidia0'], []), (['dev/nvidiactl'], []), (['dev/kfd'], []),
    (['dev/dxg'], [])])
def test_where_something_is_seen_jax_decides(files, pci, tmp_path):
  environment = {}
  assert hardware.choose_platform(machine(tmp_path, files, pci), environment) == '' and environment == {}


@pytest.mark.parametrize('name', hardware.TPU_VARIABLES)
def test_where_variables_describe_a_slice_jax_decides(name, tmp_path):
  environment = {name: '0'}
  assert hardware.choose_platform(machine(tmp_path), environment) == '' and list(environment) == [name]


@pytest.mark.parametrize('chosen', ['tpu', 'tpu,cpu', 'cuda', ''])
def test_a_choice_of_the_user_is_left(chosen, tmp_path):
  environment = dict(JAX_PLATFORMS=chosen)
  assert hardware.choose_platform(machine(tmp_path), environment) == chosen
  assert environment == dict(JAX_PLATFORMS=chosen)


def test_without_libtpu_there_is_nothing_to_keep_from(tmp_path, monkeypatch):
  monkeypatch.setattr(hardware.importlib.util, 'find_spec', lambda name: None)
  environment = {}
  assert hardware.choose_platform(machine(tmp_path), environment) == '' and environment == {}


FAULTS = '''
import ctypes, resource, sys
from t5like import hardware
kept = hardware.keep_freed_memory({}) if sys.argv[1] == 'kept' else False
library = ctypes.CDLL(None)
library.malloc.restype = ctypes.c_void_p
library.free.argtypes = (ctypes.c_void_p,)
size = 2 ** 26
for _ in range(3):
  before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
  memory = library.malloc(size)
  ctypes.memset(memory, 1, size)
  library.free(memory)
print(kept, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
'''


@pytest.mark.skipif(platform.libc_ver()[0] != 'glibc', reason='settings of the GNU C library')
def test_freed_memory_is_used_again():
  """64 MiB, the third time, page by page anew or without any page fault."""
  faults = {}
  for way in ('kept', 'default'):
    done = subprocess.run([sys.executable, '-c', FAULTS, way], capture_output=True, text=True, check=True)
    kept, count = done.stdout.split()
    assert kept == str(way == 'kept')
    faults[way] = int(count)
  assert faults['kept'] < 100 < faults['default']


@pytest.mark.parametrize('variable', hardware.MALLOC_VARIABLES)
def test_memory_settings_of_users_stay(variable):
  assert not hardware.keep_freed_memory({variable: '1'})
