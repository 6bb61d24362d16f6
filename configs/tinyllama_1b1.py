"""TinyLlama 1.1B: Llama's architecture with 4 key-value heads, 3T tokens.

    python main.py --config=configs/tinyllama_1b1.py --workdir=gs://BUCKET/tinyllama

Hardware: its README plans 90 days on 16 A100 GPUs; a TPU v5e-256 or larger. Expected: after 3T tokens a mean of
52.99 on seven tasks, HellaSwag 59.20 (EVAL.md of github.com/jzhang38/TinyLlama). Not verified here; our data
is C4, not SlimPajama and StarCoder. Its README says batches of 2M tokens, its code 512 sequences per 8 devices:
this is the README's.
"""
from t5like.config import base, smoke


def get_config(arg=''):
  c = base()
  c.data.update(source='tfds:c4/en', validation='validation', seq_len=2048, document_mask=False)
  c.vocabulary.update(size=32_000, algorithm='bpe', normalization='identity', sentinels=0)
  c.model.update(
      vocab_size=32_000, d_model=2048, num_layers=22, num_heads=32, num_kv_heads=4, head_dim=64, d_ff=5632,
      activation='swiglu', norm='rmsnorm', norm_eps=1e-5, position='rope', remat='minimal')
  c.batch_size = 1024
  c.optimizer.update(learning_rate=4e-4, b1=0.9, b2=0.95, weight_decay=0.1, clip_norm=1.0)
  c.schedule.update(warmup_steps=2000, final_scale=0.1)
  c.stop.tokens = 1_430_512 * 1024 * 2048
  c.params_expected = 1_100_048_384
  c.reference = dict(metric='mean accuracy of 7 tasks', value=52.99, source='TinyLlama, EVAL.md')
  c.evaluate.update(every=5000, batches=50)
  c.checkpoint.update(every=1000, keep_every=50_000)
  return smoke(c) if arg == 'smoke' else c
