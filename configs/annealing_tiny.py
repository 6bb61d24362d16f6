"""decoder_tiny with an end of its own: rows of 256 tokens after half of the run, a line to 0 in the last fifth.

    python main.py --config=configs/annealing_tiny.py
    python main.py --config=configs/annealing_tiny.py:trunk
    python main.py --config=configs/annealing_tiny.py:decay --workdir=runs/annealing_tiny-decay

Hardware: a laptop, 2 CPU cores. Time: under 6 minutes each, `:decay` a fifth of that. `:trunk` is the first four fifths
at a constant learning rate, with a moving average of the parameters; `:decay` branches from its end and does the last
one. docs/annealing.md says what to look at.
"""
from t5like.config import base, smoke

DECAY = {'tokens': '800K', 'schedule.name': 'linear', 'schedule.final_scale': 0.0}


def get_config(arg=''):
  c = base()
  c.data.update(source='python_docs', validation_fraction=0.01, seq_len=128)
  c.vocabulary.update(size=2048, algorithm='bpe', normalization='identity', train_characters=2_000_000)
  c.model.update(d_model=192, num_layers=4, num_heads=3, dtype='float32', tie_embeddings=True, scan_layers=False)
  c.batch_size = 16
  c.optimizer.update(learning_rate=3e-3, weight_decay=0.1, ema=0.99)
  c.schedule.update(name='constant', warmup_steps=50)
  c.stop.tokens = '1M'
  if arg == 'trunk':
    c.stop.tokens = '800K'
  elif arg == 'decay':
    c.branch_from = 'runs/annealing_tiny-trunk'
    c.stages = (DECAY,)
  else:
    c.stages = ({'tokens': '500K', 'data.seq_len': 256, 'batch_size': 8}, DECAY)
  c.evaluate.every = 100
  c.checkpoint.every = 200
  c.sample.prompts = ('class ', '"""Return the ', 'def ')
  return smoke(c) if arg == 'smoke' else c
