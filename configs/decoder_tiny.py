"""A small decoder on the documentation inside every Python: the first thing to run.

    python main.py --config=configs/decoder_tiny.py

Hardware: a laptop, 2 CPU cores. Time: under 6 minutes, vocabulary and data included.
"""
from t5like.config import base, smoke


def get_config(arg=''):
  c = base()
  c.data.update(source='python_docs', validation_fraction=0.01, seq_len=128)
  c.vocabulary.update(size=2048, algorithm='bpe', normalization='identity', train_characters=2_000_000)
  # Copies of the layer instead of a loop: a tenth faster on CPUs.
  c.model.update(d_model=192, num_layers=4, num_heads=3, dtype='float32', tie_embeddings=True,
                 scan_layers=False)
  c.batch_size = 16
  c.optimizer.update(learning_rate=3e-3, weight_decay=0.1)
  c.schedule.warmup_steps = 50
  c.stop.tokens = '1M'
  c.evaluate.every = 100
  c.checkpoint.every = 200
  c.sample.prompts = ('class ', '"""Return the ', 'def ')
  return smoke(c) if arg == 'smoke' else c
