"""Llama 3: the first pre-training, on 8,192 tokens. Sizes: 8b, 70b. extend_llama3.py makes Llama 3.1 of its weights.

    python main.py --config=configs/llama3.py:8b --workdir=gs://BUCKET/llama3_8b

Hardware: a TPU v5e-256 for 8b; for 70b a v5p-512 (70b), many months. Expected: its scores were not read. Shapes are
those of the released config.json and of the paper's table 3 (Llama 3 Herd of Models, arXiv 2407.21783), which has the
learning rates too. Section 3.4.1 gives the rest for 405B alone, of which 8B and 70B are said to be trained similarly:
8,000 steps of warm-up, a cosine to 1 %, batches of 16M tokens (4M and 8M at first, which is left out here), documents
that do not see each other. Tokens: over 15T, its model card. Not published: AdamW's numbers, which are Llama 2's, and
initial weights, 0.02 cut at two deviations. Not verified here; our data is C4.
"""
from t5like.config import base, smoke

SIZES = {  # width, layers, heads, feed-forward, learning rate, micro-batches, parameters
    '8b': (4096, 32, 32, 14_336, 3e-4, 8, 8_030_261_248),
    '70b': (8192, 80, 64, 28_672, 1.5e-4, 8, 70_553_706_496)}


def get_config(arg=''):
  c = base()
  size = arg if arg in ('8b', '70b') else '8b'
  width, layers, heads, d_ff, rate, pieces, params = SIZES[size]
  c.data.update(source='tfds:c4/en', validation='validation', seq_len=8192, document_mask=True)
  c.vocabulary.update(size=128_000, algorithm='bpe', normalization='identity', sentinels=0)
  c.model.update(
      vocab_size=128_256, d_model=width, num_layers=layers, num_heads=heads, num_kv_heads=8, head_dim=128, d_ff=d_ff,
      activation='swiglu', norm='rmsnorm', norm_eps=1e-5, position='rope', rope_theta=500_000.0, init='bert',
      remat='full')
  c.batch_size = 2048
  c.microbatches = pieces
  c.optimizer.update(learning_rate=rate, b1=0.9, b2=0.95, eps=1e-5, weight_decay=0.1, clip_norm=1.0)
  c.schedule.update(warmup_steps=8000, final_scale=0.01)
  c.stop.tokens = '15T'
  c.params_expected = params
  c.evaluate.update(every=5000, batches=50)
  c.checkpoint.update(every=1000, keep_every=50_000)
  return smoke(c) if arg == 'smoke' else c
