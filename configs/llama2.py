"""Llama 2: decoders of 4,096 tokens, 2T tokens. Sizes: 7b, 70b.

    python main.py --config=configs/llama2.py:7b --workdir=gs://BUCKET/llama2_7b

Hardware: a TPU v5e-256 for 7b; for 70b a v5p-512 (70b), months. Expected: its scores were not read. Shapes are those of
the released config.json; learning rates, tokens and batches of 4M tokens those of Touvron et al. 2023 (arXiv
2307.09288), table 1; AdamW's numbers, 2,000 steps of warm-up, the cosine to 10 % and clipping at 1 those of its section
2.2. Initial weights were not published: 0.02, cut at two deviations, is our choice. Not verified here; our data is C4.
"""
from t5like.config import base, smoke

SIZES = {  # width, layers, heads, key heads, feed-forward, learning rate, micro-batches, parameters
    '7b': (4096, 32, 32, 32, 11_008, 3e-4, 4, 6_738_415_616),
    '70b': (8192, 80, 64, 8, 28_672, 1.5e-4, 2, 68_976_648_192)}


def get_config(arg=''):
  c = base()
  size = arg if arg in ('7b', '70b') else '7b'
  width, layers, heads, key_heads, d_ff, rate, pieces, params = SIZES[size]
  c.data.update(source='tfds:c4/en', validation='validation', seq_len=4096, document_mask=False)
  c.vocabulary.update(size=32_000, algorithm='bpe', normalization='identity', sentinels=0)
  c.model.update(
      vocab_size=32_000, d_model=width, num_layers=layers, num_heads=heads, num_kv_heads=key_heads, head_dim=128,
      d_ff=d_ff, activation='swiglu', norm='rmsnorm', norm_eps=1e-5, position='rope', init='bert', remat='full')
  c.batch_size = 1024
  c.microbatches = pieces
  c.optimizer.update(learning_rate=rate, b1=0.9, b2=0.95, eps=1e-5, weight_decay=0.1, clip_norm=1.0)
  c.schedule.update(warmup_steps=2000, final_scale=0.1)
  c.stop.tokens = '2T'
  c.params_expected = params
  c.evaluate.update(every=5000, batches=50)
  c.checkpoint.update(every=1000, keep_every=50_000)
  return smoke(c) if arg == 'smoke' else c
