"""OLMo 3 7B: OLMo 2's block with windows in three of four layers, the first stage of pre-training on 8,192 tokens.

    python main.py --config=configs/olmo3_7b.py --workdir=gs://BUCKET/olmo3_7b

Hardware: a TPU v5e-256 or larger, months. Expected: its scores were not read. Shapes are those of the released
config.json; learning rate, batches of 4M tokens, warm-up, z-loss and weight decay (norms too, embeddings not) those of
the released scripts OLMo-3-1025-7B-pretrain-1.py and -2.py of github.com/allenai/OLMo-core. Theirs had a cosine to 10 %
over 5T tokens, stretched to 7T half-way, and ended after one epoch of 5.93T (technical report, arXiv 2512.13961, table
4): here one cosine over these. Rows of 65,536 tokens with yarn, which follow there, are in docs/extend.md.
Not verified here; our data is C4, and our initial weights of 0.02 are cut at two deviations.
"""
from t5like.config import base, smoke


def get_config(arg=''):
  c = base()
  c.data.update(source='tfds:c4/en', validation='validation', seq_len=8192, document_mask=False)
  c.vocabulary.update(size=100_278, algorithm='bpe', normalization='identity', sentinels=0)
  c.model.update(
      vocab_size=100_278, d_model=4096, num_layers=32, num_heads=32, head_dim=128, d_ff=11_008, activation='swiglu',
      block='output_norm', qk_norm='all', norm='rmsnorm', norm_eps=1e-6, layers=('local', 'local', 'local', 'global'),
      window=4096, position='rope', rope_theta=500_000.0, init='bert', remat='full')
  c.batch_size = 512
  c.microbatches = 2
  c.optimizer.update(learning_rate=3e-4, b1=0.9, b2=0.95, weight_decay=0.1, clip_norm=1.0,
                     decay_mask='^(?!embed/).*(^|/)(w|scale)$')
  c.schedule.update(warmup_steps=2000, final_scale=0.1)
  c.loss.z_loss = 1e-5
  c.stop.tokens = '5.93T'
  c.params_expected = 7_298_011_136
  c.evaluate.update(every=5000, batches=50)
  c.checkpoint.update(every=1000, keep_every=50_000)
  return smoke(c) if arg == 'smoke' else c
