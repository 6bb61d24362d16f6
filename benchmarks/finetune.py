"""What pre-training is worth: a small model, pre-trained and fine-tuned, beside the same one from random weights.

    python benchmarks/finetune.py [--seeds=3] [--pretrain=600] [--steps=150] [--folder=...]

Pre-training reads functions of one half of the modules of Python's standard library, next token by next token; the
task is to say the first sentence of the docstring of a function of the other half, so nothing of the task was seen
before. Both fine-tune on the same batches with the same optimizer; `freeze` and LoRA are there to compare.
"""
import argparse
import json
import pathlib
import statistics
import sys
import tempfile
import zlib

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from t5like import config as config_lib  # noqa: E402
from t5like.config import base  # noqa: E402
from t5like.sources import registry  # noqa: E402
from t5like.training import loop  # noqa: E402

WAYS = {  # name: (begins with the pre-trained weights?, changes of the config)
    'from scratch': (False, {}), 'fine-tuned': (True, {}),
    'fine-tuned, first half of layers and table frozen': (True, {'optimizer.freeze': ('embed', 'stack/blocks[:2]')}),
    'LoRA of rank 8': (True, {'model.lora_rank': 8, 'model.lora_projections': ('q', 'v', 'up', 'gate', 'down')})}


def write_halves(folder, most=2500):
  """JSONL files of functions: those of one half of all modules, and at most `most` of the other half."""
  config, halves = base(), ([], [])
  config.data.source = 'python_functions'
  for record, name in registry.open_source(config).documents():
    halves[zlib.crc32(name.partition(':')[0].encode()) % 2].append(record)
  for half, name in zip((halves[0], halves[1][:most]), ('before', 'task')):
    (folder / f'{name}.jsonl').write_text(''.join(f'{json.dumps(record, allow_nan=False)}\n' for record in half))


def config_of(folder, seed, steps, rate, **changes):
  """A decoder of 0.9 million parameters; `changes` of keys, 'section.key'."""
  c = base()
  c.seed = seed
  c.data.update(validation_fraction=0.1, seq_len=128, directory=str(folder / 'prepared'))
  c.vocabulary.update(size=1024, algorithm='bpe', normalization='identity', sentinels=0, train_characters=1_000_000)
  c.model.update(d_model=128, num_layers=4, num_heads=4, dtype='float32', tie_embeddings=True, scan_layers=False)
  c.batch_size = 16
  c.optimizer.update(learning_rate=rate, weight_decay=0.0)
  c.schedule.update(name='linear', warmup_steps=min(20, steps // 4), final_scale=0.0)
  c.stop.tokens = steps * 16 * 128
  c.log.trackers = ()
  c.evaluate.every = c.checkpoint.every = 0
  c.sample.prompts = ()
  for key, value in changes.items():
    section, _, last = key.rpartition('.')
    (c[section] if section else c)[last] = value
  config_lib.validate(c)
  return c


def pretrain(folder, seed, steps):
  """Workdir of the pre-trained run."""
  workdir = folder / f'before-{seed}'
  c = config_of(folder, seed, steps, 3e-3, **{'data.source': f'jsonl:{folder}/before.jsonl'})
  loop.train(c, workdir, 'before')
  return workdir


def finetune(folder, workdir, seed, steps, way):
  """Validation metrics of the task at the end of one of WAYS."""
  pretrained, changes = WAYS[way]
  c = config_of(folder, seed, steps, 3e-3 if 'LoRA' in way or not pretrained else 1e-3, **{
      'data.source': f'jsonl:{folder}/task.jsonl', 'data.inputs': 'summarize: {source}', 'data.targets': '{docstring}',
      'data.packing': 'best_fit', 'objective.name': 'seq2seq', 'vocabulary.path': str(workdir / 'vocabulary'),
      'init_from': str(workdir) if pretrained else '', **changes})
  return loop.train(c, folder / f'{way.replace(" ", "-")}-{seed}', way)['validation']


def main():
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--seeds', type=int, default=3)
  parser.add_argument('--pretrain', type=int, default=600)
  parser.add_argument('--steps', type=int, default=150)
  parser.add_argument('--folder', default='')
  args = parser.parse_args()
  folder = pathlib.Path(args.folder or tempfile.mkdtemp(prefix='t5like-finetune-'))
  folder.mkdir(parents=True, exist_ok=True)
  write_halves(folder)
  found = {way: [] for way in WAYS}
  for seed in range(args.seeds):
    workdir = pretrain(folder, seed, args.pretrain)
    for way in WAYS:
      found[way].append(finetune(folder, workdir, seed, args.steps, way)['nll'])
  print(f'\nnll of the targets, nats per token, after {args.steps} steps; pre-training: {args.pretrain}')
  for way, values in found.items():
    print(f'| {way} | {" | ".join(f"{v:.3f}" for v in values)} | {statistics.fmean(values):.3f} |')


if __name__ == '__main__':
  main()
