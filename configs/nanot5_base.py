"""nanoT5: T5 v1.1 base on C4 in a day, by Adafactor or by Adam with steps relative to parameters.

    python main.py --config=configs/nanot5_base.py --workdir=runs/nanot5
    python main.py --config=configs/nanot5_base.py:adafactor --workdir=runs/nanot5_adafactor

Hardware and time: one A100, 10 h. Expected: held-out loss 1.953 with adamw_rms and a cosine, 1.995 with adafactor and
an inverse square root (README of github.com/PiotrNawrot/nanoT5). Not verified here. Differences: its head starts
at a standard deviation of 1 (losses near 60 at first), ours as T5X's; its warm-up begins at half the rate.
"""
from configs.base import base, smoke


def get_config(arg=''):
  c = base()
  c.data.update(source='tfds:c4/en', validation='validation', seq_len=512)
  c.vocabulary.update(size=32_100, sentinels=100)
  c.objective.update(name='span_corruption', noise_density=0.15, mean_span=3.0)
  c.model.update(
      name='encoder_decoder', position='relative', scale_attention=False, activation='geglu', init='t5',
      vocab_size=32_128, d_model=768, num_layers=12, num_heads=12, d_ff=2048)
  c.update(batch_size=128, microbatches=2)
  if arg == 'adafactor':
    c.optimizer.update(name='adafactor', learning_rate=0.01, clip_norm=1.0)
    c.schedule.update(name='rsqrt_decay', timescale=10_000, decay_fraction=0.1, final_scale=0.0)
  else:
    c.optimizer.update(name='adamw_rms', learning_rate=2e-2, b1=0.9, b2=0.999, eps=1e-6, weight_decay=0.0,
                       clip_norm=1.0)
    c.schedule.update(name='cosine', warmup_steps=10_000, final_scale=1e-5 / 2e-2)
  c.stop.tokens = 65_536 * 128 * 512
  c.params_expected = 247_577_856
  c.reference = dict(metric='validation nll', value=1.995 if arg == 'adafactor' else 1.953, source='nanoT5, README',
                     verified=False)
  c.evaluate.update(every=5000, batches=50)
  c.checkpoint.every = 2000
  return smoke(c) if arg == 'smoke' else c
