"""T5 v1.0: span corruption of C4, 1M steps. Sizes: small, base, large, 3b, 11b.

    python main.py --config=configs/t5.py:large --workdir=gs://BUCKET/t5_large

Hardware: a TPU v5e-32 for the smaller, v5e-64 (large), v5e-256 (3b), v5p-512 (11b), days to weeks. Expected: the
published models were trained on supervised tasks too, so only the 11b's GLUE of 90.3 is given here (Raffel et al.
2020, table 14, as quoted by others). Not verified here.
"""
from t5like.config import base, smoke

SIZES = {  # layers of each stack, width, heads, head size, feed-forward, parameters
    'small': (6, 512, 8, 64, 2048, 60_506_624), 'base': (12, 768, 12, 64, 3072, 222_903_552),
    'large': (24, 1024, 16, 64, 4096, 737_668_096), '3b': (24, 1024, 32, 128, 16_384, 2_851_598_336),
    '11b': (24, 1024, 128, 128, 65_536, 11_307_321_344)}


def get_config(arg=''):
  c = base()
  size = arg if arg in ('small', 'base', 'large', '3b', '11b') else 'base'
  layers, width, heads, head, ff, params = SIZES[size]
  c.data.update(source='tfds:c4/en', validation='validation', seq_len=512, append_eos=False)
  c.vocabulary.update(size=32_100, sentinels=100)
  c.objective.update(name='span_corruption', noise_density=0.15, mean_span=3.0)
  c.model.update(
      name='encoder_decoder', position='relative', scale_attention=False, head='scaled', tie_embeddings=True,
      activation='relu', init='t5', dropout=0.1, dropout_style='t5', vocab_size=32_128, d_model=width,
      num_layers=layers, num_heads=heads, head_dim=head, d_ff=ff, remat='none' if size == 'small' else 'minimal')
  c.batch_size = 2048
  c.loss.z_loss = 1e-4
  c.optimizer.update(name='adafactor', learning_rate=0.01, clip_norm=0.0)
  c.schedule.update(name='rsqrt', timescale=10_000)
  c.stop.tokens = 1_000_000 * 2048 * 512
  c.params_expected = params
  if size == '11b':
    c.reference = dict(metric='GLUE, test', value=90.3, source='Raffel et al. 2020, table 14, as quoted by others')
  c.evaluate.update(every=5000, batches=10)
  c.checkpoint.update(every=1000, keep_every=50_000)
  c.sample.prompts = ('The <extra_id_0> walks in <extra_id_1> park',)
  return smoke(c) if arg == 'smoke' else c
