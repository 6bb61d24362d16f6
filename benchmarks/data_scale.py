"""Start-up time, memory and speed of reading a prepared dataset, by its size: all should stay flat.

    python benchmarks/data_scale.py [--gigabytes=0.25,2.5,10]

Synthesises datasets of so many GB of tokens (uint16: 5 billion tokens are 10 GB) below the temporary
folder, from copies of one shard, then starts a new process for each way of reading one: rows cut
from all text (concat_split), and rows of whole documents, planned (best_fit), the first time and
again. Seconds are from opening to the first batch, imports not counted; memory is the most that the
process held, what its imports take being said too. The datasets are deleted at the end.
"""
import json
import os
import pathlib
import resource
import shutil
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

SHARD_TOKENS = 125_000_000  # 250 MB
DOCUMENT = 1000  # tokens, on average


def one_shard(folder):
  """A prepared dataset of one shard of random tokens."""
  import numpy as np

  from t5like.config import base
  from t5like.prepared import prepare
  from t5like.sources import registry
  rng, documents = np.random.default_rng(0), SHARD_TOKENS // DOCUMENT
  sizes = rng.geometric(1 / DOCUMENT, documents).tolist()
  letters = rng.integers(97, 123, max(sizes) + 10 ** 6, np.uint8).tobytes().decode()

  def read(item):
    for i, size in enumerate(sizes):
      at = i * 997 % 10 ** 6
      yield dict(text=letters[at:at + size]), f'{item}:{i}'
  source = registry.Source('random', ['random'], read, sum(sizes), dict(bytes=sum(sizes)))
  opened, registry.open_source = registry.open_source, lambda config, split=None: source
  c = base()
  c.data.update(source='text:random', directory=str(folder), shards=1, validation_fraction=0.0005)
  c.vocabulary.update(name='bytes', sentinels=100)
  try:
    return prepare.prepare(c, lambda line: None)
  finally:
    registry.open_source = opened


def copies(made, target, count):
  """The same dataset with `count` shards for training."""
  target.mkdir()
  manifest = json.loads((made / 'manifest.json').read_bytes())
  split = manifest['splits']['train']
  (shard,), split['shards'] = split['shards'], []
  for key in ('documents', 'tokens', 'bytes'):
    split[key] *= count
  for i in range(count):
    copy = json.loads(json.dumps(shard, allow_nan=False).replace('00000-of-00001', f'{i:05d}-of-{count:05d}'))
    for old, new in zip((shard, shard['lengths'], shard['names']), (copy, copy['lengths'], copy['names'])):
      shutil.copyfile(made / old['file'], target / new['file'])
    split['shards'].append(copy)
  for file in [f for f in made.iterdir() if f.is_file() and '-train' not in f.name]:
    shutil.copyfile(file, target / file.name)
  manifest['fingerprint'] += str(count)
  (target / 'manifest.json').write_text(json.dumps(manifest, allow_nan=False))


def read(folder, packing):
  """Opens a dataset as training does; prints what it took, as JSON."""
  from t5like.batches import pipeline
  from t5like.config import base
  from t5like.prepared import store as store_lib
  c = base()
  c.data.update(seq_len=1024, packing=packing)
  c.model.name, c.batch_size, c.vocabulary.name = 'decoder', 64, 'bytes'
  before, start = _most(), time.perf_counter()
  rows = pipeline.TrainRows(store_lib.open_store(folder), c)
  with pipeline.train_batches(rows, c) as batches:
    next(batches)
    seconds = time.perf_counter() - start
    cpu, count, wall = time.process_time(), 0, time.perf_counter()
    while time.perf_counter() - wall < 3:
      next(batches)
      count += 1
    speed = count * 64 * 1024 / (time.process_time() - cpu)
  measured = dict(seconds=seconds, imports=before, most=_most(), speed=speed, rows=len(rows.parts[0]))
  print(json.dumps(measured, allow_nan=False))


def _most():
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main(argv):
  if argv[1:2] == ['--read']:
    return read(*argv[2:])
  sizes = [float(g) for g in (argv[1].partition('=')[2] if argv[1:] else '0.25,2.5,10').split(',')]
  with tempfile.TemporaryDirectory() as folder:
    folder = pathlib.Path(folder)
    made = one_shard(folder)
    print('GB of tokens  rows                first batch  memory (imports alone)  M tokens per CPU-second')
    for size in sizes:
      target = folder / 'copies'
      copies(made, target, round(size * 1e9 / 2 / SHARD_TOKENS))
      for packing, name in (('concat_split', 'concat_split'), ('best_fit', 'best_fit, 1st time'), ('best_fit',) * 2):
        out = subprocess.run([sys.executable, __file__, '--read', str(target), packing], stdout=subprocess.PIPE,
                             text=True, check=True).stdout
        r = json.loads(out.splitlines()[-1])
        print(f'{size:12}  {name:18} {r["seconds"]:10.2f} s  {r["most"]:6.0f} MB ({r["imports"]:.0f} MB)'
              f'       {r["speed"] / 1e6:8.1f}', flush=True)
      shutil.rmtree(target)


if __name__ == '__main__':
  main(sys.argv)
