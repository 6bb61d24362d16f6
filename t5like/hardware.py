"""Which accelerators this machine has, as far as can be seen before JAX starts."""
import importlib.util
import os
import pathlib
import sys

GOOGLE = '0x1ae0'  # PCI vendor of TPUs, but also of network cards and disks of Google's virtual machines
OTHERS = ('0x01', '0x02', '0x03', '0x06')  # PCI classes: storage, network, display, bridge
# Variables that describe a TPU, also one that is reached through a network; those that set logging, or say where
# the library is (importing it sets that one), do not.
TPU_VARIABLES = ('TPU_NAME', 'TPU_ACCELERATOR_TYPE', 'TPU_WORKER_ID', 'TPU_WORKER_HOSTNAMES', 'TPU_PROCESS_ADDRESSES',
                 'TPU_PROCESS_BOUNDS', 'TPU_VISIBLE_CHIPS', 'TPU_VISIBLE_DEVICES', 'TPU_CHIPS_PER_HOST_BOUNDS',
                 'TPU_CHIPS_PER_PROCESS_BOUNDS', 'TPU_HOST_BOUNDS', 'TPU_TOPOLOGY',
                 'CLOUD_TPU_TASK_ID', 'COLAB_TPU_ADDR', 'MEGASCALE_COORDINATOR_ADDRESS', 'JAX_FORCE_TPU_INIT',
                 'LIBTPU_INIT_ARGS', 'PJRT_DEVICE')
GPU_FILES = ('dev/nvidia*', 'dev/kfd', 'dev/dxg')


def choose_platform(root: str = '/', environment=os.environ) -> str:
  """Keeps JAX from starting a TPU that is not there; returns what JAX_PLATFORMS is then.

  With libtpu installed, as preflight needs it, JAX tries to start it on any machine, which takes a second, prints a
  page of errors and fails. Where there is no sign of a TPU, nor of a GPU, JAX is to use CPUs. A choice of the user's
  is left as it is, and so is everything where a sign of an accelerator is seen: JAX reports what is wrong with it.
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


def has_tpu(root: str = '/', environment=os.environ) -> bool:
  """Whether anything says that there is a TPU: device files, the PCI bus, or variables that describe a slice."""
  root = pathlib.Path(root)
  files = [*root.glob('dev/accel*'), *root.glob('dev/vfio/[0-9]*')]
  return bool(files) or any(name in environment for name in TPU_VARIABLES) or any(
      _is_tpu(device) for device in root.glob('sys/bus/pci/devices/*'))


def has_gpu(root: str = '/') -> bool:
  """Whether there is a file of a driver of GPUs."""
  return any(True for pattern in GPU_FILES for _ in pathlib.Path(root).glob(pattern))


def _is_tpu(device):
  try:
    vendor, kind = ((device / name).read_text().strip().lower() for name in ('vendor', 'class'))
  except OSError:  # a machine that hides its bus
    return False
  return vendor == GOOGLE and not kind.startswith(OTHERS)
