"""The accelerators of this machine, as far as they can be seen before JAX starts, and the memory of one without any."""
import ctypes
import importlib.util
import os
import pathlib
import platform
import sys
from collections.abc import Mapping, MutableMapping

GOOGLE = '0x1ae0'  # PCI vendor of TPUs, but also of network cards and disks of Google's virtual machines
OTHERS = ('0x01', '0x02', '0x03', '0x06')  # PCI classes: storage, network, display, bridge
# Variables that describe a TPU, also one that is reached through a network; those that set logging, or the place of
# the library (importing it sets that one), do not.
TPU_VARIABLES = (
    'TPU_NAME',
    'TPU_ACCELERATOR_TYPE',
    'TPU_WORKER_ID',
    'TPU_WORKER_HOSTNAMES',
    'TPU_PROCESS_ADDRESSES',
    'TPU_PROCESS_BOUNDS',
    'TPU_VISIBLE_CHIPS',
    'TPU_VISIBLE_DEVICES',
    'TPU_CHIPS_PER_HOST_BOUNDS',
    'TPU_CHIPS_PER_PROCESS_BOUNDS',
    'TPU_HOST_BOUNDS',
    'TPU_TOPOLOGY',
    'CLOUD_TPU_TASK_ID',
    'COLAB_TPU_ADDR',
    'MEGASCALE_COORDINATOR_ADDRESS',
    'JAX_FORCE_TPU_INIT',
    'LIBTPU_INIT_ARGS',
    'PJRT_DEVICE')
TPU_FILES = ('dev/accel*', 'dev/vfio/[0-9]*')
GPU_FILES = ('dev/nvidia*', 'dev/kfd', 'dev/dxg')
PCI_DEVICES = 'sys/bus/pci/devices/*'
# Arguments of glibc's mallopt (malloc.h), and the variables by which users choose such things themselves.
NO_LIMIT = -1  # the largest size
M_TRIM_THRESHOLD = -1
M_MMAP_THRESHOLD = -3
M_ARENA_MAX = -8
MALLOC_VARIABLES = ('MALLOC_ARENA_MAX', 'MALLOC_MMAP_THRESHOLD_', 'MALLOC_TRIM_THRESHOLD_', 'GLIBC_TUNABLES')


def prepare_process() -> None:
  """What a process does before JAX starts: see `choose_platform` and `keep_freed_memory`."""
  chosen = choose_platform()
  is_free = not chosen and not has_tpu() and not has_gpu()
  if chosen == 'cpu' or is_free:
    keep_freed_memory()


def keep_freed_memory(environment: Mapping[str, str] = os.environ) -> bool:
  """Lets the C library keep memory that is freed, for the next step; returns whether it does.

  A program of XLA's for CPUs asks for all of its temporary memory anew each time. By default Linux takes it back in
  between, and gives it page by page, all zeros: a sixth of a train step. Keeping it takes one arena for all threads,
  because other arenas have no room for so much. `malloc_trim` still gives it back. A user's own settings stay.
  """
  library, _ = platform.libc_ver()
  if library != 'glibc' or not environment.keys().isdisjoint(MALLOC_VARIABLES):
    return False
  mallopt = ctypes.CDLL(None).mallopt
  taken = [
      mallopt(M_ARENA_MAX, 1),
      mallopt(M_TRIM_THRESHOLD, NO_LIMIT),
      mallopt(M_MMAP_THRESHOLD, NO_LIMIT),
  ]
  return all(taken)


def choose_platform(root: str = '/', environment: MutableMapping[str, str] = os.environ) -> str:
  """Keeps JAX from starting a TPU that is not there; returns what JAX_PLATFORMS is then.

  With libtpu installed, as preflight needs it, JAX tries to start it on any machine, which takes a second, prints a
  page of errors and fails. Where there is no sign of a TPU, nor of a GPU, JAX is to use CPUs. A choice of the user's
  is left as it is, and so is everything where there is any sign of an accelerator: JAX reports its errors.
  """
  chosen = environment.get('JAX_PLATFORMS')
  if chosen is not None or not importlib.util.find_spec('libtpu'):
    return chosen or ''
  if has_tpu(root, environment) or has_gpu(root):
    return ''
  environment['JAX_PLATFORMS'] = 'cpu'
  if 'jax' in sys.modules:  # which has read the variable already
    config = sys.modules['jax'].config
    if config.jax_platforms is None:
      config.update('jax_platforms', 'cpu')
  return 'cpu'


def has_tpu(root: str = '/', environment: MutableMapping[str, str] = os.environ) -> bool:
  """Whether there is any sign of a TPU: device files, the PCI bus, or variables that describe a slice."""
  if _has_file(root, TPU_FILES):
    return True
  if not environment.keys().isdisjoint(TPU_VARIABLES):
    return True
  return any(map(_is_tpu, pathlib.Path(root).glob(PCI_DEVICES)))


def has_gpu(root: str = '/') -> bool:
  """Whether there is a file of a driver of GPUs."""
  return _has_file(root, GPU_FILES)


def _has_file(root: str, patterns: tuple[str, ...]) -> bool:
  for pattern in patterns:
    for _ in pathlib.Path(root).glob(pattern):
      return True
  return False


def _is_tpu(device: pathlib.Path) -> bool:
  """Whether a folder of the PCI bus is that of a TPU."""
  try:
    vendor = _fact(device, 'vendor')
    kind = _fact(device, 'class')
  except OSError:  # a machine that hides its bus
    return False
  return vendor == GOOGLE and not kind.startswith(OTHERS)


def _fact(device: pathlib.Path, name: str) -> str:
  return (device / name).read_text().strip().lower()
