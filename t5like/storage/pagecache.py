"""Checkpoints on disks, kept out of the page cache while they are written.

They are not read soon. By default the kernel finds memory for each of their bytes, at the cost of what it had cached
of the data, and where memory must be requested from a hypervisor, at that of most of the save's CPU time.
"""
import contextlib
import os
import threading

SECONDS = 0.03  # between looks
LEAST = 2 ** 20  # bytes of files that are worth it


class Dropping:
  """Syncs and drops the files of `folder`, repeatedly until `close` or `done` exists; nothing except on Linux."""

  def __init__(self, folder: str | os.PathLike[str], done: str | os.PathLike[str]):
    self.folder = os.fspath(folder)
    self.done = os.fspath(done)
    self.stop = threading.Event()
    is_local = '://' not in self.folder
    if is_local and hasattr(os, 'posix_fadvise'):
      threading.Thread(target=self._run, name='pagecache', daemon=True).start()

  def close(self) -> None:
    self.stop.set()

  def _run(self) -> None:
    dropped: dict[str, int] = {}  # {file: its size when it was dropped last}
    while not self.stop.wait(SECONDS):
      is_done = os.path.exists(self.done)  # before the files: those written before it are still dropped
      self._drop_all(dropped)
      if is_done:
        return

  def _drop_all(self, dropped: dict[str, int]) -> None:
    for parent, _, names in os.walk(self.folder):
      for name in names:
        path = os.path.join(parent, name)
        with contextlib.suppress(OSError):  # deleted meanwhile
          _drop(path, dropped)


def _drop(path: str, dropped: dict[str, int]) -> None:
  descriptor = os.open(path, os.O_RDONLY)
  try:
    size = os.fstat(descriptor).st_size
    if size > LEAST and dropped.get(path) != size:
      os.fdatasync(descriptor)  # only pages that are on the disk can be dropped
      os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
      dropped[path] = size
  finally:
    os.close(descriptor)
