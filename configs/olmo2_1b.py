"""OLMo 2: norms after attention and MLP, normalised queries and keys, 4T tokens. Sizes: 1B, and 7b.

    python main.py --config=configs/olmo2_1b.py --workdir=gs://BUCKET/olmo2_1b

Hardware: a TPU v5e-256 or larger, weeks. Expected: its scores were not read; settings are those of its released
config. Those of 7b are of the released OLMo2-7B-stage1.yaml of github.com/allenai/OLMo: a cosine over 5T tokens, whose
step 928,646 (3.9T tokens) the second stage began with; weight decay of norms too, not of embeddings.
Not verified here; our data is C4, and our initial weights of 0.02 are cut at two deviations.
"""
from t5like.config import base, smoke


def get_config(arg=''):
  c = base()
  c.data.update(source='tfds:c4/en', validation='validation', seq_len=4096, document_mask=False)
  c.vocabulary.update(size=100_278, algorithm='bpe', normalization='identity', sentinels=0)
  c.model.update(
      vocab_size=100_352, d_model=2048, num_layers=16, num_heads=16, d_ff=8192, activation='swiglu',
      block='output_norm', qk_norm='all', norm='rmsnorm', norm_eps=1e-6, position='rope', rope_theta=500_000.0,
      init='bert', remat='minimal')
  c.batch_size = 512
  c.optimizer.update(learning_rate=4e-4, b1=0.9, b2=0.95, weight_decay=0.1, clip_norm=1.0)
  c.schedule.update(warmup_steps=4006, final_scale=0.1)  # 8.4B tokens
  c.loss.z_loss = 1e-5
  c.stop.tokens = '4T'
  c.params_expected = 1_484_916_736
  c.evaluate.update(every=5000, batches=50)
  c.checkpoint.update(every=1000, keep_every=50_000)
  if arg == '7b':
    size_7b(c)
  return smoke(c) if arg == 'smoke' else c


def size_7b(c):
  c.model.update(d_model=4096, num_layers=32, num_heads=32, d_ff=11_008, remat='full')
  c.batch_size = 1024
  c.microbatches = 4
  c.optimizer.update(learning_rate=3e-4, decay_mask='^(?!embed/).*(^|/)(w|scale)$')
  c.schedule.warmup_steps = 2000
  c.stop.tokens = '5T'
  c.params_expected = 7_298_617_344
