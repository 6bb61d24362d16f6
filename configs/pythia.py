"""Pythia (GPT-NeoX): parallel blocks, rotary on a quarter of each head. Sizes: 70m, 160m, 410m, 1b, 1b4.

    python main.py --config=configs/pythia.py:410m --workdir=gs://BUCKET/pythia_410m

Hardware: a TPU v5e-64, days, or a larger one for the larger sizes. Expected: Pythia publishes scores, not losses:
zero-shot LAMBADA perplexity 142.4, 38.1, 10.8, 7.92 and 6.09 in the order of the sizes (its evaluation files).
Not verified here; our data is C4, for The Pile is not in TFDS. At 1b its config says a learning rate of 2.5e-4
and its README 3.0e-4: this is the README's.
"""
from t5like.config import base, smoke

SIZES = {  # layers, width, heads, learning rate, parameters, LAMBADA perplexity
    '70m': (6, 512, 8, 1e-3, 70_426_624, 142.4), '160m': (12, 768, 12, 6e-4, 162_322_944, 38.1),
    '410m': (24, 1024, 16, 3e-4, 405_334_016, 10.8), '1b': (16, 2048, 8, 3e-4, 1_011_781_632, 7.92),
    '1b4': (24, 2048, 16, 2e-4, 1_414_647_808, 6.09)}


def get_config(arg=''):
  c = base()
  size = arg if arg in ('70m', '160m', '410m', '1b', '1b4') else '160m'
  layers, width, heads, rate, params, perplexity = SIZES[size]
  c.data.update(source='tfds:c4/en', validation='validation', seq_len=2048, document_mask=False)
  c.vocabulary.update(size=50_257, algorithm='bpe', normalization='identity', sentinels=0)
  c.model.update(
      vocab_size=50_304, d_model=width, num_layers=layers, num_heads=heads, d_ff=4 * width, block='parallel',
      activation='gelu', norm='layernorm', norm_eps=1e-5, use_bias=True, rope_fraction=0.25, init='neox',
      remat='minimal')
  c.batch_size = 1024
  c.microbatches = 4 if size == '1b4' else 2 if size in ('410m', '1b') else 1
  c.optimizer.update(learning_rate=rate, b1=0.9, b2=0.95, weight_decay=0.1, clip_norm=1.0)
  c.schedule.update(warmup_steps=1430, final_scale=0.1)
  c.stop.tokens = 143_000 * 1024 * 2048
  c.params_expected = params
  c.reference = dict(metric='zero-shot LAMBADA perplexity', value=perplexity, source='Pythia, evaluation files')
  c.evaluate.update(every=2000, batches=50)
  c.checkpoint.update(every=1000, keep_every=10_000)
  return smoke(c) if arg == 'smoke' else c
