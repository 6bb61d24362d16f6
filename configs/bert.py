"""BERT: masked words, norms after each sublayer. Sizes: base (the same as none), large, wwm (large, whole words).

    python main.py prepare --config=configs/bert.py
    python main.py --config=configs/bert.py --workdir=gs://BUCKET/bert_base
    python main.py --config=configs/bert.py:base_512 --workdir=gs://BUCKET/bert_base_512 \\
        --config.init_from=gs://BUCKET/bert_base

Hardware: a TPU v5e-16 or larger, days. The first run is 900,000 steps on 128 tokens; `:base_512`, `:large_512` and
`:wwm_512` continue with the last 100,000 on 512 (the recipe of BERT's README). Both together follow one schedule:
10,000 steps of warm-up, then a straight line to 0 at step 1,000,000. Expected: base, after fine-tuning, GLUE MNLI
84.6 / 83.4; large 86.7 / 85.9 (Devlin et al. 2018, table 1, as quoted by others); whole words 87.07 on MNLI (README).
Not verified here; our data is Wikipedia alone, and next-sentence prediction is left out, as RoBERTa found it should be.
"""
from t5like.config import base, smoke

WARMUP = 10_000  # steps
SHORT = 900_000  # steps on 128 tokens
ALL = 1_000_000  # steps of both runs
PEAK = 1e-4


def get_config(arg=''):
  c = base()
  size = arg.removesuffix('_512') if arg in ('base', 'large', 'wwm', 'base_512', 'large_512', 'wwm_512') else 'base'
  large = size != 'base'
  c.data.update(source='tfds:wikipedia/20230601.en', validation_fraction=0.001, seq_len=128, document_mask=False)
  c.vocabulary.update(size=30_522, sentinels=2)
  c.objective.update(name='masked_lm', masking='bert', noise_density=0.15, cls_sep=True, whole_word=size == 'wwm')
  c.model.update(
      name='encoder', block='post_norm', embed_norm=True, position='learned', num_types=2, head='mlm',
      tie_embeddings=True, norm='layernorm', norm_eps=1e-12, use_bias=True, activation='gelu', init='bert',
      vocab_size=30_522, max_positions=512, dropout=0.1, d_model=1024 if large else 768,
      num_layers=24 if large else 12, num_heads=16 if large else 12)
  c.batch_size = 256
  c.optimizer.update(name='bert_adamw', learning_rate=PEAK, b1=0.9, b2=0.999, eps=1e-6, weight_decay=0.01,
                     clip_norm=1.0)
  left = (ALL - SHORT) / (ALL - WARMUP)  # of the peak, when the first run ends
  c.schedule.update(name='linear', warmup_steps=WARMUP, final_scale=left)
  c.stop.tokens = SHORT * 256 * 128
  if arg in ('base_512', 'large_512', 'wwm_512'):
    c.data.seq_len = 512
    c.optimizer.learning_rate = PEAK * left
    c.schedule.update(warmup_steps=0, final_scale=0.0)
    c.stop.tokens = (ALL - SHORT) * 256 * 512
    c.model.remat = 'minimal'  # 16 rows of the large model fit a chip of a v5e
  # Published counts have a pooler and no head: 109,482,240 - 590,592 + 622,650, and likewise large.
  c.params_expected = 335_174_458 if large else 109_514_298
  c.reference = dict(metric='GLUE MNLI-m', value=dict(base=84.6, large=86.7, wwm=87.07)[size],
                     source='BERT, README' if size == 'wwm' else 'Devlin et al. 2018, table 1, as quoted by others')
  c.evaluate.update(every=5000, batches=100)
  c.checkpoint.update(every=5000, keep_every=100_000)
  c.sample.prompts = ('The capital of France is<mask>.',)
  return smoke(c) if arg == 'smoke' else c
