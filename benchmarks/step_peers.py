"""Whole train steps beside those of torch, each in a process of its own, in turns: `benchmarks/step.py --compare`."""
import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

from benchmarks.step_shapes import SHAPES, config_of

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
ROUNDS = 7
STEPS = 1  # timed at a time
REST = 0.3  # seconds before a measurement: threads of the other process that wait by turning round have gone to sleep
Step = Callable[[], float]  # does a step, returns the loss


def ours(name: str) -> tuple[int, str, Step]:
  """(parameters, versions, step) of a shape, in a process prepared as that of a run."""
  from t5like import hardware
  hardware.prepare_process()
  import jax

  from benchmarks import step
  prepared = step.prepare_step(config_of(name))
  return prepared.num_params, f'jax {jax.__version__}', prepared.run_to_end


def of_torch(name: str) -> tuple[int, str, Step]:
  """(parameters, versions, step) of the same shape."""
  import torch
  import transformers

  from benchmarks import torch_models
  count, step = torch_models.make_step(SHAPES[name])
  return count, f'torch {torch.__version__}, transformers {transformers.__version__}', step


SIDES = dict(ours=ours, torch=of_torch)


class Side:
  """A process that does steps when it gets a line, and answers with seconds per step."""

  def __init__(self, side: str, shape: str) -> None:
    command = [sys.executable, '-m', 'benchmarks.step_peers', f'--side={side}', f'--shape={shape}']
    self.process = subprocess.Popen(
        command,
        cwd=ROOT,
        env=dict(os.environ, JAX_PLATFORMS='cpu'),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    self.facts = self._read()

  def _read(self) -> dict:
    assert self.process.stdout is not None
    line = self.process.stdout.readline()
    if not line:
      raise SystemExit('a process of the comparison ended: its error is above')
    return json.loads(line)

  def time(self) -> dict[str, float]:
    """`seconds` and `cpu_seconds` of a step, over STEPS of them."""
    assert self.process.stdin is not None
    time.sleep(REST)
    self.process.stdin.write('\n')
    self.process.stdin.flush()
    return self._read()

  def close(self) -> None:
    assert self.process.stdin is not None
    self.process.stdin.close()
    self.process.wait()


def answer(side: str, shape: str) -> None:
  """What a process does: a line of facts, then for each line of its input one of seconds."""
  count, versions, step = SIDES[side](shape)
  first = step()  # compiles
  print(json.dumps(dict(parameters=count, versions=versions, loss=first), allow_nan=False), flush=True)
  for _ in sys.stdin:
    print(json.dumps(_timed(step), allow_nan=False), flush=True)


def _timed(step: Step) -> dict[str, float]:
  """Seconds and CPU-seconds of a step."""
  start = time.perf_counter()
  cpu_start = time.process_time()
  for _ in range(STEPS):
    step()
  seconds = (time.perf_counter() - start) / STEPS
  cpu_seconds = (time.process_time() - cpu_start) / STEPS
  return dict(seconds=seconds, cpu_seconds=cpu_seconds)


def compare_shape(name: str, rounds: int = ROUNDS) -> float:
  """Prints both sides of a shape; the median of torch's seconds / ours of rounds taken in turns."""
  sides = {}
  times: dict[str, list[dict[str, float]]] = {}
  for side in SIDES:
    sides[side] = Side(side, name)
    times[side] = []
  for _ in range(rounds):
    for side, process in sides.items():
      times[side].append(process.time())
  shape = SHAPES[name]
  print(f'{name}: {shape.rows} x {shape.length} tokens, {shape.layers} layers, {shape.width} wide')
  for side, process in sides.items():
    process.close()
    facts = process.facts
    median = statistics.median(_values(times[side], 'seconds'))
    cpu = statistics.median(_values(times[side], 'cpu_seconds'))
    print(f'  {side:6} {facts["parameters"]:12,} parameters {median * 1e3:8.1f} ms/step, {cpu * 1e3:8.1f} of CPU time; '
          f'first loss {facts["loss"]:.2f}, {facts["versions"]}')
  ratio = _ratio(times, 'seconds')
  print(f'  speed of ours / speed of torch: {ratio:.3f}, by CPU time {_ratio(times, "cpu_seconds"):.3f} '
        f'(medians of {rounds} pairs)', flush=True)
  return ratio


def _values(times: list[dict[str, float]], key: str) -> list[float]:
  return [one[key] for one in times]


def _ratio(times: dict[str, list[dict[str, float]]], key: str) -> float:
  """Median of torch's / ours."""
  pairs = zip(_values(times['torch'], key), _values(times['ours'], key))
  return statistics.median(theirs / ours for theirs, ours in pairs)


def compare(rounds: int = ROUNDS) -> dict[str, float]:
  """Ratios of all shapes. On a machine that does other work, that of CPU times on one core says more."""
  cores = len(os.sched_getaffinity(0))
  print(f'{cores} CPU cores, Python {sys.version.split()[0]}, fp32')
  ratios = {}
  for name in SHAPES:
    ratios[name] = compare_shape(name, rounds)
  return ratios


if __name__ == '__main__':
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--side', choices=SIDES, required=True)
  parser.add_argument('--shape', choices=SHAPES, required=True)
  arguments = parser.parse_args()
  answer(arguments.side, arguments.shape)
