"""Llama 3 8B and Llama 2 70B by shape, by which predicted step times of TPU pods are compared. Sizes: 8b, 70b.

    python main.py preflight --config=configs/yardstick_llama.py:8b --topology=v5e-256

Hardware: none, they are for preflight (benchmarks/preflight.py, with MaxText beside them); batch_size is one row of
8,192 tokens per chip of a v5e-256, and four of 4,096 per chip of a v5p-512. No result is expected, and none was
published for these settings: shapes and context are those of the released models (Llama 3 Herd of Models, table 3;
Llama 2, table 1), data and optimizer those of configs/yardstick_1b.py. Not verified here.
"""
from t5like.config import base, smoke

SIZES = {  # context, vocabulary, width, layers, heads, feed-forward, rope_theta, rows, parameters
    '8b': (8192, 128_256, 4096, 32, 32, 14_336, 500_000.0, 256, 8_030_261_248),
    '70b': (4096, 32_000, 8192, 80, 64, 28_672, 10_000.0, 1024, 68_976_648_192)}


def get_config(arg=''):
  c = base()
  size = arg if arg in ('8b', '70b') else '8b'
  context, vocabulary, width, layers, heads, d_ff, theta, rows, params = SIZES[size]
  c.data.update(source='tfds:c4/en', validation='validation', seq_len=context, document_mask=True)
  c.vocabulary.update(size=31_900, sentinels=100)
  c.model.update(
      vocab_size=vocabulary, d_model=width, num_layers=layers, num_heads=heads, num_kv_heads=8, head_dim=128, d_ff=d_ff,
      activation='swiglu', norm='rmsnorm', position='rope', rope_theta=theta, remat='full')
  c.batch_size = rows
  c.params_expected = params
  c.optimizer.update(learning_rate=3e-4, b1=0.9, b2=0.95, weight_decay=0.1, clip_norm=1.0)
  c.schedule.update(warmup_steps=1000, final_scale=0.1)
  c.stop.tokens = 20_000 * rows * context
  c.evaluate.update(every=1000, batches=50)
  c.checkpoint.update(every=500, keep_every=5000)
  return smoke(c) if arg == 'smoke' else c
