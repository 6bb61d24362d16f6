"""Tokens per CPU-second of the input pipeline, from a prepared dataset to numpy batches.

    python benchmarks/data.py [--config=configs/gpt2.py ...]

Reads rows in training order (shuffled windows) of a prepared dataset: token windows alone, then with
the objective's work, by hand and through the reading thread. CPU-seconds are of the whole process,
so they hold on a busy machine. Without --config: 20M random tokens in blocks, prepared for the
occasion, batch 16, context 1,024 for causal rows, 512 for masked LM and span corruption (568 tokens).
"""
import os
import sys
import tempfile
import time

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import numpy as np

from t5like import build, config as config_lib
from t5like.data import pipeline

SECONDS = 3.0


def default_config(objective, document_mask=False):
  """Bytes of random text in documents of about 2,000 characters, written once."""
  from configs.base import base
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
  c.vocabulary.name = 'bytes'
  c.objective.name = objective
  c.model.name = dict(causal='decoder', masked_lm='encoder', span_corruption='encoder_decoder')[objective]
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
  store = build.open_data(config)
  rows, B = pipeline.TrainRows(store, config), config.batch_size
  part = rows.parts[0]
  tokens = B * (config.data.seq_len if config.objective.name == 'causal' else part.lengths.raw)
  windows = lambda k: part.windows._getitems([rows.component(i)[1] for i in range(k * B, (k + 1) * B)])
  with pipeline.train_batches(rows, config) as batches:
    ways = [('windows of tokens alone', windows),
            ('rows of the objective', lambda k: rows.batch(range(k * B, (k + 1) * B))),
            ('batches from the reading thread', lambda k: next(batches))]
    print(f'{B} x {tokens // B} tokens of text, objective {config.objective.name}, '
          f'document_mask={config.data.document_mask}, {store.folder}')
    for name, work in ways:
      print(f'  {name:34} {tokens_per_cpu_second(work, tokens) / 1e6:6.1f} M tokens per CPU-second')


def main(argv):
  from absl import flags
  flags.DEFINE_string('config', None, 'Config file; its dataset is prepared if it is not.')
  flags.FLAGS([a for a in argv if not a.startswith('--config.')])
  if flags.FLAGS.config:
    return measure(config_lib.load(flags.FLAGS.config, [a[9:] for a in argv if a.startswith('--config.')]))
  for kind in (('causal',), ('causal', True), ('masked_lm',), ('span_corruption',)):
    measure(default_config(*kind))


if __name__ == '__main__':
  main(sys.argv)
