"""What operands of 8 bits cost: the validation nll of models trained with `model.quantization`, beside full precision.

    python benchmarks/eight_bit.py [--seeds=3] [--steps=200] [--objectives=causal,..] [--folder=...]

For each objective a small model is trained on Python's own documentation from the same seeds, rows and rates: in full
precision, with int8 and with fp8. The gap is the mean over the seeds of the difference in validation nll, nats per
predicted token; its interval is that of Student's t at 95 %. How fast the steps are is predicted for TPUs, by

    python main.py preflight --config=configs/yardstick_1b.py --topology=v5e-256 --config.model.quantization=int8
"""
import argparse
import pathlib
import statistics
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from t5like import choices, config as config_lib  # noqa: E402
from t5like.config import base  # noqa: E402
from t5like.observe import compare  # noqa: E402
from t5like.training import loop  # noqa: E402

MODELS = dict(causal='decoder', span_corruption='encoder_decoder', masked_lm='encoder')
ROWS, TOKENS = 16, 64  # of a step


def config_of(folder, objective, quantization, seed, steps):
  """A small model of the objective's architecture, on bytes of text that is built in."""
  c = base()
  c.seed = seed
  c.data.update(max_documents=400, validation_fraction=0.05, seq_len=TOKENS, directory=str(folder / 'prepared'))
  c.objective.name = objective
  c.vocabulary.update(name='bytes', sentinels=64)
  c.model.update(name=MODELS[objective], d_model=128, num_layers=2, num_heads=4, d_ff=384, dtype='float32',
                 quantization=quantization)
  c.batch_size = ROWS
  c.optimizer.update(learning_rate=3e-3, weight_decay=0.0)
  c.schedule.update(name='linear', warmup_steps=steps // 10, final_scale=0.0)
  c.stop.tokens = steps * ROWS * TOKENS
  c.log.update(every=50, trackers=())
  c.evaluate.update(every=0, batches=20)
  c.checkpoint.every = 0
  c.sample.prompts = ()
  config_lib.validate(c)
  return c


def gap(nlls, full):
  """(mean difference, half of its interval of 95 %) of pairs of the same seeds."""
  seeds = range(len(full))
  result = compare.difference(seeds, seeds, full, nlls)
  return result.mean, (result.high - result.low) / 2


def row(objective, quantization, nlls, full):
  """A line of the table."""
  numbers = ' '.join(f'{nll:.4f}' for nll in nlls)
  text = 'reference'
  if quantization != 'none':
    mean, half = gap(nlls, full)
    text = f'{mean:+.4f} ± {half:.4f} ({mean / statistics.fmean(full):+.2%})'
  return f'| {objective} | {quantization} | {numbers} | {text} |'


def main(argv=None):
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--seeds', type=int, default=3)
  parser.add_argument('--steps', type=int, default=200)
  parser.add_argument('--objectives', default=','.join(MODELS))
  parser.add_argument('--folder', default='')
  flags = parser.parse_args(argv)
  folder = pathlib.Path(flags.folder or tempfile.mkdtemp())
  print('| objective | quantization | validation nll of each seed | gap, 95 % |\n|---|---|---|---|')
  for objective in flags.objectives.split(','):
    full = []
    for quantization in choices.QUANTIZATIONS:
      nlls = []
      for seed in range(flags.seeds):
        config = config_of(folder, objective, quantization, seed, flags.steps)
        workdir = folder / f'{objective}-{quantization}-{seed}'
        result = loop.train(config, workdir, workdir.name)
        nlls.append(result['validation']['nll'])
      full = full or nlls
      print(row(objective, quantization, nlls, full), flush=True)


if __name__ == '__main__':
  main()
