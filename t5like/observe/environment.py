"""The environment of a run, for its records: commit, versions, devices, and the memory in use."""
import functools
import importlib.metadata
import pathlib
import platform
import resource
import subprocess
import sys

import jax

from t5like import __version__
from t5like.config.values import ROOT

PACKAGES = ('jax', 'jaxlib', 'libtpu', 'flax', 'optax', 'orbax-checkpoint', 'grain')
GIB = 2 ** 30


def describe(mesh: jax.sharding.Mesh) -> dict[str, str]:
  """{'commit', 'versions', 'devices'} of this process, each a text for people."""
  kind = mesh.devices.flat[0].device_kind
  devices = f'{mesh.size} x {kind}'
  if jax.process_count() > 1:
    devices += f', {jax.process_count()} hosts'
  return dict(commit=commit(), versions=versions(), devices=devices)


@functools.cache
def commit() -> str:
  """The commit of this code, with a + if files have changed since; '' outside a git checkout."""
  try:
    if pathlib.Path(_git('rev-parse', '--show-toplevel')).resolve() != ROOT:
      return ''  # the package lies inside another repository
    head = _git('rev-parse', '--short', 'HEAD')
    if _git('status', '--porcelain', '--untracked-files=no'):
      head += '+'
    return head
  except (OSError, subprocess.SubprocessError):
    return ''


def _git(*words: str) -> str:
  command = ['git', '-C', str(ROOT), *words]
  return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()


def versions() -> str:
  """'t5like 0.2.0, Python 3.11.7, jax 0.10.2, ..': versions of the installed packages that compute."""
  installed = [f't5like {__version__}', f'Python {platform.python_version()}']
  for package in PACKAGES:
    try:
      installed.append(f'{package} {importlib.metadata.version(package)}')
    except importlib.metadata.PackageNotFoundError:
      continue
  return ', '.join(installed)


def memory() -> dict[str, float]:
  """{'device_memory', 'host_memory'} in GiB: peak use of one local device and of this process so far.

  device_memory is missing where devices do not report it, as on CPUs.
  """
  used = {}
  peak = 0
  for device in jax.local_devices():
    statistics = device.memory_stats() or {}
    peak = max(peak, statistics.get('peak_bytes_in_use', 0))
  if peak:
    used['device_memory'] = peak / GIB
  unit = 1024  # of ru_maxrss, in bytes
  if sys.platform == 'darwin':
    unit = 1
  used['host_memory'] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / GIB
  return used
