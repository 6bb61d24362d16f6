"""What another architecture's weights are worth: models adapted in four directions, beside the same from scratch.

    python benchmarks/adapt.py [--seeds=3] [--before=300] [--steps=100] [--folder=...]

A decoder (next tokens) and an encoder (masked tokens) are trained on Python's own documentation; then each of four
models is trained for equal tokens, rows and rates on it, once from their weights and once from random ones. The table
has the validation nll, nats per predicted token, of every seed.
"""
import argparse
import dataclasses
import pathlib
import statistics
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from t5like import config as config_lib  # noqa: E402
from t5like.config import base  # noqa: E402
from t5like.training import loop  # noqa: E402

OBJECTIVES = dict(decoder='causal', encoder='masked_lm', encoder_decoder='prefix_lm')
ROWS, TOKENS = 16, 64  # of a step


@dataclasses.dataclass(frozen=True)
class Direction:
  """An adaptation: the new architecture, that of init_from, further keys of config.adapt, and of config.model."""
  name: str
  source: str
  second: str = ''
  encoder_embed: str = 'shared'


DIRECTIONS = {
    'decoder -> encoder-decoder': Direction('encoder_decoder', 'decoder'),
    'decoder -> encoder': Direction('encoder', 'decoder'),
    'encoder -> decoder': Direction('decoder', 'encoder'),
    'encoder + decoder -> encoder-decoder': Direction('encoder_decoder', 'decoder', 'encoder', 'own'),
}


def config_of(folder, name, seed, steps, encoder_embed='shared'):
  """A tiny model of an architecture, on bytes of text that is built in."""
  c = base()
  c.seed = seed
  c.data.update(max_documents=300, validation_fraction=0.05, seq_len=TOKENS, directory=str(folder / 'prepared'))
  c.objective.name = OBJECTIVES[name]
  c.vocabulary.update(name='bytes', sentinels=2)
  c.model.update(name=name, encoder_embed=encoder_embed, d_model=64, num_layers=2, num_heads=4, d_ff=192,
                 dtype='float32', tie_embeddings=True)
  if name == 'encoder_decoder':
    c.data.target_len = TOKENS
  c.batch_size = ROWS
  c.optimizer.update(learning_rate=3e-3, weight_decay=0.0)
  c.schedule.update(name='linear', warmup_steps=steps // 10, final_scale=0.0)
  c.stop.tokens = steps * ROWS * TOKENS
  c.log.update(every=50, trackers=())
  c.evaluate.update(every=0, batches=20)
  c.checkpoint.every = 0
  c.guard.compare_every = 0
  c.sample.prompts = ()
  return c


def train(config, workdir):
  """Validation nll at the end of a run."""
  config_lib.validate(config)
  return loop.train(config, workdir, workdir.name)['validation']['nll']


def compare(folder, seed, before, steps):
  """{direction: (adapted, from scratch)} of one seed."""
  for name in ('decoder', 'encoder'):
    train(config_of(folder, name, seed, before), folder / f'{name}-{seed}')
  scratch = {}
  results = {}
  for label, direction in DIRECTIONS.items():
    model = (direction.name, direction.encoder_embed)
    if model not in scratch:
      config = config_of(folder, direction.name, seed + 100, steps, direction.encoder_embed)
      scratch[model] = train(config, folder / f'{"-".join(model)}-scratch-{seed}')
    config = config_of(folder, direction.name, seed + 100, steps, direction.encoder_embed)
    config.init_from = str(folder / f'{direction.source}-{seed}')
    config.adapt.source = direction.source
    if direction.second:
      config.adapt.encoder = str(folder / f'{direction.second}-{seed}')
    number = list(DIRECTIONS).index(label)
    results[label] = (train(config, folder / f'adapted-{number}-{seed}'), scratch[model])
  return results


def table(rows):
  """The lines of a table of {direction: [(adapted, from scratch) of each seed]}."""
  yield '| direction | adapted | from scratch | difference, means |'
  yield '|---|---|---|---|'
  for label, pairs in rows.items():
    columns = list(zip(*pairs))
    adapted, scratch = (', '.join(f'{nll:.3f}' for nll in column) for column in columns)
    gain = statistics.fmean(columns[0]) - statistics.fmean(columns[1])
    yield f'| {label} | {adapted} | {scratch} | {gain:+.3f} |'


def main():
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--seeds', type=int, default=3)
  parser.add_argument('--before', type=int, default=300)
  parser.add_argument('--steps', type=int, default=100)
  parser.add_argument('--folder', default='')
  args = parser.parse_args()
  folder = pathlib.Path(args.folder or tempfile.mkdtemp(prefix='t5like-adapt-'))
  folder.mkdir(parents=True, exist_ok=True)
  rows = {label: [] for label in DIRECTIONS}
  for seed in range(args.seeds):
    for label, pair in compare(folder, seed, args.before, args.steps).items():
      rows[label].append(pair)
    print('\n'.join(table(rows)), flush=True)


if __name__ == '__main__':
  main()
