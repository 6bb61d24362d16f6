"""Checkpoints on disks, kept out of the page cache while they are written.

Nobody reads them soon. Left alone the kernel finds memory for each of their bytes, at the cost of what it had cached
of the data, and where memory must be asked of a hypervisor, at that of most of the save's CPU time.
"""
import contextlib
import os
import threading

SECONDS = 0.03  # between looks
LEAST = 2 ** 20  # bytes of files that are worth it


class Dropping:
  """Syncs and drops what is in `folder`, again and again until `close` or `done` exists; nothing except on Linux."""

  def __init__(self, folder, done):
    self.folder, self.done, self.stop = os.fspath(folder), os.fspath(done), threading.Event()
    if hasattr(os, 'posix_fadvise') and '://' not in self.folder:
      threading.Thread(target=self._run, name='pagecache', daemon=True).start()

  def close(self):
    self.stop.set()

  def _run(self):
    sizes = {}
    while not self.stop.wait(SECONDS):
      ended = os.path.exists(self.done)  # looked at first: what came before it is dropped yet
      for parent, _, names in os.walk(self.folder):
        for name in names:
          with contextlib.suppress(OSError):  # deleted meanwhile
            _drop(os.path.join(parent, name), sizes)
      if ended:
        return


def _drop(path, sizes):
  """`sizes` knows how much of which file has been dropped."""
  fd = os.open(path, os.O_RDONLY)
  try:
    size = os.fstat(fd).st_size
    if size > LEAST and sizes.get(path) != size:
      os.fdatasync(fd)  # only what is on the disk can be dropped
      os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
      sizes[path] = size
  finally:
    os.close(fd)
