"""Tokens per CPU-second of the input pipeline: from text to tokens, and from tokens to numpy batches.

    python benchmarks/data.py [--config=configs/gpt2.py ...]

First text on the fly: what `prepare` does, by one process and by two. Then rows in training order
(shuffled windows) of a prepared dataset: token windows alone, then with the objective's work, by hand
and through the reading thread. CPU-seconds are of all processes, so they hold on a busy machine.
Without --config: 20M random tokens in blocks, prepared for the occasion, batch 16, context 1,024 for
causal rows, 512 for the others (568 tokens of text for span corruption), and Python's own functions
for seq2seq. benchmarks/data_scale.py says how it goes with size.
"""
import json
import os
import sys
import tempfile
import time

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import numpy as np

from t5like import config as config_lib
from t5like.batches import pipeline
from t5like.objectives import table
from t5like.objectives.spec import Mixture
from t5like.prepared import opening

SECONDS = 3.0


def default_config(objective, document_mask=False):
  """Bytes of random text in documents of about 2,000 characters, written once."""
  from t5like.config import base
  folder = os.path.join(tempfile.gettempdir(), 't5like-benchmark')
  os.makedirs(folder, exist_ok=True)
  path = os.path.join(folder, 'random.jsonl')
  if not os.path.exists(path):
    rng = np.random.default_rng(0)
    letters = rng.integers(97, 123, 20_000_000, np.uint8).tobytes().decode()
    with open(path + '.tmp', 'w', encoding='utf-8') as f:
      for i in range(0, len(letters), 2000):
        f.write(f'{{"text": "{letters[i:i + 2000]}"}}\n')
    os.rename(path + '.tmp', path)
  c = base()
  c.data.update(source=f'jsonl:{path}', seq_len=1024 if objective == 'causal' else 512,
                document_mask=document_mask, directory=os.path.join(folder, 'prepared'))
  entry = table.OBJECTIVES[objective]
  if entry.given:
    c.data.update(source='python_functions', inputs='summarize: {source}', targets='{docstring}', packing='best_fit',
                  target_len=128, document_mask=True)
  c.vocabulary.update(name='bytes', sentinels=128)
  c.objective.name = objective
  of_pairs = isinstance(entry, Mixture) or entry.stack is None
  c.model.name = 'encoder_decoder' if of_pairs else entry.stack.architecture
  c.sample.prompts = ()
  c.batch_size = 16
  c.stop.tokens = 10 ** 9
  config_lib.validate(c)
  return c


def tokens_per_cpu_second(work, tokens):
  """Rate of calling work(k), k = 0, 1, .., each yielding `tokens`; CPU time of all threads."""
  work(0)
  k, start, wall = 1, time.process_time(), time.perf_counter()
  while time.perf_counter() - wall < SECONDS:
    work(k)
    k += 1
  return (k - 1) * tokens / (time.process_time() - start)


def measure(config):
  store = opening.open_data(config)
  rows, B = pipeline.TrainRows(store, config), config.batch_size
  part = rows.parts[0]
  some = [rows.component(i) for i in range(1000)]
  tokens = B * sum(size for k, n, _ in some for _, size in rows.parts[k].spans(n)) // len(some)
  texts = lambda k: [part.tokens.span(*span) for i in range(k * B, (k + 1) * B)
                     for span in part.spans(rows.component(i)[1])]
  windows = lambda k: part.windows._getitems([rows.component(i)[1] for i in range(k * B, (k + 1) * B)])
  with pipeline.train_batches(rows, config) as batches:
    ways = [('texts alone' if part.packing != 'concat_split' else 'windows of tokens alone',
             texts if part.packing != 'concat_split' else windows),
            ('rows of the objective', lambda k: rows.batch(range(k * B, (k + 1) * B))),
            ('batches from the reading thread', lambda k: next(batches))]
    print(f'{B} x {tokens // B} tokens of text, objective {config.objective.name}, '
          f'document_mask={config.data.document_mask}, {store.folder}')
    for name, work in ways:
      print(f'  {name:34} {tokens_per_cpu_second(work, tokens) / 1e6:6.1f} M tokens per CPU-second')


def text_on_the_fly(copies=16):
  """Python's own source through SentencePiece, some copies of it so that processes have time to start."""
  from t5like.config import base
  from t5like.prepared import parts, prepare
  from t5like.sources import registry
  with tempfile.TemporaryDirectory() as folder:
    c = base()
    documents = [record['text'] for record, _ in registry.open_source(c).documents()]
    for i in range(copies):
      with open(f'{folder}/{i}.jsonl', 'w', encoding='utf-8') as f:
        f.writelines(json.dumps(dict(text=text), allow_nan=False) + '\n' for text in documents)
    size = sum(len(text.encode()) for text in documents) * copies
    print(f'{size / 1e6:.0f} MB of text to tokens, SentencePiece unigram of {c.vocabulary.size} pieces, {copies} parts')
    for workers in (1, 2):
      c.data.update(source=f'jsonl:{folder}/*.jsonl', directory=f'{folder}/{workers}', shards=copies)
      spent = []

      def run(function, jobs):
        start, cpu = time.perf_counter(), sum(os.times()[:4])
        yield from parts.run_here(function, jobs, workers)
        spent.append((time.perf_counter() - start, sum(os.times()[:4]) - cpu))
      target = prepare.prepare(c, lambda line: None, run)
      manifest = json.loads((target / 'manifest.json').read_bytes())
      tokens = sum(split['tokens'] for split in manifest['splits'].values())
      (wall, cpu), = spent
      print(f'  {workers} process{"es" * (workers > 1):32} {tokens / cpu / 1e6:6.2f} M tokens per CPU-second, '
            f'{tokens / wall / 1e6:.2f} M per second')


def main(argv):
  from absl import flags
  flags.DEFINE_string('config', None, 'Config file; its dataset is prepared if it is not.')
  flags.FLAGS([a for a in argv if not a.startswith('--config.')])
  if flags.FLAGS.config:
    return measure(config_lib.load(flags.FLAGS.config, [a[9:] for a in argv if a.startswith('--config.')]))
  text_on_the_fly()
  for kind in (('causal',), ('causal', True), ('prefix_lm',), ('masked_lm',), ('span_corruption',), ('ul2',),
               ('seq2seq',)):
    measure(default_config(*kind))


if __name__ == '__main__':
  main(sys.argv)
