"""All of configs/extend_llama3.py in one run: Llama 3 8B, rows of 16,384 to 131,072 tokens, four stages of 200B tokens.

    python main.py --config=configs/extend_staged.py --workdir=gs://BUCKET/llama3_staged \\
        --config.init_from=gs://BUCKET/llama3_8b --config.vocabulary.path=gs://BUCKET/llama3_8b/vocabulary

Hardware: a TPU v5e-256. Expected: no result was published for such a run. The paper (Llama 3 Herd of Models, arXiv
2407.21783, section 3.4.2) says of 405B: six stages from 8K to 128K, 800B tokens in all; what it says and leaves open of
the rest is at the top of configs/extend_llama3.py. The optimizer stays from stage to stage, batches have 16M tokens in
all of them, and the last stage falls to 0. Not verified here.
"""
from t5like.config import base, smoke

BATCH = 2 ** 24  # tokens


def get_config(arg=''):
  c = base()
  c.init_from = 'runs/llama3-8b'
  c.data.update(source='tfds:pg19', field='book_text', validation='validation', seq_len=16_384, document_mask=True)
  c.vocabulary.update(path='runs/llama3-8b/vocabulary', size=128_000, algorithm='bpe', normalization='identity',
                      sentinels=0)
  c.model.update(
      vocab_size=128_256, d_model=4096, num_layers=32, num_heads=32, num_kv_heads=8, head_dim=128, d_ff=14_336,
      activation='swiglu', norm='rmsnorm', norm_eps=1e-5, position='rope', rope_theta=500_000.0, init='bert',
      rope_scaling=dict(name='llama3', factor=8.0, original_positions=8192, low_freq_factor=1.0, high_freq_factor=4.0),
      remat='full')
  c.batch_size = BATCH // 16_384
  c.microbatches = 8
  c.mesh.context = 16
  c.optimizer.update(learning_rate=3e-5, b1=0.9, b2=0.95, eps=1e-5, weight_decay=0.1, clip_norm=1.0)
  c.schedule.update(name='constant', warmup_steps=200)
  c.stop.tokens = '800B'
  c.stages = (
      {'tokens': '200B', 'data.seq_len': 32_768, 'batch_size': BATCH // 32_768},
      {'tokens': '400B', 'data.seq_len': 65_536, 'batch_size': BATCH // 65_536},
      {'tokens': '600B', 'data.seq_len': 131_072, 'batch_size': BATCH // 131_072, 'schedule.name': 'linear',
       'schedule.final_scale': 0.0})
  c.params_expected = 8_030_261_248
  c.evaluate.update(every=1000, batches=10)
  c.checkpoint.update(every=500, keep_every=5000)
  return smoke(c) if arg == 'smoke' else c
