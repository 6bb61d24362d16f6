"""What experts bring: the validation nll of sparse models beside dense ones of the same FLOPs per token.

    python benchmarks/experts.py [--seeds=3] [--steps=1000] [--objectives=causal,span_corruption] [--folder=...]

For each objective a small model is trained on Python's own documentation from the same seeds, rows and rates, with an
MLP in each layer and with 8 experts of half its width, of which each token passes 2. The gap is the mean over the seeds
of the difference in validation nll, nats per predicted token; its interval is that of Student's t at 95 %.
"""
import argparse
import pathlib
import statistics
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks import eight_bit  # noqa: E402
from t5like import config as config_lib  # noqa: E402
from t5like.config import base  # noqa: E402
from t5like.model import models  # noqa: E402
from t5like.training import loop  # noqa: E402

MODELS = dict(causal='decoder', span_corruption='encoder_decoder')
ROWS, TOKENS, D_FF = 16, 128, 512  # of a step; of the MLP
KINDS = dict(
    dense={},
    sparse=dict(experts=8, experts_per_token=2, expert_d_ff=D_FF // 2, router_balance=0.01, router_z_loss=1e-3),
)


def config_of(folder, objective, kind, seed, steps):
  """A small model of the objective's architecture, on bytes of text that is built in."""
  c = base()
  c.seed = seed
  c.data.update(validation_fraction=0.02, seq_len=TOKENS, directory=str(folder / 'prepared'))
  c.objective.name = objective
  c.vocabulary.update(name='bytes', sentinels=64)
  c.model.update(name=MODELS[objective], d_model=128, num_layers=2, num_heads=4, d_ff=D_FF, dtype='float32')
  c.model.update(KINDS[kind])
  c.batch_size = ROWS
  c.optimizer.update(learning_rate=3e-3, weight_decay=0.0)
  c.schedule.update(name='linear', warmup_steps=steps // 10, final_scale=0.0)
  c.stop.tokens = steps * ROWS * TOKENS
  c.log.update(every=100, trackers=())
  c.evaluate.update(every=0, batches=50)
  c.checkpoint.every = 0
  c.sample.prompts = ()
  config_lib.validate(c)
  return c


def row(objective, kind, sizes, nlls, dense):
  """A line of the table."""
  numbers = ' '.join(f'{nll:.4f}' for nll in nlls)
  gap = 'reference'
  if kind != 'dense':
    mean, half = eight_bit.gap(nlls, dense)
    gap = f'{mean:+.4f} ± {half:.4f} ({mean / statistics.fmean(dense):+.1%})'
  million = sizes['flops_per_token'] / 1e6
  return f'| {objective} | {kind} | {sizes["parameters"]:,} | {million:.2f} | {numbers} | {gap} |'


def main(argv=None):
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--seeds', type=int, default=3)
  parser.add_argument('--steps', type=int, default=1000)
  parser.add_argument('--objectives', default=','.join(MODELS))
  parser.add_argument('--folder', default='')
  flags = parser.parse_args(argv)
  folder = pathlib.Path(flags.folder or tempfile.mkdtemp())
  print('| objective | model | parameters | MFLOP per token | validation nll of each seed | gap, 95 % |')
  print('|---|---|---|---|---|---|')
  for objective in flags.objectives.split(','):
    dense = []
    for kind in KINDS:
      nlls = []
      for seed in range(flags.seeds):
        config = config_of(folder, objective, kind, seed, flags.steps)
        workdir = folder / f'{objective}-{kind}-{seed}'
        result = loop.train(config, workdir, workdir.name)
        nlls.append(result['validation']['nll'])
      dense = dense or nlls
      with_sizes = config_lib.resolve(config)
      with_sizes.model.vocab_size = 384
      print(row(objective, kind, models.sizes(with_sizes), nlls, dense), flush=True)


if __name__ == '__main__':
  main()
