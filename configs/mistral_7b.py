"""Mistral 7B (0.1): every layer sees a window of 4,096 tokens, rows have 8,192.

    python main.py --config=configs/mistral_7b.py --workdir=gs://BUCKET/mistral_7b

Hardware: a TPU v5e-256 or larger, months. Expected: its scores were not read. Shapes are those of the released
config.json and of the paper's table 1 (Jiang et al. 2023, arXiv 2310.06825), which has the window and the rows too. Not
published: tokens, learning rate, batch, warm-up, schedule, weight decay, initial weights: these are those of
configs/llama2.py:7b. Not verified here; our data is C4.
"""
from t5like.config import base, smoke


def get_config(arg=''):
  c = base()
  c.data.update(source='tfds:c4/en', validation='validation', seq_len=8192, document_mask=False)
  c.vocabulary.update(size=32_000, algorithm='bpe', normalization='identity', sentinels=0)
  c.model.update(
      vocab_size=32_000, d_model=4096, num_layers=32, num_heads=32, num_kv_heads=8, head_dim=128, d_ff=14_336,
      activation='swiglu', norm='rmsnorm', norm_eps=1e-5, layers=('local',), window=4096, position='rope',
      rope_theta=10_000.0, init='bert', remat='full')
  c.batch_size = 512
  c.microbatches = 2
  c.optimizer.update(learning_rate=3e-4, b1=0.9, b2=0.95, eps=1e-5, weight_decay=0.1, clip_norm=1.0)
  c.schedule.update(warmup_steps=2000, final_scale=0.1)
  c.stop.tokens = '2T'
  c.params_expected = 7_241_732_096
  c.evaluate.update(every=5000, batches=50)
  c.checkpoint.update(every=1000, keep_every=50_000)
  return smoke(c) if arg == 'smoke' else c
