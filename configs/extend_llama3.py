"""Longer rows in the manner of Llama 3.1: 8,192 tokens become 131,072 in stages, each of the weights of the one before.

    python main.py --config=configs/extend_llama3.py:16k --workdir=gs://BUCKET/llama3_16k \\
        --config.init_from=gs://BUCKET/llama3_8b --config.vocabulary.path=gs://BUCKET/llama3_8b/vocabulary
    python main.py --config=configs/extend_llama3.py:32k --workdir=gs://BUCKET/llama3_32k \\
        --config.init_from=gs://BUCKET/llama3_16k --config.vocabulary.path=gs://BUCKET/llama3_8b/vocabulary

Stages of 8B: 16k, 32k, 64k, 128k; 70b_128k is the last one of 70B. Hardware: a TPU v5e-256, of 70B v5p-512 (70b_128k).
Expected: no result was published for a stage. The paper (Llama 3 Herd of Models, arXiv 2407.21783, section
3.4.2) says of 405B: six stages from 8K to 128K, 800B tokens in all; base 500,000 (section 3.2); documents do not see
each other. The scaling of rotary rates (factor 8 of 8,192 positions, 1 and 4) is that of the released config.json of
3.1. Not published: lengths between, learning rates, batches and tokens of a stage, when scaling began. Ours: four
doublings of 200B tokens, batches of 16M, a tenth of the first peak, in the last stage a line to 0 (theirs: over 40M
tokens, section 3.4.3). Not verified here; our data is PG-19, for documents of C4 are short: docs/extend.md.
"""
from t5like.config import base, smoke

SIZES = {  # width, layers, heads, feed-forward, learning rate, parameters
    '8b': (4096, 32, 32, 14_336, 3e-5, 8_030_261_248),
    '70b': (8192, 80, 64, 28_672, 1.5e-5, 70_553_706_496)}
STAGES = {  # size, tokens of a row, pieces of a row, the run before
    '16k': ('8b', 16_384, 2, 'runs/llama3-8b'), '32k': ('8b', 32_768, 4, 'runs/extend_llama3-16k'),
    '64k': ('8b', 65_536, 8, 'runs/extend_llama3-32k'), '128k': ('8b', 131_072, 16, 'runs/extend_llama3-64k'),
    '70b_128k': ('70b', 131_072, 16, 'runs/extend_llama3-70b_64k')}
BATCH = 2 ** 24  # tokens


def get_config(arg=''):
  c = base()
  stage = arg if arg in ('16k', '32k', '64k', '128k', '70b_128k') else '16k'
  size, length, pieces, before = STAGES[stage]
  width, layers, heads, d_ff, rate, params = SIZES[size]
  c.init_from = before
  c.data.update(source='tfds:pg19', field='book_text', validation='validation', seq_len=length, document_mask=True)
  c.vocabulary.update(path=f'{before}/vocabulary', size=128_000, algorithm='bpe', normalization='identity', sentinels=0)
  c.model.update(
      vocab_size=128_256, d_model=width, num_layers=layers, num_heads=heads, num_kv_heads=8, head_dim=128, d_ff=d_ff,
      activation='swiglu', norm='rmsnorm', norm_eps=1e-5, position='rope', rope_theta=500_000.0, init='bert',
      rope_scaling=dict(name='llama3', factor=8.0, original_positions=8192, low_freq_factor=1.0, high_freq_factor=4.0),
      remat='full')
  c.batch_size = BATCH // length
  c.microbatches = 8
  c.mesh.context = pieces
  c.optimizer.update(learning_rate=rate, b1=0.9, b2=0.95, eps=1e-5, weight_decay=0.1, clip_norm=1.0)
  c.schedule.update(name='linear' if length == 131_072 else 'constant', warmup_steps=200, final_scale=0.0)
  c.stop.tokens = '200B'
  c.params_expected = params
  c.evaluate.update(every=1000, batches=10)
  c.checkpoint.update(every=500, keep_every=5000)
  return smoke(c) if arg == 'smoke' else c
