"""nanoT5: T5 v1.1 base on C4 in a day, by Adafactor or by Adam with steps relative to parameters.

    python main.py --config=configs/nanot5_base.py --workdir=runs/nanot5
    python main.py --config=configs/nanot5_base.py:adafactor_rsqrt --workdir=runs/nanot5_adafactor

Variants: adamw_rms_cosine (the same as none), adamw_rms_rsqrt, adafactor_cosine, adafactor_rsqrt. Hardware and time:
one A100, 10 h. Expected: held-out loss of 1.953, 2.040, 1.993 and 1.995 in that order (README of
github.com/PiotrNawrot/nanoT5). Not verified here. Differences: its head starts at a standard deviation of 1
(losses near 60 at first), ours as T5X's; its cosine warms up from half the rate, ours from 0.
"""
from t5like.config import base, smoke

LOSSES = dict(adamw_rms_cosine=1.953, adamw_rms_rsqrt=2.040, adafactor_cosine=1.993, adafactor_rsqrt=1.995)


def get_config(arg=''):
  c = base()
  known = arg in ('adamw_rms_cosine', 'adamw_rms_rsqrt', 'adafactor_cosine', 'adafactor_rsqrt')
  variant = arg if known else 'adamw_rms_cosine'
  c.data.update(source='tfds:c4/en', validation='validation', seq_len=512)
  c.vocabulary.update(size=32_100, sentinels=100)
  c.objective.update(name='span_corruption', noise_density=0.15, mean_span=3.0)
  c.model.update(
      name='encoder_decoder', position='relative', scale_attention=False, activation='geglu', init='t5',
      vocab_size=32_128, d_model=768, num_layers=12, num_heads=12, d_ff=2048)
  c.update(batch_size=128, microbatches=2)
  c.optimizer.update(name='adafactor' if 'adafactor' in variant else 'adamw_rms', b1=0.9, b2=0.999, eps=1e-6,
                     weight_decay=0.0, clip_norm=1.0)
  if 'rsqrt' in variant:
    c.optimizer.learning_rate = 0.01
    c.schedule.update(name='rsqrt_decay', timescale=10_000, decay_fraction=0.1, final_scale=0.0)
  else:
    c.optimizer.learning_rate = 2e-2
    c.schedule.update(name='cosine', warmup_steps=10_000, final_scale=1e-5 / 2e-2)
  c.stop.tokens = 65_536 * 128 * 512
  c.params_expected = 247_577_856
  c.reference = dict(metric='validation nll', value=LOSSES[variant], source='nanoT5, README')
  c.evaluate.update(every=5000, batches=50)
  c.checkpoint.every = 2000
  return smoke(c) if arg == 'smoke' else c
