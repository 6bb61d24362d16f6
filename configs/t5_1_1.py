"""T5 v1.1: GEGLU, a head of its own, no dropout, C4 alone. Sizes: small, base, large, xl, xxl.

    python main.py --config=configs/t5_1_1.py:xl --workdir=gs://BUCKET/t5_1_1_xl

Hardware: a TPU v5e-32 for the smaller, v5e-128 (large), v5e-256 (xl), v5p-512 (xxl). Expected: no loss was
published. Shapes are those of T5X's gin files. Not verified here. Batch and steps, 2^20 tokens and a million, are
those of T5 (Raffel et al. 2020, section 3.7) and of mT5, which has this architecture (README of its repository:
tokens_per_batch 1,048,576, train_steps 1,000,000); T5X's example for this model, base_c4_pretrain.gin, has 256 rows
and 100,000 steps.
"""
from t5like.config import base, smoke

SIZES = dict(  # layers of each stack, width, heads, feed-forward, parameters
    small=(8, 512, 6, 1024, 76_961_152), base=(12, 768, 12, 2048, 247_577_856),
    large=(24, 1024, 16, 2816, 783_150_080), xl=(24, 2048, 32, 5120, 2_849_757_184),
    xxl=(24, 4096, 64, 10_240, 11_135_332_352))


def get_config(arg=''):
  c = base()
  size = arg if arg in ('small', 'base', 'large', 'xl', 'xxl') else 'base'
  layers, width, heads, ff, params = SIZES[size]
  c.data.update(source='tfds:c4/en', validation='validation', seq_len=512, append_eos=False)
  c.vocabulary.update(size=32_100, sentinels=100)
  c.objective.update(name='span_corruption', noise_density=0.15, mean_span=3.0)
  c.model.update(
      name='encoder_decoder', position='relative', scale_attention=False, activation='geglu', init='t5',
      vocab_size=32_128, d_model=width, num_layers=layers, num_heads=heads, head_dim=64, d_ff=ff,
      remat='none' if size == 'small' else 'minimal')
  c.batch_size = 2048
  c.loss.z_loss = 1e-4
  c.optimizer.update(name='adafactor', learning_rate=0.01, clip_norm=0.0)
  c.schedule.update(name='rsqrt', timescale=10_000)
  c.stop.tokens = 1_000_000 * 2048 * 512
  c.params_expected = params
  c.evaluate.update(every=5000, batches=10)
  c.checkpoint.update(every=1000, keep_every=50_000)
  c.sample.prompts = ('The <extra_id_0> walks in <extra_id_1> park',)
  return smoke(c) if arg == 'smoke' else c
