"""Losses, gradient norms and checksums of the state of every config's `:smoke`, equal to the bit to those kept.

    python -m tests.goldens             # trains each for 20 steps and compares with tests/goldens/smoke.json
    python -m tests.goldens --write     # keeps what this tree gives
    python -m tests.goldens --only='bert|t5'

For changes of structure, which must not change a number. Bits are the same only on the same kind of machine with the
same versions, which the file names: elsewhere, write it from the commit before the change, then compare.
"""
import argparse
import concurrent.futures
import json
import os
import pathlib
import platform
import re
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[2]
FILE = ROOT / 'tests' / 'goldens' / 'smoke.json'
NAMES = sorted(f.stem for f in (ROOT / 'configs').glob('*.py') if f.stem not in ('base', '__init__'))


def versions() -> dict[str, str]:
  """What bits depend on: versions, and the processor as the kernel names it."""
  from importlib import metadata
  cpu = re.search(r'^model name\s*: (.*)$', pathlib.Path('/proc/cpuinfo').read_text(), re.MULTILINE)
  packages = {name: metadata.version(name) for name in ('jax', 'jaxlib', 'flax', 'optax', 'numpy')}
  return dict(packages, python=platform.python_version(), cpu=cpu.group(1) if cpu else platform.processor(),
              cores=str(os.cpu_count()))


def smoke(name: str, folder: pathlib.Path) -> dict:
  """{loss, grad_norm: one a step; validation_nll; state: {array: checksum}} of a config's `:smoke`."""
  workdir = folder / name
  command = [sys.executable, 'main.py', f'--config=configs/{name}.py:smoke', f'--workdir={workdir}',
             f'--config.data.directory={folder / "prepared"}', '--config.log.trackers=()', '--config.sample.tokens=2',
             '--config.evaluate.tasks=()']
  done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
  if done.returncode:
    raise SystemExit(f'{name}:smoke ended with {done.returncode}:\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}')
  lines = [json.loads(line) for line in (workdir / 'metrics.jsonl').read_text().splitlines()]
  steps = [line for line in lines if 'loss' in line]
  newest = max((f for f in (workdir / 'checkpoints').iterdir() if f.name.isdigit()), key=lambda f: int(f.name))
  meta = json.loads(next((newest / 'meta').rglob('*.json')).read_text())
  return dict(loss=[line['loss'] for line in steps], grad_norm=[line['grad_norm'] for line in steps],
              validation_nll=[line['validation/nll'] for line in lines if 'validation/nll' in line],
              state=meta['checksums'])


def differences(kept: dict, now: dict) -> list[str]:
  """What differs between two results of `smoke`, the first step or array of each kind."""
  out = []
  for key in ('loss', 'grad_norm', 'validation_nll'):
    pairs = list(zip(kept[key], now[key]))
    first = next((i for i, (a, b) in enumerate(pairs) if a != b), None)
    if len(kept[key]) != len(now[key]):
      out.append(f'{key}: {len(kept[key])} values, now {len(now[key])}')
    elif first is not None:
      out.append(f'{key}[{first}]: {pairs[first][0]!r}, now {pairs[first][1]!r}')
  names = sorted(set(kept['state']) ^ set(now['state']))
  if names:
    out.append(f'arrays: {", ".join(names[:3])}')
  changed = [name for name in kept['state'] if name in now['state'] and kept['state'][name] != now['state'][name]]
  if changed:
    out.append(f'{len(changed)} of {len(kept["state"])} arrays, first {changed[0]}')
  return out


def main(argv: list[str]) -> int:
  parser = argparse.ArgumentParser('python -m tests.goldens', description=__doc__.partition('\n\n')[0])
  parser.add_argument('--write', action='store_true', help='keep what this tree gives')
  parser.add_argument('--only', default='', help='a regular expression for names of configs')
  parser.add_argument('--jobs', type=int, default=2, help='configs at once; default 2')
  args = parser.parse_args(argv)
  names = [name for name in NAMES if re.search(args.only, name)]
  kept = json.loads(FILE.read_text()) if FILE.exists() else dict(versions=versions(), smoke={})
  if not args.write and kept['versions'] != versions():
    print(f'Made with other versions or on another machine: {kept["versions"]}, here {versions()}')
  wrong = 0
  with tempfile.TemporaryDirectory(prefix='t5like-goldens-') as folder:
    with concurrent.futures.ThreadPoolExecutor(args.jobs) as pool:
      for name, now in zip(names, pool.map(lambda n: smoke(n, pathlib.Path(folder)), names)):
        if args.write:
          kept['smoke'][name] = now
          print(f'{name}: kept', flush=True)
          continue
        lacks = ['not kept yet'] if name not in kept['smoke'] else differences(kept['smoke'][name], now)
        wrong += bool(lacks)
        print(f'{name}: ' + ('; '.join(lacks) or 'equal to the bit'), flush=True)
  if args.write:
    FILE.write_text(json.dumps(dict(kept, versions=versions()), indent=1, sort_keys=True) + '\n')
  return 1 if wrong else 0


if __name__ == '__main__':
  sys.exit(main(sys.argv[1:]))
