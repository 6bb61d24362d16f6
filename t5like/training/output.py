"""What a run shows and writes: its screen, metrics.jsonl, samples.jsonl and trackers."""
from collections.abc import Callable
from typing import Any

import jax

from t5like.files import writing
from t5like.observe import metrics, trackers
from t5like.observe.histograms import Histogram
from t5like.storage import workdir as workdir_lib
from t5like.training.plan import Plan
from t5like.vocabulary.kinds import Vocabulary

Watch = Callable[[int, dict[str, float]], None]


class Output:
  """The screen and the files of a run; process 0 alone writes files."""

  def __init__(
      self,
      plan: Plan,
      workdir: str,
      screen: metrics.Screen,
      writes: writing.Guarded,
      watch: Watch | None = None,
  ):
    """watch: called with (step, numbers) whenever numbers are written to metrics.jsonl."""
    self.plan = plan
    self.workdir = workdir
    self.screen = screen
    self.writes = writes
    self.watch = watch
    self._files: metrics.Files | None = None

  def begin(self, step: int, vocabulary: Vocabulary) -> None:
    """Writes the config and the vocabulary, and opens the files for lines after `step`."""
    if jax.process_index():
      return
    workdir_lib.write_config(self.workdir, self.plan.requested)
    workdir_lib.write_vocabulary(self.workdir, vocabulary)
    self._open(step)

  def rewind(self, step: int) -> None:
    """Drops the lines after `step` and opens the files again."""
    if self._files:
      self._files.close()
      self._open(step)

  def _open(self, step: int) -> None:
    services = trackers.start(
        self.plan.config.log.trackers,
        self.workdir,
        step,
        self.screen.name,
        self.plan.requested,
        self.writes,
    )
    self._files = metrics.Files(
        self.workdir,
        step,
        services,
        self.watch,
        self.screen.say,
        self.writes,
    )

  def say(self, text: str) -> None:
    """A line for people."""
    self.screen.say(text)

  def write(self, step: int, values: dict[str, Any], flush: bool = False) -> None:
    """A line of metrics.jsonl, for trackers too; `flush`: on the disk, and sent, when this returns."""
    if not self._files:
      return
    self._files.write(step, values)
    if flush:
      self._files.flush()

  def sample(self, step: int, prompt: str, text: str) -> None:
    """A line of samples.jsonl, for trackers too."""
    if self._files:
      self._files.sample(step, prompt, text)

  def histograms(self, step: int, named: dict[str, Histogram]) -> None:
    """For trackers alone."""
    if self._files:
      self._files.histograms(step, named)

  def close(self) -> None:
    """Closes the files, not the screen; writes waiting lines."""
    if self._files:
      self._files.close()
    self.writes.flush()
