"""A 1.14B decoder of plain shape, by which predicted step times of TPU pods are compared (benchmarks/RESULTS.md).

    python main.py preflight --config=configs/yardstick_1b.py --topology=v5e-256 --search

Hardware: none, it is for preflight; batch_size is 4 sequences per chip of a v5e-256. Trains like
configs/decoder_1b.py where it is run.
"""
from t5like.config import base, smoke


def get_config(arg=''):
  c = base()
  c.data.update(source='tfds:c4/en', validation='validation', seq_len=2048, document_mask=True)
  c.vocabulary.update(size=32_000, sentinels=100)
  c.model.update(
      vocab_size=32_768, d_model=2048, num_layers=16, num_heads=16, num_kv_heads=8, head_dim=128, d_ff=8192,
      activation='swiglu', norm='rmsnorm', position='rope', remat='minimal')
  c.batch_size = 4 * 256
  c.optimizer.update(learning_rate=3e-4, b1=0.9, b2=0.95, weight_decay=0.1, clip_norm=1.0)
  c.schedule.update(warmup_steps=1000, final_scale=0.1)
  c.stop.tokens = 20_000 * 1024 * 2048
  c.evaluate.update(every=1000, batches=50)
  c.checkpoint.update(every=500, keep_every=5000)
  return smoke(c) if arg == 'smoke' else c
