"""The interrupt that the button of a notebook sends, at a chosen moment of a run."""
import asyncio
import contextlib
import pathlib
import signal
import threading
import time
from collections.abc import Iterator

LIMIT = 800  # seconds that the run may take to come that far


@contextlib.contextmanager
def once(client, log: pathlib.Path, lines: int) -> Iterator[None]:
  """Interrupts the kernel of an nbclient.NotebookClient once, when the file `log` has more than `lines` lines."""
  def interrupt() -> None:
    deadline = time.monotonic() + LIMIT
    while not _has(log, lines) and time.monotonic() < deadline:
      time.sleep(0.002)
    asyncio.run(client.km.provisioner.send_signal(signal.SIGINT))
  thread = threading.Thread(target=interrupt)
  thread.start()
  yield
  thread.join()


def _has(log: pathlib.Path, lines: int) -> bool:
  return log.exists() and log.read_text().count('\n') > lines
