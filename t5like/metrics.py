"""Numbers out of a run: rates, files, and what a person sees.

MFU is model FLOPs utilisation by PaLM's convention: 6 per multiplying parameter and token plus full
attention, less where parameters are frozen (`model/flops.py`), over the peak of the devices' matrix units. On a CPU,
whose peak is not published per model, it is the share of what one large matrix product reaches.
"""
import math
import sys
import time

import jax
import jax.numpy as jnp
from etils import epath

from t5like import plain_json, schema, writing
from t5like.objectives.prompts import STYLES

# A line of metrics.jsonl or of samples.jsonl, as far as all of them are alike.
LINE = schema.Object(dict(step=schema.Whole()), ('step',))
# Lines of one of them: numbers, or null for one that was not finite.
NUMBERS = schema.Object(LINE.fields, LINE.needs, rest=schema.Maybe(schema.Real()))
SAMPLE = schema.Object(dict(LINE.fields, prompt=schema.Text(), text=schema.Text()), ('step', 'prompt', 'text'))

AGAIN, MOST_WAIT = 60.0, 3600.0  # seconds that a tracker which failed is left out, the first time and at most

# Peak dense bf16 FLOP/s of one JAX device; vendors' data sheets.
PEAK_FLOPS = {
    'TPU v3': 61.5e12, 'TPU v4': 275e12, 'TPU v5 lite': 197e12, 'TPU v5e': 197e12, 'TPU v5': 459e12,
    'TPU v5p': 459e12, 'TPU v6 lite': 918e12, 'TPU v6e': 918e12, 'TPU7x': 1153.5e12,
    'NVIDIA A100': 312e12, 'NVIDIA H100': 989e12, 'NVIDIA H200': 989e12,
}


def peak_flops(mesh, dtype='float32'):
  """FLOP/s that all devices of the mesh could reach, and the name of where the figure is from."""
  device = mesh.devices.flat[0]
  matches = [k for k in PEAK_FLOPS if device.device_kind.startswith(k)]
  if matches:
    best = max(matches, key=len)
    return PEAK_FLOPS[best] * mesh.size, f'the {best} data sheet'
  return _measured_flops(dtype) * jax.process_count(), f'a {dtype} matrix product measured here'


def _measured_flops(dtype, n=1024):
  """FLOP/s of an n x n matrix product on one device: virtual CPU devices share the same cores."""
  mesh = jax.make_mesh((1,), ('one',), devices=jax.local_devices()[:1],
                       axis_types=(jax.sharding.AxisType.Auto,))
  seconds = []
  with jax.set_mesh(mesh):
    x, product = jnp.ones((n, n), dtype), jax.jit(jnp.matmul)
    jax.block_until_ready(product(x, x))
    for _ in range(5):
      start = time.perf_counter()
      jax.block_until_ready(product(x, x))
      seconds.append(time.perf_counter() - start)
  return 2 * n ** 3 / min(seconds)


def perplexity(nll):
  """exp(nll), infinite where fp64 does not hold it, NaN of NaN."""
  return math.exp(nll) if nll < 709 else nll + math.inf


def summary(sums, bytes_per_token):
  """Means of a validation from its sums: nll (nats), perplexity, accuracy, tokens (predicted ones).

  And bits_per_byte, where `bytes_per_token` is known (not 0).
  """
  count = max(sums['weights'], 1)
  nll = sums['nll'] / count
  values = dict(nll=nll, perplexity=perplexity(nll), accuracy=sums['hits'] / count,
                tokens=int(sums['weights']))
  if bytes_per_token:
    values['bits_per_byte'] = nll / math.log(2) / bytes_per_token
  return values


def describe(values):
  """A validation's `summary` in words."""
  bits = f'  bits per byte {values["bits_per_byte"]:.4f}' if 'bits_per_byte' in values else ''
  return (f'validation nll {values["nll"]:.4f}  perplexity {values["perplexity"]:.2f}  '
          f'accuracy {values["accuracy"]:.1%}{bits}  ({short(values["tokens"])} tokens)')


def short(n):
  """1234567 -> '1.23M'."""
  for unit in ('', 'k', 'M', 'B', 'T', 'P', 'E'):  # quadrillions and more are FLOPs: SI
    if abs(n) < 999.5 or unit == 'E':
      return f'{n:.3g}{unit}' if unit or n != int(n) else f'{int(n)}'
    n /= 1000


def duration(seconds):
  """3725 -> '1:02:05'."""
  m, s = divmod(int(seconds), 60)
  h, m = divmod(m, 60)
  return f'{h}:{m:02}:{s:02}' if h else f'{m}:{s:02}'


class Files:
  """metrics.jsonl and samples.jsonl in a workdir, and the trackers that get the same numbers (see trackers.py).

  Lines after `step` (lost work) are dropped. A tracker that fails is left out for a while: no curve is worth a run.
  watch: called with (step, values), if given; files: a writing.Guarded, which what cannot be written now waits in.
  """

  def __init__(self, workdir, step, trackers=(), watch=None, say=print, files=None):
    self.folder, self.trackers, self.watch, self.say = epath.Path(workdir), [*trackers], watch, say
    self.files = files or writing.Guarded(say)
    self.left_out = {}  # {tracker: (until when, in monotonic seconds; seconds to wait the next time)}
    for name in ('metrics.jsonl', 'samples.jsonl'):
      self.files.keep(self.folder / name, lambda line: _step_of(line) <= step)

  def _tell(self, what, *values):
    for tracker in self.trackers:
      until, wait = self.left_out.get(tracker, (0.0, AGAIN))
      if time.monotonic() < until and what != 'close':
        continue
      try:
        getattr(tracker, what)(*values)
      except Exception as e:
        if tracker not in self.left_out:
          self.say(f'WARNING: {type(tracker).__name__} failed and is left out for now ({type(e).__name__}: '
                   f'{" ".join(str(e).split())[:300]}). metrics.jsonl has all numbers.')
        self.left_out[tracker] = (time.monotonic() + wait, min(2 * wait, MOST_WAIT))
      else:
        if self.left_out.pop(tracker, None):
          self.say(f'{type(tracker).__name__} works again. What it missed is in metrics.jsonl.')

  def write(self, step, values):
    """One line of numbers, with the time in seconds since 1970."""
    line = plain_json.dumps(dict(step=step, time=round(time.time(), 3), **values))
    self.files.append(self.folder / 'metrics.jsonl', line)
    self._tell('numbers', step, values)
    if self.watch:
      self.watch(step, values)

  def sample(self, step, prompt, text):
    """What the model made of a prompt: a line of samples.jsonl, and for trackers."""
    line = plain_json.dumps(dict(step=step, prompt=prompt, text=text), ensure_ascii=False)
    self.files.append(self.folder / 'samples.jsonl', line)
    self._tell('text', step, 'sample', prompt, text)

  def histograms(self, step, found):
    """{name: histograms.Histogram} for trackers."""
    self._tell('histograms', step, found)

  def flush(self):
    self._tell('flush')
    self.files.flush()

  def close(self):
    self._tell('flush')
    self._tell('close')
    self.files.flush()


def _step_of(line):
  try:
    return schema.parse(line, LINE, schema.LINE)['step']
  except schema.Invalid:
    return sys.maxsize  # cut off by a crash


class Rate:
  """Tokens per second of training alone: `pause` leaves out validations, saves and the like."""

  def __init__(self):
    self.tokens, self.since, self.latest = 0, None, 0.0

  def add(self, tokens):
    self.tokens += tokens

  def pause(self):
    self.since = None

  def start(self):
    self.tokens, self.since = 0, time.perf_counter()

  def take(self):
    """The rate since the last `take` or `start`; that of before, when a pause came in between."""
    if self.since is not None and self.tokens:
      self.latest = self.tokens / (time.perf_counter() - self.since)
    self.start()
    return self.latest


def between(style):
  """What stands between a prompt and what a model makes of it: nothing if the one goes on with the other."""
  return '' if STYLES[style].continues else '\n-> '


class Screen:
  """Progress for people: a live bar on a terminal, a line now and then elsewhere."""

  SECONDS_BETWEEN_LINES = 10

  def __init__(self, name, total_tokens, quiet=False):
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn
    # In a notebook rich finds out by itself where to print.
    self.console = Console(quiet=quiet, highlight=False, soft_wrap=True, file=writing.steady(sys.stdout))
    self.name, self.total, self.bar, self.last_line = name, total_tokens, None, 0.0
    if self.console.is_terminal and not quiet:
      self.bar = Progress(
          TextColumn('[bold]{task.description}'), BarColumn(bar_width=24),
          TextColumn('[progress.percentage]{task.percentage:>3.0f}%'), TextColumn('{task.fields[text]}'),
          console=self.console)
      self.task = self.bar.add_task(name, total=total_tokens, text='starting')
      self.bar.start()

  def say(self, text):
    self.console.print(text, markup=False)

  def show(self, step, tokens, values):
    """`values`: nll, tokens_per_second, mfu (of training, the latest)."""
    rate, left = values['tokens_per_second'], max(0, self.total - tokens)
    text = f'step {step:,}  loss {values["nll"]:.3f}  {short(left)} tokens left'
    if rate:  # not known at the first step, which compiles
      text += f'  {short(rate)} tokens/s  MFU {values["mfu"]:.0%}  ETA {duration(left / rate)}'
    if self.bar:
      self.bar.update(self.task, completed=min(tokens, self.total), text=text)
    elif time.monotonic() - self.last_line >= self.SECONDS_BETWEEN_LINES:
      self.last_line = time.monotonic()
      self.say(f'{min(1, tokens / self.total):4.0%}  {text}')  # the last step may be longer than what is left

  def sample(self, prompt, text, style='document'):
    """A continuation after its prompt, or an answer below it (see decode.generate for styles)."""
    from rich.panel import Panel
    from rich.text import Text
    self.console.print(Panel(Text(prompt, 'bold') + Text(between(style) + text), title='sample', title_align='left'))

  def end(self, step, tokens):
    """The bar as it stays: the steps after the last line count too."""
    if self.bar:
      self.bar.update(self.task, completed=min(tokens, self.total), text=f'step {step:,}  done')

  def close(self):
    if self.bar:
      self.bar.stop()
