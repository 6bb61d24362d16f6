"""Numbers of a run: rates, files, and the lines and bar on the screen.

MFU is model FLOPs utilisation by PaLM's convention: 6 per multiplying parameter and token plus full
attention, less where parameters are frozen (`model/flops.py`), over the peak of the devices' matrix units. On a CPU,
whose peak is not published per model, it is the share of the rate of one large matrix product.
"""
import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from etils import epath

from t5like.files import plain_json, schema, writing
from t5like.objectives.prompts import STYLES

LINE_FIELDS = dict(step=schema.Whole())
SAMPLE_FIELDS = dict(
    LINE_FIELDS,
    prompt=schema.Text(),
    text=schema.Text(),
)
# A line of metrics.jsonl or of samples.jsonl: what all of them have.
LINE = schema.Object(LINE_FIELDS, ('step',))
# Lines of one of them: numbers, or null for one that was not finite.
NUMBERS = schema.Object(LINE_FIELDS, ('step',), rest=schema.Maybe(schema.Real()))
SAMPLE = schema.Object(SAMPLE_FIELDS, ('step', 'prompt', 'text'))

FIRST_WAIT = 60.0  # seconds that a tracker is skipped after its first failure; twice as long after each further one
MOST_WAIT = 3600.0

# Peak dense bf16 FLOP/s of one JAX device; vendors' data sheets.
PEAK_FLOPS = {
    'TPU v3': 61.5e12,
    'TPU v4': 275e12,
    'TPU v5 lite': 197e12,
    'TPU v5e': 197e12,
    'TPU v5': 459e12,
    'TPU v5p': 459e12,
    'TPU v6 lite': 918e12,
    'TPU v6e': 918e12,
    'TPU7x': 1153.5e12,
    'NVIDIA A100': 312e12,
    'NVIDIA H100': 989e12,
    'NVIDIA H200': 989e12,
}


UNITS = ('', 'k', 'M', 'B', 'T', 'P', 'E')  # quadrillions and more are FLOPs: SI


def peak_flops(mesh: jax.sharding.Mesh, dtype: str = 'float32') -> tuple[float, str]:
  """FLOP/s that all devices of the mesh could reach, and the source of the figure, for people."""
  device = mesh.devices.flat[0]
  matches = [kind for kind in PEAK_FLOPS if device.device_kind.startswith(kind)]
  if matches:
    best = max(matches, key=len)
    peak = PEAK_FLOPS[best] * mesh.size
    return peak, f'the {best} data sheet'
  measured = _measured_flops(dtype) * jax.process_count()
  return measured, f'a {dtype} matrix product measured here'


def _measured_flops(dtype: str, n: int = 1024) -> float:
  """FLOP/s of an n x n matrix product on one device: virtual CPU devices share the same cores."""
  mesh = jax.make_mesh(
      (1,),
      ('one',),
      devices=jax.local_devices()[:1],
      axis_types=(jax.sharding.AxisType.Auto,),
  )
  flops = 2 * n ** 3
  seconds = []
  with jax.set_mesh(mesh):
    x = jnp.ones((n, n), dtype)
    product = jax.jit(jnp.matmul)
    jax.block_until_ready(product(x, x))
    for _ in range(5):
      start = time.perf_counter()
      jax.block_until_ready(product(x, x))
      duration_s = time.perf_counter() - start
      seconds.append(duration_s)
  return flops / min(seconds)


def perplexity(nll: float) -> float:
  """exp(nll), infinite where fp64 does not hold it, NaN of NaN."""
  if nll < 709:
    return math.exp(nll)
  return nll + math.inf


def summary(sums: Mapping[str, float], bytes_per_token: float) -> dict[str, float]:
  """Means of a validation.

  Args:
    sums: nll (nats), hits and weights (predicted tokens), over all batches.
    bytes_per_token: of the text; 0: not known.

  Returns:
    nll (nats), perplexity, accuracy, tokens (predicted ones), and bits_per_byte if `bytes_per_token` is known.
  """
  count = max(sums['weights'], 1)
  nll = sums['nll'] / count
  accuracy = sums['hits'] / count
  values = dict(
      nll=nll,
      perplexity=perplexity(nll),
      accuracy=accuracy,
      tokens=int(sums['weights']),
  )
  if bytes_per_token:
    bits_per_token = nll / math.log(2)
    values['bits_per_byte'] = bits_per_token / bytes_per_token
  return values


def describe(values: dict[str, float]) -> str:
  """A validation's `summary` in words."""
  columns = [
      f'validation nll {values["nll"]:.4f}',
      f'perplexity {values["perplexity"]:.2f}',
      f'accuracy {values["accuracy"]:.1%}',
  ]
  if 'bits_per_byte' in values:
    columns.append(f'bits per byte {values["bits_per_byte"]:.4f}')
  columns.append(f'({short(values["tokens"])} tokens)')
  return '  '.join(columns)


def short(n: float) -> str:
  """1234567 -> '1.23M'."""
  unit = UNITS[0]
  for unit in UNITS:
    if abs(n) < 999.5 or unit == UNITS[-1]:
      break
    n /= 1000
  is_whole = not unit and n == int(n)
  if is_whole:
    return f'{int(n)}'
  return f'{n:.3g}{unit}'


def duration(seconds: float) -> str:
  """3725 -> '1:02:05'."""
  minutes, s = divmod(int(seconds), 60)
  h, m = divmod(minutes, 60)
  if h:
    return f'{h}:{m:02}:{s:02}'
  return f'{m}:{s:02}'


class Files:
  """metrics.jsonl and samples.jsonl in a workdir, and the trackers that get the same numbers (see trackers.py).

  A tracker that fails is skipped for a while: a run does not end because of one.

  Args:
    workdir: of the run.
    step: the newest one; lines after it (lost work) are dropped.
    trackers: those of trackers.py.
    watch: called with (step, values).
    say: called with lines for people.
    files: holds lines that cannot be written now.
  """

  def __init__(
      self,
      workdir: Any,
      step: int,
      trackers: Sequence[Any] = (),
      watch: Callable[[int, dict[str, Any]], None] | None = None,
      say: Callable[[str], None] = print,
      files: writing.Guarded | None = None,
  ) -> None:
    self.folder = epath.Path(workdir)
    self.trackers = [*trackers]
    self.watch = watch
    self.say = say
    self.files = files or writing.Guarded(say)
    self.failed: dict[Any, tuple[float, float]] = {}  # {tracker: (skipped until, monotonic; seconds of the next wait)}
    for name in ('metrics.jsonl', 'samples.jsonl'):
      self.files.keep(self.folder / name, lambda line: _step_of(line) <= step)

  def _notify(self, method: str, *values: Any) -> None:
    """Calls a method of all trackers, except those that have failed lately."""
    for tracker in self.trackers:
      until, _ = self.failed.get(tracker, (0.0, FIRST_WAIT))
      is_skipped = time.monotonic() < until
      if is_skipped and method != 'close':
        continue
      try:
        call = getattr(tracker, method)
        call(*values)
      except Exception as error:
        self._skip(tracker, error)
      else:
        self._works(tracker)

  def _skip(self, tracker: Any, error: Exception) -> None:
    """Skips a tracker for a while; reports the first of consecutive failures."""
    if tracker not in self.failed:
      name = type(tracker).__name__
      words = str(error).split()
      message = ' '.join(words)[:300]
      self.say(
          f'WARNING: {name} failed and is skipped for now ({type(error).__name__}: {message}). metrics.jsonl has all '
          'numbers.')
    _, wait = self.failed.get(tracker, (0.0, FIRST_WAIT))
    until = time.monotonic() + wait
    next_wait = min(2 * wait, MOST_WAIT)
    self.failed[tracker] = (until, next_wait)

  def _works(self, tracker: Any) -> None:
    """Reports a tracker that works again after failures."""
    if self.failed.pop(tracker, None):
      name = type(tracker).__name__
      self.say(f'{name} works again. The lines that it missed are in metrics.jsonl.')

  def write(self, step: int, values: dict[str, Any]) -> None:
    """Adds a line of numbers, with the time in seconds since 1970."""
    now = round(time.time(), 3)
    line = dict(step=step, time=now, **values)
    self.files.append(self.folder / 'metrics.jsonl', plain_json.dumps(line))
    self._notify('numbers', step, values)
    if self.watch:
      self.watch(step, values)

  def sample(self, step: int, prompt: str, text: str) -> None:
    """Adds the model's answer to a prompt: a line of samples.jsonl, and for trackers."""
    line = dict(step=step, prompt=prompt, text=text)
    content = plain_json.dumps(line, ensure_ascii=False)
    self.files.append(self.folder / 'samples.jsonl', content)
    self._notify('text', step, 'sample', prompt, text)

  def histograms(self, step: int, by_name: dict[str, Any]) -> None:
    """Gives {name: histograms.Histogram} to trackers."""
    self._notify('histograms', step, by_name)

  def flush(self) -> None:
    """Writes waiting lines."""
    self._notify('flush')
    self.files.flush()

  def close(self) -> None:
    """As `flush`, and ends trackers."""
    self._notify('flush')
    self._notify('close')
    self.files.flush()


def _step_of(line: bytes) -> int:
  try:
    parsed = schema.parse(line, LINE, schema.LINE)
  except schema.Invalid:
    return sys.maxsize  # truncated by a crash
  return parsed['step']


class Rate:
  """Tokens per second of training alone: `pause` excludes validations, saves and other work."""

  def __init__(self) -> None:
    self.tokens = 0
    self.since: float | None = None
    self.latest = 0.0

  def add(self, tokens: int) -> None:
    """Counts tokens that were trained on."""
    self.tokens += tokens

  def pause(self) -> None:
    """Excludes the time from now to the next `start`."""
    self.since = None

  def start(self) -> None:
    """Counts from now on."""
    self.tokens = 0
    self.since = time.perf_counter()

  def take(self) -> float:
    """The rate since the last `take` or `start`; the previous rate, if there was a pause since then."""
    if self.since is not None and self.tokens:
      seconds = time.perf_counter() - self.since
      self.latest = self.tokens / seconds
    self.start()
    return self.latest


def between(style: str) -> str:
  """The text between a prompt and the model's answer: nothing if the answer continues the prompt."""
  return '' if STYLES[style].continues else '\n-> '


class Screen:
  """Progress for people: a live bar on a terminal, a line every SECONDS_BETWEEN_LINES elsewhere."""

  SECONDS_BETWEEN_LINES = 10

  def __init__(self, name: str, total_tokens: int, quiet: bool = False) -> None:
    from rich.console import Console
    stream: Any = writing.steady(sys.stdout)  # in a notebook rich chooses the place to print
    self.console = Console(
        quiet=quiet,
        highlight=False,
        soft_wrap=True,
        file=stream,
    )
    self.name = name
    self.total = total_tokens
    self.last_line = 0.0
    self.bar: Any = None
    if self.console.is_terminal and not quiet:
      self.bar = _bar(self.console)
      self.task = self.bar.add_task(name, total=total_tokens, text='starting')
      self.bar.start()

  def say(self, text: str) -> None:
    """Prints a line."""
    self.console.print(text, markup=False)

  def show(self, step: int, tokens: int, values: dict[str, Any]) -> None:
    """Shows progress; `values`: nll, tokens_per_second, mfu (of training, the latest)."""
    text = self._progress(step, tokens, values)
    if self.bar:
      completed = min(tokens, self.total)
      self.bar.update(self.task, completed=completed, text=text)
      return
    since_line = time.monotonic() - self.last_line
    if since_line >= self.SECONDS_BETWEEN_LINES:
      self.last_line = time.monotonic()
      share = min(1, tokens / self.total)  # the last step may be longer than the rest
      self.say(f'{share:4.0%}  {text}')

  def _progress(self, step: int, tokens: int, values: dict[str, Any]) -> str:
    rate = values['tokens_per_second']
    left = max(0, self.total - tokens)
    columns = [
        f'step {step:,}',
        f'loss {values["nll"]:.3f}',
        f'{short(left)} tokens left',
    ]
    if rate:  # not known at the first step, which compiles
      columns.append(f'{short(rate)} tokens/s')
      columns.append(f'MFU {values["mfu"]:.0%}')
      columns.append(f'ETA {duration(left / rate)}')
    return '  '.join(columns)

  def sample(self, prompt: str, text: str, style: str = 'document') -> None:
    """Prints a continuation after its prompt, or an answer below it (see `decode.stream` for styles)."""
    from rich.panel import Panel
    from rich.text import Text
    answer = between(style) + text
    content = Text(prompt, 'bold') + Text(answer)
    panel = Panel(content, title='sample', title_align='left')
    self.console.print(panel)

  def end(self, step: int, tokens: int) -> None:
    """Shows the bar as it stays: with the steps after the last line."""
    if self.bar:
      completed = min(tokens, self.total)
      self.bar.update(self.task, completed=completed, text=f'step {step:,}  done')

  def close(self) -> None:
    """Ends the bar."""
    if self.bar:
      self.bar.stop()


def _bar(console: Any) -> Any:
  """A live bar of rich."""
  from rich.progress import BarColumn, Progress, TextColumn
  return Progress(
      TextColumn('[bold]{task.description}'),
      BarColumn(bar_width=24),
      TextColumn('[progress.percentage]{task.percentage:>3.0f}%'),
      TextColumn('{task.fields[text]}'),
      console=console,
  )
