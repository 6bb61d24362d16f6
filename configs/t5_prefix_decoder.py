"""A prefix language model in T5's style: one stack with relative positions that sees its prefix both ways.

    python main.py --config=configs/t5_prefix_decoder.py --workdir=gs://BUCKET/prefix_lm
    python main.py --config=configs/t5_prefix_decoder.py:denoising --workdir=gs://BUCKET/prefix_denoising

Variants: denoising (T5's baseline objective, its inputs being the prefix), causal. Hardware: a TPU v5e-32, days.
Expected: GLUE 81.82 after fine-tuning for denoising (Raffel et al. 2020, table 2, as quoted by others); the others'
figures were not read. Not verified here.
"""
from t5like.config import base, smoke


def get_config(arg=''):
  c = base()
  c.data.update(source='tfds:c4/en', validation='validation', seq_len=512, document_mask=False)
  c.vocabulary.update(size=32_100, sentinels=100)
  c.objective.name = 'causal' if arg == 'causal' else 'iid_denoising' if arg == 'denoising' else 'prefix_lm'
  c.model.update(
      name='decoder', position='relative', scale_attention=False, head='scaled', tie_embeddings=True,
      activation='relu', init='t5', dropout=0.1, dropout_style='t5', vocab_size=32_128, d_model=768, num_layers=12,
      num_heads=12, d_ff=3072)
  c.batch_size = 128
  c.loss.z_loss = 1e-4
  c.optimizer.update(name='adafactor', learning_rate=0.01, clip_norm=0.0)
  c.schedule.update(name='rsqrt', timescale=10_000)
  if arg == 'denoising':
    c.data.seq_len = 736  # room for inputs of 512 tokens and, behind them, their targets
    c.reference = dict(metric='GLUE', value=81.82, source='Raffel et al. 2020, table 2, as quoted by others')
  c.stop.tokens = 2 ** 19 * 128 * c.data.seq_len
  c.params_expected = 109_628_544
  c.evaluate.update(every=5000, batches=20)
  c.checkpoint.update(every=2000, keep_every=50_000)
  return smoke(c) if arg == 'smoke' else c
