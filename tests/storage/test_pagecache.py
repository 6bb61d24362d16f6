"""Checkpoints are dropped from the page cache, and complete on the disk."""
import mmap
import os
import subprocess
import sys
import time

import pytest

from t5like.storage import pagecache

pytestmark = pytest.mark.skipif(sys.platform != 'linux', reason='Linux tells what is cached')


def cached(path):
  """Share of a file's pages that the kernel holds, by mincore."""
  import ctypes
  libc = ctypes.CDLL(None, use_errno=True)
  size = os.path.getsize(path)
  with open(path, 'r+b') as f, mmap.mmap(f.fileno(), size) as m:
    pages = -(-size // mmap.PAGESIZE)
    flags = (ctypes.c_ubyte * pages)()
    address = ctypes.addressof(ctypes.c_char.from_buffer(m))
    assert libc.mincore(ctypes.c_void_p(address), ctypes.c_size_t(size), flags) == 0
    return sum(flag & 1 for flag in flags) / pages


def test_files_that_are_written_are_dropped(tmp_path):
  kind = subprocess.run(['stat', '-f', '-c', '%T', tmp_path], capture_output=True, text=True).stdout.strip()
  if kind in ('tmpfs', 'ramfs', 'overlayfs'):
    pytest.skip(f'{kind} may have nowhere else to keep what is written')
  folder = tmp_path / '7'
  folder.mkdir()
  content = os.urandom(2 ** 23)
  dropping = pagecache.Dropping(folder, folder / 'commit')
  path = folder / 'deep' / 'weights'
  path.parent.mkdir()
  with open(path, 'wb') as f:
    for start in range(0, len(content), 2 ** 20):
      f.write(content[start:start + 2 ** 20])
      f.flush()
      time.sleep(0.01)
  (folder / 'commit').write_bytes(b'')
  end = time.monotonic() + 30
  while cached(path) > 0.5 and time.monotonic() < end:
    time.sleep(0.05)
  share = cached(path)
  dropping.close()
  assert share <= 0.5 and path.read_bytes() == content
