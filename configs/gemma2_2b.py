"""Gemma 2 2B: local and global layers in turn, norms before and after each part, soft caps, 2T tokens.

    python main.py --config=configs/gemma2_2b.py --workdir=gs://BUCKET/gemma2_2b

Hardware: a TPU v5e-256, weeks; theirs had 512 chips of that kind (technical report, arXiv 2408.00118, section 3.3).
Expected: its scores were not read. Shapes are those of the released config.json and of the report's section 2:
windows of 4,096 tokens in every other layer, rows of 8,192, soft caps of 50 and 30. Tokens: section 3.1. Theirs learned
from the probabilities of a larger model (section 3.2), ours predicts the next token. Not published: learning
rate, batch, warm-up, schedule, weight decay, initial weights: these are our choices. Not verified here; our data is C4.
"""
from t5like.config import base, smoke


def get_config(arg=''):
  c = base()
  c.data.update(source='tfds:c4/en', validation='validation', seq_len=8192, document_mask=False)
  c.vocabulary.update(size=256_000, algorithm='bpe', normalization='identity', sentinels=0)
  c.model.update(
      vocab_size=256_000, d_model=2304, num_layers=26, num_heads=8, num_kv_heads=4, head_dim=256, d_ff=9216,
      activation='geglu', block='sandwich', norm='rmsnorm_unit', norm_eps=1e-6, layers=('local', 'global'), window=4096,
      position='rope', rope_theta=10_000.0, attention_softcap=50.0, logit_softcap=30.0, embed_scale='sqrt_d_model',
      tie_embeddings=True, init='bert', remat='full')
  c.batch_size = 512
  c.microbatches = 2
  c.optimizer.update(learning_rate=5e-4, b1=0.9, b2=0.95, weight_decay=0.1, clip_norm=1.0)
  c.schedule.update(warmup_steps=2000, final_scale=0.1)
  c.stop.tokens = '2T'
  c.params_expected = 2_614_341_888
  c.evaluate.update(every=5000, batches=50)
  c.checkpoint.update(every=1000, keep_every=50_000)
  return smoke(c) if arg == 'smoke' else c
