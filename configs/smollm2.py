"""SmolLM2: small decoders on many tokens, the first phase on 2,048 tokens. Sizes: 135m, 360m, 1b7.

    python main.py --config=configs/smollm2.py:360m --workdir=gs://BUCKET/smollm2_360m

Hardware: a TPU v5e-64 for 135m and 360m, weeks; for 1b7 a v5e-256 (1b7). Expected: its scores were not read. Shapes,
batches of 1.0M, 1.6M and 2.1M tokens, steps, learning rates, warm-up and the linear decay to 0 in the last fifth (1b7:
a tenth) are those of the released config_smollm2_135M.yaml, _360M.yaml and _1B.yaml of github.com/huggingface/smollm;
so are the scale of initial weights and rotary positions of base 10,000, which is 100,000 (1b7: 130,000) in the released
models, since they saw 8,192 tokens at the end (docs/extend.md). Not verified here; our data is C4.
"""
from t5like.config import base, smoke

SIZES = {  # width, layers, heads, key heads, feed-forward, init, learning rate, decay, rows, pieces, steps, parameters
    '135m': (576, 30, 9, 3, 1536, 'fan_in', 3e-3, 0.2, 512, 1, 2_000_000, 134_515_008),
    '360m': (960, 32, 15, 5, 2560, 'fan_in', 3e-3, 0.2, 768, 2, 2_600_000, 361_821_120),
    '1b7': (2048, 24, 32, 32, 8192, 'gpt2', 5e-4, 0.1, 1024, 2, 5_240_000, 1_711_376_384)}


def get_config(arg=''):
  c = base()
  size = arg if arg in ('135m', '360m', '1b7') else '135m'
  width, layers, heads, key_heads, d_ff, init, rate, decay, rows, pieces, steps, params = SIZES[size]
  c.data.update(source='tfds:c4/en', validation='validation', seq_len=2048, document_mask=False)
  c.vocabulary.update(size=49_152, algorithm='bpe', normalization='identity', sentinels=0)
  c.model.update(
      vocab_size=49_152, d_model=width, num_layers=layers, num_heads=heads, num_kv_heads=key_heads, head_dim=64,
      d_ff=d_ff, activation='swiglu', norm='rmsnorm', norm_eps=1e-5, position='rope', rope_theta=10_000.0,
      tie_embeddings=True, init=init, remat='minimal')
  c.batch_size = rows
  c.microbatches = pieces
  c.optimizer.update(learning_rate=rate, b1=0.9, b2=0.95, weight_decay=0.01, clip_norm=1.0)
  c.schedule.update(name='wsd', warmup_steps=2000, decay_fraction=decay, final_scale=0.0)
  c.stop.tokens = steps * rows * 2048
  c.params_expected = params
  c.evaluate.update(every=5000, batches=50)
  c.checkpoint.update(every=1000, keep_every=50_000)
  return smoke(c) if arg == 'smoke' else c
