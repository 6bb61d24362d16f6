"""GPT-3's 1.3B model (XL): 24 layers, 2,048 wide, 300B tokens in batches of 1M.

    python main.py --config=configs/gpt3_1b3.py --workdir=gs://BUCKET/gpt3_1b3

Hardware: a TPU v5e-128 or larger, days. Expected: no loss was published. Shape, batch and learning rate are
those of Brown et al. 2020, table 2.1 (as quoted by others), with 16 heads of 128: the table's 24 do not divide
the width. The warm-up is our choice. Not verified here.
"""
from t5like.config import base, smoke


def get_config(arg=''):
  c = base()
  c.data.update(source='tfds:c4/en', validation='validation', seq_len=2048, document_mask=False)
  c.vocabulary.update(size=50_257, algorithm='bpe', normalization='identity', sentinels=0)
  c.model.update(
      vocab_size=50_257, d_model=2048, num_layers=24, num_heads=16, head_dim=128, max_positions=2048,
      activation='gelu_tanh', norm='layernorm', norm_eps=1e-5, use_bias=True, position='learned',
      tie_embeddings=True, init='gpt2', remat='minimal')
  c.batch_size = 512
  c.optimizer.update(learning_rate=2e-4, b1=0.9, b2=0.95, weight_decay=0.1, clip_norm=1.0)
  c.schedule.update(warmup_steps=358, final_scale=0.1)
  c.stop.tokens = 286_102 * 512 * 2048
  c.params_expected = 1_315_723_264
  c.evaluate.update(every=2000, batches=50)
  c.checkpoint.update(every=1000, keep_every=20_000)
  return smoke(c) if arg == 'smoke' else c
