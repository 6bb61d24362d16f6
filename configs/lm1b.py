"""The language model of Flax's examples: lm1b, sentences packed into rows of 128.

    python main.py prepare --config=configs/lm1b.py
    python main.py --config=configs/lm1b.py --workdir=gs://BUCKET/lm1b

Hardware and time: 13 h 18 min on a TPU v3-8. Expected: loss 3.127 (README of flax/examples/lm1b), its
SentencePiece vocabulary being of the same size as ours. Not verified here. Differences: its attention has no biases
and its head has one, and its initial scales are Xavier's (its models.py).
"""
from t5like.config import base, smoke


def get_config(arg=''):
  c = base()
  c.data.update(source='tfds:lm1b', validation='test', seq_len=128, packing='best_fit')
  c.vocabulary.update(size=30_000, sentinels=0)
  c.model.update(
      vocab_size=30_000, d_model=512, num_layers=6, num_heads=8, d_ff=2048, activation='relu', norm='layernorm',
      use_bias=True, position='sinusoidal', dropout=0.1)
  c.batch_size = 256
  c.optimizer.update(learning_rate=1.6e-3, b1=0.9, b2=0.98, eps=1e-9, weight_decay=0.1, clip_norm=0.0)
  c.schedule.update(name='rsqrt', warmup_steps=1000, timescale=1000)
  c.stop.tokens = 500_000 * 256 * 128
  c.params_expected = 49_635_328
  c.reference = dict(metric='validation nll', value=3.127, source='flax/examples/lm1b, README')
  c.evaluate.update(every=1000, batches=20)
  c.checkpoint.every = 10_000
  return smoke(c) if arg == 'smoke' else c
