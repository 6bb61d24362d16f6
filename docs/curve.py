"""Draws the validation curve of a run beside the published result that its config names: pip install -e '.[notebook]'.

    python docs/curve.py --workdir=runs/decoder_shakespeare-cpu --out=docs/images/shakespeare.svg
"""
import argparse
import json
import pathlib
import sys

import matplotlib

matplotlib.use('svg')
from matplotlib import pyplot as plt

ROOT = pathlib.Path(__file__).resolve().parent.parent
MILLION = 1e6
sys.path.insert(0, str(ROOT))

from t5like.config import stages  # noqa: E402
from t5like.storage import workdir as workdir_lib  # noqa: E402 (from a checkout that is not installed)

plt.rcParams.update({'svg.hashsalt': 't5like', 'font.size': 10})  # the same file for the same run


def read(workdir: pathlib.Path) -> list[dict]:
  """The records of metrics.jsonl, in order."""
  return [json.loads(line) for line in (workdir / 'metrics.jsonl').read_text().splitlines()]


def draw(workdir: pathlib.Path, out: pathlib.Path) -> None:
  """Writes the picture: training and validation nll by tokens, and a dashed line at config.reference."""
  config, records = workdir_lib.read_config(workdir), read(workdir)
  training = [(r['tokens'] / MILLION, r['nll']) for r in records if 'nll' in r]
  # A validation has the step of the training record before it, and no tokens of its own.
  pace = stages.pace(config)
  validated = [r for r in records if 'validation/nll' in r]
  validation = [(stages.tokens_after(pace, r['step']) / MILLION, r['validation/nll']) for r in validated]
  figure, axes = plt.subplots(figsize=(6.4, 3.4), layout='constrained')
  axes.plot(*zip(*training), color='#b6bdc6', linewidth=1, label='training')
  axes.plot(*zip(*validation), color='#4c6fd8', linewidth=2, marker='.', label='validation')
  reference = config.reference
  if reference.source:
    axes.axhline(reference.value, color='#d1495b', linestyle='--',
                 label=f'{reference.metric} {reference.value:g} ({reference.source})')
  axes.set(xlabel='million tokens', ylabel='nats per token', title=workdir.name)
  axes.grid(alpha=0.3)
  axes.legend()
  figure.savefig(out, metadata={'Date': None})


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.partition('\n\n')[0])
  parser.add_argument('--workdir', type=pathlib.Path, required=True)
  parser.add_argument('--out', type=pathlib.Path, required=True)
  arguments = parser.parse_args()
  draw(arguments.workdir, arguments.out)


if __name__ == '__main__':
  main()
