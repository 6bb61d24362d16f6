"""Qwen 3: queries and keys normalised, the first stage of pre-training on 4,096 tokens. Sizes: 0b6, 8b.

    python main.py --config=configs/qwen3.py:8b --workdir=gs://BUCKET/qwen3_8b

Hardware: a TPU v5e-64 for 0b6, years; for 8b a v5e-256 (8b). Expected: its scores were not read. Shapes are those of
the released config.json. Of the training, the technical report (arXiv 2505.09388, section 3.2) gives tokens and lengths
alone: 30T of 4,096 here, 5T more of better data, then hundreds of billions of 32,768 tokens, for which the base of
rotary wavelengths rose from 10,000 to the released 1,000,000 (docs/extend.md). Not published: learning rate, batch,
warm-up, schedule, weight decay, initial weights: these are our choices. Not verified here; our data is C4.
"""
from t5like.config import base, smoke

SIZES = {  # width, layers, heads, feed-forward, tied, learning rate, remat, micro-batches, parameters
    '0b6': (1024, 28, 16, 3072, True, 1e-3, 'minimal', 8, 596_049_920),
    '8b': (4096, 36, 32, 12_288, False, 3e-4, 'full', 4, 8_190_735_360)}


def get_config(arg=''):
  c = base()
  size = arg if arg in ('0b6', '8b') else '0b6'
  width, layers, heads, d_ff, tied, rate, remat, pieces, params = SIZES[size]
  c.data.update(source='tfds:c4/en', validation='validation', seq_len=4096, document_mask=False)
  c.vocabulary.update(size=151_643, algorithm='bpe', normalization='identity', sentinels=0)
  c.model.update(
      vocab_size=151_936, d_model=width, num_layers=layers, num_heads=heads, num_kv_heads=8, head_dim=128, d_ff=d_ff,
      activation='swiglu', norm='rmsnorm', norm_eps=1e-6, qk_norm='head', position='rope', rope_theta=10_000.0,
      tie_embeddings=tied, init='bert', remat=remat)
  c.batch_size = 1024
  c.microbatches = pieces
  c.optimizer.update(learning_rate=rate, b1=0.9, b2=0.95, weight_decay=0.1, clip_norm=1.0)
  c.schedule.update(warmup_steps=2000, final_scale=0.1)
  c.stop.tokens = '30T'
  c.params_expected = params
  c.evaluate.update(every=5000, batches=50)
  c.checkpoint.update(every=1000, keep_every=50_000)
  return smoke(c) if arg == 'smoke' else c
