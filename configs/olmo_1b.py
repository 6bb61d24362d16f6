"""OLMo 1B (0724): LayerNorm without parameters, tied embeddings, 3.1T tokens.

    python main.py --config=configs/olmo_1b.py --workdir=gs://BUCKET/olmo_1b

Hardware: a TPU v5e-256 or larger, weeks. Expected: its scores were not read; settings are those of its released
config. Not verified here; our data is C4, not Dolma, and the initial scale of 0.02 is our choice.
"""
from t5like.config import base, smoke


def get_config(arg=''):
  c = base()
  c.data.update(source='tfds:c4/en', validation='validation', seq_len=2048, document_mask=False)
  c.vocabulary.update(size=50_280, algorithm='bpe', normalization='identity', sentinels=0)
  c.model.update(
      vocab_size=50_304, d_model=2048, num_layers=16, num_heads=16, d_ff=8192, activation='swiglu',
      norm='layernorm_plain', norm_eps=1e-5, position='rope', tie_embeddings=True, init='bert', remat='minimal')
  c.batch_size = 2048
  c.microbatches = 2
  c.optimizer.update(learning_rate=4e-4, b1=0.9, b2=0.95, weight_decay=0.1, clip_norm=1.0)
  c.schedule.update(warmup_steps=2000, final_scale=0.1)
  c.stop.tokens = 739_328 * 2048 * 2048
  c.params_expected = 1_176_764_416
  c.evaluate.update(every=5000, batches=50)
  c.checkpoint.update(every=1000, keep_every=50_000)
  return smoke(c) if arg == 'smoke' else c
